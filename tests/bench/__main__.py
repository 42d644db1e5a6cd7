"""``make bench``: how fast and how large the real daemon is, beside what else answers the same, in one run.

Absolute times of a shared machine mean little, so every server stands under every load by turns, round after round in
another order, and what is told is the median of the rounds with the least and the most. The loads come from a generator
in C, a process of its own; each request has a connection of its own. :file:`README.md` says what is compared with what.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import servers
from tests.bench.loads import LOADS, QUICK, Load, compiled, put_on
from tests.bench.processes import cpu_seconds, family, memory, memory_of
from tests.bench.report import evaluated, picture, table
from tests.bench.servers import HELPER, Server

Start = Callable[[Path], AbstractContextManager[Server]]
_APART = "BENCH_APART"
SETTLED_SECONDS = 5.0
"""After which a start has left nothing to be done."""


def found(directory: Path, *, quick: bool) -> tuple[dict[str, Start], list[str]]:
    """The servers that this machine can start, and why others are left out."""
    starts: dict[str, Start] = {"agent": partial(servers.agent, servers.installed(directory / "installed"))}
    absent = []
    program = servers.go(directory, "peer")
    if program is None:
        absent.append("go: no Go toolchain")
    else:
        starts["go"] = partial(_go_peer, program)
    program = shutil.which("nginx")
    if program is None:
        absent.append("nginx: not installed (apt install nginx-light)")
    else:
        starts["nginx"] = partial(servers.nginx, program)
    if quick:
        absent.append("roles anywhere: not with --quick")
        return starts, absent
    program = servers.go(directory, "rolesanywhere-credential-helper", HELPER)
    if program is None:
        absent.append(f"roles anywhere: {HELPER} could not be built")
    else:
        starts["roles anywhere"] = partial(servers.roles_anywhere, program)
    return starts, absent


def _go_peer(program: str, directory: Path) -> AbstractContextManager[Server]:
    directory.mkdir()
    port = servers.free_port()
    return servers.command("go", port, [program, "-port", str(port)], ("ec2", "container", "google"))


def started(starts: dict[str, Start], directory: Path, times: int) -> dict[str, list[float]]:
    """Seconds from exec to the first credential, by turns."""
    took: dict[str, list[float]] = {name: [] for name in starts}
    for number in range(times):
        for name, start in starts.items():
            with start(directory / f"{name.replace(' ', '-')}-{number}") as server:
                took[name].append(server.started)
    return took


def idle(running: list[Server], seconds: float) -> dict[str, float]:
    """The CPU that each uses while nobody asks, in per cent of a core."""
    time.sleep(SETTLED_SECONDS)
    before = {server.name: cpu_seconds(server.pid) for server in running}
    time.sleep(seconds)
    return {server.name: 100 * (cpu_seconds(server.pid) - before[server.name]) / seconds for server in running}


def measured(
    generator: Path, running: list[Server], loads: list[Load], *, seconds: float, rounds: int
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every load on every server that answers it; in each round another begins."""
    results: dict[str, dict[str, list[dict[str, Any]]]] = {
        load.name: {server.name: [] for server in running if load.kind in server.kinds} for load in loads
    }
    for number in range(rounds):
        order = running[number % len(running) :] + running[: number % len(running)]
        for load in loads:
            if load.boto3 and number:
                continue  # most of what it costs is the clients'
            for server in order:
                if load.kind in server.kinds:
                    results[load.name][server.name].append(put_on(generator, load, server, seconds))
    return results


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="measure the daemon beside other servers"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load in each round")
    parser.add_argument("--rounds", type=int, default=5, help="of all loads")
    parser.add_argument("--starts", type=int, default=7, help="of each server")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of idleness")
    parser.add_argument("--only", action="append", metavar="LOAD", help="this load, by its name in the table")
    parser.add_argument("--quick", action="store_true", help="fewer loads, 1 s, 1 round, 3 starts, 20 s of idleness")
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.rounds, given.starts, given.idle = 1.0, 1, 3, 20.0
    return given


def be_apart() -> None:
    """Go on in a mount namespace of our own, with a directory that nobody else is in (root only).

    The kernel tells the agent of file systems that others mount and of what changes beside its files: on a machine that does
    much of that nobody would be idle.
    """
    begin = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        'mount -t tmpfs tmpfs /mnt; exec "$@"',
        "sh",
    ]
    if os.geteuid() == 0 and _APART not in os.environ:
        if subprocess.run([*begin, "true"], capture_output=True, check=False).returncode:
            print(
                "left out: a mount namespace of its own, which root may not make here: what others mount is not idleness"
            )
            return
        environ = {**os.environ, _APART: "1", "TMPDIR": "/mnt"}
        os.execvpe(begin[0], [*begin, sys.executable, "-m", "tests.bench", *sys.argv[1:]], environ)


def main() -> int:
    given = arguments()
    be_apart()
    chosen = given.only or (QUICK if given.quick else [load.name for load in LOADS])
    loads = [load for load in LOADS if load.name in chosen and (os.geteuid() == 0 or not load.needs_root)]
    given.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # Short: a socket's path has 107 bytes.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench")))
        directory.chmod(0o711)  # other users run the generator
        generator = compiled(directory)
        starts, absent = found(directory, quick=given.quick)
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; {given.rounds} rounds of {given.seconds:g} s"
        )
        took = started(starts, directory, given.starts)
        anew = servers.server_seconds(directory / "anew", given.starts)
        running = [stack.enter_context(start(directory / name.replace(" ", "-"))) for name, start in starts.items()]
        sizes = {server.name: memory(server.pid) for server in running}
        idleness = idle(running, given.idle)
        results: dict[str, Any] = {
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
            "absent": absent,
            "import_aiohttp_seconds": statistics.median(servers.import_seconds() for _ in range(3)),
            "server_seconds": anew,
            "loads": measured(generator, running, loads, seconds=given.seconds, rounds=given.rounds),
        }
        results["servers"] = {
            server.name: {
                "kinds": server.kinds,
                "start_seconds": [*took[server.name], server.started],
                "idle_percent": idleness[server.name],
                "memory": sizes[server.name],
                "memory_after": memory(server.pid),
                "largest_mb": max(memory_of(pid).pss for pid in family(server.pid)[2:] or [server.pid]),
            }
            for server in running
        }
    print(table(results))
    print("\n".join(f"left out: {why}" for why in absent))
    print(f"server anew, from a live agent: {statistics.median(anew):.3f} s ({min(anew):.3f} to {max(anew):.3f})")
    print(f"python needs {results['import_aiohttp_seconds']:.2f} s to start and import aiohttp")
    print("\n".join(evaluated(results)))
    (given.output / "bench.json").write_text(json.dumps(results, indent=2) + "\n")
    drawn = picture(results, given.output / "bench.png")
    print(f"written: {given.output}/bench.json" + (", bench.png" if drawn else "; no picture without matplotlib"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
