"""What those are told who answer workers: at once, whole, and nothing that is over."""

from __future__ import annotations

from datetime import timedelta

import pytest
import structlog

from agent import snapshot
from agent.controller.scoped import MOST as SCOPED_KEPT
from agent.core.model import Action, Cloud
from agent.core.secret import Secret
from agent.core.verdict import Memory
from agent.core.view import Absent, Ended, Live, Pending
from agent.daemon.snapshots import Snapshots, told_of
from agent.host.clock import SystemClock
from agent.identity.state import NAMES_KEPT
from agent.identity.transitions import ID_TOKEN_AUDIENCES
from agent.serve.waiting import Served
from agent.snapshot import ServeSettings, Snapshot, Time
from agent.snapshot.model import MOST_NAMES, MOST_RANGES, MOST_TOKENS
from tests.fakes.clock import settle
from tests.unit.controller.support import Issued, World, looped
from tests.unit.controller.test_scoped import READ, account
from tests.unit.identity.worlds import HOUR, bundle, google_token, session


class Told:
    """A controller, and somebody who is told what it serves."""

    def __init__(self) -> None:
        self.world = World()
        self.tokens: tuple[Secret, ...] = (Secret("one"),)
        self.time = Time()
        self.ranges: tuple[tuple[int, int, int], ...] = ()
        self.expects_bundle = True
        self.snapshots = Snapshots(
            self.world.controller,
            self.world.clock,
            ServeSettings(token_key=b"k" * 32),
            tokens=lambda: self.tokens,
            path_id=Secret("path"),
            expects_bundle=lambda: self.expects_bundle,
            time=lambda: self.time,
            subordinate=lambda: self.ranges,
        )
        self.served = Served(self.snapshots.latest)
        self.heard: list[Snapshot] = []
        self.snapshots.send_to(self.served.take)
        self.snapshots.send_to(lambda data: self.heard.append(snapshot.decode(data)))

    def answer(self, cloud: Cloud = Cloud.AWS) -> object:
        return self.served.answer(cloud, self.world.clock.timestamp())


@looped
async def test_a_withdrawal_is_told_before_it_is_acknowledged() -> None:
    """When the disk is first asked to forget, and so before anybody hears that it did, nobody is served any more."""
    told = Told()
    async with told.world.running():
        await told.world.submit(told.world.knows(b"one", bundle(session())))
        assert isinstance(told.answer(), Live)
        seen: list[object] = []
        save = told.world.recorder.save

        async def spying(memory: Memory, sealed: bytes | None) -> None:
            seen.append(told.answer())
            await save(memory, sealed)

        told.world.recorder.save = spying  # type: ignore[method-assign]
        await told.world.submit(told.world.knows(b"two", bundle(seq=2, action=Action.WITHDRAW)))
        assert seen
        assert all(isinstance(answer, Ended) for answer in seen)


@looped
async def test_what_is_told_is_what_the_store_says() -> None:
    """Through a first mint, a renewal, and hours without a word: at every moment the same answer."""
    told = Told()
    told.world.issuer.answer = lambda call: Issued(google_token(call.at)) if call.cloud is not Cloud.AWS else None
    async with told.world.running():
        await told.world.submit(
            told.world.knows(
                b"one", bundle(account(), routes={Cloud.GCP: "sa"}, lease=told.world.clock.now() + 5 * HOUR)
            )
        )
        seen = set()
        for _ in range(50):
            await settle(10)
            now = told.world.clock.now()
            for cloud in Cloud:
                assert told.served.answer(cloud, now.timestamp()) == told.world.store.answer(cloud, now)
            seen.add(type(told.answer(Cloud.GCP)))
            await told.world.clock.advance(421)
        assert {Live, Ended} <= seen
        versions = [one.version for one in told.heard]
        assert versions == list(range(1, len(versions) + 1))


@looped
async def test_without_a_word_it_ends_when_it_is_over() -> None:
    """A reader that hears nothing more serves a credential to its end, and not for one moment longer."""
    told = Told()
    async with told.world.running():
        await told.world.submit(told.world.knows(b"one", bundle(session(hours=2))))
    # The controller is gone. Only time passes.
    start = told.world.clock.now()
    version = told.served.version
    end = start + 2 * HOUR
    assert isinstance(told.served.answer(Cloud.AWS, (end - timedelta(seconds=1)).timestamp()), Live)
    assert isinstance(told.served.answer(Cloud.AWS, (end + timedelta(seconds=1)).timestamp()), Ended)
    assert told.served.version == version


def test_a_snapshot_has_room_for_all_that_is_kept() -> None:
    """Whoever may choose audiences cannot fill a snapshot: one that is full would close everything for everybody."""
    assert max(ID_TOKEN_AUDIENCES, SCOPED_KEPT) <= MOST_TOKENS
    assert NAMES_KEPT <= MOST_NAMES


