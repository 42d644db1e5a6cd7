"""Limits, deadlines and the life of connections, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import msgspec
import pytest

from agent.core.errors import FormatError
from agent.core.model import Cloud
from agent.core.view import Ended, Live, Origin, Pending
from agent.serve.control import ControlEndpoint, ControlRequest, problem
from agent.serve.handling import DROP, Outcome
from agent.serve.listener import Listener
from agent.snapshot import Limits, ServeSettings
from agent.wire.ec2 import TokenKey
from agent.wire.http import JSON, Request, Response
from tests.fakes.clock import START, FakeClock
from tests.fakes.view import CONTAINER_TOKEN, KEY, FakeView, RunningEndpoint, google_token, read_all, running_endpoint

T = TypeVar("T")
GOOD = TokenKey(KEY).make(FakeClock().boottime() + 21600, b"nonce1")
ROOT = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
ROLES = (
    b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: localhost\r\n"
    b"X-aws-ec2-metadata-token: " + GOOD.encode() + b"\r\n\r\n"
)
CONTAINER = (
    b"GET /v1/credentials HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + CONTAINER_TOKEN.encode() + b"\r\n\r\n"
)
ACCOUNT = b"/computeMetadata/v1/instance/service-accounts/default/"


def gce(path: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nMetadata-Flavor: Google\r\n\r\n"


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


@contextlib.contextmanager
def endpoint(view: FakeView | None = None, limits: Limits | None = None, **settings: Any) -> Iterator[RunningEndpoint]:
    if view is None:
        view = FakeView()
        view.live_gcp(START)
    given = ServeSettings(token_key=KEY, limits=limits or Limits(), **settings)
    with running_endpoint(view, settings=given, clock=FakeClock()) as server:
        yield server


def _held(server: RunningEndpoint, count: int) -> bool:
    return server.endpoint.listener.held == count


class TestDeadlines:
    def test_a_request_that_is_not_whole_in_time_is_408(self) -> None:
        """A request that is not whole at the head deadline is 408, and the connection ends."""
        with endpoint(limits=Limits(head_seconds=0.2)) as server:
            assert status_of(server.send(ROOT[:-2])) == 408
            until(lambda: server.endpoint.listener.connections == 0)

    def test_a_byte_now_and_then_moves_no_deadline(self) -> None:
        """A byte now and then does not move the deadline: it ends the connection in the middle of them."""
        bytes_of_a_head = ROOT[:-2] + b"X: " + b"y" * 400
        with (
            endpoint(limits=Limits(head_seconds=0.3)) as server,
            socket.create_connection(("127.0.0.1", server.port)) as sock,
        ):
            sent = 0
            with contextlib.suppress(OSError):
                while sent < len(bytes_of_a_head) and not server.accesses:
                    sock.sendall(bytes_of_a_head[sent : sent + 1])
                    time.sleep(0.01)
                    sent += 1
            assert status_of(read_all(sock)) in {0, 408}
            assert sent < len(bytes_of_a_head)

    def test_who_says_nothing_is_closed_without_a_word(self) -> None:
        """A connection that says nothing is closed without a word."""
        with endpoint(limits=Limits(head_seconds=0.2)) as server:
            assert server.send(b"") == b""
            until(lambda: server.endpoint.listener.connections == 0)

    def test_body_that_does_not_come(self) -> None:
        """The deadline is for the body too."""
        with endpoint(limits=Limits(head_seconds=0.2)) as server:
            assert status_of(server.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nab")) == 408

    def test_who_has_said_all_may_end_its_side(self) -> None:
        """A client that ends its side before the request is whole is done; after it, it gets its answer."""
        with endpoint() as server:
            assert server.send(ROOT[:-2], half_close=True) == b""
            assert status_of(server.send(ROOT, half_close=True)) == 200
            until(lambda: server.endpoint.listener.connections == 0)

    def test_who_does_not_read_holds_no_connection(self) -> None:
        """A client that does not read its answer holds its connection no longer than allowed."""
        view = FakeView()
        token = google_token(START)
        scopes = tuple(f"https://www.googleapis.com/auth/{i:060}" for i in range(70_000))
        view.set(Cloud.GCP, Live(msgspec.structs.replace(token, scopes=scopes), "a@b", Origin.BUNDLE))
        with endpoint(view, limits=Limits(unread_seconds=0.3)) as server, socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(gce(ACCOUNT + b"scopes"))
            until(lambda: server.endpoint.listener.connections == 1)
            until(lambda: server.endpoint.listener.connections == 0)


class TestConnections:
    def test_idle_ones_lock_nobody_out(self) -> None:
        """With all connections taken by idle clients, a new one is answered at once and the oldest idle one goes."""
        with endpoint(limits=Limits(connections=50, spared_seconds=0.05, head_seconds=60.0)) as server:
            idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
            until(lambda: server.endpoint.listener.connections == 50)
            time.sleep(0.06)
            assert all(status_of(server.send(ROOT)) == 200 for _ in range(20))
            assert server.endpoint.listener.connections <= 50
            gone = 0
            for sock in idle:
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    try:
                        gone += sock.recv(1) == b""
                    except ConnectionResetError:
                        gone += 1
                sock.close()
            assert gone <= 20

    def test_even_young_ones_make_room(self) -> None:
        """However young they are, the oldest that has said nothing makes room for the next; the others are spared."""
        with endpoint(limits=Limits(connections=20, spared_seconds=60.0)) as server:
            early = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
            until(lambda: server.endpoint.listener.connections == 20)
            with socket.create_connection(("127.0.0.1", server.port)) as late, early.pop(0) as oldest:
                assert read_all(oldest) == b""
                late.sendall(ROOT)
                assert status_of(read_all(late)) == 200
            for sock in early:
                sock.sendall(ROOT)
                assert status_of(read_all(sock)) == 200
                sock.close()

    def test_who_is_answered_at_once_takes_nobody_s_place(self) -> None:
        """A request that came whole needs no place, so none of those that wait has to go for it."""
        with endpoint(limits=Limits(connections=20, spared_seconds=0.0, head_seconds=60.0)) as server:
            early = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
            until(lambda: server.endpoint.listener.connections == 20)

            def whole() -> socket.socket:
                """In the loop's own thread: when it accepts, all has come."""
                sock = socket.create_connection(("127.0.0.1", server.port))
                sock.sendall(ROOT)
                return sock

            with server.run(whole) as sock:
                assert status_of(read_all(sock)) == 200
            for sock in early:
                sock.sendall(ROOT)
                assert status_of(read_all(sock)) == 200
                sock.close()

    def test_thousands_of_idle_connections(self) -> None:
        """Two thousand idle connections cost one request next to nothing of the processor."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < 5000:
            pytest.skip("needs 5000 file descriptors")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
        try:
            with endpoint(limits=Limits(head_seconds=60.0)) as server:
                idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2000)]
                until(lambda: server.endpoint.listener.connections == 2000)
                began = time.process_time()
                for _ in range(20):
                    assert status_of(server.send(ROOT)) == 200
                assert time.process_time() - began < 1
                for sock in idle:
                    sock.close()
                until(lambda: server.endpoint.listener.connections == 0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_pipelined_requests_get_one_answer(self) -> None:
        """A thousand pipelined requests are one answer and an end, not a thousand."""
        with endpoint() as server:
            assert server.send(ROOT * 1000).count(b"HTTP/1.1 ") == 1

    def test_refusal_reaches_a_client_that_is_still_sending(self) -> None:
        """A body that is too large is refused with an answer, not with a reset that hides it."""
        head = b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n"
        with endpoint() as server:
            assert status_of(server.send(head + b"x" * 900_000)) == 413

    def test_who_waits_for_leave_to_send_gets_it(self) -> None:
        """A client that waits for leave to send its body gets it, and then its answer."""
        with (
            endpoint() as server,
            socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock,
        ):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b"ab")
            assert status_of(read_all(sock)) == 200

    def test_byte_by_byte_is_as_good_as_at_once(self) -> None:
        """A request that comes byte by byte is answered as one that comes at once."""
        with (
            endpoint() as server,
            socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock,
        ):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in ROOT:
                sock.sendall(bytes([byte]))
            assert status_of(read_all(sock)) == 200


def held_seconds(server: RunningEndpoint, request: bytes, status: int) -> float:
    """For how long a request was held that ended like this."""
    began = time.perf_counter()
    assert status_of(server.send(request)) == status
    return time.perf_counter() - began


class TestHolding:
    def test_role_list_is_answered_when_the_credential_comes(self) -> None:
        """While pending the role list is held, and answered as soon as there is a credential."""
        view = FakeView()
        view.set(Cloud.AWS, Pending("waiting"))
        with endpoint(view, ec2_hold_seconds=5.0, container_hold_seconds=5.0) as server:
            answers: list[bytes] = []
            threads = [
                threading.Thread(target=lambda request=request: answers.append(server.send(request)))
                for request in (ROLES, CONTAINER)
            ]
            for thread in threads:
                thread.start()
            until(lambda: server.endpoint.listener.held == 2)
            server.run(lambda: view.live_aws(START))
            for thread in threads:
                thread.join(30)
            assert [status_of(answer) for answer in answers] == [200, 200]
            assert server.endpoint.listener.held == 0

    def test_nothing_on_ec2_paths_takes_longer_than_400_ms(self) -> None:
        """With the default settings a pending role list, document and container answer end within 400 ms."""
        view = FakeView()
        view.set(Cloud.AWS, Pending("waiting"))
        with endpoint(view) as server:
            document = ROLES.replace(b"security-credentials/", b"security-credentials/reader")
            for request, status in ((ROLES, 503), (document, 0), (CONTAINER, 503)):
                assert held_seconds(server, request, status) > 0.3
                # What a busy machine adds is not ours: one of the answers comes in time.
                assert any(held_seconds(server, request, status) < 0.45 for _ in range(20))

    def test_google_token_is_held_too(self) -> None:
        """While pending the Google token is held, and answered as soon as there is one."""
        view = FakeView()
        view.set(Cloud.GCP, Pending("waiting"))
        with endpoint(view, gce_hold_seconds=5.0) as server:
            answers: list[bytes] = []
            thread = threading.Thread(target=lambda: answers.append(server.send(gce(ACCOUNT + b"token"))))
            thread.start()
            until(lambda: server.endpoint.listener.held == 1)
            server.run(lambda: view.live_gcp(START))
            thread.join(30)
            assert b"ya29.example-1" in answers[0]

    def test_client_that_leaves_is_forgotten(self) -> None:
        """A long poll whose client has left holds nothing."""
        with endpoint(limits=Limits(half_closed_seconds=0.1)) as server:
            sock = socket.create_connection(("127.0.0.1", server.port))
            sock.sendall(gce(ACCOUNT + b"email?wait_for_change=true"))
            until(lambda: server.endpoint.listener.held == 1)
            sock.close()
            # Both, of another thread: that is between one and the other for a moment.
            until(lambda: (server.endpoint.listener.held, server.endpoint.listener.connections) == (0, 0))

    def test_client_that_only_reads_gets_its_answer(self) -> None:
        """A client that ends its side after a request that is held still gets the answer."""
        view = FakeView()
        view.set(Cloud.AWS, Pending("waiting"))
        with endpoint(view, ec2_hold_seconds=0.05) as server:
            assert status_of(server.send(ROLES, half_close=True)) == 503

    def test_long_polls_are_bounded(self) -> None:
        """One more long poll than allowed ends the oldest; no number of them keeps another client out."""
        with endpoint(limits=Limits(held=5)) as server:
            polls = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(6)]
            for number, sock in enumerate(polls):
                sock.sendall(gce(ACCOUNT + b"email?wait_for_change=true"))
                until(partial(_held, server, min(number + 1, 5)))
            assert read_all(polls[0]) == b""
            assert status_of(server.send(ROOT)) == 200
            for sock in polls:
                sock.close()

    def test_shutdown_lets_what_is_under_way_end(self) -> None:
        """At the end a held request still gets its answer, and one that was accepted and not yet sent too."""
        view = FakeView()
        view.set(Cloud.AWS, Pending("waiting"))
        with endpoint(view, ec2_hold_seconds=0.2) as server:
            answers: list[bytes] = []
            late = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            thread = threading.Thread(target=lambda: answers.append(server.send(ROLES)))
            thread.start()
            until(lambda: server.endpoint.listener.held == 1 and server.endpoint.listener.connections == 2)
            closing = asyncio.run_coroutine_threadsafe(server.endpoint.listener.close(5.0), server.loop)
            late.sendall(ROOT)
            assert status_of(read_all(late)) in {200, 401}
            thread.join(30)
            closing.result(5)
            assert status_of(answers[0]) == 503
            late.close()


class TestWaitForChange:
    def poll(self, server: RunningEndpoint, path: bytes) -> tuple[threading.Thread, list[bytes]]:
        answers: list[bytes] = []
        thread = threading.Thread(target=lambda: answers.append(server.send(gce(path))))
        thread.start()
        until(lambda: server.endpoint.listener.held == 1)
        return thread, answers

    def test_token(self) -> None:
        """A poll of the token ends with the next token, not with the passing of its life."""
        with endpoint() as server:
            thread, answers = self.poll(server, ACCOUNT + b"token?wait_for_change=true")
            server.run(server.view.touch)  # something changed, but not this
            assert server.endpoint.listener.held == 1
            server.run(lambda: server.view.live_gcp(START, serial=2))
            thread.join(30)
            assert b"ya29.example-2" in answers[0]

    def test_a_poll_waits_for_another_etag_than_its_own(self) -> None:
        """With the ETag of what is, a poll waits; with any other it is answered at once."""
        with endpoint() as server:
            first = server.send(gce(ACCOUNT + b"email"))
            tag = next(line[6:] for line in first.split(b"\r\n") if line.startswith(b"ETag: "))
            assert status_of(server.send(gce(ACCOUNT + b"email?wait_for_change=true&last_etag=NONE"))) == 200
            thread, answers = self.poll(server, ACCOUNT + b"email?wait_for_change=true&last_etag=" + tag)
            token = google_token(START)
            server.run(lambda: server.view.set(Cloud.GCP, Live(token, "other@example.com", Origin.BUNDLE)))
            thread.join(30)
            assert answers[0].endswith(b"\r\n\r\nother@example.com")

    def test_timeout(self) -> None:
        """At ``timeout_sec`` a poll is answered with what there is and the ETag that it had."""
        with endpoint() as server:
            plain = server.send(gce(ACCOUNT + b"email"))
            began = time.monotonic()
            assert server.send(gce(ACCOUNT + b"email?wait_for_change=true&timeout_sec=1")) == plain
            assert time.monotonic() - began > 0.9

    def test_end_of_the_identity(self) -> None:
        """A poll hears of the end as well."""
        with endpoint() as server:
            thread, answers = self.poll(server, ACCOUNT + b"token?wait_for_change=true")
            server.run(lambda: server.view.set(Cloud.GCP, Ended("withdrawn", passing=False)))
            thread.join(30)
            assert status_of(answers[0]) == 403


class TestReports:
    def test_access(self) -> None:
        """Each request is reported once, with its status and without query or header values."""
        with endpoint() as server:
            server.send(ROOT.replace(b"GET /", b"GET /computeMetadata/v1/?secret=x"))
            server.send(ROOT)
            server.send(b"nonsense\r\n\r\n")
            until(lambda: len(server.accesses) == 3)
            first, second, third = server.accesses
            assert (first.method, first.path, first.status) == ("GET", "/computeMetadata/v1/", 403)
            assert first.peer.startswith("127.0.0.1:")
            assert (second.status, second.peer, second.size_bytes) == (200, None, len(b"computeMetadata/\n"))
            assert (third.status, third.path) == (400, "")
            assert "secret" not in repr(server.accesses)

    def test_request_does_not_tell(self) -> None:
        """The ``repr`` of a request has neither its headers nor its body."""
        request = Request("GET", "/", "", (), False, {"Authorization": "s3cret"}, body=b"s3cret")
        assert "s3cret" not in repr(request)
        assert "s3cret" not in repr(Response(200, (), b"s3cret"))
        assert "s3cret" not in repr(ServeSettings(token_key=b"s3cret"))


def serve(make: Callable[[asyncio.AbstractEventLoop], Awaitable[T]]) -> T:
    async def main() -> T:
        return await make(asyncio.get_running_loop())

    return asyncio.run(main())


async def ask(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return answer


class TestBorder:
    @pytest.mark.parametrize("later", [False, True])
    def test_exception_of_ours(self, later: bool) -> None:
        """An exception in a handler ends that request alone, and the border hears of it."""
        heard: list[Exception] = []

        async def fail() -> Outcome:
            raise KeyError("x")

        def handler(request: Request, _peer: object) -> Any:
            if request.segments == ("well",):
                return Response(200)
            if later:
                return fail
            raise KeyError("x")

        def broken(_request: Request, error: Exception) -> Outcome:
            heard.append(error)
            return DROP

        async def scenario(loop: asyncio.AbstractEventLoop) -> list[bytes]:
            listener = Listener(handler, broken=broken, clock=FakeClock())
            server = await loop.create_server(listener.protocol, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            answers = [await ask(port, ROOT), await ask(port, ROOT.replace(b"/", b"/well", 1))]
            server.close()
            await listener.close(1.0)
            return answers

        failed, fine = serve(scenario)
        assert failed == b""
        assert status_of(fine) == 200
        assert [type(error) for error in heard] == [KeyError]


class TestControl:
    def test_routes_and_peer(self, tmp_path: Any) -> None:
        """A route gets the body and who sent it; other methods and paths are told what there is."""

        async def status(request: ControlRequest) -> Response:
            return Response(200, (JSON,), f"{request.uid} {request.pid}".encode())

        async def push(request: ControlRequest) -> Response:
            if request.body == b"bad":
                raise FormatError("not a bundle")
            return problem(202, str(len(request.body)))

        async def crash(_request: ControlRequest) -> Response:
            raise KeyError("x")

        async def scenario(loop: asyncio.AbstractEventLoop) -> dict[str, bytes]:
            heard: list[Exception] = []
            control = ControlEndpoint(
                {("GET", "/status"): status, ("POST", "/push"): push, ("GET", "/crash"): crash},
                clock=FakeClock(),
                broken=lambda _request, error: heard.append(error),
            )
            path = str(tmp_path / "s")
            server = await loop.create_unix_server(control.listener.protocol, path)

            async def call(method: str, target: str, body: bytes = b"") -> bytes:
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(
                    f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
                )
                answer = await reader.read()
                writer.close()
                return answer

            answers = {
                "status": await call("GET", "/status"),
                "head": await call("HEAD", "/status"),
                "push": await call("POST", "/push", b"x" * 262144),
                "bad": await call("POST", "/push", b"bad"),
                "large": await call("POST", "/push", b"x" * 262145),
                "method": await call("PUT", "/push"),
                "path": await call("GET", "/nothing"),
                "crash": await call("GET", "/crash"),
            }
            assert [type(error) for error in heard] == [KeyError]
            server.close()
            await control.listener.close(1.0)
            return answers

        answers = serve(scenario)
        assert {name: status_of(answer) for name, answer in answers.items()} == {
            "status": 200,
            "head": 200,
            "push": 202,
            "bad": 400,
            "large": 413,
            "method": 405,
            "path": 404,
            "crash": 500,
        }
        assert answers["status"].endswith(f"\r\n\r\n{os.getuid()} {os.getpid()}".encode())
        assert answers["bad"].endswith(b'{"error":"not a bundle"}')
        assert b"Allow: POST\r\n" in answers["method"]
        assert b"KeyError" not in answers["crash"]


def test_credentials_are_rendered_anew_when_they_change() -> None:
    """After a renewal the next answer has the new credential, under the same role name."""
    view = FakeView()
    view.live_aws(START)
    document = ROLES.replace(b"security-credentials/", b"security-credentials/reader")
    with endpoint(view) as server:
        for serial in (1, 2, 3):
            server.run(partial(view.live_aws, START, serial=serial, life=timedelta(hours=serial)))
            assert f"ASIAEXAMPLE{serial:09d}".encode() in server.send(document)
            assert f"ASIAEXAMPLE{serial:09d}".encode() in server.send(CONTAINER)
