"""One forwarding: a thread that does what is due, and the handle that a program holds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, Self

from agent.core.errors import AgentError, UsageError
from agent.forward import at_exit
from agent.forward.courier import PATIENT_SECONDS, PROMPT_SECONDS, Courier
from agent.forward.engine import CHUNK, Engine
from agent.forward.late import Stragglers
from agent.forward.status import Status
from agent.forward.telling import Teller

OnExit = Literal["withdraw", "keep"]

GLANCE_SECONDS: Final = 5.0
"""How often the files of this computer's identity are looked at: that asks nobody, and a new sign-on is seen soon."""
PRESENT_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 30.0
"""How often a worker that is not served is asked again, and every worker whether it still is."""
PER_WORKER_SECONDS: Final = 0.1
"""In a large cluster the pause is this much for each worker: 10,000 are asked once in a quarter of an hour."""
GATHER_SECONDS: Final = 0.02
"""Workers that come in one moment are served in one go."""
ASLEEP: Final = timedelta(seconds=30)
"""The clock on the wall is so far ahead of the one that stands still while a computer sleeps: it has slept."""

_words = logging.getLogger("agent.forward")  # of a program on a laptop: no event of the agent's log


class Forward:
    """An identity on its way to a cluster. Made by :func:`agent.forward.dask` and its siblings.

    Leaving the ``with`` block, :meth:`close`, or the program's own end takes the identity away from the workers again,
    unless ``on_exit="keep"``. If the program is killed, they keep it until :attr:`Status.until`.
    """

    def __init__(
        self,
        engine: Engine,
        courier: Courier,
        teller: Teller,
        *,
        on_exit: OnExit,
        lazy: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engine = engine
        self._courier = courier
        self._teller = teller
        self._on_exit = on_exit
        self._wake = threading.Condition()
        self._joined: list[str] = []
        self._stopping = False
        self._working = threading.Lock()
        self._telling = threading.Lock()
        self._stragglers = Stragglers(self._wait_for, self._tell)
        self._status: Status | None = None
        self._unwatch: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._closed = self._entered = False
        self._lazy = lazy
        self._sleep = _Sleep(now)
        if not lazy:
            self._start()

    # -- for the program

    def status(self) -> Status:
        """How each worker and each cloud stands. Does not ask anybody."""
        if self._status is None:
            return self._engine.status()
        return self._status

    def refresh(self) -> Status:
        """Look at this computer and at every worker now, and deliver what is new.

        Raises:
            UsageError: it would stop the loop of an asynchronous client, or it has ended.
        """
        self._not_over()
        self._not_in_a_loop("refresh")
        with self._working:
            self._renew()
            self._look([name for name in self._engine.present() if name not in self._engine.late])
        self._stragglers.attend(self._engine.late)
        self._stragglers.wait()
        return self.status()

    def close(self) -> None:
        """End it: withdraw unless ``on_exit="keep"``, and say until when workers are served. Idempotent."""
        if self._closed:
            return
        if self._thread is not None:
            self._not_in_a_loop("close")
        self._closed = True
        at_exit.forget(self)
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        taken = None
        try:
            if self._thread is not None:
                self._thread.join()
            if self._unwatch is not None:
                with contextlib.suppress(Exception):  # the cluster may be gone
                    self._unwatch()
            if self._on_exit == "withdraw":
                try:
                    taken = self._engine.withdraw()
                except Exception as error:  # noqa: BLE001 - a courier's errors are its own
                    self._engine.lost(error)
        finally:
            # Also for who presses Ctrl-C a second time: what was not taken back is said.
            self._status = self._engine.status()
            self._teller.left(self._status, taken)

    def _enter(self) -> None:
        self._not_over()
        if self._entered:
            raise UsageError(
                "this forwarding is entered already, and the end of the inner block would end it",
                hint="call forward.dask() and its like once for each with",
            )
        self._entered = True

    def _not_over(self) -> None:
        if self._closed:
            raise UsageError(
                "this forwarding has ended: it gives nothing to anybody any more",
                hint="begin another one: with forward.dask(client): ...",
            )

    def _not_in_a_loop(self, name: str) -> None:
        if self._lazy and asyncio._get_running_loop() is not None:  # noqa: SLF001 - asks without raising
            raise UsageError(
                f"the client is asynchronous: {name}() would stop its loop",
                hint=f"await asyncio.to_thread(f.{name}), within async with forward.dask(client) as f",
            )

    def __enter__(self) -> Self:
        self._enter()
        if self._lazy:
            raise UsageError(
                "the client is asynchronous: a plain with would stop its loop",
                hint="async with forward.dask(client): ...",
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._enter()
        if self._thread is None:
            try:
                await _to_its_end(self._start)
            except asyncio.CancelledError:
                # Ctrl-C, or a timeout: nobody leaves a block that was not entered.
                await _to_its_end(self.close)
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await _to_its_end(self.close)

    # -- the thread

    def _start(self) -> None:
        try:
            self._begin()
        except BaseException:
            # Ctrl-C, or a cluster that goes away: the identity given meanwhile is taken back as at any other end.
            if self._engine.has_given():
                with contextlib.suppress(Exception):
                    self.close()
            raise

    def _begin(self) -> None:
        self._engine.collect()
        self._teller.began(self._engine.status())
        names = self._engine.present()
        # Nobody waits behind these but who called us.
        self._look(names, PATIENT_SECONDS)
        self._unwatch = self._courier.watch(self._join)
        self._thread = threading.Thread(target=self._run, name="credential-agent-forward", daemon=True)
        self._thread.start()
        if not self._lazy:  # the loop of an asynchronous client has ended by then
            at_exit.remember(self)

    def _join(self, names: Sequence[str]) -> None:
        with self._wake:
            self._joined.extend(names)
            self._wake.notify_all()

    def _run(self) -> None:
        count = len(self.status().workers)
        present = time.monotonic() + PRESENT_SECONDS
        again = time.monotonic() + self._pause(count)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or bool(self._joined), GLANCE_SECONDS)
                if self._stopping:
                    return
                if self._joined:
                    self._wake.wait_for(lambda: self._stopping, GATHER_SECONDS)
            if (slept := self._sleep.slept()) is not None:
                # Nobody knows what became of the workers meanwhile, nor whether their connections lead anywhere.
                self._teller.woke(slept)
                present = again = time.monotonic()
            try:
                with self._working:
                    self._welcome()
                    self._renew()
                    if time.monotonic() >= present:
                        names = self._engine.present()
                        known = {one.name for one in self.status().workers}
                        count = len(names)
                        whole = time.monotonic() >= again
                        some = set(names) if whole else set(names) - known
                        self._look([name for name in names if name in some - self._engine.late])
                        present = time.monotonic() + PRESENT_SECONDS
                        if whole:
                            again = time.monotonic() + self._pause(count)
            except Exception as error:  # noqa: BLE001 - no network for ten minutes is no end
                self._engine.lost(error)
                _words.info("%s", self._engine.status().trouble)
                self._tell()
                # A renewal that was under way has reached some and not the others: all are looked at when it is back.
                again = time.monotonic()
                present = again + PRESENT_SECONDS
            else:
                self._stragglers.attend(self._engine.late)

    def _wait_for(self, name: str) -> None:
        if not self._stopping:
            self._engine.serve([name], PATIENT_SECONDS)

    @staticmethod
    def _pause(count: int) -> float:
        return max(AGAIN_SECONDS, count * PER_WORKER_SECONDS)

    def _welcome(self) -> None:
        """Serve those who have just come; they wait for it before their first task."""
        with self._wake:
            names, self._joined = list(dict.fromkeys(self._joined)), []
        for first in range(0, len(names), CHUNK):
            self._engine.serve(names[first : first + CHUNK])
        if names:
            self._tell()

    def _look(self, names: Sequence[str], seconds: float = PROMPT_SECONDS) -> None:
        for first in range(0, len(names), CHUNK):
            if self._stopping:
                return
            self._engine.serve(names[first : first + CHUNK], seconds)
            self._welcome()
        self._tell()

    def _renew(self) -> None:
        try:
            new = self._engine.collect()
        except AgentError as error:
            self._engine.lost(error)
            return
        if new:
            for _ in self._engine.renew():
                self._welcome()
            self._tell()

    def _tell(self) -> None:
        with self._telling:
            if not self._closed:
                self._status = self._engine.status()
                self._teller.now(self._status, datetime.now(UTC))


async def _to_its_end(function: Callable[[], None]) -> None:
    """Run it in a thread. Who is cancelled meanwhile waits for its end, once: the client's loop must run for it."""
    running = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        if not running.cancelled():
            await asyncio.wait([running])
            running.exception()  # of a task that nobody asks, asyncio would complain
        raise


class _Sleep:
    """Has this computer slept since the last question?

    Linux's and macOS's monotonic clocks stand still meanwhile, and the wall's does not. A clock that is set looks the
    same, and to look at everything anew is right then too.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._last = now(), time.monotonic()

    def slept(self) -> timedelta | None:
        """For how long; ``None``: it has not."""
        (wall, own), self._last = self._last, (self._now(), time.monotonic())
        ahead = (self._last[0] - wall) - timedelta(seconds=self._last[1] - own)
        return ahead if ahead >= ASLEEP else None
