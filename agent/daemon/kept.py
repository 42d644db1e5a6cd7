"""Credentials kept over a restart, in memory that systemd holds for us: no file system, no name.

With them a process that was killed under load goes on where it stopped: the same credential, no call to any cloud.
Without them (no systemd, or a stop rather than a restart) everything is minted anew.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

import msgspec

from agent.core.model import AwsCredential, GoogleToken
from agent.core.secret import Secret
from agent.core.store import Store
from agent.core.verdict import Key

NAME = "credentials"


class _Kept(msgspec.Struct, frozen=True):
    key: Key
    digest: str
    aws: AwsCredential | None = None
    google: GoogleToken | None = None


def encode(store: Store) -> bytes:
    """Everything the store holds, in the clear: for the sealed memory that only this unit gets back."""
    kept = [
        _Kept(
            key,
            digest,
            credential if isinstance(credential, AwsCredential) else None,
            credential if isinstance(credential, GoogleToken) else None,
        )
        for key, digest, credential in store.held()
    ]
    return msgspec.json.encode(kept, enc_hook=_reveal)


def restore(store: Store, data: bytes, now: datetime) -> int:
    """Give the store back what still belongs to it; return how many. What makes no sense is left out."""
    count = 0
    with contextlib.suppress(msgspec.DecodeError):
        for kept in msgspec.json.decode(data, type=list[_Kept], dec_hook=_hide):
            credential = kept.aws or kept.google
            if credential is not None and store.restore(kept.key, kept.digest, credential, now):
                count += 1
    return count


def _reveal(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError


def _hide(kind: type, value: Any) -> Any:
    return kind(value)
