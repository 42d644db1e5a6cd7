"""What the process that holds the rules says is the kernel's word: whatever its ``nft`` does, and whatever it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from agent.cli.exits import EX_OK, EX_OSERR, EX_UNAVAILABLE
from agent.host import nft
from tests.system import lab
from tests.system.lab import Lab
from tests.system.test_hold import ALICE, KEEPS, METADATA, RESTARTED, Held, leading, until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(lab.missing() is not None, reason=lab.missing() or ""),
    pytest.mark.xdist_group("lab"),
]

BATCH = 500
WIDER = nft.Workers(uids=((BATCH, BATCH), (1000, 60000)))

# While the file is there, what loads rules does as its text says. (The name is that by which the command knows it.)
TROUBLE = """
# agent.host.hold
import os, pathlib, signal, subprocess, time
from agent.core.errors import HostError
from agent.host import enforcing, hold, ownership
hold.LOOK_AGAIN_SECONDS, hold.BEAT_SECONDS = (0.1, 0.3), 0.1
mark = pathlib.Path({0!r})
def trouble():
    return mark.read_text() if mark.exists() else ""
real_run, real_load, give_back = ownership.Connection.run, enforcing.Rules.load, ownership.give_back
def run(self, script):
    how = "" if script.startswith("list") else trouble()
    if how == "refuses":
        raise HostError("nft: Cannot allocate memory")
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    said = "" if how == "hangs" else real_run(self, script)
    if how in ("hangs", "late"):
        time.sleep(1000)
    return said
def load(self, *args, **more):
    long = 0.3 if trouble() in ("hangs", "late") else 10.0
    enforcing.LOAD_SECONDS = enforcing.STEP_SECONDS = long
    return real_load(self, *args, **more)
flushed = []
def flush():
    give_back()
    if trouble() == "flush" and not flushed:
        flushed.append(subprocess.run(["nft", "flush", "ruleset"], check=True))
ownership.Connection.run, enforcing.Rules.load, ownership.give_back = run, load, flush
"""

COMMAND = """
import functools, os, pathlib, sys
from agent import cli
from agent.cli import redirect
from agent.host import arrival, systemctl
systemctl.main_pid = lambda unit: int(os.environ["HOLDER"])
arrival.STATE, redirect.CLOSED_SECONDS = pathlib.Path(sys.argv[1]), 0.5
arrival.read = functools.partial(arrival.read, arrival.STATE)
sys.argv[1:] = ["redirect", *sys.argv[2:]]
cli.main()
"""


class Troubled(Held):
    """A holder for which loading rules may go wrong."""

    def __init__(self, net: Lab, directory: Path) -> None:
        super().__init__(net, directory)
        self.mark = directory / "trouble"

    def start(self, prelude: str = "") -> None:
        super().start(TROUBLE.format(str(self.mark)) + prelude)

    def does(self, command: str) -> tuple[int, str]:
        """The status of a command (``reload`` as the unit's), and what it says."""
        assert self.process is not None
        (config := self.directory / "config.toml").write_text("[redirect]\nunits = []\n")
        words = [sys.executable, "-I", "-c", COMMAND, str(self.directory / "run/state.json")]
        words += [command.replace("reload", "apply"), "--config", str(config)]
        env = {**os.environ, "HOLDER": str(self.process.pid)}
        env |= {"MAINPID": str(self.state()["pid"])} if command == "reload" else {}
        done = subprocess.run(
            ["ip", "netns", "exec", self.net.host, *words], capture_output=True, text=True, check=False, env=env
        )
        return done.returncode, done.stdout + done.stderr

    def asked(self, uid: int = ALICE) -> str:
        return self.net.ask(METADATA, uid=uid)

    def is_true(self) -> bool:
        """Whether its state is what a worker sees; one that says that it does not know is true."""
        said = {"led": "agent", "closed": "refused"}.get(self.state()["state"])
        return said is None or self.asked() == said


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Troubled]:
    with leading(Troubled, tmp_path) as holder:
        yield holder


def _mended(held: Troubled, *, closed: bool) -> None:
    """Once nothing is in its way, it does by itself what it was told."""
    held.mark.unlink()
    until(lambda: not held.state().get("kernel") and held.tables().count("credential_agent") == 4, "both copies")
    held.is_state("closed" if closed else "led")
    assert held.asked() == ("refused" if closed else "agent")
    assert held.state()["by_command"] is closed