@looped
async def test_nothing_is_told_twice() -> None:
    """What is as it was is no news: nobody is woken, and no long poll looks again."""
    told = Told()
    async with told.world.running():
        await told.world.submit(told.world.knows(b"one", bundle(session())))
        count = len(told.heard)
        told.snapshots.publish()
        told.world.store.tell()
        assert len(told.heard) == count


@looped
async def test_what_is_beside_the_state_is_told_too() -> None:
    """Another bearer token, a refusal and a token for fewer scopes are news."""
    told = Told()
    async with told.world.running():
        told.tokens = (Secret("two"), Secret("one"))
        told.snapshots.publish()
        assert told.served.now.container_tokens == told.tokens
        told.world.issuer.answer = lambda call: Issued(google_token(call.at)) if call.cloud is Cloud.GCP else None
        await told.world.submit(told.world.knows(b"one", bundle(account(), routes={Cloud.GCP: "sa"})))
        await settle(40)
        now = told.world.clock.now()
        assert told.served.stretch(Cloud.GCP, now).scopes == account().scopes
        token = await told.world.controller.issuing.scoped.mint((READ,))
        assert told.served.scoped((READ,), now) == token
        assert told.served.scoped((READ,), now + HOUR) is None


@looped
async def test_a_refusal_is_told_while_nothing_is_in_force() -> None:
    """Why the last bundle was not taken, until one is."""
    told = Told()
    async with told.world.running():
        await told.world.submit(
            told.world.knows(b"late", bundle(session(hours=-1), now=told.world.clock.now() - 9 * HOUR))
        )
        assert told.served.now.refused is not None
        await told.world.submit(told.world.knows(b"one", bundle(session(), seq=2)))
        assert told.served.now.refused is None
        await told.world.submit(told.world.knows(b"late", bundle(session(), seq=1)))
        assert told.world.controller.intake.last_refusal is not None
        told.snapshots.publish()
        assert told.served.now.refused is None


@looped
async def test_what_nobody_tells_of_is_looked_at() -> None:
    """Another time, or other ranges of uids: as far as a snapshot has room for them."""
    told = Told()
    many = tuple((1000, 1 << 16, number) for number in range(1, MOST_RANGES + 2))
    for news in ({"time": Time(lost=5.0)}, {"ranges": many[:1]}, {"ranges": many}):
        assert not told.snapshots.outdated
        for name, value in news.items():
            setattr(told, name, value)
        assert told.snapshots.outdated
        told.snapshots.publish()
        assert told.snapshots.version == told.served.version == told.heard[-1].version
    assert not told.snapshots.outdated
    assert (told.served.now.time, told.served.now.subordinate) == (told.time, many[:-1])
    for expects in (False, True):
        told.expects_bundle = expects
        assert told.snapshots.expects_bundle is not expects  # as it was told last
        told.snapshots.publish()
        assert told.snapshots.expects_bundle is told.served.now.expects_bundle is expects


def test_the_time_that_is_told_is_the_clocks() -> None:
    """What CLOCK_BOOTTIME has missed, and how far it is from UTC."""
    clock = SystemClock(boottime=lambda: 500.0, wall=lambda: 1500.0, synchronised=lambda: False)
    assert told_of(clock) == Time(lost=0.0, offset=1000.0)


@looped
async def test_what_cannot_be_told_closes() -> None:
    """Where a snapshot cannot be made nobody goes on with the one before: it may be what was withdrawn."""
    told = Told()
    async with told.world.running():
        await told.world.submit(told.world.knows(b"one", bundle(session())))
        assert isinstance(told.answer(), Live)
        told.tokens = (Secret("\ud800"),)  # no text: nothing that is sent can say it
        with structlog.testing.capture_logs() as logs:
            told.snapshots.publish()
            version = told.snapshots.version
            assert told.snapshots.outdated
            told.snapshots.publish()
        assert [entry["event"] for entry in logs] == ["snapshot.not_made"]
        assert told.snapshots.version == version  # what is so already is neither sent nor said again
        ended = told.answer()
        assert isinstance(ended, Ended)
        assert ended.passing
        assert told.served.now.container_tokens == ()
        told.tokens, told.ranges = (), ((-1, 0, 1),)  # what can be said, and nobody would take
        with structlog.testing.capture_logs() as logs:
            told.snapshots.publish()
        assert [entry["event"] for entry in logs] == ["snapshot.not_made"]
        assert isinstance(told.answer(), Ended)
        told.ranges = ()
        told.snapshots.publish()
        assert isinstance(told.answer(), Live)


@pytest.mark.parametrize("data", [b"", b"\x80", b"nonsense"])
def test_a_reader_keeps_what_it_has_when_it_is_told_nonsense(data: bytes) -> None:
    """A broken message takes nothing away, and is an error of whoever sent it."""
    told = Told()
    before = told.served.now
    with pytest.raises(snapshot.SnapshotError):
        told.served.take(data)
    assert told.served.now is before
    assert isinstance(told.answer(), Absent | Pending | Ended)
