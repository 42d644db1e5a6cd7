"""What is built from a piece of configuration? The policy, the ways out, the mint, the sources, what is hidden.

Keys and signers: :mod:`agent.daemon.beliefs`. A mistake becomes one line with the key's name, and exit status 78.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from agent import config
from agent.core.clock import Clock
from agent.core.errors import ConfigError
from agent.core.model import Cloud, OnExpiry
from agent.core.source import Source
from agent.core.timekeeping import Witness
from agent.core.verdict import Policy
from agent.core.view import Facts
from agent.daemon.beliefs import Away
from agent.host import machine
from agent.host.quiet import Quiet
from agent.host.threads import Threads
from agent.providers import GoogleEndpoints, Mint, MintSettings
from agent.providers.attest import Attestor
from agent.providers.sts import Sts
from agent.sources.file import LOOK_SECONDS, FileSettings, FileSource
from agent.upstream import Ec2Metadata, GceMetadata, Upstream, UpstreamSettings
from agent.wire import names
from agent.wire.names import EC2_USER_DATA_PATH, METADATA_URL, gce_attributes

LOOKUPS = 4
"""Threads in which one client looks names up, for the operator's hosts, and as many for those that bundles name."""
Hear = Callable[[Witness, datetime, float], object]
"""Called with what a server said of the time: who, what, and for how many seconds the answer was under way."""


def policy(settings: config.Config) -> Policy:
    """The operator's policy, as the store takes it."""
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
    """The client for plain HTTP; a source may have a CA and a proxy of its own, and is no witness of the time."""
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
        passes: the clouds whose service is asked for workers. By the firmware one cloud's service is at the address of
            both: who asks in the other's dialect is told that this is no such machine (decision 0005), though an image
            for both clouds names both.
    """

    def __init__(self, settings: config.Config, out: Upstream, clock: Clock, *, root: Path = Path("/")) -> None:
        platform = machine.platform(root)
        here = {"ec2": Cloud.AWS, "gce": Cloud.GCP}.get(platform)
        ec2_url = _metadata_url(settings.upstream.ec2, here=platform == "ec2")
        gce_url = _metadata_url(settings.upstream.gce, here=platform == "gce")
        named = {Cloud.AWS: ec2_url, Cloud.GCP: gce_url}
        known = [cloud for cloud, url in named.items() if url is not None]
        self.cloud = here or (known[0] if len(known) == 1 else None)
        self.passes = frozenset(
            cloud
            for cloud, url in named.items()
            if url is not None and (here in {None, cloud} or urlsplit(url).hostname not in _OF_THE_CLOUDS)
        )
        if known:
            # The machine must be identified within two seconds of the start: importing a library must not use them up.
            out.load()
        self.ec2 = None if ec2_url is None else Ec2Metadata(out, clock, ec2_url)
        self.gce = None if gce_url is None else GceMetadata(out, gce_url)
        self._clock, self._urls = clock, (ec2_url, gce_url)

    def passed(self, out: Upstream) -> tuple[Ec2Metadata | None, GceMetadata | None]:
        """The same services for what workers ask of them, by a way out of its own.

        A worker must not use up what renewal needs: neither connections nor the session with the service.
        """
        ec2_url, gce_url = self._urls
        return (
            None if ec2_url is None or Cloud.AWS not in self.passes else Ec2Metadata(out, self._clock, ec2_url),
            None if gce_url is None or Cloud.GCP not in self.passes else GceMetadata(out, gce_url),
        )


_OF_THE_CLOUDS = frozenset({names.METADATA_IPV4, names.EC2_IPV6, names.GCE_IPV6, names.GCE_HOST})
"""Where one of them answers, or nobody. Elsewhere an emulator may be either's."""


def _metadata_url(value: str, *, here: bool) -> str | None:
    if value == "auto":
        return METADATA_URL if here else None
    return None if value == "off" else value


def mint(settings: config.Config, out: Upstream, metadata: Metadata, clock: Clock) -> Mint:
    """The issuer of credentials."""
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


