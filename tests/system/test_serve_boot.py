"""What answers workers in a unit of its own, under a real systemd: whichever half ends, and however, nobody sees it."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent import bundle
from agent.core.model import Action
from tests.system import machine as m
from tests.system.looping import BROKEN, PLAIN, PROCESSES, PROGRAM, Looping
from tests.system.machine import Disk, Machine, python
from tests.system.test_boot import AUDIENCE, EC2, ISSUER, Sender, aws_key

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("boot")]

image = m.image
KILLS = int(os.environ.get("SERVE_KILLS", "8"))
"""Of each half; a longer run sets the variable."""
AGENT, SERVE = "credential-agent.service", "credential-agent-serve.service"
CONFIG = "/etc/credential-agent/config.toml"
NO_BOUND = "[redirect]\nnew_connections_per_worker = 0"

# Kills what standard input names, one after the other, and says how long each time the next answer took. An answer is a
# session token; a connection that is cut off with the process that had it is made again, as SDKs do.
KILLER = """
import http.client, json, os, signal, subprocess, sys, time
def main_pid(unit):
    return int(subprocess.run(["systemctl", "show", "-P", "MainPID", unit], capture_output=True, text=True).stdout or 0)
def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(one) for one in file.read().split()]
    except FileNotFoundError:
        return []
def found(who):
    if who == "agent":
        return [main_pid("credential-agent.service")]
    master = main_pid("credential-agent-serve.service")
    return {"master": [master], "server": children(master)[:1], "servers": children(master)}[who]
def answered():
    cut = 0
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", 16925, timeout=60)
        try:
            connection.request("PUT", "/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
            status = connection.getresponse().status
            assert status == 200, status
            return cut
        except (ConnectionResetError, http.client.RemoteDisconnected):
            cut += 1
        finally:
            connection.close()
killed, said = set(), {}
for line in sys.stdin:
    *who, pause = line.split()
    pids = []
    for one in who:
        while not [pid for pid in found(one) if pid and pid not in killed]:
            time.sleep(0.002)
        pids += [pid for pid in found(one) if pid and pid not in killed]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # with its master
    killed.update(pids)
    began = time.monotonic()
    os.seteuid(1000)  # root's programs are no workers
    answered()
    said.setdefault("+".join(who), []).append(round(time.monotonic() - began, 3))
    for _ in range(int(pause)):
        answered()
    os.seteuid(0)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def sender() -> Sender:
    return Sender()


@pytest.fixture(scope="module")
def worker(image: Sequence[Path], sender: Sender, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with closing(Disk(tmp_path_factory.mktemp("serve"), image)) as disk, m.ec2() as cloud:
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2, extra=NO_BOUND)
        cloud.set_user_data(sender.seal())
        shutil.copy(PROGRAM, disk.root / "opt/loop.py")
        with Machine(disk, cloud) as machine:
            yield machine


def looping(machine: Machine, kind: str, clients: int) -> Looping:
    """One process of clients in the workers' slice."""
    job = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--slice=credential-agent-workers.slice",
           "--property=EnvironmentFile=/run/credential-agent/env", f"--setenv=LOOP_URL=http://127.0.0.1:{m.PORT}"]  # fmt: skip
    return Looping(kind, [*machine.enter(), *job, m.PYTHON, "-I", "-W", "ignore", "/opt/loop.py", kind, str(clients)])


