"""The machine's clocks: what moves our time, and what only looks as if it should."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.clock import Skew, utc
from agent.host.clock import SystemClock

EPOCH = 1_795_000_000.0
HOUR = 3600.0
STEPS = [-30 * 24 * HOUR, -6 * HOUR, -60.0, 60.0, 6 * HOUR, 30 * 24 * HOUR]


class Machine:
    """Hands of two clocks, and the true time."""

    def __init__(self, *, wall_error: float = 0.0) -> None:
        self.true = EPOCH
        self.boot = 1000.0
        self.wall = EPOCH + wall_error
        self.clock = SystemClock(boottime=lambda: self.boot, wall=lambda: self.wall, nap_seconds=0.001)

    def passes(self, seconds: float) -> None:
        """Time passes, suspended or not: CLOCK_BOOTTIME counts on."""
        self.true += seconds
        self.boot += seconds
        self.wall += seconds

    def stopped(self, seconds: float) -> None:
        """The hypervisor stops the machine: no clock of it counts on."""
        self.true += seconds

    def hear(self, error: float = 0.0) -> float:
        """A cloud tells the time, whole seconds, wrong by ``error``."""
        return self.clock.learn(utc(float(int(self.true + error))))

    def doubtful(self) -> bool:
        return self.clock.skew.doubtful

    @property
    def off(self) -> float:
        """How wrong our time is, in seconds."""
        return (self.clock.now() - utc(self.true)).total_seconds()


class TestBeforeACloudToldTheTime:
    @pytest.mark.parametrize("step", STEPS)
    def test_a_step_of_the_wall_clock_is_followed(self, step: float) -> None:
        """Right after boot NTP sets the wall clock: it is the best that is known."""
        machine = Machine(wall_error=-step)
        assert machine.off == pytest.approx(-step)
        machine.wall = machine.true
        assert not machine.clock.follow()
        assert machine.off == pytest.approx(0.0)

    def test_nothing_moves_by_itself(self) -> None:
        """A step takes effect in `follow` and at no other moment, so that no reader sees new time beside old deadlines."""
        machine = Machine(wall_error=-HOUR)
        machine.wall = machine.true
        assert machine.off == pytest.approx(-HOUR)

    def test_a_slew_is_followed_in_small_pieces(self) -> None:
        """A difference below two seconds is no step: our time stays within it."""
        machine = Machine()
        for _ in range(50):
            machine.passes(10.0)
            machine.wall += 0.1
            machine.clock.follow()
        assert abs(machine.clock.wall_error_seconds) <= 2.0

    @pytest.mark.parametrize("error", STEPS)
    def test_the_first_cloud_is_believed(self, error: float) -> None:
        """A machine that boots with a wrong clock has the right time from the first answer on."""
        machine = Machine(wall_error=error)
        assert machine.hear() == pytest.approx(-error, abs=1.0)
        assert machine.off == pytest.approx(0.0, abs=1.0)


class TestAfterACloudToldTheTime:
    @pytest.mark.parametrize("step", STEPS)
    def test_a_step_of_the_wall_clock_moves_nothing(self, step: float) -> None:
        """By hours in either direction: neither `now` nor the deadlines' clock moves; it is a reason to ask."""
        machine = Machine()
        machine.hear()
        before = machine.clock.boottime()
        machine.wall += step
        assert machine.clock.follow() is True
        assert machine.off == pytest.approx(0.0, abs=1.0)
        assert machine.clock.boottime() == before
        assert machine.clock.follow() is False, "asked for once, not with every look"

    @pytest.mark.parametrize("step", STEPS)
    def test_a_cloud_that_contradicts_the_step_settles_it(self, step: float) -> None:
        """The wall clock was set wrong; the cloud says what we think: nothing moves, then or later."""
        machine = Machine()
        machine.hear()
        machine.wall += step
        machine.clock.follow()
        assert machine.hear() == 0.0
        machine.passes(HOUR)
        assert machine.hear() == 0.0
        assert machine.off == pytest.approx(0.0, abs=1.0)

    @pytest.mark.parametrize("error", STEPS)
    def test_one_lying_server_moves_nothing(self, error: float) -> None:
        """A later answer that contradicts is doubted, and forgotten when the next agrees with us."""
        machine = Machine()
        machine.hear()
        assert machine.hear(error) == 0.0
        assert machine.doubtful() is True
        assert machine.hear() == 0.0
        assert machine.doubtful() is False
        assert machine.hear(error) == 0.0
        assert machine.off == pytest.approx(0.0, abs=1.0)

    @pytest.mark.parametrize("error", STEPS)
    def test_two_that_agree_are_believed(self, error: float) -> None:
        """Two answers in a row that say the same are right, and we were wrong, whatever the wall clock says."""
        machine = Machine(wall_error=77 * HOUR)
        machine.hear(error)
        assert machine.off == pytest.approx(error, abs=1.0)
        assert machine.hear() == 0.0
        machine.passes(30.0)
        assert machine.hear() == pytest.approx(-error, abs=1.0)
        assert machine.off == pytest.approx(0.0, abs=1.0)

    def test_two_lies_that_differ_are_not(self) -> None:
        """Two contradictions that contradict each other confirm nothing."""
        machine = Machine()
        machine.hear()
        for error in (HOUR, -HOUR, 2 * HOUR, 5 * HOUR):
            assert machine.hear(error) == 0.0
        assert machine.off == pytest.approx(0.0, abs=1.0)

    def test_the_wall_clock_is_a_witness(self) -> None:
        """One contradicting answer is enough when the machine's wall clock says the same."""
        machine = Machine()
        machine.hear(-HOUR)
        assert machine.off == pytest.approx(-HOUR, abs=1.0)
        assert machine.hear() == pytest.approx(HOUR, abs=1.0)


