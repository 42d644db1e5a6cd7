"""A bundle in a GCE metadata attribute, of the instance or of the whole project.

There is no polling: every request but the first hangs until something changes (``wait_for_change``) or a minute has
passed. While the attribute does not exist there is nothing to hang on, so the *list* of attributes is waited on
instead: it changes when the attribute appears. ``last_etag`` is sent along, so that a change between two requests is
not missed. Where something ends every request that hangs, the attribute is polled.

Spec: Compute Engine documentation, "Query VM metadata" (``wait_for_change``, ``last_etag``, ``timeout_sec``) and
"Set and query guest attributes".
"""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any, Final, Literal, NoReturn

import msgspec

from agent.core.clock import Clock
from agent.core.errors import SourceError, UnansweredError, UpstreamError
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.core.model import Cloud, SealedBundle
from agent.core.source import Ack, OnError, OnSuccess, Submit
from agent.core.strictjson import NotThatShapeError, decode
from agent.sources.watching import broken_here, keep_watching, unusable
from agent.upstream import GceMetadata, UpstreamResponse, by_gce
from agent.wire.names import BUNDLE_ATTRIBUTE, GCE_GUEST_ATTRIBUTES, gce_attributes
from agent.wire.wrapped import find

WAIT_SECONDS: Final = 60
"""How long a request may hang; what Google's own guest agent asks for."""

GRACE_SECONDS: Final = 10.0
"""How much longer we wait than we asked for before it counts as an error."""

MAX_LISTING_BYTES: Final = 1_048_576
"""All attributes of an instance hold 512 KB at most, and JSON writes some bytes as six."""

QUICK_SECONDS: Final = 1.0
"""An answer that came sooner than this did not hang."""

PAUSE_CHANGED_SECONDS: Final = 0.5
"""After a quick change: an attribute that flaps is read twice a second at most, and a change is still seen in time."""

PAUSE_UNHELD_SECONDS: Final = 5.0
"""After a quick answer without a change: the server does not know how to wait."""

PAUSE_POLLED_SECONDS: Final = 15.0
POLLS_FIRST: Final = 20
POLLS_MOST: Final = 240
"""Where something on the way ends every request that hangs (a proxy, a firewall with a short memory), the attribute is
read every quarter minute instead: for five minutes, then for longer each time that hanging has failed again."""

_GUEST_ATTRIBUTES: Final = GCE_GUEST_ATTRIBUTES + "credential-agent"


class GceAttributeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which attribute.

    Attributes:
        key: its name.
        scope: whose attributes. With ``both``, the bundle with the highest ``seq`` decides, as with any two sources.
        acknowledge: write verdicts to the guest attribute ``credential-agent/<key>``, which senders can read with
            ``instances.getGuestAttributes``; it does nothing unless the instance has ``enable-guest-attributes``.
    """

    key: str = BUNDLE_ATTRIBUTE
    scope: Literal["instance", "project", "both"] = "both"
    name: str = "gce-attribute"
    acknowledge: bool = True


class GceAttributeSource:
    """Waits on an attribute of the real metadata server.

    Args:
        settings: which one.
        metadata: the server, as its client.
        clock: sleeps.
        rng: the source of the jitter.
    """

    awaited_in = (Cloud.GCP,)

    def __init__(
        self,
        settings: GceAttributeSettings,
        *,
        metadata: GceMetadata,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._metadata = metadata
        self._clock = clock
        self._rng = rng

    @property
    def name(self) -> str:
        """See :class:`agent.core.source.Source`."""
        return self._settings.name

    async def watch(self, submit: Submit, *, on_error: OnError, on_success: OnSuccess) -> NoReturn:
        """See :class:`agent.core.source.Source`. With two scopes there are two loops, and either may report.

        Until each has answered once none has: what was not answered may be there.
        """
        attributes = self._attributes()
        unread, unsaid = set(attributes), set(attributes)
        withheld: dict[_Attribute, SourceError] = {}

        def answered(one: _Attribute) -> None:
            unread.discard(one)
            unsaid.discard(one)
            withheld.pop(one, None)
            while withheld and not unsaid:
                on_error(withheld.popitem()[1])
            if not unread:
                on_success()

        def failed(one: _Attribute, error: SourceError) -> None:
            if not isinstance(error, UnansweredError):
                unsaid.discard(one)
                if unsaid:  # it has said so itself, and the other nothing yet
                    withheld[one] = error
                    error = UnansweredError(f"one of two attributes does not answer; of the other: {error.message}")
            on_error(error)

        async with asyncio.TaskGroup() as group:
            for attribute in attributes:
                group.create_task(
                    keep_watching(
                        attribute.look,
                        attribute.pause,
                        submit=submit,
                        on_error=partial(failed, attribute),
                        on_success=partial(answered, attribute),
                        clock=self._clock,
                        rng=self._rng,
                        local=True,
                    )
                )
        raise AssertionError("internal error: watching an attribute came to an end")

    async def fetch(self) -> SealedBundle | None:
        """See :class:`agent.core.source.Source`. With two scopes the instance's comes first."""
        for attribute in self._attributes():
            if (found := await attribute.look()) is not None:
                return found
        return None

    async def acknowledge(self, ack: Ack) -> None:
        """Write the verdict to a guest attribute. A failure is ignored: guest attributes are off by default."""
        if not self._settings.acknowledge:
            return
        try:
            await self._metadata.request(
                "PUT", f"{_GUEST_ATTRIBUTES}/{self._settings.key}", body=msgspec.json.encode(ack), max_bytes=4096
            )
        except UpstreamError:
            return

    def _attributes(self) -> list[_Attribute]:
        scopes = ("instance", "project") if self._settings.scope == "both" else (self._settings.scope,)
        return [_Attribute(scope, self._settings, metadata=self._metadata, clock=self._clock) for scope in scopes]


