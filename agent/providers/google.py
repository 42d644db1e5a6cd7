"""Google tokens from grants, over Google's documented token protocols.

Five small exchanges, spoken here rather than by google-auth: its refresh flows run in threads with a two-minute
default timeout, take the time of an assertion from the machine's clock (a clock that is off then never recovers),
follow whatever URL a configuration names, and cost 12 MB. The wire is the same, and the tests hold google-auth
itself against the same fakes to prove it. How Google is asked (:mod:`~agent.providers.google_requests`), what is signed
for it (:mod:`~agent.providers.google_proofs`) and what an answer must be (:mod:`~agent.providers.google_answers`) are
files of their own.

Sources: RFC 6749 section 6 (refresh), RFC 7523 (assertions), RFC 8693 (token exchange), and Google's pages on OAuth 2.0
for servers, workload identity federation with AWS, and ``projects.serviceAccounts.generate{Access,Id}Token``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from agent.core.errors import Denied
from agent.core.issued import Issued
from agent.core.model import (
    CLOUD_PLATFORM,
    AwsCredential,
    GcpAuthorizedUser,
    GcpExternalAccount,
    GcpImpersonation,
    GcpServiceAccount,
    GoogleToken,
    IdToken,
)
from agent.core.secret import Secret
from agent.core.strictjson import NotThatShapeError
from agent.providers.aws import AwsMint
from agent.providers.credible import LONGEST_GOOGLE, sendable
from agent.providers.decoding import parsed
from agent.providers.google_answers import (
    USUAL_SECONDS,
    AccessTokenAnswer,
    GeneratedIdToken,
    IdTokenAnswer,
    TokenAnswer,
    accounts_of,
    broken,
    claims_of,
    decoded,
    id_token_of,
    token_answer,
)
from agent.providers.google_proofs import aws_subject_token, signed_assertion
from agent.providers.google_requests import GoogleRequests
from agent.providers.refusals import (
    CLOCK_SUSPECT,
    good_for,
    over,
)
from agent.providers.webtoken import WebTokens, fetch_gce_identity
from agent.upstream import GceMetadata, Reach, UpstreamResponse
from agent.wire.ec2 import parse_timestamp

_JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - a grant type's name
_ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a token type's name
_JWT_TYPE: Final = "urn:ietf:params:oauth:token-type:jwt"
_AWS4_REQUEST_TYPE: Final = "urn:ietf:params:aws:token-type:aws4_request"


class GoogleMint:
    """Issues Google access tokens and identity tokens.

    Args:
        requests: asks Google.
        token_url: where a user's refresh token is exchanged.
        tokens: fetches the OpenID Connect tokens that grants name.
        aws: knows the region for federation from AWS.
        gce: the machine's own metadata server, if it is a GCE machine.

    *Errors*: each method raises :class:`Denied` where Google, or the grant itself, refuses, and :class:`Transient`
    where asking again later may help.
    """

    def __init__(
        self,
        requests: GoogleRequests,
        tokens: WebTokens,
        *,
        token_url: str,
        aws: AwsMint,
        gce: GceMetadata | None,
    ) -> None:
        self._requests = requests
        self._token_url = token_url
        self._tokens = tokens
        self._aws = aws
        self._gce = gce
        # Mutable state: service accounts that refused to be impersonated for more than an hour.
        self._capped: set[str] = set()

    async def authorized_user(self, grant: GcpAuthorizedUser, now: datetime) -> Issued[GoogleToken]:
        """Exchange a user's refresh token. The endpoint is Google's, whatever a laptop's file said."""
        form = {
            "grant_type": "refresh_token",
            "client_id": grant.client_id,
            "client_secret": grant.client_secret.reveal(),
            "refresh_token": grant.refresh_token.reveal(),
        }
        if grant.scopes:
            form["scope"] = " ".join(grant.scopes)
        answer = await self._requests.post_form(
            self._token_url,
            Reach.CONFIGURED,
            form,
            doing="google refresh token",
            now=now,
            secrets=(grant.client_secret, grant.refresh_token),
        )
        found = token_answer(answer, "google refresh token")
        # gcloud's own logins ask for the e-mail scope, and then the identity token beside it says whose it is.
        email = grant.email or claims_of(found.id_token).email
        return _issued(found, answer, now, email, tuple(found.scope.split()) if found.scope else grant.scopes)

    async def service_account(self, grant: GcpServiceAccount, now: datetime) -> Issued[GoogleToken]:
        """Exchange an assertion signed with a service account's key."""
        doing = "google service account"
        claims = {"scope": " ".join(grant.scopes)}
        answer = await self._assert(grant, claims, doing, now)
        found = token_answer(answer, doing)
        return _issued(found, answer, now, grant.client_email, grant.scopes)

    async def impersonation(self, grant: GcpImpersonation, base: GoogleToken, now: datetime) -> Issued[GoogleToken]:
        """Impersonate a service account with the token of another grant or of the machine."""
        return await self._generate_access_token(
            grant.target_principal,
            base.access_token,
            delegates=grant.delegates,
            scopes=grant.scopes,
            lifetime_seconds=grant.lifetime_seconds,
            now=now,
        )

    async def external_account(
        self, grant: GcpExternalAccount, base: AwsCredential | None, now: datetime
    ) -> Issued[GoogleToken]:
        """Exchange a foreign identity for a federated token, and impersonate a service account with it if named."""
        scopes = (CLOUD_PLATFORM,) if grant.service_account is not None else grant.scopes
        federated = await self._federated(grant, base, scopes, now)
        if grant.service_account is None:
            return federated
        return await self._generate_access_token(
            grant.service_account,
            federated.credential.access_token,
            delegates=(),
            scopes=grant.scopes,
            lifetime_seconds=grant.lifetime_seconds,
            now=now,
        )

    # -- identity tokens -----------------------------------------------------------------------------------------

    async def own_id_token(self, audience: str, now: datetime) -> IdToken:
        """The GCE machine's own identity token."""
        token, _ = await fetch_gce_identity(self._gce, audience)
        return id_token_of(token, audience, "gce identity token", now)

    async def service_account_id_token(self, grant: GcpServiceAccount, audience: str, now: datetime) -> IdToken:
        """An identity token for a service account, from its key."""
        doing = "google service account identity token"
        answer = await self._assert(grant, {"target_audience": audience}, doing, now)
        return id_token_of(Secret(decoded(answer, IdTokenAnswer, doing).id_token), audience, doing, now)

    async def impersonation_id_token(
        self, grant: GcpImpersonation, base: GoogleToken, audience: str, now: datetime
    ) -> IdToken:
        """An identity token for an impersonated service account."""
        return await self._generate_id_token(grant.target_principal, base.access_token, grant.delegates, audience, now)

    async def external_account_id_token(
        self, grant: GcpExternalAccount, base: AwsCredential | None, audience: str, now: datetime
    ) -> IdToken:
        """An identity token for the service account that a federated identity impersonates."""
        if grant.service_account is None:
            raise Denied("a federated identity without a service account has no identity token", code="unsupported")
        federated = await self._federated(grant, base, (CLOUD_PLATFORM,), now)
        return await self._generate_id_token(
            grant.service_account, federated.credential.access_token, (), audience, now
        )

    # -- the exchanges -------------------------------------------------------------------------------------------

    async def _assert(
        self, grant: GcpServiceAccount, claims: dict[str, Any], doing: str, now: datetime
    ) -> UpstreamResponse:
        """RFC 7523."""
        url, reach = self._requests.route(grant.token_uri, "token_url", doing)
        assertion = signed_assertion(grant, claims, doing, self._requests.time_at(url, now))
        form = {"grant_type": _JWT_BEARER, "assertion": assertion}
        return await self._requests.post_form(url, reach, form, doing=doing, now=now, secrets=(assertion,), timed=True)

    async def _federated(
        self, grant: GcpExternalAccount, base: AwsCredential | None, scopes: tuple[str, ...], now: datetime
    ) -> Issued[GoogleToken]:
        """RFC 8693, with an OpenID Connect token or a signed AWS request as the subject."""
        doing = "google token exchange"
        url, reach = self._requests.route(grant.token_url, "sts_url", doing)
        if grant.token is not None:
            kind, subject = _JWT_TYPE, (await self._tokens.fetch(grant.token)).reveal()
        elif base is not None:
            region = await self._aws.region(grant.region, base.role_arn)
            dated = self._requests.time_at(url, now)
            kind, subject = _AWS4_REQUEST_TYPE, aws_subject_token(base, grant.audience, region, dated)
        else:
            raise RuntimeError("an external account that stands on aws was issued without its base")
        form = {
            "grant_type": _TOKEN_EXCHANGE,
            "audience": grant.audience,
            "scope": " ".join(scopes),
            "requested_token_type": _ACCESS_TOKEN_TYPE,
            "subject_token_type": kind,
            "subject_token": subject,
        }
        secrets: list[Secret | str] = [
            subject,
            *([base.session_token, base.secret_access_key] if base is not None else []),
        ]
        answer = await self._requests.post_form(url, reach, form, doing=doing, now=now, secrets=secrets, timed=True)
        found = token_answer(answer, doing)
        return _issued(found, answer, now, None, scopes)

    async def _generate_access_token(
        self,
        principal: str,
        bearer: Secret,
        *,
        delegates: tuple[str, ...],
        scopes: tuple[str, ...],
        lifetime_seconds: int,
        now: datetime,
    ) -> Issued[GoogleToken]:
        doing = "google impersonation"
        if principal in self._capped:
            lifetime_seconds = min(lifetime_seconds, USUAL_SECONDS)
        body = {"delegates": accounts_of(delegates), "scope": list(scopes), "lifetime": f"{lifetime_seconds}s"}
        try:
            answer = await self._requests.post_iam(
                principal, "generateAccessToken", body, bearer=bearer, doing=doing, now=now
            )
        except Denied as error:
            if error.code != "INVALID_ARGUMENT" or lifetime_seconds <= USUAL_SECONDS:
                raise
            # Without the organisation policy an hour is the most: a shorter life is better than none.
            body["lifetime"] = f"{USUAL_SECONDS}s"
            answer = await self._requests.post_iam(
                principal, "generateAccessToken", body, bearer=bearer, doing=doing, now=now
            )
            self._capped.add(principal)
        found = decoded(answer, AccessTokenAnswer, doing)
        try:
            expires_at = parsed(lambda: parse_timestamp(found.expire_time))
        except NotThatShapeError:
            raise broken(doing, answer) from None
        access_token = Secret(found.access_token)
        sendable(doing, answer.date, access_token)
        left = min(expires_at - now, expires_at - (answer.date or now), key=abs)
        if over(expires_at, answer.date, now) or left > LONGEST_GOOGLE + CLOCK_SUSPECT:
            raise broken(doing, answer)
        token = GoogleToken(
            access_token=access_token,
            issued_at=now,
            expires_at=expires_at,
            email=principal,
            scopes=scopes,
        )
        asked = timedelta(seconds=lifetime_seconds)
        return Issued(token, answer.date, good_for(expires_at, answer.date, now, asked))

    async def _generate_id_token(
        self, principal: str, bearer: Secret, delegates: tuple[str, ...], audience: str, now: datetime
    ) -> IdToken:
        doing = "google impersonation identity token"
        body = {"delegates": accounts_of(delegates), "audience": audience, "includeEmail": True}
        answer = await self._requests.post_iam(principal, "generateIdToken", body, bearer=bearer, doing=doing, now=now)
        return id_token_of(Secret(decoded(answer, GeneratedIdToken, doing).token), audience, doing, now)


def _issued(
    found: TokenAnswer, answer: UpstreamResponse, now: datetime, email: str | None, scopes: tuple[str, ...]
) -> Issued[GoogleToken]:
    """The access token in the answer of a token endpoint."""
    life = timedelta(seconds=found.seconds())
    token = GoogleToken(
        access_token=Secret(found.access_token), issued_at=now, expires_at=now + life, email=email, scopes=scopes
    )
    return Issued(token, answer.date, life)
