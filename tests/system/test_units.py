"""The units on a machine that boots: the sandbox from inside, the three groups, and every order of starting and stopping."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.system import machine as m
from tests.system.machine import Disk, Machine, python
from tests.system.test_boot import EC2, Sender, aws_key
from tests.system.test_boot_handover import clients
from tests.system.test_taken_process import kinds
from tests.unit.host.test_confine import CONFINED

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("boot")]

image = m.image
ROOM = Path(__file__).parent

TARGET, AGENT, REDIRECT = "credential-agent.target", "credential-agent.service", "credential-agent-redirect.service"
SOCKET, SOCKET6 = "credential-agent.socket", "credential-agent-ipv6.socket"
CONTROL, SLICE = "credential-agent-control.socket", "credential-agent-workers.slice"
SERVE, WAY = "credential-agent-serve.service", "credential-agent-serve.socket"
COURIER = "credential-agent-courier.socket"

# A job that asks for its credential in its ExecStop, a moment into the power-off, and writes down as whom it came.
LAST_WORDS = """[Unit]
{order}
[Service]
Slice=credential-agent-workers.slice
ExecStart=/bin/sleep infinity
ExecStop=/bin/sh -c 'sleep 4; {python} -I -W ignore /var/probe.py > /var/last-words-%N; sync'
"""


KILLS = 20
KILL = f"""
import os, signal, sys, time, urllib.error, urllib.request
def children(pid):
    with open(f"/proc/{{pid}}/task/{{pid}}/children") as file:
        return file.read().split()
last, done = "", 0
while done < {KILLS}:
    found = children(sys.argv[1])
    if len(found) != 2 or found[0] == last:  # until one answers, and another stands by
        time.sleep(0.005)
        continue
    last = found[0]
    os.kill(int(last), signal.SIGKILL)
    done += 1
    os.seteuid({m.WORKER_UID})  # root's programs are no workers
    for _ in range(3):
        try:
            urllib.request.urlopen("http://127.0.0.1:{m.PORT}/v1/credentials", timeout=20)
        except urllib.error.HTTPError:
            break  # an answer: it has no token
        except OSError:
            continue  # accepted in the instant of the kill: asked again, as SDKs do
        break
    else:
        sys.exit(f"no answer after kill {{done}}")
    os.seteuid(0)
