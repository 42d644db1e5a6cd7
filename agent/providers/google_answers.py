"""Google's answers: tokens, claims and refusals, read strictly."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Final, TypeVar

import msgspec

from agent.core import jwt
from agent.core.errors import Denied, ProviderError, Transient
from agent.core.limits import USUAL_GOOGLE_TOKEN
from agent.core.model import (
    LAST_SECOND,
    IdToken,
)
from agent.core.secret import Secret
from agent.core.strictjson import NotThatShapeError, decode
from agent.providers.credible import LONGEST_GOOGLE, sendable
from agent.providers.refusals import (
    clock_hint,
    clock_is_suspect,
    passing_status,
    said,
    word,
)
from agent.upstream import UpstreamResponse

USUAL_SECONDS: Final = int(USUAL_GOOGLE_TOKEN.total_seconds())
#: OAuth 2.0 errors that pass by themselves (RFC 6749 section 4.1.2.1; Google adds the first).
_PASSING_ERRORS: Final = frozenset({"internal_failure", "server_error", "temporarily_unavailable"})
#: ``google.rpc.Code`` names that pass by themselves.
_PASSING_RPC: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED"})


_HINTS: Final = {
    "invalid_grant": "the refresh token, key or subject token is not accepted any more: send a new bundle",
    "invalid_client": "the oauth client of the grant was deleted or its secret changed",
    "invalid_target": "check the audience: the workload identity pool and provider it names",
    "PERMISSION_DENIED": "the base identity needs roles/iam.serviceAccountTokenCreator on the service account",
    "UNAUTHENTICATED": "the token that this one stands on is not accepted",
}


_T = TypeVar("_T")


class TokenAnswer(msgspec.Struct, frozen=True):
    """The token endpoint's (RFC 6749 section 5.1)."""

    access_token: Annotated[str, msgspec.Meta(min_length=1)]
    # A number that Google's token service has been seen to send as text.
    expires_in: Annotated[int, msgspec.Meta(ge=1)] | Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,6}\Z")]
    scope: str = ""
    id_token: str = ""

    def seconds(self) -> int:
        """How long it is good for."""
        return int(self.expires_in)


class IdTokenAnswer(msgspec.Struct, frozen=True):
    """The token endpoint's, where an identity token was asked for."""

    id_token: Annotated[str, msgspec.Meta(min_length=1)]


class GeneratedIdToken(msgspec.Struct, frozen=True):
    """The answer of ``generateIdToken`` (IAM Service Account Credentials API)."""

    token: Annotated[str, msgspec.Meta(min_length=1)]


class AccessTokenAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """The answer of ``generateAccessToken`` (the same API)."""

    access_token: Annotated[str, msgspec.Meta(min_length=1)]
    expire_time: str


class _RpcStatus(msgspec.Struct, frozen=True):
    status: str = ""
    message: str = ""


class _ErrorAnswer(msgspec.Struct, frozen=True):
    error: str | _RpcStatus
    error_description: str = ""


class _Claims(msgspec.Struct, frozen=True):
    exp: Annotated[int, msgspec.Meta(ge=1, le=LAST_SECOND)] | None = None
    iat: Annotated[int, msgspec.Meta(ge=0, le=LAST_SECOND)] | None = None
    email: str | None = None


def decoded(answer: UpstreamResponse, shape: type[_T], doing: str) -> _T:
    """The answer in that shape; raises Transient when it is not."""
    try:
        return decode(answer.body, shape)
    except NotThatShapeError:
        raise broken(doing, answer) from None


def token_answer(answer: UpstreamResponse, doing: str) -> TokenAnswer:
    """The answer of a token endpoint.

    A life above what Google gives is refused and not capped: whoever writes such a number does not know when the token
    ends, and a guess of ours that is too long would hand out a dead token as a live one.

    Raises:
        Transient: it is not one, its life is not credible, or it cannot be sent.
    """
    found = decoded(answer, TokenAnswer, doing)
    longest = int(LONGEST_GOOGLE.total_seconds())
    if found.seconds() > longest:
        raise Transient(
            f"{doing}: expected a life of 1 to {longest} seconds, got more", code="lifetime", server_time=answer.date
        )
    sendable(doing, answer.date, Secret(found.access_token))
    return found


def broken(doing: str, answer: UpstreamResponse) -> Transient:
    """The error for an answer that is not what was promised."""
    return Transient(f"{doing}: the answer is not what the api promises", code="protocol", server_time=answer.date)


def refusal(
    answer: UpstreamResponse, doing: str, now: datetime, secrets: Iterable[Secret | str], *, timed: bool
) -> ProviderError:
    """The error for a refusal, permanent or passing, without a secret in its words."""
    code, text = _reason(answer)
    skewed = timed and clock_is_suspect(answer.date, now)
    passing = passing_status(answer.status) or code in _PASSING_ERRORS or code in _PASSING_RPC or skewed or not code
    kind: type[ProviderError] = Transient if passing else Denied
    code = word(code, f"http-{answer.status}")
    text = said(text, secrets)
    return kind(
        f"{doing}: {code}" + (f": {text}" if text else ""),
        hint=clock_hint(answer.date, now) if skewed else _HINTS.get(code),
        code=code,
        server_time=answer.date,
        pause_seconds=answer.pause_seconds,
    )


def _reason(answer: UpstreamResponse) -> tuple[str, str]:
    """The code and text of Google's two kinds of error body; empty when it is neither (then it is not Google's)."""
    try:
        found = decode(answer.body, _ErrorAnswer)
    except NotThatShapeError:
        return "", ""
    if isinstance(found.error, _RpcStatus):
        return found.error.status, found.error.message
    return found.error, found.error_description


def accounts_of(emails: tuple[str, ...]) -> list[str]:
    """The names of service accounts as the API wants them."""
    return [f"projects/-/serviceAccounts/{email}" for email in emails]


def claims_of(token: str) -> _Claims:
    """The claims of a token that came over TLS from its issuer, hence not verified; empty when it is not one."""
    return jwt.claims(token, _Claims) or _Claims()


def id_token_of(token: Secret, audience: str, doing: str, now: datetime) -> IdToken:
    """The identity token, with its own end; raises Transient for one that cannot be served."""
    sendable(doing, None, token)
    claims = claims_of(token.reveal())
    if claims.exp is None:
        raise Transient(f"{doing}: the token has no end", code="protocol")
    issued_at = datetime.fromtimestamp(claims.iat, UTC) if claims.iat is not None else now
    return IdToken(
        token=token,
        audience=audience,
        issued_at=min(issued_at, now),
        # No longer than any that Google gives: an end far off would be kept, and served, for ever.
        expires_at=min(datetime.fromtimestamp(claims.exp, UTC), now + LONGEST_GOOGLE),
    )
