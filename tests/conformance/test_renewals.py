"""Unmodified clients that hold one object for longer than any credential lives, while upstream comes and goes.

Two worlds. In the first, sessions live for half a minute of the machine's own time: clients that ask again when little
is left are then asked for at every turn. In the second, sessions live their true hour and time passes 120 times as fast
(:mod:`tests.conformance.warp`): there each client's own windows decide when it comes back, and it relies on what it
cached for most of an hour. Between them every client is at its weakest once.

The verdict is the object store's: it refuses what has ended (:mod:`tests.conformance.clouds`).
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.core.refresh import RETRY_CAP_URGENT_SECONDS
from tests.conformance.clouds import Clouds, EndingStore
from tests.conformance.warp import Warp
from tests.fakes.sts import CLEAR, Weather
from tests.matrix.__main__ import Program
from tests.matrix.clients import AWS, GCP, PROGRAMS, Client, clients
from tests.system.harness import REPOSITORY, Agent, World, until

pytest.importorskip("boto3")
pytest.importorskip("google.auth")
pytest.importorskip("requests", reason="google-auth's own transport needs it")

BUILD = Path(os.environ.get("MATRIX_BUILD") or REPOSITORY / "build" / "matrix")
IDENTITIES = 4
"""Three renewals, as seen by the store."""
PATIENCE_SECONDS = 180.0


def client(name: str) -> Client:
    """A client by its name in the matrix; what the tests themselves have needs no venv of its own."""
    if name in ("boto3", "google-auth"):
        argv = (sys.executable, str(PROGRAMS / "python_clients.py"), name)
        return Client(name, AWS if name == "boto3" else GCP, name, argv)
    return next(c for c in clients(BUILD) if c.name == name)


@dataclass
class Life:
    """A client from its first read to its last."""

    label: str
    program: Program
    store: EndingStore
    failures: list[str] = field(default_factory=list)
    reads: int = 0

    def live(self, pause: float, over: threading.Event) -> None:
        """Read until it is over, every ``pause`` seconds."""
        self.program.wait()
        while not over.wait(pause):
            at = self.store.clouds.warp.now()
            ok, error, _ = self.program.read()
            self.reads += 1
            if not ok:
                self.failures.append(f"{at:%H:%M:%S}, read {self.reads}: {error}")


@contextmanager
def lives(
    world: World, clouds: Clouds, chosen: dict[str, tuple[Client, dict[str, str]]], pause: float
) -> Iterator[dict[str, Life]]:
    """Start each client beside the worker and let it read until the block ends."""
    objects = world.root / "objects"
    objects.mkdir()
    (objects / "hello.txt").write_text("hello matrix\n")
    over = threading.Event()
    begun: dict[str, Life] = {}
    with ExitStack() as stack:
        for label, (one, env) in chosen.items():
            home = world.root / f"home-{len(begun)}"
            home.mkdir()
            store = stack.enter_context(EndingStore(objects, clouds))
            program = Program(one, store, env, home)
            stack.callback(program.close)
            begun[label] = Life(label, program, store)
        threads = [threading.Thread(target=life.live, args=(pause, over)) for life in begun.values()]
        for thread in threads:
            thread.start()
        try:
            yield begun
        finally:
            over.set()
            for thread in threads:
                thread.join(PATIENCE_SECONDS)


def through_renewals(world: World, clouds: Clouds, begun: dict[str, Life], watched: list[str]) -> datetime:
    """Wait for three renewals under every client, an outage of both token services among them.

    Returns:
        The instant from which both were well again.
    """

    def seen(count: int) -> bool:
        return all(begun[label].failures or len(begun[label].store.identities()) >= count for label in watched)

    until(lambda: seen(2), seconds=PATIENCE_SECONDS, what="a first renewal under every client")
    clouds.sts_outage.arm()
    clouds.google_outage.arm()
    until(lambda: clouds.sts_outage.over and clouds.google_outage.over, seconds=PATIENCE_SECONDS, what="the outages")
    well = clouds.warp.now()
    made = {name for name, principal in clouds.sts.principals.items() if principal.kind == "role-session"}
    made |= set(clouds.google.tokens)

    def after(label: str) -> bool:
        life = begun[label]
        return bool(life.failures) or bool(set(life.store.identities(since=well)) - made)

    until(
        lambda: seen(IDENTITIES) and all(map(after, watched)),
        seconds=PATIENCE_SECONDS,
        what="three renewals under every client, the last after the outage",
    )
    return well


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


def imds_only(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith("AWS_CONTAINER_")}


def bare(env: dict[str, str]) -> dict[str, str]:
    return env


#: The clients of each world: label, name in the matrix, what is left of the environment file.
ROWS = [
    ("botocore, IMDS", "boto3", imds_only),
    ("botocore, container", "boto3", bare),
    ("google-auth", "google-auth", bare),
    ("pyarrow", "pyarrow", bare),
    ("obstore", "obstore", bare),
    ("JS v3", "JS v3", bare),
]
#: botocore's IMDS client takes what has less than 17 to 25 minutes left for good that much longer, on purpose: with
#: sessions of seconds no server can make it ask in time.
NOT_IN_SECONDS = {"botocore, IMDS"}
#: object_store keeps its deadlines on the monotonic clock, which stays true.
NOT_IN_HOURS = {"obstore"}


def choose(
    without: set[str], env: dict[str, str], more: dict[str, str]
) -> tuple[dict[str, tuple[Client, dict[str, str]]], dict[str, str]]:
    """The clients that are here, and what is missing for the others."""
    chosen, missing = {}, {}
    for label, name, kept in ROWS:
        if label in without:
            continue
        found = client(name)
        if found.argv is None:
            missing[label] = found.missing
        else:
            chosen[label] = (found, {**kept(env), **more})
    return chosen, missing


def evaluate(
    subtests: pytest.Subtests, begun: dict[str, Life], missing: dict[str, str], watched: list[str], well: datetime
) -> None:
    for label, what in missing.items():
        with subtests.test(label):
            pytest.skip(f"needs {what}")
    for label in watched:
        life = begun[label]
        with subtests.test(label):
            assert life.failures == []
            refusals = Counter(read.refusal for read in life.store.reads if read.refusal is not None)
            assert not refusals, "the client tried again by itself, but the store has seen it"
            assert len(life.store.identities()) >= IDENTITIES
            assert life.store.identities(since=well)


def run(
    world: World,
    clouds: Clouds,
    subtests: pytest.Subtests,
    *,
    without: set[str],
    pause: float,
    check: Callable[[Agent], None],
    control: bool = False,
) -> None:
    more = clouds.warp.environ(world.root)
    with clouds.running(), world.agent(clouds.config, prelude=clouds.warp.prelude) as agent:
        agent.ready()
        later: dict[str, Any] = (
            {"accept_until": clouds.warp.now() + timedelta(days=1)} if clouds.warp.speed != 1 else {}
        )
        sealed = clouds.bundle(world, **later)
        assert agent.push(sealed)["outcome"] == "accepted"
        agent.wait_for("credential.issued", grant="role")
        agent.wait_for("credential.issued", grant="google")
        chosen, missing = choose(without, world.env(), more)
        watched = list(chosen)
        if control:
            document = agent.credential()
            static = {
                "AWS_ACCESS_KEY_ID": document["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": document["SecretAccessKey"],
                "AWS_SESSION_TOKEN": document["Token"],
            }
            chosen["a copy of the keys"] = (client("boto3"), {**static, **more})
        with lives(world, clouds, chosen, pause) as begun:
            well = through_renewals(world, clouds, begun, watched)
        check(agent)
        evaluate(subtests, begun, missing, watched, well)
        if control:
            assert any("ExpiredToken" in failure for failure in begun["a copy of the keys"].failures)


@pytest.mark.slow
def test_sessions_of_seconds(world: World, subtests: pytest.Subtests) -> None:
    """With sessions of seconds no call of a client fails through three renewals and an outage; copied keys do."""
    clouds = Clouds(Warp(), outage=timedelta(seconds=3))
    clouds.sts.role_seconds = 20
    clouds.google.token_seconds = 30

    def check(agent: Agent) -> None:
        assert clouds.sts_outage.refused
        assert clouds.google_outage.refused
        assert agent.events("identity.ended") == []

    run(world, clouds, subtests, without=NOT_IN_SECONDS, pause=0.5, check=check, control=True)


@pytest.mark.slow
def test_sessions_of_an_hour(world: World, subtests: pytest.Subtests) -> None:
    """With sessions of an hour no call of a client fails through three hours and an outage of twenty minutes."""
    try:
        clouds = Clouds(Warp(120.0), outage=timedelta(minutes=20))
        clouds.warp.environ(world.root)
    except LookupError as missing:
        pytest.skip(f"needs {missing}")

    def check(agent: Agent) -> None:
        assert clouds.sts_outage.refused
        assert clouds.google_outage.refused
        assert agent.events("identity.ended") == []

    run(world, clouds, subtests, without=NOT_IN_HOURS, pause=0.2, check=check)


def ask(agent: Agent, world: World) -> tuple[int, dict[str, str]]:
    """One request of a client of the container endpoint that keeps nothing."""
    reply = agent.ask("/v1/credentials", headers={"Authorization": world.token})
    return reply.status, reply.json()


@pytest.mark.slow
def test_an_outage_to_the_end_of_a_life(world: World) -> None:
    """Without STS a session is served to its last second, its end is told before, then refused, and soon back."""
    clouds = Clouds(Warp(), outage=timedelta(hours=1))
    clouds.sts.role_seconds = 20
    with clouds.running(), world.agent(clouds.config) as agent:
        agent.ready()
        assert agent.push(clouds.bundle(world))["outcome"] == "accepted"
        agent.wait_for("credential.issued", grant="role")
        clouds.sts_outage.arm()
        status, held = ask(agent, world)
        assert status == 200
        ends = datetime.fromisoformat(held["Expiration"])

        # What an operator is told before it happens.
        told = until(lambda: agent.events("horizon.near"), seconds=30, what="the horizon")[0]
        before = agent.status()["clouds"]["aws"]
        assert clouds.warp.now() < ends
        assert told["cloud"] == "aws"
        assert told["level"] == "warning"
        assert "cannot be renewed so far" in told["why"]
        assert (before["state"], before["origin"]) == ("live", "bundle")
        # Our own count may be a second short of the true end, never beyond it.
        near = datetime.fromisoformat(before["horizon"])
        assert told["horizon"] == before["horizon"]
        assert ends - timedelta(seconds=3) <= near <= ends
        assert "cannot be renewed so far" in before["horizon_reason"]
        assert before["at_the_end"] == "requests are refused until the renewal works again or a new bundle comes"
        (role,) = (c for c in agent.status()["credentials"] if c["grant"] == "role")
        assert role["failures_in_a_row"] >= 1
        assert role["last_failure"]["permanent"] is False
        metrics = agent.operate("/metrics").body.decode()
        assert 'credential_agent_renewal_failing{cloud="aws",grant="role"} 1.0' in metrics
        assert 'credential_agent_horizon_seconds{cloud="aws"}' in metrics
        assert 'credential_agent_horizon_seconds{cloud="gcp"}' not in metrics

        # To its last second, and then the honest error.
        def served() -> bool:
            asked = clouds.warp.now()
            status, body = ask(agent, world)
            assert status != 200 or (body["AccessKeyId"] == held["AccessKeyId"] and asked < ends)
            return status == 200

        until(lambda: not served(), seconds=60, what="the end")
        assert clouds.warp.now() >= ends - timedelta(seconds=3)
        status, body = ask(agent, world)
        assert (status, body["code"]) == (503, "CredentialsUnavailable")
        assert "sts" in body["message"].lower()
        assert agent.role() is None
        assert agent.google_token().status == 200  # each cloud for itself
        after = agent.status()["clouds"]["aws"]
        assert (after["state"], after["origin"], after["why"]) == ("ended", "closed", body["message"])
        assert agent.wait_for("identity.ended", cloud="aws")["why"] == body["message"]
        assert len(agent.events("identity.ended")) == 1
        assert len(agent.events("horizon.near")) == 1

        # Back at the next attempt, which is at most half a minute away (`RETRY_CAP_URGENT_SECONDS`) however long the
        # outage was. How many attempts this one cost, and so how far apart they are by now, the machine's load decides.
        mark = agent.mark
        clouds.sts_outage.end()
        agent.wait_for(
            "identity.changed", after=mark, cloud="aws", origin="bundle", seconds=2 * RETRY_CAP_URGENT_SECONDS
        )
        status, body = ask(agent, world)
        assert status == 200
        assert body["AccessKeyId"] != held["AccessKeyId"]
        assert agent.status()["clouds"]["aws"]["horizon"] is None


@contextmanager
def many_sockets() -> Iterator[None]:
    """Let this process and its children open some thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if wanted < 4096:
        pytest.skip(f"needs 4096 open files, may have {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_a_thousand_cold_requests_cost_one_call(world: World) -> None:
    """A thousand clients that ask at once, before anything is there, cost one upstream call per credential."""
    gate, reached = threading.Event(), Counter[str]()
    clouds = Clouds(Warp())

    def gated(name: str) -> Callable[[str], Weather]:
        def weather(operation: str) -> Weather:
            reached[name] += 1
            assert gate.wait(PATIENCE_SECONDS)
            return CLEAR

        return weather

    clouds.sts.weather, clouds.google.weather = gated("sts"), gated("google")
    google = "/computeMetadata/v1/instance/service-accounts/default/token"

    async def client(address: tuple[str, int], token: str, number: int, asked: list[int]) -> tuple[int, bytes]:
        path, header = [("/v1/credentials", f"Authorization: {token}"), (google, "Metadata-Flavor: Google")][number % 2]
        while True:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {address[0]}\r\n{header}\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            assert answer, f"client {number} was sent away without a word"
            status = int(answer.split(b" ", 2)[1])
            if not asked[number]:
                asked[number] = status
            if status == 200:
                return number % 2, answer.partition(b"\r\n\r\n")[2]
            assert status == 503, answer
            if all(asked):
                gate.set()
            await asyncio.sleep(0.1)

    async def crowd(address: tuple[str, int], token: str, asked: list[int]) -> list[tuple[int, bytes]]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await asyncio.gather(*(client(address, token, number, asked) for number in range(len(asked))))

    asked = [0] * 1000
    with ExitStack() as stack:
        stack.enter_context(many_sockets())
        stack.enter_context(clouds.running())
        stack.callback(gate.set)
        agent = stack.enter_context(world.agent(clouds.config))
        agent.ready()
        assert agent.push(clouds.bundle(world))["outcome"] == "accepted"
        until(lambda: reached["sts"] and reached["google"], what="the first calls")
        answers = asyncio.run(crowd(agent.address, world.token, asked))
        status = agent.status()
    assert set(asked) == {503}, "every client came before the credentials did"
    assert len({json.loads(body)["AccessKeyId"] for kind, body in answers if kind == 0}) == 1
    assert len({json.loads(body)["access_token"] for kind, body in answers if kind == 1}) == 1
    # The probe is part of issuing a role that says who it must be.
    assert Counter(clouds.sts.operations()) == {"GetSessionToken": 1, "AssumeRole": 1, "GetCallerIdentity": 1}
    assert Counter(clouds.google.operations()) == {"refresh_token": 1}
    assert {c["grant"]: c["failures_in_a_row"] for c in status["credentials"]} == {"user": 0, "role": 0, "google": 0}
