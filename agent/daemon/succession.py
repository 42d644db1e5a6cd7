"""What did the previous process leave, and what does the next one get? The service manager holds it in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Final

import structlog
from msgspec.structs import replace

from agent import bundle
from agent.config import MAX_FILE_BYTES
from agent.controller import Controller
from agent.core.errors import HostError
from agent.core.source import Source
from agent.daemon import configured, handover, kept
from agent.daemon.gap import Known
from agent.host import systemd
from agent.host.clock import SystemClock
from agent.identity.store import Store

TELL_AGAIN_SECONDS: Final = 0.5
TELL_AGAIN_ATTEMPTS: Final = 120
TELL_SLOWLY_SECONDS: Final = 5.0
"""Between attempts after the first ones failed: the queue of a service manager may stay full for long."""


class Succession:
    """See the module.

    Args:
        passed: what the service manager passed.
        notifier: the service manager.
        clock: time.

    Attributes:
        left: what the previous process left beside its credentials, until all of it was given back.
    """

    def __init__(self, passed: systemd.Passed, notifier: systemd.Notifier, clock: SystemClock) -> None:
        self.left = handover.take(passed, clock)
        with contextlib.suppress(HostError):
            passed.take_each(configured.NAME, max_bytes=MAX_FILE_BYTES)  # whoever needed it has looked at it before
        self._credentials: kept.Kept | None = None
        self._passed = passed
        self._notifier = notifier
        self._clock = clock
        self._handed: handover.Handover | None = None  # what the next process would get now
        self._configuration = ""  # the configuration that it would get now
        self._again: asyncio.TimerHandle | None = None
        self._log = structlog.get_logger()

    def take_credentials(self) -> None:
        """Take the credentials that the previous process held, and its time."""
        try:
            data = self._passed.take_each(kept.NAME)
        except HostError as error:
            # They are minted anew: an error here would fail every start, since systemd hands them over each time.
            self._log.error("credentials.not_restored", reason=error.message)
            return
        found = [left for left in (kept.decode(one, self._clock) for one in data) if left is not None]
        self._credentials = max(found, key=lambda left: left.uptime, default=None)
        if self._credentials is not None:
            self._credentials.sync_clock(self._clock)

    @property
    def pending(self) -> bool:
        """Whether something was left that was not given back yet."""
        return self.left is not None or self._credentials is not None

    def give_back(self, controller: Controller, trust: bundle.Trust, *, sources: Sequence[Source] = ()) -> None:
        """Give the store what the previous process held, once the bundle that it came from is in force.

        Args:
            controller: the controller, and its store.
            trust: whom we trust now.
            sources: those that have not begun to watch: they go on where they were.
        """
        store = controller.store
        if self._credentials is not None:
            holdings = self._credentials.holdings(store.memory.instance_id, self._clock)
            self._log.info("credentials.restored", count=controller.restore(holdings))
            if self._credentials.instance_id == store.memory.instance_id:
                controller.restore_id_tokens(self._credentials.id_tokens)
        if self.left is not None:
            controller.go_on(*self.left.since(store.memory).rest(self._clock, trust))
            if store.bundle is not None:
                handover.go_on(sources, self.left.positions, controller.durable.sealed)
        if store.bundle is not None or store.memory.active is None:
            self.drop()

    def drop(self) -> None:
        """Forget what was left: nothing of it is ours, or all of it was given back."""
        self.left = self._credentials = None

    def keep(
        self,
        store: Store,
        configuration: str,
        latest: Callable[[], handover.Handover],
        gap: Known | None = None,
        attempts: int = TELL_AGAIN_ATTEMPTS,
    ) -> None:
        """Have the service manager hold what we hold, and nothing else; until that is known, what was left to us.

        A withdrawn credential must not stay because of a full queue: systemd is told again until that succeeds.
        """
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if not self._notifier.active:
            return
        told = False
        try:
            told = self._keep_meanwhile(store, gap) if self.pending else self._keep_all(store, configuration, latest)
        finally:
            if not told:  # also where it broke off
                wait = TELL_AGAIN_SECONDS if attempts > 1 else TELL_SLOWLY_SECONDS
                again = partial(self.keep, store, configuration, latest, gap, max(attempts - 1, 1))
                self._again = asyncio.get_running_loop().call_later(wait, again)

    def _keep_meanwhile(self, store: Store, gap: Known | None) -> bool:
        """Systemd goes on to hold what was left, which is more than we have; with it, what was learned since."""
        left, uptime = self.left, self._clock.uptime()
        if left is None:
            return True
        known = replace(
            left.since(store.memory),
            uptime=uptime,  # newer than what it replaces, by the time of the process that left it
            now=left.now + timedelta(seconds=uptime - left.uptime),
            memory=store.memory,
            doubted=store.doubted,
            brought=store.state.brought,
            gap=gap,
        )
        if known.memory.active != left.memory.active:
            known = replace(known, sealed=None, signed=None, recipient="")  # the disk has that of the later one
        if known.same_as(self._handed or left):
            return True
        told = self._notifier.keep(handover.NAME, handover.encode(known))
        if told:
            self._handed = known
        return told

    def _keep_all(self, store: Store, configuration: str, latest: Callable[[], handover.Handover]) -> bool:
        told = self._notifier.keep(kept.NAME, kept.encode(store, self._clock))
        if configuration != self._configuration:
            if self._notifier.keep(configured.NAME, configuration.encode()):
                self._configuration = configuration
            else:
                told = False
        now = latest()
        if not now.same_as(self._handed):
            if self._notifier.keep(handover.NAME, handover.encode(now)):
                self._handed = now
            else:
                told = False
        return told
