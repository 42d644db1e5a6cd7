"""The two metadata services as functions: enough of EC2 and GCE for the machine's own identity.

Written from "Retrieve instance metadata" (EC2) and "Query metadata" (GCE). The full trees that the listeners answer for
are other fakes' business.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from email.utils import format_datetime
from urllib.parse import parse_qs

from tests.fakes.net import Answer, Asked, Fault

MAX_TTL = 21600


class FakeEc2Metadata:
    """IMDSv2 only.

    Args:
        now: the service's clock.
        mint: makes the credentials of the instance profile: ``AccessKeyId``, ``SecretAccessKey``, ``SessionToken``,
            ``Expiration``.
    """

    def __init__(self, now: Callable[[], datetime], mint: Callable[[], dict[str, str]]) -> None:
        self.now = now
        self.mint = mint
        self.role: str | None = "machine-role"
        self.account = "111122223333"
        self.region = "eu-west-1"
        self.enabled = True
        self.fault: Fault | None = None
        self.status: int | None = None
        self.document: dict[str, str] | None = None
        self.tokens: dict[str, datetime] = {}
        self.asked: list[Asked] = []
        self._rng = random.Random(0)

    def forget_tokens(self) -> None:
        self.tokens.clear()

    def __call__(self, asked: Asked) -> Answer | Fault:
        self.asked.append(asked)
        if self.fault is not None:
            return self.fault
        if not self.enabled or "x-forwarded-for" in asked.headers:
            return self._answer(403)
        if asked.path == "/latest/api/token":
            return self._token(asked)
        ends = self.tokens.get(asked.headers.get("x-aws-ec2-metadata-token", ""))
        if ends is None or ends <= self.now():
            return self._answer(401)
        if self.status is not None:
            return self._answer(self.status)
        roles = "/latest/meta-data/iam/security-credentials/"
        if asked.path in {roles, roles.rstrip("/")}:
            return self._answer(200, self.role) if self.role is not None else self._answer(404)
        if self.role is not None and asked.path == roles + self.role:
            return self._answer(200, json.dumps(self.document or self._document()))
        if asked.path == "/latest/dynamic/instance-identity/document":
            return self._answer(200, json.dumps({"accountId": self.account, "region": self.region}))
        if asked.path == "/latest/meta-data/placement/region":
            return self._answer(200, self.region)
        if asked.path == "/latest/meta-data/echo":
            return self._answer(200, json.dumps([asked.method, asked.path_qs, dict(asked.headers)]))
        return self._answer(404)

    def _token(self, asked: Asked) -> Answer:
        ttl = asked.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if asked.method != "PUT":
            return self._answer(405)
        if not ttl.isdecimal() or not 1 <= int(ttl) <= MAX_TTL:
            return self._answer(400)
        token = base64.b64encode(self._rng.randbytes(40)).decode()
        self.tokens[token] = self.now() + timedelta(seconds=int(ttl))
        return self._answer(200, token, {"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": ttl})

    def _document(self) -> dict[str, str]:
        made = self.mint()
        return {
            "Code": "Success",
            "LastUpdated": self.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "Type": "AWS-HMAC",
            "AccessKeyId": made["AccessKeyId"],
            "SecretAccessKey": made["SecretAccessKey"],
            "Token": made["SessionToken"],
            "Expiration": made["Expiration"],
        }

    def _answer(self, status: int, body: str = "", headers: dict[str, str] | None = None) -> Answer:
        date = format_datetime(self.now(), usegmt=True)
        return Answer(status, body.encode(), {"Server": "EC2ws", "Date": date, **(headers or {})})


class FakeGceMetadata:
    """The GCE metadata server of a machine with one service account.

    Args:
        now: the server's clock.
        access_token: makes a token and says for how many seconds it is good.
        identity: makes an identity token for an audience.
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        access_token: Callable[[], tuple[str, int]],
        identity: Callable[[str], str],
    ) -> None:
        self.now = now
        self.access_token = access_token
        self.identity = identity
        self.email: str | None = "worker@project.iam.gserviceaccount.com"
        self.flavor = True
        self.flavor_on_errors = True
        self.fault: Fault | None = None
        self.status: int | None = None
        self.asked: list[Asked] = []

    def __call__(self, asked: Asked) -> Answer | Fault:
        self.asked.append(asked)
        if self.fault is not None:
            return self.fault
        if self.status is not None:
            return self._answer(self.status, "")
        if asked.headers.get("metadata-flavor") != "Google" or "x-forwarded-for" in asked.headers:
            return self._answer(403, 'Missing required header "Metadata-Flavor": "Google"\n')
        account = "/computeMetadata/v1/instance/service-accounts/default/"
        if self.email is None or not asked.path.startswith(account):
            return self._answer(404, "not found\n")
        query = parse_qs(asked.query)
        match asked.path.removeprefix(account):
            case "" if query.get("recursive") == ["true"]:
                scopes = ["https://www.googleapis.com/auth/cloud-platform"]
                account_ = {"aliases": ["default"], "email": self.email, "scopes": scopes}
                return self._answer(200, json.dumps(account_), "application/json")
            case "token":
                token, seconds = self.access_token()
                body = {"access_token": token, "expires_in": seconds, "token_type": "Bearer"}
                return self._answer(200, json.dumps(body), "application/json")
            case "identity":
                if not query.get("audience"):
                    return self._answer(400, "non-empty audience parameter required\n")
                return self._answer(200, self.identity(query["audience"][0]))
        return self._answer(404, "not found\n")

    def _answer(self, status: int, body: str, kind: str = "text/html") -> Answer:
        headers = {"Content-Type": kind, "Date": format_datetime(self.now(), usegmt=True)}
        if self.flavor and (status < 400 or self.flavor_on_errors):
            headers["Metadata-Flavor"] = "Google"
        return Answer(status, body.encode(), headers)
