"""Whose identity, when: a bundle that comes late, one that is refused, and a cloud that cannot renew; by real clients."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.credentials import ContainerProvider, InstanceMetadataProvider
from botocore.utils import ContainerMetadataFetcher, InstanceMetadataFetcher

from agent import bundle
from agent.core.model import OnExpiry
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.gce_metadata import GceMetadataServer
from tests.system.harness import Agent, World, background, until

USER, MACHINE = "ASIAUSER000000000001", "ASIAMACHINE000000000"


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


@pytest.fixture
def ec2() -> Iterator[Ec2MetadataService]:
    service = Ec2MetadataService()
    service.attach("worker-role", Key(MACHINE, "machine-secret", "machine-token"))
    with background(service):
        yield service


def on(service: Ec2MetadataService) -> dict[str, Any]:
    return {"upstream": {"ec2": service.url}}


def known(service: Ec2MetadataService) -> dict[str, Any]:
    """At a port that a command finds in the configuration."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return {**on(service), "listen": {"http": [f"127.0.0.1:{free.getsockname()[1]}"]}}


def left(document: dict[str, Any]) -> timedelta:
    return datetime.fromisoformat(document["Expiration"]) - datetime.now(UTC)


def container(agent: Agent, world: World) -> dict[str, Any]:
    reply = agent.ask("/v1/credentials", headers={"Authorization": world.token})
    assert reply.status == 200, reply
    document = reply.json()
    assert isinstance(document, dict)
    return document


def wait(world: World, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "agent", "wait", "--config", str(world.root / "etc" / "config.toml"), *options]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


