"""The machine's own identity: an EC2 instance profile or a GCE service account.

``None`` means that this machine has none for that cloud; :class:`Transient` that it has, or may have, and cannot say
so now. The difference decides between "fall back to nothing" and "ask again", so silence counts as the former only
where nothing speaks for the latter.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import msgspec

from agent.core.errors import Transient
from agent.core.issued import Issued
from agent.core.model import AwsCredential, Cloud, Credential, GoogleToken
from agent.core.strictjson import NotThatShapeError, decode
from agent.providers.credible import LONGEST_AWS, capped, sendable
from agent.providers.decoding import parsed
from agent.providers.refusals import from_upstream, good_for, over, word
from agent.upstream import (
    Ec2Metadata,
    GceMetadata,
    NotHere,
    SwitchedOff,
    UpstreamError,
    UpstreamResponse,
    by_ec2,
)
from agent.wire import ec2 as ec2_wire
from agent.wire import gce as gce_wire
from agent.wire.names import EC2_IDENTITY_PATH, EC2_ROLES_PATH, GCE_ACCOUNT_PATH, GCE_FLAVOR_HEADER, GCE_TOKEN_PATH

CONFIRMED: Final = timedelta(minutes=10)
"""How long an ended credential that EC2 handed out is passed on: two polls, one of which may fail."""


class Instance:
    """Reads the machine's own identity from the real metadata services.

    Args:
        ec2: the machine's EC2 metadata service; ``None``: it has none.
        gce: the same of GCE.
        machine: the cloud the hypervisor names, if known.
    """

    def __init__(self, ec2: Ec2Metadata | None, gce: GceMetadata | None, machine: Cloud | None) -> None:
        self._ec2 = ec2
        self._gce = gce
        # Mutable state: what this machine turned out to be.
        self._answered: set[Cloud] = {machine} if machine is not None else set()
        self._account_id: str | None = None

    def expect(self, cloud: Cloud) -> None:
        """This machine is known to be in ``cloud``: silence there, or a stranger's answer, is an outage."""
        self._answered.add(cloud)

    async def read(self, cloud: Cloud, now: datetime) -> Issued[Credential] | None:
        """The machine's own credential for ``cloud``; ``None`` when it has none.

        Raises:
            Transient: it should be there, and is not.
        """
        try:
            found = await (self._read_ec2(now) if cloud is Cloud.AWS else self._read_gce(now))
        except SwitchedOff:
            return None  # its own word, at which it is taken
        except NotHere as error:
            if cloud in self._answered:
                # Something else answers in its place just now: that is no word of this machine's about its identity.
                raise from_upstream(error, f"the machine's own {cloud} identity") from None
            return None
        except UpstreamError as error:
            if cloud in self._answered or error.code not in {"network", "timeout", "stranger"}:
                raise from_upstream(error, f"the machine's own {cloud} identity") from None
            return None  # nobody of this cloud is there, and nothing says that somebody should be
        if found is not None:
            self._answered.add(cloud)
        return found

    async def _read_ec2(self, now: datetime) -> Issued[AwsCredential] | None:
        if self._ec2 is None:
            return None
        listed = await self._ec2.request("GET", EC2_ROLES_PATH)
        if listed.status not in {200, 404}:
            raise _status("aws", listed)
        try:
            name = parsed(lambda: ec2_wire.parse_role_list(listed.body if listed.status == 200 else b""))
        except NotThatShapeError:
            raise Transient(
                "the machine's own aws identity: the role list is not a role's name", code="protocol"
            ) from None
        if name is None:
            if Cloud.AWS in self._answered and not by_ec2(listed):
                # While our session token is good nobody is asked for another: a stranger may be heard here first.
                raise _broken("aws", listed)
            return None  # no instance profile
        answer = await self._ec2.request("GET", EC2_ROLES_PATH + name)
        if answer.status != 200:
            raise _status("aws", answer)
        code = _code(answer.body)
        if code != "Success":
            # EC2's way to say that the role cannot be assumed: it is gone, or does not trust the service.
            raise Transient(
                f"the machine's own aws identity: ec2 says {code} for role {name}",
                hint="check that the role of the instance profile exists and trusts ec2.amazonaws.com",
                code=code,
                server_time=answer.date,
            )
        try:
            credential = parsed(lambda: ec2_wire.parse_credential(answer.body, role_name=name))
        except NotThatShapeError:
            raise _broken("aws", answer) from None
        sendable("the machine's own aws identity", answer.date, credential.secret_access_key, credential.session_token)
        credential = capped(credential, now, answer.date)
        account_id = credential.account_id or await self._account(self._ec2)
        # LastUpdated is not verified: what is computed from it later must stay within a datetime.
        issued_at = min(max(credential.issued_at, now - LONGEST_AWS), now)
        return Issued(
            msgspec.structs.replace(credential, issued_at=issued_at, account_id=account_id),
            answer.date,
            # EC2 cannot renew it and hands it out all the same: AWS goes on to take it, and SDKs to use it (static
            # stability). The answer of the real service is passed on for as long as it holds.
            CONFIRMED
            if over(credential.expires_at, answer.date, now)
            else good_for(credential.expires_at, answer.date, now),
        )

    async def _account(self, service: Ec2Metadata) -> str | None:
        """The account from the identity document: good to know, never worth failing for."""
        if self._account_id is None:
            try:
                body = await service.get(EC2_IDENTITY_PATH)
                if body is not None:
                    self._account_id = parsed(lambda: ec2_wire.parse_identity(body)).account_id
            except (UpstreamError, NotThatShapeError):
                return None
        return self._account_id

    async def _read_gce(self, now: datetime) -> Issued[GoogleToken] | None:
        if self._gce is None:
            return None
        listed = await self._gce.request("GET", GCE_ACCOUNT_PATH)
        answer = listed if listed.status != 200 else await self._gce.request("GET", GCE_TOKEN_PATH)
        if answer.status == 404 and (Cloud.GCP not in self._answered or GCE_FLAVOR_HEADER in answer.headers):
            return None  # no service account. (Some hosts leave the flavor out of errors, and so does a stranger.)
        if answer.status != 200:
            raise _status("gcp", answer)
        try:
            account = parsed(lambda: gce_wire.parse_account(listed.body))
            credential = parsed(
                lambda: gce_wire.parse_token(answer.body, now, email=account.email, scopes=account.scopes)
            )
        except NotThatShapeError:
            raise _broken("gcp", answer) from None
        sendable("the machine's own gcp identity", answer.date, credential.access_token)
        return Issued(credential, answer.date, credential.expires_at - now)


class _Code(msgspec.Struct, frozen=True):
    code: str = msgspec.field(name="Code", default="Success")  # some that stand in for EC2 say it of failures alone


def _code(body: bytes) -> str:
    """What EC2 says of the credential in its document; the word ``unreadable`` when there is no such document."""
    try:
        return word(decode(body, _Code).code, "unreadable")
    except NotThatShapeError:
        return "unreadable"


def _status(cloud: str, answer: UpstreamResponse) -> Transient:
    return Transient(
        f"the machine's own {cloud} identity: expected 200 from its metadata service, got {answer.status}",
        code=f"http-{answer.status}",
        server_time=answer.date,
        pause_seconds=answer.pause_seconds,
    )


def _broken(cloud: str, answer: UpstreamResponse) -> Transient:
    return Transient(
        f"the machine's own {cloud} identity: the metadata service's answer is not a credential",
        code="protocol",
        server_time=answer.date,
    )
