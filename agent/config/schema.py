"""What the configuration can say: each section, key, unit and default, here and only here.

Long because it is one page: the operator's file in its order. CONFIGURATION.md is made from it.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from agent.config.shapes import (
    AccountId,
    AttributeKey,
    GroupName,
    GuestAttribute,
    HostName,
    KmsArn,
    KmsKeyVersion,
    MachineName,
    MetadataPath,
    MetricsPath,
    Mode,
    Name,
    Path_,
    PlainText,
    ProjectId,
    ProjectNumber,
    Region,
    RoleName,
    Seconds,
    Signed,
    SocketPath,
    Url,
    VariableName,
    VariablePattern,
    VariableValue,
    Zone,
)
from agent.wire.names import BUNDLE_ATTRIBUTE

MAX_SOCKET_PATH_BYTES: Final = 107
"""``sun_path`` of unix(7) holds 108, the NUL at its end included."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename=None):
    """Every section refuses keys it does not know: a misspelt safety switch must not pass in silence."""


class Listen(Section, frozen=True):
    """The sockets on which the agent listens.

    Attributes:
        http: the addresses at which SDKs ask, ``HOST:PORT`` each. Keep them on loopback, unless containers on a bridge
            must reach the agent. Not used where systemd passes sockets (``FileDescriptorName=http``), as the installed
            units do.
        hosts: further host names and addresses that a request may carry in its ``Host`` header. Those of ``http`` and
            of the metadata services are always accepted. Needed where ``http`` is a wildcard such as ``0.0.0.0``.
        control: path of the unix socket for operators: status, metrics, push (``FileDescriptorName=control``).
        control_mode: file mode of that socket, octal. Not used where systemd passes the socket.
        courier: path of the unix socket at which workers enrol and hand in bundles (``FileDescriptorName=courier``).
            ``auto`` means ``courier.sock`` beside ``control``; ``off`` means none. Where systemd does not pass it, the
            agent makes it for the group ``environment.group``.
        max_connections: the most connections that are open at once. Each costs about 10 kB; requests and answers in
            work add at most 16 MB together. When all are in use, whoever has the most loses one to a newcomer. The
            agent lowers it where the limit of file descriptors is smaller, and says so in the log and in ``status``.
    """

    http: tuple[str, ...] = ("127.0.0.1:16925",)
    hosts: tuple[HostName, ...] = ()
    control: Path_ = "/run/credential-agent/control.sock"
    control_mode: Mode = "0660"
    courier: SocketPath = "auto"
    max_connections: Annotated[int, msgspec.Meta(ge=16, le=65536)] = 8192


class Identity(Section, frozen=True):
    """Which names this worker has, and what it serves without a bundle.

    Attributes:
        audience: further names of this worker, such as ``urn:credbundle:cluster:ID``. A bundle is accepted only if it
            is addressed (``aud``) to a name of the worker. It answers to the names of its keys and of its instance
            without being told so here.
        instance_id: the name of this machine, to which the saved state belongs. ``auto`` asks the metadata service, and
            reads ``/etc/machine-id`` where there is none. State saved under another name (a clone of an image) is
            deleted. Where the firmware, the boot or (for ``/etc/machine-id``) all network cards contradict the name,
            the agent serves nothing and deletes nothing.
        grace_seconds: how long, in seconds, the agent waits for a first bundle before it serves the machine's own
            identity. It counts from the agent's first start after a boot, and only where a key is configured. User-data
            and attributes are there within one second. Raise it if a control plane creates the machine first and sends
            the bundle later. The agent waits longer, with 503, for user-data or an attribute that the metadata service
            has not answered yet, for a bundle's file that does not answer, and for a bundle that a source has brought
            as long as a key service does not open it, a place that names its signer, or this machine, does not answer,
            a file of ``keys`` or ``signers`` cannot be read, or it is over by the machine's clock and not by that of
            the metadata service.
        fallback: the clouds for which the agent may serve the machine's own identity (EC2 role, GCE service account)
            while no bundle has decided otherwise. ``[]``: never.
        on_expiry: what is served after the end of a bundle that does not say so itself: ``deny`` serves nothing,
            ``fallback`` serves the machine's own identity.
        role_name: the role name in EC2's metadata for an identity from a bundle, where the bundle and the ARN name no
            role.
        horizon_lead_seconds: how many seconds before a cloud's identity ends for good the event ``horizon.near`` is
            logged.
    """

    audience: tuple[PlainText, ...] = ()
    instance_id: MachineName = "auto"
    grace_seconds: Seconds = 30.0
    fallback: tuple[Literal["aws", "gcp"], ...] = ("aws", "gcp")
    on_expiry: Literal["deny", "fallback"] = "deny"
    role_name: RoleName = "credential-agent"
    horizon_lead_seconds: Seconds = 3600.0


