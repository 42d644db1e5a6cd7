"""What a controller does with what a master says: at once, and without anybody who asks about it."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from agent.daemon import master_connection
from agent.daemon.master_connection import MasterConnection
from agent.host.emptiable import Emptiable
from agent.server import words
from tests.unit.controller.support import looped
from tests.unit.daemon.test_master_connection import _AT, Joined
from tests.unit.host.test_systemd import no_descriptor_left

LONG = 3600.0


async def confirmed(waiting: asyncio.Task[bool], joined: Joined, said: bytes) -> None:
    """That word is all that was missing."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    joined.say(said)
    assert await asyncio.wait_for(waiting, 30)


@looped
async def test_an_acknowledgement_waits_no_longer_than_it_must() -> None:
    """The word that the newest came, or that a server of before has ended, is heard as soon as it is said."""
    joined = Joined()
    joined.say(words.number(words.ALIVE, 5))
    joined.say(_AT)
    await asyncio.wait_for(joined.connection.introduced.wait(), 30)
    joined.begin()
    taken = joined.controller.servers.taken
    joined.say(words.number(words.HAD, 1))
    await joined.until(lambda: joined.connection.settled)
    await confirmed(asyncio.create_task(taken(LONG)), joined, words.number(words.ENDED, 5))
    joined.controller.servers.publish(b"newer")
    await confirmed(asyncio.create_task(taken(LONG)), joined, words.number(words.HAD, 2))
    joined.close()


@looped
async def test_a_server_without_a_link_is_ended_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears of no withdrawal, whether somebody asks for an acknowledgement or not."""
    monkeypatch.setattr(master_connection, "UNLINKED_SECONDS", 0.01)
    joined = Joined()
    joined.begin()
    with joined.link(7):
        with no_descriptor_left():
            await joined.until(lambda: 7 in joined.connection.alive)
        while (await asyncio.to_thread(joined.heard))[0] != words.number(words.END, 7):
            pass
    joined.close()


@looped
async def test_without_a_descriptor_no_more_servers_are_believed_either() -> None:
    """A master that says so while there is none for its links keeps no acknowledgement waiting for what never was."""
    joined = Joined()
    for number in range(words.MOST_SERVERS):
        joined.say(words.number(words.ALIVE, number + 1))
    await joined.until(lambda: len(joined.connection.alive) == words.MOST_SERVERS)
    joined.begin()
    with joined.link(words.MOST_SERVERS + 1), no_descriptor_left():
        await joined.until(joined.ended.is_set)
    joined.close()


@looped
async def test_all_sockets_are_given_and_a_stop_is_said() -> None:
    """In as many words as they need, and before a server is asked for."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    its.settimeout(30)
    joined = Joined()
    connection = MasterConnection(ours, ended=lambda: None)
    with socket.socket() as one, its:
        connection.begin([one] * (words.MOST_SOCKETS + 1), joined.controller.servers, lambda: None)
        connection.stop()
        found: list[tuple[bytes, int]] = []
        while not found or found[-1][0] != words.STOP:
            said, files, _, _ = socket.recv_fds(its, 64, words.MOST_SOCKETS)
            found.append((said, len(files)))
            for file in files:
                socket.close(file)
    assert found == [
        (words.GIVEN, words.MOST_SOCKETS),
        (words.GIVEN, 1),
        (words.SNAPSHOT, 1),
        (words.number(words.LISTEN, words.TWO), 0),
        (words.STOP, 0),
    ]
    connection.close()
    joined.close()


@looped
async def test_it_has_us_hold_no_more_files_than_an_honest_one_keeps() -> None:
    """Each that it gives back as one of ours stays open until it was emptied."""
    joined = Joined()
    kept = Emptiable.holding(b"of before")
    reader = kept.reader()
    for _ in range(5):
        joined.say(words.SNAPSHOT, reader)
    await joined.until(joined.ended.is_set)
    assert len(joined.connection.given) == 4
    for one in joined.connection.given:
        one.empty()
    os.close(reader)
    kept.close()
    joined.close()
