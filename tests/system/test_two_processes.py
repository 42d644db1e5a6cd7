"""What answers workers is a process that holds nothing: either may end at any moment, and nobody is served wrongly."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import tempfile
import threading
from datetime import datetime
from pathlib import Path

import pytest

from agent.host.slices import SLICE_SECONDS, slice_seconds
from agent.host.sockdiag import NETLINK_SOCK_DIAG
from tests.fakes.notify_socket import NotifySocket
from tests.system.harness import NOBODY, Agent, World, until


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def master_of(agent: Agent) -> int:
    (master,) = children(agent.process.pid)
    return master


def server_of(agent: Agent, *, other_than: int = 0) -> int:
    """The process that answers, once there is another than that."""

    def look() -> int:
        return next((one for one in children(master_of(agent)) if one != other_than), 0)

    return until(look, what="a server")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def holds(pid: int, what: bytes) -> bool:
    """Whether it stands anywhere in the memory that a process may write."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for low, high in re.findall(
            r"^([0-9a-f]+)-([0-9a-f]+) rw", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE
        ):
            memory.seek(int(low, 16))
            try:
                if what in memory.read(int(high, 16) - int(low, 16)):
                    return True
            except OSError:
                continue  # a mapping of the kernel's
    return False


def test_a_server_that_is_killed_costs_nobody_anything(tmp_path: Path) -> None:
    """Whoever asks after it has its answer: the connection waits in the kernel's queue for the successor."""
    world = World(tmp_path)
    with world.agent() as agent:
        agent.ready()
        world.drop(world.seal(world.session("ASIAUSER000000000001")))
        agent.wait_for("bundle.accepted", seq=1)
        seen = {server_of(agent)}
        for _ in range(5):
            before = server_of(agent)
            os.kill(before, signal.SIGKILL)
            assert agent.credential()["AccessKeyId"] == "ASIAUSER000000000001"
            seen.add(server_of(agent, other_than=before))
        assert len(seen) == 6
        assert [line["times"] for line in agent.events("server.again")] == [1]  # and once a minute
        assert not agent.events("server.gone")


def test_whoever_answers_runs_in_short_slices(tmp_path: Path) -> None:
    """Those who wait for an answer do not wait for every program that computes; the agent itself takes its turns."""
    world = World(tmp_path)
    with world.agent() as agent:
        agent.ready()
        known = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 12)
        assert slice_seconds(server_of(agent)) == (SLICE_SECONDS if known else 0)
        assert slice_seconds(agent.process.pid) != SLICE_SECONDS


def test_clients_that_ask_all_the_while_find_one_identity(tmp_path: Path) -> None:
    """Under kills a request may be cut off with the server that had it; what is answered is always the right thing."""
    world = World(tmp_path)
    with world.agent() as agent:
        agent.ready()
        world.drop(world.seal(world.session("ASIAUSER000000000002")))
        agent.wait_for("bundle.accepted", seq=1)
        stop = threading.Event()
        wrong: list[object] = []
        answered = []

        def ask() -> None:
            while not stop.is_set():
                try:
                    found = agent.credential()["AccessKeyId"]
                except OSError:
                    continue  # its server was killed under it; SDKs ask again
                answered.append(found)
                if found != "ASIAUSER000000000002":
                    wrong.append(found)

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for one in askers:
            one.start()
        for _ in range(10):
            os.kill(server_of(agent), signal.SIGKILL)
            count = len(answered)
            until(lambda count=count: len(answered) > count + 4, what="answers of the successor")  # type: ignore[misc]
        stop.set()
        for one in askers:
            one.join()
        assert not wrong
        assert not any("Traceback" in line for line in agent.stderr.splitlines())


def test_the_server_holds_only_what_workers_may_have(tmp_path: Path) -> None:
    """A variable of the bundle, which is no worker's to ask for here, and the worker's key are nowhere in its memory."""
    if os.geteuid():
        pytest.skip("only root reads another process's memory")
    world = World(tmp_path)
    secret = "variable-" + "q" * 30
    with world.agent() as agent:
        agent.ready()
        world.drop(world.seal(world.session(secret="served-" + "s" * 33), world.variables(TOKEN=secret)))
        agent.wait_for("bundle.accepted", seq=1)
        agent.credential()
        server, master = server_of(agent), master_of(agent)
        assert holds(server, b"served-" + b"s" * 33)
        assert holds(agent.process.pid, secret.encode())
        assert not holds(server, secret.encode())
        assert not holds(master, secret.encode())
        assert not holds(master, b"served-" + b"s" * 33)


def test_neither_can_do_more_than_it_must(tmp_path: Path) -> None:
    """Both are filtered, the server twice; it has no file open but its own figures, and no socket but to answer and to us."""
    world = World(tmp_path)
    with world.agent() as agent:
        agent.ready()
        server, master = server_of(agent), master_of(agent)
        for pid in (server, master):
            status = Path(f"/proc/{pid}/status").read_text()
            assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
            assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
            assert Path(f"/proc/{pid}/environ").read_bytes() == b""
        kinds = [str(one.readlink()) for one in Path(f"/proc/{server}/fd").iterdir() if int(one.name) > 2]
        own = rf"socket:|pipe:|anon_inode:|/dev/null|/proc/{server}/stat$"
        assert all(re.match(own, kind) for kind in kinds), sorted(kinds)


