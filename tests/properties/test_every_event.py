"""Every event of the state machine, in any order, over restarts: what workers are told at each of its steps.

Whoever answers workers is told after every event, and nobody waits for the next one: so the rules are looked at whenever
something is told, by what a server makes of it, and not only when all has come to rest.
"""

from __future__ import annotations

import random
import typing
from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from agent.controller import Controller
from agent.core.model import Action, Bundle, Cloud, Credential, GoogleToken, Grant, IdToken, OnExpiry
from agent.core.secret import Secret
from agent.core.verdict import Accepted, Failure, Memory, Policy, Same, Work
from agent.core.view import Facts, Live, Origin
from agent.daemon.snapshots import Snapshots
from agent.host.state import closed_memory
from agent.identity import events, leftovers
from agent.identity.slots import Holding
from agent.identity.standing import Machines, google_source, standing
from agent.identity.state import lease_over, slots_of, source_of
from agent.serve.waiting import Served
from agent.snapshot import ServeSettings
from tests.fakes.clock import START
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import aws_credential, bundle, google, google_token, role, session

STREAMS: Final = ("a", "b")
SHAPES: Final = ("session", "google", "both", "role", "chain")
MINUTE: Final = timedelta(minutes=1)
SETTINGS: Final = ServeSettings(token_key=b"k" * 32)


class Recorded(Store):
    """A store that notes which kinds of event happened to it."""

    applied: set[type[events.Event]]

    def apply(self, event: events.Event, now: datetime) -> tuple[events.Effect, ...]:
        self.applied.add(type(event))
        return super().apply(event, now)


