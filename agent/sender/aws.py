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
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from agent.core.errors import Denied, UsageError
from agent.core.model import INSTANCE, AwsAssumeRole, AwsKeys, AwsSession, Cloud, Grant
from agent.core.secret import Secret
from agent.core.text import instant
from agent.sender import Collected
from agent.sender.aws_identity import LocalAws, asked

SESSION_TOKEN_DEFAULT: Final = timedelta(hours=12)
"""The length that GetSessionToken gives by default; it takes 15 minutes to 36 hours."""

ASSUME_ROLE_DEFAULT: Final = timedelta(hours=1)
"""The length that every role allows. More must be allowed by the role, and is never allowed to a role session."""


class Mode(enum.StrEnum):
    """How the local identity is turned into what is sent."""

    AUTO = "auto"
    SESSION_TOKEN = "session-token"  # noqa: S105 - the name of a mode
    ASSUME_ROLE = "assume-role"
    RAW = "raw"
    KEYS = "keys"


class Renewal(enum.StrEnum):
    """The identity with which the worker itself renews a role."""

    NONE = "none"
    LOCAL = "local"  # with this computer's identity, sent along as the base
    INSTANCE = "instance"  # with the worker's own instance profile


class Mfa(msgspec.Struct, frozen=True):
    """A multi-factor device and what it shows at the moment."""

    serial: str
    code: Secret


class AwsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options: what to make of the local identity.

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
    _check(options)
    if options.renew is Renewal.INSTANCE:
        return _renewed_by_instance(session, options)
    local = LocalAws(session, now)
    mode = _mode(options, local)
    if mode is Mode.KEYS and options.role_arn is not None:
        return _renewed_by_base(local, options, now, Mode.KEYS)
    if mode is Mode.ASSUME_ROLE:
        if options.renew is Renewal.LOCAL:
            return _renewed_by_base(local, options, now)
        return _assume_role(local, options)
    return _plain(local, mode, options, now)


def _check(options: AwsOptions) -> None:
    """Refuse what nothing would honour: more would be sent than its sender believes, or it would not be renewed."""
    role = {
        "--policy": options.policy,
        "--policy-arn": options.policy_arns,
        "--external-id": options.external_id,
        "--renew-role": options.renew is not Renewal.NONE,
    }
    if options.role_arn is None:
        stray = next((name for name, given in role.items() if given), None)
        if stray is not None:
            raise UsageError(f"{stray} is about a role, and none is named", hint="give its ARN with --role-arn")
    elif options.mode in {Mode.RAW, Mode.SESSION_TOKEN}:
        raise UsageError(
            f"in mode {options.mode} the local identity itself is sent, and not the role {options.role_arn}",
            hint="leave out --aws-mode to send the role, or --role-arn to send the identity",
        )


def _mode(options: AwsOptions, local: LocalAws) -> Mode:
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


def _plain(local: LocalAws, mode: Mode, options: AwsOptions, now: datetime, grant_id: str | None = None) -> Collected:
    """The local identity itself, as a session or, when asked for explicitly, as keys."""
    grant_id = grant_id or options.grant_id
    if mode is not Mode.SESSION_TOKEN and options.duration is not None and options.role_arn is None:
        raise UsageError(
            f"the length of a session cannot be chosen when it is sent in mode {mode}",
            hint="leave out --duration, or assume a role (--role-arn)",
        )
    if mode is Mode.SESSION_TOKEN:
        return _session_token(local, options, grant_id)
    if options.mfa is not None:
        raise UsageError(
            f"STS takes a multi-factor code for a session that it makes, and in mode {mode} none is made here",
            hint="leave out --mfa-serial, or have a role assumed here (--role-arn, without --renew-role)",
        )
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


def _session_token(local: LocalAws, options: AwsOptions, grant_id: str) -> Collected:
    length = options.duration if options.duration is not None and options.role_arn is None else SESSION_TOKEN_DEFAULT
    sts = local.sts()
    wanted: dict[str, Any] = {"DurationSeconds": _seconds(length)}
    if options.mfa is not None:
        wanted |= {"SerialNumber": options.mfa.serial, "TokenCode": options.mfa.code.reveal()}
    answer = asked(lambda: sts.get_session_token(**wanted))
    identity = asked(sts.get_caller_identity)
    # No role: this is how the worker and the forecast know a user's session, which may assume roles for more than 1 h.
    grant = _session_grant(answer["Credentials"], grant_id, local.region, account_id=identity["Account"])
    return Collected(cloud=Cloud.AWS, grants=(grant,), route=grant_id, who=identity["Arn"])


def _raw(local: LocalAws, options: AwsOptions, now: datetime, grant_id: str) -> Collected:
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
                "or say how long it is sure to live: --assume-expiry 45m (assume_expiry=)",
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


def _assume_role(local: LocalAws, options: AwsOptions) -> Collected:
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
    answer = asked(lambda: sts.assume_role(**wanted))
    arn = answer["AssumedRoleUser"]["Arn"]
    grant = _session_grant(
        answer["Credentials"], options.grant_id, local.region, account_id=arn.split(":")[4], role_arn=arn
    )
    return Collected(cloud=Cloud.AWS, grants=(grant,), route=options.grant_id, who=arn)


def _renewed_by_base(local: LocalAws, options: AwsOptions, now: datetime, mode: Mode | None = None) -> Collected:
    """The role for the worker to assume, and this computer's identity to assume it with.

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


def _seconds(length: timedelta) -> int:
    return int(length.total_seconds())
