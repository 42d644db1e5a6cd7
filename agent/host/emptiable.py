"""A file without a name that others may read, and that whoever made it empties, whoever holds it by then.

What is given away by a descriptor cannot be taken back; but it can be made to hold nothing (ftruncate(2)). Nobody else
can change it: its content is sealed, others get it read-only, and only its owner may open it anew.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import Final

from agent.core.errors import HostError
from agent.host.systemd import anonymous_memory

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_LOOKED_AT: Final = _SEALS | fcntl.F_SEAL_SHRINK


class Emptiable:
    """See the module.

    *Resources*: a descriptor, until :meth:`empty` or :meth:`close`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._inode = os.fstat(descriptor).st_ino

    def is_same(self, other: Emptiable) -> bool:
        """Whether both are one file, which both have open: so long nothing else has its number."""
        return self._descriptor >= 0 <= other._descriptor and self._inode == other._inode

    @classmethod
    def holding(cls, data: bytes) -> Emptiable:
        """Make one.

        Raises:
            OSError: no memory or descriptor is to be had.
        """
        made = cls(anonymous_memory("credential-agent-given"))
        try:
            os.fchmod(made._descriptor, 0o600)  # else whoever has it could open it anew for writing
            view = memoryview(data)
            while view:
                view = view[os.write(made._descriptor, view) :]
            fcntl.fcntl(made._descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            made.empty()
            raise
        return made

    @classmethod
    def taken_back(cls, descriptor: int) -> Emptiable:
        """The same file, of which somebody gives us what he had; ``descriptor`` stays open.

        Raises:
            HostError: it is none of those that we made.
        """
        try:
            found = os.fstat(descriptor)
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            if stat.S_ISREG(found.st_mode) and seals & _LOOKED_AT == _SEALS and found.st_uid == os.geteuid():
                return cls(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            pass
        raise HostError("expected a file that an agent made, got something else")

    def reader(self) -> int:
        """A descriptor of it that only reads; it is the caller's.

        Raises:
            OSError: no descriptor is to be had.
        """
        return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Leave it as it is: whoever has it may read it, and somebody else may empty it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def empty(self) -> None:
        """Have it hold nothing from now on, and nothing of ours be open."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            self.close()
