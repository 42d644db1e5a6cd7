"""Grants from the AWS identity that boto3 finds on this computer.

What can be sent depends on what there is:

* An IAM user's keys are exchanged for a session (``sts:GetSessionToken``); the keys themselves stay here.
* A session (single sign-on, an assumed role, a CI job) cannot be exchanged, so it is sent as it is, with its true end.
* With a role, the worker gets that role's session and a session policy may narrow it further; or, renewable, the
  permission to assume the role itself with a base it holds.

Errors: everything raises :class:`~agent.core.errors.UsageError` (that makes no sense with this identity; ask
for something else), :class:`~agent.core.errors.Denied` (this identity may not do that) or
:class:`~agent.core.errors.Transient` (the network or STS failed; try again).

Spec: AWS STS API reference, GetSessionToken, AssumeRole, GetCallerIdentity.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from agent.core.errors import Denied, ProviderError, Transient, UsageError
from agent.core.model import INSTANCE, AwsAssumeRole, AwsKeys, AwsSession, Cloud, Grant
from agent.core.secret import Secret
from agent.core.text import instant
from agent.sender import Collected

SESSION_TOKEN_DEFAULT: Final = timedelta(hours=12)
"""What GetSessionToken gives unasked; it can be asked for 15 minutes to 36 hours."""

ASSUME_ROLE_DEFAULT: Final = timedelta(hours=1)
"""What every role allows. More must be allowed by the role, and is never allowed to a role session."""

REGION_WITHOUT_ONE: Final = "us-east-1"
"""Where STS is asked when this computer has no region configured: every account of the main partition has it."""

CONNECT_TIMEOUT_SECONDS: Final = 5
READ_TIMEOUT_SECONDS: Final = 15

# What programs that write sessions into ~/.aws/credentials call the end of them: botocore has no name of its own.
# saml2aws writes the first, aws-azure-login and others the rest.
_PROFILE_ENDS: Final = ("x_security_token_expires", "aws_expiration", "aws_session_expiration", "expiration")

# These escape botocore when a credential_process prints no JSON, or JSON that is no object, and when a cached sign-on
# lacks a member.
_ODD: Final = (ValueError, LookupError, TypeError, AttributeError)

_PASSING_CODES: Final = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "InternalFailure",
        "InternalError",
    }
)


class Mode(enum.StrEnum):
    """How the local identity is turned into what is sent."""

    AUTO = "auto"
    SESSION_TOKEN = "session-token"  # noqa: S105 - the name of a mode
    ASSUME_ROLE = "assume-role"
    RAW = "raw"
    KEYS = "keys"


class Renewal(enum.StrEnum):
    """With what the worker renews a role by itself."""

    NONE = "none"
    LOCAL = "local"  # with this computer's identity, sent along as the base
    INSTANCE = "instance"  # with the worker's own instance profile


class Mfa(msgspec.Struct, frozen=True):
    """A multi-factor device and what it shows at the moment."""

    serial: str
    code: Secret


class AwsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to make of the local identity.

    Attributes:
        role_arn: the role to send; switches ``auto`` to ``assume-role``.
        renew: whether the worker renews that role, and with what.
        duration: how long the session shall last; ``None`` for the default of the call.
        policy: a session policy (JSON text, at most 2,048 characters) that narrows the role.
        policy_arns: managed policies that narrow the role.
        session_name: shown in CloudTrail as the name of the role session.
        assume_expiry: when the end of a session cannot be known, take it to be this long from now.
        grant_id: the id of the grant that AWS is served from.
    """

    mode: Mode = Mode.AUTO
    role_arn: str | None = None
    renew: Renewal = Renewal.NONE
    duration: timedelta | None = None
    policy: str | None = None
    policy_arns: tuple[str, ...] = ()
    external_id: str | None = None
    session_name: str = "credential-agent"
    assume_expiry: timedelta | None = None
    mfa: Mfa | None = None
    grant_id: str = "aws"


def from_boto(session: Any, options: AwsOptions, *, now: datetime) -> Collected:
    """Turn the identity that ``session`` (a ``boto3.Session``) finds into grants.

    Args:
        session: finds credentials as every boto3 program on this computer does.
        options: what to make of them.
        now: aware UTC.

    Raises:
        Denied: there is no identity, it has ended, or it may not do what was asked.
        Transient: STS could not be reached or is throttling.
    """
    if options.renew is Renewal.INSTANCE:
        return _renewed_by_instance(session, options)
    local = _Local(session, now)
    mode = _mode(options, local)
    if mode is Mode.KEYS and options.role_arn is not None:
        return _renewed_by_base(local, options, now, Mode.KEYS)
    if mode is Mode.ASSUME_ROLE:
        if options.renew is Renewal.LOCAL:
            return _renewed_by_base(local, options, now)
        return _assume_role(local, options)
    return _plain(local, mode, options, now)


