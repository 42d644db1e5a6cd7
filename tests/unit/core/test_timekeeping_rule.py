"""Who tells us the time, sentence by sentence of the rule, each at its very bound."""

from __future__ import annotations

import pytest

from agent.core.timekeeping import (
    ALONE_SECONDS,
    ASK_EVERY_SECONDS,
    DRIFT_SECONDS,
    EARLIEST,
    FRESH_SECONDS,
    LATEST,
    LONGEST_WAY_SECONDS,
    MOVE_EVERY_SECONDS,
    SETTLED_SECONDS,
    STEP_SECONDS,
    TOLERANCE_SECONDS,
    Reading,
    Timekeeper,
    Witness,
)

HOUR = 3600.0
AWS, GOOGLE, LINK, WALL, KERNEL = Witness.AWS, Witness.GOOGLE, Witness.LINK, Witness.WALL, Witness.KERNEL


class Machine:
    """A machine's clocks in whole seconds, so that a bound can be met exactly. The true time is ``boot`` plus EPOCH."""

    EPOCH = 1_795_000_000.0

    def __init__(self, wall: float = 0.0, *, synchronised: bool = False) -> None:
        self.boot, self.wall, self.synchronised = 1000.0, wall, synchronised
        self.timekeeper = Timekeeper(self.read())

    def read(self) -> Reading:
        return Reading(self.boot, self.boot + self.EPOCH + self.wall, self.synchronised)

    def look(self) -> bool:
        return self.timekeeper.look(self.read())

    def step(self, by: float) -> bool:
        """Set the wall clock, and look. Whether there is a reason to ask."""
        self.wall += by
        return self.look()

    def hear(self, *witnesses: Witness, says: float, after: float = 0.0, took: float = 0.0) -> bool:
        """Each says ``says`` seconds beside the truth. Whether the last gave a reason to ask."""
        self.boot += after
        asked = False
        for witness in witnesses:
            asked = self.timekeeper.hear(witness, self.boot + self.EPOCH + says, self.read(), took=took)
        return asked

    def settle(self, witness: Witness, says: float, *, after: float = MOVE_EVERY_SECONDS) -> None:
        """The same word twice, for as long as a witness alone must have said it."""
        self.hear(witness, says=says, after=after)
        self.hear(witness, says=says, after=SETTLED_SECONDS)

    @property
    def off(self) -> float:
        return self.timekeeper.ours - self.EPOCH


class TestTakenBack:
    def test_a_machine_that_one_witness_moved_is_not_moved_back_by_it_alone(self) -> None:
        """Nobody had vouched for the time at the start; the first word did, and what is hours before it is a lie now."""
        machine = Machine()
        machine.hear(LINK, says=8 * HOUR)
        assert machine.off == 8 * HOUR
        machine.settle(LINK, 4 * HOUR)
        assert machine.off == 8 * HOUR

    def test_a_way_back_to_where_it_was_is_no_time_lost(self) -> None:
        """Two took the clock back by an hour and take that back: nothing stood still meanwhile; a pause later did."""
        machine = Machine()
        machine.hear(LINK, AWS, says=0.0)
        machine.hear(LINK, AWS, says=-HOUR, after=2 * MOVE_EVERY_SECONDS)
        assert (machine.off, machine.timekeeper.lost) == (-HOUR, 0.0)
        machine.hear(LINK, AWS, says=0.0, after=2 * MOVE_EVERY_SECONDS)
        assert (machine.off, machine.timekeeper.lost) == (0.0, 0.0)
        machine.hear(LINK, AWS, says=HOUR, after=2 * MOVE_EVERY_SECONDS)
        assert (machine.off, machine.timekeeper.lost) == (HOUR, HOUR)


