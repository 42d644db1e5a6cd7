"""What the probes find out from services that speak the real protocols, and from files as they may lie about."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from agent.doctor import Level, Machine, diagnose, examine
from agent.doctor.checks.bundles import sources
from agent.doctor.checks.outside import metadata
from agent.doctor.facts import Control, Unknown
from agent.doctor.probes import bundles, listeners, machine, outside
from agent.doctor.probes.keys import look_at_keys
from agent.host import ports, systemctl
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.gce_metadata import GceMetadataServer
from tests.fakes.served import Fault
from tests.system.harness import World, as_user, background
from tests.unit.doctor.support import healthy, silent

KEY = Key("ASIAMACHINE000000000", "s" * 40, "t" * 80)
HERE = "http://127.0.0.1:1"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def ec2_says(world: World, service: Ec2MetadataService) -> tuple[str, str, float | None]:
    config = world.write_config({"upstream": {"ec2": service.url, "gce": "off"}})
    (found,) = outside.look_at_metadata(config).services
    return found.state, found.why, found.ahead_seconds


class TestMetadata:
    @pytest.fixture
    def ec2(self) -> Iterator[Ec2MetadataService]:
        service = Ec2MetadataService()
        service.attach("worker-role", KEY)
        with background(service):
            yield service

    def test_each_way_in_which_ec2_fails_has_its_name(self, world: World, ec2: Ec2MetadataService) -> None:
        """A role is named; no role, switched off, tokens that do not arrive and silence are told apart."""
        assert ec2_says(world, ec2)[:2] == ("ok", "role worker-role")
        ec2.detach()
        assert ec2_says(world, ec2)[0] == "no-identity"
        ec2.endpoint_enabled = False
        assert ec2_says(world, ec2)[0] == "disabled"
        ec2.endpoint_enabled = True
        ec2.faults.append(Fault(status=403, body=b"<html>sign in", times=None))
        assert ec2_says(world, ec2)[0] == "between"
        ec2.faults[0] = Fault(status=200, body=b"<html>sign in", times=None)
        assert ec2_says(world, ec2)[0] == "absent"
        ec2.faults[0] = Fault(prefix="/latest/api/token", drop=True, times=None)
        assert ec2_says(world, ec2)[0] == "hop-limit"
        ec2.faults.append(Fault(drop=True, times=None))
        ec2.faults.popleft()
        assert ec2_says(world, ec2)[0] == "silent"

    def test_it_is_a_witness_of_the_time(self, world: World, ec2: Ec2MetadataService) -> None:
        """By how much the service is ahead is told, whatever its answer."""
        ec2.now = lambda: datetime.now(UTC) + timedelta(hours=1)
        ahead = ec2_says(world, ec2)[2]
        assert ahead is not None
        assert 3500 < ahead < 3700

    def test_gce_is_told_apart_from_what_only_answers_there(self, world: World) -> None:
        """A service account; none; EC2's own service; and a page."""
        gce, other, page = GceMetadataServer(), Ec2MetadataService(), Ec2MetadataService()
        page.faults.append(Fault(status=200, body=b"<html>sign in", times=None))
        with background(gce, other, page):
            found = []
            for url, accounts in ((gce.url, gce.accounts), (gce.url, []), (other.url, []), (page.url, [])):
                gce.accounts = accounts
                config = world.write_config({"upstream": {"ec2": "off", "gce": url}})
                found.append(outside.look_at_metadata(config).services[0].state)
        assert found == ["ok", "no-identity", "elsewhere", "absent"]

    @pytest.mark.parametrize(
        ("here", "other", "off"),
        [(Ec2MetadataService, "gce-attribute", "ec2"), (GceMetadataServer, "ec2-user-data", "gce")],
    )
    def test_an_image_for_both_clouds_is_no_trouble_in_one(
        self, world: World, here: type[Ec2MetadataService | GceMetadataServer], other: str, off: str
    ) -> None:
        """What is the other cloud's is told as that, and is nothing to mend; it is where nothing else is configured."""
        kinds = [{"kind": kind} for kind in ("ec2-user-data", "gce-attribute")]
        with background(service := here()):
            both = {"ec2": service.url, "gce": service.url}
            for upstream, configured, level in (
                (both, kinds, Level.OK),
                ({**both, off: "off"}, [{"kind": other}], Level.FAIL),
            ):
                config = world.write_config({"upstream": upstream, "sources": configured})
                held, services = bundles.look_at_bundles(config, {}, None), outside.look_at_metadata(config)
                facts = msgspec.structs.replace(healthy(), bundles=held, metadata=services, control=silent())
                told = {one.about: one for check in (metadata, sources) for one in check(facts)}
                assert [told[about].level for about in (other, other[:3])] == [level, level]
                assert "in the other cloud" in told[other[:3]].said


