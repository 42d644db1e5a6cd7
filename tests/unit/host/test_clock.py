"""The machine's clocks: what moves our time, and what only looks as if it should. The rule: agent/core/timekeeping.py."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.core.clock import utc
from agent.core.timekeeping import ALONE_SECONDS, MOVE_EVERY_SECONDS, SETTLED_SECONDS, Witness
from agent.host.clock import MARK_SECONDS, SystemClock, synchronised
from tests.fakes import clock as clock_fakes

EPOCH = 1_795_000_000.0
HOUR = 3600.0
STEPS = [-6 * HOUR, -60.0, 60.0, 6 * HOUR]


class Machine:
    """Hands of two clocks, and the true time."""

    def __init__(self, *, wall_error: float = 0.0, synchronised: bool = False) -> None:
        self.true = EPOCH
        self.boot = 1000.0
        self.wall = EPOCH + wall_error
        self.synchronised = synchronised
        self.clock = SystemClock(
            boottime=lambda: self.boot,
            wall=lambda: self.wall,
            synchronised=lambda: self.synchronised,
            nap_seconds=0.001,
        )

    def passes(self, seconds: float) -> None:
        """Time passes, suspended or not: CLOCK_BOOTTIME counts on."""
        self.true += seconds
        self.boot += seconds
        self.wall += seconds

    def paused(self, seconds: float) -> None:
        """The hypervisor stops the machine: no clock of it counts on."""
        self.true += seconds

    def hear(self, witness: Witness, error: float = 0.0, took: float = 0.0) -> float:
        """A witness tells the time, whole seconds, wrong by ``error``; returns by how much it moved us."""
        before = self.clock.timekeeper.ours
        self.clock.hear(witness, utc(float(int(self.true + error))), took)
        return self.clock.timekeeper.ours - before

    def insists(self, witness: Witness, error: float = 0.0) -> float:
        """It says so again, later than what could have been under way."""
        moved = self.hear(witness, error)
        self.passes(SETTLED_SECONDS + 1)
        return moved + self.hear(witness, error)

    @property
    def off(self) -> float:
        """How wrong our time is, in seconds."""
        return (self.clock.now() - utc(self.true)).total_seconds()


class TestASynchronisedKernel:
    @pytest.mark.parametrize("error", [*STEPS, 1e9])
    def test_no_server_moves_it(self, error: float) -> None:
        """What NTP keeps right outranks every server there is, alone or together."""
        machine = Machine(synchronised=True)
        for _ in range(3):
            for witness in (Witness.LINK, Witness.AWS, Witness.GOOGLE):
                assert machine.insists(witness, error) == 0.0
        assert machine.off == pytest.approx(0.0)
        assert machine.clock.timekeeper.believed is Witness.KERNEL

    @pytest.mark.parametrize("step", STEPS)
    def test_it_is_followed(self, step: float) -> None:
        """When NTP sets the clock, our time is the clock's."""
        machine = Machine(wall_error=-step)
        machine.wall, machine.synchronised = machine.true, True
        machine.clock.follow()
        assert machine.off == pytest.approx(0.0)

    def test_a_first_correction_is_no_lost_time(self) -> None:
        """At boot the clock was wrong: no deadline comes nearer when NTP sets it forward."""
        machine = Machine(wall_error=-HOUR)
        before = machine.clock.boottime()
        machine.wall, machine.synchronised = machine.true, True
        machine.clock.follow()
        assert machine.clock.boottime() == before

    @pytest.mark.parametrize("seconds", [60.0, HOUR, 30 * 24 * HOUR])
    def test_a_pause_is_lost_time(self, seconds: float) -> None:
        """A clock that was right and is set forward was stopped: what was counted on boot time comes nearer by as much."""
        machine = Machine(synchronised=True)
        before = machine.clock.boottime()
        machine.paused(seconds)
        machine.wall = machine.true
        assert machine.clock.follow() is True, "a reason to ask for everything anew"
        assert machine.off == pytest.approx(0.0)
        assert machine.clock.boottime() - before == pytest.approx(seconds)

    def test_one_that_loses_its_source_holds_on_boot_time(self) -> None:
        """What the kernel said last is kept; a step back by hand moves nothing from then on."""
        machine = Machine(synchronised=True)
        machine.clock.follow()
        machine.synchronised = False
        machine.wall -= HOUR
        machine.clock.follow()
        assert machine.off == pytest.approx(0.0)

    def test_a_pause_that_only_servers_tell_of_is_asked_about(self) -> None:
        """Before NTP looks again the kernel knows of no pause: who says it is later is a reason to ask, once."""
        machine = Machine(synchronised=True)
        machine.hear(Witness.AWS)
        machine.clock.follow()
        machine.paused(HOUR)
        machine.hear(Witness.AWS)
        assert machine.clock.follow() is True
        machine.hear(Witness.AWS)
        assert machine.clock.follow() is False


