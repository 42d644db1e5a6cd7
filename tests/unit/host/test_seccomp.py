"""The daemon runs no other program, whatever gets control of it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from agent.host.seccomp import give_up_execution

ATTEMPTS = """
import ctypes, os, sys, threading
from agent.host.seccomp import give_up_execution
assert give_up_execution() is True

seen = []
def refused(what):
    try:
        what()
    except PermissionError:
        seen.append(what)

def memfd():
    fd = os.memfd_create("x")
    os.write(fd, open("/bin/true", "rb").read())
    os.execve(fd, ["x"], {})

def spawn():
    os.posix_spawn("/bin/true", ["true"], {})

def child():
    pid = os.fork()
    if not pid:
        try:
            os.execv("/bin/sh", ["sh", "-c", ":"])
        except PermissionError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

for what in (memfd, spawn, lambda: os.execv("/bin/true", ["true"]), lambda: os.execv(sys.executable, ["python"])):
    refused(what)
    thread = threading.Thread(target=refused, args=(what,)); thread.start(); thread.join()
assert len(seen) == 8, seen
child()
libc = ctypes.CDLL(None, use_errno=True)
numbers = {"x86_64": (59, 322, 520 | 0x40000000, 545 | 0x40000000), "aarch64": (221, 281)}[os.uname().machine]
for number in numbers:
    assert libc.syscall(number, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1, number
import ssl, json, socket  # libraries are still found and loaded
give_up_execution()  # again is no error
print("held")
"""


@pytest.mark.skipif(platform.machine() not in {"x86_64", "aarch64"}, reason="needs a machine whose numbers are known")
def test_no_way_of_running_a_program_is_left() -> None:
    """A path, a descriptor in memory, a child, another thread, the number itself: each is refused with EPERM."""
    done = subprocess.run([sys.executable, "-c", ATTEMPTS], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.returncode) == ("held\n", 0), done.stderr


def test_a_machine_that_is_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the numbers are not known nothing is loaded, and the caller is told so."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert give_up_execution() is False
