"""The process that holds the rules: what others do to them does not last, and mostly does not happen."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agent.host import arrival, nft
from tests.fakes.full_queue import FullQueue
from tests.system import harness, lab
from tests.system.lab import AGENT_PORT, AGENT_UID, Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(lab.missing() is not None, reason=lab.missing() or ""),
    pytest.mark.xdist_group("lab"),
]

METADATA = "169.254.169.254"
ALICE = 1000
T = TypeVar("T")


def until(look: Callable[[], T], what: str, *, seconds: float = 20) -> T:
    """The first true value."""
    return harness.until(look, seconds=seconds, what=what)


class Held:
    """A holder in a network of its own, and the plan that it is given."""

    def __init__(self, net: Lab, directory: Path) -> None:
        self.net, self.directory = net, directory
        self.plan_file = directory / "the-plan"
        self.plan()
        self.process: subprocess.Popen[str] | None = None

    def plan(self, workers: nft.Workers | None = None, **more: Any) -> None:
        """What the configuration would make."""
        workers = workers or nft.Workers(uids=((1000, 60000),))
        closed, script = (nft.ruleset(workers, port=AGENT_PORT, agent_uid=AGENT_UID, closed=c) for c in (True, False))
        plan = {"scripts": [script], "closed": closed, "ipv6": True, "error": None, "notes": [], "pending": [],
                "uid": ALICE, "groups": {}, **more}  # fmt: skip
        self.plan_file.write_text(json.dumps(plan))

    def start(self, prelude: str = "") -> None:
        users = self.directory / "passwd"
        users.touch()
        code = prelude + "import os, pathlib, sys; from agent.host import hold\n"
        code += f"hold.USERS = (pathlib.Path({str(users)!r}),); hold.main(sys.argv[1:], os.environ)"
        hold = [sys.executable, "-I", "-c", code, str(self.directory / "run"), "cat", str(self.plan_file)]
        self.process = self.net.start(self.net.host, *hold)

    def state(self) -> dict[str, Any]:
        try:
            document = json.loads((self.directory / "run/state.json").read_bytes())
        except FileNotFoundError:
            return {"state": None, "plans": 0, "healed": 0}
        assert isinstance(document, dict)
        return document

    def is_state(self, name: str) -> dict[str, Any]:
        return until(lambda: (state := self.state())["state"] == name and state, f"state {name}")

    def has_planned(self, times: int) -> bool:
        return int(self.state()["plans"]) >= times

    def turns(self, number: int) -> None:
        """Wait until it has said so often that it lives."""
        beats: set[float] = set()

        def are_enough() -> bool:
            beats.add(self.state()["beat"])
            return len(beats) > number

        until(are_enough, "further turns")

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def tables(self) -> str:
        return self.net.at(self.net.host, "nft", "list", "tables")


def _on_loopback(held: Held, address: str) -> bool:
    return address in held.net.at(held.net.host, "ip", "address", "show", "dev", "lo")


H = TypeVar("H", bound=Held)


@contextmanager
def leading(kind: type[H], place: Path) -> Iterator[H]:
    """One that leads the workers of a network to an agent that answers."""
    with Lab() as net:
        net.serve_agent_that_answers()
        holder = kind(net, place)
        holder.start()
        holder.is_state("led")
        yield holder


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    with leading(Held, tmp_path) as holder:
        yield holder


EARLY = """
import os, signal
from agent.host import netlink
rules = netlink.rules
def early(table):
    os.kill(os.getpid(), signal.SIGHUP)
    return rules(table)
netlink.rules = early
"""


def test_a_reload_that_is_asked_for_too_early_waits(tmp_path: Path) -> None:
    """SIGHUP before the holder heeds it does not end it, which would refuse every worker until its next start."""
    with Lab() as net:
        net.serve_agent_that_answers()
        holder = Held(net, tmp_path)
        holder.start(EARLY)
        holder.is_state("led")
        assert holder.process is not None
        assert holder.process.poll() is None


BLOWS = {
    "flush ruleset": "flush ruleset",
    "flush and load others": "flush ruleset\ntable inet theirs {\n}",
    "delete both": "delete table inet credential_agent\ndelete table inet credential_agent_closed",
    "delete one": "delete table inet credential_agent",
    "empty one": "flush table inet credential_agent",
    "empty a chain": "flush chain inet credential_agent_closed local",
    "empty a set": "flush set inet credential_agent_closed metadata_ip",
    "let through": "insert rule inet credential_agent_closed output accept",
    "exempt": "add element inet credential_agent_closed exempt_uids { 1000-2000 }",
}


@pytest.mark.parametrize("blow", BLOWS)
def test_no_blow_opens_and_each_is_mended(held: Held, blow: str) -> None:
    """In the very next moment a worker and a container are led as before; soon our table is what it was."""
    net = held.net
    before = held.state()["healed"]
    net.nft(BLOWS[blow])
    assert net.ask(METADATA, uid=ALICE) == "agent"
    assert net.ask(METADATA, 443, uid=ALICE) == net.ask(METADATA, 443, space=net.job) == "refused"
    until(lambda: held.state()["healed"] > before, "the healing")
    assert held.tables().count("credential_agent") == 4
    assert net.ask(METADATA, uid=ALICE) == net.ask(METADATA, space=net.job) == "agent"
    assert net.ask(METADATA, uid=0) == "machine"


def test_a_gate_that_comes_is_no_change_of_ours(held: Held) -> None:
    """A slice's gate adds a chain to the closed table: nothing is put back for it, and nobody is alarmed."""
    before = held.state()["healed"]
    chain = "inet credential_agent_closed slice_1"
    held.net.nft(
        f"add chain {chain} {{ type filter hook output priority 10; }}\nadd rule {chain} meta skuid 4000 accept"
    )
    held.net.nft("add element inet credential_agent_closed exempt_uids { 5000 }")  # and this one is
    until(lambda: held.state()["healed"] > before, "the healing")
    assert held.state()["healed"] == before + 1
    assert "slice_1" in held.net.at(held.net.host, "nft", "list", "table", *nft.CLOSED.split())


