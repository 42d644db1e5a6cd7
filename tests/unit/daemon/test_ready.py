"""When the service manager is told that workers may come: never before they can, never while something is under way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.daemon import ready, workers
from agent.daemon.ready import Readiness
from agent.daemon.workers import Workers
from agent.host import systemd
from agent.snapshot.frames import frame_of
from agent.snapshot.messages import Taken
from tests.unit.controller.support import looped
from tests.unit.daemon.test_servers import Controller
from tests.unit.daemon.worker import Worker

AGAIN_SECONDS = 0.01


class Manager:
    """A service manager that hears nothing until it is asked to: its queue is full."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)
        self.fill()

    def fill(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            try:
                while True:
                    other.sendto(b"X_OF=another", self.address)
            except BlockingIOError:
                return

    def heard(self) -> list[str]:
        """The lines that came since the last time."""
        found = []
        while True:
            try:
                found += self._socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return [one for one in found if one.startswith(("READY", "RELOADING"))]

    async def hears(self, line: str) -> None:
        async with asyncio.timeout(10):
            while line not in self.heard():  # noqa: ASYNC110 - the kernel's queue tells no loop
                await asyncio.sleep(AGAIN_SECONDS)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def told(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Readiness, Manager]]:
    monkeypatch.setattr(ready, "TELL_AGAIN_SECONDS", AGAIN_SECONDS)
    manager = Manager(root / "n")
    yield Worker(root, notify=manager.address).readiness, manager
    manager.close()


async def nothing() -> None:
    return


class Lines(systemd.Notifier):
    """Keeps what it is to tell of the status."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[str] = []

    @property
    def active(self) -> bool:
        return True

    def status(self, text: str) -> bool:
        self.lines.append(text)
        return True

    async def are(self, *lines: str) -> None:
        async with asyncio.timeout(10):
            while len(self.lines) < len(lines):  # noqa: ASYNC110 - what tells it wakes nobody
                await asyncio.sleep(AGAIN_SECONDS)
        assert self.lines == list(lines)
        self.lines.clear()


@looped
async def test_that_nobody_answers_is_told_once_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was published just now is yet to be taken. Where that lasts it is told once, and who is served when it ends."""
    monkeypatch.setattr(ready, "TELL_AGAIN_SECONDS", AGAIN_SECONDS)
    monkeypatch.setattr(ready, "LOOK_AGAIN_SECONDS", AGAIN_SECONDS)
    worker, lines, answering = Worker(tmp_path), Lines(), [True]
    readiness = Readiness(lines, worker.clock, worker.store, worker.clock.now())
    readiness.told, readiness.answers = True, lambda: bool(answering)
    served = readiness.status_line()
    assert "nobody" not in served

    answering.clear()
    readiness.tell_status()
    answering.append(True)
    await lines.are(served)

    answering.clear()
    readiness.tell_status()
    readiness.tell_status()
    await lines.are(f"nobody answers workers: they wait; {served}")
    answering.append(True)
    await lines.are(served)


@looped
async def test_what_broke_off_is_said_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a reload is waited for by whoever asked for it, also where there was no memory to say it at first."""
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    with told(tmp_path, monkeypatch) as (readiness, manager):
        await readiness.tell(0, nothing, lambda: True)
        await manager.hears("READY=1")
        readiness.reload_began()
        line, lacking = readiness.status_line, [1, 2]

        def status_line() -> str:
            if lacking:
                lacking.pop()
                raise MemoryError
            return line()

        monkeypatch.setattr(readiness, "status_line", status_line)
        with pytest.raises(MemoryError):
            readiness.reload_ended()
        await manager.hears("READY=1")


@pytest.mark.parametrize("what", ["a start", "a reload"])
def test_what_could_not_be_said_in_time_is_not_said_during_a_reload(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be that one's end, and whoever waits for it would go on with what was there before."""

    @looped
    async def run() -> None:
        with told(tmp_path, monkeypatch) as (readiness, manager):
            telling = asyncio.create_task(readiness.tell(0, nothing, lambda: True))
            if what == "a reload":
                manager.heard()
                await manager.hears("READY=1")
                readiness.reload_began()
                await manager.hears("RELOADING=1")
                manager.fill()
                readiness.reload_ended()
            while not readiness.told:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)
            manager.heard()
            readiness.reload_began()
            await manager.hears("RELOADING=1")
            await asyncio.sleep(10 * AGAIN_SECONDS)
            assert manager.heard() == []
            readiness.reload_ended()
            await manager.hears("READY=1")
            await telling

    run()


@looped
async def test_a_start_is_over_when_workers_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after a while: who starts after us, and who has just installed this, is not told that all is well."""
    monkeypatch.setattr(workers, "READY_AFTER_SECONDS", AGAIN_SECONDS, raising=False)
    controller = Controller()
    answering = Workers(controller.servers, (), passed=(), child=None)
    settled = asyncio.Event()

    async def settle() -> None:
        settled.set()

    begun = asyncio.create_task(answering.begun(settle))
    await asyncio.sleep(10 * AGAIN_SECONDS)
    assert not settled.is_set()
    async with controller.raw() as (_, writer):
        await asyncio.sleep(10 * AGAIN_SECONDS)
        assert not settled.is_set()  # one that has not taken what is served
        writer.write(frame_of(Taken(controller.view.served.version)))
        async with asyncio.timeout(10):
            await begun
    assert settled.is_set()
