"""The configuration file: TOML, decoded strictly into frozen values.

An unknown key, a wrong type, a path that cannot be right: one clear line with the key and what was expected, and
nothing is started. Every default has its unit and its reason here, and only here. No environment variable is read: what
a unit file passes to the daemon (``NOTIFY_SOCKET``, ``LISTEN_FDS``, ``CREDENTIALS_DIRECTORY``) is the composition
root's business.

What this room does *not* do: open the files it names. A key that is absent is the daemon's error, with its own text.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, TypeVar, get_args

import msgspec

from agent.core.errors import ConfigError

MAX_FILE_BYTES: Final = 1 << 20
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


_S = TypeVar("_S")


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename=None):
    """Every section refuses keys it does not know: a misspelt safety switch must not pass in silence."""


class Listen(_Section, frozen=True):
    """The doors.

    Attributes:
        http: where SDKs ask, ``HOST:PORT``; loopback unless a bridge of containers must reach it. Sockets passed by
            systemd (``FileDescriptorName=http``) take the place of these.
        hosts: further names and addresses that requests may be addressed to (``Host``), beside those of ``http`` and of
            the metadata services; needed where ``http`` is a wildcard such as ``0.0.0.0``.
        control: the unix socket of status, metrics and push (``FileDescriptorName=control``).
        control_mode: the mode of that socket when we make it ourselves.
        max_connections: at most so many at once; each costs about 10 kB, and what all keep of requests and answers is
            at most 16 MB more. When they are used up, whoever has most gives one up for the newcomer. Lowered, with a
            line in the log, where the limit of file descriptors leaves fewer.
    """

    http: tuple[str, ...] = ("127.0.0.1:16925",)
    hosts: tuple[HostName, ...] = ()
    control: Path_ = "/run/credential-agent/control.sock"
    control_mode: Mode = "0660"
    max_connections: Annotated[int, msgspec.Meta(ge=16, le=65536)] = 8192


class Identity(_Section, frozen=True):
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


class FileKey(_Section, frozen=True, tag_field="kind", tag="file"):
    """A private key in a file, readable by the agent only.

    Attributes:
        path: a JWK, a JWK Set (the current key and the previous one) or unencrypted PEM.
    """

    path: Path_


class CredentialKey(_Section, frozen=True, tag_field="kind", tag="credential"):
    """A private key that systemd passes, encrypted ones too.

    Attributes:
        name: as in the unit's ``LoadCredential=NAME:...`` or ``LoadCredentialEncrypted=``.
    """

    name: Name


class AwsKmsKey(_Section, frozen=True, tag_field="kind", tag="aws-kms"):
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


class GcpKmsKey(_Section, frozen=True, tag_field="kind", tag="gcp-kms"):
    """A key that never leaves Google Cloud KMS, used with the VM's service account.

    Attributes:
        key_version: ``projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V``.
        public_key: the public half, a file with a JWK or a PEM.
        endpoint: a base URL instead of the global one.
    """

    key_version: Annotated[str, msgspec.Meta(pattern=r"^projects/[!-~]{1,1000}/cryptoKeyVersions/[0-9]+\Z")]
    public_key: Path_
    endpoint: Url | None = None


class EphemeralKey(_Section, frozen=True, tag_field="kind", tag="ephemeral"):
    """A key made at the first start after a boot, in memory only. Its public half goes where senders can find it.

    Attributes:
        publish_file: write the public JWK there.
        publish_guest_attribute: ``NAMESPACE/KEY`` of a GCE guest attribute to write it to.
    """

    publish_file: Path_ | None = None
    publish_guest_attribute: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]+/[A-Za-z0-9_-]+\Z")] | None = None


KeyEntry = FileKey | CredentialKey | AwsKmsKey | GcpKmsKey | EphemeralKey


class SignerEntry(_Section, frozen=True):
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


class FileSourceEntry(_Section, frozen=True, tag_field="kind", tag="file"):
    """A file that something else puts there; a rename into place is seen within a second.

    Attributes:
        path: the file; it and its directory need not exist yet.
        name: its name in logs, metrics and acknowledgements; by default its kind.
    """

    path: Path_
    name: Name | None = None


class Ec2UserDataEntry(_Section, frozen=True, tag_field="kind", tag="ec2-user-data"):
    """EC2 user-data: the bundle alone, armoured inside anything, a MIME part, or systemd's JSON.

    Attributes:
        name: its name in logs, metrics and acknowledgements; by default its kind.
    """

    name: Name | None = None


class GceAttributeEntry(_Section, frozen=True, tag_field="kind", tag="gce-attribute"):
    """A GCE metadata attribute. A change is seen at once, without polling.

    Attributes:
        key: the attribute.
        scope: the instance's, the project's, or both.
        name: its name in logs, metrics and acknowledgements; by default its kind.
    """

    key: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,128}\Z")] = "credential-bundle"
    scope: Literal["instance", "project", "both"] = "both"
    name: Name | None = None


class HttpsEntry(_Section, frozen=True, tag_field="kind", tag="https"):
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


class Upstream(_Section, frozen=True):
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


class Mint(_Section, frozen=True):
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


class Aws(_Section, frozen=True):
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


class Gcp(_Section, frozen=True):
    """What is said of Google when neither the bundle nor the machine does.

    Attributes:
        project_id: as ``research-7``.
        numeric_project_id: its number; gcloud believes in no metadata server without one.
        zone: as ``europe-west1-b``.
    """

    project_id: str | None = None
    numeric_project_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,20}\Z")] | None = None
    zone: str | None = None


class PassThrough(_Section, frozen=True):
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


class Environment(_Section, frozen=True):
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


class State(_Section, frozen=True):
    """What outlives the process: the sealed bundle as it came, and what was accepted. Never an opened credential.

    Attributes:
        directory: it must exist, and be the agent's alone.
    """

    directory: Path_ = "/var/lib/credential-agent"


class Log(_Section, frozen=True):
    """Logs, on standard error.

    Attributes:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        format: ``json``, ``console``, or ``auto``: readable on a terminal, JSON lines off one.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Redirect(_Section, frozen=True):
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
    """

    uids: tuple[str, ...] = ("1000-60513", "60578-4294967293")
    users: tuple[str, ...] = ()
    units: tuple[str, ...] = ("credential-agent-workers.slice",)
    exempt_bridges: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ("docker0", "br-*", "podman*", "cni-podman*")
    ipv6: bool = True
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    max_connections_per_worker: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 1024


class Config(_Section, frozen=True):
    """The whole file. Every section may be left out."""

    listen: Listen = Listen()
    identity: Identity = Identity()
    keys: tuple[KeyEntry, ...] = ()
    signers: tuple[SignerEntry, ...] = ()
    sources: tuple[SourceEntry, ...] = ()
    upstream: Upstream = Upstream()
    mint: Mint = Mint()
    aws: Aws = Aws()
    gcp: Gcp = Gcp()
    pass_through: PassThrough = PassThrough()
    environment: Environment = Environment()
    state: State = State()
    log: Log = Log()
    redirect: Redirect = Redirect()


_WHERE = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`(?P<where>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*)`$")
_CHOICE = re.compile(r"^Invalid (?:enum )?value '(?P<value>.*)'$")
_PATTERN = re.compile(r"^Expected `str` matching regex (?P<regex>.*)$")

# What a pattern means, for a person: every pattern above has its words.
_MEANING: Final = {
    repr(pattern): words
    for pattern, words in {
        r"^/[^\x00]{1,4095}\Z": "an absolute path",
        r"^https?://[^\s]{1,2000}\Z": "an http or https URL",
        r"^[A-Za-z0-9_.-]{1,64}\Z": "1 to 64 letters, digits, dots, dashes or underscores",
        r"^[A-Za-z_][A-Za-z0-9_]{0,127}\Z": "the name of a variable: letters, digits and underscores, no digit first",
        r"^[^\x00-\x08\x0a-\x1f\x7f]{0,32768}\Z": "one line without control characters, of at most 32768 characters",
        r"^/(?:latest|computeMetadata/v1)(?:/[A-Za-z0-9._~@:+=,*-]+)+/?\Z": (
            "a path of metadata such as /latest/user-data or /computeMetadata/v1/instance/attributes/NAME"
        ),
        r"^[A-Za-z0-9.:_-]{1,253}\Z": "the name or the address of a host, without a port and without brackets",
        r"^[A-Za-z0-9_*]{1,128}\Z": "a pattern for names: letters, digits, underscores, and * for any rest",
        r"^0[0-7]{3}\Z": 'an octal mode such as "0640"',
        r"^[0-9]{12}\Z": "a twelve-digit account id",
        r"^[0-9]{1,20}\Z": "a project number: 1 to 20 digits",
        r"^[A-Za-z0-9_+=,.@-]{1,64}\Z": "the name of a role: 1 to 64 letters, digits or _+=,.@-",
        r"^[A-Za-z0-9_-]{1,128}\Z": "1 to 128 letters, digits, dashes or underscores",
        r"^[A-Za-z0-9_-]+/[A-Za-z0-9_-]+\Z": "NAMESPACE/KEY, each of letters, digits, dashes and underscores",
        r"^projects/[!-~]{1,1000}/cryptoKeyVersions/[0-9]+\Z": (
            "projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V"
        ),
    }.items()
}


def _key(where: str | None, under: str = "") -> str:
    """``$.sources[0].path`` as an operator writes it: ``sources[0].path``."""
    return (under + (where or "$").removeprefix("$")).removeprefix(".") or "the file"


def _explain(error: msgspec.ValidationError, under: str = "") -> tuple[str, str]:
    """The key and what was expected, from msgspec's message about what stands ``under`` a key."""
    match = _WHERE.match(str(error))
    if match is None:
        raise AssertionError("internal error: a message that matches nothing")
    what, key = match["what"], _key(match["where"], under)
    unknown = _UNKNOWN.match(what)
    if unknown is not None:
        name = unknown["field"] if key == "the file" else f"{key}.{unknown['field']}"
        return name, "unknown key"
    pattern = _PATTERN.match(what)
    if pattern is not None:
        meaning = _MEANING.get(pattern["regex"], "other text")
        return key, f"expected {meaning}"
    choice = _CHOICE.match(what)
    if choice is not None:
        bare = re.sub(r"\[[0-9]+\]", "", key)
        section, _, name = bare.partition(".")
        kinds = f"one of {_KINDS.get(section, 'the known kinds')}"
        expected = kinds if name == "kind" else _CHOICES.get(bare) or _CHOICES.get(name, "another value")
        return key, f"expected {expected}, got {choice['value']!r}"
    return key, f"{what[0].lower()}{what[1:]}".replace("`", "")


