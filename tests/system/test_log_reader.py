"""Whatever becomes of who reads the daemon's log: it starts, answers, renews and ends as if somebody listened."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import pty
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.fakes.notify_socket import NotifySocket
from tests.system.harness import DEADLINE_SECONDS, Agent, Reply, UnixConnection, World, exchange

USER = "ASIAUSER000000000000"
LINES = 400
"""Of about 150 bytes each: far more than a pipe of one page takes."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path / "n") as manager:
        yield manager


_TALKATIVE = "import agent.controller.seldom\nagent.controller.seldom.BURST += 1_000_000\n"
"""It says the same as often as it is asked to."""


class Mute:
    """A daemon whose log is not ours to read: everything is learned from its endpoints and from what it tells systemd."""

    def __init__(self, world: World, manager: NotifySocket, redirect: str, prelude: str = "", **more: Any) -> None:
        self.world = world
        self.manager = manager
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.agent = world.agent(
            {"log": {"level": "debug"}},
            environ={"NOTIFY_SOCKET": str(manager.path)},
            passed=[("http", self.listener.fileno())],
            through=["sh", "-c", f'exec "$@" {redirect}', "sh"],
            prelude=_TALKATIVE + prelude,
            **more,
        )

    def __enter__(self) -> Self:
        self.agent.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.agent.__exit__(kind, error, trace)
        self.listener.close()

    def ready(self) -> Mute:
        self.manager.wait_for("READY=1")
        return self

    def get(self, path: str, headers: dict[str, str] | None = None) -> Reply:
        host, port = self.listener.getsockname()
        return exchange(http.client.HTTPConnection(host, port, timeout=DEADLINE_SECONDS), "GET", path, headers)

    def control(self, method: str, path: str, body: bytes | None = None) -> Any:
        socket_ = UnixConnection(self.world.root / "run" / "control")
        return json.loads(exchange(socket_, method, path, None, body).body)

    def key(self) -> str:
        reply = self.get("/v1/credentials", {"Authorization": self.world.token})
        assert reply.status == 200, reply
        return str(reply.json()["AccessKeyId"])

    def talk(self, lines: int = LINES) -> None:
        """Have it log: every refused bundle is a line."""
        for _ in range(lines):
            assert self.control("PUT", "/v1/bundle", b'{"no": "bundle"}')["outcome"] == "refused"

    def serves(self) -> None:
        """It takes a bundle, serves it, and ends when it is told to."""
        assert self.control("PUT", "/v1/bundle", self.world.seal(self.world.session(USER)))["outcome"] == "accepted"
        assert self.key() == USER
        self.talk()
        assert self.key() == USER


NOBODY_TAKES_IT = {
    "closed": "2>&-",
    "all three closed": "0<&- 1>&- 2>&-",
    "a full disk": "2>/dev/full",
    "no reader": "2>FIFO",
    "only for reading": "2</dev/null",
}


@pytest.mark.parametrize("redirect", NOBODY_TAKES_IT.values(), ids=NOBODY_TAKES_IT)
def test_a_standard_error_that_takes_nothing(world: World, manager: NotifySocket, redirect: str) -> None:
    """A closed, full or broken standard error costs the lines and nothing else: the exit status of the end is 0."""
    fifo = world.root / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with Mute(world, manager, redirect.replace("FIFO", str(fifo))) as mute:
        mute.ready()
        os.close(reader)  # EPIPE from here on, where it is the fifo
        mute.serves()
        assert mute.control("GET", "/v1/status")["log_dropped"] >= LINES
        assert mute.agent.stop() == 0


