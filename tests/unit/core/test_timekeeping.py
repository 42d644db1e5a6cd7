"""Who tells us the time, as properties: no sequence of words, steps and pauses breaks the rule."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.core.timekeeping import (
    ALONE_SECONDS,
    DRIFT_RATE,
    DRIFT_SECONDS,
    MOVE_EVERY_SECONDS,
    TOLERANCE_SECONDS,
    Reading,
    Timekeeper,
    Witness,
)

EPOCH = 1_795_000_000.0
HOUR = 3600.0
errors = st.floats(-100 * HOUR, 100 * HOUR) | st.sampled_from([1800.0, -1800.0, 3e9, -3e9, 1e30, -1e30, 0.0])
clouds = st.sampled_from([Witness.AWS, Witness.GOOGLE])
servers = st.sampled_from([Witness.LINK, Witness.AWS, Witness.GOOGLE])
waits = st.floats(0, 2 * HOUR)


class Hands:
    """The clocks of a machine; the wall clock is right unless it is set wrong."""

    def __init__(self, *, wall_error: float = 0.0, synchronised: bool = False) -> None:
        self.true, self.boot, self.wall_error, self.synchronised = EPOCH, 1000.0, wall_error, synchronised
        self.timekeeper = Timekeeper(self.read())

    def read(self) -> Reading:
        return Reading(self.boot, self.true + self.wall_error, self.synchronised)

    def passes(self, seconds: float) -> None:
        self.true += seconds
        self.boot += seconds

    def hear(self, witness: Witness, error: float) -> None:
        self.timekeeper.hear(witness, self.true + error, self.read())

    @property
    def off(self) -> float:
        return self.boot + self.timekeeper.ours - self.true


@given(st.floats(-100 * HOUR, 100 * HOUR), st.booleans(), servers, waits)
def test_a_dispute_is_with_the_machine_s_own_service(
    wrong: float, synchronised: bool, witness: Witness, wait: float
) -> None:
    """It lasts as long as our time is wrong by its word, however old that is, and where nobody keeps the clock."""
    hands = Hands(wall_error=wrong, synchronised=synchronised)
    assert hands.timekeeper.disputed(hands.read()) == 0.0
    hands.hear(witness, 0.0)
    hands.passes(wait)
    said = hands.timekeeper.disputed(hands.read())
    disputed = witness is Witness.LINK and not synchronised and abs(hands.off) > TOLERANCE_SECONDS
    assert said == (pytest.approx(-hands.off, abs=1e-3) if disputed else 0.0)


@given(st.floats(-100 * HOUR, 100 * HOUR), st.booleans())
def test_a_dispute_does_not_end_before_our_time_is_right(wrong: float, told: bool) -> None:
    """Between the instant at which the kernel's clock is set right and the look that follows it we are still wrong."""
    hands = Hands(wall_error=wrong)
    if told:
        hands.hear(Witness.LINK, 0.0)
    off, hands.wall_error, hands.synchronised = hands.off, 0.0, True
    said = hands.timekeeper.disputed(hands.read())
    assert said == (pytest.approx(-off, abs=1e-3) if abs(off) > TOLERANCE_SECONDS else 0.0)
    hands.timekeeper.look(hands.read())
    assert hands.timekeeper.disputed(hands.read()) == 0.0


@given(st.lists(st.tuples(waits, servers, errors), max_size=40))
def test_no_words_move_a_synchronised_kernel(words: list[tuple[float, Witness, float]]) -> None:
    """While NTP keeps the clock right our error is nothing, whatever any number of servers say."""
    hands = Hands(synchronised=True)
    for wait, witness, error in words:
        hands.passes(wait)
        hands.hear(witness, error)
        assert hands.off == pytest.approx(0.0, abs=1e-3)
    assert hands.timekeeper.moves == 0


@given(clouds, st.lists(st.tuples(waits, errors), max_size=40))
@example(Witness.AWS, [(1.3688084012683248, 0.0), (1.0503768228354602, 5.0)])
def test_one_token_endpoint_never_moves_us(liar: Witness, words: list[tuple[float, float]]) -> None:
    """Against a wall clock that was not stepped a lone token endpoint is not believed, in whatever rhythm it lies."""
    hands = Hands()
    for wait, error in words:
        hands.passes(wait)
        hands.hear(liar, error)
        assert hands.off == pytest.approx(0.0, abs=1e-3)


