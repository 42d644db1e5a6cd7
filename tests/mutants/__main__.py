"""Mutation testing of the rooms that decide: which changes of the code does no test of the room notice?

Two hands make the changes. A stranger's (``operators``, the default): a method that does nothing, a condition turned, two
effects swapped, a bound or an ``await`` dropped. And mutmut's (``--by mutmut``), which knows more kinds, is slower, and
works on a copy below ``build/mutants``. The checkout stays as it is. See README.md here.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import fnmatch
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "mutants"
ACCEPTED: Final = Path(__file__).parent / "accepted.toml"

#: By room: what is mutated, and which tests must notice.
ROOMS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "bundle": ("agent/bundle", ("tests/unit/bundle",)),
    "core": ("agent/core", ("tests/unit/core", "tests/unit/identity")),
    "identity": ("agent/identity", ("tests/unit/identity", "tests/properties/test_store_machine.py")),
    "controller": ("agent/controller", ("tests/unit/controller", "tests/unit/identity")),
    "daemon": ("agent/daemon", ("tests/unit/daemon", "tests/system/test_daemon.py")),
    "serve": ("agent/serve", ("tests/unit/serve",)),
    "wire": ("agent/wire", ("tests/unit/wire", "tests/unit/serve")),
    "snapshot": ("agent/snapshot", ("tests/unit/snapshot",)),
    "host": ("agent/host", ("tests/unit/host",)),
    "server": ("agent/server", ("tests/unit/server",)),
    "enrol": ("agent/enrol", ("tests/unit/enrol",)),
    "config": ("agent/config", ("tests/unit/config",)),
    "doctor": ("agent/doctor", ("tests/unit/doctor",)),
    "forward": ("agent/forward", ("tests/unit/forward",)),
    "keys": ("agent/keys", ("tests/unit/keys",)),
    "providers": ("agent/providers", ("tests/unit/providers",)),
    "sources": ("agent/sources", ("tests/unit/sources",)),
    "upstream": ("agent/upstream", ("tests/unit/upstream",)),
}

#: What decides: whose identity is served, until when, what is remembered, who is a worker, what is hidden.
DECIDES: Final[dict[str, tuple[str, ...]]] = {
    "bundle": ("*",),
    "core": ("bucket", "refresh", "timekeeping", "verdict"),
    "identity": ("*",),
    "controller": ("*",),
    "daemon": (
        *("begins", "begun", "beliefs", "codec", "compose", "disk", "gap", "grace", "handover", "kept", "launched"),
        *("master_connection", "passing", "publish", "reload", "remembered", "restore", "servers", "snapshots"),
        *("still", "succession", "tokens", "unit", "who"),
    ),
    "serve": (
        *("connection", "container", "control", "courier", "early", "ec2", "fairness"),
        *("gate", "gce*", "hiding", "intake", "link", "listener", "mints", "proxy", "readers", "remembered"),
        *("silent", "target", "waiting"),
    ),
    "wire": ("container", "ec2", "gce", "http", "signers", "userdata", "wrapped"),
    "snapshot": ("*",),
    "host": (
        *("arrival", "deferring", "emptiable", "enforcing", "envfile", "hold", "lasting", "nft", "ownership"),
        *("planning", "ports", "state", "subuid", "systemctl"),
    ),
    "server": ("controllers", "forked", "kept", "master"),
    "enrol": ("binding", "google", "policy", "sts"),
    "config": ("checks", "meant", "salvage"),
    "doctor": ("checks.*", "isolation"),
    "forward": ("engine", "late", "sealing", "session", "wanted"),
    "keys": ("*",),
    "providers": ("*",),
    "sources": ("*",),
    "upstream": ("*",),
}

SURVIVED: Final = 0
UNTESTED: Final = 33  # mutmut: no test reaches the function


@dataclass(frozen=True)
class Mutant:
    """One change: its name by mutmut, the function it is in, and the lines that differ."""

    name: str
    function: str
    was: str
    now: str

    @property
    def only_words(self) -> bool:
        """Whether nothing but the letters of a text changed."""
        return _bare(self.was) == _bare(self.now)


@dataclass(frozen=True)
class Survivor:
    """A change that no test noticed; ``reached``: though some call the function."""

    function: str
    was: str
    now: str
    reached: bool
    line: int = 0
    operator: str = ""


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text).replace("XX", "").lower()


def main(argv: list[str] | None = None) -> int:
    """Run the rooms; print the score of each. Exit status 0 however many survive: it is a report, not a gate."""
    parser = argparse.ArgumentParser(prog="make mutants", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("rooms", nargs="*", help=f"of {', '.join(ROOMS)}; all by default")
    parser.add_argument("--by", choices=("stranger", "mutmut"), default="stranger", help="whose hand makes the changes")
    parser.add_argument("--decides", action="store_true", help="only the files that decide (DECIDES)")
    parser.add_argument("--sample", type=int, default=150, help="mutants a room; 0: all (hours)")
    parser.add_argument("--seed", type=int, default=1, help="draws the sample")
    parser.add_argument(
        "--only", default=["*"], nargs="+", help="patterns of functions, such as agent.identity.graph.*"
    )
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of tests a mutant, the quickest first")
    parser.add_argument("--tests", nargs="+", help="instead of all of the room's: files and folders")
    parser.add_argument("--processes", action="store_true", help="change the processes that the tests start, too")
    parser.add_argument("--seconds", type=float, default=1e9, help="a room; what was tried by then is the score")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args(argv)
    unknown = set(chosen.rooms) - set(ROOMS)
    if unknown:
        parser.error(f"expected rooms of {', '.join(ROOMS)}, got {', '.join(sorted(unknown))}")
    accepted = _accepted()
    lines: list[str] = []
    report: list[str] = []
    for room in chosen.rooms or ROOMS:
        total, kept = (_by_stranger if chosen.by == "stranger" else _by_mutmut)(room, chosen)
        named = [s for s in kept if (s.function, _bare(s.was), _bare(s.now)) in accepted]
        left = [s for s in kept if s not in named]
        killed = total - len(kept)
        lines.append(
            f"{room:8} {killed} of {total} noticed ({killed / max(1, total):.0%}), "
            f"{len(named)} accepted, {len(left)} to be looked at"
        )
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()
        report += [f"## {room}\n", *(_shown(survivor) for survivor in left)]
        BUILD.mkdir(parents=True, exist_ok=True)
        (BUILD / "survivors.md").write_text("\n".join(["# Survivors\n", "```text", *lines, "```\n", *report]))
    sys.stdout.write(f"survivors: {BUILD / 'survivors.md'}\n")
    return 0


def _decides(room: str, module: str) -> bool:
    return any(fnmatch.fnmatchcase(module, f"agent.{room}.{pattern}") for pattern in DECIDES[room])


def _by_stranger(room: str, chosen: argparse.Namespace) -> tuple[int, list[Survivor]]:
    """How many of the stranger's changes there are, and which no test noticed. In a process of its own: it forks."""
    ask = {
        "files": [
            str(path)
            for path in sorted((ROOT / ROOMS[room][0]).rglob("*.py"))
            if not chosen.decides or _decides(room, ".".join(path.relative_to(ROOT).with_suffix("").parts))
        ],
        "tests": chosen.tests or ROOMS[room][1],
        **{
            name: getattr(chosen, name) for name in ("only", "sample", "seed", "jobs", "budget", "seconds", "processes")
        },
    }
    BUILD.mkdir(parents=True, exist_ok=True)
    answer = BUILD / f"{room}.json"
    answer.unlink(missing_ok=True)
    # A change may kill, unlink or route what is not its own: it gets processes, mounts and a network of its own.
    alone = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    with (BUILD / f"{room}.log").open("wb") as log:
        subprocess.run(
            [*(alone if os.geteuid() == 0 else []), sys.executable, "-m", "tests.mutants.forked", str(answer)],
            cwd=ROOT,
            input=json.dumps(ask).encode(),
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if not answer.exists():
        raise SystemExit(f"mutants: {room} came to no end; see {BUILD / f'{room}.log'}")
    said = json.loads(answer.read_bytes())
    return said["total"], [Survivor(**survivor) for survivor in said["survivors"]]


def _by_mutmut(room: str, chosen: argparse.Namespace) -> tuple[int, list[Survivor]]:
    copy = _copy(room)
    _mutmut(copy, ["nothing.is.called.so"], chosen.jobs)  # makes the mutants, runs none
    mutants = [
        m
        for m in _mutants(copy)
        if not m.only_words
        and any(fnmatch.fnmatchcase(m.function, only) for only in chosen.only)
        and (not chosen.decides or _decides(room, ".".join(m.function.split(".")[:3])))
    ]
    if chosen.sample and len(mutants) > chosen.sample:
        mutants = random.Random(chosen.seed).sample(mutants, chosen.sample)
    _mutmut(copy, [mutant.name for mutant in mutants], chosen.jobs)
    outcome = _outcomes(copy)
    return len(mutants), [
        Survivor(m.function, m.was, m.now, reached=outcome[m.name] == SURVIVED)
        for m in mutants
        if outcome.get(m.name) in (SURVIVED, UNTESTED)
    ]


def _copy(room: str) -> Path:
    """A copy of the tree as it stands, with mutmut told about ``room``."""
    copy = BUILD / room
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    source, tests = ROOMS[room]
    if not (copy / source).exists():
        source += ".py"
    only = source if source.endswith(".py") else f"{source}/*"
    others = [p.name for p in copy.iterdir() if p.name not in {"agent", "tests", "pyproject.toml", "build"}]
    lists = {
        "source_paths": ["agent"],
        "only_mutate": [only],
        "also_copy": others,
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-m", "not slow"],
        "pytest_add_cli_args_test_selection": [test for test in tests if (copy / test).exists()],
    }
    with (copy / "pyproject.toml").open("a") as file:
        file.write("\n[tool.mutmut]\nuse_git_change_detection = false\n")
        file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in lists.items())
    return copy


