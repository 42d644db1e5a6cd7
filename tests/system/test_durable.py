"""What a restart remembers, by the real daemon: clones, disks that are full, frozen or read-only, and a second agent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.core.model import OnExpiry
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.gce_metadata import GceMetadataServer
from tests.fakes.notify_socket import NotifySocket
from tests.fakes.served import Fault
from tests.system.harness import Agent, World, background, until

KEYS = [f"ASIAUSER0000000000{number:02d}" for number in range(100)]
MACHINE = "ASIAMACHINE000000000"


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


def cloud(instance: str) -> Ec2MetadataService:
    service = Ec2MetadataService()
    service.instance_id = instance
    service.attach("worker-role", Key(MACHINE, "machine-secret", "machine-token"))
    return service


def silence(service: Ec2MetadataService) -> None:
    """Every connection breaks, until its ``faults`` are cleared."""
    service.inject(Fault("/", drop=True, times=None))


def late(service: Ec2MetadataService) -> dict[str, Any]:
    return {"upstream": {"ec2": service.url}, "identity": {"instance_id": "auto"}}


HASTY = "import agent.daemon.who; agent.daemon.who.ASK_AGAIN_SECONDS = 0.2\n"
REBOOTED = {"CREDENTIAL_AGENT_BOOT_ID": "b" * 32}


def clone(world: World) -> None:
    """Make an image of the worker and boot it: the same disk, another inode, another kernel."""
    copy = world.root / "copy"
    shutil.copytree(world.state, copy)
    shutil.rmtree(world.state)
    copy.rename(world.state)


def _serves(agent: Agent, key: str | None) -> bool:
    return agent.access_key() == key


class TestClone:
    def test_a_name_that_is_learned_late_keeps_a_clone_clean(self, world: World) -> None:
        """The metadata service is silent at the start; its later word is on the disk, and a clone starts with nothing."""
        first, second = cloud("i-0aaaaaaaaaaaaaaaa"), cloud("i-0bbbbbbbbbbbbbbbb")
        with background(first, second):
            silence(first)
            with world.agent(late(first), prelude=HASTY) as agent:
                agent.ready()
                assert agent.push(world.seal(world.session(KEYS[1])))["durable"] is True
                first.faults.clear()
                memory = world.state / "memory.json"
                until(lambda: b"i-0aaaaaaaaaaaaaaaa" in memory.read_bytes(), what="the name")
                agent.kill()
            with world.agent(late(first)) as agent:
                assert agent.ready().access_key() == KEYS[1]
                agent.kill()
            clone(world)
            with world.agent(late(second), environ=REBOOTED) as agent:
                agent.ready()
                assert agent.wait_for("memory.reset")["now"].endswith("i-0bbbbbbbbbbbbbbbb")
                assert agent.events("bundle.resumed") == []
                assert agent.access_key() == MACHINE
                assert agent.status()["sticky"] == []
            assert list(world.state.glob("bundle-*")) == []

    def test_a_clone_that_has_no_metadata_service_is_told_by_its_network_cards(self, world: World) -> None:
        """Its name is a file, and copied; nothing of the first is served, and what is brought to the clone itself is.

        A card that was exchanged, beside one that was not, makes nobody a clone. What was brought outlives a restart: the
        machine may be the first one, with another card.
        """

        def started(*cards: str, boot: str) -> Agent:
            alone = {"upstream": {"ec2": "off", "gce": "off"}, "identity": {"instance_id": "auto"}}
            prelude = f"""
