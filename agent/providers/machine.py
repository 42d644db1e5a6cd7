"""Which machine this is, as its metadata service says: the names a bundle may be addressed to, and what SDKs ask.

``None`` where the machine is not in that cloud; :class:`UpstreamError` where it should be and nothing answers now.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

import msgspec
from msgspec.structs import replace

from agent.bundle import audience_aws_instance, audience_gcp_instance
from agent.core.errors import WireError
from agent.core.view import Facts
from agent.upstream import Ec2Metadata, GceMetadata, NotHere, UpstreamError
from agent.wire import ec2 as ec2_wire
from agent.wire import names

_INSTANCE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
"""EC2's are ``i-`` and hex; other clouds and emulators speak this protocol too. A proxy's page does not match."""

_INSTANCE_NUMBER: Final = re.compile(r"[0-9]{1,20}")
"""GCE's are unsigned, of 64 bits."""


class Machine(msgspec.Struct, frozen=True):
    """The facts that one cloud gives about this machine.

    Attributes:
        instance_id: with the cloud in front (``aws:i-0123``): no two clouds share one.
        audiences: the URNs by which a bundle can be addressed to this very machine (FORMAT.md, claim ``aud``).
        server_time: the service's ``Date``.
    """

    instance_id: str
    audiences: frozenset[str]
    facts: Facts
    server_time: datetime | None = None


async def ec2_machine(ec2: Ec2Metadata) -> Machine | None:
    """Ask EC2.

    Raises:
        UpstreamError: it did not answer, or not sensibly: ask again.
    """
    try:
        answer = ec2.own(await ec2.request("GET", names.EC2_IDENTITY_PATH), names.EC2_IDENTITY_PATH)
        if answer.status == 200:
            identity = ec2_wire.parse_identity(answer.body)
        elif answer.status == 404:
            identity = ec2_wire.InstanceIdentity(region="")
        else:
            # Not "there is none": a service that fails says nothing of who this machine is.
            raise UpstreamError(
                f"expected 200 or 404 for the instance identity document, got {answer.status}",
                code="status",
                pause_seconds=answer.pause_seconds,
            )
        if not identity.instance_id:
            # Emulators and some clouds have no identity document, or one that does not name the machine: the bare id is
            # enough to tell machines apart.
            bare = await ec2.get(names.EC2_INSTANCE_ID_PATH)
            identity = replace(identity, instance_id=bare.decode("ascii", "replace").strip() if bare else None)
    except NotHere:
        return None
    except WireError as error:
        raise UpstreamError(f"the instance identity document: {error.message}", code="protocol") from None
    if not identity.instance_id:
        return None
    if not _INSTANCE_ID.fullmatch(identity.instance_id):
        # The memory is kept or forgotten by this name: garbage would undo a withdrawal, for good.
        raise UpstreamError("expected the instance id of ec2, got something else", code="protocol")
    account, region = identity.account_id, identity.region
    named = {audience_aws_instance(account, region, identity.instance_id)} if account and region else set()
    return Machine(
        instance_id=f"aws:{identity.instance_id}",
        audiences=frozenset(named),
        facts=Facts(
            region=region or None,
            availability_zone=identity.availability_zone,
            account_id=account,
            instance_id=identity.instance_id,
        ),
        server_time=answer.date,
    )


async def gce_machine(gce: GceMetadata) -> Machine | None:
    """Ask GCE.

    Raises:
        UpstreamError: it did not answer, or not sensibly: ask again.
    """
    try:
        answer = await gce.request("GET", names.GCE_INSTANCE_ID_PATH)
        if answer.status == 404:
            return None
        if answer.status != 200:
            # Not "there is none": a server that fails says nothing of who this machine is.
            raise UpstreamError(
                f"expected 200 or 404 for the gce instance id, got {answer.status}",
                code="status",
                pause_seconds=answer.pause_seconds,
            )
        project = await gce.get(names.GCE_PROJECT_ID_PATH)
        number = await gce.get(names.GCE_PROJECT_NUMBER_PATH)
        zone = await gce.get(names.GCE_ZONE_PATH)
    except NotHere:
        return None
    instance_id = answer.body.decode("ascii", "replace").strip()
    if not _INSTANCE_NUMBER.fullmatch(instance_id):
        raise UpstreamError("expected a number for the gce instance id, got something else", code="protocol")
    project_id = _text(project)
    named = {audience_gcp_instance(project_id, instance_id)} if project_id else set()
    return Machine(
        instance_id=f"gcp:{instance_id}",
        audiences=frozenset(named),
        facts=Facts(
            project_id=project_id,
            numeric_project_id=_text(number),
            zone=(_text(zone) or "").rpartition("/")[2] or None,
        ),
        server_time=answer.date,
    )


def _text(data: bytes | None) -> str | None:
    return data.decode("ascii", "replace").strip() or None if data is not None else None
