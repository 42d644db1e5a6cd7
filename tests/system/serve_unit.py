"""What answers workers as a unit of its own, without a service manager: it passes the sockets, and begins it anew.

In a test::

    with ServeUnit(tmp_path) as unit, unit.agent(world) as agent:
        agent.ready()
        ...
        agent.kill()  # workers are answered on
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent.host.sockdiag import NETLINK_SOCK_DIAG
from agent.server.kept import NAMES
from agent.server.spawn import UNIT_VARIABLE
from tests.fakes.notify_socket import NotifySocket
from tests.system.harness import DEADLINE_SECONDS, REPOSITORY, Agent, World, as_user, until

KEY = "ASIAUSER000000000001"

_CODE = """
import fcntl, os, runpy, sys
given = {given!r}
high = [(name, fcntl.fcntl(fd, fcntl.F_DUPFD, 100)) for name, fd in given]
for number, (name, fd) in enumerate(high, 3):
    os.dup2(fd, number, inheritable=True)
    os.close(fd)
os.closerange(3 + len(given), 100)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(given))
os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in given)
sys.argv = ["agent.server"]
{prelude}
runpy.run_module("agent.server", run_name="__main__", alter_sys=True)
"""


class ServeUnit:
    """The sockets, from the start of a ``with`` to its end, and a master on them from :meth:`start` on.

    Args:
        root: a directory with a short name.
        user: whose the controller's socket is, and who answers; ``None``: ours.

    Attributes:
        manager: hears what the master tells its service manager, and holds what it is to keep.
        stderr: what all masters wrote.
    """

    def __init__(self, root: Path, *, user: int | None = None, prelude: str = "") -> None:
        self.path = root / "serve.sock"
        self.manager = NotifySocket(root / "serve.notify")
        self.process: subprocess.Popen[bytes] | None = None
        self.stderr = ""
        self._user = user
        self._prelude = prelude
        self._http = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(self.path))
        self._listening.listen(16)
        self.path.chmod(0o600)
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        self._readers: list[threading.Thread] = []

    @property
    def address(self) -> tuple[str, int]:
        """Where workers ask."""
        host, port = self._http.getsockname()
        return str(host), int(port)

    @property
    def deferred(self) -> bool:
        """Whether the kernel tells of a connection to the workers' socket when something has come of it."""
        return self._http.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0

    @property
    def inodes(self) -> list[int]:
        """Of the sockets that are a server's to have."""
        return [os.fstat(one.fileno()).st_ino for one in (self._http, self._netlink)]

    @property
    def pid(self) -> int:
        """Of the master."""
        assert self.process is not None
        return self.process.pid

    @property
    def servers(self) -> list[int]:
        """The process ids of its servers."""
        return [int(one) for one in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def server(self, *, other_than: int = 0) -> int:
        """The server that answers, once there is one, and one that stands by: which is begun after it."""
        return self.both(other_than=other_than)[0]

    def both(self, *, other_than: int = 0) -> tuple[int, int]:
        """The server that answers, and the one that stands by, once there are no others."""

        def look() -> tuple[int, ...]:
            found = self.servers
            return tuple(found) if len(found) == 2 and found[0] != other_than else ()

        first, second = until(look, what="a server, and one that stands by")
        return first, second

    @property
    def stored(self) -> list[bytes]:
        """What the service manager holds for it."""
        return [one for name in NAMES for one in self.manager.content(name)]

    def start(self, *, stored: bool = False) -> Self:
        """Begin the master as the service manager does.

        Args:
            stored: pass what the manager holds.
        """
        mark = self.manager.mark
        kept = self.manager.stored() if stored else []
        given = [
            ("http", self._http.fileno()),
            ("controller", self._listening.fileno()),
            ("controller", self._netlink.fileno()),
            *kept,
        ]
        code = _CODE.format(given=given, prelude=self._prelude)
        self.process = subprocess.Popen(
            as_user([sys.executable, "-c", code], self._user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": str(REPOSITORY), "NOTIFY_SOCKET": str(self.manager.path)},
            pass_fds=[fd for _, fd in given],
            cwd="/",
        )
        reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        reader.start()
        self._readers.append(reader)
        self.manager.wait_for("READY=1", after=mark)
        return self

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.stderr += line.decode(errors="replace")
        process.stderr.close()

    def agent(self, world: World, changes: dict[str, Any] | None = None, **more: Any) -> Agent:
        """A controller that connects to it."""
        environ = {UNIT_VARIABLE: str(self.path), **more.pop("environ", {})}
        return world.agent(changes, environ=environ, **more)

    def stop(self) -> int:
        """End it as the service manager does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_SECONDS)

    def kill(self) -> None:
        """End it as the out-of-memory killer does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)

    def __enter__(self) -> Self:
        self.manager.__enter__()
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.kill()
        for reader in self._readers:
            reader.join(DEADLINE_SECONDS)
        for one in (self._http, self._listening, self._netlink):
            one.close()
        self.manager.__exit__(kind, error, where)


def ask(address: tuple[str, int], method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(*address, timeout=DEADLINE_SECONDS)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def credential(address: tuple[str, int]) -> str:
    """The access key that IMDS serves there: what no agent's own words are needed for."""
    status, token = ask(address, "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    assert status == 200, (status, token)
    headers = {"X-aws-ec2-metadata-token": token.decode()}
    path = "/latest/meta-data/iam/security-credentials/"
    status, name = ask(address, "GET", path, headers)
    assert status == 200, (status, name)
    status, body = ask(address, "GET", path + name.decode(), headers)
    assert status == 200, (status, body)
    return str(json.loads(body)["AccessKeyId"])


def served_first(agent: Agent, world: World) -> None:
    """Wait until it is ready, and have it serve a first bundle, whose session is :data:`KEY`."""
    agent.ready()
    world.drop(world.seal(world.session(KEY)))
    agent.wait_for("bundle.accepted", seq=1)


class Clients:
    """Programs that ask for the credential all the while, each request on a connection of its own.

    Args:
        unit: is asked.
        count: how many.
        patience: how often one asks again after its connection was cut: by the end of the server that had it.

    Attributes:
        answered: how many credentials came.
        wrong: whatever else.
    """

    def __init__(self, unit: ServeUnit, count: int, *, patience: int = 0) -> None:
        self.answered = 0
        self.wrong: list[object] = []
        self._unit = unit
        self._patience = patience
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def _ask(self) -> None:
        cut = 0
        while not self._stop.is_set():
            try:
                found = credential(self._unit.address)
            except (OSError, http.client.HTTPException) as error:
                cut += 1
                if cut > self._patience:
                    self.wrong.append(error)
                    return
                continue
            except AssertionError as error:
                self.wrong.append(error)
                return
            cut = 0
            self.answered += 1
            if found != KEY:
                self.wrong.append(found)

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        least = self.answered + count
        until(lambda: self.answered >= least or self.wrong, what="answers")

    def __enter__(self) -> Self:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for one in self._threads:
            one.join()