def parse(text: str, *, origin: str) -> Config:
    """Decode the text of a configuration file.

    Args:
        text: TOML.
        origin: how to name it in errors.

    Raises:
        ConfigError: it is not TOML, or a key is unknown, missing or of the wrong type; the message names the key.
    """
    try:
        config = msgspec.convert(_tree(text, origin), Config)
    except msgspec.ValidationError as error:
        key, expected = _explain(error)
        raise ConfigError(f"{origin}: {key}: {expected}", hint=_hint(key)) from None
    for fault in _contradictions(config):
        raise fault.error(origin)
    return config


class Fault(NamedTuple):
    """Something wrong in the text.

    Attributes:
        key: as an operator writes it, ``sources[0].path``.
        said: what was expected, and what was got.
        hint: what to do next.
    """

    key: str
    said: str
    hint: str | None = None

    def error(self, origin: str) -> ConfigError:
        """The fault, as it is raised."""
        return ConfigError(f"{origin}: {self.key}: {self.said}", hint=self.hint)


def survey(path: Path) -> tuple[Config, tuple[Fault, ...]]:
    """Everything that is wrong in a file, for a person who wants to mend it in one go.

    Returns:
        What is left of the configuration without what is wrong in it, never to be served from; and the faults, in the
        order of the sections. A list of entries is cut off at its first faulty one, so that an index stays true.

    Raises:
        ConfigError: it cannot be read, or it is not TOML.
    """
    tree = _tree(_text(path), str(path))
    faults = [Fault(key, "unknown key", _hint(key)) for key in tree if key not in Config.__struct_fields__]
    sound: dict[str, object] = {}
    for field in msgspec.structs.fields(Config):
        if field.encode_name not in tree:
            continue
        value, found = tree[field.encode_name], []
        if field.name in _ENTRIES and isinstance(value, list):
            left: list[object] = []
            for index, entry in enumerate(value):
                found += _mended(entry, _ENTRIES[field.name], f"{field.name}[{index}]")[1]
                if not found:
                    left.append(entry)
            sound[field.name] = left
        else:
            sound[field.name], found = _mended(value, field.type, field.name)
        faults += found
    config = msgspec.convert({key: value for key, value in sound.items() if value is not None}, Config)
    faults += [fault for fault in _contradictions(config) if not follows(fault.key, faults)]
    return config, tuple(faults)