class EveryEvent(RuleBasedStateMachine):
    """A worker and its successors on one machine, and who answers for it.

    Attributes:
        made: every bundle that was sealed, in order.
        whose: by the name of a credential, the digest of the bundle that it came of; empty: the machine's own.
        ends: by the name of a credential, its true end: on a clock that never steps, or as the cloud named it.
        gone: by stream, the highest number that was withdrawn, of what this machine knows.
        unread: the memory that could not be read at the start, and what it says is gone.
        opening: the bundle in force before is being opened.
        narrowed: signers of whom nothing is served on.
    """

    @initialize(
        fallback=st.sampled_from([frozenset(), frozenset({Cloud.AWS}), frozenset(Cloud)]),
        on_expiry=st.sampled_from(OnExpiry),
        grace=st.sampled_from([0, 90]),
        seed=st.integers(0, 2**32),
    )
    def start(self, fallback: frozenset[Cloud], on_expiry: OnExpiry, grace: int, seed: int) -> None:
        self.policy = Policy(fallback=fallback, on_expiry=on_expiry, grace=timedelta(seconds=grace))
        self.rng = random.Random(seed)
        self.elapsed, self.offset = timedelta(), timedelta()
        self.made: list[Bundle] = []
        self.whose: dict[str, str] = {}
        self.ends: dict[str, tuple[datetime | None, timedelta]] = {}
        self.gone: dict[str, int] = {}
        self.gone_here: dict[str, int] = {}
        self.unread: tuple[Memory, dict[str, int]] | None = None
        self.applied: set[type[events.Event]] = set()
        self.minted = self.versions = 0
        self.begin(Memory("i-1"))

    @property
    def now(self) -> datetime:
        return START + self.elapsed + self.offset

    def begin(self, memory: Memory, brought: Memory | None = None) -> None:
        self.flying: list[Work] = []
        self.opening = False
        self.narrowed: set[str] = set()
        self.store = Recorded(self.policy, memory, self.now, self.rng, brought=brought)
        self.store.applied = self.applied
        if memory.active is not None:
            self.store.apply(events.BundleResuming("it is being opened"), self.now)
            self.opening = True
        controller = SimpleNamespace(
            store=self.store,
            issuing=SimpleNamespace(scoped=SimpleNamespace(held=lambda _now: ())),
            intake=SimpleNamespace(last_refusal=None),
        )
        self.versions += 1000
        self.snapshots = Snapshots(
            cast("Controller", controller),
            cast("Any", SimpleNamespace(now=lambda: self.now)),
            SETTINGS,
            tokens=tuple,
            path_id=Secret("p"),
            expects_bundle=lambda: True,
            first=self.versions,
        )
        self.served = Served(self.snapshots.latest)
        self.snapshots.send_to(self.hear)

    def hear(self, data: bytes) -> None:
        self.served.take(data)
        self.look()

    # -- bundles

    @rule(
        stream=st.sampled_from(STREAMS),
        shape=st.sampled_from(SHAPES),
        hours=st.sampled_from([0.3, 12]),
        lease=st.sampled_from([None, 0.5, 5]),
        on_expiry=st.sampled_from([None, *OnExpiry]),
        issued=st.booleans(),
    )
    def seal(
        self,
        stream: str,
        shape: str,
        hours: float,
        lease: float | None,
        on_expiry: OnExpiry | None,
        *,
        issued: bool = False,
    ) -> None:
        number = len(self.made) + 1
        key = f"ASIASEALED{number:010d}"
        aws, gcp = session(hours=hours, now=self.now, key=key), google(hours=hours, now=self.now)
        gcp = replace(gcp, access_token=Secret(key))
        arn = f"arn:aws:iam::123456789012:role/R{number}"  # its own: what two bundles share is carried over
        shapes: dict[str, tuple[Grant, ...]] = {
            "session": (aws,),
            "google": (gcp,),
            "both": (aws, gcp),
            "role": (replace(role("r"), role_arn=arn),),
            "chain": (aws, replace(role("r", base="user"), role_arn=arn)),
        }
        one = bundle(
            *shapes[shape],
            seq=number,
            routes={Cloud.AWS: "r"} if shape in ("role", "chain") else None,
            lease=None if lease is None else self.now + timedelta(hours=lease),
            on_expiry=on_expiry,
            issuer=stream,
            now=self.now,
        )
        self.whose[key] = one.digest
        self.ends[key] = self.now + timedelta(hours=hours), timedelta.max
        self.bring(one)
        if issued:
            self.all_is_issued(360, counted=False)

    @rule(stream=st.sampled_from(STREAMS), on_expiry=st.sampled_from([None, *OnExpiry]))
    def withdraw(self, stream: str, on_expiry: OnExpiry | None) -> None:
        number = len(self.made) + 1
        self.bring(bundle(seq=number, action=Action.WITHDRAW, on_expiry=on_expiry, issuer=stream, now=self.now))

    @precondition(lambda self: self.made)
    @rule(which=st.integers(0, 9))
    def bring_again(self, which: int) -> None:
        self.bring(self.made[which % len(self.made)], again=True)

    def bring(self, one: Bundle, *, again: bool = False) -> None:
        if not again:
            one = replace(one, signer_kid=one.issuer)
            self.made.append(one)
        if one.accept_until < self.now:
            return
        verdict = self.store.evaluate(one, self.now)
        if isinstance(verdict, Same) and not (self.store.doubted and one.action is Action.SET):
            self.store.apply(events.BundleBrought(one), self.now)
        if not isinstance(verdict, Accepted):
            return
        if one.action is Action.WITHDRAW:
            self.gone[one.issuer] = self.gone_here[one.issuer] = one.seq
        else:
            self.narrowed.discard(one.issuer)
        if one.action is Action.SET or verdict.memory.active is None:
            self.opening = False
        self.store.accept(verdict, self.now)

    def revoke(self) -> None:
        if self.store.bundle is not None:
            self.store.revoke(self.now)

    def narrow(self, kept: frozenset[str]) -> None:
        present = self.store.bundle
        self.narrowed |= set(STREAMS) - kept - ({present.issuer} if present is not None else set())
        self.store.apply(events.TrustNarrowed(kept), self.now)

    # -- credentials

    @rule()
    def collect(self) -> None:
        self.flying += self.store.due(self.now)

    @rule(minutes=st.sampled_from([15, 360]), counted=st.booleans())
    def all_is_issued(self, minutes: int, *, counted: bool) -> None:
        for _ in range(2):  # what stands on another one comes after it
            self.collect()
            while self.flying:
                self.land(minutes, counted=counted, which=0)

    @precondition(lambda self: self.flying)
    @rule(minutes=st.sampled_from([-5, 1, 15, 60, 360]), counted=st.booleans(), which=st.integers(0, 3))
    def land(self, minutes: int, counted: bool, which: int) -> None:
        work = self.flying.pop(which % len(self.flying))
        self.minted += 1
        name = f"ASIAMINTED{self.minted:010d}"
        credential: Credential
        if work.key.cloud is Cloud.GCP:
            credential = replace(google_token(self.now, minutes=minutes), access_token=Secret(name))
        else:
            credential = aws_credential(self.now, minutes=minutes, key=name)
        present = self.store.bundle
        self.whose[name] = "" if work.grant is None or present is None else present.digest
        life = timedelta(minutes=minutes)
        self.ends[name] = (None, self.elapsed + life) if counted else (self.now + life, timedelta.max)
        self.store.put(work, credential, self.now, ends=self.now + life if counted else None)

    @precondition(lambda self: self.flying)
    @rule(denied=st.booleans(), absent=st.booleans(), which=st.integers(0, 3))
    def fail(self, denied: bool, absent: bool, which: int) -> None:
        work = self.flying.pop(which % len(self.flying))
        if absent and work.grant is None:
            self.store.put(work, None, self.now)
        else:
            self.store.failed(work, Failure("x", "no", denied, self.now), self.now)

    def mint_id_token(self, minutes: int) -> None:
        source = google_source(self.store.state, self.now)
        if source is not None:
            self.store.put_id_token(IdToken(Secret("t"), "x", self.now, self.now + minutes * MINUTE), source[0])

    # -- time

    @rule(seconds=st.sampled_from([1, 30, 600, 3600, 50000]))
    def pass_time(self, seconds: int) -> None:
        """Nothing happens meanwhile: nobody asks, or the machine is paused."""
        self.elapsed += timedelta(seconds=seconds)

    @rule(minutes=st.sampled_from([-600, -20, 1, 20, 600]))
    def step_the_clock(self, minutes: int) -> None:
        self.offset += minutes * MINUTE
        self.store.rebase(minutes * MINUTE, self.now)

    def doubt_the_time(self) -> None:
        self.store.retry_now(self.now)

    def tick(self) -> None:
        self.store.tick(self.now)

    # -- what the daemon learns

    def decide_otherwise(self, fallback: frozenset[Cloud], on_expiry: OnExpiry) -> None:
        self.policy = replace(self.policy, fallback=fallback, on_expiry=on_expiry)
        self.store.reconfigure(self.policy, self.now)

    def move_the_grace(self, minutes: int) -> None:
        self.store.apply(events.GraceMoved(self.now + minutes * MINUTE), self.now)

    def await_first(self, clouds: tuple[Cloud, ...]) -> None:
        self.store.apply(events.FirstAwaited(dict.fromkeys(clouds, "awaited")), self.now)

    def observe(self, region: str) -> None:
        self.store.apply(events.MachineObserved(Facts(region=region)), self.now)

    @rule(
        what=st.sampled_from(
            [
                lambda it: it.revoke(),
                lambda it: it.narrow(frozenset("a")),
                lambda it: it.narrow(frozenset("ab")),
                lambda it: it.mint_id_token(60),
                lambda it: it.doubt_the_time(),
                lambda it: it.tick(),
                lambda it: it.observe("x"),
                lambda it: it.move_the_grace(2),
                lambda it: it.move_the_grace(-1),
                lambda it: it.await_first((Cloud.AWS,)),
                lambda it: it.await_first(()),
                lambda it: it.decide_otherwise(frozenset(), OnExpiry.DENY),
                lambda it: it.decide_otherwise(frozenset(Cloud), OnExpiry.DENY),
                lambda it: it.decide_otherwise(frozenset(Cloud), OnExpiry.FALLBACK),
            ]
        )
    )
    def learn(self, what: Callable[[EveryEvent], None]) -> None:
        what(self)

    # -- whose it is

    @precondition(lambda self: not self.store.doubted)
    @rule()
    def doubt(self) -> None:
        self.opening = self.opening or self.store.memory.active is not None
        if not self.store.doubted and self.store.bundle is not None:
            self.gone_here.pop(self.store.bundle.issuer, None)  # its stream counts as found, with all that it replaced
        self.store.apply(events.MemoryDoubted("whose?"), self.now)

    @precondition(lambda self: self.store.doubted)
    @rule(ours=st.booleans())
    def settle(self, *, ours: bool) -> None:
        if ours:
            self.settle_as_ours()
        else:
            self.settle_as_anothers()

    def settle_as_ours(self) -> None:
        if self.store.bundle is None and self.store.memory.active is not None:
            self.store.apply(events.BundleResuming("it is being opened"), self.now)
            self.opening = True
        self.store.apply(events.MemoryAdopted("i-1", "boot"), self.now)

    def settle_as_anothers(self) -> None:
        self.gone, self.unread = dict(self.gone_here), None
        self.opening = False
        self.store.reset("i-1", self.now)
        if self.store.memory.active is not None:
            self.store.apply(events.BundleResuming("it is being opened"), self.now)
            self.opening = True

    # -- from one process to the next

    @precondition(lambda self: self.opening and not self.store.doubted and self.store.bundle is None)
    @rule(opens=st.booleans())
    def opened(self, opens: bool) -> None:
        active = self.store.memory.active
        one = next(made for made in self.made if active is not None and made.digest == active.digest)
        self.opening = False
        if not opens:
            self.store.apply(events.BundleResuming(None), self.now)
            return
        verdict = self.store.evaluate(one, self.now, resume=True)
        assert isinstance(verdict, Accepted), verdict
        self.store.apply(events.BundleAccepted(verdict, again=True), self.now)

    @rule(left=st.sampled_from(["all", "the disk", "nothing that can be read"]))
    def succeed(self, left: str) -> None:
        if left == "the disk":
            self.restart_from_the_disk()
        elif left == "all" or self.unread is not None or self.store.doubted:
            self.restart()
        else:
            self.restart_unread()

    def restart(self) -> None:
        """The bundle is opened at once, and what the process before left is given back."""
        before, doubted = self.store, self.store.doubted
        self.begin(before.memory, before.state.brought)
        if doubted:
            self.store.apply(events.MemoryDoubted("whose?"), self.now)
            return
        if before.bundle is not None:
            self.opened(opens=True)
        lefts: list[events.Event] = [*before.held(), *before.remnants(), *before.waiting()]
        for left in lefts:
            self.store.apply(left, self.now)
        for token in leftovers.id_tokens(before.state):
            if (event := leftovers.minted(self.store.state, token, self.now)) is not None:
                self.store.apply(event, self.now)

    def restart_from_the_disk(self) -> None:
        """Nothing was left, and the key is away."""
        self.gone_here = {}
        self.begin(self.store.memory)

    def restart_unread(self) -> None:
        """The system refuses to read the memory."""
        self.unread = self.store.memory, self.gone
        self.gone, self.gone_here = {}, {}
        self.begin(closed_memory("i-1"))

    @precondition(lambda self: self.unread is not None and not self.store.doubted)
    @rule()
    def recall(self) -> None:
        assert self.unread is not None
        (memory, gone), self.unread = self.unread, None
        self.gone = {s: max(gone.get(s, 0), self.gone.get(s, 0)) for s in (*gone, *self.gone)}
        self.store.apply(events.MemoryRecalled(memory), self.now)
        if self.store.bundle is None and self.store.memory.active is not None:
            self.store.apply(events.BundleResuming("it is being opened"), self.now)
            self.opening = True

    # -- what holds

    @invariant()
    def look(self) -> None:
        for cloud in Cloud:
            answer = self.served.answer(cloud, self.now.timestamp())
            assert answer == self.store.answer(cloud, self.now), "a server says something else"
            if isinstance(answer, Live):
                self._is_served(cloud, answer)
            if not isinstance(standing(self.store.state, cloud, self.now), Machines) or self.store.bundle is not None:
                continue
            if cloud in self.store.memory.decided:
                assert not self.opening, "it may come back"
            else:
                assert self.store.state.grace_until <= self.now, "a first one is waited for"

    def _is_served(self, cloud: Cloud, answer: Live) -> None:
        credential = answer.credential
        name = credential.access_token.reveal() if isinstance(credential, GoogleToken) else credential.access_key_id
        named, counted = self.ends[name]
        assert self.elapsed < counted, "served past its end"
        assert named is None or self.now < named, "served past the end that its cloud named"
        if answer.origin is Origin.FALLBACK:
            assert self.whose[name] == "", "a bundle's passes for the machine's"
            assert cloud in self.policy.fallback
            return
        one = next(made for made in self.made if made.digest == self.whose[name])
        assert one.seq > self.gone.get(one.issuer, 0), "it was withdrawn"
        assert one.lease_until is None or self.now < one.lease_until, "its lease is over"
        present = self.store.bundle
        assert present is not None
        assert present.digest == one.digest or one.issuer not in self.narrowed, "nobody believes its signer"

    @invariant()
    def who_begins_with_the_last_says_the_same(self) -> None:
        anew = Served(self.snapshots.latest)
        for cloud in Cloud:
            assert anew.stretch(cloud, self.now) == self.served.stretch(cloud, self.now)

    @invariant()
    def what_is_remembered_is_in_force(self) -> None:
        present, memory = self.store.bundle, self.store.memory
        if present is not None:
            assert memory.active is not None
            assert (memory.active.stream, memory.active.seq) == ((present.issuer, present.subject), present.seq)
            assert memory.active in memory.marks
            assert memory.decided.keys() >= present.routes.keys()

    @invariant()
    def what_was_withdrawn_is_refused(self) -> None:
        for one in self.made:
            if one.seq < self.gone.get(one.issuer, 0) and one.action is Action.SET:
                assert not isinstance(self.store.evaluate(one, self.now), Accepted), "it could be played again"

    @invariant()
    def a_renewal_is_asked_for_in_time(self) -> None:
        state, wake = self.store.state, self.store.next_wake(self.now)
        assert wake > self.now
        for slot in slots_of(state):
            if slot.asking or slot.state.due_at is None:
                continue
            assert wake <= max(slot.state.due_at, wake if slot.state.due_at <= self.now else self.now)
            if isinstance(slot.state, Holding) and slot.live(self.now):
                assert slot.state.due_at <= slot.state.held.ends, "due after its end"

    @invariant()
    def nothing_that_is_due_is_left(self) -> None:
        """Whoever looks gets each that is due, but for what is over and what stands on something that is not there."""
        state = self.store.state
        copied = Recorded.__new__(Recorded)
        copied.__dict__.update({**self.store.__dict__, "_watchers": []})
        begun = {work.key for work in copied.due(self.now)}
        for slot in slots_of(state):
            source = source_of(state, slot)
            ready = not slot.asking and (source is None or source.live(self.now))
            if slot.state.due_at is not None and slot.state.due_at <= self.now and ready:
                assert slot.key in begun or lease_over(state, self.now), f"{slot.key} is left"


