"""What the configuration can say: each section, key, unit and default, here and only here.

Long because it is one page: the operator's file in its order, from which the tables of README.md are made.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

MAX_SOCKET_PATH_BYTES: Final = 107
"""``sun_path`` of unix(7) holds 108, the NUL at its end included."""
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400 * 7)]
Path_ = Annotated[str, msgspec.Meta(pattern=r"^/[^\x00]{1,4095}\Z")]
Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s]{1,2000}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
VariablePattern = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_*]{1,128}\Z")]
VariableName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}\Z")]
# What an environment file can hold: agent.host.envfile refuses the same characters, when it is too late to say so.
VariableValue = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]{0,32768}\Z")]
HostName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.:_-]{1,253}\Z")]
MetadataPath = Annotated[str, msgspec.Meta(pattern=r"^/(?:latest|computeMetadata/v1)(?:/[A-Za-z0-9._~@:+=,*-]+)+/?\Z")]
Mode = Annotated[str, msgspec.Meta(pattern=r"^0[0-7]{3}\Z")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename=None):
    """Every section refuses keys it does not know: a misspelt safety switch must not pass in silence."""


class Listen(Section, frozen=True):
    """The listeners.

    Attributes:
        http: where SDKs ask, ``HOST:PORT``; loopback unless a bridge of containers must reach it. Sockets passed by
            systemd (``FileDescriptorName=http``) take the place of these.
        hosts: further names and addresses that requests may be addressed to (``Host``), beside those of ``http`` and of
            the metadata services; needed where ``http`` is a wildcard such as ``0.0.0.0``.
        control: the unix socket of status, metrics and push (``FileDescriptorName=control``).
        control_mode: the mode of that socket when we make it ourselves.
        courier: the unix socket at which workers enrol and hand in bundles (``FileDescriptorName=courier``):
            ``auto``: ``courier.sock`` beside ``control``; ``off``; or a path. Made by us it is for
            ``environment.group``.
        max_connections: at most so many at once; each costs about 10 kB, and what all keep of requests and answers is
            at most 16 MB more. When they are used up, whoever has most gives one up for the newcomer. Lowered, as
            the log and ``status`` say, where the limit of file descriptors leaves fewer.
    """

    http: tuple[str, ...] = ("127.0.0.1:16925",)
    hosts: tuple[HostName, ...] = ()
    control: Path_ = "/run/credential-agent/control.sock"
    control_mode: Mode = "0660"
    courier: Annotated[str, msgspec.Meta(pattern=r"^(?:auto|off|/[^\x00]{1,4095})\Z")] = "auto"
    max_connections: Annotated[int, msgspec.Meta(ge=16, le=65536)] = 8192


class Identity(Section, frozen=True):
    """Who this worker is, and what it does without a bundle.

    Attributes:
        audience: names this worker answers to beside its own (``urn:credbundle:cluster:ID``).
        instance_id: ``auto``: from the metadata service, else ``/etc/machine-id``. What was remembered of another
            instance is forgotten; where firmware or boot contradict the name, nothing is served and nothing forgotten.
        grace_seconds: how long at boot to wait for a first bundle before the machine's own identity is served.
            30 s: user-data and attributes are there within one; a control plane that creates the VM first needs a few.
        fallback: the clouds that may be served from the machine's own identity.
        on_expiry: what follows the end of a bundle that does not say so itself. ``deny``: nobody is surprised.
        role_name: the EC2 role name under which a bundle's identity is listed when nothing better is known.
        horizon_lead_seconds: how long before a cloud's horizon ``horizon.near`` is logged.
    """

    audience: tuple[str, ...] = ()
    instance_id: str = "auto"
    grace_seconds: Seconds = 30.0
    fallback: tuple[Literal["aws", "gcp"], ...] = ("aws", "gcp")
    on_expiry: Literal["deny", "fallback"] = "deny"
    role_name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_+=,.@-]{1,64}\Z")] = "credential-agent"
    horizon_lead_seconds: Seconds = 3600.0


class FileKey(Section, frozen=True, tag_field="kind", tag="file"):
    """A private key in a file, readable by the agent only.

    Attributes:
        path: a JWK, a JWK Set (the current key and the previous one) or unencrypted PEM.
    """

    path: Path_


class CredentialKey(Section, frozen=True, tag_field="kind", tag="credential"):
    """A private key that systemd passes, encrypted ones too.

    Attributes:
        name: as in the unit's ``LoadCredential=NAME:...`` or ``LoadCredentialEncrypted=``.
    """

    name: Name


class AwsKmsKey(Section, frozen=True, tag_field="kind", tag="aws-kms"):
    """A key that never leaves AWS KMS, used with the instance profile.

    Attributes:
        key_id: key ARN or alias ARN.
        public_key: the public half, a file with a JWK or PEM: bundles are addressed to its thumbprint.
        region: when the ARN shall not say it.
        endpoint: a base URL instead of the regional one (VPC endpoint).
    """

    key_id: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    public_key: Path_
    region: str | None = None
    endpoint: Url | None = None


class GcpKmsKey(Section, frozen=True, tag_field="kind", tag="gcp-kms"):
    """A key that never leaves Google Cloud KMS, used with the VM's service account.

    Attributes:
        key_version: ``projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V``.
        public_key: the public half, a file with a JWK or a PEM.
        endpoint: a base URL instead of the global one.
    """

    key_version: Annotated[str, msgspec.Meta(pattern=r"^projects/[!-~]{1,1000}/cryptoKeyVersions/[0-9]+\Z")]
    public_key: Path_
    endpoint: Url | None = None


class EphemeralKey(Section, frozen=True, tag_field="kind", tag="ephemeral"):
    """A key made at the first start after a boot, in memory only. Its public half goes where senders can find it.

    Attributes:
        publish_file: write the public JWK there.
        publish_guest_attribute: ``NAMESPACE/KEY`` of a GCE guest attribute to write it to.
    """

    publish_file: Path_ | None = None
    publish_guest_attribute: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]+/[A-Za-z0-9_-]+\Z")] | None = None


KeyEntry = FileKey | CredentialKey | AwsKmsKey | GcpKmsKey | EphemeralKey


class SignerEntry(Section, frozen=True):
    """Whom this worker believes, and in what.

    Attributes:
        key: a file with the public key (JWK or PEM).
        issuers: the ``iss`` it may sign for; a trailing ``*`` makes a prefix of it.
        audiences: the ``aud`` it may sign for, likewise.
        max_lease_seconds: how long a lease it may give; ``0``: any.
    """

    key: Path_
    issuers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    audiences: tuple[str, ...] = ("*",)
    max_lease_seconds: Annotated[int, msgspec.Meta(ge=0)] = 0


class LaunchSigners(Section, frozen=True):
    """Signers that whoever launches the machine names for it; off without an entry.

    Attributes:
        issuers: the ``iss`` that such a signer may sign for; a trailing ``*`` makes a prefix of it.
        audiences: the ``aud``, likewise.
        max_lease_seconds: the longest lease that it may give; a bundle of its without one has this. 12 h.
    """

    issuers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    audiences: tuple[str, ...] = ("*",)
    max_lease_seconds: Annotated[int, msgspec.Meta(ge=60, le=366 * 86_400)] = 43_200


class Ec2UserDataSigners(LaunchSigners, frozen=True, tag_field="kind", tag="ec2-user-data"):
    """Lines ``credential-agent-signer: KEY`` in EC2 user-data, wherever a bundle may stand in it."""


class Ec2TagSigners(LaunchSigners, frozen=True, tag_field="kind", tag="ec2-tag"):
    """An EC2 instance tag, where the instance shows its tags in its metadata (``InstanceMetadataTags``).

    Attributes:
        tag: its key. Whoever may tag the instance then names signers.
    """

    tag: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,128}\Z")] = "credential-agent-signer"


class GceAttributeSigners(LaunchSigners, frozen=True, tag_field="kind", tag="gce-attribute"):
    """A GCE metadata attribute of the instance.

    Attributes:
        key: its name.
    """

    key: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,128}\Z")] = "credential-agent-signer"


class CredentialSigners(LaunchSigners, frozen=True, tag_field="kind", tag="credential"):
    """A credential that systemd passes (``LoadCredential=``); where it is not given, it names nobody.

    Attributes:
        name: its name.
    """

    name: Name = "credential-agent.signers"


class DirectorySigners(LaunchSigners, frozen=True, kw_only=True, tag_field="kind", tag="directory"):
    """The files ``*.jwk``, ``*.pem`` and ``*.pub`` of a directory, looked at every few seconds.

    Attributes:
        path: the directory; it need not exist yet. Whoever may write there names signers.
    """

    path: Path_


LaunchSignersEntry = Ec2UserDataSigners | Ec2TagSigners | GceAttributeSigners | CredentialSigners | DirectorySigners


class Enrol(Section, frozen=True):
    """How this worker proves to a sender which machine its key belongs to.

    Attributes:
        aws_web_identity: also by a token of ``sts:GetWebIdentityToken``, which the account must have enabled and the
            machine's role must be allowed.
    """

    aws_web_identity: bool = False


class FileSourceEntry(Section, frozen=True, tag_field="kind", tag="file"):
    """A file that something else puts there; a rename into place is seen within a second.

    Attributes:
        path: the file; it and its directory need not exist yet.
        name: its name in logs, metrics and acknowledgements; by default its kind.
    """

    path: Path_
    name: Name | None = None


class Ec2UserDataEntry(Section, frozen=True, tag_field="kind", tag="ec2-user-data"):
    """EC2 user-data: the bundle alone, armoured inside anything, a MIME part, or systemd's JSON.

    Attributes:
        name: its name in logs, metrics and acknowledgements; by default its kind.
    """

    name: Name | None = None


class GceAttributeEntry(Section, frozen=True, tag_field="kind", tag="gce-attribute"):
    """A GCE metadata attribute. A change is seen at once, without polling.

    Attributes:
        key: the attribute.
        scope: the instance's, the project's, or both.
        name: its name in logs, metrics and acknowledgements; by default its kind.
    """

    key: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,128}\Z")] = "credential-bundle"
    scope: Literal["instance", "project", "both"] = "both"
    name: Name | None = None


class HttpsEntry(Section, frozen=True, tag_field="kind", tag="https"):
    """An object at a URL: ETag, long poll; a pre-signed URL is the same thing.

    Attributes:
        url: the object; its query may be a credential and is never logged.
        url_file: holds that URL, read again for every request. In place of ``url``: give one of the two.
        ack_url: where verdicts are posted.
        ca_file: a private CA for it.
        token_file: a bearer token sent with every request.
        wait_seconds: how long the server may hold a poll (``Prefer: wait``); 50 s is below common proxy timeouts.
        poll_seconds: between polls of a server that does not hold them.
        proxy: an explicit proxy; the environment's are never used.
        name: its name in logs, metrics and acknowledgements; by default its kind.
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
    """The machine's real metadata services and the way out.

    Attributes:
        ec2: ``auto`` (by the firmware's vendor string), ``off``, or a base URL.
        gce: the same for Google.
        connect_timeout_seconds, read_timeout_seconds: of every request out.
        ca_file: a private CA for all of them.
        proxy: an explicit proxy for everything but the metadata services. The environment's are never used.
        allow_private_addresses: let URLs that come *in a bundle* lead to private and loopback addresses.
    """

    ec2: str = "auto"
    gce: str = "auto"
    connect_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=60)] = 5.0
    read_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=120)] = 10.0
    ca_file: Path_ | None = None
    proxy: Url | None = None
    allow_private_addresses: bool = False


