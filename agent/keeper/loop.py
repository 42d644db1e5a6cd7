"""The one loop: it opens what sources offer, issues what is due, and tells the doors out when something changed.

It decides nothing: :mod:`agent.identity` does. This room alone lets events happen there,
all from one event loop, so a credential has one flight by construction and the doors, which only look, need no lock.
What outlives the process belongs to :class:`agent.keeper.durable.Durable` alone.

Resources: one task a source, one a credential under way, one loop. All are children of :meth:`Keeper.run` and end with
it.

Errors: nothing a source, a bundle or an upstream does ends the loop. The three kinds of trouble are told apart (a
source is broken, a bundle is refused, a credential is not issued), each logged once where it happens, counted, and
never allowed to take away what is served.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn, Protocol, TypeVar

import msgspec
import structlog

from agent.core import refresh
from agent.core.clock import Clock
from agent.core.counters import MAX_KEYS, Counters, bump
from agent.core.errors import (
    BundleError,
    Denied,
    KeyUnavailableError,
    ProviderError,
    SourceError,
    Transient,
    UnreadableError,
)
from agent.core.model import Action, Bundle, Cloud, Credential, Grant, IdToken, SealedBundle
from agent.core.source import Ack, Source
from agent.core.verdict import Accepted, Event, Failure, Notice, Policy, Refused, Same, Work
from agent.core.view import Facts
from agent.core.whose import Whose
from agent.identity.events import (
    BundleResuming,
    ClockMoved,
    CredentialIssued,
    Holding,
    IdTokenMinted,
    IssuingFailed,
    MachineObserved,
    PolicyChanged,
    Remnant,
    TimeDoubted,
    Waiting,
)
from agent.identity.notices import next_look
from agent.identity.standing import google_source
from agent.identity.store import Store
from agent.keeper.durable import Durable, Recorder
from agent.keeper.scoped import Scoped

T = TypeVar("T")

STATE: Final = "state"
"""The origin of our own copy of the bundle in force, read back at the start."""

ISSUE_TIMEOUT_SECONDS: Final = 90.0
"""A belt over the providers' own timeouts: one flight that never ends would stop the renewal of that credential."""

REVIEW_AGAIN_SECONDS: Final = 30.0
"""Between attempts to judge the bundle in force again while the key service is silent."""

MOVED_SECONDS: Final = 0.5
"""Below this our clock was not moved: it was only read twice, one reading after the other."""


class Issued(Protocol):
    """A credential as a provider gives it."""

    @property
    def credential(self) -> Credential: ...  # noqa: D102
    @property
    def lifetime(self) -> timedelta | None: ...  # noqa: D102


class Issuer(Protocol):
    """Where credentials come from (:class:`agent.providers.Mint`). Raises ``Denied`` or ``Transient``, nothing else."""

    async def issue(self, grant: Grant, base: Credential | None, now: datetime) -> Issued: ...  # noqa: D102
    async def instance(self, cloud: Cloud, now: datetime) -> Issued | None: ...  # noqa: D102
    async def id_token(  # noqa: D102
        self, grant: Grant | None, base: Credential | None, audience: str, now: datetime
    ) -> IdToken: ...


class Opener(Protocol):
    """Opens and verifies sealed bytes (:class:`agent.keys.Keyring` with the trust it was given)."""

    async def __call__(self, sealed: SealedBundle, now: datetime, accepted_digest: str | None) -> Bundle:
        """Raise a :class:`BundleError`, nothing else."""


class _Held(msgspec.Struct):
    """Bytes that were not taken, and when (boot-time seconds) to look at them again."""

    sealed: SealedBundle
    attempts: int
    at: float


