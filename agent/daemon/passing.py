"""May a server have the real metadata service asked that? It is asked here, and a server may have been taken over.

An honest server has hidden what workers do not see, and kept to every bound, before it asks
(:mod:`agent.serve.hiding`, :mod:`agent.serve.proxy`). Here both hold once more for all of it together, with what this
side knows, so that whoever has taken a server reads no more of the machine's metadata than any worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import urlencode

import msgspec

from agent.core.bucket import Bucket
from agent.core.errors import TargetError, UpstreamError, WireError
from agent.core.model import Cloud
from agent.core.strictjson import NotThatShapeError, decode
from agent.core.view import Absent, Answer, Live, Origin
from agent.serve.gce_directories import FORWARDED_PARAMETERS
from agent.serve.hiding import EC2_ROOT, GCE_ROOT, GuestWrites, Hiding, folded
from agent.serve.proxy import (
    ASKED_AT_ONCE,
    ASKED_PER_SECOND,
    CONCURRENCY,
    KEPT_HEADERS,
    MADE_AT_ONCE,
    MADE_CONCURRENCY,
    MADE_PER_SECOND,
    MAX_BODY_BYTES,
    Passthrough,
    relisted,
)
from agent.serve.target import read_target
from agent.snapshot import ServeSettings
from agent.snapshot.messages import Pass, Passed
from agent.wire import ec2, gce, names
from agent.wire.http import Response, forwardable, path_of

LONGEST_SECONDS: Final = 3700.0
"""A long poll of an hour, and what the real server takes to end it."""
CHANGING_PLACES: Final = 8
"""So many long polls may have been ended by the server in others' favour when it asks for those."""
_ACCOUNTS: Final = ("instance", "service-accounts")
_QUERIED: Final = frozenset({"recursive", "alt", "wait_for_change", "timeout_sec", "last_etag"})
_SPELT: Final = {"recursive": ("true",), "wait_for_change": ("true",), "alt": ("json", "text")}


InTurn = Callable[[Passed], Awaitable[Passed]]


class NotAskedError(Exception):
    """It may not be asked that."""


async def _at_once(answer: Passed) -> Passed:
    return answer


