"""The agent's addresses are bound by root, and by nobody else."""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path

import pytest

from agent.core.errors import HostError
from agent.host import ports, systemctl
from agent.host.reporting import Reporter

SHOWN = """Listen=127.0.0.1:16925 (Stream)
Listen=169.254.171.2:16925 (Stream)
Listen=[fd6c:9e1f:25b2::2]:16925 (Stream)
Listen=/run/credential-agent-control.sock (Stream)
Listen=inet-diag 0 (Netlink)
ReusePort={}
ActiveState={}
UnitFileState=enabled
"""


def free() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        host, port = made.getsockname()[:2]
        return host, port


class Manager:
    """The programs of the machine, as they would answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown, self.done = SHOWN.format("yes", "failed"), list[str]()
        self.refuses = 0
        self.silent = False
        self.after_restart: str | None = None  # how the unit is shown, whatever is said of the restart
        monkeypatch.setattr(systemctl, "call", self._call)

    def _call(self, program: str, arguments: list[str], *, seconds: float = 0.0) -> str:
        del seconds
        if arguments[0] == "show" and self.silent:
            raise HostError("systemctl show: no answer within 30 s")
        if arguments[0] == "show":
            return self.shown
        self.done.append(" ".join([program, *arguments]))
        if arguments[0] == "restart" and self.after_restart is not None:
            self.shown = self.shown.replace("ActiveState=failed", f"ActiveState={self.after_restart}")
        if self.refuses:
            self.refuses -= 1
            raise HostError("the job failed")
        return ""


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    return Manager(monkeypatch)


def test_the_addresses_are_those_of_the_units(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is reserved is what systemd listens on by TCP; of a unit that shares its addresses with nobody, nothing.

    While systemd does not answer it is not known, which is another thing than nothing.
    """
    monkeypatch.setattr(systemctl, "runs", lambda: False)
    addresses = [("127.0.0.1", 16925), ("169.254.171.2", 16925), ("fd6c:9e1f:25b2::2", 16925)]
    assert ports.listening("credential-agent.socket") == (addresses, True)
    assert ports.to_reserve() == addresses * 2  # the fake has one answer for both units
    manager.silent = True
    assert ports.to_reserve() == []  # no systemd at all
    monkeypatch.setattr(systemctl, "runs", lambda: True)
    assert ports.to_reserve() is None
    manager.silent = False
    manager.shown = SHOWN.format("no", "active")
    assert ports.to_reserve() == []


def test_whoever_shares_may_listen_and_nobody_else(tmp_path: Path) -> None:
    """A reserved address is free for a socket of ours that says so, and taken for any other; given up, it is free."""
    host, port = free()
    reserved = ports.Reserved(Reporter(tmp_path, None))
    reserved.want(json.loads(json.dumps([(host, port)])))
    assert not reserved.lacking
    for option in (socket.SO_KEEPALIVE, socket.SO_REUSEADDR):
        with socket.socket() as another:
            another.setsockopt(socket.SOL_SOCKET, option, 1)
            with pytest.raises(OSError, match="in use"):
                another.bind((host, port))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen()
        for _ in range(20):  # none goes to whoever is only bound
            with socket.create_connection((host, port), 5), listener.accept()[0]:
                pass
    reserved.want([])
    with socket.create_server((host, port)):
        pass


def test_what_is_taken_is_had_as_soon_as_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's address is said with its user, root's own is not; each look tries again."""
    reserved = ports.Reserved(Reporter(tmp_path, None))
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = other.getsockname()[:2]
        monkeypatch.setattr(ports, "owner", lambda _: 1000)
        reserved.want([address])
        (said,) = reserved.lacking
        assert "uid 1000" in said
        monkeypatch.setattr(ports, "owner", lambda _: 0)
        reserved.take()
        assert not reserved.lacking
    reserved.take()
    with pytest.raises(OSError, match="in use"), socket.create_server(tuple(address)):
        pass
    reserved.want([])


def test_what_nobody_can_bind_costs_no_look_at_all_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each second: on a machine without IPv6, beside a table of connections that may have 100,000 rows."""

    def unsupported(_: ports.Address) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "address family not supported")

    monkeypatch.setattr(ports, "bound", unsupported)
    monkeypatch.setattr(ports, "owner", lambda _: pytest.fail("the table was read"))
    reserved = ports.Reserved(Reporter(tmp_path, None))
    reserved.want([("::1", 16925)])
    assert not reserved.lacking


