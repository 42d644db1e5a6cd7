"""The disk is read late: nothing is written over what it still has to say."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.core.errors import HostError
from agent.core.history import Entry
from agent.core.verdict import Mark, Memory
from agent.daemon.disk import Later, Read
from agent.host.state import MEMORY_FILE, StateDirectory, closed_memory
from agent.identity import streams
from tests.fakes.clock import START

MINUTE = timedelta(minutes=1)
OLD = Entry(at=START, kind="started", about="agent", said="before")
NEW = Entry(at=START, kind="started", about="agent", said="now")


def test_no_history_is_written_over_one_that_was_not_read(tmp_path: Path) -> None:
    """The memory was read in time and the history was not: what happened before stays on the disk until it is."""

    async def scenario() -> None:
        state = StateDirectory(tmp_path)
        await state.note((OLD,))

        async def read() -> Read:
            return Read(Memory(), None, write=True, broken=False, boot="")

        recorder = Later(state, asyncio.create_task(read()))
        await asyncio.sleep(0)
        with pytest.raises(HostError):
            await recorder.note((NEW,))
        assert state.history() == (OLD,)
        recorder.history_read = True
        await recorder.note((OLD, NEW))
        assert state.history() == (OLD, NEW)

    asyncio.run(scenario())


@pytest.mark.parametrize("issued", [START, None], ids=["", "of an earlier version"])
def test_a_stream_that_is_forgotten_keeps_nothing_from_being_written(tmp_path: Path, issued: datetime | None) -> None:
    """The disk still had it when it was read: that made it the later one, and from then on nothing was durable."""

    async def scenario() -> None:
        state = StateDirectory(tmp_path)
        marks = tuple(Mark("cp", f"job-{number}", 1, "0" * 64, issued) for number in range(streams.MAX_STREAMS))
        full = Memory("i-1", marks)

        async def read() -> Read:
            return Read(full, None, write=True, broken=False, boot="")

        recorder = Later(state, asyncio.create_task(read()))
        await recorder.save(full, None)
        for number in range(3):
            full = replace(full, marks=(*full.marks, Mark("cp", f"late-{number}", 1, "0" * 64, START + MINUTE)))
            full = streams.bounded(full, START + MINUTE)
            await recorder.save(full, None)
            assert state.load()[0] == full

    asyncio.run(scenario())


def test_a_disk_that_is_later_is_not_written_over(tmp_path: Path) -> None:
    """It has a number that the process before did not hand over: the next start has both to choose from."""

    async def scenario() -> None:
        state = StateDirectory(tmp_path)
        later = Memory("i-1", (Mark("cp", "team", 2, "0" * 64, START),))

        async def read() -> Read:
            return Read(later, None, write=True, broken=False, boot="")

        recorder = Later(state, asyncio.create_task(read()))
        for _ in range(2):
            with pytest.raises(HostError):
                await recorder.save(Memory("i-1", (Mark("cp", "team", 1, "0" * 64, START),)), None)

    asyncio.run(scenario())


def mark(subject: str, seq: int, sealed: bytes = b"") -> Mark:
    return Mark("cp", subject, seq, hashlib.sha256(sealed).hexdigest(), START)


OTHERS = mark("others", 1)
KNOWN = mark("team", 2, b"two")
"""In force, says the disk that could not be read at the start."""


@pytest.mark.parametrize("name", ["i-1", "", "i-2"])
@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize(
    ("ours", "sealed", "left"),
    [
        (Memory(marks=(mark("team", 3),)), None, Memory(marks=(mark("team", 3), OTHERS))),
        (
            Memory(marks=(mark("team", 3, b"three"),), active=mark("team", 3, b"three")),
            b"three",
            Memory(marks=(mark("team", 3, b"three"), OTHERS), active=mark("team", 3, b"three")),
        ),
        (
            Memory(marks=(mark("team", 1, b"one"),), active=mark("team", 1, b"one")),
            b"one",
            Memory(marks=(KNOWN, OTHERS), active=KNOWN),
        ),
    ],
    ids=["a withdrawal", "a successor", "what it would have refused"],
)
def test_what_could_not_be_read_at_the_start_is_kept_beside_what_is_written(
    tmp_path: Path, ours: Memory, sealed: bytes | None, left: Memory, name: str, *, spoilt: bool
) -> None:
    """Nothing that the disk knew is taken back by what is accepted meanwhile, unless it is another machine's.

    What nobody can read even then is written over: else no bundle would be durable again.
    """

    async def scenario() -> None:
        state = StateDirectory(tmp_path)
        await state.save(Memory("i-1", (OTHERS, KNOWN), active=KNOWN), b"two")
        if spoilt:
            (tmp_path / MEMORY_FILE).write_bytes(b"?")

        async def read() -> Read:
            return Read(closed_memory(""), None, write=True, broken=True, boot="", unread=True)

        recorder, mine = Later(state, asyncio.create_task(read())), replace(ours, instance_id=name)
        alone = spoilt or name == "i-2"
        for _ in range(2):
            await recorder.save(mine, sealed)
            found, bundle = StateDirectory(tmp_path).load()
            expected = mine if alone else replace(left, instance_id=name)
            assert (set(found.marks), found.active) == (set(expected.marks), expected.active)
            active = expected.active
            assert (active is None) == (bundle is None)
            assert bundle is None or active is None or hashlib.sha256(bundle).hexdigest() == active.digest

    asyncio.run(scenario())


def test_what_is_read_after_all_is_told_once_it_counts_and_once(tmp_path: Path) -> None:
    """The disk can be read and takes nothing: each attempt to write reads it again, and nobody hears it again."""
    told, answers = list[Memory](), iter((False, True))

    class Full(StateDirectory):
        async def save(self, memory: Memory, sealed: bytes | None) -> None:
            del memory, sealed
            raise HostError("no space")

    def recalled(memory: Memory, _sealed: bytes | None) -> bool:
        told.append(memory)
        return next(answers)

    async def scenario() -> None:
        before = Memory("i-1", (KNOWN,), active=KNOWN)
        await StateDirectory(tmp_path).save(before, b"two")

        async def read() -> Read:
            return Read(closed_memory(""), None, write=True, broken=True, boot="", unread=True)

        recorder = Later(Full(tmp_path), asyncio.create_task(read()), recalled)
        for _ in range(4):
            with pytest.raises(HostError):
                await recorder.save(Memory("i-1", (mark("team", 3),)), None)
        assert told == [before, before]

    asyncio.run(scenario())
