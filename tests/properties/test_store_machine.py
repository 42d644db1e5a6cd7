"""The state machine under any order of events: what must hold at every instant, whatever happens."""

from __future__ import annotations

import random
from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.core.model import Action, AwsCredential, Bundle, Cloud, GoogleToken, Grant, OnExpiry
from agent.core.verdict import Accepted, Failure, Memory, Policy, Refused, Same, Work
from agent.core.view import Ended, Live, Origin
from tests.fakes.clock import START
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import aws_credential, bundle, google, google_token, role, session

MACHINE_KEY = "ASIAMACHINE000000000"


class StoreMachine(RuleBasedStateMachine):
    """Drives a store with submissions, results, failures, time and restarts."""

    @initialize(
        fallback=st.sampled_from([frozenset(), frozenset({Cloud.AWS}), frozenset(Cloud)]),
        on_expiry=st.sampled_from(OnExpiry),
        grace=st.integers(0, 120),
        seed=st.integers(0, 2**32),
    )
    def start(self, fallback: frozenset[Cloud], on_expiry: OnExpiry, grace: int, seed: int) -> None:
        self.policy = Policy(fallback=fallback, on_expiry=on_expiry, grace=timedelta(seconds=grace))
        self.rng = random.Random(seed)
        self.now = START
        self.store = Store(self.policy, Memory("i-1"), self.now, self.rng)
        self.flying: list[Work] = []
        self.sealed: Bundle | None = None
        self.highest = 0
        self.digest = ""
        self.decided: dict[Cloud, OnExpiry] = {}
        self.minted = 0

    @rule(seconds=st.sampled_from([1, 30, 61, 600, 1300, 3600, 7200, 50000]))
    def pass_time(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(
        seq=st.integers(1, 6),
        shape=st.sampled_from(["session", "google", "both", "role", "chain"]),
        hours=st.sampled_from([-1, 0.3, 1, 12]),
        lease=st.sampled_from([None, 0.5, 5]),
        on_expiry=st.sampled_from([None, *OnExpiry]),
    )
    def submit(self, seq: int, shape: str, hours: float, lease: float | None, on_expiry: OnExpiry | None) -> None:
        shapes: dict[str, tuple[Grant, ...]] = {
            "session": (session(hours=hours, now=self.now),),
            "google": (google(hours=hours, now=self.now),),
            "both": (session(hours=hours, now=self.now), google(hours=hours, now=self.now)),
            "role": (role("r"),),
            "chain": (session("base", hours=hours, now=self.now), role("r", base="base")),
        }
        grants = shapes[shape]
        routes = {Cloud.AWS: "r"} if shape in ("role", "chain") else None
        until = None if lease is None else self.now + timedelta(hours=lease)
        salt = f"{hours}{lease}{on_expiry}{self.now}"
        self.evaluate(
            bundle(*grants, seq=seq, routes=routes, lease=until, on_expiry=on_expiry, now=self.now, salt=salt)
        )

    @rule(seq=st.integers(1, 6), on_expiry=st.sampled_from([None, *OnExpiry]))
    def withdraw(self, seq: int, on_expiry: OnExpiry | None) -> None:
        self.evaluate(
            bundle(seq=seq, action=Action.WITHDRAW, on_expiry=on_expiry, now=self.now, salt=f"{on_expiry}{self.now}")
        )

    def evaluate(self, submitted: Bundle) -> None:
        before = {cloud: self.store.answer(cloud, self.now) for cloud in Cloud}
        verdict = self.store.evaluate(submitted, self.now)
        assert {cloud: self.store.answer(cloud, self.now) for cloud in Cloud} == before, "evaluating changed an answer"
        if not isinstance(verdict, Accepted):
            assert isinstance(verdict, Refused | Same)
            return
        # The same one again is taken only where it should be in force and is not: its sealed copy was lost.
        lost = (submitted.seq, submitted.digest) == (self.highest, self.digest) and self.store.bundle is None
        assert submitted.seq > self.highest or lost, "a sequence number went back"
        self.highest, self.digest = submitted.seq, submitted.digest
        self.store.accept(verdict, self.now)
        if submitted.action is Action.SET:
            self.sealed = submitted
            for cloud in submitted.routes:
                self.decided[cloud] = submitted.on_expiry or self.policy.on_expiry
                was = before[cloud]
                if isinstance(was, Live) and was.origin is Origin.BUNDLE:
                    lease = submitted.lease_until
                    assert lease is None or lease > self.now
                    assert isinstance(self.store.answer(cloud, self.now), Live), (
                        "a live identity was lost to a submission"
                    )
        elif self.sealed is not None:
            said = OnExpiry.FALLBACK if submitted.on_expiry is OnExpiry.FALLBACK else OnExpiry.DENY
            told = self.decided if said is OnExpiry.DENY else self.sealed.routes
            self.decided.update(dict.fromkeys(told, said))
            self.sealed = None

    @rule()
    def collect(self) -> None:
        work = self.store.due(self.now)
        flying = {(w.key, w.slot) for w in self.flying}
        # Another flight of the same key is for another slot: what took its place. The old one may still land.
        assert not [w for w in work if (w.key, w.slot) in flying], "two flights of one credential"
        in_force = self.store.bundle
        if in_force is not None and in_force.lease_until is not None and in_force.lease_until <= self.now:
            assert all(w.grant is None for w in work), "what is over was renewed"
        self.flying += work

    @precondition(lambda self: self.flying)
    @rule(minutes=st.sampled_from([-5, 1, 15, 60, 360]), data=st.data())
    def land(self, minutes: int, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(self.flying))
        self.flying.remove(work)
        self.minted += 1
        credential: AwsCredential | GoogleToken
        if work.key.cloud is Cloud.GCP:
            credential = google_token(self.now, minutes=minutes)
        else:
            key = MACHINE_KEY if work.grant is None else f"ASIAMINTED{self.minted:010d}"
            credential = aws_credential(self.now, minutes=minutes, key=key)
        held = {cloud: self.store.answer(cloud, self.now) for cloud in Cloud}
        self.store.put(work, credential, self.now)
        for cloud, answer in held.items():
            if isinstance(answer, Live) and answer.origin is Origin.BUNDLE:
                assert isinstance(self.store.answer(cloud, self.now), Live), "a landing took a live identity away"

    @precondition(lambda self: self.flying)
    @rule(denied=st.booleans(), data=st.data())
    def crash(self, denied: bool, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(self.flying))
        self.flying.remove(work)
        held = {cloud: self.store.answer(cloud, self.now) for cloud in Cloud}
        self.store.failed(work, Failure("x", "no", denied, self.now), self.now)
        for cloud, answer in held.items():
            if isinstance(answer, Live) and answer.origin is Origin.BUNDLE:
                assert isinstance(self.store.answer(cloud, self.now), Live), "a failure took a live identity away"

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def absent(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(self.flying))
        if work.grant is None:
            self.flying.remove(work)
            self.store.put(work, None, self.now)

    @rule(keeps_bundle=st.booleans())
    def restart(self, keeps_bundle: bool) -> None:
        memory = self.store.memory
        self.store = Store(self.policy, memory, self.now, self.rng)
        self.flying = []
        if keeps_bundle and self.sealed is not None:
            verdict = self.store.evaluate(self.sealed, self.now, resume=True)
            assert isinstance(verdict, Accepted)
            self.store.accept(verdict, self.now)

    @rule()
    def tell(self) -> None:
        self.store.tick(self.now)
        assert all(notice.event.value != "horizon.near" for notice in self.store.tick(self.now)), "told twice"

    @invariant()
    def never_expired(self) -> None:
        for cloud in Cloud:
            answer = self.store.answer(cloud, self.now)
            if isinstance(answer, Live):
                assert answer.credential.expires_at > self.now
                bundle_ = self.store.bundle
                if answer.origin is Origin.BUNDLE and bundle_ is not None and bundle_.lease_until is not None:
                    assert bundle_.lease_until > self.now

    @invariant()
    def never_the_machine_by_stealth(self) -> None:
        """No way leads from a bundle to the machine's identity but the explicit one."""
        for cloud in Cloud:
            answer = self.store.answer(cloud, self.now)
            if isinstance(answer, Live) and answer.origin is Origin.FALLBACK:
                assert cloud in self.policy.fallback
                assert self.decided.get(cloud) in (None, OnExpiry.FALLBACK)
            if isinstance(answer, Live) and isinstance(answer.credential, AwsCredential):
                machine = answer.credential.access_key_id == MACHINE_KEY
                assert machine == (answer.origin is Origin.FALLBACK)

    @invariant()
    def views_change_nothing(self) -> None:
        version = self.store.version
        for cloud in Cloud:
            self.store.answer(cloud, self.now)
            self.store.origin(cloud, self.now)
            self.store.horizon(cloud, self.now)
            self.store.facts()
        assert self.store.version == version

    @invariant()
    def the_loop_can_sleep(self) -> None:
        assert self.store.next_wake(self.now) > self.now

    @invariant()
    def origin_agrees_with_the_answer(self) -> None:
        for cloud in Cloud:
            answer, origin = self.store.answer(cloud, self.now), self.store.origin(cloud, self.now)
            if isinstance(answer, Live):
                assert answer.origin is origin
            if origin is Origin.CLOSED:
                assert isinstance(answer, Ended)


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStoreMachine = StoreMachine.TestCase
