"""Rules of forwarding that no test held: each was found by a change nobody noticed."""

from __future__ import annotations

import asyncio
import json
import pwd
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from agent import bundle
from agent.core.errors import HostError, UsageError
from agent.core.model import Cloud
from agent.forward import State, signing
from agent.forward.agents import Agent
from agent.forward.courier import Job
from agent.forward.local import Local, Options, marks
from agent.forward.sealing import Sealer
from tests.unit.forward.support import ACCOUNT, Processes, World, now


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with World(tmp_path, monkeypatch) as world:
        yield world


class Watched(Processes):
    """Notes after which job each worker stops to wait for its identity."""

    def __init__(self, of: Processes) -> None:
        super().__init__(of.sockets)
        self.told: list[tuple[str, str]] = []

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        self.told += [(one, job.after) for one in workers if job.after]
        return super().call(job, workers)


def test_who_was_served_is_not_told_that_it_was_refused(world: World) -> None:
    """A worker waits for one word before its first task, and gets one."""
    world.courier = Watched(world.courier)
    world.machine("m")
    world.machine("other", account="999900001111")
    with world.forward():
        assert world.courier.told == [("m-0", "served"), ("other-0", "refused")]


def test_a_machine_that_has_left_shortens_nobody_s_lease(world: World) -> None:
    """How long workers are served is told of those that there are."""
    world.machine("m")
    with world.forward(lease=timedelta(minutes=10)) as f:
        first = f.status().clouds[0].until
        world.courier.sockets.clear()
        world.machine("later")
        world.time_gone = timedelta(minutes=2)
        until = f.refresh().clouds[0].until
        assert first is not None
        assert until is not None
        assert until - first >= timedelta(minutes=2)


def test_after_the_end_nothing_is_given_to_anybody(world: World) -> None:
    """What is taken back stays so, though somebody is about to be served: variables as well as credentials."""
    sealer = Sealer(
        Local(Options(aws=None, gcp=None, environ={"A": "1"})),
        signer=bundle.SigningKey.generate("Ed25519"),
        issuer="laptop:ada@x1",
        subject="s",
        lease=None,
        now=now,
    )
    agent = Agent("a")
    sealer.end()
    assert sealer.seal([agent], [], None) is None
    assert not agent.in_doubt


def test_a_block_is_entered_once_in_a_coroutine_too(world: World) -> None:
    """The end of the inner block would end the outer one, which goes on."""
    machine = world.machine("m")

    async def scenario() -> None:
        async with world.forward(lazy=lambda _: True) as f:
            with pytest.raises(UsageError, match="entered already"):
                await f.__aenter__()
            assert [one.state for one in f.status().workers] == [State.SERVED]
            assert machine.bundle is not None
        with pytest.raises(UsageError, match="has ended"):
            await f.__aenter__()

    asyncio.run(scenario())
    assert machine.bundle is None


@pytest.mark.parametrize("as_text", [True, False])
def test_a_session_policy_is_sent_as_it_was_meant(world: World, as_text: bool) -> None:
    """JSON text goes as it stands; a mapping as JSON."""
    policy = {"Version": "2012-10-17", "Statement": []}
    world.machine("m")
    text, role = json.dumps(policy), f"arn:aws:iam::{ACCOUNT}:role/reader"
    world.sts.role(role)
    with world.forward(role_arn=role, policy=text if as_text else policy):
        pass
    (asked,) = [call for call in world.sts.calls if call.operation == "AssumeRole"]
    said = asked.parameters["Policy"]
    assert json.loads(said) == policy
    assert (said == text) is as_text


def test_a_user_without_a_home_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown uid in a container: what needs no home goes on, and where the key is to be kept is asked for in a line."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CONFIG_HOME", "CLOUDSDK_CONFIG", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "~/other")
    with pytest.raises(HostError, match="no home directory") as refused:
        signing.load()
    assert refused.value.hint == "set HOME"
    assert set(marks()) == set(Cloud)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert signing.load().kid == signing.load().kid
