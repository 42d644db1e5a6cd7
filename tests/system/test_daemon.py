"""The daemon as a process: what it refuses to start with, what it survives, what it never forgets."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from agent import bundle
from agent.core.model import OnExpiry
from agent.host.files import write_atomic
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.system.harness import AUDIENCE, Agent, World, background, merged, until

KEYS = [f"ASIAUSER0000000000{number:02d}" for number in range(100)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


@pytest.fixture
def ec2() -> Iterator[Ec2MetadataService]:
    service = Ec2MetadataService()
    service.attach("worker-role", Key("ASIAMACHINE000000000", "machine-secret", "machine-token"))
    with background(service):
        yield service


def on_ec2(service: Ec2MetadataService, **identity: Any) -> dict[str, Any]:
    """A worker on EC2, whose own identity is the fake's."""
    return {"upstream": {"ec2": service.url}, "identity": identity}


def refused(agent: Agent, status: int) -> str:
    """The one line (and hint) of a start that failed, when nothing else was said or left behind."""
    assert agent.wait() == status, agent.stderr
    lines = agent.stderr.splitlines()
    assert lines[0].startswith("credential-agent: "), agent.stderr
    assert all(line.startswith("  hint: ") for line in lines[1:]), agent.stderr
    assert len(lines) <= 2
    return lines[0]


def _arrived(agent: Agent, world: World, text: str) -> bool:
    """The agent ended, or the environment file has ``text``."""
    return agent.process.poll() is not None or world.env().get("N") == text


SPOILT: Final[dict[str, Callable[[Path], object]]] = {
    "garbled": lambda path: path.write_bytes(b"{garbled"),
    "empty": Path.touch,
    "a directory": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a link that leads nowhere": lambda path: path.symlink_to("elsewhere"),
    "removed": lambda path: path,
}
"""What lies in the memory's place."""