def attestor(settings: config.Config, metadata: Metadata, out: Upstream, clock: Clock) -> Attestor:
    """Collects the evidence that a key is this machine's.

    Args:
        settings: the configuration.
        metadata: the machine's own services.
        out: a client that renewal does not use: couriers may ask often.
        clock: time.
    """
    ec2, gce = metadata.passed(out)
    own = settings.mint
    sts = None
    if settings.enrol.aws_web_identity:
        sts = Sts(out, own.sts_endpoint, own.request_timeout_seconds, clock.boottime)
    return Attestor(ec2, gce, cloud=metadata.cloud, region=settings.aws.region, sts=sts)


def sources(
    settings: config.Config,
    *,
    metadata: Metadata,
    make: Callable[..., Upstream],
    clock: Clock,
    rng: random.Random,
    away: Away | None = None,
) -> list[Source]:
    """The sources, in the order of the configuration.

    Args:
        settings: the configuration.
        metadata: the machine's own services.
        make: makes a client (:meth:`agent.daemon.ways.WaysOut.make`).
        clock: tells when to look again.
        rng: spreads the looks of a fleet.
        away: takes note of a source that cannot be, instead of an error: it is then left out.

    Raises:
        ConfigError: a source needs a metadata service that this machine does not have.
    """
    found: list[Source] = []
    # A name that the operator gave is no other source's, wherever that stands: nobody would watch one of the two.
    taken = {entry.name for entry in settings.sources if entry.name is not None}
    for index, entry in enumerate(settings.sources):
        where = f"sources[{index}]"
        try:
            found.append(_source(entry, where, taken, metadata=metadata, make=make, clock=clock, rng=rng))
            taken.add(found[-1].name)
        except ConfigError as error:
            if away is None or not away.takes(where, error, passing=False):
                raise
    return found


def _source(
    entry: config.SourceEntry,
    where: str,
    taken: Collection[str],
    *,
    metadata: Metadata,
    make: Callable[..., Upstream],
    clock: Clock,
    rng: random.Random,
) -> Source:
    match entry:
        case config.FileSourceEntry():
            file = FileSettings(path=Path(entry.path), name=entry.name or _free("file", taken))
            return FileSource(file, clock=clock, quiet=Quiet(LOOK_SECONDS))
        case config.Ec2UserDataEntry():
            if metadata.ec2 is None:
                raise _needs(where, "ec2-user-data", "upstream.ec2")
            # Each source imports its own libraries (MIME, compression); a worker has one or two of the four.
            from agent.sources.ec2 import Ec2UserDataSettings, Ec2UserDataSource  # noqa: PLC0415 - as just said

            user_data = Ec2UserDataSettings(name=entry.name or _free("ec2-user-data", taken))
            return Ec2UserDataSource(user_data, metadata=metadata.ec2, clock=clock, rng=rng)
        case config.GceAttributeEntry():
            if metadata.gce is None:
                raise _needs(where, "gce-attribute", "upstream.gce")
            from agent.sources.gce import GceAttributeSettings, GceAttributeSource  # noqa: PLC0415 - as above

            attribute = GceAttributeSettings(
                key=entry.key, scope=entry.scope, name=entry.name or _free("gce-attribute", taken)
            )
            return GceAttributeSource(attribute, metadata=metadata.gce, clock=clock, rng=rng)
        case config.HttpsEntry():
            return _https(entry, _free("https", taken), make, clock=clock, rng=rng)


def _https(
    entry: config.HttpsEntry,
    name: str,
    make: Callable[..., Upstream],
    *,
    clock: Clock,
    rng: random.Random,
) -> Source:
    """An HTTPS source with a client of its own: its CA and proxy are for nobody else."""
    from agent.sources.https import HttpsSettings, HttpsSource  # noqa: PLC0415 - as above

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
        upstream=make(ca_file=entry.ca_file, proxy=entry.proxy),
        clock=clock,
        rng=rng,
    )


def hidden(settings: config.Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths that the configuration hides and shows, beside the table of :mod:`agent.serve.hiding`."""
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


def _free(kind: str, taken: Collection[str]) -> str:
    """A name that no other source has: ``file``, ``file-2``..."""
    number = 1
    while (name := kind if number == 1 else f"{kind}-{number}") in taken:
        number += 1
    return name


def _needs(where: str, kind: str, key: str) -> ConfigError:
    return ConfigError(
        f"{where}: {kind} needs a metadata service, and this machine has none by its firmware",
        hint=f'set {key} to its base URL, such as "{METADATA_URL}", if there is one',
    )
