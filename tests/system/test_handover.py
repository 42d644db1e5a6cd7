"""A restart re-earns nothing: what the process before had is served, whatever became of what it was had from."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agent import bundle
from agent.core.model import AwsKeys
from agent.core.secret import Secret
from tests.fakes.behind import Behind
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.https_store import HttpsStore
from tests.fakes.notify_socket import NotifySocket
from tests.fakes.served import Fault
from tests.fakes.sts import FakeSts
from tests.system.harness import AUDIENCE, ISSUER, Agent, World, background, until

USER = "ASIAUSER000000000000"
MACHINE = "ASIAMACHINE000000001"
HASTY = "import agent.daemon.who\nagent.daemon.who.ASK_AGAIN_SECONDS = 0.2\n"
GAPS = """
import agent.daemon.gap as gap, agent.daemon.still as still
still.ASK_SECONDS, gap.UNCONFIRMED_SECONDS, gap.GAP_SECONDS = 0.2, 0.0, -1.0
"""
"""Each look comes after a gap in some clock, and silence is not waited for."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path / "n") as manager:
        yield manager


@pytest.fixture
def mute() -> Iterator[str]:
    """Something that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def start(world: World, manager: NotifySocket, changes: dict[str, Any] | None = None) -> Agent:
    """Start the daemon with everything that the manager holds for it."""
    return world.agent(changes, environ={"NOTIFY_SOCKET": str(manager.path)}, passed=manager.stored())


def serve(world: World, manager: NotifySocket, changes: dict[str, Any] | None = None) -> None:
    """One life of the daemon, with a bundle in force, ended by a kill."""
    with start(world, manager, changes) as agent:
        agent.ready()
        assert agent.push(world.seal(world.session(USER), seq=1))["outcome"] == "accepted"
        held(manager, USER)
        agent.kill()


def held(manager: NotifySocket, key: str) -> None:
    manager.wait_content("credentials", lambda data: key.encode() in data)
    manager.wait_content("handover", lambda data: json.loads(data).get("signed") is not None)


def served(agent: Agent) -> None:
    """It is served soon: on a machine that is busy the start answers before what was in force is opened again."""
    until(lambda: agent.access_key() == USER, what="what was in force")


def no_key(world: World) -> dict[str, Any]:
    world.key_file.unlink()
    return {}


def no_signer_file(world: World) -> dict[str, Any]:
    world.signer_file.unlink()
    return {}


def no_state(world: World) -> dict[str, Any]:
    shutil.rmtree(world.state)
    return {}


def broken_state(world: World) -> dict[str, Any]:
    (world.state / "memory.json").write_bytes(b"{garbled")
    return {}


def no_sealed_copy(world: World) -> dict[str, Any]:
    for path in world.state.glob("bundle-*"):
        path.unlink()
    return {}


def no_directories(world: World) -> dict[str, Any]:
    shutil.rmtree(world.state)
    return {"environment": {"file": "/nonexistent/a", "shell_file": "/nonexistent/b", "token_file": "/nonexistent/c"}}


def a_fifo_for_the_token(world: World) -> dict[str, Any]:
    import os

    (world.root / "run" / "token").unlink()
    os.mkfifo(world.root / "run" / "token")
    return {}


@pytest.mark.parametrize(
    "away",
    [no_key, no_signer_file, no_state, broken_state, no_sealed_copy, no_directories, a_fifo_for_the_token],
)
def test_what_is_away_takes_nothing_away(
    world: World, manager: NotifySocket, away: Callable[[World], dict[str, Any]]
) -> None:
    """Neither the key, nor the signer's file, nor any directory is needed to serve on what was served."""
    serve(world, manager)
    with start(world, manager, away(world)) as agent:
        agent.started()
        served(agent)
        held(manager, USER)
        agent.kill()
    with start(world, manager) as agent:  # and the one after that is as well off
        agent.started()
        served(agent)


