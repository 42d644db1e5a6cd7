"""A pause that an upstream asked for (``Retry-After``), for what requests have minted: it is not asked again before.

Renewals have a schedule of their own that hears it (:mod:`agent.core.refresh`). What a worker's request causes has
none: each new audience, and each asker after a failure, would be another call to a server that said when to come again.
"""

from __future__ import annotations

from agent.core.clock import Clock
from agent.core.errors import ProviderError, Transient
from agent.core.model import Grant
from agent.core.refresh import pause_seconds


class Pause:
    """See the module. One for each kind of mint; of the identity that is served, so that another has none.

    Args:
        clock: time that never steps.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # All mutable state: the pause that was asked for last, of whom, and with which words.
        self._of: Grant | None = None
        self._until = 0.0
        self._why = Transient("")

    def heed(self, grant: Grant | None) -> None:
        """Raise what was said with the pause, while it lasts.

        Raises:
            Transient: it is not over.
        """
        if self._clock.boottime() < self._until and self._of == grant:
            raise Transient(self._why.message, code=self._why.code)

    def hear(self, grant: Grant | None, error: ProviderError) -> None:
        """An upstream failed: take note of the pause that it asks for, if any. At most as long as for a first mint."""
        seconds = pause_seconds(error.pause_seconds, None)
        if seconds > 0 and isinstance(error, Transient):
            self._of, self._until, self._why = grant, self._clock.boottime() + seconds, error