def test_nobody_else_may_touch_what_is_held(held: Held) -> None:
    """The kernel refuses; not even root may, but by ending the process."""
    for script in ("delete table inet credential_agent_held", "flush table inet credential_agent_closed_held",
                   "insert rule inet credential_agent_closed_held output accept"):  # fmt: skip
        with pytest.raises(AssertionError, match="Operation not permitted"):
            held.net.nft(script)


def test_a_front_address_that_is_taken_away_comes_back(held: Held) -> None:
    """Containers are led to it."""
    for address in ("169.254.171.2/32", "fd6c:9e1f:25b2::2/128"):
        held.net.at(held.net.host, "ip", "address", "del", address, "dev", "lo")
        bare = address.partition("/")[0]
        until(partial(_on_loopback, held, bare), "the address")
    assert held.net.ask(METADATA, space=held.net.job) == "agent"


def test_a_way_that_is_gone_is_noticed_when_it_goes(held: Held) -> None:
    """Somebody takes the loopback interface down: it is said within seconds, and so is its coming back."""
    held.net.at(held.net.host, "ip", "link", "set", "lo", "down")
    held.is_state("unanswered")
    held.net.at(held.net.host, "ip", "link", "set", "lo", "up")
    held.is_state("led")


def test_a_holder_that_is_killed_leaves_what_leads(held: Held) -> None:
    """Without it the first copy of the rules leads; the next one takes over, also when the configuration is broken then."""
    assert held.process is not None
    held.net.kill(held.process)
    assert held.net.ask(METADATA, uid=ALICE) == "agent"
    assert held.tables().count("held") == 0
    held.plan_file.write_text("no JSON at all")
    held.start()
    until(lambda: held.tables().count("held") == 2, "the second copy")
    held.is_state("led")
    held.net.nft("flush ruleset")
    assert held.net.ask(METADATA, uid=ALICE) == "agent"


def test_a_stopped_holder_leaves_it_closed(held: Held) -> None:
    """A stop is not a removal: workers are refused, and the machine is not."""
    held.signal(signal.SIGTERM)
    assert held.process is not None
    held.process.wait(20)
    assert held.net.ask(METADATA, uid=ALICE) == "refused"
    assert held.net.ask(METADATA, space=held.net.job) == "refused"
    assert held.net.ask(METADATA, uid=0) == "machine"
    assert held.state()["state"] == "closed"


def test_by_command_it_closes_and_opens(held: Held) -> None:
    """``redirect close`` and ``redirect apply``."""
    held.signal(signal.SIGUSR1)
    held.is_state("closed")
    assert held.net.ask(METADATA, uid=ALICE) == "refused"
    held.signal(signal.SIGHUP)
    held.is_state("led")
    assert held.net.ask(METADATA, uid=ALICE) == "agent"


def test_what_was_closed_by_command_stays_so(held: Held) -> None:
    """Neither another plan, nor somebody who changes the rules, opens: only the command does."""
    held.signal(signal.SIGUSR1)
    held.is_state("closed")
    held.plan(nft.Workers(uids=((1000, 50000),)))
    plans = held.state()["plans"]
    (held.directory / "passwd").write_text("dave")
    until(partial(held.has_planned, plans + 1), "another plan")
    assert held.net.ask(METADATA, uid=ALICE) == "refused"
    healed = held.state()["healed"]
    held.net.nft("flush ruleset")
    until(lambda: held.state()["healed"] > healed, "the healing")
    closed = held.is_state("closed")
    assert closed["why"].endswith("(credential-agent redirect close)")
    assert closed["by_command"] is True
    assert held.net.ask(METADATA, uid=ALICE) == "refused"
    held.signal(signal.SIGHUP)
    assert held.is_state("led")["by_command"] is False
    assert held.net.ask(METADATA, uid=ALICE) == "agent"
    assert held.net.ask(METADATA, uid=60000) == "machine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_led_before_a_stop_leads_nobody_after_it(held: Held, number: signal.Signals) -> None:
    """The next holder knows no plan: until it has one of its own, workers are refused."""
    assert (held.directory / "run/plan.json").stat().st_mode & 0o777 == 0o600
    assert held.process is not None
    held.signal(number)
    assert held.process.wait(20) == 0
    held.plan_file.write_text("no plan")
    (held.directory / "run/state.json").unlink()
    held.start()
    until(lambda: "cannot be made" in str(held.state().get("why")), "its own attempt")
    assert held.state()["state"] == "closed"
    assert held.net.ask(METADATA, uid=ALICE) == "refused"


RESTARTED = """
from agent.host import systemctl
systemctl.is_restarting = lambda unit: unit == "credential-agent-redirect.service"
"""


