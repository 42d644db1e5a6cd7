"""Whatever happens while something is awaited: the rules of the controller hold at every step of every interleaving.

The fakes of other tests answer whole, in time and in the order asked. Here each call that the controller makes of the
outside (opening a bundle, writing the memory, issuing a credential) hangs until the test lets it go, well or badly, in
any order; between any two of these something else may happen: a bundle of another source, a withdrawal, a change of whom
we believe, another machine's name, a step of the clock, a restart. After each step the rules are looked at.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import structlog
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.controller import Controller
from agent.core.errors import HostError, KeyUnavailableError, PayloadError, SealError, Transient
from agent.core.issued import Issued
from agent.core.model import Action, AwsCredential, Bundle, Cloud, Credential, Grant, SealedBundle
from agent.core.secret import Secret
from agent.core.source import Ack
from agent.core.verdict import Memory, Policy
from agent.core.view import Live, Origin
from agent.daemon.handover import Handover, encoded, reconcile
from agent.identity.whose import Whose
from tests.fakes.clock import FakeClock, settle
from tests.unit.controller.support import FakeSource
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import bundle, role

HOUR = timedelta(hours=1)
SOURCES = ("file", "https")


class Held:
    """Calls that hang until the test lets one go."""

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[bool]] = []

    async def wait(self) -> bool:
        """Hang; returns whether the call is to go well."""
        call: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.calls.append(call)
        try:
            return await call
        finally:
            if call in self.calls:
                self.calls.remove(call)

    def let_go(self, which: int, *, well: bool) -> None:
        waiting = [call for call in self.calls if not call.done()]
        if waiting:
            waiting[which % len(waiting)].set_result(well)


class Made:
    """What a signer sealed: who may open it, whom it makes of the worker."""

    def __init__(self, number: int, signer: str, process: int, *, withdraw: bool, machine: str) -> None:
        self.signer = signer
        self.process = process  # of the agent that it was brought to last
        self.machine = machine  # to whom alone it is addressed
        self.identity = f"{signer}-{number}"
        grants = [] if withdraw else [role(self.identity)]
        action = Action.WITHDRAW if withdraw else Action.SET
        plain = bundle(*grants, seq=number, issuer=signer, action=action)
        self.bundle = msgspec.structs.replace(plain, named=bool(machine))
        self.bytes = f"bundle {number} {signer} {withdraw} {machine}".encode()


class Meanwhile:
    """A controller whose every wait is the test's, and a model of what may be served.

    Attributes:
        others: identities of another machine, which nobody has brought to this one.
        withdrawn: the withdrawals that this process has acknowledged, each with whether a restart knows of it.
        lasting: identities that earlier processes of this machine have withdrawn, for good.
        disk: what was written last.
        known: sealed bundles whose content is remembered, to be handed to the next process.
    """

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.opening, self.writing, self.issuing = Held(), Held(), Held()
        self.made: dict[bytes, Made] = {}
        self.trusted = {"a", "b"}
        self.machine = "i-1"
        self.number = 0
        self.others: set[str] = set()
        self.withdrawn: list[tuple[Made, bool]] = []
        self.lasting: list[Made] = []
        self.disk: tuple[Memory, bytes | None] = (Memory("i-1"), None)
        self.tasks: list[asyncio.Task[Any]] = []
        self.acks: list[tuple[Made, asyncio.Task[Ack]]] = []
        self.process = 0  # which brings nothing on from the one before
        self.run = 0
        self.backup: tuple[Memory, bytes | None] = self.disk
        self.start()

    # -- the outside

    async def __call__(self, sealed: SealedBundle, now: Any, accepted_digest: str | None) -> Bundle:
        """The opener: asks a key service, then verifies by the trust of that moment."""
        if not await self.opening.wait():
            raise KeyUnavailableError("the key service is silent")
        one = self.made[sealed.data]
        if one.signer not in self.trusted:
            raise SealError("nobody we know", code="signer")
        if one.machine and one.machine != self.machine:
            raise PayloadError("another machine's", code="audience")
        self.known.add(sealed.data)
        return one.bundle

    def hand_over(self) -> None:
        """As the daemon does at each change: what is not in force, and will not be, is no more known by its content."""
        sealed = self.controller.durable.sealed
        if (sealed is None or sealed in self.known) and not self.controller.durable.is_giving:
            self.known &= {sealed or b""}

    async def save(self, memory: Memory, sealed: bytes | None) -> None:
        run = self.run
        well = await self.writing.wait()
        if run != self.run:
            raise HostError("that process is gone")
        if not well:
            raise HostError("the disk is full")
        if memory.active is None:
            sealed = None
        elif sealed is None:  # what is there stays: it may be away only for this process
            sealed = self.disk[1]
        self.disk = memory, sealed

    async def note(self, history: Any) -> None:
        pass

    async def issue(self, grant: Grant, base: Credential | None, now: Any) -> Issued[Credential]:
        if not await self.issuing.wait():
            raise Transient("down", code="network")
        return Issued(self._credential(grant.id))

    async def instance(self, cloud: Cloud, now: Any) -> Issued[Credential] | None:
        return Issued(self._credential("instance")) if cloud is Cloud.AWS else None

    async def id_token(self, grant: Grant | None, base: Credential | None, audience: str, now: Any) -> Any:
        raise Transient("none", code="network")

    def _credential(self, name: str) -> AwsCredential:
        now = self.clock.now()
        end = now + HOUR * (6 if name == "instance" else 1)
        return AwsCredential(name, Secret("s"), Secret("t"), issued_at=now, expires_at=end)

    # -- what happens

    def start(self, *, doubt: bool = False, left: Handover | None = None) -> None:
        memory, self.left = reconcile(left, *self.disk)
        self.known: set[bytes] = set()
        self.found = memory.instance_id
        brought = Memory() if left is None else left.brought
        policy, now = Policy(fallback=frozenset()), self.clock.now()
        self.store = Store(policy, memory, now, random.Random(1), brought=brought)
        self.controller = Controller(
            store=self.store,
            issuer=self,
            opener=self,
            recorder=self,
            sources=[FakeSource(name) for name in SOURCES],
            clock=self.clock,
            rng=random.Random(2),
        )
        self.tasks = [asyncio.create_task(self.controller.run())]
        if memory != self.disk[0]:
            self.controller.durable.write()
        if doubt:
            self.tasks.append(asyncio.create_task(self._identify(Whose.UNKNOWN)))
        else:
            self.settle()

    async def _identify(self, whose: Whose) -> None:
        name = "" if whose is Whose.UNKNOWN else self.machine
        await self.controller.intake.identified(whose, name, boot_id="b", firmware={}, sealed=self.left)

    def settle(self) -> None:
        """A metadata service tells who we are."""
        whose = Whose.OURS if self.found == self.machine else Whose.ANOTHERS
        self.tasks.append(asyncio.create_task(self._identify(whose)))

    def settle_a_doubt(self) -> None:
        if self.store.doubted:
            self.settle()

    def doubt(self) -> None:
        """The metadata service of a machine that runs says another name: it may be a copy, and all that it has another's."""
        if self.store.doubted:
            return
        self.left, present = self.controller.durable.sealed, self.store.bundle
        for one in self.made.values():
            if present is not None and one.bundle.digest == present.digest:
                one.process = min(one.process, self.process - 1)
        self.tasks.append(asyncio.create_task(self._identify(Whose.UNKNOWN)))

    def bring(self, signer: str, origin: str, *, withdraw: bool = False, machine: str = "") -> None:
        self.number += 1
        one = Made(self.number, signer, self.process, withdraw=withdraw, machine=machine)
        self.made[one.bytes] = one
        self._submit(one, origin)

    def bring_again(self, number: int, origin: str) -> None:
        """A source shows what it, or another, has shown before."""
        if self.made:
            one = list(self.made.values())[number % len(self.made)]
            one.process = self.process
            self.others.discard(one.identity)
            self._submit(one, origin)

    def _submit(self, one: Made, origin: str) -> None:
        work = self.controller.intake.submit(SealedBundle(one.bytes, origin))
        self.acks.append((one, asyncio.create_task(work)))

    def distrust(self, signer: str) -> None:
        self.trusted.discard(signer)
        self.controller.intake.review()
        self.controller.intake.reconsider()

    def trust(self, signer: str) -> None:
        self.trusted.add(signer)
        self.controller.intake.reconsider()

    def clone(self) -> None:
        """It is another machine than the one whose memory this is: nothing of that one is served any more.

        What was brought to this process was brought to this machine, unless it named the other one.
        """
        self.machine = f"i-{int(self.machine[2:]) + 1}"
        self.found = ""
        self.others = {made.identity for made in self.made.values() if made.process < self.process}
        self.withdrawn = [(one, durable) for one, durable in self.withdrawn if not one.machine]
        self.lasting = []
        self.tasks.append(asyncio.create_task(self._identify(Whose.ANOTHERS)))

    async def restart(self, *, doubt: bool = False) -> None:
        """The process is killed: what was not acknowledged as durable may be forgotten."""
        await self.end()
        self.process += 1
        self.run += 1
        if self.disk[0].instance_id == self.machine:  # else the next one finds another machine's memory
            self.lasting += [one for one, durable in self.withdrawn if durable]
        # What a backup took away is not there, if nothing was written since.
        self.lasting = [one for one in self.lasting if self._is_on_disk(one)]
        self.withdrawn = []
        self.start(doubt=doubt)

    async def succeed(self, *, put_back: bool) -> None:
        """The process is killed; what it knew is handed to the next. Somebody may have put a backup of the disk back."""
        left = Handover(
            uptime=1.0,
            now=self.clock.now(),
            began=0.0,
            memory=self.store.memory,
            brought=self.store.state.brought,
            sealed=encoded(self.controller.durable.sealed),
        )
        doubted = self.store.doubted
        await self.end()
        self.run += 1
        if put_back and self.backup[0].instance_id == self.machine == left.memory.instance_id:
            self.disk = self.backup
        self.start(doubt=doubted, left=left)

    def back_up(self) -> None:
        """Somebody saves the state directory."""
        self.backup = self.disk

    def _is_on_disk(self, one: Made) -> bool:
        mark = self.disk[0].mark(one.signer, "team")
        return mark is not None and mark.seq >= one.bundle.seq

    def _before(self, one: Made) -> set[str]:
        """The identities that a withdrawal takes away."""
        return {m.identity for m in self.made.values() if m.signer == one.signer and m.bundle.seq < one.bundle.seq}

    @property
    def gone(self) -> set[str]:
        """Identities that nobody may be served: taken away, or another machine's."""
        taken = (self._before(one) for one in (*self.lasting, *(one for one, _ in self.withdrawn)))
        return self.others.union(*taken)

    async def end(self) -> None:
        tasks = [*self.tasks, *(task for _, task in self.acks)]
        for task in tasks:
            task.cancel()
        for held in (self.opening, self.writing, self.issuing):
            for call in list(held.calls):
                call.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.acks = []
        await settle()

    # -- the rules

    def look(self) -> None:
        self._acknowledged()
        known = self.store.bundle is None or self.controller.durable.sealed in self.known
        assert known, "the next process would have to ask for the key"
        now = self.clock.now()
        answer = self.store.answer(Cloud.AWS, now)
        if not isinstance(answer, Live):
            return
        name = answer.credential.access_key_id  # type: ignore[union-attr]
        assert answer.origin is Origin.BUNDLE, "nothing but bundles may be served here"
        assert answer.credential.expires_at > now, "served past its end"
        assert name not in self.gone, f"{name} was taken away"
        present = self.store.bundle
        assert present is not None
        one = next(made for made in self.made.values() if made.bundle.digest == present.digest)
        assert not one.machine or one.machine == self.machine, "addressed to another machine"
        assert not self.store.doubted or one.process == self.process, "nobody knows whose it was"

    def _acknowledged(self) -> None:
        for one, task in [pair for pair in self.acks if pair[1].done()]:
            self.acks.remove((one, task))
            ack = task.result()
            if ack.outcome == "refused" or (one.machine and one.machine != self.machine):
                continue
            if one.bundle.action is Action.WITHDRAW:
                self.withdrawn.append((one, ack.durable))
            if ack.durable:
                written = self.disk[0].mark(one.signer, "team")
                assert written is not None, "acknowledged as durable, and not on the disk"
                assert written.seq >= one.bundle.seq, "acknowledged as durable, and not on the disk"

    async def quiet(self) -> None:
        """Everything answers well from here on, and all rules hold when it has come to rest."""
        for _ in range(60):
            for held in (self.opening, self.writing, self.issuing):
                while any(not call.done() for call in held.calls):
                    held.let_go(0, well=True)
                    await settle()
                    self.look()
            await self.clock.advance(2)
        present = self.store.bundle
        if present is not None:
            assert present.issuer in self.trusted, "in force by a signer whom nobody trusts"
        assert self.disk[0] == self.store.memory, "the disk is behind"
        for one, _ in self.withdrawn:
            mark = self.store.memory.mark(one.signer, "team")
            assert mark is not None, "a withdrawal was forgotten"
            assert mark.seq >= one.bundle.seq, "a withdrawal was forgotten"
        if present is not None:
            assert self.disk[1] is not None
            assert self.made[self.disk[1]].bundle.digest == present.digest
            assert self.store.memory.active is not None


