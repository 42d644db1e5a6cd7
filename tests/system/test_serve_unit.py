"""The server as a unit of its own: neither its controller's end nor its own costs a worker anything."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agent.daemon.ready import READY_AFTER_SECONDS
from agent.host import deferring
from tests.fakes.gce_metadata import GceMetadataServer
from tests.fakes.notify_socket import NotifySocket
from tests.system.harness import DEADLINE_SECONDS, NOBODY, World, as_user, background, until
from tests.system.serve_unit import KEY, Clients, ServeUnit, ask, credential, served_first


def test_it_answers_on_the_units_sockets(tmp_path: Path) -> None:
    """The agent has no socket of the workers': it is told where they ask, and says so."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit, unit.agent(world) as agent:
        agent.ready()
        assert agent.address == unit.address
        world.drop(world.seal(world.session(KEY)))
        agent.wait_for("bundle.accepted", seq=1)
        assert credential(unit.address) == agent.credential()["AccessKeyId"] == KEY
        both = unit.both()
        until(lambda: len(agent.status()["servers"]) == 2, what="both")
        assert [(one["pid"], one["stands_by"]) for one in agent.status()["servers"]] == [
            (both[0], False),
            (both[1], True),
        ]
        assert f":{unit.address[1]}" in world.env()["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
        assert agent.stop() == 0
        assert credential(unit.address) == KEY
        assert unit.stop() == 0


def test_silent_connections_lie_in_the_kernel_only_where_it_sends_cookies(tmp_path: Path) -> None:
    """The unit sees another network than its sockets': what the service manager passes says so, at each start."""
    says = tmp_path / deferring.CREDENTIAL
    says.write_text("1\n")
    with ServeUnit(tmp_path, prelude=f'os.environ["CREDENTIALS_DIRECTORY"] = {str(tmp_path)!r}') as unit:
        assert unit.deferred
        for said, deferred in (("0\n", False), ("1\n", True), ("", False)):
            unit.kill()
            says.write_text(said)
            unit.start()
            assert unit.deferred is deferred


def test_a_killed_controller_costs_nobody_anything(tmp_path: Path) -> None:
    """What it told last is served while it is gone; the next one's server takes over, and then there is one again."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            served_first(agent, world)
            first = unit.server()
            agent.kill()
            assert credential(unit.address) == KEY
            assert unit.server() == first
        with unit.agent(world) as agent:
            agent.ready()
            assert credential(unit.address) == KEY
            assert unit.server(other_than=first) != first
            assert agent.push(world.withdrawal())["outcome"] == "accepted"
            assert agent.role() is None


def test_no_request_is_refused_over_restarts_of_the_controller(tmp_path: Path) -> None:
    """Clients that ask all the while get the one credential, whatever the controllers do."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            served_first(agent, world)
            agent.kill()
        with Clients(unit, 8) as clients:
            for number in range(4):
                before = unit.both()
                with unit.agent(world) as agent:
                    agent.ready()
                    until(lambda before=before: not {*before} & {*unit.servers}, what="new servers alone")  # type: ignore[misc]
                    clients.more(9)
                    if number % 2:
                        assert agent.stop() == 0
                    else:
                        agent.kill()
    assert not clients.wrong


def test_a_server_that_dies_without_a_controller_has_a_successor(tmp_path: Path) -> None:
    """It begins with the newest snapshot, which the master has and does not read."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            served_first(agent, world)
            agent.kill()
        before = unit.server()
        for _ in range(3):
            os.kill(before, signal.SIGKILL)
            assert credential(unit.address) == KEY
            before = unit.server(other_than=before)


def test_the_one_that_stands_by_takes_over(tmp_path: Path) -> None:
    """It is there when the other ends, knows what was withdrawn, and is counted as a successor; another stands by then."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit, unit.agent(world) as agent:
        served_first(agent, world)
        for number in range(1, 4):
            first, second = unit.both()
            until(lambda: len(agent.status()["servers"]) == 2, what="both, linked")
            os.kill(first, signal.SIGKILL)
            assert credential(unit.address) == KEY
            assert unit.both(other_than=first)[0] == second
            until(lambda n=number: agent.status()["servers_replaced"] == n, what="the count")  # type: ignore[misc]
        for process in ("server", "standby"):  # the second has one linked a moment later
            counted = f'credential_agent_servers{{process="{process}"}} 1.0'
            until(lambda counted=counted: counted in agent.operate("/metrics").body.decode(), what=counted)  # type: ignore[misc]
        assert agent.push(world.withdrawal())["outcome"] == "accepted"
        os.kill(unit.server(), signal.SIGKILL)
        assert agent.role() is None


def test_one_that_hangs_has_a_successor_without_a_controller(tmp_path: Path) -> None:
    """Stopped, it takes no connection: the one that stands by sees them wait, and answers in its place."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            served_first(agent, world)
            first, second = unit.both()
            agent.kill()
        os.kill(first, signal.SIGSTOP)
        assert credential(unit.address) == KEY
        assert unit.both(other_than=first)[0] == second
        assert f"process {first} does not answer" in unit.stderr


@pytest.mark.slow
def test_a_withdrawal_is_not_confirmed_while_the_master_hangs(tmp_path: Path) -> None:
    """What it begins meanwhile is not known: the sender hears that, and by sending it again that it is so."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit, unit.agent(world) as agent:
        served_first(agent, world)
        withdrawal = world.withdrawal()
        os.kill(unit.pid, signal.SIGSTOP)
        reply = agent.operate("/v1/bundle", method="PUT", body=withdrawal)
        assert reply.status == 503
        assert reply.json()["error"].startswith("not confirmed: ")
        assert agent.role() is None  # who answers has heard it all the same
        os.kill(unit.pid, signal.SIGCONT)
        assert agent.push(withdrawal)["outcome"] == "same"


@pytest.mark.slow
def test_it_is_ready_when_workers_are_answered_and_not_before(tmp_path: Path) -> None:
    """While servers end as soon as they are begun both units say that workers wait, and why; all else goes on meanwhile."""
    world, broken = World(tmp_path), tmp_path / "broken"
    broken.touch()
    prelude = (
        "import os\nfrom agent.server import work\nrun = work.run\n"
        f"work.run = lambda *given, **more: None if os.path.exists({str(broken)!r}) else run(*given, **more)"
    )
    with (
        NotifySocket(tmp_path / "n") as manager,
        ServeUnit(tmp_path, prelude=prelude) as unit,
        unit.agent(world, environ={"NOTIFY_SOCKET": str(manager.path)}) as agent,
    ):
        agent.wait_for("server.failing")
        unit.manager.wait_until(
            lambda told: any("servers end as soon as they are begun" in line for line in told.lines), what="its status"
        )
        world.drop(world.seal(world.session(KEY), world.variables(PLAIN="there")))
        agent.wait_for("bundle.accepted", seq=1)
        until(lambda: world.env().get("PLAIN") == "there", what="the environment file")
        assert manager.silent("READY=1", READY_AFTER_SECONDS)
        manager.wait_until(
            lambda told: any("STATUS=nobody answers workers" in line for line in told.lines), what="our status"
        )
        broken.unlink()
        told = manager.wait_for("READY=1", seconds=60)
        assert not any("nobody answers workers" in line for line in told.lines)
        assert credential(unit.address) == KEY


def test_how_many_connections_there_may_be_is_the_units_matter(tmp_path: Path) -> None:
    """It has the descriptors for them: its limit counts, and not the agent's own."""
    world = World(tmp_path)
    prelude = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (600, 600))"
    with ServeUnit(tmp_path, prelude=prelude) as unit, unit.agent(world) as agent:
        agent.ready()
        assert agent.wait_for("connections.lowered")["descriptors"] == 600


