"""What does not answer is not waited for: neither at the start, nor by the loop, nor by whoever asks next."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host.patience import FirstLook, Patience, StalledError

HANGS, WELL = Path("/far/file"), Path("/near/file")


class Disk:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.lets = threading.Event()
        self.calls = 0

    def read(self) -> str:
        self.calls += 1
        self.lets.wait()
        return "read"


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    yield made
    made.lets.set()


def failing() -> str:
    raise FileNotFoundError("no such file")


def test_one_that_is_silent_takes_no_time_from_the_others(disk: Disk) -> None:
    """The first look goes on without it, asks no other file of its directory, and hears it when it answers."""
    look = FirstLook(0.0)
    with pytest.raises(StalledError, match="/far/file: it does not answer"):
        look(HANGS, disk.read)
    with pytest.raises(StalledError):
        look(HANGS.with_name("other"), disk.read)
    assert disk.calls == 1
    assert look(WELL, lambda: 1) == 1
    with pytest.raises(FileNotFoundError):
        look(WELL, failing)
    assert look.stalled == {HANGS, HANGS.with_name("other")}
    disk.lets.set()
    asyncio.run(look.answered([HANGS]))


def test_one_thread_for_each_file(disk: Disk) -> None:
    """However often it is asked, one call is under way; when it has returned, the next question is a new one."""

    async def story() -> None:
        patience = Patience(0.0)
        for _ in range(50):
            with pytest.raises(StalledError):
                await patience.ask(HANGS, disk.read)
        assert disk.calls == 1
        other = Patience(60.0)
        assert await other.ask(WELL, lambda: 1) == 1
        with pytest.raises(FileNotFoundError):
            await other.ask(WELL, failing)
        disk.lets.set()
        while True:
            try:
                assert await patience.ask(HANGS, lambda: 2) == 2
            except StalledError:
                await asyncio.sleep(0)
            else:
                break

    asyncio.run(story())


def test_who_gives_up_leaves_the_call_alone(disk: Disk) -> None:
    """A caller that is cancelled does not make the call a second one's, nor its result the second one's."""

    async def story() -> None:
        patience = Patience(60.0)
        first = asyncio.create_task(patience.ask(HANGS, disk.read))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = asyncio.create_task(patience.ask(HANGS, lambda: "second"))
        await asyncio.sleep(0)
        disk.lets.set()
        assert await second == "second"
        assert disk.calls == 1

    asyncio.run(story())
