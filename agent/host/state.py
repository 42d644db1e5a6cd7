"""The state that outlives the process: the memory, and the sealed bundle as it came. Never an opened credential.

The bundle lies in a file named after its digest and is written first; the memory, which names the digest, second, by
one rename. So at every instant the memory points at a bundle that is there, and a crash can only lose the newest
bundle. For a withdrawal the order is reversed: the bundle is removed first.

**Writing a memory needs no space.** Beside it lies a spare file, whose blocks are allocated. A memory is written over
the spare, in place; then the two swap names, by a hard link and two renames in a directory that has these names
already. So a full disk does not make a restart forget a withdrawal. (Where a file system copies on write,
an overwrite may need space after all; a read-only one takes nothing. Then the caller is told.)

One process at a time owns the directory: see :meth:`StateDirectory.claim`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec

from agent.core.errors import HostError
from agent.core.history import Entry
from agent.core.instants import in_utc
from agent.core.model import Cloud, OnExpiry
from agent.core.strictjson import NotThatShapeError, decode
from agent.core.text import os_reason
from agent.core.verdict import Memory
from agent.host import threads
from agent.host.files import MAX_FILLED_BYTES, overwrite, read_plain, refused, sweep, sync_directory, write_atomic

MEMORY_FILE: Final = "memory.json"
HISTORY_FILE: Final = "history.json"
LIVED_FILE: Final = "lived.json"
MAX_BYTES: Final = 1 << 20
MAX_MEMORY_BYTES: Final = 64 << 20
SPARE_FILE: Final = "memory.spare"
_LEAVING: Final = "memory.leaving"
"""A second name of the memory for the instant in which it and the spare swap theirs."""
SPARE_BLOCK: Final = 16_384
_VERSION: Final = 1
"""The part that every version of the agent reads."""
_VERSION_WITH_FLOORS: Final = 2
"""An agent that does not know floors would take forgotten streams for new ones: it must refuse the file."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: a version, so that an older agent after a downgrade refuses rather than misreads it."""

    version: int
    memory: Memory


class _Versioned(msgspec.Struct, frozen=True):
    version: int


class Lived(msgspec.Struct, frozen=True, kw_only=True):
    """When an agent was last at work here (:mod:`agent.daemon.age`).

    Attributes:
        at: by its time.
        ended: whether it ended in order.
        since: the directory may know nothing of what came after that, and nothing newer was brought yet.
    """

    at: Annotated[datetime, msgspec.Meta(tz=True)]
    ended: bool = False
    since: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class StateVersionError(HostError):
    """A later version of the agent wrote the memory, and can read it: leave it where it is."""