class TestStart:
    @pytest.mark.parametrize(("synchronised", "believed"), [(True, KERNEL), (False, WALL)])
    def test_a_clock_that_the_kernel_vouches_for_is_vouched_for(self, synchronised: bool, believed: Witness) -> None:
        """Only a synchronised kernel vouches for the time at the start."""
        timekeeper = Machine(synchronised=synchronised).timekeeper
        assert (timekeeper.believed, timekeeper.vouched, timekeeper.heard, timekeeper.moves) == (
            believed,
            synchronised,
            0,
            0,
        )

    def test_what_the_kernel_vouched_for_at_the_start_is_not_taken_back_alone(self) -> None:
        """Synchronised when it began, and never again: hours back are a lie from then on."""
        machine = Machine(synchronised=True)
        machine.synchronised = False
        machine.settle(LINK, -HOUR)
        assert machine.off == 0.0
        assert machine.timekeeper.believed is WALL

    def test_the_first_word_needs_no_second(self) -> None:
        """The link's first word after the start moves us at once, out of a clock in local time."""
        machine = Machine(-7 * HOUR)
        machine.hear(LINK, says=0.0)
        assert (machine.off, machine.timekeeper.believed, machine.timekeeper.vouched) == (0.0, LINK, True)
        assert (machine.timekeeper.heard, machine.timekeeper.moves) == (1, 1)

    def test_a_second_word_is_not_the_first(self) -> None:
        """Once anybody was heard, a witness alone must have said the same for a while."""
        machine = Machine(-7 * HOUR)
        machine.hear(AWS, says=HOUR)
        machine.hear(LINK, says=0.0, after=1.0)
        assert machine.off == -7 * HOUR
        machine.hear(LINK, says=0.0, after=SETTLED_SECONDS)
        assert machine.off == 0.0

    def test_where_the_kernel_vouched_the_first_word_needs_a_second(self) -> None:
        """Nobody was heard, but the time was right."""
        machine = Machine(synchronised=True)
        machine.synchronised = False
        machine.hear(LINK, says=HOUR)
        assert machine.off == 0.0

    def test_after_a_step_the_first_word_needs_a_second(self) -> None:
        """A wall clock that was stepped before anybody was heard leaves no first word to be believed at once."""
        machine = Machine(-7 * HOUR)
        machine.step(-HOUR)
        machine.hear(LINK, says=0.0)
        assert machine.off == -8 * HOUR


class TestAClockThatCannotBe:
    """A hardware clock without a battery begins in 2000, or in 1970, and nobody synchronises it."""

    YEARS = 25 * 365.25 * 24 * HOUR

    def test_the_first_word_is_believed_however_far(self) -> None:
        """It is not there that we could be right: no bound keeps us. From then on the bound counts from that word."""
        machine = Machine(-self.YEARS)
        machine.hear(LINK, says=0.0)
        assert (machine.off, machine.timekeeper.believed, machine.timekeeper.lost) == (0.0, LINK, 0.0)
        machine.settle(LINK, ALONE_SECONDS + HOUR)
        assert machine.off == 0.0

    def test_what_sets_it_right_later_moves_nothing(self) -> None:
        """No time was lost, and what was issued meanwhile has not ended."""
        machine = Machine(-self.YEARS)
        machine.hear(LINK, says=0.0)
        machine.step(self.YEARS / 2)
        machine.step(self.YEARS / 2)
        machine.synchronised = True
        machine.look()
        assert (machine.off, machine.timekeeper.lost) == (0.0, 0.0)

    def test_it_weighs_nothing(self) -> None:
        """Where it was possible an endpoint alone does not outweigh it."""
        machine = Machine(-self.YEARS)
        machine.hear(AWS, says=0.0)
        assert machine.off == 0.0

    def test_a_year_that_can_be_is_bounded(self) -> None:
        """Five years behind it may be right, for all that one witness alone says."""
        machine = Machine(-self.YEARS / 5)
        machine.settle(LINK, 0.0)
        assert machine.off == -self.YEARS / 5

    def test_once_it_is_set_right_and_confirmed_it_weighs_as_any_other(self) -> None:
        """What it said at the boot is over: an endpoint alone does not outweigh it any more."""
        machine = Machine(-self.YEARS)
        machine.step(self.YEARS)
        machine.hear(AWS, says=0.0)
        machine.settle(AWS, says=HOUR)
        assert machine.off == 0.0

    FIRST = EARLIEST - Machine.EPOCH - 500.0  # so it has run for longer than what it says lies after the first year

    def test_the_first_moment_that_can_be_is_bounded(self) -> None:
        """Asked is what the clock says, however long the machine has run."""
        machine = Machine(self.FIRST)
        machine.settle(LINK, self.FIRST + ALONE_SECONDS + 1)
        assert machine.off == self.FIRST

    def test_from_there_too_one_witness_alone_moves_us_no_further(self) -> None:
        """The bound is from where our time was before anybody moved it alone."""
        machine = Machine(self.FIRST)
        machine.hear(LINK, says=self.FIRST + 10 * HOUR)
        assert machine.off == self.FIRST + 10 * HOUR
        machine.settle(LINK, self.FIRST + 20 * HOUR)
        assert machine.off == self.FIRST + 10 * HOUR

    def test_from_there_too_the_process_before_moves_us_no_further(self) -> None:
        """It is bounded like one witness."""
        machine = Machine(self.FIRST)
        said = machine.boot + machine.EPOCH + self.FIRST + ALONE_SECONDS + 1
        machine.timekeeper.adopt(LINK, said, machine.read())
        assert (machine.off, machine.timekeeper.vouched) == (self.FIRST, False)

    def test_the_next_process_takes_over_what_was_heard(self) -> None:
        """Its own clock is as wrong as that of the process before."""
        machine = Machine(-self.YEARS)
        machine.timekeeper.adopt(LINK, machine.boot + machine.EPOCH, machine.read(), wall_error=-self.YEARS)
        assert machine.off == 0.0