class TestBeforeAnybodyToldTheTime:
    @pytest.mark.parametrize("step", STEPS)
    def test_a_step_of_the_wall_clock_is_followed(self, step: float) -> None:
        """It is all that is known."""
        machine = Machine(wall_error=-step)
        machine.wall = machine.true
        machine.clock.follow()
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

    @pytest.mark.parametrize("error", [-14 * HOUR, -60.0, 60.0, 14 * HOUR])
    def test_the_metadata_service_is_believed_at_once(self, error: float) -> None:
        """A machine whose hardware clock is in local time is right from the first answer on."""
        machine = Machine(wall_error=error)
        machine.hear(Witness.LINK)
        assert machine.off == pytest.approx(0.0, abs=1.0)

    @pytest.mark.parametrize("error", [-(ALONE_SECONDS + 60), ALONE_SECONDS + 60, 1e8])
    def test_but_within_the_bound(self, error: float) -> None:
        """Nobody alone moves us further than a wrong time zone would."""
        machine = Machine()
        for _ in range(5):
            assert machine.insists(Witness.LINK, error) == 0.0
            machine.passes(MOVE_EVERY_SECONDS)

    @pytest.mark.parametrize("witness", [Witness.AWS, Witness.GOOGLE])
    @pytest.mark.parametrize("error", [1800.0, -HOUR])
    def test_one_token_endpoint_is_not(self, witness: Witness, error: float) -> None:
        """A token endpoint whose `Date` is half an hour ahead moves nothing, however often it says so."""
        machine = Machine()
        for _ in range(10):
            assert machine.insists(witness, error) == 0.0

    def test_two_that_agree_are(self) -> None:
        """Two clouds, or a cloud and the metadata service, outweigh a wall clock that nobody keeps."""
        for one, other in ((Witness.AWS, Witness.GOOGLE), (Witness.LINK, Witness.AWS)):
            machine = Machine(wall_error=5 * HOUR)
            machine.hear(one)
            machine.hear(other)
            assert machine.off == pytest.approx(0.0, abs=1.0)


