"""Unmodified clients that hold one object for longer than any credential lives, while upstream comes and goes.

Two worlds. In the first, sessions live for half a minute of the machine's own time: clients that ask again when little
is left are then asked for at every turn. In the second, sessions live their true hour and time passes 240 times as fast
(:mod:`tests.conformance.warp`): there each client's own windows decide when it comes back, and it relies on what it
cached for most of an hour. Between them every client is at its weakest once.

The judge is the object store's: it refuses what has ended (:mod:`tests.conformance.clouds`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.conformance.clouds import Clouds, EndingStore
from tests.conformance.warp import Warp
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


def judge(
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
        sealed = clouds.bundle(
            world, **({"accept_until": clouds.warp.now() + timedelta(days=1)} if clouds.warp.speed != 1 else {})
        )
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
        judge(subtests, begun, missing, watched, well)
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
        clouds = Clouds(Warp(240.0), outage=timedelta(minutes=20))
        clouds.warp.environ(world.root)
    except LookupError as missing:
        pytest.skip(f"needs {missing}")

    def check(agent: Agent) -> None:
        assert clouds.sts_outage.refused
        assert clouds.google_outage.refused
        assert agent.events("identity.ended") == []

    run(world, clouds, subtests, without=NOT_IN_HOURS, pause=0.2, check=check)
