"""With a reason to wait for a bundle nobody is the machine: each reason, by each way in which a process begins.

Whatever a worker may be told is looked at whenever it changes, until long after the boot grace; and what was waited for
comes into force once the reason is gone, so that it was that which was waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from agent.daemon import reload
from agent.host import patience
from tests.system.harness import merged, toml
from tests.unit.daemon.life import READY_SECONDS, Life, patient
from tests.unit.daemon.reasons import (
    COPIES,
    REASONS,
    SUCCESSORS,
    DisputedLease,
    Reason,
    SilentMount,
    World,
    play,
    rebooted,
    restarted,
    resumes,
    stopped,
    succeed,
)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    patient(monkeypatch)
    monkeypatch.setattr(reload, "PATIENCE_SECONDS", READY_SECONDS)
    mount = request.node.callspec.params["reason"] is SilentMount
    monkeypatch.setattr(patience, "WAIT_SECONDS", 0.01 if mount else READY_SECONDS)


@pytest.mark.parametrize("successor", SUCCESSORS)
@pytest.mark.parametrize("reason", REASONS)
def test_a_first_bundle_is_waited_for(
    tmp_path: Path, reason: type[Reason], successor: Callable[[World, Life], None]
) -> None:
    """As long as the reason is there, over a reload and into the next process, however that begins."""

    async def scenario(world: World, it: Reason) -> None:
        it.begin()
        async with world.living() as (life, reloader):
            await world.waited(life)
            path = world.machines.before.root / "etc" / "next.toml"
            path.write_text(toml(merged(world.machines.base, {**world.configuration, "mint": {"spread_seconds": 1.0}})))
            await reloader.reload()
            await world.waited(life)
            succeed(world, life, successor)
        async with world.living() as (life, reloader):
            await world.waited(life)
            assert world.machine_served == []
            it.end()
            await reloader.reload()
            await world.in_force(life)
        assert world.machine_served == []

    play(tmp_path, reason, scenario)


@pytest.mark.parametrize("successor", [restarted, stopped, rebooted])
@pytest.mark.parametrize("reason", [*REASONS, DisputedLease, *COPIES])
def test_what_was_in_force_is_waited_for(
    tmp_path: Path, reason: type[Reason], successor: Callable[[World, Life], None]
) -> None:
    """A bundle that cannot be opened again yet is not lost, though its loss would allow the machine's identity."""
    play(tmp_path, reason, partial(resumes, successor=successor))