def test_a_restart_leads_all_the_while(tmp_path: Path) -> None:
    """Systemd ends it only to start it again: the rules stay, and lead from the first moment, whatever a plan says by then."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.start(RESTARTED)
        held.is_state("led")
        held.signal(signal.SIGTERM)
        assert held.process is not None
        assert held.process.wait(20) == 0
        assert net.ask(METADATA, uid=ALICE) == "agent"
        held.plan_file.write_text("no plan")
        (tmp_path / "run/state.json").unlink()
        held.start(RESTARTED)
        held.is_state("led")
        assert held.tables().count("held") == 2
        assert net.ask(METADATA, uid=ALICE) == "agent"


@pytest.mark.parametrize("ended", ["killed", "stopped", "restarted"])
def test_what_was_closed_by_command_stays_so_whatever_ends_the_holder(tmp_path: Path, ended: str) -> None:
    """A crash, a restart and an upgrade are no command: only that opens again, and then for the next holder too."""
    prelude = RESTARTED if ended == "restarted" else ""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)

        def again() -> None:
            assert held.process is not None
            if ended == "killed":
                net.kill(held.process)
            else:
                held.signal(signal.SIGTERM)
                assert held.process.wait(20) == 0
            (tmp_path / "run/state.json").unlink()
            held.start(prelude)
            until(lambda: held.state()["plans"], "a plan")

        held.start(prelude)
        held.is_state("led")
        held.signal(signal.SIGUSR1)
        held.is_state("closed")
        for _ in range(2):
            again()
            assert held.is_state("closed")["by_command"] is True
            assert net.ask(METADATA, uid=ALICE) == "refused"
        held.signal(signal.SIGHUP)
        held.is_state("led")
        again()
        assert held.is_state("led")["by_command"] is False
        assert net.ask(METADATA, uid=ALICE) == "agent"


KEEPS = """
import functools, pathlib
from agent.host import lasting
lasting.Kept = functools.partial(lasting.Kept, pathlib.Path({!r}))
"""


def test_what_is_known_of_workers_is_kept_and_a_mistake_takes_nothing_of_it(tmp_path: Path) -> None:
    """The numbers that names have, for this boot and for root alone; who is a worker by them, for the next one."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        users, workers = tmp_path / "run/users.json", tmp_path / "workers"
        held.plan(users={"batch": 500}, uids=[[500, 500], [1000, 60000]], refused=[[7, 9]])
        held.start(KEEPS.format(str(workers)))
        until(lambda: users.exists() and workers.exists(), "both files")
        held.plan(users={}, uids=[], refused=[], error="redirect.users: expected ...", section=[{}, AGENT_PORT])
        held.signal(signal.SIGHUP)
        until(lambda: held.state().get("error"), "the mistake")
        assert json.loads(users.read_bytes()) == {"batch": 500}
        assert users.stat().st_mode & 0o777 == 0o600
        assert workers.read_text() == "7-9\n500\n"
        held.plan(users={"batch": 501}, uids=[[501, 501]])
        held.signal(signal.SIGHUP)
        until(lambda: workers.read_text() == "501\n", "the next numbers")
        assert json.loads(users.read_bytes()) == {"batch": 501}


WATCHED = """
from agent.host import enforcing, systemctl
systemctl.is_active = lambda unit: unit == "credential-agent-watch.service"
enforcing.HAND_OVER_SECONDS = {}
"""


def test_a_stop_waits_until_whoever_watches_has_a_copy_of_its_own(tmp_path: Path) -> None:
    """Between the two there would be a moment in which a flush opens: the second copy goes once there is a third."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.start(WATCHED.format(10_000))
        held.is_state("led")
        held.signal(signal.SIGTERM)
        until(lambda: "chain handover" in net.at(net.host, "nft", "list", "ruleset"), "the call to those who watch")
        assert held.process is not None
        assert held.process.poll() is None
        assert held.tables().count("held") == 2
        net.nft("flush ruleset")  # all that anybody but the holder may remove
        assert net.ask(METADATA, uid=ALICE) == "refused"
        net.nft(f"add table {nft.CLOSED}\nadd chain {nft.CLOSED} handover\nadd table {nft.KEPT}")
        assert held.process.wait(20) == 0
        assert "chain handover" not in net.at(net.host, "nft", "list", "ruleset")


def test_a_stop_waits_for_nobody_who_does_not_come(tmp_path: Path) -> None:
    """Whoever watches may hang: the stop goes on, and workers are refused."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.start(WATCHED.format(0.1))
        held.is_state("led")
        held.signal(signal.SIGTERM)
        assert held.process is not None
        assert held.process.wait(20) == 0
        assert "chain handover" not in net.at(net.host, "nft", "list", "ruleset")
        assert net.ask(METADATA, uid=ALICE) == "refused"


def test_where_no_uid_is_a_worker_nobody_is_asked_for(tmp_path: Path) -> None:
    """Workers by their control group alone: there is none that could be stood in for, and that is no trouble."""
    with Lab() as net:
        held = Held(net, tmp_path)
        held.plan(uid=None)
        held.start("from agent.host import hold; hold.BEAT_SECONDS = 0.02\n")
        state = held.is_state("led")
        assert (state["why"], state["error"], state["notes"]) == (None, None, [])
        held.turns(5)
        assert held.state()["state"] == "led"


def _says(net: Lab, program: str) -> bool:
    try:
        net.at(net.host, sys.executable, "-I", "-S", "-c", program)
    except AssertionError:
        return False
    return True


