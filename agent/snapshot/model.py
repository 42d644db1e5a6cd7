"""A snapshot as a value. ``SNAPSHOT.md`` says what each member means.

Frozen, and replaced as a whole: a reader sees one version of everything, never half of two.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

import msgspec

from agent.core.model import GoogleToken, IdToken
from agent.core.secret import Secret
from agent.core.view import Answer, Facts
from agent.snapshot.settings import ServeSettings

FORMAT: Final = 1
"""Another number is another format, and is refused."""

MOST_STRETCHES: Final = 256
MOST_NAMES: Final = 64
MOST_RANGES: Final = 4096
MOST_TOKENS: Final = 1024
"""As many as are kept of identity tokens: one more than a snapshot takes would close everything for everybody."""


class Stretch(msgspec.Struct, frozen=True):
    """The answers for one cloud for as long as nothing new arrives.

    Attributes:
        answer: what is answered.
        until: its end, exclusive; ``None``: it has none.
        scopes: of Google alone: what the identity was given, where tokens for fewer scopes can be minted from it.
    """

    answer: Answer
    until: datetime | None = None
    scopes: tuple[str, ...] = ()


class ForAudience(msgspec.Struct, frozen=True):
    """An identity token that was minted, and until when it is handed out."""

    token: IdToken
    until: datetime


class ForScopes(msgspec.Struct, frozen=True):
    """An access token for fewer scopes that was minted, its scopes, and until when it is handed out."""

    scopes: tuple[str, ...]
    token: GoogleToken
    until: datetime


class Time(msgspec.Struct, frozen=True):
    """How a reader, which has no witness of the time, knows UTC: CLOCK_BOOTTIME and these.

    Attributes:
        lost: seconds that CLOCK_BOOTTIME has missed (a hypervisor's pause). Session tokens count on their sum.
        offset: seconds from that sum to UTC as POSIX counts it.
    """

    lost: Annotated[float, msgspec.Meta(ge=0, le=1e11)] = 0.0
    offset: Annotated[float, msgspec.Meta(ge=-1e11, le=1e11)] = 0.0


Stretches = Annotated[tuple[Stretch, ...], msgspec.Meta(min_length=1, max_length=MOST_STRETCHES)]
Names = Annotated[tuple[str, ...], msgspec.Meta(max_length=MOST_NAMES)]
Uid = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
Ranges = Annotated[tuple[tuple[Uid, Uid, Uid], ...], msgspec.Meta(max_length=MOST_RANGES)]
Secrets = Annotated[tuple[Secret, ...], msgspec.Meta(max_length=8)]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """See the module.

    Attributes:
        format: :data:`FORMAT`.
        version: rises with each that differs from the one before.
        settings: what does not change while the process that answers runs.
        time: what time it is. In the snapshot, so that nobody sees a new time beside old ends.
        aws, gcp: what is answered now, and what will be if nothing new arrives; the last has no end.
        aws_names, gcp_names: every name under which an identity was listed, the present one included.
        facts: region, zone, project and the like.
        mints_id_tokens: whether an identity token can be minted at all.
        id_tokens: those that were.
        scoped: access tokens for fewer scopes that were minted.
        container_tokens: the bearer tokens that are good now, several while they rotate.
        container_ids: what stands for a token in ``/v2/credentials/ID``.
        subordinate: ranges of uids that are one user's (subuid(5)): first, last, and the uid that stands for the user.
        expects_bundle: whether bundles are taken here.
        refused: why the last bundle was refused, for a person; ``None`` when the last one was not.
    """

    format: int = FORMAT
    version: int = 0
    settings: ServeSettings
    time: Time = Time()
    aws: Stretches
    gcp: Stretches
    aws_names: Names = ()
    gcp_names: Names = ()
    facts: Facts = Facts()
    mints_id_tokens: bool = False
    id_tokens: Annotated[tuple[ForAudience, ...], msgspec.Meta(max_length=MOST_TOKENS)] = ()
    scoped: Annotated[tuple[ForScopes, ...], msgspec.Meta(max_length=MOST_TOKENS)] = ()
    container_tokens: Secrets = ()
    container_ids: Secrets = ()
    subordinate: Ranges = ()
    expects_bundle: bool = True
    refused: str | None = None

    def same_as(self, other: Snapshot | None) -> bool:
        """Whether it says the same, under another version."""
        return other is not None and msgspec.structs.replace(self, version=other.version) == other
