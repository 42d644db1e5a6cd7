"""Hosts by the user's own ``ssh``: here a program of that name that runs the command as sshd would, by the shell."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.core.errors import UsageError
from agent.forward import Job, LateError, State, on_ssh
from agent.forward.on_ssh import Ssh
from tests.system.harness import until
from tests.unit.forward.support import World

SSH = """#!/bin/sh
# ssh -T -o BatchMode=yes -- HOST COMMAND
[ "$1 $2 $3 $4" = "-T -o BatchMode=yes --" ] || exit 64
case "$5" in
  down) echo "ssh: connect to host down port 22: Connection refused" >&2; exit 255;;
  jump) echo "me@gate: Permission denied (publickey)." >&2; echo "Connection closed by UNKNOWN port 65535" >&2; exit 255;;
  closed) echo "Authorised use only" >&2; echo "This account is currently not available."; exit 1;;
  stuck) if [ -e @HOME@/stuck ]; then echo $$ >>@HOME@/pids; exec sleep 3600; fi;;
  old) PATH="@HOME@/old:$PATH" exec /bin/sh -c "$6";;
  snake) echo "Authorised use only" >&2; PATH=@HOME@/no exec /bin/sh -c "$6";;
esac
echo "Welcome to $5"
printf "no end of the line"
exec env CREDENTIAL_AGENT_COURIER="@HOME@/$5.sock" sh -c "$6"
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with World(tmp_path, monkeypatch) as made:
        (tmp_path / "ssh").write_text(SSH.replace("@HOME@", str(tmp_path)))
        (tmp_path / "ssh").chmod(0o755)
        yield made


def test_hosts_are_served_by_ssh(world: World) -> None:
    """The host is who the user named, so that no evidence is needed; who cannot be reached is told as ssh tells it."""
    machine = world.machine("w1")
    machine.evidence = lambda *_: []
    world.courier = Ssh(["w1", "down", "bare"], command=[str(world.home / "ssh")])  # type: ignore[assignment]
    with world.forward() as f:
        by_name = {one.name: one for one in f.status().workers}
        assert {name: one.state for name, one in by_name.items()} == {
            "w1": State.SERVED,
            "down": State.UNREACHABLE,
            "bare": State.NO_AGENT,
        }
        assert "Connection refused" in str(by_name["down"].reason)
    assert machine.bundle is None
    assert len(machine.accepted) == 2
    with world.forward(accounts=["111122223333"]) as f:  # who asks for proof gets it
        assert f.status().served == 0
    with world.forward(accounts=["111122223333"], without_evidence=None) as f:  # as the command line says it
        assert f.status().served == 0


@pytest.mark.parametrize("nohup", [False, True])
def test_the_command_takes_it_back_when_it_is_ended(
    world: World, monkeypatch: pytest.MonkeyPatch, *, nohup: bool
) -> None:
    """By SIGTERM, or because the terminal is closed; the latter not where whoever began it ignores that, as nohup(1)."""
    machine = world.machine("w1")
    monkeypatch.setenv("PATH", str(world.home), prepend=os.pathsep)
    command = [sys.executable, "-m", "agent", "forward", "--ssh", "w1", "--no-gcp", "--signer", str(world.signer)]
    # Said in either case: who runs these tests may have used nohup(1) too.
    beginning = ["env", "--ignore-signal=HUP" if nohup else "--default-signal=HUP"]
    with subprocess.Popen([*beginning, *command], stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: machine.bundle is not None or process.poll() is not None)
            ignored = int(re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())[0], 16)
            assert bool(ignored & 1 << (signal.SIGHUP - 1)) is nohup
        finally:
            process.send_signal(signal.SIGTERM if nohup else signal.SIGHUP)
            _, told = process.communicate()
    assert process.returncode == 0, told
    assert "withdrawn from 1 machine" in told
    assert machine.bundle is None


