"""The snapshot: everything that the part that answers strangers must know, and nothing else (``SNAPSHOT.md``)."""

from __future__ import annotations

from agent.core.errors import SnapshotError
from agent.snapshot.codec import MAX_BYTES, decode, encode
from agent.snapshot.model import ForAudience, ForScopes, Snapshot, Stretch, Time
from agent.snapshot.settings import PASSED_CONNECTIONS, Limits, ServeSettings

__all__ = [
    "MAX_BYTES",
    "PASSED_CONNECTIONS",
    "ForAudience",
    "ForScopes",
    "Limits",
    "ServeSettings",
    "Snapshot",
    "SnapshotError",
    "Stretch",
    "Time",
    "decode",
    "encode",
]
