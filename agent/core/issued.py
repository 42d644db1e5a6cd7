"""The result of issuing a credential: one type for every issuer."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Generic, TypeVar

import msgspec

from agent.core.model import AwsCredential, GoogleToken

C_co = TypeVar("C_co", bound=AwsCredential | GoogleToken, covariant=True)


class Issued(msgspec.Struct, Generic[C_co], frozen=True):
    """A new credential.

    Attributes:
        credential: as the upstream gave it.
        server_time: the ``Date`` of the answer that brought it, to compare with the end that it names; our clock is
            not set by it (:func:`agent.upstream.dates.witness_of`).
        lifetime: how long it is good for from the moment of asking, by the answer alone, so that a clock of ours that
            is hours off does no harm. ``None``: the answer had no ``Date``, only the instant at which it ends.
    """

    credential: C_co
    server_time: datetime | None = None
    lifetime: timedelta | None = None
