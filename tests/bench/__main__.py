"""``make bench``: how fast the real daemon is, beside any other server that is given, in one run.

Absolute times of a shared machine mean little, so everything stands beside a plain Go ``net/http`` server that answers
the same from memory (:file:`peer.go`, built when there is ``go``), and beside each ``--server NAME=URL``.

Measured, with a new connection for each request and the requests that botocore sends:

* sequences (PUT token, role list, document) a second and their latencies, at concurrency 1, 32 and 256;
* a burst of 512 sequences at the same instant, several times;
* from exec to the first credential served, beside what Python needs to import aiohttp;
* resident memory at the start, after all of the above, and after a million requests;
* CPU time while idle.

``--quick`` measures less of everything. The results go to ``--output`` as ``bench.json`` and, with matplotlib,
``bench.png``.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.system.harness import Agent, World

HERE = Path(__file__).resolve().parent
CONCURRENCIES = (1, 32, 256)
BURST = 512
AIMS = {
    "burst p99": ("a burst of 512 sequences: p99 under 200 ms", 200.0),
    "burst max request": ("no request over 400 ms", 400.0),
    "ratio": ("at least half the sequences of the Go server", 0.5),
    "memory": ("under 45 MB resident, and flat", 45.0),
    "start": ("ready in under twice the import of aiohttp", 2.0),
}


def build(directory: Path) -> Path | None:
    """The Go program; ``None`` where there is no Go."""
    go = shutil.which("go")
    if go is None:
        return None
    target = directory / "peer"
    subprocess.run(
        [go, "build", "-o", str(target), "peer.go"],
        cwd=HERE,
        check=True,
        env={**os.environ, "GOCACHE": str(directory / "gocache")},
    )
    return target


class Load:
    """The generator, always in a process of its own."""

    def __init__(self, peer: Path | None) -> None:
        self._peer = peer
        self.name = "go" if peer else "python"

    def __call__(self, url: str, **how: float) -> dict[str, Any]:
        flags = [text for name, value in how.items() for text in (f"--{name}", str(value))]
        if self._peer is not None:
            argv = [str(self._peer), "load", "-url", url, *(flag.replace("--concurrency", "-c") for flag in flags)]
        else:
            argv = [sys.executable, "-m", "tests.bench.load", "--url", url, *flags]
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout)
        result["per_second"] = result["sequences"] / result["seconds"] if result["seconds"] else 0.0
        return dict(result)


@contextmanager
def go_server(peer: Path) -> Iterator[tuple[str, int]]:
    """The yardstick: its URL and pid."""
    with subprocess.Popen([str(peer), "serve"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"], process.pid
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ask(port: int, request: bytes) -> bytes:
    """One exchange, or nothing when nobody is there yet."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
            sock.sendall(request)
            answer = b""
            while piece := sock.recv(4096):
                answer += piece
            return answer
    except OSError:
        return b""


def serves(port: int) -> bool:
    """Whether a whole sequence is answered."""
    host = f"Host: 127.0.0.1:{port}\r\n".encode()
    put = b"PUT /latest/api/token HTTP/1.1\r\n" + host + b"X-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"
    answer = ask(port, put)
    if not answer.startswith(b"HTTP/1.1 200"):
        return False
    token = b"X-aws-ec2-metadata-token: " + answer.rpartition(b"\r\n\r\n")[2] + b"\r\n\r\n"
    path = b"/latest/meta-data/iam/security-credentials/"
    answer = ask(port, b"GET " + path + b" HTTP/1.1\r\n" + host + token)
    if not answer.startswith(b"HTTP/1.1 200"):
        return False
    role = answer.rpartition(b"\r\n\r\n")[2]
    return b"AccessKeyId" in ask(port, b"GET " + path + role + b" HTTP/1.1\r\n" + host + token)


def start(directory: Path) -> tuple[World, Agent, int, float]:
    """A daemon with a bundle at hand: its first credential after so many seconds from exec."""
    world = World(directory)
    world.drop(world.seal(world.session("ASIAUSER000000000000")))
    port = free_port()
    config = world.write_config({"listen": {"http": [f"127.0.0.1:{port}"]}})
    began = time.perf_counter()
    # As it is installed: without rich, which structlog would take where some other package has brought it.
    agent = Agent(config, prelude="sys.modules['rich'] = None")
    while not serves(port):
        if agent.process.poll() is not None or time.perf_counter() - began > 60:
            raise SystemExit(f"the daemon did not come up:\n{agent.stderr}")
        time.sleep(0.002)
    return world, agent, port, time.perf_counter() - began


def import_seconds() -> float:
    """What Python needs to start and import aiohttp."""
    took = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import aiohttp"], check=True)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(load: Load, servers: Sequence[tuple[str, str]], *, seconds: float, rounds: int) -> dict[str, Any]:
    """Every server under every load, taking turns so that a slow moment of the machine hits all."""
    results: dict[str, Any] = {name: {} for name, _ in servers}
    for name, url in servers:
        warm = load(url, concurrency=8, seconds=0.5)
        if not warm["sequences"]:
            raise SystemExit(f"{name} at {url} does not answer the sequence: {warm['error']}")
    for concurrency in CONCURRENCIES:
        for name, url in servers:
            results[name][f"c={concurrency}"] = load(url, concurrency=concurrency, seconds=seconds)
    for name, url in servers:
        results[name]["burst"] = load(url, burst=BURST, rounds=rounds)
    return results


