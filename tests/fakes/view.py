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

from agent import snapshot
from agent.core.model import AwsCredential, Cloud, GoogleToken, IdToken
from agent.core.secret import Secret
from agent.core.view import Absent, Answer, Ended, Facts, Live, Origin
from agent.daemon.passing import Passing
from agent.daemon.requests import Requests
from agent.daemon.servers import Servers
from agent.serve.audit import Ledger
from agent.serve.endpoint import WorkerEndpoint
from agent.serve.link import Link
from agent.serve.waiting import Served
from agent.snapshot import ForAudience, ForScopes, ServeSettings, Snapshot, Stretch

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
    """What is served, as the test says it: each word of it makes a snapshot that the listener gets as bytes.

    A credential is over at its end, as it says; what follows then the test must say before.
    """

    def __init__(self, settings: ServeSettings | None = None) -> None:
        self._version = 1
        self._answers: dict[Cloud, Answer] = {cloud: Absent("nothing here") for cloud in Cloud}
        self._names: dict[Cloud, set[str]] = {cloud: set() for cloud in Cloud}
        self._facts = Facts()
        self._served: Served | None = None
        self.id_tokens: dict[str, IdToken] = {}
        self.scoped: dict[tuple[str, ...], GoogleToken] = {}
        self.scopes: tuple[str, ...] = ()  # from which fewer may be asked for
        self.mints = False
        self.container_tokens: tuple[str, ...] = (CONTAINER_TOKEN,)
        self.expects_bundle = True
        self.refused: str | None = None
        self.settings = settings or ServeSettings(token_key=KEY)

    @property
    def served(self) -> Served:
        """What a listener is given: one for all of them."""
        if self._served is None:
            self._served = Served(self.data())
        return self._served

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
        """Tell what is so now. In the loop's thread, where a listener runs."""
        self._version += 1
        if self._served is not None:
            self._served.take(self.data())

    def _stretches(self, cloud: Cloud) -> tuple[Stretch, ...]:
        answer = self._answers[cloud]
        scopes = self.scopes if cloud is Cloud.GCP else ()
        ended = isinstance(answer, Live) and answer.origin is Origin.FALLBACK
        if not isinstance(answer, Live) or ended:  # EC2 itself hands out what has ended, and the machine's is as that
            return (Stretch(answer, None, scopes),)
        untold = Ended("the test let a credential expire without saying what follows", passing=False)
        return Stretch(answer, answer.credential.expires_at, scopes), Stretch(untold)

    def data(self) -> bytes:
        """The snapshot."""
        never = datetime(9000, 1, 1, tzinfo=UTC)
        return snapshot.encode(
            Snapshot(
                version=self._version,
                settings=self.settings,
                aws=self._stretches(Cloud.AWS),
                gcp=self._stretches(Cloud.GCP),
                aws_names=tuple(sorted(self._names[Cloud.AWS])),
                gcp_names=tuple(sorted(self._names[Cloud.GCP])),
                facts=self._facts,
                mints_id_tokens=self.mints,
                id_tokens=tuple(ForAudience(token, never) for token in self.id_tokens.values()),
                scoped=tuple(ForScopes(scopes, token, never) for scopes, token in self.scoped.items()),
                container_tokens=tuple(Secret(token) for token in self.container_tokens),
                expects_bundle=self.expects_bundle,
                refused=self.refused,
            )
        )


class RealClock:
    """The machine's own clock, for real clients, which look at theirs."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def timestamp(self) -> float:
        return time.time()

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def no_id_tokens(audience: str) -> IdToken | None:
    return None


async def no_scoped(wanted: tuple[str, ...]) -> GoogleToken | None:
    return None


async def linked(
    view: FakeView, clock: Any, services: dict[Cloud, Any], *, demand: Any = no_id_tokens, scoped: Any = no_scoped
) -> tuple[Link, Servers]:
    """Both ends of a real connection between what answers workers and a controller whose clouds are ``services``.

    The listener under test is given what is served by itself, so that a test may change it between two requests.
    """
    servers = Servers(
        view.data,
        version=lambda: view.served.version,
        passing=lambda: Passing(
            services,
            view.settings,
            answer=lambda cloud: view.served.answer(cloud, clock.timestamp()),
            expects_bundle=lambda: view.served.now.expects_bundle,
        ),
        id_token=demand,
        access_token=scoped,
        requests=Requests(),
        clock=time.monotonic,
    )
    link = Link()
    ours, its = socket.socketpair()
    loop = asyncio.get_running_loop()
    servers.link(ours)
    await loop.create_unix_connection(link.protocol, sock=its)
    await link.first()
    return link, servers


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
    scoped: Any = no_scoped,
    wall_ahead: Callable[[], timedelta] = timedelta,
    ledger: Ledger | None = None,
) -> Iterator[RunningEndpoint]:
    """Run a workers' endpoint over a real socket until the block ends. Upstreams are factories, called in the loop."""
    view.settings = settings or view.settings
    ready = threading.Event()
    box: list[RunningEndpoint] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        stop = asyncio.Event()
        accesses: list[Any] = []
        failures: list[Exception] = []
        told = clock or RealClock()
        services = {cloud: make() for cloud, make in ((Cloud.AWS, ec2), (Cloud.GCP, gce)) if make}
        link, servers = await linked(view, told, services, demand=demand, scoped=scoped)
        endpoint = WorkerEndpoint(
            view.served,
            told,
            wall_ahead=wall_ahead,
            demand=link.id_token,
            scoped=link.scoped,
            ec2=link.service(Cloud.AWS) if ec2 else None,
            gce=link.service(Cloud.GCP) if gce else None,
            access=accesses.append,
            broken=lambda _request, error: failures.append(error),
            owners=owners() if owners else None,
            ledger=ledger,
        )
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        server = endpoint.listen([listening])
        running = RunningEndpoint(loop, view, endpoint, listening.getsockname()[1])
        running.accesses, running.failures = accesses, failures
        running.stop = stop  # type: ignore[attr-defined]
        box.append(running)
        ready.set()
        await stop.wait()
        server.close()
        await endpoint.listener.close(0.5)
        servers.close()

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