print(done, "answered")
"""


@pytest.fixture(scope="module")
def machine(image: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    sender = Sender()
    with closing(Disk(tmp_path_factory.mktemp("units"), image)) as disk, m.ec2() as cloud:
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2)
        cloud.set_user_data(sender.seal())
        shutil.copy(ROOM / "probe.py", disk.root / "opt/probe.py")
        # What answers workers sees nothing else of /opt.
        shutil.copy(ROOM / "probe_serve.py", disk.root / "opt/credential-agent/probe_serve.py")
        shutil.copy(ROOM / "probe_process.py", disk.root / "opt/credential-agent/probe_process.py")
        (disk.root / "opt/confined.py").write_text(f"{CONFINED}\nprint('nothing but to answer', flush=True)\n")
        (disk.root / "var/probe.py").write_text(m.AWS)
        with Machine(disk, cloud) as machine:
            yield machine


LEFT_OUT = ("Exec", "Sockets=", "Requires=", "PartOf=", "Propagates", "Type=", "Restart", "Watchdog", "LoadCredential",
            "FileDescriptor", "After=", "Wants=", "SocketBind")  # fmt: skip


def inside(machine: Machine, unit: str, *programs: str) -> list[str]:
    """What programs say that run one after the other with the restrictions of a unit."""
    text = machine.run("cat", f"/etc/systemd/system/{unit}")
    kept = [line for line in text.splitlines() if not line.startswith(LEFT_OUT) or line.startswith("ExecPaths")]
    starts = "".join(f"ExecStart={m.PYTHON} -I -W ignore {program}\n" for program in programs)
    text = "\n".join(kept).replace("[Service]", f"[Service]\nType=oneshot\n{starts}StandardOutput=append:/root/said\n")
    machine.run("sh", "-c", "cat > /run/systemd/system/probe.service", text=text)
    machine.run(
        "sh",
        "-c",
        f"rm -rf /root/said /run/systemd/system/probe.service.d; cp -a /etc/systemd/system/{unit}.d /run/systemd/system/probe.service.d; systemctl daemon-reload; systemctl start probe; journalctl -u probe -o cat --no-pager | tail -20 >&2",
    )
    return machine.run("cat", "/root/said").splitlines()


def test_nothing_gets_out_of_the_sandbox(machine: Machine) -> None:
    """From inside the daemon's own unit no shell, tool, written file or memory can be run, and no other way out is open.

    The list of system calls that answering needs is right for this machine: with it nothing at all is done but to answer.
    """
    assert inside(machine, AGENT, "/opt/probe.py", "/opt/confined.py") == [
        "nothing got through",
        "nothing but to answer",
    ]


def test_what_answers_workers_reaches_nothing(machine: Machine) -> None:
    """From inside its unit: no network, key, file, program, other process or way to another."""
    assert inside(machine, SERVE, f"/opt/credential-agent/probe_serve.py {pid_of(machine)}") == ["nothing got through"]


PROBED = """import runpy, sys
sys.path.insert(0, "/opt/credential-agent")
import probe_process
probe_process.install({aims!r})
sys.path.pop(0)
sys.argv = ["agent.server"]
runpy.run_module("agent.server", run_name="__main__", alter_sys=True)
"""
MASTER_MAY = {
    "files": ("write /tmp", "write /var/tmp"),  # its own, and gone with it
    "unix sockets": ("a name of its own",),  # in its own network
    "processes": ("pidfd of",),  # which signals nobody
    **dict.fromkeys(("ipc", "executable memory", "handles", "priority"), ("",)),
}
AIMS = {
    "files": ["/etc/credential-agent/config.toml", "/etc/credstore/credential-agent.key", "/etc/passwd", "/etc/machine-id",
              "/run/credential-agent/token", "/run/credential-agent/env", "/var/lib/credential-agent/memory.json",
              "/run/credentials/credential-agent.service/credential-agent.key", "/proc/keys", "/proc/kallsyms"],
    "paths": ["/run/credential-agent-control.sock", "/run/credential-agent-courier.sock", "/run/systemd/private",
              "/run/dbus/system_bus_socket", "/run/systemd/journal/stdout", "/run/systemd/journal/socket", "/dev/log"],
    "names": ["/tmp/.X11-unix/X0"],
    "x32": [],
}  # fmt: skip


def test_whoever_is_taken_over_reaches_nothing(machine: Machine) -> None:
    """Tried in the unit's own processes, at work: who answers or stands by may only answer; their master sees only them."""
    text = PROBED.format(aims={**AIMS, "pids": [int(pid_of(machine))]})
    (machine.root / "opt/credential-agent/probed.py").write_text(text)
    drop_in = f"/run/systemd/system/{SERVE}.d"
    start = f"[Service]\nExecStart=\nExecStart={m.PYTHON} -I /opt/credential-agent/probed.py\n"
    machine.run("sh", "-c", f"mkdir -p {drop_in}; cat > {drop_in}/99-probed.conf; systemctl daemon-reload", text=start)
    try:
        machine.run("systemctl", "restart", SERVE)
        machine.until(lambda: len(machine.status()["servers"]) == 2, what="one that answers, and one that stands by")
        pids = " ".join(str(one["pid"]) for one in machine.status()["servers"])
        machine.run("sh", "-c", f"kill -KILL {pids}")
        found: dict[str, dict[str, list[str]]] = {}

        def tried() -> bool:
            found.update(kinds(machine.run("journalctl", "--no-pager", "-o", "cat", "-u", SERVE)))
            return len(found) == 3

        machine.until(tried, what="what was tried")
        assert found["server"] == found["stand-by"] == {}
        for kind, rows in found["master"].items():
            assert all(what.startswith(MASTER_MAY.get(kind, ())) for what in rows), found["master"]
    finally:
        machine.run("sh", "-c", f"rm -r {drop_in}; systemctl daemon-reload; systemctl restart {SERVE}")


