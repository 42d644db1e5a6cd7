"""Whose connection is taken next when many wait in the kernel: real sockets of real users, the real event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from agent.host.sockdiag import SocketDiagnosis
from agent.host.sockets import read_socket_table
from agent.serve.fairness import Owners
from agent.serve.intake import LONG, MOST_OWED_SECONDS, ON_THE_WAY_SECONDS, SERVED_AT_ONCE, Intake
from agent.serve.readers import Readers

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
NOBODY = 65534
GREEDY = """
import encodings.idna, os, socket, struct, sys
os.setgid(65534), os.setuid(65534)
held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
for sock in held if sys.argv[3] == "stay" else ():
    sock.sendall(b"other")
if sys.argv[3] != "stay":
    for sock in held:
        if sys.argv[3] == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
print("on", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def greedy(port: int, count: int, then: str = "stay") -> Iterator[None]:
    """Another user's process whose connections wait in the kernel, each with a request that is not remembered."""
    argv = [sys.executable, "-c", GREEDY, str(port), str(count), then]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        try:
            yield
        finally:
            process.stdin.close()  # type: ignore[union-attr]


class Begun:
    """Notes the owners of connections in the order in which they are begun with, and keeps the connections.

    Args:
        cost: seconds that each answer takes, on a clock that stands still else.
        over: whether each is over at once.
    """

    def __init__(self, cost: float = 0.0, *, over: bool = False) -> None:
        self.cost = cost
        self.over = over
        self.time = 0.0
        self.looks = 0
        self.owners: list[Hashable] = []
        self.open: list[socket.SocketType] = []
        self.recalled: list[bytes] = []
        self.given: list[tuple[socket.SocketType, bytes | None]] = []

    def __call__(
        self, sock: socket.SocketType, _peer: object, owner: Hashable, data: bytes | None, *, waited: bool = False
    ) -> bool:
        self.time += self.cost
        self.given.append((sock, data))
        self.owners.append(owner)
        self.open.append(sock)
        return self.over

    def now(self) -> float:
        """The time; ``looks`` is how often somebody asked."""
        self.looks += 1
        return time.perf_counter()

    @property
    def turns(self) -> list[Hashable]:
        """The owners of those that were begun with by turns; of others nobody was asked."""
        return [owner for owner in self.owners if owner is not None]

    def recall(
        self, sock: socket.SocketType, _peer: object, _owner: Hashable, data: bytes, *, peeked: bool = False
    ) -> bool:
        """What begins with ``known`` is remembered."""
        if not data.startswith(b"known"):
            return False
        self.time += self.cost
        self.recalled.append(data if peeked is False else sock.recv(len(data)))
        sock.close()
        return True

    def end(self, intake: Intake) -> None:
        """Close them all."""
        intake.close()
        intake.finish()
        for sock in self.open:
            sock.close()


def taken(
    server: socket.socket,
    *,
    until: Callable[[Intake, Begun], bool],
    room: int = 1000,
    cost: float = 0.0,
    over: bool = False,
    spent: bool = True,
) -> tuple[int, list[Hashable]]:
    """How many an intake had in hand, and with whose it had begun, when something held."""
    begun = Begun(cost, over=over)

    async def scenario() -> tuple[int, list[Hashable]]:
        diagnosis = SocketDiagnosis()
        owners = Owners(read_socket_table, diagnosis.owner)
        intake = Intake(
            [server],
            begin=begun,
            recall=begun.recall,
            owners=owners,
            room=lambda: room,
            readers=Readers(asyncio.get_running_loop()),
            now=lambda: begun.time,
            spent=lambda: begun.time if spent else 0.0,
        )
        intake.begin()
        async with asyncio.timeout(20):
            while not until(intake, begun):  # noqa: ASYNC110 - it counts rounds of the loop
                await asyncio.sleep(0)
        left, known = intake.connections, list(begun.owners)
        begun.end(intake)
        owners.close()
        diagnosis.close()
        return left, known

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(scenario())


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        listening.setblocking(False)
        yield listening


@as_root
def test_turns(server: socket.socket) -> None:
    """Behind two hundred that came before of one user, another's first is among the next that are begun with."""
    port = server.getsockname()[1]
    with greedy(port, 200), contextlib.ExitStack() as stack:
        asked(server, stack, 3)  # one of them may be answered on the way
        _, owners = taken(server, until=lambda _, begun: len(begun.owners) == 203)
    turns = [owner for owner in owners if owner is not None]
    assert turns.index(0) < 2 * SERVED_AT_ONCE
    assert turns.count(NOBODY) > 150


@as_root
def test_whoever_has_most_is_put_out(server: socket.socket) -> None:
    """Where there is no room for all that wait, another's stay and some of the many go."""
    port = server.getsockname()[1]
    with greedy(port, 200), contextlib.ExitStack() as stack:
        asked(server, stack, 5)
        _, owners = taken(server, room=50, until=lambda intake, begun: len(begun.owners) > 5 and not intake.connections)
    assert owners.count(0) >= 4  # and one that may be answered on the way
    assert owners.count(NOBODY) <= 50 + 2 * SERVED_AT_ONCE


@as_root
@pytest.mark.parametrize("how", ["closed", "reset"])
def test_nobody_reads_the_answers_of_what_is_closed(server: socket.socket, how: str) -> None:
    """Connections that their owner has closed, or reset, while they waited are not begun with at all."""
    port = server.getsockname()[1]
    with greedy(port, 200, how), contextlib.ExitStack() as stack:
        asked(server, stack, 1)
        _, owners = taken(server, until=lambda intake, begun: bool(begun.owners) and not intake.connections)
    assert len(owners) == 1


def test_of_a_short_queue_nobody_s_owner_is_asked_for(server: socket.socket) -> None:
    """As long as few wait they are served as they come: to ask whose they are would cost each request something."""
    with contextlib.ExitStack() as stack:
        asked(server, stack, LONG - 1)
        rounds = iter(range(20))
        left, owners = taken(server, until=lambda *_: next(rounds, None) is None)
    assert left == 0
    assert owners == [None] * (LONG - 1)


def test_what_is_remembered_is_answered_on_the_way(server: socket.socket) -> None:
    """However many wait, nobody's turn is waited for by those whose answer costs less than to ask who they are."""
    port = server.getsockname()[1]
    with contextlib.ExitStack() as stack:
        for number in range(3 * LONG):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(b"known" if number % 2 else b"other")
        _, owners = taken(server, until=lambda _, begun: len(begun.recalled) == 3 * LONG / 2)
    assert len(owners) < LONG


def asked(server: socket.socket, stack: contextlib.ExitStack, count: int) -> None:
    """So many connections that have sent a request which is not remembered."""
    for _ in range(count):
        stack.enter_context(socket.create_connection(server.getsockname())).sendall(b"other")


def test_what_costs_no_more_than_to_ask_whose_it_is_waits_for_no_turn(server: socket.socket) -> None:
    """However many wait, and though nothing is remembered: cheap answers are given in the order in which they came."""
    with contextlib.ExitStack() as stack:
        asked(server, stack, 3 * LONG)
        _, owners = taken(
            server, until=lambda _, begun: len(begun.owners) == 3 * LONG, cost=ON_THE_WAY_SECONDS, over=True
        )
    assert owners == [None] * (3 * LONG)


@pytest.mark.parametrize(
    ("cost", "over"),
    [
        pytest.param(10 * ON_THE_WAY_SECONDS, True, id="it costs more"),
        pytest.param(0.0, False, id="it is not over"),
    ],
)
def test_what_costs_more_waits_for_its_owner_s_turn(server: socket.socket, cost: float, over: bool) -> None:
    """Dear requests are answered on the way until as much is owed as may be, and so many as are paid off; not more."""
    with contextlib.ExitStack() as stack:
        asked(server, stack, 3 * LONG)
        _, owners = taken(server, until=lambda _, begun: len(begun.owners) == 3 * LONG, cost=cost, over=over)
    paid = (MOST_OWED_SECONDS + 3 * LONG * ON_THE_WAY_SECONDS) / (cost if over else 0.0005)
    assert paid / 2 <= owners.count(None) <= paid + 1
    assert owners.count(None) < len(owners) / 2


def test_nothing_is_owed_for_the_time_that_others_had(server: socket.socket) -> None:
    """On a machine with much to do each answer may take long by the clock: what it costs us is no more for that."""
    with contextlib.ExitStack() as stack:
        asked(server, stack, 3 * LONG)
        _, owners = taken(
            server, until=lambda _, begun: len(begun.owners) == 3 * LONG, cost=0.003, over=True, spent=False
        )
    assert owners == [None] * (3 * LONG)


def test_what_is_remembered_waits_for_no_turn_because_it_came_late(server: socket.socket) -> None:
    """Who was fetched between connecting and sending is looked at again: it is answered among the first, not by turns."""
    port = server.getsockname()[1]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3 * LONG)]
        late = iter(clients)

        def until(intake: Intake, begun: Begun) -> bool:
            if intake.connections == 3 * LONG:  # all are fetched, and nobody has sent anything
                for sock in late:
                    sock.sendall(b"known")
            return len(begun.recalled) + len(begun.owners) >= 3 * LONG

        _, owners = taken(server, until=until)
    assert len(owners) <= SERVED_AT_ONCE


