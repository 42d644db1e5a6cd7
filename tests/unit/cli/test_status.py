"""How the status is told to a person: what matters first, in colour where a terminal wants it, with what came before."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.cli import status_text
from tests.unit.cli.test_worker import Endpoint
from tests.unit.doctor.support import cloud, server, status

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HISTORY = [
    {"at": f"2029-12-31T{hour:02}:00:00Z", "kind": "renewed", "about": "aws g", "said": f"until {hour}", "times": 1}
    for hour in range(20)
]


def lines(**changes: Any) -> list[str]:
    document = status(**changes)
    for one in document["clouds"].values():
        one.setdefault("why", None)
    return list(status_text.rendered(status_text.told(document, NOW), colour=False))


def test_the_next_renewal_and_the_last_look_are_told() -> None:
    """When each credential is renewed next, and when each source was read."""
    told = lines(
        credentials=[
            {"cloud": "aws", "grant": "g", "type": "aws-assume-role", "next_attempt_at": "2030-01-01T00:40:00Z", "last_failure": None}
        ],
        source_read={"file": "2029-12-31T23:50:00Z"},
        source_next={"file": "2030-01-01T00:05:00Z"},
    )  # fmt: skip
    assert "renewal of aws g; next 2030-01-01T00:40:00Z (in 40 min)" in told
    read = "source file: ok, read 2029-12-31T23:50:00Z (10 min ago), next 2030-01-01T00:05:00Z (in 5 min)"
    assert read in told


def test_the_history_is_short_and_the_latest_first() -> None:
    """The last few things, with how often in a row; the whole is in the document."""
    many = {**HISTORY[0], "at": "2029-12-31T23:00:00Z", "kind": "refused", "said": "expired: over", "times": 3}
    told = lines(history=[*HISTORY, many])
    at = told.index("lately:")
    assert told[at + 1] == "     2029-12-31T23:00:00Z (1 h 00 min ago): refused aws g: expired: over (3 times)"
    assert len(told[at + 1 :]) == status_text.HISTORY_LINES


def test_an_older_agent_is_understood() -> None:
    """A document without what came later is told as far as it goes."""
    document = status()
    del document["without"], document["files"], document["servers"]
    assert list(status_text.told(document, NOW))


def test_who_answers_workers_is_told_where_it_is_not_as_it_should_be() -> None:
    """Nobody, one that serves what was served before, or the agent itself; where all is well it is no line."""
    said = "workers: no process answers them just now; they wait"
    assert said in lines(servers=[])
    assert said in lines(servers=[server(newest=False)])
    assert [
        line for line in lines(servers=[server(apart=False)]) if line.startswith("workers: answered by the agent's own")
    ]
    assert not [line for line in lines() if line.startswith("workers:")]


def test_what_others_wrote_commands_no_terminal() -> None:
    """A reason with an escape sequence in it is shown, not obeyed."""
    told = lines(clouds={"aws": cloud(state="ended", why="\033[2Jgone")})
    assert not [line for line in told if "\033" in line]


@pytest.fixture
def endpoint(tmp_path: Path) -> Any:
    opened = Endpoint(tmp_path)
    opened.status = status()
    yield opened
    opened.close()


def on_a_terminal(endpoint: Endpoint, *options: str, **environ: str) -> str:
    """What a command prints on a terminal until it shows the bundle; then it is interrupted."""
    master, slave = pty.openpty()
    base = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "TERM"}}
    command = [sys.executable, "-m", "agent", "status", "--config", str(endpoint.config), *options]
    with subprocess.Popen(
        command, stdout=slave, stdin=subprocess.DEVNULL, env={**base, "TERM": "xterm", **environ}
    ) as process:
        os.close(slave)
        said = b""
        try:
            while b"redirect" not in said and b"bundle: seq" not in said:
                said += os.read(master, 65_536)
            process.send_signal(signal.SIGINT)
        except OSError:
            pass  # it ended: the terminal is gone
        process.wait(60)
    os.close(master)
    return said.decode()


def test_colour_is_for_terminals_that_want_it(endpoint: Endpoint) -> None:
    """Colour on a terminal, none where NO_COLOR is set, and none in a pipe."""
    assert "\033[32maws: " in on_a_terminal(endpoint)
    assert "\033" not in on_a_terminal(endpoint, NO_COLOR="1")
    assert "\033" not in endpoint.run("status").stdout


def test_watching_survives_an_agent_that_is_away(endpoint: Endpoint) -> None:
    """Each look is one document on a line; one without an answer says so, and the next is made all the same."""
    command = [
        "env",
        "--default-signal=INT",  # a shell that begins us in the background has us ignore it
        sys.executable,
        "-m",
        "agent",
        "status",
        "--watch",
        "--interval",
        "0.5",
        "--json",
        "--config",
        str(endpoint.config),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        endpoint.close()
        (endpoint.root / "control").unlink(missing_ok=True)
        while "error" not in (line := json.loads(process.stdout.readline())):
            pass
        assert "does not listen" in line["error"]
        assert json.loads(process.stdout.readline())["hint"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert first["version"] == "0.1.0"