class FileKey(Section, frozen=True, tag_field="kind", tag="file"):
    """A private key in a file that only the agent can read.

    Attributes:
        path: the file: a JWK, unencrypted PEM, or a JWK Set (to rotate: the new key and the previous one).
    """

    path: Path_


class CredentialKey(Section, frozen=True, tag_field="kind", tag="credential"):
    """A private key that systemd passes to the service, encrypted on disk or not.

    Attributes:
        name: the NAME in the unit's ``LoadCredential=NAME:...`` or ``LoadCredentialEncrypted=NAME:...``.
    """

    name: Name


class AwsKmsKey(Section, frozen=True, tag_field="kind", tag="aws-kms"):
    """A private key that never leaves AWS KMS. The agent asks KMS as the instance profile.

    Attributes:
        key_id: ARN of the key or of an alias.
        public_key: path of a file with the public half (JWK or PEM). Bundles are addressed to its thumbprint.
        region: region of KMS. Default: the region in the ARN.
        endpoint: base URL of KMS, such as a VPC endpoint. Default: the region's own.
    """

    key_id: KmsArn
    public_key: Path_
    region: Region | None = None
    endpoint: Url | None = None


class GcpKmsKey(Section, frozen=True, tag_field="kind", tag="gcp-kms"):
    """A private key that never leaves Google Cloud KMS. The agent asks KMS as the VM's service account.

    Attributes:
        key_version: ``projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V``.
        public_key: path of a file with the public half (JWK or PEM). Bundles are addressed to its thumbprint.
        endpoint: base URL of KMS. Default: Google's own.
    """

    key_version: KmsKeyVersion
    public_key: Path_
    endpoint: Url | None = None


class EphemeralKey(Section, frozen=True, tag_field="kind", tag="ephemeral"):
    """A private key that the agent makes at its first start after a boot and keeps in memory only.

    Senders need its public half: publish it in one of the places below, or let them ask the couriers' socket.

    Attributes:
        publish_file: path of a file to which the public key (JWK) is written.
        publish_guest_attribute: GCE guest attribute to which the public key is written, ``NAMESPACE/KEY``.
    """

    publish_file: Path_ | None = None
    publish_guest_attribute: GuestAttribute | None = None


KeyEntry = FileKey | CredentialKey | AwsKmsKey | GcpKmsKey | EphemeralKey


class SignerEntry(Section, frozen=True):
    """A sender whose bundles this worker accepts, and for what.

    Attributes:
        key: path of a file with the sender's public key (JWK or PEM).
        issuers: the issuers (``iss``) for which this key may sign. A trailing ``*`` stands for any rest.
        audiences: the audiences (``aud``) for which it may sign. A trailing ``*`` stands for any rest.
        max_lease_seconds: the longest lease, in seconds, that its bundles may give. ``0``: any.
    """

    key: Path_
    issuers: Annotated[tuple[Signed, ...], msgspec.Meta(min_length=1)]
    audiences: Annotated[tuple[Signed, ...], msgspec.Meta(min_length=1)] = ("*",)
    max_lease_seconds: Annotated[int, msgspec.Meta(ge=0, le=366 * 86_400)] = 0


