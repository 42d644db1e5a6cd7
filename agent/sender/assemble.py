"""From what was collected to a sealed bundle: the rules that a command line and a control plane share.

Values that the caller leaves out are worked out here: which grant serves each cloud, who may take it, until when it may
be accepted, its number. The result also has what a sender should know: until when each cloud will work, and what to
worry about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from agent import bundle
from agent.core.errors import PayloadError
from agent.core.model import Action, Cloud, Grant, OnExpiry
from agent.identity.forecast import Forecast, forecasts
from agent.sender import Collected
from agent.sender.claims import ClaimsFile, content_of

DEFAULT_SUBJECT = "default"


class Assembled(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed bundle, and what its sender should know of it.

    Attributes:
        sealed: the bundle, ASCII.
        forecast: by cloud, until when it will work, and what to worry about; empty for a withdrawal.
        accept_until: the last instant of acceptance.
    """

    sealed: bytes
    action: Action
    issuer: str
    subject: str
    seq: int
    accept_until: datetime
    forecast: tuple[Forecast, ...]


def assemble(
    *,
    signer: bundle.SigningKey,
    recipients: Sequence[bundle.RecipientKey],
    now: datetime,
    issuer: str,
    base: ClaimsFile | None = None,
    collected: Sequence[Collected] = (),
    more: Sequence[Grant | Mapping[str, Any]] = (),
    withdraw: bool = False,
    subject: str | None = None,
    audiences: Sequence[str] = (),
    seq: int | None = None,
    accept_until: datetime | None = None,
    lease_until: datetime | None = None,
    on_expiry: OnExpiry | None = None,
    form: Literal["general", "flattened", "compact"] = "general",
) -> Assembled:
    """Seal what was collected. Arguments that are ``None`` or empty are taken from ``base``, or worked out.

    Args:
        signer: the key that workers have pinned.
        recipients: the workers' keys.
        now: the present instant, aware UTC.
        issuer: who is speaking.
        base: claims that were written by hand.
        collected: identities of this computer.
        more: further grants (variables).
        withdraw: take away what is served.
        subject: the stream that ``seq`` counts in; by default :data:`DEFAULT_SUBJECT`.
        audiences: which workers; by default those that hold a recipient's key.
        seq: by default the milliseconds since 1970, which need no memory.
        accept_until: by default an hour from now, or when the first cloud has ended: a bundle that can do nothing any
            more need not be accepted.
        lease_until: serve no longer than this.
        on_expiry: what follows the end.
        form: the JWE serialization.

    Raises:
        PayloadError: there is nothing to seal, a withdrawal carries something, or the worker would refuse it.
        FormatError: the keys, or the size.
    """
    base = base or ClaimsFile()
    action = Action.WITHDRAW if withdraw or base.action is Action.WITHDRAW else Action.SET
    grants: list[Grant | Mapping[str, Any]] = [*base.grants, *(g for one in collected for g in one.grants), *more]
    if action is Action.WITHDRAW and grants:
        raise PayloadError("a withdrawal carries nothing: leave out what it would carry")
    if action is Action.SET and not grants:
        raise PayloadError("nothing to seal: expected a grant, variables or a withdrawal, got none of them")
    routes = routes_of(base, collected)
    lease_until = lease_until or _at(base.lease_until)
    forecast: tuple[Forecast, ...] = ()
    if action is Action.SET:
        content = content_of(grants, routes)
        forecast = tuple(forecasts(content.grants, content.routes, lease_until, now))
    accept_until = accept_until or _at(base.exp) or default_acceptance(forecast, now)
    subject = subject or base.sub or DEFAULT_SUBJECT
    seq = seq if seq is not None else base.seq
    if seq is None:
        seq = int(now.timestamp() * 1000)
    sealed = bundle.seal(
        signer=signer,
        recipients=recipients,
        issuer=issuer,
        subject=subject,
        audiences=audiences or base.audiences or tuple(bundle.audience_key(key.kid) for key in recipients),
        now=now,
        grants=grants,
        routes=routes,
        seq=seq,
        action=action,
        not_before=_at(base.nbf),
        accept_until=accept_until,
        lease_until=lease_until,
        on_expiry=on_expiry or base.on_expiry,
        bundle_id=base.jti,
        form=form,
    )
    return Assembled(
        sealed=sealed,
        action=action,
        issuer=issuer,
        subject=subject,
        seq=seq,
        accept_until=accept_until,
        forecast=forecast,
    )


def routes_of(base: ClaimsFile, collected: Sequence[Collected]) -> dict[Cloud, str] | None:
    """The routes of the claims, and those of what was collected; ``None`` lets the worker see for itself."""
    if base.routes is None and base.grants:
        return None
    return {**(base.routes or {}), **{one.cloud: one.route for one in collected}}


def default_acceptance(forecast: Sequence[Forecast], now: datetime) -> datetime:
    """Until when a bundle may be accepted if its sender does not say."""
    ends = [one.until for one in forecast if one.until is not None and one.until > now]
    return min([now + bundle.DEFAULT_ACCEPT, *ends])


def _at(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
