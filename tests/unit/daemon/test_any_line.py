"""Whichever line of those that tell others what is served fails for once, for want of memory: they are told after all."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from agent.core.model import Action
from agent.core.secret import Secret
from agent.daemon import publish
from agent.server import words
from tests.fakes.clock import settle
from tests.fakes.faults import Fault, broken_by
from tests.unit.daemon.test_master_connection import Joined
from tests.unit.daemon.test_publish import World
from tests.unit.daemon.test_published_again import holders, look, taken
from tests.unit.daemon.test_snapshots import Told
from tests.unit.identity.worlds import bundle


async def called(work: Callable[[], object], fault: Fault) -> bool:
    """Have the loop do it, with the fault; whether it broke off."""
    loop, broke_off = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _loop, context: broke_off.append(context))
    with fault:
        loop.call_soon(work)
        await settle()
    return bool(broke_off)


def test_files_that_programs_read_keep_nothing_that_was_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next look after the failure, if not before."""
    monkeypatch.setattr(publish, "RETRY_SECONDS", 0.01)

    numbers = itertools.count()

    async def story(fault: Fault) -> None:
        root = tmp_path / str(next(numbers))
        root.mkdir()
        world = World(root)
        await taken(world)
        world.take(bundle(seq=2, action=Action.WITHDRAW))
        await called(world.publisher.changed, fault)
        await world.publisher.settled(30)
        look(world)
        await world.publisher.settled(30)
        assert holders(root) == []

    with structlog.testing.capture_logs():
        assert broken_by("daemon/publish", lambda fault: asyncio.run(story(fault))) == {}


def test_those_who_answer_workers_are_told_by_the_next_round() -> None:
    """Whoever made it be told hears that it broke off; else the round finds that it is outdated."""

    async def story(fault: Fault) -> None:
        told = Told()
        told.tokens = (Secret("two"),)
        if await called(told.snapshots.publish, fault) or told.snapshots.outdated:
            told.snapshots.publish()
        assert told.heard[-1].container_tokens == told.tokens
        assert told.served.version == told.heard[-1].version

    with structlog.testing.capture_logs():
        assert broken_by("daemon/snapshots", lambda fault: asyncio.run(story(fault))) == {}


def test_nothing_is_acknowledged_while_the_master_may_have_what_was_before() -> None:
    """What broke off counts as not given until it is given again; then what was before is empty."""

    async def story(fault: Fault) -> None:
        joined = Joined()
        joined.begin()
        (former,) = joined.heard()[1]
        joined.say(words.number(words.HAD, 1))
        await joined.until(lambda: joined.connection.settled)
        try:
            broke_off = await called(lambda: joined.connection.give(b"second"), fault)
            assert not joined.connection.settled
            if broke_off:
                joined.connection.give(b"third")
            assert os.pread(former, 1, 0) == b""
        finally:
            os.close(former)
            joined.close()

    assert broken_by("daemon/master_connection", lambda fault: asyncio.run(story(fault))) == {}
