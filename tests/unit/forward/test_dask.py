"""A real Dask cluster, each worker with an agent of its own: who is there, who comes, who comes back, who leaves."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.core.errors import UsageError
from agent.core.model import AwsSession
from agent.forward import State
from agent.forward.on_dask import Dask
from agent.forward.wanted import begin
from tests.fakes.relay import Relay
from tests.unit.forward.agents import CourierAgent
from tests.unit.forward.support import World, now, verifier

distributed = pytest.importorskip("distributed")

PYTHON = os.environ.get("FORWARD_DASK_PYTHON", sys.executable)
"""The interpreter of the scheduler and the workers; another than ours may have another version of distributed."""


class Cluster:
    """A scheduler and workers, each a process of its own with nothing of ours to import."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.started: list[subprocess.Popen[bytes]] = []
        self.file = world.home / "scheduler.json"
        self.run(
            "distributed.cli.dask_scheduler",
            "--port",
            "0",
            "--no-dashboard",
            "--no-jupyter",
            "--scheduler-file",
            self.file,
        )
        self.client: Any = None

    def run(self, module: str, *arguments: object, **variables: str) -> subprocess.Popen[bytes]:
        log = (self.world.home / f"{len(self.started)}.log").open("wb")
        # Not even the folder that we stand in can be imported from. (Before 3.11 Python has no such option.)
        safe = ["-P"] if sys.executable == PYTHON else []
        process = subprocess.Popen(
            [PYTHON, *safe, "-m", module, *map(str, arguments)],
            cwd=self.world.home,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.world.home),
                "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__GIL__ENABLED": "false",
                **variables,
            },
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        log.close()
        self.started.append(process)
        return process

    def worker(
        self, name: str, *more: str, machine: CourierAgent | None = None, agent: str | None = None
    ) -> subprocess.Popen[bytes]:
        """A worker on a machine of that name, which is made unless one is there already."""
        agent = agent or name
        if machine is None and agent not in self.world.agents:
            self.world.machine(agent)
        return self.run(
            "distributed.cli.dask_worker",
            "--scheduler-file",
            self.file,
            "--name",
            name,
            "--no-dashboard",
            "--nthreads",
            "1",
            *(more or ("--no-nanny",)),
            CREDENTIAL_AGENT_COURIER=str(self.world.courier.sockets[f"{agent}-0"]),
        )

    def connect(self, **more: Any) -> Any:
        return distributed.Client(scheduler_file=str(self.file), set_as_default=False, timeout="60s", **more)

    def close(self) -> None:
        for process in reversed(self.started):
            process.terminate()
            process.send_signal(signal.SIGCONT)  # whoever was stopped hears it
        for process in self.started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with World(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def cluster(world: World) -> Iterator[Cluster]:
    made = Cluster(world)
    try:
        yield made
    finally:
        made.close()


def forward(world: World, client: Any, reconnect: Any = None, **wanted: Any) -> Any:
    given = {"gcp": None, "signer": world.signer, "progress": False, **wanted}
    return begin(
        # A slow machine is no reason to let a newcomer go without.
        lambda session, issuer: Dask(client, session=session, issuer=issuer, patience=120.0, reconnect=reconnect),
        given,
        lazy=lambda made: made.in_its_loop,
        verify=verifier,
    )


# What a task does: it asks its machine's agent whose bundle it serves.
PROBE = (
    "(lambda n: (exec('''import os, json, socket, http.client\\n"
    'c = http.client.HTTPConnection("localhost")\\n'
    "c.sock = socket.socket(socket.AF_UNIX)\\n"
    'c.sock.connect(os.environ["CREDENTIAL_AGENT_COURIER"])\\n'
    'c.request("GET", "/v1/status")\\n'
    "found = json.loads(c.getresponse().read())[\"bundle\"]\\n''', n), n['found'])[1])({})"
)


class Queues:
    """On the scheduler: the names of its queues. Nothing of ours is there, so it goes as text."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("lambda dask_scheduler: list(dask_scheduler.extensions['queues'].queues)",)

    def __call__(self) -> None:
        raise AssertionError


def self_signed(directory: Path) -> tuple[str, str]:
    """The files of a key and of a certificate of it, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cluster")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now() - timedelta(days=1))
        .not_valid_after(now() + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "tls.key").write_bytes(pem)
    (directory / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return str(directory / "tls.key"), str(directory / "tls.crt")


@pytest.mark.slow
def test_present_and_future_workers_are_served_before_their_first_task(world: World, cluster: Cluster) -> None:
    """A task that waits for a newcomer finds the identity there; several workers of a machine are one."""
    cluster.worker("one")
    cluster.worker("two", agent="one")
    with cluster.connect() as client:
        client.wait_for_workers(2, timeout=60)
        with forward(world, client) as f:
            assert f.status().served == 2
            assert len(world.agents["one"].accepted) == 1
            # The task is there before the worker is.
            waiting = client.submit(eval, PROBE, resources={"late": 1}, pure=False)
            cluster.worker("late", "--no-nanny", "--resources", "late=1")
            assert waiting.result(timeout=60) is not None
            late = world.agents["late"]
            with late.changed:
                assert late.changed.wait_for(lambda: bool(late.accepted), 30)
        assert all(machine.bundle is None for machine in world.agents.values())
        forward(world, client).close()  # before the scheduler knows of it
        assert client.run_on_scheduler(Queues()) == []
    # The scheduler is somebody's who did not ask for any of this.
    assert "Traceback" not in (world.home / "0.log").read_text()


@pytest.mark.slow
def test_a_nanny_that_restarts_a_worker_and_a_client_that_is_opened_again(world: World, cluster: Cluster) -> None:
    """A worker that was killed finds the identity of its machine; another client forwards as the first did."""
    cluster.worker("one", "--nanny")
    with cluster.connect() as client:
        client.wait_for_workers(1, timeout=60)
        with forward(world, client, on_exit="keep") as f:
            client.restart(timeout=60)
            assert client.submit(eval, PROBE, pure=False).result(timeout=60) is not None
            assert f.refresh().served == 1
    with cluster.connect() as client:
        client.wait_for_workers(1, timeout=60)
        with forward(world, client) as f:
            assert f.status().served == 1
            # The client is closed under it: no error, and the status says what is the matter.
            client.close()
        assert "closed" in str(f.status().trouble)
    assert world.agents["one"].bundle is not None


@pytest.mark.slow
def test_a_client_that_the_network_closed(world: World, cluster: Cluster) -> None:
    """Nobody waits for a forwarding whose client is gone; one that may connect anew goes on, for newcomers too."""
    cluster.worker("one")
    with cluster.connect() as client:
        client.wait_for_workers(1, timeout=60)
        abandoned = forward(world, client, on_exit="keep")
        client.close()
    with cluster.connect() as watching, ExitStack() as opened:
        cluster.worker("late")
        watching.wait_for_workers(2, timeout=60)
        assert not world.agents["late"].accepted
        boxes = watching.run_on_scheduler(Queues())
        assert len(boxes) == 1, boxes  # that of the forwarding; a newcomer that waits has one of its own
        abandoned.close()

        second = cluster.connect()
        with forward(world, second, reconnect=lambda: opened.enter_context(cluster.connect())) as f:
            assert f.status().served == 2
            second.close()
            f.refresh()
            waiting = watching.submit(eval, PROBE, resources={"later": 1}, pure=False)
            cluster.worker("later", "--no-nanny", "--resources", "later=1")
            later = world.agents["later"]
            with later.changed:
                assert later.changed.wait_for(lambda: bool(later.accepted), 60)
            assert waiting.result(timeout=60) is not None
        assert {machine.bundle for machine in world.agents.values()} == {None}


@pytest.mark.slow
def test_a_cluster_with_tls_and_adaptive_workers_and_two_clients(world: World, tmp_path: Path) -> None:
    """TLS needs no evidence if so asked; an autoscaler's workers are served in time; two clients leave each other be."""
    key, certificate = self_signed(tmp_path)
    security = distributed.Security(
        tls_ca_file=certificate,
        require_encryption=True,
        **{
            f"tls_{role}_{part}": path
            for role in ("client", "scheduler", "worker")
            for part, path in (("cert", certificate), ("key", key))
        },
    )
    one = world.machine("one")
    one.evidence = lambda *_: []
    world.monkeypatch.setenv("CREDENTIAL_AGENT_COURIER", str(world.courier.sockets["one-0"]))
    with (
        distributed.LocalCluster(
            n_workers=0, threads_per_worker=1, dashboard_address=":0", protocol="tls://", security=security
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as first,
        forward(world, first, without_evidence=True) as f,
        distributed.Client(cluster, set_as_default=False) as second,
    ):
        assert f.status().workers == ()
        cluster.adapt(minimum=1, maximum=2)
        found = first.gather(first.map(eval, [PROBE] * 8, pure=False))
        assert None not in found
        with forward(world, second, without_evidence=True) as other:
            assert other.status().served
        with one.changed:
            assert one.changed.wait_for(lambda: one.bundle is not None, 30)
        assert second.submit(eval, PROBE, pure=False).result(timeout=60) is not None
    assert one.bundle is None


@pytest.mark.slow
def test_who_is_in_the_middle_learns_nothing_and_alters_nothing(world: World, cluster: Cluster) -> None:
    """On tcp:// somebody hears all and changes what he likes: no secret passes, and what he changed is not served."""
    cluster.worker("one")
    honest = cluster.connect()
    honest.wait_for_workers(1, timeout=60)
    host, port = honest.scheduler.address.removeprefix("tcp://").rsplit(":", 1)
    honest.close()
    one = world.agents["one"]
    with Relay((host, int(port))) as relay:
        with distributed.Client(relay.address, set_as_default=False) as client, forward(world, client) as f:
            assert f.status().served == 1
            assert one.bundle is not None
            (grant,) = one.bundle.grants
            assert isinstance(grant, AwsSession)
            told = [grant.secret_access_key.reveal(), grant.session_token.reveal()]
        # What Dask carries for us is text in base64, and Dask may have packed it.
        heard = relay.heard
        assert b"/v1/bundle" in heard
        for secret in told:
            for width in range(3):
                piece = base64.b64encode(b"x" * width + secret.encode())[4:40]
                assert piece not in heard
            assert secret.encode() not in heard

    key, other = one.key.recipient_key(), type(one.key).generate().recipient_key()

    def another_key(piece: bytes) -> bytes:
        # The key that the worker tells is replaced by his own, wherever it is told.
        mine, his = key.public_jwk(), other.public_jwk()
        for name in ("x", "y"):
            piece = piece.replace(str(mine[name]).encode(), str(his[name]).encode())
        return piece.replace(key.kid.encode(), other.kid.encode())

    def another_byte(piece: bytes) -> bytes:
        # Bundles are JSON in base64; a character in the middle of one becomes another.
        at = piece.find(b"/v1/bundle")
        if at < 0 or len(piece) < at + 900:
            return piece
        spot = at + 700
        return piece[:spot] + (b"B" if piece[spot : spot + 1] != b"B" else b"C") + piece[spot + 1 :]

    for change, states in (
        (another_key, {State.EVIDENCE}),
        (another_byte, {State.REFUSED, State.UNREACHABLE}),
    ):
        before = list(one.accepted)
        with (
            Relay((host, int(port)), change) as relay,
            distributed.Client(relay.address, set_as_default=False) as client,
        ):
            with forward(world, client) as f:
                (status,) = f.status().workers
                assert status.state in states, status
                assert status.reason
            assert one.accepted == before


@pytest.mark.slow
def test_an_asynchronous_client(world: World, cluster: Cluster) -> None:
    """In the loop of an asynchronous client nothing may block: ``async with``."""
    cluster.worker("one")

    async def main() -> None:
        async with cluster.connect(asynchronous=True) as client:
            await client.wait_for_workers(1, timeout=60)
            async with forward(world, client) as f:
                assert f.status().served == 1
                for stops in (f.refresh, f.close):
                    with pytest.raises(UsageError, match="would stop its loop"):
                        stops()
                assert (await asyncio.to_thread(f.refresh)).served == 1
                assert await client.submit(eval, PROBE, pure=False) is not None
            assert f.status().workers[0].state is State.WAITING

    asyncio.run(main())
    assert world.agents["one"].bundle is None


@pytest.mark.slow
def test_a_notebook_whose_thread_runs_a_loop(world: World, cluster: Cluster) -> None:
    """A cell of Jupyter runs within a loop, and its client in a thread of its own: a plain ``with`` is right there."""
    cluster.worker("one")

    async def cell() -> None:
        with cluster.connect() as client:
            client.wait_for_workers(1, timeout=60)
            with forward(world, client) as f:
                assert f.refresh().served == 1

    asyncio.run(cell())
    assert world.agents["one"].bundle is None
