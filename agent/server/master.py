"""Keeps a server alive, and the sockets on which it answers. Hears the controller alone, and parses nothing.

It is one program, begun in one of two ways (:mod:`agent.server.starting`):

* *by the controller*, which gives it the sockets over the control socket that it inherits. It ends with the controller,
  however that ends (``PR_SET_PDEATHSIG``), and its servers with it.
* *by the service manager*, which gives it the sockets, and one on which controllers connect: one at a time, the newest.
  When a controller ends, the servers go on with what they were told last. Each that connects gets a server that is
  linked to it; as soon as that serves, those before it are ended. One that dies while there is no controller has a
  successor all the same, which begins with the newest snapshot (:mod:`agent.server.kept`).

Which servers there are, and which of them answers, is in :mod:`agent.server.crew`; what is said in
:mod:`agent.server.words`.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Final

from agent.core.text import socket_address
from agent.host import descriptors, systemd
from agent.server import words, work
from agent.server.controllers import Control, ControllerSocket
from agent.server.crew import Crew
from agent.server.kept import Kept

_AGAIN_SECONDS: Final = 0.5
"""Until the service manager is told again."""


def addresses_of(sockets: Sequence[socket.socket]) -> list[str]:
    """Where workers ask, of those that are for workers."""
    names = [one.getsockname() for one in sockets if one.family != socket.AF_NETLINK]
    return [socket_address(name[0], name[1]) for name in names if "%" not in name[0]]


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
        self._crew = Crew(self, masked=woken is not None)
        self.asked = False  # whether the controller has asked for a server
        self.wants_second = True  # also while there is none: a controller learns of each that is there
        self._status = ""
        self._had = 0  # so many snapshots of the present controller's
        self._is_of_before = False  # whether that one does not read what it is told today
        self._reads_seconds = connecting is None  # who began this is of the same version
        self._stopping = False
        self._is_told = not self._notifier.active  # whether the service manager has heard that this is ready

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the controller that began it is gone, or the last server after a stop."""
        if self.may_begin():
            self._crew.begin()  # the service manager held what it serves
        while not (self._stopping and not self._crew.pids):
            ready = self._wait()
            woken = time.monotonic()
            if self._woken is not None and self._woken[0] in ready:
                os.read(self._woken[0], 64)
                self._stop()
            if not self.hear() and self._connecting is None:
                break
            if self._connecting is not None and self._connecting.listening.fileno() in ready:
                self._accept(self._connecting)
            self._crew.look_at(ready)
            self._do_what_is_due(woken)
        self._crew.kill_all()

    def _wait(self) -> list[int]:
        waiting = self._crew.watched
        waiting += [] if self._control is None else [self._control.fileno()]
        waiting += [] if self._woken is None else [self._woken[0]]
        waiting += [self._connecting.listening.fileno()] if self._connecting is not None and not self._stopping else []
        times = self._crew.times
        now = time.monotonic()
        # Its queue may be full, because it reloads itself, say. A start that it never hears of would be ended by it.
        self._is_told = self._is_told or self._stopping or self._notifier.ready(self._crew.said())
        self._tell_status()
        times += [] if self._kept.tell() and self._is_told else [now + _AGAIN_SECONDS]
        times += [] if self._control is None or self._control.say_at is None else [self._control.say_at]
        times += [] if self._beat_seconds is None else [self._beat_at]
        ready, _, _ = select.select(waiting, [], [], max(0.0, min(times) - now) if times else None)
        return list(ready)

    def _tell_status(self) -> None:
        if (
            self._notifier.active
            and self._is_told
            and not self._stopping
            and self._status != (said := self._crew.said())
        ):
            self._status = said
            self._notifier.status(said)

    def _do_what_is_due(self, woken: float) -> None:
        self._crew.do_what_is_due(woken)
        if self._control is not None and self._control.say_at is not None and self._control.say_at <= woken:
            self._control.say_rest()
        if self._beat_seconds is not None and self._beat_at <= woken:
            told = self._notifier.alive()
            self._beat_at = woken + (self._beat_seconds if told else min(self._beat_seconds, _AGAIN_SECONDS))

    # -- the controller ----------------------------------------------------------------------------------------------

    def _accept(self, connecting: ControllerSocket) -> None:
        control = connecting.accept()
        if control is None:
            return
        self._leave()
        self._control, self._is_of_before = Control(control), words.is_of_before(control)
        self._reads_seconds = words.reads_seconds(control)
        try:
            for file in self._kept.files:
                self.say(words.SNAPSHOT, os.dup(file))
        except OSError:
            self._leave()  # there is no descriptor just now; it connects anew
        for pid in self._crew.pids:
            self.say(words.number(words.ALIVE, pid))
        if not self._is_of_before:
            self.say(words.number(words.ROOM, descriptors.raised()))
        self.say(words.at(addresses_of(self._sockets)))

    def _leave(self) -> None:
        """Hear no more of the present controller."""
        if self._control is not None and self._connecting is not None:
            self._control.close()
            self._control = None
        self.asked = self._kept.ours = False
        self._had = 0

    def say(self, said: bytes, file: int | None = None) -> None:
        """See :class:`agent.server.crew.Orders`."""
        if self._control is None:
            if file is not None:
                os.close(file)
            return
        if not self._control.say(said, file) and self._connecting is not None:
            self._leave()  # it learns all of it anew when it connects

    def hear(self) -> bool:
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
            lost = not fds and self._control is not None and self._control.was_cut
            self.say(words.number(words.LACKS if lost and not self._is_of_before else words.HAD, self._had))
            return
        for fd in fds:
            os.close(fd)
        if word == words.LISTEN:
            self.asked, self.wants_second = True, words.pid_of(said) > 1
            self._crew.begin()
            self._crew.link_all()
        elif word == words.END:
            self._crew.kill(words.pid_of(said))
        elif word == words.STOP and self._connecting is None:
            self._stop()

    # -- the servers -------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._notifier.stopping()
        for one in self._sockets:
            one.close()
        self._crew.end()

    def ended(self, pid: int) -> None:
        """See :class:`agent.server.crew.Orders`."""
        if not self._stopping:
            for one in self._sockets:
                one.setblocking(False)  # it may have had them wait: then whoever accepts the last one hangs
        self.say(words.number(words.ENDED, pid))

    def may_begin(self) -> bool:
        """See :class:`agent.server.crew.Orders`."""
        return not self._stopping and (self.asked or bool(self._kept.files))

    def reads_seconds(self) -> bool:
        """See :class:`agent.server.crew.Orders`."""
        return self._reads_seconds

    def is_settled(self) -> bool:
        """See :class:`agent.server.crew.Orders`."""
        return self.asked or self._control is None

    def withheld(self) -> list[int]:
        """See :class:`agent.server.crew.Orders`."""
        found = [] if self._control is None else [self._control.fileno(), *self._control.files]
        found += [] if self._woken is None else self._woken
        found += [] if self._connecting is None else [self._connecting.listening.fileno()]
        return found

    def work(self, link: socket.socket | None, master: socket.socket, parent: int, *, stands_by: bool) -> None:
        """See :class:`agent.server.crew.Orders`."""
        if self._woken is not None:
            signal.set_wakeup_fd(-1)
        found = self._kept.read()
        # What a former controller gave is not for a server of this one, which may have other settings.
        found = found if self._kept.ours or link is None else ()
        work.run(
            link, self._sockets, parent=parent, kept=found, wall=self._kept.wall, master=master, stands_by=stands_by
        )
