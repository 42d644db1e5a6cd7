"""STS goes away in minute one and stays away: served to the last minute, then the honest error, then recovery."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from agent.core.model import Cloud
from agent.core.view import Ended, Live
from tests.simulation.plan import Aws, Fault, Kind, Plan
from tests.simulation.timewarp import WarpLoop, run
from tests.simulation.world import World, simulate


def test_an_outage_from_minute_one_to_the_end_of_life() -> None:
    """Served to the last second, then an end that says why and passes; back within 15 s of STS's return."""
    seen: dict[str, object] = {}

    async def main(loop: WarpLoop) -> None:
        world = World(loop, Plan(5, aws=Aws.BROKER, faults=(Fault(Kind.DOWN, 1, 70, who="aws"),), hours=2))

        async def ask() -> None:
            def answer() -> object:
                return world.store.view(Cloud.AWS, world.clock.now())

            await asyncio.sleep(60)
            held = answer()
            assert isinstance(held, Live)
            end = (held.credential.expires_at - world.time.true()).total_seconds()
            await asyncio.sleep(end - 60)
            seen["last minute"] = answer()
            await asyncio.sleep(61)
            seen["after"] = answer()
            await asyncio.sleep(71 * 60 + 15 - world.time.elapsed())
            seen["15 s after the return"] = answer()

        asking = asyncio.create_task(ask())
        await world.live()
        await asking

    run(main)

    assert isinstance(seen["last minute"], Live)
    ended = seen["after"]
    assert isinstance(ended, Ended)
    assert ended.passing
    assert "broker" in ended.why
    assert isinstance(seen["15 s after the return"], Live)


def test_a_machine_that_sleeps_past_the_end_serves_nothing_expired() -> None:
    """A suspend of ten hours ends every credential: nothing of before is served after it, and renewal goes on."""
    world = simulate(Plan(2, faults=(Fault(Kind.SUSPEND, 30, 600),), hours=14))

    assert min(world.least_left.values()) > timedelta(minutes=30)


def test_one_call_for_each_credential_however_many_ask() -> None:
    """A thousand looks at a cold store, and a thousand kicks of the loop, cause one upstream call per credential."""

    async def main(loop: WarpLoop) -> World:
        world = World(loop, Plan(3, hours=0.01))

        async def crowd() -> None:
            for _ in range(1000):
                world.store.view(Cloud.AWS, world.clock.now())
                world.keeper.step()
                await asyncio.sleep(0.001)

        asking = asyncio.create_task(crowd())
        await world.live()
        await asking
        return world

    world = run(main)

    assert {name: len(times) for name, times in world.attempts.items()} == dict.fromkeys(world.attempts, 1)
    assert len(world.attempts) == 3
