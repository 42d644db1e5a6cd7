"""Whom do we trust, and with which keys do we open what they send? And which of their files are only away just now?"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

from agent import bundle, config, keys
from agent.core.errors import AgentError, ConfigError, Denied, KeyUnavailableError, PayloadError, SealError
from agent.core.model import AwsCredential, Bundle, Cloud, GoogleToken, SealedBundle
from agent.core.text import os_reason
from agent.host.files import read_plain
from agent.host.patience import StalledError, directly
from agent.providers import Mint
from agent.upstream import Upstream

MAX_PUBLIC_BYTES: Final = 1 << 20
"""Of a file of public keys. A file that grows has no end."""

T = TypeVar("T")
C = TypeVar("C", AwsCredential, GoogleToken)


def trust(settings: config.Config, away: Away) -> bundle.Trust:
    """The pinned signers.

    Args:
        settings: the configuration.
        away: takes note of what cannot be read: that signer is then not trusted.

    Raises:
        ConfigError: a key file cannot be read or is not a public key, or a key is there twice, and ``away`` does not
            tolerate that.
    """
    entries: list[dict[str, object]] = []
    for index, entry in enumerate(settings.signers):
        where = f"signers[{index}].key"
        try:
            entries.append(_signer(entry, where, away.ask))
        except ConfigError as error:
            if not away.takes(where, error):
                raise
            if entry.key in away.files:
                # The previous process could read it, and it is still in the configuration. What this version does not
                # take is as away as where no process was before.
                with contextlib.suppress(ConfigError):
                    entries.append(_signer(entry, where, directly, away.files[entry.key]))
            continue
        away.files[entry.key] = str(entries[-1]["key"])
    try:
        return bundle.Trust.parse(entries)
    except AgentError as error:  # each was read by itself: one key is there twice
        fault = ConfigError(f"signers: {error.message}", hint=error.hint)
        if not away.takes("signers", fault, passing=False):
            raise fault from None
        return bundle.Trust(())


class Ask(Protocol):
    """Calls a function that asks a file: :class:`agent.host.patience.FirstLook`, say."""

    def __call__(self, path: Path, fn: Callable[[], T]) -> T:
        """Call ``fn``, which asks ``path``. Raises HostError once the wait is given up."""


class Away:
    """Files that the configuration names and the machine lacks just now: an alarm, and no reason to stop serving.

    Args:
        files: what the previous process read.
        ask: how files are asked: none may hold up a start.

    Attributes:
        reasons: why each is away, by the key of the configuration.
        files: by path, what the public files said when they were last read, by us or by the previous process.
    """

    def __init__(self, files: Mapping[str, str] | None = None, ask: Ask = directly) -> None:
        self.reasons: dict[str, str] = {}
        self.files: dict[str, str] = dict(files or {})
        self.ask: Ask = ask

    def takes(self, key: str, error: AgentError, *, passing: bool = True) -> bool:
        """Take note of an error if it can be tolerated; returns whether it can.

        Args:
            key: the key of the configuration.
            error: what is wrong with it.
            passing: whether it may pass by itself.
        """
        if passing:
            self.reasons[key] = error.message
        return passing


class NothingAway(Away):
    """For a reload: a missing file is an error, and the content loaded before stays in force."""

    def takes(self, key: str, error: AgentError, *, passing: bool = True) -> bool:  # noqa: ARG002 - none is taken
        """Tolerate nothing."""
        return False


class Faults(Away):
    """For a check: takes note of every fault, whatever its kind, so that all of them are told in one go.

    Attributes:
        errors: in the order in which they were found, with the key of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[tuple[str, AgentError]] = []

    def takes(self, key: str, error: AgentError, *, passing: bool = True) -> bool:  # noqa: ARG002 - any is taken
        """Take note of every error."""
        self.errors.append((key, error))
        return super().takes(key, error)


class _AwayError(ConfigError):
    """A file that the configuration names cannot be read."""