class TestStart:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"listen": {"htpp": ["127.0.0.1:0"]}}, "listen.htpp: unknown key"),
            ({"listen": {"http": []}}, "listen.http: expected at least one address"),
            ({"listen": {"http": ["localhost:1"]}}, "expected ADDRESS:PORT"),
            ({"signers": []}, "signers: expected at least one beside keys"),
            ({"keys": [], "signers": []}, "keys: expected at least one beside sources"),
            ({"sources": [{"kind": "ec2-user-data"}]}, "needs a metadata service"),
            ({"keys": [{"kind": "credential", "name": "../k"}]}, "keys[0]"),
            ({"keys": [{"kind": "aws-kms", "key_id": "alias/k", "public_key": "KEY"}]}, "the ARN of a key"),
        ],
    )
    def test_a_wrong_configuration_starts_nothing(self, world: World, changes: dict[str, Any], words: str) -> None:
        """A mistake is one line with the key's name and status 78, and no socket is left."""
        public = world.root / "etc" / "worker.pub"
        public.write_text(json.dumps({**world.key.public_jwk(), "kid": world.key.kid}))
        if changes.get("keys") and "public_key" in changes["keys"][0]:
            changes = {"keys": [{**changes["keys"][0], "public_key": public}]}
        with world.agent(changes) as agent:
            assert words in refused(agent, 78)
        assert not (world.root / "run" / "control").exists()
        assert list((world.root / "run").iterdir()) == []

    @pytest.mark.parametrize(
        ("changes", "key", "words"),
        [
            ({"state": {"directory": "/nonexistent/state"}}, "state.directory", "expected an existing directory"),
            ({"environment": {"file": "/nonexistent/env"}}, "environment.file", "expected an existing directory"),
            ({"environment": {"group": "no-such-group"}}, "environment.group", "expected a group"),
            ({"keys": [{"kind": "file", "path": "/nonexistent/key"}]}, "keys[0]", "cannot read the key file"),
            ({"signers": [{"key": "/nonexistent/k", "issuers": ["i"]}]}, "signers[0].key", "cannot be read"),
            ({"listen": {"control": "/nonexistent/control"}}, "listen.control", "cannot be bound"),
            ({"upstream": {"ca_file": "/nonexistent/ca"}}, "upstream.ca_file", "cannot be read"),
        ],
        ids=["state", "environment", "group", "key", "signer", "control", "ca"],
    )
    def test_what_is_away_is_an_alarm_and_no_end(
        self, world: World, ec2: Ec2MetadataService, changes: dict[str, Any], key: str, words: str
    ) -> None:
        """What the machine does not have just now costs what it is for and nothing else; ``check`` still refuses it."""
        wrong = merged(on_ec2(ec2), changes)
        if key != "listen.control":
            with Agent(world.write_config(wrong), command="check") as agent:
                assert agent.wait() == 78
        with world.agent(wrong) as agent:
            said = agent.wait_for("start.without", key=key)
            assert words in said["reason"]
            agent.ready()
            assert agent.role() is not None
            if key != "listen.control":
                assert key in agent.status()["without"]
                assert f'credential_agent_without{{key="{key}"}} 1.0' in agent.operate("/metrics").body.decode()
            assert agent.stop() == 0

    def test_a_key_comes_late(self, world: World) -> None:
        """A key file and a signer's file that were away at the start are used as soon as they are there."""
        kept = {path: path.read_bytes() for path in (world.key_file, world.signer_file)}
        for path in kept:
            path.unlink()
        with world.agent() as agent:
            agent.ready()
            world.drop(world.seal(world.session(KEYS[0])))
            agent.wait_for("bundle.held")
            for path, data in kept.items():
                path.touch(mode=0o600)
                path.write_bytes(data)
            agent.wait_for("bundle.accepted")
            assert agent.access_key() == KEYS[0]
            assert agent.status()["without"] == {}

    def test_a_key_that_others_may_read_is_not_used(self, world: World) -> None:
        """A private key that others may read opens nothing, and is said to."""
        world.key_file.chmod(0o644)
        with world.agent() as agent:
            assert "readable by its owner alone" in agent.wait_for("start.without", key="keys[0]")["reason"]
            agent.ready()
            assert agent.push(world.seal(world.session(KEYS[0])))["code"] == "key-unavailable"

    def test_a_missing_configuration_is_named(self, world: World) -> None:
        """Without its file the agent says which one it looked for."""
        with Agent(world.root / "none.toml") as agent:
            assert "none.toml: cannot be read" in refused(agent, 78)

    def test_a_port_that_is_taken_is_an_error_of_the_machine(self, world: World) -> None:
        """An address in use is status 71 and leaves no control socket behind."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with world.agent({"listen": {"http": [f"127.0.0.1:{port}"]}}) as agent:
                assert "address already in use" in refused(agent, 71)
        assert not (world.root / "run" / "control").exists()

    def test_a_second_agent_leaves_the_first_alone(self, world: World) -> None:
        """Two agents never share a control socket: the second ends, the first goes on."""
        with world.agent() as first:
            first.started()
            with world.agent() as second:
                assert "another agent listens" in refused(second, 71)
            assert first.status()["version"]
            assert first.stop() == 0

    def test_check_starts_nothing(self, world: World) -> None:
        """``check`` opens what the configuration names and binds nothing."""
        with Agent(world.write_config(), command="check") as agent:
            assert agent.wait() == 0
        assert list((world.root / "run").iterdir()) == []

    def test_a_credential_that_is_not_there_yet_is_said_and_stops_nothing(
        self, world: World, ec2: Ec2MetadataService, tmp_path: Path
    ) -> None:
        """An image is made before its machines have keys: without one the machine's own identity is served, and said so."""
        changes = {**on_ec2(ec2), "keys": [{"kind": "credential", "name": "worker.key"}]}
        with Agent(world.write_config(changes), command="check") as agent:
            assert agent.wait() == 0
            assert "warning: key worker.key: not given to this machine" in agent.stderr
        sealed = world.seal(world.session(KEYS[1]))
        with world.agent(changes) as agent:
            agent.ready()
            assert agent.wait_for("key.absent")["credential"] == "worker.key"
            assert agent.role() is not None
            assert agent.status()["absent_keys"] == ["worker.key"]
            assert agent.push(sealed)["code"] == "recipient"
            assert agent.stop() == 0
        (tmp_path / "worker.key").write_bytes(world.key_file.read_bytes())
        with world.agent(changes, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}) as agent:
            agent.ready()
            assert agent.status()["absent_keys"] == []
            assert agent.push(sealed)["outcome"] == "accepted"
            assert agent.access_key() == KEYS[1]

    def test_a_key_file_that_is_not_there_yet_is_told_as_a_file(self, world: World, ec2: Ec2MetadataService) -> None:
        """A missing file has the hint of a file: it is taken once it is there. No word of systemd's credentials."""
        late = world.root / "late.jwk"
        with world.agent({**on_ec2(ec2), "keys": [{"kind": "file", "path": str(late)}]}) as agent:
            agent.ready()
            without = agent.wait_for("start.without")
            assert without["key"] == "keys[0]"
            assert str(late) in without["reason"]
            assert agent.status()["absent_keys"] == []
            assert "keys[0]" in agent.status()["without"]
            assert "key.absent" not in agent.stderr
            write_atomic(late, world.key_file.read_bytes(), mode=0o600)
            agent.wait_for("reload.applied")
            assert agent.push(world.seal(world.session(KEYS[1])))["outcome"] == "accepted"
            assert agent.status()["without"] == {}

    @pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
    def test_a_spoilt_memory_stays_closed_until_a_bundle_comes(
        self, world: World, ec2: Ec2MetadataService, spoil: Callable[[Path], object]
    ) -> None:
        """Whatever lies in the memory's place closes every cloud, and says so; the next bundle is remembered again."""
        with world.agent(on_ec2(ec2)) as agent:
            agent.ready()
            assert agent.push(world.seal(world.session(KEYS[1])))["durable"]
            assert agent.stop() == 0
        (world.state / "memory.json").rename(world.root / "aside")
        spoil(world.state / "memory.json")
        for number in range(2):
            with world.agent(on_ec2(ec2)) as agent:
                if number == 0:
                    assert "push the newest bundle" in agent.wait_for("memory.unreadable")["hint"]
                agent.ready()
                assert agent.role() is None
                assert agent.status()["clouds"]["aws"]["origin"] == "closed"
                if number == 1:
                    assert agent.push(world.seal(world.session(KEYS[1])))["durable"]
                assert agent.stop() == 0
        with world.agent(on_ec2(ec2)) as agent:
            agent.ready()
            assert agent.access_key() == KEYS[1]
            assert agent.stop() == 0

    def test_a_garbled_memory_is_kept_for_a_person(self, world: World) -> None:
        """It has a second name, until another one is garbled."""
        (world.state / "memory.json").write_bytes(b"{garbled")
        with world.agent() as agent:
            agent.ready()
            assert agent.stop() == 0
        assert (world.state / "memory.json.broken").read_bytes() == b"{garbled"


