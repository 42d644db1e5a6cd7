"""Whose machine is it? Evidence of an enrolment, verified with whoever vouches, and checked by the sender's policy.

Every request is checked before it is sent (:mod:`agent.enrol`): a worker is a stranger, and a request
that it signed is only ever sent to a genuine STS host, with headers and a body known to the byte. Redirects are
not followed, proxies are the sender's own, and the answer is believed because TLS says who gave it.

Blocks; safe to call from several threads at once. The costs: one question to STS for each AWS enrolment, Google's
certificates once in five minutes.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from agent import enrol
from agent.core import jwt
from agent.core.errors import EvidenceError
from agent.core.google import ACCOUNTS_HOST, ACCOUNTS_ORIGIN
from agent.core.model import Cloud
from agent.core.strictjson import NotThatShapeError, decode
from agent.enrol import AwsSts, AwsWebIdentity, Enrolment, GcpIdentity, Machine, Policy
from agent.sender.https import LARGEST_ANSWER, Answer, Https

GOOGLE_CERTS_URL: Final = "https://www.googleapis.com/oauth2/v1/certs"
GOOGLE_ISSUERS: Final = frozenset({ACCOUNTS_ORIGIN, ACCOUNTS_HOST})
LEEWAY_SECONDS: Final = 60
"""How far the sender's clock may be off where a token's times are compared with it."""

_LONGEST_TOKEN: Final = 20_000
_KEYS_KEPT: Final = timedelta(minutes=5)
_ISSUER: Final = re.compile(r"https://[0-9a-f-]{36}\.tokens\.sts\.global\.api\.aws\Z")
_ROLE: Final = re.compile(r"arn:(aws[a-z-]{0,16}):iam::([0-9]{12}):role/(?:[!-~]{1,512}/)?([A-Za-z0-9+=,.@_-]{1,64})\Z")
_INSTANCE_ARN: Final = re.compile(r"arn:aws[a-z-]{0,16}:ec2:[a-z0-9-]{1,32}:([0-9]{12}):instance/(i-[0-9a-f]{8,17})\Z")
_AWS_CLAIMS: Final = "https://sts.amazonaws.com/"
_PASSING: Final = frozenset({"Throttling", "ThrottlingException", "RequestLimitExceeded", "ServiceUnavailable"})

Get = Callable[[str], bytes]
"""Fetches a public document. Raises EvidenceError, code ``unavailable``."""


class Verifier:
    """Verifies enrolments.

    Args:
        policy: to whom an identity is given.
        sts_url: where STS is reached instead of at the host that was signed for (a VPC endpoint, a test). The request
            names the host that was signed for all the same.
        google_certs_url: where Google's certificates are, likewise.
        web_identity: whether tokens of ``sts:GetWebIdentityToken`` are taken.
        get: fetches the public keys of whoever signed a token.
        https: how those who vouch are reached.
        now: the sender's time, aware.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        sts_url: str | None = None,
        google_certs_url: str = GOOGLE_CERTS_URL,
        web_identity: bool = True,
        get: Get | None = None,
        https: Https | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.policy = policy
        self._sts_url = sts_url
        self._google_certs_url = google_certs_url
        self._web_identity = web_identity
        self._https = https or Https()
        self._now = now
        self._documents = _Documents(get or self._get, now)

    def verify(self, enrolment: Enrolment) -> Machine:
        """The machine that holds ``enrolment.key``, if it is proved and the policy admits it.

        Args:
            enrolment: as :func:`agent.enrol.read_enrolment` gave it, for the nonce that *this* sender made.

        Raises:
            EvidenceError: no evidence (``none``), none that holds, or the policy does not admit it (``policy``);
                ``unavailable``: whoever vouches did not answer, so the worker may be asked again.
        """
        refusals: list[EvidenceError] = []
        for one in sorted(enrolment.evidence, key=_strength):
            try:
                machine = self._prove(one, enrolment)
                self.policy.check(machine)
            except EvidenceError as error:
                refusals.append(error)
            else:
                return machine
        if not refusals:
            why = "; ".join(f"{one.kind}: {one.reason}" for one in enrolment.missing)
            raise EvidenceError(
                f"the worker has nothing that says whose machine it is ({why or 'no reason given'})",
                hint="compare its thumbprint by another way, or say that the channel is trusted",
                code="none",
            )
        raise min(refusals, key=lambda error: _TELLING.index(error.code) if error.code in _TELLING else -1)

    def _prove(self, evidence: enrol.Evidence, enrolment: Enrolment) -> Machine:
        match evidence:
            case AwsSts():
                return self._sts(evidence, enrolment)
            case AwsWebIdentity():
                return self._aws_token(evidence, enrolment)
            case GcpIdentity():
                return self._google(evidence, enrolment)

    # -- AWS ----------------------------------------------------------------------------------------------------------

    def _sts(self, evidence: AwsSts, enrolment: Enrolment) -> Machine:
        request = enrol.checked_request(
            evidence, thumbprint=enrolment.thumbprint, nonce=enrolment.nonce, now=self._now()
        )
        self.policy.check_partition(request.partition)
        status, headers, body = self._post(self._sts_url or f"https://{request.host}/", request.headers)
        answer = _parsed(status, headers, body)
        if status != 200:
            code = str(answer["Error"].get("Code", f"status {status}"))[:60]
            passing = status >= 500 or status == 429 or code in _PASSING
            raise EvidenceError(
                f"aws-sts: sts does not confirm it: {code if code.isprintable() else status}",
                code="unavailable" if passing else "rejected",
            )
        return enrol.aws_machine(answer.get("Arn"), answer.get("Account"), partition=request.partition)

    def _post(self, url: str, headers: Mapping[str, str]) -> Answer:
        try:
            answer = self._https.exchange("POST", url, headers, enrol.STS_BODY.encode())
        except OSError as error:
            raise EvidenceError(
                f"aws-sts: sts cannot be reached: {error}",
                hint="this computer asks sts itself: see its network, HTTPS_PROXY and AWS_CA_BUNDLE",
                code="unavailable",
            ) from None
        if len(answer[2]) > LARGEST_ANSWER:
            raise EvidenceError("aws-sts: the answer is longer than any of sts", code="unavailable")
        return answer

    def _get(self, url: str) -> bytes:
        host = url.split("/")[2]
        unreachable = EvidenceError(f"{host} does not give the keys that it signs with", code="unavailable")
        try:
            status, _, body = self._https.exchange("GET", url, {}, None)
        except OSError:
            raise unreachable from None
        if status != 200 or len(body) > LARGEST_ANSWER:
            raise unreachable
        return body

    def _aws_token(self, evidence: AwsWebIdentity, enrolment: Enrolment) -> Machine:
        if not self._web_identity:
            raise EvidenceError("aws-web-identity: this sender does not take it", code="token")
        from joserfc import jwt as jose  # noqa: PLC0415 - seldom needed
        from joserfc.errors import JoseError  # noqa: PLC0415 - as above
        from joserfc.jwk import KeySet  # noqa: PLC0415 - as above

        issuer = _unverified(evidence.token).get("iss")
        if not isinstance(issuer, str) or not _ISSUER.match(issuer):
            raise EvidenceError("aws-web-identity: the issuer is not one of aws", code="token")
        document = self._documents.get(f"{issuer}/.well-known/jwks.json")
        try:
            keys = KeySet.import_key_set(decode(document))
        except (JoseError, ValueError, TypeError, KeyError, AttributeError):
            raise EvidenceError("aws-web-identity: the issuer's keys cannot be read", code="unavailable") from None
        try:
            claims = jose.decode(evidence.token, keys, algorithms=["RS256", "ES384"]).claims
        except (JoseError, ValueError, TypeError, KeyError):
            raise EvidenceError("aws-web-identity: the signature is not the issuer's", code="token") from None
        _check_times(claims, self._now(), "aws-web-identity")
        if claims.get("aud") not in (wanted := enrol.audience(enrolment.thumbprint, enrolment.nonce), [wanted]):
            raise EvidenceError("aws-web-identity: it is for another key or question", code="binding")
        return _aws_token_machine(claims, issuer)

    # -- Google -------------------------------------------------------------------------------------------------------

    def _google(self, evidence: GcpIdentity, enrolment: Enrolment) -> Machine:
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415 - AWS senders do without
        from google.oauth2 import id_token  # noqa: PLC0415 - as above

        wanted = enrol.audience(enrolment.thumbprint, enrolment.nonce)
        if _unverified(evidence.token).get("aud") != wanted:
            raise EvidenceError("gcp-identity: it is for another key or question", code="binding")
        try:
            claims = id_token.verify_token(
                evidence.token,
                self._documents.google_transport(),
                audience=wanted,
                certs_url=self._google_certs_url,
                clock_skew_in_seconds=LEEWAY_SECONDS,
            )
        except (GoogleAuthError, ValueError, TypeError, KeyError):
            raise EvidenceError("gcp-identity: google does not confirm it: signature or times", code="token") from None
        if claims.get("iss") not in GOOGLE_ISSUERS or claims.get("aud") != wanted:
            raise EvidenceError("gcp-identity: the issuer is not google", code="token")
        return enrol.google_machine(claims)


