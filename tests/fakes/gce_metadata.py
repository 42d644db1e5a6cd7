"""The Google Compute Engine metadata server, as a virtual machine sees it.

Written from "About VM metadata", "View and query VM metadata", "Predefined metadata keys", "Verify the identity of VM
instances", "Set and query guest attributes", and from what the real one was seen to answer: ``Metadata-Flavor`` on every
answer, 301 for a directory without its slash, a sixteen-digit ETag, access tokens cached until five minutes are left.

In a test::

    async with GceMetadataServer() as gce:
        gce.attributes["credential-bundle"] = "..."
        gce.changed()

As a process: ``python -m tests.fakes.gce_metadata --port 0``; edit it with ``POST /_admin/attribute`` and the like.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote

from aiohttp import web

from tests.fakes.served import Served, run

ROOT = "/computeMetadata/v1/"
CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
CACHED_UNTIL = timedelta(minutes=5)
"""The server hands out one token until it has this much life left."""
LONGEST_WAIT_SECONDS = 3600
PAGE_BYTES = 1604  # of what says 404 (googleapis/gcp-metadata#657)
LARGEST_GUEST_ATTRIBUTE_BYTES = 262144


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Token:
    """An access token as the server holds it."""

    value: str = field(repr=False)
    expires_at: datetime


@dataclass
class ServiceAccount:
    """A service account attached to the machine."""

    email: str
    scopes: tuple[str, ...] = (CLOUD_PLATFORM,)
    unique_id: str = "112233445566778899001"


@dataclass
class GceMetadataServer(Served):
    """The Google Compute Engine metadata server.

    Attributes:
        now: the server's time.
        mint: makes an access token; the default invents one that lives ``token_seconds``.
        accounts: the first is ``default``; empty: no service account is attached.
        attributes, project_attributes: custom metadata; call :meth:`changed` after editing.
        guest_attributes: what the machine wrote, ``NAMESPACE/KEY`` to value; only with ``enable-guest-attributes``.
    """

    now: Callable[[], datetime] = _now
    token_seconds: int = 3599
    mint: Callable[[ServiceAccount], Token] | None = None
    accounts: list[ServiceAccount] = field(
        default_factory=lambda: [ServiceAccount("worker@demo-project.iam.gserviceaccount.com")]
    )
    project_id: str = "demo-project"
    numeric_project_id: int = 123456789012
    zone: str = "europe-west1-b"
    instance_id: int = 4520031799277581759
    name: str = "worker-1"
    machine_type: str = "n2-standard-2"
    preempted: bool = False
    maintenance_event: str = "NONE"
    tags: list[str] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    project_attributes: dict[str, str] = field(default_factory=dict)
    guest_attributes: dict[str, str] = field(default_factory=dict)
    _tokens: dict[str, Token] = field(default_factory=dict, repr=False)
    _signer: Any = field(default=None, repr=False)
    _rendered: dict[tuple[str, bool, str], tuple[Any, bytes, str]] = field(default_factory=dict, repr=False)
    _wake: set[asyncio.Event] = field(default_factory=set, repr=False)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def __post_init__(self) -> None:
        self.admin |= {
            "attribute": self._admin_attribute,
            "account": self._admin_account,
            "guest-attributes": lambda _: self.guest_attributes,
            "certificates": lambda _: self.certificates(),
        }

    # What a control plane can do to a machine

    def set_attribute(self, key: str, value: str | None, *, project: bool = False) -> None:
        """``instances.setMetadata`` (or the project's): set, or with ``None`` delete, one key; waiters are told."""
        where = self.project_attributes if project else self.attributes
        if value is None:
            where.pop(key, None)
        else:
            where[key] = value
        self.changed()

    def changed(self) -> None:
        """Tell those who wait for a change to look again."""
        for event in self._wake:
            event.set()

    @property
    def waiting(self) -> int:
        """How many requests hang on ``wait_for_change``."""
        return len(self._wake)

    async def someone_waits(self) -> None:
        """Return as soon as a request hangs on ``wait_for_change``."""
        while not self._wake:
            self._arrived.clear()
            await self._arrived.wait()

    def id_token_keys(self) -> Any:
        """The public key set that verifies identity tokens (Google's ``/oauth2/v3/certs``)."""
        from joserfc.jwk import KeySet

        return KeySet([self._key()])

    def certificates(self) -> dict[str, str]:
        """The same as ``/oauth2/v1/certs`` has it: a certificate (PEM) by the id of the key, signed by that key itself."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization

        key = self._key()
        private: Any = key.private_key
        name = x509.Name.from_rfc4514_string("CN=federated-signon.system.gserviceaccount.com")
        made = (
            x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
            .not_valid_before(self.now() - timedelta(days=1))
            .not_valid_after(self.now() + timedelta(days=16))
            .sign(private, hashes.SHA256())
        )
        return {key.kid: made.public_bytes(serialization.Encoding.PEM).decode()}

    def _admin_attribute(self, said: dict[str, Any]) -> None:
        self.set_attribute(said["key"], said.get("value"), project=bool(said.get("project")))

    def _admin_account(self, said: dict[str, Any]) -> None:
        self.accounts = (
            [ServiceAccount(said["email"], tuple(said.get("scopes", [CLOUD_PLATFORM])))] if said.get("email") else []
        )
        self.changed()

    # What the machine sees

    async def answer(self, request: web.Request) -> web.Response:
        if "X-Forwarded-For" in request.headers:
            return self._error(403, "X-Forwarded-For is not allowed")
        path, query = unquote(request.path), parse_qs(request.query_string, keep_blank_values=True)
        if path == "/":
            return self._respond(200, b"computeMetadata/\n", "application/text")
        flavor = request.headers.get("Metadata-Flavor")
        if flavor != "Google" and request.headers.get("X-Google-Metadata-Request") != "True":
            return self._error(403, 'Missing required header "Metadata-Flavor": "Google"')
        if path == "/computeMetadata/":
            return self._respond(200, b"v1/\n", "application/text")
        if path + "/" in ("/computeMetadata/", ROOT):
            return self._redirect(request, path)
        if not path.startswith(ROOT):
            return self._error(404)
        rest = path.removeprefix(ROOT)
        if rest.startswith("instance/guest-attributes/"):
            return await self._guest(request, rest.removeprefix("instance/guest-attributes/"))
        if request.method not in ("GET", "HEAD"):
            return self._error(405)
        account = re.fullmatch(r"instance/service-accounts/([^/]+)/(token|identity)", rest)
        if account is not None:
            return self._credential(account[1], account[2], query)
        if self._directory_without_slash(rest):
            return self._redirect(request, path)
        if query.get("wait_for_change", ["false"])[0].lower() == "true":
            return await self._wait(rest, query)
        return self._show(rest, query)

    # Content

    def _tree(self) -> dict[str, Any]:
        number = self.numeric_project_id
        accounts: dict[str, Any] = {}
        for index, account in enumerate(self.accounts):
            shown = {
                "aliases": ["default"] if index == 0 else [],
                "email": account.email,
                "scopes": list(account.scopes),
            }
            accounts[account.email] = shown
            if index == 0:
                accounts["default"] = shown
        return {
            "instance": {
                "attributes": dict(self.attributes),
                "cpu-platform": "Intel Ice Lake",
                "description": "",
                "guest-attributes": {},
                "hostname": f"{self.name}.{self.zone}.c.{self.project_id}.internal",
                "id": self.instance_id,
                "image": "projects/debian-cloud/global/images/debian-12-bookworm-v20261101",
                "machine-type": f"projects/{number}/machineTypes/{self.machine_type}",
                "maintenance-event": self.maintenance_event,
                "name": self.name,
                "preempted": "TRUE" if self.preempted else "FALSE",
                "service-accounts": accounts,
                "tags": list(self.tags),
                "zone": f"projects/{number}/zones/{self.zone}",
            },
            "oslogin": {},
            "project": {
                "attributes": dict(self.project_attributes),
                "numeric-project-id": number,
                "project-id": self.project_id,
            },
            "universe": {"universe-domain": "googleapis.com"},
        }

    def _node(self, rest: str) -> Any:
        """The node at ``rest``; directories are named with a slash at the end, leaves without. ``None``: not there."""
        node: Any = self._tree()
        for part in rest.strip("/").split("/") if rest.strip("/") else []:
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        if rest.endswith("/") and not isinstance(node, dict):
            return None
        return node

    def _directory_without_slash(self, rest: str) -> bool:
        return bool(rest) and not rest.endswith("/") and isinstance(self._node(rest), dict)

    def _render(self, rest: str, query: dict[str, list[str]]) -> tuple[bytes, str] | None:
        node = self._node(rest)
        if node is None:
            return None
        # Once for each content: hundreds who wait for a change of a large one held up all else that was asked.
        recursive, alt = query.get("recursive", ["false"])[0].lower() == "true", query.get("alt", [""])[0]
        key = (rest, recursive, alt if alt in {"json", "text"} else "")
        known = self._rendered.get(key)
        if known is None or known[0] != node:
            known = self._rendered[key] = (node, *self._write(rest, node, recursive=recursive, alt=alt))
        return known[1:]

    @staticmethod
    def _write(rest: str, node: Any, *, recursive: bool, alt: str) -> tuple[bytes, str]:
        if isinstance(node, dict):
            if recursive:
                raw = rest.rstrip("/").endswith(("/attributes", "/guest-attributes", "/service-accounts"))
                tree = _camel(node, keep=raw)
                if alt == "text":
                    return "".join(f"{name} {value}\n" for name, value in _flat(node)).encode(), "application/text"
                return json.dumps(tree, separators=(",", ":")).encode(), "application/json"
            names = list(node)
            parts = rest.strip("/").split("/")
            if len(parts) == 3 and parts[:2] == ["instance", "service-accounts"]:
                names += ["identity", "token"]
            lines = sorted(f"{name}/" if isinstance(node.get(name), dict) else name for name in names)
            return "".join(f"{line}\n" for line in lines).encode(), "application/text"
        if alt == "json" or (isinstance(node, list) and rest == "instance/tags"):
            return json.dumps(node, separators=(",", ":")).encode(), "application/json"
        if isinstance(node, list):
            return "".join(f"{item}\n" for item in node).encode(), "application/text"
        return str(node).encode(), "application/text"

    def _show(self, rest: str, query: dict[str, list[str]]) -> web.Response:
        found = self._render(rest, query)
        if found is None:
            return self._error(404)
        return self._respond(200, *found)

    async def _wait(self, rest: str, query: dict[str, list[str]]) -> web.Response:
        """Hang until the content is no longer the one of ``last_etag`` (or of now), or ``timeout_sec`` is over."""
        seconds: float = LONGEST_WAIT_SECONDS
        if "timeout_sec" in query:
            if not re.fullmatch(r"[0-9]{1,6}", query["timeout_sec"][0]):
                return self._error(400, "timeout_sec must be a number")
            seconds = min(int(query["timeout_sec"][0]), LONGEST_WAIT_SECONDS)
        found = self._render(rest, query)
        if found is None:
            return self._error(404)
        known = query.get("last_etag", [_etag(found[0])])[0]
        event = asyncio.Event()
        self._wake.add(event)
        self._arrived.set()
        try:
            async with asyncio.timeout(seconds):
                while found is not None and _etag(found[0]) == known:
                    event.clear()
                    await event.wait()
                    found = self._render(rest, query)
        except TimeoutError:
            pass
        finally:
            self._wake.discard(event)
        return self._error(404) if found is None else self._respond(200, *found)

    # Credentials

    def _credential(self, name: str, kind: str, query: dict[str, list[str]]) -> web.Response:
        account = next(
            (a for i, a in enumerate(self.accounts) if name == a.email or (name == "default" and i == 0)), None
        )
        if account is None:
            return self._error(404)
        if kind == "token":
            token = self._tokens.get(account.email)
            if token is None or token.expires_at - self.now() <= CACHED_UNTIL:
                token = self._mint(account)
                self._tokens[account.email] = token
            seconds = int((token.expires_at - self.now()).total_seconds())
            body = {"access_token": token.value, "expires_in": seconds, "token_type": "Bearer"}
            return self._respond(200, json.dumps(body, separators=(",", ":")).encode(), "application/json")
        audience = query.get("audience", [""])[0]
        if not audience:
            return self._error(400, "non-empty audience parameter required")
        full = query.get("format", ["standard"])[0] == "full"
        return self._respond(200, self._identity(account, audience, full=full).encode(), "text/html")

    def _mint(self, account: ServiceAccount) -> Token:
        if self.mint is not None:
            return self.mint(account)
        return Token(f"ya29.c.{secrets.token_urlsafe(48)}", self.now() + timedelta(seconds=self.token_seconds))

    def _key(self) -> Any:
        from joserfc.jwk import RSAKey

        if self._signer is None:
            self._signer = RSAKey.generate_key(2048, {"kid": secrets.token_hex(20), "use": "sig", "alg": "RS256"})
        return self._signer

    def _identity(self, account: ServiceAccount, audience: str, *, full: bool) -> str:
        from joserfc import jwt

        issued = int(self.now().timestamp())
        claims: dict[str, Any] = {
            "aud": audience,
            "azp": account.unique_id,
            "email": account.email,
            "email_verified": True,
            "exp": issued + 3600,
            "iat": issued,
            "iss": "https://accounts.google.com",
            "sub": account.unique_id,
        }
        if full:
            claims["google"] = {
                "compute_engine": {
                    "instance_creation_timestamp": issued - 60,
                    "instance_id": str(self.instance_id),
                    "instance_name": self.name,
                    "project_id": self.project_id,
                    "project_number": self.numeric_project_id,
                    "zone": self.zone,
                }
            }
        key = self._key()
        token: str = jwt.encode({"alg": "RS256", "kid": key.kid, "typ": "JWT"}, claims, key)
        return token

    # Guest attributes

    async def _guest(self, request: web.Request, rest: str) -> web.Response:
        enabled = {**self.project_attributes, **self.attributes}.get("enable-guest-attributes", "").upper() == "TRUE"
        if not enabled:
            return self._error(403, "Guest attributes endpoint access is disabled.")
        if request.method == "PUT":
            body = await request.read()
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}/[A-Za-z0-9_.-]{1,128}", rest):
                return self._error(400)
            if len(body) > LARGEST_GUEST_ATTRIBUTE_BYTES:
                return self._error(413)
            self.guest_attributes[rest] = body.decode()
            return self._respond(200, b"", "text/html")
        if request.method == "DELETE":
            return (
                self._respond(200, b"", "text/html")
                if self.guest_attributes.pop(rest, None) is not None
                else self._error(404)
            )
        if rest in self.guest_attributes:
            return self._respond(200, self.guest_attributes[rest].encode(), "application/text")
        below = {key[len(rest) :].partition("/") for key in self.guest_attributes if key.startswith(rest)}
        if not below or (rest and not rest.endswith("/")):
            return self._error(404)
        return self._respond(
            200, "".join(sorted(f"{head}{slash}\n" for head, slash, _ in below)).encode(), "application/text"
        )

    # Answers

    def _redirect(self, request: web.Request, path: str) -> web.Response:
        query = f"?{request.query_string}" if request.query_string else ""
        location = f"http://{request.headers.get('Host', 'metadata.google.internal')}{path}/{query}"
        return self._respond(301, f"{path}/\n".encode(), "text/html", Location=location)

    def _error(self, status: int, text: str = "") -> web.Response:
        page = f"<!DOCTYPE html>\n<html lang=en>\n  <title>Error {status}</title>\n"
        body = f"{text}\n" if text else page.ljust(PAGE_BYTES - 1) + "\n"
        return self._respond(status, body.encode(), "text/html; charset=UTF-8")

    def _respond(self, status: int, body: bytes, content_type: str, **more: str) -> web.Response:
        headers = {
            "Content-Type": content_type,
            "Metadata-Flavor": "Google",
            "Server": "Metadata Server for VM",
            "X-XSS-Protection": "0",
            "X-Frame-Options": "SAMEORIGIN",
            **more,
        }
        if status == 200:
            headers["ETag"] = _etag(body)
        return web.Response(status=status, body=body, headers=headers)


@functools.lru_cache(16)
def _etag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]


def _camel(node: Any, *, keep: bool = False) -> Any:
    """Keys as the JSON form has them: ``serviceAccounts`` for ``service-accounts``. Names that users chose stay."""
    if not isinstance(node, dict):
        return node
    shown = {}
    for name, value in node.items():
        key = name if keep else re.sub(r"-([a-z])", lambda match: match[1].upper(), name)
        shown[key] = _camel(value, keep=name in ("attributes", "guest-attributes", "service-accounts"))
    return shown


def _flat(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [pair for name, value in node.items() for pair in _flat(value, f"{prefix}/{name}" if prefix else name)]


if __name__ == "__main__":
    run(GceMetadataServer())
