"""The disk is read late: nothing is written over what it still has to say."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.core.errors import HostError
from agent.core.history import Entry
from agent.core.verdict import Memory
from agent.daemon.disk import Later, Read
from agent.host.state import StateDirectory
from tests.fakes.clock import START

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