class _Local:
    """The credentials of this computer, frozen at one moment, and an STS client that uses them."""

    def __init__(self, session: Any, now: datetime) -> None:
        found = _call(session.get_credentials, _ODD)
        if found is None:
            raise Denied(
                "boto3 finds no AWS identity on this computer",
                hint="does `aws sts get-caller-identity` work here? set AWS_PROFILE, or sign in (`aws sso login`)",
                code="no-credentials",
            )
        # Frozen first: that is what refreshes a session near its end, and moves the end that is read next.
        frozen = _frozen(found)
        self.session = session
        self.region: str | None = session.region_name
        self.access_key_id: str = frozen.access_key
        self.secret_access_key = Secret(frozen.secret_key)
        self.session_token = Secret(frozen.token) if frozen.token else None
        self.ends = _end(found, session)
        self.method: str = found.method
        if self.ends is not None and self.ends <= now:
            raise Denied(
                f"the local AWS session has ended, {instant(self.ends)}",
                hint="sign in again (`aws sso login`, or however this session was made), then seal again",
                code="ExpiredToken",
            )

    def sts(self) -> Any:
        """An STS client of the session's region and endpoint, made from the frozen credentials."""
        from botocore.config import Config  # noqa: PLC0415 - only when a call is made

        return _call(
            lambda: self.session.client(
                "sts",
                region_name=self.region or REGION_WITHOUT_ONE,
                aws_access_key_id=self.access_key_id,
                aws_secret_access_key=self.secret_access_key.reveal(),
                aws_session_token=self.session_token.reveal() if self.session_token else None,
                config=Config(
                    connect_timeout=CONNECT_TIMEOUT_SECONDS,
                    read_timeout=READ_TIMEOUT_SECONDS,
                    retries={"mode": "standard", "total_max_attempts": 3},
                ),
            )
        )

    def caller(self) -> tuple[str, str]:
        """The account and ARN of this identity. STS answers this to everyone whose credential lives."""
        answer = _call(self.sts().get_caller_identity)
        return answer["Account"], answer["Arn"]


def _mode(options: AwsOptions, local: _Local) -> Mode:
    """Decide what ``auto`` means here, and refuse what cannot work before STS does."""
    mode = options.mode
    if mode is Mode.AUTO:
        if options.role_arn is not None:
            return Mode.ASSUME_ROLE
        return Mode.RAW if local.session_token else Mode.SESSION_TOKEN
    if mode is Mode.ASSUME_ROLE and options.role_arn is None:
        raise UsageError("assuming a role needs to know which one", hint="give its ARN with --role-arn")
    if mode is Mode.SESSION_TOKEN and local.session_token:
        raise UsageError(
            f"the local identity (from {local.method}) is a session, and STS exchanges only the keys of an IAM user",
            hint="send it as it is (--aws-mode raw), or assume a role with it (--role-arn)",
        )
    if mode is Mode.KEYS and local.session_token:
        raise UsageError(
            f"the local identity (from {local.method}) is a session, not the keys of an IAM user",
            hint="send it as it is (--aws-mode raw), or assume a role with it (--role-arn)",
        )
    return mode


def _plain(local: _Local, mode: Mode, options: AwsOptions, now: datetime, grant_id: str | None = None) -> Collected:
    """The local identity itself, as a session or, when asked for explicitly, as keys."""
    grant_id = grant_id or options.grant_id
    if mode is not Mode.SESSION_TOKEN and options.duration is not None and options.role_arn is None:
        raise UsageError(
            f"the length of a session cannot be chosen when it is sent in mode {mode}",
            hint="leave out --duration, or assume a role (--role-arn)",
        )
    if mode is Mode.SESSION_TOKEN:
        return _session_token(local, options, grant_id)
    if mode is Mode.RAW:
        return _raw(local, options, now, grant_id)
    account, arn = local.caller()
    said = f"long-term keys of {arn} are sent: whoever opens the bundle holds them until they are revoked"
    grant = AwsKeys(
        id=grant_id,
        access_key_id=local.access_key_id,
        secret_access_key=local.secret_access_key,
        region=local.region,
    )
    return Collected(cloud=Cloud.AWS, grants=(grant,), route=grant_id, who=f"{arn} ({account})", warnings=(said,))


