"""AWS credentials from grants: sessions, keys, roles, web identities, brokers."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from agent.core.errors import Denied, Transient
from agent.core.issued import Issued
from agent.core.limits import CHAINED_ROLE
from agent.core.model import (
    ACCESS_KEY_ID,
    REGION,
    AwsAssumeRole,
    AwsCredential,
    AwsKeys,
    AwsWebIdentity,
    Expect,
    HttpBroker,
    WebTokenInline,
)
from agent.core.secret import Secret
from agent.core.strictjson import NotThatShapeError, decode
from agent.providers.credible import capped, sendable
from agent.providers.decoding import parsed
from agent.providers.refusals import from_upstream, good_for, over, refusal, said, word
from agent.providers.regions import main_region
from agent.providers.remote import AllowList
from agent.providers.settings import MintSettings
from agent.providers.sts import Sts, StsAnswer, aware, broken, ready
from agent.providers.webtoken import WebTokens
from agent.upstream import Ec2Metadata, Upstream, UpstreamError
from agent.upstream.sigv4 import SigningKeys
from agent.wire.container import parse_credential
from agent.wire.names import EC2_REGION_PATH

_CHAINED_SECONDS: Final = int(CHAINED_ROLE.total_seconds())
_REGION: Final = re.compile(REGION)
_ACCESS_KEY_ID: Final = re.compile(ACCESS_KEY_ID)
_MAX_BROKER_BYTES: Final = 65536


class AwsMint:
    """Issues AWS credentials.

    Args:
        upstream: the way out.
        settings: the operator's, for minting.
        allowed: what a grant may name beside the clouds' own endpoints.
        tokens: fetches the OpenID Connect tokens that grants name.
        ec2: the machine's own metadata service: asked for the region when nothing else says it.
        boottime: ages what a server said of its own time.

    *Errors*: each method that issues raises :class:`Denied` where AWS, or the grant itself, refuses, and
    :class:`Transient` where asking again later may help.
    """

    def __init__(
        self,
        upstream: Upstream,
        settings: MintSettings,
        allowed: AllowList,
        tokens: WebTokens,
        ec2: Ec2Metadata | None,
        *,
        boottime: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._settings = settings
        self._allowed = allowed
        self._tokens = tokens
        self._ec2 = ec2
        self._sts = Sts(upstream, settings.sts_endpoint, settings.request_timeout_seconds, boottime)
        # Mutable state: facts learned once. Never a credential.
        self._here: str | None = None
        self._capped: set[str] = set()  # role ARNs that refused more than an hour

    async def keys(self, grant: AwsKeys, now: datetime) -> Issued[AwsCredential]:
        """Exchange long-term keys for a session (``GetSessionToken``)."""
        region = await self.region(grant.region, None)
        keys = SigningKeys(grant.access_key_id, grant.secret_access_key)
        parameters = {"DurationSeconds": grant.duration_seconds}
        answer = await self._sts.call("GetSessionToken", parameters, region=region, keys=keys, now=now)
        minted = _minted("GetSessionToken", answer, grant.duration_seconds, now)
        return await self._probed(minted, grant.expect, region, now)

    async def assume_role(self, grant: AwsAssumeRole, base: AwsCredential, now: datetime) -> Issued[AwsCredential]:
        """Assume a role with the credential of another grant or of the machine (``AssumeRole``).

        A role session can make another for one hour at most (role chaining), and a role may allow less than the grant
        asks for. An hour is always allowed: a shorter life is better than none.
        """
        region = await self.region(grant.region, grant.role_arn)
        parameters: dict[str, Any] = {"RoleArn": grant.role_arn, "RoleSessionName": grant.session_name}
        optional: dict[str, Any] = {
            "ExternalId": grant.external_id,
            "Policy": grant.policy,
            "PolicyArns": [{"arn": arn} for arn in grant.policy_arns],
            "Tags": [{"Key": key, "Value": value} for key, value in grant.tags.items()],
            "TransitiveTagKeys": list(grant.transitive_tag_keys),
            "SourceIdentity": grant.source_identity,
        }
        parameters |= {name: value for name, value in optional.items() if value}
        confidential = [Secret(grant.external_id)] if grant.external_id else []
        chained = is_role_session(base)
        duration = min(grant.duration_seconds, _CHAINED_SECONDS) if chained else grant.duration_seconds
        answer, asked = await self._capped_call(
            "AssumeRole", parameters, duration, region=region, keys=_keys_of(base), now=now, confidential=confidential
        )
        minted = _of_role(grant.role_arn, _minted("AssumeRole", answer, asked, now))
        return await self._probed(minted, grant.expect, region, now)

    async def web_identity(self, grant: AwsWebIdentity, now: datetime) -> Issued[AwsCredential]:
        """Assume a role with an OpenID Connect token (``AssumeRoleWithWebIdentity``): unsigned, and not chaining."""
        region = await self.region(grant.region, grant.role_arn)
        token = await self._tokens.fetch(grant.token)
        parameters: dict[str, Any] = {
            "RoleArn": grant.role_arn,
            "RoleSessionName": grant.session_name,
            "WebIdentityToken": token.reveal(),
        }
        if grant.policy is not None:
            parameters["Policy"] = grant.policy
        operation = "AssumeRoleWithWebIdentity"
        try:
            answer, asked = await self._capped_call(
                operation,
                parameters,
                grant.duration_seconds,
                region=region,
                keys=None,
                now=now,
                confidential=[token],
            )
        except Denied as error:
            if error.code in {"ExpiredToken", "ExpiredTokenException"} and not isinstance(grant.token, WebTokenInline):
                # Something else keeps the token fresh, and has not yet: the next look may find a new one.
                raise Transient(
                    error.message, hint=error.hint, code=error.code, server_time=error.server_time
                ) from None
            raise
        minted = _of_role(grant.role_arn, _minted(operation, answer, asked, now))
        return await self._probed(minted, grant.expect, region, now)

    async def broker(self, grant: HttpBroker, now: datetime) -> Issued[AwsCredential]:
        """Ask an upstream that speaks the container-credentials protocol."""
        doing = "credential broker"
        reach = self._allowed.check(grant.url, doing)
        headers = {"Accept": "application/json"}
        if grant.authorization is not None:
            headers["Authorization"] = grant.authorization.reveal()
        try:
            answer = await self._upstream.request(
                "GET",
                grant.url,
                headers=headers,
                timeout_seconds=self._settings.request_timeout_seconds,
                max_bytes=_MAX_BROKER_BYTES,
                reach=reach,
            )
        except UpstreamError as error:
            raise from_upstream(error, doing) from None
        # Over plain http anybody on the way could move our clock with a Date: only TLS is believed.
        server_time = answer.date if grant.url.startswith("https:") else None
        if answer.status != 200:
            raise refusal(answer)(
                f"{doing}: expected 200, got {answer.status}",
                hint="the bundle's authorization for the broker is not accepted" if answer.status == 401 else None,
                code=_broker_code(answer.body, answer.status),
                server_time=server_time,
                pause_seconds=answer.pause_seconds,
            )
        try:
            credential = parsed(lambda: parse_credential(answer.body, received=now))
        except NotThatShapeError:
            raise Transient(f"{doing}: the answer is not a credential document", code="protocol") from None
        if credential.account_id is None:
            credential = msgspec.structs.replace(credential, account_id=account_of(credential.role_arn))
        _usable(credential, doing, now, server_time)
        credential = capped(credential, now, answer.date)
        # Only compared with the end beside it: its ``Date`` is as good as the credential itself.
        minted = Issued(credential, server_time, good_for(credential.expires_at, answer.date, now))
        if grant.expect is None or not self._settings.probe:
            return minted
        region = await self.region(grant.region, grant.expect.arn)
        return await self._probed(minted, grant.expect, region, now)

    async def region(self, named: str | None, arn: str | None) -> str:
        """The region to ask: the grant's, the configuration's, the machine's, or the partition's main one."""
        await ready()
        if named is not None:
            return named
        if self._settings.region is not None:
            return self._settings.region
        if self._here is None and self._ec2 is not None:
            try:
                body = await self._ec2.get(EC2_REGION_PATH)
            except UpstreamError:
                body = None  # asked again next time; a region is a matter of distance, not of right or wrong
            text = (body or b"").decode("latin-1").strip()
            if _REGION.fullmatch(text):
                self._here = text
        return self._here or main_region(arn)

    async def _capped_call(
        self,
        operation: str,
        parameters: dict[str, Any],
        duration: int,
        *,
        region: str,
        keys: SigningKeys | None,
        now: datetime,
        confidential: list[Secret],
    ) -> tuple[StsAnswer, int]:
        """The answer, and for how many seconds it was asked at last."""
        role = parameters["RoleArn"]
        if role in self._capped:
            duration = min(duration, _CHAINED_SECONDS)
        try:
            answer = await self._sts.call(
                operation,
                {**parameters, "DurationSeconds": duration},
                region=region,
                keys=keys,
                now=now,
                confidential=confidential,
            )
        except Denied as error:
            # "The requested DurationSeconds exceeds the MaxSessionDuration set for this role" and "... exceeds the
            # 1 hour session limit for roles assumed by role chaining" have no code of their own.
            about_duration = error.code == "ValidationError" and "DurationSeconds" in error.message
            if not about_duration or duration <= _CHAINED_SECONDS:
                raise
        else:
            return answer, duration
        answer = await self._sts.call(
            operation,
            {**parameters, "DurationSeconds": _CHAINED_SECONDS},
            region=region,
            keys=keys,
            now=now,
            confidential=confidential,
        )
        self._capped.add(role)
        return answer, _CHAINED_SECONDS

    async def _probed(
        self, minted: Issued[AwsCredential], expect: Expect | None, region: str, now: datetime
    ) -> Issued[AwsCredential]:
        """Ask whose the new credential is, if the grant says whose it must be: before anybody is given it.

        Raises:
            Denied: ``unexpected-identity``.
        """
        if expect is None or not self._settings.probe or (expect.account_id is None and expect.arn is None):
            return minted
        credential = minted.credential
        operation = "GetCallerIdentity"
        answer = await self._sts.call(operation, {}, region=region, keys=_keys_of(credential), now=now)
        account, arn = answer.result.get("Account"), answer.result.get("Arn")
        if not isinstance(account, str) or not isinstance(arn, str):
            raise broken(operation, answer.server_time)
        if expect.account_id not in {None, account} or not (expect.arn is None or same_identity(expect.arn, arn)):
            if account_of(arn) != account:
                raise broken(operation, answer.server_time)
            raise Denied(
                f"the new credential is {arn}, expected {expect.arn or f'account {expect.account_id}'}",
                hint="the one served before is kept; correct the grant or what it expects",
                code="unexpected-identity",
                server_time=answer.server_time,
            )
        known = msgspec.structs.replace(
            credential, account_id=account, role_arn=credential.role_arn or (arn if ":assumed-role/" in arn else None)
        )
        return Issued(known, answer.server_time or minted.server_time, minted.lifetime)


class _BrokerRefusal(msgspec.Struct, frozen=True):
    code: str | None = None


def account_of(arn: str | None) -> str | None:
    """The account in an ARN."""
    if arn is None:
        return None
    parts = arn.split(":", 5)
    return parts[4] if len(parts) == 6 and re.fullmatch(r"[0-9]{12}", parts[4]) else None


def is_role_session(credential: AwsCredential) -> bool:
    """Whether the credential is known to be a role's, so that a role made from it is chained."""
    arn = credential.role_arn or ""
    return credential.role_name is not None or ":assumed-role/" in arn or ":role/" in arn


