"""What is kept for the next process is replaced without a gap, wherever the process that does it is killed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from agent.daemon import handover
from agent.host.clock import SystemClock
from agent.host.systemd import Notifier, Passed
from tests.fakes.notify_socket import NotifySocket


class Killed(BaseException):
    """The process ends here."""


class Mortal(Notifier):
    """Sends so many datagrams, then is killed; or the manager's queue is full from then on."""

    left = 1 << 30
    deaf = False

    def tell(self, *lines: str, fds: Sequence[int] = ()) -> bool:
        if self.left <= 0:
            if self.deaf:
                return False
            raise Killed
        self.left -= 1
        while not super().tell(*lines, fds=fds):
            os.sched_yield()  # the queue of a socket is ten datagrams: the reader is behind
        return True


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path / "n") as manager:
        yield manager


def successor(manager: NotifySocket) -> tuple[handover.Handover | None, Mortal]:
    """A next process: what it gets, and how it tells."""
    mark = f"STATUS={secrets.token_hex(4)}"
    Mortal(str(manager.path)).tell(mark)
    manager.wait_for(mark)  # all before it was told
    names = [name for name, _ in manager.stored()]
    assert len(names) == len(set(names)) <= 2, names
    stored = {name: os.dup(fd) for name, fd in manager.stored()}
    notifier = Mortal(str(manager.path), stored=stored)
    return handover.take(Passed({}, stored), SystemClock()), notifier


def left(number: int) -> bytes:
    clock = SystemClock()
    now = clock.now() - timedelta(seconds=100 - number)
    return handover.encode(
        handover.Handover(uptime=clock.uptime() / 2 + number / 1e3, now=now, began=0.0, recipient=str(number))
    )


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("second", range(5))
def test_killed_at_every_point(manager: NotifySocket, first: int, second: int, deaf: bool) -> None:
    """Two processes in a row are killed while they replace it: each next one finds one whole, never an older one."""
    notifier = Mortal(str(manager.path))
    assert notifier.keep(handover.NAME, left(1))
    before = 1
    for number, dies in ((2, first), (3, second)):
        notifier.left, notifier.deaf = dies, deaf
        with contextlib.suppress(Killed):
            notifier.keep(handover.NAME, left(number))
        found, notifier = successor(manager)
        assert found is not None
        assert before <= int(found.recipient) <= number
        if dies >= 4:
            assert int(found.recipient) == number
        before = int(found.recipient)
    assert notifier.keep(handover.NAME, left(4))
    found, _ = successor(manager)
    assert found is not None
    assert found.recipient == "4"


def test_what_was_replaced_is_gone(manager: NotifySocket) -> None:
    """What was withdrawn lies nowhere any more, once the replacement is told; a full queue is tried again."""
    notifier = Mortal(str(manager.path))
    assert notifier.keep(handover.NAME, left(1))
    for room in range(4):
        notifier.left, notifier.deaf = room, True
        assert not notifier.keep(handover.NAME, left(2))
        notifier.left = 1 << 30
        assert notifier.keep(handover.NAME, left(3))
        manager.wait_content(handover.NAME, lambda data: b'"recipient":"3"' in data)
    notifier.status("end")
    manager.wait_for("STATUS=end")
    assert [name for name, _ in manager.stored()] == [handover.NAME]