class Keeper:
    """See the module.

    Args:
        store: the state machine.
        issuer: where credentials come from.
        opener: what opens bundles; ``None`` when no key is configured: every offer is then refused.
        recorder: what writes the memory down.
        sources: the ways in.
        clock: time.
        rng: for the retries of the keeper's own.
        changed: called on the loop whenever an answer may have changed; it must not block.
        follow: looks at the machine's clocks, each time round; may move our time. Returns whether there is a reason to
            ask the clouds for it.
    """

    def __init__(
        self,
        *,
        store: Store,
        issuer: Issuer,
        opener: Opener | None,
        recorder: Recorder,
        sources: Sequence[Source],
        clock: Clock,
        rng: random.Random,
        changed: Callable[[], None] = lambda: None,
        follow: Callable[[], bool] = lambda: False,
    ) -> None:
        self.store = store
        self.counters = Counters()
        self.last_refusal: Ack | None = None
        self.source_state: dict[str, str] = {source.name: "starting" for source in sources}
        self.durable = Durable(store, recorder, clock)
        self._issuer = issuer
        self._opener = opener
        self._sources = {source.name: source for source in sources}
        self._clock = clock
        self._rng = rng
        self._changed = changed
        self._follow = follow
        self._offset = self._our_offset()
        self._doubtful = False  # whether there is a doubt about our clock that could not be followed up yet
        self._log = structlog.get_logger()
        self._woken = asyncio.Event()
        self._version = -1
        self._review_at = float("inf")  # boot-time seconds: when to judge the bundle in force again
        self._held: dict[str, _Held] = {}  # by origin: bytes worth another try
        self.scoped = Scoped(
            clock,
            served=lambda: google_source(self.store.state, self._clock.now()),
            issue=issuer.issue,
            seconds=ISSUE_TIMEOUT_SECONDS,
        )
        self._id_flights: dict[str, asyncio.Task[IdToken | None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._resumed = False  # whether the bundle in force is one of an earlier process
        self.last_step = clock.boottime()
        """When the loop last went round, on the boot-time clock: what a watchdog must look at."""

    # -- in ---------------------------------------------------------------------------------------------------------

    @property
    def sealed(self) -> bytes | None:
        """The bundle in force, as it came."""
        return self.durable.sealed

    async def resume(self, sealed: bytes | None) -> None:
        """Put back in force what an earlier process of this instance had accepted. Called once, before :meth:`run`."""
        active = self.store.memory.active
        if active is None or sealed is None or self._opener is None:
            return
        now = self._clock.now()
        bundle_in = SealedBundle(sealed, STATE)
        self._resuming(f"bundle {active.seq}, which was in force, is being opened")
        try:
            bundle = await self._opener(bundle_in, now, active.digest)
        except KeyUnavailableError as error:
            self._log.warning("bundle.held", origin="state", code=error.code, reason=error.message)
            self._hold_soon(bundle_in, 0)
            return
        except BundleError as error:
            # The key is gone (an ephemeral one is), or the file was touched. The sticky rule answers from here on.
            self._log.error("bundle.not_resumed", code=error.code, reason=error.message)
            self._resuming(None)
            self._hold(bundle_in, 0, None)  # a key, a signer or the machine's name may be away, and come back
            return
        verdict = self.durable.resume(bundle, sealed, now)
        if isinstance(verdict, Accepted):
            self._resumed = True
            self._log.info("bundle.resumed", **_describe(bundle))
        elif isinstance(verdict, Refused):
            self._resuming(None)
            self._log.error("bundle.not_resumed", code=verdict.code, reason=verdict.reason)

    async def offer(self, sealed: SealedBundle) -> Ack:
        """Open, judge and, if it is accepted, put in force.

        A caller that is cancelled (a client that hung up in the middle of a push) cancels its waiting, not the offer:
        what has been written down must not be left out of force.

        Returns:
            The verdict, which is also carried back to the source it came from.
        """
        return await asyncio.shield(self._spawn(self._offer(sealed), name=f"offer {sealed.origin}"))

    async def _offer(self, sealed: SealedBundle) -> Ack:
        ack = await self._judge(sealed)
        self._wake()
        source = self._sources.get(sealed.origin)
        if source is not None:
            self._spawn(source.acknowledge(ack), name=f"ack {sealed.origin}")
        return ack

    async def _judge(self, sealed: SealedBundle) -> Ack:
        now = self._clock.now()
        held = self._held.pop(sealed.origin, None)
        attempts = held.attempts if held is not None and held.sealed is sealed else 0
        if self._opener is None:
            return self._refused(
                sealed, None, Refused("recipient", "no key is configured: no bundle can be opened"), now
            )
        try:
            bundle = await self._open(sealed, now)
        except KeyUnavailableError as error:
            self._hold_soon(sealed, attempts)
            if attempts == 0:
                self._log.warning("bundle.held", origin=sealed.origin, code=error.code, reason=error.message)
            return self._ack(sealed, "refused", now, code=error.code, reason=error.message)
        except BundleError as error:
            if sealed.origin == STATE:
                self._resuming(None)
            # It may be right and we not yet: see `reconsider`. What is only too early is looked at each minute.
            self._hold(sealed, attempts, 60.0 if error.code == "not-yet-valid" else None)
            return self._refused(sealed, None, Refused(error.code, error.message), now, repeated=attempts > 0)
        verdict, durable = await self.durable.submit(bundle, sealed.data)
        if isinstance(verdict, Refused):
            return self._refused(sealed, bundle, verdict, now)
        if isinstance(verdict, Same):
            self.counters.same += 1
            self._log.info("bundle.same", origin=sealed.origin, seq=bundle.seq)
            return self._ack(sealed, "same", now, bundle=bundle, durable=durable)
        return self._accepted(sealed, bundle, now, durable=durable)

    async def _open(self, sealed: SealedBundle, now: datetime) -> Bundle:
        """Open ``sealed``; what this instance accepted before and has lost since may be past its last acceptance."""
        if self._opener is None:
            raise AssertionError("internal error: no opener")
        active = self.store.memory.active
        if active is not None and self.store.bundle is None:
            try:
                return await self._opener(sealed, now, active.digest)
            except KeyUnavailableError:
                raise
            except BundleError:
                pass  # it is another one: judge it as any
        return await self._opener(sealed, now, None)

    def _accepted(self, sealed: SealedBundle, bundle: Bundle, now: datetime, *, durable: bool) -> Ack:
        if bundle.action is Action.SET or self.store.memory.active is None:
            self._held.pop(STATE, None)  # our copy of an earlier one
            self._resumed = False
        self.counters.accepted += 1
        event = "bundle.accepted" if bundle.action is Action.SET else "bundle.withdrawn"
        self._log.info(event, durable=durable, **_describe(bundle))
        for aside in bundle.set_aside:
            self._log.warning("grant.set_aside", seq=bundle.seq, grant=aside.id, type=aside.type)
        self._publish()
        return self._ack(sealed, "accepted", now, bundle=bundle, durable=durable)

    def _hold(self, sealed: SealedBundle, attempts: int, seconds: float | None) -> None:
        """Keep bytes for another look, after ``seconds`` or (``None``) when :meth:`reconsider` is called."""
        if sealed.origin not in self._sources and sealed.origin != STATE:
            return  # one place a source, and no more: what anybody can push must not pile up
        at = float("inf") if seconds is None else self._clock.boottime() + seconds
        self._held[sealed.origin] = _Held(sealed, attempts + 1, at)

    def _hold_soon(self, sealed: SealedBundle, attempts: int) -> None:
        seconds = refresh.retry_seconds(attempts + 1, None, denied=False, rng=self._rng)
        self._hold(sealed, attempts, seconds + 1.0)

    def reconsider(self) -> None:
        """Look again at what each source offered last and was refused: the clock, the keys or the trust changed."""
        for held in self._held.values():
            held.at = min(held.at, self._clock.boottime())
        self._wake()

    def review(self) -> None:
        """Judge the bundle in force again, soon and as a restart would: whom we believe, or who we are, has changed.

        It is judged before anything that :meth:`reconsider` brings back: what a signer said who is not believed any
        more must not be held over until its successor has a credential.
        """
        self._review_at = self._clock.boottime()
        self._wake()

    async def _review(self) -> None:
        bundle, sealed = self.store.bundle, self.durable.sealed
        if bundle is None or sealed is None or self._opener is None:
            return
        now = self._clock.now()
        try:
            again = await self._opener(SealedBundle(sealed, bundle.origin), now, bundle.digest)
        except KeyUnavailableError as error:
            # No verdict. A key service that is down for a night takes nobody's identity away.
            self._log.error("bundle.not_reviewed", code=error.code, reason=error.message, seq=bundle.seq)
            self._review_at = self._clock.boottime() + REVIEW_AGAIN_SECONDS
            self._wake()  # its sleep was planned without this
            return
        except BundleError as error:
            if self.store.bundle is bundle:  # nothing took its place while it was opened
                self._revoke(bundle, sealed, error, now)
            return
        # The signer may give shorter leases, or longer ones, than it might then.
        anew = self.store.bundle is bundle and again.lease_until != bundle.lease_until
        if anew and self.durable.lease_anew(again, now):
            self._log.info("bundle.leased_anew", **_describe(again))
            self._publish()

    def _unreadable(self, source: Source, error: UnreadableError) -> None:
        """Somebody meant this worker to have a bundle. Nobody may take what is served instead for what was meant."""
        self._log.error("bundle.unreadable", source=source.name, reason=error.message, hint=error.hint)
        bump(self.counters.refused, "unreadable")
        nothing = SealedBundle(b"", source.name)
        ack = self._ack(nothing, "refused", self._clock.now(), code="unreadable", reason=error.message)
        self.last_refusal = ack
        self._spawn(source.acknowledge(ack), name=f"ack {source.name}")

    def _revoke(self, bundle: Bundle, sealed: bytes, error: BundleError, now: datetime) -> None:
        """End what would not be resumed at a restart, with the same outcome; the memory stays, so the rules do too."""
        self._log.error("bundle.revoked", code=error.code, reason=error.message, **_describe(bundle))
        bump(self.counters.refused, error.code)
        mine = SealedBundle(sealed, STATE)
        self.last_refusal = self._ack(mine, "refused", now, bundle=bundle, code=error.code, reason=error.message)
        self.durable.revoke(now)
        self._hold(mine, 0, None)  # a reload that was a mistake is made good by the next
        self._publish()

    def _refused(
        self, sealed: SealedBundle, bundle: Bundle | None, verdict: Refused, now: datetime, *, repeated: bool = False
    ) -> Ack:
        ack = self._ack(sealed, "refused", now, bundle=bundle, code=verdict.code, reason=verdict.reason)
        if repeated:
            return ack
        bump(self.counters.refused, verdict.code)
        self.last_refusal = ack
        say = self._log.error if verdict.alarm else self._log.warning
        seq = bundle.seq if bundle is not None else None
        say("bundle.refused", origin=sealed.origin, code=verdict.code, reason=verdict.reason, seq=seq)
        return ack

    @staticmethod
    def _ack(
        sealed: SealedBundle,
        outcome: Any,
        now: datetime,
        *,
        bundle: Bundle | None = None,
        code: str | None = None,
        reason: str | None = None,
        durable: bool = True,
    ) -> Ack:
        return Ack(
            origin=sealed.origin,
            outcome=outcome,
            at=now,
            durable=durable,
            code=code,
            reason=reason,
            issuer=bundle.issuer if bundle else None,
            subject=bundle.subject if bundle else None,
            bundle_id=bundle.bundle_id if bundle else None,
            seq=bundle.seq if bundle else None,
        )

    # -- what the daemon learns -------------------------------------------------------------------------------------

    @property
    def memory_unwritten(self) -> bool:
        """Whether a restart would forget."""
        return self.durable.unwritten

    async def identified(
        self,
        whose: Whose,
        instance_id: str,
        *,
        boot_id: str,
        firmware: Mapping[str, str],
        sealed: bytes | None = None,
        write: bool = True,
    ) -> None:
        """Say whose the memory is: at the start, or when the machine's name is learned late.

        Args:
            whose: as :func:`agent.core.whose.whose` judged it. While it is unknown, nothing that it decided is served.
            instance_id: the machine's name; empty while it is not known.
            boot_id: of the running kernel.
            firmware: what the firmware says.
            sealed: the sealed bundle that the memory names; put back in force if it is ours.
            write: write down what was learned; not over the file of a later version.
        """
        if whose is Whose.UNKNOWN:
            self.durable.doubt("it is not known yet whether this machine is the one that accepted the last bundle")
        elif whose is Whose.OURS:
            self.durable.adopt(instance_id, boot_id, firmware, write=write)
            if self.store.bundle is None:
                await self.resume(sealed)
        else:
            self._log.warning("memory.reset", was=self.store.memory.instance_id, now=instance_id)
            # What came to this machine while it was not known who it is, is its own: to be judged anew, and alone.
            bundle, mine = self.store.bundle, self.durable.sealed
            held = None if self._resumed or bundle is None or mine is None else SealedBundle(mine, bundle.origin)
            self._held.pop(STATE, None)
            self._resumed = False
            self.durable.reset(instance_id, boot_id, firmware)
            if held is not None:
                self._hold(held, 0, 0.0)
        self._wake()  # the loop tells what changed

    def observe(self, facts: Facts) -> None:
        """Take note of what the machine's real metadata said."""
        self.store.apply(MachineObserved(facts), self._clock.now())

    def reconfigure(self, policy: Policy) -> None:
        """Take another policy (a reload)."""
        self.store.apply(PolicyChanged(policy), self._clock.now())

    def restore(self, holdings: Iterable[Holding]) -> int:
        """Take back what an earlier process held, as far as it still belongs here; how many."""
        now = self._clock.now()
        return sum(self.store.take(holding, now) for holding in holdings)

    def go_on(self, remnants: Iterable[Remnant], waiting: Iterable[Waiting]) -> None:
        """Serve on what an earlier bundle left, and retry from where an earlier process stood."""
        now = self._clock.now()
        for remnant in remnants:
            self.store.apply(remnant, now)
        for one in waiting:
            self.store.apply(one, now)

    # -- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            for source in self._sources.values():
                group.create_task(self._watch(source), name=f"source {source.name}")
            group.create_task(self._keep(), name="keeper")
        raise AssertionError("internal error: the keeper ended")  # pragma: no cover

    async def _keep(self) -> NoReturn:
        try:
            while True:
                self._woken.clear()
                self.step()
                now = self._clock.now()
                seconds = (next_look(self.store.state, now) - now).total_seconds()
                again = min((held.at for held in self._held.values()), default=float("inf"))
                again = min(again, self.durable.write_at, self._review_at)
                await self._sleep(min(seconds, again - self._clock.boottime()))
        finally:
            for task in self._tasks:
                task.cancel()

    def step(self) -> None:
        """Once round: tell what changed, start what is due. Never blocks."""
        doubtful = self._follow()
        self.rebase()
        now = self._clock.now()
        if doubtful or self._doubtful:
            self._doubtful = not self.store.take(TimeDoubted(), now)
        self.last_step = self._clock.boottime()
        for notice in self.store.tick(now):
            self._tell(notice)
        if self._review_at <= self.last_step:
            self._review_at = float("inf")
            self._spawn(self._review(), name="review")
        for held in list(self._held.values()):
            if held.at <= self.last_step:
                held.at = float("inf")  # until it is judged, which defers it anew or not
                self._spawn(self._offer(held.sealed), name=f"offer {held.sealed.origin}")
        if self.durable.write_at <= self.last_step:
            self.durable.retry()
        for work in self.store.due(now):
            self._spawn(self._issue(work), name=f"issue {work.key.cloud} {work.key.grant_id}")
        self._publish()

    async def _sleep(self, seconds: float) -> None:
        """Sleep on the injected clock, or until something wakes the loop."""
        sleeper = asyncio.ensure_future(self._clock.sleep(max(seconds, 0.0)))
        sleeper.add_done_callback(lambda slept: None if slept.cancelled() else self._woken.set())
        try:
            await self._woken.wait()
        finally:
            sleeper.cancel()

    def _wake(self) -> None:
        self._woken.set()

    def _publish(self) -> None:
        version = self.store.version
        if version != self._version:
            self._version = version
            self._changed()

    def _spawn(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch(self, source: Source) -> NoReturn:
        name = source.name

        def trouble(error: SourceError) -> None:
            bump(self.counters.source_troubles, name)
            if isinstance(error, UnreadableError) and self.source_state.get(name) != error.message:
                self._unreadable(source, error)
            elif self.source_state.get(name) != error.message:
                # Once a change, not once an attempt: a source that is down for a night fills no journal.
                self._log.warning("source.failed", source=name, reason=error.message)
            self.source_state[name] = error.message

        def ok() -> None:
            if self.source_state.get(name) not in ("ok", "starting"):
                self._log.info("source.recovered", source=name)
            self.source_state[name] = "ok"

        async def offer(sealed: SealedBundle) -> None:
            await self.offer(sealed)

        attempt = 0
        while True:
            try:
                await source.watch(offer, trouble=trouble, ok=ok)
            except Exception as error:  # noqa: BLE001 - the keeper's border: one source must not end the others
                attempt += 1
                self._log.error("source.crashed", source=name, error=type(error).__name__, exc_info=True)
                trouble(SourceError(f"crashed: {type(error).__name__}"))
                await self._clock.sleep(refresh.retry_seconds(attempt, None, denied=True, rng=self._rng))

    # -- issuing ----------------------------------------------------------------------------------------------------

    async def _issue(self, work: Work) -> None:
        label = f"{work.key.cloud}:{work.key.grant_id}"
        began, asked_at = self._clock.now(), self._clock.boottime()
        try:
            async with asyncio.timeout(ISSUE_TIMEOUT_SECONDS):
                issued = await self._issue_one(work, began)
        except ProviderError as error:
            why = Failure(error.code, error.message, isinstance(error, Denied), self._clock.now(), error.pause_seconds)
            self._failed(work, why, label)
        except TimeoutError:
            why = Failure("timeout", "it took too long", False, self._clock.now())
            self._failed(work, why, label)
        except Exception as error:  # noqa: BLE001 - the keeper's border
            self._log.error("issue.crashed", credential=label, error=type(error).__name__, exc_info=True)
            kind = type(error).__name__
            why = Failure("internal", f"internal error: {kind}", False, self._clock.now())
            self._failed(work, why, label)
        else:
            self._issued(work, issued, label, asked_at)
        self._wake()

    async def _issue_one(self, work: Work, now: datetime) -> Issued | None:
        if work.grant is None:
            return await self._issuer.instance(work.key.cloud, now)
        return await self._issuer.issue(work.grant, work.base, now)

    def _issued(self, work: Work, issued: Issued | None, label: str, asked_at: float) -> None:
        ends = began = None
        if issued is not None and issued.lifetime is not None:
            # Counted on the clock that never steps, from before the request left.
            age = timedelta(seconds=self._clock.boottime() - asked_at)
            began = self._clock.now() - age
            ends = began + issued.lifetime
        now = self._clock.now()
        credential = issued.credential if issued is not None else None
        changed = self.store.take(CredentialIssued(work, credential, ends, began), now)
        if issued is None:
            if changed:
                self._log.info("instance.absent", cloud=work.key.cloud)
            return
        bump(self.counters.issued, label)
        self.counters.last_issued.pop(label, None)
        self.counters.last_issued[label] = now
        while len(self.counters.last_issued) > MAX_KEYS:
            del self.counters.last_issued[next(iter(self.counters.last_issued))]  # the one longest ago
        if changed:
            expires = issued.credential.expires_at
            self._log.info(
                "credential.issued", cloud=work.key.cloud, grant=work.key.grant_id, expires_at=_stamp(expires)
            )

    def _failed(self, work: Work, failure: Failure, label: str) -> None:
        bump(self.counters.failures, f"{label}:{failure.code}")
        self.store.apply(IssuingFailed(work, failure), self._clock.now())
        say = self._log.error if failure.denied else self._log.warning
        if work.attempt in (1, 2, 3, 5, 10) or work.attempt % 50 == 0:
            say(
                "credential.denied" if failure.denied else "credential.failed",
                cloud=work.key.cloud,
                grant=work.key.grant_id,
                code=failure.code,
                reason=failure.message,
                attempt=work.attempt,
            )

    def _resuming(self, why: str | None) -> None:
        self.store.apply(BundleResuming(why), self._clock.now())

    def time_moved(self) -> None:
        """Our time was moved, the machine resumed, or somebody doubts our time: go round now.

        To be called by whoever heard of it. What was counted is moved along before anything else is done.
        """
        self.rebase()
        self._wake()

    def rebase(self) -> None:
        """See whether our clock was moved, and if so move what was counted from a moment of it.

        To be called by whoever moves the clock, before anything else is done: no reader may see a new time beside old
        deadlines.
        """
        offset = self._our_offset()
        by = offset - self._offset
        if abs(by) < MOVED_SECONDS:
            return
        self._offset = offset
        self.store.apply(ClockMoved(timedelta(seconds=by)), self._clock.now())
        self._log.warning("clock.corrected", seconds=round(by, 1))
        self.reconsider()

    def _our_offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.boottime()

    async def id_token(self, audience: str) -> IdToken | None:
        """An identity token for ``audience``: the one held, or one minted now; every asker shares one flight.

        Returns:
            ``None`` when this identity cannot make any (the door says 404).

        Raises:
            Denied: who could make it refused, and will again (403).
            Transient: it failed, and may work later (503): "not found" would be taken for good.
        """
        held = self.store.view_id_token(audience, self._clock.now())
        if held is not None:
            return held
        flight = self._id_flights.get(audience)
        if flight is None:
            flight = asyncio.create_task(self._mint_id_token(audience), name="id token")
            self._id_flights[audience] = flight
            flight.add_done_callback(lambda done: self._id_flown(audience, done))
        return await asyncio.shield(flight)

    def _id_flown(self, audience: str, flight: asyncio.Task[IdToken | None]) -> None:
        self._id_flights.pop(audience, None)
        if not flight.cancelled():
            flight.exception()  # looked at: every asker may have hung up, and nobody is left to be told

    async def _mint_id_token(self, audience: str) -> IdToken | None:
        now = self._clock.now()
        origin = google_source(self.store.state, now)
        if origin is None:
            return None
        try:
            async with asyncio.timeout(ISSUE_TIMEOUT_SECONDS):
                token = await self._issuer.id_token(*origin, audience, now)
        except ProviderError as error:
            if error.code == "unsupported":
                return None
            self._log.warning("id_token.failed", code=error.code, reason=error.message)
            raise
        except TimeoutError:
            self._log.warning("id_token.failed", code="timeout", reason="it took too long")
            raise Transient("it took too long", code="timeout") from None
        except Exception as error:  # noqa: BLE001 - the keeper's border
            self._log.error("id_token.crashed", error=type(error).__name__, exc_info=True)
            raise Transient(f"internal error: {type(error).__name__}", code="internal") from None
        served = google_source(self.store.state, self._clock.now())
        if served is None or served[0] != origin[0]:
            return None  # the identity it speaks for was withdrawn or replaced while it was minted
        self.store.apply(IdTokenMinted(token, origin[0]), self._clock.now())
        return token

    def _tell(self, notice: Notice) -> None:
        say = {Event.IDENTITY: self._log.info, Event.ENDED: self._log.error, Event.HORIZON: self._log.warning}
        horizon = _stamp(notice.horizon) if notice.horizon is not None else None
        say[notice.event](notice.event, cloud=notice.cloud, origin=notice.origin, why=notice.why, horizon=horizon)


def _describe(bundle: Bundle) -> dict[str, Any]:
    """What may be said of a bundle in a log."""
    return {
        "origin": bundle.origin,
        "issuer": bundle.issuer,
        "subject": bundle.subject,
        "seq": bundle.seq,
        "routes": {str(cloud): grant for cloud, grant in bundle.routes.items()},
        "lease_until": _stamp(bundle.lease_until) if bundle.lease_until is not None else None,
    }


def _stamp(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