_TELLING: Final = ("policy", "unavailable", "rejected", "binding", "principal", "token", "date")
"""Of several refusals the first in this order is raised; a code that is not here is a forgery, and goes first."""


def _strength(evidence: enrol.Evidence) -> int:
    """Evidence that names the instance itself is tried first."""
    return (GcpIdentity, AwsWebIdentity, AwsSts).index(type(evidence))


def _parsed(status: int, headers: Mapping[str, str], body: bytes) -> Mapping[str, Any]:
    """An answer of STS: its result, or its error."""
    from botocore.parsers import ResponseParserError  # noqa: PLC0415 - as above

    parser, shape = _reader()
    try:
        answer = parser.parse({"status_code": status, "headers": headers, "body": body}, shape)
    except (ResponseParserError, LookupError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError):
        answer = None  # xml that is another document, or has no end of nesting
    said = isinstance(answer, dict) and (
        isinstance(answer.get("Error"), dict)
        if status != 200
        else all(isinstance(answer.get(name), str) for name in ("Arn", "Account"))
    )
    if not said:
        raise EvidenceError("aws-sts: the answer is not from sts", code="unavailable")
    return cast("Mapping[str, Any]", answer)


@functools.cache
def _reader() -> tuple[Any, Any]:
    from botocore.loaders import Loader  # noqa: PLC0415 - as above
    from botocore.model import ServiceModel  # noqa: PLC0415 - as above
    from botocore.parsers import create_parser  # noqa: PLC0415 - as above

    # From botocore's own package only: ``~/.aws/models`` may hold anything.
    loader = Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
    model = ServiceModel(loader.load_service_model("sts", "service-2"), "sts")
    return create_parser("query"), model.operation_model("GetCallerIdentity").output_shape