def test_an_address_stays_reserved_while_systemd_does_not_answer(tmp_path: Path) -> None:
    """A plan that cannot say which they are sets none free, and is soon made again."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.plan(reserve=[("127.0.0.1", 4444)], reserve_is_known=True)
        held.start(OFTEN + "hold.BEAT_SECONDS = 0.05\n")
        held.is_state("led")
        bind = "import socket; socket.socket().bind(('127.0.0.1', 4444))"
        handle = net.at(net.host, "nft", "-a", "list", "table", *nft.TABLE.split())
        for is_known, more in ((False, 3), (True, 0)):
            plans = held.state()["plans"]
            held.plan(reserve=[("127.0.0.1", 4444)] if is_known else [], reserve_is_known=is_known)
            (held.directory / "passwd").write_text(f"dave {is_known}")
            until(partial(held.has_planned, plans + 1 + more), "more plans")
            with pytest.raises(AssertionError, match="Address already in use"):
                net.at(net.host, sys.executable, "-I", "-S", "-c", bind)
        assert net.at(net.host, "nft", "-a", "list", "table", *nft.TABLE.split()) == handle
        held.plan(reserve=[])
        held.signal(signal.SIGHUP)
        # Not after so many plans: one may be under way that began before.
        until(partial(_says, net, bind), "a plan that says that there are none")


def test_an_address_stays_reserved_while_the_rules_that_lead_to_it_are_in_force(tmp_path: Path) -> None:
    """A plan of other addresses that the kernel does not take reserves its own beside them."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.plan(reserve=[("127.0.0.1", 4444)])
        held.start()
        held.is_state("led")
        held.plan(scripts=["these are no rules"], reserve=[("127.0.0.1", 4445)])
        held.signal(signal.SIGHUP)
        until(lambda: held.state()["kernel"], "that it is not taken")
        bind = "import socket; socket.socket().bind(('127.0.0.1', {}))"
        for port in (4444, 4445):
            with pytest.raises(AssertionError, match="Address already in use"):
                net.at(net.host, sys.executable, "-I", "-S", "-c", bind.format(port))
        held.plan(reserve=[("127.0.0.1", 4445)])
        until(partial(_says, net, bind.format(4444)), "a plan that is taken")
        with pytest.raises(AssertionError, match="Address already in use"):
            net.at(net.host, sys.executable, "-I", "-S", "-c", bind.format(4445))


READ_ONLY = """
import pathlib
def fails(self, *_, **__):
    raise OSError(30, "Read-only file system")
pathlib.Path.unlink = pathlib.Path.touch = fails
"""


def test_where_nothing_can_be_written_the_rules_are_held_all_the_same(tmp_path: Path) -> None:
    """A /run that is read-only: neither a load nor a command ends the holder."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.start(READ_ONLY)
        assert held.process is not None
        until(lambda: held.tables().count("credential_agent") == 4, "both copies")
        for number, answer in ((signal.SIGUSR1, "refused"), (signal.SIGHUP, "agent")):
            held.signal(number)
            until(partial(_answers, held, answer), answer)
        assert held.process.poll() is None


def _answers(held: Held, word: str) -> bool:
    return held.net.ask(METADATA, uid=ALICE) == word


def test_names_of_a_directory_are_looked_up_now_and_then(tmp_path: Path) -> None:
    """What no file of this machine shows is seen by asking again: rules change only where somebody's number did."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.start("from agent.host import hold; hold.NAMES_EVERY_SECONDS = hold.BEAT_SECONDS = 0.05\n")
        held.is_state("led")
        before = net.at(net.host, "nft", "-a", "list", "table", *nft.TABLE.split())
        until(partial(held.has_planned, held.state()["plans"] + 3), "looks")
        assert net.at(net.host, "nft", "-a", "list", "table", *nft.TABLE.split()) == before
        held.plan(nft.Workers(uids=((500, 500), (1000, 60000))))
        until(lambda: net.ask(METADATA, uid=500) == "agent", "the new number")


def test_the_way_is_given_back_once_rules_are_in_force(tmp_path: Path) -> None:
    """Where nftables could not be used the routing policy refused: it goes with the first rules, and without its mark stays."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        for preference in (169, 170, 171):
            net.at(net.host, "ip", "rule", "add", "pref", str(preference), "to", f"{METADATA}/32", "unreachable")
        held.start()
        until(lambda: "no route" in str(held.state().get("why")), "that there is no way")
        assert held.process is not None
        held.net.kill(held.process)
        mark = tmp_path / "run/unroutable"
        mark.touch()
        held.start()
        held.is_state("led")
        assert not mark.exists()
        assert "unreachable" not in net.at(net.host, "ip", "rule")


NO_IP = """
import pathlib, subprocess
from agent.host import hold
hold.VERIFY_SECONDS = hold.BEAT_SECONDS = 0.05
real = subprocess.run
def run(command, **more):
    if command[0].endswith("/ip") and pathlib.Path({!r}).exists():
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return real(command, **more)
subprocess.run = run
"""


def test_a_way_that_cannot_be_given_back_just_now_is_given_back_later(tmp_path: Path) -> None:
    """Where no process can be had for it (a fork bomb), the mark stays, and so do further attempts: else it were for ever."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        net.at(net.host, "ip", "rule", "add", "pref", "170", "to", f"{METADATA}/32", "unreachable")
        (tmp_path / "run").mkdir()
        (mark := tmp_path / "run/unroutable").touch()
        (none := tmp_path / "none-left").touch()
        held.start(NO_IP.format(str(none)))
        until(lambda: "no route" in str(held.state().get("why")), "that there is no way")
        held.turns(5)
        assert mark.exists()
        none.unlink()
        held.is_state("led")
        assert not mark.exists()
        assert net.ask(METADATA, uid=ALICE) == "agent"


def test_a_broken_plan_leaves_what_leads_and_says_so(held: Held) -> None:
    """A mistake in the configuration of a machine that runs closes nothing, and is told."""
    plans = held.state()["plans"]
    held.plan(scripts=["garbage"], closed="garbage", error="redirect.uids: expected ...")
    held.signal(signal.SIGHUP)
    until(lambda: held.state()["plans"] > plans, "the next plan")
    assert held.state()["error"] == "redirect.uids: expected ..."
    assert held.net.ask(METADATA, uid=ALICE) == "agent"