def same_identity(expected: str, caller: str) -> bool:
    """Whether the caller's ARN is the expected one.

    A role is named either by its session (``arn:aws:sts::1:assumed-role/NAME/session``, compared whole) or by itself
    (``arn:aws:iam::1:role/path/NAME``, whose path a session's ARN does not have).
    """
    if expected == caller:
        return True
    mine, theirs = expected.split(":", 5), caller.split(":", 5)
    if len(mine) != 6 or len(theirs) != 6 or mine[2] != "iam" or theirs[2] != "sts":
        return False
    kind, _, path = mine[5].partition("/")
    session = theirs[5].split("/")
    same_account = mine[1] == theirs[1] and mine[4] == theirs[4]
    return (
        same_account
        and kind == "role"
        and len(session) == 3
        and session[0] == "assumed-role"
        and session[1] == path.rsplit("/", 1)[-1]
    )


def _keys_of(credential: AwsCredential) -> SigningKeys:
    return SigningKeys(credential.access_key_id, credential.secret_access_key, credential.session_token)


def _minted(operation: str, answer: StsAnswer, asked_seconds: int, now: datetime) -> Issued[AwsCredential]:
    try:
        found = answer.result["Credentials"]
        arn = answer.result.get("AssumedRoleUser", {}).get("Arn")
        credential = AwsCredential(
            access_key_id=found["AccessKeyId"],
            secret_access_key=Secret(found["SecretAccessKey"]),
            session_token=Secret(found["SessionToken"]),
            issued_at=now,
            expires_at=aware(found["Expiration"]),
            account_id=account_of(arn),
            role_arn=arn,
        )
    except (LookupError, TypeError, AttributeError):
        raise broken(operation, answer.server_time) from None
    _usable(credential, f"sts {operation}", now, answer.server_time)
    asked = timedelta(seconds=asked_seconds)
    credential = capped(credential, now, answer.server_time, asked)
    lifetime = good_for(credential.expires_at, answer.server_time, now, asked)
    return Issued(credential, answer.server_time, lifetime)


