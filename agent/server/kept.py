"""The newest snapshot, as a file without a name that the controller gave: read by servers alone, not by the master.

By it a server serves while there is no controller. The service manager holds it too, so that it outlives the master.
Whoever wrote it can empty it, whoever holds it, and does so when it is not the newest any more: what was withdrawn is
nowhere then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from agent.host.systemd import NEXT, Notifier
from agent.serve.clock import wall_ahead

NAME: Final = "snapshot"
NAMES: Final = (NAME, NAME + NEXT)
MOST_BYTES: Final = 1 << 24
"""Of a snapshot (:data:`agent.snapshot.codec.MAX_BYTES`): what is longer is none."""


class Kept:
    """See the module.

    Args:
        notifier: the service manager.
        stored: what it held for us.
        wall: how far the wall clock is ahead of boot time, in seconds.

    Attributes:
        ours: whether the present controller gave it: then a server that is linked to that may begin with it.
        wall: how far that was when it came; ``None``: it came before this process began.

    *Resources*: the files, until the process ends.
    """

    def __init__(
        self, notifier: Notifier, stored: Mapping[str, int], *, wall: Callable[[], float] = wall_ahead
    ) -> None:
        self.ours = False
        self.wall: float | None = None
        self._wall = wall
        self._notifier = notifier
        # Two: whoever was about to replace one may have ended in between. A server tells which is newer.
        self._files = [stored[name] for name in NAMES if name in stored]
        self._name = 1 if NAMES[1] not in stored else 0  # under which the next is kept
        self._untold = False

    @property
    def files(self) -> tuple[int, ...]:
        """Those that hold anything."""
        return tuple(one for one in self._files if os.fstat(one).st_size)

    def take(self, descriptors: Sequence[int]) -> None:
        """Keep this one, or none, and no former one."""
        for one in self._files:
            os.close(one)
        self._files, self.ours, self.wall = list(descriptors), True, self._wall()
        self._untold = True
        self.tell()

    def tell(self) -> bool:
        """Have the service manager hold it, if that has not heard of it; false: try again."""
        if not (self._untold and self._notifier.active):
            return True
        name, other = NAMES[self._name], NAMES[1 - self._name]
        # The other is dropped last: there is one at each instant, though we may be killed between any two.
        told = self._notifier.forget(name)
        for one in self._files:
            told = told and self._notifier.tell("FDSTORE=1", f"FDNAME={name}", fds=[one])
        if not (told and self._notifier.forget(other)):
            return False
        self._untold, self._name = False, 1 - self._name
        return True

    def read(self) -> tuple[bytes, ...]:
        """What they hold; they are closed. For the process of a server."""
        found = tuple(map(_read, self._files))
        for one in self._files:
            os.close(one)
        return tuple(one for one in found if one)


def _read(descriptor: int) -> bytes:
    with contextlib.suppress(OSError):
        data = bytearray()
        while len(data) <= MOST_BYTES and (part := os.pread(descriptor, MOST_BYTES + 1 - len(data), len(data))):
            data += part
        return bytes(data)
    return b""
