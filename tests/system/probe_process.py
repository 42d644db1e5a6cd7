"""What an intruder could do in each process that answers workers: tried in the very process, once it has given up all it does.

:func:`install` is called before the program of :mod:`agent.server` runs. The master tries when it has what it was given, each
server when it answers or stands by; each goes on with its work afterwards. What was *not* refused is said on standard error:
``probe ROLE: KIND: what`` for each, ``probe ROLE: end`` at last.
"""

# ruff: noqa: PTH123, PTH211

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import signal
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
REFUSED = {
    errno.EPERM, errno.EACCES, errno.ENOENT, errno.EROFS, errno.ENOSYS, errno.EAFNOSUPPORT, errno.ESRCH, errno.ECONNREFUSED,
    errno.ENOTDIR, errno.EOPNOTSUPP,
}  # fmt: skip
X32_BIT = 0x40000000
CALLS = {
    "x86_64": {"io_uring": (425, 426, 427), "trace": (101, 310, 311, 312, 438, 440), "keys": (248, 249, 250), "bpf": (321,),
               "perf": (298,), "userfaultfd": (323,), "memory file": (319, 447), "mount": (165, 166, 155, 428, 429, 430, 442),
               "namespace": (272, 308, 161), "clock": (227, 305, 159, 164), "module": (175, 313, 320, 246, 169),
               "handles": (303, 304, 300, 301), "priority": (141, 142, 144, 203, 251, 314, 302, 160), "ipc": (29, 64, 68, 240)},
    "aarch64": {"io_uring": (425, 426, 427), "trace": (117, 270, 271, 272, 438, 440), "keys": (217, 218, 219), "bpf": (280,),
                "perf": (241,), "userfaultfd": (282,), "memory file": (279, 447), "mount": (40, 39, 41, 428, 429, 430, 442),
                "namespace": (97, 268, 51), "clock": (112, 266, 171, 170), "module": (105, 273, 294, 104, 142),
                "handles": (264, 265, 262, 263), "priority": (140, 118, 119, 122, 30, 274, 261, 164), "ipc": (194, 190, 186, 180)},
}  # fmt: skip
"""By kind; with arguments that no call of that number takes, so that one which gets through does nothing."""


class Probe:
    """One process's attempts.

    Args:
        aims: what is there to be got: ``files`` and ``paths`` (of unix sockets), ``names`` (abstract ones), ``pids``; and
            ``x32``: calls of that kind, for which a unit's SystemCallArchitectures= ends the process.
    """

    def __init__(self, aims: dict[str, list[Any]]) -> None:
        self.got_through: list[str] = []
        self._aims = aims

    def attempt(self, kind: str, what: object, call: Callable[[], object]) -> None:
        try:
            result = call()
        except OSError as error:
            if error.errno not in REFUSED:
                self.got_through.append(f"{kind}: {what}: {error.strerror}")
        else:
            self.got_through.append(f"{kind}: {what}: {result!r}")

    def all(self, sockets: list[socket.socket], master: socket.socket | None) -> list[str]:
        for one in (self.network, self.files, self.programs, self.processes, self.numbers, self.memory):
            one()
        for index, sock in enumerate(sockets):
            self.given(index, sock)
        if master is not None:
            self.words(master)
        return self.got_through

    def network(self) -> None:
        for family in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
                self.attempt("network", family, partial(_made, getattr(socket, family), kind))
        self.attempt("network", "the metadata service", partial(_connected, socket.AF_INET, ("169.254.169.254", 80)))
        for path in self._aims["paths"]:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
                self.attempt("unix sockets", path, partial(_connected, socket.AF_UNIX, path, kind))
        for name in self._aims["names"]:
            self.attempt("unix sockets", name, partial(_connected, socket.AF_UNIX, "\0" + name))
        self.attempt("unix sockets", "a name of its own", _named)

    def files(self) -> None:
        for path in self._aims["files"]:
            self.attempt("files", path, partial(_read, path))
        for path in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/"):
            self.attempt("files", f"write {path}", partial(_written, f"{path}/probe-{os.getpid()}"))
            self.attempt("files", f"link {path}", partial(_linked, f"{path}/link-{os.getpid()}"))

    def programs(self) -> None:
        for path in ("/bin/sh", "/usr/bin/env", os.path.realpath("/proc/self/exe")):
            self.attempt("programs", path, partial(os.execve, path, ["x", "-c", "exit"], {}))

    def processes(self) -> None:
        for pid in (*self._aims["pids"], os.getppid(), 1):
            self.attempt("processes", f"signal {pid}", partial(os.kill, pid, 0))
            self.attempt("processes", f"look into {pid}", partial(_read, f"/proc/{pid}/environ"))
            self.attempt("processes", f"memory of {pid}", partial(_read, f"/proc/{pid}/mem"))
            self.attempt("processes", f"pidfd of {pid}", partial(os.pidfd_open, pid))

    def numbers(self) -> None:
        for kind, numbers in CALLS[platform.machine()].items():
            for number in numbers:
                self.attempt(kind, number, partial(_system_call, number, -1, -1, -1, -1, -1))
        if platform.machine() == "x86_64" and self._aims["x32"]:
            for number in self._aims["x32"]:
                self.attempt("x32", number, partial(_system_call, X32_BIT | number, -1, -1, -1))

    def memory(self) -> None:
        self.attempt("executable memory", "map", partial(mmap.mmap, -1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC))

    def given(self, index: int, sock: socket.socket) -> None:
        """What it has been given, turned against others who have it too."""
        kind, number = f"given {sock.family.name}", sock.fileno()
        here = "::1" if sock.family == socket.AF_INET6 else "127.0.0.1"
        calls: dict[str, Callable[[], object]] = {
            "signals by it": partial(fcntl.fcntl, number, fcntl.F_SETOWN, os.getppid()),
            "signals of a choice by it": partial(fcntl.fcntl, number, 10, signal.SIGKILL),  # F_SETSIG
            "signals by ioctl": partial(fcntl.ioctl, number, 0x8901, struct.pack("i", os.getppid())),  # FIOSETOWN
            "a filter on it": partial(sock.setsockopt, socket.SOL_SOCKET, 26, bytes(16)),  # SO_ATTACH_FILTER
            "its end": partial(_without_loss, sock, socket.SHUT_RDWR),
            "a short queue": partial(sock.listen, 0),
            "another address": partial(sock.bind, (here, 0)),
            "a connection": partial(sock.connect, (here, 9)),
        }
        if sock.family == socket.AF_NETLINK:
            calls = {name: calls[name] for name in ("signals by it", "signals of a choice by it", "a filter on it")}
            calls["another's connection"] = partial(_destroyed, sock)
        for what, call in calls.items():
            self.attempt(kind, f"{what} ({index})", call)

    def words(self, master: socket.socket) -> None:
        """As another process, which the kernel vouches for."""
        forged = struct.pack("3i", os.getppid(), 0, 0)
        rights = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, forged)]
        self.attempt("forged words", "of the master's", partial(master.sendmsg, [b"?"], rights))


