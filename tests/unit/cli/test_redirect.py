"""``credential-agent redirect`` where a process holds the rules: whom it asks for what."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from agent.cli import redirect as commands
from agent.cli.exits import EX_CONFIG, EX_OK, EX_OSERR
from agent.cli.redirect import redirect
from agent.core.errors import HostError
from agent.host import aliases, arrival, heard, hold, nft, systemctl

# Stands where the holder stands: makes a plan, or closes, when it is told to.
HOLDER = """
import json, os, pathlib, signal, sys
heeded = {signal.SIGHUP, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
print("ready", flush=True)
told = signal.sigwait(heeded)
state = pathlib.Path(sys.argv[2])
document = json.loads(state.read_text())
change = {"state": "closed", "by_command": True}
if told == signal.SIGHUP:
    change = {"plans": document["plans"] + 1, "by_command": False}
state.with_suffix(".new").write_text(json.dumps({**document, **change}))
os.replace(state.with_suffix(".new"), state)
"""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without systemd, wherever this runs."""
    monkeypatch.setattr(systemctl, "runs", lambda: False)


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


def full(path: Path, mode: int = 0o666) -> None:
    raise OSError(errno.ENOSPC, f"no space for {path.name}, {mode:o}")


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
    argv = [sys.executable, "-c", HOLDER, "agent.host.hold", str(state)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            if known is not None:
                state.write_text(json.dumps({"pid": holder.pid, "plans": 1, **known}))
            if not room:
                monkeypatch.setattr(Path, "touch", full)
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


class Holder:
    """A process that holds the rules, as the command sees it: what it says, one word after another, and what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path, *documents: dict[str, object] | None) -> None:
        self.told: list[int] = []
        self.closed = directory / hold.CLOSED_FILE
        self._documents, self._now = list(documents), 100.0
        state = SimpleNamespace(read_bytes=self._says, with_name=directory.joinpath, parent=directory)
        monkeypatch.setattr(arrival, "STATE", state)
        monkeypatch.setattr(arrival, "is_holder", lambda pid: str(pid) == "7")
        monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=self._clock, sleep=lambda _: None))
        monkeypatch.setattr(os, "kill", lambda _pid, number: self.told.append(number))
        monkeypatch.setattr(aliases, "set_aliases", lambda **_: None)
        monkeypatch.setattr(nft, "run", lambda _script: None)
        (directory / "config.toml").touch()

    def _clock(self) -> float:
        self._now += 1.0
        return self._now

    def _says(self) -> bytes:
        said = self._documents.pop(0) if len(self._documents) > 1 else self._documents[0]
        if said is None:
            raise FileNotFoundError
        usual = {"pid": 7, "plans": 1, "state": "led", "by_command": False, "notes": [], "error": None}
        return json.dumps(usual | said).encode()

    def does(self, command: str, **env: str) -> tuple[int, str]:
        """The status of a command, and what it says."""
        arguments = [command, "--config", str(self.closed.with_name("config.toml"))]
        done = CliRunner(env={"MAINPID": None, **env}).invoke(redirect, arguments, standalone_mode=False)
        if isinstance(done.exception, HostError):
            return EX_OSERR, done.exception.message
        assert done.exception is None
        return int(done.return_value or 0), done.output


def not_ours(_pid: int, _number: int) -> None:
    raise PermissionError


@pytest.mark.parametrize("command", ["apply", "close"])
def test_who_is_not_root_is_told_the_whole_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The hint is the command that was typed, as root: nothing in it is left to fill in."""
    holder = Holder(monkeypatch, tmp_path, {"done": {}})
    monkeypatch.setattr(os, "kill", not_ours)
    arguments = [command, "--config", str(holder.closed.with_name("config.toml"))]
    done = CliRunner(env={"MAINPID": None}).invoke(redirect, arguments, standalone_mode=False)
    assert isinstance(done.exception, HostError)
    assert f"credential-agent redirect {command}" in (done.exception.hint or "")


LATER = dict.fromkeys(heard.SIGNALS, 1000.0)
BEFORE = dict.fromkeys(heard.SIGNALS, 99.0)
REFUSED = "the kernel does not take the rules: nft: no"


@pytest.mark.parametrize(
    ("command", "said", "status", "words"),
    [
        ("apply", {"done": LATER}, EX_OK, ""),
        ("apply", {"done": LATER, "error": "redirect.uids: no"}, EX_CONFIG, "redirect.uids: no"),
        ("apply", {"done": LATER, "kernel": REFUSED}, EX_OSERR, REFUSED),
        ("apply", {"done": LATER, "by_command": True}, EX_OSERR, "somebody has closed meanwhile"),
        ("apply", {"done": BEFORE, "plans": 9}, EX_OSERR, "does not answer"),
        ("reload", {"done": LATER}, EX_OK, ""),
        ("reload", {"done": LATER, "kernel": REFUSED}, EX_OSERR, REFUSED),
        ("reload", {"done": LATER, "by_command": True}, EX_OK, "workers stay refused"),
        ("reload", {"done": {**LATER, "reload": 99.0}, "plans": 9}, EX_OSERR, "does not answer"),
        ("close", {"done": LATER, "by_command": True, "state": "closed"}, EX_OK, ""),
        ("close", {"done": LATER, "by_command": True, "kernel": REFUSED}, EX_OSERR, REFUSED),
        ("close", {"done": LATER, "by_command": True, "state": "unknown", "why": "no end"}, EX_OSERR, "no end"),
        ("close", {"done": LATER}, EX_OSERR, "somebody has opened meanwhile"),
        ("close", {"done": BEFORE, "by_command": True, "state": "closed"}, EX_OSERR, "does not answer"),
    ],
)
def test_a_command_succeeds_only_by_what_was_done_after_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, command: str, said: dict[str, object], status: int, words: str
) -> None:
    """It succeeds only if the kernel does what was commanded then; a word that comes before that one is none."""
    holder = Holder(monkeypatch, tmp_path, {"done": BEFORE}, {"done": BEFORE, "plans": 2}, said)
    env = {"MAINPID": "7"} if command == "reload" else {}
    got, output = holder.does(command.replace("reload", "apply"), **env)
    assert got == status
    assert words in output
    assert holder.told == [heard.SIGNALS[command]]
    assert holder.closed.exists() is (command == "close")


@pytest.mark.parametrize("by_command", [True, False])
def test_a_reload_beside_a_close_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, by_command: bool
) -> None:
    """Also where the holder has not yet said that it was told to close: the file says so first."""
    holder = Holder(monkeypatch, tmp_path, {"by_command": by_command})
    holder.closed.touch()
    assert holder.does("apply", MAINPID="7")[0] == EX_OK
    assert holder.told == []
    assert holder.closed.exists()


