"""Whose is it, who is next, and who has most: the small rules of fairness, one by one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import AsyncExitStack

import pytest

from agent.serve.fairness import Endpoint, Owners, Places, Table, Turnstile, by_greed, place_of

PEER, LOCAL = ("127.0.0.1", 40000), ("127.0.0.1", 80)


def unreadable() -> Table:
    raise OSError(12, "Cannot allocate memory")


def owners(ask: Callable[[Endpoint, Endpoint], int | None] | None = None) -> Owners:
    return Owners(unreadable, ask, whose=lambda uid: f"user {uid}")


def test_one_owner_is_known_at_once_only_where_the_kernel_can_be_asked() -> None:
    """Where it cannot, whoever wants to know waits for a table."""
    assert owners(lambda _peer, _local: 1000).immediate
    assert not owners().immediate
    assert owners().now(PEER, LOCAL) is None
    assert owners(lambda _peer, _local: 1000).now(PEER, LOCAL) == "user 1000"
    assert owners(lambda _peer, _local: None).now(PEER, LOCAL) is None


def test_a_kernel_that_does_not_tell_is_not_asked_again() -> None:
    """Asking costs a system call for each connection, and it would say the same."""
    asked = []

    def ask(peer: Endpoint, local: Endpoint) -> int:
        asked.append((peer, local))
        raise OSError(95, "Operation not supported")

    one = owners(ask)
    assert [one.now(PEER, LOCAL) for _ in range(3)] == [None] * 3
    assert asked == [(PEER, LOCAL)]
    assert not one.immediate


def test_a_connection_that_is_closed_already_says_nothing_of_the_kernel() -> None:
    """The next one is asked for all the same."""

    def gone(_peer: Endpoint, _local: Endpoint) -> int:
        raise ConnectionResetError

    one = owners(gone)
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            one.now(PEER, LOCAL)
    assert one.immediate


def test_a_table_that_cannot_be_read_is_none() -> None:
    """Who asks goes by addresses then, and is not refused."""

    async def main() -> None:
        one = owners()
        assert await one.table() is None
        one.close()

    asyncio.run(main())


def test_what_asking_needs_is_freed_at_the_end() -> None:
    """A socket to the kernel is not left open, and nobody is asked by it any more, nor is a table read."""

    async def main() -> None:
        freed: list[bool] = []
        one = Owners(unreadable, lambda _peer, _local: 1000, close=lambda: freed.append(True))
        one.close()
        assert freed == [True]
        assert not one.immediate
        assert await one.table() is None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (("192.0.2.7", 5), "192.0.2.7"),
        (("::ffff:192.0.2.7", 5, 0, 0), "::ffff:192.0.2.7"),
        (("::FFFF:192.0.2.7", 5, 0, 0), "::FFFF:192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), bytes.fromhex("20010db800010002")),
        (("2001:db8:1:2:ffff::1", 6, 0, 0), bytes.fromhex("20010db800010002")),
        (("2001:db8:1:3::1", 6, 0, 0), bytes.fromhex("20010db800010003")),
        (("fe80::1%eth0", 5, 0, 2), bytes.fromhex("fe80000000000000")),
        (("no:address", 5), "no:address"),
        ("/run/socket", ""),
        ((), ""),
    ],
)
def test_all_addresses_of_one_network_of_ipv6_are_one_place(name: object, place: object) -> None:
    """A container has 2**64 addresses of its own, and would be as many others; each of IPv4 counts by itself."""
    assert place_of(name) == place


def test_each_step_takes_from_who_has_most_then() -> None:
    """What a member frees counts before the next one goes."""
    queues: dict[Hashable, deque[tuple[int, str]]] = {
        "much": deque([(60, "much 1"), (5, "much 2"), (5, "much 3")]),
        "some": deque([(10, "some 1"), (10, "some 2")]),
        "none": deque(),
    }
    order = list(by_greed({"much": 100, "some": 50, "none": 500}, queues))
    assert order == ["much 1", "some 1", "much 2", "some 2", "much 3"]


def test_a_turnstile_is_crowded_from_the_half_on() -> None:
    """From there on it matters who comes."""

    async def main() -> None:
        turnstile = Turnstile(4)
        assert not turnstile.crowded
        async with turnstile.turn("a"):
            assert not turnstile.crowded
            async with turnstile.turn("a"):
                assert turnstile.crowded

    asyncio.run(main())


def test_who_gives_up_waiting_takes_nobody_with_him() -> None:
    """One of two that wait leaves: the other is let in when there is room, and no more than there is room for."""

    async def main() -> None:
        turnstile, inside, go = Turnstile(1), [], asyncio.Event()

        async def visit(name: str) -> None:
            async with turnstile.turn("a"):
                inside.append(name)
                await go.wait()

        async with turnstile.turn("b"):
            waiting = [asyncio.ensure_future(visit(name)) for name in ("first", "second", "third")]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.gather(waiting[0], return_exceptions=True)
        for _ in range(5):
            await asyncio.sleep(0)
        assert inside == ["second"]
        go.set()
        await asyncio.gather(*waiting[1:])
        assert inside == ["second", "third"]

    asyncio.run(main())


def test_who_is_let_in_and_gives_up_at_the_same_moment_takes_no_place_along() -> None:
    """A place that nobody gives back is gone for good: with as many of them nobody would come in again."""

    async def main() -> None:
        turnstile = Turnstile(1)

        async def visit() -> None:
            async with turnstile.turn("a"):
                raise AssertionError("it had given up")

        async with turnstile.turn("b"):
            waiting = asyncio.ensure_future(visit())
            await asyncio.sleep(0)
        waiting.cancel()  # the turn has come, and has not been heard of
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        assert not turnstile.crowded

    asyncio.run(main())


def test_who_has_left_a_turnstile_is_behind_nobody() -> None:
    """Only what an owner has inside counts: whoever was often in and is out goes in before one who came later."""

    async def main() -> None:
        turnstile, order = Turnstile(1), list[str]()

        async def visit(owner: str) -> None:
            async with turnstile.turn(owner):
                order.append(owner)

        for _ in range(3):
            await visit("often")
        async with turnstile.turn("inside"):
            waiting = [asyncio.ensure_future(visit(owner)) for owner in ("often", "new")]
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        assert order[3:] == ["often", "new"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("held", "wanted", "given"),
    [
        ("aaaa", 1, {0}),
        ("aaaa", 2, {0, 1}),
        ("aaabbb", 2, {0, 3}),
        ("aaabbb", 3, None),
        ("aaa", 2, None),
    ],
)
def test_each_who_has_most_gives_a_place_in_turn(held: str, wanted: int, given: set[int] | None) -> None:
    """Each place comes from who has most then, the oldest first; nobody gives one to who would have more than is left."""

    async def main() -> None:
        places, loop = Places(len(held)), asyncio.get_running_loop()
        far = loop.time() + 3600
        async with AsyncExitStack() as inside:
            timeouts = [await inside.enter_async_context(asyncio.timeout_at(far)) for _ in held]
            for owner, timeout in zip(held, timeouts, strict=True):
                assert places.take(owner, timeout)
            mine = await inside.enter_async_context(asyncio.timeout_at(far))
            assert places.take("c", mine, wanted) == (given is not None)
            assert {number for number, timeout in enumerate(timeouts) if timeout.when() != far} == (given or set())
            for timeout in timeouts:
                timeout.reschedule(None)

    asyncio.run(main())
