"""An agent as couriers see it: the courier socket of PROTOCOL.md, with real keys and real opening of bundles.

The daemon itself is tried by the tests of the system; this one can be had by the thousand, and can misbehave.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

from agent import bundle, enrol
from agent.bundle.envelope import parse_envelope
from agent.bundle.open import decrypt, verify
from agent.core.errors import BundleError
from agent.core.model import Action, Bundle

Evidence = Callable[[str, str], list[dict[str, Any]]]


class CourierAgent:
    """Answers as the courier socket does.

    Args:
        trust: whom it believes: entries as :meth:`agent.bundle.Trust.parse` takes them.
        evidence: makes evidence of a thumbprint and a nonce.
        now: time.
    """

    def __init__(
        self,
        trust: list[dict[str, object]],
        *,
        evidence: Evidence = lambda _thumbprint, _nonce: [],
        host: str = "worker",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.key = bundle.OpeningKey.generate()
        self.trust = bundle.Trust.parse(trust)
        self.evidence = evidence
        self.host = host
        self.now = now
        self.bundle: Bundle | None = None
        self.seqs: dict[tuple[str, str], int] = {}
        self.accepted: list[Bundle] = []
        self.asked: list[tuple[str, str]] = []
        self.changed = threading.Condition()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """One request."""
        with self.changed:
            self.asked.append((method, path))
            if (method, path) == ("GET", "/v1/status"):
                return 200, self._status()
            if (method, path) == ("POST", "/v1/enrol"):
                return 200, self._enrol(enrol.read_question(body))
            if (method, path) == ("PUT", "/v1/bundle"):
                return self._take(body)
        return 404, {"error": "no such path"}

    def _status(self) -> dict[str, Any]:
        found = self.bundle
        roles = {} if found is None else {one.id: getattr(one, "role_arn", None) for one in found.grants}
        return {
            "ver": 1,
            "clouds": {
                str(cloud): {"state": "live", "principal": roles.get(of)}
                for cloud, of in (found.routes.items() if found else ())
            },
            "bundle": None if found is None else {"issuer": found.issuer, "seq": found.seq, "origin": "courier"},
            "keys": [self.key.kid],
            "signers": [
                {
                    "kid": one.kid,
                    "max_lease_seconds": None if one.max_lease is None else int(one.max_lease.total_seconds()),
                }
                for one in self.trust.signers
            ],
        }

    def _enrol(self, nonce: str) -> dict[str, Any]:
        public = self.key.recipient_key().public_jwk()
        thumbprint = enrol.thumbprint_of(public)
        return {
            "ver": 1,
            "nonce": nonce,
            "key": {**public, "kid": self.key.kid},
            "thumbprint": thumbprint,
            "audiences": [],
            "host": self.host,
            "evidence": self.evidence(thumbprint, nonce),
            "missing": [{"kind": "aws-sts", "code": "no-machine", "reason": "there is no metadata service here"}],
        }

    def _take(self, sealed: bytes) -> tuple[int, dict[str, Any]]:
        try:
            envelope = parse_envelope(sealed)
            mine = next((one for one in envelope.recipients if one.kid == self.key.kid), None)
            if mine is None:
                return 422, {"outcome": "refused", "code": "recipient", "reason": "it is sealed to other keys"}
            found = verify(
                decrypt(envelope, self.key.content_key(mine)),
                trust=self.trust,
                recipient_kid=self.key.kid,
                audiences=[bundle.audience_key(self.key.kid)],
                now=self.now(),
            )
        except BundleError as error:
            return 422, {"outcome": "refused", "code": error.code, "reason": error.message}
        stream = found.issuer, found.subject
        if found.seq <= self.seqs.get(stream, 0):
            return 422, {"outcome": "refused", "code": "rollback", "reason": "a newer one came before"}
        self.seqs[stream] = found.seq
        self.accepted.append(found)
        self.changed.notify_all()
        if found.action is Action.SET:
            self.bundle = found
        elif self.bundle is not None and (self.bundle.issuer, self.bundle.subject) == stream:
            self.bundle = None
        return 200, {"outcome": "accepted", "seq": found.seq}


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, said = self.server.agent.answer(self.command, self.path, body)
        text = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = _serve  # noqa: N815 - the names of http.server

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    agent: CourierAgent


class Listening:
    """The agent on a unix socket."""

    def __init__(self, agent: CourierAgent, path: Path) -> None:
        self.agent = agent
        self.path = path
        self._server = _Server(str(path), _Handler)
        self._server.agent = agent
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.path.unlink(missing_ok=True)