def test_a_reload_tells_a_holder_of_an_earlier_release_what_that_heeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal that it does not know would end it, and so refuse every worker."""
    holder = Holder(monkeypatch, tmp_path, {"plans": 1}, {"plans": 2})
    assert holder.does("apply", MAINPID="7")[0] == EX_OK
    assert holder.told == [signal.SIGHUP]


@pytest.mark.parametrize(("command", "told"), [("apply", signal.SIGHUP), ("close", signal.SIGUSR1)])
def test_a_holder_that_has_started_meanwhile_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, told: int
) -> None:
    """It may have looked before the command: what was loaded beside it does not last."""
    closed = {"by_command": True, "state": "closed"} if command == "close" else {}
    holder = Holder(monkeypatch, tmp_path, None, {"done": BEFORE}, {"done": LATER, **closed})
    assert holder.does(command)[0] == EX_OK
    assert holder.told == [told]


@pytest.mark.parametrize("by", ["a unit", "a person"])
def test_who_closes_beside_one_who_opens_without_a_holder_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Whatever of the two loads its rules last: who opens looks once more, and loads what refuses."""
    holder = Holder(monkeypatch, tmp_path, None)
    loaded: list[str] = []

    def run(script: str) -> None:
        loaded.append(script)
        holder.closed.touch()

    monkeypatch.setattr(nft, "run", run)
    status, said = holder.does("apply", **({"MAINPID": "1"} if by == "a unit" else {}))
    assert (status, "stay refused" in said) == (EX_OK if by == "a unit" else EX_OSERR, True)
    assert ["redirect to" in script for script in loaded] == [True, False]
    assert holder.closed.exists()