def _aws_token_machine(claims: Mapping[str, Any], issuer: str) -> Machine:
    role = _ROLE.match(claims["sub"]) if isinstance(claims.get("sub"), str) else None
    more = claims.get(_AWS_CLAIMS)
    said = more if isinstance(more, Mapping) else {}
    # Who asks with SubjectMode=OriginIdentity is named in ``sub`` as some identity provider names them, perhaps like a
    # role of this account. ``principal_id`` is the role that asked, in either mode.
    asked = said.get("principal_id")
    if role is None or asked != claims["sub"] or said.get("aws_account") != role[2] or claims.get("iss") != issuer:
        raise EvidenceError("aws-web-identity: expected the token of a role, as a machine has", code="principal")
    arn = said.get("ec2_source_instance_arn")
    instance = _INSTANCE_ARN.match(arn) if isinstance(arn, str) else None
    if arn is not None and (instance is None or instance[1] != role[2]):
        raise EvidenceError("aws-web-identity: the instance is not one of the account", code="principal")
    return Machine(
        cloud=Cloud.AWS,
        account=role[2],
        principal=role[3],
        instance_id=instance[2] if instance else None,
        instance_proved=instance is not None,
        source="aws-web-identity",
        partition=role[1],
    )


def _check_times(claims: Mapping[str, Any], now: datetime, kind: str) -> None:
    at = now.timestamp()
    issued, ends = claims.get("iat"), claims.get("exp")
    if type(issued) is not int or type(ends) is not int:
        raise EvidenceError(f"{kind}: the token has no times", code="token")
    if not issued - LEEWAY_SECONDS <= at < ends + LEEWAY_SECONDS:
        raise EvidenceError(f"{kind}: the token has ended, or is not valid yet", code="date")


def _unverified(token: str) -> dict[str, Any]:
    """Read a token's own claims, to see at once whether it is worth verifying. None of them is believed."""
    if len(token) > _LONGEST_TOKEN:
        raise EvidenceError("a token is at most 20000 characters long", code="token")
    return jwt.claims(token, dict[str, Any]) or {}


class _Documents:
    """Public keys, fetched once in a while, not once for each of ten thousand workers; a page is none."""

    def __init__(self, get: Get, now: Callable[[], datetime]) -> None:
        self._fetch = get
        self._now = now
        self._lock = threading.Lock()
        self._held: dict[str, tuple[datetime, bytes]] = {}

    def get(self, url: str) -> bytes:
        """The document at ``url``, not older than five minutes."""
        with self._lock:
            held = self._held.get(url)
            now = self._now()
            if held is None or not held[0] <= now < held[0] + _KEYS_KEPT:
                if len(self._held) >= 64:
                    self._held.clear()  # bounded: a stranger's token names the issuer
                data = self._fetch(url)
                try:
                    decode(data, dict[str, Any])
                except NotThatShapeError:
                    reason = f"{url.split('/')[2]} gives something else than the keys that it signs with"
                    raise EvidenceError(reason, code="unavailable") from None
                held = self._held[url] = (now, data)
            return held[1]

    def google_transport(self) -> Any:
        """A transport of google-auth's, for what it fetches: certificates."""
        return lambda url, **_: _Fetched(self.get(url))


class _Fetched:
    """An answer as google-auth reads it."""

    status = 200
    headers: Mapping[str, str] = {}

    def __init__(self, data: bytes) -> None:
        self.data = data