@given(st.lists(st.tuples(waits, servers, errors), max_size=60), st.booleans())
def test_nobody_makes_us_flap(words: list[tuple[float, Witness, float]], quick: bool) -> None:
    """Servers move us no more often than once in ten minutes, however they take turns."""
    hands = Hands()
    for wait, witness, error in words:
        hands.passes(min(wait, 5.0) if quick else wait)
        hands.hear(witness, error)
    assert hands.timekeeper.moves <= 1 + (hands.boot - 1000.0) / MOVE_EVERY_SECONDS


@given(st.lists(st.tuples(waits, errors), max_size=60))
def test_a_witness_alone_moves_us_within_the_bound(words: list[tuple[float, float]]) -> None:
    """A metadata service that lies as it likes never takes us further than a wrong time zone would, in all."""
    hands = Hands()
    for wait, error in words:
        hands.passes(wait)
        hands.hear(Witness.LINK, error)
        assert abs(hands.off) <= ALONE_SECONDS + 1.0


@given(clouds, st.lists(st.tuples(st.floats(0, HOUR), errors), max_size=40))
def test_an_honest_cloud_and_the_wall_clock_hold_against_the_link(
    honest: Witness, words: list[tuple[float, float]]
) -> None:
    """With one honest cloud heard each hour, a lying metadata service moves us nowhere."""
    hands = Hands()
    hands.hear(honest, 0.0)
    for wait, error in words:
        hands.passes(wait)
        hands.hear(honest, 0.0)
        hands.hear(Witness.LINK, error)
        assert abs(hands.off) <= 2 * TOLERANCE_SECONDS


@settings(max_examples=300)
@given(
    st.floats(-14 * HOUR, 14 * HOUR),
    st.lists(st.tuples(st.floats(0, HOUR), clouds, errors), max_size=40),
)
def test_an_honest_link_holds_against_a_lying_cloud(
    wall_error: float, words: list[tuple[float, Witness, float]]
) -> None:
    """With the metadata service honest, one lying cloud moves us nowhere, even if nobody keeps the wall clock."""
    hands = Hands(wall_error=wall_error)
    hands.hear(Witness.LINK, 0.0)
    liar = words[0][1] if words else Witness.AWS
    for wait, _, error in words:
        hands.passes(wait)
        hands.hear(Witness.LINK, 0.0)
        agrees_with_wall = abs(error - wall_error) <= 3 * TOLERANCE_SECONDS
        hands.hear(liar, 0.0 if agrees_with_wall else error)  # a wall clock and a cloud that agree are two
        assert abs(hands.off) <= 2 * TOLERANCE_SECONDS


@given(st.lists(st.tuples(waits, st.sampled_from(["hear", "step", "pause", "sync"]), servers, errors), max_size=40))
def test_boot_time_never_goes_back_and_nothing_raises(events: list[tuple[float, str, Witness, float]]) -> None:
    """Whatever happens: what was lost only grows, so no deadline moves away; and our time is a time."""
    hands = Hands()
    before = hands.timekeeper.lost
    for wait, kind, witness, amount in events:
        hands.passes(wait)
        if kind == "hear":
            hands.hear(witness, amount)
        elif kind == "step" and abs(amount) < 1e7:
            hands.wall_error += amount
        elif kind == "pause" and 0 < amount < 1e7:
            hands.true += amount
            hands.wall_error -= amount
        elif kind == "sync":
            hands.synchronised = not hands.synchronised
        hands.timekeeper.look(hands.read())
        assert hands.timekeeper.lost >= before
        before = hands.timekeeper.lost


@given(waits, st.floats(3.0, 1000 * HOUR), st.booleans())
def test_a_pause_is_over_at_the_first_look(wait: float, seconds: float, synchronised: bool) -> None:
    """The wall clock is right after a pause: our time is too, at once, and deadlines came nearer by all of it."""
    hands = Hands(synchronised=synchronised)
    hands.hear(Witness.AWS, 0.0)
    hands.passes(wait)
    hands.true += seconds
    assert hands.timekeeper.look(hands.read()) is True
    assert hands.off == pytest.approx(0.0, abs=1e-3)
    assert hands.timekeeper.lost == pytest.approx(seconds, abs=1e-3)


