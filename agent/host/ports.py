"""Nobody but root binds the addresses that workers are led to, also while the socket units are made anew.

While systemd closes and opens a socket its address is free for a moment, and any user may bind it. Nobody would
believe him (the rules refuse who speaks from there and is not the agent), but the socket unit would fail, and workers
be without an agent. So the process that holds the rules binds the same addresses and does not listen. With
``SO_REUSEPORT`` on both sockets the kernel lets only the same user (root) bind them again (socket(7)), and connections
come to who listens.

What was taken before (the agent is installed on a machine that runs) cannot be taken back: :func:`main` waits until it
is free and then makes the socket unit again (``credential-agent-again@.service``, by ``OnFailure=``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agent.core.errors import HostError
from agent.core.text import os_reason, socket_address
from agent.host import systemctl
from agent.host.reporting import WARNING, Reporter

SOCKETS: Final = ("credential-agent.socket", "credential-agent-ipv6.socket")
AGAIN_SECONDS: Final = (1.0, 30.0)
#: How soon at the latest an address that is free again is seen to be.
TAKEN_SECONDS: Final = 5.0
_IP_FREEBIND: Final = 15  # ip(7); Python has no name for it
_IPV6_FREEBIND: Final = 78
_LISTENS: Final = "0A"
_LISTEN: Final = re.compile(r"(?:(\d+(?:\.\d+){3})|\[([0-9a-f:]+)\]):(\d+) \(Stream\)")
Address = tuple[str, int]


def listening(unit: str) -> tuple[list[Address], bool]:
    """The TCP addresses of a socket unit, and whether others of root's may be bound to the same (``ReusePort=``).

    Raises:
        HostError: systemd does not answer.
    """
    values = systemctl.show(unit, "Listen", "ReusePort")
    found = [(four or six, int(port)) for four, six, port in _LISTEN.findall(values.get("Listen", ""))]
    return found, values.get("ReusePort") == "yes"


def to_reserve() -> list[Address] | None:
    """What a :class:`Reserved` should have: nothing where there is no systemd, or units of an earlier version.

    ``None``: it cannot be told just now, since systemd does not answer. What is bound stays so: a worker can keep
    systemd busy, and must not have an address set free by that.
    """
    wanted: list[Address] = []
    for unit in SOCKETS:
        try:
            addresses, shared = listening(unit)
        except HostError:
            if systemctl.runs():
                return None
        else:
            wanted += addresses if shared else []
    return wanted


class Reserved:
    """Binds addresses and keeps them bound.

    Args:
        reporter: is told of an address that another user has.

    Attributes:
        lacking: what is not to be had, in words.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._bound: dict[Address, socket.socket] = {}
        self._wanted: list[Address] = []
        self.lacking: list[str] = []

    def want(self, addresses: Iterable[Sequence[object]]) -> None:
        """Have these, and no others."""
        self._wanted = list(dict.fromkeys((str(host), int(str(port))) for host, port in addresses))
        for address in [one for one in self._bound if one not in self._wanted]:
            self._bound.pop(address).close()
        self.take()

    def take(self) -> None:
        """Bind what is not bound yet. Never blocks."""
        missing, self.lacking = [one for one in self._wanted if one not in self._bound], []
        for address in missing:
            try:
                self._bound[address] = bound(address)
            except OSError as error:
                # Where there is no IPv6 nobody has it, and the kernel's table may be long: this is done each second.
                user = owner(address) if error.errno == errno.EADDRINUSE else None
                if user:  # root's: a socket unit of an earlier version
                    where = socket_address(*address)
                    self.lacking.append(
                        f"{where} is bound by uid {user}: the agent cannot listen there until that is ended"
                    )
        self._reporter.say("ports", "; ".join(self.lacking) or None)


def bound(address: Address) -> socket.socket:
    """A socket that is bound, does not listen, and leaves the address to others of this user that say the same.

    Raises:
        OSError: the address is another's, or there is no such family.
    """
    host, _ = address
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # Not SO_REUSEADDR: with it anybody who has it too may bind what nobody listens on.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if ":" in host:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            made.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


class Listening(NamedTuple):
    """A socket that listens (proc_net_tcp(5)).

    Attributes:
        host: in the kernel's spelling: hexadecimal, words in the machine's order.
        inode: its number.
        uid: whose it is.
    """

    host: str
    inode: str
    uid: int


def who_listens(port: int, directory: Path = Path("/proc/net")) -> Iterator[Listening]:
    """The sockets that listen on a port, whatever the address; one that is only bound is not among them."""
    for name in ("tcp", "tcp6"):
        try:
            rows = (directory / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in map(str.split, rows):
            host, _, number = row[1].rpartition(":")
            if row[3] == _LISTENS and int(number, 16) == port:
                yield Listening(host, row[9], int(row[7]))


def owner(address: Address, directory: Path = Path("/proc/net")) -> int | None:
    """The user who listens on a port, whatever the address; ``None``: nobody does (who is only bound is not shown)."""
    return max((one.uid for one in who_listens(address[1], directory)), default=None)


# ---------------------------------------------------------------------------------------------------------------------


def make_again(unit: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Make a socket unit that has failed, as soon as its addresses can be had; then start the agent.

    Returns when the unit is not failed any more, whoever saw to that.
    """
    said, pause, tried = "", AGAIN_SECONDS[0], False
    while True:
        most = AGAIN_SECONDS[1]
        try:
            if (state := systemctl.show(unit, "ActiveState").get("ActiveState")) != "failed":
                break
            addresses, _ = listening(unit)
            taken = list(map(_taken, addresses))
            if why := "; ".join(filter(None, taken)):
                most = TAKEN_SECONDS
            else:
                tried = True
                # Not `start`: beside the running agent it would be refused; a restart takes the agent along.
                systemctl.restart(unit)
                state = "active"
                break
        except HostError as error:
            why = str(error)
        if why != said:
            Reporter.log(WARNING, f"{unit} cannot be made: {why}; tried again and again")
            said = why
        sleep(min(pause, most))
        pause = min(pause * 2, AGAIN_SECONDS[1])
    if (
        tried and state == "active"
    ):  # also where that was told to fail: a busy manager answers too late, and has done it
        Reporter.log(WARNING, f"{unit} was made again")
        _start_agent(sleep)


def _start_agent(sleep: Callable[[float], None]) -> None:
    """Start it, if it is enabled: what has not failed any more is not made again, and nobody else would."""
    pause = AGAIN_SECONDS[0]
    while True:
        try:
            systemctl.start_wanted("credential-agent.service")
        except HostError as error:
            Reporter.log(WARNING, f"credential-agent.service cannot be started: {error}; tried again and again")
        else:
            return
        sleep(pause)
        pause = min(pause * 2, AGAIN_SECONDS[1])


def _taken(address: Address) -> str:
    """Why an address cannot be bound; empty: it can."""
    try:
        bound(address).close()
    except OSError as error:
        user = owner(address)
        who = "" if user is None else f" (uid {user} listens there)"
        return f"{socket_address(*address)}: {os_reason(error)}{who}"
    return ""


def main(arguments: Sequence[str]) -> None:
    """Make a unit again: ``UNIT``."""
    with contextlib.suppress(OSError):
        os.set_blocking(2, False)
    make_again(arguments[0])
