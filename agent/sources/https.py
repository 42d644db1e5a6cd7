"""A bundle at a URL: an object in S3 or GCS, a pre-signed URL, a control plane's endpoint. They are the same code.

The server may hold a request until there is something new (``Prefer: wait``, RFC 7240); one that does not is polled.
``ETag`` and ``If-None-Match`` (RFC 9110) make an unchanged bundle cost a header. Since the seal holds against everyone
on the way, the server need not be believed, and neither need its cache or mirror.

Spec: RFC 9110 for statuses, conditional requests and redirects; RFC 7240 section 4.3 for ``wait``.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import re
from datetime import timedelta
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import urljoin

import msgspec

from agent.core.clock import Clock
from agent.core.errors import SourceError, UnreadableError, UpstreamError, WireError
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.core.model import SealedBundle
from agent.core.served import plain
from agent.core.source import Ack, OnError, OnSuccess, Position, Submit
from agent.sources.acknowledging import Acknowledger
from agent.sources.location import Location
from agent.sources.watching import RetryLater, UnansweredYet, broken_here, keep_watching
from agent.upstream import Upstream, UpstreamResponse, just_modified, origin_of
from agent.wire.names import BUNDLE_MEDIA_TYPE
from agent.wire.wrapped import find

ACCEPT: Final = f"{BUNDLE_MEDIA_TYPE}, application/jose;q=0.9, application/json;q=0.9, */*;q=0.1"
GRACE_SECONDS: Final = 10.0
"""How much longer than the wait we ask for an answer may take."""

HELD_FRACTION: Final = 0.5
"""A server that took at least this much of the wait held the request; one that did not is polled."""

HASTY_SECONDS: Final = 1.0
HASTY_ANSWERS: Final = 4
"""So many new answers in a row, none of which waited that long, are no news but the server's way to answer."""

PAUSE_HELD_SECONDS: Final = 1.0
"""After a held request the next is made within this: all workers were answered in the same instant."""

COARSE_SECONDS: Final = 2.0
"""What was changed so short a time ago may change once more under the same entity tag: it is read once more, whole."""

MAX_REDIRECTS: Final = 3
MOST_TYPE_CHARACTERS: Final = 100
GONE_SLEEP_SECONDS: Final = 86_400.0


_ETAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,256}"\Z')


class HttpsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bundle is.

    A private CA and an explicit proxy belong to the :class:`~agent.upstream.Upstream` that is given to the source.

    Attributes:
        url: the object. Its query may be a credential (a pre-signed URL) and is never shown; ``None``: ``url_file``.
        url_file: holds the URL, read again for every request: a pre-signed one is replaced before it ends.
        ack_url: where verdicts are posted as JSON; ``None``: nowhere.
        token_file: holds a bearer token, read again for every request; ``None``: no token.
        wait_seconds: how long the server may hold a request; 0 never asks it to.
        poll_seconds: between two requests to a server that holds none.
        worker: says in acknowledgements which worker it is; ``None``: left out.
    """

    url: str | None = None
    url_file: Path | None = None
    ack_url: str | None = None
    token_file: Path | None = None
    wait_seconds: float = 50.0
    poll_seconds: float = 30.0
    worker: str | None = None
    name: str = "https"


class HttpsSource:
    """Reads one URL, again and again.

    Args:
        settings: what to read.
        upstream: the way out, with the CA and proxy of this source.
        clock: sleeps.
        rng: the source of the jitter.
    """

    def __init__(
        self,
        settings: HttpsSettings,
        *,
        upstream: Upstream,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        self._clock = clock
        self._rng = rng
        self._location = Location(settings.url, settings.url_file, settings.token_file)
        self._acknowledger = (
            Acknowledger(
                settings.ack_url,
                self._location,
                upstream=upstream,
                worker=settings.worker,
                clock=clock,
                rng=rng,
            )
            if settings.ack_url is not None
            else None
        )
        self._left: Position | None = None  # where the process before us stood
        self._url = settings.url or ""  # as it was last read
        self._watched = self._url  # whose answers the rest is about
        self._forget()

    def _forget(self) -> None:
        """Begin anew. All mutable state is here, and changes in :meth:`_look` only."""
        self._etag: str | None = None  # of what was last read
        self._content = ""  # the digest of the bundle in it
        self._digest = b""  # of the same, for servers without entity tags
        self._asked = False  # whether a first answer has come
        self._holds: bool | None = None  # whether the server holds requests; None while nobody knows
        self._gone = False  # whether it has said that there will never be anything more
        self._hasty = 0  # answers in a row that were new and did not wait
        self._is_young = False  # whether its tag may be another one's too
        self._pause_seconds = 0.0

    @property
    def name(self) -> str:
        """See :class:`agent.core.source.Source`."""
        return self._settings.name

    @property
    def every_seconds(self) -> float | None:
        """Between two looks, for a person who waits for the next; ``None``: the server is asked all the time."""
        return None if self._settings.wait_seconds else self._settings.poll_seconds

    async def watch(self, submit: Submit, *, on_error: OnError, on_success: OnSuccess) -> NoReturn:
        """See :class:`agent.core.source.Source`. After 410 (Gone) nothing is asked any more; nothing is withdrawn."""
        self._forget()
        await keep_watching(
            self._look,
            lambda: self._pause_seconds,
            submit=submit,
            on_error=on_error,
            on_success=on_success,
            clock=self._clock,
            rng=self._rng,
        )

    @property
    def position(self) -> Position | None:
        """See :class:`agent.core.source.Resumable`."""
        if self._etag is None or not self._content or self._is_young:
            return None
        return Position(_place(self._watched), self._etag, self._content)

    def go_on(self, position: Position) -> None:
        """See :class:`agent.core.source.Resumable`. Used only if the URL is still the same."""
        if _ETAG.match(position.tag):
            self._left = position

    async def fetch(self) -> SealedBundle | None:
        """See :class:`agent.core.source.Source`."""
        return await self._unwrapped(self._read(await self._ask(await self._location.url(), {}, None)))

    async def acknowledge(self, ack: Ack) -> None:
        """Post the verdict, if anybody wants it."""
        if self._acknowledger is not None:
            await self._acknowledger.post(ack)

    async def _look(self) -> SealedBundle | None:
        if self._gone:
            written = self._settings.url_file is not None
            await self._clock.sleep(self._settings.poll_seconds if written else GONE_SLEEP_SECONDS)
        url = await self._location.url()
        if url != self._watched:
            self._forget()  # tags, and what is gone, are the other object's
            self._watched = url
        if self._gone:
            return None
        left, self._left = self._left, None
        if left is not None and left.place == _place(url):
            self._etag, self._content = left.tag, left.content
        once_more = self._is_young
        condition = None if once_more else self._etag
        headers = {} if condition is None else {"If-None-Match": condition}
        # The first look is to be answered at once, whatever there is.
        wait = self._settings.wait_seconds if self._asked and not once_more else 0.0
        if wait > 0:
            headers["Prefer"] = f"wait={math.ceil(wait)}"
        started = self._clock.boottime()
        answer = await self._ask(url, headers, wait + GRACE_SECONDS if wait > 0 else None)
        elapsed = self._clock.boottime() - started
        if await self._location.url() != url:
            # The operator named another place while this one was asked: its answer counts no more.
            self._pause_seconds = self._rng.uniform(0.0, PAUSE_HELD_SECONDS)
            return None
        if answer.status == 410:
            self._gone = True
            raise SourceError(f"{self._origin} answered 410: there will be no more; it is not asked again")
        found = None
        changed = False
        if answer.status == 304 and condition is None:
            raise SourceError(f"{self._origin} answered 304 to a request that had no condition")
        if answer.status != 304:
            found = self._read(answer)
            digest = b"" if found is None else hashlib.sha256(found.data).digest()
            changed = digest != self._digest
            self._digest = digest
            self._is_young = changed and just_modified(answer.headers, timedelta(seconds=COARSE_SECONDS))
            self._etag, self._content = None if found is None else _entity_tag(answer), ""
            found = await self._unwrapped(found)
            self._content = "" if found is None else hashlib.sha256(found.data).hexdigest()
        self._asked = True
        self._pause_seconds = self._pause(wait, elapsed, changed=changed, once_more=once_more)
        return found

    def _pause(self, wait: float, elapsed: float, *, changed: bool, once_more: bool) -> float:
        """How long to wait before the next look: hardly at all when the server does the waiting."""
        least = COARSE_SECONDS if self._is_young else 0.0
        polled = max(self._settings.poll_seconds * self._rng.uniform(0.75, 1.25), least)
        if self._settings.wait_seconds <= 0:
            return polled
        if wait > 0 or once_more:
            self._hasty = self._hasty + 1 if changed and elapsed < HASTY_SECONDS else 0
            if wait > 0 and elapsed >= wait * HELD_FRACTION:
                self._holds = True
            elif (wait > 0 and not changed) or self._hasty >= HASTY_ANSWERS:
                # It answered at once that there is nothing new: it does not know how to wait. Or with something else
                # each time: whoever seals at each answer would have us open one a second, by a key service too.
                self._holds = False
        return polled if self._holds is False else least + self._rng.uniform(0.0, PAUSE_HELD_SECONDS)

    async def _ask(self, url: str, headers: dict[str, str], timeout_seconds: float | None) -> UpstreamResponse:
        """Ask, following redirects within the same origin; give back a status that :meth:`_read` knows what to do with.

        Raises:
            SourceError: no answer, or one that says it is broken or not for us.
        """
        self._url = url
        for _ in range(MAX_REDIRECTS + 1):
            with broken_here():
                answer = await self._upstream.request(
                    "GET",
                    url,
                    headers={"Accept": ACCEPT, **headers, **await self._location.authorization(url)},
                    timeout_seconds=timeout_seconds,
                    max_bytes=MAX_BUNDLE_BYTES,
                )
            if answer.status not in {301, 302, 303, 307, 308}:
                self._check(answer)
                return answer
            url = self._redirected(url, answer.headers.get("Location", ""))
        raise SourceError(f"{self._origin} redirected more than {MAX_REDIRECTS} times")

    def _redirected(self, url: str, location: str) -> str:
        # Another host would be sent our bearer token, or be asked for things on this machine's network.
        try:
            target = urljoin(url, location)
            origin = origin_of(target)
        except (ValueError, UpstreamError):
            origin = None
        if not location or origin is None:
            raise SourceError(f"{self._origin} redirected without a usable Location")
        if origin != self._origin:
            raise SourceError(
                f"{self._origin} redirected to {origin}; other hosts are not followed",
                hint=f"configure a URL at {origin} if that is where the bundle is (S3: the bucket's regional endpoint)",
            )
        return target

    def _check(self, answer: UpstreamResponse) -> None:
        """Raise for every status but those that mean something here."""
        status = answer.status
        if status in {200, 304, 404, 410}:
            return
        said = f"{self._origin} answered {status}"
        if status == 429 or status >= 500:  # an outage says nothing of what is there
            raise UnansweredYet(said, seconds=answer.pause_seconds)
        if seconds := answer.pause_seconds:
            raise RetryLater(said, seconds=seconds)
        hint = None
        if status in {401, 403}:
            hint = (
                "has the pre-signed URL or the token ended? a pre-signed URL lives no longer than its signer's session"
            )
        raise SourceError(said, hint=hint)

    def _read(self, answer: UpstreamResponse) -> SealedBundle | None:
        """The bundle in an answer that is 200; ``None`` for 404. Content that is plainly something else is an error."""
        if answer.status in {404, 410}:
            return None
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        body = answer.body
        # A captive portal, a sign-in page, an error page with the wrong status.
        if kind in {"text/html", "application/xhtml+xml"} or body.lstrip()[:1] == b"<":
            shown = plain(kind, MOST_TYPE_CHARACTERS) or "no content type"
            raise SourceError(f"expected a bundle from {self._origin}, got a web page ({shown})")
        if not body.strip():
            raise SourceError(f"expected a bundle from {self._origin}, got an empty answer")
        return SealedBundle(data=body, origin=self.name)

    async def _unwrapped(self, found: SealedBundle | None) -> SealedBundle | None:
        """The bundle in what tools have wrapped around it; the decoder refuses anything that is none."""
        if found is None:
            return None
        try:
            # In a thread: a document made to be hard to read must not hold up the loop that serves.
            data = await asyncio.to_thread(find, found.data)
        except UnreadableError:
            self._etag, self._digest = None, b""  # it is said again, and read again, until it is mended
            raise
        except WireError:
            return found
        return found if data is None else SealedBundle(data=data, origin=found.origin)

    @property
    def _origin(self) -> str:
        """The part of the URL that may be shown."""
        return origin_of(self._url)


def _place(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _entity_tag(answer: UpstreamResponse) -> str | None:
    """The entity tag, if it is one we may send back (RFC 9110 section 8.8.3)."""
    etag = answer.headers.get("ETag", "")
    return etag if _ETAG.match(etag) else None