class TestSuspend:
    def test_time_counts_on(self) -> None:
        """After a suspend of hours our time is right, without anybody's word."""
        machine = Machine()
        machine.hear()
        machine.passes(8 * HOUR)
        assert not machine.clock.follow()
        assert machine.off == pytest.approx(0.0, abs=1.0)

    def test_a_sleep_ends_with_it(self) -> None:
        """Who slept for an hour is woken by the resume, though the loop's timers stood still."""

        async def sleeper() -> float:
            machine = Machine()
            began = machine.clock.boottime()
            sleeping = asyncio.create_task(machine.clock.sleep(HOUR))
            await asyncio.sleep(0)
            assert not sleeping.done()
            machine.passes(HOUR + 1)
            await asyncio.wait_for(sleeping, 5)
            return machine.clock.boottime() - began

        assert asyncio.run(sleeper()) == pytest.approx(HOUR + 1)

    @pytest.mark.parametrize("seconds", [60.0, HOUR, 30 * 24 * HOUR])
    def test_a_machine_that_was_stopped_gets_its_time_back(self, seconds: float) -> None:
        """NTP steps the wall clock, a cloud confirms: the lost time is added to the clock of the deadlines as well."""
        machine = Machine()
        machine.hear()
        before = machine.clock.boottime()
        machine.stopped(seconds)
        machine.wall = machine.true
        assert machine.clock.follow() is True
        assert machine.hear() == pytest.approx(seconds, abs=1.0)
        assert machine.off == pytest.approx(0.0, abs=1.0)
        assert machine.clock.boottime() - before == pytest.approx(seconds, abs=1.0)

    @pytest.mark.parametrize("seconds", [60.0, HOUR])
    def test_an_answer_from_before_the_stop_settles_nothing(self, seconds: float) -> None:
        """What was under way while the machine stood still agrees with a clock that is behind, and is no witness."""
        machine = Machine()
        machine.hear()
        machine.passes(1000.0)
        under_way = utc(float(int(machine.true)))
        deadline = machine.clock.boottime() + 2 * HOUR
        machine.stopped(seconds)
        machine.wall = machine.true
        assert machine.clock.learn(under_way) == 0.0
        machine.passes(30.0)
        assert machine.hear() == pytest.approx(seconds, abs=1.0)

        assert machine.off == pytest.approx(0.0, abs=1.0)
        assert deadline - machine.clock.boottime() == pytest.approx(2 * HOUR - seconds - 30.0, abs=1.0)

    def test_an_answer_from_after_the_step_settles_it(self) -> None:
        """A cloud that agrees with us later than anything can be under way says that no time was lost."""
        machine = Machine()
        machine.hear()
        machine.wall += HOUR
        machine.clock.follow()
        machine.passes(100.0)
        machine.hear()
        machine.passes(100.0)
        before = machine.clock.boottime()
        for _ in range(2):
            machine.hear(HOUR)

        assert machine.clock.boottime() == before

    def test_time_that_never_was_is_not_added_to_the_deadlines(self) -> None:
        """Our time was wrong from the start and is set right: no time was lost, and no deadline comes nearer."""
        machine = Machine()
        machine.hear(-HOUR)
        before = machine.clock.boottime()
        machine.hear()
        assert machine.clock.boottime() == before

    def test_the_deadlines_clock_never_goes_back(self) -> None:
        """Whatever clouds say, CLOCK_BOOTTIME plus what was lost only grows."""
        machine = Machine()
        machine.hear(HOUR)
        before = machine.clock.boottime()
        machine.wall -= HOUR
        machine.clock.follow()
        machine.hear(-HOUR)
        machine.hear(-HOUR)
        assert machine.clock.boottime() >= before


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("passes"), st.floats(0, 10 * HOUR)),
            st.tuples(st.just("steps"), st.floats(-100 * HOUR, 100 * HOUR)),
            st.tuples(st.just("hears"), st.just(0.0)),
            st.tuples(st.just("lie"), st.floats(-100 * HOUR, 100 * HOUR)),
        ),
        max_size=40,
    )
)
def test_no_single_witness_moves_us(events: list[tuple[str, float]]) -> None:
    """After one true answer: any steps of the wall clock, and single lies each followed by the truth, move nothing.

    A lie that the stepped wall clock happens to repeat is two witnesses; such pairs are left out.
    """
    machine = Machine()
    machine.hear()
    boot = machine.clock.boottime()
    for kind, amount in events:
        if kind == "passes":
            machine.passes(amount)
        elif kind == "steps":
            machine.wall += amount
            machine.clock.follow()
        elif kind == "lie":
            if abs(machine.wall - machine.true - amount) > 2 * Skew.TOLERANCE_SECONDS:
                machine.hear(amount)
                machine.hear()
        else:
            machine.hear()
        assert abs(machine.off) <= Skew.TOLERANCE_SECONDS + 1.0
        assert machine.clock.boottime() >= boot
        boot = machine.clock.boottime()