def test_the_running_daemon_can_run_nothing(machine: Machine) -> None:
    """In its own file system not even root's programs can be run: nothing there is executable but the interpreter."""
    pid = machine.run("systemctl", "show", "-P", "MainPID", AGENT).strip()
    inside = ["nsenter", "-t", pid, "-m"]
    assert "Permission denied" in machine.result(*inside, "/bin/sh", "-c", ":").stderr
    assert machine.result(*inside, m.PYTHON, "-I", "-c", "").returncode == 0
    filters = machine.run("sh", "-c", f"grep Seccomp_filters /proc/{pid}/status").split()[1]
    other = machine.run(
        "sh", "-c", "grep Seccomp_filters /proc/$(systemctl show -P MainPID systemd-journald)/status"
    ).split()[1]
    assert int(filters) > 0
    assert int(other) >= 0


def pid_of(machine: Machine, unit: str = AGENT) -> str:
    return machine.run("systemctl", "show", "-P", "MainPID", unit).strip()


def test_each_of_the_four_is_alone_with_its_memory(machine: Machine) -> None:
    """No capability, no new privileges, not dumpable, no core file; filtered, what answers workers most.

    Those go as soon as any other program when memory runs out; they and what begins them have a user of their own.
    """
    machine.until(lambda: len(machine.status()["servers"]) == 2, what="one that answers, and one that stands by")
    servers = machine.status()["servers"]
    assert all(one["apart"] for one in servers)
    statuses: list[dict[str, str]] = []
    scores: list[int] = []
    master = pid_of(machine, SERVE)
    for pid in (pid_of(machine), master, *(one["pid"] for one in servers)):
        lines = machine.run("cat", f"/proc/{pid}/status").splitlines()
        statuses.append(dict(line.split(":\t", 1) for line in lines if ":\t" in line))
        scores.append(int(machine.run("cat", f"/proc/{pid}/oom_score_adj")))
        assert "Max core file size        0                    0" in machine.run("cat", f"/proc/{pid}/limits")
        assert machine.run("stat", "-c", "%U", f"/proc/{pid}/mem").strip() == "root"  # of an undumpable process
    for status in statuses:
        assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    filters = [int(status["Seccomp_filters"]) for status in statuses]
    assert filters[3] == filters[2] > filters[1] >= filters[0]
    # In a container systemd may have been unable to spare us.
    assert scores[0] <= 0 <= scores[1] == scores[2] == scores[3]
    assert statuses[2]["PPid"] == statuses[3]["PPid"] == master
    users = [machine.run("id", "-u", user).strip() for user in ("credential-agent", "credential-agent-serve")]
    assert [status["Uid"].split() for status in statuses] == [[users[index]] * 4 for index in (0, 1, 1, 1)]
    assert machine.run("id", "-Gn", "credential-agent-serve").split() == ["credential-agent-serve"]


def test_no_client_sees_what_answers_it_killed(machine: Machine) -> None:
    """Twenty times: nobody is refused or has another identity, the agent's own process stays, and the number is told."""
    before, told = pid_of(machine), machine.status()["servers_replaced"]
    with clients(machine, m.USER_KEY):
        assert machine.run(*python(KILL), pid_of(machine, SERVE)).split() == [str(KILLS), "answered"]
    assert pid_of(machine) == before
    machine.until(lambda: machine.status()["servers_replaced"] == told + KILLS, what="the count")


def test_each_group_opens_its_own_socket_alone(machine: Machine) -> None:
    """A worker reads the environment and asks no status; an operator the reverse; neither sees the configuration or keys."""
    machine.run(
        "sh",
        "-c",
        "id olga || useradd -m olga; usermod -aG credential-operators olga; usermod -aG credential-workers alice",
    )
    key = "/etc/credential-agent/worker.jwk"
    machine.run("sh", "-c", f"echo secret > {key}; chown root:credential-agent {key}; chmod 0640 {key}")
    agent = "credential-agent"
    can = {
        "environment": ["sh", "-c", "cat /run/credential-agent/env /run/credential-agent/token"],
        "status": [agent, "status"],
        "configuration": ["cat", "/etc/credential-agent/config.toml"],
        "key": ["cat", key],
        "state": ["ls", "/var/lib/credential-agent"],
        "metrics": [
            *python("import socket; socket.socket(socket.AF_UNIX).connect('/run/credential-agent/control.sock')")
        ],
        "enrolment": [
            *python(
                "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/credential-agent/courier.sock');"
                'b = b\'{"nonce": "AAAAAAAAAAAAAAAAAAAAAA"}\';'
                "s.sendall(b'POST /v1/enrol HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(b) + b);"
                "assert b' 200 ' in s.recv(4096)[:20]"
            )
        ],
    }
    assert machine.result("runuser", "-u", "olga", "--", agent, "status").stderr == ""
    found = {
        user: {
            what
            for what, command in can.items()
            if machine.result("runuser", "-u", user, "--", *command).returncode == 0
        }
        for user in ("alice", "olga")
    }
    assert found == {"alice": {"environment", "enrolment"}, "olga": {"status", "metrics"}}
    assert (
        machine.run("stat", "-c", "%U:%G %a", "/etc/credential-agent/config.toml").strip()
        == "root:credential-agent 640"
    )
    # The commands of workers work without the configuration.
    as_alice = ["runuser", "-u", "alice", "--", agent]
    assert machine.result(*as_alice, "wait", "--timeout", "20").returncode == 0
    assert machine.run(*as_alice, "exec", "--", *python(m.AWS)).strip() == m.USER_KEY


