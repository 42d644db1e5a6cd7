"""Whose time the agent believes: the whole rule, on one page.

An ended credential must not be served, and a live one must not be refused. So our time is taken from nobody who could
gain by it, and from nobody alone without a bound. ``now`` is CLOCK_BOOTTIME plus an offset; only what follows moves it.

**Witnesses**, the strongest first:

1. The kernel's clock while it is *synchronised* (adjtimex(2)): it is our time. No server's word moves it.
2. The machine's own link-local metadata service: plain HTTP, but from the host below. Weight 2.
3. The clouds' own token endpoints under their own names, over TLS: one witness a cloud. Weight 1 each.
4. The wall clock that nobody synchronises. Weight 1; nearly none once it was stepped and nobody has confirmed that;
   none while it says a year that cannot be (before 2020: a hardware clock without a battery begins anew).

Everybody else is ignored: sources, brokers, caches (an answer with ``Age``), whatever a bundle names, and the
endpoints an operator configured in place of the clouds' own. Those were chosen to answer questions about credentials,
may be emulators, relays or caches, and nothing vouches for their clocks. (A request that must be dated for one of them
is dated by its own time and moves nothing: :class:`agent.providers.signing_time.SigningTime`.)

**Without a synchronised kernel** a witness that contradicts us by more than :data:`TOLERANCE_SECONDS` moves us if

- those who agree with it outweigh those who agree with us; a tie goes to the side of the wall clock;
- it is not alone; or it is alone, has said the same for :data:`SETTLED_SECONDS` (except the first after boot),
  and our time stays within :data:`ALONE_SECONDS` of where it was before anybody moved it alone, or cannot be;
- no server moved us within :data:`MOVE_EVERY_SECONDS`: whoever alternates cannot make us flap;
- it is not alone, or moves us forward, or nobody has vouched for our time since it was last in doubt (the start, a step
  of the wall clock), or it takes us back no further than :data:`DRIFT_SECONDS` before where we were then.

So one lying token endpoint never moves us, one lying metadata service moves us once and within the bound, and a machine
whose hardware clock is kept in local time is right from its first answer on.

**Why fifteen hours, at the start.** A smaller bound would leave the machines that need it: a hardware clock in local
time is off by up to 14 hours, and until it is put right a live session looks dead. Only multiples of a quarter hour
would be no bound: whoever lies picks one. So the first word after the start is believed, it is the word of the host
below, and the first token endpoint over TLS that agrees with the wall clock takes it back. Later there is no such need,
since a clock that was right does not fall into local time: then no single witness takes our time back by hours, in
which what is over would be live again. Forward is different: a pause that no clock of the machine has counted looks
just like that.

**The wall clock is stepped.** Back: it moves nothing that a witness vouched for. *Forward: it is believed at once*,
synchronised or not, and the clouds are asked. A hypervisor's pause looks so from inside (boot time is short by it), and
then our credentials may have ended. Without a witness we would rather refuse a credential that may be live than serve
one that may have ended: AWS's clients compare an ``Expiration`` with that same clock and would refuse it anyway, and a
lease that is over must not be outlived. The first witness that says what we thought before takes the step back; so it
is where the clock was stepped around a restart, and the process before us thought so.

**Forward is time lost, back is an error.** If we had reason to think that we were right and are moved forward, the
machine was stopped: all that is counted on boot time comes nearer (``lost``). Anything else corrects the offset, and
what was counted moves with it. So does a move forward to just where we were before a move back: that one was the error,
and nothing stood still.

**A contradiction is always a reason to ask**, once in :data:`ASK_EVERY_SECONDS` at most; alone it is none to believe.

Pure: it holds numbers; :class:`agent.host.clock.SystemClock` reads the clocks.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

TOLERANCE_SECONDS: Final = 5.0
"""``Date`` (RFC 9110 section 6.6.1) is cut to the second and arrives late: a smaller difference is none."""
STEP_SECONDS: Final = 2.0
"""A wall clock that moved by more than this against boot time was stepped; NTP slews by less."""
ALONE_SECONDS: Final = 15 * 3600.0
"""How far one witness alone may move us. A hardware clock in local time, the usual error, is 14 hours off at most."""
DRIFT_SECONDS: Final = 300.0
"""How far one witness alone may take us back once our time was vouched for."""
DRIFT_RATE: Final = 2e-4
"""How much further for each second since then: boot time that nobody disciplines runs fast by seconds a day."""
SETTLED_SECONDS: Final = 10.0
"""How long a single witness must have said the same: an answer that was under way during a pause is from before it."""
MOVE_EVERY_SECONDS: Final = 600.0
ASK_EVERY_SECONDS: Final = 300.0
MOST_LEFT: Final = 4
"""How many moves back in a row are remembered."""
LONGEST_WAY_SECONDS: Final = 60.0
"""An answer that was longer under way (a suspend, a long poll) may have been given at any moment of that."""
FRESH_SECONDS: Final = 2 * 3600.0
"""A word older than this supports nobody."""
EARLIEST: Final = 1_577_836_800.0
"""2020: before any version of this program. A server that names an instant before this or after LATEST is ignored."""
LATEST: Final = 4_102_444_800.0
"""2100."""


class Witness(enum.StrEnum):
    """The witnesses of the time."""

    KERNEL = "kernel"
    LINK = "metadata"
    AWS = "aws"
    GOOGLE = "google"
    WALL = "wall"


_WEIGHT: Final = {Witness.LINK: 2.0, Witness.AWS: 1.0, Witness.GOOGLE: 1.0, Witness.WALL: 1.0}
_SUSPECT: Final = 0.5
"""The weight of a wall clock that was stepped, and that nobody has confirmed since."""


class Reading(NamedTuple):
    """The machine's clocks at one instant.

    Attributes:
        boot: CLOCK_BOOTTIME, in seconds.
        wall: CLOCK_REALTIME, in seconds since 1970.
        synchronised: whether the kernel says that somebody keeps the latter right.
    """

    boot: float
    wall: float
    synchronised: bool


class _Word(NamedTuple):
    """The word of a witness: seconds from boot time to true time; since when it says so, and when last (boot time)."""

    offset: float
    since: float
    at: float


class Timekeeper:
    """See the module.

    Attributes:
        offset: from the deadlines' clock (boot time plus ``lost``) to UTC, in seconds.
        lost: seconds in which the whole machine stood still and boot time did not count.
        believed: the witness that our time is taken from.
        vouched: whether anybody but an unsynchronised wall clock has confirmed it.
        heard: how many times a server told us the time.
        differences: by how much each was ahead of us when last heard, in seconds.
        moves: how often our time was moved.
    """

    def __init__(self, reading: Reading) -> None:
        self.offset = self._wall = self._anchor = reading.wall - reading.boot
        self._wall_can_be = can_be(reading.wall)
        self.lost = 0.0
        self.believed = Witness.KERNEL if reading.synchronised else Witness.WALL
        self.vouched = reading.synchronised
        self.heard = self.moves = 0
        self.differences: dict[Witness, float] = {}
        self._words: dict[Witness, _Word] = {}
        self._suspect = False  # the wall clock was stepped, and nobody has confirmed it since
        self._stepped_at = float("-inf")  # when, on boot time
        self._before: float | None = None  # where we were before we followed a step forward
        # Our time when it was vouched for, and the boot time of that.
        self._vouched_at: tuple[float, float] | None = (self.ours, reading.boot) if self.vouched else None
        self._left: list[float] = []  # where we were before each move back since the last one forward
        self._moved_at = self._asked_at = float("-inf")

    @property
    def has_followed_a_step(self) -> bool:
        """Whether a step forward was believed that nobody has confirmed, and one word could take back."""
        return self._before is not None

    @property
    def ours(self) -> float:
        """Seconds from boot time to what we take for the true time."""
        return self.lost + self.offset

    def disputed(self, reading: Reading) -> float:
        """By how many seconds the metadata service is ahead of our time with a word that did not move it; 0: by none.

        It is not believed. But what counts as over by our time alone may not be, and whoever decides what follows from
        that may wait until the two agree. A word does not age here: no clock of a machine drifts by hours. (By how many
        a synchronised kernel is ahead, where that is so: :meth:`look` moves us there next.)
        """
        said = self._words.get(Witness.LINK)
        if reading.synchronised:
            word = reading.wall - reading.boot
        elif said is not None:
            word = said.offset
        else:
            return 0.0
        return 0.0 if _agree(word, self.ours) else word - self.ours

    def look(self, reading: Reading) -> bool:
        """Look at the machine's clocks. Returns whether there is a reason to ask the clouds for the time."""
        wall = reading.wall - reading.boot
        step, self._wall = wall - self._wall, wall
        self._wall_can_be = can_be(reading.wall)
        stepped = abs(step) > STEP_SECONDS
        if stepped:
            # What was said before may have been said before a pause.
            self._words.clear()
            self._moved_at = float("-inf")
            self._suspect = True
            self._stepped_at = reading.boot
        ahead = wall - self.ours
        if reading.synchronised:
            moved = abs(ahead) > STEP_SECONDS
            if moved:
                self._move(ahead)
            self.believed, self.vouched, self._suspect, self._before = Witness.KERNEL, True, False, None
            self._anchor, self._vouched_at = self.ours, (self.ours, reading.boot)
            return moved
        if self.believed is Witness.KERNEL:
            self.believed = Witness.WALL  # nobody keeps it right any more; what it said holds on boot time
        if stepped and step > 0 and ahead > STEP_SECONDS:
            if self._before is None and self.vouched:
                self._before = self.ours
            self.vouched = True  # so the step counts as time lost, until somebody says otherwise: that is safe
            self._move(ahead)
            self.believed, self.vouched, self._anchor = Witness.WALL, False, self.ours
            return True
        if not self.vouched and abs(ahead) > STEP_SECONDS:
            self._move(ahead)
            self._anchor, self._before = self.ours, None
            return False
        return stepped and abs(ahead) > TOLERANCE_SECONDS

    def hear(self, witness: Witness, said: float, reading: Reading, *, took: float = 0.0) -> bool:
        """Take the word of a server, which has just come.

        Args:
            witness: who says it.
            said: seconds since 1970.
            reading: the machine's clocks now.
            took: seconds since the request left. An answer that was under way when the wall clock was stepped may be
                from before a pause, and is ignored.

        Returns:
            Whether there is a reason to ask the clouds for the time.
        """
        doubt = self.look(reading)
        if not can_be(said) or took > LONGEST_WAY_SECONDS or reading.boot - took < self._stepped_at:
            return doubt
        word = said - reading.boot
        before = self._words.get(witness)
        repeats = before is not None and _agree(before.offset, word)
        since = before.since if before is not None and repeats else reading.boot
        first = not self.heard and not self.vouched and self._stepped_at < 0
        self._words[witness] = _Word(word, since, reading.boot)
        self.heard += 1
        difference = self.differences[witness] = word - self.ours
        if _agree(word, self.ours):
            if not reading.synchronised:
                self._confirm(witness, word, reading.boot)
            return doubt
        if reading.synchronised:
            # The kernel does not know of a pause before its next look at NTP: ask the others.
            return doubt or (difference > 0 and not repeats and self._may_ask(reading.boot))
        group = self._supporters(word, reading.boot)
        if self._outweighs(group, reading.boot) and self._may_move(group, witness, word, first=first, now=reading.boot):
            self._move(difference)
            if not self.vouched or len(group) > 1:
                self._vouched_at = (self.ours, reading.boot)
            self.believed, self.vouched, self._before = witness, True, None
            self._moved_at = reading.boot
            if len(group) > 1 or not can_be(self._anchor + reading.boot):
                self._anchor = self.ours
            if Witness.WALL in group:
                self._suspect = False
            return doubt
        return doubt or (not repeats and self._may_ask(reading.boot))

    def adopt(self, witness: Witness, said: float, reading: Reading, *, wall_error: float | None = None) -> None:
        """Take over the time of the previous process, and the witness that it believed: bounded like one witness.

        Args:
            witness: who had vouched for it.
            said: what that process would take for the time now, in seconds since 1970.
            reading: the machine's clocks now.
            wall_error: by how much the wall clock was ahead of it at that moment; ``None``: not known.
        """
        self.look(reading)
        word = said - reading.boot
        if self.vouched or witness is Witness.WALL or not can_be(said):
            return
        if wall_error is not None and self._wall - word - wall_error > STEP_SECONDS:
            # The wall clock was stepped forward meanwhile: as above, whichever process noticed it.
            self._before, self._suspect = word, True
            return
        if abs(word - self._anchor) > ALONE_SECONDS and can_be(self._anchor + reading.boot):
            return
        self.offset += word - self.ours
        self.believed = witness if witness is not Witness.KERNEL else Witness.WALL
        self.vouched = True
        self._vouched_at = (self.ours, reading.boot)

    def _confirm(self, witness: Witness, word: float, now: float) -> None:
        if _agree(word, self._wall):
            self._suspect = False
        if self.believed is Witness.WALL:
            self.believed = witness
        if not self.vouched:
            self._vouched_at = (self.ours, now)
        self.vouched, self._before = True, None

    def _supporters(self, word: float, now: float) -> set[Witness]:
        """The witnesses that agree with ``word``."""
        group = {w for w, said in self._words.items() if now - said.at <= FRESH_SECONDS and _agree(said.offset, word)}
        # At the very bound it agrees with both, and is on the nearer side: else a rounding would decide.
        nearer = abs(self._wall - word) <= abs(self._wall - self.ours)
        return group | {Witness.WALL} if nearer and _agree(self._wall, word) else group

    def _outweighs(self, group: set[Witness], now: float) -> bool:
        for_it, for_us = self._weight(group), self._weight(self._supporters(self.ours, now) - group)
        return for_it > for_us or (for_it == for_us and Witness.WALL in group)

    def _weight(self, group: set[Witness]) -> float:
        wall = 0.0 if not self._wall_can_be else _SUSPECT if self._suspect else _WEIGHT[Witness.WALL]
        return sum(wall if w is Witness.WALL else _WEIGHT[w] for w in group)

    def _may_move(self, group: set[Witness], witness: Witness, word: float, *, first: bool, now: float) -> bool:
        if self._before is not None and _agree(self._before, word):
            return True  # it says that the step we followed was wrong
        if now - self._moved_at < MOVE_EVERY_SECONDS:
            return False
        if len(group) > 1:
            return True
        if self.vouched and self._vouched_at is not None:
            ours, since = self._vouched_at
            if word < min(ours, self.ours) - DRIFT_SECONDS - DRIFT_RATE * (now - since):
                return False
        settled = first or now - self._words[witness].since >= SETTLED_SECONDS
        return settled and (abs(word - self._anchor) <= ALONE_SECONDS or not can_be(self._anchor + now))

    def _may_ask(self, now: float) -> bool:
        if now - self._asked_at < ASK_EVERY_SECONDS:
            return False
        self._asked_at = now
        return True

    def _move(self, by: float) -> None:
        self.moves += 1
        returns = any(_agree(place, self.ours + by) for place in self._left)
        if by < 0:
            self._left = [*self._left, self.ours][-MOST_LEFT:]
        else:
            self._left.clear()
        if by > 0 and self.vouched and not returns:
            self.lost += by
        else:
            self.offset += by


def can_be(instant: float) -> bool:
    """Whether a clock that says so, in seconds since 1970, may be right."""
    return EARLIEST <= instant <= LATEST


def _agree(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE_SECONDS