def test_whom_a_mistake_may_mean_is_refused_beside_those_who_are_led(held: Held) -> None:
    """The configuration is loaded anew, and broken: who is led is led, and who is named in it is not the machine's."""
    meant = nft.Workers(uids=((1000, 60000),), refused=((7, 7),))
    script, closed = (nft.ruleset(meant, port=AGENT_PORT, agent_uid=AGENT_UID, closed=c) for c in (False, True))
    held.plan(scripts=[script], closed=closed, error="redirect.port: expected ...", section=[{}, AGENT_PORT])
    held.signal(signal.SIGHUP)
    until(lambda: held.state()["error"], "the error")
    assert held.state()["state"] == "led"
    assert "set refused" in held.net.at(held.net.host, "nft", "list", "table", "inet", "credential_agent")
    held.plan()
    held.signal(signal.SIGHUP)
    until(lambda: held.state()["error"] is None, "no error")
    assert "set refused" not in held.net.at(held.net.host, "nft", "list", "table", "inet", "credential_agent")


@pytest.mark.parametrize("broken", ["no JSON", "[]", "{}", '{"error": null}'])
def test_without_a_plan_it_is_closed_and_mends_itself(tmp_path: Path, broken: str) -> None:
    """From the first moment: whatever the planner does. When it can make the rules again, they lead without anybody."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.plan_file.write_text(broken)
        held.start()
        held.is_state("closed")
        assert net.ask(METADATA, uid=ALICE) == net.ask(METADATA, space=net.job) == "refused"
        net.nft("flush ruleset")
        assert net.ask(METADATA, uid=ALICE) == net.ask(METADATA, space=net.job) == "refused"
        held.plan()
        held.is_state("led")
        assert net.ask(METADATA, uid=ALICE) == "agent"


def test_rules_that_the_kernel_does_not_take_are_tried_in_turn(tmp_path: Path) -> None:
    """A kernel that knows no limits of connections gets the rules without; one that takes none is closed."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        good = json.loads(held.plan_file.read_text())["scripts"][0]
        held.plan(scripts=["nonsense", good], lacking=["", "this kernel counts none"])
        held.start()
        assert held.is_state("led")["notes"] == ["this kernel counts none"]
        assert net.ask(METADATA, uid=ALICE) == "agent"
        held.signal(signal.SIGTERM)
        assert held.process is not None
        held.process.wait(20)
        net.nft(nft.removal())
        (held.directory / "run/state.json").unlink()
        held.plan(scripts=["nonsense"])
        held.start()
        held.is_state("closed")
        assert net.ask(METADATA, uid=ALICE) == "refused"


#: Ends nft 1.0.6 (SIGABRT); a later one, or another, refuses it.
CRASHES = "table inet x {\n\tchain y { reject with icmp 512\n\t}\n}\n"
#: The library as one with such a defect would be, whatever the script: in the way that is named.
BROKEN = """
import os, signal
from agent.host import ownership
real = ownership.Connection.run
def run(self, script):
    if {}:
        os.kill(os.getpid(), signal.SIGSEGV)
    return real(self, script)
ownership.Connection.run = run
"""


def test_a_script_on_which_the_library_crashes_is_left_out(tmp_path: Path) -> None:
    """The holder lives, leads by the next one, and says which it was."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        good = json.loads(held.plan_file.read_text())["scripts"][0]
        held.plan(scripts=[good + CRASHES, good], lacking=["", "without"])
        held.start()
        state = held.is_state("led")
        assert state["notes"][0] == "without"
        assert any("1 of 2 are left out" in note for note in state["notes"]) or "Error" in str(state["notes"])
        assert held.tables().count("credential_agent") == 4
        assert held.process is not None
        assert held.process.poll() is None
        assert net.ask(METADATA, uid=ALICE) == "agent"


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("'_rehearsed' in script", 2),  # in the rehearsal of what must be loaded in this process
        ("script.startswith('list')", 4),
    ],
    ids=["own", "list"],
)
def test_a_library_that_crashes_ends_no_holder(tmp_path: Path, where: str, left: int) -> None:
    """Whichever of its uses crashes: workers are led by what can be loaded, and what is lacking is said."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.start(BROKEN.format(where))
        held.is_state("led")
        assert held.tables().count("credential_agent") == left
        held.signal(signal.SIGHUP)
        until(lambda: held.state()["plans"] > 1, "the next plan")
        assert held.process is not None
        assert held.process.poll() is None
        assert net.ask(METADATA, uid=ALICE) == "agent"


BINDS_ALL = """
import socket, sys, time
kept = []
for port in range(50000, 50100):
    kept.append(socket.socket())
    kept[-1].bind(("0.0.0.0", port))
print("up", flush=True)
time.sleep(1000)
"""


def test_it_is_said_that_one_user_has_every_port(held: Held) -> None:
    """Nobody begins a connection then, whatever the rules are: who looks at the status is told, also when it is over."""
    net = held.net
    net.at(net.host, "sysctl", "-qw", "net.ipv4.ip_local_port_range=50000 50099")
    become = ["setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups"]
    taker = net.start(net.host, *become, sys.executable, "-I", "-S", "-c", BINDS_ALL)
    assert taker.stdout is not None
    assert taker.stdout.readline() == "up\n"
    held.signal(signal.SIGHUP)
    held.is_state("unanswered")
    until(lambda: any("every port" in note for note in held.state()["notes"]), "the word")
    net.kill(taker)
    held.is_state("led")
    until(lambda: held.state()["notes"] == [], "the end of it")


