"""Whatever a master says, the controller goes on: what no honest one says ends the connection."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from collections.abc import Callable
from typing import NoReturn

import pytest

from agent.daemon import master_connection
from agent.daemon.master_connection import MasterConnection
from agent.host.emptiable import Emptiable
from agent.host.process import open_descriptors
from agent.server import words
from agent.snapshot.frames import frame_of
from agent.snapshot.messages import Taken
from tests.fuzz.words import fuzz
from tests.unit.controller.support import looped
from tests.unit.daemon.test_servers import Controller
from tests.unit.host.test_systemd import no_descriptor_left


class Joined:
    """A connection, and the master's end of it."""

    def __init__(self) -> None:
        ours, self.its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.its.settimeout(10)
        self.ended = asyncio.Event()
        self.controller = Controller()
        self.began = 0
        self.connection = MasterConnection(ours, ended=self.ended.set)

    def begin(self) -> None:
        self.connection.begin((), self.controller.servers, self._linked)

    def _linked(self) -> None:
        self.began += 1

    def say(self, said: bytes, *fds: int) -> None:
        socket.send_fds(self.its, [said], fds)

    def link(self, pid: int, word: bytes = words.LINK) -> socket.socket:
        """Have a server begun, of which the master says ``word``; its end."""
        theirs, its = socket.socketpair()
        with theirs:
            try:
                self.say(words.number(word, pid), theirs.fileno())
            except OSError:
                its.close()
                raise
        return its

    def heard(self) -> tuple[bytes, list[int]]:
        said, fds, _, _ = socket.recv_fds(self.its, 64, 1)
        return said, fds

    async def until(self, look: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not look():  # noqa: ASYNC110 - what is looked at tells nobody
                await asyncio.sleep(0.005)

    def close(self) -> None:
        self.connection.close()
        self.controller.servers.close()
        self.its.close()


_AT = b"at 127.0.0.1:80"


def _junk(joined: Joined) -> None:
    joined.say(b"junk")


def _too_long(joined: Joined) -> None:
    joined.say(b"ended 1" + bytes(2 * words.MOST_BYTES))


def _two_files(joined: Joined) -> None:
    joined.say(words.number(words.LINK, 5), 0, 0)


def _no_file(joined: Joined) -> None:
    joined.say(words.number(words.LINK, 5))


def _twice_introduced(joined: Joined) -> None:
    joined.say(_AT)
    joined.say(_AT)


def _no_socket(joined: Joined) -> None:
    file = os.memfd_create("no socket")
    joined.say(words.number(words.LINK, 5), file)
    os.close(file)


def _instead_of_nobody(joined: Joined) -> None:
    with joined.link(5):
        joined.say(words.number(words.INSTEAD, 5))


def _second_twice(joined: Joined) -> None:
    with joined.link(5), joined.link(6) as its:
        joined.say(words.number(words.SECOND, 5), its.fileno())


def _room_after_all(joined: Joined) -> None:
    joined.say(_AT)
    joined.say(words.number(words.ROOM, 5))


def _lacks_what_it_was_not_given(joined: Joined) -> None:
    joined.say(words.number(words.LACKS, 2))


def _no_stream(joined: Joined) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        joined.say(words.number(words.LINK, 5), other.fileno())


def _alive_later(joined: Joined) -> None:
    joined.say(_AT)
    joined.link(4).close()
    joined.say(words.number(words.ALIVE, 5))


def _had_too_many(joined: Joined) -> None:
    joined.say(words.number(words.HAD, 2))


def _had_twice(joined: Joined) -> None:
    joined.say(words.number(words.HAD, 1))
    joined.say(words.number(words.HAD, 1))


def _the_same_twice(joined: Joined) -> None:
    joined.link(5).close()
    joined.link(5).close()


def _many(joined: Joined) -> None:
    for number in range(words.MOST_SERVERS + 1):
        joined.say(words.number(words.ALIVE, number + 1))


def _again_and_again(joined: Joined) -> None:
    for number in range(3 * words.MOST_SERVERS):
        try:
            joined.link(number + 1).close()
            joined.say(words.number(words.ENDED, number + 1))
        except OSError:
            return  # it has had enough


@pytest.mark.parametrize(
    "hostile",
    [
        _junk,
        _too_long,
        _two_files,
        _no_file,
        _no_socket,
        _no_stream,
        _instead_of_nobody,
        _second_twice,
        _room_after_all,
        _lacks_what_it_was_not_given,
        _twice_introduced,
        _alive_later,
        _had_too_many,
        _had_twice,
        _the_same_twice,
        _many,
        _again_and_again,
    ],
)
@looped
async def test_what_no_honest_master_says_ends_the_connection(hostile: Callable[[Joined], None]) -> None:
    """It is not heard any more, and whoever has it is told once."""
    joined = Joined()
    joined.begin()
    before = open_descriptors()
    await asyncio.to_thread(hostile, joined)
    async with asyncio.timeout(10):
        await joined.ended.wait()
    await joined.until(lambda: open_descriptors() < before)  # nothing that came along stays open
    joined.close()


@looped
async def test_a_link_before_it_was_asked_for_is_refused() -> None:
    """Nobody could be told anything by it."""
    joined = Joined()
    joined.link(5).close()
    async with asyncio.timeout(10):
        await joined.ended.wait()
    joined.close()


@looped
async def test_what_it_says_it_kept_is_emptied_by_the_first_word_of_ours() -> None:
    """Something else that it passes off as that is left as it is."""
    joined = Joined()
    kept, other = Emptiable.holding(b"of before"), os.memfd_create("other")
    os.write(other, b"of somebody")
    reader = kept.reader()
    joined.say(words.SNAPSHOT, reader)
    joined.say(words.SNAPSHOT, other)
    joined.say(_AT)
    await asyncio.wait_for(joined.connection.introduced.wait(), 10)
    assert os.pread(reader, 99, 0) == b"of before"
    joined.begin()
    assert os.pread(reader, 99, 0) == b""
    assert os.pread(other, 99, 0) == b"of somebody"
    assert joined.connection.addresses == ("127.0.0.1:80",)
    joined.close()


@looped
async def test_each_snapshot_empties_the_one_before() -> None:
    """Whoever begins a server by it, or holds it, has the newest or nothing."""
    joined = Joined()
    joined.begin()
    said, (first,) = joined.heard()
    assert said == words.SNAPSHOT
    assert os.pread(first, 1 << 20, 0) == joined.controller.servers.latest()
    joined.controller.servers.publish(b"second")
    assert os.pread(first, 1, 0) == b""
    assert joined.heard()[0] == words.number(words.LISTEN, words.TWO)
    assert os.pread(joined.heard()[1][0], 99, 0) == b"second"
    held = open_descriptors()
    for _ in range(5):
        joined.controller.servers.publish(b"another")
        os.close(joined.heard()[1][0])
    assert open_descriptors() == held  # however many are given, one is held
    joined.close()


@pytest.mark.parametrize("times", [1, 3])
@looped
async def test_what_could_not_be_given_is_given_later(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """However often that fails, and whatever it fails by: nothing else may change for long, and nobody asks for it."""
    monkeypatch.setattr(master_connection, "AGAIN_SECONDS", 0.001)
    joined, holding, failed = Joined(), Emptiable.holding, list[bytes]()
    joined.begin()
    for _ in range(2):
        _, fds = joined.heard()
        for fd in fds:
            os.close(fd)

    def fails(data: bytes) -> Emptiable:
        if len(failed) < times:
            failed.append(data)
            raise MemoryError if len(failed) > 1 else OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return holding(data)

    monkeypatch.setattr(Emptiable, "holding", fails)
    loop, told = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))
    joined.connection.give(b"newest")
    given = list[int]()
    while not given:
        _, given = await asyncio.to_thread(joined.heard)
    assert os.pread(given[0], 1 << 20, 0) == joined.controller.servers.latest()
    os.close(given[0])
    assert [type(error) for error in told] == [MemoryError] * (times - 1)
    joined.close()


