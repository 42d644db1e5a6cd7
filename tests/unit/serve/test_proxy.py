"""What is asked of the real service: what is kept of it, who shares a question, and what each may have of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from agent.serve import proxy
from agent.serve.proxy import Proxy
from agent.snapshot import PASSED_CONNECTIONS
from agent.wire.http import Response
from tests.fakes.upstreams import Answer, Scripted, answer
from tests.unit.serve.test_asking import GREEDY, POLITE, settled

LEAF = "/leaf"


def body(found: Response | None) -> bytes | None:
    return None if found is None else found.body


@pytest.mark.parametrize(
    ("then", "found"),
    [
        (None, b"old"),
        (answer("no", 500), b"old"),
        (answer("no", 503), b"old"),
        (answer("no", 404), b"no"),
        (answer("new"), b"new"),
    ],
    ids=["silent", "broken", "busy", "gone", "another"],
)
def test_an_old_leaf_stands_in_for_a_service_that_fails(
    monkeypatch: pytest.MonkeyPatch, then: Answer | None, found: bytes
) -> None:
    """Of a leaf that is no longer fresh the service's word is what counts, if it has one; else the old one does."""

    async def scenario() -> None:
        real = Scripted({LEAF: answer("old")})
        asked = Proxy(real, seconds=60)
        assert body(await asked.static(LEAF)) == b"old"
        monkeypatch.setattr(proxy, "FRESH_SECONDS", 0.0)
        if then is None:
            real.broken = True
        else:
            real.answers[LEAF] = then
        assert body(await asked.static(LEAF)) == found
        assert len(real.asked) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("first", [404, 500, None])
def test_only_a_leaf_that_is_there_is_kept(first: int | None) -> None:
    """What could not be had a moment ago is asked for again, and is there for whoever asks then."""

    async def scenario() -> None:
        real = Scripted({LEAF: answer("no", first or 200)})
        real.broken = first is None
        asked = Proxy(real, seconds=60)
        before = await asked.static(LEAF)
        assert (before is None) == (first is None)
        real.broken, real.answers[LEAF] = False, answer("yes")
        assert body(await asked.static(LEAF)) == b"yes"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "hang_seconds", "questions"),
    [("GET", 0.0, 1), ("GET", 30.0, 3), ("PUT", 0.0, 3), ("POST", 0.0, 3), ("DELETE", 0.0, 3)],
)
def test_who_asks_for_the_same_at_the_same_time_is_one_question(
    method: str, hang_seconds: float, questions: int
) -> None:
    """What is looked up is asked for once; each write, and each wait for a change, is one's own."""

    async def scenario() -> None:
        real = Scripted()
        real.gate = asyncio.Event()
        asked = Proxy(real, seconds=60)
        tasks = [
            asyncio.create_task(asked.fetch(method, LEAF, body=b"%d" % number, hang_seconds=hang_seconds))
            for number in range(3)
        ]
        await settled()
        assert len(real.asked) == questions
        real.gate.set()
        assert all(await asyncio.gather(*tasks))
        real.asked.clear()
        assert await asked.fetch(method, LEAF, hang_seconds=hang_seconds) is not None
        assert len(real.asked) == 1  # what is over is not shared

    asyncio.run(scenario())


def test_a_long_poll_that_has_ended_gives_its_place_back() -> None:
    """However many one worker has had, one after the other, there is a place for the next, and for another's."""

    async def scenario() -> None:
        asked = Proxy(Scripted(), seconds=60, connections=4)
        for _ in range(10):
            for who in (GREEDY, POLITE):
                assert await asked.fetch("GET", "/poll", hang_seconds=30, asker=who) is not None

    asyncio.run(scenario())


def test_the_oldest_long_poll_stays_while_another_has_more() -> None:
    """Those whom one worker begins later take each other's places, not the place of whoever was there before."""

    async def scenario() -> None:
        real = Scripted()
        real.gate = asyncio.Event()
        asked = Proxy(real, seconds=60, connections=8)
        polite = asyncio.create_task(asked.fetch("GET", "/polite", hang_seconds=60, asker=POLITE))
        await settled()
        greedy = [
            asyncio.create_task(asked.fetch("GET", f"/{number}", hang_seconds=60, asker=GREEDY)) for number in range(20)
        ]
        await settled()
        assert not polite.done()
        real.gate.set()
        assert await polite is not None
        await asyncio.gather(*greedy)

    asyncio.run(scenario())