class TestWallClock:
    def test_a_shift_of_two_seconds_is_no_step(self) -> None:
        """What was said before it counts still, and nobody's time moves."""
        machine = Machine()
        machine.hear(AWS, says=100.0)
        assert machine.step(-STEP_SECONDS) is False
        assert (machine.off, machine.timekeeper.moves) == (0.0, 0)
        machine.hear(GOOGLE, says=100.0)
        assert machine.off == 100.0

    def test_what_was_said_before_a_step_is_forgotten(self) -> None:
        """It may have been said before a pause."""
        machine = Machine()
        machine.hear(AWS, says=100.0)
        machine.step(-STEP_SECONDS - 1)
        machine.hear(GOOGLE, says=100.0)
        assert machine.off == -STEP_SECONDS - 1

    def test_a_synchronised_clock_is_ours(self) -> None:
        """More than two seconds beside it we move, and say so; two are none."""
        machine = Machine(synchronised=True)
        assert machine.step(STEP_SECONDS) is False
        assert machine.off == 0.0
        assert machine.step(1.0) is True
        assert machine.off == STEP_SECONDS + 1.0

    def test_synchronisation_ends_every_doubt(self) -> None:
        """It vouches, it is believed, and it is where bounds are counted from."""
        machine = Machine()
        machine.hear(AWS, says=0.0)
        machine.step(HOUR)
        machine.synchronised = True
        machine.step(19 * HOUR)
        machine.synchronised = False
        assert machine.look() is False
        assert (machine.timekeeper.believed, machine.timekeeper.vouched) == (WALL, True)
        machine.hear(GOOGLE, says=0.0)  # what was ours before the step: nobody remembers that
        machine.settle(LINK, 10 * HOUR)
        assert machine.off == 20 * HOUR, "nobody alone takes back what the kernel vouched for"
        machine.settle(AWS, 20 * HOUR + 50.0)
        assert machine.off == 20 * HOUR, "the wall clock weighs as before it was stepped"
        machine.settle(LINK, 20 * HOUR + ALONE_SECONDS)
        assert machine.off == 20 * HOUR + ALONE_SECONDS

    def test_forward_is_followed_at_once(self) -> None:
        """Vouched for or not, it is time lost: all that is counted on boot time comes nearer, and the clouds are asked."""
        for vouched in (True, False):
            machine = Machine()
            if vouched:
                machine.hear(AWS, says=0.0)
            assert machine.step(HOUR) is True
            assert (machine.off, machine.timekeeper.lost) == (HOUR, HOUR)
            assert (machine.timekeeper.believed, machine.timekeeper.vouched) == (WALL, False)

    @pytest.mark.parametrize("step", [100.0, 100.0 + STEP_SECONDS])
    def test_forward_to_where_we_are_moves_nothing(self, step: float) -> None:
        """A wall clock that is put right by what we knew already leaves us vouched for."""
        machine = Machine(-100.0)
        machine.hear(LINK, says=0.0)
        assert machine.step(step) is False
        assert (machine.off, machine.timekeeper.vouched, machine.timekeeper.believed) == (0.0, True, LINK)

    @pytest.mark.parametrize("step", [0.0, 1.0, -50.0])
    def test_a_wall_clock_that_is_ahead_is_not_followed_for_that(self, step: float) -> None:
        """Only a step forward is: not one that was contradicted, crept on, or was stepped back."""
        machine = Machine(100.0)
        machine.hear(LINK, says=0.0)
        machine.step(step)
        assert (machine.off, machine.timekeeper.lost) == (0.0, 0.0)

    def test_back_is_followed_while_nobody_vouched(self) -> None:
        """It is all we have; nothing was lost, and nobody need be asked."""
        machine = Machine()
        assert machine.step(-HOUR) is False
        assert (machine.off, machine.timekeeper.lost) == (-HOUR, 0.0)

    @pytest.mark.parametrize(
        ("by", "asks"), [(-4.0, False), (-TOLERANCE_SECONDS, False), (-TOLERANCE_SECONDS - 1.0, True)]
    )
    def test_back_moves_nothing_that_was_vouched_for(self, by: float, asks: bool) -> None:
        """It is a reason to ask, once, when it contradicts us."""
        machine = Machine()
        machine.hear(AWS, says=0.0)
        assert machine.step(by) is asks
        assert machine.off == 0.0
        assert machine.look() is False

    def test_who_says_what_we_thought_before_takes_a_step_back(self) -> None:
        """At once and alone, and whoever moved us lately."""
        machine = Machine()
        machine.hear(AWS, says=0.0)
        machine.step(HOUR)
        machine.step(HOUR)
        machine.hear(GOOGLE, says=0.0)
        assert (machine.off, machine.timekeeper.believed) == (0.0, GOOGLE)
        machine = Machine(-50.0)
        machine.hear(LINK, says=0.0)
        machine.hear(AWS, says=1.0, after=1.0)
        machine.step(HOUR)
        machine.hear(AWS, says=0.0)
        assert machine.off == 0.0

    def test_who_says_something_else_does_not(self) -> None:
        """Neither where we were nor where we are: one witness alone must say it longer."""
        machine = Machine()
        machine.hear(AWS, says=0.0)
        machine.step(HOUR)
        machine.hear(GOOGLE, says=HOUR / 2)
        assert machine.off == HOUR

    def test_where_nobody_vouched_there_is_nothing_to_go_back_to(self) -> None:
        """A start with a wrong wall clock is no time that a single word brings back."""
        machine = Machine()
        machine.step(HOUR)
        machine.hear(AWS, says=0.0)
        assert machine.off == HOUR

    def test_a_stepped_wall_clock_holds_against_no_cloud(self) -> None:
        """It weighs less than a token endpoint until somebody says the same."""
        machine = Machine()
        machine.hear(AWS, says=0.0)
        machine.step(100.0)
        machine.settle(GOOGLE, 50.0)
        assert machine.off == 50.0

    def test_one_that_was_confirmed_holds_again(self) -> None:
        """A step that a witness's word agreed with holds again; that word need not be fresh for ever."""
        machine = Machine()
        machine.hear(AWS, says=0.0)
        machine.step(100.0)
        machine.hear(GOOGLE, says=100.0)
        machine.settle(AWS, 150.0, after=FRESH_SECONDS + 1.0)
        assert machine.off == 100.0

    def test_one_that_moved_us_with_a_cloud_holds_again(self) -> None:
        """Two agreed on it, so it weighs as before the step."""
        machine = Machine(-7 * HOUR)
        machine.hear(LINK, says=0.0)
        machine.step(-10.0)
        machine.hear(AWS, says=-7 * HOUR - 10.0)
        assert machine.off == -7 * HOUR - 10.0
        machine.settle(GOOGLE, 0.0, after=FRESH_SECONDS + 1.0)
        assert machine.off == -7 * HOUR - 10.0

    def test_after_a_step_servers_may_move_us_again(self) -> None:
        """The pause between two moves is from before it."""
        machine = Machine(-100.0)
        machine.hear(LINK, says=0.0)
        machine.hear(AWS, GOOGLE, says=-100.0, after=60.0)
        assert machine.off == 0.0
        machine.step(-10.0)
        machine.hear(AWS, GOOGLE, says=-110.0)
        assert machine.off == -110.0


