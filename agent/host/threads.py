"""Threads for what may never return: a file on a disk that stalls, a name server that is silent.

The standard pool has few threads and is waited for. Six reads of a stalled disk fill it, then nothing that needs a
thread goes on, even on another disk; and neither the loop nor the interpreter ends before its last thread does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MOST: Final = 32
"""Further jobs wait: with so many, some caller retries on a stalled file, and the unit's ``TasksMax=`` is near."""


def aside(fn: Callable[[], T], seconds: float) -> T:
    """Call ``fn`` in a daemon thread and wait for so long: for questions before there is a loop.

    Raises:
        TimeoutError: it has not returned; it is not waited for any more.
    """
    future: Future[T] = Threads(1).submit(fn)
    return future.result(seconds)


class Threads(ThreadPoolExecutor):
    """An executor that gives each job a thread of its own and is never waited for: ``loop.set_default_executor``.

    Args:
        most: threads at a time.
    """

    def __init__(self, most: int = MOST) -> None:
        super().__init__(max_workers=1)  # none is ever made; the loop wants the type
        self._most = most
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: deque[Callable[[], None]] = deque()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn`` in a daemon thread."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - whoever asked gets it
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._running >= self._most:
                self._waiting.append(job)
                return future
            self._running += 1
        try:
            threading.Thread(target=self._work, args=(job,), daemon=True, name="aside").start()
        except RuntimeError as error:  # no more threads: an error for the caller, which must not end the loop
            with self._lock:
                self._running -= 1
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for nothing."""

    def _work(self, job: Callable[[], None]) -> None:
        next_: Callable[[], None] | None = job
        while next_ is not None:
            next_()
            with self._lock:
                next_ = self._waiting.popleft() if self._waiting else None
                if next_ is None:
                    self._running -= 1