def unpinned(world: World) -> dict[str, Any]:
    other = bundle.SigningKey.generate("Ed25519")
    world.signer_file.write_text(json.dumps({**other.public_jwk(), "kid": other.kid}))
    return {}


def no_longer_for_us(world: World) -> dict[str, Any]:
    return {"identity": {"audience": [AUDIENCE + "-other"]}}


def not_that_issuer(world: World) -> dict[str, Any]:
    return {"signers": [{"key": world.signer_file, "issuers": [ISSUER + "/other"]}]}


def another_machine(world: World) -> dict[str, Any]:
    return {"identity": {"instance_id": "i-2"}}


def key_given_up(world: World) -> dict[str, Any]:
    other = bundle.OpeningKey.generate("P-256")
    world.key_file.write_text(json.dumps({**other.private_jwk(), "kid": other.kid}))
    return {}


@pytest.mark.parametrize("changed", [unpinned, no_longer_for_us, not_that_issuer, another_machine, key_given_up])
def test_what_is_not_believed_any_more_is_not_served(
    world: World, manager: NotifySocket, changed: Callable[[World], dict[str, Any]]
) -> None:
    """What is handed over is evaluated by the configuration that holds now: whom it believes, and who it is."""
    serve(world, manager)
    with start(world, manager, changed(world)) as agent:
        agent.ready()
        assert agent.role() is None
        assert agent.status()["bundle"] is None


def test_a_withdrawal_outlasts_the_loss_of_the_disk(world: World, manager: NotifySocket) -> None:
    """What was withdrawn stays withdrawn, though the state directory is gone: the memory is handed over too."""
    ec2 = Ec2MetadataService()
    ec2.attach("worker-role", Key(MACHINE, "machine-secret", "machine-token"))
    with background(ec2):
        changes = {"upstream": {"ec2": ec2.url}}
        with start(world, manager, changes) as agent:
            agent.ready()
            agent.push(world.seal(world.session(USER)))
            agent.push(world.withdrawal())
            manager.wait_content("handover", lambda data: json.loads(data).get("signed") is None)
            agent.kill()
        shutil.rmtree(world.state)
        with start(world, manager, changes) as agent:
            agent.ready()
            assert agent.role() is None
            assert agent.status()["clouds"]["aws"]["origin"] == "closed"