class TestWords:
    @pytest.mark.parametrize(
        ("said", "heard"), [(EARLIEST - 1, 0), (EARLIEST, 1), (LATEST, 1), (LATEST + 1, 0), (-1e30, 0), (1e30, 0)]
    )
    def test_only_times_in_which_this_program_may_run_are_heard(self, said: float, heard: int) -> None:
        """2020 to 2100."""
        machine = Machine()
        machine.timekeeper.hear(AWS, said, machine.read())
        assert machine.timekeeper.heard == heard

    @pytest.mark.parametrize(("took", "heard"), [(LONGEST_WAY_SECONDS, 2), (LONGEST_WAY_SECONDS + 1, 1)])
    def test_an_answer_that_was_long_under_way_says_nothing(self, took: float, heard: int) -> None:
        """It may have been given at any time of it."""
        machine = Machine()
        machine.hear(AWS, says=0.0)
        machine.hear(AWS, says=0.0, after=100.0, took=took)
        assert machine.timekeeper.heard == heard

    @pytest.mark.parametrize(("took", "heard"), [(20.0, 1), (21.0, 0)])
    def test_what_was_asked_before_a_step_says_nothing(self, took: float, heard: int) -> None:
        """It may have been said before a pause. What left at that instant left after it."""
        machine = Machine()
        machine.step(-HOUR)
        machine.hear(AWS, says=0.0, after=20.0, took=took)
        assert machine.timekeeper.heard == heard

    def test_a_word_counts_for_two_hours(self) -> None:
        """Two that agree are two while the older is fresh."""
        for age, off in ((FRESH_SECONDS, 100.0), (FRESH_SECONDS + 1, 0.0)):
            machine = Machine()
            machine.hear(AWS, says=100.0)
            machine.hear(GOOGLE, says=100.0, after=age)
            assert machine.off == off

    def test_five_seconds_are_no_contradiction(self) -> None:
        """A date is cut to the second and arrives late."""
        machine = Machine(-TOLERANCE_SECONDS)
        machine.hear(LINK, says=0.0)
        assert (machine.off, machine.timekeeper.vouched) == (-TOLERANCE_SECONDS, True)
        machine = Machine(-TOLERANCE_SECONDS - 1)
        machine.hear(LINK, says=0.0)
        assert machine.off == 0.0

    def test_who_confirms_the_wall_clock_is_believed_in_its_place(self) -> None:
        """The first of them: the next changes nothing."""
        machine = Machine()
        machine.hear(AWS, says=0.0)
        assert machine.timekeeper.believed is AWS
        machine.hear(GOOGLE, says=0.0)
        assert machine.timekeeper.believed is AWS