@pytest.mark.parametrize("trouble", ["refuses", "hangs", "late", "dies", "flush"])
@pytest.mark.parametrize("command", ["apply", "close"])
def test_a_command_succeeds_only_if_the_kernel_does_it(held: Troubled, command: str, trouble: str) -> None:
    """Else it fails with the reason; the state is true, nobody is the machine, and it is done later."""
    run = held.directory / "run"
    if command != "close":
        held.plan(WIDER, users={"batch": BATCH})
    before = {name: (run / name).read_bytes() for name in ("plan.json", "users.json")}
    held.mark.write_text(trouble)
    status, said = held.does(command)
    assert held.asked() in {"agent", "refused"}
    assert held.is_true(), held.state()
    if status == EX_OK:
        assert trouble == "flush"
        assert held.asked(ALICE if command == "close" else BATCH) == ("refused" if command == "close" else "agent")
    else:
        assert (status, trouble == "flush") == (EX_OSERR, False), said
        assert "the kernel does not take the rules" in said
        assert held.state()["kernel"] is not None
        assert {name: (run / name).read_bytes() for name in before} == before  # a crash begins with what is in force
    _mended(held, closed=command == "close")
    if command != "close":
        assert held.asked(BATCH) == "agent"


def test_a_reload_succeeds_only_if_the_kernel_takes_it_and_check_says_so(held: Troubled) -> None:
    """Whoever was led is, by the rules of before; who was added is not."""
    held.plan(WIDER)
    held.mark.write_text("refuses")
    for command, status in (("reload", EX_OSERR), ("check", EX_UNAVAILABLE)):
        got, said = held.does(command)
        assert (got, "the kernel does not take the rules" in said) == (status, True), said
    _mended(held, closed=False)
    assert held.asked(BATCH) == "agent"
    assert "the kernel does not take the rules" not in held.does("check")[1]


@pytest.mark.parametrize("trouble", ["refuses", "hangs", "dies"])
@pytest.mark.parametrize("was", ["boot", "led", "closed"])
def test_a_start_that_can_load_nothing_says_what_is_there(tmp_path: Path, was: str, trouble: str) -> None:
    """The closed table of the boot, or what a process before it left: it is not said to be anything else."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Troubled(net, tmp_path)
        if was == "boot":
            net.nft(nft.refusal())
        else:
            held.start(RESTARTED)
            held.is_state("led")
            if was == "closed":
                assert held.does("close") == (EX_OK, "")
            held.signal(signal.SIGTERM)
            assert held.process is not None
            assert held.process.wait(20) == 0
            (tmp_path / "run/state.json").unlink()
        held.mark.write_text(trouble)
        held.start()
        until(partial(held.has_planned, 2), "attempts")
        state = held.state()
        assert state["state"] == ("unknown" if was == "led" else "closed"), state
        assert "the kernel does not take the rules" in state["kernel"]
        assert held.asked() == ("agent" if was == "led" else "refused")
        _mended(held, closed=was == "closed")


@pytest.mark.parametrize("trouble", ["refuses", "hangs", "dies"])
def test_a_stop_that_can_close_nothing_does_not_say_that_it_has(held: Troubled, trouble: str) -> None:
    """The unit closes after it; what was in force is not what the next start begins with."""
    held.mark.write_text(trouble)
    held.signal(signal.SIGTERM)
    assert held.process is not None
    assert held.process.wait(20) == 0
    assert held.state()["state"] != "closed"
    assert held.state()["by_command"] is False
    assert held.asked() == "agent"
    assert not (held.directory / "run/plan.json").exists()


def test_whom_a_plan_names_that_is_not_in_force_is_refused_at_the_next_boot_too(tmp_path: Path) -> None:
    """Who is led by the one in force as well: neither must be the machine then."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held, workers = Troubled(net, tmp_path), tmp_path / "workers"
        held.plan(WIDER, uids=[[BATCH, BATCH], [1000, 60000]])
        held.start(KEEPS.format(str(workers)))
        until(workers.exists, "the numbers")
        held.plan(uids=[[BATCH + 2, BATCH + 2]], scripts=["nonsense"])
        assert held.does("apply")[0] == EX_OSERR
        until(lambda: workers.read_text() == f"{BATCH}\n{BATCH + 2}\n", "both numbers")
        assert held.asked(BATCH) == "agent"


