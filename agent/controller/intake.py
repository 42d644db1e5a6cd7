"""Bundles on their way in: opened, evaluated, put in force; tried again where that may help; evaluated anew.

Bytes that may still become right are kept for another look, one for each source: bytes whose key service is silent are
tried again soon, those that were refused are looked at again when our clock, our keys or our trust changes
(:meth:`Intake.reconsider`). The bundle in force is evaluated again when whom we believe has changed
(:meth:`Intake.review`).

Errors: nothing that a source brings ends anything. A refusal is logged once where it happens, counted, and never takes
away an identity that is served.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Final

import msgspec
import structlog

from agent.controller.awaited import Awaited
from agent.controller.durable import Durable, Outcome
from agent.controller.opener import Opener, is_for_want
from agent.controller.retries import NEVER, Retries
from agent.controller.review import Review
from agent.controller.seldom import Seldom
from agent.controller.tasks import Tasks
from agent.controller.verdicts import Verdicts, acknowledge
from agent.core.clock import Clock
from agent.core.counters import Counters
from agent.core.errors import BundleError, KeyUnavailableError, UnreadableError
from agent.core.history import History
from agent.core.model import Action, Bundle, SealedBundle
from agent.core.source import STATE, Ack, Source
from agent.core.verdict import Accepted, Mark, Memory, Refused, Same
from agent.identity.events import BundleResuming, TrustNarrowed
from agent.identity.store import Store
from agent.identity.whose import Whose

TOO_EARLY_SECONDS: Final = 60.0
"""Between looks at a bundle that is not valid yet."""

DOUBTFUL_SECONDS: Final = 300.0
"""Between looks at a bundle that a key service alone has refused: it may have erred, and is not to be stormed."""

FRESH_SECONDS: Final = 30.0
"""Bytes that took longer to open and to write down, since the machine slept, say, are verified by the present time."""

_DOUBT: Final = "it is not known yet whether this machine is the one that accepted the last bundle"
_OVERTAKEN: Final = Refused("rollback", "while it was opened, it was withdrawn or replaced")


class Intake:
    """See the module. Long because every way of a bundle into force is here, so that none goes past another's rules.

    Args:
        store: the state machine.
        durable: the owner of what outlives the process.
        opener: what opens bundles; ``None`` when no key is configured: every bundle is then refused.
        sources: the ways in, by name.
        clock: time.
        rng: for retries.
        counters: of verdicts.
        history: what happened lately.
        tasks: where what is under way is saved.
        wake: has the loop go round.
        changed: tells that an answer may have changed.
        told: waits until whoever answers workers has what was told last; a verdict is given after that.
    """

    def __init__(
        self,
        store: Store,
        durable: Durable,
        opener: Opener | None,
        sources: Mapping[str, Source],
        *,
        clock: Clock,
        rng: random.Random,
        counters: Counters,
        history: History,
        tasks: Tasks,
        wake: Callable[[], None],
        changed: Callable[[], None],
        told: Callable[[], Awaitable[bool]],
    ) -> None:
        self._store = store
        self._durable = durable
        self._opener = opener
        self._sources = sources
        self._acks: dict[tuple[str, str], Ack] = {}
        self._clock = clock
        self._verdicts = Verdicts(counters, history, store.tell, Seldom(clock.boottime))
        self._tasks = tasks
        self._wake = wake
        self._changed = changed
        self._told = told
        self._log = structlog.get_logger()
        self.awaited = Awaited(sources.values())
        self._retries = Retries(lambda origin: origin == STATE or origin in sources, clock, rng)
        self._review = Review(
            store, durable, opener, self._verdicts, self._retries, clock=clock, wake=wake, changed=changed
        )
        self._believed = 0  # counts the times at which what bundles are verified by has changed

    # -- what the loop asks -----------------------------------------------------------------------------------------

    @property
    def last_refusal(self) -> Ack | None:
        """The last refusal, for a person."""
        return self._verdicts.last_refusal

    @property
    def waiting(self) -> frozenset[str]:
        """The origins whose bytes are kept for another look."""
        return self._retries.origins

    @property
    def due_at(self) -> float:
        """When :meth:`step` has something to do next, in boot-time seconds; infinity: never."""
        return min(self._review.due_at, self._retries.due_at)

    def step(self, boottime: float) -> None:
        """Start what is due. The review goes first: see :meth:`review`."""
        if self._review.due_at <= boottime:
            self._review.due_at = NEVER
            self._tasks.spawn(self._review.run(), name="review")
        for sealed in self._retries.due(boottime):
            self._begin(sealed)

    # -- bundles ----------------------------------------------------------------------------------------------------

    async def resume(self, sealed: bytes | None) -> None:
        """Put back in force what an earlier process of this instance had accepted: at the start, or once it is read."""
        active = self._store.memory.active
        if active is None or sealed is None or self._opener is None:
            return
        believed, now = self._believed, self._clock.now()
        bundle_in = SealedBundle(sealed, STATE)
        self._retries.take(bundle_in)

        def overtaken() -> bool:
            """Whether it was withdrawn or replaced, or may be another machine's, as was found while it was opened."""
            store = self._store
            return store.doubted or store.memory.active != active or store.bundle is not None

        self._resuming(_being_opened(active))
        try:
            bundle = await self._opener(bundle_in, now, active.digest)
        except BundleError as error:
            if not overtaken():
                self._not_resumed(bundle_in, error, believed)
            return
        if overtaken():
            return
        try:
            verdict = self._durable.resume(bundle, sealed, self._clock.now())
        except Exception as error:  # noqa: BLE001 - nobody else would try it again, and workers wait for it
            why = KeyUnavailableError(f"it cannot be put in force just now: {type(error).__name__}")
            self._not_resumed(bundle_in, why, believed)
            return
        if isinstance(verdict, Accepted):
            self._verdicts.resumed(bundle)
        elif isinstance(verdict, Refused):
            self._resuming(None)
            self._log.error("bundle.not_resumed", code=verdict.code, reason=verdict.reason)

    def _not_resumed(self, mine: SealedBundle, error: BundleError, believed: int) -> None:
        if isinstance(error, KeyUnavailableError):
            self._retries.keep_soon(mine, 0, error.pause_seconds)
            self._log.warning("bundle.held", origin="state", code=error.code, reason=error.message)
        elif believed != self._believed:
            self._retries.keep(mine, 0, 0.0)  # it was verified by what is not believed any more
        else:
            # The key is gone (an ephemeral one is), or the file was touched. The sticky rule answers from here on.
            self._log.error("bundle.not_resumed", code=error.code, reason=error.message)
            self._resuming(None)
            self._retries.keep(mine, 0, _look_again(error))  # a key, a signer or our name may be away, and return

    async def submit(self, sealed: SealedBundle) -> Ack:
        """Open, evaluate and, if it is accepted, put in force.

        A caller that is cancelled (a client that hung up in the middle of a push) cancels its waiting, not the
        submission: what has been written down must not be left out of force.

        Returns: the verdict, which is also carried back to the source it came from.
        """
        return await asyncio.shield(self._begin(sealed))

    def _begin(self, sealed: SealedBundle) -> asyncio.Task[Ack]:
        task = self._tasks.spawn(self._submit(sealed), name=f"submit {sealed.origin}")  # first: it ends the waiting
        self.awaited.opens(sealed.origin)  # now: whoever asks next must not find that nothing is waited for
        self._wake()  # nor the end of the grace, which may come while it is being opened
        return task

    async def _submit(self, sealed: SealedBundle) -> Ack:
        ack: Ack | None = None
        attempts: int | None = None
        try:
            attempts = self._retries.take(sealed)
            ack = await self._evaluate(sealed, attempts)
        except Exception as error:
            if attempts is None:
                self._retries.take(sealed)  # else what came before it is the newest, and nothing of it would be kept
            self._log.error("work.crashed", work="evaluating a bundle", error=type(error).__name__, exc_info=True)
            if not is_for_want(error):
                self._retries.keep(sealed, 0, DOUBTFUL_SECONDS)  # its source, if it hears at all, brings it no more
                raise
            why = KeyUnavailableError(f"it cannot be evaluated just now: {type(error).__name__}")
            ack = self._not_opened(sealed, why, 0, self._clock.now())
        finally:
            self.awaited.opened(sealed.origin, ack, part=sealed.part, newest=self._retries.newest(sealed))
        self._wake()
        confirmed = await self._told() or ack.outcome == "refused"
        if (source := self._sources.get(sealed.origin)) is not None:
            wait = None if confirmed else self._told
            self._tasks.spawn(acknowledge(source, ack, wait, self._clock, self._acks), name=f"ack {sealed.origin}")
        return msgspec.structs.replace(ack, confirmed=confirmed)

    async def _evaluate(self, sealed: SealedBundle, attempts: int) -> Ack:
        if self._opener is None:
            no_key = Refused("recipient", "no key is configured: no bundle can be opened")
            return self._verdicts.refused(sealed, None, no_key, self._clock.now())
        outcome = None
        while outcome is None:
            believed, now = self._believed, self._clock.now()
            try:
                bundle = await _opened(self._opener, self._store, sealed, now)
            except BundleError as error:
                settled = isinstance(error, KeyUnavailableError) or not self._retries.newest(sealed)
                if believed != self._believed and not settled:
                    continue  # it was verified by what is not believed any more
                return self._not_opened(sealed, error, attempts, now)
            if sealed.origin == STATE and not self._retries.newest(sealed):
                # While it was opened it was withdrawn, replaced, or found to be another machine's.
                return self._verdicts.refused(sealed, bundle, _OVERTAKEN, now, repeated=True)

            def still(believed: int = believed, now: datetime = now) -> bool:
                fresh = (self._clock.now() - now).total_seconds() < FRESH_SECONDS
                return fresh and believed == self._believed and (sealed.origin != STATE or self._retries.newest(sealed))

            outcome = await self._durable.submit(bundle, sealed.data, still, copy=sealed.origin == STATE)
        return self._evaluated(sealed, bundle, outcome, attempts, now)

    def _evaluated(self, sealed: SealedBundle, bundle: Bundle, outcome: Outcome, attempts: int, now: datetime) -> Ack:
        verdict, durable = outcome
        if isinstance(verdict, Refused):
            if sealed.origin == STATE:
                self._resuming(None)
            elif self._store.doubted:  # by a memory that may be another machine's: it is no verdict yet
                return self._not_opened(sealed, KeyUnavailableError(f"{verdict.reason}, and {_DOUBT}"), attempts, now)
            return self._verdicts.refused(sealed, bundle, verdict, now)
        if isinstance(verdict, Same):
            if self._store.doubted and self._store.bundle is None:
                self._retries.keep(sealed, attempts, None)  # new to this machine, if the memory is another's
            return self._verdicts.same(sealed, bundle, now, durable=durable, stays=self._stays(bundle))
        return self._accepted(sealed, bundle, now, durable=durable)

    def _not_opened(self, sealed: SealedBundle, error: BundleError, attempts: int, now: datetime) -> Ack:
        why = Refused(error.code, error.message)
        if isinstance(error, KeyUnavailableError):
            self._retries.keep_soon(sealed, attempts, error.pause_seconds)
            return self._verdicts.held(sealed, why, now, repeated=attempts > 0)
        if sealed.origin == STATE and self._retries.newest(sealed):  # else another attempt goes on, or none is wanted
            self._resuming(None)
        # A change here may make it right: see `reconsider`. What time or a service may mend is looked at by itself.
        self._retries.keep(sealed, attempts, _look_again(error))
        return self._verdicts.refused(sealed, None, why, now, repeated=attempts > 0)

    def _accepted(self, sealed: SealedBundle, bundle: Bundle, now: datetime, *, durable: bool) -> Ack:
        if bundle.action is Action.SET or self._store.memory.active is None:
            self._retries.forget(STATE)  # our copy of an earlier one
        ack = self._verdicts.accepted(sealed, bundle, now, durable=durable, stays=self._stays(bundle))
        self._changed()
        return ack

    def _stays(self, bundle: Bundle) -> bool:
        """Whether it is a withdrawal after which another stream is in force: its sender may have meant that one."""
        return bundle.action is Action.WITHDRAW and self._store.memory.active is not None

    def reconsider(self) -> None:
        """Look again at what each source submitted last and was refused: the clock, the keys or the trust changed."""
        self._retries.retry_now()
        self._wake()

    def review(self, kept: Iterable[str] = ()) -> None:
        """Evaluate the bundle in force again, soon and as a restart would: whom we believe, or who we are, has changed.

        It is evaluated before anything that :meth:`reconsider` brings back: what a signer said who is not believed any
        more must not be held over until its successor has a credential. What is held over cannot be evaluated again.

        Args:
            kept: the key ids of the signers who may say all that they might: what is held over of theirs stays.
        """
        self._store.apply(TrustNarrowed(frozenset(kept)), self._clock.now())
        self.verify_anew()
        self._review.ask_for()

    def verify_anew(self) -> None:
        """Verify once more what is being opened or written down just now: what it is verified by has changed.

        Whatever was dropped before a bundle comes into force opens nothing: a key, a signer, an audience, an hour that
        our clock showed by mistake. What is in force is left as it is.
        """
        self._believed += 1

    def unreadable(self, source: Source, error: UnreadableError) -> None:
        """Take note that a source has what looks like a bundle and is none.

        Somebody meant this worker to have a bundle: the identity served instead must not pass for it.
        """
        ack = self._verdicts.unreadable(source.name, error, self._clock.now())
        self._tasks.spawn(source.acknowledge(ack), name=f"ack {source.name}")

    async def identified(
        self,
        whose: Whose,
        instance_id: str,
        *,
        boot_id: str,
        firmware: Mapping[str, str],
        sealed: bytes | None = None,
        unread: str | None = None,
        write: bool = True,
    ) -> None:
        """Say whose the memory is: at the start, or when the machine's name is learned late.

        Args:
            whose: as :func:`agent.identity.whose.whose` found. While it is unknown, nothing that it decided is served.
            instance_id: the machine's name; empty while it is not known.
            boot_id: of the running kernel.
            firmware: what the firmware says.
            sealed: the sealed bundle that the memory names; put back in force if it is ours.
            unread: why that is not known yet: see :meth:`read`.
            write: write down what was learned; not over the file of a later version.
        """
        if whose is Whose.UNKNOWN:
            if not self._store.doubted:
                self._retries.forget(STATE)  # and what is being opened: whoever settles the doubt brings it again
            self.verify_anew()
            self._durable.doubt(_DOUBT, instance_id, boot_id, firmware)
        elif whose is Whose.OURS:
            if self._store.bundle is None:
                self._about_to_resume(self._store.memory.active, sealed, unread)
            self._durable.adopt(instance_id, boot_id, firmware, write=write)
            if self._store.bundle is None:
                await self.resume(sealed)
        else:
            self.verify_anew()
            self._log.warning("memory.reset", was=self._store.memory.instance_id, now=instance_id)
            # This machine knows its name now: bundles that came before are evaluated anew, and nothing else.
            mine = self._durable.sealed if self._store.was_brought else None
            self._retries.forget(STATE)
            self._durable.reset(instance_id, boot_id, firmware)
            self._tasks.spawn(self.read(mine), name="resume")
        self._wake()  # the loop tells what changed

    def recall(self, memory: Memory, sealed: bytes | None, unread: str | None = None) -> bool:
        """Know what could not be read at the start, and put the bundle that it names back in force. Returns at once.

        Args:
            memory: what the disk knows.
            sealed: the bundle that it names.
            unread: why that is not known yet: see :meth:`read`.

        Returns:
            Whether it counts from here on.
        """
        before = self._store.state.resuming
        self._about_to_resume(memory.active, sealed, unread)
        if not self._durable.recall(memory):
            self._resuming(before)
            return not self._store.doubted  # beside what is in force it counts as well
        self._log.info("memory.recalled")
        if unread is None:
            self._tasks.spawn(self.read(sealed), name="resume")
        return True

    async def read(self, sealed: bytes | None) -> None:
        """Put back in force what the memory names, which could not be read before; ``None``: it is not there."""
        if sealed is None:
            self._resuming(None)
        await self.resume(sealed)
        self._wake()

    def _about_to_resume(self, active: Mark | None, sealed: bytes | None, unread: str | None) -> None:
        """Before it is known that it may be: in between nobody must be told that it is lost."""
        if self._opener is not None and active is not None and (sealed is not None or unread is not None):
            self._resuming(unread or _being_opened(active))

    def _resuming(self, why: str | None) -> None:
        self._store.apply(BundleResuming(why), self._clock.now())


def _being_opened(active: Mark) -> str:
    return f"bundle {active.seq}, which was in force, is being opened"


def _look_again(error: BundleError) -> float | None:
    """In how many seconds the same bytes are looked at again; ``None``: when something here has changed."""
    if error.code == "not-yet-valid":
        return TOO_EARLY_SECONDS
    return DOUBTFUL_SECONDS if error.doubtful else None


async def _opened(opener: Opener, store: Store, sealed: SealedBundle, now: datetime) -> Bundle:
    """Open ``sealed``; what this instance accepted before and has lost since may be past its last acceptance."""
    active = store.memory.active
    if active is not None and store.bundle is None:
        try:
            return await opener(sealed, now, active.digest)
        except KeyUnavailableError:
            raise
        except BundleError:
            pass  # another bundle: evaluate it like any
    return await opener(sealed, now, None)