def _mutmut(copy: Path, names: list[str], jobs: int) -> None:
    """Run mutmut on ``names``; what it says goes to a file beside the copy."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHONPATH"))}
    with (copy / "mutmut.log").open("ab") as log:
        subprocess.run(
            [Path(sys.executable).with_name("mutmut"), "run", "--max-children", str(jobs), *names],
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if not list((copy / "mutants").rglob("*.py.meta")):
        tail = (copy / "mutmut.log").read_bytes()[-3000:].decode(errors="replace")
        raise SystemExit(f"mutants: mutmut made none in {copy}:\n{tail}")


def _mutants(copy: Path) -> Iterator[Mutant]:
    """Every mutant of the copy, read from the source that mutmut wrote."""
    for meta in sorted((copy / "mutants").rglob("*.py.meta")):
        names = json.loads(meta.read_bytes())["exit_code_by_key"]
        module = ".".join(meta.relative_to(copy / "mutants").with_suffix("").with_suffix("").parts)
        tree = ast.parse(meta.with_suffix("").read_text())
        functions = {
            node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        for name in names:
            short = name.removeprefix(f"{module}.")
            stem = short.rpartition("__mutmut_")[0]
            before, after = functions.get(f"{stem}__mutmut_orig"), functions.get(short)
            if before is None or after is None:
                continue
            after.name = before.name
            was, now = _differences(ast.unparse(before), ast.unparse(after))
            function = re.sub(r"^(x_|xǁ)", "", stem).replace("ǁ", ".")
            yield Mutant(name, f"{module}.{function}", was, now)


def _differences(before: str, after: str) -> tuple[str, str]:
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    was = "\n".join(line[2:].strip() for line in lines if line.startswith("- "))
    now = "\n".join(line[2:].strip() for line in lines if line.startswith("+ "))
    return was, now


def _outcomes(copy: Path) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for meta in (copy / "mutants").rglob("*.py.meta"):
        found |= json.loads(meta.read_bytes())["exit_code_by_key"]
    return found


def _accepted() -> set[tuple[str, str, str]]:
    entries = tomllib.loads(ACCEPTED.read_text()).get("accepted", [])
    return {(entry["function"], _bare(entry["was"]), _bare(entry["now"])) for entry in entries}


def _shown(survivor: Survivor) -> str:
    note = "" if survivor.reached else " (no test reaches it)"
    where = f", line {survivor.line} [{survivor.operator}]" if survivor.line else ""
    minus = "\n".join(f"-{line}" for line in survivor.was.splitlines())
    plus = "\n".join(f"+{line}" for line in survivor.now.splitlines())
    return f"`{survivor.function}`{where}{note}\n```diff\n{minus}\n{plus}\n```\n"


if __name__ == "__main__":
    sys.exit(main())