def test_a_holder_that_can_write_no_state_does_what_it_is_told(tmp_path: Path) -> None:
    """A full /run: what is loaded beside it it would put back, so it is told, and the command says what it cannot know."""
    with Lab() as net:
        net.serve_agent_that_answers()
        holder = Troubled(net, tmp_path)
        (state := tmp_path / "run/state.json").mkdir(parents=True)
        holder.start()

        def answers(word: str) -> bool:
            return holder.tables().count("credential_agent") == 4 and holder.asked() == word

        until(partial(answers, "agent"), "the rules")
        for command, answer in (("close", "refused"), ("apply", "agent"), ("close", "refused")):
            status, said = holder.does(command)
            assert (status, "state.json: cannot be read" in said) == (EX_OSERR, True), said
            until(partial(answers, answer), answer)
        net.nft("flush table inet credential_agent_closed")
        until(lambda: "reject" in net.at(net.host, "nft", "list", "table", *nft.CLOSED.split()), "the closed table")
        assert holder.asked() == "refused"
        state.rmdir()
        until(state.is_file, "its state")
        assert holder.does("apply")[0] == EX_OK
        assert holder.asked() == "agent"


def test_who_closes_while_a_script_of_the_plan_is_refused_is_obeyed(held: Troubled) -> None:
    """A control group that is named in it is gone, say: then the closed table alone refuses, and nothing leads any more."""
    held.plan(closed="nonsense")
    assert held.does("apply") == (EX_OK, "")
    assert held.does("close") == (EX_OK, "")
    assert held.asked() == held.net.ask(METADATA, space=held.net.job) == "refused"
    state = held.is_state("closed")
    assert (state["by_command"], state["held"]) == (True, True)
    held.net.nft("flush ruleset")
    assert held.asked() == "refused"


def test_what_was_answered_before_a_close_is_not_believed_after_it(held: Troubled) -> None:
    """The way to the agent is gone meanwhile: the first word after opening is not that workers are led."""
    assert held.does("close") == (EX_OK, "")
    held.net.at(held.net.host, "ip", "link", "set", "lo", "down")
    assert held.does("apply")[0] == EX_OK
    assert held.state()["state"] == "unanswered"
    until(lambda: "gets none" in held.state()["why"], "the answer")
    assert held.state()["state"] == "unanswered"


@pytest.mark.parametrize("last", ["apply", "close"])
def test_of_two_commands_at_once_the_later_one_counts(held: Troubled, last: str) -> None:
    """The file of the last one says which it was, in whatever order their signals come."""
    process, closed = held.process, held.directory / "run/closed"
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    closed.touch()
    if last == "apply":
        closed.unlink()
    for number in (signal.SIGUSR1, signal.SIGHUP):
        process.send_signal(number)
    plans = held.state()["plans"]
    process.send_signal(signal.SIGCONT)
    until(partial(held.has_planned, plans + 1), "the plan")
    held.is_state("led" if last == "apply" else "closed")
    assert held.asked() == ("agent" if last == "apply" else "refused")
    assert closed.exists() is (last == "close")


FILED = """
import pathlib
from agent.host import reporting
closed = pathlib.Path({!r}).with_name("closed")
write, done = reporting.Reporter.write, []
def written(self, name, *args, **more):
    if name == "state.json" and not done:  # by one who found no state yet, and so sent no signal
        done.append(closed.unlink() if closed.exists() else closed.touch())
    write(self, name, *args, **more)
reporting.Reporter.write = written
"""


@pytest.mark.parametrize("closed", [True, False])
def test_a_command_beside_a_start_is_heeded(tmp_path: Path, *, closed: bool) -> None:
    """Whoever finds no state yet sends no signal, and leaves or removes a file: that is looked for after the state is there."""
    (run := tmp_path / "run").mkdir()
    if not closed:
        (run / "closed").touch()
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Troubled(net, tmp_path)
        held.start(FILED.format(str(run / "state.json")))
        until(partial(held.has_planned, 1), "the plan")
        held.is_state("closed" if closed else "led")
        assert held.state()["by_command"] is closed
        assert held.asked() == ("refused" if closed else "agent")
