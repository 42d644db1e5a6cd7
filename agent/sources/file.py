"""A bundle in a file: the common denominator of scp, cloud-init, configuration management and image tests.

The file is *looked at* four times in three seconds. A look is one ``stat`` of one path. Inotify says nothing on NFS,
virtiofs and FUSE when another host writes, and one rule that holds on every file system was worth more than the last
half second. Where nobody but this kernel can change the file, that says when to look (:mod:`agent.host.quiet`).

The looks run in a thread, because a ``stat`` on a dead network mount hangs, and the loop that serves credentials must
not. As long as the file looks the same the loop is not woken.

Permissions are not checked. Somebody who can write the file can withhold a bundle, or repeat one within the rules of
``seq``, but can neither read nor forge one: the seal holds wherever the file lies.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from agent.core.clock import Clock
from agent.core.errors import SourceError, UnansweredError, UnreadableError, WireError
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.core.looks import Look, last_change, look_of
from agent.core.model import Cloud, SealedBundle
from agent.core.source import Ack, OnError, OnSuccess, Submit
from agent.core.text import os_reason
from agent.host.patience import Patience, StalledError
from agent.host.quiet import Quiet
from agent.sources.watching import Changes
from agent.wire.wrapped import find

LOOK_SECONDS: Final = 0.75
"""The time between looks. With :data:`SETTLE_SECONDS`, a file renamed into place is submitted within 0.9 s."""

SETTLE_SECONDS: Final = 0.15
"""A file that changed is read once it has looked the same for this long: one being written in place is left alone. It
has, where the file system's marks are older than that: a start does not wait for what was there before it."""

SETTLE_LOOKS: Final = 20
"""A file that never settles is read after so many looks (3 s) all the same, and refused as it then is."""

RETRY_LOOKS: Final = 7
"""A broken file is read again after so many looks (5 s) though it looks the same: mending may not change its look."""

# The file or a directory on the way is not there, or the directory is a file for now.
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
# Nobody has said what the file holds: its server is away, its disk fails, or we can open nothing just now.
_NO_ANSWER: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNRESET, errno.ECONNREFUSED}
    | {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)


class FileSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bundle lies.

    Attributes:
        path: the file. It and its directory need not exist yet; symbolic links are followed.
        name: for logs and acknowledgements.
        max_bytes: a longer file is refused unread.
    """

    path: Path
    name: str = "file"
    max_bytes: int = MAX_BUNDLE_BYTES


class FileSource:
    """Watches one path.

    Args:
        settings: the path and its limits.
        clock: sleeps between looks, and tells how old the file is.
        quiet: looks in its stead while nothing changes.
    """

    awaited_in = tuple(Cloud)

    def __init__(self, settings: FileSettings, *, clock: Clock, quiet: Quiet | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self._quiet = quiet
        self._patience = Patience()

    @property
    def name(self) -> str:
        """See :class:`agent.core.source.Source`."""
        return self._settings.name

    @property
    def path(self) -> Path:
        """The file, for a person who is told what is wrong with it."""
        return self._settings.path

    async def watch(self, submit: Submit, *, on_error: OnError, on_success: OnSuccess) -> NoReturn:
        """See :class:`agent.core.source.Source`. No backoff: a mended file is seen as fast as a new one."""
        changes = Changes(submit)
        seen: Look | str | None = None
        read_after = 0  # looks until the file is read though it looks the same; 0: read it now, negative: no need
        while True:
            look = await self._look()
            if look != seen or read_after == 0:
                if isinstance(look, tuple) and look != seen:
                    look = await self._settle(look)
                seen = look
                try:
                    found = await self.fetch()
                except SourceError as error:
                    read_after = RETRY_LOOKS
                    on_error(error)
                else:
                    read_after = -1
                    on_success()
                    if found is not None:
                        await changes.submit(found)
            elif read_after > 0:
                read_after -= 1
            if self._quiet is not None and read_after < 0 and not isinstance(seen, str):
                path = self._settings.path
                await self._quiet.pause(partial(_differs, path, seen), (path,))
            else:
                await self._clock.sleep(LOOK_SECONDS)

    async def fetch(self) -> SealedBundle | None:
        """See :class:`agent.core.source.Source`."""
        path = self._settings.path
        try:
            data = await self._patience.ask(path, partial(_bundle, path, self._settings.max_bytes))
        except StalledError as error:
            raise UnansweredError(error.message, hint=error.hint) from None
        return None if data is None else SealedBundle(data=data, origin=self.name)

    async def acknowledge(self, ack: Ack) -> None:
        """A file has no way back."""

    async def _look(self) -> Look | str | None:
        path = self._settings.path
        try:
            return await self._patience.ask(path, partial(_look, path))
        except StalledError:
            return "silent"

    async def _settle(self, look: Look) -> Look | str | None:
        """Wait until the file has stopped changing; return how it looks then."""
        # By a wrong clock, ours or another machine's, one that is being written may look old: it is read, refused, and
        # read again as soon as it looks otherwise.
        if self._clock.now().timestamp() - last_change(look) >= SETTLE_SECONDS:
            return look
        for _ in range(SETTLE_LOOKS):
            await self._clock.sleep(SETTLE_SECONDS)
            again = await self._look()
            if again == look or not isinstance(again, tuple):
                return again
            look = again
        return look


def _look(path: Path) -> Look | str | None:
    """How the file looks from outside: a tuple; ``None`` when it is not there; a word when it cannot be told."""
    try:
        return look_of(os.stat(path))  # noqa: PTH116 - half the cost of Path.stat, and it runs as long as the machine
    except OSError as error:
        return None if error.errno in _ABSENT else f"errno {error.errno}"


def _differs(path: Path, seen: Look | None) -> bool:
    return _look(path) != seen


def _bundle(path: Path, max_bytes: int) -> bytes | None:
    """The bundle in a file, taken out of its wrappings; the decoder refuses anything that is no bundle."""
    data = _read(path, max_bytes)
    try:
        return data if data is None else find(data) or data
    except UnreadableError as error:
        raise UnreadableError(f"{path}: {error.message}", hint=error.hint) from None
    except WireError:
        return data


def _read(path: Path, max_bytes: int) -> bytes | None:
    """Read a whole regular file of at most ``max_bytes``; ``None`` when there is none.

    Raises:
        UnansweredError: whether it is there, and what it holds, cannot be told.
        SourceError: it is there and cannot be read, is no regular file, is empty or too long.
    """
    try:
        # Non-blocking, so that a FIFO laid in the way does not hold the thread until someone writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise SourceError(f"{path}: expected a regular file, got {_kind(mode)}")
            # One byte more than allowed, whatever size was told: the file may be growing.
            data = bytearray()
            while len(data) <= max_bytes and (chunk := os.read(descriptor, max_bytes + 1 - len(data))):
                data += chunk
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        kind = UnansweredError if error.errno in _NO_ANSWER else SourceError
        raise kind(f"{path}: cannot be read: {os_reason(error)}", hint=_hint(error, path)) from error
    if len(data) > max_bytes:
        raise SourceError(f"{path}: expected at most {max_bytes} bytes, got more")
    if not data:
        raise SourceError(f"{path}: expected a bundle, got an empty file")
    return bytes(data)


def _kind(mode: int) -> str:
    for test, kind in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return kind
    return "something else"


def _hint(error: OSError, path: Path) -> str | None:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"the agent reads it as uid {os.geteuid()}: let that user read {path} and enter the directories above it"
    return None