def test_roots_login_shell_takes_nothing_of_the_agents(machine: Machine) -> None:
    """Whatever the agent's user puts into its files, root's shell runs none of it and has none of its variables."""
    machine.run(
        "sh",
        "-c",
        "cp -a /run/credential-agent/env /root/env; echo 'touch /root/owned' >> /run/credential-agent/env.sh; echo 'LD_PRELOAD=\"/x\"' >> /run/credential-agent/env",
    )
    try:
        said = machine.result("bash", "-lc", "env")
        assert "AWS_" not in said.stdout
        assert "LD_PRELOAD" not in said.stdout
        assert machine.result("test", "-e", "/root/owned").returncode != 0
    finally:
        machine.run("systemctl", "reload", AGENT)


ORDERS = [
    *[[("restart", unit)] for unit in (TARGET, REDIRECT, AGENT, SERVE, SOCKET, SOCKET6, CONTROL, COURIER, WAY)],
    *[[("stop", unit), ("start", unit)] for unit in (TARGET, REDIRECT, SERVE, SOCKET, SOCKET6, CONTROL, COURIER, WAY)],
    *[
        [("stop", unit), ("start", TARGET)]
        for unit in (TARGET, AGENT, SERVE, SOCKET, SOCKET6, CONTROL, COURIER, WAY, REDIRECT, SLICE)
    ],
    [("stop", AGENT), ("start", SOCKET)],
    [("stop", AGENT), ("start", SERVE)],
    [("stop", f"{AGENT} {SERVE} {WAY} {SOCKET} {SOCKET6}"), ("start", SERVE)],
    [("stop", f"{AGENT} {SERVE} {WAY} {SOCKET} {SOCKET6}"), ("clean --what=runtime", AGENT), ("start", TARGET)],
    [("restart", f"{SERVE} {AGENT}")],
    [("restart --no-block", SERVE), ("restart --no-block", AGENT), ("restart --no-block", WAY)],
    [("kill --signal=KILL", SERVE)],
    [("kill --signal=KILL", f"{SERVE} {AGENT}")],
    [("stop", f"{AGENT} {SOCKET} {SOCKET6} {CONTROL}"), ("start", AGENT)],
    [("stop", f"{SOCKET} {CONTROL} {REDIRECT} {TARGET}"), ("start", TARGET)],
    [("restart", f"{SOCKET} {SOCKET6} {CONTROL}")],
    [("restart", f"{TARGET} {REDIRECT} {AGENT} {SOCKET} {CONTROL}")],
    [("reload", AGENT)],
    [("reload", REDIRECT)],
    [("reload-or-restart", AGENT), ("reload-or-restart", REDIRECT)],
    [("try-restart", TARGET), ("try-restart", SOCKET)],
    [("kill --signal=KILL", AGENT)],
    [("restart --no-block", AGENT), ("restart --no-block", SOCKET), ("restart --no-block", TARGET)],
    [("restart --no-block", SOCKET), ("restart --no-block", REDIRECT), ("restart --no-block", AGENT)],
    [("restart --no-block", COURIER), ("restart --no-block", AGENT), ("restart --no-block", SOCKET)],
    [("isolate", "multi-user.target")],
    [("isolate", "rescue.target"), ("isolate", "multi-user.target")],
    [("daemon-reexec", "")],
]


AT_WORK = (SOCKET, SOCKET6, CONTROL, COURIER, WAY, AGENT, SERVE, REDIRECT)


