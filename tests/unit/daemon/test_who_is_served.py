"""Who is served where: images for one cloud, for both and for none, on machines at whose one address somebody answers, or nobody.

The rule: never the machine where there is a reason to wait, and no wait where nothing can come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from agent import bundle
from agent.core.model import Cloud, SealedBundle
from agent.core.view import Absent, Live, Origin, Pending
from agent.daemon import reload
from agent.host import patience
from tests.fakes.ec2_metadata import Ec2MetadataService
from tests.fakes.gce_metadata import GceMetadataServer
from tests.fakes.one_address import Azure, OpenStack, Portal, Redirecting
from tests.fakes.served import Fault, Served
from tests.system.harness import AUDIENCE, ISSUER, merged
from tests.unit.daemon.life import READY_SECONDS, Life, patient
from tests.unit.daemon.reasons import GRACE_SECONDS, LONG_SECONDS, MACHINE, World
from tests.unit.identity.worlds import google, session

PLACES: Final[dict[str, type[Served]]] = {
    "ec2": Ec2MetadataService,
    "gce": GceMetadataServer,
    "azure": Azure,
    "openstack": OpenStack,
    "a portal": Portal,
    "a portal that redirects": Redirecting,
    "nobody": Ec2MetadataService,
}
SERVICES: Final = {Cloud.AWS: ("ec2", "ec2-user-data"), Cloud.GCP: ("gce", "gce-attribute")}
IMAGES: Final = {"aws": (Cloud.AWS,), "gcp": (Cloud.GCP,), "both": tuple(Cloud), "neither": ()}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch)
    monkeypatch.setattr(reload, "PATIENCE_SECONDS", READY_SECONDS)
    monkeypatch.setattr(patience, "WAIT_SECONDS", READY_SECONDS)


class Place(World):
    """A machine of an image, with one address at which ``service`` answers for all clouds."""

    def __init__(self, root: Path, service: Any, stack: AsyncExitStack, image: tuple[Cloud, ...]) -> None:
        super().__init__(root, service, stack)
        self.image = image

    @property
    def configuration(self) -> dict[str, Any]:
        services = {name: self.ec2.url if cloud in self.image else "off" for cloud, (name, _) in SERVICES.items()}
        kinds = [{"kind": kind} for cloud, (_, kind) in SERVICES.items() if cloud in self.image]
        base = {"identity": {"grace_seconds": GRACE_SECONDS}, "sources": kinds, "upstream": services}
        return merged(base, self.changes)

    def sealed(self) -> bytes:
        """A bundle that decides both clouds."""
        grants = session(now=self.now, hours=480), google(now=self.now, hours=480)
        return bundle.seal(
            signer=self.machines.before.signer,
            recipients=[self.recipient],
            issuer=ISSUER,
            subject="team",
            audiences=[AUDIENCE],
            now=self.now,
            grants=grants,
            routes=dict(zip(Cloud, [grant.id for grant in grants], strict=True)),
            seq=1,
        )

    def put(self, sealed: bytes) -> None:
        if isinstance(self.ec2, GceMetadataServer):
            self.ec2.set_attribute("credential-bundle", sealed.decode())
        else:
            self.ec2.user_data = sealed

    def told(self, life: Life, cloud: Cloud) -> str:
        """Who is served there now, in a word."""
        answer = life.store.answer(cloud, life.clock.now())
        match answer:
            case Live():
                return "machine" if answer.origin is Origin.FALLBACK else "bundle"
            case Pending():
                cause = f"{SERVICES[cloud][1]} does not answer"
                return "pending" if cause in answer.why else f"pending: {answer.why}"
            case Absent():
                return "absent"
        return "an outage" if answer.passing and "'s answers there" in answer.why else f"ended: {answer.why}"


def expected(image: tuple[Cloud, ...], place: str, comes: str, cloud: Cloud) -> str:
    """The rule."""
    here = next((one for one, (name, _) in SERVICES.items() if name == place), None)
    if comes == "pushed" or (comes == "there" and here in image):
        return "bundle"
    if cloud not in image:
        return "absent"
    if here is None:
        return "pending"  # nobody of that cloud has spoken: user-data, or an attribute, may hold a bundle
    if here is cloud:
        return "machine"
    # Who names one service alone says that this is its machine: what answers in its place is an outage.
    return "absent" if here in image else "an outage"


def play(root: Path, image: str, place: str, comes: str) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            service = await stack.enter_async_context(PLACES[place]())
            if isinstance(service, Ec2MetadataService):
                service.attach("worker-role", MACHINE)
            if place == "nobody":
                service.inject(Fault(drop=True, times=None))
            world = Place(root, service, stack, IMAGES[image])
            if comes == "there":
                world.put(world.sealed())
            try:
                await served(world, place, comes)
            finally:
                await world.machines.before.prepared.close()

    async def served(world: Place, place: str, comes: str) -> None:
        rule = {cloud: expected(world.image, place, comes, cloud) for cloud in Cloud}
        async with world.living() as (life, _):
            controller = life.controller
            await world.until(lambda: "starting" not in controller.source_state.values())
            if comes == "pushed":
                assert (await controller.intake.submit(SealedBundle(world.sealed(), "push"))).outcome == "accepted"
            else:
                world.clock.fake.move(LONG_SECONDS)
                await world.until(lambda: controller.last_step >= life.clock.boottime() - 1.0)
            await world.until(lambda: {cloud: world.told(life, cloud) for cloud in Cloud} == rule)
            # And whose machine it is: of no cloud that another's service, or a page, speaks of.
            own = {name: str(cloud) for cloud, (name, _) in SERVICES.items() if cloud in world.image}
            named = {own[place]} if place in own else {"", "machine"}
            await world.until(lambda: life.store.memory.instance_id.partition(":")[0] in named)

    asyncio.run(main())


def cases() -> Iterator[tuple[str, str, str]]:
    """Each image, on each machine, with what comes to it; but where it asks nobody, or nobody has a bundle, once."""
    for image in IMAGES:
        for place in PLACES if IMAGES[image] else ["ec2"]:
            yield image, place, "nothing"
            if place in ("ec2", "gce"):
                yield image, place, "there"
            if place in ("ec2", "gce", "nobody"):
                yield image, place, "pushed"


@pytest.mark.parametrize(("image", "place", "comes"), list(cases()))
def test_who_is_served(tmp_path: Path, image: str, place: str, comes: str) -> None:
    """The bundle where one is; the machine where its cloud says that none is; else a wait, or an outage, that names its cause."""
    play(tmp_path, image, place, comes)