class TestAfterAWitnessToldTheTime:
    @pytest.mark.parametrize("step", [-30 * 24 * HOUR, -60.0])
    def test_a_step_back_moves_nothing(self, step: float) -> None:
        """It is a reason to ask, once."""
        machine = Machine()
        machine.hear(Witness.LINK)
        machine.wall += step
        assert machine.clock.follow() is True
        assert machine.clock.follow() is False
        assert machine.off == pytest.approx(0.0, abs=1.0)

    @pytest.mark.parametrize("witness", [Witness.LINK, Witness.AWS, Witness.GOOGLE])
    def test_a_step_forward_is_believed_until_a_witness_takes_it_back(self, witness: Witness) -> None:
        """What may be over is not served: safe first, and right with the first answer."""
        machine = Machine()
        machine.hear(witness)
        machine.wall += 6 * HOUR
        assert machine.clock.follow() is True
        assert machine.off == pytest.approx(6 * HOUR, abs=1.0)
        machine.hear(witness)
        assert machine.off == pytest.approx(0.0, abs=1.0)

    @pytest.mark.parametrize("seconds", [60.0, HOUR])
    def test_a_pause_is_noticed_by_the_step(self, seconds: float) -> None:
        """An unsynchronised wall clock that a hypervisor sets right afterwards is believed, and deadlines come nearer."""
        machine = Machine()
        machine.hear(Witness.AWS)
        before = machine.clock.boottime()
        machine.paused(seconds)
        machine.wall = machine.true
        assert machine.clock.follow() is True
        assert machine.clock.boottime() - before == pytest.approx(seconds, abs=1.0)
        machine.insists(Witness.AWS)
        assert machine.off == pytest.approx(0.0, abs=1.0)

    def test_an_answer_from_before_the_pause_settles_nothing(self) -> None:
        """What was under way while the machine stood still says an old time; the next says the true one."""
        machine = Machine()
        machine.hear(Witness.LINK)
        machine.passes(1.0)
        machine.paused(HOUR)
        machine.wall = machine.true
        machine.clock.follow()
        machine.passes(0.5)
        assert machine.hear(Witness.LINK, -HOUR, took=1.0) == 0.0
        machine.passes(1.0)
        machine.hear(Witness.LINK)
        assert machine.off == pytest.approx(0.0, abs=1.0)

    def test_a_pause_that_no_clock_tells_of_is_told_by_the_metadata_service(self) -> None:
        """Nobody set the wall clock: the host below insists, and is believed."""
        machine = Machine()
        machine.hear(Witness.LINK)
        machine.passes(HOUR)
        machine.paused(HOUR)
        machine.insists(Witness.LINK)
        assert machine.off == pytest.approx(0.0, abs=1.0)

    def test_whoever_alternates_moves_us_once_at_most(self) -> None:
        """A metadata service that says one thing and another is believed for neither."""
        machine = Machine()
        machine.hear(Witness.LINK)
        for turn in range(60):
            machine.passes(1.0)
            machine.hear(Witness.LINK, 0.0 if turn % 2 else 1800.0)
        assert machine.clock.timekeeper.moves == 0

    def test_two_honest_sides_hold_against_a_liar(self) -> None:
        """A lying metadata service is outweighed by the wall clock and one cloud."""
        machine = Machine()
        machine.hear(Witness.AWS)
        for _ in range(10):
            machine.passes(MOVE_EVERY_SECONDS)
            machine.hear(Witness.AWS)
            machine.insists(Witness.LINK, 1800.0)
        assert machine.off == pytest.approx(0.0, abs=1.0)


class TestSleep:
    def test_a_suspend_ends_a_sleep(self) -> None:
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

    def test_lost_time_ends_a_sleep_of_the_kernel(self) -> None:
        """A sleep that the kernel counts knows nothing of a pause: when it is noticed, whoever slept it through wakes."""
        lost = 0.0

        async def sleeper() -> None:
            clock = SystemClock(
                wall=lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + EPOCH + lost, synchronised=lambda: True
            )
            clock.watch(lambda: None)
            try:
                nonlocal lost
                sleeping = asyncio.create_task(clock.sleep(HOUR))
                await asyncio.sleep(0)
                lost = HOUR + 1
                clock.follow()
                await asyncio.wait_for(sleeping, 5)
            finally:
                clock.close()

        asyncio.run(sleeper())

    def test_many_sleep_at_once_and_wake_in_order(self) -> None:
        """One timer of the kernel serves all sleepers; one who gives up disturbs nobody."""

        async def sleepers() -> list[int]:
            clock = SystemClock()
            clock.watch(lambda: None)
            order: list[int] = []

            async def one(number: int, seconds: float) -> None:
                await clock.sleep(seconds)
                order.append(number)

            tasks = [asyncio.create_task(one(n, s)) for n, s in ((3, 0.09), (1, 0.03), (9, 0.01), (2, 0.06))]
            await asyncio.sleep(0)
            tasks[2].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            clock.close()
            return order

        assert asyncio.run(sleepers()) == [1, 2, 3]

    def test_closing_wakes_nobody_for_good(self) -> None:
        """Who sleeps while the kernel's timers are given back goes on in naps, to the end."""

        async def sleeper() -> float:
            clock = SystemClock(nap_seconds=0.01)
            clock.watch(lambda: None)
            began = clock.boottime()
            sleeping = asyncio.create_task(clock.sleep(0.05))
            await asyncio.sleep(0)
            clock.close()
            await sleeping
            return clock.boottime() - began

        assert asyncio.run(sleeper()) >= 0.05