class LaunchSigners(Section, frozen=True):
    """Senders that whoever launches the machine names for it. Off without an entry.

    Attributes:
        issuers: the issuers (``iss``) for which such a sender may sign. A trailing ``*`` stands for any rest.
        audiences: the audiences (``aud``) for which it may sign. A trailing ``*`` stands for any rest.
        max_lease_seconds: the longest lease, in seconds, that its bundles may give. A bundle without a lease gets this
            one. The default is 12 hours.
    """

    issuers: Annotated[tuple[Signed, ...], msgspec.Meta(min_length=1)]
    audiences: Annotated[tuple[Signed, ...], msgspec.Meta(min_length=1)] = ("*",)
    max_lease_seconds: Annotated[int, msgspec.Meta(ge=60, le=366 * 86_400)] = 43_200


class Ec2UserDataSigners(LaunchSigners, frozen=True, tag_field="kind", tag="ec2-user-data"):
    """Accept senders named in EC2 user-data: a line ``credential-agent-signer: KEY`` wherever a bundle may stand."""


class Ec2TagSigners(LaunchSigners, frozen=True, tag_field="kind", tag="ec2-tag"):
    """Accept senders named in an EC2 instance tag.

    The instance must show its tags in its metadata (``InstanceMetadataTags``).

    Attributes:
        tag: the key of the tag. Whoever may tag the instance can then name senders.
    """

    tag: AttributeKey = "credential-agent-signer"


class GceAttributeSigners(LaunchSigners, frozen=True, tag_field="kind", tag="gce-attribute"):
    """Accept senders named in a GCE metadata attribute of the instance.

    Attributes:
        key: the name of the attribute. Whoever may change the instance's metadata can then name senders.
    """

    key: AttributeKey = "credential-agent-signer"


class CredentialSigners(LaunchSigners, frozen=True, tag_field="kind", tag="credential"):
    """Accept senders named in a credential that systemd passes to the service. Where it is not passed, none is named.

    Attributes:
        name: the NAME in the unit's ``LoadCredential=NAME:...``.
    """

    name: Name = "credential-agent.signers"


class DirectorySigners(LaunchSigners, frozen=True, kw_only=True, tag_field="kind", tag="directory"):
    """Accept senders whose keys lie in a directory: ``*.jwk``, ``*.pem`` and ``*.pub``, looked at every few seconds.

    Attributes:
        path: the directory; it need not exist yet. Whoever may write there can then name senders.
    """

    path: Path_


LaunchSignersEntry = Ec2UserDataSigners | Ec2TagSigners | GceAttributeSigners | CredentialSigners | DirectorySigners


class Enrol(Section, frozen=True):
    """How this worker proves to a sender which machine its key belongs to.

    Attributes:
        aws_web_identity: also offer a token of ``sts:GetWebIdentityToken`` as proof. The account must have enabled that
            call, and the machine's role must be allowed to make it.
    """

    aws_web_identity: bool = False


class FileSourceEntry(Section, frozen=True, tag_field="kind", tag="file"):
    """Take the bundle from a file. A new file is seen within a second; replace it by renaming.

    Attributes:
        path: the file. It and its directory need not exist yet.
        name: name of this source in logs, metrics and acknowledgements. Default: its kind.
    """

    path: Path_
    name: Name | None = None


class Ec2UserDataEntry(Section, frozen=True, tag_field="kind", tag="ec2-user-data"):
    """Take the bundle from EC2 user-data: alone, armoured inside other text, as a MIME part, or in systemd's JSON.

    Attributes:
        name: name of this source in logs, metrics and acknowledgements. Default: its kind.
    """

    name: Name | None = None


class GceAttributeEntry(Section, frozen=True, tag_field="kind", tag="gce-attribute"):
    """Take the bundle from a GCE metadata attribute. A change is seen at once, without polling.

    Attributes:
        key: the name of the attribute.
        scope: whose attribute is read: the ``instance``'s, the ``project``'s, or ``both``. Of two bundles the newer one
            counts.
        name: name of this source in logs, metrics and acknowledgements. Default: its kind.
    """

    key: AttributeKey = BUNDLE_ATTRIBUTE
    scope: Literal["instance", "project", "both"] = "both"
    name: Name | None = None


