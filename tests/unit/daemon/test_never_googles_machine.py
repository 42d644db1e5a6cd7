"""As :mod:`.test_never_the_machine`, on Google: the bundle is in an attribute, of which the machine has two."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent import bundle
from agent.bundle.short_key import short_key
from agent.core.model import Cloud
from agent.daemon import reload
from agent.host import patience
from tests.fakes.ec2_metadata import Ec2MetadataService
from tests.fakes.gce_metadata import GceMetadataServer
from tests.fakes.served import Fault
from tests.system.harness import ISSUER, merged
from tests.unit.daemon.life import READY_SECONDS, Life, patient
from tests.unit.daemon.reasons import MACHINE, SUCCESSORS, Reason, World, rebooted, restarted, resumes, stopped, succeed
from tests.unit.identity.worlds import google

KEY, SIGNER = "credential-bundle", "credential-agent-signer"
ATTRIBUTES = "/computeMetadata/v1/instance/attributes/"
PAGE = b"<html>sign in"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch)
    monkeypatch.setattr(reload, "PATIENCE_SECONDS", READY_SECONDS)
    monkeypatch.setattr(patience, "WAIT_SECONDS", READY_SECONDS)


class OnGoogle(World):
    """A machine at Google."""

    cloud = Cloud.GCP

    def __init__(self, root: Path, ec2: Ec2MetadataService, gce: GceMetadataServer, stack: AsyncExitStack) -> None:
        super().__init__(root, ec2, stack)
        self.gce = gce
        self.by_user_data = True  # a service's, and no file

    @property
    def configuration(self) -> dict[str, Any]:
        here = {
            "sources": [{"name": "bundle", "kind": "gce-attribute"}],
            "upstream": {"ec2": "off", "gce": self.gce.url},
        }
        return merged(merged(super().configuration, here), self.changes)

    def grant(self) -> Any:
        return google(now=self.now, hours=480)

    def put(self, sealed: bytes) -> None:
        self.gce.set_attribute(KEY, sealed.decode())


class Google(Reason):
    """Something at the metadata server fails."""

    world: OnGoogle
    fault = Fault(ATTRIBUTES + KEY, status=503, times=None)

    def begin(self) -> None:
        self.world.gce.inject(self.fault)

    def end(self) -> None:
        self.world.gce.faults.clear()


class Unread(Google):
    """The instance's attribute is not answered, and the project has none."""


class UnreadByPage(Google):
    """A page stands in its place, and says that there is no such thing."""

    fault = Fault(ATTRIBUTES, status=404, body=PAGE, times=None)


class Beside(Google):
    """The instance's attribute is not answered, and the project's is broken."""

    async def prepare(self) -> None:
        self.world.gce.set_attribute(KEY, "-----BEGIN CREDENTIAL BUNDLE-----\naGVs", project=True)


class Signer(Google):
    """The attribute that names the signer is not answered."""

    fault = Fault(ATTRIBUTES + SIGNER, status=503, times=None)

    async def prepare(self) -> None:
        self.world.gce.set_attribute(SIGNER, short_key(self.world.machines.before.signer.verify_key()))
        launch = {"kind": "gce-attribute", "issuers": [ISSUER]}
        self.world.changes |= {"signers": [], "launch_signers": [launch]}


class SignerBeside(Signer):
    """Nor is it, and the project's attribute holds a bundle that is refused."""

    async def prepare(self) -> None:
        await super().prepare()
        self.world.gce.set_attribute(KEY, "no bundle", project=True)


class SignerByPage(Signer):
    """A page stands in its place."""

    fault = Fault(ATTRIBUTES + SIGNER, status=404, body=PAGE, times=None)


class Unnamed(Google):
    """The server does not say the machine's number."""

    fault = Fault("/computeMetadata/v1/instance/id", status=503, times=None)

    async def prepare(self) -> None:
        gce = self.world.gce
        self.world.audience = bundle.audience_gcp_instance(gce.project_id, str(gce.instance_id))


class UnnamedByPage(Unnamed):
    """A page stands in its place."""

    fault = Fault("/computeMetadata/v1/instance/id", status=404, body=PAGE, times=None)


REASONS = (Unread, UnreadByPage, Beside, Signer, SignerBeside, SignerByPage, Unnamed, UnnamedByPage)


def play(root: Path, reason: type[Reason], scenario: Callable[[World, Reason], Any]) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack, Ec2MetadataService() as ec2, GceMetadataServer() as gce:
            ec2.attach("worker-role", MACHINE)
            world = OnGoogle(root, ec2, gce, stack)
            it = reason(world)
            await it.prepare()
            world.seal()
            try:
                await scenario(world, it)
            finally:
                await world.machines.before.prepared.close()

    asyncio.run(main())


@pytest.mark.parametrize("successor", SUCCESSORS)
@pytest.mark.parametrize("reason", REASONS)
def test_a_first_bundle_is_waited_for(
    tmp_path: Path, reason: type[Reason], successor: Callable[[World, Life], None]
) -> None:
    """As long as the reason is there, and into the next process, however that begins."""

    async def scenario(world: World, it: Reason) -> None:
        it.begin()
        async with world.living() as (life, _):
            await world.waited(life)
            succeed(world, life, successor)
        async with world.living() as (life, _):
            await world.waited(life)
            assert world.machine_served == []
            it.end()
            await world.in_force(life)
        assert world.machine_served == []

    play(tmp_path, reason, scenario)


@pytest.mark.parametrize("successor", [restarted, stopped, rebooted])
@pytest.mark.parametrize("reason", REASONS)
def test_what_was_in_force_is_waited_for(
    tmp_path: Path, reason: type[Reason], successor: Callable[[World, Life], None]
) -> None:
    """A bundle that cannot be opened again yet is not lost, though its loss would allow the machine's identity."""
    play(tmp_path, reason, partial(resumes, successor=successor))
