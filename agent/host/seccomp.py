"""Giving up execve(2) for the rest of a process's life.

The unit's own filter cannot deny it: systemd itself executes us under that filter. The process that parses strangers'
bytes and holds keys runs no other program, so nothing is lost; an attacker who controls it can run no shell, no
interpreter, no ``memfd`` and no file. No library: libseccomp's binding is a package of the distribution, not of an
index, and the filter is ten instructions.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final

from agent.core.errors import HostError
from agent.host.libc import libc

PR_SET_SECCOMP: Final = 22
PR_SET_NO_NEW_PRIVS: Final = 38
SECCOMP_MODE_FILTER: Final = 2

ALLOW: Final = 0x7FFF0000
REFUSE: Final = 0x00050000 | errno.EPERM
KILL: Final = 0x80000000  # a system call of another architecture: nothing here makes one
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # in struct seccomp_data

# machine -> its number in <linux/audit.h>, and those of execve and execveat
MACHINES: Final = {"x86_64": (0xC000003E, (59, 322)), "aarch64": (0xC00000B7, (221, 281))}
_IO_URING: Final = (425, 426, 427)  # setup, enter, register: the same everywhere
_X32_BIT: Final = 0x40000000


def instruction(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction of a filter (struct sock_filter): jumps count the instructions that are passed over."""
    return struct.pack("=HBBI", code, yes, no, k)


def _program(architecture: int, refused: tuple[int, ...]) -> bytes:
    # Jumps count the instructions that are passed over; the last two are "allow" and "refuse".
    checks = [(_JUMP_AT_LEAST, _X32_BIT), *((_JUMP_EQUAL, number) for number in refused)]
    lines = [
        instruction(_LOAD, _ARCHITECTURE_AT),
        instruction(_JUMP_EQUAL, architecture, yes=1),
        instruction(_RETURN, KILL),
        instruction(_LOAD, _NUMBER_AT),
    ]
    lines += [instruction(code, k, yes=len(checks) - index) for index, (code, k) in enumerate(checks)]
    lines += [instruction(_RETURN, ALLOW), instruction(_RETURN, REFUSE)]
    return b"".join(lines)


def give_up_execution(*, io_uring: bool = True) -> bool:
    """Refuse ``execve`` and ``execveat`` (EPERM) to this thread and all that it starts. For good.

    Call it while there is one thread: those that run already keep what they had.

    Args:
        io_uring: whether it may be used: what asks the kernel by that passes every later filter by.

    Returns:
        Whether it is in force; ``False`` on a machine whose numbers are not known here, where the unit's
        ``NoExecPaths=`` alone protects.

    Raises:
        HostError: the kernel refused.
    """
    machine = MACHINES.get(platform.machine())
    if machine is None:
        return False
    architecture, refused = machine
    install(_program(architecture, refused if io_uring else (*refused, *_IO_URING)))
    return True


def install(program: bytes) -> None:
    """Put a filter of system calls in force, for good, for this thread and all that it starts.

    Raises:
        HostError: the kernel refused.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a count, and a pointer at its own alignment.
    packed = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    zero = ctypes.c_ulong(0)
    if libc().prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0 or (
        libc().prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.c_char_p(packed), zero, zero) != 0
    ):
        raise HostError(f"the process cannot give up system calls: {os.strerror(ctypes.get_errno()).lower()}")
