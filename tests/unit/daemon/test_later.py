"""The disk is read late: nothing is written over what it still has to say."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.core.errors import HostError
from agent.core.history import Entry
from agent.core.verdict import Mark, Memory
from agent.daemon.disk import Later, Read
from agent.host.state import StateDirectory
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
