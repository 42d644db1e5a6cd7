"""Until when each cloud will work if nothing new arrives, and who renews it until then.

Pure arithmetic over what each kind of credential may still call: a session from ``GetSessionToken`` can only assume
roles, a role session can only assume another role for one hour ("chaining"), a Google access token can do nothing for
itself, and so on. The same answer is given when a bundle is sealed, when it arrives, and in the status of the worker,
so that "this job will lose S3 at 03:12" is known before the job starts. A running worker knows more than the bundle
says, and adds it (:class:`Known`): its credentials, and the grants that give it no more.

The instants are *sure*, not hoped for: where a credential is renewed up to the moment its base ends, the last renewal
may have happened a full refresh interval before, and that interval is taken off.

Sources: the AWS STS API reference (GetSessionToken, AssumeRole, AssumeRoleWithWebIdentity: permissions and
DurationSeconds); the IAM user guide on role chaining; Google IAM credentials API, generateAccessToken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, NamedTuple, assert_never

import msgspec

from agent.core import jwt
from agent.core.clock import utc
from agent.core.limits import CHAINED_ROLE, USUAL_GOOGLE_TOKEN
from agent.core.model import (
    INSTANCE,
    AwsAssumeRole,
    AwsKeys,
    AwsSession,
    AwsWebIdentity,
    Cloud,
    Env,
    GcpAuthorizedUser,
    GcpExternalAccount,
    GcpImpersonation,
    GcpServiceAccount,
    GcpToken,
    Grant,
    HttpBroker,
    WebToken,
    WebTokenFile,
    WebTokenGce,
    WebTokenInline,
    WebTokenUrl,
)
from agent.core.refresh import oldest_aws, oldest_google
from agent.core.text import instant, spell
from agent.core.timekeeping import EARLIEST, LATEST


class Forecast(msgspec.Struct, frozen=True):
    """One cloud's forecast.

    Attributes:
        grant_id: the grant that the cloud is served from.
        until: the last instant at which it is sure to work; ``None`` when nothing known ends it.
        renewed_by: what renews it until then, in words; ``None`` when nothing does.
        cause: what ends it, in words.
        warnings: sentences for the person who seals or operates; no secret in them.
        turns: the first instant at which the same question has another answer, for whoever caches it; ``None``: never.
    """

    cloud: Cloud
    grant_id: str
    until: datetime | None
    renewed_by: str | None
    cause: str
    warnings: tuple[str, ...] = ()
    turns: datetime | None = None


class Known(NamedTuple):
    """The facts that a running worker has of one grant beyond its content.

    Attributes:
        ends: the end of the credential in hand; with none in hand, the instant at which that was known.
        length: for how long the credential in hand was given.
        stopped: why no more credentials are expected; ``None`` while they are.
    """

    ends: datetime
    length: timedelta | None = None
    stopped: str | None = None


SHORTER: Final = timedelta(minutes=1)
"""A credential was given for less than was asked if it is shorter by more than this: less is lost in transit."""


class _Span(NamedTuple):
    """How long one grant works: the parts of a :class:`Forecast` before the lease bounds them."""

    until: datetime | None
    renewed_by: str | None
    cause: str
    warnings: tuple[str, ...] = ()


class _Question(NamedTuple):
    """The question: it goes down the chain of grants.

    Attributes:
        turns: collects the instants at which a base ends: what is minted from it is answered otherwise from then on.
    """

    by_id: Mapping[str, Grant]
    known: Mapping[str, Known]
    now: datetime
    turns: list[datetime]

    def length(self, grant_id: str, asked: timedelta) -> timedelta:
        """The length for which that grant's credentials are given, as far as is known."""
        known = self.known.get(grant_id)
        if known is None or known.length is None or known.length > asked - SHORTER:
            return asked
        return known.length


def forecasts(
    grants: Iterable[Grant],
    routes: Mapping[Cloud, str],
    lease_until: datetime | None,
    now: datetime,
    known: Mapping[str, Known] | None = None,
) -> list[Forecast]:
    """The forecast of every routed cloud, in the order of :class:`Cloud`.

    Args:
        grants: all grants of the bundle; bases are looked up among them.
        routes: the grant each cloud is served from.
        lease_until: serve no longer than this (aware UTC); ``None`` for no such bound.
        now: the instant at which a worker would begin with this bundle; of a running one, the present.
        known: by grant, what a running worker knows beyond that.
    """
    by_id = {grant.id: grant for grant in grants}
    forecast = []
    for cloud in Cloud:
        if (grant_id := routes.get(cloud)) is None:
            continue
        question = _Question(by_id, known or {}, now, [])
        span = _span(grant_id, question, frozenset())
        turns = min((at for at in question.turns if at > now), default=None)
        forecast.append(msgspec.structs.replace(_leased(cloud, grant_id, span, lease_until, now), turns=turns))
    return forecast


