"""Everything but credentials comes from the real service: this file only decides *what*; ``upstream`` does the asking.

The rule: everything passes but what :mod:`agent.serve.hiding` holds back, because the machine's metadata is the
workers' (spot notices, tags, maintenance events, placement), and what identifies the machine is not.

A path is sent on in one canonical spelling, made from the segments that the checks looked at, so that the real service
cannot read another path than we did; a query likewise, from known parameters only.

Failure: static leaves come from memory, also when the service has gone; for the rest the caller says what it can. No
request waits for longer than the settings allow, and at most :data:`CONCURRENCY` requests are under way: the link-local
address has a budget of about a thousand packets a second, shared with DNS.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Final, NamedTuple, Protocol

from agent.core.bucket import Bucket, Buckets
from agent.core.errors import UpstreamError
from agent.serve.fairness import Pace, Places, Turnstile
from agent.snapshot import PASSED_CONNECTIONS
from agent.wire.http import Asker, Response, forwardable, path_of
from agent.wire.names import GCE_FLAVOR_HEADER

CONCURRENCY: Final = 32
LARGE_BYTES: Final = 32768
"""An answer above this goes out alone in its round of the event loop: copying it takes longer than a credential."""
ASKED_PER_SECOND: Final = 200.0
ASKED_AT_ONCE: Final = 1000.0
ASKED_PER_SECOND_BY_ONE: Final = 50.0
ASKED_AT_ONCE_BY_ONE: Final = 200.0
"""How often the real service is asked on behalf of all workers, and of one of them when that is half used up. Above it
the link-local address begins to drop what is asked of it, the agent's own questions and DNS too."""
MADE_CONCURRENCY: Final = 4
MADE_PER_SECOND: Final = 20.0
MADE_AT_ONCE: Final = 200
MADE_PER_SECOND_BY_ONE: Final = 5.0
MADE_AT_ONCE_BY_ONE: Final = 50
"""The same for what the real service makes or writes, not looks up. An identity token costs it a signature: one
worker's requests kept it from renewing the machine's own token, for everybody."""
MAX_BODY_BYTES: Final = 1 << 20
PLACE_BYTES: Final = 1 << 18
"""A long poll has one place for each of these that its answer had before. Of those that wait for one change all answers
come at once; without this they could be a quarter of a gigabyte here, and again in the controller."""
FRESH_SECONDS: Final = 300.0
"""How long a static leaf is served from memory without asking. They change with a stop and a start, if at all."""
_CACHE_ENTRIES: Final = 256

KEPT_HEADERS: Final = (
    "Content-Type",
    "Content-Encoding",
    "ETag",
    "Last-Modified",
    "Accept-Ranges",
    "Retry-After",
    "Server",
    GCE_FLAVOR_HEADER,
    "Location",
)

EC2_STATIC: Final = frozenset(
    {
        ("meta-data", "ami-id"),
        ("meta-data", "instance-id"),
        ("meta-data", "instance-type"),
        ("meta-data", "local-ipv4"),
        ("meta-data", "mac"),
        ("meta-data", "placement", "availability-zone"),
        ("meta-data", "placement", "availability-zone-id"),
        ("meta-data", "placement", "region"),
        ("meta-data", "reservation-id"),
        ("meta-data", "services", "domain"),
        ("meta-data", "services", "partition"),
        ("dynamic", "instance-identity", "document"),
    }
)
GCE_STATIC: Final = frozenset(
    {
        ("project", "project-id"),
        ("project", "numeric-project-id"),
        ("universe", "universe-domain"),
        ("instance", "cpu-platform"),
        ("instance", "hostname"),
        ("instance", "id"),
        ("instance", "image"),
        ("instance", "machine-type"),
        ("instance", "name"),
        ("instance", "zone"),
    }
)


class UpstreamAnswer(Protocol):
    """An answer of a real service."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Looked up without regard to case."""

    @property
    def body(self) -> bytes:
        """All of it, not decompressed."""


