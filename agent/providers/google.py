"""Google tokens from grants, over Google's documented token protocols.

Five small exchanges, spoken here rather than by google-auth: its refresh flows run in threads with a two-minute
default timeout, take the time of an assertion from the machine's clock (a clock that is off then never recovers),
follow whatever URL a configuration names, and cost 12 MB. The wire is the same, and the tests hold google-auth
itself against the same fakes to prove it. Assertions are signed by joserfc, AWS subject tokens by botocore.

Sources: RFC 6749 section 6 (refresh), RFC 7523 (assertions), RFC 8693 (token exchange), and Google's pages on OAuth 2.0
for servers, workload identity federation with AWS, and ``projects.serviceAccounts.generate{Access,Id}Token``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

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
    accounts_of,
    broken,
    claims_of,
    decoded,
    id_token_of,
    refusal,
    token_answer,
)
from agent.providers.refusals import (
    CLOCK_SUSPECT,
    clock_is_suspect,
    from_upstream,
    good_for,
    over,
)
from agent.providers.regions import sts_url
from agent.providers.remote import AllowList
from agent.providers.settings import GoogleEndpoints, MintSettings
from agent.providers.signing_time import SigningTime
from agent.providers.webtoken import WebTokens, fetch_gce_identity
from agent.upstream import GceMetadata, Reach, Upstream, UpstreamError, UpstreamResponse
from agent.upstream.sigv4 import SigningKeys, signed_headers
from agent.wire.ec2 import parse_timestamp

_MAX_ANSWER_BYTES: Final = 65536
#: Google takes no assertion that claims more.
_ASSERTION_LIFE_SECONDS: Final = 3600
_ASSERTION_AUDIENCE: Final = "https://oauth2.googleapis.com/token"
_JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - a grant type's name
_ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a token type's name
_JWT_TYPE: Final = "urn:ietf:params:oauth:token-type:jwt"
_AWS4_REQUEST_TYPE: Final = "urn:ietf:params:aws:token-type:aws4_request"


class GoogleMint:
    """Issues Google access tokens and identity tokens.

    Args:
        aws: knows the region for federation from AWS.
        gce: the machine's own metadata server, if it is a GCE machine.
        boottime: ages what a server said of its own time.
    """

    def __init__(
        self,
        upstream: Upstream,
        settings: MintSettings,
        allowed: AllowList,
        tokens: WebTokens,
        *,
        aws: AwsMint,
        gce: GceMetadata | None,
        boottime: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._timeout_seconds = settings.request_timeout_seconds
        self._endpoints = settings.google
        self._allowed = allowed
        self._tokens = tokens
        self._aws = aws
        self._gce = gce
        # Mutable state: service accounts that refused to be impersonated for more than an hour.
        self._capped: set[str] = set()
        self._times = SigningTime(boottime)

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
        answer = await self._post_form(
            self._endpoints.token_url,
            Reach.CONFIGURED,
            form,
            doing="google refresh token",
            now=now,
            secrets=(grant.client_secret, grant.refresh_token),
        )
        found = token_answer(answer, "google refresh token")
        return Issued(
            GoogleToken(
                access_token=Secret(found.access_token),
                issued_at=now,
                expires_at=now + timedelta(seconds=found.seconds()),
                # gcloud's own logins ask for the e-mail scope, and then the identity token beside it says whose it is.
                email=grant.email or claims_of(found.id_token).email,
                scopes=tuple(found.scope.split()) if found.scope else grant.scopes,
            ),
            answer.date,
            timedelta(seconds=found.seconds()),
        )

    async def service_account(self, grant: GcpServiceAccount, now: datetime) -> Issued[GoogleToken]:
        """Exchange an assertion signed with a service account's key."""
        doing = "google service account"
        claims = {"scope": " ".join(grant.scopes)}
        answer = await self._assert(grant, claims, doing, now)
        found = token_answer(answer, doing)
        return Issued(
            GoogleToken(
                access_token=Secret(found.access_token),
                issued_at=now,
                expires_at=now + timedelta(seconds=found.seconds()),
                email=grant.client_email,
                scopes=grant.scopes,
            ),
            answer.date,
            timedelta(seconds=found.seconds()),
        )

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
        """RFC 7523. The audience is always the same, wherever the request is routed: Google's page says so."""
        url, reach = self._route(grant.token_uri, "token_url", doing)
        issued_at = int(self._times.at(url, now).timestamp())
        assertion = _signed_assertion(
            grant,
            {
                "iss": grant.client_email,
                "aud": _ASSERTION_AUDIENCE,
                "iat": issued_at,
                "exp": issued_at + _ASSERTION_LIFE_SECONDS,
                **claims,
            },
            doing,
        )
        form = {"grant_type": _JWT_BEARER, "assertion": assertion}
        return await self._post_form(url, reach, form, doing=doing, now=now, secrets=(assertion,), timed=True)

    async def _federated(
        self, grant: GcpExternalAccount, base: AwsCredential | None, scopes: tuple[str, ...], now: datetime
    ) -> Issued[GoogleToken]:
        """RFC 8693, with an OpenID Connect token or a signed AWS request as the subject."""
        doing = "google token exchange"
        url, reach = self._route(grant.token_url, "sts_url", doing)
        if grant.token is not None:
            kind, subject = _JWT_TYPE, (await self._tokens.fetch(grant.token)).reveal()
        elif base is not None:
            region = await self._aws.region(grant.region, base.role_arn)
            dated = self._times.at(url, now)
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
        answer = await self._post_form(url, reach, form, doing=doing, now=now, secrets=secrets, timed=True)
        found = token_answer(answer, doing)
        return Issued(
            GoogleToken(
                access_token=Secret(found.access_token),
                issued_at=now,
                expires_at=now + timedelta(seconds=found.seconds()),
                email=None,
                scopes=scopes,
            ),
            answer.date,
            timedelta(seconds=found.seconds()),
        )

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
            answer = await self._post_json(principal, "generateAccessToken", body, bearer=bearer, doing=doing, now=now)
        except Denied as error:
            if error.code != "INVALID_ARGUMENT" or lifetime_seconds <= USUAL_SECONDS:
                raise
            # Without the organisation policy an hour is the most: a shorter life is better than none.
            body["lifetime"] = f"{USUAL_SECONDS}s"
            answer = await self._post_json(principal, "generateAccessToken", body, bearer=bearer, doing=doing, now=now)
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
        answer = await self._post_json(principal, "generateIdToken", body, bearer=bearer, doing=doing, now=now)
        return id_token_of(Secret(decoded(answer, GeneratedIdToken, doing).token), audience, doing, now)

    async def _post_json(
        self, principal: str, verb: str, body: dict[str, Any], *, bearer: Secret, doing: str, now: datetime
    ) -> UpstreamResponse:
        base = self._endpoints.iamcredentials_url.rstrip("/")
        # The principal is the bundle's: quoted whole, so that it stays one segment of the path.
        url = f"{base}/v1/projects/-/serviceAccounts/{quote(principal, safe='@')}:{verb}"
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {bearer.reveal()}"}
        data = msgspec.json.encode(body)
        return await self._post(url, Reach.CONFIGURED, headers, data, doing=doing, now=now, secrets=(bearer,))

    async def _post_form(
        self,
        url: str,
        reach: Reach,
        form: Mapping[str, str],
        *,
        doing: str,
        now: datetime,
        secrets: Iterable[Secret | str],
        timed: bool = False,
    ) -> UpstreamResponse:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return await self._post(
            url, reach, headers, urlencode(form).encode(), doing=doing, now=now, secrets=secrets, timed=timed
        )

    async def _post(
        self,
        url: str,
        reach: Reach,
        headers: Mapping[str, str],
        body: bytes,
        *,
        doing: str,
        now: datetime,
        secrets: Iterable[Secret | str],
        timed: bool = False,
    ) -> UpstreamResponse:
        """POST and return the 200.

        What is ``timed`` is good for a short time only, so that a clock that is off makes it refused.
        """
        try:
            answer = await self._upstream.request(
                "POST",
                url,
                headers={"Accept": "application/json", **headers},
                body=body,
                timeout_seconds=self._timeout_seconds,
                max_bytes=_MAX_ANSWER_BYTES,
                reach=reach,
            )
        except UpstreamError as error:
            raise from_upstream(error, doing) from None
        if answer.status != 200:
            dated = self._times.at(url, now) if timed else now
            if timed and clock_is_suspect(answer.date, dated):
                self._times.refused(url, answer.date)
            raise refusal(answer, doing, dated, secrets, timed=timed)
        return answer

    def _route(self, named: str, endpoint: str, doing: str) -> tuple[str, Reach]:
        """Where a request for the URL that a grant names really goes, and how far it may reach."""
        configured: str = getattr(self._endpoints, endpoint)
        default: str = getattr(GoogleEndpoints(), endpoint)
        if configured != default or named == default:
            return configured, Reach.CONFIGURED
        return named, self._allowed.check(named, doing)


