"""While all looks the same nobody is woken; whatever happens to the look, no pause lasts for ever."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agent.host import quiet
from agent.host.quiet import Quiet


def test_a_pause_ends_with_the_first_change() -> None:
    """Looks that find nothing new do not end it; the first that does, does."""
    looks = iter([False, False, False, True])
    asyncio.run(Quiet(0.001, most=60.0).pause(lambda: next(looks)))
    assert next(looks, None) is None


def test_the_first_look_is_at_once() -> None:
    """Who compares with his own first look (the token's file is) misses only what changes before that."""
    asyncio.run(asyncio.wait_for(Quiet(60.0).pause(lambda: True), 30.0))


def test_it_ends_though_nothing_changes() -> None:
    """What a look cannot see must be seen some time."""
    asyncio.run(Quiet(0.001, most=0.01).pause(lambda: False))


def test_a_look_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a look wakes the loop, which looks in its own way."""
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    threads: list[threading.Thread] = []

    def fails() -> bool:
        threads.append(threading.current_thread())
        raise OSError("gone")

    asyncio.run(Quiet(0.001, most=60.0).pause(fails))
    threads[0].join()
    assert told


def test_a_look_that_hangs_ends_it_and_no_other_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that stalls holds one thread, however often somebody pauses, until it answers."""
    monkeypatch.setattr(quiet, "STALLED_SECONDS", 0.0)
    monkeypatch.setattr(quiet, "CHECKED_SECONDS", 0.001)
    answers, began = threading.Event(), threading.Event()
    looks: list[threading.Thread] = []

    def hangs() -> bool:
        looks.append(threading.current_thread())
        began.set()
        return answers.wait()

    async def scenario() -> None:
        pauses = Quiet(0.001, most=60.0)
        while not began.is_set():  # a pause may be over before its thread has come to look
            await pauses.pause(hangs)
        for _ in range(5):
            await pauses.pause(hangs)
        assert len(looks) == 1
        answers.set()
        await asyncio.to_thread(looks[0].join)
        while len(looks) < 2:
            await pauses.pause(hangs)

    asyncio.run(scenario())


def test_who_looks_elsewhere_notices_a_look_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that hangs ends its pause without the loop's being woken to see to it, as long as anybody else looks."""
    monkeypatch.setattr(quiet, "STALLED_SECONDS", 0.0)
    monkeypatch.setattr(quiet, "CHECKED_SECONDS", 3600.0)
    answers = threading.Event()

    async def scenario() -> None:
        other = asyncio.create_task(Quiet(0.001, most=3600.0).pause(lambda: False))
        await Quiet(0.001, most=3600.0).pause(answers.wait)
        other.cancel()
        await asyncio.wait({other})
        answers.set()

    asyncio.run(asyncio.wait_for(scenario(), 60.0))


def test_who_is_cancelled_leaves_no_thread() -> None:
    """The thread of a pause that nobody waits for any more ends with its next look."""
    began = threading.Event()
    threads: list[threading.Thread] = []

    def look() -> bool:
        threads.append(threading.current_thread())
        began.set()
        return False

    async def scenario() -> None:
        pause = asyncio.create_task(Quiet(0.001, most=60.0).pause(look))
        await asyncio.to_thread(began.wait)
        pause.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pause
        await asyncio.to_thread(threads[0].join)

    asyncio.run(scenario())