class _Bounds:
    """Of what one real service is asked. Whoever comes above them is refused, so they are no less than a server's own.

    Those are fair, and what they let in may wait for its turn, and come together with what is let in later.

    Args:
        connections: what the way out may have open.
        seconds: how long a question may take from when it was let in, long polls apart.

    Attributes:
        most, under_way: at once, until the answer is written; by whether it is a long poll.
        asked, made: how often.
    """

    def __init__(self, connections: int, seconds: float) -> None:
        room = min(CONCURRENCY, max(1, connections // 2))
        # Twice what an honest server has under way: what its clients have left is under way here for a moment longer.
        # Of a long poll that it ends in another's favour it says so after it has asked for the other.
        plain = 2 * (room + min(MADE_CONCURRENCY, room))
        self.most = {False: plain, True: max(1, connections - room) + min(room, CHANGING_PLACES)}
        self.under_way = {False: 0, True: 0}
        self.asked = Bucket(ASKED_PER_SECOND, ASKED_AT_ONCE + ASKED_PER_SECOND * seconds)
        self.made = Bucket(MADE_PER_SECOND, MADE_AT_ONCE + MADE_PER_SECOND * seconds)


class Passing:
    """Asks for one server.

    Args:
        services: the real services that this machine has.
        settings: what is hidden.
        answer: what is served for a cloud now.
        expects_bundle: whether bundles are taken here.
    """

    def __init__(
        self,
        services: Mapping[Cloud, Passthrough],
        settings: ServeSettings,
        *,
        answer: Callable[[Cloud], Answer],
        expects_bundle: Callable[[], bool],
    ) -> None:
        self._services = services
        self._answer = answer
        self._hiding = {
            cloud: Hiding(root, hide=settings.hide, show=settings.show, expects_bundle=expects_bundle)
            for cloud, root in ((Cloud.AWS, EC2_ROOT), (Cloud.GCP, GCE_ROOT))
        }
        self._writes = GuestWrites(settings.own_namespaces)
        seconds = {Cloud.AWS: settings.ec2_upstream_seconds, Cloud.GCP: settings.gce_upstream_seconds}
        self._bounds = {cloud: _Bounds(settings.passed_connections, seconds[cloud]) for cloud in services}

    async def ask(self, wanted: Pass, in_turn: InTurn = _at_once) -> Passed:
        """Ask, if that may be asked.

        Args:
            wanted: what.
            in_turn: returns the answer when it may be written. So long it is under way: it is in our memory.
        """
        refused = Passed(wanted.number, 0)
        try:
            below, query = self._allowed(wanted)
        except (NotAskedError, TargetError, WireError):
            return refused
        polls, bounds = query.wait_for_change, self._bounds[wanted.cloud]
        if bounds.under_way[polls] >= bounds.most[polls]:
            return refused
        bounds.under_way[polls] += 1
        try:
            answer = await self._answered(wanted, below, query)
            return await in_turn(refused if answer is None else answer)
        finally:
            bounds.under_way[polls] -= 1

    async def _answered(self, wanted: Pass, below: tuple[str, ...], query: gce.Query) -> Passed | None:
        was_decided = self.decided(wanted.cloud)
        try:
            async with asyncio.timeout(min(wanted.seconds, LONGEST_SECONDS)):
                answer = await self._services[wanted.cloud].request(
                    wanted.method,
                    wanted.target,
                    dict(wanted.headers),
                    wanted.body,
                    timeout_seconds=min(wanted.seconds, LONGEST_SECONDS),
                    max_bytes=MAX_BODY_BYTES,
                )
        except (TimeoutError, UpstreamError):
            return None
        if not 200 <= answer.status <= 599 or self.decided(wanted.cloud) is not was_decided:
            return None
        kept = tuple(
            (name, value[:4096])
            for name in KEPT_HEADERS
            if (value := answer.headers.get(name)) is not None and forwardable(name, value)
        )
        body = self._shown(wanted.cloud, Response(answer.status, kept, answer.body), below, query)
        return Passed(wanted.number, answer.status, kept, body)

    # -- before --------------------------------------------------------------------------------------------------------

    def _allowed(self, wanted: Pass) -> tuple[tuple[str, ...], gce.Query]:
        """The path below the root, and what its query asks for."""
        if wanted.cloud not in self._services:
            raise NotAskedError
        target = read_target(wanted.target)
        # One spelling: what was looked at here is what the real service reads.
        if target.authority is not None or target.path != path_of(target.segments, slash=target.slash):
            raise NotAskedError
        check = self._allowed_ec2 if wanted.cloud is Cloud.AWS else self._allowed_gce
        found = check(wanted, target.segments, target.slash, target.query)
        now, bounds = time.monotonic(), self._bounds[wanted.cloud]
        if bounds.asked.take(now) or (self._is_made(wanted, found[0]) and bounds.made.take(now)):
            raise NotAskedError
        return found

    def _allowed_ec2(
        self, wanted: Pass, segments: tuple[str, ...], _slash: bool, query: str
    ) -> tuple[tuple[str, ...], gce.Query]:
        if wanted.method != "GET" or wanted.headers or wanted.body is not None or query:
            raise NotAskedError
        below = segments[1:]
        if segments and not ec2.VERSION_SEGMENT.match(segments[0]):
            raise NotAskedError
        if not all(segment.isascii() for segment in below):
            raise NotAskedError
        is_decided = self.decided(Cloud.AWS)
        if folded(below[:2]) == names.EC2_IAM:
            # ``iam/info`` and the like, while the machine's own identity is the workers'; its credentials we serve.
            own = folded(below[2:3])
            if is_decided or below[:2] != names.EC2_IAM or (own and own[0].startswith("security-credentials")):
                raise NotAskedError
        elif self._hiding[Cloud.AWS].hides(below, decided=is_decided):
            raise NotAskedError
        return below, gce.parse_query("")

    def _allowed_gce(
        self, wanted: Pass, segments: tuple[str, ...], slash: bool, raw: str
    ) -> tuple[tuple[str, ...], gce.Query]:
        if segments[:2] != GCE_ROOT or not all(segment.isascii() for segment in segments):
            raise NotAskedError
        below = segments[2:]
        query = _query(raw)
        if wanted.method != "GET":
            if self._writes.refusal(below, slash=slash, query=raw) is not None:
                raise NotAskedError
            if wanted.method == "HEAD" or {name.lower() for name, _ in wanted.headers} - {"content-type"}:
                raise NotAskedError
            return below, query
        if wanted.headers or wanted.body is not None:
            raise NotAskedError
        is_decided = self.decided(Cloud.GCP)
        if self._hiding[Cloud.GCP].hides(below, decided=is_decided):
            raise NotAskedError
        if folded(below[:2]) == _ACCOUNTS and is_decided:
            raise NotAskedError
        if any(names.ENROL_AUDIENCE_PREFIX in value for value in gce.parameters(raw).values()):
            raise NotAskedError
        if query.recursive and query.alt == "text" and self._hiding[Cloud.GCP].lists(below):
            raise NotAskedError  # as text it could not be pruned
        return below, query

    def decided(self, cloud: Cloud) -> bool:
        """Whether the machine's own identity is not what workers have."""
        answer = self._answer(cloud)
        return not (isinstance(answer, Absent) or (isinstance(answer, Live) and answer.origin is Origin.FALLBACK))

    @staticmethod
    def _is_made(wanted: Pass, below: tuple[str, ...]) -> bool:
        """Whether the real service makes or writes something for it."""
        return wanted.method != "GET" or (
            folded(below[:2]) == _ACCOUNTS and folded(below[3:4]) in {("identity",), ("token",)}
        )

    # -- after ---------------------------------------------------------------------------------------------------------

    def _shown(self, cloud: Cloud, answer: Response, below: tuple[str, ...], query: gce.Query) -> bytes:
        """The body without what is hidden; nothing where that cannot be told from what is not."""
        hiding = self._hiding[cloud]
        if answer.status != 200 or not (query.recursive or hiding.lists(below)):
            return answer.body
        is_decided = self.decided(cloud)

        def gone(name: str) -> bool:
            return hiding.hides((*below, name), decided=is_decided)

        is_json = (answer.header("Content-Type") or "").startswith("application/json")
        if not is_json and not (query.recursive and hiding.lists(below)):
            # A leaf, for which ``recursive`` means nothing, or a listing.
            return relisted(answer, gone).body if hiding.lists(below) else answer.body
        try:
            tree = decode(answer.body)
            if not query.recursive and isinstance(tree, list):
                kept = [name for name in tree if not (isinstance(name, str) and gone(name.rstrip("/")))]
                return answer.body if kept == tree else msgspec.json.encode(kept)
            shown = hiding.pruned(tree, below, decided=is_decided)
            if is_decided:
                shown = _without_accounts(shown, below)  # the server puts ours in their place
        except (NotThatShapeError, RecursionError):
            return b""
        return answer.body if shown is tree else msgspec.json.encode(shown)


def _query(raw: str) -> gce.Query:
    """What a query asks for, if it is written in the one way in which an honest server writes it.

    Raises:
        NotAskedError: another might read it differently.
        WireError: it is none.
    """
    given = gce.parameters(raw)
    if urlencode(given) != raw or not given.keys() <= _QUERIED | set(FORWARDED_PARAMETERS):
        raise NotAskedError
    if any(given[name] not in values for name, values in _SPELT.items() if name in given):
        raise NotAskedError
    return gce.parse_query(raw)


def _without_accounts(tree: object, below: tuple[str, ...]) -> object:
    if not isinstance(tree, dict) or folded(below) not in {(), ("instance",)}:
        return tree
    if below:
        return {name: child for name, child in tree.items() if folded((gce.kebab(name),)) != _ACCOUNTS[1:]}
    return {
        name: _without_accounts(child, ("instance",)) if name == "instance" else child for name, child in tree.items()
    }