def aws_subject_token(base: AwsCredential, audience: str, region: str, now: datetime) -> str:
    """A signed ``sts:GetCallerIdentity`` request, as Google's token service wants it (it sends it to AWS itself).

    ``x-goog-cloud-target-resource`` is *inside* the signature, as Google's page recommends and google-auth does not
    do: a token caught on the way is then good for this one pool and provider only.
    """
    url = f"{sts_url(region)}?Action=GetCallerIdentity&Version=2011-06-15"
    host = url.removeprefix("https://").partition("?")[0]
    keys = SigningKeys(base.access_key_id, base.secret_access_key, base.session_token)
    headers = signed_headers(
        keys,
        "POST",
        url,
        {"host": host, "x-goog-cloud-target-resource": audience},
        b"",
        service="sts",
        region=region,
        now=now,
    )
    pairs = [{"key": name.lower(), "value": value} for name, value in sorted(headers.items())]
    return quote(msgspec.json.encode({"url": url, "method": "POST", "headers": pairs}))


def _signed_assertion(grant: GcpServiceAccount, claims: dict[str, Any], doing: str) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - imported only when a grant needs it
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - as above
    from joserfc import jws  # noqa: PLC0415 - as above
    from joserfc.jwk import RSAKey  # noqa: PLC0415 - as above

    unusable = Denied(f"{doing}: expected a pem rsa private key of 2048 bits or more", code="invalid-key")
    try:
        # Without the test that p and q are primes: it holds the loop for 70 ms, and what it would find out is that
        # the sender signed a key that does not work, which Google says as well.
        key = load_pem_private_key(grant.private_key.reveal().encode(), None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise unusable from None  # the parser's own words may quote the key
    if not isinstance(key, RSAPrivateKey) or key.key_size < 2048:
        raise unusable
    header = {"alg": "RS256", "typ": "JWT", "kid": grant.private_key_id}
    return jws.serialize_compact(header, msgspec.json.encode(claims), RSAKey.import_key(key), algorithms=["RS256"])
