"""Looking at every source now, for whoever does not want to wait for its next look."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from agent.core.errors import SourceError
from agent.core.model import SealedBundle
from agent.core.source import UNCONFIRMED, Ack, Source

FETCH_SECONDS: Final = 30.0
"""Longer than any source's own limits; a source that takes longer is reported as broken."""

Outcome = dict[str, str | int | None]


async def look_now(sources: Iterable[Source], submit: Callable[[SealedBundle], Awaitable[Ack]]) -> list[Outcome]:
    """Ask each source what it holds and have it evaluated.

    Each source's own watch goes on undisturbed: the same bytes submitted twice get the verdict ``same``.

    Returns:
        For each source ``source``, ``outcome`` (``accepted``, ``same``, ``refused``; ``none`` where it holds nothing,
        ``broken`` where it cannot be read), ``code``, ``reason`` and ``seq``.
    """
    return list(await asyncio.gather(*(_look(source, submit) for source in sources)))


async def _look(source: Source, submit: Callable[[SealedBundle], Awaitable[Ack]]) -> Outcome:
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            found = await source.fetch()
    except TimeoutError:
        return _outcome(source, "broken", code="timeout", reason=f"no answer within {FETCH_SECONDS:g} s")
    except SourceError as error:
        return _outcome(source, "broken", code="source", reason=error.message)
    if found is None:
        return _outcome(source, "none")
    ack = await submit(found)
    if not ack.confirmed:
        return _outcome(source, "broken", code="unconfirmed", reason=UNCONFIRMED, seq=ack.seq)
    return _outcome(source, ack.outcome, code=ack.code, reason=ack.reason, seq=ack.seq)


def _outcome(
    source: Source, outcome: str, *, code: str | None = None, reason: str | None = None, seq: int | None = None
) -> Outcome:
    return {"source": source.name, "outcome": outcome, "code": code, "reason": reason, "seq": seq}