def test_why_a_host_is_not_reached_is_told_in_the_words_of_who_knows(world: World) -> None:
    """The gate that refuses, the account that is closed, the host without a Python, or with an old one: not the banner, and what to try."""
    (world.home / "old").mkdir()
    (world.home / "old/python3").write_text('#!/bin/sh\n[ "$1" = -c ] || echo SyntaxError >&2\nexit 1\n')
    (world.home / "old/python3").chmod(0o755)
    world.courier = Ssh(["jump", "closed", "snake", "old"], command=[str(world.home / "ssh")])  # type: ignore[assignment]
    with world.forward() as f:
        by_name = {one.name: (str(one.reason), str(one.hint)) for one in f.status().workers}
    assert "me@gate: Permission denied" in by_name["jump"][0]
    assert "ssh -o BatchMode=yes jump true" in by_name["jump"][1]
    assert "This account is currently not available" in by_name["closed"][0]
    assert "no python3 on snake" in by_name["snake"][0]
    assert "older than 3.7" in by_name["old"][0]
    assert not any("Authorised" in reason or "Error" in reason for reason, _ in by_name.values())


def test_whatever_the_login_shell_is_it_runs(world: World) -> None:
    """The user's shell is given the command, and may be none of sh's kind: each that is on this machine understands it."""
    shells = [one for one in ("sh", "bash", "dash", "ksh", "zsh", "fish", "tcsh") if shutil.which(one)]
    for shell in shells:
        world.machine(shell)
    for shell in shells:
        program = world.home / f"ssh-{shell}"
        program.write_text((world.home / "ssh").read_text().replace(' sh -c "$6"', f' {shell} -c "$6"'))
        program.chmod(0o755)
        world.courier = Ssh([shell], command=[str(program)])  # type: ignore[assignment]
        with world.forward() as f:
            assert f.status().served == 1, shell


def test_nobody_waits_at_the_end_for_a_host_that_hangs(world: World) -> None:
    """The ssh that waits for it ends with the forwarding: else the program waits for it at its own end, or leaves it behind."""
    pids = world.home / "pids"
    (world.home / "stuck").touch()
    courier = Ssh(["stuck"], command=[str(world.home / "ssh")])
    leave = courier.watch(lambda _: None)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(courier.call, Job(steps=(), seconds=1800), ["stuck"])

        def ended() -> bool:
            leave()
            return asked.done()

        try:
            until(lambda: pids.exists() and pids.read_text().endswith("\n"))
            until(ended)
        finally:
            if not asked.done():
                os.kill(int(pids.read_text()), signal.SIGKILL)
        assert isinstance(asked.result()["stuck"], LateError)
    assert not Path("/proc", pids.read_text().strip()).exists()


def test_a_host_is_never_an_option() -> None:
    """Nothing that ssh would read as an option or as several words is a host."""
    for hosts in (["-oProxyCommand=sh"], ["a b"], [""], [], "w1"):
        with pytest.raises(UsageError):
            Ssh(hosts)


def test_a_host_that_talks_on_and_on_is_not_kept_in_memory() -> None:
    """Of what a host says on either stream only the end counts, and no more of it is kept; the reply is found in it."""
    talk = "head -c 33554432 /dev/zero; head -c 33554432 /dev/zero >&2; echo; echo reply"
    courier = Ssh(["w1"], command=["sh", "-c", talk, "ssh"])
    tracemalloc.start()
    try:
        assert courier.call(Job(steps=()), ["w1"]) == {"w1": "reply"}
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("exec <&-; echo reply", "reply"),  # wants nothing of what it is given
        ("cat >/dev/null; echo reply", "reply"),  # wants all of it
        ("exec >&- 2>&-; cat >/dev/null", None),  # says nothing, and ends later
        ("exec sleep 3600", LateError),
        ("exec >&- 2>&-; exec sleep 3600", LateError),
    ],
)
def test_whatever_a_host_does_with_its_streams_it_is_heard_or_late(
    monkeypatch: pytest.MonkeyPatch, program: str, said: str | type[LateError] | None
) -> None:
    """More input than a pipe holds, streams that are closed, no end: a reply, a reason, or too late."""
    late = said is LateError
    monkeypatch.setattr(on_ssh, "CONNECT_SECONDS", 0.0 if late else 60.0)
    job = Job(steps=(("PUT", "/", b"x" * 200_000),), seconds=0.2 if late else 60.0)
    answer = Ssh(["w1"], command=["sh", "-c", program, "ssh"]).call(job, ["w1"])["w1"]
    if late:
        assert isinstance(answer, LateError)
    elif said is None:
        assert "status 0, and no word" in str(answer)
    else:
        assert answer == said
