"""Whom do we trust, and with which keys do we open what they send? And which of their files are only away just now?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

from agent import bundle, config, keys
from agent.core.errors import AgentError, ConfigError, Denied
from agent.core.model import AwsCredential, Cloud, GoogleToken
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
        keys: by entry, the worker's keys that it gave when it was last read by us.
    """

    def __init__(self, files: Mapping[str, str] | None = None, ask: Ask = directly) -> None:
        self.reasons: dict[str, str] = {}
        self.files: dict[str, str] = dict(files or {})
        self.keys: dict[config.KeyEntry, list[keys.WorkerKey]] = {}
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


class Former(Away):
    """For a reload: a file that cannot be read holds back no other, and what it gave before stays in force.

    So what is taken away in one file, or in the configuration, is taken away whatever is wrong with another. A file
    that is named for the first time is none of these: it may be a former one, whose path was mistyped.

    Args:
        before: what was read for what is in force.
        stays: whether what is in force names that, too; it gets a key of the configuration.
        ask: how files are asked.

    Attributes:
        fault: the first that was tolerated; ``None``: everything was read.
    """

    def __init__(
        self, before: Away | None = None, stays: Callable[[str], bool] = lambda _key: False, ask: Ask = directly
    ) -> None:
        super().__init__(before.files if before is not None else None, ask)
        self.keys.update(before.keys if before is not None else {})
        self.fault: AgentError | None = None
        self._stays = stays

    def takes(self, key: str, error: AgentError, *, passing: bool = True) -> bool:
        """Take note of an error of a file that what is in force names."""
        if not (passing and self._stays(key)):
            return False
        self.fault = self.fault or error
        return super().takes(key, error)


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


def kept(pinned: bundle.Trust, former: bundle.Trust) -> frozenset[str]:
    """The key ids that ``pinned`` trusts in all that ``former`` did; a changed key under the old id is another key."""
    now = [_bounds(signer) for signer in pinned.signers]
    return frozenset(signer.kid for signer in former.signers if _bounds(signer) in now)


def _bounds(signer: bundle.Signer) -> tuple[object, ...]:
    return signer.kid, signer.key.public_jwk(), signer.issuers, signer.audiences, signer.max_lease


def trusts_at_least(pinned: bundle.Trust, former: bundle.Trust) -> bool:
    """Whether ``pinned`` trusts each key in all that ``former`` did."""
    return len(kept(pinned, former)) == len(former.signers)


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
        where, before = f"keys[{index}]", len(found)
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
            del found[before:]
            found += away.keys.get(entry, [])
            absent += [] if away.keys.get(entry) else [where]
        else:
            away.keys[entry] = found[before:]
    away.keys = {entry: away.keys[entry] for entry in settings.keys if entry in away.keys}
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
