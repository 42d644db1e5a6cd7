"""Frozen values: what a bundle says, and what a cloud answered.

Grants are msgspec structs because they *are* the schema: the strict decoder of :mod:`agent.bundle` reads them
straight from the claims, and FORMAT.md documents the same names. Secrets are :class:`Secret`, so the ``repr`` of
everything here is safe to log.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Annotated, Final

import msgspec

from agent.core.google import STS_URL, TOKEN_URL
from agent.core.secret import Secret


class Cloud(enum.StrEnum):
    """A cloud whose identity this machine can carry. Each is routed separately."""

    AWS = "aws"
    GCP = "gcp"

    # Enum's own is slow, since it is written in Python, and a request looks up by cloud several times.
    __hash__ = str.__hash__


class OnExpiry(enum.StrEnum):
    """The reaction to the end of the last credential of a bundle."""

    DENY = "deny"
    FALLBACK = "fallback"


class Action(enum.StrEnum):
    """The request that a bundle makes."""

    SET = "set"
    WITHDRAW = "withdraw"


# ---------------------------------------------------------------------------------------------------------------------
# Credentials: what is served. All instants are aware UTC.


class AwsCredential(msgspec.Struct, frozen=True, tag="aws"):
    """A temporary AWS credential, complete: IMDS clients need all three parts and the end.

    Attributes:
        issued_at: when it was obtained; served as ``LastUpdated``.
        expires_at: the true end, never later.
        account_id: twelve digits, when known.
        role_arn: the ARN of the role or assumed role behind it, when known.
        role_name: the name under which EC2 lists it, when the upstream has one (an instance profile's role).
    """

    access_key_id: str
    secret_access_key: Secret
    session_token: Secret
    issued_at: datetime
    expires_at: datetime
    account_id: str | None = None
    role_arn: str | None = None
    role_name: str | None = None


class GoogleToken(msgspec.Struct, frozen=True, tag="google"):
    """A Google OAuth 2.0 access token and its account.

    Attributes:
        email: the service account or user; clients build URLs from it, so it is never empty when served.
        scopes: what the token is good for, as full scope URLs.
    """

    access_token: Secret
    issued_at: datetime
    expires_at: datetime
    email: str | None = None
    scopes: tuple[str, ...] = ()


class IdToken(msgspec.Struct, frozen=True):
    """A Google-signed OpenID Connect token for one audience."""

    token: Secret
    audience: str
    issued_at: datetime
    expires_at: datetime


Credential = AwsCredential | GoogleToken

# ---------------------------------------------------------------------------------------------------------------------
# Grants: what a bundle carries. Every struct refuses unknown fields; unknown *types* are set aside by the decoder.

ACCESS_KEY_ID: Final = r"^[A-Z0-9]{16,128}\Z"
ACCOUNT_ID: Final = r"^[0-9]{12}\Z"
REGION: Final = r"^[a-z]{2,4}(-[a-z]{1,12}){1,3}-[0-9]{1,2}\Z"
ROLE_NAME: Final = r"^[A-Za-z0-9_+=,.@-]{1,64}\Z"
WORD: Final = r"^[\x21-\x7e]{1,256}\Z"
VARIABLE_NAME: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,127}\Z"
LAST_SECOND: Final = 253_402_300_799
"""Of the year 9999, in seconds since 1970: the last that a date can name."""

GrantId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
AccessKeyId = Annotated[str, msgspec.Meta(pattern=ACCESS_KEY_ID)]
AccountId = Annotated[str, msgspec.Meta(pattern=ACCOUNT_ID)]
Region = Annotated[str, msgspec.Meta(pattern=REGION)]
RoleArn = Annotated[str, msgspec.Meta(pattern=r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[\x21-\x7e]{1,512}\Z")]
RoleName = Annotated[str, msgspec.Meta(pattern=ROLE_NAME)]
SessionName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_+=,.@-]{2,64}\Z")]
NumericDate = Annotated[int, msgspec.Meta(ge=0, le=LAST_SECOND)]
DurationSeconds = Annotated[int, msgspec.Meta(ge=900, le=43200)]
LongDurationSeconds = Annotated[int, msgspec.Meta(ge=900, le=129600)]
HttpUrl = Annotated[str, msgspec.Meta(pattern=r"^https?://[\x21-\x7e]{1,2000}\Z")]
Email = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,254}\Z")]
Scope = Annotated[str, msgspec.Meta(pattern=WORD)]
AbsolutePath = Annotated[str, msgspec.Meta(pattern=r"^/[\x20-\x7e]{1,1023}\Z")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]

#: The base of a role that is assumed with the machine's own identity rather than with another grant.
INSTANCE: str = "instance"


class Expect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The identity that a minted AWS credential must have (``sts:GetCallerIdentity``) before it replaces another."""

    account_id: AccountId | None = None
    arn: Text | None = None


class _Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    id: GrantId


class AwsSession(_Grant, frozen=True, tag="aws-session"):
    """A finished AWS session. Served to its end; nothing can renew it."""

    access_key_id: AccessKeyId
    secret_access_key: Secret
    session_token: Secret
    expires_at: NumericDate
    account_id: AccountId | None = None
    role_arn: Text | None = None
    role_name: RoleName | None = None
    region: Region | None = None


class AwsKeys(_Grant, frozen=True, tag="aws-keys"):
    """Long-term keys of an IAM user: exchanged with ``sts:GetSessionToken``, never served as they are."""

    access_key_id: AccessKeyId
    secret_access_key: Secret
    duration_seconds: LongDurationSeconds = 43200
    region: Region | None = None
    expect: Expect | None = None


class AwsAssumeRole(_Grant, frozen=True, tag="aws-assume-role"):
    """A role assumed with the credential of another grant, or of the machine itself (``base = "instance"``)."""

    role_arn: RoleArn
    base: str = INSTANCE
    session_name: SessionName = "credential-agent"
    duration_seconds: DurationSeconds = 3600
    external_id: Text | None = None
    policy: Text | None = None
    policy_arns: tuple[Text, ...] = ()
    tags: dict[str, str] = {}
    transitive_tag_keys: tuple[str, ...] = ()
    source_identity: SessionName | None = None
    region: Region | None = None
    expect: Expect | None = None


class WebTokenInline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="from", tag="inline"):
    """An OpenID Connect token carried in the bundle itself."""

    token: Secret


class WebTokenFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="from", tag="file"):
    """A token that something else keeps fresh in a file below a configured directory."""

    path: AbsolutePath


class WebTokenUrl(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="from", tag="url"):
    """A token fetched from an allow-listed URL; ``field`` names the JSON member, absent for a bare body."""

    url: HttpUrl
    field: Text | None = None
    authorization: Secret | None = None


class WebTokenGce(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="from", tag="gce-identity"):
    """The identity token of the GCE worker itself, minted by the real metadata server for ``audience``."""

    audience: Text


WebToken = WebTokenInline | WebTokenFile | WebTokenUrl | WebTokenGce


class AwsWebIdentity(_Grant, frozen=True, tag="aws-web-identity"):
    """A role assumed with an OpenID Connect token (``sts:AssumeRoleWithWebIdentity``, unsigned, not chaining)."""

    role_arn: RoleArn
    token: WebToken
    session_name: SessionName = "credential-agent"
    duration_seconds: DurationSeconds = 3600
    policy: Text | None = None
    region: Region | None = None
    expect: Expect | None = None


class HttpBroker(_Grant, frozen=True, tag="http-broker"):
    """An upstream that speaks the container-credentials protocol and mints AWS credentials for us."""

    url: HttpUrl
    authorization: Secret | None = None
    region: Region | None = None
    expect: Expect | None = None


CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"


class GcpToken(_Grant, frozen=True, tag="gcp-token"):
    """A finished Google access token. Served to its end; nothing can renew it."""

    access_token: Secret
    expires_at: NumericDate
    email: Email | None = None
    scopes: tuple[Scope, ...] = (CLOUD_PLATFORM,)
    project_id: Text | None = None


class GcpAuthorizedUser(_Grant, frozen=True, tag="gcp-authorized-user"):
    """A user's refresh token (application default credentials of a laptop)."""

    client_id: Text
    client_secret: Secret
    refresh_token: Secret
    email: Email | None = None
    scopes: tuple[Scope, ...] = ()
    project_id: Text | None = None
    quota_project_id: Text | None = None


class GcpServiceAccount(_Grant, frozen=True, tag="gcp-service-account"):
    """A service account key."""

    client_email: Email
    private_key_id: Text
    private_key: Secret
    scopes: tuple[Scope, ...] = (CLOUD_PLATFORM,)
    project_id: Text | None = None
    token_uri: HttpUrl = TOKEN_URL


class GcpImpersonation(_Grant, frozen=True, tag="gcp-impersonation"):
    """A service account impersonated with the token of another Google grant or of the machine itself."""

    target_principal: Email
    base: str = INSTANCE
    delegates: tuple[Email, ...] = ()
    scopes: tuple[Scope, ...] = (CLOUD_PLATFORM,)
    lifetime_seconds: Annotated[int, msgspec.Meta(ge=600, le=43200)] = 3600
    project_id: Text | None = None