def test_under_a_service_manager_they_are_the_same(tmp_path: Path) -> None:
    """The sockets that it passes are the server's, the one among them that asks the kernel who asks, too."""
    world = World(tmp_path)
    with (
        NotifySocket(tmp_path / "n") as manager,
        socket.create_server(("127.0.0.1", 0)) as http,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as asking,
        world.agent(
            environ={"NOTIFY_SOCKET": str(manager.path)},
            passed=[("http", http.fileno()), ("control", asking.fileno())],
        ) as agent,
    ):
        manager.wait_for("READY=1")
        passed = {os.fstat(one.fileno()).st_ino for one in (http, asking)}
        world.drop(world.seal(world.session("ASIAUSER000000000005")))
        agent.wait_for("bundle.accepted", seq=1)
        before = 0
        for _ in range(3):
            server = server_of(agent, other_than=before)
            held = set()
            for one in Path(f"/proc/{server}/fd").iterdir():
                with contextlib.suppress(
                    FileNotFoundError
                ):  # it looked at the queues until it answered, and has closed that
                    held.add(one.stat().st_ino)
            assert passed <= held
            os.kill(server, signal.SIGKILL)
            before = server
            assert agent.credential()["AccessKeyId"] == "ASIAUSER000000000005"
        assert agent.stop() == 0


def test_status_and_metrics_know_who_answers(tmp_path: Path) -> None:
    """Which process, since when, what it serves, how often it was replaced, and what each of the three uses."""
    world = World(tmp_path)
    with world.agent() as agent:
        agent.ready()
        first = server_of(agent)
        told = next(one for one in agent.status()["servers"] if not one["stands_by"])
        assert (told["pid"], told["newest"], told["apart"]) == (first, True, True)
        assert agent.status()["servers_replaced"] == 0
        os.kill(first, signal.SIGKILL)
        second = server_of(agent, other_than=first)
        after = until(
            lambda: [one for one in agent.status()["servers"] if one["pid"] == second and one["newest"]], what="it"
        )
        assert datetime.fromisoformat(after[0]["since"]) >= datetime.fromisoformat(told["since"])
        until(lambda: agent.status()["servers_replaced"] == 1, what="the count")  # another process says so
        scraped = agent.operate("/metrics").body.decode()
        for process in ("agent", "server", "master"):
            found = re.search(
                rf'^credential_agent_resident_memory_bytes{{process="{process}"}} (\S+)$', scraped, re.MULTILINE
            )
            assert found is not None, process
            assert float(found[1]) > 1e6
        assert 'credential_agent_servers{process="server"} 1.0' in scraped


def test_they_end_with_the_agent(tmp_path: Path) -> None:
    """However it ends: nobody goes on to serve for it, and the next one has its address."""
    world = World(tmp_path)
    for end in ("kill", "stop"):
        with world.agent() as agent:
            agent.ready()
            processes = [server_of(agent), master_of(agent)]
            getattr(agent, end)()
            until(lambda: not any(map(is_running, processes)), what="their end")  # noqa: B023 - called here


def test_where_none_can_be_started_the_agent_answers_itself() -> None:
    """A user who may not execute the interpreter by its path is served all the same, and the log says so."""
    if os.geteuid():
        pytest.skip("only root becomes another user")
    with tempfile.TemporaryDirectory(prefix="w") as directory:
        world = World(Path(directory))
        for path in (world.root, *world.root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        _is_served(world)


def _is_served(world: World) -> None:
    with world.agent(user=NOBODY) as agent:
        agent.ready()
        world.drop(world.seal(world.session("ASIAUSER000000000004")))
        agent.wait_for("bundle.accepted", seq=1)
        assert agent.credential()["AccessKeyId"] == "ASIAUSER000000000004"
        # Whether one can depends on where this Python is.
        assert bool(agent.events("server.gone")) is not bool(children(agent.process.pid))
        assert agent.stop() == 0


def test_without_its_master_the_agent_answers_itself(tmp_path: Path) -> None:
    """Nobody can begin a server any more: workers are served all the same, and the log says so."""
    world = World(tmp_path)
    with world.agent() as agent:
        agent.ready()
        world.drop(world.seal(world.session("ASIAUSER000000000003")))
        agent.wait_for("bundle.accepted", seq=1)
        os.kill(master_of(agent), signal.SIGKILL)
        agent.wait_for("server.gone")
        assert agent.credential()["AccessKeyId"] == "ASIAUSER000000000003"
        assert agent.push(world.withdrawal())["outcome"] == "accepted"
        assert agent.role() is None
        assert not agent.events("server.unconfirmed")  # nobody is left who could serve it
        assert agent.stop() == 0
