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
BEGUN_SECONDS: Final = 2.0
"""A thread that has not begun after so long has died, or this machine has too much to do."""


class _Begun(threading.Event):
    """What :meth:`threading.Thread.start` waits for, in every version so far, and without an end."""

    def wait(self, timeout: float | None = None) -> bool:
        """See :meth:`threading.Event.wait`."""
        return super().wait(BEGUN_SECONDS if timeout is None else timeout)


class Thread(threading.Thread):
    """A daemon thread whose start ends.

    Where there is no memory for its first steps (strict overcommit, ``RLIMIT_AS``) the interpreter ends a thread before
    it has said that it has begun, and whoever starts it waits for that for ever (CPython's issue 140746): the event
    loop.

    Args:
        work: done at most once: never if :meth:`start` raises.
        name: for whoever looks at threads.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        super().__init__(daemon=True, name=name)
        self._started = _Begun()
        self._left = deque([work])

    def start(self) -> None:
        """Begin it.

        Raises:
            RuntimeError: there is no thread, or no memory for it.
        """
        try:
            super().start()
        except MemoryError:
            raise RuntimeError("no memory for a thread") from None
        if not self._started.is_set():
            with contextlib.suppress(IndexError):  # it has begun after all
                self._left.pop()
                raise RuntimeError("expected a thread to begin, it has not")

    def run(self) -> None:
        """See :meth:`threading.Thread.run`."""
        try:
            work = self._left.pop()
        except IndexError:
            return  # whoever started it waits no more
        work()


class Kept:
    """Threads that are there already: see the module.

    *Resources*: the threads of :meth:`begin`, to the end of the process.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._count = self._wanted = 0
        self._beginning = threading.Lock()

    def begin(self, count: int = KEPT) -> None:
        """Have so many. Call it when nothing forks any more: a child would have none of them."""
        self._wanted = count
        self.make_up()

    def make_up(self) -> None:
        """Begin those that could not be begun when they were wanted."""
        if self._count >= self._wanted or not self._beginning.acquire(blocking=False):
            return
        try:
            while self._count < self._wanted:
                Thread(self._work, "kept").start()
                self._count += 1
        except (RuntimeError, MemoryError):
            return  # there is none even now: what needs one is refused
        finally:
            self._beginning.release()

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
        Thread(run, name).start()
    except (RuntimeError, MemoryError):
        KEPT_THREADS.put(work)
    else:
        KEPT_THREADS.make_up()


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
        except (OSError, MemoryError) as error:  # an error for the caller, which must not end the loop
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
