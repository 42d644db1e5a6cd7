"""Is this still the machine that it was? The services are asked for real; the machine's clocks are the test's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from agent import config
from agent.core.timekeeping import Witness
from agent.core.verdict import Memory, Policy
from agent.daemon.compose import Metadata
from agent.daemon.gap import GAP_SECONDS, UNCONFIRMED_SECONDS, Gap, Known
from agent.daemon.still import ASK_SECONDS, ASK_SOON_SECONDS, Still
from agent.daemon.who import ASK_AGAIN_SECONDS, LONGEST_PAUSE_SECONDS, Who
from agent.host.clock import SystemClock
from agent.identity.store import Store
from agent.providers.machine import Machine
from agent.upstream import Upstream
from tests.fakes.clock import settle
from tests.fakes.ec2_metadata import Ec2MetadataService
from tests.fakes.served import Fault


class World:
    """A machine whose clocks and whose metadata service are the test's.

    Attributes:
        told: the names that were acted on.
    """

    def __init__(self, ec2: Ec2MetadataService, upstream: Upstream) -> None:
        self.ec2, self.out = ec2, upstream
        self.boot, self.wall = 1000.0, 1_790_000_000.0
        self.clock = SystemClock(boottime=lambda: self.boot, wall=lambda: self.wall, synchronised=lambda: False)
        settings = config.Config(upstream=config.Upstream(ec2=ec2.url, gce="off"))
        self.metadata = Metadata(settings, upstream, self.clock, root=Path("/nonexistent"))
        self.who = Who(self.metadata, self.clock, configured="auto", root=Path("/nonexistent"))
        now = self.clock.now()
        self.store = Store(Policy(fallback=frozenset()), Memory("aws:i-1"), now, random.Random(1))
        self.told: list[str] = []
        self.acted = asyncio.Event()
        self.missed = 0.0
        self.noted: list[Known] = []
        self.restart(None)

    def restart(self, left: Known | None) -> None:
        """Another process begins, which was left that."""
        self.gap = Gap(self.clock, left, uncounted=lambda: self.missed)
        self.still = self.made(self.who)

    def made(self, who: Who) -> Still:
        noted = lambda: self.noted.append(self.gap.known)  # noqa: E731
        return Still(who, self.clock, store=self.store, act=self.act, gap=self.gap, noted=noted)

    def silence(self) -> None:
        self.ec2.faults.append(Fault(drop=True, times=None))

    async def act(self, found: list[Machine], name: str) -> None:
        assert [one.instance_id for one in found] == [name] * bool(name)
        self.told.append(name)
        self.acted.set()

    async def after(self, seconds: float) -> list[str]:
        self.boot += seconds
        self.wall += seconds
        await self.still.look()
        return self.told


def play(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        out = Upstream()
        try:
            async with Ec2MetadataService(instance_id="i-1") as ec2:
                await scenario(World(ec2, out))
        finally:
            await out.close()

    asyncio.run(main())


def test_another_name_is_acted_on() -> None:
    """A copy of a machine that runs: its metadata service is all that tells."""

    async def scenario(world: World) -> None:
        assert await world.after(ASK_SECONDS) == []
        world.ec2.instance_id = "i-2"
        assert await world.after(ASK_SECONDS) == ["aws:i-2"]

    play(scenario)


def test_silence_is_no_doubt_while_no_clock_shows_a_gap() -> None:
    """An outage of the metadata service takes nobody's identity, however long."""

    async def scenario(world: World) -> None:
        world.silence()
        for _ in range(30):
            assert await world.after(ASK_SECONDS) == []

    play(scenario)


def test_silence_after_a_gap_is_a_doubt_within_a_bound() -> None:
    """A copy resumes later than it was made: who cannot be asked is not believed for longer."""

    async def scenario(world: World) -> None:
        world.silence()
        world.missed += GAP_SECONDS
        assert await world.after(1) == []
        assert await world.after(UNCONFIRMED_SECONDS - 1) == []
        assert await world.after(1) == [""]

    play(scenario)


def test_a_name_that_is_said_again_ends_the_bound() -> None:
    """Only the silence since the last answer counts."""

    async def scenario(world: World) -> None:
        world.silence()
        world.missed += GAP_SECONDS
        await world.after(1)
        world.ec2.faults.clear()
        assert await world.after(ASK_SECONDS) == []
        world.silence()
        assert await world.after(2 * UNCONFIRMED_SECONDS) == []

    play(scenario)


def test_time_that_no_clock_of_the_machine_has_counted_is_a_gap() -> None:
    """A snapshot that resumes: a server's Date tells, and nobody steps the clock."""

    async def scenario(world: World) -> None:
        world.silence()
        world.clock.timekeeper.lost += 3600.0
        assert await world.after(1) == []
        assert await world.after(UNCONFIRMED_SECONDS) == [""]

    play(scenario)


def test_what_ntp_corrects_is_no_gap() -> None:
    """Steps of seconds, forwards or backwards, and what slewing adds up in days, cost nobody the identity in an outage."""

    async def scenario(world: World) -> None:
        world.silence()
        for step in (GAP_SECONDS - 1, -3600.0, GAP_SECONDS - 1, *[0.03] * 40):
            world.missed += step
            world.still.wake()
            assert await world.after(ASK_SECONDS) == []

    play(scenario)


def test_a_pause_that_all_clocks_show_counts_once() -> None:
    """The wall clock is set right after it, and our time follows: both have missed the same seconds."""

    async def scenario(world: World) -> None:
        world.silence()
        world.missed += GAP_SECONDS - 1
        world.clock.timekeeper.lost += GAP_SECONDS - 1
        assert await world.after(1) == []
        assert await world.after(UNCONFIRMED_SECONDS) == []

    play(scenario)


