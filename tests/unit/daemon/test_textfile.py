"""The metrics as a file: when it is written, who may read it, and that it does not outlive what it says."""

from __future__ import annotations

import asyncio
import grp
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import structlog

from agent import config
from agent.config import Metrics
from agent.core.errors import ConfigError
from agent.daemon.textfile import Textfile
from tests.fakes.clock import FakeClock


class World:
    """A textfile whose settings, content and time the test sets."""

    def __init__(self, root: Path) -> None:
        self.path = root / "agent.prom"
        self.settings = Metrics(textfile=str(self.path), seconds=15.0)
        self.content = b"a 1\n"
        self.clock = FakeClock()
        self.file = Textfile(lambda: self.settings, self.render, self.clock)

    def render(self) -> bytes:
        if not self.content:
            raise RuntimeError("a defect")
        return self.content

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.file.run())
        try:
            await self.slept()
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def slept(self) -> None:
        """It has done what was due and waits for its next time."""
        while not self.clock.sleeping:  # noqa: ASYNC110 - a thread writes meanwhile
            await asyncio.sleep(0.001)

    async def next(self) -> None:
        await self.clock.advance(self.settings.seconds)
        await self.slept()


def found(world: World) -> list[str]:
    """What lies where the file is."""
    return [path.name for path in world.path.parent.iterdir()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def written_and_gone(world: World) -> None:
    async with world.running():
        assert world.path.read_bytes() == b"a 1\n"
        world.content = b"a 2\n"
        assert world.path.read_bytes() == b"a 1\n"
        await world.next()
        assert world.path.read_bytes() == b"a 2\n"
        assert stat.S_IMODE(world.path.stat().st_mode) == 0o640
        assert found(world) == ["agent.prom"]
    assert found(world) == []


def test_it_is_written_again_and_again_and_taken_away_at_the_end(world: World) -> None:
    """The file has the newest metrics, is only its group's, and ends with the process: nobody takes it for alive."""
    asyncio.run(written_and_gone(world))


async def moved(world: World) -> None:
    async with world.running():
        other = world.path.with_name("other.prom")
        world.settings = msgspec.structs.replace(world.settings, textfile=str(other))
        await world.next()
        assert found(world) == ["other.prom"]
        world.settings = Metrics()
        await world.next()
        assert found(world) == []


async def moved_at_once(world: World) -> None:
    async with world.running():
        world.settings = msgspec.structs.replace(world.settings, textfile=str(world.path.with_name("other.prom")))
        world.file.every.changed()
        async with asyncio.timeout(10):
            while found(world) != ["other.prom"]:  # noqa: ASYNC110 - a thread writes meanwhile
                await asyncio.sleep(0.001)


def test_a_reload_is_heeded_at_once(world: World) -> None:
    """Nobody waits for the interval of before, which may have been a day."""
    asyncio.run(moved_at_once(world))


async def asked_for_later(world: World) -> None:
    wanted, world.settings = world.settings, Metrics()
    async with world.running():
        waits = world.clock.next_waking()
        assert waits is not None
        assert waits > 3600
        world.settings = wanted
        world.file.every.changed()
        async with asyncio.timeout(60):
            while found(world) != ["agent.prom"]:  # noqa: ASYNC110 - a thread writes meanwhile
                await asyncio.sleep(0.001)
        await world.slept()
        world.content = b"a 2\n"
        await world.next()
        assert world.path.read_bytes() == b"a 2\n"


def test_where_no_file_is_wanted_nothing_is_done_until_one_is(world: World) -> None:
    """An agent that writes no metrics is not woken for them, and begins as soon as a reload says so."""
    asyncio.run(asked_for_later(world))


def test_a_reload_leaves_nothing_where_it_was(world: World) -> None:
    """A file that moves, or is wanted no longer, does not stay behind to be scraped for ever."""
    asyncio.run(moved(world))


async def swept(world: World) -> None:
    left = world.path.with_name(".agent.prom.0123456789ab")
    left.write_text("half")
    async with world.running():
        assert found(world) == ["agent.prom"]


def test_what_a_killed_writer_left_is_removed(world: World) -> None:
    """Half a file of a process that was killed goes at the next start."""
    asyncio.run(swept(world))


async def troubled(world: World, error: str) -> list[str]:
    with structlog.testing.capture_logs() as logs:
        async with world.running():
            assert world.file.trouble is not None
            assert error in world.file.trouble
            await world.next()  # nothing new, so nothing is said
            world.path.parent.mkdir(exist_ok=True)
            world.settings = msgspec.structs.replace(world.settings, group=None)
            world.content = b"a 3\n"
            await world.next()
            assert world.file.trouble is None
            assert world.path.read_bytes() == b"a 3\n"
    return [log["event"] for log in logs]


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        ("directory", "cannot be written"),
        ("group", "expected a group of this machine"),
        ("defect", "internal error: RuntimeError"),
    ],
)
def test_what_cannot_be_written_is_said_once_and_tried_again(tmp_path: Path, breakage: str, words: str) -> None:
    """A missing directory or group, or a defect of ours, costs this file alone; it is said once, and when it is over."""
    world = World(tmp_path / "run" if breakage == "directory" else tmp_path)
    if breakage == "group":
        world.settings = msgspec.structs.replace(world.settings, group="no-such-group")
    if breakage == "defect":
        world.content = b""
    assert asyncio.run(troubled(world, words)) == ["metrics.not_written", "metrics.written"]


async def given(world: World, group: str) -> int:
    world.settings = msgspec.structs.replace(world.settings, group=group)
    async with world.running():
        return world.path.stat().st_gid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to any group")
def test_it_is_given_to_its_group(world: World) -> None:
    """Whoever is to read it is a member of the group that the configuration names."""
    assert asyncio.run(given(world, "daemon")) == grp.getgrnam("daemon").gr_gid


def test_a_collector_would_not_see_another_name() -> None:
    """A path that does not end in .prom is refused, since node_exporter reads no other."""
    with pytest.raises(ConfigError, match=r"metrics\.textfile: expected an absolute path that ends in \.prom"):
        config.parse('[metrics]\ntextfile = "/run/x.txt"\n', origin="x")


def test_it_is_no_other_file_of_ours() -> None:
    """The metrics do not take the place of the environment file."""
    with pytest.raises(ConfigError, match=r"metrics\.textfile: expected another path than environment\.file"):
        config.parse('[environment]\nfile = "/run/x.prom"\n[metrics]\ntextfile = "/run//x.prom"\n', origin="x")