@looped
async def test_an_acknowledgement_waits_until_the_master_has_what_was_given() -> None:
    """Until then it may begin a server by what was served before, of which nobody has heard here."""
    joined = Joined()
    joined.begin()
    waiting = asyncio.create_task(joined.controller.servers.taken(5))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    joined.say(words.number(words.HAD, 1))
    await asyncio.wait_for(waiting, 5)
    joined.close()


@looped
async def test_what_cannot_be_learned_is_not_confirmed() -> None:
    """A master that hangs says nothing: whoever asks hears that nobody knows, and the truth once it answers again."""
    joined = Joined()
    joined.begin()
    assert not await joined.controller.servers.taken(0.01)
    joined.say(words.number(words.HAD, 1))
    assert await joined.controller.servers.taken(5)
    joined.close()


@looped
async def test_a_file_that_was_lost_on_the_way_is_given_again() -> None:
    """The master had no descriptor for it: without one, a server that dies while we are away has nothing to serve."""
    joined = Joined()
    joined.begin()
    assert joined.heard()[0] == words.SNAPSHOT
    assert joined.heard()[0] == words.number(words.LISTEN, words.TWO)
    joined.say(words.number(words.LACKS, 1))
    said, (file,) = await asyncio.to_thread(joined.heard)
    assert said == words.SNAPSHOT
    assert os.pread(file, 1 << 20, 0) == joined.controller.servers.latest()
    joined.close()


