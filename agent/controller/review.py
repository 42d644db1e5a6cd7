"""Is the bundle in force still believed? It is evaluated again when whom we believe, or who we are, has changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import structlog

from agent.controller.durable import Durable
from agent.controller.retries import NEVER, Retries
from agent.controller.verdicts import Verdicts
from agent.core.clock import Clock
from agent.core.errors import BundleError, KeyUnavailableError
from agent.core.model import Bundle, SealedBundle
from agent.core.source import STATE
from agent.core.verdict import Refused
from agent.identity.store import Store

REVIEW_AGAIN_SECONDS: Final = 30.0
"""Between attempts to evaluate the bundle in force again while the key service is silent."""


class Review:
    """See the module.

    Args:
        store: the state machine.
        durable: the owner of what outlives the process.
        opener: see :class:`agent.controller.opener.Opener`; ``None``: nothing can be opened, and nothing is reviewed.
        verdicts: says what comes of it.
        retries: keeps what is revoked, for another look when our trust changes again.
        clock: time.
        wake: has the loop go round.
        changed: tells that an answer may have changed.

    Attributes:
        due_at: when to call :meth:`run`, in boot-time seconds; infinity: never.
    """

    def __init__(
        self,
        store: Store,
        durable: Durable,
        opener: Callable[[SealedBundle, datetime, str | None], Awaitable[Bundle]] | None,
        verdicts: Verdicts,
        retries: Retries,
        *,
        clock: Clock,
        wake: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self.due_at = NEVER
        self._store = store
        self._durable = durable
        self._opener = opener
        self._verdicts = verdicts
        self._retries = retries
        self._clock = clock
        self._wake = wake
        self._changed = changed
        self._log = structlog.get_logger()

    def ask_for(self, seconds: float = 0.0) -> None:
        """Have it done so many seconds from now."""
        self.due_at = self._clock.boottime() + seconds
        self._wake()  # its sleep was planned without this

    async def run(self) -> None:
        """Evaluate the bundle in force again, as a restart would."""
        try:
            await self._run()
        except Exception as error:  # noqa: BLE001 - what is not believed is not served on for want of memory just then
            self._log.error("work.crashed", work="a review", error=type(error).__name__, exc_info=True)
            self.ask_for(REVIEW_AGAIN_SECONDS)

    async def _run(self) -> None:
        bundle, sealed = self._store.bundle, self._durable.sealed
        if bundle is None or sealed is None or self._opener is None:
            return
        now = self._clock.now()
        try:
            again = await self._opener(SealedBundle(sealed, bundle.origin), now, bundle.digest)
        except KeyUnavailableError as error:
            self._not_reviewed(bundle, error)
            return
        except BundleError as error:
            if error.doubtful:
                self._not_reviewed(bundle, error)
            elif self._in_force(bundle):  # nothing took its place while it was opened
                self._revoke(bundle, sealed, error, now)
            return
        # The signer may give shorter leases, or longer ones, than it might then.
        anew = self._in_force(bundle) and again.lease_until != bundle.lease_until
        if anew and self._durable.lease_anew(again, now):
            self._verdicts.leased_anew(again)
            self._changed()

    def _in_force(self, bundle: Bundle) -> bool:
        """Whether it still is, with whatever lease another review gave it meanwhile."""
        present = self._store.bundle
        return present is not None and present.digest == bundle.digest

    def _not_reviewed(self, bundle: Bundle, error: BundleError) -> None:
        """No verdict. A key service that is down for a night, or errs for once, takes nobody's identity away."""
        self._log.error("bundle.not_reviewed", code=error.code, reason=error.message, seq=bundle.seq)
        self.ask_for(REVIEW_AGAIN_SECONDS)

    def _revoke(self, bundle: Bundle, sealed: bytes, error: BundleError, now: datetime) -> None:
        """End what would not be resumed at a restart, with the same outcome; the memory stays, so the rules do too."""
        mine = SealedBundle(sealed, STATE)
        self._durable.revoke(now)  # first: nothing that is told of it may keep it served
        self._retries.take(mine)
        self._retries.keep(mine, 0, None)  # a reload that was a mistake is made good by the next
        self._verdicts.revoked(mine, bundle, Refused(error.code, error.message), now)
        self._changed()