def sentence(forecast: Forecast, now: datetime) -> str:
    """One line for a person: ``aws: until 2026-11-24T18:00:00Z (5 h 38 min); renewed by ...; then the lease ends``."""
    renewed = f"renewed by {forecast.renewed_by}" if forecast.renewed_by else "nothing renews it"
    if forecast.until is None:
        return f"{forecast.cloud}: no end in sight (grant {forecast.grant_id}); {renewed}; {forecast.cause}"
    left = forecast.until - now
    when = (
        f"until {instant(forecast.until)} ({spell(left)})"
        if left > timedelta(0)
        else f"ended {instant(forecast.until)}"
    )
    return f"{forecast.cloud}: {when} (grant {forecast.grant_id}); {renewed}; then {forecast.cause}"


def _leased(cloud: Cloud, grant_id: str, span: _Span, lease_until: datetime | None, now: datetime) -> Forecast:
    """Bound what the grant itself allows by the lease."""
    until, cause, warnings = span.until, span.cause, list(span.warnings)
    if until is not None and until <= now:
        warnings.append(f"{cloud} does not work any more: it ended {instant(until)}")
    elif lease_until is not None and until is not None and until < lease_until:
        warnings.append(
            f"{cloud} ends {instant(until)}, {spell(lease_until - until)} before the lease does: {span.cause}, and "
            "nothing in this bundle can renew it after that"
        )
    if lease_until is not None and (until is None or lease_until < until):
        until, cause = lease_until, "the lease ends"
    return Forecast(cloud, grant_id, until, span.renewed_by, cause, tuple(warnings))


def _span(grant_id: str, question: _Question, trail: frozenset[str]) -> _Span:
    """How long the grant works.

    ``trail`` holds the grants that led here. The decoder refuses circles, but this is also asked about claims that
    nobody has decoded yet.
    """
    now, grant = question.now, question.by_id.get(grant_id)
    if grant is None:
        return _Span(now, None, f"there is no grant {grant_id!r}", (f"there is no grant {grant_id!r} to stand on",))
    if grant_id in trail:
        return _Span(now, None, "the grants stand on each other in a circle", (f"grant {grant_id!r} stands on itself",))
    span = _from_content(grant, question, trail | {grant_id})
    known = question.known.get(grant_id)
    if known is None:
        return span
    if known.stopped is not None:
        return _Span(known.ends, None, known.stopped, span.warnings)
    if span.until is not None and known.ends > span.until:
        return span._replace(until=known.ends)  # what is in hand is sure
    return span


def _from_content(grant: Grant, question: _Question, trail: frozenset[str]) -> _Span:
    """How long the grant works by what it says of itself."""

    def base(name: str) -> _Span:
        if name == INSTANCE:
            return _Span(None, "the machine itself", "it lasts as long as the machine may use its own identity")
        return _span(name, question, trail)

    match grant:
        case AwsAssumeRole():
            return _assumed(grant, base(grant.base), question)
        case AwsWebIdentity():
            length = question.length(grant.id, timedelta(seconds=grant.duration_seconds))
            token = _web_token(grant.token, question.now)
            return _minted(token, length, "sts:AssumeRoleWithWebIdentity", oldest_aws(length), question)
        case GcpImpersonation():
            return _impersonated(grant, base(grant.base), question)
        case GcpExternalAccount():
            source = _web_token(grant.token, question.now) if grant.token is not None else base(grant.base or INSTANCE)
            if grant.service_account is not None:
                return _impersonated(grant, source, question)
            length = question.length(grant.id, USUAL_GOOGLE_TOKEN)
            return _minted(source, length, "Google's token exchange", oldest_google(length), question)
        case _:
            return _alone(grant)


