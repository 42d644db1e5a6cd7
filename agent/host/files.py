"""Writing files so that a reader sees the old or the new one, whole, and nobody else sees either."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from agent.core.errors import HostError
from agent.core.text import os_reason

MAX_LINES_BYTES: Final = 16 << 20
"""Of a file whose lines :func:`take_away` sorts: none of ours is longer."""
MAX_FILLED_BYTES: Final = 128 << 20
"""Of a file that :func:`overwrite` fills up. Somebody may have made it as long as the disk."""
_NO_DIRECTORIES: Final = {
    errno.EACCES, errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM,
}  # fmt: skip
"""What a file system says that syncs none, or one that may be written to and not be read."""
_PASSES: Final = frozenset(
    {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
)
_PIECE_BYTES: Final = 1 << 16
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{12}\Z")


def write_atomic(path: Path, data: bytes, *, mode: int, gid: int | None = None) -> None:
    """Replace ``path`` with ``data`` by a rename in its directory.

    The new file has its mode and group before it has content, is on the disk before it has its name, and follows no
    link: a rename replaces a symbolic link rather than what it points at.

    Args:
        path: the file; its directory must exist.
        data: the whole content.
        mode: permission bits.
        gid: the group to give it to; ``None``: leave it.

    Raises:
        HostError: it could not be written, and the former file is still there; or its name may not survive a power cut.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if gid is not None:
                os.fchown(descriptor, -1, gid)
            os.fchmod(descriptor, mode)
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C, too: what is left beside the file may be a private key
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError | MemoryError):
            raise
        reason = os_reason(error) if isinstance(error, OSError) else "out of memory"
        raise HostError(f"{path}: cannot be written: {reason}") from None
    sync_directory(path.parent)


def overwrite(path: Path, data: bytes, *, mode: int) -> bool:
    """Put ``data`` into the file that is there, without a new block: for a disk that has none.

    A longer file is filled up with line feeds, so that no block is given back either. A reader at that moment may see
    a part of each; for a file that somebody reads, prefer :func:`write_atomic`.

    Returns:
        Whether it was done; false when there is no such file, or it is too short, longer than
        :data:`MAX_FILLED_BYTES`, or no plain file of ours alone.

    Raises:
        HostError: the system refused.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {os_reason(error)}") from None
    try:
        there = os.fstat(descriptor)
        if not stat.S_ISREG(there.st_mode) or there.st_nlink != 1:
            return False
        if not len(data) <= there.st_size <= MAX_FILLED_BYTES:
            return False
        os.fchmod(descriptor, mode)
        whole = data + b"\n" * (there.st_size - len(data))
        done = 0
        while done < len(whole):
            done += os.pwrite(descriptor, whole[done:], done)
        os.fsync(descriptor)
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {os_reason(error)}") from None
    finally:
        os.close(descriptor)
    return True


def take_away(path: Path, wanted: bytes, *, mode: int) -> None:
    """Remove every line of ``path`` that is not in ``wanted``, though there is no space to write the whole.

    A withdrawn bundle must go at once. If ``wanted`` fits, it is written over the file; else only the lines that stay
    are; a file that cannot be written is removed. None of it needs a new block. Where the system refuses even that,
    the caller reports the error that it already has.
    """
    with contextlib.suppress(OSError):
        old = read_plain(path, MAX_LINES_BYTES)
        lines = set(wanted.splitlines())
        stay = [line for line in old.splitlines() if line in lines or not line]
        if len(stay) == len(old.splitlines()):
            return
        for content in (wanted, b"".join(line + b"\n" for line in stay)):
            with contextlib.suppress(HostError):
                if overwrite(path, content, mode=mode):
                    return
        path.unlink()


def sync_directory(path: Path) -> None:
    """Have the names in ``path`` survive a power cut; where no directory can be synced, a rename still holds.

    Raises:
        HostError: they may not survive it: the disk failed, or there was no descriptor.
    """
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno not in _NO_DIRECTORIES:
            raise HostError(f"{path}: cannot be synced: {os_reason(error)}") from None


@contextlib.contextmanager
def opened_plain(path: Path) -> Iterator[BinaryIO]:
    """A plain file, to be read. Anything else at that path is an error: to open a FIFO would wait for a writer.

    Raises:
        OSError: it cannot be opened, or is no plain file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_plain(path: Path, max_bytes: int) -> bytes:
    """The beginning of a plain file; see :func:`opened_plain`.

    Raises:
        OSError: it cannot be read, or is no plain file.
    """
    with opened_plain(path) as file:
        return read_at_most(file, max_bytes)


def read_at_most(file: BinaryIO, max_bytes: int) -> bytes:
    """The beginning of a file.

    In pieces: ``file.read(max_bytes)`` has memory for that many, however few there are, and a machine with strict
    overcommit may not have it.

    Raises:
        OSError: it cannot be read.
    """
    data = bytearray()
    while piece := file.read(min(_PIECE_BYTES, max_bytes - len(data))):
        data += piece
    return bytes(data)


def read_again(path: Path, max_bytes: int, again_seconds: Iterable[float] = (0.0,)) -> bytes:
    """As :func:`read_plain`; what the system refuses to read just then is read again, after each of those seconds.

    Blocks meanwhile. The default is for a disk that errs for once.

    Raises:
        OSError: it cannot be read, is no plain file, or is refused at last, too: see :func:`passes`.
    """
    for seconds in again_seconds:
        try:
            return read_plain(path, max_bytes)
        except OSError as error:
            if not passes(error):
                raise
        time.sleep(seconds)
    return read_plain(path, max_bytes)


def passes(error: BaseException | None) -> bool:
    """Whether the system refused, which says nothing of what is there: no descriptor just then, a disk that errs."""
    return isinstance(error, OSError) and error.errno in _PASSES


def refused(error: BaseException | None) -> bool:
    """Whether what is there may be as good as ever: see :func:`passes`; or a person has to let us read it first."""
    return passes(error) or isinstance(error, PermissionError)


def is_directory(path: Path) -> bool:
    """Whether it is one, as far as we can know: where the disk fails or a parent is closed to us, it is none."""
    try:
        return path.is_dir()
    except OSError:  # Path says False of what is not there, and raises all else
        return False


def sweep(path: Path) -> None:
    """Remove what a process that was killed in the middle of :func:`write_atomic` left beside ``path``.

    It may hold what ``path`` was about to hold, under a name that nothing will ever replace or purge. Call it when no
    other writer of ``path`` is at work: once, at the start. The last part of ``path`` may be a glob pattern.
    """
    with contextlib.suppress(OSError):
        for left in path.parent.glob(f".{path.name}.*"):
            if _TEMPORARY.match(left.name):
                with contextlib.suppress(OSError):
                    left.unlink()