import agent.host.machine as machine
machine.machine_id = lambda root=None: "f" * 32
machine.firmware_names = lambda root=None: {{"network_cards": {" ".join(cards)!r}}}
"""
            return world.agent(alone, prelude=prelude, environ={"CREDENTIAL_AGENT_BOOT_ID": boot * 32})

        with started("a", "b", boot="1") as agent:
            agent.ready()
            agent.push(world.seal(world.session(KEYS[1])))
            agent.kill()
        with started("b", "c", boot="2") as agent:
            assert agent.ready().access_key() == KEYS[1]
            agent.kill()
        clone(world)
        with started("d", boot="3") as agent:
            agent.ready()
            agent.wait_for("memory.contradicted")
            assert agent.role() is None
            assert agent.status()["clouds"]["aws"]["state"] == "pending"
            assert agent.push(world.seal(world.session(KEYS[2])))["outcome"] == "accepted"
            assert agent.access_key() == KEYS[2]
            agent.kill()
        for boot in "3", "4":
            with started("d", boot=boot) as agent:
                assert agent.ready().access_key() == KEYS[2]
                agent.kill()

    def test_a_clone_answers_to_its_own_names(self, world: World) -> None:
        """What its metadata service said of it outlives that it forgets the first one, and a reload too."""
        first, second = cloud("i-0aaaaaaaaaaaaaaaa"), cloud("i-0bbbbbbbbbbbbbbbb")
        with background(first, second):
            with world.agent(late(first)) as agent:
                agent.ready()
                agent.push(world.seal(world.session(KEYS[1])))
                agent.kill()
            clone(world)
            with world.agent(late(second), environ=REBOOTED) as agent:
                agent.ready()
                agent.wait_for("memory.reset")
                (own,) = [name for name in agent.status()["audiences"] if name.endswith("i-0bbbbbbbbbbbbbbbb")]
                assert agent.push(world.seal(world.session(KEYS[2]), audiences=[own]))["outcome"] == "accepted"
                world.write_config(late(second) | {"log": {"level": "debug"}})
                agent.signal(signal.SIGHUP)
                agent.wait_for("reload.applied")
                assert own in agent.status()["audiences"]
                assert agent.access_key() == KEYS[2]

    def test_a_clone_whose_metadata_is_silent_serves_nothing_of_the_first(self, world: World) -> None:
        """Not even before it knows its name: it waits, and once it knows forgets; the original waits and resumes."""
        first, second = cloud("i-0aaaaaaaaaaaaaaaa"), cloud("i-0bbbbbbbbbbbbbbbb")
        with background(first, second):
            with world.agent(late(first)) as agent:
                agent.ready()
                agent.push(world.seal(world.session(KEYS[1])))
                agent.kill()
            for service, served in ((first, KEYS[1]), (second, MACHINE)):
                clone(world)
                silence(service)
                with world.agent(late(service), prelude=HASTY, environ=REBOOTED) as agent:
                    agent.started()
                    agent.wait_for("memory.doubtful")
                    assert agent.role() is None
                    assert agent.status()["clouds"]["aws"]["state"] == "pending"
                    service.faults.clear()
                    until(partial(_serves, agent, served), what=f"{served}")
                    agent.kill()

    def test_what_was_acknowledged_in_a_doubt_holds_after_it(self, world: World, tmp_path: Path) -> None:
        """A withdrawal reaches a clone that does not know its name yet, and a restart: what it withdrew stays refused."""
        first, second = cloud("i-0aaaaaaaaaaaaaaaa"), cloud("i-0bbbbbbbbbbbbbbbb")
        with background(first, second), NotifySocket(tmp_path / "n") as manager:
            with world.agent(late(first)) as agent:
                agent.ready()
                given = world.seal(world.session(KEYS[1]))
                agent.push(given)
                agent.kill()
            clone(world)
            silence(second)
            environ = REBOOTED | {"NOTIFY_SOCKET": str(manager.path)}
            with world.agent(late(second), prelude=HASTY, environ=environ, passed=manager.stored()) as agent:
                agent.started()
                agent.wait_for("memory.doubtful")
                assert agent.push(world.withdrawal())["outcome"] == "accepted"
                manager.wait_content("handover", lambda data: bool(json.loads(data)["brought"]["marks"]))
                agent.kill()
            with world.agent(late(second), prelude=HASTY, environ=environ, passed=manager.stored()) as agent:
                agent.started()
                agent.wait_for("memory.doubtful")
                second.faults.clear()
                agent.wait_for("memory.reset")
                assert agent.push(given)["code"] == "rollback"
                assert agent.access_key() == MACHINE

    def test_a_doubt_outlives_a_restart(self, world: World, tmp_path: Path) -> None:
        """A clone that does not know its name is restarted: what was handed over in a doubt is as doubtful as before."""
        first, second = cloud("i-0aaaaaaaaaaaaaaaa"), cloud("i-0bbbbbbbbbbbbbbbb")
        with background(first, second), NotifySocket(tmp_path / "n") as manager:
            with world.agent(late(first)) as agent:
                agent.ready()
                agent.push(world.seal(world.session(KEYS[1])))
                agent.kill()
            clone(world)
            silence(second)
            environ = REBOOTED | {"NOTIFY_SOCKET": str(manager.path)}
            for _ in range(2):
                with world.agent(late(second), environ=environ, passed=manager.stored()) as agent:
                    agent.started()
                    agent.wait_for("memory.doubtful")
                    assert agent.role() is None
                    assert agent.events("bundle.resumed") == []
                    manager.wait_content("handover", lambda data: json.loads(data)["doubted"])
                    agent.kill()

    def test_a_restart_with_silent_metadata_serves_on(self, world: World) -> None:
        """The same boot and the same directory are the same machine, whatever the metadata service does."""
        first = cloud("i-0aaaaaaaaaaaaaaaa")
        with background(first):
            with world.agent(late(first)) as agent:
                agent.ready()
                agent.push(world.seal(world.session(KEYS[1])))
                agent.kill()
            silence(first)
            with world.agent(late(first)) as agent:
                assert agent.started().access_key() == KEYS[1]

    def test_the_firmware_tells_a_clone_at_once(self, world: World, tmp_path: Path) -> None:
        """On Nitro the board's tag is the instance's id: a clone is known without the metadata service."""
        first = cloud("i-0aaaaaaaaaaaaaaaa")
        tag = tmp_path / "root" / "sys/class/dmi/id/board_asset_tag"
        tag.parent.mkdir(parents=True)
        tag.write_text("i-0aaaaaaaaaaaaaaaa\n")
        root = (
            "import agent.daemon, pathlib\n"
            f"agent.daemon.Daemon.__init__.__kwdefaults__['root'] = pathlib.Path({str(tmp_path / 'root')!r})\n"
        )
        with background(first):
            with world.agent(late(first), prelude=root, environ=REBOOTED) as agent:
                agent.ready()
                agent.push(world.seal(world.session(KEYS[1])))
                agent.kill()
            silence(first)
            again = {"CREDENTIAL_AGENT_BOOT_ID": "c" * 32}
            with world.agent(late(first), prelude=root, environ=again) as agent:
                assert agent.started().access_key() == KEYS[1]
                agent.kill()
            tag.write_text("i-0bbbbbbbbbbbbbbbb\n")
            with world.agent(late(first), prelude=root, environ=again) as agent:
                agent.started()
                agent.wait_for("memory.reset")
                assert agent.role() is None
                assert agent.status()["sticky"] == []


@contextmanager
def mounted(*command: str, at: Path) -> Iterator[None]:
    subprocess.run([*command, str(at)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True, capture_output=True)


def fill(directory: Path) -> None:
    """Write until not one byte more goes in."""
    with (directory / "filler").open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    with pytest.raises(OSError, match="No space"):
        (directory / "probe").write_bytes(b"x" * 4096)
    (directory / "probe").unlink(missing_ok=True)


def ext4(directory: Path, *options: str) -> str:
    """A disk of four megabytes, as a file in ``directory``."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4 (apt-get install e2fsprogs)")
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", *options, str(image)], check=True, capture_output=True)
    return str(image)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount file systems")
