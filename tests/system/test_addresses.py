"""Where the listener listens, under which names it answers, and which of them the environment file gives to programs."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.harness import World, until


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


def own_address() -> str:
    """An address of this machine that is not loopback; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no interface but loopback")
        address: str = probe.getsockname()[0]
    if address.startswith("127."):
        pytest.skip("this machine has no interface but loopback")
    return address


def test_a_bridges_address_is_ours(world: World) -> None:
    """Who follows the environment file of an agent on a bridge's address is answered, and is led to no URI that SDKs refuse."""
    address = own_address()
    listen = {"http": [f"{address}:0"]}
    with world.agent({"listen": listen}) as agent:
        agent.ready()
        agent.push(world.seal(world.session()))
        assert agent.ask("/v1/credentials", headers={"Authorization": world.token}).status == 200
        until(lambda: "AWS_EC2_METADATA_SERVICE_ENDPOINT" in world.env(), what="the environment file")
        assert world.env()["AWS_EC2_METADATA_SERVICE_ENDPOINT"] == agent.url
        assert agent.role() is not None
        assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" not in world.env()
        assert agent.events("environment.no_container_uri")
        assert agent.ask("/", headers={"Host": "evil.example"}).status == 403
    told = subprocess.run(
        [sys.executable, "-m", "agent", "check", "--config", str(world.write_config({"listen": listen}))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "SDKs take no container endpoint at these addresses" in told.stdout + told.stderr


def test_a_wildcard_answers_to_the_names_it_was_given(world: World) -> None:
    """A wildcard is nobody's name: the configuration gives names, and the environment file says loopback."""
    with world.agent({"listen": {"http": ["0.0.0.0:0"], "hosts": ["Workers.internal", "10.9.8.7"]}}) as agent:
        agent.ready()
        agent.push(world.seal(world.session()))
        port = agent.address[1]
        until(lambda: "AWS_CONTAINER_CREDENTIALS_FULL_URI" in world.env(), what="the environment file")
        uri = world.env()["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
        assert uri == f"http://127.0.0.1:{port}/v2/credentials/{world.token}"
        token = {"Authorization": world.token}
        for host, status in (
            ("workers.internal", 200),
            (f"10.9.8.7:{port}", 200),
            (f"0.0.0.0:{port}", 403),
            ("10.9.8.8", 403),
        ):
            assert agent.ask("/v1/credentials", headers={**token, "Host": host}).status == status, host


def test_who_follows_the_uri_alone_is_served(world: World) -> None:
    """minio-py 7.1, older minio-go and others send no token: the environment file's URI opens the endpoint by itself, and no other does."""
    with world.agent() as agent:
        agent.ready()
        agent.push(world.seal(world.session()))
        until(lambda: "AWS_CONTAINER_CREDENTIALS_FULL_URI" in world.env(), what="the environment file")
        base, path, last = world.env()["AWS_CONTAINER_CREDENTIALS_FULL_URI"].rpartition("/credentials/")
        assert agent.ask(f"{base.removeprefix(agent.url)}{path}{last}").json()["AccessKeyId"].startswith("ASIA")
        for guess in (last[:-1], last.swapcase(), "x", ""):
            assert agent.ask(f"/v2/credentials/{guess}").status in {401, 404}


def test_containers_have_a_file_of_their_own(world: World) -> None:
    """The relative URI of the containers' file is answered without a token, after a restart too, and no other id is."""
    changes = {"environment": {"container_file": world.root / "run" / "container.env"}}
    file = world.root / "run" / "container.env"
    seen = set()
    for _ in range(2):
        with world.agent(changes) as agent:
            agent.ready()
            agent.push(world.seal(world.session(), world.variables(JOB_ID="7")))
            text = until(lambda: file.read_text() if "JOB_ID=7" in file.read_text() else "", what="the file")
            found = dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
            path = found["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]
            seen.add(path)
            host = {"Host": "169.254.170.2"}
            assert agent.ask(path, headers=host).json()["AccessKeyId"].startswith("ASIA")
            assert agent.ask(path, headers={**host, "X-Forwarded-For": "1"}).status == 403
            assert agent.ask(path, headers={"Host": "evil.example"}).status == 403
            assert agent.ask(path, headers={**host, "Origin": "http://169.254.170.2"}).status == 403
            for other in (path[:-1], path + "x", path.swapcase(), "/v2/credentials/", "/v1/credentials"):
                assert agent.ask(other, headers=host).status in {401, 404}, other
            # A refusal is logged, with the path that was asked for: the id in it opens the endpoint.
            said = agent.wait_for("request.refused", status=403)
            assert said["path"] == "/v2/credentials/..."
            assert path.rpartition("/")[2] not in str(agent.lines)
            assert "127.0.0.1" not in text
            assert file.stat().st_mode & 0o777 == 0o600
    assert len(seen) == 1
