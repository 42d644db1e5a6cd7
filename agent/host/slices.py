"""Short time slices: whoever has them is let in at once when it wakes, and gives way the sooner.

Where every processor computes, a process that wakes waits for the slice of whoever runs, some 3 to 4 ms, though its
share of the time is not used up. Since Linux 6.12 a process may ask for slices of its own (sched_setattr(2),
``sched_runtime`` of ``SCHED_OTHER``): its share stays what it is (``nice``, the control group's weight), but it is cut
into more pieces, and one that wakes is let in before others' longer ones are over.

A worker that keeps us busy gains nothing by that: our share, which it uses up, is no larger. It may ask for short
slices too, and has no more time by them. Other kernels know of none, and a sandbox may refuse the call: then all is as
it was.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from typing import Final

SLICE_SECONDS: Final = 0.0001
"""The shortest that the kernel gives (fair.c)."""

_NUMBERS: Final = {"x86_64": (314, 315), "aarch64": (274, 275)}  # of sched_setattr(2) and sched_getattr(2)
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period
_FAIR: Final = (0, 3)  # SCHED_OTHER, SCHED_BATCH
_RESET_ON_FORK: Final = 1


def slice_seconds(pid: int = 0) -> float:
    """The slices that a process has asked for (0: this one); 0: none of its own, or that cannot be told."""
    attributes = _attributes(pid)
    return 0.0 if attributes is None or attributes[1] not in _FAIR else attributes[5] / 1e9


def ask_for_short() -> bool:
    """Have this process, and those that it forks, run in short slices; false: they are not to be had."""
    numbers, attributes = _NUMBERS.get(platform.machine()), _attributes(0)
    if numbers is None or attributes is None or attributes[1] not in _FAIR:
        return False
    _, policy, flags, nice, *_ = attributes
    wanted = _ATTRIBUTES.pack(
        _ATTRIBUTES.size, policy, flags & _RESET_ON_FORK, nice, 0, round(SLICE_SECONDS * 1e9), 0, 0
    )
    return ctypes.CDLL(None).syscall(numbers[0], 0, wanted, 0) == 0 and slice_seconds() > 0


def _attributes(pid: int) -> tuple[int, ...] | None:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        return None
    found = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if ctypes.CDLL(None).syscall(numbers[1], pid, found, _ATTRIBUTES.size, 0) != 0:
        return None
    return tuple(_ATTRIBUTES.unpack(found.raw))
