"""Some of Google's services: the OAuth 2.0 token endpoint, its certificates, and Cloud Storage's object downloads.

The storage server gives an object only to a bearer token that the token endpoint minted, whose time is not over, and
whose owner may read the bucket; everything else is 401 or 403 as Google words it. So a program that reads an object here
has a token that works, and nothing else has.

Written from RFC 6749 section 6, RFC 7523, Google's "Using OAuth 2.0 for Server to Server Applications" and the Cloud
Storage JSON API reference (``objects.get`` with ``alt=media``).

As a process: ``python -m tests.fakes.google_cloud --port 0``; ``POST /_admin/user``, ``/_admin/service-account``,
``/_admin/object``, ``/_admin/allow`` set it up.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

from aiohttp import web

from tests.fakes.served import Served, run

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@dataclass(frozen=True)
class Minted:
    """An access token that was given out."""

    email: str
    expires_at: float
    serial: int


@dataclass(frozen=True)
class Read:
    """One attempt to read an object.

    Attributes:
        serial: of the token it came with; 0 for none, or none of ours.
    """

    at: float
    name: str
    serial: int
    status: int


@dataclass(frozen=True)
class User:
    """A person who let a client act for them."""

    email: str
    client_id: str
    client_secret: str = field(repr=False)


@dataclass
class GoogleCloud(Served):
    """Google's token endpoint and object storage.

    Attributes:
        clock: seconds since 1970.
        token_seconds: how long a token lives.
        users: by refresh token.
        service_accounts: public key (PEM) by e-mail.
        objects: content by ``(bucket, name)``.
        readers: who may read a bucket, by e-mail.
        certificates: of the keys that sign identity tokens, by their ids.
        minted: every access token so far.
        reads: every attempt to read an object.
    """

    clock: Callable[[], float] = time.time
    token_seconds: int = 3599
    users: dict[str, User] = field(default_factory=dict, repr=False)
    service_accounts: dict[str, str] = field(default_factory=dict)
    objects: dict[tuple[str, str], bytes] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)
    certificates: dict[str, str] = field(default_factory=dict)
    minted: dict[str, Minted] = field(default_factory=dict, repr=False)
    reads: list[Read] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.admin |= {
            "user": self._admin_user,
            "service-account": lambda said: self.service_accounts.update({said["email"]: said["public_key"]}),
            "object": lambda said: self.objects.update({(said["bucket"], said["name"]): said["text"].encode()}),
            "allow": lambda said: self.readers.setdefault(said["bucket"], set()).add(said["email"]),
            "certificates": self.certificates.update,
            "lifetime": self._admin_lifetime,
            # For whoever has to prove that none of these shows up where it should not.
            "minted": lambda _: {token: asdict(minted) for token, minted in self.minted.items()},
            "reads": lambda _: [asdict(read) for read in self.reads],
        }

    def _admin_user(self, said: dict[str, Any]) -> None:
        self.users[said["refresh_token"]] = User(said["email"], said["client_id"], said["client_secret"])

    def _admin_lifetime(self, said: dict[str, Any]) -> None:
        self.token_seconds = int(said["seconds"])

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/token":
            return await self._token(request)
        if request.path == "/oauth2/v1/certs":
            return web.json_response(self.certificates)
        parts = [unquote(part) for part in request.raw_path.partition("?")[0].split("/")]
        # JSON API: /storage/v1/b/BUCKET/o/OBJECT; downloads also under /download; XML API: /BUCKET/OBJECT.
        if parts[1] == "download":
            del parts[1]
        if parts[1:3] == ["storage", "v1"]:
            if len(parts) < 7 or parts[3] != "b" or parts[5] != "o":
                return _error(404, "Not Found", "notFound")
            return self._object(request, parts[4], "/".join(parts[6:]))
        return self._object(request, parts[1], "/".join(parts[2:]), media=True)

    # RFC 6749, RFC 7523

    async def _token(self, request: web.Request) -> web.Response:
        if request.method != "POST":
            return web.json_response({"error": "invalid_request"}, status=405)
        form = {name: values[0] for name, values in parse_qs((await request.read()).decode()).items()}
        grant_type = form.get("grant_type")
        if grant_type == "refresh_token":
            user = self.users.get(form.get("refresh_token", ""))
            if user is None:
                return _refuse("invalid_grant", "Token has been expired or revoked.")
            if (form.get("client_id"), form.get("client_secret")) != (user.client_id, user.client_secret):
                return _refuse("invalid_client", "The provided client secret is invalid.", 401)
            return self._mint(user.email, form.get("scope", ""))
        if grant_type == JWT_BEARER:
            return self._assertion(form.get("assertion", ""))
        return _refuse("unsupported_grant_type", "Invalid grant_type")

    def _assertion(self, assertion: str) -> web.Response:
        from joserfc import jwt
        from joserfc.errors import JoseError
        from joserfc.jwk import RSAKey

        for email, public_key in self.service_accounts.items():
            try:
                claims = jwt.decode(assertion, RSAKey.import_key(public_key), algorithms=["RS256"]).claims
            except (JoseError, ValueError):
                continue
            now = self.clock()
            if claims.get("iss") != email:
                continue
            if not claims.get("iat", 0) - 300 <= now < claims.get("exp", 0) <= claims.get("iat", 0) + 3600:
                return _refuse("invalid_grant", "Invalid JWT: Token must be a short-lived token (60 minutes)")
            return self._mint(email, claims.get("scope", ""))
        return _refuse("invalid_grant", "Invalid JWT Signature.")

    def _mint(self, email: str, scope: str) -> web.Response:
        token = f"ya29.{secrets.token_urlsafe(48)}"
        self.minted[token] = Minted(email, self.clock() + self.token_seconds, len(self.minted) + 1)
        body = {
            "access_token": token,
            "expires_in": self.token_seconds,
            "scope": scope or "https://www.googleapis.com/auth/cloud-platform",
            "token_type": "Bearer",
        }
        return web.json_response(body, headers={"Cache-Control": "no-cache, no-store, max-age=0, must-revalidate"})

    # Cloud Storage

    def _object(self, request: web.Request, bucket: str, name: str, *, media: bool = False) -> web.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        minted = self.minted.get(token) if scheme.lower() == "bearer" else None
        answer = self._evaluate(bucket, name, token, minted, media=media or request.query.get("alt") == "media")
        serial = minted.serial if minted is not None else 0
        self.reads.append(Read(self.clock(), f"{bucket}/{name}", serial, answer.status))
        return answer

    def _evaluate(self, bucket: str, name: str, token: str, minted: Minted | None, *, media: bool) -> web.Response:
        if not token:
            message = f"Anonymous caller does not have storage.objects.get access to the Google Cloud Storage object {bucket}/{name}."
            return _error(401, message, "required")
        if minted is None or self.clock() >= minted.expires_at:
            return _error(401, "Invalid Credentials", "authError")
        if minted.email not in self.readers.get(bucket, set()):
            message = f"{minted.email} does not have storage.objects.get access to the Google Cloud Storage object."
            return _error(403, message, "forbidden")
        content = self.objects.get((bucket, name))
        if content is None:
            return _error(404, f"No such object: {bucket}/{name}", "notFound")
        if media:
            return web.Response(body=content, content_type="text/plain")
        return web.json_response({"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(content))})


def _refuse(error: str, description: str, status: int = 400) -> web.Response:
    return web.json_response({"error": error, "error_description": description}, status=status)


def _error(status: int, message: str, reason: str) -> web.Response:
    errors = [{"message": message, "domain": "global", "reason": reason}]
    headers = {"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/"'} if status == 401 else {}
    return web.json_response(
        {"error": {"code": status, "message": message, "errors": errors}}, status=status, headers=headers
    )


if __name__ == "__main__":
    run(GoogleCloud())