def test_who_listens_is_found(tmp_path: Path) -> None:
    """Of the kernel's table the rows that listen on the port, in both families."""
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = "   0: {}:{:04X} 00000000:0000 {} 00000000:00000000 00:00000000 00000000  {}        0 1 1 0 100 0 0 10 0\n"
    (tmp_path / "tcp").write_text(head + row.format("0100007F", 80, "0A", 33) + row.format("0100007F", 16925, "01", 7))
    assert ports.owner(("127.0.0.1", 16925), tmp_path) is None
    (tmp_path / "tcp6").write_text(head + row.format("0" * 32, 16925, "0A", 1000))
    assert ports.owner(("127.0.0.1", 16925), tmp_path) == 1000


def test_a_failed_unit_is_made_again_when_its_address_is_free(manager: Manager) -> None:
    """Not before: a restart in vain would take a running agent along each time."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        manager.shown = manager.shown.replace("127.0.0.1:16925", f"127.0.0.1:{other.getsockname()[1]}")
        pauses: list[float] = []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            assert not manager.done
            if len(pauses) == 5:
                other.close()

        ports.make_again("credential-agent.socket", sleep=sleep)
    assert pauses == [1, 2, 4, 5, 5]
    assert manager.done == [
        "systemctl restart credential-agent.socket",
        "systemctl --no-block start credential-agent.service",
    ]


def test_what_cannot_be_made_is_tried_less_and_less_often(manager: Manager) -> None:
    """Whatever else is wrong with it; the agent is not started beside a socket that is not there."""
    manager.refuses, pauses = 7, list[float]()
    host, port = free()
    manager.shown = f"Listen={host}:{port} (Stream)\nReusePort=yes\nActiveState=failed\nUnitFileState=disabled\n"
    ports.make_again("credential-agent.socket", sleep=pauses.append)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert manager.done == ["systemctl restart credential-agent.socket"] * 8


def waiting_for(manager: Manager, state: str) -> list[float]:
    """What was made again by a manager that says that it was not, and shows the unit so; returns the pauses."""
    host, port = free()
    manager.shown = f"Listen={host}:{port} (Stream)\nReusePort=yes\nActiveState=failed\nUnitFileState=enabled\n"
    manager.after_restart, pauses = state, list[float]()
    ports.make_again("credential-agent.socket", sleep=pauses.append)
    return pauses


START = "systemctl --no-block start credential-agent.service"


def test_the_agent_is_started_though_the_manager_answers_too_late(manager: Manager) -> None:
    """A busy one has made the socket all the same, and takes the start the next time: nobody else asks for it."""
    manager.refuses = 3
    assert waiting_for(manager, "active") == [1, 1, 2]
    assert manager.done == ["systemctl restart credential-agent.socket", START, START, START]


def test_an_agent_is_not_started_beside_a_socket_that_somebody_has_stopped(manager: Manager) -> None:
    """Its own start would bring the socket back, in which an operator has decided."""
    manager.refuses = 1
    assert waiting_for(manager, "inactive") == [1]
    assert manager.done == ["systemctl restart credential-agent.socket"]


def test_a_manager_that_is_silent_for_a_while_is_asked_again(manager: Manager) -> None:
    """It is busy, say; what was done before that is not forgotten."""
    manager.silent, pauses = True, list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            manager.silent, manager.shown = False, SHOWN.format("yes", "inactive")

    ports.make_again("credential-agent.socket", sleep=sleep)
    assert (pauses, manager.done) == ([1, 2, 4], [])


def test_a_unit_that_has_not_failed_is_left_alone(manager: Manager) -> None:
    """An operator who stops it, or has mended it, has decided."""
    manager.shown = SHOWN.format("yes", "inactive")
    ports.make_again("credential-agent.socket", sleep=lambda _: pytest.fail("nothing is waited for"))
    assert manager.done == []