EveryEvent.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None, derandomize=True)
TestEveryEvent = EveryEvent.TestCase


Step = Callable[[EveryEvent], None]
SERVED: Final[tuple[Step, ...]] = (
    lambda it: it.seal("a", "role", 12, None, None),
    lambda it: it.all_is_issued(60, counted=True),
)
STORIES: Final[dict[str, tuple[Step, ...]]] = {
    "what another sender withdrew is read late": (
        lambda it: it.seal("a", "session", 12, None, None),
        lambda it: it.withdraw("a", None),
        lambda it: it.restart_unread(),
        lambda it: it.seal("b", "session", 12, None, None),
        lambda it: it.recall(),
    ),
    "what is in force was withdrawn, as is read late": (
        lambda it: it.seal("a", "session", 12, None, None),
        lambda it: it.seal("a", "session", 12, None, None),
        lambda it: it.withdraw("a", None),
        lambda it: it.restart_unread(),
        lambda it: it.bring_again(0),
        lambda it: it.recall(),
    ),
    "what no bundle decided is read late": (
        lambda it: it.seal("a", "session", 12, None, None),
        lambda it: it.restart_unread(),
        lambda it: it.recall(),
        lambda it: it.collect(),
    ),
    "a predecessor is withdrawn": (
        *SERVED,
        lambda it: it.seal("b", "role", 12, None, None),
        lambda it: it.withdraw("a", None),
    ),
    "a predecessor is believed no more": (
        *SERVED,
        lambda it: it.seal("b", "role", 12, None, None),
        lambda it: it.narrow(frozenset()),
    ),
    "a predecessor ends by a clock that steps": (
        *SERVED,
        lambda it: it.seal("b", "role", 12, None, None),
        lambda it: it.step_the_clock(-20),
        lambda it: it.pass_time(3600),
    ),
    "a predecessor's lease ends": (
        lambda it: it.seal("a", "role", 12, 0.5, None),
        lambda it: it.all_is_issued(60, counted=True),
        lambda it: it.seal("b", "role", 12, None, None),
        lambda it: it.pass_time(1800),
    ),
    "the clock steps": (*SERVED, lambda it: it.step_the_clock(-20), lambda it: it.pass_time(3600)),
}


