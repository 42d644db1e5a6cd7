"""The EC2 instance metadata service, IMDSv2, as an instance sees it.

Written from the EC2 user guide ("Use the Instance Metadata Service", "Instance metadata categories", "Instance identity
documents", "Spot Instance interruption notices") and from what the real one was seen to answer: ``Server: EC2ws``,
XHTML error pages, the remaining life of the token on every answer, one name per line in listings.

In a test::

    async with Ec2MetadataService() as ec2:
        ec2.attach("worker-role", Key(...))
        ...
        assert ec2.paths("PUT") == ["/latest/api/token"]

As a process: ``python -m tests.fakes.ec2_metadata --port 0``; edit it with ``POST /_admin/attach`` and the like.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from aiohttp import web

from tests.fakes.served import Served, run

TOKEN_PATH = "/latest/api/token"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "X-aws-ec2-metadata-token"
LONGEST_TTL_SECONDS = 21600
VERSIONS = ("1.0", "2016-09-02", "2018-09-24", "2021-03-23", "2024-04-11", "latest")

_PAGE = """<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>{code} - {phrase}</title>
 </head>
 <body>
  <h1>{code} - {phrase}</h1>
 </body>
</html>
"""
_PHRASES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


@dataclass(frozen=True)
class Key:
    """One role credential, as STS gave it to EC2."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(repr=False)
    expires_at: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(hours=6))
    last_updated: datetime = field(default_factory=lambda: datetime.now(UTC))


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Ec2MetadataService(Served):
    """The EC2 instance metadata service.

    Attributes:
        now: the instance's idea of the time, for tokens and ``Date``.
        http_tokens: ``required`` (IMDSv2 only) or ``optional``, as in ``ModifyInstanceMetadataOptions``.
        endpoint_enabled: off: everything is 403.
        instance_tags: whether tags are shown (``InstanceMetadataTags``).
        role: the role of the instance profile; ``None``: no profile is attached.
        user_data: raw, not base64; ``None``: there is none.
        spot_action: ``(action, time)`` once the interruption notice is out.
        extra: further leaves below ``/latest/meta-data/``.
    """

    now: Callable[[], datetime] = _now
    http_tokens: str = "required"
    endpoint_enabled: bool = True
    instance_tags: bool = True
    account_id: str = "123456789012"
    region: str = "us-east-1"
    zone: str = "us-east-1a"
    instance_id: str = "i-0123456789abcdef0"
    image_id: str = "ami-0abcdef1234567890"
    instance_type: str = "m7i.large"
    private_ip: str = "10.0.12.34"
    role: str | None = None
    key: Key | None = None
    user_data: bytes | None = None
    tags: dict[str, str] = field(default_factory=dict)
    spot_action: tuple[str, datetime] | None = None
    extra: dict[str, str] = field(default_factory=dict)
    _tokens: dict[str, datetime] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.admin |= {
            "attach": self._admin_attach,
            "detach": lambda _: self.detach(),
            "user-data": self._admin_user_data,
            "tags": self.tags.update,
            "spot": lambda said: self.interrupt(said["action"], timedelta(seconds=said.get("seconds", 120))),
        }

    # What a control plane can do to an instance

    def attach(self, role: str, key: Key) -> None:
        """Associate an instance profile, or rotate its credential."""
        self.role, self.key = role, key

    def detach(self) -> None:
        """Disassociate the instance profile."""
        self.role = self.key = None

    def interrupt(self, action: str = "terminate", notice: timedelta = timedelta(minutes=2)) -> None:
        """Send the Spot interruption notice."""
        self.spot_action = (action, self.now() + notice)

    def forget_tokens(self) -> None:
        """What a stop and start of the instance does: every session token is void."""
        self._tokens.clear()

    def _admin_attach(self, said: dict[str, Any]) -> None:
        key = Key(
            said["access_key_id"],
            said["secret_access_key"],
            said["session_token"],
            datetime.fromisoformat(said["expires_at"]).astimezone(UTC),
            self.now(),
        )
        self.attach(said["role"], key)

    def _admin_user_data(self, said: dict[str, Any]) -> None:
        self.user_data = base64.b64decode(said["base64"]) if said.get("base64") is not None else None

    # What the instance sees

    async def answer(self, request: web.Request) -> web.Response:
        path = re.sub(r"/{2,}", "/", request.path)
        if not self.endpoint_enabled:
            return self._error(403)
        if path == TOKEN_PATH:
            return self._issue(request)
        if request.method not in ("GET", "HEAD"):
            return self._error(405, Allow="GET, HEAD")
        token = request.headers.get(TOKEN_HEADER)
        left: int | None = None
        if token is not None:
            ends = self._tokens.get(token)
            left = int((ends - self.now()).total_seconds()) if ends is not None else 0
            if left <= 0:
                return self._error(401)
        elif self.http_tokens == "required":
            return self._error(401)
        found = self._find(path)
        if found is None:
            return self._error(404, left)
        body, content_type = found
        return self._respond(200, body, content_type, left)

    def _issue(self, request: web.Request) -> web.Response:
        if request.method != "PUT":
            return self._error(405, Allow="OPTIONS, PUT")
        # A proxy adds this header: the guard against open reverse proxies in front of an instance.
        if "X-Forwarded-For" in request.headers:
            return self._error(403)
        wanted = request.headers.get(TTL_HEADER, "")
        if not re.fullmatch(r"[0-9]{1,9}", wanted) or not 1 <= int(wanted) <= LONGEST_TTL_SECONDS:
            return self._error(400)
        token = base64.urlsafe_b64encode(secrets.token_bytes(42)).decode()
        self._tokens[token] = self.now() + timedelta(seconds=int(wanted))
        return self._respond(200, token.encode(), "text/plain", int(wanted))

    def _find(self, path: str) -> tuple[bytes, str] | None:
        if path == "/":
            return "\n".join(VERSIONS).encode(), "text/plain"
        version, _, rest = path[1:].partition("/")
        if version not in VERSIONS:
            return None
        if rest.rstrip("/") == "user-data":
            return None if self.user_data is None else (self.user_data, "application/octet-stream")
        if not rest:
            trees = ("dynamic", "meta-data", *(() if self.user_data is None else ("user-data",)))
            return "\n".join(trees).encode(), "text/plain"  # the one listing of directories without slashes
        leaves = self._leaves()
        if rest in leaves:
            return leaves[rest]
        if rest.rstrip("/") in leaves:
            return leaves[rest.rstrip("/")]
        below = rest.rstrip("/") + "/" if rest.strip("/") else ""
        names: dict[str, None] = {}
        for leaf in leaves:
            if leaf.startswith(below):
                head, slash, _ = leaf[len(below) :].partition("/")
                names[head + slash] = None
        return ("\n".join(sorted(names)).encode(), "text/plain") if names else None

    def _leaves(self) -> dict[str, tuple[bytes, str]]:
        text: dict[str, str] = {
            "ami-id": self.image_id,
            "ami-launch-index": "0",
            "hostname": f"ip-{self.private_ip.replace('.', '-')}.{self.region}.compute.internal",
            "instance-action": "none",
            "instance-id": self.instance_id,
            "instance-life-cycle": "spot" if self.spot_action else "on-demand",
            "instance-type": self.instance_type,
            "local-hostname": f"ip-{self.private_ip.replace('.', '-')}.{self.region}.compute.internal",
            "local-ipv4": self.private_ip,
            "mac": "0e:49:61:0f:c3:11",
            "placement/availability-zone": self.zone,
            "placement/region": self.region,
            "reservation-id": "r-0fedcba9876543210",
            "services/domain": "amazonaws.com",
            "services/partition": "aws",
            **self.extra,
        }
        if self.instance_tags:
            text |= {f"tags/instance/{name}": value for name, value in self.tags.items()}
        if self.spot_action:
            action, at = self.spot_action
            text["spot/instance-action"] = json.dumps({"action": action, "time": _stamp(at)})
            if action == "terminate":
                text["spot/termination-time"] = _stamp(at)
        if self.role is not None:
            profile = {
                "Code": "Success",
                "LastUpdated": _stamp(self.key.last_updated if self.key else self.now()),
                "InstanceProfileArn": f"arn:aws:iam::{self.account_id}:instance-profile/{self.role}",
                "InstanceProfileId": "AIPAI23HZ27SI6FQMGNQ2",
            }
            text["iam/info"] = _document(profile)
            if self.key is not None:
                text[f"iam/security-credentials/{self.role}"] = self._credential(self.key)
        identity = _document(
            {
                "accountId": self.account_id,
                "architecture": "x86_64",
                "availabilityZone": self.zone,
                "billingProducts": None,
                "devpayProductCodes": None,
                "marketplaceProductCodes": None,
                "imageId": self.image_id,
                "instanceId": self.instance_id,
                "instanceType": self.instance_type,
                "kernelId": None,
                "pendingTime": "2026-01-01T00:00:00Z",
                "privateIp": self.private_ip,
                "ramdiskId": None,
                "region": self.region,
                "version": "2017-09-30",
            }
        )
        leaves = {f"meta-data/{name}": (value.encode(), "text/plain") for name, value in text.items()}
        for name, body in (
            ("document", identity),
            ("pkcs7", "ZmFrZQ=="),
            ("rsa2048", "ZmFrZQ=="),
            ("signature", "ZmFrZQ=="),
        ):
            leaves[f"dynamic/instance-identity/{name}"] = (body.encode(), "text/plain")
        return leaves

    def _credential(self, key: Key) -> str:
        return _document(
            {
                "Code": "Success",
                "LastUpdated": _stamp(key.last_updated),
                "Type": "AWS-HMAC",
                "AccessKeyId": key.access_key_id,
                "SecretAccessKey": key.secret_access_key,
                "Token": key.session_token,
                "Expiration": _stamp(key.expires_at),
            }
        )

    def _error(self, status: int, left: int | None = None, **headers: str) -> web.Response:
        page = _PAGE.format(code=status, phrase=_PHRASES[status]).encode()
        return self._respond(status, page, "text/html", left, **headers)

    def _respond(
        self, status: int, body: bytes, content_type: str, left: int | None = None, **more: str
    ) -> web.Response:
        headers = {
            "Content-Type": content_type,
            "Date": format_datetime(self.now(), usegmt=True),
            "Server": "EC2ws",
            "Connection": "close",
            **more,
        }
        if left is not None:
            headers[TTL_HEADER] = str(left)
        if status == 200:
            headers["Last-Modified"] = format_datetime(self.now(), usegmt=True)
            headers["Accept-Ranges"] = "none"
        return web.Response(status=status, body=body, headers=headers)


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _document(fields: dict[str, Any]) -> str:
    """JSON with the spacing of the real one: two spaces, ``"name" : value``."""
    return json.dumps(fields, indent=2, separators=(",", " : "))


if __name__ == "__main__":
    run(Ec2MetadataService())
