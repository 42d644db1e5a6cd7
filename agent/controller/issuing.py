"""Credentials on their way in: each piece of work is one flight, and its result goes into the state machine.

Errors: nothing that an upstream does ends anything. A failure is logged at the first, second, third, fifth and tenth
attempt and then once in fifty, counted, and never takes away what is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from agent.controller.pause import Pause
from agent.controller.scoped import Scoped
from agent.controller.tasks import Tasks
from agent.core.clock import Clock
from agent.core.counters import MAX_KEYS, Counters, bump
from agent.core.errors import Denied, ProviderError, Transient
from agent.core.history import RENEWED, History
from agent.core.issued import Issued
from agent.core.model import Cloud, Credential, Grant, IdToken
from agent.core.text import instant
from agent.core.verdict import Failure, Work
from agent.identity.events import CredentialIssued, IdTokenMinted, IssuingFailed
from agent.identity.standing import google_source, lacks_base, minted_from
from agent.identity.store import Store

_MOST_REPLACED: Final = 3
"""So often an identity token is minted anew, since what it was minted from was replaced meanwhile."""
ISSUE_TIMEOUT_SECONDS: Final = 90.0
"""A bound above the providers' own timeouts: one flight that never ends would stop the renewal of that credential."""


class Issuer(Protocol):
    """Where credentials come from (:class:`agent.providers.Mint`). Raises ``Denied`` or ``Transient``, nothing else."""

    async def issue(self, grant: Grant, base: Credential | None, now: datetime) -> Issued[Credential]: ...  # noqa: D102
    async def instance(self, cloud: Cloud, now: datetime) -> Issued[Credential] | None: ...  # noqa: D102
    async def id_token(  # noqa: D102
        self, grant: Grant | None, base: Credential | None, audience: str, now: datetime
    ) -> IdToken: ...


