"""Who is this machine? A name is unsaid until a service has said one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.daemon.who import Who
from agent.upstream import Ec2Metadata, Upstream
from tests.fakes.clock import FakeClock
from tests.fakes.ec2_metadata import Ec2MetadataService
from tests.fakes.served import Fault


class Metadata:
    def __init__(self, ec2: Ec2Metadata) -> None:
        self.ec2, self.gce = ec2, None


@pytest.mark.parametrize("instead", [{"status": 404, "body": b"<html>"}, {"status": 503}, {"drop": True}])
def test_what_answers_in_place_of_the_service_names_nobody(tmp_path: Path, instead: dict[str, Any]) -> None:
    """A page that is not there, an outage and silence leave the name unsaid; the service's own answer says it."""

    async def scenario() -> None:
        out, clock = Upstream(), FakeClock()
        async with Ec2MetadataService() as ec2:
            metadata: Any = Metadata(Ec2Metadata(out, clock, ec2.url))
            who = Who(metadata, clock, configured="auto", root=tmp_path)
            assert who.unnamed
            ec2.inject(Fault("/", times=None, **instead))
            assert await who.ask() == []
            assert who.unnamed
            ec2.faults.clear()
            assert len(await who.ask()) == 1
            assert not who.unnamed
            await out.close()

    asyncio.run(scenario())
