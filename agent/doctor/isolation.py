"""Probes that may hang, each in a process of its own: all at once, and none is waited for longer than its time.

A call that asks a dead mount never returns and no signal ends it; a look-up of a name blocks a thread; and what the
service may read can only be told by becoming the service, which a process does as a whole. A process of its own has
none of these troubles: it is killed, or left to the kernel, and the others have said what they know.

Nothing that a probe looks at reaches this process but the value that it sends back, decoded strictly.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from agent.core.errors import AgentError
from agent.core.strictjson import NotThatShapeError, decode
from agent.core.text import os_reason
from agent.doctor.facts import Unknown

SECONDS: Final = 2.0
"""The share that each probe has."""

MAX_BYTES: Final = 4 << 20
_WORDS: Final = 200


class Identity(NamedTuple):
    """The user that a probe becomes."""

    name: str
    uid: int
    gid: int


class Probe(NamedTuple):
    """Something to find out.

    Attributes:
        kind: what ``look`` returns; it is sent back as JSON.
        look: finds it out.
        become: whom to become before.
    """

    kind: type[msgspec.Struct]
    look: Callable[[], msgspec.Struct]
    become: Identity | None = None


_VALUE: Final = b"="
"""Before what a probe found; before an :class:`Unknown` there is :data:`_NONE`."""
_NONE: Final = b"?"


def look(probes: Mapping[str, Probe], *, seconds: float = SECONDS) -> dict[str, Any]:
    """Run all of them.

    Args:
        probes: by name.
        seconds: for each; they run side by side.

    Returns:
        By name: the value of the probe's kind, or an :class:`Unknown`.

    The caller must have one thread: the processes are copies of this one (fork(2)).
    """
    children: dict[str, _Child] = {}
    refused = ""
    try:
        for name, probe in probes.items():
            try:
                children[name] = _Child(probe)
            except OSError as error:  # no process, or no descriptor: what could be begun is looked at all the same
                refused = os_reason(error)
        waiting = dict(children)
        end = time.monotonic() + seconds  # to begin them takes a busy machine a while, which is not theirs
        while waiting and (left := end - time.monotonic()) > 0:
            ready = select.select([child.pipe for child in waiting.values()], [], [], left)[0]
            for name in [name for name, child in waiting.items() if child.pipe in ready]:
                if waiting[name].ended():
                    del waiting[name]
    finally:
        for child in children.values():
            child.end()
    late = Unknown(why=f"no answer within {seconds:g} s", hung=True)
    none = Unknown(why=f"no process could be begun to look: {refused}")
    return {
        name: none if name not in children else late if name in waiting else children[name].result() for name in probes
    }


class _Child:
    """One probe under way."""

    def __init__(self, probe: Probe) -> None:
        self._kind = probe.kind
        self._data = b""
        self.pipe, writer = os.pipe()
        try:
            self._pid = os.fork()
        except OSError:
            os.close(self.pipe)
            os.close(writer)
            raise
        if self._pid == 0:
            _work(probe, writer)
        os.close(writer)

    def ended(self) -> bool:
        """Take what it has sent; whether that was all."""
        data = os.read(self.pipe, 65_536)
        self._data += data
        return not data or len(self._data) > MAX_BYTES

    def end(self) -> None:
        """End it, and what it has started. One that the kernel holds is left to the kernel."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.close(self.pipe)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, os.WNOHANG)

    def result(self) -> msgspec.Struct:
        """What the probe found; :class:`Unknown` if it did not say."""
        kind = self._kind if self._data[:1] == _VALUE else Unknown
        try:
            return decode(self._data[1:], kind)
        except NotThatShapeError:
            return Unknown(why="the look ended without an answer")


def _work(probe: Probe, writer: int) -> None:
    """In the new process: look, say, end."""
    try:
        os.setpgid(0, 0)
        # What libraries print is not for the person who asked. Not /dev/null: it may be closed to others than root.
        silent, deaf = os.pipe()
        os.set_blocking(deaf, False)
        for descriptor, instead in ((0, silent), (1, deaf), (2, deaf)):
            os.dup2(instead, descriptor)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            if probe.become is not None:
                become(probe.become)
            data = _VALUE + msgspec.json.encode(probe.look())
        except AgentError as error:
            data = _NONE + msgspec.json.encode(Unknown(why=error.message))
        except Exception as error:  # noqa: BLE001 - the border of this process: whatever it is, it is told
            why = f"the look failed: {type(error).__name__}: {str(error)[:_WORDS]}"
            data = _NONE + msgspec.json.encode(Unknown(why=why))
        while data:
            data = data[os.write(writer, data) :]
    finally:
        os.kill(os.getpid(), signal.SIGKILL)  # at once: no exit handler of the parent runs twice


def become(identity: Identity) -> None:
    """Become another user, for good."""
    os.initgroups(identity.name, identity.gid)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
