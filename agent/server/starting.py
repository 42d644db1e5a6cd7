"""How a master begins: with what is passed to it, and with less than it was given to be able to do."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from agent.core.errors import HostError
from agent.core.text import os_reason
from agent.host import confine, deferring, descriptors, seccomp, signals, slices, systemd
from agent.server.controllers import ControllerSocket
from agent.server.forked import write
from agent.server.master import Master, addresses_of


def main(descriptor: int, parent: int) -> None:
    """Be the master until the controller ends.

    Args:
        descriptor: of the control socket.
        parent: the process id of the controller.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all of us; the controller decides
    # Not here, but in a server that was begun a moment ago and does not heed it yet: there it must wait, or is lost.
    signals.begin(blocked={signal.SIGTERM})
    confine.end_with_parent(parent)
    _give_up()
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream was closed: nothing else may be opened by its number
    os.close(spare)
    # Under a low number: select(2) knows none above 1023, and whoever began the controller may have left it that many.
    with socket.socket(fileno=fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)) as control:
        os.close(descriptor)
        Master(control).run()


def serve(environ: Mapping[str, str]) -> None:
    """Be the master until the service manager ends it.

    Args:
        environ: what the service manager passed.

    Raises:
        HostError: it has not passed what is needed, or the kernel refused.
    """
    signals.begin(blocked={signal.SIGTERM})  # as above
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    passed = systemd.passed(environ, pid=os.getpid())
    notifier = systemd.Notifier(environ.get("NOTIFY_SOCKET"), stored=passed.stored)
    every = [one for group in passed.sockets.values() for one in group]
    listening = [one for one in every if one.family == socket.AF_UNIX and one.type == socket.SOCK_SEQPACKET]
    sockets = [one for one in every if one.family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)]
    if len(listening) != 1 or not addresses_of(sockets):
        raise HostError(
            f"expected one socket for the controller and one or more for workers, got {len(listening)} and "
            f"{len(addresses_of(sockets))}",
            hint="start it by its unit: systemctl start credential-agent-serve",
        )
    allowed = {0, os.getuid(), _owner(listening[0])}
    deferring.defer(sockets, cookies=deferring.passed(environ))  # ours is another network than theirs
    _give_up()
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    beat = systemd.watchdog_seconds(environ, pid=os.getpid())
    Master(
        connecting=ControllerSocket(listening[0], allowed),
        sockets=sockets,
        notifier=notifier,
        stored=passed.stored,
        woken=(woken, waker),
        beat_seconds=None if beat is None else beat / 3,
    ).run()


def _give_up() -> None:
    descriptors.raised()
    slices.ask_for_short()  # where programs compute on every processor workers would wait for each of them
    if not seccomp.give_up_execution(io_uring=False):
        write(b"the system calls of this machine are not known: servers have no filter of their own, but the unit's\n")
    systemd.harden()
    gc.freeze()  # what is here now is never looked at again, so that its pages stay shared


def _owner(listening: socket.socket) -> int:
    path = listening.getsockname()
    try:
        return Path(path).stat().st_uid
    except OSError as error:
        raise HostError(
            f"{path}: whose it is cannot be read: {os_reason(error)}",
            hint="the unit must show this path to its process",
        ) from None
