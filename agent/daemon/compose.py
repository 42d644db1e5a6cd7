"""From configuration to parts.

Every path and key that the configuration names is opened here, before anything starts: what is wrong is one line with
the key's name, and exit status 78.
"""

from __future__ import annotations

import hashlib
import random
import socket
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from agent import bundle, config, keys
from agent.core.clock import Clock
from agent.core.errors import AgentError, ConfigError, Denied
from agent.core.model import AwsCredential, Bundle, Cloud, GoogleToken, OnExpiry, SealedBundle
from agent.core.source import Source
from agent.core.text import os_reason
from agent.core.timekeeping import Witness
from agent.core.verdict import Policy
from agent.core.view import Facts
from agent.host import machine
from agent.host.patience import StalledError, directly
from agent.host.threads import Threads
from agent.providers import GoogleEndpoints, Mint, MintSettings
from agent.sources.file import FileSettings, FileSource
from agent.upstream import Ec2Metadata, GceMetadata, Upstream, UpstreamSettings
from agent.wire.names import EC2_USER_DATA_PATH, METADATA_URL, gce_attributes

T = TypeVar("T")

LOOKUPS = 4
"""Threads in which one client looks names up, for the operator's hosts, and as many for those that bundles name."""


Hear = Callable[[Witness, datetime, float], object]
"""Hears what a server said of the time: who, what, and for how many seconds the answer was under way."""


def policy(settings: config.Config) -> Policy:
    """What the operator decided, as the store wants it."""
    own = settings.identity
    return Policy(
        fallback=frozenset(Cloud(name) for name in own.fallback),
        on_expiry=OnExpiry(own.on_expiry),
        grace=timedelta(seconds=own.grace_seconds if settings.keys else 0),
        horizon_lead=timedelta(seconds=own.horizon_lead_seconds),
        spread=timedelta(seconds=settings.mint.spread_seconds),
        role_name=own.role_name,
        facts=Facts(
            region=settings.aws.region,
            availability_zone=settings.aws.availability_zone,
            account_id=settings.aws.account_id,
            project_id=settings.gcp.project_id,
            numeric_project_id=settings.gcp.numeric_project_id,
            zone=settings.gcp.zone,
        ),
    )


def upstream(
    settings: config.Config,
    *,
    ca_file: str | None = None,
    proxy: str | None = None,
    connections: int = 128,
    hear: Hear | None = None,
) -> Upstream:
    """The way out for plain HTTP; a source may have a CA and a proxy of its own, and teaches no time."""
    out = settings.upstream
    return Upstream(
        UpstreamSettings(
            connect_timeout_seconds=out.connect_timeout_seconds,
            read_timeout_seconds=out.read_timeout_seconds,
            ca_file=ca_file or out.ca_file,
            proxy=proxy or out.proxy,
            allow_private_addresses=out.allow_private_addresses,
            connections=connections,
        ),
        hear=hear,
        lookups=lambda: Threads(LOOKUPS),
    )


class Metadata:
    """The machine's real metadata services, those that this machine has.

    Attributes:
        ec2, gce: the clients; ``None`` where the machine has no such service.
        cloud: the cloud this machine is known to be in, by its firmware or because the operator named just one service;
            silence of that service is then an outage, not the sign of another kind of machine.
    """

    def __init__(self, settings: config.Config, out: Upstream, clock: Clock, *, root: Path = Path("/")) -> None:
        platform = machine.platform(root)
        ec2_url = _metadata_url(settings.upstream.ec2, here=platform == "ec2")
        gce_url = _metadata_url(settings.upstream.gce, here=platform == "gce")
        named = {Cloud.AWS: ec2_url, Cloud.GCP: gce_url}
        known = [cloud for cloud, url in named.items() if url is not None]
        self.cloud = {"ec2": Cloud.AWS, "gce": Cloud.GCP}.get(platform) or (known[0] if len(known) == 1 else None)
        if known:
            # The machine is asked who it is within two seconds of the start: none of them is for loading a library.
            out.load()
        self.ec2 = None if ec2_url is None else Ec2Metadata(out, clock, ec2_url)
        self.gce = None if gce_url is None else GceMetadata(out, gce_url)
        self._clock, self._urls = clock, (ec2_url, gce_url)

    def passed(self, out: Upstream) -> tuple[Ec2Metadata | None, GceMetadata | None]:
        """The same services for what workers ask of them, by a way out of its own.

        Nothing that a worker does may use up what renewal needs: neither connections nor the session with the service.
        """
        ec2_url, gce_url = self._urls
        return (
            None if ec2_url is None else Ec2Metadata(out, self._clock, ec2_url),
            None if gce_url is None else GceMetadata(out, gce_url),
        )


