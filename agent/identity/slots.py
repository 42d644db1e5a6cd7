"""One slot: a credential, and what keeps it fresh. Every state it can be in, and every way from one to another.

A slot is made for each grant of a bundle that a route leads to, and for the machine's own identity in each cloud. It is
two small machines side by side: whether somebody is *asking* for it now (``asking``), and what it *is*:

=============  ==================================================  =========================================
state          what it means                                       what ends it
=============  ==================================================  =========================================
``New``        nothing yet; the first attempt is at ``due_at``     the first result
``Holding``    a credential, renewed at ``due_at``                 the next result
``Finished``   a credential that nobody renews (a session that     nothing; it only runs out
               was sealed as it was)
``Absent``     the machine was asked and has no identity here;     the next result
               what it had before lives to its end
``Failing``    the last attempt failed; tried again at ``due_at``  the next result; its source coming to life
``Blocked``    its source credential is not there; not asked for   its source coming to life
=============  ==================================================  =========================================

The transitions, by what happens:

===============  ===================  ===============================================================
what happens     from                 to
===============  ===================  ===============================================================
``issued``       any                  ``Holding`` (``Finished``, where nothing could renew it)
``found_none``   any of the machine   ``Absent``
``failed``       any                  ``Failing``, one attempt more, with what it held
``blocked``      any but Finished     ``Blocked``, with what it held, unless its source is under way
``source_came``  any but Finished     the same, due at once, with no attempt counted
``hurried``      New, Holding,        the same, due sooner
                 Absent
``moved``        any                  the same, with what was counted on our clock moved along
``retried``      without a failure    ``Failing``, as an earlier process left it
===============  ===================  ===============================================================

Whatever a slot holds is served while it is alive, in any state: a failure takes nothing away (make before break).
Pure: instants and the random source are parameters.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import ClassVar, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from agent.core import refresh
from agent.core.model import Credential, GoogleToken, Grant, ends_of
from agent.core.verdict import Failure, Key

RETRY_AFTER_RESTART: Final = timedelta(minutes=1)
"""After a restart the next attempt comes no later than this after the last one: see :func:`retried`."""
NOT_AT_ONCE: Final = timedelta(seconds=5)
"""A credential just issued is not renewed sooner, however little life it came with."""
LONGEST_LIFE: Final = timedelta(days=7)
"""The longest life of a credential that an earlier process left. Its ``issued_at`` is a stranger's word, and may be the
year 1."""


class Held(NamedTuple):
    """A credential and its end *on our own clock*.

    Attributes:
        ends: not served from here on.
        began: when its life began, on our clock; it may have come much later (the machine slept meanwhile).
        counted: ``ends`` was counted from a moment of ours (asked then, good for an hour), and moves with our clock;
            else it is an instant that somebody named, and stays.
    """

    credential: Credential
    ends: datetime
    began: datetime
    counted: bool = False

    @property
    def half_gone(self) -> datetime:
        """When half of its life is over."""
        return self.ends - (self.ends - self.began) / 2

    @property
    def counted_end(self) -> datetime | None:
        """Its end if that was counted on our clock; ``None`` when the instant that it names is its end."""
        return self.ends if self.counted else None

    def moved(self, by: timedelta) -> Held:
        """The same, after our clock was moved by ``by``."""
        if not self.counted:
            return self
        credential, ends = self.credential, self.ends + by
        if isinstance(credential, GoogleToken):
            # Google says how long, not until when: its end is in our time, as clients are told it.
            credential = replace(credential, issued_at=_moved(credential.issued_at, by), expires_at=ends)
        return self._replace(credential=credential, ends=ends, began=self.began + by)


def _moved(instant: datetime, by: timedelta) -> datetime:
    """It by so much later; as it is, where that is no instant: a stranger may have named any end, and so any way."""
    try:
        return instant + by
    except OverflowError:
        return instant


def hold(credential: Credential, ends: datetime | None, began: datetime) -> Held:
    """Hold a credential.

    Args:
        credential: what was issued.
        ends: its end on our own clock, counted from ``began`` on; ``None``: the instant that it names.
        began: the moment of asking.
    """
    if ends is None:
        return Held(credential, credential.expires_at, credential.issued_at)
    # Only the end is moved: ``issued_at`` is a stranger's word, and moved as far it may leave what a datetime holds.
    held = Held(credential, credential.expires_at, credential.expires_at, counted=True)
    return held.moved(ends - held.ends)._replace(began=began)


def hold_again(credential: Credential, ends: datetime | None, now: datetime) -> Held:
    """Hold what an earlier process held, its ``ends`` moved to our clock."""
    if ends is None:
        return hold(credential, None, now)
    length = max(timedelta(), min(credential.expires_at - credential.issued_at, LONGEST_LIFE))
    return hold(credential, ends, min(ends - length, now))


# -- the states -------------------------------------------------------------------------------------------------------


class New(msgspec.Struct, frozen=True):
    """Nothing was asked for yet."""

    due_at: datetime
    held: ClassVar[None] = None
    failure: ClassVar[None] = None
    attempts: ClassVar[int] = 0


class Holding(msgspec.Struct, frozen=True):
    """A credential that is renewed in time."""

    held: Held
    due_at: datetime
    failure: ClassVar[None] = None
    attempts: ClassVar[int] = 0


class Finished(msgspec.Struct, frozen=True):
    """A credential that nothing here can renew."""

    held: Held
    due_at: ClassVar[None] = None
    failure: ClassVar[None] = None
    attempts: ClassVar[int] = 0


class Absent(msgspec.Struct, frozen=True):
    """The machine has no identity in this cloud: it was asked, and said so."""

    held: Held | None
    due_at: datetime
    failure: ClassVar[None] = None
    attempts: ClassVar[int] = 0


class Failing(msgspec.Struct, frozen=True):
    """The last attempt failed.

    Attributes:
        attempts: failures in a row since it last went well, or since its source came to life.
        absent: before it failed, the machine had said that it has no identity here; nobody has said otherwise.
    """

    held: Held | None
    due_at: datetime
    failure: Failure
    attempts: int
    absent: bool = False


class Blocked(msgspec.Struct, frozen=True):
    """Its source credential is not there. Due since ``due_at``, and asked for as soon as the source is there."""

    held: Held | None
    due_at: datetime
    failure: Failure
    attempts: int


SlotState = New | Holding | Finished | Absent | Failing | Blocked


class Slot(msgspec.Struct, frozen=True):
    """See the module.

    Attributes:
        number: of this very slot: a result for an earlier one of the same key is not taken.
        grant: what to issue from; ``None`` for the machine's own identity.
        asking: somebody is being asked now; nobody else is meanwhile.
    """

    key: Key
    number: int
    grant: Grant | None
    state: SlotState
    asking: bool = False

    @property
    def credential(self) -> Credential | None:
        """The credential that it holds, alive or not."""
        held = self.state.held
        return held.credential if held is not None else None

    def live(self, now: datetime) -> bool:
        """Whether it holds an unexpired credential."""
        held = self.state.held
        return held is not None and now < held.ends

    @property
    def is_absent(self) -> bool:
        """Whether the last thing that was said is that the machine has no identity here."""
        state = self.state
        return isinstance(state, Absent) or (isinstance(state, Failing) and state.absent)

    @property
    def over_for_good(self) -> bool:
        """Whether nothing that may still happen brings a credential that is not there: it ended, or it is refused."""
        state = self.state
        if isinstance(state, Finished):
            return True
        return state.failure is not None and state.failure.denied and state.held is not None


def new_slot(key: Key, number: int, grant: Grant | None, due_at: datetime) -> Slot:
    """A slot that waits for its first credential."""
    return Slot(key, number, grant, New(due_at))


def finished_slot(key: Key, number: int, grant: Grant, credential: Credential) -> Slot:
    """A slot of a grant that carries its credential itself."""
    return Slot(key, number, grant, Finished(hold(credential, None, credential.issued_at)))


# -- the transitions --------------------------------------------------------------------------------------------------


def asked(slot: Slot) -> Slot:
    """Somebody is being asked for it."""
    return replace(slot, asking=True)


def issued(slot: Slot, held: Held, now: datetime, rng: random.Random) -> Slot:
    """It was issued, and is alive."""
    due_at = renewal(slot, held, now, rng)
    state = Finished(held) if due_at is None else Holding(held, due_at)
    return replace(slot, asking=False, state=state)


def found_none(slot: Slot, now: datetime, rng: random.Random) -> Slot:
    """The machine says that it has no identity here.

    A role may be attached later: it is asked again at the pace of the poll.
    """
    if not slot.key.is_instance:
        raise RuntimeError("internal error: only the machine's own identity may be absent")
    again = now + refresh.INSTANCE_POLL * rng.uniform(*refresh.AWS_SPREAD)
    return replace(slot, asking=False, state=Absent(slot.state.held if slot.live(now) else None, again))


def failed(slot: Slot, failure: Failure, now: datetime, rng: random.Random) -> Slot:
    """It could not be issued. Its credential stays."""
    state = slot.state
    attempts = state.attempts + 1
    left = state.held.ends - now if state.held is not None and slot.live(now) else None
    local = slot.key.is_instance
    seconds = refresh.retry_seconds(attempts, left, denied=failure.denied, rng=rng, local=local)
    seconds += refresh.pause_seconds(failure.pause_seconds, left)
    again = now + timedelta(seconds=seconds)
    return replace(slot, asking=False, state=Failing(state.held, again, failure, attempts, slot.is_absent))


def blocked(slot: Slot, source: Slot, now: datetime) -> Slot:
    """It is due, and its source has no live credential. The same slot when there is nothing new to say."""
    state, below = slot.state, source.state
    if isinstance(below, New) or state.due_at is None:
        return slot  # the source is being issued for the first time: nothing is wrong yet
    if isinstance(below, Finished):
        why = Failure("base-ended", f"it stands on {source.key.grant_id!r}, which has ended", True, now)
    elif source.is_absent:
        why = Failure("no-base", "it stands on the machine's own identity, and this machine has none", True, now)
    else:
        cause = below.failure.message if below.failure is not None else "it is not there yet"
        denied = below.failure is not None and below.failure.denied
        why = Failure("base", f"it stands on {source.key.grant_id!r}: {cause}", denied, now)
    if state.failure is not None and state.failure.message == why.message:
        return slot
    return replace(slot, state=Blocked(state.held, state.due_at, why, state.attempts))


def source_came(slot: Slot, now: datetime) -> Slot:
    """Its source has a fresh credential: without a live one it is due at once, and its failures are forgotten."""
    state = slot.state
    if state.due_at is None or slot.live(now):
        return slot
    due_at = min(state.due_at, now)
    if isinstance(state, Failing | Blocked):
        return replace(slot, state=replace(state, due_at=due_at, attempts=0))
    return replace(slot, state=replace(state, due_at=due_at))


def hurried(slot: Slot, due_at: datetime) -> Slot:
    """Ask for it by ``due_at`` at the latest. A retry keeps its own pace."""
    state = slot.state
    if isinstance(state, New | Holding | Absent) and due_at < state.due_at:
        return replace(slot, state=replace(state, due_at=due_at))
    return slot


def moved(slot: Slot, by: timedelta, now: datetime, rng: random.Random) -> Slot:
    """Our clock was moved by ``by``, and it is ``now`` by it: what was counted from a moment of ours moves along."""
    state = slot.state
    if state.due_at is None:
        return slot  # a sealed credential names its end itself
    held = state.held.moved(by) if state.held is not None else None
    due_at = state.due_at + by
    if held is not None and not held.counted and state.failure is None:
        # An end that stands still may have come nearer.
        again = renewal(slot, held, now, rng)
        due_at = min(due_at, again) if again is not None else due_at
    if isinstance(state, New):
        return replace(slot, state=New(due_at))
    return replace(slot, state=replace(state, held=held, due_at=due_at))


def retried(slot: Slot, failure: Failure, attempts: int, again_at: datetime, now: datetime) -> Slot:
    """Go on with the retries where an earlier process stood.

    A person who has mended what was refused, and restarts us to have it tried, waits for no long back-off.
    """
    due_at = max(min(again_at, failure.at + RETRY_AFTER_RESTART), now)
    return replace(slot, state=Failing(slot.state.held, due_at, failure, attempts, slot.is_absent))


def renewal(slot: Slot, held: Held, now: datetime, rng: random.Random) -> datetime | None:
    """When what ``slot`` holds is to be replaced; ``None``: nothing can."""
    google = isinstance(held.credential, GoogleToken)
    if slot.key.is_instance:
        return refresh.reread_instance_at(now, held.ends, google=google, rng=rng)
    if slot.grant is not None and ends_of(slot.grant) is not None:
        return None
    when = refresh.renew_google_at if google else refresh.renew_aws_at
    # Never at once again: an upstream that hands out nearly dead credentials must not be stormed.
    floor = now + min(NOT_AT_ONCE, (held.ends - now) / 3)
    return max(when(min(held.began, now), held.ends, rng), floor)