class Passthrough(Protocol):
    """The real metadata service of one cloud. ``agent.upstream.Ec2Metadata`` and ``GceMetadata`` are such.

    The handshake is its business (the agent's own session token, the flavor header), and so is what must never go out:
    ``X-Forwarded-For``, proxies of the environment.
    """

    async def request(
        self,
        method: str,
        path_qs: str,
        headers: Mapping[str, str] = ...,
        body: bytes | None = None,
        *,
        timeout_seconds: float | None = None,
        max_bytes: int | None = None,
    ) -> UpstreamAnswer:
        """Ask.

        Raises:
            UpstreamError: no usable answer.
        """


def _now() -> float:
    return time.monotonic()


class _Question(NamedTuple):
    """What is asked of the real service, and for whom: as :meth:`Proxy.fetch` was told it, and what follows of that."""

    method: str
    path_qs: str
    headers: Mapping[str, str]
    body: bytes | None
    hang_seconds: float
    places: int
    made: bool
    owner: Hashable


class Proxy:
    """One real service behind us: bounded, cached where that is safe, and never an exception.

    Args:
        upstream: the way to it.
        seconds: how long an ordinary request may take.
        connections: what ``upstream`` may have open. Long polls leave some of them to the others; when all of
            theirs are taken, whoever has most gives up the oldest to one who has fewer.
    """

    def __init__(self, upstream: Passthrough, *, seconds: float, connections: int = PASSED_CONNECTIONS) -> None:
        self._upstream = upstream
        self._seconds = seconds
        # All mutable state:
        self._cache: dict[str, tuple[float, Response]] = {}
        self._flights: dict[tuple[Hashable, str], asyncio.Task[Response | None]] = {}
        room = min(CONCURRENCY, max(1, connections // 2))
        self._room = Turnstile(room)
        self._makers = Turnstile(min(MADE_CONCURRENCY, room))
        self._large = Turnstile(1)
        self._polls = Places(max(1, connections - room))
        # What one asks beyond its own bucket is refused; what all ask beyond theirs waits, in turns.
        self._asked: Buckets[Hashable] = Buckets(
            Bucket(ASKED_PER_SECOND, ASKED_AT_ONCE), per_second=ASKED_PER_SECOND_BY_ONE, burst=ASKED_AT_ONCE_BY_ONE
        )
        self._made: Buckets[Hashable] = Buckets(
            Bucket(MADE_PER_SECOND, MADE_AT_ONCE), per_second=MADE_PER_SECOND_BY_ONE, burst=MADE_AT_ONCE_BY_ONE
        )
        self._asking, self._making = Pace(self._asked.take_common, _now), Pace(self._made.take_common, _now)

    def fresh(self, path_qs: str) -> Response | None:
        """A static leaf from memory, when it is young enough not to ask."""
        held = self._cache.get(path_qs)
        return held[1] if held is not None and time.monotonic() - held[0] < FRESH_SECONDS else None

    async def static(self, path_qs: str, asker: Asker | None = None) -> Response | None:
        """A leaf that does not change: from memory, else asked for, else an old one."""
        fresh = self.fresh(path_qs)
        if fresh is not None:
            return fresh
        answer = await self.fetch("GET", path_qs, asker=asker)
        if answer is not None and answer.status == 200:
            if len(self._cache) >= _CACHE_ENTRIES:
                # The oldest alone: whoever asks for many spellings must not push out what the others use.
                del self._cache[next(iter(self._cache))]
            self._cache.pop(path_qs, None)
            self._cache[path_qs] = (time.monotonic(), answer)
            return answer
        held = self._cache.get(path_qs)
        if held is not None and (answer is None or answer.status >= 500):
            return held[1]
        return answer

    async def fetch(
        self,
        method: str,
        path_qs: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        hang_seconds: float = 0.0,
        had_bytes: int = 0,
        made: bool = False,
        asker: Asker | None = None,
    ) -> Response | None:
        """Ask the real service; ``None`` when it gave no usable answer in time, or was asked too much.

        Several who ask for the same at the same time are one question.

        Args:
            method: as the client's.
            path_qs: the canonical target.
            headers: those of the client's that matter.
            body: the client's.
            hang_seconds: how long the service itself was asked to wait (``timeout_sec``).
            had_bytes: how long the answer was that is known, where the service waits for another.
            made: whether the service makes or writes something for it.
            asker: who asks.
        """
        owner: Hashable = None
        now = time.monotonic()
        if asker is not None and (made or hang_seconds or self._crowded or self._asked.is_scarce(now)):
            owner = await asker.owner()
        places = 1 + had_bytes // PLACE_BYTES if hang_seconds else 0
        answer = await self._shared(
            _Question(
                method=method,
                path_qs=path_qs,
                headers=headers or {},
                body=body,
                hang_seconds=hang_seconds,
                places=places,
                made=made,
                owner=owner,
            )
        )
        if answer is None or len(answer.body) <= LARGE_BYTES:
            return answer
        if owner is None and asker is not None and self._large.crowded:
            owner = await asker.owner()
        try:
            async with asyncio.timeout(self._seconds), self._large.turn(owner):
                await asyncio.sleep(0)
        except TimeoutError:
            return None
        return answer

    @property
    def _crowded(self) -> bool:
        # Those too that have come in this round of the loop, and are not inside yet.
        return self._room.crowded or 2 * len(self._flights) >= self._room.limit

    async def _shared(self, question: _Question) -> Response | None:
        if question.method != "GET" or question.hang_seconds:
            return await self._fetch(question)
        # One flight for each owner when it matters who asks: nobody stands in another's queue.
        key = (question.owner, question.path_qs)
        # Shielded: the first who asked may leave, and must not take the answer from the others.
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(self._fetch(question))
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
            self._flights[key] = flight  # last: one that nobody would take out gives its answer for ever
        return await asyncio.shield(flight)

    async def _fetch(self, question: _Question) -> Response | None:
        owner, made = question.owner, question.made
        now = time.monotonic()
        if (owner is not None and self._asked.take_own(owner, now)) or (made and self._made.take_own(owner, now)):
            return None
        seconds = self._seconds + question.hang_seconds
        try:
            async with asyncio.timeout(seconds) as timeout:
                if made:
                    await self._making.wait(owner)
                await self._asking.wait(owner)
                if question.hang_seconds:
                    # Long polls do not count: 32 of them would close the way for everybody else.
                    if not self._polls.take(owner, timeout, question.places):
                        return None
                    try:
                        answer = await self._ask(question, seconds)
                    finally:
                        self._polls.leave(timeout)
                else:
                    async with (self._makers if made else self._room).turn(owner):
                        answer = await self._ask(question, seconds)
        except (TimeoutError, UpstreamError):
            return None
        if not 200 <= answer.status <= 599:
            return None
        kept = [
            (name, value)
            for name in KEPT_HEADERS
            if (value := answer.headers.get(name)) is not None and forwardable(name, value)
        ]
        return Response(answer.status, tuple(kept), answer.body)

    async def _ask(self, question: _Question, seconds: float) -> UpstreamAnswer:
        return await self._upstream.request(
            question.method,
            question.path_qs,
            question.headers,
            question.body,
            timeout_seconds=seconds,
            max_bytes=MAX_BODY_BYTES,
        )


def relisted(answer: Response, gone: Callable[[str], bool], *, add: tuple[str, ...] = ()) -> Response:
    """A directory's listing without the names that are ``gone``, with those to ``add``; the same if nothing changes."""
    lines = answer.body.decode("utf-8", "replace").split("\n")
    kept = [line for line in lines if not line or not gone(line.split("=")[0].rstrip("/"))]
    wanted = kept + [name for name in add if name not in kept]
    if wanted == lines:
        return answer
    body = "\n".join(sorted(wanted) if add else wanted).encode()
    return Response(answer.status, answer.headers, body)


def target(segments: tuple[str, ...], *, slash: bool, query: str = "") -> str:
    """The path of those segments and the query, as the real service is asked for it."""
    path = path_of(segments, slash=slash)
    return f"{path}?{query}" if query else path