def test_turns_last_as_long_as_fetching(server: socket.socket) -> None:
    """While fetching takes long, those who wait for a turn get more of them, up to a bound that keeps rounds short."""
    port = server.getsockname()[1]
    served = [0]

    def until(_: Intake, begun: Begun) -> bool:
        if len(begun.turns) > served[-1]:
            served.append(len(begun.turns))
        return len(begun.owners) == LONG

    with contextlib.ExitStack() as stack:
        for number in range(2 * LONG):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(b"known" if number % 2 else b"other")
        taken(server, until=until, cost=0.001)
    # The first round fetched and answered for 64 ms, the others for none.
    assert [after - before for before, after in itertools.pairwise(served)][:3] == [8, SERVED_AT_ONCE, SERVED_AT_ONCE]


def test_no_descriptors_left(server: socket.socket) -> None:
    """When the process may open no more files, fetching ends for this time, and what was fetched is begun with."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        asked(server, stack, 2 * LONG)
        rounds = iter(range(200))
        few = sum(1 for _ in Path("/proc/self/fd").iterdir()) + LONG
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
        try:
            left, owners = taken(server, until=lambda *_: next(rounds, None) is None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert left == 0
        assert 0 < len(owners) < 2 * LONG


def test_descriptors_that_become_free_are_used(server: socket.socket) -> None:
    """Where nothing can be accepted nobody spins, and whoever waits meanwhile is served as soon as there is room."""
    port = server.getsockname()[1]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []

    def until(_: Intake, begun: Begun) -> bool:
        held.append(len(begun.owners))
        if len(held) == 50:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        return len(begun.owners) == 10

    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        few = sum(1 for _ in Path("/proc/self/fd").iterdir()) + 12  # the loop's own, and some
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
        try:
            taken(server, until=until)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert held[49] < 10
    assert held[-1] == 10


def test_all_that_were_fetched_are_begun_with_at_the_end(server: socket.socket) -> None:
    """A process that ends answers those whom it has taken from the kernel: nobody else will."""
    begun = Begun()

    async def scenario() -> int:
        readers = Readers(asyncio.get_running_loop())
        intake = Intake(
            [server], begin=begun, recall=begun.recall, owners=None, room=lambda: 1000, readers=readers, now=lambda: 0
        )
        intake.begin()
        while not intake.connections:  # noqa: ASYNC110 - the next round of the loop is what is waited for
            await asyncio.sleep(0)
        intake.close()
        intake.finish()
        left = intake.connections
        begun.end(intake)
        return left

    with contextlib.ExitStack() as stack:
        asked(server, stack, 2 * LONG)
        for _ in range(LONG):
            stack.enter_context(socket.create_connection(server.getsockname()))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            assert runner.run(scenario()) == 0
    assert len(begun.owners) == 3 * LONG
    assert begun.owners.count("127.0.0.1") > LONG


class Listening(socket.socket):
    """A listening socket whose kernel gives errors first, as accept(2) names them; 0: none this time."""

    errors: list[int]

    @classmethod
    def on(cls, server: socket.socket, *errors: int) -> Listening:
        made = cls(fileno=os.dup(server.fileno()))
        made.errors = list(errors)
        return made

    def _accept(self) -> tuple[int, Any]:
        if self.errors and (error := self.errors.pop(0)):
            raise OSError(error, "refused by the kernel")
        return super()._accept()  # type: ignore[misc, no-any-return]


def scripted(
    listening: socket.socket,
    script: Callable[[Intake, Begun], Awaitable[None]],
    *,
    owners: Owners | None = None,
    room: int = 1000,
    begun: Begun | None = None,
    failing: int = 0,
) -> tuple[Begun, int]:
    """What an intake has begun with while a script ran, and how many it has put out. So many errors were told."""
    begun, put_out, errors = begun or Begun(), [], list[Any]()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
        intake = Intake(
            [listening],
            begin=begun,
            recall=begun.recall,
            owners=owners,
            room=lambda: room,
            readers=Readers(asyncio.get_running_loop()),
            now=begun.now,
            evicted=lambda: put_out.append(1),
        )
        intake.begin()
        async with asyncio.timeout(20):
            await script(intake, begun)
        assert intake.sockets == (listening,)
        begun.end(intake)

    asyncio.run(main())
    assert len(errors) == failing, errors
    return begun, len(put_out)


async def rounds(count: int) -> None:
    """Let the loop go round so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("count", [3, 3 * LONG])