def test_the_kernel_says_whether_it_is_synchronised() -> None:
    """adjtimex(2) is read as `adjtimex` and `timedatectl` read it, without a privilege."""
    assert synchronised() in (True, False)


UNSYNC, NANO, PLL, INS, CLOCKERR, PPSSIGNAL = 0x40, 0x2000, 0x1, 0x10, 0x1000, 0x100


@pytest.mark.parametrize(
    ("result", "status", "error", "synchronised_"),
    [
        (0, PLL, 1_000, True),  # timesyncd, ntpd: disciplined
        (0, PLL | NANO, 15_999_999, True),
        (0, PLL, 16_000_000, False),  # nobody has for hours: the kernel itself is about to give it up
        (0, UNSYNC, 1_000, False),  # set by hand, or chrony without rtcsync
        (5, UNSYNC, 16_000_000, False),  # TIME_ERROR: as a kernel boots
        (5, PLL, 1_000, False),  # TIME_ERROR for another reason
        (5, PLL | PPSSIGNAL | CLOCKERR, 1_000, False),
        (1, PLL | INS, 1_000, True),  # TIME_INS: a leap second is to come, and
        (2, PLL, 1_000, True),  # TIME_DEL
        (3, PLL | INS, 1_000, True),  # TIME_OOP: is now, and
        (4, PLL, 1_000, True),  # TIME_WAIT: was
        (1, PLL | INS | UNSYNC, 1_000, False),
        (0, 0, 0, True),  # a kernel that somebody sets by steps alone, and says that it is right
        (-1, 0, 0, False),  # a sandbox: then the mark of systemd-timesyncd is asked, and there is none
    ],
)
def test_what_each_state_of_the_kernels_clock_means(
    adjtimex: Path, result: int, status: int, error: int, synchronised_: bool
) -> None:
    """Only a clock that is disciplined now outranks servers; a leap second takes that from nobody (adjtimex(2))."""
    program = "import agent.host.clock as c; c.TIMESYNCD = c.Path('/nonexistent'); print(c.synchronised())"
    environ = {**os.environ, "LD_PRELOAD": str(adjtimex), "ADJTIMEX": f"{result} {status} {error}"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == f"{synchronised_}\n"


@pytest.fixture(scope="module")
def adjtimex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler (apt-get install gcc libc6-dev)")
    library = tmp_path_factory.mktemp("adjtimex") / "adjtimex.so"
    source = Path(clock_fakes.__file__).with_name("adjtimex.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


@pytest.mark.parametrize(
    ("age", "synchronised_"),
    [
        (0.0, True),
        (3600.0, True),
        (MARK_SECONDS - 60, True),
        (MARK_SECONDS + 60, False),  # timesyncd was stopped, or hears nobody
        (26 * 365 * 24 * HOUR, False),  # somebody set the clock by hand
        (-60.0, False),  # and back
        (None, False),
    ],
)
def test_where_the_kernel_cannot_be_asked_the_mark_of_timesyncd_counts_while_it_is_fresh(
    adjtimex: Path, tmp_path: Path, age: float | None, synchronised_: bool
) -> None:
    """It is touched with each word of NTP, and lies there when nobody hears any: then servers are heard again."""
    mark = tmp_path / "synchronized"
    if age is not None:
        mark.touch()
        os.utime(mark, times=(time.time() - age,) * 2)
    program = f"import agent.host.clock as c; c.TIMESYNCD = c.Path({str(mark)!r}); print(c.synchronised())"
    environ = {**os.environ, "LD_PRELOAD": str(adjtimex), "ADJTIMEX": "-1 0 0"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == f"{synchronised_}\n"
