"""What workers may have asked of the machine's metadata service, and minted: so much at once, so often, and in turns."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from agent.core.model import IdToken
from agent.core.secret import Secret
from agent.serve import mints, proxy
from agent.serve.mints import Mints
from agent.serve.proxy import Proxy
from tests.fakes.clock import START
from tests.fakes.upstreams import Scripted, answer


class Asker:
    """Who asks."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def owner(self) -> str:
        return self._name


GREEDY, POLITE = Asker("greedy"), Asker("polite")


async def settled() -> None:
    """Go round until nothing is left that need not wait for anybody."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_long_polls_leave_room_for_all_else() -> None:
    """However many one worker holds, the service has so many of them at once; another gets a place, and the rest an answer."""

    async def scenario() -> None:
        real = Scripted({"/fine": answer("x")})
        real.gate = asyncio.Event()
        asked = Proxy(real, seconds=60, connections=8)

        def poll(number: int, who: Asker) -> asyncio.Task[object]:
            return asyncio.create_task(asked.fetch("GET", f"/poll?{number}", hang_seconds=60, asker=who))

        polls = [poll(number, GREEDY) for number in range(50)]
        await settled()
        assert real.under_way == 4
        other = poll(50, POLITE)
        await settled()
        assert (real.under_way, real.asked[-1].path_qs, other.done()) == (4, "/poll?50", False)
        real.gate.set()
        found = await asyncio.wait_for(asked.fetch("GET", "/fine", asker=POLITE), 60)
        assert found is not None
        await asyncio.gather(*polls, other)

    asyncio.run(scenario())


def test_long_polls_weigh_what_their_answers_do() -> None:
    """Of those whose answers are large fewer wait, since all may come at once; a small one of another's still has a place."""

    async def scenario() -> None:
        real = Scripted()
        real.gate = asyncio.Event()
        asked = Proxy(real, seconds=60, connections=32)

        def poll(number: int, who: Asker, had_bytes: int) -> asyncio.Task[object]:
            path = f"/poll?{number}"
            return asyncio.create_task(asked.fetch("GET", path, hang_seconds=60, had_bytes=had_bytes, asker=who))

        polls = [poll(number, GREEDY, proxy.MAX_BODY_BYTES) for number in range(50)]
        await settled()
        assert 1 <= real.under_way <= 16 * proxy.PLACE_BYTES / proxy.MAX_BODY_BYTES
        other = poll(50, POLITE, 100)
        await settled()
        assert (real.asked[-1].path_qs, other.done()) == ("/poll?50", False)
        real.gate.set()
        await asyncio.gather(*polls, other)

    asyncio.run(scenario())


