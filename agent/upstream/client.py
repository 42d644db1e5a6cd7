"""HTTP out: one request, one answer, every limit explicit.

What is *not* done here: retries (the controller's schedule), meaning of statuses (the caller), caching.

Error texts name the scheme, host and port of a URL and never more: the query of a pre-signed URL is a credential, and
so may be the path of a broker's.
"""

from __future__ import annotations

import asyncio
import enum
import importlib
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy

from agent import __version__
from agent.core.errors import UpstreamError
from agent.core.timekeeping import Witness
from agent.upstream.authorities import Authorities, first_look_at_system
from agent.upstream.dates import date_of, witness_of
from agent.upstream.failures import AddressRefusedError, as_upstream_error
from agent.upstream.guard import UpstreamRefused, may_reach, parsed, refuse_literal
from agent.upstream.pause import asked_pause
from agent.wire.names import USER_AGENT_PREFIX

if TYPE_CHECKING:
    import aiohttp

    from agent.upstream.names import Resolver

#: A response head is small: metadata services and object stores stay far below 16 KiB a line.
_MAX_HEAD_LINE_BYTES = 16384
_SKIP_AUTO_HEADERS = ("User-Agent", "Content-Type", "Accept", "Accept-Encoding")


class NotHere(UpstreamError):
    """Something answered, but it is not the metadata service asked for; or the service is switched off."""

    def __init__(self, message: str, *, server_time: datetime | None = None) -> None:
        super().__init__(message, code="not-here", server_time=server_time)


class SwitchedOff(NotHere):
    """The metadata service itself said that it is switched off for this machine."""


class OtherCloud(NotHere):
    """The metadata service of another cloud answered there: this machine is not in the one asked for."""


class Reach(enum.Enum):
    """The origin of a URL, and hence the addresses it may lead to."""

    CONFIGURED = "configured"  # the operator's file: any address
    PUBLIC = "public"  # out of a bundle: the address connected to must be public, unless configured otherwise
    LINK = "link"  # the metadata service: any address, and never through a proxy


class UpstreamSettings(msgspec.Struct, frozen=True):
    """Limits of a client. The defaults suit a cloud's own endpoints.

    Attributes:
        read_timeout_seconds: the longest silence between two pieces of an answer.
        total_timeout_seconds: from the first look-up of the name to the last byte, so that a server that drips a byte
            at a time ends too.
        max_body_bytes: the largest answer accepted; nothing we ask for comes near it.
        ca_file: certificate authorities (PEM) trusted *beside* the system's.
        proxy: an explicit HTTP proxy; the environment is never consulted.
        allow_private_addresses: let URLs that came out of a bundle lead to private and loopback addresses (a broker
            inside the VPC). Link-local addresses and the metadata services stay refused.
        connections: open at once, in all. Requests of workers and the agent's own must not share them: long polls
            of one worker once took every one, and the machine's own token ended for everybody.
    """

    connect_timeout_seconds: float = 5.0
    read_timeout_seconds: float = 10.0
    total_timeout_seconds: float = 30.0
    max_body_bytes: int = 1 << 20
    ca_file: str | None = None
    proxy: str | None = None
    allow_private_addresses: bool = False
    connections: int = 128


@dataclass(frozen=True, slots=True)
class UpstreamResponse:
    """A whole answer.

    Attributes:
        headers: names compare without regard to case.
        body: as sent, never decompressed: a small answer cannot become a large one.
        date: when the answer was given, by the server's own word (:func:`agent.upstream.dates.date_of`), aware UTC;
            ``None`` when it does not say so, or not credibly.
    """

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    date: datetime | None = None

    @property
    def pause_seconds(self) -> float:
        """For how long it asks not to be asked again (:func:`agent.upstream.pause.asked_pause`)."""
        return asked_pause(self.headers, self.date)

    def __repr__(self) -> str:
        # Bodies and headers of token endpoints are secrets.
        return f"<UpstreamResponse {self.status}, {len(self.body)} bytes>"


class UpstreamStream:
    """An answer whose head has arrived. Iterate it for the body; leaving the context closes it."""

    def __init__(self, response: aiohttp.ClientResponse, session: _Session, origin: str, max_bytes: int) -> None:
        self.status = response.status
        self.headers = response.headers
        self.date = date_of(response.headers)
        self._response = response
        self._session = session
        self._origin = origin
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        import aiohttp  # noqa: PLC0415 - loaded by now

        length = self._response.content_length
        if length is not None and length > self._max_bytes:
            raise self._too_large()
        seen = 0
        chunks = self._response.content.iter_any()
        while True:
            try:
                async with self._session.waiting():
                    chunk = await anext(chunks, b"")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise as_upstream_error(error, self._origin) from None
            if not chunk:
                return
            seen += len(chunk)
            if seen > self._max_bytes:
                raise self._too_large()
            yield chunk

    def _too_large(self) -> UpstreamError:
        return UpstreamError(
            f"{self._origin} answered with more than {self._max_bytes} bytes", code="too-large", server_time=self.date
        )


