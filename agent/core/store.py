"""The state machine: which identity each cloud has, and what must be done to keep it.

It does no I/O, draws no randomness of its own and reads no clock. The keeper feeds it (``accept``, ``put``,
``failed``), asks what to do (``due``, ``next_wake``) and hears what changed (``tick``); the doors only look (``view``).

The rules:

1. A bundle beats the machine's own identity, cloud by cloud: what a bundle does not route stays with the machine.
2. **Sticky.** Once a bundle decided a cloud on this instance, losing it (its end, a refusal that outlives what was
   held, a withdrawal) closes that cloud. Only an explicit ``on_expiry = "fallback"`` lets the machine's identity back.
   The memory of it (:class:`Memory`) outlives the process: else a restart would *be* the downgrade.
3. Sequence numbers of one stream (issuer, subject) only rise. The same number with the same content is nothing new; the
   same number with other content is an attack or a broken sender, refused and alarmed.
4. Absence is not withdrawal: nothing here ends because a source fell silent. Only a signed withdrawal, the lease or the
   credential's own end purges.
5. Make before break: a credential is replaced only by one that is in hand and alive. A failure replaces nothing; a new
   bundle that must first mint leaves the old *bundle's* identity in place until it has. The machine's own is not left
   in place: from the moment a bundle decides a cloud no request is answered as the machine, so until its first mint
   (a second or two) the cloud is pending, which every door answers with "ask again".
6. ``view`` never shows an expired credential, nor one beyond the lease.

What is *not* here: opening and verifying bundles (:mod:`agent.bundle`), issuing (:mod:`agent.providers`), and the
writing of the memory to disk (the keeper, before it acts on a verdict).

All mutable state is listed in ``__init__`` and changed only by the methods named above.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from agent.core import refresh, streams
from agent.core.graph import dead_on_arrival, reachable, ready, role_name_of, same_chain
from agent.core.horizon import Horizon, Known, horizon
from agent.core.model import (
    INSTANCE,
    Action,
    AwsCredential,
    AwsSession,
    Bundle,
    Cloud,
    Credential,
    Env,
    GcpToken,
    GoogleToken,
    Grant,
    IdToken,
    OnExpiry,
    base_cloud_of,
    base_of,
    mints_id_tokens,
)
from agent.core.secret import Secret
from agent.core.verdict import (
    Accepted,
    Event,
    Failure,
    Key,
    Mark,
    Memory,
    Notice,
    Policy,
    Refused,
    Same,
    SlotStatus,
    Verdict,
    Work,
)
from agent.core.view import Absent, Answer, Ended, Facts, Live, Origin, Pending

ID_TOKEN_LEFT: Final = timedelta(minutes=10)
"""An identity token with less than this left is minted anew rather than served."""
ID_TOKEN_AUDIENCES: Final = 1024
"""How many audiences are kept: an audience is the caller's free choice, so this bounds what one can make us hold."""

NAMES_KEPT: Final = 64
"""How many names are answered to: a role a job would grow them without end."""

RETRY_AFTER_RESTART: Final = timedelta(minutes=1)
"""See :meth:`Store.restore_waiting`."""

HASTE_EVERY: Final = timedelta(minutes=1)
HASTE_SPREAD: Final = timedelta(seconds=30)
"""See :meth:`Store.hasten`."""


class Holding(NamedTuple):
    """A credential for the process that comes after this one.

    Attributes:
        digest: of the bundle it came of; empty for the machine's own.
        ends: its end, counted on our clock; ``None`` when the instant that it names is its end.
    """

    key: Key
    digest: str
    credential: Credential
    ends: datetime | None


class Waiting(NamedTuple):
    """A credential that could not be issued so far, for the process that comes after this one.

    Attributes:
        digest: as in :class:`Holding`.
        attempts: failures in a row.
        again_at: when the next attempt was due, on our clock.
    """

    key: Key
    digest: str
    attempts: int
    again_at: datetime
    failure: Failure


class Remnant(NamedTuple):
    """What an earlier bundle left in one cloud, served until the one in force has a credential of its own.

    Attributes:
        digest: of the bundle *in force*, beside which it is served.
        ends: as in :class:`Holding`.
        name: under which it is listed.
        lease: of the bundle that it came of.
    """

    cloud: Cloud
    digest: str
    credential: Credential
    ends: datetime | None
    name: str
    lease: datetime | None


class _Held(NamedTuple):
    """A credential and its end *on our own clock*.

    Attributes:
        ends: not shown from here on.
        counted: ``ends`` was counted from a moment of ours (asked then, good for an hour), and moves with our clock;
            else it is an instant that somebody named, and stays.
        began: when its life began, on our clock; it may have come much later (the machine slept meanwhile).
    """

    credential: Credential
    ends: datetime
    began: datetime
    counted: bool = False

    @property
    def half_gone(self) -> datetime:
        """When half of its life is over."""
        return self.ends - (self.ends - self.began) / 2

    def moved(self, by: timedelta) -> _Held:
        """The same, after our clock was moved."""
        if not self.counted:
            return self
        credential, ends = self.credential, self.ends + by
        if isinstance(credential, GoogleToken):
            # Google says how long, not until when: its end is in our time, as clients are told it.
            credential = msgspec.structs.replace(credential, issued_at=credential.issued_at + by, expires_at=ends)
        return self._replace(credential=credential, ends=ends, began=self.began + by)


class _HeldOver(NamedTuple):
    """What an earlier bundle left, served until the new one has a credential: with its name and its lease."""

    held: _Held
    name: str
    lease: datetime | None


class _Slot:
    """A credential and the schedule that keeps it. Mutable, private to the store."""

    __slots__ = (
        "absent",
        "attempts",
        "failure",
        "grant",
        "held",
        "in_flight",
        "key",
        "number",
        "renew_at",
    )

    def __init__(self, key: Key, grant: Grant | None, now: datetime, number: int) -> None:
        self.key = key
        self.number = number  # of this very slot: a result for an earlier one of the same key is not taken
        self.grant = grant
        self.held: _Held | None = None
        self.renew_at: datetime | None = now  # None: nothing more to do, ever
        self.attempts = 0
        self.failure: Failure | None = None
        self.in_flight = False
        self.absent = False  # the machine has no identity in this cloud (asked, and told so)

    @property
    def credential(self) -> Credential | None:
        """What it holds, live or not."""
        return self.held.credential if self.held is not None else None

    def live(self, now: datetime) -> bool:
        """Whether it holds an unexpired credential."""
        return self.held is not None and now < self.held.ends