def follows(key: str, faults: Iterable[Fault]) -> bool:
    """Whether what is wrong with ``key`` may be so only because of one of the ``faults``, in the same list or value."""
    lists = {re.split(r"[.\[]", fault.key)[0] for fault in faults} & _ENTRIES.keys()
    return re.split(r"[.\[]", key)[0] in lists or any(key in (fault.key, fault.key.split(".")[0]) for fault in faults)


def _mended(value: object, kind: object, origin: str) -> tuple[object | None, list[Fault]]:
    """``value`` without what is wrong in it, ``None`` when nothing is left; and what was wrong.

    msgspec tells of the first mistake only. What it tells of is taken out, and it is asked again.
    """
    faults: list[Fault] = []
    value = dict(value) if isinstance(value, dict) else value
    while True:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            key, said = _explain(error, origin)
            if isinstance(value, dict) and key == origin and said.startswith("object missing required field"):
                return None, [*faults, *_missing(value, kind, origin, faults)]
            faults.append(Fault(key, said, _hint(key)))
            name = re.split(r"[.\[]", key.removeprefix(origin).removeprefix("."))[0]
            if not isinstance(value, dict) or name not in value or name == "kind":
                return None, faults
            del value[name]
        else:
            return value, faults


def _missing(value: dict[str, object], kind: object, origin: str, faults: list[Fault]) -> Iterator[Fault]:
    """What is required and not there, but for what was taken out since it was wrong."""
    kinds: Iterable[type[msgspec.Struct]] = get_args(kind) or (kind,)
    for one in kinds:
        tag = one.__struct_config__.tag
        if tag is not None and "kind" not in value:
            yield Fault(f"{origin}.kind", "required, and not there", _hint(origin))
            return
        if tag == value.get("kind"):
            for field in msgspec.structs.fields(one):
                key = f"{origin}.{field.name}"
                if field.required and field.name not in value and not any(f.key.startswith(key) for f in faults):
                    yield Fault(key, "required, and not there", _hint(origin))