@pytest.mark.parametrize("command", ["apply", "reload", "close"])
@pytest.mark.parametrize(
    "written", ["never", "later", "by the one before it", "by one before it of an earlier release"]
)
def test_a_holder_whose_state_cannot_be_read_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, written: str
) -> None:
    """On a full /run: nothing is loaded behind its back, which it would undo; and nothing is said to be done that may not be."""
    former: dict[str, object] = {"plans": 9} if "release" in written else {"done": BEFORE}
    before = {"pid": 6, "by_command": True, "state": "closed", **former} if "before" in written else None
    done = {"done": LATER, **({"by_command": True, "state": "closed"} if command == "close" else {})}
    holder = Holder(monkeypatch, tmp_path, *[before] * 4, *([done] if written == "later" else []))
    loaded: list[str] = []
    monkeypatch.setattr(nft, "run", loaded.append)
    monkeypatch.setattr(systemctl, "main_pid", {hold.UNIT: 7}.__getitem__)
    monkeypatch.setattr(heard, "heeds", lambda pid: pid == 7)
    status, said = holder.does(command.replace("reload", "apply"), **({"MAINPID": "7"} if command == "reload" else {}))
    assert loaded == []
    assert holder.told == [heard.SIGNALS[command]]
    words = "" if written == "later" else "cannot be read"
    assert (status, words in said) == (EX_OK if written == "later" else EX_OSERR, True)


def test_a_holder_that_has_just_begun_is_told_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal would end it; it finds what was commanded, as any that starts meanwhile."""
    holder = Holder(monkeypatch, tmp_path, None)
    loaded: list[str] = []
    monkeypatch.setattr(nft, "run", loaded.append)
    monkeypatch.setattr(systemctl, "main_pid", lambda _unit: 7)
    monkeypatch.setattr(heard, "heeds", lambda _pid: False)
    assert holder.does("close")[0] == EX_OK
    assert (holder.told, len(loaded), holder.closed.exists()) == ([], 1, True)


@pytest.mark.parametrize(("command", "loads"), [("close", 1), ("apply", 0)])
def test_where_nobody_says_whether_there_is_a_holder_workers_are_at_most_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, loads: int
) -> None:
    """A worker can keep systemd busy: that opens nothing, keeps nobody from closing, and is no success."""
    holder = Holder(monkeypatch, tmp_path, None)
    loaded: list[str] = []

    def silent(_unit: str) -> int:
        raise HostError("systemctl show: no answer within 5 s")

    monkeypatch.setattr(nft, "run", loaded.append)
    monkeypatch.setattr(systemctl, "main_pid", silent)
    status, said = holder.does(command)
    assert (status, "no answer" in said, len(loaded)) == (EX_OSERR, True, loads)
    assert not any("redirect to" in script for script in loaded)
    assert holder.closed.exists() is (command == "close")


def test_a_holder_whose_state_cannot_be_read_is_stopped_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would put back what is removed."""
    Holder(monkeypatch, tmp_path, None)
    order: list[str] = []
    pids = [7, 0]
    monkeypatch.setattr(systemctl, "main_pid", lambda _unit: pids.pop(0))
    monkeypatch.setattr(heard, "heeds", lambda _pid: True)
    monkeypatch.setattr(systemctl, "stop", order.append)
    monkeypatch.setattr(nft, "run", lambda _script: order.append("removal"))
    done = CliRunner().invoke(redirect, ["remove"])
    assert (done.exit_code, order) == (0, [hold.UNIT, "removal"])


def test_a_holder_that_ends_before_it_is_told_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was commanded stays where its successor finds it."""
    holder = Holder(monkeypatch, tmp_path, {"done": BEFORE})

    def gone(*_: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", gone)
    assert holder.does("close") == (EX_OSERR, "process 7, which held the rules, has ended")
    assert holder.closed.exists()
