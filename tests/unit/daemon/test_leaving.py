"""What a process leaves to the next one of the bundles that it has opened: the content of one, if any."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agent import bundle
from agent.core.model import Action, SealedBundle
from agent.core.verdict import Memory
from agent.daemon import handover
from agent.daemon.leaving import handover_of
from agent.daemon.opening import Opened
from tests.system.harness import ISSUER
from tests.unit.daemon.life import Life, Machines, patient, sealed_for

OURS = "config:i-1"
ANOTHER = b"sealed to us, opened, and not taken"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch)


def left_by(life: Life) -> handover.Handover:
    return handover_of(life.prepared, life.controller, life.restorer, life.who, life.announcer)


def play(root: Path, scenario: Callable[[Machines, Life], Awaitable[None]]) -> None:
    """After the start of a process whose predecessor had accepted a bundle."""

    async def main() -> None:
        machines = Machines(root)
        try:
            await machines.live(OURS)
            async with machines.start() as life:
                await scenario(machines, life)
        finally:
            await machines.before.prepared.close()

    asyncio.run(main())


def test_only_the_content_of_the_bundle_in_force_is_left(tmp_path: Path) -> None:
    """What else was opened is forgotten, so that no secret of it outlives its refusal."""

    async def scenario(_machines: Machines, life: Life) -> None:
        opening, sealed = life.prepared.opening, life.controller.durable.sealed
        assert sealed is not None
        opening.remember(ANOTHER, Opened(b"secret", "kid"))
        left = left_by(life)
        assert opening.opened(ANOTHER) is None
        opened = opening.opened(sealed)
        assert opened is not None
        assert (handover.decoded(left.sealed), handover.decoded(left.signed)) == (sealed, opened.signed)

    play(tmp_path, scenario)


def test_what_was_withdrawn_leaves_no_content(tmp_path: Path) -> None:
    """Where nothing is in force all of it is forgotten."""

    async def scenario(machines: Machines, life: Life) -> None:
        before = machines.before
        withdrawal = bundle.seal(
            signer=before.signer,
            recipients=[before.key.recipient_key()],
            issuer=ISSUER,
            subject="team",
            audiences=[bundle.audience_key(before.key.kid)],
            now=life.clock.now(),
            action=Action.WITHDRAW,
            seq=2,
        )
        former = life.controller.durable.sealed
        assert former is not None
        assert (await life.controller.intake.submit(SealedBundle(withdrawal, "push"))).outcome == "accepted"
        left = left_by(life)
        assert (left.sealed, left.signed) == (None, None)
        for sealed in (former, withdrawal):
            assert life.prepared.opening.opened(sealed) is None

    play(tmp_path, scenario)


def test_what_is_being_written_down_keeps_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that begins before the disk has taken it needs no key for it; the former one goes once it is taken."""

    async def scenario(machines: Machines, life: Life) -> None:
        opening, state = life.prepared.opening, life.prepared.state
        former, written, asked = life.controller.durable.sealed, asyncio.Event(), asyncio.Event()
        save = state.save
        assert former is not None

        async def slowly(memory: Memory, sealed: bytes | None) -> None:
            asked.set()
            await written.wait()
            await save(memory, sealed)

        monkeypatch.setattr(state, "save", slowly)
        later = sealed_for(machines.before, seq=2)
        taking = asyncio.create_task(life.controller.intake.submit(SealedBundle(later, "push")))
        await asked.wait()
        left = left_by(life)
        assert handover.decoded(left.sealed) == former
        assert opening.opened(former) is not None
        assert opening.opened(later) is not None
        written.set()
        assert (await taking).outcome == "accepted"
        left = left_by(life)
        assert handover.decoded(left.sealed) == later
        assert opening.opened(former) is None
        assert opening.opened(later) is not None

    play(tmp_path, scenario)
