"""A web server that keeps objects: as dumb as a bucket, or as clever as a control plane that holds requests.

Written from RFC 9110 (ETag, If-None-Match, statuses, redirects), RFC 7240 (Prefer: wait) and the behaviour of S3 and
GCS towards conditional and pre-signed requests. It speaks TLS when it is given a context.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import ipaddress
import json
import re
import ssl
from dataclasses import dataclass, field
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.fakes.served import Served


@dataclass
class Object:
    """What is stored under a path."""

    body: bytes
    content_type: str = "application/octet-stream"

    modified: dt.datetime | None = None

    @property
    def etag(self) -> str:
        if self.modified is not None:  # as nginx names a file: by its second and its size
            return f'"{int(self.modified.timestamp()):x}-{len(self.body):x}"'
        return f'"{hashlib.md5(self.body).hexdigest()}"'


@dataclass
class HttpsStore(Served):
    """The server.

    Attributes:
        objects: by path.
        holds: whether it honours ``Prefer: wait``.
        files: whether its objects are files, which it names by the second of their last change.
        now: the time by its clock; ``None``: the machine's.
        etags: whether it knows entity tags.
        signature: when set, requests need the query ``X-Signature=<it>``: a pre-signed URL.
        token: when set, requests need it as a bearer token.
        gone: paths that answer 410.
        redirects: path to location.
        tls: a server context.
    """

    objects: dict[str, Object] = field(default_factory=dict)
    holds: bool = False
    files: bool = False
    now: dt.datetime | None = None
    etags: bool = True
    signature: str | None = None
    token: str | None = None
    gone: set[str] = field(default_factory=set)
    redirects: dict[str, str] = field(default_factory=dict)
    acks: list[dict[str, Any]] = field(default_factory=list)
    tls: ssl.SSLContext | None = None
    waiting: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        if self.tls is None:
            return await super().start(host, port)
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=self.tls).start()
        self.url = f"https://{host}:{self._runner.addresses[0][1]}"
        return self.url

    def put(self, path: str, body: bytes, content_type: str = "application/octet-stream") -> None:
        """Store an object; requests that are held are answered."""
        modified = (self.now or dt.datetime.now(dt.UTC)).replace(microsecond=0) if self.files else None
        self.objects[path] = Object(body, content_type, modified)
        self._news.set()
        self._news = asyncio.Event()

    async def someone_waits(self) -> None:
        """Return as soon as a request is held."""
        while not self.waiting:
            self._arrived.clear()
            await self._arrived.wait()

    async def answer(self, request: web.Request) -> web.Response:
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, text="who are you?")
        if request.method == "POST":
            self.acks.append(json.loads(await request.read()))
            return web.Response(status=204)
        if request.path in self.redirects:
            return web.Response(status=307, headers={"Location": self.redirects[request.path]})
        if self.signature is not None and request.query.get("X-Signature") != self.signature:
            return web.Response(
                status=403, text="<Error><Code>AccessDenied</Code></Error>", content_type="application/xml"
            )
        if request.path in self.gone:
            return web.Response(status=410)
        known = request.headers.get("If-None-Match")
        wait = re.search(r"\bwait=(\d+)", request.headers.get("Prefer", ""))
        if self.holds and wait is not None:
            await self._hold(request.path, known, int(wait[1]))
        found = self.objects.get(request.path)
        if found is None:
            return web.Response(
                status=404, text="<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml"
            )
        headers = {"ETag": found.etag} if self.etags else {}
        if self.now is not None:
            headers["Date"] = format_datetime(self.now, usegmt=True)
        if found.modified is not None:
            headers["Last-Modified"] = format_datetime(found.modified, usegmt=True)
        if self.etags and known == found.etag:
            return web.Response(status=304, headers=headers)
        return web.Response(status=200, body=found.body, headers={**headers, "Content-Type": found.content_type})

    async def _hold(self, path: str, known: str | None, seconds: int) -> None:
        self.waiting += 1
        self._arrived.set()
        try:
            async with asyncio.timeout(seconds):
                while (found := self.objects.get(path)) is None or found.etag == known:
                    await self._news.wait()
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1


def private_ca(directory: Path, *hosts: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate authority of one's own: its certificate as a file, and a server context for 127.0.0.1 and ``hosts``.

    ``server.pem`` beside it is the server's certificate and key.
    """
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *(x509.DNSName(host) for host in hosts)]
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a private authority")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    ca_file = directory / "ca.pem"
    ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file = directory / "server.pem"
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + ca_file.read_bytes()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(key_file)
    return ca_file, context