NO_PROCESS = """
import os, pathlib, subprocess
def none(real):
    def made(*args):
        if pathlib.Path({!r}).exists():
            raise BlockingIOError(11, "Resource temporarily unavailable")  # as when a worker has all numbers of processes
        return real(*args)
    return made
os.fork, subprocess._fork_exec = none(os.fork), none(subprocess._fork_exec)
"""


def test_a_machine_without_processes_to_be_had_keeps_its_holder(tmp_path: Path) -> None:
    """While no process can be made (a fork bomb) nothing can be loaded; what is held stays, and all is mended afterwards."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        mark = tmp_path / "none-left"
        held.start(NO_PROCESS.format(str(mark)))
        held.is_state("led")
        mark.touch()
        net.nft("flush ruleset")
        net.at(net.host, "ip", "address", "del", "169.254.171.2/32", "dev", "lo")
        held.signal(signal.SIGHUP)
        held.is_state("unanswered")  # it cannot ask
        assert net.ask(METADATA, uid=ALICE) == "agent"
        assert held.process is not None
        assert held.process.poll() is None
        mark.unlink()
        held.is_state("led")
        until(lambda: held.tables().count("credential_agent") == 4, "both copies")
        assert net.ask(METADATA, space=net.job) == "agent"


def test_a_holder_that_crashed_does_not_do_it_again(tmp_path: Path) -> None:
    """What a rehearsal does not show ends one process, and the next, which tries once more; then one leads without it."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        broken = BROKEN.format("'_held' in script and not script.startswith('list') and not self.rehearsal")
        for _ in range(2):
            held.start(broken)
            assert held.process is not None
            assert held.process.wait(20) == -signal.SIGSEGV
        held.start(broken)
        assert held.process is not None
        state = held.is_state("led")
        assert "crashed on them before" in state["notes"][0]
        assert held.tables().count("held") == 0
        assert net.ask(METADATA, uid=ALICE) == "agent"
        held.signal(signal.SIGTERM)  # an operator's stop is not such an end: it is tried again then
        assert held.process.wait(20) == 0
        assert held.is_state("closed")
        held.start()
        held.is_state("led")
        assert held.tables().count("held") == 2


def test_who_was_not_there_is_looked_up_again(tmp_path: Path) -> None:
    """A user that a directory or cloud-init brings later is a worker soon, without anybody's doing."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.plan(nft.Workers(uids=((1000, 1000),)), pending=["redirect.users: no user 'carol' on this machine yet"])
        held.start()
        held.is_state("led")
        assert held.state()["notes"] == ["redirect.users: no user 'carol' on this machine yet"]
        assert net.ask(METADATA, uid=500) == "machine"
        held.plan(nft.Workers(uids=((500, 500), (1000, 1000))))
        until(lambda: net.ask(METADATA, uid=500) == "agent", "carol")


@pytest.mark.parametrize("error", [None, "redirect.uids: got " + "x" * 100_000])
def test_what_is_read_of_the_state_is_whole_however_much_there_is_to_say(tmp_path: Path, error: str | None) -> None:
    """A site names a thousand users, and its directory is away: that workers are led is told, and how much more there is."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        pending = [f"redirect.users: no user 'user{number}' on this machine yet" for number in range(2000)]
        held.plan(pending=pending, lacking=["this kernel counts none"], error=error, section=[{}, AGENT_PORT])
        held.start()
        held.is_state("led")
        told = arrival.read(tmp_path / "run/state.json")
        assert told is not None
        assert told.state == "led"
        assert told.notes[:2] == ("this kernel counts none", pending[0])
        named = len(told.notes) - 2
        assert told.notes[-1].startswith(f"and {2000 - named} more")


def test_a_user_that_comes_again_with_another_number_is_a_worker(held: Held) -> None:
    """Its new number is a worker's at once, and rules that have not changed are not loaded anew: counts stay."""
    net = held.net
    users = held.directory / "passwd"
    handle = net.at(net.host, "nft", "-a", "list", "table", *nft.TABLE.split())
    plans = held.state()["plans"]
    users.write_text("another")
    until(lambda: held.state()["plans"] > plans, "another look")
    assert net.at(net.host, "nft", "-a", "list", "table", *nft.TABLE.split()) == handle
    assert net.ask(METADATA, uid=500) == "machine"
    held.plan(nft.Workers(uids=((500, 500), (1000, 60000))))
    users.write_text("carol again")
    until(lambda: net.ask(METADATA, uid=500) == "agent", "carol, whose number is another now")


OFTEN = "from agent.host import hold; hold.LOOK_AGAIN_SECONDS = (0.1, 0.3)\n"


def test_a_user_that_is_made_ends_no_waiting_for_another(tmp_path: Path) -> None:
    """Somebody else's line in the users' file is a look of its own: who is not there yet is looked up on and on."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.plan(pending=["redirect.users: no user 'carol' on this machine yet"])
        held.start(OFTEN)
        held.is_state("led")
        plans = held.state()["plans"]
        (held.directory / "passwd").write_text("dave")
        until(lambda: held.state()["plans"] > plans + 10, "further looks")


def test_who_waits_for_a_user_forgets_no_connection(tmp_path: Path) -> None:
    """Rules that are loaded anew have counted nobody: a name that is never found would free every worker of its bound."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.plan(pending=["redirect.users: no user 'carol' on this machine yet"])
        held.start(OFTEN + "hold.BEAT_SECONDS = 0.05\n")
        held.is_state("led")
        handle = net.at(net.host, "nft", "-a", "list", "table", *nft.TABLE.split())
        until(partial(held.has_planned, held.state()["plans"] + 5), "further looks")
        assert net.at(net.host, "nft", "-a", "list", "table", *nft.TABLE.split()) == handle
        held.plan(nft.Workers(uids=((500, 500), (1000, 60000))))
        until(lambda: net.ask(METADATA, uid=500) == "agent", "carol")


