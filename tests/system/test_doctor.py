"""`doctor` beside a real daemon: what it says while the daemon answers, hangs, and is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import World

DEADLINE = 60
"""Seconds, after which `doctor` itself counts as hung: it takes two, and this machine may be very busy."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def examined(config: Path, *options: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit status, and the findings by check."""
    command = [sys.executable, "-m", "agent", "doctor", "--json", "--config", str(config), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
    document = json.loads(done.stdout)
    assert (document["schema"], document["schema_version"]) == ("credential-agent/doctor", 1)
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in document["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    assert document["ok"] == (done.returncode == 0), done.stderr
    return done.returncode, found


def test_it_sees_a_healthy_daemon_a_hung_one_and_none(world: World) -> None:
    """Who serves is told with the key's thumbprint; a daemon that hangs, and one that is gone, do not hang the look."""
    with world.agent() as agent:
        agent.ready()
        world.drop(world.seal(world.session("ASIAUSER000000000000")))
        agent.wait_for("bundle.accepted", seq=1)
        _, found = examined(agent.config)
        assert [one["level"] for one in found["daemon"]] == ["ok"]
        assert [one["level"] for one in found["key"]] == ["ok"]
        assert world.key.kid in found["key"][0]["said"]
        assert "from the bundle" in str(found["identity"])

        os.kill(agent.process.pid, signal.SIGSTOP)
        try:
            status, found = examined(agent.config)
        finally:
            os.kill(agent.process.pid, signal.SIGCONT)
        assert status == 69
        assert "no answer" in found["daemon"][0]["said"]
        config = agent.config
    status, found = examined(config)
    assert status == 69
    assert found["daemon"][0]["level"] == "fail"
    assert "does not listen" in found["daemon"][0]["said"]


def test_a_pipe_in_place_of_a_file_hangs_nothing(world: World) -> None:
    """A pipe that nobody writes to is told as what it is, where a key is expected and where a configuration is."""
    config = world.write_config()
    key = world.key_file
    key.unlink()
    os.mkfifo(key)
    _, found = examined(config)
    assert "expected a file, got a pipe" in found["key"][0]["said"]
    config.unlink()
    os.mkfifo(config)
    _, found = examined(config)
    assert "expected a plain file" in found["configuration"][0]["said"]


def test_the_public_key_is_told_with_and_without_the_agent(world: World) -> None:
    """The same key from the running agent and from its file; --thumbprint is what bundles are addressed to."""

    def asked(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agent", "pubkey", "--config", str(world.write_config()), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)

    with world.agent() as agent:
        agent.ready()
        running = asked("--json").stdout
        assert asked("--thumbprint").stdout.strip() == world.key.kid
    alone = asked("--json")
    assert alone.stdout == running, alone.stderr
    (key,) = json.loads(running)["keys"]
    assert key["thumbprint"] == world.key.kid
    assert "d" not in key["jwk"]


def test_a_bundle_in_a_file_is_evaluated(world: World) -> None:
    """`--bundle`: taken, or refused with what this worker has in its place; exit status 65."""
    config = world.write_config()
    good, bad = config.with_name("good"), config.with_name("bad")
    good.write_bytes(world.seal(world.session()))
    bad.write_bytes(world.seal(world.session(), audiences=["urn:credbundle:cluster:other"]))
    _, found = examined(config, "--bundle", str(good))
    (said,) = [one for one in found["bundle"] if one["about"] == "the file"]
    assert (said["level"], "this worker takes it" in said["said"]) == ("ok", True), said
    status, found = examined(config, "--bundle", str(bad))
    (said,) = [one for one in found["bundle"] if one["about"] == "the file"]
    assert status == 65
    assert "urn:credbundle:cluster:test" in said["said"], said


def test_every_worker_learns_who_it_is_and_no_secret(world: World) -> None:
    """From the control socket, and as an SDK would ask: identity, whose it is, until when; the secrets stay where they are."""
    from agent.cli import whoami

    with world.agent() as agent:
        agent.ready()
        world.drop(world.seal(world.session(), world.google(hours=2)))
        agent.wait_for("bundle.accepted", seq=1)
        command = [sys.executable, "-m", "agent", "whoami", "--json", "--config", str(agent.config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        now = datetime.now(UTC)
        host, _, port = agent.wait_for("agent.started")["http"][0].partition(":")
        http = (host, int(port))
        asked = {"aws": whoami.ask_aws(http, now), "gcp": whoami.ask_gcp(http, now)}
    assert (told["schema"], told["schema_version"]) == ("credential-agent/whoami", 1)
    assert told["endpoint"].startswith("control socket ")
    for name, identity in (("aws", None), ("gcp", "worker@project.iam.gserviceaccount.com")):
        for one in (told["clouds"][name], asked[name]):
            assert (one["state"], one["origin"]) == ("live", "bundle"), one
            assert one["until"] is not None
            assert identity is None or one["identity"] == identity
    for secret in ("s" * 40, "t" * 80, "ya29.google"):
        assert secret not in done.stdout
        assert secret not in json.dumps(asked)


def test_a_configuration_that_was_changed_and_not_read_again_is_told(world: World) -> None:
    """What stands in the file is not what is in force: a warning, until a reload; a reload that is refused ends it not."""
    with world.agent() as agent:
        agent.ready()
        _, found = examined(agent.config)
        assert [one["level"] for one in found["configuration"]] == ["ok"]
        text = agent.config.read_text()
        agent.config.write_text(text + "# changed\n")
        os.utime(agent.config, (1_000_000_000, 1_000_000_000))
        _, found = examined(agent.config)
        assert "changed after the agent read it" in found["configuration"][0]["said"]

        mark = agent.mark
        agent.config.write_text("nonsense = 1\n" + text)
        agent.signal(signal.SIGHUP)
        agent.wait_for("reload.refused", after=mark)
        agent.config.write_text(text + "# changed\n")
        os.utime(agent.config, (1_000_000_000, 1_000_000_000))
        _, found = examined(agent.config)
        assert "changed after the agent read it" in found["configuration"][0]["said"]

        mark = agent.mark
        agent.signal(signal.SIGHUP)
        agent.wait_for("reload.applied", after=mark)
        _, found = examined(agent.config)
        assert [one["level"] for one in found["configuration"]] == ["ok"]
        assert agent.status()["configuration"] == {"changed_at": "2001-09-09T01:46:40Z"}
