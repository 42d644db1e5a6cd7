"""The daemon under a service manager: what it tells, what it is passed, what it gets back, and what a restart costs."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pytest

from agent.core.model import AwsKeys
from agent.core.secret import Secret
from tests.fakes.behind import Behind
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.full_queue import FullQueue
from tests.fakes.notify_socket import NotifySocket
from tests.fakes.sts import FakeSts
from tests.system.harness import DEADLINE_SECONDS, Agent, Reply, UnixConnection, World, background, exchange, until

USER = "ASIAUSER000000000000"
MANY_PUSHES = 30
ASK = ("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path / "n") as manager:
        yield manager


class Sts:
    """An STS with one user, that counts."""

    def __init__(self) -> None:
        self.fake = FakeSts(lambda: datetime.now(UTC))
        self.key, self.secret = self.fake.user()
        self.service = Behind(handler=self.fake)

    def grant(self) -> AwsKeys:
        return AwsKeys(id="user", access_key_id=self.key, secret_access_key=Secret(self.secret), region="us-east-1")


@pytest.fixture
def sts() -> Iterator[Sts]:
    sts = Sts()
    with background(sts.service):
        yield sts


def start(world: World, manager: NotifySocket, changes: dict[str, Any] | None = None, **more: Any) -> Agent:
    """Start the daemon as the manager would: with its address, and with everything in its store."""
    environ = {"NOTIFY_SOCKET": str(manager.path), **more.pop("environ", {})}
    passed = [*more.pop("passed", ()), *manager.stored()]
    return world.agent(changes, environ=environ, passed=passed, **more)


class TestReadiness:
    def test_not_before_it_can_answer(self, world: World, manager: NotifySocket) -> None:
        """While a bundle is awaited it is not ready; it is, as soon as the bundle has come."""
        with start(world, manager, {"identity": {"grace_seconds": 60.0}}) as agent:
            agent.started()
            assert manager.silent("READY=1", 0.7)
            assert agent.push(world.seal(world.session(USER)))["outcome"] == "accepted"
            told = manager.wait_for("READY=1")
            assert "bundle" in (told.value("STATUS") or "")
            assert agent.access_key() == USER

    def test_not_before_workers_are_answered(self, world: World, manager: NotifySocket) -> None:
        """While what answers them is not there yet it is said, and who is started after us is not started."""
        late = (
            "import asyncio, signal, agent.daemon.child, agent.daemon.workers\n"
            "agent.daemon.workers.BEGINS_SECONDS = 0.1\n"
            "begin = agent.daemon.child.ServerChild.answer\n"
            "def later(*given):\n"
            "    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, begin, *given)\n"
            "agent.daemon.child.ServerChild.answer = later\n"
        )
        with start(world, manager, prelude=late) as agent:
            agent.wait_for("server.late")
            agent.started()
            assert manager.silent("READY=1", 0.7)
            agent.signal(signal.SIGUSR1)
            manager.wait_for("READY=1")

    def test_when_the_grace_is_over(self, world: World, manager: NotifySocket) -> None:
        """A worker that no bundle comes to is ready when the grace has passed, and not much later."""
        began = time.monotonic()
        with start(world, manager, {"identity": {"grace_seconds": 1.5}}):
            told = manager.wait_for("READY=1")
            assert 1.5 <= told.at - began < 1.5 + 5.0

    def test_a_longer_grace_is_no_start_that_takes_too_long(self, world: World, manager: NotifySocket) -> None:
        """The unit's limit is for the usual grace: it would end a start that waits for a bundle as it was told to."""
        with start(world, manager, {"identity": {"grace_seconds": 600.0}}) as agent:
            told = manager.wait_until(lambda told: told.value("EXTEND_TIMEOUT_USEC") is not None)
            assert int(told.value("EXTEND_TIMEOUT_USEC") or 0) > 600e6
            agent.started()

    def test_the_files_are_there_before_it_is_told(self, world: World, manager: NotifySocket) -> None:
        """Who is started after us finds the environment file: it is written before readiness is told."""
        with start(world, manager):
            manager.wait_for("READY=1")
            assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" in world.env()
            assert world.token

    def test_the_status_line_tells_who_is_served_and_no_secret(self, world: World, manager: NotifySocket) -> None:
        """`systemctl status` shows names and origins; no datagram holds a secret."""
        with start(world, manager) as agent:
            agent.ready()
            sealed = world.seal(
                world.session(USER, secret="S3CRET" * 6, token="S3CRET" * 20),
                world.google("ya29.S3CRET"),
                world.variables(OPAQUE="S3CRET"),
            )
            mark = manager.mark
            assert agent.push(sealed)["outcome"] == "accepted"
            # (What was told at the start may be told once more.)
            manager.wait_until(lambda told: "(bundle)" in (told.value("STATUS") or ""), after=mark)
            mark = manager.mark
            assert agent.push(world.withdrawal())["outcome"] == "accepted"
            manager.wait_until(lambda told: told.value("STATUS") == "aws: none, gcp: none", after=mark)
            assert agent.stop() == 0
        assert all("S3CRET" not in line for told in manager.told for line in told.lines)

    def test_what_found_no_place_is_told_again_soon(self, world: World, tmp_path: Path) -> None:
        """Readiness and signs of life, in a queue that a worker keeps full: else the manager would end what is well."""
        with FullQueue(tmp_path / "f") as manager:
            environ = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "3600000000"}
            with world.agent(environ=environ) as agent:
                agent.ready()  # so both were told, in vain
                manager.read_until("WATCHDOG=1", "READY=1")
                assert agent.stop() == 0

    def test_the_end_is_told_once(self, world: World, manager: NotifySocket) -> None:
        """SIGTERM is answered with STOPPING=1, once."""
        with start(world, manager) as agent:
            manager.wait_for("READY=1")
            assert agent.stop() == 0
            manager.wait_for("STOPPING=1")
            assert manager.count("STOPPING=1") == 1


