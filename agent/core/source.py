"""The interface between the controller and the sources: the shape of a source, and of the answer it may send back.

It is in core because the controller and the sources are neighbours that never import each other. Shapes only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Final, Literal, NoReturn, Protocol, runtime_checkable

import msgspec

from agent.core.errors import SourceError
from agent.core.model import Cloud, SealedBundle

UNCONFIRMED: Final = (
    "not confirmed: it is decided, but whoever answers workers did not say in time that it serves so; send it again to "
    "hear whether it does"
)
"""Of a verdict that is not :attr:`Ack.confirmed`, for a person."""

COURIER: Final = "courier"
"""The origin of bundles handed in on the couriers' socket (:mod:`agent.serve.courier`)."""

PUSH: Final = "push"
"""The origin of bundles pushed to the control socket (:mod:`agent.sources.push`)."""

STATE: Final = "state"
"""The origin of our own copy of the bundle in force, read back at the start."""

OURS: Final = frozenset({COURIER, PUSH, STATE})
"""No source of the configuration may be named so: what it brings would be taken for that, or nobody would watch it."""

ELSEWHERE: Final = "'s answers there"
"""So ends what is said of a metadata service where the other cloud's answers (:class:`agent.upstream.OtherCloud`)."""

OnError = Callable[[SourceError], None]
"""Where a source says that it is here but broken: once per failed attempt; the receiver counts them, and logs few."""

OnSuccess = Callable[[], None]
"""Where a source says that it was reached and works, whether or not it holds a bundle."""


def is_elsewhere(name: str, state: str, sources: Iterable[str]) -> bool:
    """Whether a source is of the cloud that this machine is not in, and no fault: another is beside it.

    Args:
        name: of the source.
        state: what it says of itself.
        sources: the names of all. One image may be for both clouds.
    """
    return state.endswith(ELSEWHERE) and bool({*sources} - {"", name, *OURS})


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one submitted bundle, to be sent back where the channel can. It holds no secret.

    Attributes:
        origin: the name of the source that submitted it.
        part: which of that source's places; see :attr:`agent.core.model.SealedBundle.part`.
        outcome: ``accepted``; ``same`` if it was accepted already; ``refused``.
        at: when it was evaluated, aware UTC.
        code: the stable word of a refusal (``agent/bundle/FORMAT.md`` lists them); ``None`` unless refused.
        reason: a sentence for a person, on a refusal, or on a withdrawal after which another stream is in force.
        durable: whether a restart will remember it. False: it is in force, and the state directory does not hold it
            yet; the same bundle submitted again is answered ``same``, with the ``durable`` of that moment.
        seq: the sequence number; ``None`` when the bundle could not be opened.
        confirmed: whether each process that answers workers does what it says. False: one may yet answer as before. The
            same bundle submitted again is answered ``same``, with what is so at that moment.
    """

    origin: str
    outcome: Literal["accepted", "same", "refused"]
    at: datetime
    durable: bool = True
    code: str | None = None
    reason: str | None = None
    issuer: str | None = None
    subject: str | None = None
    bundle_id: str | None = None
    seq: int | None = None
    confirmed: bool = True
    part: str = ""


Submit = Callable[[SealedBundle], Awaitable[Ack | None]]
"""Where a source hands its bytes. It returns the verdict when the bundle has been evaluated; it raises nothing."""


class Position(msgspec.Struct, frozen=True):
    """How far a source has read: told to the next process, so that a restart reads nothing twice.

    Attributes:
        place: a digest of where it reads; the place itself may be a credential.
        tag: the server's tag (ETag) of what was read last.
        content: the SHA-256 of the bundle that this was, in hex.
    """

    place: str
    tag: str
    content: str


@runtime_checkable
class Resumable(Protocol):
    """A source that can go on where the previous process stopped."""

    @property
    def name(self) -> str:
        """See :class:`Source`."""

    @property
    def position(self) -> Position | None:
        """How far it has read; ``None``: it found nothing that can be recognised again."""

    def go_on(self, position: Position) -> None:
        """Begin from there. Call it only if what was read there is in force: it is not submitted again."""


@runtime_checkable
class OfTheMachine(Protocol):
    """A source on the machine itself: at its metadata service, which gives the machine's own identity too, or a file.

    Whoever may serve that identity waits for the source's first answer, whenever it comes. While the service has not
    answered there is none to miss; and a file that does not answer may be there.

    Attributes:
        awaited_in: the clouds in which that is waited for.
    """

    awaited_in: tuple[Cloud, ...]


class Source(Protocol):
    """A way in. It moves bytes; it neither opens nor evaluates them."""

    @property
    def name(self) -> str:
        """Its name in logs, metrics and acknowledgements; :attr:`SealedBundle.origin` of all it submits."""

    async def watch(self, submit: Submit, *, on_error: OnError, on_success: OnSuccess) -> NoReturn:
        """Submit what is there now, then every change, until cancelled.

        Bytes equal to those last submitted are not submitted again. Absence is not a change: nothing is submitted then.

        Errors: never raises for a broken source. It reports to ``on_error``, waits with full jitter and tries again;
        the first success after that is reported to ``on_success``.

        Resources: one connection or descriptor at a time, closed between looks; everything read is capped.
        """

    async def fetch(self) -> SealedBundle | None:
        """Look once.

        Returns:
            The bundle, or ``None`` when there is none here.

        Raises:
            SourceError: it is here but broken: unreachable, unreadable, too big, or plainly not a bundle.
        """

    async def acknowledge(self, ack: Ack) -> None:
        """Send a verdict back. Best effort: where there is no way back, or it fails, nothing happens."""