def _could_be(entry: config.KeyEntry, error: AgentError) -> bool:
    """Whether ``entry`` may turn out right later, by itself; a mistake in its own text never does."""
    if isinstance(error, ConfigError) and not isinstance(error, _AwayError):
        return False
    return not isinstance(entry, config.CredentialKey) or (bool(entry.name.strip(".")) and "/" not in entry.name)


def _signer(entry: config.SignerEntry, where: str, ask: Ask, text: str | None = None) -> dict[str, object]:
    named: dict[str, object] = {
        "key": _read(Path(entry.key), where, ask) if text is None else text,
        "issuers": list(entry.issuers),
        "audiences": list(entry.audiences),
    }
    if entry.max_lease_seconds:
        named["max_lease_seconds"] = entry.max_lease_seconds
    try:
        bundle.Trust.parse([named])
    except AgentError as error:
        raise ConfigError(f"{where}: {entry.key}: {error.message}", hint=error.hint) from None
    return named


def trusts_at_least(pinned: bundle.Trust, former: bundle.Trust) -> bool:
    """Whether ``pinned`` trusts each key in all that ``former`` did; a changed key under the old id is another key."""
    now, before = (
        [(s.kid, s.key.public_jwk(), s.issuers, s.audiences, s.max_lease) for s in trust.signers]
        for trust in (pinned, former)
    )
    return all(signer in now for signer in before)


def keyring(
    settings: config.Config,
    *,
    out: Upstream,
    mint_: Mint,
    credentials_directory: str | None,
    ephemeral: keys.LocalKey | None,
    away: Away,
) -> keys.Keyring:
    """The worker's keys, in the order of the configuration.

    Args:
        settings: the configuration.
        out: the way out to a KMS.
        mint_: gives the machine's own identity, with which a KMS is asked.
        credentials_directory: ``$CREDENTIALS_DIRECTORY``.
        ephemeral: the key that an earlier call or process made, so that a reload and a restart keep it.
        away: takes note of what cannot be read: the keyring then lists that key as absent.

    Raises:
        ConfigError: a key cannot be read, and ``away`` does not tolerate that.
    """
    found: list[keys.WorkerKey] = []
    absent: list[str] = []
    ask = away.ask
    for index, entry in enumerate(settings.keys):
        where = f"keys[{index}]"
        try:
            match entry:
                case config.FileKey():
                    found += ask(Path(entry.path), partial(keys.load_key_file, Path(entry.path)))
                case config.CredentialKey():
                    directory = Path(credentials_directory) if credentials_directory else None
                    passed = ask(
                        (directory or Path()) / entry.name, partial(keys.load_credential, directory, entry.name)
                    )
                    found += passed
                    absent += [] if passed else [entry.name]
                case config.AwsKmsKey():
                    public = bundle.RecipientKey.parse(_public(entry.public_key, f"{where}.public_key", away))
                    found.append(
                        keys.AwsKmsKey(
                            key_id=entry.key_id,
                            public_key=public,
                            credentials=partial(_own, mint_, AwsCredential, Cloud.AWS),
                            upstream=out,
                            region=entry.region,
                            endpoint=entry.endpoint,
                        )
                    )
                case config.GcpKmsKey():
                    public = bundle.RecipientKey.parse(_public(entry.public_key, f"{where}.public_key", away))
                    found.append(
                        keys.GcpKmsKey(
                            key_version=entry.key_version,
                            public_key=public,
                            token=partial(_own, mint_, GoogleToken, Cloud.GCP),
                            upstream=out,
                            endpoint=entry.endpoint,
                        )
                    )
                case config.EphemeralKey():
                    found.append(ephemeral or keys.ephemeral_key())
        except AgentError as error:
            fault = ConfigError(f"{where}: {error.message}", hint=error.hint)
            if not away.takes(where, fault, passing=_could_be(entry, error)):
                raise fault from None
            absent.append(where)
    return keys.Keyring(_distinct(found, away), absent=absent)