class TestTheMachinesOwn:
    def test_its_metadata_service_is_silent(self, world: World, manager: NotifySocket, mute: str) -> None:
        """The machine's own credential is served at once while the metadata service hangs."""
        ec2 = Ec2MetadataService()
        ec2.attach("worker-role", Key(MACHINE, "machine-secret", "machine-token"))
        with background(ec2), start(world, manager, {"upstream": {"ec2": ec2.url}}) as agent:
            agent.ready()
            assert agent.access_key() == MACHINE
            manager.wait_content("credentials", lambda data: MACHINE.encode() in data)
            agent.kill()
        with start(world, manager, {"upstream": {"ec2": mute}}) as agent:
            agent.started()
            assert agent.access_key() == MACHINE

    def test_names_that_only_the_machine_knows(self, world: World, manager: NotifySocket, mute: str) -> None:
        """A bundle for this instance by the name that its metadata service gives it is in force while that hangs."""
        ec2 = Ec2MetadataService()
        with background(ec2):
            changes = {"upstream": {"ec2": ec2.url}, "identity": {"instance_id": "auto", "audience": []}}
            with start(world, manager, changes) as agent:
                agent.ready()
                own = next(name for name in agent.status()["audiences"] if "key:" not in name)
                pushed = agent.push(world.seal(world.session(USER), audiences=[own]))
                assert pushed["outcome"] == "accepted", pushed
                held(manager, USER)
                agent.kill()
        with start(world, manager, {**changes, "upstream": {"ec2": mute}}) as agent:
            agent.started()
            served(agent)

    def test_a_copy_of_a_machine_that_runs_is_not_that_machine(self, world: World, manager: NotifySocket) -> None:
        """All that it holds is the original's, memory and boot too; only its metadata service says who it is.

        Nothing of the original is served, and nothing forgotten: the original itself goes on.
        """
        ec2 = Ec2MetadataService(instance_id="i-1")
        with background(ec2):
            changes = {"upstream": {"ec2": ec2.url}, "identity": {"instance_id": "auto"}}
            serve(world, manager, changes)
            ec2.instance_id = "i-2"
            with start(world, manager, changes) as agent:
                agent.wait_for("memory.contradicted")
                assert agent.status()["clouds"]["aws"]["state"] == "pending"
                manager.wait_content("credentials", lambda data: USER.encode() not in data)
                agent.kill()
            ec2.instance_id = "i-1"
            with start(world, manager, changes) as agent:
                agent.started()
                agent.wait_for("bundle.resumed")
                assert agent.access_key() == USER

    def test_a_wrong_name_for_a_moment_costs_no_more_than_that_moment(
        self, world: World, manager: NotifySocket
    ) -> None:
        """What a restart had put back in force when the doubt came is in force again once it is settled, by any name."""
        ec2 = Ec2MetadataService(instance_id="i-1")
        with background(ec2):
            changes = {"upstream": {"ec2": ec2.url}, "identity": {"instance_id": "auto", "audience": []}}
            with start(world, manager, changes) as agent:
                agent.ready()
                own = next(name for name in agent.status()["audiences"] if "key:" not in name)
                assert agent.push(world.seal(world.session(USER), audiences=[own]))["outcome"] == "accepted"
                held(manager, USER)
                agent.kill()
            ec2.instance_id = "i-2"
            environ = {"NOTIFY_SOCKET": str(manager.path)}
            with world.agent(changes, environ=environ, passed=manager.stored(), prelude=HASTY) as agent:
                agent.wait_for("memory.contradicted")
                assert agent.status()["clouds"]["aws"]["state"] == "pending"
                ec2.instance_id = "i-1"
                until(lambda: agent.access_key() == USER, what="the bundle")
                assert agent.events("bundle.not_resumed") == []

    def test_in_a_doubt_no_bundle_counts_as_addressed_to_this_machine(
        self, world: World, manager: NotifySocket
    ) -> None:
        """Silence after a gap: whatever names the machine that this one was taken for is not for it, whoever brings it."""
        ec2 = Ec2MetadataService(instance_id="i-1")
        with background(ec2):
            changes = {"upstream": {"ec2": ec2.url}, "identity": {"instance_id": "auto", "audience": []}}
            environ = {"NOTIFY_SOCKET": str(manager.path)}
            with world.agent(changes, environ=environ, prelude=HASTY + GAPS) as agent:
                agent.ready()
                own = next(name for name in agent.status()["audiences"] if "key:" not in name)
                mine = world.seal(world.session(USER), audiences=[own])
                assert agent.push(mine)["outcome"] == "accepted"
                ec2.faults.append(Fault(drop=True, times=None))
                agent.wait_for("memory.doubtful")
                assert agent.push(mine)["code"] == "key-unavailable"  # once the service says so, it may be for this one
                assert agent.status()["clouds"]["aws"]["state"] == "pending"
                ec2.faults.clear()
                until(lambda: agent.access_key() == USER, what="the bundle")

    def test_a_restart_after_a_gap_forgets_nothing(self, world: World, manager: NotifySocket) -> None:
        """A copy whose service is silent is no more believed for being started again: the gap of before counts on."""
        ec2 = Ec2MetadataService(instance_id="i-1")
        with background(ec2):
            changes = {"upstream": {"ec2": ec2.url}, "identity": {"instance_id": "auto"}}
            serve(world, manager, changes)
            ec2.faults.append(Fault(drop=True, times=None))
            environ = {"NOTIFY_SOCKET": str(manager.path)}
            unhurried = "\ngap.UNCONFIRMED_SECONDS = 3600.0\n"
            with world.agent(changes, environ=environ, passed=manager.stored(), prelude=GAPS + unhurried) as agent:
                agent.started()
                manager.wait_content("handover", lambda data: json.loads(data)["gap"]["since"] is not None)
                assert agent.access_key() == USER
                agent.kill()
            late = "\ngap.GAP_SECONDS = 3600.0\n"
            with world.agent(changes, environ=environ, passed=manager.stored(), prelude=HASTY + GAPS + late) as agent:
                agent.wait_for("memory.doubtful")
                until(lambda: agent.status()["clouds"]["aws"]["state"] == "pending", what="nothing to be served")
                ec2.faults.clear()
                until(lambda: agent.access_key() == USER, what="the bundle")

    def test_a_stop_after_a_gap_forgets_nothing(self, world: World, manager: NotifySocket) -> None:
        """A stop empties the descriptor store, and says no more of the machine than a restart: the gap counts on."""
        ec2 = Ec2MetadataService(instance_id="i-1")
        with background(ec2):
            changes = {"upstream": {"ec2": ec2.url}, "identity": {"instance_id": "auto"}}
            serve(world, manager, changes)
            ec2.faults.append(Fault(drop=True, times=None))
            unhurried = "\ngap.UNCONFIRMED_SECONDS = 3600.0\n"
            with world.agent(changes, passed=manager.stored(), prelude=GAPS + unhurried) as agent:
                agent.started()
                note = world.root / "run" / "grace.json"
                until(lambda: json.loads(note.read_bytes())["gap"]["since"], what="the gap in the note")
                assert agent.access_key() == USER
                assert agent.stop() == 0
            manager.drop()
            late = "\ngap.GAP_SECONDS = 3600.0\n"
            with world.agent(changes, prelude=HASTY + GAPS + late) as agent:
                agent.wait_for("memory.doubtful")
                until(lambda: agent.status()["clouds"]["aws"]["state"] == "pending", what="nothing to be served")
                ec2.faults.clear()
                until(lambda: agent.access_key() == USER, what="the bundle")

    def test_a_stop_in_a_doubt_settles_nothing(self, world: World, manager: NotifySocket) -> None:
        """Whoever stops and starts the agent of a copy, whose service is silent then, is not believed for that."""
        ec2 = Ec2MetadataService(instance_id="i-1")
        with background(ec2):
            changes = {"upstream": {"ec2": ec2.url}, "identity": {"instance_id": "auto"}}
            serve(world, manager, changes)
            manager.drop()
            ec2.instance_id = "i-2"
            with start(world, manager, changes) as agent:
                agent.wait_for("memory.contradicted")
                agent.started()
                assert agent.stop() == 0
            manager.drop()
            ec2.endpoint_enabled = False
            for _ in range(2):  # a second stop forgets no more than the first
                with start(world, manager, changes) as agent:
                    agent.wait_for("memory.doubtful")
                    agent.started()
                    assert agent.status()["clouds"]["aws"]["state"] == "pending"
                    assert agent.stop() == 0
                manager.drop()
            ec2.endpoint_enabled = True
            ec2.instance_id = "i-1"
            for _ in range(2):  # and what was settled is so after the next one
                with start(world, manager, changes) as agent:
                    agent.started()
                    agent.wait_for("bundle.resumed")
                    assert agent.access_key() == USER
                    assert agent.stop() == 0
                manager.drop()
                ec2.faults.append(Fault(drop=True, times=None))

    def test_a_restart_in_a_doubt_settles_nothing(self, world: World, manager: NotifySocket) -> None:
        """A service that is silent at the next start confirms nobody: firmware and boot are the original's too."""
        ec2 = Ec2MetadataService(instance_id="i-1")
        with background(ec2):
            changes = {"upstream": {"ec2": ec2.url}, "identity": {"instance_id": "auto"}}
            serve(world, manager, changes)
            ec2.instance_id = "i-2"
            with start(world, manager, changes) as agent:
                agent.wait_for("memory.contradicted")
                manager.wait_content("handover", lambda data: json.loads(data)["doubted"])
                agent.kill()
            ec2.endpoint_enabled = False
            with start(world, manager, changes) as agent:
                agent.wait_for("memory.doubtful")
                agent.started()
                assert agent.status()["clouds"]["aws"]["state"] == "pending"
                agent.kill()
            ec2.endpoint_enabled = True
            ec2.instance_id = "i-1"
            with start(world, manager, changes) as agent:
                agent.started()
                agent.wait_for("bundle.resumed")
                assert agent.access_key() == USER