class HttpsEntry(Section, frozen=True, tag_field="kind", tag="https"):
    """Take the bundle from a URL, with ETag and long poll. A pre-signed URL works too.

    Attributes:
        url: the URL. Its query may be a credential, and is never logged. Give either ``url`` or ``url_file``. One that
            does not answer is not waited for beyond ``grace_seconds``: no start must depend on a web server.
        url_file: path of a file with the URL, read again before every request. It keeps the URL out of this file.
        ack_url: URL to which the agent posts whether it accepted each bundle. Default: nowhere.
        ca_file: path of a file with certificate authorities (PEM) to trust for this source, beside the system's.
            Default: ``upstream.ca_file``.
        token_file: path of a file with a bearer token, sent with every request.
        wait_seconds: how long, in seconds, the server may hold a request until there is a change (``Prefer: wait``).
            ``0``: do not ask it to. 50 s is below the usual timeouts of proxies.
        poll_seconds: pause between requests, in seconds, where the server does not hold them.
        proxy: URL of an HTTP proxy for this source. Default: ``upstream.proxy``. Proxies named in the environment are
            never used.
        name: name of this source in logs, metrics and acknowledgements. Default: its kind.
    """

    url: Url | None = None
    url_file: Path_ | None = None
    ack_url: Url | None = None
    ca_file: Path_ | None = None
    token_file: Path_ | None = None
    wait_seconds: Annotated[float, msgspec.Meta(ge=0, le=300)] = 50.0
    poll_seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    proxy: Url | None = None
    name: Name | None = None


SourceEntry = FileSourceEntry | Ec2UserDataEntry | GceAttributeEntry | HttpsEntry


class Upstream(Section, frozen=True):
    """The machine's real metadata services, and connections to the outside.

    Attributes:
        ec2: the real EC2 metadata service: ``auto`` uses it where the firmware says that this is EC2, ``off`` never; or
            its base URL.
        gce: the real GCE metadata server, likewise.
        connect_timeout_seconds: how long, in seconds, one connection may take to be made.
        read_timeout_seconds: how long, in seconds, a server may stay silent.
        ca_file: path of a file with certificate authorities (PEM) to trust for all connections, beside the system's.
        proxy: URL of an HTTP proxy for everything but the metadata services. Proxies named in the environment are never
            used.
        allow_private_addresses: allow URLs *in a bundle* to lead to private and loopback addresses, as for a broker in
            your own network.
    """

    ec2: str = "auto"
    gce: str = "auto"
    connect_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=60)] = 5.0
    read_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=120)] = 10.0
    ca_file: Path_ | None = None
    proxy: Url | None = None
    allow_private_addresses: bool = False


class Mint(Section, frozen=True):
    """How the agent gets credentials, and where a bundle may make it send requests.

    Attributes:
        sts_endpoint: URL of AWS STS, such as a private endpoint. Default: the region's own.
        google_token_url: URL of Google's OAuth token endpoint. Default: Google's own.
        google_sts_url: URL of Google's STS. Default: Google's own.
        google_iamcredentials_url: URL of Google's IAM Credentials service. Default: Google's own.
        allowed_origins: origins that the grants of a bundle may name, such as ``https://broker.example``, beside the
            clouds' own.
        web_token_directories: directories in which a grant may read files with web identity tokens. Default: none.
        probe: ask AWS whose a new credential is (``GetCallerIdentity``) before it is served, where the grant says whose
            it must be.
        request_timeout_seconds: how long, in seconds, one request to a cloud or a broker may take.
        spread_seconds: after a new bundle, wait a random time of up to this many seconds before the first request. It
            keeps a large fleet that starts at once from asking STS all at once. ``0``: no wait.
    """

    sts_endpoint: Url | None = None
    google_token_url: Url | None = None
    google_sts_url: Url | None = None
    google_iamcredentials_url: Url | None = None
    allowed_origins: tuple[str, ...] = ()
    web_token_directories: tuple[Path_, ...] = ()
    probe: bool = True
    request_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=60)] = 15.0
    spread_seconds: Seconds = 0.0