def load(path: Path) -> Config:
    """Read and decode a configuration file.

    Raises:
        ConfigError: it cannot be read, or :func:`parse` refuses it.
    """
    return parse(_text(path), origin=str(path))


def load_redirect(path: Path) -> tuple[Redirect, int, tuple[str, ...]]:
    """Read the section ``[redirect]`` alone, and bear with every mistake elsewhere.

    A misspelt key of another section must not decide whether workers are led. A key of this section that nobody knows
    is told and left out (a newer release wrote it); a *value* of this section that cannot be right is an error: what
    it meant is not known, and the caller closes.

    Returns:
        The section, the agent's port, and what was borne with, in words.

    Raises:
        ConfigError: it cannot be read, is no TOML, or a value of this section or the port is wrong.
    """
    document = _tree(_text(path), str(path))
    notes = []
    section = document.get("redirect", {})
    if isinstance(section, dict):
        unknown = sorted(section.keys() - set(Redirect.__struct_fields__))
        notes += [f"redirect.{key}: unknown key, left out" for key in unknown]
        section = {key: value for key, value in section.items() if key not in unknown}
    redirect = _section(section, Redirect, f"{path}: redirect")
    port = redirect.port
    if not port:
        listen = document.get("listen", {})
        http = listen.get("http", Listen().http) if isinstance(listen, dict) else Listen().http
        try:
            port = host_port(http[0])[1]
        except (ConfigError, TypeError, IndexError, KeyError):
            # The sockets are systemd's, and their unit has the default.
            port = host_port(Listen().http[0])[1]
            notes.append(f"listen.http: cannot be read, taken for port {port}")
    return redirect, port, tuple(notes)


