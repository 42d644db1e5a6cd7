"""A machine that sleeps or is paused: the real daemon under clocks that do what a kernel's do, and a real client."""

from __future__ import annotations

import asyncio
import hashlib
import json
import mmap
import shutil
import signal
import struct
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.core.model import HttpBroker
from tests.fakes.net import Answer, Asked, Fault, serve
from tests.system.harness import Agent, World, background, until

SHIM = Path(__file__).with_name("asleep.c")
PATIENCE_SECONDS = 5.0
"""What a client waits in all by default (botocore: three times two seconds) and what a resume may take, on a busy machine."""


class Clocks:
    """The hands of the daemon's machine, and the true time, which its broker has."""

    def __init__(self, build: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("needs a C compiler (apt-get install gcc libc6-dev)")
        self.library = build / "asleep.so"
        subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-pthread", "-o", str(self.library), str(SHIM)], check=True
        )
        self._file = build / "asleep"
        self._file.write_bytes(bytes(16))
        with self._file.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 16)
        self.boot = self.wall = 0.0
        self.true = timedelta()

    @property
    def environ(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "LD_ASLEEP": str(self._file)}

    def suspended(self, hours: float) -> None:
        """Boot time and the wall clock count on through suspend."""
        self._pass(hours, boot=hours)

    def paused(self, hours: float) -> None:
        """Boot time does not count a hypervisor's pause; the wall clock is set right afterwards."""
        self._pass(hours, boot=0.0)

    def set(self, years: float) -> None:
        """The wall clock is set so far from the truth, by whoever sets clocks; the truth stays what it is."""
        self.wall = self.true.total_seconds() + years * 365.25 * 86400
        self._map[:16] = struct.pack("=dd", self.boot, self.wall)

    def _pass(self, hours: float, *, boot: float) -> None:
        self.true += timedelta(hours=hours)
        self.boot += boot * 3600
        self.wall += hours * 3600
        self._map[:16] = struct.pack("=dd", self.boot, self.wall)


class Broker:
    """Gives a new hour with each answer, by the true time."""

    def __init__(self, clocks: Clocks) -> None:
        self.clocks = clocks
        self.given: list[str] = []
        self.down = False
        self.lie = timedelta()

    def __call__(self, asked: Asked) -> Answer | Fault:
        if self.down:
            return Fault.DOWN
        now = datetime.now(UTC) + self.clocks.true
        key = f"ASIABROKER{len(self.given):010d}"
        self.given.append(key)
        document = {
            "AccessKeyId": key,
            "SecretAccessKey": "s" * 40,
            "Token": "t" * 80,
            "Expiration": f"{now + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
        }
        return Answer(200, json.dumps(document).encode(), {"Date": f"{now + self.lie:%a, %d %b %Y %H:%M:%S} GMT"})


@contextmanager
def closing(call: Callable[[Awaitable[Any]], Any], served: AbstractAsyncContextManager[str]) -> Iterator[str]:
    """``served`` for the length of a block, in the loop that ``call`` runs things in."""
    url = call(served.__aenter__())
    try:
        yield url
    finally:
        call(served.__aexit__(None, None, None))


@contextmanager
def worker(tmp_path: Path, lie: timedelta = timedelta()) -> Iterator[tuple[World, Agent, Clocks, Broker]]:
    """A worker whose identity is the broker's, before its machine sleeps."""
    (tmp_path / "w").mkdir()
    world, clocks = World(tmp_path / "w"), Clocks(tmp_path)
    broker = Broker(clocks)
    broker.lie = lie
    served = serve(broker)
    with background() as call, closing(call, served) as url:
        world.drop(world.seal(HttpBroker(id="job", url=f"{url}/credentials")))
        changes = {"mint": {"allowed_origins": [url]}, "upstream": {"allow_private_addresses": True}}
        with world.agent(changes, environ=clocks.environ) as agent:
            agent.ready()
            agent.wait_for("credential.issued")
            assert agent.access_key() == broker.given[-1]
            yield world, agent, clocks, broker


def client_key(world: World, agent: Agent) -> str | None:
    """What botocore gets, with its own patience and retries, from the container endpoint."""
    from botocore.credentials import ContainerProvider

    provider = ContainerProvider(
        environ={
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{agent.url}/v1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": world.token,
        }
    )
    found = provider.load()
    return None if found is None else str(found.get_frozen_credentials().access_key)


@pytest.mark.parametrize("how", ["suspended", "paused"])
def test_the_next_call_of_a_client_succeeds(tmp_path: Path, how: str) -> None:
    """After two hours, whether boot time counted them or not, a client's very next call gets what is alive."""
    with worker(tmp_path) as (world, agent, clocks, broker):
        old = broker.given[-1]
        getattr(clocks, how)(2)
        if how == "paused":
            agent.wait_for("clock.time_lost")  # the shim tells of the step some milliseconds after it, unlike a kernel
        assert client_key(world, agent) not in {None, old}


@pytest.mark.parametrize("how", ["suspended", "paused"])
def test_a_resume_is_noticed_at_once(tmp_path: Path, how: str) -> None:
    """Nobody asks: the kernel wakes the agent, which renews within a client's patience."""
    with worker(tmp_path) as (_, agent, clocks, broker):
        count = len(broker.given)
        getattr(clocks, how)(2)
        until(lambda: len(broker.given) > count, seconds=PATIENCE_SECONDS, what="a renewal")
        until(lambda: agent.access_key() == broker.given[-1], seconds=PATIENCE_SECONDS, what="the new credential")