class TestAKeyService:
    def changes(self, world: World, url: str) -> dict[str, Any]:
        public = world.root / "etc" / "worker.pub"
        public.write_text(json.dumps({**world.key.public_jwk(), "kid": world.key.kid}))
        key = {
            "kind": "aws-kms",
            "key_id": "arn:aws:kms:eu-west-1:123456789012:key/1",
            "public_key": public,
            "region": "eu-west-1",
            "endpoint": url,
        }
        # The metadata service hangs too: the very credential with which the key service is asked does not come.
        return {"keys": [key], "upstream": {"ec2": url}}

    def test_that_hangs_after_a_restart(self, world: World, manager: NotifySocket, mute: str) -> None:
        """A key service that hangs is not asked for what was opened already."""
        serve(world, manager)
        with start(world, manager, self.changes(world, mute)) as agent:
            agent.started()
            served(agent)

    def test_that_is_known_by_a_file_that_is_away(self, world: World, manager: NotifySocket, mute: str) -> None:
        """What public files said when they were last read is handed over, whether a start or a reload read them."""
        changes = self.changes(world, mute)
        with start(world, manager, changes) as agent:
            agent.ready()
            before = manager.mark
            agent.signal(signal.SIGHUP)
            manager.wait_for("READY=1", after=before)  # what is handed over is told before that
            agent.kill()
        Path(changes["keys"][0]["public_key"]).unlink()
        world.signer_file.unlink()
        with start(world, manager, changes) as agent:
            agent.started()
            status = agent.status()
            assert status["keys"] == [world.key.kid]
            assert set(status["without"]) >= {"keys[0].public_key", "signers[0].key"}

    def test_that_hangs_at_the_first_start(self, world: World, manager: NotifySocket, mute: str) -> None:
        """Without a handover the listeners open all the same, what it decides is pending, and nothing of it is lost."""
        serve(world, manager)
        manager.drop()
        with start(world, manager, self.changes(world, mute)) as agent:
            agent.started()
            aws = agent.status()["clouds"]["aws"]
            assert aws["state"] == "pending", agent.stderr
            assert (aws["state"], aws["origin"]) == ("pending", "waiting")
            assert agent.stop() == 0
        manager.drop()
        with start(world, manager) as agent:
            agent.ready()
            assert agent.access_key() == USER