@pytest.mark.root
class TestDisks:
    @pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
    def test_a_full_disk_forgets_no_withdrawal(self, world: World, tmp_path: Path, kind: str) -> None:
        """With not a byte left a withdrawal takes effect, says that it is durable, and is remembered after kill -9.

        The bundle lets the machine's identity back at its end and is still where its source finds it: neither comes back.
        """
        service = cloud("i-0aaaaaaaaaaaaaaaa")
        command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs"]
        if kind == "ext4":
            command = ["mount", "-o", "loop", ext4(tmp_path, "-m", "0")]
        with background(service), mounted(*command, at=world.state):
            changes = {"upstream": {"ec2": service.url}}
            world.drop(world.seal(world.session(KEYS[1]), on_expiry=OnExpiry.FALLBACK))
            with world.agent(changes) as agent:
                agent.ready()
                agent.wait_for("bundle.accepted")
                fill(world.state)
                ack = agent.push(world.withdrawal())
                assert (ack["outcome"], ack["durable"]) == ("accepted", True)
                assert agent.role() is None
                agent.kill()
            assert list(world.state.glob("bundle-*")) == []
            for _ in range(2):
                with world.agent(changes) as agent:
                    agent.ready()
                    agent.wait_for("bundle.refused", code="rollback")
                    assert agent.role() is None
                    assert agent.status()["clouds"]["aws"]["state"] == "ended"
                    agent.kill()

    def test_a_frozen_disk_holds_up_no_withdrawal(self, world: World, tmp_path: Path) -> None:
        """While every write hangs a withdrawal is in force within moments and says that a restart would forget it.

        When the disk answers again it is written, by itself.
        """
        with mounted("mount", "-o", "loop", ext4(tmp_path), at=world.state), world.agent() as agent:
            agent.ready()
            assert agent.push(world.seal(world.session(KEYS[1]), world.variables(OPAQUE="x")))["durable"] is True
            until(lambda: world.env().get("OPAQUE") == "x", what="the variable")
            subprocess.run(["fsfreeze", "--freeze", str(world.state)], check=True)
            try:
                ack = agent.push(world.withdrawal())
                assert (ack["outcome"], ack["durable"]) == ("accepted", False)
                assert agent.role() is None
                assert "OPAQUE" not in world.env()
                assert agent.status()["memory_unwritten"] is True
                # A bundle that comes meanwhile serves as well.
                ack = agent.push(world.seal(world.session(KEYS[2])))
                assert (ack["outcome"], ack["durable"]) == ("accepted", False)
                assert agent.access_key() == KEYS[2]
            finally:
                subprocess.run(["fsfreeze", "--unfreeze", str(world.state)], check=True)
            agent.wait_for("memory.written")
            agent.kill()
            with world.agent() as again:
                assert again.ready().access_key() == KEYS[2]
                again.kill()

    def test_a_restart_on_a_frozen_disk_serves(self, world: World, tmp_path: Path) -> None:
        """A process that hangs in the kernel on its disk cannot even be killed: the next one serves, and writes later."""
        with (
            mounted("mount", "-o", "loop", ext4(tmp_path), at=world.state),
            socket.create_server(("127.0.0.1", 0)) as endpoint,
            socket.socket(socket.AF_UNIX) as control,
        ):
            control.bind(str(world.root / "run" / "control"))
            control.listen()
            passed = [("http", endpoint.fileno()), ("control", control.fileno())]
            agent = world.agent(passed=passed, prelude=SOON)
            agent.ready()
            agent.push(world.seal(world.session(KEYS[1])))
            subprocess.run(["fsfreeze", "--freeze", str(world.state)], check=True)
            try:
                assert agent.push(world.seal(world.session(KEYS[2])))["durable"] is False
                agent.process.kill()
                with world.agent(passed=passed, prelude=SOON) as again:
                    assert again.ready().access_key() == KEYS[1]
                    third = world.seal(world.session(KEYS[3]))
                    assert again.push(third)["durable"] is False
                    assert again.access_key() == KEYS[3]
                    subprocess.run(["fsfreeze", "--unfreeze", str(world.state)], check=True)
                    again.wait_for("memory.written")
                    assert again.push(third)["durable"] is True
                    again.kill()
            finally:
                subprocess.run(["fsfreeze", "--unfreeze", str(world.state)], check=False, capture_output=True)
                with agent:
                    agent.kill()

    def test_a_read_only_disk_is_told_of(self, world: World) -> None:
        """What a read-only disk cannot remember takes effect, is acknowledged as such, and is written when it can be."""
        service = cloud("i-0aaaaaaaaaaaaaaaa")
        disk = mounted("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", at=world.state)
        with background(service), disk, world.agent({"upstream": {"ec2": service.url}}, prelude=SOON) as agent:
            agent.ready()
            agent.push(world.seal(world.session(KEYS[1])))
            subprocess.run(["mount", "-o", "remount,ro", str(world.state)], check=True)
            withdrawal = world.withdrawal()
            assert agent.push(withdrawal)["durable"] is False
            assert agent.role() is None
            assert agent.push(withdrawal) | {"at": ""} == {**agent.push(withdrawal), "outcome": "same", "at": ""}
            subprocess.run(["mount", "-o", "remount,rw", str(world.state)], check=True)
            agent.wait_for("memory.written")
            assert agent.push(withdrawal)["durable"] is True
            agent.kill()

    @pytest.mark.parametrize("next_", ["withdrawal", "larger"])
    def test_withdrawn_variables_leave_a_full_directory(self, world: World, next_: str) -> None:
        """With not a byte left in ``/run`` the variables of a bundle that is over leave both files all the same."""
        disk = mounted("mount", "-t", "tmpfs", "-o", "size=64k,mode=0755", "tmpfs", at=world.root / "run")
        with disk, world.agent() as agent:
            agent.ready()
            agent.push(world.seal(world.session(KEYS[1]), world.variables(OPAQUE="gone-secret", OTHER="x" * 50)))
            files = [world.root / "run" / name for name in ("env", "env.sh")]
            until(lambda: all(b"gone-secret" in path.read_bytes() for path in files), what="the variable")
            fill(world.root / "run")
            larger = world.seal(world.session(KEYS[2]), world.variables(NEW="y" * 9000, OTHER="x" * 50))
            agent.push(world.withdrawal() if next_ == "withdrawal" else larger)
            until(lambda: not any(b"gone-secret" in path.read_bytes() for path in files), what="its end")
            assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" in world.env()
            assert ("OTHER" in world.env()) is (next_ == "larger")
            (world.root / "run" / "filler").unlink()
            agent.signal(signal.SIGHUP)
            until(lambda: ("NEW" in world.env()) is (next_ == "larger"), what="the whole file")