def _distinct(found: list[keys.WorkerKey], away: Away) -> list[keys.WorkerKey]:
    """The keys, each once.

    Raises:
        ConfigError: one is there twice, and ``away`` does not tolerate that.
    """
    twice = {key.kid for key in found if sum(other.kid == key.kid for other in found) > 1}
    if twice:
        fault = ConfigError(f"keys: expected distinct keys, got {min(twice)!r} twice")
        if not away.takes("keys", fault, passing=False):
            raise fault
    return list({key.kid: key for key in found}.values())


_OF_FILES: Final[dict[str, str]] = {bundle.Code.RECIPIENT: "keys[", bundle.Code.SIGNER: "signers["}
"""Refusals that a file of the configuration may end, by how the keys of those begin."""
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
        self.names: frozenset[str] = frozenset()
        self.configured = audiences
        self.in_force: Callable[[], bytes | None] = lambda: None  # set once there is a controller
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
            # Never drop the bundle in force: anybody can seal to our public key, and a flood of such bundles would make
            # the next process ask for a key that it may not get just then.
            in_force = self.in_force()
            kept = None if in_force is None else hashlib.sha256(in_force).digest()
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
            return bundle.verify(
                opened.signed,
                trust=self.trust,
                recipient_kid=opened.recipient,
                audiences=self.keyring.audiences | {bundle.audience_key(opened.recipient)} | self.audiences,
                now=now,
                accepted_digest=accepted_digest,
                origin=sealed.origin,
                names=self.names - self.configured,
            )
        except (SealError, PayloadError) as error:
            unsaid = self._unsaid(error)
            if not unsaid or (accepted_digest is not None and self.in_force() is not None):
                raise  # what is in force of a signer who is not trusted ends at once
            # No worker is the machine meanwhile for want of an answer.
            raise KeyUnavailableError(f"{error.message}, and {unsaid}", hint=error.hint) from None

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

    def _opens(self, kid: str) -> bool:
        """Whether that key is one of ours, or may be: one that is only away just now."""
        return kid in self.keyring.kids or bool(self.keyring.absent)


async def _own(mint_: Mint, kind: type[C], cloud: Cloud, now: datetime) -> C:
    """The machine's own credential, for a KMS: never a bundle's, since that key must first open the bundle.

    Raises:
        Denied: the machine has none.
    """
    issued = await mint_.instance(cloud, now)
    if issued is None or not isinstance(issued.credential, kind):
        raise Denied(f"the machine has no {cloud} identity of its own", code="no-identity")
    return issued.credential


def _public(name: str, where: str, away: Away) -> str:
    """The content of a public file; if the file is away just now, the content that the previous process read."""
    try:
        text = _read(Path(name), where, away.ask)
    except _AwayError as error:
        if name not in away.files or not away.takes(where, error):
            raise
        return away.files[name]
    away.files[name] = text
    return text


def _read(path: Path, where: str, ask: Ask) -> str:
    try:
        data = ask(path, partial(read_plain, path, MAX_PUBLIC_BYTES + 1))
        text = data.decode().replace("\r\n", "\n")
    except StalledError as error:
        raise _AwayError(f"{where}: {error.message}", hint=error.hint) from None
    except UnicodeDecodeError:
        raise _AwayError(f"{where}: {path}: expected text") from None
    except OSError as error:
        hint = None
        if isinstance(error, PermissionError):
            hint = "it is public, and the service reads it as its own user: mode 0644"
        elif isinstance(error, FileNotFoundError):
            hint = "copy it there, with mode 0644: it is public"
        raise _AwayError(f"{where}: {path}: cannot be read: {os_reason(error)}", hint=hint) from None
    if len(data) > MAX_PUBLIC_BYTES:
        raise _AwayError(f"{where}: {path}: expected at most {MAX_PUBLIC_BYTES} bytes, got more")
    if not text.strip():
        raise _AwayError(f"{where}: {path}: expected a key, got an empty file")
    return text
