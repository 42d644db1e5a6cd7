"""The machine's own identity: an EC2 instance profile or a GCE service account.

``None`` means that this machine has none for that cloud; :class:`Transient` that it has, or may have, and cannot say
so now. The difference decides between "fall back to nothing" and "ask again", so silence counts as the former only
where nothing speaks for the latter.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import msgspec

from agent.core.errors import Transient
from agent.core.model import AwsCredential, Cloud, GoogleToken
from agent.core.secret import Secret
from agent.providers.aws import timestamp
from agent.providers.refusals import from_upstream, word
from agent.upstream import Ec2Metadata, GceMetadata, NotHere, UpstreamError, UpstreamResponse

_ROLES_PATH: Final = "/latest/meta-data/iam/security-credentials/"
_IDENTITY_DOCUMENT_PATH: Final = "/latest/dynamic/instance-identity/document"
_ACCOUNT_PATH: Final = "/computeMetadata/v1/instance/service-accounts/default/"
_ROLE_NAME: Final = re.compile(r"[A-Za-z0-9_+=,.@-]{1,64}")


class InstanceCredential(msgspec.Struct, frozen=True):
    """The machine's credential, and the ``Date`` that came with it."""

    credential: AwsCredential | GoogleToken
    server_time: datetime | None


class Instance:
    """Reads the machine's own identity from the real metadata services.

    Args:
        machine: the cloud the hypervisor names, if known.
    """

    def __init__(self, ec2: Ec2Metadata | None, gce: GceMetadata | None, machine: Cloud | None) -> None:
        self._ec2 = ec2
        self._gce = gce
        # Mutable state: what this machine turned out to be.
        self._answered: set[Cloud] = {machine} if machine is not None else set()
        self._account_id: str | None = None

    async def read(self, cloud: Cloud, now: datetime) -> InstanceCredential | None:
        """The machine's own credential for ``cloud``; ``None`` when it has none.

        Raises:
            Transient: it should be there, and is not.
        """
        try:
            found = await (self._read_ec2(now) if cloud is Cloud.AWS else self._read_gce(now))
        except NotHere:
            return None
        except UpstreamError as error:
            if cloud in self._answered or error.code not in {"network", "timeout"}:
                raise from_upstream(error, f"the machine's own {cloud} identity") from None
            return None  # nobody is there, and nothing says that somebody should be
        if found is not None:
            self._answered.add(cloud)
        return found

    async def _read_ec2(self, now: datetime) -> InstanceCredential | None:
        if self._ec2 is None:
            return None
        listed = await self._ec2.get(_ROLES_PATH)
        name = (listed or b"").decode("latin-1").strip().partition("\n")[0].strip()
        if not name:
            return None  # no instance profile
        if not _ROLE_NAME.fullmatch(name):
            raise Transient("the machine's own aws identity: the role list is not a role's name", code="protocol")
        answer = await self._ec2.request("GET", _ROLES_PATH + name)
        if answer.status != 200:
            raise _status("aws", answer)
        try:
            document = msgspec.json.decode(answer.body, type=_Ec2Credentials)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise _broken("aws", answer) from None
        if document.code != "Success":
            # EC2's way to say that the role cannot be assumed: it is gone, or does not trust the service.
            raise Transient(
                f"the machine's own aws identity: ec2 says {word(document.code, 'failed')} for role {name}",
                hint="check that the role of the instance profile exists and trusts ec2.amazonaws.com",
                code=word(document.code, "failed"),
                server_time=answer.date,
            )
        try:
            if not (document.access_key_id and document.secret_access_key and document.token):
                raise _broken("aws", answer)
            issued_at = min(timestamp(document.last_updated), now) if document.last_updated else now
            expires_at = timestamp(document.expiration)
        except ValueError:
            raise _broken("aws", answer) from None
        if expires_at <= (answer.date or now):
            raise Transient(
                "the machine's own aws identity: ec2 hands out one that has ended",
                code="expired",
                server_time=answer.date,
            )
        credential = AwsCredential(
            access_key_id=document.access_key_id,
            secret_access_key=Secret(document.secret_access_key),
            session_token=Secret(document.token),
            issued_at=issued_at,
            expires_at=expires_at,
            account_id=document.account_id or await self._account(self._ec2),
            role_name=name,
        )
        return InstanceCredential(credential, answer.date)

    async def _account(self, ec2: Ec2Metadata) -> str | None:
        """The account from the identity document: good to know, never worth failing for."""
        if self._account_id is None:
            try:
                body = await ec2.get(_IDENTITY_DOCUMENT_PATH)
                if body is not None:
                    self._account_id = msgspec.json.decode(body, type=_IdentityDocument).account_id
            except (UpstreamError, msgspec.MsgspecError, UnicodeDecodeError):
                return None
        return self._account_id

    async def _read_gce(self, now: datetime) -> InstanceCredential | None:
        if self._gce is None:
            return None
        listed = await self._gce.get(_ACCOUNT_PATH + "?recursive=true")
        if listed is None:
            return None  # no service account
        answer = await self._gce.request("GET", _ACCOUNT_PATH + "token")
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise _status("gcp", answer)
        try:
            account = msgspec.json.decode(listed, type=_GceAccount)
            token = msgspec.json.decode(answer.body, type=_GceToken)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise _broken("gcp", answer) from None
        credential = GoogleToken(
            access_token=Secret(token.access_token),
            issued_at=now,
            expires_at=now + timedelta(seconds=token.expires_in),
            email=account.email,
            scopes=account.scopes,
        )
        return InstanceCredential(credential, answer.date)


def cloud_of_machine(dmi_directory: Path = Path("/sys/class/dmi/id")) -> Cloud | None:
    """The cloud that the firmware says this machine runs in; ``None`` when it names neither.

    EC2's Nitro machines say ``Amazon EC2`` as ``sys_vendor``, its Xen machines ``amazon`` in the BIOS version; GCE says
    ``Google Compute Engine`` as ``product_name``.
    """

    def read(name: str) -> str:
        try:
            return (dmi_directory / name).read_text("utf-8", "replace").strip()
        except OSError:
            return ""

    if read("product_name") == "Google Compute Engine":
        return Cloud.GCP
    if read("sys_vendor") == "Amazon EC2" or "amazon" in read("bios_version").lower():
        return Cloud.AWS
    return None


class _Ec2Credentials(msgspec.Struct, frozen=True, rename="pascal"):
    code: str
    access_key_id: str = ""
    secret_access_key: str = ""
    token: str = ""
    expiration: str = ""
    last_updated: str = ""
    account_id: str | None = None


class _IdentityDocument(msgspec.Struct, frozen=True, rename="camel"):
    account_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{12}\Z")]


class _GceAccount(msgspec.Struct, frozen=True):
    email: Annotated[str, msgspec.Meta(min_length=1, max_length=254)]
    scopes: tuple[str, ...] = ()


class _GceToken(msgspec.Struct, frozen=True):
    access_token: Annotated[str, msgspec.Meta(min_length=1)]
    expires_in: Annotated[int, msgspec.Meta(ge=1, le=43200)]


def _status(cloud: str, answer: UpstreamResponse) -> Transient:
    return Transient(
        f"the machine's own {cloud} identity: expected 200 from its metadata service, got {answer.status}",
        code=f"http-{answer.status}",
        server_time=answer.date,
    )


def _broken(cloud: str, answer: UpstreamResponse) -> Transient:
    return Transient(
        f"the machine's own {cloud} identity: the metadata service's answer is not a credential",
        code="protocol",
        server_time=answer.date,
    )