class Deaf:
    """A manager that reads nothing until it is asked, and whose queue others can fill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))

    def fill(self) -> None:
        """Let others tell so much that nothing more is taken."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others, contextlib.suppress(BlockingIOError):
            others.setblocking(False)
            while True:
                others.sendto(b"X=1", str(self.path))

    def drain(self) -> None:
        """Read everything that is there."""
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.socket.recv(8192)

    def hear(self, line: bytes) -> None:
        """Read until a datagram begins with ``line``."""
        self.socket.settimeout(DEADLINE_SECONDS)
        while not self.socket.recv(8192).startswith(line):
            pass


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[Deaf]:
    deaf = Deaf(tmp_path / "deaf")
    with deaf.socket:
        yield deaf


class TestAManagerThatDoesNotListen:
    def test_readiness_is_told_until_it_is_taken(self, world: World, deaf: Deaf) -> None:
        """READY=1 that finds the manager's queue full is sent again: who is never ready is ended. It serves already."""
        deaf.fill()
        with world.agent(environ={"NOTIFY_SOCKET": str(deaf.path)}) as agent:
            agent.ready()
            assert agent.imds_token()
            deaf.hear(b"READY=1")
            assert agent.stop() == 0

    def test_a_purge_is_told_until_it_is_taken(self, world: World, deaf: Deaf) -> None:
        """What a withdrawal takes away is taken out of the store too, as soon as the manager listens again."""
        with world.agent(environ={"NOTIFY_SOCKET": str(deaf.path)}) as agent:
            agent.ready()
            agent.push(world.seal(world.session(USER)))
            deaf.hear(b"FDSTORE=1")
            deaf.fill()
            agent.push(world.withdrawal())
            assert agent.role() is None
            deaf.drain()
            deaf.hear(b"FDSTOREREMOVE=1")
            deaf.hear(b"FDSTORE=1")


