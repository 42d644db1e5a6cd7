"""Answers that leave together: nobody's is lost, late or sent in another round of the loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

import pytest

from agent.serve.intake import LONG, Intake
from agent.serve.readers import Readers
from agent.serve.sending import AT_ONCE, LARGE, SECONDS, Answer, Sender
from tests.fakes.clock import START, FakeClock
from tests.fakes.view import FakeView, read_all, running_endpoint

ROLES = "/latest/meta-data/iam/security-credentials/"


class Delivered:
    """What was delivered, on a clock that the test moves."""

    def __init__(self) -> None:
        self.time = 0.0
        self.numbers: list[int] = []
        self.broken: set[int] = set()
        self.socks: list[socket.socket] = []
        self.sender = Sender(self.deliver, now=lambda: self.time)

    def deliver(self, answer: Answer) -> None:
        if answer.peer in self.broken:
            raise MemoryError
        self.numbers.append(answer.peer)

    def send(self, *numbers: int, data: bytes = b"") -> None:
        for number in numbers:
            self.socks.append(socket.socket(socket.AF_UNIX))
            self.sender.send(Answer(self.socks[-1], number, None, data))

    def fail(self, *numbers: int) -> None:
        """Send them in a round that fails."""
        with self.sender:
            self.send(*numbers)
            raise ValueError("next")

    def go_round(self, *numbers: int) -> None:
        """Send them in a round."""
        with self.sender:
            self.send(*numbers)


@pytest.fixture
def delivered() -> Iterator[Delivered]:
    made = Delivered()
    yield made
    for sock in made.socks:
        sock.close()


def test_what_is_sent_alone_is_sent_at_once(delivered: Delivered) -> None:
    """Outside a round nothing is gathered: nobody would send it."""
    delivered.send(0)
    assert delivered.numbers == [0]


def test_a_round_sends_all_of_it_at_its_end(delivered: Delivered) -> None:
    """In the order in which they were answered, and nothing of it remains for another round."""
    with delivered.sender:
        delivered.send(*range(AT_ONCE - 1))
        assert delivered.numbers == []
    assert delivered.numbers == list(range(AT_ONCE - 1))
    with delivered.sender:
        pass
    assert len(delivered.numbers) == AT_ONCE - 1


def test_a_round_that_fails_sends_what_it_has(delivered: Delivered) -> None:
    """An error of whoever came next costs nobody else an answer."""
    with pytest.raises(ValueError, match="next"):
        delivered.fail(0, 1)
    assert delivered.numbers == [0, 1]


def test_so_many_are_gathered_at_most(delivered: Delivered) -> None:
    """However many wait, the first is sent after a few."""
    with delivered.sender:
        delivered.send(*range(AT_ONCE))
        assert len(delivered.numbers) == AT_ONCE
        delivered.send(*range(AT_ONCE - 1))
        assert len(delivered.numbers) == AT_ONCE


def test_for_so_long_at_most(delivered: Delivered) -> None:
    """Where answers cost much, the first does not wait for many of them; and the next begin to wait anew."""
    with delivered.sender:
        for number in range(3):
            delivered.send(number)
            delivered.time += SECONDS / 2
        assert delivered.numbers == [0, 1, 2]
        delivered.send(3)
        assert delivered.numbers == [0, 1, 2]


def test_large_ones_are_not_kept(delivered: Delivered) -> None:
    """Many large answers would be much memory: each leaves at once."""
    with delivered.sender:
        delivered.send(0, 1, data=bytes(LARGE + 1))
        assert delivered.numbers == [0, 1]


@pytest.mark.parametrize("count", [3, AT_ONCE])
def test_one_that_cannot_be_delivered_costs_only_itself(delivered: Delivered, count: int) -> None:
    """The others are answered, its connection is closed, and the error is told."""
    delivered.broken = {1}
    with pytest.raises(MemoryError):
        delivered.go_round(*range(count))
    assert delivered.numbers == [0, *range(2, count)]
    assert [number for number, sock in enumerate(delivered.socks) if sock.fileno() == -1] == [1]


@contextmanager
def waiting(port: int, requests: list[bytes]) -> Iterator[list[socket.socket]]:
    clients = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in requests]
    try:
        for client, request in zip(clients, requests, strict=True):
            client.sendall(request)
        yield clients
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize("count", [LONG - 10, 2 * LONG])
def test_all_that_is_answered_in_a_round_is_sent_before_the_next(count: int) -> None:
    """The loop hears of a withdrawal in another round: no answer from before it may be sent then."""
    gathered = [0]
    at_ends: list[int] = []
    done: list[int] = []

    def deliver(answer: Answer) -> None:
        gathered[0] -= 1
        done.append(answer.peer[1])
        answer.sock.close()

    sender = Sender(deliver)

    def begin(
        sock: socket.SocketType, peer: object, owner: object, data: bytes | None, *, waited: bool = False
    ) -> bool:
        gathered[0] += 1
        asyncio.get_running_loop().call_soon(lambda: at_ends.append(gathered[0]))
        sender.send(Answer(sock, peer, owner, data or b""))
        return True

    async def scenario(server: socket.socket) -> None:
        readers = Readers(asyncio.get_running_loop(), together=sender)
        intake = Intake(
            [server],
            begin=begin,
            recall=lambda *_, **__: False,
            owners=None,
            room=lambda: 1000,
            readers=readers,
            together=sender,
        )
        intake.begin()
        async with asyncio.timeout(20):
            while len(done) < count:  # noqa: ASYNC110 - it counts rounds of the loop
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        intake.close()
        readers.close()

    with (
        socket.create_server(("127.0.0.1", 0), backlog=1024) as server,
        waiting(server.getsockname()[1], [b"x"] * count),
    ):
        asyncio.run(scenario(server.dup()))
    assert len(at_ends) == count
    assert set(at_ends) == {0}


def test_everybody_gets_the_answer_to_what_he_asked() -> None:
    """Many that wait at once, each for something else: with the token shown, without, by HEAD, at paths that are not."""
    view = FakeView()
    view.live_aws(START)
    with running_endpoint(view, clock=FakeClock()) as server:
        put = b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"
        token = server.send(put).rpartition(b"\r\n\r\n")[2].decode()

        def asked(method: str, path: str, shown: str) -> bytes:
            head = f"{method} {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n"
            return f"{head}X-aws-ec2-metadata-token: {shown}\r\n\r\n".encode()

        kinds = [
            (asked("GET", ROLES, token), 200, b"reader"),
            (asked("HEAD", ROLES, token), 200, b""),
            (asked("GET", f"{ROLES}nobody", token), 404, None),
            (asked("GET", ROLES, "A" * 48), 401, None),
            (asked("GET", f"{ROLES}reader", token), 200, b'"Code" : "Success"'),
        ]
        wanted = [kinds[number % len(kinds)] for number in range(LONG)]
        held, on = Event(), Event()

        def hold() -> None:
            held.set()
            on.wait(20)

        server.loop.call_soon_threadsafe(hold)
        assert held.wait(20)
        with waiting(server.port, [request for request, _, _ in wanted]) as clients:
            on.set()
            answers = [read_all(client) for client in clients]
    for (_, status, body), answer in zip(wanted, answers, strict=True):
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        if body is not None:
            assert body in answer.partition(b"\r\n\r\n")[2], answer
