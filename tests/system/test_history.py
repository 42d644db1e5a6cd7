"""What happened lately is told after a restart too, and a refusal as long as it matters."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.harness import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_history_outlives_a_restart_and_a_crash(world: World) -> None:
    """An orderly end loses nothing, a crash nothing that is some seconds old; the file is the agent's alone."""
    with world.agent() as agent:
        agent.ready()
        agent.push(world.seal(world.session(), audiences=["urn:credbundle:cluster:other"]))
        assert agent.push(world.seal(world.session()))["outcome"] == "accepted"
        agent.push(b"not a bundle")
        assert agent.stop() == 0
    with world.agent() as agent:
        agent.ready()
        kinds = [(one["kind"], one["about"]) for one in agent.status()["history"]]
        assert kinds.count(("refused", "push")) == 2
        assert kinds.count(("bundle", "push")) == 1
        assert kinds.count(("started", "agent")) == 2
        assert ("identity", "aws") in kinds
        agent.kill()
    file = world.state / "history.json"
    assert file.stat().st_mode & 0o777 == 0o600
    with world.agent() as agent:
        agent.ready()
        words = [one["kind"] for one in agent.status()["history"]]
        assert (words.count("refused"), words.count("bundle")) == (2, 1)


def test_a_history_that_makes_no_sense_stops_nothing(world: World) -> None:
    """A garbled file is a history of which nothing is known."""
    world.state.mkdir(exist_ok=True)
    (world.state / "history.json").write_bytes(b"\xff" * 1000)
    with world.agent() as agent:
        agent.ready()
        assert agent.status()["history"][0]["kind"] == "started"


def test_a_refusal_is_told_while_it_matters(world: World) -> None:
    """Until the same source brings one that is taken, or another does; a source's own word on the same bytes counts too."""
    with world.agent() as agent:
        agent.ready()
        agent.push(world.seal(world.session(), audiences=["urn:credbundle:cluster:other"]))
        assert agent.status()["last_refusal"]["code"] == "audience"
        world.drop(world.seal(world.session()))
        agent.wait_for("bundle.accepted")
        assert agent.status()["last_refusal"] is None
        assert [one["kind"] for one in agent.status()["history"]].count("refused") == 1
