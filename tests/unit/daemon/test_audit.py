"""The lines of the audit: how many, what is in them, and what they wait for."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from agent.config import Audit as Settings
from agent.core.model import Cloud
from agent.core.served import NOT_ASKED, Given, Serving, Who
from agent.daemon import audit as module
from agent.daemon.audit import MOST_AGENTS, MOST_ROWS, Audit
from agent.host import cgroups
from agent.host.rotated import append
from tests.fakes.clock import FakeClock, settle

GIVEN = Given("ec2", Cloud.AWS, "credential", "arn:aws:iam::1:role/reader", "ABCD")
ALICE = Who(uid=1000)


class World:
    """An audit whose counts and time the test sets."""

    def __init__(self, *, each_agent: bool = False, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.clock = FakeClock()
        self.audit = Audit(lambda: self.settings, self.clock, each_agent=each_agent)

    def ask(self, count: int = 1, who: Who = ALICE, agent: str = "Boto3/1", given: Given = GIVEN) -> None:
        self.audit.hear((Serving(given, who, agent, count),), ())


@pytest.fixture
def lines() -> Iterator[list[MutableMapping[str, Any]]]:
    with structlog.testing.capture_logs() as logs:
        yield logs


def served(lines: list[MutableMapping[str, Any]]) -> list[MutableMapping[str, Any]]:
    return [line for line in lines if line["event"] == "credential.served"]


async def burst(world: World) -> None:
    task = asyncio.create_task(world.audit.run())
    await settle()
    for _ in range(30):
        world.ask(1000)
        await world.clock.advance(1.0)
    await world.clock.advance(world.settings.seconds - 30)
    await world.clock.advance(10 * world.settings.seconds)  # nothing more comes, and nothing more is said
    world.ask(5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await world.audit.last()


def test_a_burst_is_one_line(lines: list[MutableMapping[str, Any]]) -> None:
    """Thirty thousand requests of one asker within the time are one line with their number; a quiet worker has none."""
    asyncio.run(burst(World()))
    first, last = served(lines)
    assert first == {
        "event": "credential.served", "log_level": "info", "cloud": "aws", "dialect": "ec2", "kind": "credential",
        "identity": GIVEN.identity, "access_key_id": "...ABCD", "caller": "user", "uid": 1000, "cgroup": None,
        "address": None, "user_agents": ["Boto3/1"], "count": 30_000, "first": "2026-11-24T12:00:00Z",
        "last": "2026-11-24T12:00:29Z",
    }  # fmt: skip
    assert last["count"] == 5, "the last ones are told at the end"


async def told(world: World) -> None:
    await world.audit.tell()
    await world.audit.written()


@pytest.mark.parametrize(("each_agent", "expected"), [(False, 3), (True, 2 + 2 * MOST_AGENTS)])
def test_an_asker_has_a_line_and_in_full_each_of_its_programs(
    lines: list[MutableMapping[str, Any]], *, each_agent: bool, expected: int
) -> None:
    """By key and asker; programs are named in the line, a few of them, or have lines of their own."""
    world = World(each_agent=each_agent)
    for number in range(2 * MOST_AGENTS):
        world.ask(agent=f"program/{number}")
    world.ask(who=Who(uid=1001))
    world.ask(given=msgspec.structs.replace(GIVEN, key="WXYZ"))
    asyncio.run(told(world))
    found = served(lines)
    assert len(found) == expected
    assert sum(line["count"] for line in found) == 2 * MOST_AGENTS + 2
    assert all(len(line["user_agents"]) <= MOST_AGENTS for line in found)


def test_there_are_never_more_lines_than_a_bound(lines: list[MutableMapping[str, Any]]) -> None:
    """However many there are who ask: what is above the bound is told without its asker, and counted."""
    world = World()
    for uid in range(3 * MOST_ROWS):
        world.ask(who=Who(uid=uid))
    asyncio.run(told(world))
    found = served(lines)
    assert len(found) == MOST_ROWS + 1
    assert sum(line["count"] for line in found) == 3 * MOST_ROWS
    assert found[-1]["uid"] is None


def test_whoever_invents_names_hides_nobody(lines: list[MutableMapping[str, Any]]) -> None:
    """A thousand programs of one asker: what comes above the bound has no name, and others their line with their uid."""
    world = World(each_agent=True)
    for number in range(3 * MOST_ROWS):
        world.ask(agent=f"x/{number}")
    world.ask(who=Who(uid=1001))
    asyncio.run(told(world))
    assert {line["uid"] for line in served(lines)} == {1000, 1001}
    assert len(served(lines)) == MOST_ROWS + 2


def test_off_writes_nothing_and_counts(lines: list[MutableMapping[str, Any]], tmp_path: Path) -> None:
    """Without an audit the metrics go on."""
    world = World(mode="off", file=str(tmp_path / "audit"))
    world.ask(7)
    world.audit.hear((), (("host", 3),))
    asyncio.run(told(world))
    assert lines == []
    assert not (tmp_path / "audit").exists()
    assert world.audit.served == {("aws", "ec2", "user"): 7}
    assert world.audit.refused == {"host": 3}


def test_whose_it_was_when_the_kernel_was_not_asked(lines: list[MutableMapping[str, Any]]) -> None:
    """A container's address is told, and a flood is said to be nobody's rather than somebody else's."""
    world = World()
    world.ask(who=Who(address="172.17.0.5"))
    world.ask(900, who=NOT_ASKED, agent="")
    asyncio.run(told(world))
    assert [(line["caller"], line["uid"], line["address"], line["count"]) for line in served(lines)] == [
        ("forwarded", None, "172.17.0.5", 1), ("unknown", None, None, 900),
    ]  # fmt: skip