class TestHeldOver:
    def test_the_predecessors_credential(self, world: World, manager: NotifySocket, mute: str) -> None:
        """A bundle that has no credential yet is served by its predecessor's, over two restarts."""
        changes = {"mint": {"sts_endpoint": mute}}
        grant = AwsKeys(id="keys", access_key_id="AKIAUSER000000000000", secret_access_key=Secret("s" * 40))
        with start(world, manager, changes) as agent:
            agent.ready()
            agent.push(world.seal(world.session(USER)))
            assert agent.push(world.seal(grant))["outcome"] == "accepted"
            assert agent.access_key() == USER
            manager.wait_content("handover", lambda data: USER.encode() in data)
            agent.kill()
        for _ in range(2):
            with start(world, manager, changes) as agent:
                agent.ready()
                assert agent.access_key() == USER
                assert agent.status()["bundle"]["seq"] == 2
                manager.wait_content("handover", lambda data: USER.encode() in data)
                agent.kill()

    def test_not_of_a_signer_who_is_not_believed(self, world: World, manager: NotifySocket, mute: str) -> None:
        """Where a signer was taken out, nothing is held over: it may have been his."""
        changes = {"mint": {"sts_endpoint": mute}}
        other = bundle.SigningKey.generate("Ed25519")
        path = world.root / "etc" / "other.jwk"
        path.write_text(json.dumps({**other.public_jwk(), "kid": other.kid}))
        signers = [{"key": world.signer_file, "issuers": [ISSUER]}, {"key": path, "issuers": [ISSUER]}]
        grant = AwsKeys(id="keys", access_key_id="AKIAUSER000000000000", secret_access_key=Secret("s" * 40))
        with start(world, manager, {**changes, "signers": signers}) as agent:
            agent.ready()
            agent.push(world.seal(world.session(USER), signer=other))
            agent.push(world.seal(grant))
            assert agent.access_key() == USER
            manager.wait_content("handover", lambda data: USER.encode() in data)
            agent.kill()
        with start(world, manager, changes) as agent:
            agent.started()
            agent.wait_for("bundle.resumed")
            assert agent.role() is None