SOON = "import agent.controller.durable; agent.controller.durable.WRITE_AGAIN_SECONDS = 0.5\n"


LATER = "import agent.daemon.age as age\nage.AGED = -age.AGED\n"
"""Each start is long after the last sign of life."""


class TestABackupThatIsPutBack:
    """The state directory is as it was before a withdrawal: somebody restored it, or the machine's disk."""

    @pytest.fixture
    def put_back(self, world: World) -> Callable[[], None]:
        """Puts back what :func:`_withdrawn` saved."""

        def restore() -> None:
            shutil.rmtree(world.state)
            world.state.with_name("backup").rename(world.state)

        return restore

    def test_while_it_runs_and_over_a_restart_nothing_is_taken_back(
        self, world: World, tmp_path: Path, put_back: Callable[[], None]
    ) -> None:
        """What the process before knew is with the service manager, and the disk is written anew."""
        with NotifySocket(tmp_path / "n") as manager:
            environ = {"NOTIFY_SOCKET": str(manager.path)}
            with world.agent(environ=environ) as agent:
                bundle = _withdrawn(world, agent)
                manager.wait_content("handover", lambda data: json.loads(data)["memory"]["active"] is None)
                agent.kill()
            put_back()
            world.bundle_file.unlink()
            with world.agent(environ=environ, passed=manager.stored()) as agent:
                agent.started()
                assert agent.role() is None
                assert agent.push(bundle)["code"] == "rollback"
                memory = world.state / "memory.json"
                until(
                    lambda: json.loads(memory.read_bytes())["memory"]["marks"][0]["seq"] == 2, what="it to be written"
                )
                agent.kill()
        with world.agent(environ=REBOOTED) as agent:
            agent.ready()
            assert agent.push(bundle)["code"] == "rollback"

    def test_at_a_boot_it_is_told(self, world: World, put_back: Callable[[], None]) -> None:
        """A disk on which the agent was at work long ago, and never ended: an alarm, over restarts, until the next word."""
        with world.agent() as agent:
            bundle = _withdrawn(world, agent)
            agent.kill()
        put_back()
        world.bundle_file.unlink()
        for _ in range(2):
            with world.agent(environ=REBOOTED, prelude=LATER) as agent:
                agent.wait_for("state.aged")
                agent.ready()
                assert agent.access_key() == KEYS[1]  # as the page says
                assert "gone back in time" in agent.status()["without"]["state.directory"]
                assert agent.push(bundle)["outcome"] == "same"
                assert "state.directory" in agent.status()["without"]
                agent.kill()
        with world.agent(environ=REBOOTED, prelude=LATER) as agent:
            agent.ready()
            assert agent.push(world.withdrawal(seq=2))["outcome"] == "accepted"
            assert agent.status()["without"] == {}
            assert agent.stop() == 0
        with world.agent(environ={"CREDENTIAL_AGENT_BOOT_ID": "3" * 32}, prelude=LATER) as agent:
            agent.ready()
            assert not agent.events("state.aged")

    def test_in_the_same_boot_it_is_told_for_sure(self, world: World, put_back: Callable[[], None]) -> None:
        """Another memory than an orderly end left there in this boot; and no alarm where it is the same."""
        with world.agent() as agent:
            _withdrawn(world, agent)
            assert agent.stop() == 0
        world.bundle_file.unlink()
        with world.agent() as agent:
            agent.ready()
            assert not agent.events("state.aged")
            assert agent.stop() == 0
        put_back()
        with world.agent() as agent:
            agent.wait_for("state.aged")
            agent.ready()
            assert "state.directory" in agent.status()["without"]

    def test_at_a_boot_what_a_source_shows_decides(self, world: World, put_back: Callable[[], None]) -> None:
        """The withdrawal that was left where bundles are looked for takes effect once more."""
        with world.agent() as agent:
            bundle = _withdrawn(world, agent)
            agent.kill()
        put_back()
        with world.agent(environ=REBOOTED) as agent:
            agent.wait_for("bundle.withdrawn", seq=2)
            until(lambda: agent.role() is None, what="nothing to be served")
            assert agent.push(bundle)["code"] == "rollback"