class TestReload:
    @pytest.mark.parametrize(
        ("changes", "event"),
        [({"log": {"level": "debug"}}, "reload.applied"), ({"log": {"level": "loud"}}, "reload.refused")],
    )
    def test_it_begins_and_ends(self, world: World, manager: NotifySocket, changes: dict[str, Any], event: str) -> None:
        """A reload is RELOADING=1 with its moment, then READY=1, also when the new configuration is refused."""
        with start(world, manager) as agent:
            manager.wait_for("READY=1")
            mark, before = manager.mark, time.monotonic()
            world.write_config(changes)
            agent.signal(signal.SIGHUP)
            told = manager.wait_for("RELOADING=1", after=mark)
            assert before * 1e6 - 1 <= int(told.value("MONOTONIC_USEC") or 0) <= time.monotonic() * 1e6
            assert manager.wait_for("READY=1", after=mark).at >= told.at
            agent.wait_for(event)

    def test_whoever_asks_for_it_hears_what_came_of_it(self, world: World, manager: NotifySocket) -> None:
        """By the control socket: applied and what needs a restart, or refused and why, as the unit's reload shows it."""
        with start(world, manager) as agent:
            manager.wait_for("READY=1")
            world.write_config({"log": {"level": "debug"}, "state": {"directory": str(world.root / "elsewhere")}})
            reply = agent.operate("/v1/reload", method="POST")
            assert (reply.status, reply.json()["needs_restart"]) == (200, ["state"])
            world.write_config({"log": {"level": "loud"}})
            mark = manager.mark
            reply = agent.operate("/v1/reload", method="POST")
            assert (reply.status, reply.json()["outcome"]) == (422, "refused")
            assert "log.level" in reply.json()["reason"]
            manager.wait_for("READY=1", after=mark)

    def test_in_the_middle_of_the_start_it_anticipates_nothing(self, world: World, manager: NotifySocket) -> None:
        """A SIGHUP while a bundle is awaited is obeyed, and is not taken for readiness."""
        with start(world, manager, {"identity": {"grace_seconds": 60.0}}) as agent:
            agent.started()
            world.write_config({"identity": {"grace_seconds": 60.0}, "log": {"level": "debug"}})
            agent.signal(signal.SIGHUP)
            agent.wait_for("reload.applied")
            assert manager.silent("READY=1", 0.5)
            assert manager.count("RELOADING=1") == 0
            agent.push(world.seal(world.session(USER)))
            manager.wait_for("READY=1")

    def test_before_the_listeners_are_open_it_waits(self, world: World, manager: NotifySocket) -> None:
        """A SIGHUP while the machine is still being asked who it is costs nothing and is obeyed after the start."""
        with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and says nothing
            mute.settimeout(DEADLINE_SECONDS)
            with start(world, manager, {"upstream": {"ec2": f"http://127.0.0.1:{mute.getsockname()[1]}"}}) as agent:
                asked, _ = mute.accept()
                with asked:
                    agent.signal(signal.SIGHUP)
                    agent.wait_for("reload.applied")
                    assert [line["event"] for line in agent.lines].index("agent.started") == 0
                    assert agent.stop() == 0


class TestWatchdog:
    def test_it_is_fed(self, world: World, manager: NotifySocket) -> None:
        """With WATCHDOG_USEC it gives a sign of life at least twice in that time."""
        with start(world, manager, environ={"WATCHDOG_USEC": "900000"}) as agent:
            agent.ready()
            at = [manager.wait_for("WATCHDOG=1").at]
            for _ in range(4):
                at.append(manager.wait_until(lambda t: "WATCHDOG=1" in t.lines and t.at > at[-1]).at)
            assert max(b - a for a, b in itertools.pairwise(at)) < 0.9

    def test_where_nobody_watches_nothing_is_fed(self, world: World, manager: NotifySocket) -> None:
        """Without WATCHDOG_USEC, or with another process's, nothing is fed."""
        with start(world, manager, environ={"WATCHDOG_USEC": "30000", "WATCHDOG_PID": "1"}) as agent:
            agent.ready()
            assert manager.silent("WATCHDOG=1", 0.3)

    def test_a_stuck_loop_starves_it(self, world: World, manager: NotifySocket) -> None:
        """A controller that does not come round any more is not fed for, though the listeners still answer."""
        stuck = (
            "import signal, threading, asyncio\n"
            "import agent.daemon.ready, agent.controller\n"
            "agent.daemon.ready.STALE_LOOP_SECONDS -= 89.0\n"
            "caught = threading.Event()\n"
            "sleep = agent.controller.Controller._sleep\n"
            "async def hangs(self, seconds):\n"
            "    if caught.is_set():\n"
            "        await asyncio.Event().wait()\n"
            "    await sleep(self, min(seconds, 0.1))\n"
            "agent.controller.Controller._sleep = hangs\n"
            "signal.signal(signal.SIGWINCH, lambda *_: caught.set())\n"
        )
        with start(world, manager, environ={"WATCHDOG_USEC": "300000"}, prelude=stuck) as agent:
            agent.ready()
            mark = manager.mark
            for _ in range(20):  # two seconds of health: longer than the loop may stand still
                mark = manager.mark
                manager.wait_for("WATCHDOG=1", after=mark)
            agent.signal(signal.SIGWINCH)
            until(lambda: manager.silent("WATCHDOG=1", 0.6, after=manager.mark), what="the silence")
            assert agent.status()["version"]