class TestAlone:
    @pytest.mark.parametrize(("apart", "off"), [(SETTLED_SECONDS - 1, 0.0), (SETTLED_SECONDS, 100.0)])
    def test_it_must_have_said_the_same_for_a_while(self, apart: float, off: float) -> None:
        """What was under way during a pause was said before it."""
        machine = Machine()
        machine.hear(LINK, says=0.0)
        machine.hear(LINK, says=100.0, after=1.0)
        machine.hear(LINK, says=100.0, after=apart)
        assert machine.off == off

    def test_another_word_begins_anew(self) -> None:
        """Who says one thing and then another has said neither for a while."""
        machine = Machine()
        machine.hear(LINK, says=0.0)
        machine.hear(LINK, says=100.0, after=1.0)
        machine.hear(LINK, says=200.0, after=2 * SETTLED_SECONDS)
        assert machine.off == 0.0

    @pytest.mark.parametrize(("far", "off"), [(ALONE_SECONDS, ALONE_SECONDS), (ALONE_SECONDS + 1, 0.0)])
    def test_it_moves_us_fifteen_hours_at_most(self, far: float, off: float) -> None:
        """From where we were before anybody moved us alone."""
        machine = Machine()
        machine.hear(LINK, says=0.0)
        machine.settle(LINK, far)
        assert machine.off == off

    def test_the_bound_is_for_all_its_moves_together(self) -> None:
        """Ten hours and ten more are twenty."""
        machine = Machine()
        machine.hear(LINK, says=0.0)
        machine.settle(LINK, 10 * HOUR)
        machine.settle(LINK, 20 * HOUR)
        assert machine.off == 10 * HOUR

    def test_where_two_moved_us_the_bound_begins_anew(self) -> None:
        """Two that agree are no error of one."""
        machine = Machine()
        machine.hear(AWS, GOOGLE, says=20 * HOUR)
        assert machine.off == 20 * HOUR
        machine.settle(LINK, 30 * HOUR, after=FRESH_SECONDS + 1)
        assert machine.off == 30 * HOUR

    def test_it_takes_us_back_by_drift_alone(self) -> None:
        """Five minutes, and two seconds for each ten thousand since our time was vouched for."""
        machine = Machine()
        machine.hear(LINK, says=0.0)
        machine.settle(LINK, -DRIFT_SECONDS - 0.2, after=1.0)
        assert machine.off == 0.0
        machine.settle(LINK, -DRIFT_SECONDS - 0.2, after=1000.0)
        assert machine.off == pytest.approx(-DRIFT_SECONDS - 0.2)

    def test_it_takes_back_what_it_moved_itself(self) -> None:
        """To where we were vouched for, and to any place between."""
        for back in (0.0, HOUR):
            machine = Machine()
            machine.hear(LINK, says=0.0)
            machine.settle(LINK, 2 * HOUR)
            machine.settle(LINK, back)
            assert machine.off == back

    def test_it_does_not_take_back_what_two_moved(self) -> None:
        """That was vouched for there, though we were earlier before."""
        machine = Machine()
        machine.hear(AWS, says=0.0)
        machine.hear(AWS, GOOGLE, says=2 * HOUR, after=MOVE_EVERY_SECONDS)
        assert machine.off == 2 * HOUR
        machine.settle(LINK, HOUR, after=FRESH_SECONDS + 1)
        assert machine.off == 2 * HOUR

    def test_a_time_in_doubt_is_put_right_by_the_link(self) -> None:
        """After a step that we followed nobody vouches for our time, so hours back are no lie."""
        machine = Machine()
        machine.hear(AWS, says=0.0)
        machine.step(2 * HOUR)
        machine.settle(LINK, -HOUR)
        assert machine.off == -HOUR


