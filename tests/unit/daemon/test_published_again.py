"""Files that programs read, on a disk that refuses, or beside somebody who removes them: no secret stays, none is missed."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from pathlib import Path

import pytest
import structlog

from agent.core.errors import HostError
from agent.core.model import Action
from agent.core.secret import Secret
from agent.core.verdict import Policy
from agent.daemon import publish
from tests.fakes.clock import START
from tests.unit.daemon.test_publish import TOKEN, World, env, settings
from tests.unit.daemon.test_reload_between import come_true
from tests.unit.identity.worlds import bundle, session

SECRET = "very-secret"
NEVER = 3600.0


class Disk:
    """Refuses to write, or to remove, while it is told to; or the machine has no memory or thread for it."""

    def __init__(self, patch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.refuses = False
        self._error = HostError("no space left on device") if error is None else error
        self.refused = asyncio.Event()
        for name in ("write_atomic", "_remove"):
            patch.setattr(publish, name, self._asked(name, getattr(publish, name)))

    def _asked(self, name: str, real: object) -> object:
        loop = asyncio.get_running_loop()

        def ask(*args: object, **more: object) -> object:
            if self.refuses:
                if name == "_remove":
                    loop.call_soon_threadsafe(self.refused.set)
                raise self._error
            return real(*args, **more)  # type: ignore[operator]

        return ask

    async def full(self) -> None:
        """Until a file was not removed, which comes last."""
        self.refused.clear()
        async with asyncio.timeout(60):
            await self.refused.wait()


def holders(root: Path) -> list[str]:
    return [path.name for path in sorted(root.iterdir()) if SECRET.encode() in path.read_bytes()]


def numbers(root: Path) -> dict[str, int]:
    """Of the files: another one was written anew."""
    return {path.name: path.stat().st_ino for path in root.iterdir()}


async def taken(world: World) -> None:
    world.take(bundle(session(), env(MYAPP_TOKEN=SECRET)))
    assert (await world.written())["MYAPP_TOKEN"] == SECRET


def test_a_disk_that_is_full_keeps_no_secret_that_was_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be replaced is emptied of it; the token, which nothing withdraws, stays. All is written once it can be."""
    monkeypatch.setattr(publish, "RETRY_SECONDS", NEVER)
    world = World(tmp_path, container_file=str(tmp_path / "container"))

    async def story() -> None:
        disk = Disk(monkeypatch)
        await taken(world)
        assert len(holders(tmp_path)) == 3
        disk.refuses = True
        world.take(bundle(seq=2, action=Action.WITHDRAW))
        with structlog.testing.capture_logs() as logs:
            world.publisher.changed()
            await come_true(lambda: world.publisher.trouble is not None)
        assert [line["event"] for line in logs] == ["environment.not_written"]
        assert holders(tmp_path) == []
        assert (tmp_path / "token_file").read_text() == TOKEN.reveal()
        disk.refuses = False
        world.publisher.changed()
        await come_true(lambda: world.publisher.trouble is None)
        assert "MYAPP_TOKEN" not in await world.written()

    asyncio.run(story())


@pytest.mark.parametrize("error", [None, MemoryError(), BlockingIOError(errno.EAGAIN, "no thread")])
def test_a_file_that_a_reload_moved_is_removed_as_soon_as_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """It holds a bundle's variables: a disk, or a machine, that refuses once is asked again, without a word."""
    monkeypatch.setattr(publish, "RETRY_SECONDS", 0.01)
    world = World(tmp_path)

    async def story() -> None:
        disk = Disk(monkeypatch, error)
        await taken(world)
        disk.refuses = True
        moved = settings(tmp_path, file=str(tmp_path / "elsewhere"))
        world.publisher.reconfigure(moved, gid=None, expects_bundle=True)
        await disk.full()
        disk.refuses = False
        await come_true(lambda: not (tmp_path / "file").exists() and world.publisher.trouble is None)

    asyncio.run(story())
    assert holders(tmp_path) == ["elsewhere", "shell_file"]


def look(world: World) -> None:
    """As it is done again and again."""
    if world.publisher.missing()():
        world.publisher.changed()


@pytest.mark.parametrize("gone", ["file", "shell_file", "token_file"])
def test_what_somebody_has_removed_is_there_after_the_next_look(tmp_path: Path, gone: str) -> None:
    """Any of them; and a look that misses none writes nothing."""
    world = World(tmp_path)

    async def story() -> None:
        await world.written()
        before = numbers(tmp_path)
        look(world)
        await world.publisher.settled(30)
        assert numbers(tmp_path) == before
        (tmp_path / gone).unlink()
        look(world)
        await world.publisher.settled(30)
        assert (tmp_path / gone).exists()

    asyncio.run(story())


def test_whether_the_token_of_now_is_in_its_file(tmp_path: Path) -> None:
    """Not before it was written, and not while another one is."""
    world = World(tmp_path)
    assert not world.publisher.token_written
    asyncio.run(world.written())
    assert world.publisher.token_written
    world.publisher.token = Secret("n" * 43)
    assert not world.publisher.token_written
    asyncio.run(world.written())
    assert world.publisher.token_written


def test_containers_are_led_to_a_cloud_that_is_awaited_or_served(tmp_path: Path) -> None:
    """As programs on the machine are: before the first bundle where one may come, and with it."""
    world = World(tmp_path, policy=Policy())
    for work in world.store.due(START):
        world.store.put(work, None, START)

    def found() -> Mapping[str, str]:
        return world.publisher.variables(world.clock.now(), container=True)

    led = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"
    assert led in found()
    world.publisher.expects_bundle = False
    assert led not in found()
    world.take(bundle(session()))
    assert led in found()


def test_what_is_refused_no_more_is_not_told(tmp_path: Path) -> None:
    """A bundle without such variables is no reason for a warning."""
    world = World(tmp_path)

    async def told() -> list[str]:
        world.take(bundle(env(LD_PRELOAD="x")))
        await world.written()
        with structlog.testing.capture_logs() as logs:
            world.take(bundle(env(MYAPP_TOKEN="x"), seq=2))
            await world.written()
        return [line["event"] for line in logs]

    assert asyncio.run(told()) == []


def test_a_reload_replaces_whose_the_files_are_and_what_is_awaited(tmp_path: Path) -> None:
    """Both, whatever they were."""
    world = World(tmp_path)

    async def story() -> None:
        await world.written()
        world.publisher.reconfigure(settings(tmp_path), gid=0, expects_bundle=False)
        assert (world.publisher.gid, world.publisher.expects_bundle) == (0, False)
        await world.publisher.settled(30)

    asyncio.run(story())