def _withdrawn(world: World, agent: Agent) -> bytes:
    """Push a bundle, save the state, withdraw it by the file source. Returns the bundle."""
    agent.ready()
    bundle = world.seal(world.session(KEYS[1]), seq=1)
    assert agent.push(bundle)["durable"] is True
    shutil.copytree(world.state, world.state.with_name("backup"))
    world.drop(world.withdrawal(seq=2))
    agent.wait_for("bundle.withdrawn", seq=2)
    until(lambda: agent.role() is None, what="nothing to be served")
    return bundle


class TestOneOwner:
    def test_a_second_agent_says_so_and_ends(self, world: World) -> None:
        """Two agents on one state directory would take back each other's numbers: the second waits a little and ends."""
        with world.agent() as first:
            first.ready()
            first.push(world.seal(world.session(KEYS[1])))
            hasty = "import agent.daemon.remembered as r; r.CLAIM_SECONDS -= 4.5\n"
            with world.agent({"listen": {"control": world.root / "run" / "control2"}}, prelude=hasty) as second:
                assert second.wait() != 0
                assert "another agent uses" in second.stderr
                assert "Traceback" not in second.stderr
            assert first.access_key() == KEYS[1]
            first.kill()
        with world.agent() as third:  # a lock outlives no process
            assert third.ready().access_key() == KEYS[1]

    def test_a_predecessor_that_is_slow_to_end_is_waited_for(self, world: World) -> None:
        """A restart whose first process is still ending goes on when it has ended."""
        with world.agent() as first:
            first.ready()
            first.push(world.seal(world.session(KEYS[1])))
            with world.agent({"listen": {"control": world.root / "run" / "control2"}}) as second:
                until((world.root / "run" / "control2").exists, what="the second's socket")
                first.kill()
                assert second.ready().access_key() == KEYS[1]