class TestTogether:
    @pytest.mark.parametrize(("after", "off"), [(MOVE_EVERY_SECONDS - 1, 0.0), (MOVE_EVERY_SECONDS, -100.0)])
    def test_servers_move_us_every_ten_minutes_at_most(self, after: float, off: float) -> None:
        """Whoever alternates cannot make us flap."""
        machine = Machine(-100.0)
        machine.hear(LINK, says=0.0)
        machine.hear(AWS, GOOGLE, says=-100.0, after=after)
        assert machine.off == off

    def test_two_need_no_while(self) -> None:
        """Two that agree against the wall clock move us at their first words."""
        machine = Machine()
        machine.hear(AWS, GOOGLE, says=HOUR)
        assert (machine.off, machine.timekeeper.moves) == (HOUR, 1)

    def test_a_tie_goes_to_the_side_of_the_wall_clock(self) -> None:
        """The link against a token endpoint and the wall clock; and a token endpoint against the wall clock."""
        machine = Machine(-HOUR)
        machine.hear(LINK, says=0.0)
        machine.hear(LINK, says=0.0, after=MOVE_EVERY_SECONDS)
        machine.hear(AWS, says=-HOUR)
        assert machine.off == -HOUR
        machine = Machine()
        machine.settle(AWS, 100.0)
        assert machine.off == 0.0

    def test_the_wall_clocks_side_may_be_outweighed(self) -> None:
        """It decides a tie and nothing else."""
        machine = Machine(-HOUR)
        machine.hear(LINK, GOOGLE, says=0.0)
        machine.hear(LINK, GOOGLE, says=0.0, after=MOVE_EVERY_SECONDS)
        machine.hear(AWS, says=-HOUR)
        assert machine.off == 0.0


