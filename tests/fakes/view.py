"""A view that the test writes on, and a listener in a thread of its own for clients that block."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from agent.core.model import AwsCredential, Cloud, GoogleToken, IdToken
from agent.core.secret import Secret
from agent.core.view import Absent, Answer, Facts, Live, Origin
from agent.serve.endpoint import WorkerEndpoint
from agent.serve.settings import ServeSettings
from agent.serve.waiting import Changes

T = TypeVar("T")

KEY = b"0123456789abcdef0123456789abcdef"
CONTAINER_TOKEN = "Zm9yIHRoZSBjb250YWluZXI"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def aws_credential(now: datetime, *, life: timedelta = timedelta(hours=6), serial: int = 1) -> AwsCredential:
    return AwsCredential(
        access_key_id=f"ASIAEXAMPLE{serial:09d}",
        secret_access_key=Secret(f"secret/{serial}+abcdefghijklmnopqrstuvwxyz"),
        session_token=Secret(f"FwoGZXIvYXdzEXAMPLE{serial}//////////wE="),
        issued_at=now,
        expires_at=now + life,
        account_id="123456789012",
        role_arn="arn:aws:sts::123456789012:assumed-role/reader/laptop",
    )


def google_token(now: datetime, *, life: timedelta = timedelta(hours=1), serial: int = 1) -> GoogleToken:
    return GoogleToken(
        access_token=Secret(f"ya29.example-{serial}"),
        issued_at=now,
        expires_at=now + life,
        email="reader@example-project.iam.gserviceaccount.com",
        scopes=(SCOPE,),
    )


class FakeView:
    """Implements :class:`agent.core.view.View`; what it says is what the test set, except that nothing expired is shown."""

    def __init__(self) -> None:
        self._version = 1
        self._answers: dict[Cloud, Answer] = {cloud: Absent("nothing here") for cloud in Cloud}
        self._names: dict[Cloud, set[str]] = {cloud: set() for cloud in Cloud}
        self._facts = Facts()
        self.id_tokens: dict[str, IdToken] = {}
        self.mints = False
        self.changes = Changes(self)

    def set(self, cloud: Cloud, answer: Answer) -> None:
        self._answers[cloud] = answer
        if isinstance(answer, Live):
            self._names[cloud].add(answer.name)
        self.touch()

    def live_aws(
        self, now: datetime, *, name: str = "reader", origin: Origin = Origin.BUNDLE, **how: Any
    ) -> AwsCredential:
        credential = aws_credential(now, **how)
        self.set(Cloud.AWS, Live(credential, name, origin))
        return credential

    def live_gcp(self, now: datetime, *, origin: Origin = Origin.BUNDLE, **how: Any) -> GoogleToken:
        token = google_token(now, **how)
        self.set(Cloud.GCP, Live(token, token.email or "", origin))
        return token

    def set_facts(self, facts: Facts) -> None:
        self._facts = facts
        self.touch()

    def touch(self) -> None:
        self._version += 1
        self.changes.notify()

    # -- View -------------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        return self._version

    def answer(self, cloud: Cloud, now: datetime) -> Answer:
        answer = self._answers[cloud]
        if isinstance(answer, Live) and answer.credential.expires_at <= now:
            raise AssertionError("the test let a credential expire without saying what follows")
        return answer

    def view_id_token(self, audience: str, now: datetime) -> IdToken | None:
        return self.id_tokens.get(audience)

    def can_mint_id_tokens(self) -> bool:
        return self.mints

    def names(self, cloud: Cloud) -> frozenset[str]:
        return frozenset(self._names[cloud])

    def facts(self) -> Facts:
        return self._facts


class RealClock:
    """The machine's own clock, for real clients, which look at theirs."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def no_id_tokens(audience: str) -> IdToken | None:
    return None


class RunningEndpoint:
    """A running workers' endpoint: ``port``, and ``run`` to do something in its loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, view: FakeView, endpoint: WorkerEndpoint, port: int) -> None:
        self.loop = loop
        self.view = view
        self.endpoint = endpoint
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.accesses: list[Any] = []
        self.failures: list[Exception] = []

    def run(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)

    def send(self, data: bytes, *, half_close: bool = False, timeout: float = 10.0) -> bytes:
        """Send raw bytes on a new connection and read to its end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as sock:
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)


@contextmanager
def running_endpoint(
    view: FakeView,
    *,
    settings: ServeSettings | None = None,
    clock: Any = None,
    demand: Any = no_id_tokens,
    ec2: Any = None,
    gce: Any = None,
    owners: Any = None,
    scoped: Any = None,
) -> Iterator[RunningEndpoint]:
    """Run a workers' endpoint over a real socket until the block ends. Upstreams are factories, called in the loop."""
    settings = settings or ServeSettings(token_key=KEY, container_tokens=lambda: (Secret(CONTAINER_TOKEN),))
    ready = threading.Event()
    box: list[RunningEndpoint] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        stop = asyncio.Event()
        accesses: list[Any] = []
        failures: list[Exception] = []
        endpoint = WorkerEndpoint(
            settings,
            view,
            clock or RealClock(),
            changed=view.changes,
            demand=demand,
            scoped=scoped,
            ec2=ec2() if ec2 else None,
            gce=gce() if gce else None,
            access=accesses.append,
            broken=lambda _request, error: failures.append(error),
            owners=owners() if owners else None,
        )
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        [server] = await endpoint.listen([listening])
        running = RunningEndpoint(loop, view, endpoint, listening.getsockname()[1])
        running.accesses, running.failures = accesses, failures
        running.stop = stop  # type: ignore[attr-defined]
        box.append(running)
        ready.set()
        await stop.wait()
        server.close()
        await endpoint.listener.close(0.5)

    def main() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            ready.set()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    assert ready.wait(10)
    assert box, "the listener did not start"
    try:
        yield box[0]
    finally:
        loop.call_soon_threadsafe(box[0].stop.set)  # type: ignore[attr-defined]
        thread.join(10)
    assert not box[0].failures, box[0].failures
