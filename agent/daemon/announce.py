"""The public half of an ephemeral key, where senders look for it, and kept there while the agent runs.

Senders seal to the key that they find there. Whoever can write there in our place (root on this machine, whoever may
change the instance's guest attributes, a worker that found a way around the redirection) would be sent the identities
that are meant for us. So it is read again every :data:`LOOK_SECONDS`, and at once after a refused bundle, since that is
how a wrong key shows; when it is not ours, that is logged and counted, and ours is written again. A restart is no gap
in that: where our key stood is handed over, with which one it was.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from agent import config
from agent.core.clock import Clock
from agent.core.errors import HostError, UpstreamError
from agent.core.text import os_reason
from agent.daemon.unending import unending
from agent.host.files import read_plain, write_atomic
from agent.upstream import GceMetadata, by_gce
from agent.wire.names import GCE_GUEST_ATTRIBUTES

LOOK_SECONDS: Final = 30.0
TICK_SECONDS: Final = 2.0
_MAX_BYTES: Final = 1 << 16
_NOTHING: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_SOMETHING: Final = frozenset({errno.EACCES, errno.EINVAL, errno.ELOOP, errno.ENXIO})
"""What the system says of a place that another has: a file closed to us, no plain file, a link to itself, a socket. Any
other error (no descriptor, no memory, a disk that fails) says nothing of what stands there."""
OVERWRITTEN_HINT: Final = (
    "who sealed to this worker in between may have sealed to somebody else: find out who writes it "
    "(the project's compute.instances permissions, root on this machine), and revoke what was sent"
)


class Announcer:
    """Publishes one public key.

    Args:
        clock: time.
        gce: the real metadata server, where there is one.
        needed: changes whenever there is a reason to look at once.
        stood: see the attribute; as the process before left it.
        noted: called when that has changed.

    Attributes:
        state: each place and its state: ``published`` or what is wrong.
        stood: by place, the digest of that key of ours which stood there when last seen.
        overwritten: how often something else stood in our place.
    """

    def __init__(
        self,
        clock: Clock,
        gce: GceMetadata | None,
        *,
        needed: Callable[[], object],
        stood: Mapping[str, str] = {},
        noted: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._gce = gce
        self._needed = needed
        self._noted = noted
        self._log = structlog.get_logger()
        self.state: dict[str, str] = {}
        self.stood = dict(stood)
        self.overwritten = 0
        self._pause_seconds = 0.0  # for which the server asked not to be asked again

    def only(self, entries: Sequence[config.EphemeralKey]) -> None:
        """Nothing is published anywhere but there: what stands elsewhere from now on is nobody's concern."""
        places = {place for one in entries for place in (one.publish_file, one.publish_guest_attribute)}
        self.stood = {place: digest for place, digest in self.stood.items() if place in places}

    async def run(self, entry: config.EphemeralKey, public: bytes) -> None:
        """Publish, look, and publish again, until cancelled."""
        await unending(partial(self._keep, entry, public), work="publishing a key", sleep=self._clock.sleep)

    async def _keep(self, entry: config.EphemeralKey, public: bytes) -> None:
        seen = self._needed()
        look_at = 0.0
        wait = 1.0
        while True:
            fine, self._pause_seconds = True, 0.0
            if entry.publish_file is not None:
                fine = await self._file(Path(entry.publish_file), public + b"\n")
            if entry.publish_guest_attribute is not None and self._gce is not None:
                fine = await self._attribute(self._gce, entry.publish_guest_attribute, public) and fine
            wait = 1.0 if fine else min(wait * 2, 60.0)
            look_at = self._clock.boottime() + max(LOOK_SECONDS if fine else wait, self._pause_seconds)
            while self._clock.boottime() < look_at and self._needed() == seen:
                await self._clock.sleep(min(TICK_SECONDS, max(look_at - self._clock.boottime(), 0.01)))
            seen = self._needed()

    async def _file(self, path: Path, wanted: bytes) -> bool:
        name = str(path)

        try:
            is_ours, something = await asyncio.to_thread(read_plain, path, _MAX_BYTES) == wanted, True
        except OSError as error:
            if error.errno not in _NOTHING | _SOMETHING:
                return self._failed(name, f"{path}: what stands there cannot be read: {os_reason(error)}")
            is_ours, something = False, error.errno in _SOMETHING
        if is_ours:
            return self._published(name, wanted)
        self._notice(name, wanted, something=something)
        try:
            await asyncio.to_thread(write_atomic, path, wanted, mode=0o644)
        except HostError as error:
            return self._failed(name, error.message)
        except OSError as error:  # no thread is to be had
            return self._failed(name, f"{path}: cannot be written: {os_reason(error)}")
        return self._published(name, wanted)

    async def _attribute(self, gce: GceMetadata, name: str, wanted: bytes) -> bool:
        path = GCE_GUEST_ATTRIBUTES + name
        try:
            found = await gce.request("GET", path, (), max_bytes=_MAX_BYTES)
            if found.status == 200 and found.body.strip() == wanted:
                return self._published(name, wanted)
            if found.status in {200, 404} and by_gce(found):  # else a filter may stand in the server's place
                self._notice(name, wanted, something=found.status == 200)
            if found.status not in {200, 404} and (pause := found.pause_seconds):
                self._pause_seconds = pause
                return self._failed(name, f"expected status 200 or 404, got {found.status}")
            answer = await gce.request("PUT", path, (), wanted)
            self._pause_seconds = answer.pause_seconds
        except UpstreamError as error:
            return self._failed(name, error.message)
        if answer.status not in {200, 204}:
            return self._failed(name, f"expected status 200, got {answer.status} (is enable-guest-attributes set?)")
        return self._published(name, wanted)

    def _notice(self, name: str, wanted: bytes, *, something: bool) -> None:
        """Log that something else, or nothing, stands where this key did. A key from before it is no alarm."""
        if self.stood.get(name) == _digest(wanted):
            self.overwritten += 1
            found = "another text" if something else "nothing"
            self._log.error("key.overwritten", place=name, found=found, hint=OVERWRITTEN_HINT)
            self.state[name] = "overwritten"
            del self.stood[name]  # told once
            self._noted()

    def _published(self, name: str, wanted: bytes) -> bool:
        if self.state.get(name) != "published":
            self._log.info("key.published", place=name)
        self.state[name] = "published"
        if self.stood.get(name) != (digest := _digest(wanted)):
            self.stood[name] = digest
            self._noted()
        return True

    def _failed(self, name: str, reason: str) -> bool:
        # A silent server does not say what stands there: we remember that ours did, to compare with it later.
        if self.state.get(name) not in {"published", reason}:
            self._log.warning("key.not_published", place=name, reason=reason)
            self.state[name] = reason
        return False


def _digest(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()