def _tree(text: str, origin: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not valid TOML: {str(error)[0].lower()}{str(error)[1:]}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: not valid TOML: nested too deeply") from None


def _section(document: object, kind: type[_S], origin: str) -> _S:
    """One section of a document.

    Raises:
        ConfigError: it is not what its type says.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        key, text = _explain(error)
        raise ConfigError(f"{origin}.{key}: {text}") from None


def _text(path: Path) -> str:
    try:
        # Whatever was put there: opening a pipe would wait for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path}: expected a plain file")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {(error.strerror or 'unknown error').lower()}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: expected at most {MAX_FILE_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected UTF-8 text") from None


def host_port(value: str, *, origin: str = "listen.http") -> tuple[str, int]:
    """Split ``HOST:PORT``; an IPv6 host stands in brackets.

    Raises:
        ConfigError: it is not that.
    """
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5})", value)
    port = int(match["port"]) if match else -1
    if match is None or not 0 <= port <= 65535:
        raise ConfigError(f"{origin}: expected ADDRESS:PORT such as 127.0.0.1:16925 or [::1]:16925, got {value!r}")
    return match["v6"] or match["v4"], port


def _hint(key: str) -> str | None:
    section = re.split(r"[.\[]", key, maxsplit=1)[0]
    if section in _KINDS:
        return f"each [[{section}]] has a kind: {_KINDS[section]}"
    struct = {"the file": Config}.get(key) or _SECTIONS.get(section)
    if struct is None:
        return f"the sections are {', '.join(Config.__struct_fields__)}"
    return None if key == "the file" else f"[{section}] knows {', '.join(struct.__struct_fields__)}"


_KINDS: Final = {
    "keys": "file, credential, aws-kms, gcp-kms, ephemeral",
    "sources": "file, ec2-user-data, gce-attribute, https",
}
_ENTRIES: Final[dict[str, object]] = {"keys": KeyEntry, "signers": SignerEntry, "sources": SourceEntry}
_CHOICES: Final = {
    "identity.fallback": '"aws" or "gcp"',
    "identity.on_expiry": '"deny" or "fallback"',
    "log.level": '"debug", "info", "warning" or "error"',
    "log.format": '"auto", "json" or "console"',
    "scope": '"instance", "project" or "both"',
}
_SECTIONS: Final = {
    "listen": Listen,
    "identity": Identity,
    "signers": SignerEntry,
    "upstream": Upstream,
    "mint": Mint,
    "aws": Aws,
    "gcp": Gcp,
    "pass_through": PassThrough,
    "environment": Environment,
    "state": State,
    "log": Log,
    "redirect": Redirect,
}


def _contradictions(config: Config) -> Iterator[Fault]:
    """What types cannot say."""
    if not config.listen.http:
        yield Fault(
            "listen.http",
            "expected at least one address",
            "without a door no worker can ask; sockets that systemd passes take the place of these",
        )
    for value in config.listen.http:
        try:
            host_port(value)
        except ConfigError as error:
            yield Fault(*error.message.split(": ", 1))
    length = len(os.fsencode(config.listen.control))
    if length > MAX_SOCKET_PATH_BYTES:
        yield Fault(
            "listen.control",
            f"expected a path of at most {MAX_SOCKET_PATH_BYTES} bytes, got {length}",
            "the address of a unix socket holds no more",
        )
    yield from _twice_a_file(config.environment)
    for key, value in (("upstream.ec2", config.upstream.ec2), ("upstream.gce", config.upstream.gce)):
        if value not in ("auto", "off") and not re.fullmatch(r"https?://[^\s/]+", value):
            yield Fault(key, f'expected "auto", "off" or a base URL such as "http://169.254.169.254", got {value!r}')
    if config.keys and not config.signers:
        yield Fault(
            "signers",
            "expected at least one beside keys: without a pinned signer no bundle can be believed",
            'add [[signers]] with key = "/path/to/public.jwk"',
        )
    if config.sources and not config.keys:
        yield Fault(
            "keys",
            "expected at least one beside sources: a bundle could arrive and nothing could open it",
            'add [[keys]] with kind = "file" and path = "/path/to/worker.jwk"',
        )
    yield from _unclear_sources(config.sources)


def _unclear_sources(sources: tuple[SourceEntry, ...]) -> Iterator[Fault]:
    """Each says where it reads, once, and has a name of its own."""
    for index, entry in enumerate(sources):
        if isinstance(entry, HttpsEntry) and (entry.url is None) == (entry.url_file is None):
            yield Fault(
                f"sources[{index}]",
                f"expected one of url and url_file, got {'neither' if entry.url is None else 'both'}",
                "a pre-signed URL is a credential: url_file keeps it out of the configuration",
            )
    names = [entry.name for entry in sources if entry.name is not None]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield Fault("sources", f"expected distinct names, got {name!r} twice")


def _twice_a_file(environment: Environment) -> Iterator[Fault]:
    """Each of the files has its own path, or the last one written would be all of them."""
    taken: dict[str, str] = {}
    for key in ("file", "shell_file", "container_file", "token_file"):
        if getattr(environment, key) is None:
            continue
        path = posixpath.normpath("/" + getattr(environment, key).lstrip("/"))  # POSIX keeps two slashes apart
        if path in taken:
            yield Fault(f"environment.{key}", f"expected another path than environment.{taken[path]}, got {path} twice")
        taken[path] = key
