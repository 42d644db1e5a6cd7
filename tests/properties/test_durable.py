"""What was acknowledged as durable is remembered, whatever the disk does and whenever the process dies."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.controller import Durable
from agent.core.model import Action, Cloud
from agent.core.verdict import Accepted, Memory, Policy
from agent.core.view import Live
from agent.host.state import StateDirectory
from tests.fakes.clock import START, FakeClock
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import bundle, session

DISKS = ("well", "full", "read-only", "dying")


@contextmanager
def disk(kind: str, countdown: int) -> Iterator[None]:
    """The system calls on a disk in that state: full makes nothing new, dying fails from the n-th change on."""
    left = countdown

    def failing(real: Callable[..., Any], *, creates: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if real is open_ and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return real(*args, **kwargs)
            if kind == "read-only":
                raise OSError(errno.EROFS, "read-only file system")
            if kind == "dying" and left < 0:
                raise OSError(errno.EIO, "input/output error")
            if kind == "full" and (creates or (real is open_ and args[1] & os.O_CREAT)):
                raise OSError(errno.ENOSPC, "no space left on device")
            return real(*args, **kwargs)

        return call

    open_ = os.open
    if kind == "well":
        yield
        return
    with (
        mock.patch("os.open", failing(open_)),
        mock.patch("os.fsync", failing(os.fsync)),
        mock.patch("os.pwrite", failing(os.pwrite)),
        mock.patch.object(Path, "replace", failing(Path.replace)),
        mock.patch.object(Path, "unlink", failing(Path.unlink)),
        mock.patch.object(Path, "hardlink_to", failing(Path.hardlink_to)),
    ):
        yield


STEPS = st.lists(
    st.tuples(st.sampled_from(["set", "withdraw", "restart"]), st.sampled_from(DISKS), st.integers(0, 14)),
    min_size=1,
    max_size=12,
)


async def idle(durable: Durable) -> None:
    if durable._writer is not None:
        await asyncio.wait({durable._writer})


async def play(directory: Path, steps: list[tuple[str, str, int]]) -> None:
    clock = FakeClock()
    sealed: dict[bytes, Any] = {}

    def start() -> tuple[Store, Durable]:
        state = StateDirectory(directory)
        memory, data = state.load()
        store = Store(Policy(), memory, START, random.Random(1))
        durable = Durable(store, state, clock)
        if data is not None:
            durable.resume(sealed[data], data, START)
        return store, durable

    store, durable = start()
    durable.adopt("i-1", "b", {})
    await idle(durable)
    promised: tuple[int, str] | None = None  # the newest that was acknowledged as durable
    later: set[tuple[int, str]] = set()  # what came after it, and may be remembered or not
    for seq, (act, kind, countdown) in enumerate(steps, 1):
        if act == "restart":
            await idle(durable)  # a process that is gone writes no more
            store, durable = start()
            served = store.answer(Cloud.AWS, START)
            found = max((m.seq for m in store.memory.marks), default=0)
            assert found >= (promised[0] if promised else 0), "a sequence number was taken back"
            acts = {one[1] for one in later if one[0] == found} or ({promised[1]} if promised else set())
            if isinstance(served, Live):
                assert acts == {"set"}, "what was withdrawn came back"
            elif promised is not None and not later:
                assert promised[1] == "withdraw", "what was accepted is lost"
            continue
        action = Action.SET if act == "set" else Action.WITHDRAW
        made = bundle(*([session()] if act == "set" else []), seq=seq, action=action)
        data = b"bundle %d" % seq
        sealed[data] = made
        with disk(kind, countdown):
            outcome = await durable.submit(made, data)
        assert outcome is not None
        verdict, remembered = outcome
        assert isinstance(verdict, Accepted)
        assert isinstance(store.answer(Cloud.AWS, START), Live) is (act == "set"), "the disk stood in the way"
        if remembered:
            promised, later = (seq, act), set()
        else:
            later.add((seq, act))


@given(STEPS)
@settings(max_examples=120, deadline=None)
def test_what_is_acknowledged_as_durable_is_remembered(steps: list[tuple[str, str, int]]) -> None:
    """Under any order of bundles, withdrawals, restarts and disks that are full, read-only or dying in the middle."""
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(play(Path(directory), [*steps, ("restart", "well", 0)]))


def test_the_memory_outlives_a_disk_that_is_full_from_the_second_write_on() -> None:
    """With nothing new on the disk, ten withdrawals and as many restarts are remembered, each."""
    steps = [("set", "well", 0)]
    for _ in range(10):
        steps += [("withdraw", "full", 0), ("restart", "well", 0)]
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(play(Path(directory), steps))
        assert StateDirectory(Path(directory)).load()[0].marks[0].seq == len(steps) - 1
        assert isinstance(StateDirectory(Path(directory)).load()[0], Memory)