def table(results: dict[str, Any]) -> str:
    """For people."""
    head = (
        "server",
        "load",
        "sequences/s",
        "seq p50",
        "p99",
        "p99.9",
        "max ms",
        "req p50",
        "p99",
        "p99.9",
        "max ms",
        "errors",
    )
    rows = [head]
    for name, loads in results["servers"].items():
        for kind, got in loads.items():
            sequence, request = got["sequence_ms"] or {}, got["request_ms"] or {}
            marks = ("p50", "p99", "p99.9", "max")
            rows.append(
                (
                    name,
                    kind,
                    f"{got['per_second']:.0f}",
                    *(f"{sequence.get(mark, 0):.1f}" for mark in marks),
                    *(f"{request.get(mark, 0):.1f}" for mark in marks),
                    str(got["errors"]),
                )
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(lines)


def evaluated(results: dict[str, Any]) -> list[str]:
    """The aims, and whether this run met them."""
    ours = results["servers"]["agent"]
    found: dict[str, float] = {
        "burst p99": ours["burst"]["sequence_ms"]["p99"],
        "burst max request": ours["burst"]["request_ms"]["max"],
        "memory": results["resident_mb"]["at the end"],
        "start": results["first_credential_seconds"] / results["import_aiohttp_seconds"],
    }
    go = results["servers"].get("go net/http")
    if go is not None:
        for concurrency in CONCURRENCIES:
            key = f"c={concurrency}"
            found[f"ratio {key}"] = ours[key]["per_second"] / go[key]["per_second"]
    lines = []
    for key, value in found.items():
        text, bound = AIMS[key.split(" c=")[0]]
        met = value >= bound if key.startswith("ratio") else value <= bound
        where = f" ({key.partition(' ')[2]})" if key.startswith("ratio") else ""
        lines.append(f"{'met ' if met else 'MISS'}  {text}{where}: {value:.2f}")
    return lines


def picture(results: dict[str, Any], path: Path) -> bool:
    """The same as bars; ``False`` without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(results["servers"])
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        loads = results["servers"][name]
        at = [i + number * width for i in range(len(CONCURRENCIES))]
        axes[0].bar(at, [loads[f"c={c}"]["per_second"] for c in CONCURRENCIES], width, label=name)
        axes[1].bar(at, [loads[f"c={c}"]["request_ms"]["p99"] for c in CONCURRENCIES], width, label=name)
        burst = [loads["burst"]["sequence_ms"].get(mark, 0) for mark in ("p50", "p99", "max")]
        axes[2].bar([i + number * width for i in range(3)], burst, width, label=name)
    for axis, title in zip(
        axes,
        (
            "sequences a second (more is better)",
            "p99 of one request, ms (less is better)",
            f"burst of {BURST} sequences, ms",
        ),
        strict=True,
    ):
        axis.set_title(title, fontsize=10)
        axis.legend(fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:2]:
        axis.set_xticks([i + width * (len(names) - 1) / 2 for i in range(len(CONCURRENCIES))])
        axis.set_xticklabels([f"{c} at once" for c in CONCURRENCIES])
    axes[2].set_xticks([i + width * (len(names) - 1) / 2 for i in range(3)])
    axes[2].set_xticklabels(["p50", "p99", "max"])
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="measure the daemon beside other servers"
    )
    parser.add_argument("--server", action="append", default=[], metavar="NAME=URL", help="measure this one too")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=10, help="bursts")
    parser.add_argument("--requests", type=int, default=1_000_000, help="before memory is read for the last time")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of idleness")
    parser.add_argument("--quick", action="store_true", help="2 s, 3 bursts, 30000 requests, 5 s of idleness")
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.rounds, given.requests, given.idle = 2.0, 3, 30_000, 5.0
    others = [tuple(text.split("=", 1)) for text in given.server]
    given.output.mkdir(parents=True, exist_ok=True)

    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench")))
        # As the install script leaves it; the harness writes no bytecode.
        compileall.compile_dir(HERE.parents[1] / "agent", quiet=1)
        peer = build(directory)
        load = Load(peer)
        print(f"load from {load.name}, in a process of its own; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        (directory / "world").mkdir()
        results: dict[str, Any] = {"import_aiohttp_seconds": import_seconds(), "load": load.name}
        starts = []
        for number in range(3):
            (directory / f"start{number}").mkdir()
            _, agent, _, took = start(directory / f"start{number}")
            with agent:
                starts.append(took)
                agent.stop()
        _, agent, port, took = start(directory / "world")
        stack.enter_context(agent)
        results["first_credential_seconds"] = statistics.median([*starts, took])
        pid = agent.process.pid
        memory = results["resident_mb"] = {"at the start": resident_mb(pid)}

        before = cpu_seconds(pid)
        time.sleep(given.idle)
        results["idle_cpu_percent"] = 100 * (cpu_seconds(pid) - before) / given.idle

        servers = [("agent", f"http://127.0.0.1:{port}")]
        if peer is not None:
            url, _ = stack.enter_context(go_server(peer))
            servers.append(("go net/http", url))
        servers += [(name, url) for name, url in others]
        results["servers"] = measure(load, servers, seconds=given.seconds, rounds=given.rounds)
        memory["after the loads"] = resident_mb(pid)
        load(servers[0][1], concurrency=32, seconds=3600, sequences=given.requests // 3)
        memory["at the end"] = resident_mb(pid)
        agent.stop()

    print(table(results))
    print(
        f"first credential {results['first_credential_seconds']:.2f} s after exec "
        f"(import of aiohttp {results['import_aiohttp_seconds']:.2f} s); "
        f"idle {results['idle_cpu_percent']:.2f} % CPU; resident MB: "
        + ", ".join(f"{when} {value:.1f}" for when, value in memory.items())
        + f" ({given.requests} requests)"
    )
    print("\n".join(evaluated(results)))
    (given.output / "bench.json").write_text(json.dumps(results, indent=2) + "\n")
    drawn = picture(results, given.output / "bench.png")
    print(f"written: {given.output}/bench.json" + (", bench.png" if drawn else "; no picture without matplotlib"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