def _alone(grant: AwsSession | AwsKeys | HttpBroker | GcpToken | GcpAuthorizedUser | GcpServiceAccount | Env) -> _Span:
    """How long a grant works that needs no other."""
    match grant:
        case AwsSession():
            return _Span(utc(grant.expires_at), None, "the session ends")
        case GcpToken():
            return _Span(utc(grant.expires_at), None, "the token ends")
        case AwsKeys():
            return _Span(None, "sts:GetSessionToken with the user's keys", "it lasts until the keys are revoked")
        case HttpBroker():
            return _Span(None, f"the broker at {_host(grant.url)}", "it lasts as long as the broker answers")
        case GcpAuthorizedUser():
            return _Span(None, "the user's refresh token", "it lasts until the refresh token is revoked")
        case GcpServiceAccount():
            return _Span(None, "the service account's key", "it lasts until the key is revoked")
        case Env():
            return _Span(None, None, "variables do not end", (f"grant {grant.id!r} holds variables, no identity",))
        case _:
            assert_never(grant)


def _assumed(grant: AwsAssumeRole, base: _Span, question: _Question) -> _Span:
    asked = timedelta(seconds=grant.duration_seconds)
    chained = not _is_user(question.by_id.get(grant.base))
    given = min(asked, CHAINED_ROLE) if chained else asked
    length = question.length(grant.id, given)
    span = _minted(base, length, "sts:AssumeRole", oldest_aws(length), question)
    if asked <= given:
        return span
    said = f"grant {grant.id!r} asks for sessions of {spell(asked)}, but a role assumed by a role session gets 1 h"
    return span._replace(warnings=(*span.warnings, said))


def _impersonated(grant: GcpImpersonation | GcpExternalAccount, base: _Span, question: _Question) -> _Span:
    asked = timedelta(seconds=grant.lifetime_seconds)
    length = question.length(grant.id, asked)
    span = _minted(base, length, "service account impersonation", oldest_google(length), question)
    if asked <= USUAL_GOOGLE_TOKEN:
        return span
    policy = "constraints/iam.allowServiceAccountCredentialLifetimeExtension"
    said = f"impersonated tokens of more than 1 h need the organization policy {policy}"
    return span._replace(warnings=(*span.warnings, said))


def _minted(base: _Span, length: timedelta, call: str, age: timedelta, question: _Question) -> _Span:
    """A credential minted from ``base``, each time for ``length``, and replaced at an age of ``age`` at most."""
    if base.until is None:
        renewed_by = f"{call}, with {base.renewed_by}" if base.renewed_by else call
        return _Span(None, renewed_by, base.cause, base.warnings)
    question.turns.append(base.until)
    if base.until <= question.now:
        return base
    # The last one minted before the base ended was minted at most `age` before that.
    return _Span(
        max(base.until + length - age, question.now),
        call,
        f"{base.cause} and what it last renewed runs out",
        base.warnings,
    )


def _is_user(base: Grant | None) -> bool:
    """Whether assuming a role with that base is *not* chaining, since it is an IAM user and no role.

    A finished session shows it by naming an account and no role, as ``credential-agent seal`` writes one that came from
    ``GetSessionToken``. A session that tells nothing is taken for a role's, which is the shorter guess.
    """
    if isinstance(base, AwsSession):
        return base.account_id is not None and base.role_arn is None and base.role_name is None
    return isinstance(base, AwsKeys)


def _host(url: str) -> str:
    """The host of a URL, without the user, the path or the query, any of which may hold a secret."""
    return url.partition("://")[2].partition("/")[0].partition("?")[0].rpartition("@")[2]


def _web_token(token: WebToken, now: datetime) -> _Span:
    match token:
        case WebTokenInline():
            ends = jwt_end(token.token.reveal())
            if ends is None:
                said = "the end of the web identity token cannot be read; it is taken to end now"
                return _Span(now + timedelta(seconds=1), None, "the web identity token ends", (said,))
            return _Span(ends, None, "the web identity token ends")
        case WebTokenFile():
            return _Span(
                None, f"the tokens in {token.path}", f"it lasts as long as fresh tokens arrive in {token.path}"
            )
        case WebTokenUrl():
            host = _host(token.url)
            return _Span(None, f"tokens from {host}", f"it lasts as long as {host} gives tokens")
        case WebTokenGce():
            return _Span(None, "the GCE machine's own identity", "it lasts as long as the machine has its identity")
        case _:
            assert_never(token)


class _Exp(msgspec.Struct):
    exp: int | float


def jwt_end(token: str) -> datetime | None:
    """The ``exp`` of a JSON Web Token, read and not verified; ``None`` when there is none to read."""
    said = jwt.claims(token, _Exp)
    try:
        # No sum of ours may leave what a datetime holds: the token's issuer chose the number.
        return None if said is None else utc(min(max(said.exp, EARLIEST), LATEST))
    except (ValueError, OverflowError, OSError):
        return None