def listener(port: int = 0) -> socket.socket:
    """A socket as systemd holds it: bound and listening before the daemon is there."""
    sock = socket.create_server(("127.0.0.1", port), backlog=4096)
    sock.settimeout(DEADLINE_SECONDS)
    return sock


def unix_listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen(64)
    return sock


class TestSocketActivation:
    def test_it_binds_nothing_of_its_own(self, world: World) -> None:
        """Passed sockets are used as they are: no other address is bound, and the control socket's file stays."""
        path = world.root / "run" / "passed"
        with listener() as http_, listener() as second, unix_listener(path) as control:
            passed = [("http", http_.fileno()), ("control", control.fileno()), ("http", second.fileno())]
            config = {"listen": {"http": ["127.0.0.1:1"]}}  # could not be bound by anybody but root, and is not
            with world.agent(config, passed=passed) as agent:
                started = agent.wait_for("agent.started")
                ports = [sock.getsockname()[1] for sock in (http_, second)]
                assert started["http"] == [f"127.0.0.1:{port}" for port in ports]
                agent.ready()
                assert not (world.root / "run" / "control").exists()
                for port in ports:
                    client = http.client.HTTPConnection("127.0.0.1", port)
                    assert exchange(client, *ASK).status == 200
                assert exchange(UnixConnection(path), "GET", "/v1/status").status == 200
                assert exchange(UnixConnection(path), "PUT", "/v1/bundle", None, world.seal(world.session(USER))).json()
                assert agent.access_key() == USER
                assert agent.stop() == 0
            assert path.exists()

    def test_who_comes_early_waits(self, world: World) -> None:
        """Requests that come before there is a daemon wait in the queue, on both sockets, and are answered."""
        path = world.root / "run" / "passed"
        sealed = world.seal(world.session(USER))
        replies: list[Reply] = []
        with listener() as http_, unix_listener(path) as control:
            early = http.client.HTTPConnection("127.0.0.1", http_.getsockname()[1], timeout=DEADLINE_SECONDS)
            early.request(*ASK[:2], headers=ASK[2])
            push = UnixConnection(path)
            push.request("PUT", "/v1/bundle", sealed)
            with world.agent(passed=[("http", http_.fileno()), ("control", control.fileno())]) as agent:
                replies.append(Reply(push.getresponse()))
                replies.append(Reply(early.getresponse()))
                assert [reply.status for reply in replies] == [200, 200]
                assert agent.access_key() == USER
            early.close()
            push.close()

    def test_inherited_variables_are_not_ours(self, world: World) -> None:
        """LISTEN_FDS of another process is ignored: the configured address is bound."""
        with world.agent(environ={"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:control"}) as agent:
            agent.ready()
            assert agent.imds_token()