class _Session:
    """A session of the HTTP library, how many requests use it at the moment, and what they wait for."""

    __slots__ = ("client", "users", "waits")

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self.client = client
        self.users = 0
        self.waits: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Wait for the server inside; :meth:`Upstream.reconnect` may end it with ``TimeoutError``."""
        async with asyncio.timeout(None) as wait:
            self.waits.add(wait)
            try:
                yield
            finally:
                self.waits.discard(wait)


class Upstream:
    """The client. Made without I/O; connections belong to the event loop that first uses it.

    Args:
        settings: limits, authorities and proxy; ``None``: the usual ones.
        hear: called with the ``Date`` of servers that count as witnesses of the time, and of no others: see
            :func:`agent.upstream.dates.witness_of`. Called as soon as the head of the answer is here, with the seconds
            since it was asked for.
        lookups: makes the threads in which names are looked up: some for the operator's hosts, others for those that
            bundles name. ``None``: the loop's own, which everybody shares.

    Resource handling: idle connections are kept for 15 s; :meth:`close` closes all.
    Error handling: every method raises :class:`UpstreamError` and nothing else; no traceback of the HTTP library is
    chained, because its texts may hold URLs.
    """

    def __init__(
        self,
        settings: UpstreamSettings | None = None,
        *,
        hear: Callable[[Witness, datetime, float], object] | None = None,
        lookups: Callable[[], Executor] | None = None,
    ) -> None:
        self._settings = settings or UpstreamSettings()
        self._hear = hear
        self._lookups = {} if lookups is None else {guarded: lookups() for guarded in (False, True)}
        # All mutable state: one session that may connect anywhere, one that checks each address first, former
        # sessions that still have an answer under way, and the authorities.
        self._sessions: dict[bool, _Session] = {}
        self._former: list[_Session] = []
        self._authorities = Authorities(self._settings.ca_file)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        timeout_seconds: float | None = None,
        max_bytes: int | None = None,
        reach: Reach = Reach.CONFIGURED,
    ) -> UpstreamResponse:
        """Send one request and read the whole answer.

        Args:
            method: the HTTP method.
            headers: ``User-Agent`` and ``Accept-Encoding: identity`` are added when absent.
            body: sent with its ``Content-Length``.
            url: sent as it is, byte for byte; redirects are answers, never followed.
            timeout_seconds: replaces both the read and the total limit (long polls need more, metadata less).
            max_bytes: the largest body accepted.
            reach: who chose the URL.

        Raises:
            UpstreamRefused: the URL is not one that we may ask, or it leads to an address that is refused.
            UpstreamError: anything else that is not an answer.
        """
        async with self.open(
            method,
            url,
            headers=headers,
            body=body,
            timeout_seconds=timeout_seconds,
            max_bytes=max_bytes,
            reach=reach,
        ) as stream:
            pieces = [chunk async for chunk in stream]
        return UpstreamResponse(stream.status, stream.headers, b"".join(pieces), stream.date)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        timeout_seconds: float | None = None,
        max_bytes: int | None = None,
        reach: Reach = Reach.CONFIGURED,
    ) -> AsyncIterator[UpstreamStream]:
        """Like :meth:`request`, but hand over the answer while its body is still to come."""
        settings = self._settings
        target = parsed(url)
        origin = str(target.origin())
        proxy = settings.proxy if reach is not Reach.LINK else None
        guarded = reach is Reach.PUBLIC
        if guarded and proxy is not None:
            # The proxy resolves the name and decides; only what is written as an address can be checked here.
            refuse_literal(target, allow_private=settings.allow_private_addresses)
            guarded = False
        encrypted = "https" in (target.scheme, (proxy or "").partition(":")[0])
        try:
            aiohttp = await self._library()
            if encrypted and await self._authorities.changed():
                self._retire()
            session = self._session(guarded=guarded)
        except OSError as error:  # no thread, or no descriptor
            raise as_upstream_error(error, origin) from None
        timeout = aiohttp.ClientTimeout(
            total=timeout_seconds or settings.total_timeout_seconds,
            sock_connect=min(settings.connect_timeout_seconds, timeout_seconds or settings.connect_timeout_seconds),
            sock_read=timeout_seconds or settings.read_timeout_seconds,
        )
        outgoing = _outgoing(headers)
        session.users += 1
        asked_at = time.clock_gettime(time.CLOCK_BOOTTIME)  # a suspend on the way counts
        try:
            async with session.waiting():
                response = await session.client.request(
                    method,
                    target,
                    headers=outgoing,
                    skip_auto_headers=_SKIP_AUTO_HEADERS,
                    data=body,
                    proxy=proxy,
                    timeout=timeout,
                    allow_redirects=False,
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RuntimeError) as error:
            # RuntimeError: uvloop raises it from connect where the standard loop raises OSError.
            await self._left(session)
            raise as_upstream_error(error, origin) from None
        except BaseException:
            await self._left(session)
            raise
        try:
            stream = UpstreamStream(
                response, session, origin, settings.max_body_bytes if max_bytes is None else max_bytes
            )
            witness = None
            if self._hear is not None and "Age" not in response.headers:  # a cache is no witness
                witness = witness_of(origin.lower(), link=reach is Reach.LINK, chosen=reach is not Reach.PUBLIC)
            if self._hear is not None and witness is not None and stream.date is not None:
                self._hear(witness, stream.date, time.clock_gettime(time.CLOCK_BOOTTIME) - asked_at)
            yield stream
        finally:
            # A connection whose answer was not read to the end is closed, not returned to the pool.
            response.close()
            await self._left(session)

    async def close(self) -> None:
        """Close every connection. The object may be used again afterwards."""
        sessions = [*self._sessions.values(), *self._former]
        self._sessions, self._former = {}, []
        for session in sessions:
            await session.client.close()

    def reconnect(self, *, give_up: bool = False) -> None:
        """Let no further request use an existing connection: idle ones may be dead since a suspend or a pause.

        Args:
            give_up: end what is under way too: whoever asked gets an :class:`UpstreamError` at once.
        """
        self._retire()
        if give_up:
            now = asyncio.get_running_loop().time()
            for session in self._former:
                for wait in session.waits:
                    wait.reschedule(now)

    def _retire(self) -> None:
        """Let no new request use the present sessions: they may trust authorities that were replaced."""
        self._former += self._sessions.values()
        self._sessions = {}

    async def _left(self, session: _Session) -> None:
        session.users -= 1
        for former in [one for one in self._former if not one.users]:
            self._former.remove(former)
            await former.client.close()

    @staticmethod
    def load() -> None:
        """Load the HTTP library now, and not within the first request: 13 MB and a quarter of a second.

        For callers that will surely ask. A worker that asks nobody (a bundle from a file) never loads it.
        """
        first_look_at_system()
        importlib.import_module("aiohttp")

    async def _library(self) -> ModuleType:
        if "aiohttp" not in sys.modules:
            await asyncio.to_thread(self.load)
        return importlib.import_module("aiohttp")

    def _session(self, *, guarded: bool) -> _Session:
        import aiohttp  # noqa: PLC0415 - loaded by now

        session = self._sessions.get(guarded)
        if session is None:
            connector = aiohttp.TCPConnector(
                limit=self._settings.connections,
                ssl=self._ssl_context(),
                socket_factory=self._guarded_socket if guarded else None,
                resolver=self._resolver(guarded=guarded),
            )
            client = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                max_line_size=_MAX_HEAD_LINE_BYTES,
                max_field_size=_MAX_HEAD_LINE_BYTES,
            )
            session = self._sessions[guarded] = _Session(client)
        return session

    def _resolver(self, *, guarded: bool) -> Resolver | None:
        from agent.upstream.names import Resolver  # noqa: PLC0415 - with the HTTP library

        threads = self._lookups.get(guarded)
        return None if threads is None else Resolver(threads)

    def _ssl_context(self) -> ssl.SSLContext | bool:
        # True: the library's own verifying context, on the system's authorities.
        return self._authorities.context or True

    def _guarded_socket(self, address: tuple[Any, ...]) -> socket.socket:
        # Called with the very address about to be connected, after resolution: a name that resolves to something
        # else a moment after it was checked (DNS rebinding) gains nothing.
        family, kind, protocol, _, sockaddr = address
        if not may_reach(str(sockaddr[0]), allow_private=self._settings.allow_private_addresses):
            raise AddressRefusedError
        return socket.socket(family, kind, protocol)


def _outgoing(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    outgoing: CIMultiDict[str] = CIMultiDict(headers)
    for name, value in outgoing.items():
        # Values may come out of a bundle: a line break in one would be a second header of the attacker's choosing.
        if not name.isascii() or not name.isprintable() or any(c in value for c in "\r\n\0"):
            raise UpstreamRefused("a header holds a control character")
    outgoing.setdefault("User-Agent", f"{USER_AGENT_PREFIX}{__version__}")
    outgoing.setdefault("Accept-Encoding", "identity")
    return outgoing
