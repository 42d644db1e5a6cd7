"""Has the disk gone back in time? What says so, and what does not."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from agent.core.verdict import Mark, Memory
from agent.daemon.age import AGED, ALIVE_SECONDS, LOOK_SECONDS, Age, aged
from agent.host.state import LIVED_FILE, Lived, StateDirectory
from tests.fakes.clock import START, FakeClock, settle
from tests.unit.daemon.test_reload_between import come_true

LONG_AGO = START - AGED
RECENTLY = START - AGED + timedelta(seconds=1)


def remembering(seq: int) -> Memory:
    return Memory("i-1", (Mark("issuer", "subject", seq, "0" * 64),))


@pytest.mark.parametrize(
    ("lived", "same_boot", "replaced", "since"),
    [
        (None, False, False, None),
        (Lived(at=LONG_AGO), False, False, LONG_AGO),
        (Lived(at=RECENTLY), False, False, None),
        (Lived(at=LONG_AGO, ended=True), False, False, None),
        (Lived(at=LONG_AGO), True, False, None),
        (Lived(at=START + timedelta(days=1)), False, False, None),
        (Lived(at=RECENTLY, ended=True), True, True, RECENTLY),
        (None, True, True, START),
        (Lived(at=RECENTLY, ended=True, since=LONG_AGO), True, False, LONG_AGO),
    ],
    ids=[
        "of an earlier version", "long ago", "a crash", "it had ended", "a restart", "a clock that was ahead",
        "another memory than was left", "the same, without the note", "not settled yet",
    ],
)  # fmt: skip
def test_what_says_that_the_disk_has_gone_back(
    lived: Lived | None, same_boot: bool, replaced: bool, since: object
) -> None:
    """An agent that was at work long ago and never ended, or another memory than was left; nothing else."""
    assert aged(lived, START, same_boot=same_boot, replaced=replaced) == since


def test_the_alarm_ends_with_something_newer(tmp_path: Path) -> None:
    """It outlives the process, and an orderly end of it; what is brought later than the disk's memory ends it."""
    state = StateDirectory(tmp_path)

    async def life(memory: Memory, later: Memory) -> str | None:
        age = Age(state, FakeClock())
        lived = state.lived()
        age.begin(memory, aged(lived, START, same_boot=False, replaced=False))
        why = age.reason(memory)
        await age.last(later, 30)
        return why

    asyncio.run(state.live(Lived(at=LONG_AGO)))
    with capture_logs() as logs:
        for _ in range(2):
            assert "2026" in (asyncio.run(life(remembering(1), remembering(1))) or "")
        assert asyncio.run(life(remembering(1), remembering(2))) is not None
        assert asyncio.run(life(remembering(2), remembering(2))) is None
    assert [line["event"] for line in logs] == ["state.aged"] * 3


def test_an_alarm_that_has_ended_does_not_come_back_with_a_crash(tmp_path: Path) -> None:
    """Whoever asks or not: it is written down soon, and not when the agent next says that it is alive."""

    async def main() -> None:
        state, clock, memory = StateDirectory(tmp_path), FakeClock(), remembering(1)
        age = Age(state, clock)
        running = asyncio.create_task(age.run(lambda: memory))
        await settle()
        with capture_logs():
            age.begin(memory, LONG_AGO)  # a disk that answers late: only now it may be written to
        for said in (LONG_AGO, None):
            await come_true(lambda: clock.sleeping)
            await clock.advance(LOOK_SECONDS)
            await come_true(lambda said=said: (lived := state.lived()) is not None and lived.since == said)
            memory = remembering(2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_an_alarm_that_has_ended_does_not_come_back_with_an_orderly_end(tmp_path: Path) -> None:
    """Also where nobody has asked since for the reason: what was brought just before the end counts."""

    async def main() -> None:
        state = StateDirectory(tmp_path)
        age = Age(state, FakeClock())
        with capture_logs():
            age.begin(remembering(1), LONG_AGO)
        assert age.troubles(remembering(1)).keys() == {"state.directory"}
        await age.last(remembering(2), 30)
        assert state.lived() == Lived(at=START, ended=True)
        assert age.troubles(remembering(2)) == {}

    asyncio.run(main())


def test_it_says_again_and_again_that_it_is_alive(tmp_path: Path) -> None:
    """Else a disk of a machine that was on all the time would count as old after a crash."""

    async def main() -> None:
        state, clock = StateDirectory(tmp_path), FakeClock()
        age = Age(state, clock)
        age.begin(remembering(1), None)
        running = asyncio.create_task(age.run(lambda: remembering(1)))
        await come_true(lambda: state.lived() is not None)
        await come_true(lambda: clock.sleeping)
        for _ in range(int(ALIVE_SECONDS / LOOK_SECONDS)):
            await clock.advance(LOOK_SECONDS)
        said = Lived(at=START + timedelta(seconds=ALIVE_SECONDS))
        await come_true(lambda: state.lived() == said)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_what_a_start_learns_of_an_older_memory_is_nothing_newer(tmp_path: Path) -> None:
    """An earlier version did not write when a bundle was issued: to open that bundle again ends no alarm."""
    age = Age(StateDirectory(tmp_path), FakeClock())
    memory = remembering(1)
    with capture_logs():
        age.begin(memory, LONG_AGO)
    marks = tuple(replace(mark, issued_at=START) for mark in memory.marks)
    assert age.reason(replace(memory, marks=marks)) is not None
    assert age.reason(remembering(2)) is None


def test_what_has_accepted_nothing_has_nothing_to_forget(tmp_path: Path) -> None:
    """Without a stream there is no alarm, however old the disk."""
    age = Age(StateDirectory(tmp_path), FakeClock())
    with capture_logs() as logs:
        age.begin(Memory("i-1"), LONG_AGO)
    assert age.reason(Memory("i-1")) is None
    assert not logs


@pytest.mark.parametrize("content", [b"", b"{", b'{"at":"2026-01-01T00:00:00"}', b'{"at":"2026-01-01T00:00:00+02:00"}'])
def test_a_note_that_makes_no_sense_is_none(tmp_path: Path, content: bytes) -> None:
    """Whatever lies there, the start goes on, and nothing is written before the disk was read."""
    (tmp_path / LIVED_FILE).write_bytes(content)
    state = StateDirectory(tmp_path)
    assert state.lived() is None
    asyncio.run(Age(state, FakeClock()).last(Memory(), 30))
    assert (tmp_path / LIVED_FILE).read_bytes() == content
