"""An answer that is remembered is the one that would have been made: the traps of remembering, each over a real socket."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import re
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from agent.core.model import AwsCredential, Cloud, GoogleToken
from agent.core.view import Ended, Facts, Live, Origin
from agent.serve import remembered
from agent.serve.control import ControlEndpoint, ControlRequest
from agent.serve.handling import Access
from agent.serve.readers import Readers
from agent.serve.stream import Stream
from agent.snapshot import Limits, ServeSettings
from agent.wire.ec2 import TokenKey
from agent.wire.http import Request, Response
from tests.fakes.clock import START, FakeClock
from tests.fakes.view import CONTAINER_TOKEN, KEY, FakeView, RunningEndpoint, running_endpoint

ROLES = "/latest/meta-data/iam/security-credentials/"
TOKEN_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"


class World:
    """An endpoint with both clouds, a clock that stands still, and a memory that can be looked into."""

    def __init__(self, server: RunningEndpoint, clock: FakeClock) -> None:
        self.server = server
        self.clock = clock
        self.view = server.view

    @property
    def memory(self) -> remembered.Memory:
        memory = self.server.endpoint.listener.memory
        assert memory is not None
        return memory

    def known(self) -> int:
        return self.server.run(lambda: len(self.memory))

    def ask(self, data: bytes) -> bytes:
        return self.server.send(data)

    def thrice(self, data: bytes) -> list[bytes]:
        """The first is read, the second remembered, the third answered from memory."""
        known = self.known()
        answers = [self.ask(data) for _ in range(3)]
        assert self.known() == known + 1, "it is not remembered"
        return answers

    def token(self, ttl: int = 21600, nonce: bytes = b"nonce1", key: bytes = KEY) -> str:
        return TokenKey(key).make(self.clock.boottime() + ttl, nonce)

    def pass_time(self, seconds: float) -> None:
        self.server.run(lambda: self.clock.move(seconds))


@contextmanager
def world(**given: Any) -> Iterator[World]:
    clock = FakeClock()
    view = FakeView()
    view.live_aws(START)
    view.live_gcp(START)
    with running_endpoint(view, clock=clock, **given) as server:
        yield World(server, clock)


def ec2(path: str, token: str | None, *more: str, name: str = "X-aws-ec2-metadata-token", method: str = "GET") -> bytes:
    shown = [] if token is None else [f"{name}: {token}"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 169.254.169.254", *shown, *more, "", ""]).encode()


PUT = ec2("/latest/api/token", "21600", name="X-aws-ec2-metadata-token-ttl-seconds", method="PUT")
CONTAINER = f"GET /v1/credentials HTTP/1.1\r\nHost: localhost\r\nAuthorization: {CONTAINER_TOKEN}\r\n\r\n".encode()
GOOGLE = f"GET {TOKEN_PATH} HTTP/1.1\r\nHost: metadata\r\nMetadata-Flavor: Google\r\n\r\n".encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def echo(answer: bytes) -> int:
    (found,) = re.findall(rb"\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: ([0-9]+)\r\n", answer)
    return int(found)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(CONTAINER, id="container"),
        pytest.param(GOOGLE, id="google"),
        pytest.param(GOOGLE.replace(b"GET", b"HEAD"), id="head"),
        pytest.param(ec2(ROLES, TokenKey(KEY).make(FakeClock().boottime() + 21600, b"nonce1")), id="roles"),
        pytest.param(ec2(f"{ROLES}reader", TokenKey(KEY).make(FakeClock().boottime() + 60, b"nonce1")), id="document"),
    ],
)
def test_it_is_the_same_answer_to_the_byte(data: bytes) -> None:
    """What is remembered is what was said, head and body, and each request is counted as one."""
    with world() as it:
        first, second, third = it.thrice(data)
        assert first == second == third
        assert status(first) == 200
        (length,) = map(int, re.findall(rb"\r\nContent-Length: ([0-9]+)\r\n", first))
        assert len(body(first)) == (0 if data.startswith(b"HEAD") else length)
        assert [(one.status, one.size_bytes) for one in it.server.accesses] == [(200, length)] * 3


def test_nobody_is_given_another_s_session_token() -> None:
    """However many ask with the same bytes at once, each token is another, and each is good."""
    with world() as it:
        answers = [it.ask(PUT) for _ in range(20)]
        tokens = {body(answer).decode() for answer in answers}
        assert len(tokens) == 20
        assert {echo(answer) for answer in answers} == {21600}
        for token in tokens:
            assert status(it.ask(ec2(ROLES, token))) == 200


def test_each_token_is_checked_and_told_its_own_time() -> None:
    """A request is the same whatever good token it shows; a bad one is refused, and the time that is left is its own."""
    with world() as it:
        it.thrice(ec2(ROLES, it.token()))
        assert echo(it.ask(ec2(ROLES, it.token(ttl=77, nonce=b"nonce2")))) == 77
        assert it.known() == 1
        forged = it.token(key=b"another key of the same length!!")
        ended = TokenKey(KEY).make(it.clock.boottime() - 121, b"nonce3")
        for bad in (forged, ended, "A" * 48, it.token()[:-1] + "_"):
            assert status(it.ask(ec2(ROLES, bad))) == 401
        for odd in ("", " ", "x"):
            assert status(it.ask(ec2(ROLES, odd))) == 401
        assert status(it.ask(ec2(ROLES, None))) == 401


def test_a_field_without_a_value_is_no_token() -> None:
    """The bytes that are left when a token is cut out of a request are a request too: nobody is served for them."""
    with world() as it:
        it.thrice(ec2(ROLES, it.token()))
        assert status(it.ask(ec2(ROLES, ""))) == 401
        # The token in the second of two fields, where the first decides: cut out, these bytes are those of the reverse.
        good = it.token()
        name = "X-aws-ec2-metadata-token"
        reverse = ec2(ROLES, good, f"{name}: ")
        assert {status(it.ask(reverse)) for _ in range(3)} == {200}
        assert {status(it.ask(ec2(ROLES, "", f"{name}: {good}"))) for _ in range(3)} == {401}


def test_whoever_asks_is_answered_whatever_its_program_is_called() -> None:
    """A plain name makes no other request of it; one that the gate looks at is read each time, and refused as ever."""
    with world() as it:
        named = CONTAINER[:-2] + b"User-Agent: Boto3/1.%d\r\n\r\n"
        assert {status(it.ask(named % number)) for number in range(10)} == {200}
        assert it.known() == 1
        assert [status(it.ask(CONTAINER)) for _ in range(3)] == [200] * 3
        assert it.known() == 2, "a name that is not there is another request"
        for bad in (
            b"credential-agent/1.0",
            b"  credential-agent/1.0",
            b"Mozilla/5.0\r\nAccept-Language: en",
            b"a\r\nUser-Agent: b",
            b"a\tb",
        ):
            data = CONTAINER[:-2] + b"User-Agent: " + bad + b"\r\n\r\n"
            assert {status(it.ask(data)) for _ in range(3)} == {
                508 if b"cred" in bad else 200 if b"\t" in bad else 403 if b"Moz" in bad else 400
            }
        shown = ec2(ROLES, it.token(), "User-Agent: a")
        it.thrice(shown)
        # With the name in the token's place, and the token's hole filled with a name, nobody is served.
        assert status(it.ask(ec2(ROLES, None, "User-Agent: a", "User-Agent: b"))) == 400
        assert status(it.ask(ec2(ROLES, None, "User-Agent: a"))) == 401
        assert status(it.ask(shown.replace(b"User-Agent: a\r\n", b""))) == 200


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(b"A" * 20 + b"\r\nX-Forwarded-For: 1\r\nX: " + b"A" * 3, id="a field in it"),
        pytest.param(b"\xff" * 48, id="no text"),
        pytest.param(b" " * 48, id="space"),
        pytest.param(b"A" * 44 + b"\r\n\r\n", id="an end in it"),
    ],
)
def test_what_stands_where_a_token_stood_is_read_as_what_it_is(shown: bytes) -> None:
    """A request is found by what is around its token: whatever is no good one there is answered as if it were new."""
    with world() as it, world() as plain:
        plain.server.endpoint.listener.memory = None
        good = it.token()
        data = ec2(ROLES, good, "User-Agent: x")
        it.thrice(data)
        bent = data.replace(good.encode(), shown)
        assert len(bent) == len(data)
        assert status(it.ask(bent)) == status(plain.ask(bent)) != 200
        # As long as that, with the token in another place, and with one in the path.
        moved = ec2(ROLES, None, "User-Agent: x", f"X-aws-ec2-metadata-token: {good}")
        path = ec2(f"{ROLES}{good}", "A" * 48)
        for other in (moved, path, data, path, moved):
            assert {status(it.ask(other)) for _ in range(3)} == {status(plain.ask(other))}


@pytest.mark.parametrize("seed", range(6))
def test_bytes_that_are_nearly_those_are_answered_as_if_nothing_were_remembered(seed: int) -> None:
    """A request that was bent by a few bytes is answered the same by an endpoint that remembers and by one that does not."""
    rng = random.Random(seed)
    with world() as it, world() as plain:
        plain.server.endpoint.listener.memory = None
        wholes = [PUT, CONTAINER, GOOGLE, ec2(ROLES, it.token(), "User-Agent: x"), ec2(ROLES, it.token())]
        for data in wholes:
            it.thrice(data)
        for _ in range(60):
            out = bytearray(rng.choice(wholes))
            at, length = rng.randrange(len(out)), rng.randrange(1, 60)
            match rng.randrange(4):
                case 0:
                    out[at] ^= 1 << rng.randrange(8)
                case 1:
                    del out[at : at + length]
                case 2:
                    out[at:at] = out[at : at + length]
                case _:
                    other = rng.choice(wholes)
                    out[at : at + length] = other[at : at + length]
            data = bytes(out)
            if not data.endswith(b"\r\n\r\n"):
                data += b"\r\n\r\n"
            first, second = it.ask(data), plain.ask(data)
            assert first[:13] == second[:13], data
            if not data.startswith(b"PUT"):
                # Both stand at the same moment; only the machine's second may have gone on between them.
                date = re.compile(rb"Date: [^\r]*")
                assert date.sub(b"", first) == date.sub(b"", second), data


def test_it_is_over_after_a_second() -> None:
    """What is told of time is never older than a second: ``expires_in``, the date, and what is left of a token."""
    with world() as it:
        answers = it.thrice(GOOGLE)
        assert {json.loads(body(answer))["expires_in"] for answer in answers} == {3600}
        it.pass_time(1.0)
        assert json.loads(body(it.ask(GOOGLE)))["expires_in"] == 3599
        token = it.token()
        assert [echo(answer) for answer in it.thrice(ec2(ROLES, token))] == [21600] * 3
        it.pass_time(0.999)
        assert echo(it.ask(ec2(ROLES, token))) in {21598, 21599}


@pytest.mark.parametrize("data", [CONTAINER, GOOGLE])
def test_nothing_is_served_past_its_end_because_it_was_remembered(data: bytes) -> None:
    """Within the very second in which a credential ends, its last moment is served and the next one is not."""
    with world() as it:
        end = START + timedelta(seconds=10.5)
        it.server.run(lambda: it.view.live_aws(START, life=end - START))
        it.server.run(lambda: it.view.live_gcp(START, life=end - START))
        it.pass_time(10.2)
        it.thrice(data)
        it.pass_time(0.299999)
        assert status(it.ask(data)) == 200
        it.pass_time(0.000001)
        assert status(it.ask(data)) in {403, 503}


@pytest.mark.parametrize("data", [CONTAINER, GOOGLE])
def test_what_was_withdrawn_is_forgotten_in_that_moment(data: bytes) -> None:
    """With another snapshot nothing is left of what was remembered or rendered, and the next answer says so."""
    with world() as it:
        it.thrice(data)
        over = Ended("withdrawn", passing=False)

        def withdraw() -> int:
            it.view.set(Cloud.AWS, over)
            it.view.set(Cloud.GCP, over)
            return len(it.memory)

        assert it.server.run(withdraw) == 0
        assert status(it.ask(data)) in {403, 503}
        held = [vars(part) for name, part in vars(it.server.endpoint).items() if name in {"_ec2", "_container", "_gce"}]
        assert len(held) == 3
        told = repr([vars(it.memory), *held])
        assert "secret/1" not in told
        assert "ya29.example-1" not in told


def held(thing: object) -> Iterator[object]:
    """What is kept in an object of ours, in answers and in collections: a ``repr`` shows no body."""
    inside = [thing]
    while inside:
        one = inside.pop()
        yield one
        if isinstance(one, dict | list | tuple | Response | AwsCredential | GoogleToken):
            inside += gc.get_referents(one)


def test_nothing_that_was_rendered_or_asked_outlives_what_it_was_made_of() -> None:
    """When something else is served, no document, credential or bearer token of before is kept by any of the parts."""
    with world() as it:
        document = ec2(f"{ROLES}reader", it.token())
        for data in (document, CONTAINER, GOOGLE):
            it.thrice(data)
        parts = [it.memory, *(vars(it.server.endpoint)[name] for name in ("_ec2", "_container", "_gce"))]

        def found() -> set[str]:
            words = {"secret/1": "document", "ya29.example": "google", CONTAINER_TOKEN: "bearer"}
            everything = [one for part in parts for one in held(vars(part))]
            texts = [one if isinstance(one, str) else repr(one) for one in everything if isinstance(one, str | bytes)]
            kept = {what for text in texts for word, what in words.items() if word in text}
            return kept | {type(one).__name__ for one in everything if isinstance(one, AwsCredential | GoogleToken)}

        def withdraw() -> set[str]:
            it.memory.answer(CONTAINER.replace(b"localhost", b"127.0.0.1"))  # asked, and nothing was made of it
            it.view.set(Cloud.AWS, Ended("withdrawn", passing=False))
            it.view.set(Cloud.GCP, Ended("withdrawn", passing=False))
            return found()

        assert it.server.run(found) >= {"document", "google", "bearer"}, "nothing is looked at"
        assert it.server.run(withdraw) == set()


def test_a_token_that_is_no_longer_good_opens_nothing() -> None:
    """When the bearer token is rotated away, who asks with the bytes of a moment ago is refused."""
    with world() as it:
        it.thrice(CONTAINER)

        def rotate() -> None:
            it.view.container_tokens = ("another",)
            it.view.touch()

        it.server.run(rotate)
        assert status(it.ask(CONTAINER)) == 401


def test_a_changed_credential_is_served_at_once() -> None:
    """A renewal within the second is not hidden by what was remembered."""
    with world() as it:
        it.thrice(CONTAINER)
        it.server.run(lambda: it.view.live_aws(START, serial=2))
        assert b"ASIAEXAMPLE000000002" in it.ask(CONTAINER)
        it.server.run(lambda: it.view.set_facts(Facts(region="eu-west-1")))
        assert b"ASIAEXAMPLE000000002" in it.ask(CONTAINER)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(ec2(ROLES, "forged"), id="401"),
        pytest.param(CONTAINER.replace(CONTAINER_TOKEN.encode(), b"wrong"), id="a wrong bearer token"),
        pytest.param(ec2("/latest/nothing", None), id="404"),
        pytest.param(CONTAINER.replace(b"localhost", b"evil.example"), id="a stranger's host"),
        pytest.param(CONTAINER[:-2] + b"Content-Length: 2\r\n\r\n{}", id="a body"),
        pytest.param(GOOGLE + GOOGLE, id="two at once"),
        pytest.param(CONTAINER[:-2] + b"X: " + b"x" * 4096 + b"\r\n\r\n", id="a long request"),
        pytest.param(
            GOOGLE.replace(b"\r\nHost", b"\r\nX-Aws-Ec2-Metadata-Token: " + b"A" * 48 + b"\r\nHost"),
            id="a token where none is looked at",
        ),
    ],
)
def test_only_whole_answers_to_plain_heads_are_remembered(data: bytes) -> None:
    """Refusals, bodies, what has more behind it and what is large are read each time."""
    with world() as it:
        answers = {it.ask(data)[:12] for _ in range(4)}
        assert len(answers) == 1
        assert it.known() == 0


def test_what_asks_for_more_is_told_more() -> None:
    """A request of our own ``wait`` is answered with whose identity it is, each time."""
    with world() as it:
        data = ec2(ROLES, it.token(), "X-Credential-Agent-Origin: 1")
        assert all(b"X-Credential-Agent-Origin: bundle\r\n" in it.ask(data) for _ in range(4))


def test_what_waits_is_not_remembered() -> None:
    """A long poll and what is passed through are asked each time."""
    with world() as it:
        data = GOOGLE.replace(b" HTTP", b"?wait_for_change=true&timeout_sec=1 HTTP")
        sock = socket.create_connection(("127.0.0.1", it.server.port), timeout=10)
        sock.sendall(data)
        it.server.run(lambda: None)
        it.server.run(lambda: it.view.live_gcp(START, serial=2))
        assert b"ya29.example-2" in sock.recv(4096)
        sock.close()
        assert it.known() == 0


def test_the_memory_is_bounded() -> None:
    """However many different requests come, so many and so much of them are remembered, and no more."""
    with world() as it:
        for number in range(40):
            data = CONTAINER[:-2] + f"X: {number}\r\n\r\n".encode() + b""
            assert status(it.ask(data)) == 200
        assert it.known() == 0, "what comes once is remembered"
        memory = it.memory
        rng = random.Random(1)

        def keep(data: bytes, body: bytes = b"y" * 8000) -> None:
            request, access = Request("GET", "/", "", (), False, {}), Access("GET", "/", 200, 0.0, 0, "")
            memory.keep(data, request, Response(200, (), body), b"", access)

        def held(asked: list[bytes]) -> int:
            """What is remembered of the newest: what was before it is forgotten."""
            size = 0
            for data in reversed(asked):
                found = memory.answer(data)
                if found is None:
                    break
                size += len(data) + len(found[0])
            return size

        def flood() -> tuple[int, int]:
            most = size = 0
            asked = list[bytes]()
            for number in range(3 * remembered.MOST_ENTRIES):
                asked.append(f"GET /{number} HTTP/1.1\r\nX: {'x' * rng.choice((1, 3000))}\r\n\r\n".encode())
                keep(asked[-1])
                keep(asked[-1])
                most = max(most, len(memory))
                size = size if number % 16 else max(size, held(asked))
            return most, size

        most, size = it.server.run(flood)
        assert most <= remembered.MOST_ENTRIES
        assert remembered.MOST_BYTES / 2 <= size <= remembered.MOST_BYTES

        def once() -> int:
            memory.forget()
            tracemalloc.start()
            for number in range(30_000):
                keep(b"GET /%d HTTP/1.1\r\n\r\n" % number, b"y")
            kept, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return kept

        assert it.server.run(once) < 1 << 20


@pytest.mark.parametrize(
    ("asked", "answered", "kept"),
    [
        (remembered.MOST_REQUEST_BYTES, remembered.MOST_ANSWER_BYTES, 1),
        (remembered.MOST_REQUEST_BYTES + 1, 1, 0),
        (1000, remembered.MOST_ANSWER_BYTES + 1, 0),
    ],
)
def test_what_is_long_is_not_remembered(asked: int, answered: int, kept: int) -> None:
    """Neither a long request nor an answer that no fresh socket takes at once, however often it comes."""
    with world() as it:
        ends = b"GET / HTTP/1.1\r\nX: ", b"\r\n\r\n"
        data = ends[0] + b"x" * (asked - len(b"".join(ends))) + ends[1]
        request, access = Request("GET", "/", "", (), False, {}), Access("GET", "/", 200, 0.0, 0, "")

        def keep() -> None:
            for _ in range(3):
                it.memory.keep(data, request, Response(200, (), b"y" * answered), b"", access)

        it.server.run(keep)
        assert it.known() == kept


def test_an_answer_that_does_not_fit_is_sent_to_its_end() -> None:
    """Where the socket takes less than the answer at once, the rest follows as there is room; nothing is lost."""
    with world() as it:
        first, *_ = it.thrice(CONTAINER)

        async def served() -> bytes:
            ours, theirs = socket.socketpair()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            listener = it.server.endpoint.listener
            filler = b"f" * (1 << 20)
            sent = ours.send(filler, socket.MSG_DONTWAIT)
            assert listener._recalled(ours, None, None, CONTAINER)
            theirs.setblocking(False)
            got = b""
            loop = asyncio.get_running_loop()
            while piece := await loop.sock_recv(theirs, 4096):
                got += piece
            theirs.close()
            assert listener.connections == 0
            return got[sent:]

        assert asyncio.run_coroutine_threadsafe(served(), it.server.loop).result(10) == first


def test_an_answer_on_the_way_ends_and_is_not_reset() -> None:
    """Where much is owed a request is only looked at in the kernel: it is taken from there, or closing would be a reset."""
    with world() as it:
        first, *_ = it.thrice(CONTAINER)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            theirs = socket.create_connection(listening.getsockname(), timeout=10)
            theirs.sendall(CONTAINER)
            ours, peer = listening.accept()
            assert ours.recv(len(CONTAINER), socket.MSG_PEEK | socket.MSG_WAITALL) == CONTAINER
            recalled = it.server.endpoint.listener._recalled
            assert it.server.run(lambda: recalled(ours, peer, None, CONTAINER, peeked=True))
            assert ours.fileno() == -1
        got = b""
        while piece := theirs.recv(4096):
            got += piece
        theirs.close()
        assert got == first


def test_whoever_wants_to_hear_nothing_hears_nothing() -> None:
    """A refusal stops the reading in the middle of the first bytes; no more is read until somebody wants more."""

    class Refuses(asyncio.Protocol):
        """Takes one piece at a time."""

        def __init__(self) -> None:
            self.heard = b""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.heard += data
            self.transport.pause_reading()  # type: ignore[attr-defined]

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        told = Refuses()
        stream = Stream(ours, None, Readers(asyncio.get_running_loop()), told)
        stream.begin(b"one")
        theirs.sendall(b"two")
        for _ in range(5):
            await asyncio.sleep(0)
        assert told.heard == b"one"
        stream.resume_reading()
        for _ in range(5):
            await asyncio.sleep(0)
        assert told.heard == b"onetwo"
        stream.abort()
        theirs.close()

    asyncio.run(scenario())


def test_a_clock_that_goes_back_ends_it() -> None:
    """What was remembered is of a moment that has not come yet: nothing of it is told."""
    with world() as it:
        it.thrice(GOOGLE)
        it.server.run(lambda: it.clock.set_utc(START - timedelta(seconds=10)))
        assert json.loads(body(it.ask(GOOGLE)))["expires_in"] == 3610


def test_connections_at_the_cap_keep_nobody_from_what_is_remembered() -> None:
    """What is answered on the way takes no place among the connections."""
    with world(settings=ServeSettings(token_key=KEY, limits=Limits(connections=5, head_seconds=60.0))) as it:
        it.thrice(CONTAINER)
        held = [socket.create_connection(("127.0.0.1", it.server.port)) for _ in range(5)]
        assert status(it.ask(CONTAINER)) == 200
        for sock in held:
            sock.close()


def test_the_control_socket_remembers_nothing() -> None:
    """A push that is repeated byte for byte is evaluated again."""

    async def push(request: ControlRequest) -> Response:
        return Response(200)

    assert ControlEndpoint({("PUT", "/v1/bundle"): push}, clock=FakeClock()).listener.memory is None


def test_the_machine_s_own_is_remembered_as_it_is_told() -> None:
    """The early end of the machine's own credential is in what is remembered, and the fallback's end is no other."""
    with world() as it:
        it.server.run(lambda: it.view.live_aws(START, origin=Origin.FALLBACK))
        answers = it.thrice(CONTAINER)
        assert len(set(answers)) == 1
        live = it.server.run(lambda: it.view.served.answer(Cloud.AWS, START.timestamp()))
        assert isinstance(live, Live)
        assert json.loads(body(answers[0]))["Expiration"] < live.credential.expires_at.isoformat()


def unlike(number: int) -> bytes:
    """A request that is answered and that nobody asks again."""
    return CONTAINER.replace(b"\r\n\r\n", b"\r\nX-Number: %d\r\n\r\n" % number)


def looks(it: World, numbers: range) -> int:
    """How many of so many requests are compared with what is remembered: for each of those the time is asked once."""
    asked: list[None] = []
    now = it.clock.timestamp

    def counted() -> float:
        asked.append(None)
        return now()

    def ask() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(it.clock, "timestamp", counted)
            assert [it.memory.answer(unlike(number)) for number in numbers] == [None] * len(numbers)

    it.server.run(ask)
    return len(asked)


def test_where_none_comes_again_few_are_looked_at() -> None:
    """To compare costs something, and where nothing is gained by it, it is done for one in some."""
    with world() as it:
        it.thrice(CONTAINER)
        assert looks(it, range(remembered.IN_VAIN)) == remembered.IN_VAIN
        assert looks(it, range(1000, 1000 + 10 * remembered.SAMPLE)) == 10


def test_once_one_comes_again_all_are_looked_at() -> None:
    """After ever so many in vain, programs that ask alike are soon answered from memory, each of their requests."""
    with world() as it:
        for number in range(2 * remembered.IN_VAIN):
            it.ask(unlike(number))
        answers = {it.ask(CONTAINER) for _ in range(4 * remembered.SAMPLE)}
        assert len(answers) == 1
        assert it.known() == 1
        assert looks(it, range(1000, 1000 + remembered.IN_VAIN)) == remembered.IN_VAIN


@pytest.mark.parametrize("requests", [1, 2, 3, 4, 5, 6, 8])
def test_in_a_sequence_of_any_length_what_comes_again_is_found(requests: int) -> None:
    """No program is passed over each time because of how many of its requests nobody else makes."""
    with world() as it:
        for number in range(2 * remembered.IN_VAIN):
            it.ask(unlike(number))
        for turn in range(3 * remembered.SAMPLE):
            it.ask(CONTAINER)
            for number in range(1, requests):
                it.ask(unlike(1000 + 10 * turn + number))
        assert it.known() == 1


def test_what_is_passed_over_is_given_nothing_of_before() -> None:
    """Once more than a second has passed, what was remembered is told to nobody, whoever is looked at."""
    with world() as it:
        it.thrice(CONTAINER)
        for number in range(2 * remembered.IN_VAIN):
            it.ask(unlike(number))
        it.server.run(lambda: it.view.set(Cloud.AWS, Ended("over", passing=False)))
        assert {status(it.ask(CONTAINER)) for _ in range(2 * remembered.SAMPLE)} <= {404, 503}