@pytest.mark.parametrize("error", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM])
def test_one_that_is_gone_before_it_is_taken_costs_nobody_a_turn(server: socket.socket, error: int, count: int) -> None:
    """accept(2) tells of it by an error of that connection's; it is not the process that has no room."""
    listening = Listening.on(server, error, error)

    async def script(_: Intake, begun: Begun) -> None:
        while len(begun.owners) < count:  # noqa: ASYNC110 - the next round of the loop is what is waited for
            await asyncio.sleep(0)

    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(server.getsockname()))
        begun, put_out = scripted(listening, script)
    assert (len(begun.owners), put_out) == (count, 0)


class Failing(Begun):
    """One of ten cannot be begun with, for an error of ours."""

    def __call__(self, *given: Any, **more: Any) -> bool:
        over = super().__call__(*given, **more)
        if len(self.owners) % 10 == 0:
            raise RuntimeError("an error of ours")
        return over


@pytest.mark.parametrize("made", [Begun, Failing])
def test_after_a_rush_it_is_as_before(server: socket.socket, made: type[Begun]) -> None:
    """Each of many was served, also after an error; then no round is made for nothing, and who comes is served."""
    count = 3 * LONG

    async def script(intake: Intake, begun: Begun) -> None:
        while len(begun.owners) < count:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        assert intake.connections == 0
        await rounds(5)
        looks = begun.looks
        await rounds(20)
        assert begun.looks == looks
        asked(server, stack, 1)
        while len(begun.owners) == count:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        assert begun.owners[-1] is None
        assert begun.looks == looks

    with contextlib.ExitStack() as stack:
        asked(server, stack, count)
        scripted(server.dup(), script, begun=made(), failing=count // 10 if made is Failing else 0)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_whoever_has_most_gives_a_descriptor_where_there_is_none(server: socket.socket, error: int) -> None:
    """While many wait, one of those that were fetched goes, and the fetching goes on; it is counted."""
    listening = Listening.on(server, *[0] * 100, error)

    async def script(_: Intake, begun: Begun) -> None:
        while len(begun.owners) < 3 * LONG - 1:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)

    with contextlib.ExitStack() as stack:
        for _ in range(3 * LONG):
            sock = stack.enter_context(socket.create_connection(server.getsockname()))
            sock.sendall(b"other")
        begun, put_out = scripted(listening, script)
    assert put_out == 1
    assert len(begun.owners) == 3 * LONG - 1


