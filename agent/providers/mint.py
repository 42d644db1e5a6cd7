"""The one entrance to this package: it gives a grant to its issuer."""

from __future__ import annotations

from datetime import datetime
from typing import assert_never

from agent.core.clock import Clock
from agent.core.errors import Denied
from agent.core.issued import Issued
from agent.core.model import (
    AwsAssumeRole,
    AwsCredential,
    AwsKeys,
    AwsSession,
    AwsWebIdentity,
    Cloud,
    Credential,
    Env,
    GcpAuthorizedUser,
    GcpExternalAccount,
    GcpImpersonation,
    GcpServiceAccount,
    GcpToken,
    GoogleToken,
    Grant,
    HttpBroker,
    IdToken,
)
from agent.providers.aws import AwsMint
from agent.providers.google import GoogleMint
from agent.providers.google_requests import GoogleRequests
from agent.providers.instance import Instance
from agent.providers.remote import AllowList
from agent.providers.settings import MintSettings
from agent.providers.webtoken import WebTokens
from agent.upstream import Ec2Metadata, GceMetadata, Upstream


class Mint:
    """Issues what grants promise.

    Args:
        upstream: the way out; closed by whoever made it.
        settings: what the operator allows.
        clock: only its boot time is read, to age what a server said of its own time: every method gets ``now``.
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
        google = GoogleRequests(upstream, settings, allowed, boottime=clock.boottime)
        self._google = GoogleMint(google, tokens, token_url=settings.google.token_url, aws=self._aws, gce=gce)
        self._instance = Instance(ec2, gce, settings.machine)

    def expect(self, cloud: Cloud) -> None:
        """This machine is known to be in ``cloud``: silence there, or a stranger's answer, is an outage."""
        self._instance.expect(cloud)

    async def issue(self, grant: Grant, base: AwsCredential | GoogleToken | None, now: datetime) -> Issued[Credential]:
        """Get the credential of ``grant``.

        Args:
            grant: what to issue; never a finished credential, which :func:`agent.identity.graph.ready` makes.
            base: the live credential that the grant stands on, when :func:`agent.core.model.base_of` names one.
            now: the best estimate of the true time: signs requests and dates what comes back.

        Raises:
            Denied: the upstream, or our own rules, say no and will say no again.
            Transient: it may work later.
        """
        match grant:
            case AwsKeys() | AwsAssumeRole() | AwsWebIdentity() | HttpBroker():
                return await self._issue_aws(grant, base, now)
            case GcpAuthorizedUser() | GcpServiceAccount() | GcpImpersonation() | GcpExternalAccount():
                return await self._issue_google(grant, base, now)
            case AwsSession() | GcpToken() | Env():
                raise RuntimeError("nobody is asked for a finished credential, or for variables")
            case _:
                assert_never(grant)

    async def _issue_aws(
        self,
        grant: AwsKeys | AwsAssumeRole | AwsWebIdentity | HttpBroker,
        base: AwsCredential | GoogleToken | None,
        now: datetime,
    ) -> Issued[AwsCredential]:
        match grant:
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
        self,
        grant: GcpAuthorizedUser | GcpServiceAccount | GcpImpersonation | GcpExternalAccount,
        base: AwsCredential | GoogleToken | None,
        now: datetime,
    ) -> Issued[GoogleToken]:
        match grant:
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

    async def instance(self, cloud: Cloud, now: datetime) -> Issued[Credential] | None:
        """The machine's own identity for ``cloud``; ``None`` when this machine has none.

        Raises:
            Transient: it should be there, but its metadata service is silent or broken.
        """
        return await self._instance.read(cloud, now)

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
