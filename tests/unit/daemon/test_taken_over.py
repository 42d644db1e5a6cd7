"""Servers that have been taken over, and as many as there may be: the controller stays on time, and confirms the truth."""

from __future__ import annotations

import asyncio
import contextlib
import random
import select
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from agent.core.model import Cloud
from agent.core.served import REASONS
from agent.daemon import servers as servers_module
from agent.host.loop import Loop
from agent.host.process import usage
from agent.server import words
from agent.snapshot.frames import frame_of
from agent.snapshot.messages import Counts, Crashed, Left, Mint, MintScoped, Pass, Refused, Served, Taken, Uses
from tests.unit.controller.support import looped
from tests.unit.daemon.test_master_connection import Joined

MEBIBYTE = 1 << 20


@looped
async def test_a_withdrawal_is_confirmed_by_all_of_64_or_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of them hang: those, and no others, are killed, and until each of them has ended nothing is confirmed."""
    monkeypatch.setattr(servers_module, "TAKEN_SECONDS", 30.0)
    joined = Joined()
    joined.begin()
    servers = joined.controller.servers
    pids = range(1, words.MOST_SERVERS + 1)
    theirs = {pid: joined.link(pid) for pid in pids}
    joined.say(words.number(words.HAD, 1))
    await joined.until(lambda: len(servers.connected) == len(pids) and joined.connection.settled)
    for link in theirs.values():
        link.sendall(frame_of(Taken(servers.version())))
    assert await servers.taken(30)
    hung = {2, 17, 63, 64}
    joined.controller.change()
    joined.say(words.number(words.HAD, 2))
    for pid in set(pids) - hung:
        theirs[pid].sendall(frame_of(Taken(servers.version())))
    assert not await servers.taken(0.5)
    assert {server.pid for server in servers.connected if server.taken < servers.version()} == hung
    said: set[int] = set()
    while len(said) < len(hung):
        word, _ = await asyncio.to_thread(joined.heard)
        said |= {words.pid_of(word)} if word.startswith(words.END + b" ") else set()
    assert said == hung
    confirmed = asyncio.create_task(servers.taken(30))
    for number, pid in enumerate(sorted(hung), 1):
        theirs[pid].close()
        joined.say(words.number(words.ENDED, pid))
        await joined.until(lambda pid=pid: pid not in joined.connection.alive)  # type: ignore[misc]
        if number < len(hung):
            assert not confirmed.done()
    assert await confirmed
    for link in theirs.values():
        link.close()
    joined.close()


def _messages() -> list[bytes]:
    """Each kind, small ones and as large as may be."""
    fields = (("x-aws-ec2-metadata-token", "t" * 4000),) * 2
    return [
        frame_of(message)
        for message in (
            Taken(1 << 60),
            Left(7),
            Counts(()),
            Counts(tuple((status, 1 << 40) for status in range(100, 228))),
            Uses(1 << 50, 1e9, 1 << 30),
            Mint(3, "audience" * 200),
            MintScoped(4, ("scope" * 100,) * 64),
            Pass(5, Cloud.AWS, "GET", "/latest/meta-data/" + "x" * 16000, fields, bytes(65536), 7200.0),
            Pass(6, Cloud.AWS, "GET", "/latest/meta-data/hostname", (), None, 0.0),
            Refused("GET", "/" + "p" * 1000, 403, 0.0, 0, "u" * 500, None),
            Crashed("/" + "p" * 1000, "E" * 200, "w" * 4000),
            Served((), tuple((reason, 1 << 40) for reason in REASONS)),
        )
    ]


def _of_one(kind: int) -> Callable[[random.Random], Iterator[bytes]]:
    def said(_rng: random.Random) -> Iterator[bytes]:
        block = _messages()[kind] * max(1, 65536 // len(_messages()[kind]))
        while True:
            yield block

    return said


def _of_all(rng: random.Random) -> Iterator[bytes]:
    """In any order, cut anywhere."""
    known = _messages()
    while True:
        block = b"".join(rng.choices(known, k=40))
        while block:
            cut = rng.choice((1, 3, 7, 100, 4096, 65536))
            yield block[:cut]
            block = block[cut:]


def _half(_rng: random.Random) -> Iterator[bytes]:
    """One that never ends."""
    yield _messages()[7][:-1]
    while True:
        yield b""


FLOODS = {
    **{f"only {name}": _of_one(kind) for kind, name in enumerate(("taken", "left", "counts", "many counts", "uses", "mints",
       "scopes", "long passes", "passes", "refusals", "crashes", "served"))},
    "all at once": _of_all,
    "half a message": _half,
}  # fmt: skip

UNREAD = ("only mints", "only passes", "all at once")
"""What is answered, and the answers are not read."""


@asynccontextmanager
async def flooding(joined: Joined, pid: int, said: Iterator[bytes], *, reads: bool) -> AsyncIterator[None]:
    """A server says this as fast as it is heard, and may read what it is told, or not."""
    its = joined.link(pid)
    its.setblocking(False)
    stop = threading.Event()

    def flood() -> None:
        block = b""
        while not stop.is_set():
            block = block or next(said)
            readable, writable, _ = select.select([its] if reads else [], [its] if block else [], [], 0.05)
            with contextlib.suppress(BlockingIOError):
                if readable and not its.recv(MEBIBYTE):
                    return
                if writable:
                    block = block[its.send(block) :]

    def run() -> None:
        with contextlib.suppress(OSError):  # it was cut off
            flood()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        await joined.until(lambda: not thread.is_alive())
        its.close()


@pytest.mark.parametrize(
    ("flood", "reads"), [*((flood, True) for flood in FLOODS), *((flood, False) for flood in UNREAD)]
)
def test_a_flood_of_one_keeps_nothing_from_the_others(flood: str, reads: bool) -> None:
    """An honest server is told and heard, memory is bounded, and what the flood says confirms nothing for the other."""

    async def run() -> None:
        joined = Joined()
        joined.begin()
        servers = joined.controller.servers
        before = usage().resident_bytes
        honest = joined.link(1)
        honest.settimeout(30)
        async with flooding(joined, 2, FLOODS[flood](random.Random(11)), reads=reads):
            await joined.until(lambda: len(servers.connected) == 2)
            for number in range(1, 6):
                joined.say(words.number(words.HAD, number))
                confirmed = asyncio.create_task(servers.taken(20))
                for _ in range(20):
                    await asyncio.sleep(0)
                assert not confirmed.done()  # the honest one has not said so
                honest.sendall(frame_of(Taken(servers.version())))
                if flood in {"only taken", "all at once"}:
                    assert await confirmed
                else:
                    confirmed.cancel()
                    one = next(server for server in servers.connected if server.pid == 1)
                    await joined.until(lambda one=one: one.taken == servers.version())  # type: ignore[misc]
                joined.controller.change()
            assert usage().resident_bytes - before < 200 * MEBIBYTE
        honest.close()
        joined.close()

    with asyncio.Runner(loop_factory=Loop) as runner:  # which ends what is under way before the loop is closed
        runner.run(run())