@pytest.mark.parametrize("count", [3, 3 * LONG])
def test_where_none_can_be_taken_they_wait_in_the_kernel(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Nobody is put out for them, and none is lost: they are taken once it is looked again, and not before."""
    listening = Listening.on(server, errno.EMFILE)
    later: list[Callable[[], object]] = []

    def put_off(_seconds: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        later.append(call)
        return asyncio.TimerHandle(0.0, call, (), asyncio.get_running_loop())

    async def script(_: Intake, begun: Begun) -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", put_off)
        await rounds(20)
        assert begun.owners == []  # it does not ask again and again
        (look,) = later
        look()
        while len(begun.owners) < count:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)

    with contextlib.ExitStack() as stack:
        asked(server, stack, count)  # whoever has said something is begun with as soon as he is taken
        begun, put_out = scripted(listening, script)
    assert (len(begun.owners), put_out) == (count, 0)


def test_who_was_put_out_came_last_of_whoever_has_most(server: socket.socket) -> None:
    """Of two addresses the one with most gives way, by its newest; all of the other's are served, and its own oldest."""
    host, port = server.getsockname()
    room = 40
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(socket.create_connection((host, port))) for _ in range(150)]
        few = [
            stack.enter_context(socket.create_connection((host, port), source_address=("127.0.0.2", 0)))
            for _ in range(10)
        ]
        for number, sock in enumerate((*many, *few)):
            sock.sendall(b"%d" % number)
        order: list[int] = []

        async def script(intake: Intake, begun: Begun) -> None:
            while not begun.owners or intake.connections:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            order.extend(int(sock.recv(9)) if not data else int(data) for sock, data in begun.given)

        begun, put_out = scripted(server.dup(), script, room=room)
    assert {number for number in order if number >= 150} == set(range(150, 160))
    served = [number for number in order if number < 150]
    by_turns = [number for owner, number in zip(begun.owners, order, strict=True) if owner == host and number < 150]
    assert by_turns == sorted(by_turns)
    assert max(by_turns) < min(set(range(150)) - set(served))  # its newest went
    assert len(served) + put_out == 150
    assert put_out > 0


@pytest.mark.parametrize("count", [5, 3 * LONG])
def test_who_has_said_nothing_yet_is_served_at_the_end_too(server: socket.socket, count: int) -> None:
    """Just taken, or looked at once: whoever ends hands all of them on, and keeps none."""

    async def script(intake: Intake, begun: Begun) -> None:
        while not intake.connections:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        known = intake.connections
        intake.close()
        intake.finish()
        assert intake.connections == 0
        assert len(begun.owners) == known

    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(server.getsockname()))
        begun, _ = scripted(server.dup(), script)
    assert begun.owners


def test_one_that_sends_late_is_read_when_it_is_looked_at_again(server: socket.socket) -> None:
    """A client connects and then sends: in the next round what it sent has mostly come, and is answered at once."""
    with socket.create_connection(server.getsockname()) as client:

        async def script(intake: Intake, begun: Begun) -> None:
            while not intake.connections:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            client.sendall(b"known")
            while not begun.recalled:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            assert intake.connections == 0

        begun, _ = scripted(server.dup(), script)
    assert (begun.recalled, begun.owners) == ([b"known"], [])
