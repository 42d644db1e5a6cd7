"""Keeps a server alive, and the sockets on which it answers. Hears the controller alone, and parses nothing.

It is one program, begun in one of two ways (:mod:`agent.server.starting`):

* *by the controller*, which gives it the sockets over the control socket that it inherits. It ends with the controller,
  however that ends (``PR_SET_PDEATHSIG``), and its servers with it.
* *by the service manager*, which gives it the sockets, and one on which controllers connect: one at a time, the newest.
  When a controller ends, the servers go on with what they were told last. Each that connects gets a server that is
  linked to it; as soon as that serves, those before it are ended. One that dies while there is no controller has a
  successor all the same, which begins with the newest snapshot (:mod:`agent.server.kept`).

What is said is in :mod:`agent.server.words`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from agent.core.text import socket_address
from agent.host import systemd
from agent.server import words, work
from agent.server.controllers import Control, ControllerSocket
from agent.server.forked import Forked, fork, write
from agent.server.kept import Kept

GRACE_SECONDS: Final = work.CLOSE_SECONDS + 1.0
"""For a server that was told to end: its own, and what it says last."""
_FEW: Final = 3
_SHORT_PAUSE_SECONDS: Final = 0.02
"""After each of the first few that ended too soon: they may have been killed, and workers wait."""
_PAUSE_SECONDS: Final = 0.2
_MOST_PAUSE_SECONDS: Final = 5.0
_LONG_ENOUGH_SECONDS: Final = 2.0
"""A server that ends sooner than this is not begun again at once: it would end again."""
_MANY: Final = 20
"""After so many that ended too soon, one after the other, the pauses become longer."""
_AGAIN_SECONDS: Final = 0.5
"""Until the service manager is told again."""
_MOST_OLD: Final = 3
"""Servers of former controllers; more of them would be kept by a controller that ends again and again."""


def addresses_of(sockets: Sequence[socket.socket]) -> list[str]:
    """Where workers ask, of those that are for workers."""
    names = [one.getsockname() for one in sockets if one.family != socket.AF_NETLINK]
    return [socket_address(name[0], name[1]) for name in names if "%" not in name[0]]


def _pause(times: int) -> float:
    """Before the next try, after so many in a row that failed."""
    if times <= _FEW:
        return _SHORT_PAUSE_SECONDS if times else 0.0
    return float(min(_PAUSE_SECONDS * 2 ** min(10, max(0, times - _MANY)), _MOST_PAUSE_SECONDS))


class Master:
    """See the module.

    Args:
        control: the controller that began this; ``None``: controllers connect.
        connecting: where they do.
        sockets: what the service manager passed: on which workers ask, and one that asks the kernel who does.
        notifier: the service manager.
        stored: what it held for us.
        woken: the ends of a pipe that becomes readable when this is to end, by a signal that a server must not lose.
        beat_seconds: how often the service manager wants a sign of life; ``None``: it does not.
    """

    def __init__(
        self,
        control: socket.socket | None = None,
        *,
        connecting: ControllerSocket | None = None,
        sockets: Sequence[socket.socket] = (),
        notifier: systemd.Notifier | None = None,
        stored: Mapping[str, int] | None = None,
        woken: tuple[int, int] | None = None,
        beat_seconds: float | None = None,
    ) -> None:
        self._control = None if control is None else Control(control)
        self._connecting = connecting
        self._sockets = list(sockets)
        self._notifier = systemd.Notifier(None) if notifier is None else notifier
        self._kept = Kept(self._notifier, stored or {})
        self._woken = woken
        self._beat_seconds = beat_seconds
        self._beat_at = time.monotonic()
        self._servers: dict[int, Forked] = {}  # the oldest first
        self._newest = 0
        self._asked = False  # whether the controller has asked for a server
        self._had = 0  # so many snapshots of the present controller's
        self._refused = 0  # so many times the kernel had no process or descriptor, the last times
        self._short = 0  # so many ended too soon, the last ones
        self._due: float | None = None  # when the next is begun
        self._stopping = False
        self._is_told = not self._notifier.active  # whether the service manager has heard that this is ready

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the controller that began it is gone, or the last server after a stop."""
        if self._may_begin():
            self._due = time.monotonic()  # the service manager held what it serves
        while not (self._stopping and not self._servers):
            ready = self._wait()
            if self._woken is not None and self._woken[0] in ready:
                os.read(self._woken[0], 64)
                self._stop()
            if not self._hear() and self._connecting is None:
                break
            if self._connecting is not None and self._connecting.listening.fileno() in ready:
                self._accept(self._connecting)
            for server in [one for one in self._servers.values() if one.watched in ready]:
                self._look_at(server)
            self._do_what_is_due()
        for server in self._servers.values():
            server.kill()

    def _wait(self) -> list[int]:
        waiting = [one.watched for one in self._servers.values()]
        waiting += [] if self._control is None else [self._control.fileno()]
        waiting += [] if self._woken is None else [self._woken[0]]
        waiting += [self._connecting.listening.fileno()] if self._connecting is not None and not self._stopping else []
        times = [one.killed_at for one in self._servers.values() if one.killed_at is not None]
        times += [] if self._due is None else [self._due]
        now = time.monotonic()
        # Its queue may be full, because it reloads itself, say. A start that it never hears of would be ended by it.
        self._is_told = self._is_told or self._stopping or self._notifier.ready("ready for the controller")
        times += [] if self._kept.tell() and self._is_told else [now + _AGAIN_SECONDS]
        times += [] if self._control is None or self._control.say_at is None else [self._control.say_at]
        times += [] if self._beat_seconds is None else [self._beat_at]
        ready, _, _ = select.select(waiting, [], [], max(0.0, min(times) - now) if times else None)
        return list(ready)

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        for server in self._servers.values():
            if server.killed_at is not None and server.killed_at <= now:
                server.kill()
        if self._control is not None and self._control.say_at is not None and self._control.say_at <= now:
            self._control.say_rest()
        if self._due is not None and self._due <= now:
            self._begin()
        if self._beat_seconds is not None and self._beat_at <= now:
            self._notifier.alive()
            self._beat_at = now + self._beat_seconds

    # -- the controller ----------------------------------------------------------------------------------------------

    def _accept(self, connecting: ControllerSocket) -> None:
        control = connecting.accept()
        if control is None:
            return
        self._leave()
        self._control = Control(control)
        try:
            for file in self._kept.files:
                self._say(words.SNAPSHOT, os.dup(file))
        except OSError:
            self._leave()  # there is no descriptor just now; it connects anew
        for pid in self._servers:
            self._say(words.number(words.ALIVE, pid))
        self._say(words.at(addresses_of(self._sockets)))

    def _leave(self) -> None:
        """Hear no more of the present controller."""
        if self._control is not None and self._connecting is not None:
            self._control.close()
            self._control = None
        self._asked = self._kept.ours = False
        self._had = 0

    def _say(self, said: bytes, file: int | None = None) -> None:
        if self._control is None:
            if file is not None:
                os.close(file)
            return
        if not self._control.say(said, file) and self._connecting is not None:
            self._leave()  # it learns all of it anew when it connects

    def _hear(self) -> bool:
        """Do all that the controller has said; false: it has ended."""
        while self._control is not None and (heard := self._control.hear()) is not None:
            said, fds = heard
            if not said:
                self._leave()
                return False
            self._heed(said, fds)
        return True

    def _heed(self, said: bytes, fds: list[int]) -> None:
        word = said.partition(b" ")[0]
        if word == words.GIVEN and self._connecting is None:
            self._sockets += [socket.socket(fileno=fd) for fd in fds]
            return
        if word == words.SNAPSHOT and len(fds) <= 1:
            self._had += 1
            self._kept.take(fds)
            self._say(words.number(words.HAD, self._had))
            return
        for fd in fds:
            os.close(fd)
        if word == words.LISTEN:
            self._asked, self._due = True, time.monotonic()
            for one in self._servers.values():
                self._link(one)
        elif word == words.END and (server := self._servers.get(words.pid_of(said))) is not None:
            server.kill()
        elif word == words.STOP and self._connecting is None:
            self._stop()

    # -- the servers -------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping, self._due = True, None
        self._notifier.stopping()
        for one in self._sockets:
            one.close()
        for server in self._servers.values():
            server.end(GRACE_SECONDS)

    def _may_begin(self) -> bool:
        """Whether a server that is begun now has, or will have, what it serves."""
        return not self._stopping and (self._asked or bool(self._kept.files))

    def _look_at(self, server: Forked) -> None:
        """It serves, or has ended."""
        if not server.has_ended():
            if server.pid == self._newest:
                for one in self._servers.values():
                    if one is not server:
                        one.end(GRACE_SECONDS)
            return
        server.reap()
        del self._servers[server.pid]
        self._say(words.number(words.ENDED, server.pid))
        if server.pid != self._newest:
            return
        self._newest = next(reversed(self._servers), 0)  # if none is begun: one of a controller before
        self._hear()
        if self._may_begin():
            self._plan(server)

    def _plan(self, ended: Forked) -> None:
        """Have a successor begun."""
        now = time.monotonic()
        self._short = self._short + 1 if now - ended.began < _LONG_ENOUGH_SECONDS else 0
        if self._short and self._short % _MANY == 0:
            self._say(words.number(words.FAILING, self._short))
            write(b"%d servers, one after the other, have ended as soon as they were begun\n" % self._short)
        self._due = now + _pause(self._short)

    def _begin(self) -> None:
        self._hear()  # first: what it is to begin with may have come, or the controller may have ended
        self._due = None
        if not self._may_begin():
            return
        for old in list(self._servers.values())[: -_MOST_OLD or None]:
            old.end(GRACE_SECONDS)
        try:
            if self._asked:
                theirs, its = socket.socketpair()
                with theirs, its:
                    self._fork(its, theirs)
                    # Before anything else is said: nobody else knows of it, and it may serve what is then withdrawn.
                    self._say(words.number(words.LINK, self._newest), theirs.detach())
            else:
                self._fork(None)
                # A controller that is there and has not asked yet: it has heard of all but this one, which may serve
                # what it is about to withdraw.
                self._say(words.number(words.ALIVE, self._newest))
            self._refused = 0
        except OSError:
            # No process or descriptor is to be had just now, because workers have them all, say: that passes.
            self._refused += 1
            self._due = time.monotonic() + max(_PAUSE_SECONDS, _pause(self._refused))

    def _fork(self, link: socket.socket | None, *others: socket.socket) -> None:
        but = [one.fileno() for one in (self._control, *others) if one is not None]
        but += [] if self._control is None else self._control.files
        but += [] if self._woken is None else self._woken
        but += [] if self._connecting is None else [self._connecting.listening.fileno()]
        but += [one for server in self._servers.values() for one in server.descriptors]
        if self._woken is not None:  # until it heeds it: it must not be lost meanwhile
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            server = fork(partial(self._work, link), but=but)
        finally:
            if self._woken is not None:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self._servers[server.pid] = server
        self._newest = server.pid

    def _link(self, server: Forked) -> None:
        """Link one of a controller before to the present one, which then tells it what is served, and hears it."""
        with contextlib.suppress(OSError):  # there is no descriptor: it is not heard, and ended with the others
            theirs, its = socket.socketpair()
            with theirs, its:
                server.link(its)
                self._say(words.number(words.LINK, server.pid), theirs.detach())

    def _work(self, link: socket.socket | None, master: socket.socket, parent: int) -> None:
        """Be the server: in its process."""
        if self._woken is not None:
            signal.set_wakeup_fd(-1)
        found = self._kept.read()
        # What a former controller gave is not for a server of this one, which may have other settings.
        found = found if self._kept.ours or link is None else ()
        work.run(link, self._sockets, parent=parent, kept=found, master=master)
