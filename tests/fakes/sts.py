"""AWS STS, its query protocol, written from the API reference and the Signature Version 4 documentation.

A little world of accounts: users with keys, roles with trust and a maximum, sessions that end. Signatures are really
verified (by an implementation of its own), times are evaluated by the injected clock, and faults are the caller's
choice: ``weather`` is asked before every call.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime
from urllib.parse import parse_qsl, quote
from xml.sax.saxutils import escape

from tests.fakes.net import Answer, Asked, Fault
from tests.fakes.web_identity import Issuer, RefusedError

XMLNS = "https://sts.amazonaws.com/doc/2011-06-15/"
ALLOWED_SKEW = timedelta(minutes=5)


@dataclass
class Principal:
    """Who holds an access key.

    Attributes:
        kind: ``user`` (long-term keys), ``user-session`` (GetSessionToken) or ``role-session``.
    """

    arn: str
    secret: str
    kind: str = "user"
    token: str | None = None
    ends: datetime | None = None

    @property
    def account(self) -> str:
        return self.arn.split(":")[4]


@dataclass
class Role:
    """A role: who may assume it (ARNs of principals or of their roles; ``*`` for anybody) and for how long."""

    arn: str
    trusts: frozenset[str] = frozenset({"*"})
    max_seconds: int = 43200
    external_id: str | None = None


@dataclass(frozen=True)
class Weather:
    """What is wrong with one call. ``None`` everywhere: nothing."""

    fault: Fault | None = None
    status: int | None = None
    code: str = "InternalFailure"
    body: bytes | None = None
    date_error: timedelta | None = None


@dataclass(frozen=True)
class Call:
    """A call that arrived: when, what, by which key, with what."""

    at: datetime
    operation: str
    access_key_id: str | None
    parameters: dict[str, str] = field(repr=False)


CLEAR = Weather()


class FakeSts:
    """The service. Call it with what was asked.

    Args:
        now: the server's clock.
        rng: makes the keys.
        weather: what is wrong with a call, by its operation.
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        rng: random.Random | None = None,
        weather: Callable[[str], Weather] = lambda operation: CLEAR,
    ) -> None:
        self.now = now
        self.rng = rng or random.Random(0)
        self.weather = weather
        self.principals: dict[str, Principal] = {}
        self.roles: dict[str, Role] = {}
        self.issuers: dict[str, Issuer] = {}  # of accounts with outbound identity federation
        self.calls: list[Call] = []

    # -- the world

    def user(self, arn: str = "arn:aws:iam::111122223333:user/laptop") -> tuple[str, str]:
        """A user with new long-term keys: the access key id and the secret."""
        key, secret = "AKIA" + self._letters(16), self._base64(30)
        self.principals[key] = Principal(arn, secret)
        return key, secret

    def role(self, arn: str, **settings: object) -> Role:
        self.roles[arn] = Role(arn, **settings)  # type: ignore[arg-type]
        return self.roles[arn]

    def session(self, arn: str, kind: str, seconds: int) -> dict[str, str]:
        """A new session, as the ``Credentials`` of an answer."""
        key, secret, token = "ASIA" + self._letters(16), self._base64(30), self._base64(90)
        ends = (self.now() + timedelta(seconds=seconds)).replace(microsecond=0)
        self.principals[key] = Principal(arn, secret, kind, token, ends)
        return {
            "AccessKeyId": key,
            "SecretAccessKey": secret,
            "SessionToken": token,
            "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def operations(self) -> list[str]:
        return [call.operation for call in self.calls]

    # -- the protocol

    def __call__(self, asked: Asked) -> Answer | Fault:
        text = asked.body.decode() if asked.method == "POST" and asked.body else asked.query
        parameters = dict(parse_qsl(text, keep_blank_values=True))
        operation = parameters.get("Action", "")
        weather = self.weather(operation)
        access_key_id = _credential_scope(asked).split("/")[0] or None
        self.calls.append(Call(self.now(), operation, access_key_id, parameters))
        if weather.fault is not None:
            return weather.fault
        if weather.body is not None:
            return Answer(weather.status or 200, weather.body, self._headers(weather, "text/html"))
        if weather.status is not None:
            return self._error(weather.status, weather.code, "injected", weather)
        if asked.method not in {"POST", "GET"} or parameters.get("Version") != "2011-06-15":
            return self._error(400, "InvalidAction", "no such version", weather)
        if operation == "AssumeRoleWithWebIdentity":
            return self._web_identity(parameters, weather)
        refused = self._authenticate(asked, weather)
        if isinstance(refused, Answer):
            return refused
        caller = refused
        match operation:
            case "GetCallerIdentity":
                return self._caller_identity(caller, weather)
            case "GetSessionToken":
                return self._session_token(caller, parameters, weather)
            case "AssumeRole":
                return self._assume_role(caller, parameters, weather)
            case "GetWebIdentityToken" if asked.host != "sts.amazonaws.com":
                return self._identity_token(caller, parameters, weather)
        return self._error(400, "InvalidAction", f"Could not find operation {operation}", weather)

    def _authenticate(self, asked: Asked, weather: Weather) -> Principal | Answer:
        authorization = asked.headers.get("authorization", "")
        if not authorization.startswith("AWS4-HMAC-SHA256 "):
            return self._error(403, "MissingAuthenticationToken", "Request is missing Authentication Token", weather)
        key = _credential_scope(asked).split("/")[0]
        principal = self.principals.get(key)
        if principal is None:
            return self._error(
                403, "InvalidClientTokenId", "The security token included in the request is invalid.", weather
            )
        stamp = asked.headers.get("x-amz-date", "")
        signed_at = datetime.strptime(stamp + "+0000", "%Y%m%dT%H%M%SZ%z")
        canonical, expected = signature(asked, principal.secret)
        if not authorization.endswith(f"Signature={expected}"):
            # The real service really does repeat the canonical string, session token and all.
            return self._error(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided. "
                f"The Canonical String for this request should have been\n'{canonical}'",
                weather,
            )
        if abs(self.now() - signed_at) > ALLOWED_SKEW:
            word = (
                "expired: %s is now earlier than"
                if signed_at < self.now()
                else "not yet current: %s is still later than"
            )
            return self._error(403, "SignatureDoesNotMatch", "Signature " + word % stamp + " (now - 5 min.)", weather)
        if asked.headers.get("x-amz-security-token") != principal.token:
            return self._error(
                403, "InvalidClientTokenId", "The security token included in the request is invalid", weather
            )
        if principal.ends is not None and principal.ends <= self.now():
            return self._error(403, "ExpiredToken", "The security token included in the request is expired", weather)
        return principal

    def _caller_identity(self, caller: Principal, weather: Weather) -> Answer:
        fields = {"Arn": caller.arn, "UserId": "AIDA" + self._letters(17), "Account": caller.account}
        return self._result("GetCallerIdentity", _xml(fields), weather)

    def _identity_token(self, caller: Principal, parameters: dict[str, str], weather: Weather) -> Answer:
        issuer = self.issuers.get(caller.account)
        if issuer is None:
            code = "OutboundWebIdentityFederationDisabledException"
            return self._error(403, code, "The outbound web identity federation feature is not enabled.", weather)
        try:
            token, ends = issuer.token(parameters, caller.arn, caller.ends, self.now())
        except RefusedError as refused:
            return self._error(refused.status, refused.code, refused.message, weather)
        fields = {"WebIdentityToken": token, "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}
        return self._result("GetWebIdentityToken", _xml(fields), weather)

    def _session_token(self, caller: Principal, parameters: dict[str, str], weather: Weather) -> Answer:
        if caller.kind != "user":
            return self._error(403, "AccessDenied", "Cannot call GetSessionToken with session credentials", weather)
        seconds = int(parameters.get("DurationSeconds", "43200"))
        if not 900 <= seconds <= 129600:
            return self._error(400, "ValidationError", "1 validation error detected: durationSeconds", weather)
        credentials = self.session(caller.arn, "user-session", seconds)
        return self._result("GetSessionToken", f"<Credentials>{_xml(credentials)}</Credentials>", weather)

    def _assume_role(self, caller: Principal, parameters: dict[str, str], weather: Weather) -> Answer:
        role = self.roles.get(parameters.get("RoleArn", ""))
        denied = self._error(
            403,
            "AccessDenied",
            f"User: {caller.arn} is not authorized to perform: sts:AssumeRole on resource: {parameters.get('RoleArn')}",
            weather,
        )
        if role is None or not _trusted(role, caller) or role.external_id != parameters.get("ExternalId"):
            return denied
        return self._new_role_session("AssumeRole", role, parameters, weather, chained=caller.kind == "role-session")

    def _web_identity(self, parameters: dict[str, str], weather: Weather) -> Answer:
        role = self.roles.get(parameters.get("RoleArn", ""))
        try:
            payload = parameters["WebIdentityToken"].split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except (LookupError, ValueError):
            return self._error(
                400,
                "InvalidIdentityToken",
                f"The ID Token provided is not a valid JWT: {parameters.get('WebIdentityToken')}",
                weather,
            )
        if claims["exp"] <= self.now().timestamp():
            return self._error(400, "ExpiredTokenException", "Token expired: current date/time must be before", weather)
        if role is None or not ({"*", claims.get("sub")} & role.trusts):
            return self._error(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity", weather)
        return self._new_role_session("AssumeRoleWithWebIdentity", role, parameters, weather, chained=False)

    def _new_role_session(
        self, operation: str, role: Role, parameters: dict[str, str], weather: Weather, *, chained: bool
    ) -> Answer:
        seconds = int(parameters.get("DurationSeconds", "3600"))
        if chained and seconds > 3600:
            return self._error(
                400,
                "ValidationError",
                "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
                weather,
            )
        if seconds > role.max_seconds:
            return self._error(
                400,
                "ValidationError",
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
                weather,
            )
        name = parameters["RoleSessionName"]
        _, account, rest = role.arn.rsplit(":", 2)
        arn = f"arn:aws:sts::{account}:assumed-role/{rest.rsplit('/', 1)[-1]}/{name}"
        credentials = self.session(arn, "role-session", seconds)
        user = {"AssumedRoleId": "AROA" + self._letters(17) + ":" + name, "Arn": arn}
        inner = f"<AssumedRoleUser>{_xml(user)}</AssumedRoleUser><Credentials>{_xml(credentials)}</Credentials>"
        return self._result(operation, inner, weather)

    # -- bodies

    def _headers(self, weather: Weather, kind: str = "text/xml") -> dict[str, str]:
        date = self.now() + (weather.date_error or timedelta())
        return {"Content-Type": kind, "Date": format_datetime(date, usegmt=True)}

    def _result(self, operation: str, inner: str, weather: Weather) -> Answer:
        body = (
            f'<{operation}Response xmlns="{XMLNS}"><{operation}Result>{inner}</{operation}Result>'
            f"<ResponseMetadata><RequestId>{self._letters(8)}</RequestId></ResponseMetadata></{operation}Response>"
        )
        return Answer(200, body.encode(), self._headers(weather))

    def _error(self, status: int, code: str, message: str, weather: Weather) -> Answer:
        kind = "Sender" if status < 500 else "Receiver"
        body = (
            f'<ErrorResponse xmlns="{XMLNS}"><Error><Type>{kind}</Type><Code>{code}</Code>'
            f"<Message>{escape(message)}</Message></Error><RequestId>{self._letters(8)}</RequestId></ErrorResponse>"
        )
        return Answer(status, body.encode(), self._headers(weather))

    def _letters(self, count: int) -> str:
        return "".join(self.rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", k=count))

    def _base64(self, count: int) -> str:
        return base64.b64encode(self.rng.randbytes(count)).decode()


def signature(asked: Asked, secret: str) -> tuple[str, str]:
    """The canonical request and the signature that ``asked`` must carry, by AWS's description of version 4."""
    scope = _credential_scope(asked).split("/")
    _, day, region, service, _ = scope
    signed = asked.headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    query = "&".join(
        f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}"
        for k, v in sorted(parse_qsl(asked.query, keep_blank_values=True))
    )
    headers = {**asked.headers, "host": asked.host}
    canonical = "\n".join(
        [
            asked.method,
            asked.path,
            query,
            *[f"{name}:{' '.join(headers[name].split())}" for name in signed],
            "",
            ";".join(signed),
            hashlib.sha256(asked.body).hexdigest(),
        ]
    )
    to_sign = "\n".join(
        [
            "AWS4-HMAC-SHA256",
            asked.headers["x-amz-date"],
            f"{day}/{region}/{service}/aws4_request",
            hashlib.sha256(canonical.encode()).hexdigest(),
        ]
    )
    key = f"AWS4{secret}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return canonical, hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()


def _credential_scope(asked: Asked) -> str:
    authorization = asked.headers.get("authorization", "")
    return authorization.partition("Credential=")[2].partition(",")[0]


def _trusted(role: Role, caller: Principal) -> bool:
    return bool({"*", caller.arn, caller.arn.rsplit("/", 1)[0]} & role.trusts)


def _xml(fields: dict[str, str]) -> str:
    return "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