class Aws(Section, frozen=True):
    """Facts about AWS, used where neither the bundle nor the machine says them.

    Attributes:
        region: such as ``eu-west-1``. While no zone is known, clients that read nothing but the zone are told the
            region's first one (``eu-west-1a``).
        availability_zone: such as ``eu-west-1a``.
        account_id: twelve digits.
        imdsv1: answer EC2 metadata requests that carry no session token (IMDSv1). Leave it off: server-side request
            forgery needs it.
    """

    region: Region | None = None
    availability_zone: Zone | None = None
    account_id: AccountId | None = None
    imdsv1: bool = False


class Gcp(Section, frozen=True):
    """Facts about Google Cloud, used where neither the bundle nor the machine says them.

    Attributes:
        project_id: such as ``research-7``.
        numeric_project_id: the project's number. gcloud recognises a metadata server only if it tells this number.
        zone: such as ``europe-west1-b``.
    """

    project_id: ProjectId | None = None
    numeric_project_id: ProjectNumber | None = None
    zone: Zone | None = None


class PassThrough(Section, frozen=True):
    """Which of the machine's real metadata workers see. Credentials always come from the agent.

    Attributes:
        enabled: pass other requests through to the real metadata service. Off: the agent answers 404 to them.
        show_user_data: let workers read user-data. It may carry the sealed bundle and other secrets of the machine.
        hide: further paths to hide from workers, with all that is below them, beside the table of hidden paths. Whole
            paths: ``/latest/...`` for every version of EC2's tree, ``/computeMetadata/v1/...`` for Google's. ``*``
            stands for any text within one segment.
        show: paths to show to workers although the table hides them, written likewise. Where both match, ``hide`` wins.
    """

    enabled: bool = True
    show_user_data: bool = False
    hide: tuple[MetadataPath, ...] = ()
    show: tuple[MetadataPath, ...] = ()


class Environment(Section, frozen=True):
    """The files from which programs on the worker learn where the agent is.

    Attributes:
        file: path of the file for systemd's ``EnvironmentFile=``.
        shell_file: path of the file for ``sh``, with the same variables.
        container_file: path of the file for containers (docker's ``env-file``): it names no loopback address, only
            addresses that the redirection leads to the agent. Default: none is written.
        token_file: path of the file with the bearer token of the container-credentials endpoint, without a newline.
        group: group that may read these files. Default: the agent's user alone.
        mode: mode of these files, octal.
        variables: further variables to write, as they are.
        allow: names of a bundle's variables to pass on, such as ``["MYAPP_*"]``; ``*`` stands for any rest. Names that
            look like a value (``MYAPP_TOKEN``, ``DATABASE_URL``) pass anyway. Names of tools that load code or choose a
            server (pip, Dask, Jupyter, MPI) pass only if the pattern names the tool.
        imds_endpoint: also write ``AWS_EC2_METADATA_SERVICE_ENDPOINT``, for machines without the redirection.
        static: also write the keys themselves, for programs that can use nothing else. Such a program fails when they
            expire: leave it off. The machine's own keys are written only where no bundle can come (no ``[[keys]]``): a
            program that began with them would keep them for hours.
    """

    file: Path_ = "/run/credential-agent/env"
    shell_file: Path_ = "/run/credential-agent/env.sh"
    container_file: Path_ | None = None
    token_file: Path_ = "/run/credential-agent/token"  # noqa: S105 - a path
    group: GroupName | None = None
    mode: Mode = "0640"
    variables: dict[VariableName, VariableValue] = {}
    allow: tuple[VariablePattern, ...] = ()
    imds_endpoint: bool = True
    static: bool = False


class State(Section, frozen=True):
    """What the agent saves on disk: the sealed bundle as it came, and what it accepted. Never an opened credential.

    Attributes:
        directory: path of the directory. It must exist and belong to the agent alone.
    """

    directory: Path_ = "/var/lib/credential-agent"