class TestAsking:
    def test_a_contradiction_is_a_reason_to_ask_once_in_five_minutes(self) -> None:
        """A contradiction is a reason to ask once in five minutes, and never twice for the same word."""
        machine = Machine()
        assert machine.hear(AWS, says=100.0) is True
        assert machine.hear(AWS, says=100.0, after=ASK_EVERY_SECONDS) is False
        assert machine.hear(GOOGLE, says=-100.0) is True
        assert machine.hear(AWS, says=500.0, after=ASK_EVERY_SECONDS - 1) is False
        assert machine.hear(AWS, says=1000.0, after=1.0) is True

    def test_beside_a_synchronised_kernel_only_what_is_ahead_is(self) -> None:
        """It may not know of a pause before its next look at NTP; who is behind is wrong."""
        machine = Machine(synchronised=True)
        assert machine.hear(AWS, says=-100.0) is False
        assert machine.hear(AWS, says=100.0) is True
        assert machine.hear(AWS, says=100.0, after=ASK_EVERY_SECONDS) is False
        assert machine.hear(GOOGLE, says=100.0) is True
        assert machine.hear(LINK, says=100.0, after=1.0) is False

    @pytest.mark.parametrize("synchronised", [True, False])
    def test_a_step_seen_at_a_word_is_one_whatever_the_word(self, synchronised: bool) -> None:
        """The reason to ask that the look found is not lost over what was said."""
        machine = Machine(synchronised=synchronised)
        machine.hear(AWS, says=0.0)
        machine.hear(GOOGLE, says=HOUR)  # asks; the next five minutes nobody is asked for a word
        machine.wall += 10.0 if synchronised else -10.0
        assert machine.hear(GOOGLE, says=-HOUR, after=1.0) is True

    def test_how_far_each_was_ahead_is_remembered(self) -> None:
        """For the status."""
        machine = Machine()
        machine.hear(AWS, says=100.0)
        machine.hear(LINK, says=-3.0)
        assert machine.timekeeper.differences == {AWS: 100.0, LINK: -3.0}


class TestLost:
    def test_forward_again_in_two_steps_is_a_pause_for_the_second(self) -> None:
        """Only a return to the very place costs nothing; after another move forward nothing is remembered."""
        machine = Machine()
        machine.hear(AWS, GOOGLE, says=0.0)
        machine.hear(AWS, GOOGLE, says=-HOUR, after=MOVE_EVERY_SECONDS)
        machine.hear(AWS, GOOGLE, says=-HOUR / 2, after=MOVE_EVERY_SECONDS)
        assert machine.timekeeper.lost == HOUR / 2
        machine.hear(AWS, GOOGLE, says=0.0, after=MOVE_EVERY_SECONDS)
        assert (machine.off, machine.timekeeper.lost, machine.timekeeper.moves) == (0.0, HOUR, 3)

    def test_forward_before_anybody_vouched_is_an_error(self) -> None:
        """A clock that was wrong from the start has lost nothing."""
        machine = Machine(-HOUR)
        machine.hear(LINK, says=0.0)
        assert (machine.off, machine.timekeeper.lost) == (0.0, 0.0)