def test_a_key_in_memory_outlives_the_process(world: World, manager: NotifySocket) -> None:
    """An ephemeral key is the same after a restart: what was sealed to it stays in force, what comes is opened."""
    published = world.root / "run" / "key"
    changes = {"keys": [{"kind": "ephemeral", "publish_file": published}]}
    with start(world, manager, changes) as agent:
        agent.ready()
        until(published.exists, what="the key")
        first = published.read_bytes()
        recipient = bundle.RecipientKey.parse(first)
        agent.push(world.seal(world.session(USER), recipients=[recipient]))
        held(manager, USER)
        agent.kill()
    manager.wait_content("handover", lambda data: bool(json.loads(data)["announced"]))
    published.write_bytes(b"another's")
    with start(world, manager, changes) as agent:
        agent.ready()
        agent.wait_for("key.overwritten", found="another text")
        assert agent.access_key() == USER
        until(lambda: published.read_bytes() == first, what="our key again")
        other = "ASIAUSER000000000002"
        assert agent.push(world.seal(world.session(other), recipients=[recipient]))["outcome"] == "accepted"
        assert agent.access_key() == other


class TestGrace:
    GRACE: ClassVar[dict[str, Any]] = {"identity": {"grace_seconds": 4.0}}

    def pending(self, agent: Agent) -> bool:
        """Whether the grace is: a source that has not been looked at yet is waited for too, and says so."""
        told = agent.status()["clouds"]["aws"]
        return bool(told["origin"] == "waiting" and "is being looked at" not in told["why"])

    def test_once_over_restarts(self, world: World, manager: NotifySocket) -> None:
        """A worker that had its grace does not wait again: not after a kill, and not with a longer one."""
        with start(world, manager, self.GRACE) as agent:
            agent.started()
            assert self.pending(agent)
            agent.ready()
            agent.kill()
        shutil.rmtree(world.root / "run")
        (world.root / "run").mkdir()
        with start(world, manager, self.GRACE) as agent:
            agent.started()
            assert not self.pending(agent)

    def test_once_over_a_stop_and_a_start(self, world: World, manager: NotifySocket) -> None:
        """No grace is waited for again after a stop, which empties the descriptor store; another machine has its own."""
        with start(world, manager, self.GRACE) as agent:
            agent.ready()
            assert agent.stop() == 0
        manager.drop()
        with start(world, manager, self.GRACE) as agent:
            agent.started()
            assert not self.pending(agent)
            assert agent.stop() == 0
        manager.drop()
        changes = {"identity": {"grace_seconds": 60.0, "instance_id": "i-2"}}
        with start(world, manager, changes) as agent:
            agent.started()
            assert self.pending(agent)