def _session_token(local: _Local, options: AwsOptions, grant_id: str) -> Collected:
    length = options.duration if options.duration is not None and options.role_arn is None else SESSION_TOKEN_DEFAULT
    sts = local.sts()
    wanted: dict[str, Any] = {"DurationSeconds": _seconds(length)}
    if options.mfa is not None:
        wanted |= {"SerialNumber": options.mfa.serial, "TokenCode": options.mfa.code.reveal()}
    answer = _call(lambda: sts.get_session_token(**wanted))
    identity = _call(sts.get_caller_identity)
    # No role: this is how the worker and the horizon know a user's session, which may assume roles for more than 1 h.
    grant = _session_grant(answer["Credentials"], grant_id, local.region, account_id=identity["Account"])
    return Collected(cloud=Cloud.AWS, grants=(grant,), route=grant_id, who=identity["Arn"])


def _raw(local: _Local, options: AwsOptions, now: datetime, grant_id: str) -> Collected:
    if local.session_token is None:
        raise UsageError(
            "the local identity is the long-term keys of an IAM user; they are not sent as they are",
            hint="exchange them (--aws-mode session-token), or send them for the worker to exchange (--aws-mode keys)",
        )
    warnings: tuple[str, ...] = ()
    ends = local.ends
    if ends is None:
        if options.assume_expiry is None:
            raise Denied(
                f"nothing tells when the local AWS session (from {local.method}) ends, and a wrong guess breaks jobs",
                hint="set AWS_CREDENTIAL_EXPIRATION (`aws configure export-credentials --format env` prints it), "
                "or say how long it is sure to live: --assume-expiry 45m",
                code="no-expiry",
            )
        ends = now + options.assume_expiry
        warnings = (f"the end of the AWS session is not known; {instant(ends)} is taken on your word",)
    account, arn = local.caller()
    grant = AwsSession(
        id=grant_id,
        access_key_id=local.access_key_id,
        secret_access_key=local.secret_access_key,
        session_token=local.session_token,
        expires_at=int(ends.timestamp()),
        account_id=account,
        role_arn=_role_of(arn),
        region=local.region,
    )
    return Collected(cloud=Cloud.AWS, grants=(grant,), route=grant_id, who=arn, warnings=warnings)


def _assume_role(local: _Local, options: AwsOptions) -> Collected:
    sts = local.sts()
    length = options.duration if options.duration is not None else ASSUME_ROLE_DEFAULT
    wanted: dict[str, Any] = {
        "RoleArn": options.role_arn,
        "RoleSessionName": options.session_name,
        "DurationSeconds": _seconds(length),
    }
    if options.policy is not None:
        wanted["Policy"] = options.policy
    if options.policy_arns:
        wanted["PolicyArns"] = [{"arn": arn} for arn in options.policy_arns]
    if options.external_id is not None:
        wanted["ExternalId"] = options.external_id
    if options.mfa is not None:
        wanted |= {"SerialNumber": options.mfa.serial, "TokenCode": options.mfa.code.reveal()}
    answer = _call(lambda: sts.assume_role(**wanted))
    arn = answer["AssumedRoleUser"]["Arn"]
    grant = _session_grant(
        answer["Credentials"], options.grant_id, local.region, account_id=arn.split(":")[4], role_arn=arn
    )
    return Collected(cloud=Cloud.AWS, grants=(grant,), route=options.grant_id, who=arn)


def _renewed_by_base(local: _Local, options: AwsOptions, now: datetime, mode: Mode | None = None) -> Collected:
    """The role for the worker to assume, and this computer's identity for it to assume it with.

    The base that lasts is an IAM user's keys (``mode`` keys): no session of a role stands between them and the role, so
    STS gives up to the role's own maximum (12 hours at most) where a chained role gets one hour.
    """
    base_id = f"{options.grant_id}-base"
    base = _plain(local, mode or (Mode.RAW if local.session_token else Mode.SESSION_TOKEN), options, now, base_id)
    role = _role_grant(options, base_id, local.region)
    said = f"the worker also holds the base, {base.who}, in memory; programs on it are served only the role"
    grants: tuple[Grant, ...] = (*base.grants, role)
    return Collected(
        cloud=Cloud.AWS,
        grants=grants,
        route=options.grant_id,
        who=f"{role.role_arn} by way of {base.who}",
        warnings=(*base.warnings, said),
    )


def _renewed_by_instance(session: Any, options: AwsOptions) -> Collected:
    """The role for the worker to assume with its own instance profile: no secret is sent at all."""
    role = _role_grant(options, INSTANCE, session.region_name)
    return Collected(
        cloud=Cloud.AWS,
        grants=(role,),
        route=options.grant_id,
        who=f"{role.role_arn} by way of the worker's instance profile",
        warnings=(f"the trust policy of {role.role_arn} must let the worker's instance profile assume it",),
    )