def test_the_service_is_asked_only_so_often() -> None:
    """Whoever asks without end is refused, before the address drops what the machine itself asks; another is heard."""

    async def scenario() -> None:
        real = Scripted()
        real.always = answer("x")
        asked = Proxy(real, seconds=60)
        began = time.monotonic()
        for number in range(5000):
            await asked.fetch("GET", f"/{number}", asker=GREEDY)
        passed = time.monotonic() - began
        assert len(real.asked) <= proxy.ASKED_AT_ONCE + proxy.ASKED_PER_SECOND * passed + 1
        assert await asked.fetch("GET", "/other", asker=POLITE) is not None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "how", [{}, {"made": True}, {"method": "PUT", "made": True}, {"hang_seconds": 60.0}],
    ids=["looked up", "made", "written", "awaited"],
)  # fmt: skip
def test_several_who_ask_without_end_take_no_turn_from_another(
    monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    """When several have used up what all may ask, another waits for a turn of each at most, and no more go out."""
    owners, each, burst, rate = 5, 10, 20, 100.0
    for kind in ("ASKED", "MADE"):
        monkeypatch.setattr(proxy, f"{kind}_AT_ONCE", burst)
        monkeypatch.setattr(proxy, f"{kind}_PER_SECOND", rate)
        monkeypatch.setattr(proxy, f"{kind}_AT_ONCE_BY_ONE", each)
        monkeypatch.setattr(proxy, f"{kind}_PER_SECOND_BY_ONE", 1e-9)
    how = {"method": "GET"} | how

    async def scenario() -> None:
        real = Scripted()
        real.always = answer("x")
        asked = Proxy(real, seconds=60)
        began = time.monotonic()

        def ask(path: str, who: str) -> asyncio.Task[object]:
            return asyncio.create_task(asked.fetch(path_qs=path, asker=Asker(who), **how))

        hostile = [ask(f"/{owner}/{n}", f"owner {owner}") for owner in range(owners) for n in range(each)]
        await settled()
        before = len(real.asked)
        polite = ask("/polite", "polite")
        found = await asyncio.wait_for(asyncio.gather(polite, *hostile), 60)
        assert len(real.asked) <= burst + rate * (time.monotonic() - began) + 1
        assert found.count(None) == 0
        # One of each owner; and as many before it has come, where much time has passed.
        assert [one.path_qs for one in real.asked].index("/polite") <= before + 2 * owners

    asyncio.run(scenario())


def test_whoever_comes_in_one_round_with_many_waits_in_a_queue_of_their_own() -> None:
    """Where many ask before any of them is under way, those beyond half of the room are known, and take turns."""

    async def scenario() -> None:
        real = Scripted()
        real.always = answer("x")
        real.gate = asyncio.Event()
        asked = Proxy(real, seconds=60)
        tasks = [asyncio.create_task(asked.fetch("GET", f"/{n}", asker=GREEDY)) for n in range(200)]
        tasks.append(asyncio.create_task(asked.fetch("GET", "/polite", asker=POLITE)))
        await settled()
        assert real.under_way == proxy.CONCURRENCY
        real.gate.set()
        assert all(await asyncio.wait_for(asyncio.gather(*tasks), 60))
        assert [one.path_qs for one in real.asked].index("/polite") <= proxy.CONCURRENCY + 1

    asyncio.run(scenario())


def test_large_answers_go_out_one_in_each_round() -> None:
    """Many that come at once do not stand together before somebody's credential."""

    async def scenario() -> None:
        real = Scripted()
        real.always = answer(b"x" * (proxy.LARGE_BYTES + 1))
        real.gate = asyncio.Event()
        asked = Proxy(real, seconds=60)
        done = 0

        async def one(number: int) -> None:
            nonlocal done
            assert await asked.fetch("GET", f"/{number}", asker=GREEDY) is not None
            done += 1

        tasks = [asyncio.create_task(one(number)) for number in range(20)]
        await settled()
        real.gate.set()
        rounds = []
        while done < 20:
            before = done
            await asyncio.sleep(0)
            rounds.append(done - before)
        assert max(rounds) == 1
        assert len(rounds) <= 100  # and none waits for more than its turn
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_only_so_much_is_minted_at_once() -> None:
    """Whoever asks for many audiences at once has a few minted at a time, and another's is the next."""

    async def scenario() -> None:
        under_way: list[str] = []
        begun: list[str] = []
        go = asyncio.Event()

        async def demand(audience: str) -> IdToken:
            under_way.append(audience)
            begun.append(audience)
            await go.wait()
            under_way.remove(audience)
            return IdToken(Secret("a.b.c"), audience, START, START)

        minted = Mints(demand, clock=lambda: 0.0)
        tasks = [asyncio.create_task(minted.mint(f"g{n}", GREEDY, name="")) for n in range(int(mints.BURST_BY_ONE))]
        await settled()
        assert len(under_way) == mints.AT_ONCE
        tasks.append(asyncio.create_task(minted.mint("p", POLITE, name="")))
        await settled()
        go.set()
        await asyncio.gather(*tasks)
        assert begun[mints.AT_ONCE] == "p"

    asyncio.run(scenario())


def test_several_who_mint_without_end_take_no_turn_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """When several have used up what all may have minted, another waits for a turn of each at most, and no more are made."""
    owners, each, burst, rate = 5, 20, 40, 100.0
    monkeypatch.setattr(mints, "BURST", burst)
    monkeypatch.setattr(mints, "PER_SECOND", rate)
    monkeypatch.setattr(mints, "BURST_BY_ONE", each)
    monkeypatch.setattr(mints, "PER_SECOND_BY_ONE", 1e-9)

    async def scenario() -> None:
        begun: list[str] = []

        async def demand(audience: str) -> IdToken:
            begun.append(audience)
            return IdToken(Secret("a.b.c"), audience, START, START)

        minted, began = Mints(demand), time.monotonic()

        def mint(audience: str, who: str) -> asyncio.Task[object]:
            return asyncio.create_task(minted.mint(audience, Asker(who), name=""))

        hostile = [mint(f"{owner}/{n}", f"owner {owner}") for owner in range(owners) for n in range(each)]
        await settled()
        before = len(begun)
        polite = mint("polite", "polite")
        # Another who wants what waits: it is one mint.
        also = mint(f"{owners - 1}/{each - 1}", "another")
        found = await asyncio.wait_for(asyncio.gather(polite, also, *hostile), 60)
        assert len(begun) <= burst + rate * (time.monotonic() - began) + 1
        assert all(found)
        assert len(begun) == owners * each + 1
        # As for what is asked.
        assert begun.index("polite") <= before + 2 * owners

    asyncio.run(scenario())


def test_a_mint_takes_one_token_however_many_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait for one mint in several queues take nothing from what all may have minted but what it costs."""
    monkeypatch.setattr(mints, "BURST", mints.AT_ONCE + 2)

    async def scenario() -> None:
        begun: list[str] = []
        go = asyncio.Event()

        async def demand(audience: str) -> IdToken:
            begun.append(audience)
            await go.wait()
            return IdToken(Secret("a.b.c"), audience, START, START)

        minted = Mints(demand, clock=lambda: 0.0)
        tasks = [asyncio.create_task(minted.mint(f"g{n}", GREEDY, name="")) for n in range(mints.AT_ONCE)]
        await settled()
        tasks += [asyncio.create_task(minted.mint("same", Asker(f"owner {n}"), name="")) for n in range(5)]
        await settled()
        tasks.append(asyncio.create_task(minted.mint("last", POLITE, name="")))
        await settled()
        go.set()
        await settled()
        assert sorted(begun[mints.AT_ONCE :]) == ["last", "same"]
        assert all(await asyncio.gather(*tasks))

    asyncio.run(scenario())


def test_whoever_wants_the_same_waits_in_a_queue_of_their_own() -> None:
    """What the greedy has at the end of a long queue is minted in the turn of another who wants it, and both have it."""

    async def scenario() -> None:
        begun: list[str] = []
        go = asyncio.Event()

        async def demand(audience: str) -> IdToken:
            begun.append(audience)
            await go.wait()
            return IdToken(Secret("a.b.c"), audience, START, START)

        minted = Mints(demand, clock=lambda: 0.0)
        tasks = [asyncio.create_task(minted.mint(f"g{n}", GREEDY, name="")) for n in range(int(mints.BURST_BY_ONE))]
        await settled()
        last = f"g{int(mints.BURST_BY_ONE) - 1}"
        tasks += [asyncio.create_task(minted.mint(last, POLITE, name="")) for _ in range(3)]
        await settled()
        leaving = tasks[int(mints.BURST_BY_ONE)]
        leaving.cancel()
        await settled()
        go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert begun[mints.AT_ONCE] == last
        assert sorted(begun) == sorted(f"g{n}" for n in range(int(mints.BURST_BY_ONE)))
        assert all(isinstance(one, IdToken) for one in found if one is not found[tasks.index(leaving)])

    asyncio.run(scenario())


def test_nobody_waits_for_a_leaf_in_the_queue_of_whoever_began_to_ask_for_it() -> None:
    """Whoever asks for a leaf that never changes waits by their own share, though the greedy asked for the same before."""

    async def scenario() -> None:
        real = Scripted()
        real.always = answer("x")
        real.gate = asyncio.Event()
        asked = Proxy(real, seconds=60)
        greedy = [asyncio.create_task(asked.fetch("GET", f"/{n}", asker=GREEDY)) for n in range(proxy.CONCURRENCY)]
        await settled()
        greedy += [asyncio.create_task(asked.fetch("GET", f"/more/{n}", asker=GREEDY)) for n in range(100)]
        await settled()
        greedy.append(asyncio.create_task(asked.static("/leaf", GREEDY)))
        await settled()
        polite = asyncio.create_task(asked.static("/leaf", POLITE))
        await settled()
        real.gate.set()
        found = await asyncio.wait_for(polite, 60)
        assert found is not None
        assert [one.path_qs for one in real.asked].index("/leaf") <= 2 * proxy.CONCURRENCY
        await asyncio.gather(*greedy)

    asyncio.run(scenario())