@given(st.lists(st.floats(-20 * HOUR, -60.0), min_size=1, max_size=4), st.booleans())
def test_the_way_back_from_a_lie_is_no_pause(lies: list[float], once: bool) -> None:
    """Servers that move us back together and then tell the truth again cost nothing that is counted on boot time."""
    hands = Hands(wall_error=-7 * HOUR)
    for error in [0.0, *lies[: 1 if once else None], 0.0]:
        for _ in range(2):
            hands.passes(2 * MOVE_EVERY_SECONDS)
            hands.hear(Witness.AWS, error)
            hands.hear(Witness.GOOGLE, error)
    assert hands.off == pytest.approx(0.0, abs=TOLERANCE_SECONDS)
    falls = all(later <= earlier for earlier, later in pairwise([0.0, *lies]))
    assert hands.timekeeper.lost == 0.0 or (not once and not falls)


@given(st.floats(-20 * HOUR, -60.0), st.floats(60.0, 20 * HOUR))
def test_a_pause_after_a_lie_is_a_pause(lie: float, seconds: float) -> None:
    """Having been moved back hides no pause: only a return to the very place is taken for one."""
    hands = Hands()
    for error in (0.0, lie):
        hands.passes(2 * MOVE_EVERY_SECONDS)
        hands.hear(Witness.AWS, error)
        hands.hear(Witness.GOOGLE, error)
    hands.true += seconds
    hands.passes(2 * MOVE_EVERY_SECONDS)
    hands.hear(Witness.AWS, 0.0)
    hands.hear(Witness.GOOGLE, 0.0)
    assert hands.off == pytest.approx(0.0, abs=TOLERANCE_SECONDS)
    assert hands.timekeeper.lost >= seconds - TOLERANCE_SECONDS


def test_what_was_under_way_through_a_suspend_says_nothing() -> None:
    """Two clouds' answers that a suspend of an hour delayed agree on a time that is an hour old: neither is heard."""
    hands = Hands()
    hands.passes(HOUR)
    for witness in (Witness.AWS, Witness.GOOGLE, Witness.LINK):
        hands.timekeeper.hear(witness, hands.true - HOUR, hands.read(), took=HOUR)
    assert hands.off == pytest.approx(0.0, abs=1e-3)


@given(
    st.floats(-14 * HOUR, 14 * HOUR),
    servers,
    st.lists(st.tuples(waits, errors), max_size=40),
)
def test_nobody_alone_takes_back_what_was_vouched_for(
    zone: float, first: Witness, words: list[tuple[float, float]]
) -> None:
    """A metadata service that begins to lie later takes us back by no more than drift; forward it may say what it will.

    Once our time was vouched for, in a machine whose hardware clock is right or in local time, hours back alone are a
    lie: what is over would live again.
    """
    hands = Hands(wall_error=zone if first is Witness.LINK else 0.0)
    hands.hear(first, 0.0)
    assert abs(hands.off) <= TOLERANCE_SECONDS
    for wait, error in words:
        hands.passes(wait)
        hands.hear(Witness.LINK, error)
        wall_says_so = abs(error - hands.wall_error) <= 2 * TOLERANCE_SECONDS
        if wall_says_so:
            return  # then it is not alone: that is a clock that two say is wrong
        drift = DRIFT_SECONDS + DRIFT_RATE * (hands.boot - 1000.0)
        assert hands.off >= -drift - 2 * TOLERANCE_SECONDS


def test_drift_is_taken_back() -> None:
    """Boot time that runs fast is put right by the metadata service alone, day after day."""
    hands = Hands()
    hands.hear(Witness.LINK, 0.0)
    for _ in range(100):
        hands.passes(24 * HOUR)
        hands.boot += 8.0  # a hundred parts in a million
        hands.wall_error += 8.0
        for _ in range(2):
            hands.passes(20.0)
            hands.hear(Witness.LINK, 0.0)
        assert abs(hands.off) <= TOLERANCE_SECONDS + 0.1