@contextmanager
def clients(machine: Machine) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Thirty-two of them, each of which has called before and calls after; at the end, how it went."""
    ends: list[tuple[str, dict[str, Any]]] = []
    with ExitStack() as stack:
        loops = []
        for kind, (processes, number) in PROCESSES.items():
            for _ in range(processes):
                loops.append(looping(machine, kind, number))
                stack.callback(loops[-1].close)
        machine.until(lambda: all(loop.calls() >= 10 for loop in loops), seconds=60, what="calls of everybody")
        yield ends
        before = [loop.calls() for loop in loops]
        machine.until(
            lambda: all(loop.calls() >= calls + 10 for loop, calls in zip(loops, before, strict=True)),
            seconds=60,
            what="more calls of everybody",
        )
        ends += [(loop.kind, loop.end()) for loop in loops]


def killed(machine: Machine, *who: str, times: int) -> dict[str, list[float]]:
    """Kill these so many times, in an order and at moments that are drawn; how long the next answer took each time."""
    draw = random.Random(who[0])
    order = [name for name in who for _ in range(times)]
    draw.shuffle(order)
    lines = "".join(f"{name.replace('+', ' ')} {draw.randrange(40)}\n" for name in order)
    found = json.loads(machine.run(*python(KILLER), text=lines, seconds=60 + 5 * len(order)))
    assert sum(map(len, found.values())) == len(order)
    print(
        json.dumps({name: {"median": sorted(took)[len(took) // 2], "most": max(took)} for name, took in found.items()})
    )
    return dict(found)


def settled(machine: Machine) -> None:
    """Both halves are at work, and the newest is served."""
    machine.until(
        lambda: machine.result("systemctl", "is-active", AGENT, SERVE).stdout.split() == ["active"] * 2, what="both"
    )
    machine.until(lambda: any(one["newest"] for one in machine.status()["servers"]), what="a server with the newest")


def pids(machine: Machine) -> list[str]:
    return [machine.run("systemctl", "show", "-P", "MainPID", unit).strip() for unit in (AGENT, SERVE)]


def test_the_agents_end_is_nobodys_matter(worker: Machine) -> None:
    """Killed again and again under 32 clients that try nothing twice: not one call fails, and what answers is the same."""
    settled(worker)
    before = pids(worker)
    with clients(worker) as ends:
        killed(worker, "agent", times=KILLS)
        worker.run("systemctl", "restart", AGENT)
    for kind, end in ends:
        assert set(end["keys"]) == {m.USER_KEY}, (kind, end)
        assert end["failed"] == {}, (kind, end)
    settled(worker)
    after = pids(worker)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_any_end_of_any_process_costs_no_sdk_a_call(worker: Machine) -> None:
    """What answers, what begins it, the agent, and all at once, at random under 32 clients: the same identity throughout.

    Only what was being answered in that instant by the process that was killed is cut off, and SDKs ask again.
    """
    who = ("server", "servers", "master", "agent", "agent+server", "agent+servers", "agent+master")
    times = -(-KILLS // 3)  # three of them end the agent, four what answers for it
    with clients(worker) as ends:
        killed(worker, *who, times=times)
    for kind, end in ends:
        assert set(end["keys"]) == {m.USER_KEY}, (kind, end)
        if kind == "plain":
            assert all(error.startswith(BROKEN) for error in end["failed"]), end
            assert sum(end["failed"].values()) <= (len(who) - 1) * times * PLAIN
        else:
            assert end["failed"] == {}, (kind, end)
    settled(worker)
    assert aws_key(worker, uid=m.WORKER_UID) == m.USER_KEY


@contextmanager
def without_the_agent(machine: Machine) -> Iterator[None]:
    """It cannot start: its configuration has a mistake."""
    machine.run("sh", "-c", f"cp -a {CONFIG} /root/good; echo '[nonsense]' >> {CONFIG}")
    machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", AGENT)
    machine.until(
        lambda: machine.run("systemctl", "show", "-P", "Result", AGENT).strip() == "exit-code",
        what="the mistake's effect",
    )
    try:
        yield
    finally:
        machine.run("cp", "-a", "/root/good", CONFIG)
        machine.run("systemctl", "restart", AGENT)
        settled(machine)


def test_without_the_agent_workers_are_answered_whatever_ends(worker: Machine) -> None:
    """While it cannot start, what answers is killed, and what begins that, and both: each time the credential is there."""
    with without_the_agent(worker):
        assert aws_key(worker, uid=m.WORKER_UID) == m.USER_KEY
        for who in ("server", "master", "servers", "server", "master"):
            killed(worker, who, times=1)
            assert aws_key(worker, uid=m.WORKER_UID) == m.USER_KEY, who
        assert worker.run("systemctl", "show", "-P", "SubState", AGENT).strip() != "running"
    assert aws_key(worker, uid=m.WORKER_UID) == m.USER_KEY


def test_who_stops_the_agent_stops_what_answers_for_it(worker: Machine) -> None:
    """By hand, it is stopped too, as it was when the two were one unit; the next request starts both again."""
    worker.run("systemctl", "stop", "credential-agent-redirect.service")  # it asks as a worker, all the time
    try:
        worker.run("systemctl", "stop", AGENT)
        worker.until(lambda: worker.result("systemctl", "is-active", SERVE).stdout == "inactive\n", what="its stop")
        worker.run(*python(KILLER), text="")  # nobody has asked
        assert worker.result("systemctl", "is-active", AGENT).stdout == "inactive\n"
        ask = ("import urllib.request as u; u.urlopen(u.Request('http://127.0.0.1:16925/latest/api/token', method='PUT',"
               " headers={'X-aws-ec2-metadata-token-ttl-seconds': '60'}), timeout=60)")  # fmt: skip
        worker.run(*python(ask), uid=m.WORKER_UID)
        settled(worker)
    finally:
        worker.run("systemctl", "start", "credential-agent.target")


def test_a_stop_between_two_tries_is_passed_on(worker: Machine) -> None:
    """Nothing of an agent that does not start runs then, so nothing of it can tell what answers that it is over."""
    worker.run("systemctl", "stop", "credential-agent-redirect.service")
    drop_in = f"/run/systemd/system/{AGENT}.d"
    try:
        with without_the_agent(worker):
            slow = f"mkdir -p {drop_in}; cat > {drop_in}/99-slow.conf; systemctl daemon-reload"
            worker.run("sh", "-c", slow, text="[Service]\nRestartSec=60s\n")
            worker.until(
                lambda: worker.run("systemctl", "show", "-P", "SubState", AGENT).startswith("auto-restart"),
                what="the pause before its next try",
            )
            assert worker.result("systemctl", "is-active", SERVE).stdout == "active\n"
            worker.run("systemctl", "stop", AGENT)
            worker.until(lambda: worker.result("systemctl", "is-active", SERVE).stdout == "inactive\n", what="its stop")
            worker.run("sh", "-c", f"rm {drop_in}/99-slow.conf; systemctl daemon-reload")
        assert worker.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "credential*").strip() == ""
    finally:
        worker.run("systemctl", "start", "credential-agent.target", "credential-agent-redirect.service")


def test_restarts_in_any_order_are_nobodys_matter(worker: Machine) -> None:
    """Of either half, of both, and of one while the other begins, under 32 clients: not one call fails."""
    steps = [
        [AGENT],
        [SERVE],
        [AGENT, SERVE],
        ["--no-block", SERVE],
        ["--no-block", AGENT],
        ["--no-block", AGENT, SERVE],
    ]
    draw = random.Random(11)
    order = steps * 2
    draw.shuffle(order)
    with clients(worker) as ends:
        for step in order:
            worker.run("systemctl", "restart", *step)
        settled(worker)
    for kind, end in ends:
        assert set(end["keys"]) == {m.USER_KEY}, (kind, end)
        assert end["failed"] == {}, (kind, end)


def withdrawal(sender: Sender, seq: int) -> bytes:
    from datetime import UTC, datetime

    return bundle.seal(
        signer=sender.signer,
        recipients=[sender.recipient],
        issuer=ISSUER,
        subject="user:alice",
        audiences=[AUDIENCE],
        now=datetime.now(UTC),
        action=Action.WITHDRAW,
        seq=seq,
    )


def test_what_was_withdrawn_is_served_by_nobody_again(worker: Machine, sender: Sender) -> None:
    """From the moment that it is acknowledged, whichever process is killed then, with the agent there and without it."""
    (worker.root / "root/withdrawal").write_bytes(withdrawal(sender, 2))
    worker.run("credential-agent", "push", "/root/withdrawal")
    for who in ("server", "servers", "master", "agent", "agent+server", "agent+master"):
        killed(worker, who, times=1)
        assert aws_key(worker, uid=m.WORKER_UID) == "none", who
    settled(worker)
    (worker.root / "root/bundle").write_bytes(sender.seal(seq=3))
    worker.run("credential-agent", "push", "/root/bundle")
    assert aws_key(worker, uid=m.WORKER_UID) == m.USER_KEY
    (worker.root / "root/withdrawal").write_bytes(withdrawal(sender, 4))
    worker.run("credential-agent", "push", "/root/withdrawal")
    with without_the_agent(worker):
        for who in ("server", "master"):
            killed(worker, who, times=1)
            assert aws_key(worker, uid=m.WORKER_UID) == "none", who
    assert aws_key(worker, uid=m.WORKER_UID) == "none"