def test_an_acknowledgement_waits_for_one_that_stands_by(tmp_path: Path) -> None:
    """It would serve what it was told before as soon as the other ends: it is ended first if it hears nothing."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit, unit.agent(world) as agent:
        served_first(agent, world)
        first, stopped = unit.both()
        os.kill(stopped, signal.SIGSTOP)
        assert agent.push(world.withdrawal())["outcome"] == "accepted"
        assert stopped not in unit.servers
        os.kill(first, signal.SIGKILL)
        assert agent.role() is None


def test_both_may_die(tmp_path: Path) -> None:
    """The service manager holds the newest snapshot for the master: workers are answered before there is a controller."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            served_first(agent, world)
            until(lambda: any(KEY.encode() in one for one in unit.stored), what="the snapshot in the store")
            agent.kill()
        unit.kill()
        unit.start(stored=True)
        assert credential(unit.address) == KEY


def test_what_was_withdrawn_is_nowhere(tmp_path: Path) -> None:
    """Whoever has the file of before, the service manager too, has an empty one when the withdrawal is acknowledged."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            served_first(agent, world)
            until(lambda: any(KEY.encode() in one for one in unit.stored), what="the snapshot in the store")
            held = [os.dup(fd) for _, fd in unit.manager.stored()]
            assert agent.push(world.withdrawal())["outcome"] == "accepted"
            assert not any(KEY.encode() in os.pread(one, 1 << 20, 0) for one in held)
            for one in held:
                os.close(one)
            agent.kill()
        for pid in unit.both():
            os.kill(pid, signal.SIGKILL)
        assert ask(unit.address, "GET", "/latest/meta-data/iam/security-credentials/", {})[0] != 200
        unit.kill()
        unit.start(stored=True)
        assert ask(unit.address, "GET", "/latest/meta-data/iam/security-credentials/", {})[0] != 200


@pytest.mark.slow
def test_what_is_withdrawn_while_the_unit_is_away_is_nowhere(tmp_path: Path) -> None:
    """The service manager holds for the next one what the one before had: the controller has emptied that."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            served_first(agent, world)
            until(lambda: any(KEY.encode() in one for one in unit.stored), what="the snapshot in the store")
            mark = agent.mark
            unit.kill()
            agent.wait_for("server.disconnected", after=mark)
            # Whether that unit has begun anew, and with what, is not known until it is connected to.
            assert agent.operate("/v1/bundle", method="PUT", body=world.withdrawal()).status == 503
            assert not any(KEY.encode() in one for one in unit.stored)
            agent.kill()
        unit.start(stored=True)
        assert unit.servers == []


