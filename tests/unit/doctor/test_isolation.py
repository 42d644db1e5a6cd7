"""Probes that hang, crash, lie or start others: none of it reaches the one who asks."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest


def looked(probes: str, *, seconds: float = 20.0) -> dict[str, Any]:
    """What comes of probes, given as Python; in a process with one thread, as a command has."""
    program = textwrap.dedent(f"""
        import json, os, signal, subprocess, sys, time, msgspec
        from agent.doctor.facts import Unknown
        from agent.doctor.isolation import Identity, Probe, look
        class Word(msgspec.Struct, frozen=True):
            said: str
        def hang():
            signal.sigwait([signal.SIGUSR1])
        found = look({{ {probes} }}, seconds={seconds})
        print(json.dumps({{name: msgspec.to_builtins(one) for name, one in found.items()}}))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_probe_that_hangs_costs_no_other_its_answer() -> None:
    """What hangs is said to have hung; what answered has its value; both in the time of one."""
    found = looked("'good': Probe(Word, lambda: Word('x')), 'bad': Probe(Word, hang)", seconds=1.0)
    assert found["good"] == {"said": "x"}
    assert found["bad"]["hung"] is True


@pytest.mark.parametrize(
    "probe",
    [
        "lambda: os.kill(os.getpid(), 9)",
        "lambda: os.abort()",
        "lambda: os._exit(0)",
        "lambda: Word(7)",
        "lambda: sys.exit(1)",
        "lambda: 1 / 0",
    ],
)
def test_a_probe_that_dies_is_an_unknown(probe: str) -> None:
    """A crash, an exit, an error or another shape is no answer, and is told as one that is missing."""
    found = looked(f"'bad': Probe(Word, {probe}), 'good': Probe(Word, lambda: Word('x'))")
    assert found["good"] == {"said": "x"}
    assert found["bad"]["hung"] is False
    assert found["bad"]["why"]


def test_what_a_probe_has_started_ends_with_it(tmp_path: Path) -> None:
    """A program that a probe waits for does not outlive the look: nobody would know of it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        command = f"exec 9>{pipe}; echo here >&9; read x"
        found = looked(
            f"'bad': Probe(Word, lambda: subprocess.run(['sh', '-c', {command!r}], stdin=os.pipe()[0]))", seconds=1.0
        )
        assert found["bad"]["hung"] is True
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        said = b""
        while poll.poll(20_000) and (data := os.read(reader, 100)):
            said += data
        assert said == b"here\n"  # it ran, and nobody holds the other end any more
    finally:
        os.close(reader)


def test_a_large_answer_arrives_whole() -> None:
    """More than a pipe holds at once is no hang."""
    assert len(looked("'big': Probe(Word, lambda: Word('y' * 300_000))")["big"]["said"]) == 300_000


@pytest.mark.root
def test_a_probe_becomes_another_user_for_good() -> None:
    """What the service could not read, the probe cannot: it has the user's ids, real and saved, and its groups."""
    if os.geteuid() != 0:
        pytest.skip("to become another user needs root")
    found = looked(
        "'who': Probe(Word, lambda: Word(repr((os.getresuid(), os.getresgid(), os.getgroups()))),"
        " Identity('nobody', 65534, 65534))"
    )
    assert found["who"]["said"] == "((65534, 65534, 65534), (65534, 65534, 65534), [65534])"


def test_what_cannot_be_begun_is_told_and_costs_no_other() -> None:
    """Where the machine gives no further process or descriptor, each look that was begun says what it found."""
    # Each probe that is under way holds one of these; one needs a few more for itself.
    limit = "__import__('resource').setrlimit(__import__('resource').RLIMIT_NOFILE, (10, 10))"
    many = ", ".join(f"'{number}': Probe(Word, lambda: Word('x'))" for number in range(8))
    found = looked(f"**({limit} or {{}}), {many}")
    assert found["0"] == {"said": "x"}
    assert "no process could be begun" in found["7"]["why"]
    assert found["7"]["hung"] is False


def test_an_answer_that_is_too_long_is_none() -> None:
    """Somebody's file may be of any size: no more of it is taken than was agreed, and the others have their answers."""
    found = looked("'good': Probe(Word, lambda: Word('x')), 'long': Probe(Word, lambda: Word('x' * (6 << 20)))")
    assert found["good"] == {"said": "x"}
    assert "without an answer" in found["long"]["why"]
    assert not found["long"].get("hung")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_probe_becomes_whom_it_looks_as_for_good() -> None:
    """What the service may read is told by the service's user and groups, and there is no way back to root."""
    look = "Word(json.dumps([os.getresuid(), os.getresgid(), sorted(os.getgroups())]))"
    found = looked(f"'it': Probe(Word, lambda: {look}, Identity('nobody', 65534, 65534))")
    users, groups, others = json.loads(found["it"]["said"])
    assert users == [65534] * 3
    assert groups == [65534] * 3
    assert 0 not in others
