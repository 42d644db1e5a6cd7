"""While all looks the same nobody is woken; whatever happens to the look, no pause lasts for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agent.host import quiet
from agent.host.quiet import Quiet
from tests.fakes.telling import Telling


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


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[Telling]:
    """What it tells; nobody looks for an hour without it."""
    monkeypatch.setattr(Telling, "begun", [])
    monkeypatch.setattr(quiet, "Watches", Telling)
    monkeypatch.setattr(quiet, "TOLD_SECONDS", 3600.0)
    return Telling


class Looks:
    """Looks, and counts."""

    def __init__(self) -> None:
        self.count = 0
        self.changed = False

    def __call__(self) -> bool:
        self.count += 1
        return self.changed


FILES = (Path("file"),)


async def come_true(it: Callable[[], bool]) -> None:
    """Wait for what a thread brings about."""
    async with asyncio.timeout(60):
        while not it():  # noqa: ASYNC110 - a thread announces itself to nobody
            await asyncio.sleep(0.001)


def test_where_the_kernel_tells_nobody_looks_until_it_does(kernel: type[Telling]) -> None:
    """One look before the file is watched, one after, since it may have changed in between, and one when it is told."""

    async def scenario() -> None:
        looks = Looks()
        pause = asyncio.create_task(Quiet(0.001).pause(looks, FILES))
        await come_true(lambda: looks.count == 2)
        looks.changed = True
        kernel.begun[0].told.set()
        await asyncio.wait_for(pause, 60.0)
        assert looks.count == 3
        assert kernel.begun[0].closed.is_set()

    asyncio.run(scenario())


def test_what_changes_before_it_is_watched_is_seen(kernel: type[Telling], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first look and the watches there is a moment of which nobody tells."""
    looks, begin = Looks(), kernel.on

    def late(paths: Sequence[Path]) -> Telling:
        looks.changed = True
        return begin(paths)

    monkeypatch.setattr(kernel, "on", late)
    asyncio.run(asyncio.wait_for(Quiet(0.001).pause(looks, FILES), 60.0))


def test_what_is_told_and_changes_nothing_is_looked_for_again(kernel: type[Telling]) -> None:
    """Whoever was told for nothing looks by himself for a while: it may happen again at once, and would cost more."""

    async def scenario() -> None:
        looks = Looks()
        pause = asyncio.create_task(Quiet(0.001).pause(looks, FILES))
        await come_true(lambda: looks.count == 2)
        kernel.begun[0].told.set()
        await come_true(lambda: looks.count > 5)
        looks.changed = True
        await asyncio.wait_for(pause, 60.0)
        assert len(kernel.begun) == 1

    asyncio.run(scenario())


def test_what_is_not_told_is_seen_all_the_same(kernel: type[Telling], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written by another way than the kernel tells of is found by a look that comes once in a while."""
    monkeypatch.setattr(quiet, "TOLD_SECONDS", 0.001)

    async def scenario() -> None:
        looks = Looks()
        pause = asyncio.create_task(Quiet(0.001).pause(looks, FILES))
        await come_true(lambda: looks.count > 5)
        looks.changed = True
        await asyncio.wait_for(pause, 60.0)
        assert len(kernel.begun) == 1

    asyncio.run(scenario())


def test_where_the_kernel_does_not_tell_it_is_looked_for(
    kernel: type[Telling], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel without room for watches, and a file system that others may write, cost no change."""
    monkeypatch.setattr(kernel, "on", lambda _: None)

    async def scenario() -> None:
        looks = Looks()
        pause = asyncio.create_task(Quiet(0.001).pause(looks, FILES))
        await come_true(lambda: looks.count > 5)
        looks.changed = True
        await asyncio.wait_for(pause, 60.0)

    asyncio.run(scenario())


def test_as_long_as_one_must_look_all_do(kernel: type[Telling]) -> None:
    """They notice a look of his that hangs; nobody else would, for long."""

    async def scenario() -> None:
        looks = Looks()
        told = asyncio.create_task(Quiet(0.001).pause(looks, FILES))
        await come_true(lambda: looks.count == 2)
        must = asyncio.create_task(Quiet(0.001).pause(lambda: False))  # nobody says what that one looks at
        await come_true(lambda: looks.count > 5)
        must.cancel()
        told.cancel()
        await asyncio.wait({must, told})
        await asyncio.to_thread(kernel.begun[0].closed.wait)

    asyncio.run(scenario())


def test_who_is_stirred_looks(kernel: type[Telling]) -> None:
    """Something is otherwise of which the kernel does not tell."""

    async def scenario() -> None:
        looks, pauses = Looks(), Quiet(0.001)
        pause = asyncio.create_task(pauses.pause(looks, FILES))
        await come_true(lambda: looks.count == 2)
        looks.changed = True
        pauses.stir()
        await asyncio.wait_for(pause, 60.0)

    asyncio.run(scenario())


@pytest.mark.parametrize("looks", [1, 2])
def test_who_is_cancelled_while_the_kernel_is_waited_for_leaves_nothing(kernel: type[Telling], looks: int) -> None:
    """Neither a thread nor its watches, whether they were there already or not."""

    async def scenario() -> None:
        threads: list[threading.Thread] = []

        def look() -> bool:
            threads.append(threading.current_thread())
            return False

        pause = asyncio.create_task(Quiet(0.001).pause(look, FILES))
        await come_true(lambda: len(threads) >= looks)
        pause.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pause
        await asyncio.to_thread(threads[0].join)
        assert all(one.closed.is_set() for one in kernel.begun)

    asyncio.run(scenario())
