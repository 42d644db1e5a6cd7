"""The agent's endpoints, asked by its own commands: the control socket, and the workers' endpoint.

``http.client`` rather than the daemon's HTTP stack: importing that takes longer than a command may take.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.cli.members import members_only, not_running
from agent.core.errors import HostError
from agent.wire import names
from agent.wire.names import ORIGIN_HEADER, REFUSED_HEADER

# Not the daemon's own user agent: it refuses that one, so that it never asks itself in a loop.
USER_AGENT: Final = "credential-agent-cli"
MAX_BYTES: Final = 8 << 20
_LATE_PARTS: Final = 100
"""So many parts of an answer are read after its time: a status has a few."""
_OTHER: Final = "credential-agent doctor says who answers, and whether that is another release"


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Around what reads an answer: one of another shape is another program's, or of another age.

    Raises:
        HostError: it is.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise HostError("expected an answer of the agent, got one of another shape", hint=_OTHER) from None


class NoAnswerError(HostError):
    """No answer came in time: the agent is slow, or it does not start and systemd holds its socket."""


class NotAllowedError(HostError):
    """The socket is there, and not for this user."""


class NotListeningError(HostError):
    """Nobody listens at the socket: no agent runs, and systemd holds no place for one."""


class NotLetInError(HostError):
    """Nobody answers at the workers' endpoint: nothing listens there, or the rules refuse whoever is no worker."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. ``body`` may be a credential, so the ``repr`` does not show it.

    Attributes:
        origin: whose identity it is (``bundle``, ``fallback``, ``none``), from the workers' endpoint; empty: not told.
        refused: why the last bundle was refused, if it was.
    """

    status: int
    body: bytes
    origin: str = ""
    refused: str | None = None

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            HostError: it is not.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise HostError(f"expected JSON from the agent, got {len(self.body)} other bytes") from None

    def document(self, *members: str) -> dict[str, Any]:
        """The body as a JSON object that has ``members``.

        Raises:
            HostError: it is none: another program, or an agent of another age, answers there.
        """
        document = self.json()
        if not isinstance(document, dict) or any(name not in document for name in members):
            wanted = f"a document with {', '.join(members)}" if members else "a JSON object"
            raise HostError(f"expected {wanted} from the agent, got another", hint=_OTHER)
        return document

    def why(self) -> str:
        """The agent's own words on a refusal."""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            return self.body.decode(errors="replace").strip()[:500] or f"status {self.status}"
        if isinstance(document, dict):
            for name in ("message", "Message", "error_description", "reason", "error"):
                if isinstance(document.get(name), str):
                    return str(document[name])
        return f"status {self.status}"


class _Limited(socket.socket):
    """A connection with an end: a socket's own limit begins anew with each byte, and whoever drips is never done.

    Args:
        connected: it, which this one takes the place of.
        end: on the monotonic clock.
    """

    def __init__(self, connected: socket.socket, end: float) -> None:
        limit = connected.gettimeout()
        super().__init__(fileno=connected.detach())
        self.settimeout(limit)
        self._end = end
        self._late = 0

    def recv_into(self, *args: Any, **more: Any) -> int:
        """As its parent. At the end what is there is still read, a part at a time: it may be we who are slow."""
        left = self._end - time.monotonic()
        self._late += left <= 0
        if self._late > _LATE_PARTS:
            raise TimeoutError("timed out")
        self.settimeout(max(left, 0.0))
        try:
            return super().recv_into(*args, **more)
        except BlockingIOError:
            raise TimeoutError("timed out") from None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = path
        self._seconds = timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # By the kernel's limit a place in the queue is waited for, which a flood keeps full; by Python's own it is not.
        limit = struct.pack("ll", int(self._seconds), int(self._seconds % 1 * 1e6))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self.sock.connect(str(self._path))
        self.sock.settimeout(self._seconds)


def control(
    path: Path, method: str, target: str, body: bytes | None = None, *, timeout_seconds: float = 30.0
) -> Answer:
    """Ask the control socket.

    Raises:
        NotAllowedError: this user may not connect.
        NotListeningError: nothing listens there.
        NoAnswerError: somebody took the connection, or systemd's queue did, and there was no answer in time.
        HostError: their family; and the answer breaks off.
    """
    try:
        return _exchange(_UnixConnection(path, timeout_seconds), method, target, {}, body)
    except PermissionError:
        raise NotAllowedError(f"{path}: not allowed", hint=members_only(path)) from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotListeningError(f"{path}: the agent does not listen there", hint=not_running()) from None
    except (TimeoutError, BlockingIOError):
        raise NoAnswerError(f"{path}: no answer within {timeout_seconds:g} s", hint=not_running()) from None
    except (OSError, http.client.HTTPException) as error:
        raise HostError(f"{path}: no answer: {_reason(error)}", hint=not_running()) from None


def worker(
    address: tuple[str, int],
    target: str,
    headers: dict[str, str],
    *,
    method: str = "GET",
    timeout_seconds: float = 5.0,
) -> Answer:
    """Ask the workers' endpoint, as an SDK does.

    Raises:
        NotLetInError: nothing listens there, or we are no worker.
        HostError: the answer breaks off.
    """
    host, port = address
    try:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
        return _exchange(connection, method, target, {ORIGIN_HEADER: "?", **headers}, None)
    except ConnectionRefusedError:
        raise NotLetInError(
            f"{host}:{port}: refused: the agent does not run, or this user is no worker",
            hint=f"{not_running()}; the [redirect] section of the configuration says who is a worker",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise HostError(f"{host}:{port}: no answer: {_reason(error)}", hint=not_running()) from None


def role(address: tuple[str, int], *, timeout_seconds: float = 5.0) -> Answer:
    """Ask for the name of EC2's role, as an SDK does that is redirected: that needs no file and gets no secret.

    Args:
        address: of the endpoint.
        timeout_seconds: for each of two requests.

    Raises:
        NotLetInError, HostError: as :func:`worker`.
    """
    token = worker(
        address, names.EC2_TOKEN_PATH, {names.EC2_TTL_HEADER: "60"}, method="PUT", timeout_seconds=timeout_seconds
    )
    if token.status != 200:
        return token
    headers = {names.EC2_TOKEN_HEADER: token.body.decode("ascii", errors="replace")}
    return worker(address, names.EC2_ROLES_PATH, headers, timeout_seconds=timeout_seconds)


def _exchange(
    connection: http.client.HTTPConnection, method: str, target: str, headers: dict[str, str], body: bytes | None
) -> Answer:
    end = time.monotonic() + (connection.timeout or 0.0)
    try:
        connection.connect()
        connection.sock = _Limited(connection.sock, end)
        connection.request(method, target, body=body, headers={"User-Agent": USER_AGENT, **headers})
        response = connection.getresponse()
        body_ = response.read(MAX_BYTES)
        return Answer(response.status, body_, response.getheader(ORIGIN_HEADER, ""), response.getheader(REFUSED_HEADER))
    finally:
        connection.close()


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
