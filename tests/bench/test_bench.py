"""The bench itself: its loads are what servers answer, and what it cannot compare it says."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.serve.plain import read_plain
from agent.snapshot import Limits
from tests.bench.loads import HEADS, LOADS, Load, compiled, put_on
from tests.bench.processes import cpu_seconds
from tests.bench.report import AIMS, evaluated, table
from tests.bench.servers import HERE, Server
from tests.fakes.clock import START, FakeClock
from tests.fakes.view import CONTAINER_TOKEN, FakeView, RunningEndpoint, running_endpoint


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler (apt-get install gcc libc6-dev)")
    return compiled(tmp_path_factory.mktemp("load"))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[RunningEndpoint]:
    view = FakeView()
    view.live_aws(START)
    view.live_gcp(START)
    with running_endpoint(view, clock=FakeClock()) as server:
        yield server


SMALL = {"512": "40", "3": "1", "256": "20", "1000": "100"}


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_every_request_of_every_load_is_answered(generator: Path, endpoint: RunningEndpoint, load: Load) -> None:
    """No load asks what is refused: each sequence ends with a document, and no error is counted."""
    if load.needs_root and os.geteuid() != 0:
        pytest.skip("needs root")
    small = load._replace(
        how=tuple(SMALL.get(word, word) for word in load.how),
        computing=False,
        users=min(load.users, 1),  # others may not enter the tests' directories
        boto3=min(load.boto3, 3),
    )
    us = Server("agent", endpoint.port, os.getpid(), 0.0, ("ec2", "container", "google"), CONTAINER_TOKEN)
    before = len(endpoint.accesses)
    told = put_on(generator, small, us, 0.05)
    requests = len(endpoint.accesses) - before
    assert (told["errors"], told["error"]) == (0, "")
    assert told["per_second"] > 0
    assert requests % (3 if load.kind == "ec2" else 1) == 0


def test_what_other_sdks_send_needs_no_parser() -> None:
    """Each of the recorded heads is read at a glance: none of those programs pays for a parser."""
    heads = (HERE / "heads").read_text().split("\n%% ")[1:]
    assert len(heads) % 3 == 0
    programs = [head.partition("\n")[0] for head in heads]
    assert programs[::3] == programs[1::3] == programs[2::3]
    for head in heads:
        lines = re.sub(r"{(\w+)}", r"\1", head).strip("\n").split("\n")[1:]
        assert read_plain("\r\n".join([*lines, "", ""]).encode(), Limits()) is not None, lines


def test_bent_heads_ask_the_same(generator: Path, endpoint: RunningEndpoint) -> None:
    """In any order of fields and any case of names, with one more now and then, each is answered as it was."""
    us = Server("agent", endpoint.port, os.getpid(), 0.0, ("ec2",), CONTAINER_TOKEN)
    before = len(endpoint.accesses)
    told = put_on(generator, Load("bent", ("-b", "300", "-r", "1", *HEADS, "-x")), us, 0.0)
    assert (told["errors"], told["error"]) == (0, "")
    assert len(endpoint.accesses) - before == 900


def test_time_of_threads_that_have_ended_is_counted() -> None:
    """An idle agent begins and ends threads: their time is in no file of /proc any more."""

    def work() -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.05:
            pass

    before = cpu_seconds(os.getpid())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert cpu_seconds(os.getpid()) - before >= 0.05


def test_errors_are_counted(generator: Path) -> None:
    """Refused requests are no fast answers: they are errors, with the first of them told."""
    with running_endpoint(FakeView()) as server:
        us = Server("agent", server.port, os.getpid(), 0.0, ("container",), "wrong")
        told = put_on(generator, Load("refused", ("-b", "3", "-r", "1"), "container"), us, 0.1)
    assert told["errors"] == 3
    assert "401" in told["error"]


def test_what_cannot_be_compared_is_called_so() -> None:
    """An aim whose load or peer is not there is neither met nor missed."""
    one = {"per_second": 10.0, "cpu_us": 1.0, "p50": 1.0, "p99": 3.0, "max": 4.0, "errors": 0}
    results = {
        "loads": {"200/s, 8 compute": {"agent": [one, {**one, "p99": 9.0}, one]}},
        "servers": {
            "agent": {
                "kinds": ("ec2",),
                "start_seconds": [0.5, 0.3, 0.6],
                "idle_percent": 0.01,
                "memory": (20.0, 30.0, 40.0, 1),
                "memory_after": (21.0, 61.0, 90.0, 2),
                "largest_mb": 12.0,
            }
        },
    }
    said = evaluated(results)
    assert len(said) == len(AIMS)
    assert [line for line in said if not line.startswith("  ?")] == [
        "met   200/s while 8 compute: p99 under 4 ms: 3 against 4",
        "MISS  exec to first credential: 0.4 s: 0.5 against 0.4",
        "met   idle CPU: 0.02 %: 0.01 against 0.02",
        "MISS  resident off cloud, all processes: 60 MB: 61 against 60",
        "met   resident, one server: 25 MB: 12 against 25",
    ]
    assert "(3.0 to 9.0)" in table(results)
