"""Somewhere to read from, that notes who asked: S3's and Google's ways to get an object, and nothing else.

Every object can be read by anybody who signs with anything: what is under test is *whose* credential a client sends, so
nothing is verified here and everything is written down.
"""

from __future__ import annotations

import re
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
_SIGNED = re.compile(r"Credential=([A-Za-z0-9]+)/")


class ObjectStore:
    """Serves the files below ``root`` as the objects of one bucket, in both dialects."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.who: list[tuple[float, str, str]] = []  # when, which program, as whom
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self) -> dict[str, Path]:
        return {str(p.relative_to(self.root)): p for p in sorted(self.root.rglob("*")) if p.is_file()}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Silent: a client that was told enough may leave."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: ClassVar[ObjectStore]

    def log_message(self, *_: object) -> None:
        """Silent: the store keeps the diary."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _identity(self) -> str:
        authorization = self.headers.get("Authorization", "")
        signed = _SIGNED.search(authorization)
        if signed:
            return signed[1]
        if authorization.startswith("Bearer "):
            return authorization.removeprefix("Bearer ")
        query = parse_qs(urlsplit(self.path).query)
        if "X-Amz-Credential" in query:
            return query["X-Amz-Credential"][0].split("/")[0]
        return "anonymous"

    def _answer(self, *, body: bool) -> None:
        # One object store serves every program at once; each puts its name before the bucket.
        parts = urlsplit(self.path)
        segments = [unquote(s) for s in parts.path.split("/") if s]
        query = parse_qs(parts.query, keep_blank_values=True)
        self.store.who.append((time.monotonic(), self.headers.get("Host", ""), self._identity()))
        files = self.store.files()
        if "storage" in segments and "o" in segments:  # Google's JSON API: .../storage/v1/b/BUCKET/o/NAME
            name = "/".join(segments[segments.index("o") + 1 :])
            if not name:
                return self._json({"kind": "storage#objects", "items": []}, body)
            if name not in files:
                return self._send(404, b"{}", "application/json", body)
            if query.get("alt") == ["media"]:
                return self._object(files[name], body)
            return self._json(_metadata(name, files[name]), body)
        if segments[:1] != [BUCKET]:
            return self._send(404, b"<Error><Code>NoSuchBucket</Code></Error>", "application/xml", body)
        name = "/".join(segments[1:])
        if not name:
            return self._listing(query, files, body)
        if name not in files:
            return self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml", body)
        return self._object(files[name], body)

    def _object(self, path: Path, body: bool) -> None:
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        status, extra = 200, {}
        if asked and (asked[1] or asked[2]):
            size = len(data)
            start = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
            end = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
            status, extra = 206, {"Content-Range": f"bytes {start}-{end}/{size}"}
            data = data[start : end + 1]
        self._send(status, data, "application/octet-stream", body, extra)

    def _listing(self, query: dict[str, list[str]], files: dict[str, Path], body: bool) -> None:
        if "location" in query:
            self._send(200, b"<LocationConstraint>us-east-1</LocationConstraint>", "application/xml", body)
            return
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        contents, common = "", set()
        for name, path in files.items():
            if not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                common.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            contents += (
                f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f'<ETag>"{_etag(path)}"</ETag><Size>{path.stat().st_size}</Size></Contents>'
            )
        prefixes = "".join(f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in sorted(common))
        text = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<IsTruncated>false</IsTruncated>{contents}{prefixes}</ListBucketResult>"
        )
        self._send(200, text.encode(), "application/xml", body)

    def _json(self, value: object, body: bool) -> None:
        import json

        self._send(200, json.dumps(value).encode(), "application/json", body)

    def _send(self, status: int, data: bytes, kind: str, body: bool, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef"')
        self.send_header("Last-Modified", formatdate(1_767_225_600, usegmt=True))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("x-amz-bucket-region", "us-east-1")
        self.send_header("x-goog-generation", "1")
        self.send_header("x-goog-metageneration", "1")
        self.send_header("x-goog-stored-content-length", str(len(data)))
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def _etag(path: Path) -> str:
    return f"{path.stat().st_size:032x}"


def _metadata(name: str, path: Path) -> dict[str, str]:
    return {
        "kind": "storage#object",
        "id": f"{BUCKET}/{name}/1",
        "name": name,
        "bucket": BUCKET,
        "generation": "1",
        "metageneration": "1",
        "size": str(path.stat().st_size),
        "updated": "2026-01-01T00:00:00.000Z",
        "timeCreated": "2026-01-01T00:00:00.000Z",
        "storageClass": "STANDARD",
        "etag": "CAE=",
        "contentType": "application/octet-stream",
    }