class Mint(Section, frozen=True):
    """How credentials are minted, and what a bundle may make this machine do.

    Attributes:
        sts_endpoint: an STS endpoint instead of the regional one (private endpoints, tests).
        google_token_url, google_sts_url, google_iamcredentials_url: Google's endpoints instead of its own.
        allowed_origins: origins beside the clouds' own that grants may name (``https://broker.example``).
        web_token_directories: directories below which a grant may read web identity tokens.
        probe: ask ``GetCallerIdentity`` before a renewed credential replaces another, when the grant says what to
            expect.
        request_timeout_seconds: of one request to a cloud or broker.
        spread_seconds: draw the first mint after a new bundle from this long, so that a fleet started in one second
            does not arrive at STS in one. 0: at once.
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
    """What is said of AWS when neither the bundle nor the machine does.

    Attributes:
        region: as ``eu-west-1``. Where no zone is known its first one stands for it (``eu-west-1a``): some clients read
            nothing else.
        availability_zone: as ``eu-west-1a``.
        account_id: twelve digits.
        imdsv1: answer EC2 metadata requests without a session token. Off: it is what SSRF attacks need.
    """

    region: str | None = None
    availability_zone: str | None = None
    account_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{12}\Z")] | None = None
    imdsv1: bool = False


class Gcp(Section, frozen=True):
    """What is said of Google when neither the bundle nor the machine does.

    Attributes:
        project_id: as ``research-7``.
        numeric_project_id: its number; gcloud believes in no metadata server without one.
        zone: as ``europe-west1-b``.
    """

    project_id: str | None = None
    numeric_project_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,20}\Z")] | None = None
    zone: str | None = None


class PassThrough(Section, frozen=True):
    """Metadata that is not a credential.

    Attributes:
        enabled: pass it through to the real service. Off: what is not ours is 404.
        show_user_data: let workers read user-data. It may carry the bundle: sealed, but whose business is it.
        hide: what workers do not see beside the table below, with what lies under it: whole paths, ``/latest/...`` for
            every version of EC2's tree, ``/computeMetadata/v1/...`` for Google's; ``*`` is any text in a segment.
        show: what they do see though the table or its name hides it, likewise. ``hide`` is stronger.
    """

    enabled: bool = True
    show_user_data: bool = False
    hide: tuple[MetadataPath, ...] = ()
    show: tuple[MetadataPath, ...] = ()


class Environment(Section, frozen=True):
    """The files that programs on the worker read.

    Attributes:
        file: for systemd's ``EnvironmentFile=``.
        shell_file: the same for ``sh``.
        container_file: for containers (their engines' ``env-file``): addresses that SDKs take and the redirection
            leads, none of loopback. Not set: none is written.
        token_file: the bearer token of the container-credentials endpoint, without a newline.
        group: who may read them, beside the agent.
        mode: their mode.
        variables: further variables, as they are.
        allow: names of a bundle's variables that pass beside those whose shape says a value (``MYAPP_TOKEN``,
            ``DATABASE_URL``), ``*`` for any rest: ``["MYAPP_*"]``. Names of tools that load code or choose a server
            (pip, Dask, Jupyter, MPI) pass only when the pattern names the tool.
        imds_endpoint: also point ``AWS_EC2_METADATA_SERVICE_ENDPOINT`` at us (for machines without the redirect).
        static: write the keys themselves, for programs that can use nothing else. They go stale: off.
    """

    file: Path_ = "/run/credential-agent/env"
    shell_file: Path_ = "/run/credential-agent/env.sh"
    container_file: Path_ | None = None
    token_file: Path_ = "/run/credential-agent/token"  # noqa: S105 - a path
    group: str | None = None
    mode: Mode = "0640"
    variables: dict[VariableName, VariableValue] = {}
    allow: tuple[VariablePattern, ...] = ()
    imds_endpoint: bool = True
    static: bool = False


class State(Section, frozen=True):
    """What outlives the process: the sealed bundle as it came, and what was accepted. Never an opened credential.

    Attributes:
        directory: it must exist, and be the agent's alone.
    """

    directory: Path_ = "/var/lib/credential-agent"


class Log(Section, frozen=True):
    """Logs, on standard error.

    Attributes:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        format: ``json``, ``console``, or ``auto``: readable on a terminal, JSON lines off one.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Redirect(Section, frozen=True):
    """Who is a worker, for the nftables redirection (a unit of its own; the daemon reads none of this).

    Attributes:
        uids: single uids and ranges (``1000-60000``); the default is every non-system uid, those of containers and user
            namespaces included.
        users: names, looked up when the rules are applied, and again until they are there.
        units: systemd slices (and units that run) whose processes are workers whatever their uid, root included.
        exempt_bridges: interfaces whose packets are the machine's own and reach the real service; a final ``*`` stands
            for any rest. Everything else that is forwarded to a metadata address is a worker's, whatever its
            interface is called.
        bridges: interfaces of containers that may also ask the agent's own port, and are led though the rules would
            take them for a cable (a bond, a VLAN). The default is what Docker and Podman make.
        ipv6: lead ``fd00:ec2::254``, ``fd20:ce::254`` and ``fd00:ec2::23`` too. Refused they are in any case.
        port: where to; ``0``: the port of ``listen.http``.
        max_connections_per_worker: how many connections to the agent one uid, or one address of a container, may have
            at once; ``0``: any number. An SDK needs one for some milliseconds per credential.
        new_connections_per_worker: how many it may begin each second, after three seconds' worth at once; ``0``: any
            number. An SDK begins three to six per process, so the default lets five hundred processes start together.
    """

    uids: tuple[str, ...] = ("1000-60513", "60578-4294967293")
    users: tuple[str, ...] = ()
    units: tuple[str, ...] = ("credential-agent-workers.slice",)
    exempt_bridges: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ("docker0", "br-*", "podman*", "cni-podman*")
    ipv6: bool = True
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    max_connections_per_worker: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 1024
    new_connections_per_worker: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 1000


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
    redirect: Redirect = Redirect()