class TestSkew:
    NOW = utc(EPOCH)

    def moved(self, seconds: float) -> datetime:
        return self.NOW + timedelta(seconds=seconds)

    @pytest.mark.parametrize("seconds", [-5.4, -1.0, 0.0, 4.4])
    def test_what_a_date_can_be_off_by_is_nothing(self, seconds: float) -> None:
        """`Date` is cut to the second and comes late: below five seconds it says nothing, also as the first."""
        assert Skew().sample(self.moved(seconds), self.NOW) == 0.0

    def test_the_correction_is_to_the_middle_of_the_second(self) -> None:
        """What was cut off is on average half a second."""
        assert Skew().sample(self.moved(100), self.NOW) == pytest.approx(100.5)

    def test_a_doubt_is_settled_by_the_next(self) -> None:
        """The same contradiction twice in a row is a correction, with anything between the two it is not."""
        skew = Skew()
        skew.sample(self.NOW, self.NOW)
        assert skew.sample(self.moved(100), self.NOW) == 0.0
        assert skew.sample(self.moved(103), self.NOW) == pytest.approx(103.5)
        assert not skew.doubtful
        assert skew.sample(self.moved(100), self.NOW) == 0.0
        assert skew.sample(self.NOW, self.NOW) == 0.0
        assert skew.sample(self.moved(100), self.NOW) == 0.0
        assert skew.doubtful

    def test_a_wall_clock_alone_is_no_witness_against_a_cloud(self) -> None:
        """A wall clock that is wrong does not confirm what no cloud said."""
        skew = Skew()
        skew.sample(self.NOW, self.NOW)
        assert skew.sample(self.NOW, self.NOW, wall=self.moved(9000)) == 0.0
        assert skew.sample(self.moved(100), self.NOW, wall=self.moved(9000)) == 0.0
        assert skew.samples == 3
        assert skew.last_difference == pytest.approx(100.5)
