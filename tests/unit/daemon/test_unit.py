"""The unit that answers workers, as the controller sees it: it comes and goes, and says what it likes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent.daemon import unit as unit_module
from agent.daemon.unit import ServerUnit
from agent.host.emptiable import Emptiable
from agent.host.process import open_descriptors
from agent.server import words
from tests.unit.controller.support import looped
from tests.unit.daemon.test_servers import Controller
from tests.unit.host.test_systemd import no_descriptor_left

_AT = b"at 127.0.0.1:80"


class Masters:
    """Where a master listens, and what the test says as one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(path))
        self._listening.listen(16)
        self._listening.setblocking(False)
        self._accepted: list[socket.socket] = []

    async def accept(self, *kept: int, say: bytes = _AT) -> socket.socket:
        """The next connection of the controller, which is told who there is."""
        async with asyncio.timeout(20):
            control, _ = await asyncio.get_running_loop().sock_accept(self._listening)
        self._accepted.append(control)
        for one in kept:
            socket.send_fds(control, [words.SNAPSHOT], [one])
        control.send(say)
        control.settimeout(20)
        return control

    def is_asked(self) -> bool:
        """Whether a connection waits."""
        return bool(select.select([self._listening], [], [], 0)[0])

    def close(self) -> None:
        for one in (self._listening, *self._accepted):
            one.close()


@pytest.fixture
def masters(tmp_path: Path) -> Iterator[Masters]:
    made = Masters(tmp_path / "serve.sock")
    yield made
    made.close()


@contextlib.asynccontextmanager
async def connected(masters: Masters) -> AsyncIterator[tuple[ServerUnit, Controller, socket.socket]]:
    """A controller, and the first master that it has asked for a server."""
    unit, controller = ServerUnit(str(masters.path)), Controller()
    connecting = asyncio.ensure_future(unit.addresses(["127.0.0.1:1"]))
    control = await masters.accept()
    assert await connecting == ["127.0.0.1:80"]
    unit.answer((), controller.servers, lambda: None)
    try:
        yield unit, controller, control
    finally:
        await unit.close(0)


async def asked(control: socket.socket) -> bytes:
    """Hear it ask for a server; what it gave to begin with."""
    _, (given,), _, _ = await asyncio.to_thread(socket.recv_fds, control, 64, 1)
    assert await asyncio.to_thread(control.recv, 64) == words.number(words.LISTEN, words.TWO)
    data = os.pread(given, 1 << 20, 0)
    os.close(given)
    return data


async def until(look: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not look():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.005)


def lost(logs: Sequence[Mapping[str, Any]]) -> int:
    return sum(line["event"] == "server.disconnected" for line in logs)


@looped
async def test_what_a_master_had_that_ended_is_emptied_by_what_is_served_next(masters: Masters) -> None:
    """The service manager holds it too: a master that is begun before we reach it would serve what was withdrawn."""
    with structlog.testing.capture_logs() as logs:
        async with connected(masters) as (_, controller, control):
            _, (given,), _, _ = await asyncio.to_thread(socket.recv_fds, control, 64, 1)
            assert os.pread(given, 1 << 20, 0) == controller.servers.latest()
            masters.close()
            await until(lambda: lost(logs))
            assert os.pread(given, 1 << 20, 0) == controller.servers.latest()  # nothing newer is there yet
            controller.change()
            assert os.pread(given, 1, 0) == b""
            os.close(given)


