"""How is a verdict reported? Logged once where it happens, counted, and told to the source as an :class:`Ack`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

import structlog

from agent.controller.seldom import Seldom
from agent.core.clock import Clock
from agent.core.counters import UNREADABLE, Counters, bump
from agent.core.errors import UnreadableError
from agent.core.history import History
from agent.core.model import Action, Bundle, SealedBundle
from agent.core.source import COURIER, Ack, Source
from agent.core.text import instant
from agent.core.verdict import Refused

CONFIRMED_AGAIN_SECONDS: Final = 1.0
"""Until it is asked again whether what was not confirmed is so now."""
_STAYS: Final = "nothing of this issuer and subject is in force any more; what another one sent stays in force"


class Verdicts:
    """Says verdicts.

    Args:
        counters: of verdicts.
        history: what happened lately.
        tell: called when :attr:`last_refusal` has changed.
        seldom: limits what is said again and again.

    Attributes:
        last_refusal: what was refused last, for a person, while it matters: until the same source brings one that is
            taken, or any but a courier does.
    """

    def __init__(self, counters: Counters, history: History, tell: Callable[[], None], seldom: Seldom) -> None:
        self._history = history
        self.last_refusal: Ack | None = None
        self._counters = counters
        self._tell = tell
        self._seldom = seldom
        self._log = structlog.get_logger()

    def accepted(
        self, sealed: SealedBundle, bundle: Bundle, now: datetime, *, durable: bool, stays: bool = False
    ) -> Ack:
        """The bundle is in force, or the one that it withdraws no longer is.

        Args:
            sealed: as it came.
            bundle: what was in it.
            now: the instant of the verdict.
            durable: whether a restart will remember it.
            stays: it is a withdrawal, and what another stream brought is in force after it.
        """
        self._counters.accepted += 1
        event = "bundle.accepted" if bundle.action is Action.SET else "bundle.withdrawn"
        self._log.info(event, durable=durable, **_describe(bundle))
        kind = "bundle" if bundle.action is Action.SET else "withdrawn"
        self._history.add(now, kind, sealed.origin, f"seq {bundle.seq} of {bundle.issuer} for {bundle.subject}")
        # What a courier brings mends nothing that an operator's source has refused.
        self._mended(sealed.origin, anywhere=sealed.origin != COURIER)
        for aside in bundle.set_aside:
            self._log.warning("grant.set_aside", seq=bundle.seq, grant=aside.id, type=aside.type)
        return _ack(sealed, "accepted", now, bundle=bundle, durable=durable, reason=_STAYS if stays else None)

    def same(self, sealed: SealedBundle, bundle: Bundle, now: datetime, *, durable: bool, stays: bool = False) -> Ack:
        """It was in force already, or is a withdrawal that came before. The arguments are those of :meth:`accepted`."""
        self._counters.same += 1
        self._mended(sealed.origin, anywhere=False)
        if (unsaid := self._seldom.unsaid("bundle.same", sealed.origin)) is not None:
            self._log.info("bundle.same", origin=sealed.origin, seq=bundle.seq, unsaid=unsaid)
        return _ack(sealed, "same", now, bundle=bundle, durable=durable, reason=_STAYS if stays else None)

    def refused(
        self, sealed: SealedBundle, bundle: Bundle | None, verdict: Refused, now: datetime, *, repeated: bool = False
    ) -> Ack:
        """It is not taken.

        Args:
            sealed: as it came.
            bundle: what was in it, if it could be opened.
            verdict: why.
            now: the instant of the verdict.
            repeated: the same bytes were refused before, and that was said.
        """
        ack = _ack(sealed, "refused", now, bundle=bundle, code=verdict.code, reason=verdict.reason)
        if repeated:
            return ack
        if sealed.origin == COURIER:
            # Whoever runs a job may bring anything, as often as its share allows, old bundles too. It hears the verdict
            # itself: nobody is woken by it, and it hides nothing that a source brought.
            self._log.info("bundle.refused", origin=COURIER, code=verdict.code, reason=verdict.reason)
            return ack
        bump(self._counters.refused, verdict.code)
        self._history.add(now, "refused", sealed.origin, f"{verdict.code}: {verdict.reason}")
        self.last_refusal = ack
        self._tell()
        say = self._log.error if verdict.alarm else self._log.warning
        seq = bundle.seq if bundle is not None else None
        if (unsaid := self._seldom.unsaid("bundle.refused", sealed.origin, verdict.code)) is not None:
            say(
                "bundle.refused", origin=sealed.origin, code=verdict.code, reason=verdict.reason, seq=seq, unsaid=unsaid
            )
        return ack

    def held(self, sealed: SealedBundle, verdict: Refused, now: datetime, *, repeated: bool) -> Ack:
        """There is no verdict yet: whoever has the key is silent."""
        if not repeated:
            say = self._log.info if sealed.origin == COURIER else self._log.warning
            if (unsaid := self._seldom.unsaid("bundle.held", sealed.origin)) is not None:
                say("bundle.held", origin=sealed.origin, code=verdict.code, reason=verdict.reason, unsaid=unsaid)
        return _ack(sealed, "refused", now, code=verdict.code, reason=verdict.reason)

    def resumed(self, bundle: Bundle) -> None:
        """A bundle that an earlier process had in force is in force again."""
        self._log.info("bundle.resumed", **_describe(bundle))

    def leased_anew(self, bundle: Bundle) -> None:
        """It is in force, for longer or shorter than before: its signer's leases have another limit."""
        self._log.info("bundle.leased_anew", **_describe(bundle))

    def revoked(self, sealed: SealedBundle, bundle: Bundle, verdict: Refused, now: datetime) -> None:
        """It was in force, and ends."""
        self._log.error("bundle.revoked", code=verdict.code, reason=verdict.reason, **_describe(bundle))
        bump(self._counters.refused, verdict.code)
        self._history.add(now, "revoked", sealed.origin, f"{verdict.code}: {verdict.reason}")
        self.last_refusal = _ack(sealed, "refused", now, bundle=bundle, code=verdict.code, reason=verdict.reason)

    def unreadable(self, origin: str, error: UnreadableError, now: datetime) -> Ack:
        """A source has what looks like a bundle, and is none."""
        if (unsaid := self._seldom.unsaid("bundle.unreadable", origin)) is not None:
            self._log.error("bundle.unreadable", source=origin, reason=error.message, hint=error.hint, unsaid=unsaid)
        bump(self._counters.refused, UNREADABLE)
        self._history.add(now, "refused", origin, error.message)
        self.last_refusal = _ack(SealedBundle(b"", origin), "refused", now, code="unreadable", reason=error.message)
        self._tell()
        return self.last_refusal

    def _mended(self, origin: str, *, anywhere: bool) -> None:
        """Forget a refusal that no longer matters."""
        if self.last_refusal is not None and (anywhere or self.last_refusal.origin == origin):
            self.last_refusal = None
            self._tell()


