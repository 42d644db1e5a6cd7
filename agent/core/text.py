"""Instants, durations, endpoints, others' words and the system's refusals, as text for people: one form everywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from agent.core.errors import AgentError


def instant(at: datetime) -> str:
    """An instant as people and AWS write it: ``YYYY-MM-DDTHH:MM:SSZ``, rounded down."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def spell(length: timedelta, *, seconds: bool = False) -> str:
    """A length of time in the two units that matter: ``5 h 38 min``, ``12 min``, ``40 s``.

    Args:
        length: rounded down to the second.
        seconds: also beside minutes (``12 min 30 s``), where the leeway of clocks matters.
    """
    whole = int(length.total_seconds())
    least = (1, "s") if seconds else (0, "")
    for unit, name, (below, below_name) in (
        (86400, "d", (3600, "h")),
        (3600, "h", (60, "min")),
        (60, "min", least),
    ):
        if whole >= unit:
            rest = whole % unit // below if below else 0
            return f"{whole // unit} {name}" + (f" {rest} {below_name}" if rest else "")
    return f"{whole} s"


def when(moment: datetime, now: datetime) -> str:
    """How far off a moment is: ``in 5 h 05 min``, ``12 min ago``; below two minutes in seconds."""
    seconds = int((moment - now).total_seconds())
    hours, minutes = divmod(abs(seconds) // 60, 60)
    span = f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
    if abs(seconds) < 120:
        span = f"{abs(seconds)} s"
    return f"in {span}" if moment >= now else f"{span} ago"


def printable(text: str, keep: str = "") -> str:
    """``text`` without what a terminal obeys or a line of a log ends with, but for ``keep``: others wrote it."""
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def socket_address(host: str, port: int) -> str:
    """A TCP endpoint as people write it: ``HOST:PORT``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reason_of(error: Exception) -> str:
    """Why something failed: in the words of an error of ours, else its kind alone: others' words may hold anything."""
    return error.message if isinstance(error, AgentError) else f"internal error: {type(error).__name__}"


def os_reason(error: OSError, otherwise: str = "unknown error") -> str:
    """Why the system refused, without the file's name; ``otherwise`` when it does not say."""
    return (error.strerror or otherwise).lower()
