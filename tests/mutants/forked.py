"""Run the changes of ``operators``: a fork each, with only the tests that reach the changed function.

The tests are collected once. One fork runs them all and notes who calls what; then each mutant is a fork in which the
function's code is replaced, and which runs the tests that reach it until one fails: first those that noticed other
changes of that function, then the quickest. Nothing is written to the checkout. A process that a test starts has the
code as it is, unless ``processes`` are asked for: then it imports the changed file (:mod:`tests.mutants.inside`), and
every test that starts one may notice every change.
"""

from __future__ import annotations

import contextlib
import fnmatch
import gc
import json
import os
import random
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Final

import pytest

from tests.mutants import inside
from tests.mutants.operators import Change, changes

ROOT: Final = Path(__file__).resolve().parents[2]
MEMORY: Final = 6 << 30
"""Bytes: a change that takes a bound away must not take the machine's memory."""

PATIENCE: Final = 15.0
"""Seconds, beside three times what the tests took: a change that makes a test hang was noticed."""


#: Of this run alone: another one has numbers of processes of its own, which may be the same.
_FILES: Final = Path(tempfile.gettempdir()) / f"mutants-{secrets.token_hex(4)}"

MOST_SLOW: Final = 6.0
"""A machine that has more to do than this is none to score on."""


@dataclass
class Result:
    """What became of the changes of a room."""

    noticed: list[Change] = field(default_factory=list)
    survived: list[Change] = field(default_factory=list)
    unreached: list[Change] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.noticed) + len(self.survived) + len(self.unreached)


@dataclass
class Room:
    """What is changed (files), which tests must notice, and how much of it is tried."""

    files: list[Path]
    tests: tuple[str, ...]
    only: list[str]
    sample: int
    seed: int
    jobs: int
    budget: float
    seconds: float = float("inf")
    processes: bool = False


def run(room: Room) -> Result:
    """Every change, or the sample of them."""
    base = tempfile.mkdtemp(prefix="m")
    _FILES.mkdir(mode=0o755)
    loop = _Loop(room)
    flags = ["-qq", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "faulthandler_timeout=0", "-m", "not slow"]
    try:
        status = pytest.main(
            [*flags, "--hypothesis-profile=mutants", f"--basetemp={base}/t", *(str(ROOT / t) for t in room.tests)],
            plugins=[loop],
        )
    finally:
        shutil.rmtree(base, ignore_errors=True)
        shutil.rmtree(_FILES, ignore_errors=True)
    if loop.result is None:
        raise SystemExit(f"mutants: the tests of the room could not be collected: {status}")
    return loop.result


class _Loop:
    """A pytest plugin that takes the place of its loop over the tests."""

    def __init__(self, room: Room) -> None:
        self.result: Result | None = None
        self._room = room

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        import hypothesis

        config.addinivalue_line("markers", "xdist_group(name): of a plugin that is not here")

        hypothesis.settings.register_profile(
            "mutants",
            derandomize=True,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        took, reached, starting = self._baseline(list(items.values()))
        slow = _slowness()
        found = list(self._changes())
        result = Result()
        running: dict[int, tuple[Change, float]] = {}
        queue = iter(found)
        end = time.monotonic() + self._room.seconds
        ended = False
        functions = _live()
        sharp: Counter[tuple[str, str]] = Counter()  # so many changes of a function a test has noticed
        gc.freeze()
        while running or not ended:
            while not ended and len(running) < self._room.jobs:
                change = next(queue, None) if time.monotonic() < end else None
                if change is None:
                    ended = True
                    break
                live = functions[str(change.path), change.function, change.code.co_firstlineno]
                if any(f.__code__.co_freevars != change.code.co_freevars for f in live):
                    continue  # it cannot be put in the place of the other
                nodes = sorted(
                    reached.get((str(change.path), change.function), set()) | starting,
                    key=lambda node, change=change: (-sharp[change.name, node], took[node]),  # type: ignore[misc]
                )
                if not nodes or not (live or starting):
                    result.unreached.append(change)
                    continue
                chosen: list[pytest.Item] = []
                total = 0.0
                for node in nodes:
                    total += took[node]
                    if chosen and total > self._room.budget * slow:
                        break
                    chosen.append(items[node])
                patience = PATIENCE * max(slow, _slowness()) + 3 * total
                running[_forked(change, live, chosen, 3 + int(total))] = (change, time.monotonic() + patience)
            self._reap(running, result, sharp)
        self.result = result
        return True

    def _reap(self, running: dict[int, tuple[Change, float]], result: Result, sharp: Counter[tuple[str, str]]) -> None:
        for pid, (change, end) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done and time.monotonic() > end:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, 0)
            if done:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # what its tests left running
                del running[pid]
                _file(pid).unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    sharp[change.name, _by(pid).read_text()] += 1
                    _by(pid).unlink()
                (result.noticed if status else result.survived).append(change)
                sys.stderr.write("." if status else "S")
                sys.stderr.flush()
        time.sleep(0.01)

    def _changes(self) -> Iterator[Change]:
        found = []
        for path in self._room.files:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if module in sys.modules or self._room.processes:  # what a test starts may be all that imports it
                found += [
                    c
                    for c in changes(path, module, whole=self._room.processes)
                    if any(fnmatch.fnmatchcase(c.name, only) for only in self._room.only)
                ]
        random.Random(self._room.seed).shuffle(found)  # so that what is tried by the end of the time is a fair sample
        return iter(found[: self._room.sample or None])

    def _baseline(self, items: list[pytest.Item]) -> tuple[dict[str, float], dict[tuple[str, str], set[str]], set[str]]:
        """How long each test takes, which functions it reaches, and which tests start processes of ours.

        Of the tests that hold without any change. Nobody is told of those that start processes unless that is asked.
        """
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read)
            _quiet()
            sys.addaudithook(_audit)
            with os.fdopen(write, "w") as out:
                for item in items:
                    out.write(json.dumps(_noted(item)) + "\n")
            os._exit(0)
        os.close(write)
        took, reached, starting = {}, defaultdict(set), set()
        with os.fdopen(read) as lines:
            for line in lines:
                node, seconds, held, starts, functions = json.loads(line)
                if not held:
                    sys.stderr.write(f"left out, for it fails as it is: {node}\n")
                    continue
                took[node] = seconds
                if starts and self._room.processes:
                    starting.add(node)
                for path, function in functions:
                    reached[path, function].add(node)
        os.waitpid(pid, 0)
        return took, reached, starting