class GcpExternalAccount(_Grant, frozen=True, tag="gcp-external-account"):
    """Workload identity federation: Google from AWS credentials (``base``) or from an OpenID Connect token.

    Exactly one of ``base`` and ``token`` is given: ``base`` names an AWS grant or ``instance`` (the EC2 worker's own
    role: Google from an EC2 worker without any secret).
    """

    audience: Text
    base: str | None = None
    token: WebToken | None = None
    service_account: Email | None = None
    scopes: tuple[Scope, ...] = (CLOUD_PLATFORM,)
    lifetime_seconds: Annotated[int, msgspec.Meta(ge=600, le=43200)] = 3600
    token_url: HttpUrl = STS_URL
    region: Region | None = None
    project_id: Text | None = None


VariableName = Annotated[str, msgspec.Meta(pattern=VARIABLE_NAME)]


class Env(_Grant, frozen=True, tag="env"):
    """Opaque variables for the workers' environment file. Values may be secret; line breaks and NUL are refused."""

    variables: dict[VariableName, Secret]


Grant = (
    AwsSession
    | AwsKeys
    | AwsAssumeRole
    | AwsWebIdentity
    | HttpBroker
    | GcpToken
    | GcpAuthorizedUser
    | GcpServiceAccount
    | GcpImpersonation
    | GcpExternalAccount
    | Env
)


def cloud_of(grant: Grant) -> Cloud | None:
    """The cloud that a grant's credential belongs to; ``None`` for :class:`Env`."""
    if isinstance(grant, AwsSession | AwsKeys | AwsAssumeRole | AwsWebIdentity | HttpBroker):
        return Cloud.AWS
    if isinstance(grant, Env):
        return None
    return Cloud.GCP


def base_of(grant: Grant) -> str | None:
    """The id of the grant (or ``instance``) whose credential this grant needs; ``None`` when it stands alone."""
    if isinstance(grant, AwsAssumeRole | GcpImpersonation | GcpExternalAccount):
        return grant.base
    return None


def base_cloud_of(grant: Grant) -> Cloud | None:
    """The cloud that the base of ``grant`` must belong to; ``None`` when it has no base."""
    match grant:
        case AwsAssumeRole():
            return Cloud.AWS
        case GcpImpersonation():
            return Cloud.GCP
        case GcpExternalAccount():
            return Cloud.AWS if grant.base is not None else None
        case _:
            return None


def ends_of(grant: Grant) -> int | None:
    """When a finished credential ends, in seconds since 1970; ``None``: credentials are made of that grant."""
    return grant.expires_at if isinstance(grant, AwsSession | GcpToken) else None


def mints_id_tokens(grant: Grant) -> bool:
    """Whether identity tokens for an audience of the caller's choice can be minted from ``grant`` at all."""
    if isinstance(grant, GcpExternalAccount):
        return grant.service_account is not None
    return isinstance(grant, GcpServiceAccount | GcpImpersonation)


class SetAside(msgspec.Struct, frozen=True):
    """A grant of a type this version does not know: it is reported and ignored."""

    id: str
    type: str


class SealedBundle(msgspec.Struct, frozen=True):
    """Sealed bytes and where they came from.

    Attributes:
        origin: the source's name in the configuration (``file``, ``ec2-user-data``...), for logs and acknowledgements.
        part: which of its source's places, where that has several: none takes another's place.
    """

    data: bytes
    origin: str
    part: str = ""


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """An opened, verified bundle. Nothing here is yet *accepted*: that is the store's decision.

    Attributes:
        digest: SHA-256 (hex) of the signed content, so that the same claims sealed twice count as identical.
        accept_until: claim ``exp``: the last instant of acceptance, not the end of serving.
        lease_until: serve no longer than this, whatever the credentials say; ``None`` for no such bound.
        routes: the grant that each cloud is served from.
        on_expiry: what the sender asks for; ``None`` leaves it to the worker's configuration.
        signer: what its signer is called here; ``signer_kid``: the key id of its signature.
        named: it is addressed to the machine by the name that a metadata service gave it, and in no other way: should
            that turn out to be another machine's name, the bundle was never ours.
    """

    issuer: str
    subject: str
    bundle_id: str
    seq: int
    digest: str
    action: Action
    issued_at: datetime
    not_before: datetime
    accept_until: datetime
    lease_until: datetime | None
    grants: tuple[Grant, ...] = ()
    routes: dict[Cloud, str] = {}
    on_expiry: OnExpiry | None = None
    set_aside: tuple[SetAside, ...] = ()
    signer: str = ""
    signer_kid: str = ""
    recipient: str = ""
    origin: str = ""
    named: bool = False

    def grant(self, grant_id: str) -> Grant | None:
        """The grant of that id, if the bundle has it."""
        return next((g for g in self.grants if g.id == grant_id), None)