ELSEWHERE = """
import pathlib
from agent.host import hold, systemctl
systemctl.UNIFIED = pathlib.Path({!r})
hold.GROUPS_EVERY_SECONDS, hold.BEAT_SECONDS = 0.01, 0.02
"""


def test_a_control_group_that_is_made_anew_is_named_anew(tmp_path: Path) -> None:
    """Its rule names the old number: the plan is made again at once, and whom it leads then is led."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        group = tmp_path / "jobs.slice"
        group.mkdir()
        held.plan(groups={group.name: group.stat().st_ino, "gone.slice": 1})
        held.start(ELSEWHERE.format(str(tmp_path)))
        held.is_state("led")
        plans = held.state()["plans"]
        (new := tmp_path / "new").mkdir()
        held.plan(nft.Workers(uids=((500, 500),)), groups={group.name: new.stat().st_ino})
        group.rename(tmp_path / "old")
        new.rename(group)
        until(lambda: net.ask(METADATA, uid=500) == "agent", "the new rules")
        held.turns(20)
        assert held.state()["plans"] == plans + 1


def test_a_control_group_for_which_no_plan_can_be_made_is_no_work_without_end(tmp_path: Path) -> None:
    """A planner that fails is asked for a group's new number once, and then as seldom as for anything else."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        group = tmp_path / "jobs.slice"
        group.mkdir()
        held.plan(groups={group.name: group.stat().st_ino})
        held.start(ELSEWHERE.format(str(tmp_path)) + "hold.LOOK_AGAIN_SECONDS = (10_000.0, 10_000.0)\n")
        held.is_state("led")
        plans = held.state()["plans"]
        held.plan_file.write_text("no plan")
        for times in (1, 2):
            group.rename(tmp_path / f"before-{times}")
            group.mkdir()
            until(partial(held.has_planned, plans + times), "the attempt")
            held.turns(20)
            assert held.state()["plans"] == plans + times
        assert net.ask(METADATA, uid=ALICE) == "agent"
        # Another look at anything is not kept from being taken by the group that differs.
        (tmp_path / "passwd").write_text("dave")
        until(lambda: held.state()["plans"] == plans + 3, "the look at the users")


REFUSES = """
import pathlib
from agent.core.errors import HostError
from agent.host import ownership
real = ownership.run_apart
def refusing(script, **more):
    if pathlib.Path({!r}).exists():
        raise HostError("netlink: Cannot allocate memory")
    return real(script, **more)
ownership.run_apart = refusing
"""


def test_rules_that_were_not_taken_are_tried_again_whoever_is_made_meanwhile(tmp_path: Path) -> None:
    """A look at the users finds the plan that is in force, but not its rules: that is no reason to leave it so."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        mark = tmp_path / "no-memory"
        held.start(OFTEN + REFUSES.format(str(mark)))
        held.is_state("led")
        mark.touch()
        healed = held.state()["healed"]
        net.nft("flush ruleset")
        until(lambda: held.state()["healed"] > healed, "the healing")
        plans = held.state()["plans"]
        (held.directory / "passwd").write_text("dave")
        until(lambda: held.state()["plans"] > plans + 10, "further attempts")
        mark.unlink()
        until(lambda: held.tables().count("credential_agent") == 4, "both copies")
        assert net.ask(METADATA, uid=ALICE) == "agent"


NO_LIBRARY = """
import pathlib
from agent.core.errors import HostError
from agent.host import nft, ownership
class Connection:
    def __init__(self):
        raise HostError("libnftables: not found")
ownership.Connection = Connection
real = nft.run
def run(script, **more):
    if "redirect to" in script and pathlib.Path({!r}).exists():
        raise HostError("nft: Cannot allocate memory")
    real(script, **more)
nft.run = run
"""


@pytest.mark.parametrize("table", [nft.TABLE, nft.CLOSED], ids=["leads", "refuses"])
def test_without_the_library_a_table_that_is_gone_is_put_back(tmp_path: Path, table: str) -> None:
    """There is no second copy then, and whichever of the two somebody deletes is missed."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.start(NO_LIBRARY.format(str(tmp_path / "never")))
        held.is_state("led")
        assert held.tables().count("held") == 0
        net.nft(f"delete table {table}")
        until(lambda: held.tables().count("credential_agent") == 2, "both tables")
        assert net.ask(METADATA, uid=ALICE) == "agent"


def test_rules_that_are_gone_and_cannot_be_made_refuse_workers(tmp_path: Path) -> None:
    """Without a second copy nothing leads any more: a worker is not the machine until the kernel takes rules again."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        mark = tmp_path / "no-memory"
        held.start(NO_LIBRARY.format(str(mark)))
        held.is_state("led")
        mark.touch()
        net.nft("flush ruleset")
        until(lambda: net.ask(METADATA, uid=ALICE) == "refused", "the refusal")
        assert "does not take the rules" in held.is_state("closed")["why"]
        mark.unlink()
        held.is_state("led")
        assert net.ask(METADATA, uid=ALICE) == "agent"


@pytest.mark.parametrize("is_there", [True, False])
def test_the_way_is_taken_only_where_nothing_refuses(tmp_path: Path, *, is_there: bool) -> None:
    """The closed table of the boot is enough, though nothing can be loaded since; without it there is to be no way."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        asked = tmp_path / "asked"
        if is_there:
            net.nft(nft.refusal())
        never = NO_LIBRARY.format(str(tmp_path / "never")) + NO_NFT.format("'-f' in str(args)")
        held.start(OFTEN + never + LAST_RESORT.format(str(asked), str(tmp_path / "run/unroutable")))
        until(partial(held.has_planned, 3), "attempts")
        assert asked.exists() is not is_there
        assert held.state()["state"] == "closed"
        assert (net.ask(METADATA, uid=ALICE) == "refused") is is_there


