"""Which of the commands that came has the process done that holds the rules?

Whoever asks for something is told only what was done *after* he asked: a plan that was begun before a configuration was
changed says nothing of it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Final

#: ``redirect apply``, ``redirect close``, and the reload of the unit, which opens nothing that was closed by command.
APPLY, CLOSE, RELOAD = "apply", "close", "reload"
SIGNALS: Final = MappingProxyType({APPLY: signal.SIGHUP, CLOSE: signal.SIGUSR1, RELOAD: signal.SIGUSR2})
_PLANNED: Final = (APPLY, RELOAD)


def heeds(pid: int, directory: Path = Path("/proc")) -> bool:
    """Whether a process waits for every command, or lets it wait (proc_pid_status(5)).

    One that has just begun does not yet: a command would end it, or be lost. It looks itself at what was commanded.
    """
    wanted, heeded = sum(1 << (number - 1) for number in SIGNALS.values()), 0
    try:
        for row in (directory / str(pid) / "status").read_text().splitlines():
            name, _, mask = row.partition(":")
            if name in {"SigBlk", "SigCgt"}:
                heeded |= int(mask, 16)
    except (OSError, ValueError):
        return False
    return heeded & wanted == wanted


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