def test_retries_go_on_where_they_were(world: World, manager: NotifySocket) -> None:
    """A restart in an outage asks STS no sooner than the process before would have, within a minute."""
    sts = FakeSts(lambda: datetime.now(UTC))
    service = Behind(handler=sts)
    stranger = AwsKeys(id="keys", access_key_id="AKIASTRANGER00000000", secret_access_key=Secret("s" * 40))
    with background(service):
        changes = {"mint": {"sts_endpoint": service.url}}
        with start(world, manager, changes) as agent:
            agent.ready()
            agent.push(world.seal(stranger))
            agent.wait_for("credential.denied")
            manager.wait_content("handover", lambda data: bool(json.loads(data)["waiting"]))
            agent.kill()
        asked = len(sts.operations())
        for _ in range(3):
            with start(world, manager, changes) as agent:
                agent.ready()
                (keys,) = [one for one in agent.status()["credentials"] if one["grant"] == "keys"]
                assert keys["failures_in_a_row"] >= 1
                agent.kill()
        assert len(sts.operations()) == asked


def test_tokens_need_no_disk(world: World, manager: NotifySocket) -> None:
    """Session tokens and bearer tokens that programs hold stay good though no directory is there any more."""
    serve(world, manager)
    with start(world, manager) as agent:
        agent.started()
        token, bearer = agent.imds_token(), world.token
        held(manager, USER)
        agent.kill()
    with start(world, manager, no_directories(world)) as agent:
        agent.started()
        listing = "/latest/meta-data/iam/security-credentials/"
        assert agent.ask(listing, headers={"X-aws-ec2-metadata-token": token}).status == 200
        assert agent.ask("/v1/credentials", headers={"Authorization": bearer}).status == 200


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"\xff", b"[]", b'{"version":1}', b'{"version":2,"uptime":1}', b"[" * 100_000, b"x" * (1 << 20)],
    ids=["empty", "cut", "no-text", "list", "nothing", "newer", "deep", "long"],
)
def test_a_handover_that_makes_no_sense(world: World, manager: NotifySocket, garbage: bytes) -> None:
    """It is said, and costs no more than asking for everything again; the next handover is whole."""
    world.drop(world.seal(world.session(USER)))
    manager.put("handover", garbage)
    with start(world, manager) as agent:
        agent.wait_for("handover.not_taken")
        agent.ready()
        agent.wait_for("bundle.accepted")
        assert agent.access_key() == USER
        held(manager, USER)


def test_what_another_version_adds_is_ignored(world: World, manager: NotifySocket) -> None:
    """After a downgrade the members of a newer version are passed over, and what is known is taken."""
    serve(world, manager)
    (content,) = manager.content("handover")
    stored = manager.content("credentials")
    manager.drop()
    manager.put("credentials", stored[0])
    manager.put("handover", json.dumps({**json.loads(content), "later": {"a": [1]}}).encode())
    with start(world, manager, no_key(world)) as agent:
        agent.started()
        served(agent)


def test_a_source_is_read_once(world: World, manager: NotifySocket) -> None:
    """What was accepted from a URL is neither read nor opened again after a restart; what was refused is."""
    store = HttpsStore()
    source = {"kind": "https", "wait_seconds": 0, "poll_seconds": 1}
    with background(store):
        changes = {"sources": [{**source, "url": f"{store.url}/b"}]}
        store.put("/b", world.seal(world.session(USER), seq=1))
        with start(world, manager, changes) as agent:
            agent.ready()
            agent.wait_for("bundle.accepted")
            held(manager, USER)
            agent.kill()
        before = len(store.asked)
        with start(world, manager, changes) as agent:
            agent.ready()
            until(lambda: len(store.asked) > before + 1, what="the next look")
            assert {asked.status for asked in store.asked[before:]} == {304}
            assert agent.access_key() == USER
            store.put("/b", world.seal(world.session(USER), seq=2, audiences=["cluster:another"]))
            agent.wait_for("bundle.refused")
            agent.kill()
        with start(world, manager, changes) as agent:
            agent.ready()
            agent.wait_for("bundle.refused")
            assert agent.access_key() == USER