def _metadata_url(value: str, *, here: bool) -> str | None:
    if value == "auto":
        return METADATA_URL if here else None
    return None if value == "off" else value


def mint(settings: config.Config, out: Upstream, metadata: Metadata, clock: Clock) -> Mint:
    """What issues credentials."""
    own = settings.mint
    google = GoogleEndpoints()
    return Mint(
        out,
        MintSettings(
            sts_endpoint=own.sts_endpoint,
            region=settings.aws.region,
            google=GoogleEndpoints(
                token_url=own.google_token_url or google.token_url,
                sts_url=own.google_sts_url or google.sts_url,
                iamcredentials_url=own.google_iamcredentials_url or google.iamcredentials_url,
            ),
            allowed_origins=own.allowed_origins,
            web_token_directories=own.web_token_directories,
            probe=own.probe,
            request_timeout_seconds=own.request_timeout_seconds,
            machine=metadata.cloud,
        ),
        clock,
        ec2=metadata.ec2,
        gce=metadata.gce,
    )


def trust(settings: config.Config, away: Away | None = None) -> bundle.Trust:
    """The pinned signers.

    Args:
        settings: the configuration.
        away: takes note of what cannot be read, instead of an error: nothing of that signer is then believed.

    Raises:
        ConfigError: a key file cannot be read or is not a public key.
    """
    entries: list[dict[str, object]] = []
    for index, entry in enumerate(settings.signers):
        where = f"signers[{index}].key"
        try:
            entries.append(_signer(entry, where, ask=away.ask if away is not None else directly))
        except ConfigError as error:
            text = away.files.get(entry.key) if away is not None else None
            if away is None or not away.takes(where, error):
                raise
            if text is not None:
                # It was there a moment ago, in the process before us, and nobody has taken it out of the configuration.
                entries.append(_signer(entry, where, text))
            continue
        if away is not None:
            away.files[entry.key] = str(entries[-1]["key"])
    return bundle.Trust.parse(entries)


class Ask(Protocol):
    """Calls what asks a file: :class:`agent.host.patience.FirstLook`, say."""

    def __call__(self, path: Path, fn: Callable[[], T]) -> T:
        """Call ``fn``, which asks ``path``. Raises HostError where it is not waited for any more."""


class Away:
    """What the configuration names and the machine does not have just now: an alarm, and no reason to serve nobody.

    Args:
        files: what the process before us read.
        ask: how files are asked: at a start, none may hold it up.

    Attributes:
        reasons: by the key of the configuration, why.
        files: by path, what the public files said when they were last read, by us or by the process before us.
    """

    def __init__(self, files: Mapping[str, str] | None = None, ask: Ask = directly) -> None:
        self.reasons: dict[str, str] = {}
        self.files: dict[str, str] = dict(files or {})
        self.ask: Ask = ask

    def clear(self) -> None:
        """Nothing is known to be away: everything is looked at anew."""
        self.reasons.clear()
        self.files.clear()

    def takes(self, key: str, error: AgentError, *, passing: bool = True) -> bool:
        """Take note of an error, if that is all that it needs.

        Args:
            key: the key of the configuration.
            error: what is wrong with it.
            passing: whether it may be right on another day, by itself.
        """
        if passing:
            self.reasons[key] = error.message
        return passing