def test_a_service_that_is_switched_off_is_not_silent() -> None:
    """EC2's own word, and for good: hardening does that after the boot, and no step of the clock takes the identity."""

    async def scenario(world: World) -> None:
        world.ec2.endpoint_enabled = False
        world.missed += 3600.0
        for _ in range(30):
            assert await world.after(ASK_SECONDS) == []

    play(scenario)


def test_a_gap_is_asked_about_at_once_and_else_it_is_waited() -> None:
    """The wall clock's step wakes whoever waits for the next look."""

    async def scenario(world: World) -> None:
        world.ec2.instance_id = "i-2"

        async def first() -> None:
            pass

        watching = asyncio.create_task(world.still.watch(first()))
        await settle()
        assert world.told == []
        world.still.wake()
        await world.acted.wait()
        assert world.told == ["aws:i-2"]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    play(scenario)


def test_a_machine_whose_name_is_the_configurations_is_not_asked_about() -> None:
    """Where the configuration names the machine, or it has no metadata service, no answer could be another."""

    async def scenario(world: World) -> None:
        async def first() -> None:
            pass

        who = Who(
            Metadata(config.Config(upstream=config.Upstream(ec2="off", gce="off")), world.out, world.clock),
            world.clock,
            configured="auto",
            root=Path("/nonexistent"),
        )
        await world.made(who).watch(first())
        named = Who(world.metadata, world.clock, configured="x", root=Path("/"))
        await world.made(named).watch(first())

    play(scenario)


def test_a_gap_outlives_the_process() -> None:
    """A restart confirms nothing: the bound counts from the gap, and not from the start."""

    async def scenario(world: World) -> None:
        world.silence()
        world.missed += GAP_SECONDS
        assert await world.after(1) == []
        assert world.noted == [world.gap.known]
        world.restart(world.noted[-1])
        assert await world.after(UNCONFIRMED_SECONDS - 1) == []
        world.restart(world.gap.known)
        assert await world.after(1) == [""]
        assert world.noted[-1].since is None

    play(scenario)


def test_a_copy_that_is_made_while_no_process_runs_is_told_by_its_gap() -> None:
    """The clocks are compared with how the process before saw them, not with how they are at the start."""

    async def scenario(world: World) -> None:
        world.silence()
        left = world.gap.known
        world.missed += GAP_SECONDS + 1
        world.restart(left)
        assert await world.after(1) == []
        assert await world.after(UNCONFIRMED_SECONDS) == [""]

    play(scenario)


def test_a_gap_is_heeded_though_nobody_has_said_yet_who_this_is() -> None:
    """The service is silent from the start of the process on: whoever asks for a first answer may ask for ever."""

    async def scenario(world: World) -> None:
        world.silence()
        cancelled = asyncio.Event()

        async def first() -> None:
            try:
                while True:
                    await world.who.ask()
                    world.still.wake()
                    await asyncio.sleep(0)
            finally:
                cancelled.set()

        world.restart(Known(0, since=world.clock.uptime()))
        watching = asyncio.create_task(world.still.watch(first()))
        await settle()
        assert world.told == []
        world.boot += UNCONFIRMED_SECONDS
        await world.acted.wait()
        assert world.told == [""]
        assert cancelled.is_set()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    play(scenario)


def test_nothing_is_noted_while_nothing_changes() -> None:
    """What slewing adds up is not handed over at each look."""

    async def scenario(world: World) -> None:
        world.missed = 0.499
        for number in range(30):
            world.missed += 0.002 if number % 2 else -0.002
            await world.after(ASK_SECONDS)
        world.missed = 0.501
        await world.after(ASK_SECONDS)
        assert world.noted == []

    play(scenario)


def test_a_service_that_says_when_to_come_again_is_asked_then() -> None:
    """`Retry-After` is heard while the machine is not known, for a minute at most: nothing is served meanwhile."""

    async def scenario(world: World) -> None:
        for wait in ("0", "40", "4000"):
            world.ec2.faults.append(Fault(status=503, headers={"Retry-After": wait}))
        waited: list[float] = []

        class Counting(SystemClock):
            async def sleep(self, seconds: float) -> None:
                waited.append(seconds)

        who = Who(world.metadata, Counting(), configured="auto", root=Path("/nonexistent"))
        found = await who.ask_until_known("", at_once=True)
        assert [one.instance_id for one in found] == ["aws:i-1"]
        assert waited == [0.0, ASK_AGAIN_SECONDS, 40.0, LONGEST_PAUSE_SECONDS]

    play(scenario)


def test_while_a_step_is_believed_the_service_is_asked_again_soon() -> None:
    """What may have ended is refused until one answer says what the time is: nobody waits a minute for the next look."""

    async def scenario(world: World) -> None:
        asked: asyncio.Queue[float] = asyncio.Queue()
        over = asyncio.Semaphore(0)

        async def sleep(seconds: float) -> None:
            asked.put_nowait(seconds)
            await over.acquire()

        async def first() -> None:
            pass

        world.clock.sleep = sleep  # type: ignore[method-assign]
        world.clock.hear(Witness.LINK, world.clock.now())
        world.wall += 7200
        world.clock.follow()
        watching = asyncio.create_task(world.still.watch(first()))
        await settle()
        world.silence()
        for _ in range(3):
            over.release()
            assert await asked.get() == ASK_SOON_SECONDS
        world.clock.hear(Witness.LINK, world.clock.now() - timedelta(hours=2))
        over.release()
        assert ASK_SECONDS in [await asked.get() for _ in range(2)]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    play(scenario)
