"""Who is told that something has come: real sockets, the event loop that serves, and the kernel's own list."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from agent.host.loop import Loop
from agent.serve.readers import Readers
from agent.serve.silent import MOST, Silent

Pair = tuple[socket.socket, socket.socket]


@contextmanager
def pairs(count: int) -> Iterator[list[Pair]]:
    """Connected sockets, ours first."""
    made = [socket.socketpair() for _ in range(count)]
    try:
        yield made
    finally:
        for pair in made:
            for one in pair:
                one.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it counts rounds of the loop
            await asyncio.sleep(0.001)


async def rounds(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Counting(Loop):
    """Counts what it is asked to watch."""

    watched = 0
    last = -1
    later: list[Callable[[], object]] | None = None
    """What was to be called later, if that is the test's to say."""

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """As the loop's own."""
        self.watched += 1
        self.last = fd
        super().add_reader(fd, callback, *args)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """As the loop's own, or when the test says so."""
        if self.later is None:
            return super().call_later(delay, callback, *args, context=context)
        self.later.append(partial(callback, *args))
        return super().call_later(3600, lambda: None)


def run(talk: Callable[[Readers], Awaitable[None]]) -> Counting:
    """Let something happen, with a loop that fails where a call of it did."""
    errors: list[Any] = []
    loop = Counting()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context["exception"]))
        readers = Readers(asyncio.get_running_loop())
        await talk(readers)
        readers.close()
        readers.close()  # what is closed is closed
        if errors:
            raise ExceptionGroup("in the loop", errors)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    return loop


def test_the_loop_watches_one_descriptor_for_all() -> None:
    """However many connections are waited for, the event loop is asked once, and each is told of what has come of it."""

    async def talk(readers: Readers) -> None:
        with pairs(300) as made:
            told: list[int] = []

            def hear(fd: int) -> None:
                told.append(fd)
                readers.remove(fd)

            for ours, _ in made:
                readers.add(ours.fileno(), hear)
            for _, theirs in made:
                theirs.send(b"x")
            await until(lambda: len(told) == 300)
            assert sorted(told) == sorted(ours.fileno() for ours, _ in made)

    assert run(talk).watched == 1


def test_who_leaves_is_told_of() -> None:
    """The end of the other side can be read, as any data."""

    async def talk(readers: Readers) -> None:
        with pairs(1) as [(ours, theirs)]:
            told: list[int] = []
            readers.add(ours.fileno(), told.append)
            theirs.close()
            await until(lambda: bool(told))
            assert ours.recv(1) == b""

    run(talk)


def test_what_is_struck_off_and_stays_open_is_told_of_no_more() -> None:
    """The kernel knows it yet; it tells once, is not heeded, and is not asked again and again."""

    async def talk(readers: Readers) -> None:
        with pairs(1) as [(ours, theirs)]:
            told: list[int] = []
            readers.add(ours.fileno(), told.append)
            readers.strike_off(ours.fileno())
            theirs.send(b"x")
            await rounds(20)
            before = readers.rounds
            await rounds(20)
            assert readers.rounds == before
            assert told == []

    run(talk)


def test_whoever_takes_it_over_is_told() -> None:
    """A connection that was struck off and given away is watched for its new owner, whether the kernel knows it or not."""

    async def talk(readers: Readers) -> None:
        with pairs(1) as [(ours, theirs)]:
            first: list[int] = []
            second: list[int] = []
            readers.add(ours.fileno(), first.append)
            readers.strike_off(ours.fileno())
            readers.add(ours.fileno(), second.append)
            theirs.send(b"x")
            await until(lambda: bool(second))
            assert first == []

    run(talk)