COUNTED = """
import os, select
from agent.host import hold
hold.BEAT_SECONDS = 0.02
def counted(real, path):
    file = open(path, "ab", buffering=0)
    def call(*args):
        file.write(b".")
        return real(*args)
    return call
select.select, os.fork = counted(select.select, {0!r}), counted(os.fork, {1!r})
"""


HANGS = f"""
import socket, sys, time
listens = socket.create_server(("127.0.0.1", {AGENT_PORT}))
print("up", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("well", [True, False], ids=["all is well", "nobody answers"])
def test_whoever_holds_the_rules_rests(tmp_path: Path, *, well: bool) -> None:
    """It wakes to say that it lives: it neither asks on and on when all is well, nor looks on and on while nobody answers."""
    with Lab() as net:
        if well:
            net.serve_agent_that_answers()
        else:
            hangs = net.start(net.host, sys.executable, "-I", "-S", "-c", HANGS)
            assert hangs.stdout is not None
            assert hangs.stdout.readline() == "up\n"
        held = Held(net, tmp_path)
        counts = tmp_path / "looks", tmp_path / "children"
        held.start(COUNTED.format(*map(str, counts)))
        until(partial(held.has_planned, 1), "the plan")
        if well:
            held.is_state("led")
        before = [one.stat().st_size for one in counts]
        held.turns(30)
        looks, children = (one.stat().st_size - size for one, size in zip(counts, before, strict=True))
        assert looks < 30 * 10
        assert children < 10


NO_NFT = """
from agent.host import hold, nft
hold.VERIFY_SECONDS = hold.BEAT_SECONDS = 0.05
real_call = nft.call
def call(*args, **more):
    if {}:
        raise HostError("nft: no")
    return real_call(*args, **more)
nft.call = call
"""


LAST_RESORT = """
import pathlib
from agent.host import systemctl
def restart(unit, **more):
    with pathlib.Path({0!r}).open("a") as file:
        file.write(unit + " ")
    pathlib.Path({1!r}).touch()
systemctl.restart = restart
"""


def test_where_not_even_a_refusal_can_be_loaded_the_way_is_taken_once(tmp_path: Path) -> None:
    """By the unit that does it for every boot; while its mark is there nobody asks for it again, and that is the reason told."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        asked, mark = tmp_path / "asked", tmp_path / "run/unroutable"
        never = NO_LIBRARY.format(str(tmp_path / "never")) + NO_NFT.format("True")
        held.start(OFTEN + never + LAST_RESORT.format(str(asked), str(mark)))
        until(mark.exists, "the last resort")
        until(partial(held.has_planned, 4), "further attempts")
        assert asked.read_text() == "credential-agent-closed.service "
        assert "no way to the metadata service" in held.is_state("closed")["why"]


@pytest.mark.parametrize(
    ("refused", "left"), [("True", 0), ("'redirect to' in str(args)", 1)], ids=["no nft", "the kernel refuses"]
)
def test_rules_that_never_were_are_not_changed_by_anybody(tmp_path: Path, refused: str, left: int) -> None:
    """Without nftables, or where the kernel takes no rules, nobody is said to have changed any; they are tried again."""
    with Lab() as net:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        never = NO_LIBRARY.format(str(tmp_path / "never"))
        held.start(never + NO_NFT.format(refused))
        until(lambda: "does not take the rules" in str(held.state().get("why")), "the trouble")
        held.turns(5)
        assert held.state()["healed"] == 0
        assert held.tables().count("credential_agent") == left


def test_it_says_whether_a_workers_request_arrives(tmp_path: Path) -> None:
    """Nobody answers, somebody else answers, the agent answers: each has its word, by a real question."""
    with Lab() as net:
        held = Held(net, tmp_path)
        held.start()
        held.is_state("unanswered")
        until(lambda: "gets none: refused" in held.state()["why"], "the answer")
        stranger = net.serve(net.host, "HTTP/1.1 200 OK\r\n\r\n", f"127.0.0.1,{AGENT_PORT}")
        held.is_state("astray")
        net.kill(stranger)
        net.serve_agent_that_answers()
        held.is_state("led")


@pytest.mark.parametrize("switch", ["net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.lo.disable_ipv6=1"])
def test_without_ipv6_the_rest_is_led(tmp_path: Path, switch: str) -> None:
    """A hardened machine: IPv4 is led, and what IPv6 there is is no way around."""
    with Lab() as net:
        net.at(net.host, "sysctl", "-qw", switch)
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.start()
        held.is_state("led")
        assert net.ask(METADATA, uid=ALICE) == net.ask(METADATA, space=net.job) == "agent"
        for address in ("fd00:ec2::254", "fd20:ce::254", "fd00:ec2::23"):
            assert net.ask(address, uid=ALICE) != "machine"
            assert net.ask(address, space=net.job) != "machine"


def test_readiness_that_found_no_place_is_told_again(tmp_path: Path) -> None:
    """A start that systemd never hears of is ended by it, and a worker can keep the queue full in which it would."""
    with Lab() as net, FullQueue(tmp_path / "n") as manager:
        net.serve_agent_that_answers()
        held = Held(net, tmp_path)
        held.start(f"import os; os.environ['NOTIFY_SOCKET'] = {str(manager.path)!r}\n")
        held.is_state("led")
        assert "WATCHDOG=1" in manager.read_until("READY=1")