def test_the_next_controller_empties_what_the_one_before_gave(tmp_path: Path) -> None:
    """It is given back what is kept: by its first word of its own, nobody has what was served before."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            served_first(agent, world)
            until(lambda: any(KEY.encode() in one for one in unit.stored), what="the snapshot in the store")
            held = [os.dup(fd) for _, fd in unit.manager.stored()]
            agent.kill()
        assert any(KEY.encode() in os.pread(one, 1 << 20, 0) for one in held)
        with unit.agent(world) as agent:
            agent.ready()
            assert not any(os.pread(one, 1, 0) for one in held)
        for one in held:
            os.close(one)


def test_an_acknowledgement_waits_for_a_server_that_hangs(tmp_path: Path) -> None:
    """Stopped, it can be told nothing: it is ended, and only then a withdrawal is acknowledged."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit, unit.agent(world) as agent:
        served_first(agent, world)
        stopped = unit.server()
        os.kill(stopped, signal.SIGSTOP)
        assert agent.push(world.withdrawal())["outcome"] == "accepted"
        assert stopped not in unit.servers
        assert agent.role() is None


def test_an_acknowledgement_waits_for_a_former_controllers_server(tmp_path: Path) -> None:
    """It hears nobody, and hangs: it is ended before a withdrawal is acknowledged that it never heard of."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world) as agent:
            served_first(agent, world)
            stopped = unit.server()
            os.kill(stopped, signal.SIGSTOP)
            agent.kill()
        with unit.agent(world) as agent:
            agent.started()
            assert agent.push(world.withdrawal())["outcome"] == "accepted"
            assert stopped not in unit.servers
            assert agent.role() is None


def test_one_controller_at_a_time(tmp_path: Path) -> None:
    """The newest that connects is heard; the one before says that it is not, and connects anew: nobody waits for long."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit, unit.agent(world) as agent:
        served_first(agent, world)
        mark = agent.mark
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.settimeout(DEADLINE_SECONDS)
            other.connect(str(unit.path))
            agent.wait_for("server.disconnected", after=mark)
            agent.wait_for("server.connected", after=mark)
            while other.recv(4096):
                pass  # it is told who is there, and left
        assert credential(unit.address) == KEY
        assert agent.push(world.withdrawal())["outcome"] == "accepted"
        assert agent.role() is None


def test_a_worker_is_no_controller(tmp_path: Path) -> None:
    """Also where the socket's mode would let it in: only root, and whose file it is, may be one."""
    if os.geteuid():
        pytest.skip("only root becomes another user")
    with tempfile.TemporaryDirectory(prefix="s") as directory, ServeUnit(Path(directory)) as unit:
        Path(directory).chmod(0o755)
        unit.path.chmod(0o666)
        code = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]);"
            "s.settimeout(10); print(s.recv(99))"
        )
        command = as_user([sys.executable, "-c", code, str(unit.path)], NOBODY)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.stdout == "b''\n" or "ConnectionReset" in done.stderr, done.stderr
        until(lambda: f"got user {NOBODY}" in unit.stderr, what="a word of it")