def test_the_control_group_is_named(
    lines: list[MutableMapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its path, plain whatever its user called it; one that is gone is told by its id."""
    group = tmp_path / "user.slice" / "evil\n{name}"
    group.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").touch()
    names = cgroups.names
    monkeypatch.setattr(cgroups, "names", lambda wanted: names(wanted, tmp_path))
    world = World()
    world.ask(who=Who(uid=1000, cgroup=group.stat().st_ino))
    world.ask(who=Who(uid=1000, cgroup=1 << 60))
    asyncio.run(told(world))
    assert [line["cgroup"] for line in served(lines)] == ["/user.slice/evil\\x0a{name}", f"id {1 << 60}, gone"]


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), PermissionError(13, "x")])
def test_what_goes_wrong_with_a_name_or_a_file_ends_nothing(
    lines: list[MutableMapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Without a thread there are no names and no file; the lines are told all the same, and kept for the file."""
    path = tmp_path / "audit"
    world = World(file=str(path))
    world.ask(who=Who(uid=1000, cgroup=7))

    async def to_thread(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "to_thread", to_thread)
        asyncio.run(told(world))
    assert len(served(lines)) == 1
    assert world.audit.trouble is not None
    world.ask()
    asyncio.run(told(world))
    assert len(read(path)) == 2
    assert world.audit.trouble is None


@pytest.mark.parametrize("again", [False, True], ids=["names that never come", "names that come then"])
def test_who_is_ended_while_names_are_looked_up_loses_no_line(
    lines: list[MutableMapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, again: bool
) -> None:
    """What was given just before the end is told once, and a name that could not be had is not said to be gone."""
    world = World(file=str(tmp_path / "audit"))

    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    async def ended() -> None:
        running = asyncio.create_task(world.audit.run())
        await settle()
        world.ask(3, who=Who(uid=1000, cgroup=7))
        with monkeypatch.context() as patched:
            patched.setattr(asyncio, "to_thread", hang)
            await world.clock.advance(world.settings.seconds)
            world.ask(2, who=Who(uid=1000, cgroup=8))
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            if not again:
                await world.audit.last()
        if again:
            monkeypatch.setattr(cgroups, "names", lambda ids: {7: "/seven", 8: None})
            await world.audit.last()

    monkeypatch.setattr(module, "END_SECONDS", 0.01 if not again else 20.0)
    asyncio.run(ended())
    named = ["/seven", "id 8, gone"] if again else ["id 7", "id 8"]
    assert [(line["cgroup"], line["count"]) for line in served(lines)] == list(zip(named, [3, 2], strict=True))
    if again:
        assert len(read(tmp_path / "audit")) == 2


def test_who_comes_while_names_are_looked_up_is_named_the_next_time(
    lines: list[MutableMapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told at once it would have no name, as if that could not be had."""
    world, asked, go = World(), threading.Event(), threading.Event()

    def names(ids: set[int]) -> dict[int, str | None]:
        asked.set()
        go.wait(60)
        return {number: f"/{number}" for number in ids}

    async def scenario() -> None:
        world.ask(who=Who(uid=1000, cgroup=7))
        telling = asyncio.create_task(world.audit.tell())
        while not asked.is_set():  # noqa: ASYNC110 - a thread tells no loop
            await asyncio.sleep(0)
        world.ask(who=Who(uid=1000, cgroup=8))
        go.set()
        await telling
        assert [line["cgroup"] for line in served(lines)] == ["/7"]
        await world.audit.tell()
        assert [line["cgroup"] for line in served(lines)] == ["/7", "/8"]

    monkeypatch.setattr(module, "LOOK_SECONDS", 60.0)
    monkeypatch.setattr(cgroups, "names", names)
    asyncio.run(scenario())


def test_a_strangers_words_stay_on_their_line(lines: list[MutableMapping[str, Any]]) -> None:
    """Whoever tells the counts is not believed either: what it says of a client is made plain once more."""
    world = World()
    world.ask(agent='x\n{"event": "credential.served", "uid": 0}')
    asyncio.run(told(world))
    (line,) = served(lines)
    assert line["user_agents"] == ['x\\x0a{"event": "credential.served", "uid": 0}']


# -- the file ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_file_has_the_same_lines(lines: list[MutableMapping[str, Any]], tmp_path: Path) -> None:
    """The file has the same lines as the log, as JSON, for nobody but the agent and root."""
    path = tmp_path / "audit.jsonl"
    world = World(file=str(path))
    world.ask(3)
    asyncio.run(told(world))
    world.ask(4)
    asyncio.run(told(world))
    assert read(path) == [{key: line[key] for key in line if key != "log_level"} for line in served(lines)]
    assert [line["count"] for line in read(path)] == [3, 4]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to any group")
def test_a_group_may_read_the_file(lines: list[MutableMapping[str, Any]], tmp_path: Path) -> None:
    """Where the configuration names one."""
    world = World(file=str(tmp_path / "audit"), group="daemon")
    world.ask()
    asyncio.run(told(world))
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o640
    assert served(lines)


def test_lines_wait_for_a_file_that_does_not_take_them(lines: list[MutableMapping[str, Any]], tmp_path: Path) -> None:
    """It is said once, lines are kept up to a bound, and those that go are counted."""
    path = tmp_path / "away" / "audit"
    world = World(file=str(path))
    for number in range(3):
        world.ask(number + 1)
        asyncio.run(told(world))
    assert [line["event"] for line in lines if line["event"].startswith("audit.")] == ["audit.not_written"]
    assert world.audit.trouble is not None
    path.parent.mkdir()
    world.ask(4)
    asyncio.run(told(world))
    assert [line["count"] for line in read(path)] == [1, 2, 3, 4]
    assert world.audit.trouble is None
    assert world.audit.dropped == 0


def test_lines_are_tried_again_though_nobody_asks(lines: list[MutableMapping[str, Any]], tmp_path: Path) -> None:
    """A quiet worker's file gets what it lacks as soon as it takes it; one that is wanted no more is no trouble."""
    path = tmp_path / "away" / "audit"
    world = World(file=str(path))
    world.ask(1)
    asyncio.run(told(world))
    path.parent.mkdir()
    asyncio.run(told(world))
    assert [line["count"] for line in read(path)] == [1]
    assert world.audit.trouble is None
    world.settings = Settings(file=str(tmp_path / "nowhere" / "audit"))
    world.ask(2)
    asyncio.run(told(world))
    assert world.audit.trouble is not None
    world.settings = Settings()
    asyncio.run(told(world))
    assert world.audit.trouble is None


def test_what_was_given_while_the_file_was_written_is_in_it_at_the_end(
    lines: list[MutableMapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end waits for what is under way, and then for what came meanwhile: nobody would write that later."""
    path = tmp_path / "audit"
    world, go = World(file=str(path)), threading.Event()

    def slow(*given: Any, **more: Any) -> None:
        go.wait(60)
        append(*given, **more)

    async def scenario() -> None:
        world.ask(1)
        await world.audit.tell()
        world.ask(2)
        ending = asyncio.create_task(world.audit.last())
        await settle()
        go.set()
        await ending

    monkeypatch.setattr(module, "END_SECONDS", 60.0)
    monkeypatch.setattr(module, "append", slow)
    asyncio.run(scenario())
    assert [line["count"] for line in read(path)] == [line["count"] for line in served(lines)] == [1, 2]


def test_lines_that_a_file_never_takes_are_bounded_and_counted(
    lines: list[MutableMapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file does not take, the log has; what waits for it is bounded, and what goes is counted."""
    monkeypatch.setattr(module, "MOST_LINES_WAITING", 4)
    fifo = tmp_path / "audit"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    world = World(file=str(fifo))
    for number in range(10):
        world.ask(number + 1)
        asyncio.run(told(world))
    os.close(reader)
    assert len(served(lines)) == 10
    assert world.audit.dropped > 0
    assert world.audit.trouble is not None
    assert "expected a plain file" in world.audit.trouble
