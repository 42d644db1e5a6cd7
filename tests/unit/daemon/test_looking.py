"""What whoever has every source looked at is told of each of them."""

from __future__ import annotations

import asyncio

from agent.core.errors import SourceError
from agent.core.model import SealedBundle
from agent.core.source import Ack
from agent.daemon import looking
from tests.fakes.clock import START
from tests.unit.controller.support import FakeSource


class Holding(FakeSource):
    """A source that holds this; an error: it cannot be read."""

    def __init__(self, name: str, held: SealedBundle | SourceError | None) -> None:
        super().__init__(name)
        self._held = held

    async def fetch(self) -> SealedBundle | None:
        if isinstance(self._held, SourceError):
            raise self._held
        return self._held


def test_each_source_has_an_outcome_of_its_own() -> None:
    """One that is broken or holds nothing hides no other; what is not sure to be in force is not called accepted."""
    acks = {
        b"new": Ack(origin="new", outcome="accepted", at=START, seq=3),
        b"old": Ack(origin="old", outcome="refused", at=START, seq=2, code="stale", reason="it is old"),
        b"slow": Ack(origin="slow", outcome="accepted", at=START, seq=4, confirmed=False),
    }
    sources = [
        Holding("broken", SourceError("no such host")),
        Holding("empty", None),
        *(Holding(data.decode(), SealedBundle(data, data.decode())) for data in acks),
    ]

    async def submit(sealed: SealedBundle) -> Ack:
        return acks[sealed.data]

    found = asyncio.run(looking.look_now(sources, submit))
    assert [(one["source"], one["outcome"], one["code"], one["seq"]) for one in found] == [
        ("broken", "broken", "source", None),
        ("empty", "none", None, None),
        ("new", "accepted", None, 3),
        ("old", "refused", "stale", 2),
        ("slow", "broken", "unconfirmed", 4),
    ]
    assert found[3]["reason"] == "it is old"