class Faults(Away):
    """For a check: every fault is taken note of, whatever its kind, so that all of them are told in one go.

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
    """Whether what ``entry`` says may be right on another day: what is wrong in the text itself is so on none."""
    if isinstance(error, ConfigError) and not isinstance(error, _AwayError):
        return False
    return not isinstance(entry, config.CredentialKey) or (bool(entry.name.strip(".")) and "/" not in entry.name)


def _signer(
    entry: config.SignerEntry, where: str, text: str | None = None, *, ask: Ask = directly
) -> dict[str, object]:
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
    """Whether every key is believed in just what ``former`` says; a key that changed under its old id is another."""
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
    ephemeral: keys.LocalKey | None = None,
    away: Away | None = None,
) -> keys.Keyring:
    """The worker's keys, in the order of the configuration.

    Args:
        settings: the configuration.
        out: the way out to a KMS.
        mint_: gives the machine's own identity, with which a KMS is asked.
        credentials_directory: ``$CREDENTIALS_DIRECTORY``.
        ephemeral: the key that an earlier call or process made, so that a reload and a restart keep it.
        away: takes note of what cannot be read, instead of an error: the ring then has that key among the absent.

    Raises:
        ConfigError: a key cannot be read.
    """
    found: list[keys.WorkerKey] = []
    absent: list[str] = []
    ask = away.ask if away is not None else directly
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
                            credentials=partial(_own_aws, mint_),
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
                            token=partial(_own_google, mint_),
                            upstream=out,
                            endpoint=entry.endpoint,
                        )
                    )
                case config.EphemeralKey():
                    found.append(ephemeral or keys.ephemeral_key())
        except AgentError as error:
            fault = ConfigError(f"{where}: {error.message}", hint=error.hint)
            if away is None or not away.takes(where, fault, passing=_could_be(entry, error)):
                raise fault from None
            absent.append(where)
    return keys.Keyring(_distinct(found, away), absent=absent)


def _distinct(found: list[keys.WorkerKey], away: Away | None) -> list[keys.WorkerKey]:
    """The keys, each once.

    Raises:
        ConfigError: one is there twice, and nobody takes note of that.
    """
    twice = {key.kid for key in found if sum(other.kid == key.kid for other in found) > 1}
    if twice:
        fault = ConfigError(f"keys: expected distinct keys, got {min(twice)!r} twice")
        if away is None or not away.takes("keys", fault, passing=False):
            raise fault
    return list({key.kid: key for key in found}.values())


REMEMBERED = 4
"""Sealed bundles whose content is kept beside that of the one in force: a source offers the same bytes again."""


class Opened(NamedTuple):
    """What was in a sealed bundle: signed, unverified; and the key id that it was sealed to."""

    signed: bytes
    recipient: str


class Opening:
    """Opens what sources bring, with the keys, the trust and the names that hold now. A reload replaces its parts.

    Implements :class:`agent.keeper.Opener`.

    What was opened once is not opened again: it is judged anew each time, by the trust of the moment, but no key is
    asked. So a key service that is down keeps no verdict waiting, and after a restart the bundle in force needs neither
    a key nor a network (:mod:`agent.daemon.handover`). A key that the configuration gave up opens nothing any more, not
    even from this memory; one that is only away does.
    """

    def __init__(self, ring: keys.Keyring, pinned: bundle.Trust, audiences: frozenset[str]) -> None:
        self.ring = ring
        self.trust = pinned
        self.audiences = audiences
        self._opened: dict[bytes, Opened] = {}  # by the digest of the sealed bytes, the oldest first

    def opened(self, sealed: bytes) -> Opened | None:
        """What was in those bytes, if they were opened before."""
        return self._opened.get(hashlib.sha256(sealed).digest())

    def remember(self, sealed: bytes, opened: Opened) -> None:
        """Know what is in those bytes without a key."""
        name = hashlib.sha256(sealed).digest()
        self._opened.pop(name, None)
        while len(self._opened) > REMEMBERED:
            del self._opened[next(iter(self._opened))]
        self._opened[name] = opened

    def forget(self, *, but: bytes | None) -> None:
        """Drop the content of everything but those sealed bytes."""
        name = hashlib.sha256(but).digest() if but is not None else None
        self._opened = {key: opened for key, opened in self._opened.items() if key == name}

    async def __call__(self, sealed: SealedBundle, now: datetime, accepted_digest: str | None) -> Bundle:
        """See :class:`agent.keeper.Opener`."""
        opened = self.opened(sealed.data)
        if opened is None or not (opened.recipient in self.ring.kids or self.ring.absent):
            opened = Opened(*await self.ring.unseal(sealed.data, now=now, max_bytes=bundle.LARGEST_BYTES))
            self.remember(sealed.data, opened)
        return bundle.verify(
            opened.signed,
            trust=self.trust,
            recipient_kid=opened.recipient,
            audiences=self.ring.audiences | {bundle.audience_key(opened.recipient)} | self.audiences,
            now=now,
            accepted_digest=accepted_digest,
            origin=sealed.origin,
        )


def sources(
    settings: config.Config,
    *,
    metadata: Metadata,
    clock: Clock,
    rng: random.Random,
    away: Away | None = None,
) -> list[Source]:
    """The ways in.

    Args:
        settings: the configuration.
        metadata: the machine's own services.
        clock: tells when to look again.
        rng: spreads the looks of a fleet.
        away: takes note of a source that cannot be, instead of an error: it is then left out.

    Raises:
        ConfigError: a source needs a metadata service that this machine does not have.
    """
    found: list[Source] = []
    for index, entry in enumerate(settings.sources):
        where = f"sources[{index}]"
        try:
            found.append(_source(entry, where, found, settings, metadata=metadata, clock=clock, rng=rng))
        except ConfigError as error:
            if away is None or not away.takes(where, error, passing=False):
                raise
    return found


def _source(
    entry: config.SourceEntry,
    where: str,
    found: list[Source],
    settings: config.Config,
    *,
    metadata: Metadata,
    clock: Clock,
    rng: random.Random,
) -> Source:
    match entry:
        case config.FileSourceEntry():
            file = FileSettings(path=Path(entry.path), name=entry.name or _free("file", found))
            return FileSource(file, clock=clock)
        case config.Ec2UserDataEntry():
            if metadata.ec2 is None:
                raise _needs(where, "ec2-user-data", "upstream.ec2")
            # Each source brings what it reads with (MIME, compression); a worker has one or two of the four.
            from agent.sources.ec2 import Ec2UserDataSettings, Ec2UserDataSource  # noqa: PLC0415 - as just said

            user_data = Ec2UserDataSettings(name=entry.name or _free("ec2-user-data", found))
            return Ec2UserDataSource(user_data, metadata=metadata.ec2, clock=clock, rng=rng)
        case config.GceAttributeEntry():
            if metadata.gce is None:
                raise _needs(where, "gce-attribute", "upstream.gce")
            from agent.sources.gce import GceAttributeSettings, GceAttributeSource  # noqa: PLC0415 - as above

            attribute = GceAttributeSettings(
                key=entry.key, scope=entry.scope, name=entry.name or _free("gce-attribute", found)
            )
            return GceAttributeSource(attribute, metadata=metadata.gce, clock=clock, rng=rng)
        case config.HttpsEntry():
            return _https(entry, _free("https", found), settings, clock=clock, rng=rng)


def _https(
    entry: config.HttpsEntry,
    name: str,
    settings: config.Config,
    *,
    clock: Clock,
    rng: random.Random,
) -> Source:
    """An HTTPS source with a way out of its own: its CA and proxy are nobody else's."""
    from agent.sources.https import HttpsSettings, HttpsSource  # noqa: PLC0415 - as above

    out = upstream(settings, ca_file=entry.ca_file, proxy=entry.proxy)
    return HttpsSource(
        HttpsSettings(
            url=entry.url,
            url_file=None if entry.url_file is None else Path(entry.url_file),
            ack_url=entry.ack_url,
            token_file=None if entry.token_file is None else Path(entry.token_file),
            wait_seconds=entry.wait_seconds,
            poll_seconds=entry.poll_seconds,
            worker=socket.gethostname(),
            name=entry.name or name,
        ),
        upstream=out,
        clock=clock,
        rng=rng,
    )