def test_a_number_that_is_another_s_now_tells_nobody_else() -> None:
    """A connection ends while others of its round are heard, and its number is the next one's: that hears its own alone."""

    async def talk(readers: Readers) -> None:
        with pairs(2) as [(a, a_peer), (b, b_peer)], pairs(1) as [(c, c_peer)]:
            told: list[str] = []
            number = b.fileno()

            def hear(fd: int) -> None:
                told.append("a")
                a.recv(1)
                readers.strike_off(number)
                b.close()
                os.dup2(c.fileno(), number)
                readers.add(number, lambda _: told.append("c"))

            readers.add(a.fileno(), hear)
            readers.add(number, lambda _: told.append("b"))
            a_peer.send(b"x")
            b_peer.send(b"x")
            await rounds(20)
            assert "a" in told
            c_peer.send(b"x")
            await until(lambda: "c" in told)
            readers.remove(number)
            os.close(number)
            assert told.count("b") <= 1  # if it was heard before

    run(talk)


def test_one_that_fails_hides_no_other() -> None:
    """A defect in one connection's call is told to the loop, and the others of that round are heard in the next."""

    async def talk(readers: Readers) -> None:
        with pairs(2) as made:
            told: list[int] = []

            def hear(fd: int) -> None:
                readers.remove(fd)
                told.append(fd)
                raise LookupError("a defect")

            for ours, theirs in made:
                readers.add(ours.fileno(), hear)
                theirs.send(b"x")
            await until(lambda: len(told) == 2)

    with pytest.raises(ExceptionGroup) as caught:
        run(talk)
    assert [type(one) for one in caught.value.exceptions] == [LookupError, LookupError]


def test_a_look_that_is_due_at_the_end_is_none() -> None:
    """A listener may end in the turn of the loop in which a connection came: nobody looks into what is closed."""

    async def talk(readers: Readers) -> None:
        readers.soon()
        readers.close()
        await rounds()

    run(talk)


def test_what_is_removed_costs_no_round_any_more() -> None:
    """The kernel is told too: what comes of one that stays open and is nobody's wakes nobody, not even once."""

    async def talk(readers: Readers) -> None:
        with pairs(1) as [(ours, theirs)]:
            told: list[int] = []
            readers.remove(ours.fileno())  # nobody knows it yet
            readers.add(ours.fileno(), told.append)
            readers.remove(ours.fileno())
            before = readers.rounds
            theirs.send(b"x")
            await rounds(20)
            assert (readers.rounds, told) == (before, [])

    run(talk)


def test_however_many_ask_for_a_look_there_is_one_a_round() -> None:
    """Each connection that is accepted asks for it; and in the next round it can be asked for again."""

    async def talk(readers: Readers) -> None:
        for _ in range(2):
            before = readers.rounds
            for _ in range(3):
                readers.soon()
            assert readers.rounds == before
            await rounds()
            assert readers.rounds == before + 1

    run(talk)


def test_what_is_closed_holds_nothing_and_tells_nothing() -> None:
    """Neither a descriptor nor whoever was to be told: a listener that ends leaves nothing behind."""

    async def talk(readers: Readers) -> None:
        with pairs(1) as [(ours, theirs)]:
            told: list[int] = []

            def hear(fd: int) -> None:
                told.append(fd)

            heard = weakref.ref(hear)
            other = Readers(readers.loop)
            other.add(ours.fileno(), hear)
            del hear
            theirs.send(b"x")
            assert isinstance(readers.loop, Counting)
            os.fstat(readers.loop.last)
            other.close()
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(readers.loop.last)
            await rounds(20)
            assert (told, heard()) == ([], None)

    run(talk)


class Told:
    """What came of silent connections."""

    def __init__(self, readers: Readers, room: Callable[[], int] = lambda: 1000) -> None:
        self.heard: list[socket.SocketType] = []
        self.overdue: list[tuple[socket.SocketType, bool]] = []
        self.silent = Silent(readers, room, self._hear, self._be_overdue)

    def _hear(self, connection: socket.SocketType, _peer: Any, _owner: Hashable) -> None:
        self.heard.append(connection)

    def _be_overdue(self, connection: socket.SocketType, _peer: Any, _owner: Hashable, waited: bool) -> None:
        self.overdue.append((connection, waited))


