"""The loop that every source shares: it looks, submits what changed, and backs off when the source is broken."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Final, NoReturn

from agent.core import refresh
from agent.core.clock import Clock
from agent.core.errors import SourceError, UnansweredError, UpstreamError, WireError
from agent.core.model import SealedBundle
from agent.core.source import OnError, OnSuccess, Submit
from agent.upstream import OtherCloud, SwitchedOff, UpstreamResponse

_NO_HURRY: Final = timedelta(days=1)
_UNANSWERED: Final = frozenset({"timeout", "network"})
_NO_ANSWER: Final = frozenset({"status", "protocol", "stranger", "not-here"})
"""What a metadata service's client calls what came in place of an answer, of a session token's too."""
_PASSING: Final = frozenset({401, 407, 408, 425, 429})
"""Refusals that say nothing of what was asked for: the way there, or the moment, was wrong."""


def retry_seconds(attempt: int, rng: random.Random, *, local: bool = False) -> float:
    """How long to wait, in seconds, after the ``attempt``-th failure in a row (from 1): full jitter, at most 60 s.

    ``local``: it is this machine's own service, which no other worker asks: 10 s at most.

    Ten thousand workers lose a web server in the same instant; jitter over the whole interval keeps them from coming
    back in the same instant as well. A source that is down is no hurry: the accepted bundle goes on being served.
    """
    return refresh.retry_seconds(attempt, None if local else _NO_HURRY, denied=False, rng=rng, local=local)


class RetryLater(SourceError):
    """The source asks not to be asked again for so many seconds (``Retry-After``)."""

    def __init__(self, message: str, *, seconds: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.seconds = seconds


class UnansweredYet(RetryLater, UnansweredError):
    """No answer to the question; perhaps one that asks not to be asked again for so many seconds."""


class Changes:
    """Submits each new content once.

    Mutable state, changed only in :meth:`submit`: the digest of what was last submitted. A digest and not the bytes,
    because an opened bundle has no reason to stay in memory a second time.
    """

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._last: bytes | None = None

    async def submit(self, found: SealedBundle) -> None:
        """Submit ``found`` unless it equals the last one submitted."""
        digest = hashlib.sha256(found.data).digest()
        if digest == self._last:
            return
        # Remembered before the submission: should the controller be cancelled inside it, a restart begins with a new
        # object.
        self._last = digest
        await self._submit(found)


@contextlib.contextmanager
def broken_here(*, of_the_machine: bool = False) -> Iterator[None]:
    """Turn what fails on a source's way into ``SourceError`` with the same words, silence into ``UnansweredError``.

    Args:
        of_the_machine: the machine's own metadata service is asked. What comes in its place, a proxy's page or a
            refusal of the session token, says as little as silence of what it holds; but for its own word that it is
            switched off, and that of the other cloud's service, which is here.

    Raises:
        UnansweredYet: nobody said what there is.
        SourceError: anything else.
    """
    try:
        yield
    except UpstreamError as error:
        instead = of_the_machine and error.code in _NO_ANSWER and not isinstance(error, SwitchedOff | OtherCloud)
        if error.code in _UNANSWERED or instead:
            raise UnansweredYet(error.message, seconds=error.pause_seconds, hint=error.hint) from None
        raise _later(error.message, error.pause_seconds, error.hint) from None
    except WireError as error:
        raise SourceError(error.message, hint=error.hint) from None


def unusable(message: str, answer: UpstreamResponse, *, of_the_machine: bool = False, own: bool = True) -> SourceError:
    """The error for an answer that is not of use: one that says when to come again, or another.

    Args:
        message: for a person.
        answer: it.
        of_the_machine: see :func:`broken_here`: an outage, a redirection or a throttle is no answer either.
        own: whether it bears the service's own mark; a refusal by something else, a filter say, is no answer either.
    """
    if of_the_machine and (not own or answer.status in _PASSING or not 400 <= answer.status < 500):
        return UnansweredYet(message, seconds=answer.pause_seconds)
    return _later(message, answer.pause_seconds, None)


def _later(message: str, seconds: float, hint: str | None) -> SourceError:
    return RetryLater(message, seconds=seconds, hint=hint) if seconds else SourceError(message, hint=hint)


async def keep_watching(
    look: Callable[[], Awaitable[SealedBundle | None]],
    pause: Callable[[], float],
    *,
    submit: Submit,
    on_error: OnError,
    on_success: OnSuccess,
    clock: Clock,
    rng: random.Random,
    local: bool = False,
) -> NoReturn:
    """Look, submit what changed, pause, for ever.

    Args:
        look: looks once (or hangs until there is something new to see); ``None`` is "not here".
        pause: the seconds to wait after a look that went well, asked after it.
        submit: where what changed goes.
        on_error: told of each failed look.
        on_success: told of each look that went well.
        clock: sleeps.
        rng: the source of the jitter.
        local: see :func:`retry_seconds`.

    Errors: ``SourceError`` from ``look`` goes to ``on_error`` and is retried with full jitter. Anything else is our own
    mistake and is raised.
    """
    changes = Changes(submit)
    failures = 0
    while True:
        try:
            found = await look()
        except SourceError as error:
            failures += 1
            on_error(error)
            asked = error.seconds if isinstance(error, RetryLater) else 0.0
            await clock.sleep(asked + retry_seconds(failures, rng, local=local))
            continue
        failures = 0
        on_success()
        if found is not None:
            await changes.submit(found)
        seconds = pause()
        if seconds > 0:
            await clock.sleep(seconds)