class Store:
    """See the module.

    Args:
        policy: what the operator decided.
        memory: what an earlier process of this instance wrote down.
        now: the start, from which the boot grace counts.
        rng: the source of every spread and jitter.
        waited: how much of the boot grace an earlier process of this boot and instance has had already.
    """

    def __init__(
        self, policy: Policy, memory: Memory, now: datetime, rng: random.Random, *, waited: timedelta = timedelta()
    ) -> None:
        self._policy = policy
        self._rng = rng
        # All mutable state:
        self._memory = memory
        self._grace_until = now + max(policy.grace - waited, timedelta())
        self._resuming: str | None = None  # why what was in force is not yet again
        self._bundle: Bundle | None = None
        self._numbered = 0  # slots made so far
        self._slots: dict[Key, _Slot] = {}
        self._previous: dict[Cloud, _HeldOver] = {}
        self._listed: dict[Cloud, tuple[str, ...]] = dict.fromkeys(Cloud, ())  # the newest last
        self._names: dict[Cloud, frozenset[str]] = dict.fromkeys(Cloud, frozenset())  # the same, for looking up
        self._doubt: str | None = None  # why it is not known whether the memory is this machine's
        self._id_tokens: dict[str, tuple[IdToken, Grant | None]] = {}  # by audience; what each was minted from
        self._told: dict[Cloud, tuple[object, ...]] = {}
        self._warned: set[Cloud] = set()
        self._outlooks: dict[Cloud, Horizon] = {}  # as of `_outlooks_of`, and good until they turn
        self._outlooks_of = -1
        self._observed = Facts()
        self._hastened: datetime | None = None
        self._lease_was_over = False
        self._version = 0
        self._want_instances(now)

    # -- what the keeper tells --------------------------------------------------------------------------------------

    def judge(self, bundle: Bundle, now: datetime, *, resume: bool = False) -> Verdict:
        """Judge an opened and verified bundle. Changes nothing: the caller first writes the verdict's memory down.

        Args:
            bundle: what was opened.
            now: the instant of judging.
            resume: the bytes are our own copy of what was accepted before, read back at the start.

        Returns:
            :class:`Accepted` (write ``memory`` down, then call :meth:`accept`), :class:`Same`, or :class:`Refused`.
        """
        mark = self._memory.mark(bundle.issuer, bundle.subject)
        # The same bundle is taken again when it should be in force and is not: its sealed copy was lost with the disk.
        same = mark is not None and (bundle.seq, bundle.digest) == (mark.seq, mark.digest)
        if resume and not same:
            return Refused("changed", f"seq {bundle.seq} is not what this instance accepted last")
        if mark is not None and not resume:
            if same and not (self._bundle is None and self._memory.active == mark):
                return Same(bundle.seq)
            if bundle.seq < mark.seq:
                return Refused(
                    "rollback", f"expected a seq above {mark.seq}, got {bundle.seq}: a newer one came before"
                )
            if bundle.seq == mark.seq and not same:
                return Refused("conflict", f"seq {bundle.seq} was accepted before with other content", alarm=True)
        if mark is None and not resume and bundle.issued_at <= streams.floor(self._memory, bundle.issuer):
            return Refused(
                "rollback",
                "it was issued before a stream of its issuer was forgotten, and may be of that one; seal anew",
            )
        if bundle.action is Action.WITHDRAW:
            return Accepted(bundle, self._remembering(bundle, now, decided=self._after_withdrawal(bundle)))
        if bundle.lease_until is not None and bundle.lease_until <= now and not resume:
            return Refused("lease", f"its lease ended at {bundle.lease_until:%Y-%m-%dT%H:%M:%SZ}")
        dead = dead_on_arrival(bundle, now)
        if dead is not None and not resume:
            # To take it would swap a live credential for a dead one.
            return Refused("expired", f"the credential of grant {dead!r} has already expired")
        decided = {**self._memory.decided, **dict.fromkeys(bundle.routes, bundle.on_expiry)}
        return Accepted(bundle, self._remembering(bundle, now, decided=decided))

    def accept(self, verdict: Accepted, now: datetime) -> None:
        """Put an accepted bundle in force, or purge what it withdraws."""
        bundle = verdict.bundle
        withdrawn = self._memory.active
        self._memory = verdict.memory
        if bundle.action is Action.SET:
            self._activate(bundle, now)
        elif withdrawn is not None and withdrawn.stream == (bundle.issuer, bundle.subject):
            self._purge(now)

    def revoke(self, now: datetime) -> None:
        """End the bundle in force without a withdrawal: it would not be resumed any more. The memory stays as it is."""
        self._purge(now)

    def put(
        self,
        work: Work,
        credential: Credential | None,
        now: datetime,
        *,
        ends: datetime | None = None,
        began: datetime | None = None,
    ) -> bool:
        """Take a credential that was issued for ``work``.

        Args:
            work: what ``due`` gave.
            credential: the new one; ``None`` says that the machine has no identity in that cloud (only for those).
            now: the instant of receipt.
            ends: its end on our own clock, counted from the moment of asking; ``None`` when only the instant that the
                credential itself names is known. With it, a clock that is hours off hides no live credential and
                shows no dead one.
            began: the moment of asking, from which ``ends`` was counted; ``None``: now.

        Returns:
            Whether anything a door can see changed. A result for a bundle that was replaced meanwhile changes nothing.
        """
        slot = self._slot_of(work)
        if slot is None:
            return False
        slot.in_flight = False
        if credential is None:
            if not slot.key.is_instance:
                raise RuntimeError("only the machine's own identity may be absent")
            return self._put_absent(slot, now)
        held = _hold(credential, ends, began or now)
        if held.ends <= now:
            self._fail(slot, Failure("expired", "the credential that was issued had already expired", False, now), now)
            return False
        changed = slot.credential != credential or slot.failure is not None or slot.absent
        fresh = slot.credential != credential
        self._outlooks.clear()
        slot.held, slot.failure, slot.absent, slot.attempts = held, None, False, 0
        slot.renew_at = self._renew_at(slot, held, now)
        if fresh:
            self._wake_dependents(slot, now)
        for cloud in Cloud:
            if self._route_key(cloud) == slot.key:
                self._previous.pop(cloud, None)
                self._note_name(cloud, credential)
        if changed:
            self._version += 1
        return changed

    def failed(self, work: Work, failure: Failure, now: datetime) -> None:
        """Take note that ``work`` could not be done. What is held stays."""
        slot = self._slot_of(work)
        if slot is None:
            return
        slot.in_flight = False
        self._fail(slot, failure, now)

    def held(self) -> list[Holding]:
        """Every credential that a later process of this instance may take over."""
        digest = self._bundle.digest if self._bundle is not None else ""
        return [
            Holding(
                slot.key,
                "" if slot.key.is_instance else digest,
                slot.held.credential,
                slot.held.ends if slot.held.counted else None,
            )
            for slot in self._slots.values()
            if slot.held is not None
        ]

    def restore(self, holding: Holding, now: datetime) -> bool:
        """Take back what an earlier process held, if the same bundle is in force and it is alive.

        Args:
            holding: as :meth:`held` gave it, with its ``ends`` moved to our clock.
            now: the present.
        """
        slot = self._slots.get(holding.key)
        mine = self._bundle.digest if self._bundle is not None and not holding.key.is_instance else ""
        if slot is None or slot.held is not None or holding.digest != mine:
            return False
        # Bounded, since when it was issued is a stranger's word, and may be the year 1.
        length = min(holding.credential.expires_at - holding.credential.issued_at, timedelta(days=7))
        held = _hold(holding.credential, holding.ends, min(holding.ends - length, now) if holding.ends else now)
        if held.ends <= now:
            return False
        slot.held = held
        slot.renew_at = self._renew_at(slot, held, now)
        for cloud in Cloud:
            if self._route_key(cloud) == holding.key:
                self._note_name(cloud, held.credential)
        self._version += 1
        return True

    def waiting(self) -> list[Waiting]:
        """Every credential that could not be issued at the last attempt: a restart in an outage must not storm."""
        digest = self._bundle.digest if self._bundle is not None else ""
        return [
            Waiting(slot.key, "" if slot.key.is_instance else digest, slot.attempts, slot.renew_at, slot.failure)
            for slot in self._slots.values()
            if slot.failure is not None and slot.renew_at is not None and slot.attempts
        ]

    def restore_waiting(self, waiting: Waiting, now: datetime) -> bool:
        """Go on with the retries where an earlier process stood: once at the latest in a minute after its last."""
        slot = self._slots.get(waiting.key)
        mine = self._bundle.digest if self._bundle is not None and not waiting.key.is_instance else ""
        if slot is None or slot.failure is not None or slot.in_flight or waiting.digest != mine:
            return False
        slot.attempts, slot.failure = waiting.attempts, waiting.failure
        # A person who has mended what was refused, and restarts us to have it tried, waits for no long back-off.
        again = max(min(waiting.again_at, waiting.failure.at + RETRY_AFTER_RESTART), now)
        slot.renew_at = again
        self._version += 1
        return True

    def remnants(self) -> list[Remnant]:
        """What earlier bundles left and is still served."""
        if self._bundle is None:
            return []
        return [
            Remnant(
                cloud,
                self._bundle.digest,
                old.held.credential,
                old.held.ends if old.held.counted else None,
                old.name,
                old.lease,
            )
            for cloud, old in self._previous.items()
        ]

    def restore_remnant(self, remnant: Remnant, now: datetime) -> bool:
        """Serve on what an earlier bundle left, if the same bundle is in force and has nothing of its own yet.

        Whether the earlier one's signer is believed still is for the caller to judge.
        """
        bundle, cloud = self._bundle, remnant.cloud
        if bundle is None or bundle.digest != remnant.digest or cloud not in bundle.routes or cloud in self._previous:
            return False
        length = remnant.credential.expires_at - remnant.credential.issued_at
        held = _hold(remnant.credential, remnant.ends, min(remnant.ends - length, now) if remnant.ends else now)
        if held.ends <= now or self._slots[Key(cloud, bundle.routes[cloud])].live(now):
            return False
        self._previous[cloud] = _HeldOver(held, remnant.name, remnant.lease)
        self._note_name(cloud, held.credential)
        self._version += 1
        return True

    def resuming(self, why: str | None) -> None:
        """What was in force before a restart is being opened: what it decided is pending until it is, or cannot be.

        Args:
            why: for a person; ``None``: it cannot be, for good.
        """
        if why != self._resuming:
            self._resuming = why
            self._version += 1

    def put_id_token(self, token: IdToken, grant: Grant | None) -> None:
        """Keep a Google identity token for its audience.

        Args:
            token: the token.
            grant: what it was minted from, as :meth:`google_grant` said: it is shown only while that is served, so that
                a result that comes after a withdrawal, a newer bundle or the end of a lease speaks for nobody.
        """
        if len(self._id_tokens) >= ID_TOKEN_AUDIENCES and token.audience not in self._id_tokens:
            oldest = min(self._id_tokens, key=lambda a: self._id_tokens[a][0].expires_at)
            del self._id_tokens[oldest]
        self._id_tokens[token.audience] = (token, grant)
        self._version += 1

    def observe(self, facts: Facts) -> None:
        """Take note of what the machine's real metadata said of region, zone, project and the like."""
        if facts != self._observed:
            self._observed = facts
            self._version += 1

    def adopt(self, instance_id: str, boot_id: str = "", firmware: Mapping[str, str] | None = None) -> bool:
        """Take the memory for this machine's, under the name it has, learned now or late.

        Args:
            instance_id: the machine's name; empty while it is not known, which takes no known name away.
            boot_id: of the running kernel.
            firmware: what the firmware says this machine is.

        Returns:
            Whether the memory changed, and is to be written down.
        """
        self._settle_doubt()
        known = msgspec.structs.replace(
            self._memory,
            instance_id=instance_id or self._memory.instance_id,
            boot_id=boot_id or self._memory.boot_id,
            firmware=dict(firmware) if firmware else self._memory.firmware,
        )
        changed = known != self._memory
        self._memory = known
        self._version += changed  # what is left to the next process names the machine
        return changed

    def reset(
        self, instance_id: str, now: datetime, boot_id: str = "", firmware: Mapping[str, str] | None = None
    ) -> None:
        """Forget everything that belongs to another instance: an image was made from a running worker."""
        self._settle_doubt()
        self._memory = Memory(instance_id=instance_id, boot_id=boot_id, firmware=dict(firmware or {}))
        self._slots.clear()  # the machine's own credentials, too, were those of the other machine
        self._purge(now)

    def doubt(self, why: str) -> None:
        """Nothing tells whether the memory is this machine's: what it decided is pending until ``adopt`` or ``reset``.

        What a bundle that is in force decides is not touched: it came to this machine.
        """
        self._doubt = why
        self._version += 1

    def _settle_doubt(self) -> None:
        if self._doubt is not None:
            self._doubt = None
            self._version += 1

    def rebase(self, by: timedelta, now: datetime) -> None:
        """Our clock was moved: move what was counted from a moment of ours, and nothing that somebody else named.

        Without it a retry planned for ten seconds hence would wait for hours when the clock goes back, and a token
        counted as good for an hour would be shown for as long as the clock was wrong.

        Args:
            by: how far the clock was moved; negative is back.
            now: the new estimate.
        """
        self._grace_until += by
        if self._hastened is not None:
            self._hastened += by
        for slot in self._slots.values():
            if slot.renew_at is not None:
                slot.renew_at += by
            if slot.held is None:
                continue
            slot.held = slot.held.moved(by)
            if slot.renew_at is not None and not slot.held.counted and slot.failure is None:
                # An end that stands still may have come nearer.
                again = self._renew_at(slot, slot.held, now)
                slot.renew_at = min(slot.renew_at, again) if again is not None else slot.renew_at
        self._previous = {cloud: old._replace(held=old.held.moved(by)) for cloud, old in self._previous.items()}
        self._version += 1

    def hasten(self, now: datetime) -> bool:
        """Ask for everything anew soon, since the answers say what time it is: there is doubt about our clock.

        At most once in :data:`HASTE_EVERY`: a wall clock that somebody steps to and fro must storm nobody.

        Returns:
            Whether it is done; else it is to be asked for again: a doubt that is dropped lets an expired credential be
            served until the next renewal.
        """
        if self._hastened is not None and timedelta() <= now - self._hastened < HASTE_EVERY:
            return False
        self._hastened = now
        for slot in self._slots.values():
            if slot.renew_at is not None and slot.failure is None:
                slot.renew_at = min(slot.renew_at, now + HASTE_SPREAD * self._rng.random())
        return True

    def reconfigure(self, policy: Policy, now: datetime) -> None:
        """Take another policy (a reload). The grace is not started anew."""
        self._policy = policy
        self._want_instances(now)
        self._version += 1

    # -- what the keeper asks ---------------------------------------------------------------------------------------

    @property
    def observed(self) -> Facts:
        """What the machine said of itself."""
        return self._observed

    @property
    def memory(self) -> Memory:
        """What must be written down."""
        return self._memory

    @property
    def bundle(self) -> Bundle | None:
        """The bundle in force."""
        return self._bundle

    def due(self, now: datetime) -> list[Work]:
        """Everything that should be issued now, marked as under way: single flight is by construction."""
        work = []
        for slot in self._slots.values():
            if slot.in_flight or slot.renew_at is None or slot.renew_at > now or self._is_over(slot, now):
                continue
            base: Credential | None = None
            base_slot = self._base_slot(slot)
            if base_slot is not None:
                if not base_slot.live(now):
                    self._blocked(slot, base_slot, now)
                    continue
                base = base_slot.credential
            slot.in_flight = True
            work.append(Work(slot.key, slot.grant, base, slot.number, slot.attempts + 1))
        return work

    def next_wake(self, now: datetime) -> datetime:
        """The next instant at which ``due`` or ``tick`` may have something to say. Always after ``now``."""
        moments = [s.renew_at for s in self._slots.values() if s.renew_at is not None and not s.in_flight]
        moments += [s.held.ends for s in self._slots.values() if s.held is not None]
        moments += [old.held.ends for old in self._previous.values()]
        moments.append(self._grace_until)
        if self._bundle is not None and self._bundle.lease_until is not None:
            moments.append(self._bundle.lease_until)
        moments += [h - self._policy.horizon_lead for c in Cloud if (h := self.horizon(c, now)) is not None]
        later = [m for m in moments if m > now]
        # A slot that is due but blocked on its base is woken by the base; look again in a minute all the same.
        return min([*later, now + timedelta(minutes=1)])

    def tick(self, now: datetime) -> list[Notice]:
        """What happened since the last call, told once: identities that changed or ended, horizons that came near."""
        notices = []
        lease_over = self._lease_over(now)
        if lease_over != self._lease_was_over:
            # Variables end with the lease too, and no cloud's answer need change with them.
            self._lease_was_over = lease_over
            self._version += 1
        for cloud in Cloud:
            answer = self.view(cloud, now)
            origin = self.origin(cloud, now)
            told = (origin, type(answer), _why(answer) if not isinstance(answer, Live) else answer.name)
            before = self._told.get(cloud)
            if told != before:
                self._told[cloud] = told
                self._version += 1
                ended = isinstance(answer, Ended)
                if before is not None or isinstance(answer, Live | Ended):
                    event = Event.ENDED if ended else Event.IDENTITY
                    notices.append(Notice(event, cloud, origin, _why(answer), self.horizon(cloud, now)))
            end = self.horizon(cloud, now)
            if end is None or end - now > self._policy.horizon_lead:
                self._warned.discard(cloud)
            elif isinstance(answer, Live) and cloud not in self._warned:
                # Not once a renewal, each of which moves the end a little: once, until it has been far away again.
                self._warned.add(cloud)
                notices.append(Notice(Event.HORIZON, cloud, origin, self.horizon_reason(cloud, now), end))
        return notices

    def slots(self) -> list[SlotStatus]:
        """Every slot, for status and metrics."""
        return [
            SlotStatus(
                cloud=s.key.cloud,
                id=s.key.grant_id,
                type="instance" if s.grant is None else str(s.grant.__struct_config__.tag),
                expires_at=s.credential.expires_at if s.credential else None,
                renew_at=s.renew_at,
                attempts=s.attempts,
                failure=s.failure,
            )
            for s in self._slots.values()
        ]

    def variables(self, now: datetime) -> Mapping[str, Secret]:
        """The opaque variables of the bundle in force, until its lease ends."""
        if self._bundle is None or self._lease_over(now):
            return {}
        merged: dict[str, Secret] = {}
        for grant in self._bundle.grants:
            if isinstance(grant, Env):
                merged.update(grant.variables)
        return merged

    def google_grant(self, now: datetime) -> tuple[Grant | None, Credential | None] | None:
        """What an identity token would be minted from: the grant and its base; ``None`` when Google is not served."""
        if self._uses_instance(Cloud.GCP, now):
            return None, None
        if self._bundle is not None and Cloud.GCP in self._bundle.routes and not self._lease_over(now):
            grant = self._bundle.grant(self._bundle.routes[Cloud.GCP])
            slot = self._slots.get(Key(Cloud.GCP, self._bundle.routes[Cloud.GCP]))
            base = self._base_slot(slot) if slot is not None else None
            return grant, base.credential if base is not None else None
        return None

    # -- what the doors see (the Board) -----------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Changes whenever any answer may have changed, apart from the passing of time."""
        return self._version

    def origin(self, cloud: Cloud, now: datetime) -> Origin:
        """Whose identity ``cloud`` has."""
        if self._bundle is not None and cloud in self._bundle.routes and not self._may_fall_back(cloud, now):
            return Origin.BUNDLE if not isinstance(self.view(cloud, now), Ended) else Origin.CLOSED
        if cloud in self._memory.decided:
            if self._uses_instance(cloud, now):
                return Origin.FALLBACK
            being_opened = self._resuming is not None and self._bundle is None
            return Origin.CLOSED if self._doubt is None and not being_opened else Origin.WAITING
        if self._bundle is None and now < self._grace_until:
            return Origin.WAITING
        return Origin.FALLBACK if cloud in self._policy.fallback else Origin.CLOSED

    def view(self, cloud: Cloud, now: datetime) -> Answer:
        """The answer for ``cloud`` at ``now``. Never an expired credential, nor one beyond the lease."""
        if self._uses_instance(cloud, now):
            return self._view_instance(cloud, now)
        if self._bundle is not None and cloud in self._bundle.routes:
            return self._view_bundle(cloud, self._bundle, now)
        if cloud in self._memory.decided:
            if self._doubt is not None:
                return Pending(self._doubt)
            if self._resuming is not None and self._bundle is None:
                return Pending(self._resuming)
            return Ended(self._closed_reason(cloud), passing=False)
        if self._bundle is None and now < self._grace_until:
            return Pending(f"waiting for a first bundle until {self._grace_until:%H:%M:%SZ}")
        return Ended(
            f"no bundle with an identity for {cloud} has arrived, and the configuration allows no fallback to the "
            "machine's own",
            passing=False,
        )

    def view_id_token(self, audience: str, now: datetime) -> IdToken | None:
        """A minted identity token for ``audience`` with at least ten minutes left, or ``None``."""
        token, grant = self._id_tokens.get(audience, (None, None))
        served = self.google_grant(now)
        if token is None or token.expires_at - now < ID_TOKEN_LEFT or served is None or served[0] != grant:
            return None
        return token

    def can_mint_id_tokens(self) -> bool:
        """Whether the Google identity could mint one at all: else the door says 404 at once."""
        if self._bundle is not None and Cloud.GCP in self._bundle.routes:
            grant = self._bundle.grant(self._bundle.routes[Cloud.GCP])
            return grant is not None and mints_id_tokens(grant)
        slot = self._slots.get(Key(Cloud.GCP, INSTANCE))
        return slot is not None and slot.credential is not None

    def names(self, cloud: Cloud) -> frozenset[str]:
        """The names under which this process has listed an identity of ``cloud``, the newest :data:`NAMES_KEPT`."""
        return self._names[cloud]

    def facts(self) -> Facts:
        """Region, zone, project: what the bundle says first, then the configuration, then what the machine said."""
        region = project = account = None
        if self._bundle is not None:
            for cloud in (Cloud.AWS, Cloud.GCP):
                grant = self._bundle.grant(self._bundle.routes.get(cloud, ""))
                region = region or getattr(grant, "region", None) if cloud is Cloud.AWS else region
                project = project or getattr(grant, "project_id", None)
        slot = self._slots.get(self._route_key(Cloud.AWS) or Key(Cloud.AWS, ""))
        if slot is not None and isinstance(slot.credential, AwsCredential):
            account = slot.credential.account_id
        own, seen = self._policy.facts, self._observed
        return Facts(
            region=region or own.region or seen.region,
            availability_zone=own.availability_zone or seen.availability_zone,
            account_id=account or own.account_id or seen.account_id,
            instance_id=own.instance_id or seen.instance_id,
            project_id=project or own.project_id or seen.project_id,
            # The number belongs to the machine's project: with another project from the bundle it would be a lie.
            numeric_project_id=own.numeric_project_id
            or (seen.numeric_project_id if project in (None, seen.project_id) else None),
            zone=own.zone or seen.zone,
        )

    def horizon(self, cloud: Cloud, now: datetime) -> datetime | None:
        """Until when ``cloud`` is sure to be served if things stay as they are; ``None``: nothing ends it.

        An upstream that fails is expected to come back, so it sets no horizon at first. It does once half of the life
        of what is held is gone: renewal is due at a third, so that is no passing trouble any more.
        """
        outlook = self._outlook(cloud, now)
        return outlook.until if outlook is not None else None

    def horizon_reason(self, cloud: Cloud, now: datetime) -> str:
        """Why the horizon is where it is, for a person."""
        outlook = self._outlook(cloud, now)
        if self._bundle is None or outlook is None:
            return "the machine's own identity has no end"
        if outlook.until is not None and outlook.until == self._bundle.lease_until:
            return f"the lease of the bundle ends; seal a new one with a seq above {self._bundle.seq}"
        if outlook.renewed_by:
            renewed = f"renewed by {outlook.renewed_by}"
        elif self._ends_by_outage(cloud, now):
            renewed = "it is tried again and again"
        else:
            renewed = "nothing on this worker renews it"
        return f"grant {outlook.grant_id!r}: {outlook.cause}; {renewed}"

    def at_the_end(self, cloud: Cloud, now: datetime) -> str:
        """What will follow the end of what is served, in words: it is to be known before it happens."""
        routed = self._bundle is not None and cloud in self._bundle.routes
        if not routed and cloud not in self._memory.decided:
            return "nothing ends it"
        if self._ends_by_outage(cloud, now):
            return "requests are refused until the renewal works again or a new bundle comes"
        if cloud in self._policy.fallback and self._on_expiry(cloud) is OnExpiry.FALLBACK:
            return "the machine's own identity is served"
        return "requests are refused until a new bundle comes"

    # -- inside -----------------------------------------------------------------------------------------------------

    def _activate(self, bundle: Bundle, now: datetime) -> None:
        """Put ``bundle`` in force, carrying over every credential whose grant, bases included, is unchanged."""
        old_bundle, old = self._bundle, self._slots
        previous = {
            cloud: served
            for cloud in bundle.routes
            if old_bundle is not None and (served := self._to_hold_over(cloud, old_bundle, now)) is not None
        }
        self._bundle, self._resuming = bundle, None
        self._slots = {key: slot for key, slot in old.items() if key.is_instance}
        for key, grant in reachable(bundle):
            kept = old.get(key)
            if kept is not None and old_bundle is not None and same_chain(old_bundle, bundle, key.grant_id):
                kept.grant = grant
                self._slots[key] = kept
            elif key not in self._slots:
                slot = self._slot(key, grant, now + self._policy.spread * self._rng.random())
                finished = ready(grant, bundle)
                if finished is not None:
                    slot.held, slot.renew_at = _hold(finished, None, now), None
                self._slots[key] = slot
        self._want_instances(now)
        self._previous = {
            cloud: held
            for cloud, held in previous.items()
            if not self._slots[Key(cloud, bundle.routes[cloud])].live(now)
        }
        self._id_tokens.clear()
        for cloud in bundle.routes:
            slot = self._slots[Key(cloud, bundle.routes[cloud])]
            if slot.credential is not None:
                self._note_name(cloud, slot.credential)
        self._version += 1

    def _purge(self, now: datetime) -> None:
        """Drop the bundle in force and every credential that came of it, at once."""
        self._bundle = self._resuming = None
        self._slots = {key: slot for key, slot in self._slots.items() if key.is_instance}
        self._previous.clear()
        self._id_tokens.clear()
        self._want_instances(now)
        self._version += 1

    def _after_withdrawal(self, bundle: Bundle) -> dict[Cloud, OnExpiry | None]:
        """What every decided cloud comes to: nothing, whatever the withdrawn bundle or the configuration would allow.

        The machine's own identity comes back only where the withdrawal itself says so, and only in the clouds that the
        withdrawn bundle carries: one that an earlier bundle closed stays closed.
        """
        active, decided = self._memory.active, self._memory.decided
        if active is None or active.stream != (bundle.issuer, bundle.subject):
            return decided
        if bundle.on_expiry is not OnExpiry.FALLBACK:
            return dict.fromkeys(decided, OnExpiry.DENY)
        carried = self._bundle.routes if self._bundle is not None else {}
        return {cloud: OnExpiry.FALLBACK if cloud in carried else before for cloud, before in decided.items()}

    def _remembering(self, bundle: Bundle, now: datetime, *, decided: dict[Cloud, OnExpiry | None]) -> Memory:
        """The memory after ``bundle``: its mark is the highest of its stream."""
        mark = Mark(bundle.issuer, bundle.subject, bundle.seq, bundle.digest, bundle.issued_at)
        active = self._memory.active
        if bundle.action is Action.SET:
            active = mark
        elif active is not None and active.stream == mark.stream:
            active = None
        others = tuple(m for m in self._memory.marks if m.stream != mark.stream)
        memory = msgspec.structs.replace(self._memory, marks=(*others, mark), decided=decided, active=active)
        return streams.bounded(memory, now)

    def _want_instances(self, now: datetime) -> None:
        """Keep a slot for each machine identity that is served, or may be, or that a grant stands on."""
        wanted = set()
        for cloud in Cloud:
            routed = self._bundle is not None and cloud in self._bundle.routes
            may = cloud in self._policy.fallback
            if may and (not (routed or cloud in self._memory.decided) or self._on_expiry(cloud) is OnExpiry.FALLBACK):
                wanted.add(Key(cloud, INSTANCE))
        for slot in self._slots.values():
            if slot.grant is not None and base_of(slot.grant) == INSTANCE:
                cloud_ = base_cloud_of(slot.grant)
                if cloud_ is None:
                    raise AssertionError("internal error: a base without a cloud")
                wanted.add(Key(cloud_, INSTANCE))
        for key in wanted:
            if key not in self._slots:
                self._slots[key] = self._slot(key, None, now)
        for key in [k for k in self._slots if k.is_instance and k not in wanted]:
            # The machine's credential has no business in memory while a bundle decides.
            del self._slots[key]

    def _slot(self, key: Key, grant: Grant | None, due: datetime) -> _Slot:
        self._numbered += 1
        return _Slot(key, grant, due, self._numbered)

    def _slot_of(self, work: Work) -> _Slot | None:
        slot = self._slots.get(work.key)
        return slot if slot is not None and slot.number == work.slot else None

    def _put_absent(self, slot: _Slot, now: datetime) -> bool:
        changed = not slot.absent
        slot.absent, slot.failure, slot.attempts = True, None, 0
        if not slot.live(now):
            slot.held = None
        # A role may be attached later; ask again at the pace of the poll.
        slot.renew_at = now + refresh.INSTANCE_POLL * self._rng.uniform(*refresh.AWS_SPREAD)
        if changed:
            self._version += 1
        return changed

    def _fail(self, slot: _Slot, failure: Failure, now: datetime) -> None:
        slot.attempts += 1
        slot.failure = failure
        left = slot.held.ends - now if slot.held is not None and slot.live(now) else None
        local = slot.key.is_instance
        seconds = refresh.retry_seconds(slot.attempts, left, denied=failure.denied, rng=self._rng, local=local)
        seconds += refresh.pause_seconds(failure.pause_seconds, left)
        slot.renew_at = now + timedelta(seconds=seconds)
        self._version += 1

    def _blocked(self, slot: _Slot, base: _Slot, now: datetime) -> None:
        """``slot`` stands on a credential that is not there: say why, and wait for the base to wake it."""
        if base.failure is None and base.held is None and not base.absent and base.renew_at is not None:
            return  # it is being issued for the first time: nothing is wrong yet
        if base.renew_at is None:
            why = Failure("base-ended", f"it stands on {base.key.grant_id!r}, which has ended", True, now)
        elif base.absent:
            why = Failure("no-base", "it stands on the machine's own identity, and this machine has none", True, now)
        else:
            cause = base.failure.message if base.failure is not None else "it is not there yet"
            why = Failure(
                "base",
                f"it stands on {base.key.grant_id!r}: {cause}",
                base.failure is not None and base.failure.denied,
                now,
            )
        if slot.failure is None or slot.failure.message != why.message:
            slot.failure = why
            self._version += 1

    def _wake_dependents(self, base: _Slot, now: datetime) -> None:
        for slot in self._slots.values():
            if (
                slot.grant is not None
                and self._base_slot(slot) is base
                and not slot.live(now)
                and slot.renew_at is not None
            ):
                slot.renew_at = min(slot.renew_at, now)
                slot.attempts = 0

    def _base_slot(self, slot: _Slot) -> _Slot | None:
        if slot.grant is None:
            return None
        base, cloud = base_of(slot.grant), base_cloud_of(slot.grant)
        if base is None or cloud is None:
            return None
        found = self._slots.get(Key(cloud, base))
        if found is None:
            raise AssertionError(f"internal error: no slot for base {base!r}")
        return found

    def _renew_at(self, slot: _Slot, held: _Held, now: datetime) -> datetime | None:
        google = isinstance(held.credential, GoogleToken)
        if slot.key.is_instance:
            return refresh.reread_instance_at(now, held.ends, google=google, rng=self._rng)
        if isinstance(slot.grant, AwsSession | GcpToken):
            return None
        when = refresh.renew_google_at if google else refresh.renew_aws_at
        # Never at once again: an upstream that hands out nearly dead credentials must not be stormed.
        floor = now + min(timedelta(seconds=5), (held.ends - now) / 3)
        return max(when(min(held.began, now), held.ends, self._rng), floor)

    def _route_key(self, cloud: Cloud) -> Key | None:
        if self._bundle is not None and cloud in self._bundle.routes:
            return Key(cloud, self._bundle.routes[cloud])
        return Key(cloud, INSTANCE)

    def _note_name(self, cloud: Cloud, credential: Credential) -> None:
        name = self._name(credential)
        if name not in self._names[cloud]:
            self._listed[cloud] = (*self._listed[cloud], name)[-NAMES_KEPT:]
            self._names[cloud] = frozenset(self._listed[cloud])

    def _name(self, credential: Credential) -> str:
        if isinstance(credential, GoogleToken):
            return credential.email or "default"
        return credential.role_name or role_name_of(credential.role_arn) or self._policy.role_name

    def _on_expiry(self, cloud: Cloud) -> OnExpiry:
        if self._bundle is not None and cloud in self._bundle.routes:
            return self._bundle.on_expiry or self._policy.on_expiry
        return self._memory.decided.get(cloud) or self._policy.on_expiry

    def _lease_over(self, now: datetime) -> bool:
        return self._bundle is not None and self._bundle.lease_until is not None and self._bundle.lease_until <= now

    def _is_over(self, slot: _Slot, now: datetime) -> bool:
        """Whether nobody is served from ``slot`` any more since the lease is over: nothing is asked of anybody for it.

        It is not dropped: should our clock turn out to have been ahead, the lease goes on.
        """
        return self._lease_over(now) and not (slot.key.is_instance and self._uses_instance(slot.key.cloud, now))

    def _lost(self, cloud: Cloud, bundle: Bundle, now: datetime) -> bool:
        """Whether the bundle's identity in ``cloud`` is gone for good: not merely away with an upstream outage."""
        if self._lease_over(now):
            return True
        slot = self._slots[Key(cloud, bundle.routes[cloud])]
        if slot.live(now) or self._held_over(cloud, now) is not None:
            return False
        return slot.renew_at is None or (
            slot.failure is not None and slot.failure.denied and slot.credential is not None
        )

    def _may_fall_back(self, cloud: Cloud, now: datetime) -> bool:
        return (
            self._bundle is not None
            and cloud in self._policy.fallback
            and self._on_expiry(cloud) is OnExpiry.FALLBACK
            and self._lost(cloud, self._bundle, now)
        )

    def _uses_instance(self, cloud: Cloud, now: datetime) -> bool:
        if cloud not in self._policy.fallback:
            return False
        if self._bundle is not None and cloud in self._bundle.routes:
            return self._may_fall_back(cloud, now)
        if cloud in self._memory.decided:
            being_opened = self._resuming is not None and self._bundle is None
            return self._on_expiry(cloud) is OnExpiry.FALLBACK and not being_opened
        return self._bundle is not None or now >= self._grace_until

    def _to_hold_over(self, cloud: Cloud, bundle: Bundle, now: datetime) -> _HeldOver | None:
        """What ``bundle`` serves now, to be served on while its successor has nothing yet."""
        answer = self.view(cloud, now) if cloud in bundle.routes else None
        if not isinstance(answer, Live) or answer.origin is not Origin.BUNDLE:
            return None
        slot = self._slots[Key(cloud, bundle.routes[cloud])]
        if slot.held is not None and slot.live(now):
            return _HeldOver(slot.held, answer.name, bundle.lease_until)
        return self._held_over(cloud, now)

    def _held_over(self, cloud: Cloud, now: datetime) -> _HeldOver | None:
        old = self._previous.get(cloud)
        if old is None or now >= old.held.ends or (old.lease is not None and now >= old.lease):
            return None
        return old

    def _view_bundle(self, cloud: Cloud, bundle: Bundle, now: datetime) -> Answer:
        if self._lease_over(now):
            return Ended(f"the lease of bundle {bundle.seq} ended; a new bundle must be sealed", passing=False)
        slot = self._slots[Key(cloud, bundle.routes[cloud])]
        if slot.credential is not None and slot.live(now):
            return Live(slot.credential, self._name(slot.credential), Origin.BUNDLE, self.horizon(cloud, now))
        held = self._held_over(cloud, now)
        if held is not None:
            return Live(held.held.credential, held.name, Origin.BUNDLE, self.horizon(cloud, now))
        if slot.renew_at is None:
            return Ended(
                f"the credential of bundle {bundle.seq} expired and nothing here can renew it; seal a new bundle",
                passing=False,
            )
        if slot.failure is not None:
            return Ended(
                f"bundle {bundle.seq}, grant {slot.key.grant_id!r}: {slot.failure.message} ({slot.failure.code})",
                passing=not slot.failure.denied,
            )
        return Pending(f"bundle {bundle.seq} was accepted; its first credential is being issued")

    def _view_instance(self, cloud: Cloud, now: datetime) -> Answer:
        slot = self._slots.get(Key(cloud, INSTANCE))
        if slot is None:
            raise AssertionError(f"internal error: no slot for the machine's own identity in {cloud}")
        if slot.credential is not None and slot.live(now):
            return Live(slot.credential, self._name(slot.credential), Origin.FALLBACK)
        if slot.absent:
            return Absent("no bundle decides this cloud, and the machine has no identity of its own in it")
        if slot.failure is not None:
            why = f"the machine's own identity could not be read: {slot.failure.message} ({slot.failure.code})"
            return Ended(why, passing=not slot.failure.denied)
        return Pending("the machine's own identity is being read")

    def _outlook(self, cloud: Cloud, now: datetime) -> Horizon | None:
        """The outlook of ``cloud``; ``None`` while no bundle decides it. Kept, since every request asks."""
        if self._bundle is None or cloud not in self._bundle.routes or self._uses_instance(cloud, now):
            return None
        if self._outlooks_of != self._version:
            self._outlooks.clear()
            self._outlooks_of = self._version
        kept = self._outlooks.get(cloud)
        if kept is None or (kept.turns is not None and kept.turns <= now):
            kept = self._outlooks[cloud] = self._look_out(cloud, self._bundle, now)
        return kept

    def _look_out(self, cloud: Cloud, bundle: Bundle, now: datetime) -> Horizon:
        """Lay what we know over what the bundle says of itself."""
        known, turns = {}, []
        for slot in self._slots.values():
            if slot.grant is None or (slot.held is None and slot.failure is None):
                continue
            stopped = None
            if slot.failure is not None:
                what = "it is refused" if slot.failure.denied else "it cannot be renewed so far"
                if slot.failure.denied or self._outlasted(slot, now):
                    stopped = f"{what} ({slot.failure.code}): {slot.failure.message}"
                elif slot.held is not None:
                    turns.append(slot.held.half_gone)
            if slot.held is not None:
                known[slot.key.grant_id] = Known(slot.held.ends, slot.held.ends - slot.held.began, stopped)
            elif slot.failure is not None and stopped is not None:
                known[slot.key.grant_id] = Known(slot.failure.at, None, stopped)
        routes = {cloud: bundle.routes[cloud]}
        (outlook,) = horizon(bundle.grants, routes, bundle.lease_until, now, known)
        turns += [outlook.turns] if outlook.turns is not None else []
        return msgspec.structs.replace(outlook, turns=min((at for at in turns if at > now), default=None))

    @staticmethod
    def _outlasted(slot: _Slot, now: datetime) -> bool:
        """Whether an outage has lasted so long that the end of what ``slot`` holds must be reckoned with."""
        return slot.failure is not None and slot.held is not None and now >= slot.held.half_gone

    def _ends_by_outage(self, cloud: Cloud, now: datetime) -> bool:
        """Whether an outage, which is no loss, is what ends ``cloud`` first."""
        outlook = self._outlook(cloud, now)
        if self._bundle is None or outlook is None or outlook.until in (None, self._bundle.lease_until):
            return False
        slot = self._slots.get(Key(cloud, self._bundle.routes[cloud]))
        while slot is not None:
            if slot.failure is not None and (slot.failure.denied or self._outlasted(slot, now)):
                return not slot.failure.denied
            slot = self._base_slot(slot)
        return False

    def _closed_reason(self, cloud: Cloud) -> str:
        if self._bundle is not None:
            return (
                f"bundle {self._bundle.seq} no longer carries {cloud}, which an earlier one decided; seal one that does"
            )
        kept = "the machine's own identity is not served in its place; seal a bundle with a higher seq"
        if self._memory.active is not None:
            return (
                f"bundle {self._memory.active.seq}, which was in force, cannot be opened any more (see the log); {kept}"
            )
        return f"the bundle that decided this identity was withdrawn; {kept}"


def _hold(credential: Credential, ends: datetime | None, began: datetime) -> _Held:
    """Hold a credential; ``ends`` is its end counted on our own clock from ``began`` on, if it was."""
    if ends is None:
        return _Held(credential, credential.expires_at, credential.issued_at)
    held = _Held(credential, credential.expires_at, began, counted=True)
    return held.moved(ends - held.ends)._replace(began=began)


def _why(answer: Answer) -> str:
    return f"served as {answer.name}" if isinstance(answer, Live) else answer.why