@looped
async def test_one_that_stands_by_answers_nobody_until_it_takes_over() -> None:
    """It is linked and told everything; that workers are answered, and that a server was replaced, is said of others."""
    joined = Joined()
    joined.begin()
    servers = joined.controller.servers
    with joined.link(7, words.SECOND) as its:
        await joined.until(lambda: servers.connected)
        its.sendall(frame_of(Taken(servers.version())))
        await joined.until(lambda: servers.connected[0].taken == servers.version())
        assert servers.connected[0].stands_by()
        assert not servers.answer()
        assert joined.began == 0
        joined.say(words.number(words.INSTEAD, 7))
        await joined.until(servers.answer)
        assert joined.began == 1
    joined.close()


@looped
async def test_one_of_before_that_stands_by_answers_nobody() -> None:
    """It has what is served now as soon as it is linked: that workers are answered is said of the other alone."""
    joined = Joined()
    joined.say(words.number(words.ALIVE, 7))
    joined.say(_AT)
    await asyncio.wait_for(joined.connection.introduced.wait(), 10)
    joined.begin()
    servers = joined.controller.servers
    with joined.link(7, words.SECOND) as its:
        its.sendall(frame_of(Taken(servers.version())))
        await joined.until(lambda: servers.connected and servers.connected[0].taken == servers.version())
        assert not servers.answer()
    assert not joined.ended.is_set()
    joined.close()


@looped
async def test_an_acknowledgement_waits_for_a_server_that_was_begun_in_between() -> None:
    """After we connected and before we asked: it began with what a controller before us gave, and hears nobody yet."""
    joined = Joined()
    joined.say(_AT)
    await asyncio.wait_for(joined.connection.introduced.wait(), 10)
    joined.say(words.number(words.ALIVE, 5))
    joined.begin()
    joined.say(words.number(words.HAD, 1))
    await joined.until(lambda: joined.connection.settled)
    waiting = asyncio.create_task(joined.controller.servers.taken(10))
    its = joined.link(5)
    await joined.until(lambda: joined.controller.servers.connected)
    assert not waiting.done()
    its.sendall(frame_of(Taken(joined.controller.servers.version())))
    await asyncio.wait_for(waiting, 10)
    its.close()
    joined.close()


@looped
async def test_an_acknowledgement_waits_for_each_server_that_is_there() -> None:
    """One of a controller before hears nobody here: it is killed, and its end is waited for."""
    joined = Joined()
    joined.say(words.number(words.ALIVE, 5))
    joined.say(_AT)
    await asyncio.wait_for(joined.connection.introduced.wait(), 10)
    joined.begin()
    joined.say(words.number(words.HAD, 1))
    waiting = asyncio.create_task(joined.controller.servers.taken(0.2))
    said = [b""]
    while words.END not in said[-1]:
        said.append((await asyncio.to_thread(joined.heard))[0])
    assert said[-1] == words.number(words.END, 5)
    assert not waiting.done()
    joined.say(words.number(words.ENDED, 5))
    await asyncio.wait_for(waiting, 5)
    joined.close()


@looped
async def test_a_server_that_closes_its_link_is_ended() -> None:
    """It would go on by what it was told last, and hear of nothing."""
    joined = Joined()
    joined.begin()
    its = joined.link(7)
    await joined.until(lambda: joined.controller.servers.connected)
    its.close()
    while (await asyncio.to_thread(joined.heard))[0] != words.number(words.END, 7):
        pass
    joined.close()


@looped
async def test_a_server_whose_end_cannot_be_said_is_ended_later() -> None:
    """The master does not read just then, and the server would go on by what may be withdrawn."""
    joined = Joined()
    joined.begin()
    servers = joined.controller.servers
    its = joined.link(7)
    await joined.until(lambda: servers.connected)
    async with asyncio.timeout(30):
        while joined.connection.gave < 2 or not joined.connection.owes:
            servers.publish(b"another")
            await asyncio.sleep(0)
    its.close()
    await joined.until(lambda: not servers.connected)
    said = b""
    while said != words.number(words.END, 7):
        said, files = await asyncio.to_thread(joined.heard)
        for one in files:
            os.close(one)
    joined.close()


