"""The agent among services that others wrote alone: metadata, KMS, STS and object store, through start, outage and restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from agent import bundle
from agent.core.model import Action, AwsAssumeRole, Grant
from tests.conformance import others
from tests.conformance.warp import Warp
from tests.fakes.moto_server import available
from tests.system.harness import Agent, World, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="needs moto[server]"),
    pytest.mark.skipif(
        not (others.BUILT / "local-kms").exists(), reason="run tests/conformance/metadata/setup (needs Go)"
    ),
]

SPEED: Final = 60.0
"""A session of an hour passes in a minute."""
POLL_SECONDS: Final = 60.0
HUNG_SECONDS: Final = 3.0
"""As :data:`SPEED` moves no timeout: of one request."""


@dataclass
class Town:
    """Everything that is not ours.

    Attributes:
        metadata: what the machine knows of itself.
        clouds: STS, and the object store where bundles are.
        kms: has the worker's key.
        world: the agent's disk; its bundles are sealed to the key in KMS.
        changes: the configuration that leads to all of them.
    """

    metadata: others.Other
    clouds: others.Other
    kms: others.Other
    world: World
    warp: Warp
    changes: dict[str, Any]

    def put(self, *grants: Grant, **more: Any) -> None:
        """Seal a bundle, and put it where the agent looks."""
        sealed = self.world.seal(*grants, now=self.warp.now(), **more)
        others.client("s3", self.clouds.url).put_object(Bucket="bundles", Key="worker", Body=sealed)

    def role(self, seconds: int = 900) -> AwsAssumeRole:
        return AwsAssumeRole(
            id="role", role_arn="arn:aws:iam::123456789012:role/Data", base="instance", region=others.REGION,
            duration_seconds=seconds,
        )  # fmt: skip

    def agent(self) -> Agent:
        return self.world.agent(self.changes, prelude=self.warp.prelude)

    def served(self, agent: Agent) -> str:
        """The key that a worker is given, of a session that is not over."""
        credential = agent.credential()
        assert credential["Expiration"] > f"{self.warp.now():%Y-%m-%dT%H:%M:%SZ}"
        return str(credential["AccessKeyId"])

    def other_than(self, agent: Agent, *former: str, seconds: float = 60.0) -> str:
        """The next key."""
        found: list[str] = []

        def another() -> bool:
            found[:] = [self.served(agent)]
            return found[0] not in former

        until(another, seconds=seconds, what="another session")
        return found[0]


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    warp = Warp(SPEED)
    ends = f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%dT%H:%M:%SZ}"
    metadata = others.aws_metadata(tmp_path, ends)
    clouds, kms = others.moto_clouds(warp.environ(tmp_path)), others.kms(tmp_path)
    with ExitStack() as stack:
        for one in (metadata, clouds, kms):
            stack.callback(one.end)
            one.begin()
        arn, public = others.rsa_key(kms.url)
        world.recipient = bundle.RecipientKey.parse(public)
        key_file = world.root / "etc" / "kms.pem"
        key_file.write_text(public)
        store = others.client("s3", clouds.url)
        store.create_bucket(Bucket="bundles", CreateBucketConfiguration={"LocationConstraint": others.REGION})
        url = store.generate_presigned_url("get_object", {"Bucket": "bundles", "Key": "worker"}, ExpiresIn=600_000)
        changes: dict[str, Any] = {
            "keys": [{"kind": "aws-kms", "key_id": arn, "public_key": key_file, "endpoint": kms.url}],
            "identity": {"instance_id": "auto"},
            "sources": [{"kind": "https", "url": url, "wait_seconds": 0.0, "poll_seconds": POLL_SECONDS}],
            "upstream": {"ec2": metadata.url, "gce": "off"},
            "mint": {"sts_endpoint": clouds.url, "request_timeout_seconds": HUNG_SECONDS},
        }
        yield Town(metadata, clouds, kms, world, warp, changes)


def test_a_life_among_others(town: Town) -> None:
    """The machine's own identity, a bundle's role, its renewals, an outage of each service, a restart and a withdrawal."""
    with town.agent() as agent:
        agent.ready()
        assert town.served(agent) == others.ROLE_KEY
        assert agent.status()["clouds"]["aws"]["origin"] == "fallback"
        town.put(town.role())
        first = town.other_than(agent, others.ROLE_KEY)
        second = town.other_than(agent, first)
        outages: list[Callable[[], Any]] = [
            town.clouds.frozen, town.kms.frozen, town.kms.down, town.metadata.frozen, town.metadata.down,
        ]  # fmt: skip
        for outage in outages:
            failures = len(agent.events("credential.failed"))
            with outage():
                if outage == town.clouds.frozen:
                    agent.wait_for("credential.failed")
                assert town.served(agent) != others.ROLE_KEY
            second = town.other_than(agent, first, second)
            assert len(agent.events("credential.failed")) <= failures + 3
        town.put(town.role(), town.world.variables(WHO="two"))
        agent.wait_for("bundle.accepted", seq=2)
        assert town.served(agent) != others.ROLE_KEY
        assert agent.stop() == 0
    with town.agent() as agent:
        agent.ready().wait_for("bundle.resumed", seq=2)
        assert town.other_than(agent, others.ROLE_KEY) not in (first, second)
        town.put(action=Action.WITHDRAW)
        agent.wait_for("bundle.withdrawn")
        assert agent.role() is None
        assert not agent.events("raw")
        assert agent.stop() == 0


def test_a_restart_while_the_key_service_is_down(town: Town) -> None:
    """The bundle waits for its key, nobody becomes the machine meanwhile, and it is in force once the service is back."""
    with town.agent() as agent:
        agent.ready()
        town.put(town.role())
        town.other_than(agent, others.ROLE_KEY)
        agent.kill()
    town.kms.end()
    with town.agent() as agent:
        agent.started()
        until(lambda: agent.status()["clouds"]["aws"]["state"] == "pending", what="a look")
        assert agent.role() is None
        town.kms.begin()
        agent.wait_for("bundle.accepted", seq=1, seconds=60.0)
        assert town.other_than(agent, others.ROLE_KEY)
        assert agent.stop() == 0
