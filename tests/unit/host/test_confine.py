"""What a process that answers strangers can still do: answer."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from agent.host.confine import KEPT

SETUP = """
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, sys, threading
from agent.host.confine import give_up_all_but_answering
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
ours, theirs = socket.socketpair()
libc = ctypes.CDLL(None, use_errno=True)
spare = socket.socket()
assert give_up_all_but_answering() is True

def refused(what):
    try:
        found = what()
    except PermissionError:
        return True
    except (RuntimeError, ValueError):  # of a thread, of a limit
        return True
    return found == -1 and ctypes.get_errno() == errno.EPERM
"""

ATTEMPTS = {
    "a file": "os.open('/etc/passwd', os.O_RDONLY)",
    "a file to write": "os.open('/tmp/x', os.O_WRONLY | os.O_CREAT)",
    "a directory": "os.listdir('/')",
    "a name": "os.unlink('/tmp/nothing')",
    "a socket": "socket.socket()",
    "a unix socket": "socket.socket(socket.AF_UNIX)",
    "a pair of sockets": "socket.socketpair()",
    "a connection": "spare.connect(listener.getsockname())",
    "a connection with its first bytes": "spare.sendto(b'x', socket.MSG_FASTOPEN, listener.getsockname())",
    "the same in pieces": "spare.sendmsg([b'x'], [], socket.MSG_FASTOPEN, listener.getsockname())",
    "the end of listening": "listener.shutdown(socket.SHUT_RDWR)",
    "an option that outlives it": "listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)",
    "a port": "spare.bind(('127.0.0.1', 0))",
    "a program": "os.execv('/bin/true', ['true'])",
    "a process": "os.fork()",
    "a thread": "threading.Thread(target=print).start()",
    "a signal": "os.kill(os.getppid(), 0)",
    "a signal by a socket": "fcntl.fcntl(ours, fcntl.F_SETOWN, os.getppid())",
    "a signal of its choice": "fcntl.fcntl(ours, 10, 9)",  # F_SETSIG
    "memory of another": "libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0)",
    "tracing": "libc.ptrace(0, 0, 0, 0)",
    "memory that is executed": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "memory with a name": "os.memfd_create('x')",
    "io_uring": "libc.syscall(425, 8, None)",
    "another user": "os.setuid(65534)",
    "a namespace": "libc.unshare(0x10000000)",
    "limits": "resource.setrlimit(7, (10, 10))",
    "a mount": "libc.mount(b'x', b'/', b'tmpfs', 0, None)",
    "the terminal": "fcntl.ioctl(ours.fileno(), 0x5412, b'x')",
}

#: All of them, one after the other; it says which got through.
CONFINED = SETUP + "\n".join(
    f"print({name!r} if not refused(lambda: {what}) else '', end='')" for name, what in ATTEMPTS.items()
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, text=True, check=False)


pytestmark = pytest.mark.skipif(platform.machine() not in KEPT, reason="the numbers of this machine are not known")


def test_it_can_do_nothing_else() -> None:
    """No file, no socket, no connection, no process, thread or program, nobody else's memory, and no way around."""
    done = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


def test_it_answers() -> None:
    """What was open before is accepted from, read, written and closed."""
    done = run(
        "connection, peer = listener.accept()\n"
        "connection.setblocking(False)\n"
        "client.send(b'x')\n"
        "connection.setblocking(True)\n"
        "assert connection.recv(1) == b'x'\n"
        "connection.sendall(b'y'); connection.shutdown(socket.SHUT_WR); connection.close()\n"
        "assert client.recv(1) == b'y'\n"
        "import gc; gc.collect(); bytearray(1 << 24)\n"
        "print('well')\n"
    )
    assert done.stdout == "well\n", done.stderr


def test_every_machine_keeps_the_same() -> None:
    """The two lists name the same calls, apart from three that only the older machine has."""
    assert len(KEPT["x86_64"]) == len(KEPT["aarch64"]) + 3
    assert all(len(set(numbers)) == len(numbers) for numbers in KEPT.values())