def _role_grant(options: AwsOptions, base: str, region: str | None) -> AwsAssumeRole:
    if options.role_arn is None:
        raise UsageError("renewing a role needs to know which one", hint="give its ARN with --role-arn")
    length = options.duration if options.duration is not None else ASSUME_ROLE_DEFAULT
    return AwsAssumeRole(
        id=options.grant_id,
        role_arn=options.role_arn,
        base=base,
        session_name=options.session_name,
        duration_seconds=_seconds(length),
        external_id=options.external_id,
        policy=options.policy,
        policy_arns=options.policy_arns,
        region=region,
    )


def _session_grant(
    answer: Mapping[str, Any], grant_id: str, region: str | None, *, account_id: str, role_arn: str | None = None
) -> AwsSession:
    return AwsSession(
        id=grant_id,
        access_key_id=answer["AccessKeyId"],
        secret_access_key=Secret(answer["SecretAccessKey"]),
        session_token=Secret(answer["SessionToken"]),
        expires_at=int(answer["Expiration"].timestamp()),
        account_id=account_id,
        role_arn=role_arn,
        region=region,
    )


def _role_of(arn: str) -> str | None:
    """The ARN when it is a role's session; ``None`` for a user's (``GetSessionToken`` keeps the user's ARN)."""
    return arn if ":assumed-role/" in arn or ":federated-user/" in arn else None


def _end(found: Any, session: Any) -> datetime | None:
    """The true end of the session boto3 found, as far as anything on this computer knows it."""
    # botocore has no public name for it; it is there for every kind that it knows how to refresh, and for the
    # environment when AWS_CREDENTIAL_EXPIRATION is set.
    ends = getattr(found, "_expiry_time", None)
    if isinstance(ends, datetime):
        return ends.astimezone(UTC)
    if found.method != "shared-credentials-file":
        return None
    profiles = session._session.full_config.get("profiles", {})  # noqa: SLF001 - boto3 shows no other way
    profile = profiles.get(session.profile_name, {})
    for name in _PROFILE_ENDS:
        text = profile.get(name)
        if isinstance(text, str):
            try:
                ends = datetime.fromisoformat(text.strip())
            except ValueError:
                continue
            # Without a zone it could be anyone's noon.
            if ends.tzinfo is not None:
                return ends.astimezone(UTC)
    return None


def _frozen(found: Any) -> Any:
    """The credentials at one moment: three parts that belong together."""
    try:
        return _call(found.get_frozen_credentials, _ODD)
    except RuntimeError:
        # botocore's word for credentials that are no fresher after a refresh: from the environment, they never are.
        raise Denied(
            f"the local AWS session (from {found.method}) has ended",
            hint="sign in again (`aws sso login`, or however this session was made), then seal again",
            code="ExpiredToken",
        ) from None


def _seconds(length: timedelta) -> int:
    return int(length.total_seconds())


def _call(function: Any, odd: tuple[type[Exception], ...] = ()) -> Any:
    """Call the SDK; every way it fails becomes an error of ours, with the code AWS gave and no secret."""
    from botocore.exceptions import (  # noqa: PLC0415 - only when a call is made
        BotoCoreError,
        ClientError,
        ConnectionError,  # noqa: A004 - botocore's own
        HTTPClientError,
    )

    try:
        return function()
    except ClientError as error:
        raise _refusal(error.response.get("Error", {})) from None
    except (ConnectionError, HTTPClientError) as error:
        raise Transient(f"AWS cannot be reached: {error}", code="network") from None
    except (BotoCoreError, OSError, *odd) as error:
        # What the odd ones say may hold what a helper printed: only their kind is told.
        words = str(error) if isinstance(error, BotoCoreError | OSError) else type(error).__name__
        raise Denied(
            f"boto3 cannot use the AWS identity of this computer: {words.strip().partition(chr(10))[0].rstrip('.: ')}",
            hint="does `aws sts get-caller-identity` work here? an ended sign-on needs `aws sso login`",
            code=type(error).__name__,
        ) from None


def _refusal(said: Mapping[str, Any]) -> ProviderError:
    code = str(said.get("Code", "unknown"))
    # The first line only: SignatureDoesNotMatch goes on with the canonical request, session token and all.
    words = str(said.get("Message", "")).strip().partition("\n")[0][:300].rstrip(". ")
    message = f"AWS refused: {code}: {words}"
    if code in _PASSING_CODES:
        return Transient(message, code=code)
    hints = {
        "ExpiredToken": "the local session has ended: sign in again, then seal again",
        "SignatureDoesNotMatch": "the secret does not belong to the key id, or this computer's clock is wrong",
        "InvalidClientTokenId": "the local keys are not valid (any more); `aws configure list` shows which are used",
        "AccessDenied": "may this identity make that call, and does the role's trust policy name it?",
        "ValidationError": "a role assumed with a role's session lasts an hour at most (--duration 1h)",
    }
    return Denied(message, hint=hints.get(code), code=code)
