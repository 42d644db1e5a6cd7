"""The service manager's protocols: sockets passed in, readiness told, memory kept over a restart.

Three protocols of systemd, spoken directly because they are three datagrams and two variables: socket activation
(sd_listen_fds(3)), notification (sd_notify(3)) and the file descriptor store. The environment they come in is passed by
the caller; nothing here reads it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agent.core.errors import HostError
from agent.core.text import os_reason
from agent.host import notifying
from agent.host.libc import libc

FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
MAX_FDS: Final = 4096  # systemd's own limit of the store
UNNAMED: Final = "unknown"  # what systemd calls a descriptor that nobody named
MFD_NOEXEC_SEAL: Final = 0x8  # linux/memfd.h; with vm.memfd_noexec=2 no other is given
PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
NEXT: Final = "-next"
"""The ending of the second name that kept data has while it is replaced under its first."""


@dataclass(frozen=True, slots=True)
class Passed:
    """The sockets and files that the service manager passed to this process.

    Attributes:
        sockets: listening sockets by ``FileDescriptorName=``, non-blocking, in the order of the unit file.
        stored: other descriptors by name: what :meth:`Notifier.keep` put away before a restart.
    """

    sockets: Mapping[str, tuple[socket.socket, ...]]
    stored: Mapping[str, int]

    def take(self, name: str, *, max_bytes: int = 1 << 20) -> bytes | None:
        """Read what was kept under ``name`` and close it; ``None``: nothing was.

        Raises:
            HostError: it cannot be read, or is longer than ``max_bytes``.
        """
        descriptor = self.stored.get(name)
        if descriptor is None:
            return None
        try:
            data = os.pread(descriptor, max_bytes + 1, 0)
        except OSError as error:
            raise HostError(f"the kept file {name!r} cannot be read: {os_reason(error)}") from None
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        if len(data) > max_bytes:
            raise HostError(f"the kept file {name!r}: expected at most {max_bytes} bytes")
        return data

    def take_each(self, name: str, *, max_bytes: int = 1 << 20) -> list[bytes]:
        """Read and close the file kept under ``name``, and the second one of a file that was being replaced.

        The caller tells which is newer: the process that kept them may have ended between any two steps.

        Raises:
            HostError: no kept file can be read, or all are too long.
        """
        found, failed = [], None
        for one in (name, name + NEXT):
            try:
                data = self.take(one, max_bytes=max_bytes)
            except HostError as error:
                failed = error
            else:
                found += [data] if data is not None else []
        if failed is not None and not found:
            raise failed
        return found


def passed(environ: Mapping[str, str], *, pid: int, first: int = FIRST_FD) -> Passed:
    """Take what the service manager passed: listening sockets and stored files.

    Nothing is passed when ``LISTEN_PID`` is not ``pid``: the variables then belong to a parent and were inherited.
    Every descriptor is set close-on-exec, so that no child of ours gets a listener.

    Args:
        environ: the process's environment.
        pid: the process's own id.
        first: the first descriptor passed; always 3 but in tests.

    Raises:
        HostError: the variables contradict themselves or the descriptors are not there.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return Passed({}, {})
    count = _number(environ, "LISTEN_FDS", maximum=MAX_FDS)
    names = environ["LISTEN_FDNAMES"].split(":") if environ.get("LISTEN_FDNAMES") else [UNNAMED] * count
    if len(names) != count:
        raise HostError(f"LISTEN_FDNAMES: expected {count} names, as LISTEN_FDS says, got {len(names)}")
    sockets: dict[str, list[socket.socket]] = {}
    stored: dict[str, int] = {}
    for descriptor, name in enumerate(names, start=first):
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
            is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        except OSError as error:
            raise HostError(
                f"descriptor {descriptor} ({name!r}) was promised and is not there: {os_reason(error)}"
            ) from None
        if is_socket:
            listener = socket.socket(fileno=descriptor)
            listener.setblocking(False)
            sockets.setdefault(name, []).append(listener)
        else:
            stored[name] = descriptor
    return Passed({name: tuple(group) for name, group in sockets.items()}, stored)


def peek(environ: Mapping[str, str], name: str, *, pid: int, max_bytes: int, first: int = FIRST_FD) -> list[bytes]:
    """The files kept under ``name``, the newest first, before :func:`passed` takes everything. Nothing is closed.

    Args:
        environ: the process's environment.
        name: as for :meth:`Notifier.keep`.
        pid: the process's own id.
        max_bytes: what is longer is left out.
        first: the first descriptor passed; always 3 but in tests.
    """
    names = environ.get("LISTEN_FDNAMES", "").split(":") if environ.get("LISTEN_PID") == str(pid) else []
    found = []
    for wanted in (name + NEXT, name):
        for descriptor in (number for number, one in enumerate(names, start=first) if one == wanted):
            with contextlib.suppress(OSError):
                found.append(os.pread(descriptor, max_bytes + 1, 0))
    return [data for data in found if len(data) <= max_bytes]


def watchdog_seconds(environ: Mapping[str, str], *, pid: int) -> float | None:
    """How long systemd waits for a sign of life before it kills us; ``None``: it does not watch.

    Feed it (``WATCHDOG=1``) at a third of this, from the loop whose death matters.

    Raises:
        HostError: ``WATCHDOG_USEC`` is not a number.
    """
    if "WATCHDOG_USEC" not in environ or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    microseconds = _number(environ, "WATCHDOG_USEC", maximum=1 << 53)
    return microseconds / 1e6 if microseconds else None


