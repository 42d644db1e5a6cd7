"""``credential-agent redirect`` where a process holds the rules: whom it asks for what."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.redirect import redirect
from agent.core.errors import HostError
from agent.host import aliases, arrival, hold, nft

# Stands where the holder stands: makes a plan, or closes, when it is told to.
HOLDER = """
import json, os, pathlib, signal, sys
heeded = {signal.SIGHUP, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
print("ready", flush=True)
told = signal.sigwait(heeded)
state = pathlib.Path(sys.argv[2])
document = json.loads(state.read_text())
change = {"plans": document["plans"] + 1} if told == signal.SIGHUP else {"state": "closed", "by_command": True}
if told == signal.SIGUSR1 and sys.argv[3:] != ["full"]:
    state.with_name("closed").touch()
state.with_suffix(".new").write_text(json.dumps({**document, **change}))
os.replace(state.with_suffix(".new"), state)
"""


@pytest.mark.parametrize(
    ("document", "by", "asked"),
    [
        ({"by_command": True}, "the unit", False),  # its ExecReload= (systemd.exec(5): $MAINPID)
        ({"by_command": True}, "a person", True),
        ({"by_command": True}, "another unit", True),
        ({"by_command": False}, "the unit", True),
        ({}, "the unit", True),  # the holder is of an earlier release
    ],
)
def test_a_reload_of_the_unit_does_not_open_what_was_closed_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: dict[str, bool], by: str, asked: bool
) -> None:
    """Each start of a worker's gate reloads it: only who types the command opens again."""
    state = tmp_path / "state.json"
    monkeypatch.setattr(arrival, "STATE", state)
    argv = [sys.executable, "-c", HOLDER, "agent.host.hold", str(state)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            known: dict[str, object] = {
                "pid": holder.pid,
                "plans": 1,
                "state": "closed",
                "notes": [],
                "error": None,
                **document,
            }
            state.write_text(json.dumps(known))
            main_pid: str | None = {"the unit": str(holder.pid), "another unit": "1"}.get(by)
            done = CliRunner(env={"MAINPID": main_pid}).invoke(redirect, ["apply"])
        finally:
            holder.kill()
    assert done.exit_code == 0
    assert json.loads(state.read_text())["plans"] == 1 + asked
    assert ("workers stay refused" in done.output) is not asked


def test_where_no_process_holds_the_rules_the_next_one_knows_what_was_commanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be between a crash and its next start, which opens nothing that was closed meanwhile."""
    monkeypatch.setattr(arrival, "STATE", tmp_path / "state.json")
    monkeypatch.setattr(nft, "run", lambda _script: None)
    monkeypatch.setattr(aliases, "set_aliases", lambda **_: None)
    (tmp_path / "config.toml").touch()
    for command, closed in (("close", True), ("close --print", True), ("apply --print", True), ("apply", False)):
        arguments = [*command.split(), "--config", str(tmp_path / "config.toml")]
        assert CliRunner().invoke(redirect, arguments).exit_code == 0
        assert (tmp_path / hold.CLOSED_FILE).exists() is closed, command


@pytest.mark.parametrize("state", [None, "", '{"pid": 1'])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("by", ["a unit", "a person"])
def test_a_reload_that_cannot_read_the_state_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str | None, closed: bool, by: str
) -> None:
    """On a full /run it may be half written just then: what an operator closed stays so, and only a person opens it."""
    loaded: list[object] = []
    monkeypatch.setattr(arrival, "STATE", tmp_path / "state.json")
    monkeypatch.setattr(nft, "run", loaded.append)
    monkeypatch.setattr(aliases, "set_aliases", lambda **_: None)
    (tmp_path / "config.toml").touch()
    if state is not None:
        (tmp_path / "state.json").write_text(state)
    if closed:
        (tmp_path / hold.CLOSED_FILE).touch()
    env = {"MAINPID": "4711" if by == "a unit" else None}
    done = CliRunner(env=env).invoke(redirect, ["apply", "--config", str(tmp_path / "config.toml")])
    assert done.exit_code == 0
    stays = closed and by == "a unit"
    assert (not loaded, (tmp_path / hold.CLOSED_FILE).exists()) == (stays, stays)


@pytest.mark.parametrize(
    "known", [{"state": "led", "by_command": False}, {"state": "closed", "by_command": False}, None]
)
@pytest.mark.parametrize("room", [True, False])
def test_who_closes_hears_when_a_restart_would_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: dict[str, object] | None, room: bool
) -> None:
    """Nothing can be written any more (a full /run): workers are refused, and the command says how long."""
    place = tmp_path / "run"
    state = place / "state.json"
    monkeypatch.setattr(arrival, "STATE", state)
    monkeypatch.setattr(nft, "run", lambda _script: None)
    monkeypatch.setattr(aliases, "set_aliases", lambda **_: None)
    (tmp_path / "config.toml").touch()
    place.mkdir()
    argv = [sys.executable, "-c", HOLDER, "agent.host.hold", str(state), *([] if room else ["full"])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            if known is not None:
                state.write_text(json.dumps({"pid": holder.pid, "plans": 1, **known}))
            elif not room:
                place.rmdir()
                place.touch()  # as little can be made in it as on a full disk
            done = CliRunner().invoke(redirect, ["close", "--config", str(tmp_path / "config.toml")])
        finally:
            holder.kill()
    assert (place / hold.CLOSED_FILE).exists() is room
    if room:
        assert done.exit_code == 0
    else:
        assert isinstance(done.exception, HostError)
        assert "a restart of" in done.exception.message


@pytest.mark.parametrize("looked", ["after the command began", "before"])
def test_no_process_that_starts_meanwhile_opens_what_is_being_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked: str
) -> None:
    """It finds what was commanded before the rules are made; where it had looked already, it is told."""
    state, closed = tmp_path / "state.json", tmp_path / hold.CLOSED_FILE
    monkeypatch.setattr(arrival, "STATE", state)
    monkeypatch.setattr(aliases, "set_aliases", lambda **_: None)
    (tmp_path / "config.toml").touch()
    argv = [sys.executable, "-c", HOLDER, "agent.host.hold", str(state)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:

        def starts(_script: str) -> None:
            by_command = closed.exists() and looked != "before"
            known = {"pid": holder.pid, "plans": 1, "state": "led", "by_command": by_command}
            state.write_text(json.dumps(known | ({"state": "closed"} if by_command else {})))

        monkeypatch.setattr(nft, "run", starts)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            done = CliRunner().invoke(redirect, ["close", "--config", str(tmp_path / "config.toml")])
        finally:
            holder.kill()
    assert done.exit_code == 0
    assert closed.exists()
    assert json.loads(state.read_text())["by_command"] is True
