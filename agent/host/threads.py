"""Threads for what may never return: a file on a disk that stalls, a name server that is silent.

The standard pool has few threads and is waited for. Six reads of a stalled disk fill it, then nothing that needs a
thread goes on, even on another disk; and neither the loop nor the interpreter ends before its last thread does.

The machine may have no further thread: a worker that forks without end takes every number that there is
(``kernel.pid_max``, the limit of a container). So the daemon keeps some from its start on, and what cannot have a
thread of its own waits for one of those.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MOST: Final = 32
"""Further jobs wait: with so many, some caller retries on a stalled file, and the unit's ``TasksMax=`` is near."""
KEPT: Final = 3
"""Threads that are kept for the time when there are no others: a stalled disk must hold up only some of them."""


class Kept:
    """Threads that are there already: see the module.

    *Resources*: the threads of :meth:`begin`, to the end of the process.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._count = 0

    def begin(self, count: int = KEPT) -> None:
        """Have so many. Call it when nothing forks any more: a child would have none of them."""
        with contextlib.suppress(RuntimeError):  # there is none even now: what needs one is refused
            while self._count < count:
                threading.Thread(target=self._work, daemon=True, name="kept").start()
                self._count += 1

    def put(self, job: Callable[[], None]) -> None:
        """Have one of them do the job, as soon as one can.

        Raises:
            OSError: ``EAGAIN``: there is none.
        """
        if not self._count:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._jobs.put(job)

    def one(self) -> Callable[[], None] | None:
        """A job that waits still, for whoever has a thread after all."""
        with contextlib.suppress(queue.Empty):
            return self._jobs.get_nowait()
        return None

    def _work(self) -> None:
        while True:
            self._jobs.get()()


KEPT_THREADS: Final = Kept()
"""Those of this process: all that need a thread may have need of one at the same time."""


def begin(work: Callable[[], None], name: str) -> None:
    """Do it in a daemon thread of its own; where there is none to be had, in one that is kept.

    Raises:
        OSError: ``EAGAIN``: none is kept either.
    """

    def run() -> None:
        job: Callable[[], None] | None = work
        while job is not None:
            job()
            job = KEPT_THREADS.one()

    try:
        threading.Thread(target=run, daemon=True, name=name).start()
    except RuntimeError:
        KEPT_THREADS.put(work)


def aside(fn: Callable[[], T], seconds: float) -> T:
    """Call ``fn`` in a daemon thread and wait for so long: for questions before there is a loop.

    Raises:
        TimeoutError: it has not returned; it is not waited for any more.
        OSError: there is no thread for it.
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
        """Run ``fn`` in a daemon thread. Where there is no thread for it, the future has the ``OSError``."""
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
            begin(lambda: self._work(job), "aside")
        except OSError as error:  # an error for the caller, which must not end the loop
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
