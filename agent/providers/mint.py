"""The one face of this room: which issuer a grant belongs to."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import assert_never

import msgspec

from agent.core.clock import Clock
from agent.core.errors import Denied
from agent.core.model import (
    AwsAssumeRole,
    AwsCredential,
    AwsGrant,
    AwsKeys,
    AwsSession,
    AwsWebIdentity,
    Cloud,
    Env,
    GcpAuthorizedUser,
    GcpExternalAccount,
    GcpGrant,
    GcpImpersonation,
    GcpServiceAccount,
    GcpToken,
    GoogleToken,
    Grant,
    HttpBroker,
    IdToken,
    mints_id_tokens,
)
from agent.providers.aws import AwsMint, Minted
from agent.providers.google import GoogleMint, MintedToken
from agent.providers.instance import Instance
from agent.providers.remote import AllowList
from agent.providers.settings import MintSettings
from agent.providers.webtoken import WebTokens
from agent.upstream import Ec2Metadata, GceMetadata, Upstream


class Issued(msgspec.Struct, frozen=True):
    """A new credential.

    Attributes:
        server_time: the ``Date`` of the answer that brought it, for what its two times say of each other; it
            teaches nothing here (:func:`agent.upstream.dates.witness_of`). ``None`` when nobody was asked.
        lifetime: how long it is good for from the moment of asking, by the answer alone: no clock of ours is in it, so
            that one which is hours off does no harm. ``None`` for a finished credential.
    """

    credential: AwsCredential | GoogleToken
    server_time: datetime | None = None
    lifetime: timedelta | None = None


class Mint:
    """Issues what grants promise.

    Args:
        upstream: the door out; closed by whoever made it.
        settings: what the operator allows.
        clock: only its boot-time hands are read, to age what a server said of its own time: every method gets ``now``.
        ec2: the machine's EC2 metadata service; ``None``: never asked.
        gce: the machine's GCE metadata server; ``None``: never asked.

    Error handling: every method raises :class:`~agent.core.errors.Denied` or
    :class:`~agent.core.errors.Transient` and nothing else; using one with a base of the wrong kind is
    ``TypeError``. No error text holds a secret.
    """

    def __init__(
        self,
        upstream: Upstream,
        settings: MintSettings,
        clock: Clock,
        *,
        ec2: Ec2Metadata | None = None,
        gce: GceMetadata | None = None,
    ) -> None:
        allowed = AllowList(settings.allowed_origins)
        tokens = WebTokens(upstream, allowed, settings.web_token_directories, gce, settings.request_timeout_seconds)
        self._aws = AwsMint(upstream, settings, allowed, tokens, ec2, boottime=clock.boottime)
        self._google = GoogleMint(upstream, settings, allowed, tokens, aws=self._aws, gce=gce, boottime=clock.boottime)
        self._instance = Instance(ec2, gce, settings.machine)
        self._has_gce = gce is not None

    async def issue(self, grant: Grant, base: AwsCredential | GoogleToken | None, now: datetime) -> Issued:
        """Get the credential of ``grant``.

        Args:
            grant: what to issue.
            base: the live credential that the grant stands on, when :func:`agent.core.model.base_of` names one.
            now: the best estimate of the true time: signs requests and dates what comes back.

        Raises:
            Denied: the upstream, or our own rules, say no and will say no again.
            Transient: it may work later.
        """
        match grant:
            case AwsSession() | AwsKeys() | AwsAssumeRole() | AwsWebIdentity() | HttpBroker():
                credential = await self._issue_aws(grant, base, now)
                return Issued(credential.credential, credential.server_time, credential.lifetime)
            case GcpToken() | GcpAuthorizedUser() | GcpServiceAccount() | GcpImpersonation() | GcpExternalAccount():
                token = await self._issue_google(grant, base, now)
                return Issued(token.credential, token.server_time, token.lifetime)
            case Env():
                raise RuntimeError("an env grant has no credential")
            case _:
                assert_never(grant)

    async def _issue_aws(self, grant: AwsGrant, base: AwsCredential | GoogleToken | None, now: datetime) -> Minted:
        match grant:
            case AwsSession():
                return await self._aws.session(grant, now)
            case AwsKeys():
                return await self._aws.keys(grant, now)
            case AwsAssumeRole():
                return await self._aws.assume_role(grant, _aws(base), now)
            case AwsWebIdentity():
                return await self._aws.web_identity(grant, now)
            case HttpBroker():
                return await self._aws.broker(grant, now)
            case _:
                assert_never(grant)

    async def _issue_google(
        self, grant: GcpGrant, base: AwsCredential | GoogleToken | None, now: datetime
    ) -> MintedToken:
        match grant:
            case GcpToken():
                return await self._google.token(grant, now)
            case GcpAuthorizedUser():
                return await self._google.authorized_user(grant, now)
            case GcpServiceAccount():
                return await self._google.service_account(grant, now)
            case GcpImpersonation():
                return await self._google.impersonation(grant, _google(base), now)
            case GcpExternalAccount():
                return await self._google.external_account(grant, _subject(grant, base), now)
            case _:
                assert_never(grant)

    async def instance(self, cloud: Cloud, now: datetime) -> Issued | None:
        """The machine's own identity for ``cloud``; ``None`` when this machine has none.

        Raises:
            Transient: it should be there, but its metadata service is silent or broken.
        """
        found = await self._instance.read(cloud, now)
        return Issued(found.credential, found.server_time, found.lifetime) if found is not None else None

    async def id_token(
        self, grant: Grant | None, base: AwsCredential | GoogleToken | None, audience: str, now: datetime
    ) -> IdToken:
        """An identity token for ``audience``; from the GCE machine itself when ``grant`` is ``None``.

        Raises:
            Denied: code ``unsupported`` for a kind of grant that cannot.
            Transient: it may work later.
        """
        match grant:
            case None:
                return await self._google.own_id_token(audience, now)
            case GcpServiceAccount():
                return await self._google.service_account_id_token(grant, audience, now)
            case GcpImpersonation():
                return await self._google.impersonation_id_token(grant, _google(base), audience, now)
            case GcpExternalAccount() if grant.service_account is not None:
                return await self._google.external_account_id_token(grant, _subject(grant, base), audience, now)
            case _:
                raise Denied(
                    "this kind of grant cannot make identity tokens for an audience",
                    hint="service account keys, impersonation and federation with a service account can",
                    code="unsupported",
                )

    def can_mint_id_token(self, grant: Grant | None) -> bool:
        """Whether :meth:`id_token` has a chance; for ``None``, whether this may be a GCE machine."""
        return self._has_gce if grant is None else mints_id_tokens(grant)

    async def close(self) -> None:
        """Nothing of its own to close; here so that its maker need not know that."""


def _aws(base: AwsCredential | GoogleToken | None) -> AwsCredential:
    if not isinstance(base, AwsCredential):
        raise TypeError(f"expected an aws base credential, got {type(base).__name__}")
    return base


def _google(base: AwsCredential | GoogleToken | None) -> GoogleToken:
    if not isinstance(base, GoogleToken):
        raise TypeError(f"expected a google base credential, got {type(base).__name__}")
    return base


def _subject(grant: GcpExternalAccount, base: AwsCredential | GoogleToken | None) -> AwsCredential | None:
    return None if grant.token is not None else _aws(base)