class TestEnd:
    def test_sigterm_ends_it_though_a_client_hangs_on(self, world: World) -> None:
        """SIGTERM ends the daemon cleanly, with status 0 and its socket removed, long before systemd would kill it."""
        with world.agent() as agent:
            agent.ready()
            with socket.create_connection(agent.address) as idle:
                idle.sendall(b"GET /latest/")
                assert agent.stop() == 0
        assert [line["event"] for line in agent.lines[-2:]] == ["agent.stopping", "agent.stopped"]
        assert not (world.root / "run" / "control").exists()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_it_ends_though_no_file_can_be_written(self, world: World) -> None:
        """A directory that refuses the environment file delays neither readiness for ever nor the end."""
        (world.root / "run").chmod(0o700)
        with world.agent() as agent:
            agent.started()
            (world.root / "run").chmod(0o500)
            world.drop(world.seal(world.session()))
            agent.wait_for("environment.not_written")
            assert agent.stop() == 0
        (world.root / "run").chmod(0o700)


class TestBundles:
    def test_a_file_renamed_into_place_is_served(self, world: World) -> None:
        """A bundle that is renamed into place serves every endpoint, and the files follow, without anybody's doing."""
        with world.agent() as agent:
            agent.ready()
            sealed = world.seal(world.session(KEYS[1]), world.variables(GREETING="hello"))
            world.drop(sealed)
            agent.wait_for("bundle.accepted", seq=1)
            assert agent.credential()["AccessKeyId"] == KEYS[1]
            reply = agent.ask("/v1/credentials", headers={"Authorization": world.token})
            assert reply.json()["AccessKeyId"] == KEYS[1]
            until(lambda: world.env().get("GREETING") == "hello", what="the variable")
            assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & world.env().keys()

    def test_nothing_bad_costs_what_is_served(self, world: World) -> None:
        """Tampered, old, conflicting, foreign, late and unsigned submissions are each refused by their code; nothing changes."""
        stranger = bundle.SigningKey.generate("Ed25519")
        other = bundle.OpeningKey.generate("P-256")
        now = datetime.now(UTC)
        first = world.seal(world.session(KEYS[9]), seq=9)
        second = world.seal(world.session(KEYS[10]), seq=10)
        tampered = json.loads(world.seal(world.session(), seq=11))
        tampered["ciphertext"] = ("B" if tampered["ciphertext"][0] == "A" else "A") + tampered["ciphertext"][1:]
        submissions = {
            "content": json.dumps(tampered).encode(),
            "rollback": first,
            "conflict": world.seal(world.session(KEYS[66]), seq=10),
            "audience": world.seal(world.session(), seq=12, audiences=[bundle.audience_cluster("other")]),
            "signer": world.seal(world.session(), seq=13, signer=stranger),
            "issuer": world.seal(world.session(), seq=14, issuer="https://evil.example"),
            "recipient": world.seal(
                world.session(), seq=15, recipients=[bundle.RecipientKey.parse(json.dumps(other.public_jwk()))]
            ),
            "expired": world.seal(
                world.session(), seq=16, now=now - timedelta(hours=3), accept_until=now - timedelta(hours=2)
            ),
            "not-yet-valid": world.seal(
                world.session(), seq=17, not_before=now + timedelta(hours=1), accept_until=now + timedelta(hours=2)
            ),
        }
        with world.agent() as agent:
            agent.ready()
            assert agent.push(first)["outcome"] == "accepted"
            assert agent.push(second)["outcome"] == "accepted"
            for code, sealed in submissions.items():
                ack = agent.push(sealed)
                assert (ack["outcome"], ack["code"]) == ("refused", code), ack
                assert agent.access_key() == KEYS[10]
            for junk in (b"x", b"{}", second[: len(second) // 2], b"<html>" * 100):
                assert agent.push(junk)["outcome"] == "refused"
            assert agent.push(second)["outcome"] == "same"
            assert agent.status()["bundle"]["seq"] == 10

    def test_a_source_that_is_gone_changes_nothing(self, world: World) -> None:
        """Removing the bundle's file, and its directory, withdraws nothing, now and over a restart."""
        world.drop(world.seal(world.session(KEYS[1])))
        with world.agent() as agent:
            agent.wait_for("bundle.accepted")
            world.bundle_file.unlink()
            world.bundle_file.parent.rmdir()
            (world.root / "drop").write_text("no directory any more")
            assert agent.access_key() == KEYS[1]
            agent.kill()
        with world.agent() as agent:
            agent.ready()
            assert agent.access_key() == KEYS[1]

    def test_a_withdrawal_purges_before_it_is_acknowledged_and_stays(
        self, world: World, ec2: Ec2MetadataService
    ) -> None:
        """A withdrawal has taken credentials and variables away once it is acknowledged, and stays over a restart."""
        sealed = world.seal(world.session(KEYS[1]), world.variables(OPAQUE="s3cret-variable"))
        with world.agent(on_ec2(ec2)) as agent:
            agent.ready()
            agent.push(sealed)
            assert "OPAQUE" in world.env()
            assert agent.push(world.withdrawal())["outcome"] == "accepted"
            assert agent.role() is None
            assert "OPAQUE" not in world.env()
            assert agent.push(sealed)["code"] == "rollback"
            agent.kill()
        for path in [p for p in world.root.rglob("*") if p.is_file() and "etc" not in p.parts]:
            assert b"s3cret-variable" not in path.read_bytes(), path
        with world.agent(on_ec2(ec2)) as agent:
            agent.ready()
            assert agent.role() is None
            assert agent.status()["clouds"]["aws"]["origin"] == "closed"
            assert agent.push(sealed)["code"] == "rollback"

    def test_the_end_of_a_lease_may_fall_back_when_the_bundle_says_so(
        self, world: World, ec2: Ec2MetadataService
    ) -> None:
        """Only on an explicit wish is the machine's own identity served after a bundle's."""
        with world.agent(on_ec2(ec2)) as agent:
            agent.ready()
            lease = datetime.now(UTC) + timedelta(seconds=2)
            agent.push(world.seal(world.session(KEYS[1]), lease_until=lease, on_expiry=OnExpiry.FALLBACK))
            assert agent.access_key() == KEYS[1]
            bundled = agent.lines.index(agent.wait_for("identity.changed", cloud="aws", origin="bundle"))
            agent.wait_for("identity.changed", after=bundled, cloud="aws", origin="fallback")
            assert agent.access_key() == "ASIAMACHINE000000000"


class TestRestart:
    def test_it_resumes_without_its_source_and_after_exp(self, world: World) -> None:
        """What was accepted serves again after a restart, without its source, though its acceptance has ended."""
        ends = datetime.now(UTC) + timedelta(seconds=3)
        sealed = world.seal(world.session(KEYS[1]), accept_until=ends)
        with world.agent() as agent:
            agent.ready()
            assert agent.push(sealed)["outcome"] == "accepted"
            until(lambda: datetime.now(UTC) > ends + timedelta(seconds=1), what="the end of acceptance")
            agent.kill()
        with world.agent() as agent:
            agent.ready()
            agent.wait_for("bundle.resumed", seq=1)
            assert agent.access_key() == KEYS[1]
            assert agent.push(sealed)["outcome"] == "same"

    def test_a_cloned_state_starts_clean(self, world: World, ec2: Ec2MetadataService) -> None:
        """An image made from a running worker has another instance id: nothing of the first worker is served or sticky."""
        with world.agent(on_ec2(ec2)) as agent:
            agent.ready()
            agent.push(world.seal(world.session(KEYS[1])))
            agent.kill()
        with world.agent(on_ec2(ec2, instance_id="i-2")) as agent:
            agent.ready()
            agent.wait_for("memory.reset")
            assert agent.access_key() == "ASIAMACHINE000000000"
            agent.kill()
        assert list(world.state.glob("bundle-*")) == []

    def test_imds_tokens_outlive_a_restart(self, world: World) -> None:
        """A client's session token goes on working: some clients never drop one that turned invalid."""
        world.drop(world.seal(world.session(KEYS[1])))
        with world.agent() as agent:
            agent.wait_for("bundle.accepted")
            token = agent.imds_token()
            bearer = world.token
            agent.kill()
        with world.agent() as agent:
            agent.ready()
            headers = {"X-aws-ec2-metadata-token": token}
            assert agent.ask("/latest/meta-data/iam/security-credentials/", headers=headers).status == 200
            assert agent.ask("/v1/credentials", headers={"Authorization": bearer}).status == 200

    def test_files_have_the_right_modes(self, world: World) -> None:
        """State is for the agent alone; the environment files have the configured mode; no temporary file is left."""
        with world.agent({"environment": {"mode": "0640"}}) as agent:
            agent.ready()
            agent.push(world.seal(world.session()))
            assert agent.stop() == 0
        assert {stat.S_IMODE(path.stat().st_mode) for path in world.state.iterdir()} == {0o600}
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (world.root / "run").iterdir()}
        assert modes == {
            "env": 0o640,
            "env.sh": 0o640,
            "token": 0o640,
            "grace.json": 0o600,
            "listeners.json": 0o644,
            "doors.json": 0o644,
        }


CRASH = """
import os, signal
where = ({state!r}, {run!r})
left = {point}
def watch(event, args):
    global left
    if event in ("open", "os.rename", "os.remove", "os.chmod") and armed.is_set():
        if event == "open" and not (isinstance(args[2], int) and args[2] & os.O_CREAT):
            return
        if event == "os.chmod" or str(args[0]).startswith(where):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
import threading, sys
armed = threading.Event()
signal.signal(signal.SIGWINCH, lambda *_: armed.set())
sys.addaudithook(watch)
"""


@pytest.mark.slow
def test_killed_at_any_step_it_forgets_nothing(world: World, ec2: Ec2MetadataService) -> None:
    """Killed before any step of an acceptance, the old or the new bundle serves after the restart, and never the machine.

    What was acknowledged is in force, an older number stays refused, and the sticky rule holds.
    """
    died = 0
    for point in range(1, 40):
        seq = point * 10
        before, after = KEYS[point], KEYS[point + 50]
        crash = CRASH.format(state=str(world.state), run=str(world.root / "run"), point=point)
        with world.agent(on_ec2(ec2), prelude=crash) as agent:
            agent.ready()
            old = world.seal(world.session(before), seq=seq)
            assert agent.push(old)["outcome"] == "accepted"
            until(lambda: "AWS_CONTAINER_CREDENTIALS_FULL_URI" in world.env(), what="the environment file")
            agent.signal(signal.SIGWINCH)
            new = world.seal(world.session(after), world.variables(N=f"{point}"), seq=seq + 1)
            try:
                acknowledged = agent.push(new)["outcome"] == "accepted"
            except OSError:
                acknowledged = False
            except Exception:  # noqa: BLE001 - http.client has its own for a connection that ends in the middle
                acknowledged = False
            if acknowledged:
                until(partial(_arrived, agent, world, f"{point}"), what="the end")
            survived = agent.process.poll() is None and acknowledged
            agent.kill()
        died += not survived
        with world.agent(on_ec2(ec2)) as agent:
            agent.ready()
            served = agent.access_key()
            assert served in ((after,) if acknowledged else (before, after)), f"killed at step {point}"
            if served == after:
                assert agent.push(old)["code"] == "rollback"
            assert agent.push(world.seal(world.session(KEYS[99]), seq=seq - 1))["code"] == "rollback"
            agent.kill()
        if survived:
            break
    else:
        pytest.fail("the steps did not end")
    assert died >= 6


def write_aside(path: Path, text: str) -> None:
    """Replace a file by one rename, as those do who rotate keys."""
    aside = path.with_suffix(".aside")
    aside.write_text(text)
    aside.replace(path)


class TestReload:
    def test_sighup_applies_what_can_be_applied(self, world: World) -> None:
        """A new signer is believed after SIGHUP, and what needs a restart is named."""
        signer = bundle.SigningKey.generate("P-256")
        path = world.root / "etc" / "second.jwk"
        path.write_text(json.dumps(signer.public_jwk()))
        with world.agent() as agent:
            agent.ready()
            sealed = world.seal(world.session(KEYS[5]), signer=signer)
            world.drop(sealed)
            agent.wait_for("bundle.refused", code="signer")
            entry = {"key": path, "issuers": ["*"]}
            signers = [*world.base["signers"], entry]
            world.write_config({"signers": signers, "listen": {"max_connections": 99}})
            agent.signal(signal.SIGHUP)
            assert agent.wait_for("reload.applied")["needs_restart"] == ["listen"]
            # What was refused is evaluated anew, without being brought again.
            agent.wait_for("bundle.accepted", seq=1)
            assert agent.access_key() == KEYS[5]

    def test_a_signer_that_is_rotated_in_its_file_is_believed_without_a_signal(self, world: World) -> None:
        """A file that the configuration names is read anew because it changed; what was loaded from it is told."""
        signer = bundle.SigningKey.generate("P-256")
        path = Path(world.base["signers"][0]["key"])
        with world.agent() as agent:
            agent.ready()
            before = [file["sha256"] for file in agent.status()["files"] if file["key"] == "signers[0].key"]
            world.drop(world.seal(world.session(KEYS[5]), signer=signer))
            agent.wait_for("bundle.refused", code="signer")
            write_aside(path, '{"kty": "EC", "crv": ')
            agent.wait_for("reload.refused", changed=["signers[0].key"])
            write_aside(path, json.dumps(signer.public_jwk()))
            told = agent.wait_for("reload.applied", changed=["signers[0].key"])
            assert told["signers"] == 1
            agent.wait_for("bundle.accepted", seq=1)
            assert agent.access_key() == KEYS[5]
            after = [file["sha256"] for file in agent.status()["files"] if file["key"] == "signers[0].key"]
            assert after == [hashlib.sha256(path.read_bytes()).hexdigest()] != before

    def test_a_start_is_no_change(self, world: World) -> None:
        """What the agent writes itself is no reason to reload: two looks at the files later nothing was applied."""
        with world.agent() as agent:
            agent.ready()
            # A later change is applied in its turn, so that whatever the start had caused would have been before it.
            signer = Path(world.base["signers"][0]["key"])
            write_aside(signer, signer.read_text() + "\n")
            agent.wait_for("reload.applied")
            assert [event["changed"] for event in agent.events("reload.applied")] == [["signers[0].key"]]

    def test_refresh_looks_at_every_source_now(self, world: World, ec2: Ec2MetadataService) -> None:
        """`credential-agent refresh` and SIGHUP find a bundle in user-data that came after the start, and say so."""
        changes = {**on_ec2(ec2, grace_seconds=0), "sources": [{"kind": "ec2-user-data"}]}
        with world.agent(changes) as agent:
            agent.ready()
            assert agent.operate("/v1/refresh", method="POST").json()["sources"][0]["outcome"] == "none"
            ec2.user_data = world.seal(world.session(KEYS[1]))
            looked = agent.operate("/v1/refresh", method="POST").json()["sources"]
            assert [(one["source"], one["outcome"], one["seq"]) for one in looked] == [("ec2-user-data", "accepted", 1)]
            assert agent.access_key() == KEYS[1]
            ec2.user_data = world.seal(world.session(KEYS[2]))
            agent.signal(signal.SIGHUP)
            agent.wait_for("bundle.accepted", seq=2)
            assert agent.access_key() == KEYS[2]

    def test_what_looks_like_a_bundle_is_never_no_bundle(self, world: World, ec2: Ec2MetadataService) -> None:
        """User-data that was encoded twice is opened; one that was cut off is said in the log, the status and refresh."""
        sealed = world.seal(world.session(KEYS[1]))
        ec2.user_data = base64.b64encode(base64.b64encode(sealed)[:-50])
        changes = {**on_ec2(ec2, grace_seconds=0), "sources": [{"kind": "ec2-user-data"}]}
        with world.agent(changes) as agent:
            agent.ready()
            assert agent.wait_for("bundle.unreadable")["source"] == "ec2-user-data"
            status = agent.status()
            assert status["last_refusal"]["code"] == "unreadable"
            assert "looks like a bundle" in status["sources"]["ec2-user-data"]
            assert status["bundles"]["refused"] == {"unreadable": 1}
            assert agent.operate("/v1/refresh", method="POST").json()["sources"][0]["outcome"] == "broken"
            ec2.user_data = base64.b64encode(base64.b64encode(sealed))
            # Whichever was sooner, this or the source's own next attempt.
            assert agent.operate("/v1/refresh", method="POST").json()["sources"][0]["outcome"] in ("accepted", "same")
            assert agent.access_key() == KEYS[1]

    def test_sighup_with_a_mistake_changes_nothing(self, world: World) -> None:
        """A typing error in the configuration costs a running worker nothing, and is logged with its key."""
        with world.agent() as agent:
            agent.ready()
            agent.push(world.seal(world.session(KEYS[1])))
            world.write_config({"identity": {"on_expire": "fallback"}})
            agent.signal(signal.SIGHUP)
            assert "identity.on_expire: unknown key" in agent.wait_for("reload.refused")["reason"]
            assert agent.access_key() == KEYS[1]
            assert agent.push(world.seal(world.session(KEYS[2])))["outcome"] == "accepted"

    def test_a_storm_of_hangups_ends_with_the_last_configuration(self, world: World) -> None:
        """Any number of SIGHUPs, with a configuration that is right and wrong by turns: the last one is in force."""
        other = bundle.audience_cluster("other")
        with world.agent() as agent:
            agent.ready()
            agent.push(world.seal(world.session(KEYS[1])))
            for number in range(300):
                if number % 20 == 0:
                    world.write_config({"identity": {"on_expire": "fallback"}} if number % 40 else None)
                agent.signal(signal.SIGHUP)
            world.write_config({"identity": {"audience": [AUDIENCE, other]}})
            agent.signal(signal.SIGHUP)
            until(lambda: other in agent.status()["audiences"], what="the last configuration")
            assert agent.access_key() == KEYS[1]

    def test_keys_that_come_by_a_reload_open(self, world: World) -> None:
        """A worker that was started without a key opens bundles once one is configured."""
        with world.agent({"keys": [], "signers": [], "sources": []}) as agent:
            agent.ready()
            assert agent.push(world.seal(world.session()))["code"] == "recipient"
            world.write_config({"sources": []})
            agent.signal(signal.SIGHUP)
            agent.wait_for("reload.applied")
            assert agent.push(world.seal(world.session(KEYS[3])))["outcome"] == "accepted"
            assert agent.access_key() == KEYS[3]

    def test_a_refused_reload_keeps_the_ephemeral_key(self, world: World) -> None:
        """The key that was made at the start survives reloads, refused ones too: senders have its public half."""
        ephemeral = {"keys": [{"kind": "ephemeral"}]}
        with world.agent(ephemeral) as agent:
            agent.ready()
            key = agent.operate("/v1/keys").json()["keys"]
            world.write_config({"environment": {"file": "/nonexistent/env"}})
            agent.signal(signal.SIGHUP)
            agent.wait_for("reload.refused")
            world.write_config(ephemeral)
            agent.signal(signal.SIGHUP)
            agent.wait_for("reload.applied")
            assert agent.operate("/v1/keys").json()["keys"] == key
            recipient = bundle.RecipientKey.parse(json.dumps(key[0]))
            assert agent.push(world.seal(world.session(KEYS[4]), recipients=[recipient]))["outcome"] == "accepted"

    def test_a_new_audience_is_answered_to_at_once(self, world: World) -> None:
        """A bundle for an audience that came by a reload is accepted without being brought again, and it is in the status."""
        other = bundle.audience_cluster("other")
        with world.agent() as agent:
            agent.ready()
            sealed = world.seal(world.session(KEYS[1]), audiences=[other])
            assert agent.push(sealed)["code"] == "audience"
            world.write_config({"identity": {"audience": [AUDIENCE, other]}})
            agent.signal(signal.SIGHUP)
            assert agent.wait_for("reload.applied")["needs_restart"] == []
            agent.wait_for("bundle.accepted", seq=1)
            assert other in agent.status()["audiences"]

    @pytest.mark.parametrize("change", ["another signer", "other issuers", "no such audience"])
    def test_a_signer_that_is_not_believed_any_more_is_revoked(self, world: World, change: str) -> None:
        """What a restart would not resume ends with the reload: nothing of it is served or left in a file."""
        entry = world.base["signers"][0]
        other = world.root / "etc" / "other.jwk"
        other.write_text(json.dumps(bundle.SigningKey.generate("Ed25519").public_jwk()))
        changed: dict[str, tuple[dict[str, Any], str]] = {
            "another signer": ({"signers": [{**entry, "key": other}]}, "signer"),
            "other issuers": ({"signers": [{**entry, "issuers": ["https://other.example"]}]}, "issuer"),
            "no such audience": ({"identity": {"audience": ["urn:other"]}}, "audience"),
        }
        changes, code = changed[change]
        with world.agent() as agent:
            agent.ready()
            agent.push(world.seal(world.session(KEYS[1]), world.variables(DB="S3CRET")))
            assert agent.access_key() == KEYS[1]
            world.write_config(changes)
            agent.signal(signal.SIGHUP)
            assert agent.wait_for("bundle.revoked")["code"] == code
            # The line is written as it is decided; the process that answers workers knows milliseconds later.
            until(lambda: agent.role() is None, what="the end of the credential")
            until(lambda: "DB" not in world.env(), what="the purge")
            agent.stop()
        with world.agent(changes) as agent:
            agent.ready()
            assert agent.wait_for("bundle.not_resumed")["code"] == code
            assert agent.access_key() is None

    def test_a_signer_beside_the_present_one_takes_nothing_away(self, world: World) -> None:
        """A signer that comes by a reload takes nothing from a bundle whose own is still believed."""
        other = world.root / "etc" / "other.jwk"
        other.write_text(json.dumps(bundle.SigningKey.generate("Ed25519").public_jwk()))
        with world.agent() as agent:
            agent.ready()
            agent.push(world.seal(world.session(KEYS[1])))
            world.write_config({"signers": [*world.base["signers"], {"key": other, "issuers": ["*"]}]})
            agent.signal(signal.SIGHUP)
            agent.wait_for("reload.applied")
            # Submissions are evaluated one at a time, those that come now after the review.
            assert agent.push(b"no bundle")["outcome"] == "refused"
            assert agent.events("bundle.revoked") == []
            assert agent.access_key() == KEYS[1]


def test_a_get_never_reaches_the_network(world: World, ec2: Ec2MetadataService) -> None:
    """A thousand GETs of a credential cost the machine's metadata service not one request."""
    with world.agent(on_ec2(ec2)) as agent:
        agent.ready()
        token = agent.imds_token()
        headers = {"X-aws-ec2-metadata-token": token}
        path = "/latest/meta-data/iam/security-credentials/"
        assert agent.ask(path, headers=headers).body == b"worker-role"
        before = len(ec2.asked)
        for _ in range(500):
            assert agent.ask(path, headers=headers).status == 200
            assert agent.ask(path + "worker-role", headers=headers).status == 200

        assert len(ec2.asked) == before


def test_the_audience_is_in_the_status(world: World) -> None:
    """An operator sees by which names a sender can address this worker."""
    with world.agent() as agent:
        agent.ready()
        assert AUDIENCE in agent.status()["audiences"]