def test_who_sends_is_handed_on_and_who_does_not_is_overdue() -> None:
    """Each goes one way, once: what has come is heard; who stays silent is counted as any other before long."""

    async def talk(readers: Readers) -> None:
        with pairs(10) as made:
            told = Told(readers)
            for ours, _ in made:
                told.silent.add(ours, None, None)
            for _, theirs in made[::2]:
                theirs.send(b"x")
            await until(lambda: len(told.heard) == 5)
            await until(lambda: len(told.overdue) == 5)
            assert told.heard == [ours for ours, _ in made[::2]]
            assert told.overdue == [(ours, True) for ours, _ in made[1::2]]
            assert len(told.silent) == 0

    assert run(talk).watched == 1


def test_who_had_no_chance_yet_is_said_to_have_had_none() -> None:
    """Where there is no room for so many in one round, they are handed on as they came: what they sent may lie unread."""

    async def talk(readers: Readers) -> None:
        with pairs(MOST + 1) as made:
            told = Told(readers)
            for ours, _ in made:
                told.silent.add(ours, None, None)
            assert told.overdue == [(ours, False) for ours, _ in made[:MOST]]
            assert len(told.silent) == 1
            await rounds()
            told.silent.finish()
            assert told.overdue[MOST:] == [(made[MOST][0], True)]

    run(talk)


def test_there_is_no_more_room_for_the_silent_than_for_others() -> None:
    """What may be open in all bounds those that wait here too; without room each is handed on at once."""

    async def talk(readers: Readers) -> None:
        with pairs(4) as made:
            room = 3
            told = Told(readers, lambda: room)
            for ours, _ in made[:3]:
                told.silent.add(ours, None, None)
            assert len(told.silent) == 3
            room = 0
            told.silent.add(made[3][0], None, None)
            assert [one for one, _ in told.overdue] == [ours for ours, _ in made]

    run(talk)


def test_for_the_last_place_one_waits_as_any() -> None:
    """Room for one more is room: it is heard when it sends, and nobody's place is taken for it."""

    async def talk(readers: Readers) -> None:
        with pairs(1) as [(ours, theirs)]:
            told = Told(readers, lambda: 1)
            told.silent.add(ours, None, None)
            assert (len(told.silent), told.overdue) == (1, [])
            theirs.send(b"x")
            await until(lambda: told.heard == [ours])

    run(talk)


def test_who_waits_for_longer_takes_a_place_as_who_has_just_come() -> None:
    """Nobody is forgotten in the count while the silent ones grow old: the bound is for all of them."""

    async def talk(readers: Readers) -> None:
        assert isinstance(readers.loop, Counting)
        with pairs(3) as made:
            told = Told(readers, lambda: 2)
            readers.loop.later = []
            told.silent.add(made[0][0], None, None)
            readers.loop.later.pop()()  # the first is old now
            told.silent.add(made[1][0], None, None)
            assert (len(told.silent), told.overdue) == (2, [])
            told.silent.add(made[2][0], None, None)
            assert [one for one, _ in told.overdue] == [ours for ours, _ in made[:2]]
            readers.loop.later = None

    run(talk)


@pytest.mark.parametrize("takes", [True, False])
def test_who_is_overdue_is_told_to_whoever_took_it_and_to_nobody_else(*, takes: bool) -> None:
    """From then on it is another's to watch: what it sends is that one's, and no trouble where nobody watches it."""

    async def talk(readers: Readers) -> None:
        with pairs(1) as [(ours, theirs)]:
            heard: list[object] = []
            taken: list[int] = []

            def overdue(connection: socket.SocketType, *_: Any) -> None:
                if takes:
                    readers.add(connection.fileno(), taken.append)

            silent = Silent(readers, lambda: 9, lambda *found: heard.append(found), overdue)
            silent.add(ours, None, None)
            silent.finish()
            theirs.send(b"x")
            await rounds(20)
            assert (heard, set(taken)) == ([], {ours.fileno()} if takes else set())
            readers.remove(ours.fileno())

    run(talk)


def test_where_the_kernel_cannot_watch_it_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """epoll_ctl(2) may lack room (ENOSPC): the connection is served as any other, and not lost."""

    async def talk(readers: Readers) -> None:
        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "no room to watch it")

        monkeypatch.setattr(readers, "add", refuse)
        with pairs(1) as [(ours, _)]:
            told = Told(readers)
            told.silent.add(ours, None, None)
            assert told.overdue == [(ours, False)]

    run(talk)
