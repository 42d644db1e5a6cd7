"""``Retry-After``: how long a server asks not to be asked again (RFC 9110 section 10.2.3), in both of its forms."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

LONGEST_PAUSE_SECONDS: Final = 300.0
"""A server may ask for a pause, not for an outage."""


def asked_pause(headers: Mapping[str, str], date: datetime | None) -> float:
    """The pause that an answer asks for, in seconds, 0 to :data:`LONGEST_PAUSE_SECONDS`; 0 when it asks for none.

    Args:
        headers: of the answer.
        date: its own ``Date``: a pause given as a moment is counted from it, so that no other clock is needed. A moment
            in an answer without a ``Date`` is ignored.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return LONGEST_PAUSE_SECONDS if len(text) > 4 else min(float(text), LONGEST_PAUSE_SECONDS)
    if not text or date is None:
        return 0.0
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - loaded by aiohttp, and by nobody else

    try:
        moment = parsedate_to_datetime(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        seconds = (moment - date).total_seconds()
    except (ValueError, OverflowError, TypeError, IndexError):
        return 0.0  # not a date
    return min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS)
