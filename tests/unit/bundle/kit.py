"""What the tests of the bundle share: the committed world of tests/vectors/bundle and the roads into it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from agent.bundle import OpeningKey, Recipient, Trust
from agent.core.clock import utc
from agent.core.model import Bundle
from agent.keys import Keyring, LocalKey, WorkerKey

VECTORS = Path(__file__).parents[2] / "vectors" / "bundle"
KEYS: dict[str, dict[str, str]] = json.loads((VECTORS / "keys.json").read_text())
WORLD: dict[str, Any] = json.loads((VECTORS / "world.json").read_text())
NOW: datetime = utc(WORLD["now"])
TRUST = Trust.parse(WORLD["signers"])


class CountingKey:
    """A worker key that counts how often it is asked: what a KMS would bill."""

    def __init__(self, key: OpeningKey) -> None:
        self._key = key
        self.kind = "counting"
        self.asked = 0

    @property
    def kid(self) -> str:
        return self._key.kid

    def public_jwk(self) -> dict[str, str] | None:
        return None

    async def content_key(self, recipient: Recipient, now: datetime) -> bytes:
        self.asked += 1
        return self._key.content_key(recipient)


#: Read once: checking an RSA key takes longer than opening a hundred bundles.
OPENING: tuple[OpeningKey, ...] = tuple(OpeningKey.parse(KEYS[name]) for name in WORLD["worker_keys"])


def local_keys() -> list[WorkerKey]:
    return [LocalKey(key, kind="file") for key in OPENING]


def counting_keys() -> list[CountingKey]:
    return [CountingKey(key) for key in OPENING]


def opened(data: bytes, keys: list[WorkerKey] | None = None, **overrides: Any) -> Bundle:
    """Open ``data`` in the committed world."""
    arguments: dict[str, Any] = {"trust": TRUST, "audiences": WORLD["audiences"], "now": NOW, **overrides}
    return asyncio.run(Keyring(local_keys() if keys is None else keys).open(data, **arguments))


def case_bytes(case: dict[str, Any]) -> bytes:
    return base64.b64decode(case["bundle_base64"]) if "bundle_base64" in case else str(case["bundle"]).encode()


def jws_digest(case: dict[str, Any]) -> str:
    """The digest that a good case has: of the signing input, which only opening it shows."""
    from agent.bundle import decrypt, parse_envelope

    envelope = parse_envelope(case_bytes(case))
    keys = {key.kid: key for key in OPENING}
    recipient = next(r for r in envelope.recipients if r.kid in keys)
    signed = decrypt(envelope, keys[recipient.kid].content_key(recipient))
    return hashlib.sha256(signed.rpartition(b".")[0]).hexdigest()