def hidden(settings: config.Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the configuration hides, and what it shows, beside the table of :mod:`agent.serve.hiding`."""
    through = settings.pass_through
    user_data = (EC2_USER_DATA_PATH, *(f"{scope}user-data" for scope in _ATTRIBUTES)) if through.show_user_data else ()
    carriers = tuple(
        f"{scope}{entry.key}"
        for entry in settings.sources
        if isinstance(entry, config.GceAttributeEntry)
        for scope in _ATTRIBUTES
    )
    return (*through.hide, *carriers), (*through.show, *user_data)


_ATTRIBUTES = tuple(gce_attributes(scope) for scope in ("instance", "project"))


def own_namespaces(settings: config.Config) -> tuple[str, ...]:
    """The namespaces of guest attributes in which this agent publishes."""
    names = [entry.publish_guest_attribute for entry in settings.keys if isinstance(entry, config.EphemeralKey)]
    return tuple(name.partition("/")[0] for name in names if name is not None)


async def _own_aws(mint_: Mint, now: datetime) -> AwsCredential:
    """The machine's own AWS credential, for a KMS: never a bundle's, which that key must first open."""
    issued = await mint_.instance(Cloud.AWS, now)
    if issued is None or not isinstance(issued.credential, AwsCredential):
        raise Denied("the machine has no AWS identity of its own", code="no-identity")
    return issued.credential


async def _own_google(mint_: Mint, now: datetime) -> GoogleToken:
    """The machine's own Google token, likewise."""
    issued = await mint_.instance(Cloud.GCP, now)
    if issued is None or not isinstance(issued.credential, GoogleToken):
        raise Denied("the machine has no Google identity of its own", code="no-identity")
    return issued.credential


def _free(kind: str, found: list[Source]) -> str:
    """A name that no other source has: ``file``, ``file-2``..."""
    taken = {source.name for source in found}
    number = 1
    while (name := kind if number == 1 else f"{kind}-{number}") in taken:
        number += 1
    return name


def _needs(where: str, kind: str, key: str) -> ConfigError:
    return ConfigError(
        f"{where}: {kind} needs a metadata service, and this machine has none by its firmware",
        hint=f'set {key} to its base URL, such as "{METADATA_URL}", if there is one',
    )


def _public(name: str, where: str, away: Away | None) -> str:
    """What a public file says; where it is away just now, what it said to the process before us."""
    try:
        text = _read(Path(name), where, away.ask if away is not None else directly)
    except _AwayError as error:
        if away is None or name not in away.files or not away.takes(where, error):
            raise
        return away.files[name]
    if away is not None:
        away.files[name] = text
    return text


def _read(path: Path, where: str, ask: Ask) -> str:
    try:
        text = ask(path, path.read_text)
    except StalledError as error:
        raise _AwayError(f"{where}: {error.message}", hint=error.hint) from None
    except UnicodeDecodeError:
        raise _AwayError(f"{where}: {path}: expected text") from None
    except OSError as error:
        raise _AwayError(f"{where}: {path}: cannot be read: {os_reason(error)}") from None
    if not text.strip():
        raise _AwayError(f"{where}: {path}: expected a key, got an empty file")
    return text