class TestEarlyEnd:
    def test_the_machine_s_identity_ends_early_where_a_bundle_may_come(
        self, world: World, ec2: Ec2MetadataService
    ) -> None:
        """Every endpoint tells the machine's credential of six hours with an end in 18 to 20 minutes; a bundle's is true."""
        with world.agent(on(ec2)) as agent:
            agent.ready()
            for document in (agent.credential(), container(agent, world)):
                assert document["AccessKeyId"] == MACHINE
                assert timedelta(minutes=17) < left(document) <= timedelta(minutes=20)
            assert agent.status()["clouds"]["aws"]["expires_at"] != agent.credential()["Expiration"]
            agent.push(world.seal(world.session(USER, hours=6)))
            for document in (agent.credential(), container(agent, world)):
                assert document["AccessKeyId"] == USER
                assert left(document) > timedelta(hours=5)

    def test_where_no_bundle_can_come_the_end_is_true(self, world: World, ec2: Ec2MetadataService) -> None:
        """An agent without a key serves the machine for good, and says how long."""
        with world.agent({**on(ec2), "keys": [], "signers": [], "sources": []}) as agent:
            agent.ready()
            assert left(agent.credential()) > timedelta(hours=5)

    def test_a_fallback_after_a_bundle_ends_early_too(self, world: World, ec2: Ec2MetadataService) -> None:
        """After a withdrawal that lets the machine's identity back, the next bundle finds nobody on it for hours."""
        with world.agent(on(ec2)) as agent:
            agent.ready()
            agent.push(world.seal(world.session(USER)))
            agent.push(world.withdrawal(on_expiry=OnExpiry.FALLBACK))
            until(lambda: agent.access_key() == MACHINE, what="the machine's identity")
            assert left(agent.credential()) <= timedelta(minutes=20)

    def test_it_is_never_later_than_the_true_end(self, world: World, ec2: Ec2MetadataService) -> None:
        """A credential that ends in six minutes is told to end in six minutes."""
        soon = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=6)
        ec2.attach("worker-role", Key(MACHINE, "machine-secret", "machine-token", soon))
        with world.agent(on(ec2)) as agent:
            agent.ready()
            for document in (agent.credential(), container(agent, world)):
                assert datetime.fromisoformat(document["Expiration"]) == soon

    def test_botocore_neither_storms_nor_stays(
        self, world: World, ec2: Ec2MetadataService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both of botocore's providers: no request for a hundred signatures; five minutes later it is the bundle's."""
        with world.agent(on(ec2)) as agent:
            agent.ready()
            uri = f"{agent.url}/v1/credentials"
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)
            monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(world.root / "run" / "token"))
            imds = InstanceMetadataFetcher(base_url=agent.url + "/")
            found = [
                ContainerProvider(os.environ, ContainerMetadataFetcher()).load(),
                InstanceMetadataProvider(iam_role_fetcher=imds).load(),
            ]

            def answered() -> int:
                reply = agent.operate("/metrics").body.decode()
                (line,) = [
                    line
                    for line in reply.splitlines()
                    if line.startswith('credential_agent_http_requests_total{door="worker",status="200"}')
                ]
                return int(float(line.split()[-1]))

            before = answered()
            for credential in found:
                assert credential is not None
                for _ in range(100):
                    assert credential.get_frozen_credentials().access_key == MACHINE
            assert answered() == before
            agent.push(world.seal(world.session(USER)))
            for credential in found:
                assert credential is not None
                credential._time_fetcher = lambda: datetime.now(UTC) + timedelta(minutes=5, seconds=5)
            assert [c.get_frozen_credentials().access_key for c in found if c is not None] == [USER, USER]


class TestWait:
    def test_wait_for_a_bundle_does_not_end_on_the_machine_s_identity(
        self, world: World, ec2: Ec2MetadataService
    ) -> None:
        """``wait`` says whose identity it found; ``wait --bundle`` ends only on a bundle's."""
        with world.agent(known(ec2)) as agent:
            agent.ready()
            plain = wait(world, "--for", "aws")
            assert (plain.returncode, plain.stdout) == (0, "aws: the machine's own identity\n")
            asked = wait(world, "--for", "aws", "--bundle", "--timeout", "0.5")
            assert asked.returncode == 75
            assert "aws: the machine's own identity; a bundle's was asked for" in asked.stderr
            agent.push(world.seal(world.session(USER)))
            asked = wait(world, "--bundle", "--timeout", "5")
            assert (asked.returncode, asked.stdout) == (0, "aws: an identity from the bundle\n")

    def test_a_refused_bundle_is_named(self, world: World, ec2: Ec2MetadataService) -> None:
        """A bundle for somebody else: ``wait --bundle`` fails with that cause, ``status`` says what this worker answers to."""
        world.drop(world.seal(world.session(USER), audiences=[bundle.audience_cluster("other")]))
        with world.agent(known(ec2)) as agent:
            agent.ready()
            agent.wait_for("bundle.refused", code="audience")
            asked = wait(world, "--bundle", "--timeout", "0.5")
            assert asked.returncode == 75
            assert "the last bundle was refused: audience: " in asked.stderr
            status = agent.status()
            assert status["last_refusal"]["code"] == "audience"
            argv = [sys.executable, "-m", "agent", "status", "--config", str(agent.config)]
            told = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
            assert "this worker answers to: key " in told
            assert "urn:credbundle:cluster:test" in told

    def test_words_of_a_stranger_are_no_header(self, world: World) -> None:
        """What is refused is told in one header line, whatever it is made of."""
        with world.agent() as agent:
            agent.ready()
            agent.push(b'{"protected":"x\\r\\nSet-Cookie: a=b"}')
            reply = agent.ask("/v1/credentials", headers={"Authorization": "x", "X-Credential-Agent-Origin": "?"})
            assert reply.headers["x-credential-agent-origin"] == "none"
            assert "x-credential-agent-refused" in reply.headers
            assert "set-cookie" not in reply.headers


class TestStaticStability:
    def test_what_ec2_hands_out_though_it_has_ended_reaches_the_workers(
        self, world: World, ec2: Ec2MetadataService
    ) -> None:
        """EC2 that cannot renew hands out an ended credential: through us SDKs get it as they would without us.

        By the metadata dialect with its true end, which they extend themselves; by the container dialect, whose clients
        would not, with the early one. From a bundle nothing ended is ever served.
        """
        past = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
        ec2.attach("worker-role", Key(MACHINE, "machine-secret", "machine-token", past))
        with world.agent(on(ec2)) as agent:
            agent.ready()
            assert datetime.fromisoformat(agent.credential()["Expiration"]) == past
            assert timedelta(minutes=17) < left(container(agent, world)) <= timedelta(minutes=20)
            loaded = InstanceMetadataProvider(iam_role_fetcher=InstanceMetadataFetcher(base_url=agent.url + "/")).load()
            assert loaded is not None
            assert loaded.get_frozen_credentials().access_key == MACHINE
            agent.push(world.seal(world.session(USER, hours=0.0006)))
            until(lambda: agent.status()["clouds"]["aws"]["state"] == "ended", what="the end of the bundle's")
            assert agent.role() is None


class TestEarlyEndOfGoogle:
    def test_a_living_google_auth_leaves_the_machine_s_identity(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process that asked before the bundle came asks again within twenty minutes, and is the user from then on."""
        from google.auth import _helpers
        from google.auth.compute_engine import Credentials, _metadata
        from google.auth.transport.requests import Request

        gce = GceMetadataServer()
        with background(gce), world.agent({"upstream": {"gce": gce.url}}) as agent:
            agent.ready()
            monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", ":".join(map(str, agent.address)))
            credentials, request = Credentials(), Request()
            credentials.refresh(request)
            machine, now = credentials.token, _helpers.utcnow()
            assert timedelta(minutes=16) < credentials.expiry - now <= timedelta(minutes=20, seconds=5)
            agent.push(world.seal(world.google("ya29.user")))
            assert credentials.valid
            assert credentials.token == machine
            monkeypatch.setattr(_helpers, "utcnow", lambda: now + timedelta(minutes=20))
            assert not credentials.valid
            credentials.before_request(request, "GET", "https://storage.googleapis.com/", {})
            assert credentials.token == "ya29.user"
            assert credentials.expiry - now > timedelta(minutes=50)