@pytest.mark.parametrize(("connections", "most"), [(PASSED_CONNECTIONS, proxy.MADE_CONCURRENCY), (4, 2)])
def test_only_so_much_is_made_at_once(connections: int, most: int) -> None:
    """What the service makes leaves it to what is looked up, which goes on beside it."""

    async def scenario() -> None:
        real = Scripted()
        real.gate = asyncio.Event()
        asked = Proxy(real, seconds=60, connections=connections)
        tasks = [asyncio.create_task(asked.fetch("GET", f"/{n}", made=True, asker=GREEDY)) for n in range(20)]
        await settled()
        assert real.under_way == most
        tasks.append(asyncio.create_task(asked.fetch("GET", LEAF, asker=GREEDY)))
        await settled()
        assert real.under_way == most + 1
        real.gate.set()
        assert all(await asyncio.gather(*tasks))

    asyncio.run(scenario())


@pytest.mark.parametrize(("made", "most"), [(True, 3), (False, 6)])
def test_what_is_made_is_counted_by_itself(monkeypatch: pytest.MonkeyPatch, made: bool, most: int) -> None:
    """No more is made than the service is to make, however much more may be looked up."""
    monkeypatch.setattr(proxy, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(proxy, "MADE_AT_ONCE", 3)

    async def scenario() -> None:
        real = Scripted()
        asked = Proxy(real, seconds=60)
        tasks = [
            asyncio.create_task(asked.fetch("GET", f"/{number}", made=made, asker=who))
            for number, who in enumerate([GREEDY, POLITE] * 3)
        ]
        await settled()
        assert len(real.asked) == most
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


def test_one_who_asks_alone_leaves_something_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """From where half of what all may ask is used up, one is refused what is beyond their own share, at once."""
    monkeypatch.setattr(proxy, "time", SimpleNamespace(monotonic=lambda: 0.0))  # nothing is gained meanwhile

    async def scenario() -> None:
        real = Scripted()
        asked = Proxy(real, seconds=60)
        found = [await asked.fetch("GET", f"/{number}", asker=GREEDY) for number in range(int(proxy.ASKED_AT_ONCE))]
        assert found[int(proxy.ASKED_AT_ONCE / 2 + proxy.ASKED_AT_ONCE_BY_ONE) + 1] is None
        assert found[-1] is None
        assert await asked.fetch("GET", LEAF, asker=POLITE) is not None

    asyncio.run(scenario())


def test_large_answers_go_out_in_turns_of_the_owners() -> None:
    """Behind many of one worker's that came at once, another's is among the next to go out."""

    async def scenario() -> None:
        real = Scripted()
        real.always = answer(b"x" * (proxy.LARGE_BYTES + 1))
        real.gate = asyncio.Event()
        asked = Proxy(real, seconds=60)
        order = list[str]()

        async def one(path: str, who: object) -> None:
            assert await asked.fetch("GET", path, asker=who) is not None  # type: ignore[arg-type]
            order.append(path)

        tasks = [asyncio.create_task(one(f"/{number}", GREEDY)) for number in range(10)]
        tasks.append(asyncio.create_task(one("/polite", POLITE)))
        await settled()
        real.gate.set()
        await asyncio.gather(*tasks)
        assert order.index("/polite") <= 3

    asyncio.run(scenario())


def test_a_field_that_would_split_the_answer_stays_here() -> None:
    """Neither a line's end in a field of the real service's nor a field that is not known goes on."""

    async def scenario() -> None:
        real = Scripted({LEAF: answer("x", ETag="a\r\nSet-Cookie: b", Last_Modified="now", Set_Cookie="c")})
        found = await Proxy(real, seconds=60).fetch("GET", LEAF)
        assert found is not None
        assert found.headers == (("Content-Type", "text/plain"), ("Last-Modified", "now"))

    asyncio.run(scenario())