class Notifier:
    """Tells systemd our state. Without a ``NOTIFY_SOCKET`` every call does nothing.

    A notification that cannot be delivered is not an error of the agent: it goes on serving. (A missing ``READY=1``
    or ``WATCHDOG=1`` has its own consequence: systemd restarts us. So they are told again until they are taken.)

    Args:
        address: the value of ``NOTIFY_SOCKET``; a leading ``@`` stands for the abstract namespace.
        stored: the names under which something is kept already: those of :attr:`Passed.stored`.
    """

    def __init__(self, address: str | None, *, stored: Iterable[str] = ()) -> None:
        self._address = address
        self._seconds = {name for name in stored if name.endswith(NEXT)}  # second names that may be in use

    @property
    def active(self) -> bool:
        """Whether there is a service manager to tell."""
        return bool(self._address)

    def tell(self, *lines: str, fds: Sequence[int] = ()) -> bool:
        """Send assignments such as ``READY=1`` in one datagram.

        Args:
            lines: ``NAME=value``, no line breaks.
            fds: descriptors sent along.

        Returns:
            Whether the datagram was taken.

        Raises:
            ValueError: a line has a line break: our own mistake.
        """
        if not self._address:
            return False
        if any("\n" in line for line in lines):
            raise ValueError("a notification is one assignment a line")
        return notifying.send(self._address, lines, fds)

    def ready(self, status: str) -> bool:
        """Say that we answer from now on. ``status`` is the line that ``systemctl status`` shows."""
        return self.tell("READY=1", f"STATUS={status}")

    def status(self, text: str) -> bool:
        """The line that ``systemctl status`` shows."""
        return self.tell(f"STATUS={text}")

    def alive(self) -> bool:
        """Feed the watchdog."""
        return self.tell("WATCHDOG=1")

    def starts_within(self, seconds: float) -> bool:
        """Ask for so long a start, if the unit (``TimeoutStartSec=``) gives less: counted from now."""
        return self.tell(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def reloading(self, *, monotonic_seconds: float) -> bool:
        """A reload begins; ``ready`` ends it. ``monotonic_seconds`` is CLOCK_MONOTONIC, which systemd 253 asks for."""
        return self.tell("RELOADING=1", f"MONOTONIC_USEC={int(monotonic_seconds * 1e6)}")

    def stopping(self) -> bool:
        """Say that we are stopping."""
        return self.tell("STOPPING=1")

    def keep(self, name: str, data: bytes) -> bool:
        """Give ``data`` to systemd, which hands it to the next process of this unit: over a crash, not over a stop.

        It lies in sealed anonymous memory: no file system, no name, and gone with the machine. Needs
        ``FileDescriptorStoreMax=``, with room for two of each name. The file kept under the name before is dropped.

        At each instant systemd holds one whole copy, though a process may be killed between any two datagrams: none of
        them replaces (the store takes several of one name, and drops all of a name at once). So the new data lies under
        a second name while the first is freed and taken. See :meth:`Passed.take_each`.

        Args:
            name: up to 250 printable characters, no colon.
            data: the content; it must itself say how new it is.

        Returns:
            Whether systemd was told; it does not say whether there was room. If not, it still holds the one before.
        """
        if not self._address:
            return False
        second = name + NEXT
        if second not in self._seconds:
            # Else an earlier attempt, or process, stored a whole copy there, which stands in meanwhile.
            if not self._store(second, data):
                return False
            self._seconds.add(second)
        if not (self.forget(name) and self._store(name, data) and self.forget(second)):
            return False
        self._seconds.discard(second)
        return True

    def _store(self, name: str, data: bytes) -> bool:
        # A new descriptor for each name: systemd takes none that it has already.
        try:
            descriptor = anonymous_memory(f"credential-agent-{name}")
        except OSError:
            return False  # no memory, or the kernel gives none: after a restart everything is asked for again
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            return self.tell("FDSTORE=1", f"FDNAME={name}", fds=[descriptor])
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def forget(self, name: str) -> bool:
        """Drop what is kept under ``name``."""
        return self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")


def anonymous_memory(name: str) -> int:
    """A file in memory that has no name and can be sealed (memfd_create(2)), as a descriptor.

    Raises:
        OSError: no memory or descriptor is to be had.
    """
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)  # Linux before 6.3


def harden() -> None:
    """Keep the process's memory to itself: no core file, no ``ptrace``, no ``/proc/PID/mem`` for the same user.

    Raises:
        HostError: the kernel refused.
    """
    try:
        # Our unit's LimitCORE=0 has done it, and its filter of system calls would refuse the call.
        if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:
        raise HostError(f"core files cannot be switched off: {error}") from None
    # The soft limit alone is not enough: a core_pattern that pipes to a program (systemd-coredump) ignores it.
    if libc().prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise HostError(f"the process cannot be made undumpable: {os.strerror(ctypes.get_errno()).lower()}")


def _number(environ: Mapping[str, str], name: str, *, maximum: int) -> int:
    text = environ.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= maximum):
        raise HostError(f"{name}: expected a number up to {maximum}, got {text!r}")
    return int(text)
