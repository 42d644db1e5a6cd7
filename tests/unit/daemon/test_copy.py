"""A sealed copy that the system refuses to read is not lost: what it decided is pending, and nobody is the machine."""

from __future__ import annotations

import errno
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent.core.model import Cloud, SealedBundle
from agent.daemon import copy, disk, remembered
from agent.host import state
from agent.host.files import read_plain
from agent.identity import standing
from tests.fakes.clock import settle
from tests.fakes.refusing import Refused
from tests.unit.daemon.life import Life, Machines, patient, sealed_for
from tests.unit.daemon.reasons import Hands
from tests.unit.daemon.test_reload_between import come_true
from tests.unit.daemon.test_restore import OURS, play

FALLBACK = {"identity": {"on_expiry": "fallback", "grace_seconds": 0.0}}


class Doubtful:
    """What refuses the memory, and what refuses the sealed copies; and how the cloud stood whenever that may be told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = errno.EIO) -> None:
        self.memory = Refused(number, state.MEMORY_FILE, read_plain)
        self.copies = Refused(number, "bundle-*.jose", read_plain)
        self.seen: list[type[standing.Standing]] = []
        later = time.clock_gettime(time.CLOCK_BOOTTIME) + 60  # than whatever the process before does
        self.clock = Hands(datetime.now(UTC) + timedelta(seconds=60), boottime=later)
        patient(monkeypatch)
        monkeypatch.setattr(remembered, "AGAIN_SECONDS", ())
        monkeypatch.setattr(state, "read_plain", self._read)

    def _read(self, path: Path, most: int) -> bytes:
        return (self.copies if path.suffix == ".jose" else self.memory)(path, most)

    def follow(self, life: Life) -> None:
        """Look now, and whenever it may have changed."""

        def look() -> None:
            self.seen.append(type(standing.standing(life.store.state, Cloud.AWS, life.clock.now())))

        look()
        life.store.watch(look)

    @asynccontextmanager
    async def begun(self, machines: Machines, settings: dict[str, Any]) -> AsyncIterator[Life]:
        """One that is followed, after a stop: nothing was handed over."""
        machines.stored.clear()
        async with machines.start(settings, clock=self.clock) as life:
            self.follow(life)
            yield life

    async def until(self, come: Callable[[], object]) -> None:
        """Time passes for those who sleep."""

        def moved() -> bool:
            self.clock.fake.move(1.0)
            return bool(come())

        await come_true(moved)


@pytest.mark.parametrize("on_expiry", ["deny", "fallback"])
def test_one_that_is_gone_after_all_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_expiry: str) -> None:
    """From then on it is as the configuration says of a bundle's end; before, it is pending, and said once why."""
    world = Doubtful(monkeypatch)
    world.memory.refuses = False

    async def scenario(machines: Machines) -> None:
        await machines.live(OURS)
        with structlog.testing.capture_logs() as logs:
            async with world.begun(machines, {"identity": {"on_expiry": on_expiry}}):
                await world.until(lambda: world.copies.asked >= 4)
                assert set(world.seen) == {standing.Resuming}
                for path in machines.state.glob("bundle-*.jose"):
                    path.unlink()
                world.copies.refuses = False
                await world.until(lambda: world.seen[-1] is not standing.Resuming)
                assert world.seen[-1] is (standing.Machines if on_expiry == "fallback" else standing.Closed)
        assert [line["hint"] for line in logs if line["event"] == "bundle.unread"] == [copy.REFUSED_HINT]

    play(tmp_path, scenario)


@pytest.mark.parametrize("lacks", ["the copy", "the memory", "a memory that makes sense", "an answer"])
def test_a_handover_without_it_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    """The process before had not opened it again yet: whatever the disk lacks just then is no end of it."""
    world = Doubtful(monkeypatch)
    world.memory.refuses, world.copies.refuses = lacks == "the memory", lacks == "the copy"

    async def scenario(machines: Machines) -> None:
        await machines.live(OURS)
        machines.leave(sealed=None, signed=None)
        path = machines.state / state.MEMORY_FILE
        if lacks == "a memory that makes sense":
            path.write_text("{")
        late = lacks == "an answer"
        silent = machines.before.stall(path) if late else None
        if late:
            monkeypatch.setattr(disk, "LOOK_SECONDS", 0.05)
        try:
            async with machines.start(FALLBACK, clock=world.clock, waits_for_disk=not late) as life:
                world.follow(life)
                if silent is not None:
                    silent.answer()
                assert world.seen[0] is standing.Resuming
                world.memory.refuses = world.copies.refuses = False
                await world.until(life.in_force)
                assert standing.Machines not in world.seen
        finally:
            if silent is not None:
                silent.answer()

    play(tmp_path, scenario)


@pytest.mark.parametrize("doubted", [False, True])
def test_another_bundle_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, doubted: bool) -> None:
    """What comes meanwhile is in force, and stays so once the former copy can be read."""
    world = Doubtful(monkeypatch)
    world.memory.refuses = False

    async def scenario(machines: Machines) -> None:
        await machines.live(OURS)
        async with world.begun(machines, FALLBACK) as life:
            if doubted:
                life.controller.durable.doubt("whose?")
            ack = await life.controller.intake.submit(SealedBundle(sealed_for(machines.before, seq=2), "push"))
            assert (ack.outcome, life.in_force()) == ("accepted", 2)
            world.copies.refuses = False
            world.clock.fake.move(copy.READ_AGAIN_SECONDS)
            await settle()
            assert life.in_force() == 2

    play(tmp_path, scenario)


@pytest.mark.parametrize("known_at", ["once it is read", "before"])
def test_a_doubt_that_ends_brings_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_at: str) -> None:
    """Whether it can be read before it is known whose it is, or after: nobody is the machine in between."""
    world = Doubtful(monkeypatch)
    world.memory.refuses = False

    async def scenario(machines: Machines) -> None:
        await machines.live(OURS)
        async with world.begun(machines, FALLBACK) as life:
            life.controller.durable.doubt("whose?")
            world.copies.refuses = known_at == "before"
            if known_at == "once it is read":
                before = world.copies.asked
                await world.until(lambda: world.copies.asked > before)
                await settle()
            await life.restorer.identify_anew([], OURS)
            world.copies.refuses = False
            await world.until(life.in_force)
            assert standing.Machines not in world.seen

    play(tmp_path, scenario)


def test_nor_is_the_copy_of_a_memory_that_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be read when a bundle comes, and the copy cannot: that is pending, and back in force once it can be read."""
    world = Doubtful(monkeypatch)

    async def scenario(machines: Machines) -> None:
        await machines.live(OURS, seq=2)
        async with world.begun(machines, FALLBACK) as life:
            world.memory.refuses = False
            old = SealedBundle(sealed_for(machines.before, seq=1), "push")
            ack = await life.controller.intake.submit(old)
            assert ack.outcome == "refused"
            assert world.seen[-1] is standing.Resuming
            world.copies.refuses = False
            await world.until(life.in_force)
            assert life.in_force() == 2
            assert standing.Machines not in world.seen

    play(tmp_path, scenario)
