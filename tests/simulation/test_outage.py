"""STS goes away in minute one and stays away: served to the last minute, then the honest error, then recovery."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from agent.core.model import Cloud
from agent.core.view import Ended, Live
from tests.simulation.endpoint import Endpoint
from tests.simulation.plan import Aws, Fault, Kind, Plan
from tests.simulation.timewarp import WarpLoop, run
from tests.simulation.world import World, simulate

RETURN = 71 * 60
"""Seconds from the boot."""


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("kind", "aws"),
    [
        (Kind.DOWN, Aws.KEYS),
        (Kind.DOWN, Aws.ROLE_ON_KEYS),
        (Kind.ERRORS, Aws.KEYS),
        (Kind.THROTTLE, Aws.ROLE_ON_KEYS),
        (Kind.ERRORS, Aws.BROKER),
    ],
)
def test_an_outage_from_minute_one_to_the_end_of_life(kind: Kind, aws: Aws, seed: int) -> None:
    """Served to the last minute, then the honest error in each dialect; back within 30 s of the return."""

    async def main(loop: WarpLoop) -> None:
        world = World(loop, Plan(seed, aws=aws, faults=(Fault(kind, 1, 70),), hours=1.25))
        endpoint = Endpoint(world)

        def ends() -> list[float]:
            answers = [world.store.answer(cloud, world.clock.now()) for cloud in Cloud]
            lives = [answer.credential for answer in answers if isinstance(answer, Live)]
            return [(world.end(credential) - world.time.true()).total_seconds() for credential in lives]

        async def ask() -> None:
            await asyncio.sleep(59)
            await asyncio.sleep(min(ends()) - 60)  # to the last minute of both
            role, container, google = await endpoint.role(), await endpoint.container(), await endpoint.google()
            assert (role.status, container.status, google.status) == (200, 200, 200)
            assert role.json()["Expiration"] == container.json()["Expiration"]
            assert 1 <= google.json()["expires_in"] <= 60 + max(ends()) - min(ends())
            await asyncio.sleep(max(ends()) + 1)
            await _honest(endpoint, world)
            await asyncio.sleep(RETURN - 60 - world.time.elapsed())
            await _honest(endpoint, world)
            await asyncio.sleep(RETURN + 31 - world.time.elapsed())
            role, container, google = await endpoint.role(), await endpoint.container(), await endpoint.google()
            assert (role.status, container.status, google.status) == (200, 200, 200)
            assert min(ends()) > 3500

        asking = asyncio.create_task(ask())
        await world.live()
        await asking

    run(main)


async def _honest(endpoint: Endpoint, world: World) -> None:
    """Nothing is held and it will pass: each dialect says so in its own way, and a person can read why."""
    roles, container, google = await endpoint.roles(), await endpoint.container(), await endpoint.google()
    assert (roles.status, roles.body) == (503, b"")
    assert container.status == 503
    assert container.headers["Content-Type"] == "application/json"
    assert google.status == 503
    for cloud, said in ((Cloud.AWS, container.json()["Message"]), (Cloud.GCP, google.body.decode())):
        answer = world.store.answer(cloud, world.clock.now())
        assert isinstance(answer, Ended)
        assert answer.passing
        assert "bundle 1, grant" in said


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
                world.store.answer(Cloud.AWS, world.clock.now())
                world.controller.step()
                await asyncio.sleep(0.001)

        asking = asyncio.create_task(crowd())
        await world.live()
        await asking
        return world

    world = run(main)

    assert {name: len(times) for name, times in world.attempts.items()} == dict.fromkeys(world.attempts, 1)
    assert len(world.attempts) == 3