class StateDirectory:
    """The directory systemd gives us (``StateDirectory=``), or any other.

    Args:
        directory: it must exist and be ours; files are 0600.

    Attributes:
        refused: why the system refused to read the sealed bundle, when the memory was last read: it may be there.

    Resources: the lock, from :meth:`claim` to the end of the process; a thread while something is written.
    """

    def __init__(self, directory: Path) -> None:
        self.refused: str | None = None
        self._directory = directory
        self._lock: int | None = None
        self._waiting = False  # another process owns it: nothing is written until it is ours
        self._saving = threading.Lock()
        self._there: set[Path] = set()  # what was read or written last: somebody may take it away
        self._held: set[Path] = set()  # the bundles known to be there: removing one needs no list of the directory

    def claim(self) -> bool:
        """Become the one owner of the directory, for the life of this process; false while another process is.

        The lock is the kernel's, on the directory itself: it needs no file, no space and no right to write, and it ends
        with its process, however that ends.

        Raises:
            HostError: this file system knows no such locks, or the directory cannot be opened.
        """
        if self._lock is not None:
            return True
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{self._directory}: cannot be opened: {os_reason(error)}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            self._waiting = True
            return False
        except OSError as error:
            os.close(descriptor)
            raise HostError(f"{self._directory}: cannot be locked: {os_reason(error)}") from None
        self._lock = descriptor
        self._waiting = False
        return True

    def load(self) -> tuple[Memory, bytes | None]:
        """Read what an earlier process wrote.

        Returns:
            The memory (an empty one when there is none) and the sealed bundle it names, if that is there.

        Raises:
            StateVersionError: a later version of the agent wrote it. Treat it as the next error, and leave it in place.
            HostError: there is a memory and it cannot be read or makes no sense. Treat every cloud as decided then: see
                :func:`closed_memory`.
        """
        self.refused = None
        path = self._directory / MEMORY_FILE
        for name in (MEMORY_FILE, SPARE_FILE, HISTORY_FILE, LIVED_FILE, "bundle-*.jose"):
            sweep(self._directory / name)
        with contextlib.suppress(OSError):
            # Look first: on a frozen disk even removing what is not there waits.
            if (leaving := self._directory / _LEAVING).exists():
                leaving.unlink()
        try:
            data = read_plain(path, MAX_MEMORY_BYTES)  # a FIFO in its place would wait for a writer
        except FileNotFoundError:
            self._check_that_there_was_none(path)
            return Memory(), None
        except OSError as error:
            raise HostError(f"{path}: cannot be read: {os_reason(error)}") from None
        _check_version(path, data)
        try:
            memory = msgspec.json.decode(data, type=_Envelope).memory
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HostError(f"{path}: expected what the agent wrote, got something else: {error}") from None
        if not in_utc(memory):
            raise HostError(f"{path}: expected instants in UTC, got others")
        sealed = None
        if memory.active is not None:
            if not _DIGEST.match(memory.active.digest):
                raise HostError(f"{path}: expected the digest of a bundle, got something else")
            bundle = bundle_path(self._directory, memory.active.digest)
            self._held.add(bundle)
            try:
                sealed = read_sealed(bundle)
            except HostError as error:
                self.refused = error.message
        self._there = {path} if sealed is None else {path, bundle}
        return memory, sealed

    def _check_that_there_was_none(self, path: Path) -> None:
        """Raise :class:`HostError` if there was one: "nothing was decided here" lets the machine's identity out."""
        for one in (path, *path.parents):
            if _is_there(one, os.lstat) and not _is_there(one, os.stat):
                raise HostError(f"{path}: expected a file or nothing, got {str(one)!r}, a link that leads nowhere")
        if _is_there(self._directory / SPARE_FILE, os.lstat):
            raise HostError(f"{path}: it is gone, though there was one: {SPARE_FILE} lies beside it")

    async def save(self, memory: Memory, sealed: bytes | None) -> None:
        """Write the memory and the sealed bundle it names; a slow disk holds up nobody but the caller.

        The thread that writes is not waited for when the process ends: a disk that hangs must not hang a restart.

        Raises:
            HostError: they could not be written; what was there before still is.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def tell(error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def work() -> None:
            failed: BaseException | None = None
            try:
                self._save(memory, sealed)
            except BaseException as error:  # noqa: BLE001 - the caller gets it, whatever it is
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(tell, failed)

        try:
            threads.begin(work, "state")
        except OSError as error:
            raise HostError(f"{self._directory}: cannot be written: {os_reason(error)}") from None
        await done

    def _save(self, memory: Memory, sealed: bytes | None) -> None:
        with self._saving:
            if self._waiting and not self.claim():
                raise HostError(f"{self._directory}: another process owns it, and has not ended yet")
            keep = bundle_path(self._directory, memory.active.digest) if memory.active is not None else None
            if keep is None:
                self._remove_bundles(None)  # a withdrawal: removed, whether or not the memory can be written
            elif sealed is not None and not _holds(keep, sealed):
                self._held.add(keep)
                write_atomic(keep, sealed, mode=0o600)
            version = _VERSION_WITH_FLOORS if memory.floors else _VERSION
            self._write_memory(msgspec.json.encode(_Envelope(version=version, memory=memory)))
            self._remove_bundles(keep)
            there = {self._directory / MEMORY_FILE}
            if keep is not None and (sealed is not None or os.path.lexists(keep)):
                there.add(keep)  # else it is a copy that was lost before
            self._there = there

    def lacks(self) -> bool:
        """Whether somebody has taken away what lay here. Blocks."""
        return not all(os.path.lexists(path) for path in self._there)

    async def note(self, history: tuple[Entry, ...]) -> None:
        """Write down what happened lately. Blocks in a thread.

        Raises:
            HostError: it cannot be written.
        """
        if not self._waiting:
            data = msgspec.json.encode(history)
            await _write_aside(self._directory / HISTORY_FILE, data)

    def history(self) -> tuple[Entry, ...]:
        """What happened lately, as an earlier process wrote it down; nothing where that makes no sense. Blocks."""
        try:
            found = decode(read_plain(self._directory / HISTORY_FILE, MAX_BYTES), tuple[Entry, ...])
        except (OSError, NotThatShapeError):
            return ()
        return found if in_utc(found) else ()  # others cannot be put in an order with ours

    async def live(self, lived: Lived) -> None:
        """Write down that the agent is at work, or was. Blocks in a thread.

        Raises:
            HostError: it cannot be written.
        """
        if not self._waiting:
            data = msgspec.json.encode(lived)
            await _write_aside(self._directory / LIVED_FILE, data)

    def lived(self) -> Lived | None:
        """When an earlier process was at work here; ``None``: that is not known. Blocks."""
        try:
            found = decode(read_plain(self._directory / LIVED_FILE, 4096), Lived)
        except (OSError, NotThatShapeError):
            return None
        return found if in_utc(found) else None

    def _write_memory(self, data: bytes) -> None:
        path, spare = self._directory / MEMORY_FILE, self._directory / SPARE_FILE
        leaving = self._directory / _LEAVING
        try:
            whole = overwrite(spare, data, mode=0o600)
        except HostError:
            whole = False
        if whole:
            try:
                with contextlib.suppress(FileNotFoundError):
                    leaving.unlink(missing_ok=True)
                    leaving.hardlink_to(path)
                spare.replace(path)
                with contextlib.suppress(OSError):
                    leaving.replace(spare)
                sync_directory(self._directory)
            except OSError:
                whole = False
        if not whole:
            write_atomic(path, data, mode=0o600)
        self._provide_spare(2 * len(data))

    def _provide_spare(self, length: int) -> None:
        """Have a spare at least that long, in whole blocks, if there is space for it; a failure is ignored."""
        spare = self._directory / SPARE_FILE
        size = -(-length // SPARE_BLOCK) * SPARE_BLOCK
        with contextlib.suppress(OSError):
            if size <= spare.stat().st_size <= MAX_FILLED_BYTES:
                return
        with contextlib.suppress(HostError):
            write_atomic(spare, b" " * size, mode=0o600)  # written, not only reserved: the blocks must be its own

    def _remove_bundles(self, keep: Path | None) -> None:
        """Remove every bundle but ``keep``; a failure does not keep the memory from being written."""
        found = set(self._held)
        with contextlib.suppress(OSError):
            # No descriptor is left, say, or the disk fails: those that we know of are removed all the same.
            found.update(self._directory.glob("bundle-*.jose"))
        for path in found - {keep}:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue  # tried again with the next save
            self._held.discard(path)

    def keep_broken(self) -> None:
        """Give a memory that makes no sense a second name, for a person to look at.

        The first name stays until a good memory replaces it: at no instant is there none, which would read as "nothing
        was ever decided here".
        """
        path = self._directory / MEMORY_FILE
        broken = path.with_suffix(".json.broken")
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                # Nothing can be written over it, and it has no second name; while the spare is there none is not none.
                self._provide_spare(SPARE_BLOCK)
                if (self._directory / SPARE_FILE).exists():
                    path.rename(broken)
                return
            broken.unlink(missing_ok=True)
            broken.hardlink_to(path)


def bundle_path(directory: Path, digest: str) -> Path:
    """Where the sealed bundle of that digest lies."""
    return directory / f"bundle-{digest[:32]}.jose"


def read_sealed(path: Path) -> bytes | None:
    """The sealed bundle at ``path``; ``None``: it is not there, or is no file. Blocks.

    Raises:
        HostError: the system refuses to read it: it may be there, as good as ever.
    """
    try:
        return read_plain(path, MAX_BYTES)
    except OSError as error:
        if not refused(error):
            return None
        raise HostError(f"{path}: cannot be read: {os_reason(error)}") from None


def closed_memory(instance_id: str) -> Memory:
    """The memory to go on with when the real one is unreadable: every cloud counts as decided by a bundle.

    An attacker who can garble the file, or a dying disk, must not give workers the machine's own identity. So nor does
    what the configuration says of a bundle's end: a withdrawal may have been the last word.
    """
    return Memory(instance_id=instance_id, decided=dict.fromkeys(Cloud, OnExpiry.DENY))


async def _write_aside(path: Path, data: bytes) -> None:
    try:
        await asyncio.to_thread(write_atomic, path, data, mode=0o600)
    except OSError as error:  # there is no thread for it
        raise HostError(f"{path}: cannot be written: {os_reason(error)}") from None


def _is_there(path: Path, look: Callable[[Path], object]) -> bool:
    """Whether it is; :class:`HostError` where that cannot be known, which is not the same as that it is not."""
    try:
        look(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise HostError(f"{path}: cannot be looked at: {os_reason(error)}") from None
    return True


def _check_version(path: Path, data: bytes) -> None:
    """Read the version first: what else is in the file depends on it."""
    try:
        version = decode(data, _Versioned).version
    except NotThatShapeError:
        return  # decoding the whole file gives the better error
    if version > _VERSION_WITH_FLOORS:
        raise StateVersionError(
            f"{path}: expected version {_VERSION} or {_VERSION_WITH_FLOORS}, got {version}: a later agent wrote it",
            hint="install that version again, or push a new bundle",
        )
    if version < _VERSION:
        raise HostError(f"{path}: expected version {_VERSION} or {_VERSION_WITH_FLOORS}, got {version}")


def _holds(path: Path, data: bytes) -> bool:
    try:
        return read_plain(path, len(data) + 1) == data
    except OSError:
        return False