def test_a_master_that_dies_is_followed(tmp_path: Path) -> None:
    """The controller says so, connects to the next one, and that has a server which serves the same."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit, unit.agent(world) as agent:
        served_first(agent, world)
        for _ in range(2):
            mark = agent.mark
            unit.kill()
            agent.wait_for("server.disconnected", after=mark)
            until(lambda: agent.status()["servers"] == [], what="that nobody answers")
            unit.start()
            agent.wait_for("server.connected", after=mark)
            assert credential(unit.address) == KEY
        assert agent.push(world.withdrawal())["outcome"] == "accepted"
        assert agent.role() is None


def test_a_server_that_leaves_its_controller_is_ended(tmp_path: Path) -> None:
    """One that closes its link and answers on, by what it was told before, would never hear of a withdrawal."""
    world = World(tmp_path)
    prelude = (
        "import asyncio, os, signal\nfrom agent.serve import link\n"
        "begun = link.Connection.connection_made\n"
        "def leaves(self, transport):\n"
        "    begun(self, transport)\n"
        f"    if not os.path.exists({str(tmp_path / 'left')!r}):\n"
        f"        open({str(tmp_path / 'left')!r}, 'w').close()\n"
        "        asyncio.get_running_loop().call_later(0.5, transport.abort)\n"
        "link.Connection.connection_made = leaves\n"
    )
    with ServeUnit(tmp_path, prelude=prelude) as unit, unit.agent(world) as agent:
        agent.started()
        first = unit.server()
        assert unit.server(other_than=first) != first
        agent.wait_for("server.again")
        world.drop(world.seal(world.session(KEY)))
        agent.wait_for("bundle.accepted", seq=1)
        assert credential(unit.address) == KEY


def test_what_was_answered_without_a_controller_is_told_to_the_next(tmp_path: Path) -> None:
    """The server that goes on is linked to it before it is ended: no number and no line of the audit is lost."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit:
        with unit.agent(world, {"audit": {"mode": "full"}}) as agent:
            served_first(agent, world)
            agent.kill()
        for _ in range(7):
            credential(unit.address)
        before = unit.server()
        with unit.agent(world, {"audit": {"mode": "full"}}) as agent:
            agent.ready()
            until(lambda: before not in unit.servers, what="the end of the one before")
            counted = re.compile(
                r'^credential_agent_http_requests_total\{[a-z]+="worker",status="200"\} (\S+)$', re.MULTILINE
            )

            def told() -> bool:
                found = counted.search(agent.operate("/metrics").body.decode())
                return found is not None and float(found[1]) >= 21

            until(told, what="its numbers")  # which are on their way when it ends


def test_the_server_has_nothing_of_the_masters(tmp_path: Path) -> None:
    """Not the socket on which controllers connect, not the files that are kept, no other server's."""
    world = World(tmp_path)
    with ServeUnit(tmp_path) as unit, unit.agent(world) as agent:
        agent.ready()
        first = unit.server()
        os.kill(first, signal.SIGKILL)
        server = unit.server(other_than=first)

        def held(pid: int) -> set[str]:
            found = set()
            for one in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # it was closed in between
                    found.add(str(one.readlink()))
            return found

        def shared() -> set[str]:
            return {one for one in held(server) & held(unit.pid) if one.startswith("socket:")}

        until(lambda: shared() == {f"socket:[{one}]" for one in unit.inodes}, what="only what it answers with")
        assert not any("memfd" in one for one in held(server))
        assert any("memfd" in one for one in held(unit.pid))


def test_what_needs_a_controller_is_answered_as_an_outage_while_there_is_none(tmp_path: Path) -> None:
    """Clients try again what is 503: a token for a new audience, the real service; what is held is served on."""
    world, gce = World(tmp_path), GceMetadataServer()
    flavor = {"Metadata-Flavor": "Google"}
    account = "/computeMetadata/v1/instance/service-accounts/default"
    new, real = f"{account}/identity?audience=https://new.example", "/computeMetadata/v1/instance/machine-type"
    with background(gce), ServeUnit(tmp_path) as unit:
        changes = {"upstream": {"gce": gce.url}, "identity": {"fallback": ["gcp"]}}
        with unit.agent(world, changes) as agent:
            agent.ready()
            assert ask(unit.address, "GET", f"{account}/token", flavor)[0] == 200
            agent.kill()
        assert ask(unit.address, "GET", f"{account}/token", flavor)[0] == 200
        for path in (new, real):
            status, why = ask(unit.address, "GET", path, flavor)
            assert (status, b"the agent restarts" in why) == (503, True), why
        with unit.agent(world, changes) as agent:
            agent.ready()
            assert ask(unit.address, "GET", new, flavor)[0] == 200
            assert ask(unit.address, "GET", real, flavor)[0] == 200