async def acknowledge(
    source: Source,
    ack: Ack,
    told: Callable[[], Awaitable[bool]] | None,
    clock: Clock,
    newest: dict[tuple[str, str], Ack],
) -> None:
    """Tell a source its verdict, once it is true: a process that hangs is ended, or its service manager ends it.

    Args:
        source: which.
        ack: the verdict.
        told: whether each process that answers workers serves so; ``None``: it does.
        clock: time.
        newest: by source and its part, the last verdict, kept here. That alone is told: nothing piles up or overtakes
            another.
    """
    place = ack.origin, ack.part
    newest[place] = ack
    while told is not None:
        await clock.sleep(CONFIRMED_AGAIN_SECONDS)
        is_told = await told()
        if newest.get(place) is not ack:
            return
        if is_told:
            break
    await source.acknowledge(ack)


def _ack(
    sealed: SealedBundle,
    outcome: Any,
    now: datetime,
    *,
    bundle: Bundle | None = None,
    code: str | None = None,
    reason: str | None = None,
    durable: bool = True,
) -> Ack:
    return Ack(
        origin=sealed.origin,
        part=sealed.part,
        outcome=outcome,
        at=now,
        durable=durable,
        code=code,
        reason=reason,
        issuer=bundle.issuer if bundle else None,
        subject=bundle.subject if bundle else None,
        bundle_id=bundle.bundle_id if bundle else None,
        seq=bundle.seq if bundle else None,
    )


def _describe(bundle: Bundle) -> dict[str, Any]:
    """The fields of a bundle that a log may have."""
    return {
        "origin": bundle.origin,
        "issuer": bundle.issuer,
        "subject": bundle.subject,
        "seq": bundle.seq,
        "routes": {str(cloud): grant for cloud, grant in bundle.routes.items()},
        "lease_until": instant(bundle.lease_until) if bundle.lease_until is not None else None,
    }
