"""Files that may never answer: they lie on a network whose server is gone, on a disk that stalls.

The kernel never gives up such a call, and no signal ends it. So no file that an operator or a bundle names is asked on
the loop, nor in a thread that anything else needs: each has a thread of its own, one at a time, and is waited for as
long as the caller can spare. After that it is known to be silent, and nobody waits for it again until it answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Final, TypeVar

from agent.core.errors import HostError
from agent.host.threads import Threads

T = TypeVar("T")

WAIT_SECONDS: Final = 2.0
LAST_SECONDS: Final = 0.05
"""How long a file is waited for when the time is already over: a healthy one answers in less."""


class StalledError(HostError):
    """The file does not answer."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: it does not answer", hint="look at the disk or the mount that it lies on")


class FirstLook:
    """Asks files before there is a loop, all of them together for a bounded time.

    Args:
        seconds: for all.

    Attributes:
        stalled: the paths that have not answered, or were not asked because another of their directory had not.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._threads = Threads()
        self._late: dict[Path, Future[Any]] = {}  # by directory, the call that still runs
        self.stalled: set[Path] = set()

    @property
    def left(self) -> float:
        """The seconds that are left: what was not spent on waiting."""
        return max(self._left, LAST_SECONDS)

    def __call__(self, path: Path, fn: Callable[[], T]) -> T:
        """Call ``fn``, which asks ``path``.

        Raises:
            StalledError: it has not returned; or another file of that directory has not, and this one was not asked.
        """
        if path.parent in self._late:
            self.stalled.add(path)
            raise StalledError(path)
        future, began = self._threads.submit(fn), time.monotonic()
        wait((future,), self.left)
        self._left -= time.monotonic() - began
        if not future.done():
            self._late[path.parent] = future
            self.stalled.add(path)
            raise StalledError(path)
        return future.result()

    async def answered(self, paths: Iterable[Path]) -> None:
        """Wait, however long, until the directories of those paths have answered."""
        late = {self._late[path.parent] for path in paths if path.parent in self._late}
        await asyncio.gather(*map(asyncio.wrap_future, late), return_exceptions=True)


def directly(path: Path, fn: Callable[[], T]) -> T:  # noqa: ARG001 - the shape of an Ask
    """Call ``fn``, however long it takes: in a thread, or where a person waits."""
    return fn()


def _hear(waiter: asyncio.Future[Any]) -> None:
    """Mark an error as retrieved: whoever still asks gets it from the call itself."""
    if not waiter.cancelled():
        waiter.exception()


class Patience:
    """Asks files while the loop runs.

    Args:
        seconds: how long one is waited for; :data:`WAIT_SECONDS` unless told otherwise.
        again: whether a file that is known to be silent is waited for again: a person asks, say.

    Resources: a daemon thread for each file that is being asked; it is not waited for at the end.
    """

    def __init__(self, seconds: float | None = None, *, again: bool = False) -> None:
        self._again = again
        self._seconds = WAIT_SECONDS if seconds is None else seconds
        self._threads = Threads()
        self._asked: dict[Path, Future[Any]] = {}
        self._silent: set[Path] = set()

    async def ask(self, path: Path, fn: Callable[[], T]) -> T:
        """Call ``fn``, which asks ``path``, in a thread.

        Raises:
            StalledError: this call, or an earlier one that asks the same path, has not returned.
        """
        before = self._asked.get(path)
        if before is not None:
            await self._answered(path, before)
        asked = self._asked[path] = self._threads.submit(fn)
        await self._answered(path, asked)
        result: T = asked.result()
        return result

    async def _answered(self, path: Path, asked: Future[Any]) -> None:
        if not asked.done():
            # A question that was once waited for in vain is not waited for again. The call itself cannot be cancelled.
            waited = 0.0 if path in self._silent and not self._again else self._seconds
            waiter = asyncio.wrap_future(asked)
            waiter.add_done_callback(_hear)
            await asyncio.wait({waiter}, timeout=waited)
        if not asked.done():
            self._silent.add(path)
            raise StalledError(path)
        self._silent.discard(path)
        if self._asked.get(path) is asked:
            del self._asked[path]
