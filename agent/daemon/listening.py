"""The listening sockets: from systemd if it passes them, else made here. Bound before anything slow begins."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agent import config
from agent.core.announced import FILE, FORMER_FILE, Announced
from agent.core.errors import HostError
from agent.core.text import os_reason, socket_address
from agent.host import deferring
from agent.host.files import write_atomic
from agent.wire.names import ECS_IPV4, EKS_IPV4, EKS_IPV6

BACKLOG: Final = 4096
"""A dropped SYN costs the client a second, which is the whole patience of botocore, Go, Java and JavaScript."""


class AnotherAgentError(HostError):
    """Another agent listens where we should."""


ABSENT: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""This machine has no such address, or no such family: IPv6 is switched off (ipv6.disable=1, or the sysctl)."""


class AbsentAddressError(HostError):
    """The machine does not have the address."""


class _TakenError(HostError):
    """Somebody else listens there."""


_TRIES: Final = 10
_AGAIN_SECONDS: Final = 0.05


def worker_sockets(
    settings: config.Listen, passed: Mapping[str, Sequence[socket.socket]]
) -> tuple[list[socket.socket], list[AbsentAddressError]]:
    """The sockets on which workers ask, and those that are missing because the machine lacks their addresses.

    Raises:
        HostError: an address cannot be bound for another reason, or none is there.
    """
    if passed.get("http"):
        deferring.defer(passed["http"])
        return list(passed["http"]), []
    found: list[socket.socket] = []
    absent: list[AbsentAddressError] = []
    try:
        for value in settings.http:
            try:
                found.append(_tcp(*config.host_port(value)))
            except AbsentAddressError as error:
                absent.append(error)
        if not found:
            raise absent[0]
    except HostError:
        for sock in found:
            sock.close()
        raise
    deferring.defer(found)
    return found, absent


def control_socket(settings: config.Listen, passed: Mapping[str, Sequence[socket.socket]]) -> socket.socket:
    """The control socket.

    Raises:
        HostError: the path cannot be bound, or another agent listens on it.
    """
    for sock in passed.get("control", ()):
        if sock.family == socket.AF_UNIX:  # the unit also passes a netlink socket (agent.host.sockdiag)
            return sock
    return unix_socket(Path(settings.control), int(settings.control_mode, 8), key="listen.control")


def unix_socket(path: Path, mode: int, *, key: str) -> socket.socket:
    """A listening unix socket at ``path``.

    Args:
        path: where.
        mode: of its file.
        key: the key of the configuration that names it.

    Raises:
        HostError: the path cannot be bound, or another agent listens on it.
    """
    try:
        _clear(path, key)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:  # there is no descriptor to be had
        raise HostError(f"{key}: {path}: cannot be bound: {os_reason(error)}") from None
    mask = os.umask(0o777 & ~mode)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise HostError(
            f"{key}: {path}: cannot be bound: {os_reason(error)}",
            hint="its directory must exist and be writable by the agent",
        ) from None
    finally:
        os.umask(mask)
    sock.setblocking(False)
    return sock


def announce(settings: config.Config, address: str) -> None:
    """Tell programs that may not read the configuration where to ask, in a file beside the control socket.

    Args:
        settings: where the files are.
        address: the workers' endpoint.

    Raises:
        HostError: it cannot be written; commands then use the default addresses.
    """
    told = Announced(
        http=address,
        control=settings.listen.control,
        courier=None if (courier := config.courier_path(settings.listen)) is None else str(courier),
        file=settings.environment.file,
        token_file=settings.environment.token_file,
    )
    for name in (FILE, FORMER_FILE):
        write_atomic(Path(settings.listen.control).with_name(name), msgspec.json.encode(told), mode=0o644)


def names(sockets: Iterable[socket.socket]) -> list[str]:
    """How a person would write their addresses."""
    found = []
    for sock in sockets:
        name = sock.getsockname()
        found.append(name if isinstance(name, str) else socket_address(name[0], name[1]))
    return found


def hosts(addresses: Iterable[str]) -> tuple[str, ...]:
    """The hosts of addresses as ``HOST:PORT``, without the wildcards, which no client asks for."""
    found = (address.rpartition(":")[0].strip("[]") for address in addresses)
    return tuple(host for host in found if not _is_wildcard(host))


def pointer(addresses: Sequence[str]) -> str | None:
    """The address that the worker's environment files name, as ``HOST:PORT``.

    IPv4 loopback if we have it, since every SDK accepts that as a container endpoint; else another that they accept:
    IPv6 loopback, and the addresses of ECS and EKS. ``None``: they would refuse each of ours.
    """
    reached = [address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:") for address in addresses]
    ranked = ("127.", "[::1]:", f"{ECS_IPV4}:", f"{EKS_IPV4}:", f"[{EKS_IPV6}]:")
    return next((address for start in ranked for address in reached if address.startswith(start)), None)


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _tcp(host: str, port: int) -> socket.socket:
    """A listening socket. What answered workers for an agent that was killed ends with it, not in the same instant."""
    for _ in range(_TRIES):
        try:
            return _bound(host, port)
        except HostError as error:
            if not isinstance(error, _TakenError):
                raise
            time.sleep(_AGAIN_SECONDS)
    return _bound(host, port)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        said = f"listen.http: {socket_address(host, port)}: cannot be bound: {os_reason(error)}"
        if error.errno in ABSENT:
            hint = "does this machine have the address? IPv6 may be switched off; restart the agent when it is there"
            raise AbsentAddressError(said, hint=hint) from None
        if error.errno == errno.EADDRINUSE:
            raise _TakenError(said, hint="is another agent running?") from None
        raise HostError(said) from None
    sock.setblocking(False)
    return sock


def _clear(path: Path, key: str) -> None:
    """Remove a socket that nobody listens on any more; anything else at the path is not ours to remove."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise HostError(f"{key}: {path}: expected a socket or nothing, got another kind of file")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(1.0)
    try:
        probe.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        with contextlib.suppress(OSError):
            path.unlink()
    except OSError as error:
        raise HostError(f"{key}: {path}: cannot be bound: {os_reason(error)}") from None
    else:
        raise AnotherAgentError(f"{key}: {path}: another agent listens on it", hint="credential-agent status")
    finally:
        probe.close()
