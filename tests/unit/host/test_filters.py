"""The filters of both machines name what they mean, and let through nothing else: by the kernel's own tables."""

from __future__ import annotations

import platform
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from agent.host.confine import FIONBIO, KEPT, SHUT_WR, program
from agent.host.seccomp import ALLOW, KILL, MACHINES, REFUSE

# A machine that came after 2012 has the generic table: aarch64, riscv64, loongarch64.
TABLES = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
NAMES = [
    "read",
    "write",
    "readv",
    "writev",
    "recvfrom",
    "recvmsg",
    "accept4",
    "accept",
    "close",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_create1",
    "ppoll",
    "pselect6",
    "eventfd2",
    "pipe2",
    "futex",
    "munmap",
    "mremap",
    "brk",
    "madvise",
    "clock_gettime",
    "clock_nanosleep",
    "nanosleep",
    "getsockopt",
    "getsockname",
    "getpeername",
    "getrandom",
    "dup",
    "fstat",
    "lseek",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "restart_syscall",
    "exit",
    "exit_group",
    "getpid",
    "gettid",
    "getppid",
    "getuid",
    "geteuid",
    "sched_yield",
    "sched_getaffinity",
    "rseq",
    "set_robust_list",
    "membarrier",
    "getrusage",
    "timerfd_create",
    "timerfd_settime",
    "gettimeofday",
]
OLDER = {"x86_64": ["epoll_wait", "poll", "select"], "aarch64": []}  # which newer machines do not have
BY_ARGUMENTS = ["mmap", "mprotect", "sendto", "sendmsg", "ioctl", "fcntl", "shutdown"]


def numbers(machine: str) -> dict[str, int]:
    """Of each system call, by its name."""
    if not TABLES[machine].exists():
        pytest.skip(f"needs {TABLES[machine]} (apt-get install libc6-dev)")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", TABLES[machine].read_text(), re.MULTILINE)
    return {name: int(number) for name, number in reversed(found)}


def decide(filter_: bytes, number: int, architecture: int, arguments: tuple[int, ...] = (0,) * 6) -> int:
    """What a filter says: its instructions, as the kernel runs them (seccomp(2), struct seccomp_data)."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *arguments)
    lines = list(struct.iter_unpack("=HBBI", filter_))
    at, held = 0, 0
    while True:
        code, yes, no, k = lines[at]
        at += 1
        if code == 0x20:
            held = int.from_bytes(data[k : k + 4], sys.byteorder)
        elif code == 0x06:
            return int(k)
        else:
            at += yes if {0x15: held == k, 0x35: held >= k, 0x45: bool(held & k)}[code] else no


def through(machine: str) -> set[int]:
    """The numbers that are let through, with some arguments at least."""
    arguments = [(0, second, 0, 0, 0, 0) for second in (0, SHUT_WR, FIONBIO)]
    filter_, architecture = program(machine), MACHINES[machine][0]
    return {
        number
        for number in range(1024)
        if any(decide(filter_, number, architecture, one) == ALLOW for one in arguments)
    }


@pytest.mark.parametrize("machine", KEPT)
def test_the_numbers_are_those_of_the_names(machine: str) -> None:
    """A number of another table would let through something else, or end each server as soon as it is begun."""
    known = numbers(machine)
    assert sorted(KEPT[machine]) == sorted(known[name] for name in (*NAMES, *OLDER[machine]))
    assert through(machine) - {*KEPT[machine]} == {known[name] for name in BY_ARGUMENTS}
    assert [known["execve"], known["execveat"]] == [*MACHINES[machine][1]]


@pytest.mark.parametrize("machine", KEPT)
def test_what_is_not_named_is_refused(machine: str) -> None:
    """On each machine, whatever this one is; a call of another machine's ends the process."""
    architecture = MACHINES[machine][0]
    rest = set(range(1024)) - through(machine)
    assert {decide(program(machine), one, architecture) for one in rest} == {REFUSE}
    assert decide(program(machine), 0, 0x40000003) == KILL  # i386
    assert decide(program(machine), 0x40000000, architecture) == REFUSE  # x32


_EACH = """
import ctypes, errno
import sys
from agent.host.confine import give_up_all_but_answering
libc = ctypes.CDLL(None, use_errno=True)
assert give_up_all_but_answering()
named = set(map(int, sys.argv[1:]))
got = []
for number in range(600):
    # The kernel itself lets uretprobe and uprobe by every filter: whoever makes them without a probe is ended (SIGILL).
    if number not in named and number not in (335, 336):
        ctypes.set_errno(0)
        if libc.syscall(number, -1, -1, -1, -1, -1, -1) != -1 or ctypes.get_errno() != errno.EPERM:
            got.append(number)
print(got)
"""


@pytest.mark.skipif(platform.machine() not in KEPT, reason="the numbers of this machine are not known")
def test_the_kernel_refuses_each_that_is_not_named() -> None:
    """What an attacker in a server would try first: every number that there is."""
    command = [sys.executable, "-c", _EACH, *map(str, through(platform.machine()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