@pytest.mark.parametrize("how", ["suspended", "paused"])
def test_what_ended_meanwhile_is_not_served(tmp_path: Path, how: str) -> None:
    """With no upstream in reach after it, nothing is served rather than what is over."""
    with worker(tmp_path) as (_, agent, clocks, broker):
        broker.down = True
        getattr(clocks, how)(2)
        ended = lambda: agent.status()["clouds"]["aws"]["state"] == "ended"  # noqa: E731 - said once
        until(ended, seconds=PATIENCE_SECONDS, what="the end")
        assert agent.role() is None


@pytest.mark.parametrize("how", ["suspended", "paused"])
def test_what_ended_meanwhile_is_not_served_by_who_answers_alone(tmp_path: Path, how: str) -> None:
    """Whoever answers workers notices it by itself, while the agent hangs or is away."""
    with worker(tmp_path) as (_, agent, clocks, _broker):
        agent.signal(signal.SIGSTOP)
        try:
            assert agent.role() is not None
            getattr(clocks, how)(2)
            assert agent.role() is None
        finally:
            agent.signal(signal.SIGCONT)


def test_lost_time_is_told(tmp_path: Path) -> None:
    """A pause is in the log and in the status, with whom our time is taken from."""
    with worker(tmp_path) as (_, agent, clocks, _broker):
        clocks.paused(2)
        said = agent.wait_for("clock.time_lost")
        assert abs(said["seconds"] - 7200) < 5
        assert agent.status()["clock"]["believed"] == "wall"
        assert abs(agent.status()["clock"]["lost_seconds"] - 7200) < 5


@pytest.mark.parametrize("hours", [-30, -0.5, 0.5, 3, 20_000])
def test_a_broker_teaches_no_time(tmp_path: Path, hours: float) -> None:
    """Its Date is off by as much as it likes: our time stands, and its credential is served as long as it lives."""
    with worker(tmp_path, lie=timedelta(hours=hours)) as (_, agent, _clocks, broker):
        clock = agent.status()["clock"]
        assert (clock["samples"], clock["moves"], abs(clock["wall_error_seconds"]) < 1) == (0, 0, True)
        assert agent.access_key() == broker.given[-1]


@pytest.mark.parametrize("years", [-26, -0.01, 0.01, 60])
def test_a_clock_that_is_right_only_later(tmp_path: Path, years: float) -> None:
    """A bundle that our clock says is too early or over is held, and in force once NTP has set the clock; that stays so.

    A step back takes nothing, and nothing crashes.
    """
    (tmp_path / "w").mkdir()
    world, clocks = World(tmp_path / "w"), Clocks(tmp_path)
    clocks.set(years)
    key = "ASIA" + "R" * 16
    world.drop(world.seal(world.session(key)))
    with world.agent(environ=clocks.environ) as agent:
        agent.wait_for("bundle.refused")
        assert agent.status()["clouds"]["aws"]["origin"] != "bundle"
        clocks.set(0.0)
        agent.wait_for("bundle.accepted")
        until(lambda: agent.access_key() == key, what="the bundle's session")
        before = len(agent.lines)
        clocks.set(years)
        agent.wait_for("clock.corrected", after=before)
        if years < 0:
            assert agent.access_key() == key
        assert agent.stop() == 0
        assert agent.events("raw") == []


class Hanging:
    """A control plane behind a network that forgot every connection of before the machine slept.

    Attributes:
        bundle: what is answered; a request that may wait for something new hangs.
        hanging: how many do.
        connections: whether each lives; on one that is dead nothing comes, not even an end.
    """

    def __init__(self) -> None:
        self.bundle = b""
        self.hanging = 0
        self.connections: list[bool] = []
        self.url = ""
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/bundle"

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.connections)
        self.connections.append(True)
        self._writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                size, etag = len(self.bundle), hashlib.md5(self.bundle).hexdigest()
                if b"\r\nPrefer: wait" in head and etag.encode() in head:
                    self.hanging += 1
                elif self.connections[number]:
                    writer.write(
                        b'HTTP/1.1 200 OK\r\nETag: "%b"\r\nContent-Length: %d\r\n\r\n%b'
                        % (etag.encode(), size, self.bundle)
                    )
        writer.close()

    def forget(self) -> None:
        self.connections = [False] * len(self.connections)


def test_a_source_that_was_waiting_looks_again(tmp_path: Path) -> None:
    """A long poll of before the sleep hangs for ever: the source's own client gives it up, and brings what is new."""
    (tmp_path / "w").mkdir()
    world, clocks, plane = World(tmp_path / "w"), Clocks(tmp_path), Hanging()
    plane.bundle = world.seal(world.session("ASIA" + "A" * 16))

    sources = lambda: {"sources": [{"kind": "https", "url": plane.url}]}  # noqa: E731 - known once it is served
    with background(plane), world.agent(sources(), environ=clocks.environ) as agent:
        agent.wait_for("bundle.accepted", seq=1)
        until(lambda: plane.hanging, what="a long poll")
        plane.bundle = world.seal(world.session("ASIA" + "B" * 16))
        plane.forget()
        clocks.suspended(0.1)
        agent.wait_for("bundle.accepted", seq=2)