class TestKeptCredentials:
    def test_a_killed_daemon_goes_on_without_a_mint(self, world: World, manager: NotifySocket, sts: Sts) -> None:
        """Killed and started again, the same credential is served, and STS was not asked."""
        changes = {"mint": {"sts_endpoint": sts.service.url}}
        with start(world, manager, changes) as agent:
            agent.ready()
            agent.push(world.seal(sts.grant()))
            until(lambda: agent.role() is not None, what="the credential")
            before = agent.credential()
            manager.wait_content("credentials", lambda data: before["AccessKeyId"].encode() in data)
            agent.kill()
        assert sts.fake.operations() == ["GetSessionToken"]
        for _ in range(2):  # what was handed over is handed over again: it is kept on
            with start(world, manager, changes) as agent:
                assert agent.wait_for("credentials.restored")["count"] == 1
                agent.ready()
                after = agent.credential()
                assert {k: after[k] for k in ("AccessKeyId", "SecretAccessKey", "Token", "Expiration")} == {
                    k: before[k] for k in ("AccessKeyId", "SecretAccessKey", "Token", "Expiration")
                }
                agent.kill()
        assert sts.fake.operations() == ["GetSessionToken"]

    def test_without_a_store_it_is_minted_anew(self, world: World, manager: NotifySocket, sts: Sts) -> None:
        """The counter-example: with an empty store the next process has to ask STS."""
        changes = {"mint": {"sts_endpoint": sts.service.url}}
        for runs in (1, 2):
            with start(world, manager, changes) as agent:
                agent.ready()
                if runs == 1:
                    agent.push(world.seal(sts.grant()))
                until(lambda: agent.role() is not None, what="the credential")
                agent.kill()
            manager.drop()
            assert sts.fake.operations() == ["GetSessionToken"] * runs

    def test_a_withdrawal_purges_what_is_kept(self, world: World, manager: NotifySocket, sts: Sts) -> None:
        """After a withdrawal systemd holds nothing of the credential, and the next process serves nothing."""
        changes = {"mint": {"sts_endpoint": sts.service.url}}
        with start(world, manager, changes) as agent:
            agent.ready()
            agent.push(world.seal(sts.grant(), world.google("ya29.kept")))
            until(lambda: agent.role() is not None, what="the credential")
            manager.wait_content("credentials", lambda data: b"ASIA" in data and b"ya29.kept" in data)
            agent.push(world.withdrawal())
            manager.wait_content("credentials", lambda data: b"ASIA" not in data and b"ya29" not in data)
            agent.kill()
        with start(world, manager, changes) as agent:
            agent.ready()
            assert agent.role() is None

    def test_one_file_is_kept_however_often_it_changes(self, world: World, manager: NotifySocket) -> None:
        """Each new bundle replaces what is kept; the store of eight does not fill up."""
        with start(world, manager) as agent:
            agent.ready()
            for number in range(MANY_PUSHES):
                agent.push(world.seal(world.session(f"ASIAUSER0000000000{number:02d}")))
            last = f"ASIAUSER0000000000{MANY_PUSHES - 1:02d}".encode()
            data = manager.wait_content("credentials", lambda data: last in data)
            assert data.count(b"ASIA") == 1

    def test_of_another_bundle(self, world: World, manager: NotifySocket, sts: Sts) -> None:
        """What was kept of an older bundle is not served under a newer one."""
        changes = {"mint": {"sts_endpoint": sts.service.url}}
        with start(world, manager, changes) as agent:
            agent.ready()
            agent.push(world.seal(sts.grant()))
            until(lambda: agent.role() is not None, what="the credential")
            old = agent.access_key()
            agent.kill()
        stored = manager.content("credentials")[0]
        manager.drop()
        with start(world, manager, changes) as agent:
            agent.ready()
            agent.push(world.seal(sts.grant(), world.variables(ANOTHER="bundle")))
            until(lambda: agent.role() is not None, what="the credential")
            agent.kill()
        manager.drop()
        manager.put("credentials", stored)
        with start(world, manager, changes) as agent:
            assert agent.wait_for("credentials.restored")["count"] == 0
            until(lambda: agent.role() is not None, what="the credential")
            assert agent.access_key() != old

    def test_of_another_machine(self, world: World, manager: NotifySocket) -> None:
        """What was the identity of the machine that this one was copied from is not served."""
        ec2 = Ec2MetadataService()
        ec2.attach("worker-role", Key("ASIAMACHINE000000001", "machine-secret", "machine-token"))
        with background(ec2):
            changes = {"upstream": {"ec2": ec2.url}}
            with start(world, manager, changes) as agent:
                agent.ready()
                assert agent.access_key() == "ASIAMACHINE000000001"
                manager.wait_content("credentials", lambda data: b"ASIAMACHINE000000001" in data)
                agent.kill()
            ec2.attach("worker-role", Key("ASIAMACHINE000000002", "machine-secret", "machine-token"))
            with start(world, manager, {**changes, "identity": {"instance_id": "i-2"}}) as agent:
                assert agent.wait_for("credentials.restored")["count"] == 0
                agent.ready()
                assert agent.access_key() == "ASIAMACHINE000000002"

    @pytest.mark.parametrize(
        "garbage",
        [
            b"",
            b"{",
            b"\xff\xfe",
            b"[" * 100_000,
            b"[]",
            b'{"instance_id":"config:i-1","credentials":[{}]}',
            b"x" * (1 << 21),
        ],
        ids=["empty", "cut", "no-text", "deep", "old", "incomplete", "long"],
    )
    def test_a_kept_file_that_makes_no_sense_costs_a_mint(
        self, world: World, manager: NotifySocket, garbage: bytes
    ) -> None:
        """A kept file that makes no sense costs nothing but a mint."""
        world.drop(world.seal(world.session(USER)))
        manager.put("credentials", garbage)
        with start(world, manager) as agent:
            agent.ready()
            agent.wait_for("bundle.accepted")
            assert agent.access_key() == USER
            manager.wait_content("credentials", lambda data: USER.encode() in data)