def active(machine: Machine) -> list[str]:
    return machine.result("systemctl", "is-active", *AT_WORK).stdout.split()


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: ",".join(f"{verb} {unit}".replace("credential-agent", "ca") for verb, unit in order))  # fmt: skip
def test_every_order_ends_in_service(machine: Machine, order: list[tuple[str, str]]) -> None:
    """Whatever is stopped, started, restarted or reloaded, and in whatever order: at the end a worker is answered."""
    # Again where two change the same unit at once: what answers is stopped for a stopped agent, too.
    for round_ in range(3 if order[0][0].startswith("restart") or order[-1] == ("start", SERVE) else 1):
        for verb, units in order:
            machine.run(
                "systemctl", *verb.split(), *units.split(), check=verb.split()[0] not in {"daemon-reexec", "kill"}
            )
        machine.until(lambda: aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY, what=f"an answer in round {round_}")
        # One may be reloading just now: the rules are looked at again whenever something about workers changes.
        machine.until(lambda: active(machine) == ["active"] * len(AT_WORK), what=f"all units active in round {round_}")
        failed = machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "credential*")
        assert failed.strip() == ""
        machine.succeeds("credential-agent", "status")


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_the_redirect_is_not_the_agents_life(machine: Machine, verb: str) -> None:
    """Stopping or restarting the redirect leaves the very same process of the agent running."""
    before = machine.run("systemctl", "show", "-P", "MainPID", AGENT)
    machine.run("systemctl", verb, REDIRECT)
    machine.run("systemctl", "start", REDIRECT)
    assert machine.run("systemctl", "show", "-P", "MainPID", AGENT) == before
    assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY


def test_a_status_of_an_agent_that_cannot_start_says_why(machine: Machine) -> None:
    """With a configuration that is refused `status` ends in seconds, and says what the agent said last."""
    machine.run(
        "sh",
        "-c",
        "cp -a /etc/credential-agent/config.toml /root/good; echo '[nonsense]' >> /etc/credential-agent/config.toml; systemctl --no-block restart credential-agent; systemctl start credential-agent.socket credential-agent-control.socket; cp -a /root/good /root/kept",
    )
    machine.run("sh", "-c", "sed '/nonsense/d' /etc/credential-agent/config.toml > /root/good")
    try:
        # The command reads the configuration too, so it is given the good one.
        said = machine.until(
            lambda: (
                (
                    r := machine.result("timeout", "15", "credential-agent", "status", "--config", "/root/good")
                ).returncode
                == 71
                and "nonsense" in r.stderr
                and r
            ),
            what="the reason",
        )
        assert "hint" in said.stderr
    finally:
        machine.run(
            "sh", "-c", "cp -a /root/kept /etc/credential-agent/config.toml; systemctl restart credential-agent"
        )
    assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY


# Tries to bind what the agent listens on, in every way that there is, until standard input ends; says how often it did.
BINDS = """
import select, socket, sys
got, tried = 0, 0
print("up", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for host in ("127.0.0.1", "0.0.0.0", "169.254.171.2", "::1", "::"):
        for option in (socket.SO_KEEPALIVE, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
                s.setsockopt(socket.SOL_SOCKET, option, 1)
                tried += 1
                try:
                    s.bind((host, 16925))
                    s.listen()
                except OSError:
                    continue
                got += 1
print(got, "of", tried, flush=True)
"""
TAKES = """
import socket, sys
s = [socket.socket(socket.AF_INET), socket.socket(socket.AF_INET6)]
for one in s:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections of the agent are still known
s[0].bind(("127.0.0.1", 16925))
s[1].bind(("::1", 16925))
for one in s:
    one.listen()
print("up", flush=True)
sys.stdin.read()
"""


