"""What is believed of the word that the holder of the rules leaves."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent.host import arrival

NOW = 5000.0
WELL = {"beat": NOW - 5, "state": "led", "why": None, "notes": []}


def test_where_nothing_redirects_there_is_nothing_to_say(tmp_path: Path) -> None:
    """A laptop, a container: the directory is not there."""
    assert arrival.read(tmp_path / "absent/state.json", now=NOW) is None


def test_a_word_that_is_fresh_is_believed(tmp_path: Path) -> None:
    """A fresh word is believed, and only one of all states means that requests arrive."""
    path = tmp_path / "state.json"
    for state in arrival.STATES:
        path.write_text(json.dumps({**WELL, "state": state, "notes": ["n"]}))
        said = arrival.read(path, now=NOW)
        assert said == arrival.Arrival(state, None, ("n",))
        assert said.arrives is (state == "led")


@pytest.mark.parametrize("beat", [NOW - arrival.STALE_SECONDS - 1, NOW + 1, -1e9, 1e300, float("nan"), float("inf")])
def test_a_heart_that_has_stopped_is_not_believed(tmp_path: Path, beat: float) -> None:
    """A word that is old, or from the future (another boot's), is not believed."""
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**WELL, "beat": beat}))
    said = arrival.read(path, now=NOW)
    assert said is not None
    assert said.state == "unknown"
    assert "does not run, or waits" in (said.why or "")  # it may live, and its nft hang


@pytest.mark.parametrize("data", [None, b"", b"\xff", b"[]", b"{}", b"5", b'{"beat": "x"}', b"[" * 70_000])
def test_what_cannot_be_read_is_unknown(tmp_path: Path, data: bytes | None) -> None:
    """Expected and not there, cut off, something else: nobody is told that all is well, and nothing falls."""
    path = tmp_path / "state.json"
    if data is not None:
        path.write_bytes(data)
    said = arrival.read(path, now=NOW)
    assert said is not None
    assert said.state == "unknown"
    assert said.why


def test_the_hint_is_for_what_is_at_fault() -> None:
    """Where the rules lead and nobody answers, making them anew is no help; what a person closed a command opens."""
    assert "restart credential-agent;" in arrival.hint("unanswered")
    assert arrival.hint("closed").startswith("credential-agent redirect apply;")
    assert {arrival.hint(state) for state in ("led", "astray", "unknown")} == {arrival.HINT}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to ask as somebody else")
def test_who_is_asked_as_cannot_silence_the_question() -> None:
    """The child that asks as a worker is that worker to the rules, and not to kill(2): its word is heard."""
    worker = 1000
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        probe = arrival.Probe()
        probe.start(worker, *server.getsockname())
        connection, _ = server.accept()
        with connection:
            code = "import os, sys\nos.setresuid(1000, 1000, 1000)\n"
            code += "for number in (9, 19): os.kill(int(sys.argv[1]), number)"
            killer = subprocess.run([sys.executable, "-c", code, str(probe.pid)], capture_output=True, check=False)
            assert b"PermissionError" in killer.stderr
            status = Path(f"/proc/{probe.pid}/status").read_text()
            assert re.search(r"^Uid:\t0\t1000\t0\t1000$", status, re.MULTILINE), "and it asks as the worker"
            connection.sendall(b"HTTP/1.1 508 Loop Detected\r\n\r\n")
            select.select([probe], [], [], 10)
            assert probe.result() == "agent"