@looped
async def test_a_stop_that_is_heard_after_the_master_s_end_begins_no_other(
    masters: Masters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are stopped in one transaction: to connect would have systemd begin a master, and give up our own stop."""
    monkeypatch.setattr(unit_module, "TOGETHER_SECONDS", 3600.0)
    with structlog.testing.capture_logs() as logs:
        async with connected(masters) as (_, _, control):
            control.close()
            await until(lambda: lost(logs))
        assert not masters.is_asked()


@looped
async def test_masters_that_come_and_go_cost_no_descriptor(masters: Masters) -> None:
    """A unit that ends again and again is connected to each time, and each time it is given a file, and gives back one."""
    kept = Emptiable.holding(b"of before")
    reader = kept.reader()
    async with connected(masters) as (_, controller, first):
        control, counts = first, []
        for _ in range(6):
            assert await asked(control) == controller.servers.latest()
            counts.append(open_descriptors())
            control.close()
            control = await masters.accept(reader)
        assert await asked(control) == controller.servers.latest()
        assert os.pread(reader, 1, 0) == b""
        assert open_descriptors() <= counts[1]
    os.close(reader)
    kept.close()


@looped
async def test_without_a_descriptor_it_is_connected_to_once_there_is_one(masters: Masters) -> None:
    """Nobody gives up for good because workers, say, had all of them for a moment."""
    with structlog.testing.capture_logs() as logs:
        async with connected(masters) as (_, controller, control):
            await asked(control)
            with no_descriptor_left():
                control.close()
                await until(lambda: lost(logs))
                for _ in range(10):
                    await asyncio.sleep(0.01)
            assert await asked(await masters.accept()) == controller.servers.latest()


@looped
async def test_what_cannot_be_asked_for_is_asked_for_by_the_next_connection(masters: Masters) -> None:
    """The kernel takes no word for it just now: a controller that never says ``listen`` would have no server."""
    unit, controller = ServerUnit(str(masters.path)), Controller()
    connecting = asyncio.ensure_future(unit.addresses(["127.0.0.1:1"]))
    first = await masters.accept()
    await connecting
    first.shutdown(socket.SHUT_RD)
    unit.answer((), controller.servers, lambda: None)
    second = await masters.accept()
    assert await asked(second) == controller.servers.latest()
    await unit.close(0)


@looped
async def test_two_controllers_do_not_end_each_other_as_fast_as_they_can(masters: Masters) -> None:
    """Each that connects takes the place of the other: after a few times there is a pause, and the log is not filled."""
    loop = asyncio.get_running_loop()
    async with connected(masters) as (_, _controller, first):
        control, began = first, loop.time()
        for _ in range(6):
            await asked(control)
            control.close()
            control = await masters.accept()
        assert loop.time() - began > 1


@looped
async def test_servers_that_fail_are_told_of_once_in_a_while(masters: Masters) -> None:
    """It is a word of one that may have been taken over, and it costs a line of the log."""
    with structlog.testing.capture_logs() as logs:
        async with connected(masters) as (_, _controller, control):
            await asked(control)
            for _ in range(30):
                control.send(words.number(words.FAILING, 20))
            control.close()
            await until(lambda: lost(logs))
    assert [line["event"] for line in logs].count("server.failing") == 1


@looped
async def test_a_master_that_names_no_address_answers_where_it_was_to(masters: Masters) -> None:
    """What is announced to programs on this machine is never nothing."""
    unit = ServerUnit(str(masters.path))
    connecting = asyncio.ensure_future(unit.addresses(["127.0.0.1:1"]))
    await masters.accept(say=words.at([]))
    assert await connecting == ["127.0.0.1:1"]
    await unit.close(0)


@looped
@pytest.mark.parametrize(("where", "times"), [("_lose", 1), ("_lose", 2), ("_connect", 1)])
async def test_whatever_breaks_off_it_connects_anew(
    masters: Masters, monkeypatch: pytest.MonkeyPatch, where: str, times: int
) -> None:
    """Nobody waits for the task that keeps the connection: if it ended, no server would be told what is withdrawn.

    What is done about an error may fail as well: what was lacking then is lacking yet.
    """
    monkeypatch.setattr(unit_module, "MOST_PAUSE_SECONDS", 0.01)
    broken: list[str] = []

    def breaks(unit: ServerUnit, *given: Any) -> Any:
        if len(broken) < times:
            broken.append(where)
            raise MemoryError
        return real(unit, *given)

    with structlog.testing.capture_logs() as logs:
        async with connected(masters) as (_, controller, control):
            real = getattr(ServerUnit, where)
            monkeypatch.setattr(ServerUnit, where, breaks)
            control.close()
            assert await asked(await masters.accept()) == controller.servers.latest()
    assert broken == [where] * times
    assert [line["error"] for line in logs if line["event"] == "work.crashed"] == ["MemoryError"]
