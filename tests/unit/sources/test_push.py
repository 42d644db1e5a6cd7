"""The push source."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from agent.core.errors import SourceError
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.core.model import SealedBundle
from agent.core.source import Ack
from agent.sources import push
from agent.sources.push import PushSource
from tests.unit.sources.support import START, Listener, StepClock, run, watching


def test_a_push_returns_its_own_verdict() -> None:
    """Two pushes at once are evaluated one after the other, and each is told its own verdict."""

    async def test() -> None:
        source = PushSource(clock=StepClock())

        class Controller(Listener):
            async def submit(self, bundle: SealedBundle) -> Ack:  # type: ignore[override]
                await super().submit(bundle)
                await asyncio.sleep(0)
                return Ack(origin="push", outcome="accepted", at=START, seq=len(bundle.data))

        heard = Controller()
        async with watching(source, heard):
            await heard.until(lambda h: h.oks)
            acks = await asyncio.gather(source.push(b"1"), source.push(b"22"), source.push(b"22"))
            assert [ack.seq for ack in acks] == [1, 2, 2]
            assert heard.bodies == [b"1", b"22", b"22"]
            assert await source.fetch() is None

    run(test())


def test_a_push_that_comes_before_anybody_watches_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been sent before there was an agent, and is submitted as soon as it can be; for ever it does not wait."""

    async def test() -> None:
        source = PushSource(clock=StepClock())

        class Controller(Listener):
            async def submit(self, bundle: SealedBundle) -> Ack:  # type: ignore[override]
                await super().submit(bundle)
                return Ack(origin="push", outcome="accepted", at=START, seq=7)

        early = asyncio.create_task(source.push(b"1"))
        await asyncio.sleep(0)
        assert not early.done()
        async with watching(source, Controller()):
            assert (await early).seq == 7

        monkeypatch.setattr(push, "START_SECONDS", 0.0)
        with pytest.raises(SourceError, match="starting"):
            await PushSource(clock=StepClock()).push(b"x")

    run(test())


def test_what_cannot_be_a_bundle_is_not_submitted() -> None:
    """Too long or empty: an error to the pusher, and nothing is submitted."""

    async def test() -> None:
        source, heard = PushSource(clock=StepClock()), Listener()
        async with watching(source, heard):
            await heard.until(lambda h: h.oks)
            for data in (b"", b"x" * (MAX_BUNDLE_BYTES + 1)):
                with pytest.raises(SourceError, match="expected a bundle of"):
                    await source.push(data)
            assert heard.submitted == []

    run(test())


def test_who_leaves_before_its_turn_leaves_nothing_behind() -> None:
    """One that has begun is evaluated to its end; of those that wait none is kept whose sender has gone."""

    async def test() -> None:
        source, under_way, goes_on = PushSource(clock=StepClock()), 0, asyncio.Event()

        class Controller(Listener):
            async def submit(self, bundle: SealedBundle) -> Ack:  # type: ignore[override]
                nonlocal under_way
                under_way += 1
                assert under_way == 1
                await super().submit(bundle)
                await goes_on.wait()
                under_way -= 1
                return Ack(origin="push", outcome="accepted", at=START, seq=len(bundle.data))

        heard = Controller()
        async with watching(source, heard):
            begun = asyncio.create_task(source.push(b"1"))
            await heard.until(lambda h: h.submitted)
            left = [asyncio.create_task(source.push(b"22")) for _ in range(5)]
            last = asyncio.create_task(source.push(b"333"))
            await asyncio.sleep(0)
            for task in (begun, *left):
                task.cancel()
            await asyncio.gather(begun, *left, return_exceptions=True)
            assert under_way == 1
            goes_on.set()
            assert (await last).seq == 3
            assert heard.bodies == [b"1", b"333"]

    run(test())


def test_a_push_that_breaks_off_keeps_no_later_one_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory to begin with it, it fails; the next one, a withdrawal say, has its turn."""

    async def test() -> None:
        source, no_memory = PushSource(clock=StepClock()), MemoryError()

        class Controller(Listener):
            async def submit(self, bundle: SealedBundle) -> Ack:  # type: ignore[override]
                await super().submit(bundle)
                return Ack(origin="push", outcome="accepted", at=START, seq=len(bundle.data))

        def refused(work: Coroutine[Any, Any, Any], **_: object) -> None:
            work.close()
            raise no_memory

        heard = Controller()
        async with watching(source, heard):
            await heard.until(lambda h: h.oks)
            with monkeypatch.context() as lacking:
                lacking.setattr(asyncio, "create_task", refused)
                with pytest.raises(MemoryError):
                    await source.push(b"1")
            async with asyncio.timeout(60):
                assert (await source.push(b"22")).seq == 2

    run(test())
