"""Google's token endpoints: OAuth 2.0 ``/token``, the token exchange ``/v1/token``, and the IAM credentials API.

Written from RFC 6749, 7523 and 8693, AIP-4117 and Google's pages on OAuth 2.0 for servers, workload and workforce identity
federation, ``projects.serviceAccounts`` and Resource Manager's ``projects.get``. Assertions and AWS subject tokens are really verified, the latter by sending the signed
request to a fake STS as Google does to the real one.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.fakes.net import Answer, Asked, Fault
from tests.fakes.sts import CLEAR, FakeSts, Weather

TOKEN_URL = "https://oauth2.googleapis.com/token"
PROJECTS = "/v1/projects/"
SERVICE_ACCOUNTS = "/v1/projects/-/serviceAccounts/"
# Of a caller's token one of these is asked for ("Authorization scopes" of generateAccessToken).
_IMPERSONATING = {"https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/iam"}


@dataclass
class ServiceAccount:
    """A service account, the keys that speak for it, and who may impersonate it."""

    email: str
    keys: dict[str, rsa.RSAPublicKey] = field(default_factory=dict)
    token_creators: frozenset[str] = frozenset({"*"})
    max_seconds: int = 3600


@dataclass
class Token:
    """An access token that was handed out."""

    principal: str
    ends: datetime
    scopes: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    at: datetime
    operation: str
    parameters: dict[str, Any] = field(repr=False)


class FakeGoogle:
    """The service. Call it with what was asked.

    Args:
        now: the server's clock.
        sts: where AWS subject tokens are sent.
        weather: what is wrong with a call, by its operation (``refresh_token``, ``jwt-bearer``, ``token-exchange``,
            ``generateAccessToken``, ``generateIdToken``).
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        *,
        sts: FakeSts | None = None,
        rng: random.Random | None = None,
        weather: Callable[[str], Weather] = lambda operation: CLEAR,
    ) -> None:
        self.now = now
        self.sts = sts
        self.rng = rng or random.Random(0)
        self.weather = weather
        self.users: dict[str, dict[str, str]] = {}  # by refresh token
        self.accounts: dict[str, ServiceAccount] = {}
        self.pools: dict[str, str] = {}  # audience: the issuer of its tokens, or "aws"
        self.workforce: dict[str, tuple[str, str, str]] = {}  # by refresh token: client's id and secret, principal
        self.projects: dict[str, str] = {}  # ids by number, of those that may be looked at
        self.tokens: dict[str, Token] = {}
        self.calls: list[Call] = []
        self.expires_in: Callable[[int], object] = lambda seconds: seconds

    # -- the world

    def user(self, email: str = "ada@example.com") -> dict[str, str]:
        """A user with a refresh token, as gcloud writes it down."""
        refresh = "1//" + self._letters(40)
        user = {
            "client_id": "32555940559.apps.googleusercontent.com",
            "client_secret": "GOCSPX-" + self._letters(20),
            "refresh_token": refresh,
            "email": email,
        }
        self.users[refresh] = user
        return user

    def account(self, email: str, **settings: Any) -> ServiceAccount:
        self.accounts[email] = ServiceAccount(email, **settings)
        return self.accounts[email]

    def access_token(self, principal: str, seconds: int = 3600, scopes: tuple[str, ...] = ()) -> str:
        token = "ya29." + self._letters(60)
        self.tokens[token] = Token(principal, self.now() + timedelta(seconds=seconds), scopes)
        return token

    def operations(self) -> list[str]:
        return [call.operation for call in self.calls]

    # -- the protocol

    def __call__(self, asked: Asked) -> Answer | Fault:
        form = dict(parse_qsl(asked.body.decode(), keep_blank_values=True))
        if asked.path.startswith(PROJECTS) and not asked.path.startswith(SERVICE_ACCOUNTS):
            return self._project(asked)
        if asked.path.startswith(SERVICE_ACCOUNTS):
            operation = asked.path.rpartition(":")[2]
        else:
            operation = form.get("grant_type", "").rpartition(":")[2]
        weather = self.weather(operation)
        self.calls.append(Call(self.now(), operation, form))
        if weather.fault is not None:
            return weather.fault
        if weather.body is not None:
            return Answer(weather.status or 200, weather.body, self._headers(weather, "text/html"))
        if weather.status is not None:
            return self._answer(weather.status, {"error": weather.code, "error_description": "injected"}, weather)
        if asked.method != "POST":
            return self._answer(405, {}, weather)
        match operation:
            case "refresh_token" if asked.path == "/token":
                return self._refresh(form, weather)
            case "refresh_token" if asked.path == "/v1/oauthtoken":
                return self._signed_on(asked, form, weather)
            case "jwt-bearer" if asked.path == "/token":
                return self._assertion(form, weather)
            case "token-exchange" if asked.path == "/v1/token":
                return self._exchange(form, weather)
            case "generateAccessToken" | "generateIdToken":
                return self._impersonate(asked, operation, weather)
        return self._oauth_error(400, "unsupported_grant_type", "Invalid grant_type: " + operation, weather)

    def _refresh(self, form: dict[str, str], weather: Weather) -> Answer:
        user = self.users.get(form["refresh_token"])
        if user is None:
            return self._oauth_error(400, "invalid_grant", "Token has been expired or revoked.", weather)
        if (form["client_id"], form["client_secret"]) != (user["client_id"], user["client_secret"]):
            return self._oauth_error(401, "invalid_client", "The OAuth client was not found.", weather)
        scopes = tuple(form.get("scope", "openid https://www.googleapis.com/auth/cloud-platform").split())
        claims = {"aud": user["client_id"], "email": user["email"], "email_verified": True}
        return self._token(user["email"], scopes, weather, id_token=self._jwt(claims))

    def _signed_on(self, asked: Asked, form: dict[str, str], weather: Weather) -> Answer:
        """The session of a workforce pool's user (``gcloud auth application-default login`` with a login config)."""
        client, secret, principal = self.workforce.get(form["refresh_token"], ("", "", ""))
        basic = base64.b64encode(f"{client}:{secret}".encode()).decode()
        if not principal:
            return self._oauth_error(400, "invalid_grant", "The refresh token is invalid or has ended.", weather)
        if asked.headers.get("authorization") != f"Basic {basic}":
            return self._oauth_error(401, "invalid_client", "The OAuth client is not known.", weather)
        return self._token(principal, (), weather)

    def _project(self, asked: Asked) -> Answer:
        """``projects.get``: whoever may not look, or there is none: the same answer."""
        bearer = self.tokens.get(asked.headers.get("authorization", "").removeprefix("Bearer "))
        number = asked.path.removeprefix(PROJECTS)
        self.calls.append(Call(self.now(), "projects.get", {"projectNumber": number}))
        if bearer is None or number not in self.projects:
            return self._rpc_error(403, "PERMISSION_DENIED", "The caller does not have permission", CLEAR)
        project = {"projectNumber": number, "projectId": self.projects[number], "lifecycleState": "ACTIVE"}
        return self._answer(200, project, CLEAR)

    def _assertion(self, form: dict[str, str], weather: Weather) -> Answer:
        claims = self._verified(form["assertion"])
        if claims is None:
            return self._oauth_error(400, "invalid_grant", "Invalid JWT Signature.", weather)
        now = self.now().timestamp()
        if not (claims["iat"] - 300 <= now < claims["exp"] <= claims["iat"] + 3600) or claims["aud"] != TOKEN_URL:
            return self._oauth_error(
                400,
                "invalid_grant",
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
                "Check your iat and exp values in the JWT claim.",
                weather,
            )
        if "target_audience" in claims:
            token = self._jwt({"aud": claims["target_audience"], "email": claims["iss"]})
            return self._answer(200, {"id_token": token}, weather)
        return self._token(claims["iss"], tuple(claims["scope"].split()), weather)

    def _exchange(self, form: dict[str, str], weather: Weather) -> Answer:
        kind = self.pools.get(form["audience"])
        if kind is None:
            return self._oauth_error(400, "invalid_target", "The target service indicated is invalid.", weather)
        if form["requested_token_type"] != "urn:ietf:params:oauth:token-type:access_token" or not form["scope"]:
            return self._oauth_error(400, "invalid_request", "Invalid requested_token_type or scope.", weather)
        if form["subject_token_type"] == "urn:ietf:params:aws:token-type:aws4_request" and kind == "aws":
            subject = self._aws_caller(form)
        elif form["subject_token_type"] == "urn:ietf:params:oauth:token-type:jwt" and kind != "aws":
            subject = self._oidc_subject(form["subject_token"], kind)
        else:
            subject = None
        if subject is None:
            text = f"The subject token {form['subject_token']} is not accepted."
            return self._oauth_error(400, "invalid_grant", text, weather)
        principal = f"principal:{form['audience']}/subject/{subject}"
        return self._token(
            principal,
            tuple(form["scope"].split()),
            weather,
            issued_token_type="urn:ietf:params:oauth:token-type:access_token",
        )

    def _aws_caller(self, form: dict[str, str]) -> str | None:
        """Send the signed request on, as Google does, after evaluating the parts that are Google's to evaluate."""
        request = json.loads(unquote(form["subject_token"]))
        headers = {pair["key"].lower(): pair["value"] for pair in request["headers"]}
        scheme, _, rest = request["url"].partition("://")
        host, _, query = rest.partition("?")
        signed = headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
        if scheme != "https" or not host.startswith("sts.") or host != headers.get("host"):
            return None
        if headers.get("x-goog-cloud-target-resource") != form["audience"]:
            return None
        if "x-goog-cloud-target-resource" not in signed or self.sts is None:
            return None
        answer = self.sts(Asked(request["method"], f"/?{query}", headers, b"", host))
        if not isinstance(answer, Answer) or answer.status != 200:
            return None
        return answer.body.decode().partition("<Arn>")[2].partition("</Arn>")[0]

    def _oidc_subject(self, token: str, issuer: str) -> str | None:
        try:
            claims = _claims(token)
        except (ValueError, IndexError):
            return None
        if claims.get("iss") != issuer or claims["exp"] <= self.now().timestamp():
            return None
        return str(claims["sub"])

    def _impersonate(self, asked: Asked, operation: str, weather: Weather) -> Answer:
        email = unquote(asked.path.removeprefix(SERVICE_ACCOUNTS).rpartition(":")[0])
        body = json.loads(asked.body)
        bearer = self.tokens.get(asked.headers.get("authorization", "").removeprefix("Bearer "))
        if bearer is None or bearer.ends <= self.now():
            return self._rpc_error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.", weather)
        if bearer.scopes and not set(bearer.scopes) & _IMPERSONATING:
            text = "Request had insufficient authentication scopes."
            return self._rpc_error(403, "PERMISSION_DENIED", text, weather)
        asking = bearer.principal
        for one in (*(name.rpartition("/")[2] for name in body.get("delegates") or ()), email):
            if one not in self.accounts or not ({"*", asking} & self.accounts[one].token_creators):
                text = f"Permission 'iam.serviceAccounts.getAccessToken' denied on {one}"
                return self._rpc_error(403, "PERMISSION_DENIED", text, weather)
            asking = one
        if operation == "generateIdToken":
            claims = {"aud": body["audience"], "email": email if body.get("includeEmail") else None}
            return self._answer(200, {"token": self._jwt(claims)}, weather)
        seconds = int(str(body["lifetime"]).removesuffix("s"))
        if seconds > self.accounts[email].max_seconds:
            return self._rpc_error(
                400, "INVALID_ARGUMENT", "The access token lifetime cannot exceed 3600 seconds.", weather
            )
        token = self.access_token(email, seconds, tuple(body["scope"]))
        ends = self.tokens[token].ends.strftime("%Y-%m-%dT%H:%M:%SZ")
        return self._answer(200, {"accessToken": token, "expireTime": ends}, weather)

    # -- tokens and bodies

    def _verified(self, assertion: str) -> dict[str, Any] | None:
        head, payload, sealed = assertion.split(".")
        header, claims = json.loads(_unbase64(head)), json.loads(_unbase64(payload))
        account = self.accounts.get(claims["iss"])
        key = account.keys.get(header["kid"]) if account is not None else None
        if key is None or header["alg"] != "RS256":
            return None
        try:
            key.verify(_unbase64(sealed), f"{head}.{payload}".encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return None
        return dict(claims)

    def _token(self, principal: str, scopes: tuple[str, ...], weather: Weather, **more: str) -> Answer:
        token = self.access_token(principal, 3599, scopes)
        body = {"access_token": token, "expires_in": self.expires_in(3599), "token_type": "Bearer", **more}
        if "issued_token_type" not in more:
            body["scope"] = " ".join(scopes)
        return self._answer(200, body, weather)

    def _jwt(self, claims: dict[str, Any]) -> str:
        """A token that looks like Google's; nobody here checks its signature."""
        now = int(self.now().timestamp())
        claims = {"iss": "https://accounts.google.com", "iat": now, "exp": now + 3600, **claims}
        parts = [{"alg": "RS256", "kid": "fake", "typ": "JWT"}, claims]
        encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        return ".".join([*encoded, self._letters(86)])

    def _oauth_error(self, status: int, code: str, text: str, weather: Weather) -> Answer:
        return self._answer(status, {"error": code, "error_description": text}, weather)

    def _rpc_error(self, status: int, code: str, text: str, weather: Weather) -> Answer:
        return self._answer(status, {"error": {"code": status, "message": text, "status": code}}, weather)

    def _answer(self, status: int, body: dict[str, Any], weather: Weather) -> Answer:
        return Answer(status, json.dumps(body).encode(), self._headers(weather, "application/json; charset=UTF-8"))

    def _headers(self, weather: Weather, kind: str) -> dict[str, str]:
        date = self.now() + (weather.date_error or timedelta())
        return {"Content-Type": kind, "Date": format_datetime(date, usegmt=True)}

    def _letters(self, count: int) -> str:
        return "".join(self.rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", k=count))


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _claims(token: str) -> dict[str, Any]:
    return dict(json.loads(_unbase64(token.split(".")[1])))
