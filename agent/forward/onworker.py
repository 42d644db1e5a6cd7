"""The program that runs on a worker: sent as this text. It needs only the standard library, of Python 3.7 or later.

It carries requests to the agent's courier socket and answers back. It holds no secret and decides nothing: the bundles
are sealed. Its text is executed on another machine, so it imports nothing of ours.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import socket
import struct
import time

SOCKET = "/run/credential-agent/courier.sock"


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path
        self._seconds = seconds

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # By the kernel's limit a place in the queue is waited for, which a flood keeps full; by Python's own it is not.
        limit = struct.pack("ll", int(self._seconds), int(self._seconds % 1 * 1e6))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self.sock.connect(self._path)
        self.sock.settimeout(self._seconds)


def _agent(path: str) -> str:
    """Which agent this is: the same for every process that reaches it, another for every machine and container."""
    found = os.stat(path)  # noqa: PTH116
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123 - as short as can be
            boot = file.read().strip()
    except OSError:
        boot = socket.gethostname()
    return hashlib.sha256(f"{boot} {found.st_dev} {found.st_ino}".encode()).hexdigest()[:32]


def _ask(path: str, method: str, target: str, body: bytes | None, ends: float) -> tuple[int, str]:
    while True:
        connection = _Connection(path, max(0.1, ends - time.monotonic()))
        try:
            connection.request(method, target, body=body, headers={"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read(1048576).decode("utf-8", "replace")
            status = answer.status
            after = answer.getheader("Retry-After") or "1"
        finally:
            connection.close()
        pause = min(float(after), 10.0) if after.isdigit() else 1.0
        if status not in (429, 503) or time.monotonic() + pause >= ends:
            return status, text
        time.sleep(pause)


def main(request: str) -> str:
    """Carry a request (JSON text) to the agent of this machine; returns the reply (JSON text). Raises nothing."""
    asked = json.loads(request)
    path = os.environ.get("CREDENTIAL_AGENT_COURIER") or SOCKET
    answers: list[tuple[int, str]] = []
    reply: dict[str, object] = {"host": socket.gethostname(), "agent": None, "problem": None, "answers": answers}
    ends = time.monotonic() + asked.get("seconds", 20)
    try:
        reply["agent"] = _agent(path)
        for method, target, body in asked["steps"]:
            data = None if body is None else base64.b64decode(body)
            answers.append(_ask(path, method, target, data, ends))
    except FileNotFoundError:
        reply["problem"] = "no-agent"
    except (ConnectionRefusedError, ConnectionResetError):
        reply["problem"] = "not-running"
    except PermissionError:
        reply["problem"] = "not-allowed"
    except (OSError, http.client.HTTPException, ValueError) as error:
        reply["problem"] = "failed"
        reply["said"] = f"{type(error).__name__}: {error}"[:300]
    return json.dumps(reply)
