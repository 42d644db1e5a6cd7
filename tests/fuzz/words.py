"""A hostile master's words to the controller, and a hostile controller's to the master: over their sockets, with files.

Each goes on, or ends the connection: nothing is raised, no descriptor stays open, nobody is believed to have more servers
than an honest master has, and no process is ended that the master did not begin (ours are named to it).

``python -m tests.fuzz.words --seconds 3600 [--seed N]`` runs it for long; some of it is in the test suite.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import socket
import subprocess
import sys
from typing import Any, Final

from agent.daemon.master_connection import MasterConnection
from agent.host.process import open_descriptors
from agent.server import words
from tests.fuzz.budget import rounds
from tests.fuzz.fuzz_bundle import mutate
from tests.fuzz.snapshot import Report, main

_NUMBERS: Final = (0, 1, 2, 5, 6, 7, 63, 64, 65, 4096, 1 << 31, 10**10)
_MASTERS: Final = (words.LINK, words.SECOND, words.INSTEAD, words.ALIVE, words.ENDED, words.HAD, words.LACKS,
                   words.ROOM, words.FAILING, words.AT, words.SNAPSHOT)  # fmt: skip
_CONTROLLERS: Final = (words.GIVEN, words.LISTEN, words.SNAPSHOT, words.END, words.STOP)
_WAIT_SECONDS: Final = 30.0
_LEAST_ROUNDS: Final = 100
"""Also on a machine so busy that the time is over before: what is found in none is no finding."""


def _word(known: tuple[bytes, ...], rng: random.Random) -> bytes:
    word = rng.choice(known)
    if word == words.AT:
        said = words.at(["127.0.0.1:80", "[::1]:80"][: rng.randrange(3)])
    elif word in (words.SNAPSHOT, words.GIVEN, words.STOP) or rng.random() < 0.1:
        said = word
    else:
        said = words.number(word, rng.choice((*_NUMBERS, os.getpid(), os.getppid())))
    return mutate(said, rng) if rng.random() < 0.15 else said


def _files(rng: random.Random) -> list[socket.socket]:
    """What comes along: mostly a link, else nothing, two, or something that is none."""
    kinds: tuple[list[socket.SocketKind], ...] = (
        [socket.SOCK_STREAM],
        [],
        [socket.SOCK_SEQPACKET],
        [socket.SOCK_STREAM] * 2,
    )
    chosen = rng.choices(kinds, (8, 3, 1, 1))[0]
    found = []
    for kind in chosen:
        ours, its = socket.socketpair(socket.AF_UNIX, kind)
        its.close()
        found.append(ours)
    return found


_MASTER: Final = """
import os, socket, sys
from agent.server.controllers import ControllerSocket
from agent.server.master import Master
listening, workers = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
Master(connecting=ControllerSocket(listening, {os.getuid()}), sockets=[workers]).run()
"""


async def to_controller(seconds: float, rng: random.Random, report: Report, make: Any) -> None:
    """A hostile master.

    Args:
        seconds: for so long.
        rng: draws.
        report: what was found.
        make: a controller's :class:`agent.daemon.servers.Servers`.
    """
    asyncio.get_running_loop().set_exception_handler(lambda _, about: report.findings.append(str(about)))
    before = 0
    for _ in rounds(seconds, _LEAST_ROUNDS):
        servers = make()
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        its.setblocking(False)
        ended = asyncio.Event()
        connection = MasterConnection(ours, ended=ended.set)
        if rng.random() < 0.9:
            connection.begin((), servers, lambda: None)
        for _ in range(rng.randrange(1, 60)):
            files = _files(rng)
            with contextlib.suppress(OSError):  # it has been left, or reads later
                socket.send_fds(its, [_word(_MASTERS, rng)], [one.fileno() for one in files])
            for one in files:
                one.close()
            await asyncio.sleep(0)
            if len(connection.alive) > words.MOST_SERVERS or len(servers.connected) > words.MOST_SERVERS:
                report.findings.append("more servers than an honest master has")
            report.taken += not ended.is_set()
        report.refused += ended.is_set()
        connection.close()
        for given in connection.given:
            given.empty()
        servers.close()
        its.close()
        before = before or open_descriptors()
        if not await _closed(before + 8):
            report.findings.append(f"{open_descriptors() - before} descriptors stay open")
            break


async def _closed(most: int) -> bool:
    """Wait until no more descriptors are open than so many: a thread closes them."""
    until = asyncio.get_running_loop().time() + _WAIT_SECONDS
    await asyncio.sleep(0.01)
    while (is_above := open_descriptors() > most) and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return not is_above


def to_master(seconds: float, rng: random.Random, report: Report) -> None:
    """A hostile controller: of the agent's user, or root, but the master must outlive a bug of ours."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening,
        socket.create_server(("127.0.0.1", 0)) as workers,
    ):
        listening.bind("")
        listening.listen()
        given = (listening.fileno(), workers.fileno())
        command = [sys.executable, "-c", _MASTER, *map(str, given)]
        with subprocess.Popen(command, pass_fds=given, stderr=subprocess.DEVNULL) as master:
            try:
                _attack(listening, seconds, rng, report)
            except (OSError, TimeoutError) as error:
                report.findings.append(f"the master does not answer: {error}")
            finally:
                if master.poll() is not None:
                    report.findings.append("the master has ended")
                master.kill()


def _attack(listening: socket.socket, seconds: float, rng: random.Random, report: Report) -> None:
    for _ in rounds(seconds, _LEAST_ROUNDS):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.settimeout(_WAIT_SECONDS)
            control.connect(listening.getsockname())
            while not _hear(control).startswith(words.AT):
                pass  # it is taken, and told who is there
            for _ in range(rng.randrange(1, 20)):
                files = _files(rng)
                with contextlib.suppress(OSError):
                    socket.send_fds(control, [_word(_CONTROLLERS, rng) or b" "], [one.fileno() for one in files])
                    report.taken += 1
                for one in files:
                    one.close()
                while select.select([control], [], [], 0)[0] and _hear(control) != words.AT:
                    pass


def _hear(control: socket.socket) -> bytes:
    said, fds, _, _ = socket.recv_fds(control, words.MOST_BYTES, 1)
    for fd in fds:
        os.close(fd)
    return said or words.AT  # it was left


def fuzz(seconds: float, rng: random.Random) -> Report:
    """Run for so long, half of it each way."""
    from tests.unit.daemon.test_servers import Controller

    report = Report()
    asyncio.run(to_controller(seconds / 2, rng, report, lambda: Controller().servers))
    to_master(seconds / 2, rng, report)
    return report


if __name__ == "__main__":
    raise SystemExit(main("tests.fuzz.words", fuzz))
