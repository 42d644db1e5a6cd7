"""The connection to the master (:mod:`agent.server.master`), however that was begun.

The master has the user of what parses strangers' bytes: each of its words is bounded and read strictly
(:mod:`agent.server.words`), and what no honest one says ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

from agent.controller.seldom import Seldom
from agent.core.errors import HostError, SnapshotError
from agent.daemon import cut_off
from agent.daemon.begun import Begun
from agent.daemon.link_transport import CLOSING, MOST_DESCRIPTORS, let_go
from agent.daemon.servers import Servers
from agent.host.emptiable import Emptiable
from agent.server import words

AGAIN_SECONDS: Final = 0.5
"""Until the master is told again what could not be said: it does not read, or the kernel has no memory."""
UNLINKED_SECONDS: Final = 5.0
"""How long a server may go on for whose link we have no descriptor: its successor may have one."""
_MOST_KEPT: Final = 4


class MasterConnection:
    """See the module. To be made in the event loop.

    Args:
        control: our end; it is closed with this.
        ended: called once, when the master has ended or is not heard any more.
        failing: called when its servers end as soon as they are begun, with how many have.
        seldom: bounds what is logged of this and of every master before it; ``None``: of this one alone.

    Attributes:
        addresses: of the workers' sockets, once it has said them; a child says none.
        room: how many descriptors a server may have, once it has said so.
        given: what it was given and may hold; the last is the newest.
        gave: how many snapshots it was given.
        owes: whether it is yet to be given the newest.

    *Resources*: the socket, until :meth:`close` or ``ended``; what :attr:`given` holds stays open: whoever
    closes it empties that, or hands it on.
    """

    def __init__(
        self,
        control: socket.socket,
        *,
        ended: Callable[[], None],
        failing: Callable[[int], None] = lambda _count: None,
        seldom: Seldom | None = None,
    ) -> None:
        self.addresses: tuple[str, ...] | None = None
        self.room: int | None = None
        self._begun = Begun()
        self.introduced = asyncio.Event()
        self._control = control
        self._ended, self._failing = ended, failing
        self._seldom = Seldom(time.monotonic) if seldom is None else seldom
        self._servers: Servers | None = None
        self.given: list[Emptiable] = []
        self.gave = self._had = 0
        self._open, self.owes = True, False
        self._lacks = False  # whether it has not got the newest's file, which there is
        self._ends: set[int] = set()  # whose end is yet to be asked for
        self._again: asyncio.TimerHandle | None = None
        self._linked: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(control.fileno(), self._hear)

    # -- what it is told ---------------------------------------------------------------------------------------------

    def begin(self, sockets: Sequence[socket.socket], servers: Servers, linked: Callable[[], None]) -> None:
        """Have it begin a server that answers by what ``servers`` says.

        Args:
            sockets: for those; none where it has its own.
            servers: what whoever answers is told and asks.
            linked: called with each server that it begins.

        Raises:
            OSError: it cannot be told.
        """
        self._servers, self._linked = servers, linked
        servers.begun_by(self)
        numbers = [one.fileno() for one in sockets]
        for first in range(0, len(numbers), words.MOST_SOCKETS):
            socket.send_fds(self._control, [words.GIVEN], numbers[first : first + words.MOST_SOCKETS])
        self.give(servers.latest())
        self._control.send(words.number(words.LISTEN, words.TWO))

    def give(self, data: bytes) -> None:
        """Give it the newest snapshot, and have every former one hold nothing, whoever has it.

        Where there is no memory for it, a server waits until we tell it. A master that cannot be told is told again.
        """
        self.owes = self._lacks = True  # until it has it, whatever breaks off
        former, readers = len(self.given), list[int]()
        try:
            with contextlib.suppress(OSError):
                self.given.append(Emptiable.holding(data))
                readers.append(self.given[-1].reader())
            # What cannot be said with a file may be without: it begins no server with what was before, then.
            given = self._send(words.SNAPSHOT, readers)
            told = given or self._send(words.SNAPSHOT)
            self.gave, self.owes = self.gave + told, not told
            self._lacks = not (given and readers)
        finally:
            if self._lacks:
                self._tell_again()
            for reader in readers:
                os.close(reader)
            for one in self.given[:former]:
                one.empty()
            del self.given[:former]  # last: what could not be emptied is by the next

    def _send(self, said: bytes, files: Sequence[int] = ()) -> bool:
        """Say it; false: it cannot be said just now. If the master has ended that is heard."""
        try:
            if files:
                socket.send_fds(self._control, [said], files)
            else:
                self._control.send(said)
        except ConnectionError:
            return True
        except OSError:
            return False
        return True

    def _tell_again(self) -> None:
        if self._open and self._again is None:
            self._again = self._loop.call_later(AGAIN_SECONDS, self._now)

    def _now(self) -> None:
        self._again = None
        if not self._open:
            return
        for pid in sorted(self._ends):
            self.end(pid)
        if self._lacks and self._servers is not None:
            self.give(self._servers.latest())

    @property
    def settled(self) -> bool:
        """Whether all that may know an older snapshot than the newest are in :attr:`alive`."""
        return not self.owes and self._had == self.gave

    def end(self, pid: int) -> None:
        """Have a server killed: it does not do what it is told, or hears us no more."""
        self._ends.discard(pid)
        if pid in self.alive and self._open and not self._send(words.number(words.END, pid)):
            self._ends.add(pid)
            self._tell_again()

    def stop(self) -> None:
        """Let all servers finish, and end.

        Raises:
            OSError: it cannot be told.
        """
        self._control.send(words.STOP)

    # -- what it says ------------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        files: list[int] = []
        try:
            # Whatever comes along is taken: what is not is let go of by the kernel, here, which may take long.
            said, files, flags, _ = socket.recv_fds(self._control, words.MOST_BYTES, MOST_DESCRIPTORS)
            if said:
                cut = flags & socket.MSG_TRUNC or len(files) > 1 or (files and flags & socket.MSG_CTRUNC)
                heard = words.read(b"" if cut else said)
                if flags & socket.MSG_CTRUNC:
                    self._do_without(heard)
                else:
                    self._heed(heard, files)
                return
        except BlockingIOError:
            return
        except SnapshotError as error:
            cut_off.tell(self._seldom, error.message)
        except ConnectionError:
            pass
        except OSError:
            return  # no memory for it just now: it is there yet
        finally:
            for one in files:
                CLOSING.close(one)
        self._end_of_it()

    def _heed(self, said: words.Said, files: list[int]) -> None:
        if self._heed_first(said, files):
            return
        match said.word:
            case words.LINK | words.SECOND if files and self._servers is not None:
                if self._begun.may_link(said.number):
                    self._link(said.word, said.number, _stream(files), self._servers)
                    return
            case words.ALIVE if not self._begun.has_linked and len(self.alive) < words.MOST_SERVERS:
                self._begun.alive.add(said.number)
                self._changed()
                return
            case words.INSTEAD if self._begun.stands_by(said.number):
                self._begun.takes_over(said.number)
                self._linked()
                self._changed()
                return
            case words.ENDED:
                self._begun.ended(said.number)
                self._changed()
                return
            case words.FAILING:
                self._failing(said.number)
                return
            case _:
                pass
        raise SnapshotError(f"expected a word that the master may say now, got {said.word.decode()!r}")

    def _heed_first(self, said: words.Said, files: list[int]) -> bool:
        """Do what says what the master has, if it may say that now."""
        match said.word:
            case words.SNAPSHOT if files and len(self.given) < _MOST_KEPT:
                # If it is no agent's it cannot be emptied; the master drops it for ours.
                with contextlib.suppress(HostError):
                    self.given.insert(0, Emptiable.taken_back(files[0]))
            case words.ROOM if self.addresses is None:
                self.room = said.number
            case words.AT if self.addresses is None:
                self.addresses = said.addresses
                self.introduced.set()
            case words.HAD | words.LACKS if self._had < said.number <= self.gave:
                self._had = said.number
                if said.word == words.LACKS:
                    self._lacks = True
                    self._tell_again()
                self._changed()
            case _:
                return False
        return True

    def _do_without(self, said: words.Said) -> None:
        """There is no descriptor just now for what came along. That is no fault of the master's, if it was a link."""
        is_link = said.word in (words.LINK, words.SECOND) and self._servers is not None
        if not is_link or not self._begun.may_link(said.number):
            raise SnapshotError(f"expected what there is a descriptor for, got {said.word.decode()!r}")
        self._begun.unlinked(said.word, said.number)
        self._loop.call_later(UNLINKED_SECONDS, self.end, said.number)
        self._changed()

    def _link(self, word: bytes, pid: int, sock: socket.socket, servers: Servers) -> None:
        try:
            if self._begun.link(word, pid):
                self._linked()
            servers.link(sock, partial(self.end, pid), pid, partial(self._begun.stands_by, pid))
        except Exception:  # noqa: BLE001 - of this server alone
            self._loop.call_later(UNLINKED_SECONDS, self.end, pid)  # it hears nothing, and would answer on

    @property
    def alive(self) -> Collection[int]:
        """See :class:`agent.daemon.begins.Begins`."""
        return self._begun.alive

    def _changed(self) -> None:
        if self._servers is not None:
            self._servers.changed()

    def leave(self) -> None:
        """Hear no more of it, because it cannot be told what it must be."""
        self._end_of_it()

    def _end_of_it(self) -> None:
        if self._open:
            self.close()
            self._ended()

    def close(self) -> None:
        """Hear and say nothing more. What the servers were given stays as it is."""
        self._open = False
        if self._again is not None:
            self._again.cancel()
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(self._control.fileno())
        let_go(self._control)  # with what it has handed over, and nobody has taken


def _stream(files: list[int]) -> socket.socket:
    """The link that came along; it is taken out of ``files``. What is none stays there.

    Raises:
        SnapshotError: it is something else.
    """
    try:
        found = socket.socket(fileno=files[0])
    except OSError:
        raise SnapshotError("expected a link, got a file that is no socket") from None
    if (found.family, found.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        found.detach()
        raise SnapshotError("expected a link, got another socket")
    files.clear()
    return found
