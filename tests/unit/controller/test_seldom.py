"""What flaps fills no journal: the first lines of a kind are said, then one now and then, with how many were not."""

from __future__ import annotations

import pytest

from agent.controller.seldom import BURST, PER_SECOND, Seldom
from agent.core.errors import FormatError, SourceError
from agent.core.source import OnError, OnSuccess, Submit
from tests.fakes.clock import settle
from tests.unit.controller.support import World, events, looped


class Hand:
    """A clock's."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def test_a_burst_is_said_and_then_one_a_minute_with_the_number_of_the_rest() -> None:
    """None is lost uncounted: those said and those told of as unsaid are all there were."""
    hand = Hand()
    seldom = Seldom(hand)
    assert [seldom.unsaid("a") for _ in range(BURST)] == [0] * BURST
    assert [seldom.unsaid("a") for _ in range(7)] == [None] * 7
    hand.at += 1 / PER_SECOND
    assert seldom.unsaid("a") == 7
    assert seldom.unsaid("a") is None
    hand.at += 1 / PER_SECOND
    assert seldom.unsaid("a") == 1


def test_one_kind_hides_no_other() -> None:
    """A flood of one kind, or of one source, leaves the next kind and the next source said at once."""
    seldom = Seldom(Hand())
    for _ in range(100):
        seldom.unsaid("bundle.refused", "file", "json")
    assert seldom.unsaid("bundle.refused", "file", "conflict") == 0
    assert seldom.unsaid("bundle.refused", "push", "json") == 0


@looped
async def test_bytes_that_are_others_at_each_look_do_not_fill_the_log() -> None:
    """Each is refused, counted and acknowledged; of a thousand some twenty are said, and the rest is told of."""
    world = World()
    async with world.running() as logs:
        for number in range(1000):
            data = b"%d" % number
            world.knows(data, FormatError("expected a bundle", code="json"))
            assert (await world.submit(data, "file")).outcome == "refused"
        said = events(logs, "bundle.refused")
        assert len(said) == BURST
        assert world.controller.counters.refused == {"json": 1000}
        await world.clock.advance(60)
        world.knows(b"last", FormatError("expected a bundle", code="json"))
        await world.submit(b"last", "file")
        assert events(logs, "bundle.refused")[-1]["unsaid"] == 1000 - BURST


@pytest.mark.parametrize("event", ["source.failed", "source.recovered"])
@looped
async def test_a_source_that_is_there_and_away_by_turns_does_not_fill_the_log(event: str) -> None:
    """A web server that is well every other time has a few lines, not two with each look; the state is always true."""
    world = World()

    def flap(_submit: Submit, on_error: OnError, on_success: OnSuccess) -> None:
        state = world.controller.source_state
        for _ in range(200):
            on_error(SourceError("it answered 500"))
            assert state["file"] == "it answered 500"
            on_success()
            assert state["file"] == "ok"

    async with world.running() as logs:
        world.source.act(flap)
        await settle()
        assert len(events(logs, event)) == BURST
        assert world.controller.source_state["file"] == "ok"