class Issuing:
    """See the module.

    Args:
        store: the state machine.
        issuer: where credentials come from.
        clock: time.
        counters: of results.
        history: what happened lately.
        tasks: where what is under way is kept.
        wake: has the loop go round.

    Attributes:
        scoped: Google tokens for fewer scopes than the identity's own.
    """

    def __init__(
        self,
        store: Store,
        issuer: Issuer,
        *,
        clock: Clock,
        counters: Counters,
        history: History,
        tasks: Tasks,
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._issuer = issuer
        self._clock = clock
        self._counters = counters
        self._history = history
        self._tasks = tasks
        self._wake = wake
        self._log = structlog.get_logger()
        self._flights: dict[asyncio.Task[None], Work] = {}
        self._id_flights: dict[str, asyncio.Task[IdToken | None]] = {}
        self._id_pause = Pause(clock)
        self.scoped = Scoped(clock, store, issue=issuer.issue, seconds=ISSUE_TIMEOUT_SECONDS)

    def begin(self, work: Work) -> None:
        """Issue a credential. Returns at once."""
        flight = self._tasks.spawn(self._issue(work), name=f"issue {work.key.cloud} {work.key.grant_id}")
        self._flights[flight] = work
        flight.add_done_callback(lambda _: self._wake())

    def settle(self) -> None:
        """Have what ended without a result asked for again: nobody else is, while it counts as under way.

        To be called before what is due is begun. Whatever keeps us even from taking note ends the caller.
        """
        for flight in [one for one in self._flights if one.done()]:
            # Who ends them all looks at none any more: what is cancelled here was by something that it waited for.
            error = asyncio.CancelledError() if flight.cancelled() else flight.exception()
            if error is not None:
                self._crashed(self._flights[flight], error)
            del self._flights[flight]

    async def _issue(self, work: Work) -> None:
        label = _label(work)
        began, asked_at = self._clock.now(), self._clock.boottime()
        try:
            async with asyncio.timeout(ISSUE_TIMEOUT_SECONDS):
                issued = await self._issue_one(work, began)
        except ProviderError as error:
            why = Failure(error.code, error.message, isinstance(error, Denied), self._clock.now(), error.pause_seconds)
            self._failed(work, why, label, error.hint)
        except TimeoutError:
            why = Failure("timeout", "it took too long", False, self._clock.now())
            self._failed(work, why, label)
        except Exception as error:  # noqa: BLE001 - the controller's border
            self._crashed(work, error)
        else:
            self._issued(work, issued, label, asked_at)

    def _crashed(self, work: Work, error: BaseException) -> None:
        label, kind = _label(work), type(error).__name__
        self._log.error("issue.crashed", credential=label, error=kind, exc_info=error)
        self._failed(work, Failure("internal", f"internal error: {kind}", False, self._clock.now()), label)

    async def _issue_one(self, work: Work, now: datetime) -> Issued[Credential] | None:
        if work.grant is None:
            return await self._issuer.instance(work.key.cloud, now)
        return await self._issuer.issue(work.grant, work.base, now)

    def _issued(self, work: Work, issued: Issued[Credential] | None, label: str, asked_at: float) -> None:
        ends = began = None
        if issued is not None and issued.lifetime is not None:
            # Counted on the clock that never steps, from before the request left.
            age = timedelta(seconds=self._clock.boottime() - asked_at)
            began = self._clock.now() - age
            ends = began + issued.lifetime
        now = self._clock.now()
        if issued is not None and (ends or issued.credential.expires_at) <= now:
            # That somebody hands out what is over (a cache, a wrong clock) must be told, and asked less and less often.
            over = Failure("expired", "what was issued is over already", False, now)
            self._failed(work, over, label)
            return
        credential = issued.credential if issued is not None else None
        changed = self._store.take(CredentialIssued(work, credential, ends, began), now)
        if issued is None:
            if changed:
                self._log.info("instance.absent", cloud=work.key.cloud)
            return
        bump(self._counters.issued, label)
        bump(self._counters.renewals, f"{work.key.cloud}:issued")
        self._counters.last_issued.pop(label, None)
        self._counters.last_issued[label] = now
        while len(self._counters.last_issued) > MAX_KEYS:
            del self._counters.last_issued[next(iter(self._counters.last_issued))]  # the one longest ago
        if changed:
            expires = issued.credential.expires_at
            about = f"{work.key.cloud} {work.key.grant_id}"
            self._history.add(now, RENEWED, about, f"until {instant(expires)}")
            self._log.info(
                "credential.issued", cloud=work.key.cloud, grant=work.key.grant_id, expires_at=instant(expires)
            )

    def _failed(self, work: Work, failure: Failure, label: str, hint: str | None = None) -> None:
        bump(self._counters.failures, f"{label}:{failure.code}")
        bump(self._counters.renewals, f"{work.key.cloud}:{'denied' if failure.denied else 'failed'}")
        self._store.apply(IssuingFailed(work, failure), self._clock.now())
        about = f"{work.key.cloud} {work.key.grant_id}"
        self._history.add(self._clock.now(), "not-renewed", about, f"{failure.code}: {failure.message}")
        say = self._log.error if failure.denied else self._log.warning
        if work.attempt in (1, 2, 3, 5, 10) or work.attempt % 50 == 0:
            say(
                "credential.denied" if failure.denied else "credential.failed",
                cloud=work.key.cloud,
                grant=work.key.grant_id,
                code=failure.code,
                reason=failure.message,
                hint=hint,
                attempt=work.attempt,
            )

    async def id_token(self, audience: str) -> IdToken | None:
        """An identity token for ``audience``: the one held, or one minted now; every asker shares one flight.

        Returns:
            ``None`` when this identity cannot make any (the endpoint says 404).

        Raises:
            Denied: who could make it refused, and will again (403).
            Transient: it failed, and may work later (503): "not found" would be taken for good.
        """
        held = self._store.view_id_token(audience, self._clock.now())
        if held is not None:
            return held
        flight = self._id_flights.get(audience)
        if flight is None:
            flight = asyncio.create_task(self._mint_id_token(audience), name="id token")
            flight.add_done_callback(lambda done: self._id_flown(audience, done))
            self._id_flights[audience] = flight  # last: one that nobody would take out gives its token for ever
        token = await asyncio.shield(flight)
        if token is not None:
            # Others had their turn since it was minted: it may speak for nobody any more.
            served = google_source(self._store.state, self._clock.now())
            if served is None or self._store.state.id_tokens.get(audience) != (token, served[0]):
                raise Transient("what it was minted from was replaced since", code="replaced")
        return token

    def _id_flown(self, audience: str, flight: asyncio.Task[IdToken | None]) -> None:
        self._id_flights.pop(audience, None)
        if not flight.cancelled():
            flight.exception()  # looked at: every asker may have hung up, and nobody is left to be told

    async def _mint_id_token(self, audience: str) -> IdToken | None:
        for _ in range(_MOST_REPLACED):
            now = self._clock.now()
            origin = google_source(self._store.state, now)
            if origin is None:
                return None  # also where the identity that it was to speak for was withdrawn while it was minted
            if lacks_base(origin):
                raise Transient("what it is minted from has no credential yet", code="base")
            whose = minted_from(self._store.state, now)
            self._id_pause.heed(origin[0])
            token, failed = None, None
            try:
                token = await self._mint_id_token_from(origin, audience, now)
            except ProviderError as error:
                failed = error
            if minted_from(self._store.state, self._clock.now()) != whose:
                continue  # whatever came of it says nothing of who is served now
            if failed is not None:
                raise failed
            if token is not None:
                if token.expires_at <= self._clock.now():
                    # A cache, or a wrong clock, hands out what is over.
                    raise Transient("the identity token that was minted is over already", code="expired")
                self._store.apply(IdTokenMinted(token, origin[0]), self._clock.now())
            return token
        raise Transient("what it was minted from was replaced again and again", code="replaced")

    async def _mint_id_token_from(
        self, origin: tuple[Grant | None, Credential | None], audience: str, now: datetime
    ) -> IdToken | None:
        try:
            async with asyncio.timeout(ISSUE_TIMEOUT_SECONDS):
                return await self._issuer.id_token(*origin, audience, now)
        except ProviderError as error:
            if error.code == "unsupported":
                return None
            self._id_pause.hear(origin[0], error)
            self._log.warning("id_token.failed", code=error.code, reason=error.message)
            raise
        except TimeoutError:
            self._log.warning("id_token.failed", code="timeout", reason="it took too long")
            raise Transient("it took too long", code="timeout") from None
        except Exception as error:  # noqa: BLE001 - the controller's border
            self._log.error("id_token.crashed", error=type(error).__name__, exc_info=True)
            raise Transient(f"internal error: {type(error).__name__}", code="internal") from None


def _label(work: Work) -> str:
    return f"{work.key.cloud}:{work.key.grant_id}"
