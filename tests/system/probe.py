"""Tries, from inside the daemon's sandbox, what an intruder would; prints each attempt that was not refused."""

# ruff: noqa: PTH108, PTH123, PTH101

import ctypes
import errno
import mmap
import os
import platform
from collections.abc import Callable
from functools import partial

libc = ctypes.CDLL(None, use_errno=True)
got_through: list[str] = []


def attempt(what: str, call: Callable[[], object]) -> None:
    try:
        result = call()
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EACCES, errno.ENOENT, errno.EROFS, errno.ENOSYS}:
            got_through.append(f"{what}: {error}")
    else:
        got_through.append(f"{what}: {result}")


def system_call(number: int, *arguments: int) -> int:
    result: int = libc.syscall(number, *arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def ran(path: str, *, fd: int | None = None) -> str:
    """Run it in a child; an error that the kernel gives to execve is raised here."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.execve(fd if fd is not None else path, ["x"], {})
        except OSError as error:
            os.write(writer, str(error.errno).encode())
        os._exit(1)
    os.close(writer)
    said = os.read(reader, 10)
    os.waitpid(child, 0)
    if said:
        raise OSError(int(said), "refused")
    return "ran"


with open("/opt/credential-agent/current/bin/python3", "rb") as file:
    program = file.read()
for directory in ("/run/credential-agent", "/var/lib/credential-agent", "/tmp", "/var/tmp", "/dev/shm"):
    path = f"{directory}/probe"
    try:
        with open(path, "wb") as copy:
            copy.write(program)
        os.chmod(path, 0o755)
    except OSError:
        continue
    attempt(f"exec {path}", partial(ran, path))

    def mapped(path: str = path) -> mmap.mmap:
        with open(path, "r+b") as there:
            return mmap.mmap(there.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)

    attempt(f"map {path}", mapped)
    os.unlink(path)

for path in ("/bin/sh", "/usr/bin/bash", "/usr/bin/env", "/usr/sbin/nft", "/usr/bin/perl"):
    attempt(f"exec {path}", partial(ran, path))

attempt("writable and executable memory", lambda: mmap.mmap(-1, 4096, prot=7))
for where in ("/run/credential-agent/link", "/var/lib/credential-agent/link"):
    attempt(f"symlink {where}", partial(os.symlink, "/etc/shadow", where))
    attempt(f"fifo {where}", partial(os.mkfifo, where))
numbers = {
    "x86_64": {
        "io_uring_setup": 425,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "ptrace": 101,
        "userfaultfd": 323,
        "kcmp": 312,
        "pidfd_getfd": 438,
        "add_key": 248,
        "bpf": 321,
        "unshare": 272,
        "perf_event_open": 298,
    },
    "aarch64": {
        "io_uring_setup": 425,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "ptrace": 117,
        "userfaultfd": 282,
        "kcmp": 272,
        "pidfd_getfd": 438,
        "add_key": 217,
        "bpf": 280,
        "unshare": 97,
    },
}[platform.machine()]
for name, number in numbers.items():
    attempt(name, partial(system_call, number, 0x10000000, 0, 0, 0, 0))
# What the daemon does itself at its start: after it nothing runs, the interpreter and memory included.
from agent.host.seccomp import give_up_execution  # noqa: E402

assert ran("/opt/credential-agent/current/bin/python3") == "ran"
assert give_up_execution()
attempt("the interpreter", lambda: ran("/opt/credential-agent/current/bin/python3"))
memory = os.memfd_create("x")
os.write(memory, program)
attempt("memory", lambda: ran("", fd=memory))
print("\n".join(got_through) or "nothing got through")
