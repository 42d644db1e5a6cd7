"""What a probe did not say."""

from __future__ import annotations

import msgspec


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """A probe did not say.

    Attributes:
        why: in a few words.
        hung: it did not end in its time.
    """

    why: str
    hung: bool = False