class _Attribute:
    """One attribute of one scope, waited on.

    Mutable state, changed only in :meth:`look`: whether the attribute or the list is being watched, under which etag,
    and how the last look went.
    """

    def __init__(
        self,
        scope: str,
        settings: GceAttributeSettings,
        *,
        metadata: GceMetadata,
        clock: Clock,
    ) -> None:
        self._scope = scope
        self._directory = gce_attributes(scope)
        self._key = settings.key
        self._name = settings.name
        self._metadata = metadata
        self._clock = clock
        self._exists = True  # until we are told otherwise
        self._etag: str | None = None
        self._changed = False
        self._held = True
        self._polls_left = 0  # looks that do not hang, since one that did was ended
        self._polls_next = POLLS_FIRST

    async def look(self) -> SealedBundle | None:
        """Look, or hang until there is something new; ``None`` when the attribute does not exist."""
        started, waited = self._clock.boottime(), self._etag is not None and not self._polls_left
        try:
            with broken_here(of_the_machine=True):
                return await self._look(started, waited=waited)
        except SourceError:
            if waited:
                self._polls_left, self._polls_next = self._polls_next, min(self._polls_next * 2, POLLS_MOST)
            raise

    async def _look(self, started: float, *, waited: bool) -> SealedBundle | None:
        self._changed = not waited
        # Each turn either answers or changes between the key and the list; a key that comes meanwhile is read, and one
        # that comes and goes is looked at again after the pause.
        found = None
        for _ in range(3):
            if self._exists:
                found = await self._look_at_key()
                if self._exists:
                    break
            elif not await self._look_at_list():
                break
        if waited:
            self._polls_next = POLLS_FIRST  # hanging works
        self._polls_left = max(self._polls_left - 1, 0)
        self._held = not waited or self._clock.boottime() - started >= QUICK_SECONDS
        return found

    def pause(self) -> float:
        """How long to wait before the next look: not at all when the server does the waiting."""
        if self._polls_left:
            return PAUSE_POLLED_SECONDS
        if self._held:
            return 0.0
        return PAUSE_CHANGED_SECONDS if self._changed else PAUSE_UNHELD_SECONDS

    async def _look_at_key(self) -> SealedBundle | None:
        answer = await self._ask(self._directory + self._key, {}, MAX_BUNDLE_BYTES)
        if answer.status == 404:
            self._exists, self._etag, self._changed = False, None, True
            return None
        self._note(answer)
        if not answer.body:
            return None
        # The value may be a document too, should somebody keep user-data and metadata alike. What is not is submitted
        # as it is: the decoder says what is wrong with it, and the sender hears of it.
        found = await asyncio.to_thread(find, answer.body)  # a document made to be hard to read holds up nobody
        return SealedBundle(data=found or answer.body, origin=self._name, part=self._scope)

    async def _look_at_list(self) -> bool:
        """Wait on the list of attributes; whether ours has appeared in it."""
        answer = await self._ask(self._directory, {"recursive": "true"}, MAX_LISTING_BYTES)
        if answer.status == 404:
            said = "expected a list of metadata attributes, got 404"
            raise SourceError(said) if by_gce(answer) else UnansweredError(said)  # a page, say, in the server's place
        self._note(answer)
        try:
            # A list of pairs would be ambiguous; a name twice is the later one, as for every JSON reader.
            listed = decode(answer.body, dict[str, Any])
        except NotThatShapeError as error:
            raise SourceError("expected metadata attributes as a JSON object, got something else") from error
        if self._key not in listed:
            return False
        self._exists, self._etag, self._changed = True, None, True
        return True

    async def _ask(self, path: str, query: dict[str, str], max_bytes: int) -> UpstreamResponse:
        wait = None
        if self._etag is not None and not self._polls_left:
            query = {**query, "wait_for_change": "true", "last_etag": self._etag, "timeout_sec": str(WAIT_SECONDS)}
            wait = WAIT_SECONDS + GRACE_SECONDS
        text = "&".join(f"{name}={value}" for name, value in query.items())
        answer = await self._metadata.request(
            "GET", f"{path}?{text}" if text else path, timeout_seconds=wait, max_bytes=max_bytes
        )
        if answer.status not in {200, 404}:
            said = f"expected 200 or 404 for a metadata attribute, got {answer.status}"
            raise unusable(said, answer, of_the_machine=True, own=by_gce(answer) or await self._is_missing())
        return answer

    async def _is_missing(self) -> bool:
        """Whether the server itself says so: some hosts leave its mark out of their errors (:class:`GceMetadata`)."""
        listed = await self._metadata.get(self._directory)
        return listed is not None and self._key.encode() not in listed.split()

    def _note(self, answer: UpstreamResponse) -> None:
        """Remember under which etag to wait. Without one we wait for any change, as the documentation has it."""
        etag = answer.headers.get("ETag", "")
        # It goes into a URL; what is not plainly an etag (16 hexadecimal digits) does not.
        etag = etag if etag.isascii() and etag.isalnum() and len(etag) <= 64 else "0"
        self._changed = self._changed or etag != self._etag
        self._etag = etag
