"""Whoever launches a machine says whom it believes: off unless configured, bounded by it, and taken back as it was given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent import bundle
from agent.wire.signers import line
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.gce_metadata import GceMetadataServer
from tests.system.harness import Agent, UnixConnection, World, background, exchange, until

BOUNDS: dict[str, Any] = {"issuers": ["laptop:*"], "max_lease_seconds": 7200}
LAPTOP = "laptop:david@x1"


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


@pytest.fixture
def clouds() -> Iterator[tuple[Ec2MetadataService, GceMetadataServer]]:
    ec2, gce = Ec2MetadataService(), GceMetadataServer()
    ec2.attach("worker-role", Key("ASIAMACHINE000000000", "machine-secret", "machine-token"))
    with background(ec2, gce):
        yield ec2, gce


def believed(agent: Agent) -> list[dict[str, Any]]:
    found = agent.status()["signers"]
    assert isinstance(found, list)
    return found


def places(world: World, ec2: Ec2MetadataService, gce: GceMetadataServer, kind: str) -> dict[str, Any]:
    """Name the world's signer in a place of that kind; the entry that looks there."""
    word = bundle.short_key(world.signer.verify_key())
    match kind:
        case "ec2-user-data":
            ec2.user_data = f"#!/bin/sh\n# {line(word)}\n".encode()
        case "ec2-tag":
            ec2.tags["credential-agent-signer"] = word
        case "gce-attribute":
            # Called as its owner calls it, not by its thumbprint.
            world.signer = bundle.SigningKey.parse({**world.signer.private_jwk(), "kid": "davids-key"})
            gce.attributes["credential-agent-signer"] = json.dumps(world.signer.public_jwk(), indent=1)
        case "credential":
            (world.root / "creds").mkdir(exist_ok=True)
            (world.root / "creds" / "credential-agent.signers").write_text(line(word) + "\n")
        case "directory":
            (world.root / "signers").mkdir()
            (world.root / "signers" / "david.jwk").write_text(json.dumps(world.signer.public_jwk()))
            return {"kind": kind, "path": world.root / "signers", **BOUNDS}
    return {"kind": kind, **BOUNDS}


@pytest.mark.parametrize("kind", ["ec2-user-data", "ec2-tag", "gce-attribute", "credential", "directory"])
def test_each_place_names_a_signer(
    world: World, clouds: tuple[Ec2MetadataService, GceMetadataServer], kind: str
) -> None:
    """A bundle of whom the launch named is taken, for as long and from such issuers as the configuration allows."""
    ec2, gce = clouds
    changes = {
        "launch_signers": [places(world, ec2, gce, kind)],
        "signers": [],
        "sources": [],
        "upstream": {"ec2": ec2.url, "gce": gce.url},
    }
    environ = {"CREDENTIALS_DIRECTORY": str(world.root / "creds")}
    with world.agent(changes, environ=environ) as agent:
        agent.wait_for("agent.started")
        (one,) = believed(agent)
        assert (one["origin"], one["issuers"], one["max_lease_seconds"]) == (kind, ["laptop:*"], 7200)
        reply = exchange(UnixConnection(agent.control.with_name("courier.sock")), "GET", "/v1/status", None, None)
        assert reply.json()["signers"] == [one]
        assert agent.push(world.seal(world.session(), issuer="https://control.example"))["code"] == "issuer"
        too_long = datetime.now(UTC) + timedelta(hours=3)
        assert agent.push(world.seal(world.session(), issuer=LAPTOP, lease_until=too_long))["code"] == "lease"
        assert agent.push(world.seal(world.session(), issuer=LAPTOP))["outcome"] == "accepted"
        until_ = agent.status()["bundle"]["lease_until"]
        assert until_ is not None
    # A restart believes whom the launch named, and serves what it accepted.
    with world.agent(changes, environ=environ) as agent:
        agent.wait_for("agent.started")
        assert agent.access_key() == "ASIAUSER000000000000"


def test_nobody_is_asked_without_an_entry(world: World, clouds: tuple[Ec2MetadataService, GceMetadataServer]) -> None:
    """Off unless configured: what stands in user-data, tags and attributes names nobody."""
    ec2, gce = clouds
    for kind in ("ec2-user-data", "ec2-tag", "gce-attribute"):
        places(world, ec2, gce, kind)
    other = bundle.SigningKey.generate()
    world.signer_file.write_text(json.dumps(other.public_jwk()))
    with world.agent({"sources": [], "upstream": {"ec2": ec2.url, "gce": gce.url}}) as agent:
        agent.wait_for("agent.started")
        assert [one["kid"] for one in believed(agent)] == [other.kid]
        assert agent.push(world.seal(world.session()))["code"] == "signer"


def test_who_is_taken_back_is_believed_no_longer(world: World, clouds: tuple[Any, Any]) -> None:
    """A file that comes is believed without a restart; one that goes takes what it vouched for with it; a slip does not."""
    entry = places(world, *clouds, "directory")
    key = world.root / "signers" / "david.jwk"
    text = key.read_text()
    key.unlink()
    with world.agent({"launch_signers": [entry], "signers": [], "sources": []}) as agent:
        agent.wait_for("agent.started")
        assert believed(agent) == []
        sealed = world.seal(world.session(), issuer=LAPTOP)
        assert agent.push(sealed)["code"] == "signer"
        key.write_text(text)
        until(lambda: len(believed(agent)) == 1, what="a signer")
        agent.wait_for("bundle.accepted")  # the one that was refused for want of its signer is looked at again
        # It is the same once it is written down, which comes after the word of it.
        assert agent.push(sealed)["outcome"] in {"accepted", "same"}
        key.write_text('{"kty": "OKP", "crv": "Ed25519", "x": "cut o')
        agent.wait_for("signers.unreadable")
        assert len(believed(agent)) == 1
        key.unlink()
        agent.wait_for("bundle.revoked")
        assert believed(agent) == []
        assert agent.access_key() is None