class TestAReaderThatHangs:
    @pytest.fixture
    def pipe(self, world: World) -> Iterator[tuple[Path, int]]:
        fifo = world.root / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        yield fifo, reader
        with contextlib.suppress(OSError):
            os.close(reader)

    def test_nothing_waits_for_it(self, world: World, manager: NotifySocket, pipe: tuple[Path, int]) -> None:
        """A pipe of one page that nobody reads: it is ready, serves, and ends in time with status 0."""
        with Mute(world, manager, f"2>{pipe[0]}") as mute:
            mute.ready().serves()
            assert mute.agent.stop() == 0

    def test_full_from_the_first_line(self, world: World, manager: NotifySocket, pipe: tuple[Path, int]) -> None:
        """A pipe that is full before the start holds up no start either."""
        writer = os.open(pipe[0], os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 512)
        with Mute(world, manager, f"2>{pipe[0]}") as mute:
            mute.ready().serves()
            assert mute.agent.stop() == 0
        os.close(writer)

    def test_what_was_dropped_is_told_when_it_is_back(
        self, world: World, manager: NotifySocket, pipe: tuple[Path, int]
    ) -> None:
        """Lines come whole and in order; where some are missing one line says how many, and so does the metric."""
        small = "import agent.log.spool as spool\nspool.Spool.__init__.__kwdefaults__['max_bytes'] = 20_000\n"
        with Mute(world, manager, f"2>{pipe[0]}", prelude=small) as mute:
            mute.ready().talk()
            os.set_blocking(pipe[1], True)
            held = mute.control("GET", "/v1/status")["log_dropped"]
            assert held > 0
            with open(pipe[1], "rb", closefd=False) as file:
                lines = []
                for raw in file:
                    lines.append(json.loads(raw))
                    if lines[-1]["event"] == "log.dropped":
                        break
                assert lines[-1]["count"] == held
                assert lines[0]["event"] == "agent.started"
                assert [line["timestamp"] for line in lines] == sorted(line["timestamp"] for line in lines)
                mute.talk(1)
                assert json.loads(file.readline())["event"] == "bundle.refused"
                mute.agent.signal(signal.SIGTERM)
                assert [json.loads(raw)["event"] for raw in file][-1] == "agent.stopped"
            assert mute.agent.wait() == 0

    def test_stopped_by_a_signal(self, world: World, manager: NotifySocket, pipe: tuple[Path, int]) -> None:
        """A reader that is stopped (SIGSTOP, as a journal under a debugger) and goes on later reads every line."""
        os.close(pipe[1])
        kept = world.root / "journal"
        with kept.open("wb") as out:
            journal = subprocess.Popen(["cat", str(pipe[0])], stdout=out)
            with Mute(world, manager, f"2>{pipe[0]}") as mute:
                mute.ready()
                journal.send_signal(signal.SIGSTOP)
                mute.serves()
                journal.send_signal(signal.SIGCONT)
                assert mute.agent.stop() == 0
            assert journal.wait(DEADLINE_SECONDS) == 0
        events = [json.loads(line)["event"] for line in kept.read_bytes().splitlines()]
        assert events.count("bundle.refused") == LINES
        assert events[-1] == "agent.stopped"


def test_a_terminal_that_went_away(world: World, manager: NotifySocket) -> None:
    """A terminal that is closed under it (EIO) ends nothing."""
    ours, theirs = pty.openpty()
    with Mute(world, manager, f"2>{os.ttyname(theirs)}") as mute:
        os.close(theirs)
        mute.ready()
        os.close(ours)
        mute.serves()
        assert mute.agent.stop() == 0


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", "2>/dev/null"])
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_mistake_in_the_configuration_keeps_its_status(world: World, redirect: str, command: str) -> None:
    """That nobody can be told of a mistake does not change what it is: 78."""
    path = world.write_config({"log": {"level": "loud"}})
    with Agent(path, command=command, through=["sh", "-c", f'exec "$@" {redirect}', "sh"]) as agent:
        assert agent.wait() == 78


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
def test_a_slip_on_the_command_line_keeps_its_status(world: World, redirect: str) -> None:
    """A wrong option ends with 64, whoever reads standard error."""
    with Agent(world.root, command="no-such-command", through=["sh", "-c", f'exec "$@" {redirect}', "sh"]) as agent:
        assert agent.wait() == 64


def test_what_python_itself_says_goes_the_same_way(world: World, manager: NotifySocket) -> None:
    """Warnings, errors of finalizers and of threads, and the loop's own complaints neither raise nor block."""
    noisy = (
        "import asyncio, sys, threading, warnings\n"
        "import agent.daemon\n"
        "class Broken:\n"
        "    def __del__(self): raise ValueError('finalizer')\n"
        "serve = agent.daemon.Daemon._serve\n"
        "async def loud(self, *given, **named):\n"
        "    for _ in range(200):\n"
        "        Broken()\n"
        "        warnings.warn('odd', stacklevel=1)\n"
        "        asyncio.get_running_loop().call_soon(lambda: 1 / 0)\n"
        "        threading.Thread(target=lambda: 1 / 0).start()\n"
        "        print('x' * 1000, file=sys.stderr)\n"
        "    await serve(self, *given, **named)\n"
        "agent.daemon.Daemon._serve = loud\n"
    )
    with Mute(world, manager, "2>/dev/full", prelude=noisy) as mute:
        mute.ready().serves()
        assert mute.agent.stop() == 0