def _of_role(asked: str, minted: Issued[AwsCredential]) -> Issued[AwsCredential]:
    """``minted``, unless it says that it is another role's (a cache between, a service that mixes up its answers).

    Emulators that say nothing of the role, or nothing in AWS's form, are taken at their word. Names of roles do not
    differ by case.

    Raises:
        Transient: code ``unexpected-identity``. The served credential stays.
    """
    got = minted.credential.role_arn or ""
    comparable = ":assumed-role/" in got and account_of(got) is not None and account_of(asked) is not None
    if comparable and not same_identity(asked.lower(), got.lower()):
        raise Transient(
            f"the new credential is {said(got)}, asked for was {asked}",
            hint="is there a cache or a relay between this machine and sts that answers with another's session?",
            code="unexpected-identity",
            server_time=minted.server_time,
        )
    return minted


def _usable(credential: AwsCredential, doing: str, now: datetime, server_time: datetime | None) -> None:
    """Refuse what nobody could use: an incomplete document aborts one SDK's whole process.

    Raises:
        Transient: a part is missing or cannot be sent, or it has ended by the server's own time.
    """
    if (
        not _ACCESS_KEY_ID.fullmatch(credential.access_key_id)
        or not credential.secret_access_key
        or not credential.session_token
    ):
        raise Transient(f"{doing}: the credential is not complete", code="protocol", server_time=server_time)
    sendable(doing, server_time, credential.secret_access_key, credential.session_token)
    if over(credential.expires_at, server_time, now):
        raise Transient(f"{doing}: the credential has already ended", code="expired", server_time=server_time)


def _broker_code(body: bytes, status: int) -> str:
    try:
        refusal = decode(body, _BrokerRefusal)
    except NotThatShapeError:
        return f"http-{status}"
    return word(refusal.code, f"http-{status}")
