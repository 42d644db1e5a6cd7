"""Which of the commands that came has the process done that holds the rules?

Whoever asks for something is told only what was done *after* he asked: a plan that was begun before a configuration was
changed says nothing of it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from types import MappingProxyType
from typing import Final

#: ``redirect apply``, ``redirect close``, and the reload of the unit, which opens nothing that was closed by command.
APPLY, CLOSE, RELOAD = "apply", "close", "reload"
SIGNALS: Final = MappingProxyType({APPLY: signal.SIGHUP, CLOSE: signal.SIGUSR1, RELOAD: signal.SIGUSR2})
_PLANNED: Final = (APPLY, RELOAD)


class Heard:
    """When each command was last heard that is done.

    Args:
        now: the start of the process, which is as good as each command. As all times here it is in seconds of the
            monotonic clock.

    Attributes:
        done: for each command the time at which it was heard, once it is done.
    """

    def __init__(self, now: float) -> None:
        self._heard = dict.fromkeys((APPLY, CLOSE, RELOAD), now)
        self._begun = dict(self._heard)
        self.done: dict[str, float] = {CLOSE: now}

    def hear(self, commands: Iterable[str], now: float) -> None:
        """These have come."""
        self._heard |= dict.fromkeys(commands, now)

    def close(self) -> None:
        """Workers were to be refused, and that was tried."""
        self.done[CLOSE] = self._heard[CLOSE]

    def begin(self) -> None:
        """A plan is begun: it heeds what has come until now."""
        self._begun = dict(self._heard)

    def end(self) -> None:
        """The plan that was begun last is done."""
        self.done |= {command: self._begun[command] for command in _PLANNED}