def test_a_cloud_that_cannot_be_reached_is_told_with_the_kind(world: World) -> None:
    """A name that nobody knows, a port where nobody listens, a proxy that is not there; and one that answers."""
    service = Ec2MetadataService()
    with background(service):
        mint = {
            "sts_endpoint": service.url, "google_token_url": "http://no-such-host.invalid/token",
            "google_sts_url": f"{HERE}/v1/token", "google_iamcredentials_url": f"{HERE}/x",
        }  # fmt: skip
        found = outside.look_at_clouds(world.write_config({"mint": mint, "upstream": {"ec2": "off", "gce": "off"}}))
        assert [(one.cloud, one.kind) for one in found.endpoints] == [("aws", ""), ("gcp", "name"), ("gcp", "network")]
        config = world.write_config({"mint": mint, "upstream": {"ec2": "off", "gce": "off", "proxy": HERE}})
        proxied = outside.look_at_clouds(config)
    assert {one.kind for one in proxied.endpoints} == {"proxy"}


def test_what_a_source_holds_is_evaluated_as_by_the_agent(world: World) -> None:
    """Nothing; a bundle that is taken; one of a stranger; one for others; garbage; and what looks like a bundle."""
    from agent import bundle

    config = world.write_config()
    good = world.seal(world.session())
    stranger = world.seal(world.session(), signer=bundle.SigningKey.generate("Ed25519"))
    other = world.seal(world.session(), audiences=["urn:credbundle:cluster:other"])
    found = []
    for data in (None, good, stranger, other, b"not a bundle", good[: len(good) // 2]):
        if data is not None:
            world.drop(data)
        (held,) = bundles.look_at_bundles(config, {}, None).held
        found.append((held.state, held.code))
    assert found[:4] == [("none", ""), ("bundle", ""), ("bundle", "signer"), ("bundle", "audience")]
    assert found[4][1] in {"encoding", "json"}
    assert found[5][0] == "broken" or found[5][1] in {"encoding", "json"}
    asked = bundles.look_at_bundles(config, {}, good)
    assert (asked.held[-1].name, asked.held[-1].code, asked.kids) == ("", "", (world.key.kid,))
    assert not world.state.exists() or not list(world.state.iterdir())


@pytest.mark.parametrize(
    ("text", "mode", "state"),
    [(None, 0o600, "absent"), ("{}", 0o600, "not-a-key"), ("KEY", 0o644, "shared"), ("KEY", 0o600, "usable")],
)
def test_each_way_in_which_a_key_fails_has_its_name(world: World, text: str | None, mode: int, state: str) -> None:
    """Not there, no key, everybody's; and usable, with its thumbprint."""
    key = world.key_file.read_text()
    world.key_file.unlink()
    if text is not None:
        world.key_file.write_text(key if text == "KEY" else text)
        world.key_file.chmod(mode)
    (found,) = look_at_keys(world.write_config(), {}).keys
    assert found.state == state
    assert found.kids == ((world.key.kid,) if state == "usable" else ())


def test_a_credential_that_root_cannot_see_is_told_by_its_name(world: World) -> None:
    """By that name the agent's own word on it is found."""
    config = world.write_config({"keys": [{"kind": "credential", "name": "credential-agent.key"}]})
    (found,) = look_at_keys(config, {"CREDENTIALS_DIRECTORY": str(world.root / "nowhere")}).keys
    assert (found.state, found.name) == ("elsewhere", "credential-agent.key")


def test_who_has_the_port_is_told(world: World) -> None:
    """The process that listens, and whether it is ours; nobody, where nobody does."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (found,) = listeners.look_at_listeners(world.write_config({"listen": {"http": [address]}})).listeners
        assert (found.address, found.taken, found.pid) == (address, True, os.getpid())
    (found,) = listeners.look_at_listeners(world.write_config({"listen": {"http": [address]}})).listeners
    assert found.taken is False


def test_a_program_that_only_calls_itself_so_is_not_ours(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose socket it is counts, not the words of its command line."""
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    thief = subprocess.Popen(
        [sys.executable, "-c", code, "credential-agent"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert thief.stdout is not None
        config = world.write_config({"listen": {"http": [f"127.0.0.1:{thief.stdout.readline().strip()}"]}})
        found = []
        for answer in (True, False):
            monkeypatch.setattr(listeners, "_may_be_ours", lambda _uid, answer=answer: answer)
            found += [one.ours for one in listeners.look_at_listeners(config).listeners]
    finally:
        thief.communicate()
    assert found == [True, False]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes other users")
@pytest.mark.parametrize(
    ("user", "ours"), [("daemon", True), ("games", True), ("nobody", False)], ids=["agent", "server", "stranger"]
)
def test_the_port_may_be_the_agents_or_the_servers(
    world: World, monkeypatch: pytest.MonkeyPatch, user: str, ours: bool
) -> None:
    """Each of the two has a user of its own; nobody else's socket is ours, whatever its program is called."""
    monkeypatch.setattr(listeners, "SERVICE_USER", "daemon")
    monkeypatch.setattr(listeners, "SERVER_USER", "games")
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    listens = subprocess.Popen(
        as_user([sys.executable, "-I", "-c", code, "agent.server"], pwd.getpwnam(user).pw_uid),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert listens.stdout is not None
        config = world.write_config({"listen": {"http": [f"127.0.0.1:{listens.stdout.readline().strip()}"]}})
        (found,) = listeners.look_at_listeners(config).listeners
    finally:
        listens.communicate()
    assert found.ours is ours


def test_the_addresses_are_those_of_the_units(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd listens: containers' address and IPv6 too, whatever the configuration says; and which unit of it does."""
    config = world.write_config({"listen": {"http": ["127.0.0.1:1"]}})
    monkeypatch.setattr(listeners, "CONFIG_PATH", config)
    monkeypatch.setattr(systemctl, "show", lambda _unit, *_: {"ActiveState": "failed"})
    told = {ports.SOCKETS[0]: [("127.0.0.1", 2)], ports.SOCKETS[1]: [("::1", 2)]}
    monkeypatch.setattr(ports, "listening", lambda unit: (told[unit], True))
    found = listeners.look_at_listeners(config).listeners
    assert [(one.address, one.unit) for one in found] == [
        ("127.0.0.1:2", ports.SOCKETS[0]),
        ("[::1]:2", ports.SOCKETS[1]),
    ]


def test_the_state_of_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    """What proc(5) and the control group say, and nothing where they say nothing."""
    group = tmp_path / "sys/fs/cgroup/system.slice/credential-agent.service"
    group.mkdir(parents=True)
    (tmp_path / "proc/pressure").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:  1000 kB\nMemAvailable:   10 kB\n")
    (tmp_path / "proc/pressure/cpu").write_text("some avg10=62.50 avg60=0.00 total=1\nfull avg10=0.00 total=0\n")
    (tmp_path / "proc/pressure/memory").write_text("some avg10=50.00 avg60=0.00\nfull avg10=12.50 avg60=0.00 total=1\n")
    for name, text in (("memory.current", "500\n"), ("memory.max", "max\n"), ("memory.events", "oom 1\noom_kill 3\n")):
        (group / name).write_text(text)
    found = machine.look_at_memory(tmp_path)
    assert (found.total, found.available, found.pressure) == (1_024_000, 10_240, 12.5)
    assert found.waiting == 62.5
    assert (found.used, found.limit, found.killed) == (500, 0, 3)
    assert machine.look_at_memory(tmp_path / "nowhere").total == 0


def test_another_users_eyes_are_not_the_services(world: World) -> None:
    """What a worker may not read, or is answered by the agent in a service's place, is told as no mistake of the machine."""
    machine = Machine(
        path=world.write_config(), root=False, service=None, environ={}, shell={}, home=world.root, eyes=False,
        ask=lambda: Control(state="denied", path="/x", why="not allowed"),
    )  # fmt: skip
    found = examine(machine, seconds=20.0)
    for name in ("configuration", "keys", "bundles", "metadata", "places"):
        look = getattr(found, name)
        assert isinstance(look, Unknown), name
        assert "for root and the service alone" in look.why
    told = diagnose(found)
    assert {one.level for one in told if one.check in {"configuration", "key", "disk", "metadata", "source"}} == {
        Level.SKIPPED
    }
