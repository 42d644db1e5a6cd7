"""The worker's keys, together: whichever of them a bundle was sealed to opens it.

A worker holds several while keys are being changed (the present one and the previous one), and may hold several kinds
(a file from the image's pipeline, a KMS key of the account). Opening tries the ones a bundle names, in the worker's own
order of preference, so that a key in memory is asked before a service is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, Protocol

from agent import bundle
from agent.core.errors import KeyUnavailableError, SealError
from agent.core.model import Bundle

MAX_TRIES: Final = 4
"""Recipient entries tried for one bundle. Entries are not signed: without a bound, a stranger who knows our key ids
could make every submission cost as many KMS calls as we have keys."""

_SERVICES: Final = ("aws-kms", "gcp-kms")


class WorkerKey(Protocol):
    """One key of this worker: in memory, or behind a service that never gives it out."""

    @property
    def kid(self) -> str:
        """The key id that recipient entries carry."""

    @property
    def kind(self) -> str:
        """Where the key lives, for status: ``file``, ``systemd``, ``ephemeral``, ``aws-kms``, ``gcp-kms``."""

    def public_jwk(self) -> dict[str, str] | None:
        """The public half, to be published to senders; ``None`` for a key that a group shares, or when unknown here."""

    async def content_key(self, recipient: bundle.Recipient, now: datetime) -> bytes:
        """The content key of a bundle, from the entry that names this key.

        Args:
            recipient: the entry.
            now: the present instant, for keys whose service wants signed requests.

        Returns:
            32 bytes.

        Raises:
            SealError: the entry was not made for this key. Final: the same entry will never open.
            KeyUnavailableError: the key could not be used now. The same entry may open later.
        """


class Keyring:
    """All keys of this worker.

    Args:
        keys: in order of preference.
        absent: the names of keys that the configuration expects and this machine was not given.

    Raises:
        RuntimeError: two keys have the same id.
    """

    def __init__(self, keys: Sequence[WorkerKey], *, absent: Sequence[str] = ()) -> None:
        self.absent = tuple(absent)
        self._keys = {key.kid: key for key in keys}
        if len(self._keys) != len(keys):
            raise RuntimeError("two worker keys have the same key id")

    @property
    def keys(self) -> tuple[WorkerKey, ...]:
        """The keys, in order of preference."""
        return tuple(self._keys.values())

    @property
    def kids(self) -> tuple[str, ...]:
        """Their ids."""
        return tuple(self._keys)

    @property
    def audiences(self) -> frozenset[str]:
        """The audiences that follow from holding these keys."""
        return frozenset(bundle.audience_key(kid) for kid in self._keys)

    async def open(
        self,
        data: bytes,
        *,
        trust: bundle.Trust,
        audiences: Collection[str],
        now: datetime,
        max_bytes: int = bundle.MAX_BYTES,
        accepted_digest: str | None = None,
        origin: str = "",
    ) -> Bundle:
        """Open a sealed bundle: every step of FORMAT.md "Order of checks" but the high-water mark.

        Args:
            data: the sealed bytes, from anybody.
            trust: the pinned signers.
            audiences: what this worker answers to, beside its key ids.
            now: the present instant, aware UTC.
            max_bytes: the size limit of the channel it came by.
            accepted_digest: see :func:`agent.bundle.verify`: set when re-opening, at start, what this instance had
                accepted before.
            origin: the source it came from.

        Returns:
            A genuine, timely bundle for this worker. The store says whether it is newer than the accepted one.

        Raises:
            FormatError, SealError, PayloadError: it is refused, and always will be (but for ``not-yet-valid``).
            KeyUnavailableError: a key service did not answer; submit the same bytes again.
        """
        signed, kid = await self.unseal(data, now=now, max_bytes=max_bytes)
        return bundle.verify(
            signed,
            trust=trust,
            recipient_kid=kid,
            audiences=self.audiences | frozenset(audiences),
            now=now,
            accepted_digest=accepted_digest,
            origin=origin,
        )

    async def unseal(self, data: bytes, *, now: datetime, max_bytes: int = bundle.MAX_BYTES) -> tuple[bytes, str]:
        """The first half of :meth:`open`, the one that needs a key: what was sealed, unverified, and to which key.

        Raises:
            FormatError, SealError, KeyUnavailableError: as there. A ``SealError`` that stands on the word of a key
                service is marked as doubtful.
        """
        # 1. Size. 2. Container and algorithm lists.
        envelope = bundle.parse_envelope(data, max_bytes=max_bytes)

        # 3. The entries for our keys: ours first in order, at most so many. No entry costs anything before this.
        entries = {r.kid: r for r in envelope.recipients}
        ours = [(key, entries[kid]) for kid, key in self._keys.items() if kid in entries][:MAX_TRIES]
        if not ours:
            raise SealError(
                f"it is sealed to {len(entries)} other key{'s' if len(entries) > 1 else ''}, none of them ours",
                hint="this worker's keys: "
                + (", ".join(self._keys) or "none")
                + "".join(f"; it was not given {name}" for name in self.absent),
                code=bundle.Code.RECIPIENT,
            )

        # 4. Unwrap. 5. Decrypt. (6. to 16. are `bundle.verify`.) Once content is decrypted, its verdict is final:
        # another entry has the same content.
        refusal: SealError | None = None
        unavailable: KeyUnavailableError | None = None
        for key, recipient in ours:
            try:
                return bundle.decrypt(envelope, await key.content_key(recipient, now)), key.kid
            except SealError as error:
                # The bytes do not tell an altered entry from a service that computed with another key.
                error.doubtful = key.kind in _SERVICES
                refusal = error
            except KeyUnavailableError as error:
                unavailable = error
        if unavailable is not None:
            raise unavailable
        if refusal is not None:
            raise refusal
        raise AssertionError("internal error: no entry was tried")
