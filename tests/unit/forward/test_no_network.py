"""Ten minutes without network: nothing that is served is lost, and what fell due meanwhile is done when it is back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from agent.core.model import Action, AwsSession
from agent.forward import Forward, Status, session
from tests.fakes.net import Fault
from tests.fakes.sts import CLEAR, Weather
from tests.system.harness import until
from tests.unit.forward.agents import CourierAgent
from tests.unit.forward.support import World

ROLE = "arn:aws:iam::111122223333:role/reader"
STEP = timedelta(seconds=20)
"""Shorter than what a computer that slept is known by."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # A glance is soon, and so is every look.
    for name in ("GLANCE_SECONDS", "PRESENT_SECONDS", "AGAIN_SECONDS"):
        monkeypatch.setattr(session, name, 0.02)
    with World(tmp_path, monkeypatch) as made:
        made.sts.role(ROLE)
        yield made


def keys(machine: CourierAgent) -> list[str]:
    """The access key ids of the bundles that it accepted."""
    return [grant.access_key_id for one in machine.accepted for grant in one.grants if isinstance(grant, AwsSession)]


def more_than(machine: CourierAgent, count: int) -> Callable[[], bool]:
    return lambda: len(machine.accepted) > count


def another_than(forwarding: Forward, status: Status) -> Callable[[], bool]:
    return lambda: forwarding.status() is not status


def has_another(machine: CourierAgent, key: str) -> Callable[[], bool]:
    return lambda: bool(keys(machine)) and keys(machine)[-1] != key


@pytest.mark.slow
def test_what_fell_due_without_network_is_done_when_it_is_back(world: World) -> None:
    """A lease, a session's successor, a newcomer and a memory that was lost: all wait for the network, and none is lost."""
    stays, forgets = world.machine("stays"), world.machine("forgets")
    with world.forward(role_arn=ROLE, lease=timedelta(minutes=15)) as f:
        until(lambda: f.status().served == 2)
        while world.now() < stays.accepted[0].issued_at + timedelta(minutes=38):  # its successor is due at 40
            renewed = more_than(stays, len(stays.accepted))
            world.time_gone += timedelta(minutes=2)
            if world.now() >= stays.accepted[-1].issued_at + timedelta(minutes=5):
                until(renewed)
        assert len(set(keys(stays))) == 1
        world.sts.weather = lambda _: Weather(fault=Fault.DOWN)
        world.courier.broken = True
        had = len(stays.accepted)
        late = world.machine("late")
        forgets.bundle = None
        for number in range(int(timedelta(minutes=10) / STEP)):
            world.time_gone += STEP
            until(another_than(f, f.status()))
            if number:  # the first round may have begun before
                until(lambda: "cannot be reached" in str(f.status().trouble))
        until(lambda: any(cloud.trouble for cloud in f.status().clouds))
        assert len(stays.accepted) == had
        assert stays.bundle is not None
        assert stays.bundle.lease_until is not None
        assert stays.bundle.lease_until > world.now()  # three renewals could be missed

        world.sts.weather = lambda _: CLEAR
        world.courier.broken = False
        world.time_gone += timedelta(seconds=31)
        until(lambda: f.status().served == 3 and f.status().trouble is None)
        until(lambda: not any(cloud.trouble for cloud in f.status().clouds))
        for machine in (stays, forgets, late):
            until(has_another(machine, keys(stays)[0]))
            assert {one.action for one in machine.accepted} == {Action.SET}
    assert {machine.bundle for machine in (stays, forgets, late)} == {None}