class TestAdopting:
    """What the process before us took for the time."""

    @staticmethod
    def adopt(machine: Machine, witness: Witness, says: float, wall_error: float | None = None) -> None:
        machine.timekeeper.adopt(witness, machine.boot + machine.EPOCH + says, machine.read(), wall_error=wall_error)

    @pytest.mark.parametrize(("witness", "believed"), [(LINK, LINK), (AWS, AWS), (KERNEL, WALL)])
    def test_it_is_taken_over_as_an_error_put_right(self, witness: Witness, believed: Witness) -> None:
        """Nothing is lost; what a kernel vouched for once is not the kernel's word now."""
        machine = Machine(-7 * HOUR)
        self.adopt(machine, witness, 0.0)
        timekeeper = machine.timekeeper
        assert (machine.off, timekeeper.lost, timekeeper.believed, timekeeper.vouched) == (0.0, 0.0, believed, True)

    def test_it_is_vouched_for_from_then_on(self) -> None:
        """Nobody alone takes hours back from it, and a contradiction moves nothing at once."""
        machine = Machine(-7 * HOUR)
        self.adopt(machine, LINK, 0.0)
        machine.settle(LINK, -HOUR)
        assert machine.off == 0.0

    def test_nobodys_word_is_not(self) -> None:
        """A wall clock that nobody keeps is no better for having been believed before."""
        machine = Machine()
        self.adopt(machine, WALL, HOUR)
        assert (machine.off, machine.timekeeper.vouched) == (0.0, False)

    def test_what_is_vouched_for_already_stays(self) -> None:
        """By a server, or by the kernel that came into step meanwhile."""
        machine = Machine()
        machine.hear(AWS, says=0.0)
        self.adopt(machine, LINK, HOUR)
        assert machine.off == 0.0
        machine = Machine()
        machine.synchronised = True
        self.adopt(machine, LINK, HOUR)
        assert (machine.off, machine.timekeeper.believed) == (0.0, KERNEL)

    @pytest.mark.parametrize(("far", "off"), [(ALONE_SECONDS, ALONE_SECONDS), (-ALONE_SECONDS - 1, 0.0)])
    def test_it_is_bounded_like_one_witness(self, far: float, off: float) -> None:
        """Fifteen hours from the wall clock of the start."""
        machine = Machine()
        self.adopt(machine, LINK, far)
        assert (machine.off, machine.timekeeper.vouched) == (off, off != 0.0)

    @pytest.mark.parametrize("said", [EARLIEST - 1, LATEST + 1])
    def test_no_time_of_this_program_is_none(self, said: float) -> None:
        """Like any word of a server, even beside a wall clock that says the same."""
        machine = Machine(said - Machine.EPOCH - 1000.0)
        machine.timekeeper.adopt(LINK, said, machine.read())
        assert machine.timekeeper.vouched is False

    @pytest.mark.parametrize(("stepped", "taken"), [(STEP_SECONDS, True), (STEP_SECONDS + 1, False), (-HOUR, True)])
    def test_a_wall_clock_that_was_stepped_forward_meanwhile_is_believed(self, stepped: float, taken: bool) -> None:
        """It may be a pause that boot time did not count; a step back is none."""
        machine = Machine(-60.0 + stepped)
        self.adopt(machine, LINK, 0.0, wall_error=-60.0)
        assert machine.timekeeper.vouched is taken
        assert machine.off == (0.0 if taken else -60.0 + stepped)

    @pytest.mark.parametrize("witness", [LINK, AWS, GOOGLE])
    @pytest.mark.parametrize("days", [0.1, 3, 900])
    def test_who_says_what_the_process_before_thought_takes_that_step_back(self, days: float, witness: Witness) -> None:
        """At once and alone, however far it was: a restart knows no less than whoever went on running."""
        machine = Machine(days * 24 * HOUR)
        self.adopt(machine, LINK, 0.0, wall_error=0.0)
        assert machine.timekeeper.has_followed_a_step
        machine.hear(witness, says=1.0)
        assert (machine.off, machine.timekeeper.believed, machine.timekeeper.lost) == (1.0, witness, 0.0)
        assert not machine.timekeeper.has_followed_a_step

    def test_who_says_something_else_is_bounded_as_ever(self) -> None:
        """Neither what the process before thought nor what the wall clock says: the rule for one witness alone."""
        machine = Machine(72 * HOUR)
        self.adopt(machine, LINK, 0.0, wall_error=0.0)
        machine.settle(LINK, says=HOUR)
        assert machine.off == 72 * HOUR
