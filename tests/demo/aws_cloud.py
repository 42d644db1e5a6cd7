"""An AWS of one's own: moto's server for IAM, STS and S3, with sessions that really end.

Moto verifies signatures and IAM policies once it is told to (``POST /moto-api/reset-auth``). Three things it leaves out
matter here, and a thin layer in front of it adds them:

* A session ends. Requests signed with one whose time is over are refused with ``ExpiredToken``, in the words of S3 and STS.
* Sessions of chosen roles live for seconds. STS gives 15 minutes at least, which is long for somebody who watches; so a
  role's sessions can be shortened (``POST /_demo/lifetime``), in what the answer says *and* in what is enforced.
* Nobody reads a private object without signing.

And it keeps a diary of who asked what with which key (``GET /_demo/diary``), so that a demonstration can be checked from
the cloud's side and need not take its own word.

As a process: ``python -m tests.demo.aws_cloud``; the first line on stdout is ``{"url": ...}``.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import re
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

_SIGNED_BY = re.compile(r"Credential=([A-Za-z0-9]+)/[0-9]{8}/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request")


@dataclass(frozen=True)
class Session:
    """One session that STS gave out."""

    role_arn: str
    access_key_id: str
    secret_access_key: str
    session_token: str
    issued_at: float
    expires_at: float


@dataclass(frozen=True)
class Call:
    """One call to S3 or STS."""

    at: float
    service: str
    what: str
    access_key_id: str
    status: int


class EndingSessions:
    """WSGI middleware: sessions end, and the diary is kept."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._lifetimes: dict[str, int] = {}
        self._sessions: dict[str, Session] = {}
        self._diary: list[Call] = []

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path.startswith("/_demo/"):
            return self._demo(path.removeprefix("/_demo/"), environ, start_response)
        if path.startswith("/moto-api/"):
            return self._app(environ, start_response)
        at = time.time()
        key, service = _signer(environ)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        form = parse_qs(body.decode("latin-1")) if service in ("sts", "iam") else {}
        what = form["Action"][0] if "Action" in form else f"{environ['REQUEST_METHOD']} {path}"
        session = self._sessions.get(key)
        if session is not None and at >= session.expires_at:
            status, headers, answer = _expired(service)
        elif not key and service == "s3":
            status, headers, answer = _s3_error("403 Forbidden", "AccessDenied", "Access Denied")
        else:
            status, headers, answer = _call(self._app, environ)
            if what.startswith("AssumeRole") and status.startswith("200"):
                answer = self._issued(answer, form, at)
        with self._lock:
            self._diary.append(Call(at, service, what, key, int(status.split()[0])))
        headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start_response(status, [*headers, ("Content-Length", str(len(answer)))])
        return [answer]

    def _issued(self, answer: bytes, form: dict[str, list[str]], at: float) -> bytes:
        """Note the session, and shorten it if its role is a short-lived one."""
        text = answer.decode()
        role_arn = form["RoleArn"][0]
        expires_at = datetime.fromisoformat(_tag(text, "Expiration")).astimezone(UTC).timestamp()
        short = self._lifetimes.get(role_arn)
        if short is not None:
            # Whole seconds, as the real ones are: what the answer says is what is enforced.
            expires_at = min(expires_at, float(int(at) + short))
            stamp = datetime.fromtimestamp(expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            text = re.sub(r"<Expiration>[^<]*</Expiration>", f"<Expiration>{stamp}</Expiration>", text)
        key = _tag(text, "AccessKeyId")
        session = Session(role_arn, key, _tag(text, "SecretAccessKey"), _tag(text, "SessionToken"), at, expires_at)
        with self._lock:
            self._sessions[key] = session
        return text.encode()

    def _demo(self, name: str, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        result: Any = None
        with self._lock:
            if name == "lifetime":
                said = json.loads(body)
                self._lifetimes[said["role_arn"]] = int(said["seconds"])
            elif name == "sessions":
                result = [asdict(session) for session in self._sessions.values()]
            elif name == "diary":
                result = [asdict(call) for call in self._diary]
            else:
                start_response("404 Not Found", [("Content-Length", "0")])
                return [b""]
        answer = json.dumps(result).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer]


def _signer(environ: Environ) -> tuple[str, str]:
    """The access key id and the service of a request; a request that is not signed is taken to be for S3."""
    match = _SIGNED_BY.search(environ.get("HTTP_AUTHORIZATION", ""))
    if match is not None:
        return match[1], match[3]
    credential = parse_qs(environ.get("QUERY_STRING", "")).get("X-Amz-Credential", [""])[0].split("/")
    return (credential[0], credential[3]) if len(credential) == 5 else ("", "s3")


def _call(app: App, environ: Environ) -> tuple[str, list[tuple[str, str]], bytes]:
    seen: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> Callable[[bytes], None]:
        seen[:] = [status, headers]
        return lambda _: None

    body = b"".join(app(environ, start_response))
    return seen[0], seen[1], body


def _tag(text: str, name: str) -> str:
    match = re.search(f"<{name}>([^<]*)</{name}>", text)
    if match is None:
        raise AssertionError(f"STS answered without {name}")
    return match[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")


def _expired(service: str) -> tuple[str, list[tuple[str, str]], bytes]:
    if service == "s3":
        return _s3_error("400 Bad Request", "ExpiredToken", "The provided token has expired.")
    text = "The security token included in the request is expired"
    body = (
        '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
        f"<Code>ExpiredToken</Code><Message>{text}</Message></Error><RequestId>0</RequestId></ErrorResponse>"
    )
    return "403 Forbidden", [("Content-Type", "text/xml")], body.encode()


def _s3_error(status: str, code: str, text: str) -> tuple[str, list[tuple[str, str]], bytes]:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{text}</Message></Error>'
    return status, [("Content-Type", "application/xml")], body.encode()


def main(argv: list[str] | None = None) -> None:
    """Serve until SIGTERM."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    parser = argparse.ArgumentParser(description="moto with sessions that end")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--certificate", help="file of a certificate and its key: port 443 speaks TLS besides")
    arguments = parser.parse_args(argv)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = EndingSessions(DomainDispatcherApplication(create_backend_app))
    server = make_server(arguments.host, arguments.port, app, threaded=True, request_handler=WSGIRequestHandler)
    if arguments.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(arguments.certificate)
        encrypted = make_server(
            arguments.host, 443, app, threaded=True, request_handler=WSGIRequestHandler, ssl_context=tls
        )
        threading.Thread(target=encrypted.serve_forever, daemon=True).start()
    # Not from the handler itself: shutdown waits for the loop that the handler interrupts.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    sys.stdout.write(json.dumps({"url": f"http://{arguments.host}:{server.server_port}"}) + "\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
