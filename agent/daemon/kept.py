"""Credentials kept over a restart, in memory that systemd holds for us: no file system, no name.

With them a process that was killed under load goes on where it stopped: the same credential, no call to any cloud.
Without them (no systemd, or a stop rather than a restart) everything is minted anew.
"""

from __future__ import annotations

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


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    instance_id: str
    credentials: list[_Kept]


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
    return msgspec.json.encode(_Content(store.memory.instance_id, kept), enc_hook=_reveal)


def restore(store: Store, data: bytes, now: datetime) -> int:
    """Give the store back what still belongs to it; return how many. What makes no sense is left out.

    A machine that was copied with its memory (a snapshot of a running one) is another instance: what was the first
    one's own is not the second's.
    """
    try:
        content = msgspec.json.decode(data, type=_Content, dec_hook=_hide)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    if content.instance_id != store.memory.instance_id:
        return 0
    count = 0
    for kept in content.credentials:
        credential = kept.aws or kept.google
        if credential is None or credential.expires_at.tzinfo is None:
            continue
        count += store.restore(kept.key, kept.digest, credential, now)
    return count


def _reveal(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError


def _hide(kind: type, value: Any) -> Any:
    return kind(value)
