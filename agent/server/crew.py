"""The servers that a master has begun: one that answers, one that stands by, and those that finish.

*Standing by* is to have begun, to be linked, to know what is served and to have given up all else, and to take no
connection. So the death of the one that answers costs the time of one message between two processes, where a new one
takes as long as a process needs to begin. Only one answers at a time: the bounds of each worker hold as they are, no
request wakes two processes, and one asks the kernel who is connected (:mod:`agent.host.sockdiag`).

The one that stands by also sees what nobody else does: that connections wait and are not taken
(:mod:`agent.server.queues`). Then the one that answers is asked for a sign of life, and ended if it gives none. Where
one after the other gives none it is waited for longer: the machine may have so much to do that none of them can, and
none would come to answer anybody.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from functools import partial
from typing import Final, Protocol

from agent.host import memory
from agent.server import words, work
from agent.server.forked import Forked, Said, fork, write

GRACE_SECONDS: Final = work.CLOSE_SECONDS + 1.0
"""For a server that was told to end: its own, and what it says last."""
ALIVE_SECONDS: Final = 1.0
"""Until one that answers, and is asked for a sign of life, must have given it. Twice as long after each that was ended
for that, unless none was for a while."""
_MOST_ALIVE_SECONDS: Final = 10.0
_CALM_SECONDS: Final = 600.0
TAKES_OVER_SECONDS: Final = 3.0
"""Until one that stood by must answer. It may have been begun a moment ago."""
_LATE_SECONDS: Final = 0.25
"""A master that is so late itself ends nobody: this machine has stood still, or has too much to do."""
_FEW: Final = 3
_SHORT_PAUSE_SECONDS: Final = 0.02
"""After each of the first few that ended too soon: they may have been killed, and workers wait."""
PAUSE_SECONDS: Final = 0.2
_MOST_PAUSE_SECONDS: Final = 5.0
_LONG_ENOUGH_SECONDS: Final = 2.0
"""A server that ends sooner than this is not begun again at once: it would end again."""
_MANY: Final = 20
"""After so many that ended too soon, one after the other, the pauses become longer."""
_MOST_OLD: Final = 3
"""Servers of former controllers; more of them would be kept by a controller that ends again and again."""


def _pause(times: int) -> float:
    """Before the next try, after so many in a row that failed."""
    if times <= _FEW:
        return _SHORT_PAUSE_SECONDS if times else 0.0
    return float(min(PAUSE_SECONDS * 2 ** min(10, max(0, times - _MANY)), _MOST_PAUSE_SECONDS))


class Patience:
    """How long a sign of life is waited for."""

    def __init__(self) -> None:
        self._times = 0
        self._ended = float("-inf")

    def seconds(self, now: float) -> float:
        """So long, for one that is asked at ``now``."""
        if now - self._ended >= _CALM_SECONDS:
            self._times = 0
        return float(min(ALIVE_SECONDS * 2**self._times, _MOST_ALIVE_SECONDS))

    def ends(self, now: float) -> None:
        """One is ended that has given none."""
        self._times = 1 if now - self._ended >= _CALM_SECONDS else min(self._times + 1, 10)
        self._ended = now


class Orders(Protocol):
    """What begins servers is told by, and tells (:class:`agent.server.master.Master`).

    Attributes:
        asked: whether the controller has asked for a server: then each gets a link to it.
        wants_second: whether one is to stand by.
    """

    asked: bool
    wants_second: bool

    def may_begin(self) -> bool:
        """Whether a server that is begun now has, or will have, what it serves."""

    def reads_seconds(self) -> bool:
        """Whether the controller reads :data:`agent.server.words.SECOND` of one that it knows to be alive."""

    def is_settled(self) -> bool:
        """Whether no controller is there that has yet to ask for a server."""

    def hear(self) -> bool:
        """Do all that the controller has said."""

    def say(self, said: bytes, file: int | None = None) -> None:
        """Tell the controller, if there is one."""

    def ended(self, pid: int) -> None:
        """Tell the controller that a server has ended, and undo what it may have left behind."""

    def withheld(self) -> list[int]:
        """Descriptors that no server may have."""

    def work(self, link: socket.socket | None, master: socket.socket, parent: int, *, stands_by: bool) -> None:
        """Be the server: in its process."""


class Crew:
    """See the module.

    Long because what one server is to do depends on what has become of all others.

    Args:
        orders: what the controller wants.
        masked: whether SIGTERM must wait in a server that was begun a moment ago, since the master heeds it.
    """

    def __init__(self, orders: Orders, *, masked: bool) -> None:
        self._orders = orders
        self._masked = masked
        self._servers: dict[int, Forked] = {}  # the oldest first
        self._answers = 0  # the process id of the one that answers, or takes over
        self._coming = 0  # of the one that is begun to answer
        self._second = 0  # of the one that stands by
        self._known_second = 0  # of the one that the present controller knows to stand by
        self._short = 0  # so many ended too soon, the last ones
        self._short_seconds = 0  # the same of those that stood by
        self._refused = 0  # so many times the kernel had no process or descriptor, the last times
        self._due: float | None = None  # when the next is begun
        self._second_from = 0.0  # no other is begun to stand by before this
        self._must_by: float | None = None  # when the one that answers must have given a sign of life
        self._patience = Patience()

    # -- what the loop asks ------------------------------------------------------------------------------------------

    @property
    def pids(self) -> tuple[int, ...]:
        """Of all that have not ended, the oldest first."""
        return tuple(self._servers)

    def said(self) -> str:
        """Who answers workers, for an operator."""
        server = self._servers.get(self._answers)
        if server is not None and server.serves:
            return "workers are answered" + ("; another server stands by" if self._second else "")
        if self._short > _FEW:
            return "nobody answers workers: servers end as soon as they are begun, see the journal"
        if self._refused:
            return "nobody answers workers: no process or descriptor is to be had"
        if self._coming or self._answers or self._due is not None:
            return "nobody answers workers yet: a server begins"
        return "nobody answers workers: what to serve was not heard from credential-agent.service yet"

    @property
    def watched(self) -> list[int]:
        """What becomes readable when one of them says something, or has ended."""
        return [one.watched for one in self._servers.values()]

    @property
    def times(self) -> list[float]:
        """When something is to be done, by the monotonic clock."""
        found = [one.killed_at for one in self._servers.values()]
        found += [self._due, self._second_from if self._lacks_second else None, self._must_by]
        return [one for one in found if one is not None]

    @property
    def _lacks_second(self) -> bool:
        """Whether one is to be begun that stands by: asked at each turn, whatever has become of those before it."""
        server = self._servers.get(self._answers)
        fits = server is not None and server.serves and not (self._second or self._coming) and self._due is None
        return fits and self._orders.wants_second and self._orders.may_begin()

    def _see_that_none_is_missing(self) -> None:
        """Whoever was to have one begun may have ended in between: there is to be one while there is what it serves."""
        is_there = self._answers or self._coming or self._due is not None
        if not is_there and self._orders.is_settled() and self._orders.may_begin():
            self._due = time.monotonic() + _pause(self._short)

    def look_at(self, ready: list[int]) -> None:
        """Hear those of which something can be heard.

        Args:
            ready: of :attr:`watched`.
        """
        for server in [one for one in self._servers.values() if one.watched in ready]:
            said = server.hear()
            if said is Said.ENDED:
                self._reap(server)
            elif said is Said.SERVES:
                self._serves(server)
            elif said is Said.ALIVE and server.pid == self._answers:
                self._must_by = None
            elif said is Said.WAITING and server.pid == self._second:
                self._doubt()

    def do_what_is_due(self, woken: float) -> None:
        """Begin and end those that are to be.

        Args:
            woken: when the loop was, by the monotonic clock.
        """
        for server in self._servers.values():
            if server.killed_at is not None and server.killed_at <= woken:
                server.kill()
        if self._must_by is not None and self._must_by <= woken:
            self._has_not_said(woken)
        if self._due is not None and self._due <= woken:
            self._begin()
        if self._lacks_second and self._second_from <= woken:
            self._begin_second()
        self._see_that_none_is_missing()

    # -- what it is told ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Have one begun that answers. As soon as it does, those before it are ended."""
        self._due = time.monotonic()

    def link_all(self) -> None:
        """Link those of a controller before to the present one: that tells them what is served, and hears them."""
        self._known_second = self._second if self._orders.reads_seconds() else 0
        for server in self._servers.values():
            word = words.SECOND if server.pid == self._known_second else words.LINK
            with contextlib.suppress(OSError):  # there is no descriptor: it is not heard, and ended with the others
                theirs, its = socket.socketpair()
                with theirs, its:
                    server.link(its)
                    self._orders.say(words.number(word, server.pid), theirs.detach())

    def kill(self, pid: int) -> None:
        """End one now, if there is such a one."""
        if (server := self._servers.get(pid)) is not None:
            server.kill()

    def end(self) -> None:
        """Let all of them finish, and begin no more."""
        self._due = self._must_by = None
        self._second = 0  # it takes over from nobody
        for server in self._servers.values():
            server.end(GRACE_SECONDS)

    def kill_all(self) -> None:
        """End all of them now."""
        for server in self._servers.values():
            server.kill()

    # -- what they say -----------------------------------------------------------------------------------------------

    def _serves(self, server: Forked) -> None:
        if server.pid == self._coming:
            self._answers, self._coming, self._must_by = server.pid, 0, None
            self._second = self._known_second = 0
            for one in self._servers.values():
                if one is not server:
                    one.end(GRACE_SECONDS)
            memory.forget_clean()  # not sooner: workers wait for a server, and nobody waits for us now
        if server.pid != self._answers:
            return  # it was one of a controller before that has taken over
        self._must_by = None
        self._second_from = max(self._second_from, time.monotonic() + _pause(self._short))

    def _reap(self, server: Forked) -> None:
        """It has ended."""
        server.reap()
        del self._servers[server.pid]
        self._orders.ended(server.pid)
        now = time.monotonic()
        was_short = now - server.began < _LONG_ENOUGH_SECONDS
        if server.pid == self._second:
            self._second = 0
            self._short_seconds = self._short_seconds + 1 if was_short else 0
            self._second_from = now + _pause(self._short_seconds)
        elif server.pid in (self._answers, self._coming):
            answered = server.pid == self._answers
            self._must_by = None if answered else self._must_by
            self._answers, self._coming = (0, self._coming) if answered else (self._answers, 0)
            self._short = self._short + 1 if was_short else 0
            if answered and self._second:
                self._take_over(now)
            self._orders.hear()
            if self._orders.may_begin() and not self._coming and (self._orders.asked or not self._answers):
                self._plan(now, answered=answered)

    def _take_over(self, now: float) -> None:
        """Have the one that stands by answer."""
        self._answers, self._second = self._second, 0
        self._must_by = now + max(TAKES_OVER_SECONDS, self._patience.seconds(now))
        if not self._servers[self._answers].take_over():
            self._servers[self._answers].kill()
        if self._orders.asked and self._answers == self._known_second:
            self._orders.say(words.number(words.INSTEAD, self._answers))

    def _plan(self, now: float, *, answered: bool) -> None:
        """Have a successor begun."""
        if self._short and self._short % _MANY == 0:
            self._orders.say(words.number(words.FAILING, self._short))
            write(b"%d servers, one after the other, have ended as soon as they were begun\n" % self._short)
        if answered and self._answers:
            return  # one has taken over; when it answers, the next to stand by is begun
        self._due = now + _pause(self._short)

    # -- one that hangs ----------------------------------------------------------------------------------------------

    def _doubt(self) -> None:
        """Connections wait, and nobody takes them."""
        server = self._servers.get(self._answers)
        if server is None or not server.serves or self._must_by is not None:
            return
        now = time.monotonic()
        self._must_by = now + self._patience.seconds(now)
        server.ask()

    def _has_not_said(self, woken: float) -> None:
        assert self._must_by is not None
        if woken - self._must_by > _LATE_SECONDS:
            self._must_by = woken + self._patience.seconds(woken)
            return
        self._must_by = None
        self._patience.ends(woken)
        write(b"process %d does not answer, and connections wait: it is ended\n" % self._answers)
        self.kill(self._answers)

    # -- beginning ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._orders.hear()  # first: what it is to begin with may have come, or the controller may have ended
        self._due = None
        if not self._orders.may_begin():
            return
        needed = (self._answers, self._second)
        for old in [one for one in self._servers.values() if one.pid not in needed][:-_MOST_OLD]:
            old.end(GRACE_SECONDS)
        try:
            self._coming = self._fork_linked(words.LINK, stands_by=False)
            self._refused = 0
        except OSError:
            # No process or descriptor is to be had just now, because workers have them all, say: that passes.
            self._refused += 1
            self._due = time.monotonic() + max(PAUSE_SECONDS, _pause(self._refused))

    def _begin_second(self) -> None:
        self._orders.hear()
        if not self._lacks_second:
            return
        try:
            self._second = self._fork_linked(words.SECOND, stands_by=True)
            self._known_second = self._second if self._orders.asked else 0
        except OSError:
            self._second_from = time.monotonic() + _MOST_PAUSE_SECONDS

    def _fork_linked(self, word: bytes, *, stands_by: bool) -> int:
        """Begin one, and say so before anything else is said: it may serve what is then withdrawn.

        Raises:
            OSError: there is no process or descriptor for it.
        """
        if not self._orders.asked:
            # A controller that is there and has not asked yet has heard of all but this one, which may serve what it is
            # about to withdraw.
            pid = self._fork(None, stands_by=stands_by)
            self._orders.say(words.number(words.ALIVE, pid))
            return pid
        theirs, its = socket.socketpair()
        with theirs, its:
            pid = self._fork(its, theirs, stands_by=stands_by)
            self._orders.say(words.number(word, pid), theirs.detach())
        return pid

    def _fork(self, link: socket.socket | None, *others: socket.socket, stands_by: bool) -> int:
        but = [*self._orders.withheld(), *(one.fileno() for one in others)]
        but += [one for server in self._servers.values() for one in server.descriptors]
        if self._masked:  # until it heeds it: it must not be lost meanwhile
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            server = fork(partial(self._orders.work, link, stands_by=stands_by), but=but)
        finally:
            if self._masked:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self._servers[server.pid] = server
        return server.pid