def test_a_later_version_s_memory_is_closed_and_kept(world: World) -> None:
    """After a downgrade the memory cannot be read: every cloud is closed, nothing crashes, the file stays as it is."""
    later = b'{"version":3,"memory":{"what":"a later agent knows"}}'
    (world.state / "memory.json").write_bytes(later)
    service = cloud("i-0aaaaaaaaaaaaaaaa")
    with background(service):
        for _ in range(2):
            with world.agent({"upstream": {"ec2": service.url}}) as agent:
                agent.ready()
                assert agent.wait_for("memory.unreadable")["reason"].endswith("a later agent wrote it")
                assert agent.role() is None
                assert agent.stop() == 0
            assert (world.state / "memory.json").read_bytes() == later
        with world.agent({"upstream": {"ec2": service.url}}) as agent:
            agent.ready()
            assert agent.push(world.seal(world.session(KEYS[1])))["durable"] is True
            assert agent.access_key() == KEYS[1]
    assert (world.state / "memory.json.broken").read_bytes() == later


class TestAnotherName:
    def test_a_wrong_name_forgets_no_withdrawal(self, world: World) -> None:
        """A metadata service that errs about the name for one start is doubted, and believed again when it is right."""
        service = cloud("i-0aaaaaaaaaaaaaaaa")
        with background(service):
            with world.agent(late(service)) as agent:
                agent.ready()
                old = world.seal(world.session(KEYS[1]))
                agent.push(old)
                assert agent.push(world.withdrawal())["durable"] is True
                decided = agent.status()["sticky"]
                agent.kill()
            service.instance_id = "i-0bbbbbbbbbbbbbbbb"
            with world.agent(late(service), prelude=HASTY) as agent:
                agent.started()
                agent.wait_for("memory.contradicted")
                assert agent.role() is None
                assert agent.status()["clouds"]["aws"]["state"] == "pending"
                service.instance_id = "i-0aaaaaaaaaaaaaaaa"
                until(lambda: agent.status()["clouds"]["aws"]["state"] != "pending", what="the end of the doubt")
                assert agent.events("memory.reset") == []
                assert agent.status()["sticky"] == decided
                assert agent.push(old)["outcome"] == "refused"
                assert not _serves(agent, KEYS[1])
                agent.kill()

    def test_a_doubt_that_nobody_can_settle_is_not_waited_for(self, world: World) -> None:
        """Where no metadata service has more to say, units after us start at once, and nothing decided is served."""
        service = cloud("i-0aaaaaaaaaaaaaaaa")
        patient = {"identity": {"instance_id": "auto", "grace_seconds": 3600.0}}
        with background(service):
            with world.agent(late(service)) as agent:
                agent.ready()
                agent.push(world.seal(world.session(KEYS[1]), world.google()))
                agent.kill()
            for upstream, environ in (({"ec2": "off"}, REBOOTED), ({"ec2": service.url}, {})):
                service.instance_id = "i-0bbbbbbbbbbbbbbbb"  # in the boot of the former: it errs, or somebody lies
                with world.agent({"upstream": upstream, **patient}, environ=environ) as agent:
                    agent.wait_for("memory.contradicted")
                    agent.ready()
                    assert agent.role() is None
                    assert agent.status()["clouds"]["aws"]["state"] == "pending"
                    agent.kill()

    def test_a_doubt_that_a_service_may_settle_is_waited_for(self, world: World) -> None:
        """While a metadata service has yet to say who we are, readiness waits for its word, and then for no more."""
        service = cloud("i-0aaaaaaaaaaaaaaaa")
        with background(service):
            patient = {"upstream": {"ec2": service.url}, "identity": {"instance_id": "auto", "grace_seconds": 3600.0}}
            with world.agent(late(service)) as agent:
                agent.ready()
                agent.push(world.seal(world.session(KEYS[1]), world.google()))
                agent.kill()
            silence(service)
            with world.agent(patient, prelude=HASTY, environ=REBOOTED) as agent:
                agent.wait_for("memory.doubtful")
                assert agent.role() is None
                assert agent.events("agent.ready") == []
                service.faults.clear()
                agent.ready()
                assert agent.access_key() == KEYS[1]
                agent.kill()

    def test_one_cloud_displaces_not_the_name_by_the_other(self, world: World) -> None:
        """With both clouds' services set, the one that answers is not the machine's name while the other one fails."""
        ec2, gce = cloud("i-0aaaaaaaaaaaaaaaa"), GceMetadataServer()
        with background(ec2, gce):
            changes = {"upstream": {"ec2": ec2.url, "gce": gce.url}, "identity": {"instance_id": "auto"}}
            with world.agent(changes) as agent:
                agent.ready()
                agent.push(world.seal(world.session(KEYS[1])))
                agent.kill()
            silence(ec2)
            with world.agent(changes, prelude=HASTY) as agent:
                assert agent.started().access_key() == KEYS[1]
                agent.kill()
            with world.agent(changes, prelude=HASTY, environ=REBOOTED) as agent:
                agent.started()
                agent.wait_for("memory.doubtful")
                assert agent.status()["clouds"]["aws"]["state"] == "pending"
                ec2.faults.clear()
                until(partial(_serves, agent, KEYS[1]), what="the bundle")
                assert agent.events("memory.reset") == []


def test_a_captive_portal_at_a_restart_takes_no_identity_away(world: World) -> None:
    """The machine is remembered as EC2's: a page in IMDS's place is an outage of it, and over when the page is gone."""
    ec2 = cloud("i-0aaaaaaaaaaaaaaaa")
    with background(ec2):
        with world.agent(late(ec2)) as agent:
            assert agent.ready().access_key() == MACHINE
            until(lambda: b"i-0aaaaaaaaaaaaaaaa" in (world.state / "memory.json").read_bytes(), what="the name")
            agent.kill()
        ec2.inject(Fault("/", status=403, body=b"<html>sign in", times=None))
        with world.agent(late(ec2), prelude=HASTY) as agent:
            agent.wait_for("credential.failed", cloud="aws")
            assert agent.ask("/latest/meta-data/iam/security-credentials/").status != 404
            ec2.faults.clear()
            until(lambda: agent.access_key() == MACHINE, what="the machine's identity")