def look_at_all(it: EveryEvent) -> None:
    it.look()
    it.who_begins_with_the_last_says_the_same()
    it.what_is_remembered_is_in_force()
    it.what_was_withdrawn_is_refused()
    it.a_renewal_is_asked_for_in_time()
    it.nothing_that_is_due_is_left()


@pytest.mark.parametrize("story", STORIES)
def test_the_rules_hold_at_each_step_of_what_is_seldom_drawn(story: str) -> None:
    """Some faults need one order of many steps, which chance finds too rarely."""
    it = EveryEvent()
    it.start(fallback=frozenset(Cloud), on_expiry=OnExpiry.DENY, grace=0, seed=1)
    for step in STORIES[story]:
        step(it)
        look_at_all(it)


def test_no_event_is_left_out() -> None:
    """What happens above is every event that there is: one that nothing drives is held to no rule."""
    it = EveryEvent()
    it.start(fallback=frozenset(Cloud), on_expiry=OnExpiry.DENY, grace=0, seed=1)
    it.observe("x")
    it.await_first(tuple(Cloud))
    it.move_the_grace(2)
    it.decide_otherwise(frozenset(Cloud), OnExpiry.DENY)
    it.seal("a", "both", 12, None, None)
    it.mint_id_token(60)
    it.seal("b", "role", 12, None, None)
    it.collect()
    it.land(60, counted=True, which=0)
    it.collect()
    it.fail(denied=False, absent=False, which=0)
    it.bring_again(1)
    it.step_the_clock(20)
    it.doubt_the_time()
    it.tick()
    it.restart()
    it.narrow(frozenset("a"))
    it.restart_unread()
    it.recall()
    it.opened(opens=True)
    it.revoke()
    it.doubt()
    it.settle_as_ours()
    it.doubt()
    it.settle_as_anothers()
    assert it.applied == set(typing.get_args(events.Event))
