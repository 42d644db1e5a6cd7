"""Tells a person how it goes: a line or two when something has changed. On a terminal; a library says nothing."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from datetime import datetime, timedelta
from typing import Final, TextIO

from agent.core.text import instant, spell
from agent.forward.status import Status

SHOWN: Final = 5
"""So many workers that are not served are named; ``status()`` has all of them."""
LONGEST: Final = 2000


class Teller:
    """Tells.

    Args:
        out: where; ``None``: nobody is told anything.
    """

    def __init__(self, out: TextIO | None) -> None:
        self._out = out
        self._said: object = None

    @classmethod
    def of(cls, progress: bool | None) -> Teller:
        """On a terminal unless told otherwise."""
        shown = (sys.stderr is not None and sys.stderr.isatty()) if progress is None else progress
        return cls(sys.stderr if shown else None)

    def began(self, status: Status) -> None:
        """Say as whom the workers act."""
        for cloud in status.clouds:
            self._line(f"forwarding {cloud.cloud}: {cloud.who}")
        if status.variables:
            self._line(
                f"forwarding variables: {', '.join(status.variables)}; programs that start on the workers from now on "
                "get them, those that run already (the workers themselves among them) do not"
            )

    def woke(self, slept: timedelta) -> None:
        """Say that this computer was asleep; what follows from that is said next."""
        self._line(f"this computer slept for {spell(slept)}: what is due is renewed, and every worker is asked anew")
        self._said = None

    def now(self, status: Status, now: datetime) -> None:
        """Say how it stands, if that has changed."""
        missing = status.not_served()
        key = (
            status.served,
            len(status.workers),
            status.until,
            status.trouble,
            tuple((m.name, m.reason) for m in missing),
        )
        if self._out is None or key == self._said:
            return
        self._said = key
        if status.trouble is not None:
            self._line(f"{status.trouble}; what was served stays served{_until(status, now)}")
            return
        until = _until(status, now) if status.served or not status.workers else ""
        self._line(f"{status.served} of {len(status.workers)} workers are served{until}")
        for cloud in status.clouds:
            if cloud.trouble:
                self._line(f"  {cloud.cloud} cannot be renewed here: {cloud.trouble}")
        reasons = Counter((one.state, one.reason, one.hint) for one in missing if one.reason is not None)
        for (_, reason, hint), count in reasons.most_common(SHOWN):
            first = next(one for one in missing if (one.reason, one.hint) == (reason, hint))
            others = f" and {count - 1} others" if count > 1 else ""
            self._line(f"  not served: {first.host or first.name}{others}: {reason}")
            if hint:
                self._line(f"    hint: {hint}")

    def left(self, status: Status, taken: tuple[int, int] | None) -> None:
        """Say at the end until when the workers are served without us.

        Args:
            status: how they stand.
            taken: from how many machines it was withdrawn, and from how many it could not be; ``None``: from none.
        """
        if taken is None:
            self._line(f"left: {status.served} workers are served without this program{_end(status)}")
            return
        well, ill = taken
        if not well and not ill:
            self._line("nobody was served, so nothing was withdrawn")
            return
        self._line(f"withdrawn from {_machines(well)}: the workers have it no longer")
        if ill:
            self._line(f"  but not from {_machines(ill)}, which may have it{_end(status)}")

    def _line(self, text: str) -> None:
        if self._out is None:
            return
        # Some of it workers have said: it moves no cursor, and begins no line of its own.
        plain = "".join(one if one.isprintable() else " " for one in text[:LONGEST])
        with contextlib.suppress(OSError, ValueError):  # a terminal that was closed ends no renewal
            self._out.write(f"credential-agent: {plain}\n")


def _machines(count: int) -> str:
    return f"{count} machine{'' if count == 1 else 's'}"


def _end(status: Status) -> str:
    return " as long as they run" if status.until is None else f" until {instant(status.until)}"


def _until(status: Status, now: datetime) -> str:
    if not status.clouds:
        return ""
    if status.until is None:
        return ", also without this program"
    return f", without this program until {instant(status.until)} (for {spell(status.until - now)}); it renews that"