_STARTED: Final[list[bool]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and sys.executable in map(str, arguments[1]):
        _STARTED.append(True)


def _noted(item: pytest.Item) -> tuple[str, float, bool, bool, list[tuple[str, str]]]:
    seen: set[CodeType] = set()
    _STARTED.clear()

    def called(frame: FrameType, _event: str, _: Any) -> None:
        seen.add(frame.f_code)  # and its lines are nobody's business: there is no local tracer

    failed = item.session.testsfailed
    begun = time.monotonic()
    threading.settrace(called)
    sys.settrace(called)
    try:
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
    finally:
        sys.settrace(None)
        threading.settrace(None)  # None is what takes it back
    seconds = time.monotonic() - begun
    inside = str(ROOT / "agent")
    functions = {
        (code.co_filename, code.co_qualname.partition(".<locals>")[0])
        for code in seen
        if code.co_filename.startswith(inside)
    }
    return item.nodeid, seconds, item.session.testsfailed == failed, bool(_STARTED), sorted(functions)


def _forked(change: Change, functions: list[FunctionType], items: list[pytest.Item], seconds: int) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 2
    try:
        os.setsid()
        _quiet()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # a loop without end, on a loaded machine too
        session = items[0].session
        if change.text:
            file = _file(os.getpid())
            file.write_text(change.text)
            os.environ[inside.VARIABLE] = f"{change.module}={file}"
        for function in functions:
            function.__code__ = change.code
        status = 0
        for item in items:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            if session.testsfailed:
                status = 1
                _by(os.getpid()).write_text(item.nodeid)
                break
    finally:
        os._exit(status)


def _slowness() -> float:
    """How many times longer all takes because others use the machine too: it is neither a hang nor a test's price."""
    return min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), MOST_SLOW)


def _file(pid: int) -> Path:
    """Where a fork has the whole changed file."""
    return _FILES / f"{pid}.py"


def _by(pid: int) -> Path:
    """Where a fork says which test has noticed its change."""
    return _file(pid).with_suffix(".by")


def _live() -> dict[tuple[str, str, int], list[FunctionType]]:
    """The functions of the product by file, name and line, wherever they are held."""
    found = defaultdict(list)
    inside = str(ROOT / "agent")
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__code__.co_filename.startswith(inside):
            code = thing.__code__
            found[code.co_filename, code.co_qualname, code.co_firstlineno].append(thing)
    return found


def _quiet() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)


def main() -> int:
    """Read what to do (JSON) from stdin; write the outcome to the file that is named."""
    ask = json.loads(sys.stdin.read())
    with contextlib.suppress(OSError):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=False)  # in a network of our own it is down
    room = Room(files=[Path(name) for name in ask.pop("files")], tests=tuple(ask.pop("tests")), **ask)
    hook = Path(sysconfig.get_path("purelib")) / "zz_credential_agent_mutants.pth"
    try:
        if room.processes:
            hook.write_text(f"import os; {inside.VARIABLE!r} in os.environ and __import__({inside.__name__!r})\n")
        result = run(room)
    finally:
        hook.unlink(missing_ok=True)
    survivors = [
        {"function": c.name, "was": c.was, "now": c.now, "reached": reached, "line": c.line, "operator": c.operator}
        for changes_, reached in ((result.survived, True), (result.unreached, False))
        for c in sorted(changes_, key=lambda c: (c.module, c.line))
    ]
    Path(sys.argv[1]).write_text(json.dumps({"total": result.total, "survivors": survivors}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
