"""What opens bundles for the intake, and what comes of a failure that is no verdict.

A worker that takes all memory, threads or descriptors must not end the wait for a bundle, or have the machine's
identity served: that there was nothing left just then passes, and says nothing of what was being looked at.
"""

from __future__ import annotations

import errno
from datetime import datetime
from typing import Final, Protocol

import structlog

from agent.core.errors import BundleError, KeyUnavailableError
from agent.core.model import Bundle, SealedBundle

_WANTS: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


def is_for_want(error: BaseException) -> bool:
    """Whether there was no memory, thread or descriptor; anything else is a fault of ours, and one each time."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_for_want, error.exceptions))
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _WANTS)


class Opener(Protocol):
    """Opens and verifies sealed bytes (:class:`agent.keys.Keyring` with the trust it was given)."""

    async def __call__(self, sealed: SealedBundle, now: datetime, accepted_digest: str | None) -> Bundle:
        """Raise a :class:`BundleError`, nothing else but for a fault of ours or for want of means."""


class Contained:
    """An :class:`Opener` whose failures lose nothing that was accepted, nor what may be the first bundle.

    Args:
        opener: may raise anything.
    """

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._log = structlog.get_logger()

    async def __call__(self, sealed: SealedBundle, now: datetime, accepted_digest: str | None) -> Bundle:
        """See :class:`Opener`.

        What was accepted before is tried again whatever keeps it from being opened: a fault of ours loses nobody's
        identity. A new bundle only for want of means: who seals one that we cannot read must not keep a worker waiting.
        """
        try:
            return await self._opener(sealed, now, accepted_digest)
        except BundleError:
            raise
        except Exception as error:
            if accepted_digest is None and not is_for_want(error):
                raise
            kind = type(error).__name__
            self._log.error("work.crashed", work="opening a bundle", error=kind, exc_info=True)
            raise KeyUnavailableError(f"it cannot be opened just now: {kind}") from None