@contextmanager
def hostile(machine: Machine, code: str) -> Iterator[list[str]]:
    """A worker's program, until its standard input is closed; at the end, its last words."""
    words: list[str] = []
    command = [*machine.enter(m.WORKER_UID), m.PYTHON, "-I", "-S", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == "up\n"
            yield words
        finally:
            process.stdin.close()
            words += process.stdout.read().split()


def test_nobody_binds_the_agents_addresses_while_its_sockets_are_made_anew(machine: Machine) -> None:
    """A worker that tries all the time never gets one, and the units come up again each time."""
    machine.run("systemctl", "start", TARGET)
    with hostile(machine, BINDS) as said:
        for units in ([SOCKET, SOCKET6], [SOCKET, SOCKET6, AGENT], [SOCKET6], [REDIRECT]) * 3:
            machine.run("systemctl", "restart", *units)
            machine.until(lambda: active(machine) == ["active"] * len(AT_WORK), what=f"all active after {units}")
    assert said[0] == "0", said
    assert int(said[2]) > 1000
    assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY


def test_an_address_that_was_taken_before_is_the_agents_when_it_is_free(machine: Machine) -> None:
    """It is said whose it is; when that process is gone, the sockets and the agent come up by themselves."""
    machine.run("systemctl", "stop", REDIRECT, AGENT, SOCKET, SOCKET6)
    with hostile(machine, TAKES):
        machine.result("systemctl", "start", TARGET)
        machine.until(lambda: active(machine)[:2] == ["failed", "failed"], what="the sockets to fail")
        machine.until(
            lambda: "is bound by uid 1000" in machine.result("credential-agent", "redirect", "check").stdout,
            what="the word of who has it",
        )
    machine.until(lambda: active(machine) == ["active"] * len(AT_WORK), what="all active again")
    assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY
    assert "::1" in machine.run("ss", "-Hltn", "sport = :16925")


def test_a_reload_that_is_refused_fails(machine: Machine) -> None:
    """`systemctl reload` of a configuration with a mistake is no success, the reason is in the journal; mended, it is one."""
    file = "/etc/credential-agent/config.toml"
    pid = machine.run("systemctl", "show", "-P", "MainPID", AGENT)
    machine.run("sh", "-c", f"cp -a {file} /root/good; echo '[nonsense]' >> {file}")
    try:
        assert machine.result("systemctl", "reload", AGENT).returncode != 0
        assert "nonsense" in machine.run("journalctl", "--no-pager", "-o", "cat", "-u", AGENT, "-g", "agent: refused: ")
        assert machine.run("systemctl", "is-active", AGENT).strip() == "active"
        assert machine.result("credential-agent", "reload").returncode == 78
        assert aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY
    finally:
        machine.run("cp", "-a", "/root/good", file)
    machine.run("systemctl", "reload", AGENT)
    assert machine.run("systemctl", "show", "-P", "MainPID", AGENT) == pid


def test_a_state_directory_that_is_anothers_is_no_end(machine: Machine) -> None:
    """Read-only too: the agent starts, serves and says so. As soon as it can be given back, it is, with what is in it."""
    directory = "/var/lib/credential-agent"
    machine.run(
        "sh", "-ec", f"""systemctl stop {AGENT} {SOCKET} {SOCKET6} {CONTROL}
        chown -R 4000:4000 {directory}; mount --bind {directory} {directory}; mount -o remount,bind,ro {directory}
        systemctl start {TARGET}""",
    )  # fmt: skip
    try:
        machine.until(lambda: aws_key(machine, uid=m.WORKER_UID) == m.USER_KEY, what="an answer")
        assert active(machine) == ["active"] * len(AT_WORK)
        assert f"'{directory}' is not writable" in machine.run("credential-agent", "status")
    finally:
        machine.run("umount", directory)
    machine.run("systemctl", "restart", AGENT)
    assert machine.run("stat", "-c", "%U %a", directory, f"{directory}/memory.json").split("\n")[:2] == [
        "credential-agent 700", "credential-agent 600"]  # fmt: skip
    assert "not writable" not in machine.run("credential-agent", "status")


def test_at_power_off_jobs_have_their_credential_to_the_end(machine: Machine) -> None:
    """A job that is ordered after the target, and one that merely runs in the slice, are answered in their ExecStop."""
    for name, order in (("ordered", f"After={TARGET}\nWants={TARGET}"), ("unordered", "")):
        text = LAST_WORDS.format(order=order, python=m.PYTHON)
        machine.run(
            "sh",
            "-c",
            f"cat > /etc/systemd/system/{name}.service; systemctl daemon-reload; systemctl start {name}",
            text=text,
        )
    machine.shut_down()
    for name in ("ordered", "unordered"):
        assert (machine.root / f"var/last-words-{name}").read_text().strip() == m.USER_KEY, name
