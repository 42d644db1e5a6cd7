"""Who listens where workers ask? From the kernel's table of sockets, and for root from everybody's descriptors."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from agent import config
from agent.core.errors import ConfigError, HostError
from agent.core.installed import CONFIG_PATH, SERVER_USER, SERVICE_USER
from agent.core.text import socket_address
from agent.doctor.facts import Listener, Listeners
from agent.doctor.probes.settings import settings_of
from agent.host import ports, systemctl

_OURS: Final = ("credential-agent", " agent ", "agent.host", "agent.server")
"""One of these is in the command line of each of our programs."""


def look_at_listeners(path: Path) -> Listeners:
    """Look for the addresses of the socket units, else of the configuration at ``path``, else the default ones."""
    settings = settings_of(path)
    found = []
    units = dict(_of_units()) if path == CONFIG_PATH else {}
    for address in units or settings.listen.http:
        with contextlib.suppress(ConfigError):
            host, port = config.host_port(address)
            found.append(replace(_look(address, host, port), unit=units.get(address, ports.SOCKETS[0])))
    return Listeners(listeners=tuple(found))


def _of_units() -> Iterator[tuple[str, str]]:
    """Where systemd listens for us, and by which unit, whatever the configuration says; nothing without such units."""
    for unit in ports.SOCKETS:
        with contextlib.suppress(HostError):
            # The second is not started on a machine without IPv6.
            if unit != ports.SOCKETS[0] and systemctl.show(unit, "ActiveState").get("ActiveState") == "inactive":
                continue
            for host, port in ports.listening(unit)[0]:
                yield socket_address(host, port), unit


def _look(address: str, host: str, port: int) -> Listener:
    inodes = _inodes(host, port)
    if not inodes:
        return Listener(address=address, taken=False)
    stranger = next((uid for uid in inodes.values() if not _may_be_ours(uid)), None)
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if not inodes.keys().isdisjoint(_sockets(directory / "fd")):
                return _of(address, directory, stranger is None)
    if stranger is not None:
        return Listener(address=address, taken=True, program=f"one of uid {stranger}", ours=False)
    return Listener(address=address, taken=True)


def _may_be_ours(uid: int) -> bool:
    """Whether the agent's socket may be that user's. (A program may call itself anything; a socket has an owner.)."""
    if uid in {0, os.geteuid()}:
        return True
    try:
        ours = {pwd.getpwnam(SERVICE_USER).pw_uid}
    except KeyError:
        return True  # not installed here: it is run by hand, by anybody
    with contextlib.suppress(KeyError):  # a release without that user
        ours.add(pwd.getpwnam(SERVER_USER).pw_uid)
    return uid in ours


def _sockets(descriptors: Path) -> Iterator[str]:
    """The numbers of the sockets that a process has open. Raises OSError where it is not ours to ask."""
    for name in os.listdir(descriptors):  # noqa: PTH208 - thousands of them, and only their names
        with contextlib.suppress(OSError):  # closed since
            yield os.readlink(f"{descriptors}/{name}").removeprefix("socket:[").removesuffix("]")  # noqa: PTH115


def _of(address: str, directory: Path, may_be_ours: bool) -> Listener:
    program = (directory / "comm").read_text().strip()
    words = (directory / "cmdline").read_bytes().split(b"\0")
    line = b" ".join(words).decode(errors="replace")
    ours = directory.name == "1" or any(one in line for one in _OURS)
    return Listener(address=address, taken=True, pid=int(directory.name), program=program, ours=ours and may_be_ours)


def _inodes(host: str, port: int) -> Mapping[str, int]:
    """The sockets that listen there, by the number of each, and whose they are."""
    wanted = {_spelt(host), "00000000", "0" * 32}
    return {one.inode: one.uid for one in ports.who_listens(port) if one.host in wanted}


def _spelt(host: str) -> str:
    """An address as the kernel's table has it: words in the machine's order."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        packed = socket.inet_pton(family, host)
    except OSError:
        return ""
    return "".join(packed[i : i + 4][::-1].hex().upper() for i in range(0, len(packed), 4))
