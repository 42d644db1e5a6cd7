"""``kill -9`` under thirty-two looping clients: how many of their calls fail."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.system.harness import UnixConnection, World, exchange, until
from tests.system.looping import BROKEN, PLAIN, PROCESSES, PROGRAM, Looping

USER = "ASIAUSER000000000000"
KILLS = 3
CALLS_BETWEEN = 60  # of all clients together
PATIENCE_SECONDS = 4.0  # of botocore's container client: three times two, less what a busy endpoint takes
GAVE_UP = ("Read timeout", "no credential")


@contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    """The workers' endpoint, held as the service manager holds it: whoever comes while nobody serves waits in its queue."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        sock.listen(4096)
        yield sock, f"http://127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.slow
def test_no_call_of_an_sdk_fails(tmp_path: Path) -> None:
    """The agent is killed three times under 24 boto3 and 8 plain clients: no call of boto3 fails, nobody is refused.

    Of the plain ones, which try nothing twice, at most those that were being answered at that instant break off. How long
    boto3 waits is its own business: on a machine so busy that a start outlasts that, this shows nothing and is skipped.
    """
    root = tmp_path / "w"
    root.mkdir()
    world = World(root)
    control_path = root / "run" / "passed"
    with ExitStack() as stack:
        endpoint, url = stack.enter_context(listening())
        control = stack.enter_context(socket.socket(socket.AF_UNIX))
        control.bind(str(control_path))
        control.listen(64)
        passed = [("http", endpoint.fileno()), ("control", control.fileno())]
        agent = stack.enter_context(world.agent(passed=passed))
        agent.ready()
        sealed = world.seal(world.session(USER))
        assert exchange(UnixConnection(control_path), "PUT", "/v1/bundle", None, sealed).json()["outcome"] == "accepted"
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LOOP_URL": url, **world.env()}
        loops = []
        for kind, (processes, clients) in PROCESSES.items():
            for _ in range(processes):
                loops.append(Looping(kind, [sys.executable, str(PROGRAM), kind, str(clients)], env))
                stack.callback(loops[-1].close)

        def each_has_called(before: dict[Looping, int]) -> bool:
            return all(loop.calls() >= before[loop] + CALLS_BETWEEN // len(loops) for loop in loops)

        starts = []
        for _ in range(KILLS):
            before = {loop: loop.calls() for loop in loops}
            until(lambda since=before: each_has_called(since), seconds=60, what="a call of everybody")  # type: ignore[misc]
            agent.kill()
            killed = time.monotonic()
            agent = stack.enter_context(world.agent(passed=passed))
            agent.wait_for("agent.started", seconds=60)
            starts.append(round(time.monotonic() - killed, 2))
        before = {loop: loop.calls() for loop in loops}
        until(lambda: each_has_called(before), seconds=60, what="a call of everybody")
        ends = [(loop.kind, loop.end()) for loop in loops]

    print(json.dumps({"starts": starts, "clients": ends}))
    broken, gave_up = 0, 0
    for kind, end in ends:
        assert set(end["keys"]) == {USER}, (kind, end)
        if kind == "plain":
            assert all(error.startswith(BROKEN) for error in end["failed"]), end
            broken += sum(end["failed"].values())
        else:
            assert all(any(words in error for words in GAVE_UP) for error in end["failed"]), (kind, end)
            gave_up += sum(end["failed"].values())
    assert broken <= KILLS * PLAIN
    if gave_up and max(starts) > PATIENCE_SECONDS:
        pytest.skip(f"this machine is too busy: the agent took {max(starts)} s to start")
    assert gave_up == 0, ends
