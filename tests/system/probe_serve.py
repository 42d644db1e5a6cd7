"""Tries, from inside the sandbox of what answers workers, what an intruder would; prints each attempt that was not refused.

Without the filter that the process puts on itself once it answers: what is tried here is kept by the unit alone, from the
first instruction on.
"""

# ruff: noqa: PTH123, PTH208

import ctypes
import errno
import os
import platform
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial

libc = ctypes.CDLL(None, use_errno=True)
got_through: list[str] = []
REFUSED = {
    errno.EPERM, errno.EACCES, errno.ENOENT, errno.EROFS, errno.ENOSYS, errno.EAFNOSUPPORT, errno.ESRCH, errno.ECONNREFUSED,
    errno.ENOTDIR,
}  # fmt: skip


def attempt(what: str, call: Callable[[], object]) -> None:
    try:
        result = call()
    except OSError as error:
        if error.errno not in REFUSED:
            got_through.append(f"{what}: {error}")
    else:
        got_through.append(f"{what}: {result!r}"[:200])


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(100)


def written(path: str) -> str:
    with open(path, "wb") as file:
        file.write(b"x")
    return "written"


def listed(path: str) -> list[str]:
    found = os.listdir(path)
    if not found:
        raise PermissionError(errno.EACCES, "nothing is there")
    return found


def connected(path: str, kind: socket.SocketKind) -> str:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(path)
    return "connected"


def ran(path: str) -> str:
    """Run it in a child; an error that the kernel gives to execve is raised here."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.execve(path, ["x"], {})
        except OSError as error:
            os.write(writer, str(error.errno).encode())
        os._exit(1)
    os.close(writer)
    said = os.read(reader, 10)
    os.waitpid(child, 0)
    if said:
        raise OSError(int(said), "refused")
    return "ran"


def system_call(number: int, *arguments: int) -> int:
    result: int = libc.syscall(number, *arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return result


# Network: none can be made, and none is there.
for family in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        attempt(f"{family} {kind}", partial(socket.socket, getattr(socket, family), kind))
with open("/proc/self/net/dev") as file:
    names = [line.split(":")[0].strip() for line in file.readlines()[2:]]
if names != ["lo"]:
    got_through.append(f"network: {names}")

# Files: no key, no configuration, no state, no token, nobody's home, no user; nothing can be written.
for path in (
    "/etc/credential-agent/config.toml", "/etc/credstore/credential-agent.key", "/etc/passwd", "/etc/shadow", "/etc/hosts",
    "/etc/machine-id", "/run/credential-agent/token", "/run/credential-agent/env", "/var/lib/credential-agent/memory.json",
    "/run/credentials/credential-agent.service/credential-agent.key", "/run/machine-id", "/proc/1/environ",
    "/proc/1/cmdline", "/proc/keys", "/proc/kallsyms", "/proc/sys/kernel/random/boot_id", "/sys/class/dmi/id/sys_vendor",
    "/home/alice/.bashrc", "/root/.bashrc",
):  # fmt: skip
    attempt(f"read {path}", partial(read, path))
for path in (
    "/etc/credential-agent", "/etc/systemd", "/var/lib", "/var/log", "/home", "/root", "/run/credential-agent",
    "/run/credentials", "/run/user", "/sys", "/srv", "/boot", "/dev/shm",
):  # fmt: skip
    attempt(f"list {path}", partial(listed, path))
for path in (
    "/opt/credential-agent", "/run", "/var/lib", "/etc", "/usr", "/opt", "/srv", "/home", "/dev/shm", "/",
):  # fmt: skip
    attempt(f"write {path}", partial(written, f"{path}/probe"))
for path in ("/tmp", "/var/tmp", "/dev/shm"):
    attempt(f"exec in {path}", partial(ran, f"{path}/probe"))
    for what, call in (("symlink", os.symlink), ("link", os.link)):
        attempt(f"{what} {path}", partial(call, "/etc/shadow", f"{path}/link"))
    attempt(f"fifo {path}", partial(os.mkfifo, f"{path}/link"))
    attempt(f"mkdir {path}", partial(os.mkdir, f"{path}/probe.d"))

# Other programs' sockets: the agent's, the service manager's, the bus.
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    for path in (
        "/run/credential-agent/control.sock", "/run/credential-agent-control.sock", "/run/credential-agent-courier.sock",
        "/run/credential-agent-serve.sock", "/run/dbus/system_bus_socket", "/run/systemd/private",
        "/run/systemd/journal/socket", "/run/systemd/io.systemd.ManagedOOM",
    ):  # fmt: skip
        attempt(f"connect {path}", partial(connected, path, kind))

# Programs, and other processes.
for path in ("/bin/sh", "/usr/bin/bash", "/usr/bin/env", "/usr/sbin/nft", "/usr/bin/perl", "/usr/bin/systemctl"):
    attempt(f"exec {path}", partial(ran, path))
for pid in (1, int(sys.argv[1])):
    attempt(f"signal {pid}", partial(os.kill, pid, signal.SIGUSR2))
    attempt(f"look into {pid}", partial(read, f"/proc/{pid}/status"))
numbers = {
    "x86_64": {"io_uring_setup": 425, "process_vm_readv": 310, "ptrace": 101, "userfaultfd": 323, "kcmp": 312,
               "pidfd_getfd": 438, "add_key": 248, "bpf": 321, "unshare": 272, "perf_event_open": 298, "memfd_create": 319,
               "memfd_secret": 447, "setns": 308, "mount": 165, "chroot": 161, "connect": 42},
    "aarch64": {"io_uring_setup": 425, "process_vm_readv": 270, "ptrace": 117, "userfaultfd": 282, "kcmp": 272,
                "pidfd_getfd": 438, "add_key": 217, "bpf": 280, "unshare": 97, "perf_event_open": 241, "memfd_create": 279,
                "memfd_secret": 447, "setns": 268, "mount": 40, "chroot": 51, "connect": 203},
}[platform.machine()]  # fmt: skip
for name, number in numbers.items():
    attempt(name, partial(system_call, number, 0x10000000, 0, 0, 0, 0))
print("\n".join(got_through) or "nothing got through")
