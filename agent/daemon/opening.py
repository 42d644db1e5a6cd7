"""Opens what sources bring by what is believed just now, and says what may yet make a refused bundle right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from agent import bundle, keys
from agent.core.clock import utc
from agent.core.errors import KeyUnavailableError, PayloadError, SealError
from agent.core.model import Bundle, OnExpiry, SealedBundle, ends_of
from agent.core.text import instant
from agent.core.verdict import Policy

_OF_FILES: Final[dict[str, str]] = {bundle.Code.RECIPIENT: "keys[", bundle.Code.SIGNER: "signers["}
"""Refusals that a file of the configuration may end, by how the keys of those begin."""
_OF_TIME: Final = frozenset({bundle.Code.EXPIRED, bundle.Code.NOT_YET_VALID, bundle.Code.FAR_FUTURE, bundle.Code.LEASE})
REMEMBERED = 4
"""Sealed bundles whose content is kept beside that of the one in force: a source submits the same bytes again."""


class Opened(NamedTuple):
    """The content of a sealed bundle: signed, unverified; and the key id that it was sealed to."""

    signed: bytes
    recipient: str


class Opening:
    """Opens what sources bring, with the present keys, trust and audiences. A reload replaces these.

    Implements :class:`agent.controller.Opener`.

    A bundle is decrypted once. Later it is verified anew each time, by the present trust, but no key is asked. So a key
    service that is down delays no verdict, and after a restart the bundle in force needs neither a key nor a network
    (:mod:`agent.daemon.handover`). A key that the configuration dropped opens nothing any more, not even from this
    memory; one that is only away does.
    """

    def __init__(self, keyring: keys.Keyring, pinned: bundle.Trust, audiences: frozenset[str]) -> None:
        self.keyring = keyring
        self.pinned = pinned
        self.launched: Callable[[], bundle.Trust] = lambda: bundle.Trust(())
        self.unsaid: Callable[[], str] = str  # which place that names signers has not answered yet
        self.unnamed: Callable[[], bool] = bool  # whether a service that names this machine does not answer
        self.away: Callable[[], Mapping[str, str]] = dict  # why files of the configuration cannot be read, by its keys
        self.disputed: Callable[[], float] = float  # by how many seconds our time is behind, says the metadata service
        self.names: frozenset[str] = frozenset()
        self.configured = audiences
        self.accepted: Callable[[], bytes | None] = lambda: None  # what is, or was and may come back, in force, sealed
        self.in_force: Callable[[], bool] = bool  # whether it is: not while it is doubted whose it is
        self.policy: Callable[[], Policy] = Policy
        self._opened: dict[bytes, Opened] = {}  # by the digest of the sealed bytes, the oldest first

    @property
    def audiences(self) -> frozenset[str]:
        """What this worker answers to, beside its keys: as configured, and by the names that services give it."""
        return self.configured | self.names

    def answer_to(self, configured: Iterable[str], names: Iterable[str]) -> None:
        """Answer to these from now on."""
        self.configured, self.names = frozenset(configured), frozenset(names)

    @property
    def trust(self) -> bundle.Trust:
        """The trusted signers: pinned ones, and those that the launch named. Where a key is both, the pin counts."""
        kids = {signer.kid for signer in self.pinned.signers}
        named = (signer for signer in self.launched().signers if signer.kid not in kids)
        return bundle.Trust((*self.pinned.signers, *named))

    def opened(self, sealed: bytes) -> Opened | None:
        """The content of those bytes, if they were opened before."""
        return self._opened.get(hashlib.sha256(sealed).digest())

    def remember(self, sealed: bytes, opened: Opened) -> None:
        """Keep the content of those bytes, so that no key is needed again."""
        name = hashlib.sha256(sealed).digest()
        self._opened.pop(name, None)
        if len(self._opened) > REMEMBERED:
            # Never drop what was accepted: anybody can seal to our public key, and a flood of such bundles would make
            # the next process ask for a key that it may not get just then.
            accepted = self.accepted()
            kept = None if accepted is None else hashlib.sha256(accepted).digest()
            for other in [key for key in self._opened if key != kept][: len(self._opened) - REMEMBERED]:
                del self._opened[other]
        self._opened[name] = opened

    def forget(self, *, but: bytes | None) -> None:
        """Drop the content of everything but those sealed bytes."""
        name = hashlib.sha256(but).digest() if but is not None else None
        self._opened = {key: opened for key, opened in self._opened.items() if key == name}

    async def __call__(self, sealed: SealedBundle, now: datetime, accepted_digest: str | None) -> Bundle:
        """See :class:`agent.controller.Opener`."""
        try:
            opened = await self._unsealed(sealed.data, now)
            found = self._verified(opened, sealed.origin, now, accepted_digest)
        except (SealError, PayloadError) as error:
            unsaid = self._unsaid(error) or self._undated(error, sealed, now, accepted_digest)
            if not unsaid or (accepted_digest is not None and self.in_force()):
                raise  # what is in force of a signer who is not trusted ends at once
            # No worker is the machine meanwhile for want of an answer.
            raise KeyUnavailableError(f"{error.message}, and {unsaid}", hint=error.hint) from None
        if accepted_digest is not None and not self.in_force() and self._is_over_for_us_alone(found, now):
            # It would come back into force only to be lost, and no worker is the machine for a clock that may be wrong.
            raise KeyUnavailableError(f"what it gives is over, and {self._another_time(now)}")
        return found

    def _verified(self, opened: Opened, origin: str, now: datetime, accepted_digest: str | None) -> Bundle:
        return bundle.verify(
            opened.signed,
            trust=self.trust,
            recipient_kid=opened.recipient,
            audiences=self.keyring.audiences | {bundle.audience_key(opened.recipient)} | self.audiences,
            now=now,
            accepted_digest=accepted_digest,
            origin=origin,
            names=self.names - self.configured,
        )

    async def _unsealed(self, sealed: bytes, now: datetime) -> Opened:
        opened = self.opened(sealed)
        while opened is None or not self._opens(opened.recipient):
            opened = Opened(*await self.keyring.unseal(sealed, now=now, max_bytes=bundle.LARGEST_BYTES))
            # A key service takes its time: a reload may have dropped the key meanwhile.
            if self._opens(opened.recipient):
                self.remember(sealed, opened)
        return opened

    def _unsaid(self, error: SealError | PayloadError) -> str:
        """What has not been said yet, and may make the bundle right; empty: nothing."""
        if (kind := _OF_FILES.get(error.code)) is not None:
            for key, reason in self.away().items():
                if key.startswith(kind):
                    return reason
        if error.code == bundle.Code.SIGNER and (place := self.unsaid()):
            return f"{place} has not said yet whom it names"
        if error.code == bundle.Code.AUDIENCE and self.unnamed():
            return "the metadata service does not say this machine's name"
        return ""

    def _undated(
        self, error: SealError | PayloadError, sealed: SealedBundle, now: datetime, accepted_digest: str | None
    ) -> str:
        """Who says another time, by which the bundle is right; empty: nobody."""
        ahead, opened = self.disputed(), self.opened(sealed.data)
        if not ahead or opened is None or error.code not in _OF_TIME:
            return ""
        try:
            self._verified(opened, sealed.origin, now + timedelta(seconds=ahead), accepted_digest)
        except PayloadError:
            return ""
        return self._another_time(now)

    def _is_over_for_us_alone(self, accepted: Bundle, now: datetime) -> bool:
        """Whether the machine's identity would follow it by our time, and not by the time that the service says."""
        policy, theirs = self.policy(), now + timedelta(seconds=self.disputed())
        if (accepted.on_expiry or policy.on_expiry) is not OnExpiry.FALLBACK:
            return False
        routed = [accepted.grant(grant_id) for cloud, grant_id in accepted.routes.items() if cloud in policy.fallback]
        ends = [utc(end) for grant in routed if grant is not None and (end := ends_of(grant)) is not None]
        if routed and accepted.lease_until is not None:
            ends.append(accepted.lease_until)
        return any(theirs < end <= now for end in ends)

    def _another_time(self, now: datetime) -> str:
        said = instant(now + timedelta(seconds=self.disputed()))
        return f"the metadata service says that it is {said}: one of the two clocks is wrong"

    def _opens(self, kid: str) -> bool:
        """Whether that key is one of ours, or may be: one that is only away just now."""
        return kid in self.keyring.kids or bool(self.keyring.absent)