def _made(family: socket.AddressFamily, kind: socket.SocketKind) -> str:
    with contextlib.closing(socket.socket(family, kind)):
        return "made"


def _connected(family: socket.AddressFamily, to: Any, kind: socket.SocketKind = socket.SOCK_STREAM) -> str:
    with socket.socket(family, kind) as sock:
        sock.settimeout(0.5)
        sock.connect(to)
    return "connected"


def _named() -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(f"\0probe-{os.getpid()}")
    return "bound"


def _without_loss(sock: socket.socket, how: int) -> str:
    """Only where it would be refused: it would be everybody's."""
    if sock.family == socket.AF_UNIX:
        raise PermissionError(errno.EPERM, "its own")
    sock.shutdown(how)
    return "ended"


def _destroyed(netlink: socket.socket) -> str:
    """End a socket by name, as its owner's administrator may (SOCK_DESTROY): one that listens here, which all have."""
    asked = struct.pack("=BBBBI2s2s16s16sIII", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFF, struct.pack(">H", 16925),
                        bytes(2), socket.inet_aton("127.0.0.1").ljust(16, b"\0"), bytes(16), 0, 0xFFFFFFFF, 0xFFFFFFFF)  # fmt: skip
    netlink.sendto(struct.pack("=IHHII", 16 + len(asked), 21, 5, 1, 0) + asked, (0, 0))
    said = netlink.recv(4096)
    (code,) = struct.unpack_from("=i", said, 16)
    if code:
        raise OSError(-code, os.strerror(-code))
    return "ended"


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)


def _written(path: str) -> str:
    with open(path, "wb") as file:
        file.write(b"x")
    os.unlink(path)  # noqa: PTH108 - as above
    return "written"


def _linked(path: str) -> str:
    os.symlink("/etc/shadow", path)
    os.unlink(path)  # noqa: PTH108 - as above
    return "linked"


def _system_call(number: int, *arguments: int) -> int:
    result: int = libc.syscall(number, *map(ctypes.c_long, arguments))
    if result == -1:
        found = ctypes.get_errno()
        raise OSError(found, os.strerror(found))
    return result


def _kind(line: str) -> str:
    return line.partition(": ")[0]


def _say(role: str, found: list[str]) -> None:
    some = [one for at, one in enumerate(found) if sum(_kind(one) == _kind(other) for other in found[:at]) < 2]
    lines = [f"probe {role}: {one}"[:110] for one in (*some[:28], "end")]
    os.write(2, "".join(f"{line}\n" for line in lines).encode())


def install(aims: dict[str, list[Any]]) -> None:
    """Have each process try when it has given up all it does."""
    from agent.host import confine
    from agent.server import master, work

    run, answer, give_up = master.Master.run, work.run, confine.give_up_all_but_answering
    had: dict[str, Any] = {}

    def server(link: Any, sockets: Any, **more: Any) -> None:
        had.update(more, sockets=sockets)
        answer(link, sockets, **more)

    def given_up() -> bool:
        done = give_up()
        role = "stand-by" if had["stands_by"] else "server"
        _say(role, Probe(aims).all(list(had["sockets"]), had["master"]))
        return done

    def begun(self: master.Master) -> None:
        _say("master", Probe(aims).all([], None))
        run(self)

    master.Master.run, work.run, confine.give_up_all_but_answering = begun, server, given_up  # type: ignore[method-assign]