class Load:
    """Clients that ask for the credential without a pause, and note what became of each request.

    Attributes:
        keys: the access keys that were answered, with how often.
        retried: requests whose connection broke in the middle and that were sent again, as SDKs do.
        failed: what went wrong otherwise.
    """

    CLIENTS = 16

    def __init__(self, host: str, port: int, token: str, *, retries: int) -> None:
        self.keys: dict[str, int] = {}
        self.retried = 0
        self.failed: list[str] = []
        self._where, self._token, self._retries = (host, port), token, retries
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._plain, daemon=True) for _ in range(self.CLIENTS)]
        self._threads.append(threading.Thread(target=self._boto3, daemon=True))

    def _note(self, key: str) -> None:
        with self._lock:
            self.keys[key] = self.keys.get(key, 0) + 1

    def _plain(self) -> None:
        while not self._stop.is_set():
            left = self._retries
            while True:
                connection = http.client.HTTPConnection(*self._where, timeout=DEADLINE_SECONDS)
                try:
                    reply = exchange(connection, "GET", "/v1/credentials", {"Authorization": self._token})
                    assert reply.status == 200, reply
                    self._note(reply.json()["AccessKeyId"])
                except (ConnectionResetError, BrokenPipeError, http.client.IncompleteRead) as error:
                    # (RemoteDisconnected is a ConnectionResetError.) Nobody can save a request that was being
                    # answered when the process was killed; nobody may be refused.
                    if left:
                        left -= 1
                        with self._lock:
                            self.retried += 1
                        continue
                    self._fail(error)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed call
                    self._fail(error)
                break

    def _boto3(self) -> None:
        from botocore.credentials import InstanceMetadataProvider
        from botocore.utils import InstanceMetadataFetcher

        while not self._stop.is_set():
            fetcher = InstanceMetadataFetcher(
                timeout=DEADLINE_SECONDS, num_attempts=5, base_url="http://{}:{}".format(*self._where), env={}
            )
            found = InstanceMetadataProvider(iam_role_fetcher=fetcher).load()
            if found is None:
                self._fail(AssertionError("botocore found no credential"))
            else:
                self._note(str(found.get_frozen_credentials().access_key))

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self.failed.append(f"{type(error).__name__}: {error}")

    def total(self) -> int:
        with self._lock:
            return sum(self.keys.values())

    def reach(self, total: int) -> None:
        """Wait for so many answers."""
        until(lambda: self.total() >= total, what=f"{total} answers")

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "retries"),
    [(Agent.kill, 1), (Agent.stop, 0)],
    ids=["kill", "restart"],
)
def test_a_restart_under_load_loses_no_request(
    world: World, manager: NotifySocket, sts: Sts, end: Callable[[Agent], object], retries: int
) -> None:
    """Five restarts under seventeen looping clients: no call fails, one credential throughout, one call to STS.

    An orderly restart breaks no connection at all. ``kill -9`` breaks those that were being answered at that instant;
    sent again once, as every SDK does, they are answered, and nobody is ever refused or waits in vain.
    """
    path = world.root / "run" / "passed"
    changes = {"mint": {"sts_endpoint": sts.service.url}}
    with ExitStack() as stack:
        http_ = stack.enter_context(listener())
        control = stack.enter_context(unix_listener(path))
        passed = [("http", http_.fileno()), ("control", control.fileno())]
        agent = stack.enter_context(start(world, manager, changes, passed=passed))
        agent.ready()
        pushed = exchange(UnixConnection(path), "PUT", "/v1/bundle", None, world.seal(sts.grant())).json()
        assert pushed["outcome"] == "accepted"
        until(lambda: agent.role() is not None, what="the credential")
        key = str(agent.access_key())
        manager.wait_content("credentials", lambda data: key.encode() in data)
        host, port = http_.getsockname()[:2]
        gaps: list[float] = []
        with Load(host, port, world.token, retries=retries) as load:
            for _ in range(5):
                goal = load.total() + 200
                load.reach(goal)
                gaps.append(-time.monotonic())
                end(agent)
                agent = stack.enter_context(start(world, manager, changes, passed=passed)).started()
                gaps[-1] = round(gaps[-1] + time.monotonic(), 2)
            goal = load.total() + 200
            load.reach(goal)
    print(json.dumps({"answers": load.total(), "retried": load.retried, "failed": load.failed, "gaps": gaps}))
    assert load.failed == []
    assert list(load.keys) == [key]
    assert load.retried <= 5 * (Load.CLIENTS + 1)
    assert sts.fake.operations() == ["GetSessionToken"]