class Log(Section, frozen=True):
    """Logging, to standard error.

    Attributes:
        level: the least level that is logged: ``debug``, ``info``, ``warning`` or ``error``.
        format: ``json`` (one object on each line), ``console`` (for people), or ``auto``: ``console`` on a terminal,
            else ``json``.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Metrics(Section, frozen=True):
    """Metrics as a file, for a scraper that may not ask the control socket.

    Attributes:
        textfile: path of a file for node_exporter's textfile collector, such as
            ``/run/credential-agent/metrics.prom``. Its directory must exist. Without a path no file is written.
        group: the group that may read the file. The agent must be a member of it. Do not name a group of workers: the
            metrics tell grants, sources and refusals.
        seconds: how often the file is written, in seconds.
    """

    textfile: MetricsPath | None = None
    group: GroupName | None = None
    seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 15.0


class Audit(Section, frozen=True):
    """A record of who was given which credential.

    Attributes:
        mode: ``summary`` writes one log line for each asker, identity and key within ``seconds``. ``full`` writes one
            for each program of an asker too, and asks the kernel who it is at every request, also in a flood: each
            then takes about 15 microseconds more. ``off`` writes nothing. A change needs a restart.
        seconds: how long requests are gathered into one line, in seconds.
        file: path of a file that gets the same lines as JSON, beside the log. Its directory must exist, and the agent
            must be able to write there. Without a path there is no file.
        group: the group that may read the file. Without a group only the agent and root can.
        file_bytes: size at which the file is renamed to ``FILE.1`` and a new one begun, in bytes. Five old ones are
            kept.
    """

    mode: Literal["off", "summary", "full"] = "summary"
    seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0
    file: Path_ | None = None
    group: GroupName | None = None
    file_bytes: Annotated[int, msgspec.Meta(ge=65_536, le=1 << 40)] = 10_485_760


class Redirect(Section, frozen=True):
    """Who is a worker, for the nftables redirection. A unit of its own reads it, and has its own reload.

    Attributes:
        uids: users that are workers: single uids and ranges (``1000-60000``). The default is every uid that is no
            system user's, those of containers and user namespaces included.
        users: further users that are workers, by name. A name that does not exist yet is looked up again until it does.
        units: systemd slices, and services while they run, whose processes are workers whatever their uid, root
            included.
        exempt_bridges: interfaces whose packets reach the real metadata service, because what is behind them is no
            worker. A trailing ``*`` stands for any rest. Everything else that is forwarded counts as a worker's.
        bridges: interfaces of containers that may also connect to the agent's own port. Name here also a bond or a VLAN
            that leads to containers: by default such an interface counts as a cable, and is not redirected. The default
            is what Docker and Podman make.
        ipv6: also redirect the IPv6 addresses of the metadata services (``fd00:ec2::254``, ``fd20:ce::254``,
            ``fd00:ec2::23``). Off: workers are refused there.
        port: the agent's port. ``0``: the port of ``listen.http``.
        max_connections_per_worker: the most connections to the agent that one uid, or one address of a container, may
            have open at once. ``0``: any number. An SDK needs one for some milliseconds per credential.
        new_connections_per_worker: the most connections that it may open per second, lastingly; twelve seconds' worth
            may come at once. ``0``: any number. An SDK opens three to six per process, so the default lets five hundred
            processes start together. More than twice as many, lastingly, and one uid can take every port that the
            machine has for connections to the metadata service: a port rests for a minute after each.
    """

    uids: tuple[str, ...] = ("1000-4294967293",)
    users: tuple[str, ...] = ()
    units: tuple[str, ...] = ("credential-agent-workers.slice",)
    exempt_bridges: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ("docker0", "br-*", "podman*", "cni-podman*")
    ipv6: bool = True
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    max_connections_per_worker: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 1024
    new_connections_per_worker: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 250


class Config(Section, frozen=True):
    """The whole file. Every section may be left out."""

    listen: Listen = Listen()
    identity: Identity = Identity()
    keys: tuple[KeyEntry, ...] = ()
    signers: tuple[SignerEntry, ...] = ()
    launch_signers: tuple[LaunchSignersEntry, ...] = ()
    sources: tuple[SourceEntry, ...] = ()
    enrol: Enrol = Enrol()
    upstream: Upstream = Upstream()
    mint: Mint = Mint()
    aws: Aws = Aws()
    gcp: Gcp = Gcp()
    pass_through: PassThrough = PassThrough()
    environment: Environment = Environment()
    state: State = State()
    log: Log = Log()
    metrics: Metrics = Metrics()
    audit: Audit = Audit()
    redirect: Redirect = Redirect()