STEPS: dict[str, Callable[[Meanwhile, int], Any]] = {
    "a bundle": lambda it, n: it.bring("ab"[n % 2], SOURCES[n // 2 % 2]),
    "one for this machine": lambda it, n: it.bring("ab"[n % 2], "push", machine=it.machine),
    "a withdrawal": lambda it, n: it.bring("ab"[n % 2], SOURCES[n // 2 % 2], withdraw=True),
    "a withdrawal for this machine": lambda it, n: it.bring("ab"[n % 2], "push", withdraw=True, machine=it.machine),
    "an old one again": lambda it, n: it.bring_again(n, SOURCES[n % 2]),
    "distrust": lambda it, n: it.distrust("ab"[n % 2]),
    "trust": lambda it, n: it.trust("ab"[n % 2]),
    "opened": lambda it, n: it.opening.let_go(n, well=True),
    "key silent": lambda it, n: it.opening.let_go(n, well=False),
    "written": lambda it, n: it.writing.let_go(n, well=True),
    "disk full": lambda it, n: it.writing.let_go(n, well=False),
    "issued": lambda it, n: it.issuing.let_go(n, well=True),
    "not issued": lambda it, n: it.issuing.let_go(n, well=False),
    "time": lambda it, n: it.clock.advance((1, 40, 900)[n % 3]),
    "a step of the clock": lambda it, n: it.clock.set_utc(it.clock.now() + timedelta(minutes=(-20, 20)[n % 2])),
    "another machine": lambda it, n: it.clone(),
    "restart": lambda it, n: it.restart(),
    "a successor": lambda it, _: it.succeed(put_back=False),
    "a successor, and a backup put back": lambda it, _: it.succeed(put_back=True),
    "a backup": lambda it, _: it.back_up(),
    "restart in a doubt": lambda it, n: it.restart(doubt=True),
    "a doubt while it runs": lambda it, n: it.doubt(),
    "the doubt is settled": lambda it, n: it.settle_a_doubt(),
}


async def play(steps: list[tuple[str, int]]) -> None:
    it = Meanwhile()
    try:
        await settle()
        for name, number in steps:
            done = STEPS[name](it, number)
            if asyncio.iscoroutine(done):
                await done
            if "time" in name or "clock" in name:
                it.controller.time_moved()
            else:
                it.controller.rebase()
            it.hand_over()
            await settle()
            it.look()
        await it.quiet()
    finally:
        await it.end()


@example([("a bundle", 4), ("opened", 0), ("distrust", 0), ("opened", 0)])
@example([("one for this machine", 2), ("opened", 0), ("another machine", 0)])
@example([("a bundle", 0), ("a withdrawal", 0), ("opened", 1), ("another machine", 0), ("written", 0), ("opened", 0)])
@example(
    [
        *(("a bundle", 0), ("opened", 0), ("written", 0), ("restart", 0), ("key silent", 0)),
        *(("time", 1), ("opened", 0), ("written", 0), ("another machine", 0), ("opened", 0)),
    ]
)
@example([("a withdrawal", 0), ("an old one again", 0), ("opened", 0), ("opened", 0)])
@example(
    [
        *(("a bundle", 0), ("opened", 0), ("written", 0), ("restart in a doubt", 0), ("a withdrawal", 0)),
        *(("opened", 0), ("another machine", 0), ("an old one again", 0), ("opened", 0), ("written", 0)),
    ]
)
@example(
    [
        *(("a bundle", 5), ("opened", 0), ("a withdrawal", 2), ("disk full", 4), ("written", 4)),
        *(("opened", 3), ("written", 1), ("restart", 4), ("opened", 1)),
    ]
)
@example(
    [
        *(("written", 0), ("a bundle", 0), ("opened", 0), ("written", 0), ("written", 0), ("a backup", 0)),
        *(("a withdrawal", 0), ("opened", 0), ("written", 0), ("a successor, and a backup put back", 0)),
        *(("opened", 0), ("an old one again", 0), ("opened", 0), ("written", 0), ("written", 0), ("issued", 0)),
    ]
)
@example(
    [
        *(("written", 0), ("a bundle", 0), ("opened", 0), ("written", 0), ("written", 0), ("a withdrawal", 0)),
        *(("opened", 0), ("disk full", 0), ("a successor", 0), ("opened", 0), ("an old one again", 0), ("opened", 0)),
        *(("written", 0), ("written", 0), ("issued", 0)),
    ]
)
@given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 5)), max_size=25))
@settings(max_examples=60, deadline=None)
def test_the_rules_hold_whatever_happens_meanwhile(steps: list[tuple[str, int]]) -> None:
    """Never what was taken away, past its end, for another machine, or by nobody we trust; and every word is kept."""
    with structlog.testing.capture_logs():
        asyncio.run(play(steps))
