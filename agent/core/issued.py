"""What comes of asking for a credential: the one shape that every issuer hands on."""

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
        server_time: the ``Date`` of the answer that brought it, for what its two times say of each other; it
            teaches nothing here (:func:`agent.upstream.dates.witness_of`).
        lifetime: how long it is good for from the moment of asking, by the answer alone: no clock of ours is in it, so
            that one which is hours off does no harm. ``None``: the answer had no ``Date``, and the instant that it
            names is all there is.
    """

    credential: C_co
    server_time: datetime | None = None
    lifetime: timedelta | None = None
