"""Which tokens do workers send? The container endpoint's bearer token, and the key of the EC2 session tokens."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from agent.core.errors import HostError
from agent.core.looks import Look
from agent.core.secret import Secret
from agent.core.text import os_reason
from agent.daemon import handover
from agent.daemon.files import look_at
from agent.daemon.publish import Publisher
from agent.host.files import passes, read_again, write_atomic
from agent.host.patience import Patience, StalledError

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{32,128}\Z")
SESSION_KEY_BYTES: Final = 32


class ContainerTokens:
    """The bearer tokens that are accepted: a program that read one before a rotation goes on working.

    Args:
        path: the file, which holds the present one. ``None``: it does not answer.
        handed: those of the previous process, the present one first; two of them are kept.

    Attributes:
        good: the present one first, and the one before.
        unread: whether the file may hold another one, which the system did not let us read.
    """

    def __init__(self, path: Path | None, handed: Sequence[Secret] = ()) -> None:
        written: Secret | None = None
        self.unread = True
        if path is not None:
            with contextlib.suppress(OSError):
                written, self.unread = written_token(path, again_seconds=(0.0,)), False
        known = [token for token in handed if _TOKEN.match(token.reveal())]
        if written is not None:
            known = [written, *(token for token in known if token != written)]
        self.good: tuple[Secret, ...] = tuple(known[:2]) or (Secret(secrets.token_urlsafe(32)),)

    @property
    def present(self) -> Secret:
        """The one that new programs get."""
        return self.good[0]

    def rotate(self, written: Secret | None, *, back: bool) -> bool:
        """Take the token that an operator has put into the file; returns whether it is another one than the present.

        Args:
            written: what is in the file.
            back: whether the one before the present counts too.
        """
        if written is None or written == self.present or (written in self.good and not back):
            return False
        self.good = (written, self.present)
        return True


class Rotation:
    """Takes the token that an operator has put into the file. Programs may go on using the one before.

    Args:
        tokens: those that are accepted.
        publisher: writes the file.
        patience: how long the file is waited for.
        changed: tells that another one is the present one.

    Attributes:
        seen: how the file looked before it was last read; nothing, where it did not answer.
    """

    def __init__(
        self, tokens: ContainerTokens, publisher: Publisher, patience: Patience, *, changed: Callable[[], None]
    ) -> None:
        self._tokens = tokens
        self._publisher = publisher
        self._patience = patience
        self._changed = changed
        self._log = structlog.get_logger()
        self.seen: tuple[Look | None, ...] = ()
        publisher.token_unread = tokens.unread

    @property
    def unread(self) -> bool:
        """Whether what is in the file is not known: it is not written over, and is read again at the next look."""
        return self._publisher.token_unread

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self._publisher.settings.token_file)

    async def look(self) -> None:
        """Look at the file."""
        path, written, before = self.path, None, self.unread
        self.seen = ()
        with contextlib.suppress(StalledError):
            look, written, self._publisher.token_unread = await self._patience.ask(path, partial(_looked, path))
            self.seen = (look,)
        # The one before may be there because ours is not written yet. Where it is, somebody has put the other one back.
        if self._tokens.rotate(written, back=self._publisher.token_written):
            self._publisher.token = self._tokens.present
            self._publisher.changed()
            self._changed()
            self._log.info("token.rotated")
        elif before and not self.unread:
            self._publisher.changed()


def _looked(path: Path) -> tuple[Look | None, Secret | None, bool]:
    """How it looks, and then what is in it: what is put there in between looks otherwise at the next look.

    And whether the system refused to read it.
    """
    look = look_at(path)
    try:
        return look, written_token(path), False
    except OSError:
        return look, None, True


def written_token(path: Path, *, again_seconds: Iterable[float] = ()) -> Secret | None:
    """The bearer token in ``path``, which an earlier process or an operator has put there.

    Args:
        path: the file.
        again_seconds: see :func:`agent.host.files.read_again`.

    Raises:
        OSError: the system refuses to read it just then, which says nothing of what is there.
    """
    try:
        text = read_again(path, 4096, again_seconds).decode().strip()
    except UnicodeDecodeError:
        return None
    except OSError as error:
        if passes(error):
            raise
        return None
    return Secret(text) if _TOKEN.match(text) else None


def session_token_key(directory: Path, handed: Secret | None) -> bytes:
    """The key of the EC2 session tokens, kept over restarts: some clients never drop a token that turned invalid.

    Args:
        directory: the state directory.
        handed: the key of the previous process; if given, the disk is not asked: it may be away.
    """
    before = handover.decoded(handed)
    if before is not None and len(before) == SESSION_KEY_BYTES:
        return before
    path, refused = directory / "imds.key", ""
    try:
        data = read_again(path, 64)
        if len(data) == SESSION_KEY_BYTES:
            return data
    except OSError as error:
        refused = os_reason(error) if passes(error) else ""
    data = secrets.token_bytes(SESSION_KEY_BYTES)
    if refused:
        structlog.get_logger().error("imds_key.not_read", reason=f"{path}: cannot be read: {refused}")
        return data  # the key of before may be there as it was: the next start has it again
    try:
        write_atomic(path, data, mode=0o600)
    except HostError as error:
        # A full disk costs clients their tokens at the next restart, not a worker its identity now.
        structlog.get_logger().error("imds_key.not_written", reason=error.message)
    return data
