"""What a process that answers strangers gives up, once it has all that it needs.

A list of what stays, because what a kernel will have next year is on no list of what goes: read, write and accept on
what is open, time, memory that cannot be executed, and to end. No file is opened, no socket made, connected or bound,
no process or thread begun, looked into or signalled. Everything else fails with EPERM. Where the numbers of the system
calls are not known there is no such filter (:data:`KEPT`), and the unit's sandbox alone protects.

Three of what stays could do more than they seem to, and are looked at by their arguments: fcntl(2) has the kernel send
any signal to any process of the same user (``F_SETOWN``, ``F_SETSIG``), shutdown(2) makes of a listening socket, which
others have too, one that is not connected, and sendto(2) connects such a one (``MSG_FASTOPEN``). setsockopt(2) is not
among them: a filter on a listening socket (``SO_ATTACH_FILTER``) would outlive the process, and refuse everybody.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from typing import Final

from agent.core.errors import HostError
from agent.host.libc import libc
from agent.host.seccomp import ALLOW, KILL, MACHINES, REFUSE, install, instruction

PR_SET_PDEATHSIG: Final = 1
PROT_EXEC: Final = 4
FIONBIO: Final = 0x5421
FIOCLEX: Final = 0x5451
MSG_FASTOPEN: Final = 0x20000000
SHUT_WR: Final = 1
FCNTL: Final = (0, 1, 2, 3, 4, 1030)  # F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_DUPFD_CLOEXEC

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_X32_BIT: Final = 0x40000000

KEPT: Final = {
    "x86_64": (
        *(0, 1, 19, 20, 45, 47, 288, 43, 3),  # read write readv writev recvfrom recvmsg accept4 accept close
        *(232, 281, 441, 233, 291, 7, 271, 23, 270, 290, 293),  # epoll_* poll ppoll select pselect6 eventfd2 pipe2
        *(202, 11, 25, 12, 28, 228, 230, 35, 96),  # futex munmap mremap brk madvise clock_gettime clock_nanosleep
        # nanosleep gettimeofday
        *(55, 51, 52, 318, 32, 5, 8),  # getsockopt getsockname getpeername getrandom dup fstat lseek
        *(13, 14, 15, 131, 219, 60, 231),  # rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall
        # exit exit_group
        *(39, 186, 110, 102, 107, 24, 204, 334, 273, 324, 98, 283, 286),  # getpid gettid getppid getuid geteuid
        # sched_yield sched_getaffinity rseq set_robust_list membarrier getrusage timerfd_create timerfd_settime
    ),
    "aarch64": (
        *(63, 64, 65, 66, 207, 212, 242, 202, 57),
        *(22, 441, 21, 20, 73, 72, 19, 59),
        *(98, 215, 216, 214, 233, 113, 115, 101, 169),
        *(209, 204, 205, 278, 23, 80, 62),
        *(134, 135, 139, 132, 128, 93, 94),
        *(172, 178, 173, 174, 175, 124, 123, 293, 99, 283, 165, 85, 86),
    ),
}
# number, which argument, and the bits that it may not have: mmap, mprotect, sendto, sendmsg
_WITHOUT: Final = {
    "x86_64": ((9, 2, PROT_EXEC), (10, 2, PROT_EXEC), (44, 3, MSG_FASTOPEN), (46, 2, MSG_FASTOPEN)),
    "aarch64": ((222, 2, PROT_EXEC), (226, 2, PROT_EXEC), (206, 3, MSG_FASTOPEN), (211, 2, MSG_FASTOPEN)),
}
# number, which argument, and what it may be: ioctl (not to block, not to be inherited), fcntl, shutdown
_ONLY: Final = {
    "x86_64": ((16, 1, (FIONBIO, FIOCLEX)), (72, 1, FCNTL), (48, 1, (SHUT_WR,))),
    "aarch64": ((29, 1, (FIONBIO, FIOCLEX)), (25, 1, FCNTL), (210, 1, (SHUT_WR,))),
}


def _argument(index: int) -> bytes:
    return instruction(_LOAD, _ARGUMENTS_AT + 8 * index)  # its lower half: both machines are little-endian


def program(machine: str) -> bytes:
    """The filter of a machine of :data:`KEPT`."""
    allow, refuse = instruction(_RETURN, ALLOW), instruction(_RETURN, REFUSE)
    lines = [
        instruction(_LOAD, _ARCHITECTURE_AT),
        instruction(_JUMP_EQUAL, MACHINES[machine][0], yes=1),
        instruction(_RETURN, KILL),
        instruction(_LOAD, _NUMBER_AT),
        instruction(_JUMP_AT_LEAST, _X32_BIT, no=1),
        refuse,
    ]
    for number, argument, bits in _WITHOUT[machine]:
        check = (_argument(argument), instruction(_JUMP_SET, bits, no=1), refuse, allow)
        lines += [instruction(_JUMP_EQUAL, number, no=len(check)), *check]
    for number, argument, values in _ONLY[machine]:
        known = [one for what in values for one in (instruction(_JUMP_EQUAL, what, no=1), allow)]
        asked = (_argument(argument), *known, refuse)
        lines += [instruction(_JUMP_EQUAL, number, no=len(asked)), *asked]
    for number in KEPT[machine]:
        lines += [instruction(_JUMP_EQUAL, number, no=1), allow]
    return b"".join([*lines, refuse])


def give_up_all_but_answering() -> bool:
    """Keep what is named in the module, for good. Call it while there is one thread.

    Returns:
        Whether it is in force; ``False`` on a machine whose numbers are not known here.

    Raises:
        HostError: the kernel refused.
    """
    machine = platform.machine()
    if machine not in KEPT:
        return False
    install(program(machine))
    return True


def end_with_parent(parent: int) -> None:
    """Be killed when the parent ends, however that ends.

    Args:
        parent: its process id; if it has ended already, this process ends now.

    Raises:
        HostError: the kernel refused.
    """
    zero = ctypes.c_ulong(0)
    if libc().prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), zero, zero, zero) != 0:
        raise HostError(f"the process cannot be made to end with its parent: {os.strerror(ctypes.get_errno()).lower()}")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
