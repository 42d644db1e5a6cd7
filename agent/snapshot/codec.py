"""A snapshot as bytes: MessagePack, one spelling for each, no more than :data:`MAX_BYTES`.

One spelling: the decoded value is encoded again, and must give the same bytes. This refuses everything that two readers
might read differently (a member twice, one that is not known, a number in another width) without a rule for each.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import msgspec

from agent.core.errors import SnapshotError
from agent.core.instants import in_utc
from agent.core.secret import Secret
from agent.snapshot.model import FORMAT, Snapshot, Stretch

MAX_BYTES: Final = 16 << 20
"""More than a full table of identity tokens takes, each for the longest audience that a request can name."""


def encode(snapshot: Snapshot) -> bytes:
    """The bytes of a snapshot.

    Raises:
        SnapshotError: it is larger than any reader takes.
    """
    data = _ENCODER.encode(snapshot)
    if len(data) > MAX_BYTES:
        raise SnapshotError(f"expected a snapshot of at most {MAX_BYTES} bytes, got {len(data)}")
    return data


def decode(data: bytes) -> Snapshot:
    """The snapshot of those bytes.

    Raises:
        SnapshotError: they are not what :func:`encode` makes of any snapshot of this format.
    """
    if len(data) > MAX_BYTES:
        raise SnapshotError(f"expected a snapshot of at most {MAX_BYTES} bytes, got {len(data)}")
    try:
        snapshot: Snapshot = _DECODER.decode(data)
        again = _ENCODER.encode(snapshot)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, OverflowError, TypeError):
        raise SnapshotError("expected a snapshot, got something else") from None
    if snapshot.format != FORMAT:
        raise SnapshotError(f"expected a snapshot of format {FORMAT}, got {snapshot.format}")
    if again != data:
        raise SnapshotError("expected the one spelling of a snapshot, got another")
    if not in_utc(snapshot) or not _in_order(snapshot.aws) or not _in_order(snapshot.gcp):
        raise SnapshotError("expected stretches in the order of their ends in utc, the last without an end")
    return snapshot


def _in_order(stretches: tuple[Stretch, ...]) -> bool:
    *ends, last = (stretch.until for stretch in stretches)
    if last is not None or None in ends:
        return False
    return all(a < b for a, b in pairwise(end for end in ends if end is not None))


def _reveal(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"cannot be said in a snapshot: {type(value).__name__}")


def _hide(kind: type, value: Any) -> Any:
    return kind(value)


_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_reveal)
_DECODER: Final = msgspec.msgpack.Decoder(Snapshot, dec_hook=_hide)