@looped
async def test_no_master_has_us_hold_files_without_end() -> None:
    """An honest one keeps two: whoever gives more would take every descriptor that there is."""
    joined = Joined()
    reader = Emptiable.holding(b"of before").reader()
    for _ in range(9):
        joined.say(words.SNAPSHOT, reader)
    async with asyncio.timeout(60):
        await joined.ended.wait()
    assert len(joined.connection.given) < 9
    joined.close()


@looped
async def test_without_a_descriptor_for_a_link_the_next_server_is_waited_for() -> None:
    """It is the master's fault no more than the server's: as a child it would be killed, and the agent parse requests."""
    joined = Joined()
    joined.begin()
    its = joined.link(7)
    with no_descriptor_left():
        await joined.until(lambda: 7 in joined.connection.alive)
    assert await asyncio.to_thread(its.recv, 1) == b""
    its.close()
    assert not joined.ended.is_set()
    waiting = asyncio.create_task(joined.controller.servers.taken(0.05))
    while (await asyncio.to_thread(joined.heard))[0] != words.number(words.END, 7):
        pass
    joined.say(words.number(words.ENDED, 7))
    joined.link(8).close()
    await joined.until(lambda: joined.began == 1)
    await waiting
    joined.close()


@looped
async def test_a_server_that_cannot_be_linked_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """There was no memory for it: it would go on by what it was begun with, and hear of nothing."""
    joined = Joined()
    joined.begin()
    monkeypatch.setattr(master_connection, "UNLINKED_SECONDS", 0.0)

    def no_memory(_descriptor: int, _ready: object) -> NoReturn:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", no_memory)
    with joined.link(7):
        while (await asyncio.to_thread(joined.heard))[0] != words.number(words.END, 7):
            pass
    joined.close()


@looped
async def test_one_that_stands_by_without_a_link_may_take_over() -> None:
    """There was no descriptor for it, and the one that answered has ended before it was: no master is to blame."""
    joined = Joined()
    joined.begin()
    with joined.link(7, words.SECOND), no_descriptor_left():
        await joined.until(lambda: 7 in joined.connection.alive)
    joined.say(words.number(words.INSTEAD, 7))
    await joined.until(lambda: joined.began == 1 or joined.ended.is_set())
    assert not joined.ended.is_set()
    joined.close()


@looped
async def test_a_master_that_reads_nothing_is_told_again() -> None:
    """What it has is emptied all the same, and no acknowledgement is given before it has what is served now."""
    joined = Joined()
    joined.begin()
    _, (first,) = joined.heard()
    servers = joined.controller.servers
    async with asyncio.timeout(30):
        while joined.connection.gave < 2 or not joined.connection.owes:
            servers.publish(b"another")
            await asyncio.sleep(0)
    assert os.pread(first, 1, 0) == b""
    servers.publish(servers.latest())
    gave = joined.connection.gave
    assert not joined.connection.settled
    found = b""
    while found != servers.latest():
        _, files = await asyncio.to_thread(joined.heard)
        found = b"".join(os.pread(one, 1 << 20, 0) for one in files)
        for one in files:
            os.close(one)
    joined.say(words.number(words.HAD, gave + 1))
    await joined.until(lambda: joined.connection.settled)
    joined.close()


def none_is_left(_of: object) -> NoReturn:
    raise OSError(errno.ENOMEM, "no memory")


@pytest.mark.parametrize("lacks", ["holding", "reader"])
@looped
async def test_a_master_is_given_again_what_there_was_no_memory_for(
    lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the master has nothing to begin a server with, should this controller end."""
    joined = Joined()
    joined.begin()
    os.close(joined.heard()[1][0])
    with monkeypatch.context() as patch:
        patch.setattr(Emptiable, lacks, none_is_left)
        joined.connection.give(b"newest")
        await joined.until(lambda: joined.connection.gave == 2)
    found = b""
    while found != joined.controller.servers.latest():
        _, files = await asyncio.to_thread(joined.heard)
        found = b"".join(os.pread(one, 1 << 20, 0) for one in files)
        for one in files:
            os.close(one)
    joined.close()


def test_a_second_of_the_fuzzer_finds_nothing() -> None:
    """Whatever a master says to a controller, or a controller to a master, the other goes on."""
    report = fuzz(2.0, random.Random(11))
    assert not report.findings
    assert report.taken > 50
    assert report.refused > 5
