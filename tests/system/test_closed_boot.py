"""Whatever goes wrong on a machine that boots, no worker is the machine.

A table of mistakes and blows. In each a worker's uid, a job of root in the slice and a container behind a bridge of any
name ask the metadata addresses, and none of them ever reaches the real service; the machine's own services do. Each
boot begins with no rules (:meth:`tests.system.machine.Machine.wipe`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.system import machine as m
from tests.system.machine import Disk, Machine, python
from tests.system.test_boot import EC2, Sender

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("boot")]

image = m.image
METADATA = "169.254.169.254"
UNIT = Path("etc/systemd/system/credential-agent-redirect.service")
DAEMON = Path("etc/systemd/system/credential-agent.service")
SOCKET = Path("etc/systemd/system/credential-agent.socket")
WAITS_FOR_NFT = ("closed", "gate@", "redirect")
MASKED = ("credential-agent-redirect.service", "credential-agent.service", "credential-agent.socket")
QUESTIONS = [
    *((who, METADATA, "80") for who in ("1000", "slice", "container")),
    *((who, METADATA, "443") for who in ("1000", "container")),
    ("1000", "fd00:ec2::254", "80"),
]

# Another firewall, which comes late and does not know us.
LATE = """[Unit]
After=multi-user.target credential-agent.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f /etc/nftables.conf
[Install]
WantedBy=multi-user.target
"""

# A service of root's, outside of the slice, that asks as soon as it runs.
JOB = """[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=/bin/sh -c '{python} -I -S /root/connect.py 169.254.169.254 80 >> /root/said; exec sleep infinity'
"""
GATE = """[Unit]
Requires=credential-agent-gate@%n.service
After=credential-agent-gate@%n.service
"""

# As the release before had it, started by whatever `apply` there is.
OLD_UNIT = """
[Unit]
DefaultDependencies=no
Requires=credential-agent-workers.slice
After=credential-agent-workers.slice local-fs.target systemd-sysusers.service nftables.service
Before=network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={}
[Install]
WantedBy=multi-user.target
"""


def at_once(ask: Callable[..., str], questions: Sequence[tuple[str, ...]]) -> list[str]:
    """The answers: where nobody gives any, each is waited for some seconds."""
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(lambda one: ask(*one), questions))


class World:
    """A machine that boots again and again, with another mistake each time."""

    def __init__(self, disk: Disk, cloud: m.Cloud) -> None:
        self.disk, self.cloud = disk, cloud
        self.config = disk.root / "etc/credential-agent/config.toml"
        self.good = self.config.read_text()
        self.unit = (disk.root / UNIT).read_text()
        # What fails rests before it is tried again. It opens no less when it is tried more often, which is the harder case.
        self.daemon_unit = (disk.root / DAEMON).read_text().replace("exec sleep 5", "exec sleep 0.5")
        self.socket_unit = (disk.root / SOCKET).read_text()
        self.machine: Machine | None = None

    def boot(self) -> Machine:
        self.off()
        self.machine = Machine(self.disk, self.cloud)
        self.machine.boot(healthy=False)
        self.bridge("zz9")
        return self.machine

    def off(self) -> None:
        if self.machine is not None:
            self.machine.shut_down()
        self.machine = None

    def mended(self) -> None:
        """The disk as it was installed."""
        self.config.write_text(self.good)
        for mask in MASKED:
            path = self.disk.root / "etc/systemd/system" / mask
            if path.is_symlink():
                path.unlink()
        (self.disk.root / UNIT).write_text(self.unit)
        (self.disk.root / DAEMON).write_text(self.daemon_unit)
        (self.disk.root / SOCKET).write_text(self.socket_unit)

    def bridge(self, name: str) -> None:
        """A container behind a bridge, as Docker makes it, hidden behind the machine's address.

        A namespace that is deleted goes later, and its end of the cable with it: the kernel has one queue for all that go.
        """
        assert self.machine is not None
        self.machine.run(
            "sh", "-c", f"""cd /; ip netns delete job; ip link delete veth0; ip link delete {name}; set -e
            ip netns add job
            ip link add {name} type bridge; ip address add 172.17.0.1/16 dev {name}; ip link set {name} up
            ip link add veth0 type veth peer name eth0 netns job; ip link set veth0 master {name} up
            ip -n job address add 172.17.0.2/16 dev eth0; ip -n job link set eth0 up; ip -n job link set lo up
            ip -n job route add default via 172.17.0.1
            {MASQUERADE}""",
        )  # fmt: skip

    def ask(self, who: str, address: str = METADATA, port: str = "80") -> str:
        assert self.machine is not None
        question = [*python(m.CONNECT), address, port]
        if who == "slice":
            run = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--slice=credential-agent-workers.slice"]
            return self.machine.result(*run, *question).stdout.strip() or "not started"
        if who == "container":
            return self.machine.run("ip", "netns", "exec", "job", *question).strip()
        return self.machine.run(*question, uid=int(who)).strip()

    def never_the_machine(self) -> dict[str, str]:
        """Who asks, and what came of it; never the real service, but for the machine's own."""
        assert self.machine is not None
        said = dict(zip(QUESTIONS, at_once(self.ask, QUESTIONS), strict=True))
        assert "other" not in said.values(), said
        for who in ("0", "1"):  # the cloud is a process too, and may be late on a busy machine; nothing refuses them
            own = self.machine.until(lambda w=who: (word := self.ask(w)) != "TimeoutError" and word, what="an answer")
            assert own == "other", (who, own)
        return {who: said[who, METADATA, "80"] for who in ("1000", "slice", "container")}

    def served(self) -> None:
        assert self.machine is not None
        self.machine.until(
            lambda: set(self.never_the_machine().values()) == {"agent"}, what="all to be led", seconds=40
        )


MASQUERADE = """
printf 'table ip docker {\\n chain post {\\n type nat hook postrouting priority 100;\\n oifname "eth0" masquerade\\n }\\n}\\n' | nft -f -
"""


@pytest.fixture(scope="module")
def shared(image: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    sender = Sender()
    with closing(Disk(tmp_path_factory.mktemp("closed"), image)) as disk, m.ec2() as cloud:
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2)
        cloud.set_user_data(sender.seal())
        world = World(disk, cloud)
        try:
            yield world
        finally:
            world.off()


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    """Switched off, and as installed; afterwards too."""
    shared.off()
    shared.mended()
    yield shared
    shared.off()
    shared.mended()


# What is wrong with the configuration, and whether workers are led all the same.
CONFIGURATIONS = {
    "nothing": ("{good}", True),
    "an unknown user": ('{good}\n[redirect]\nusers = ["carol"]\n', True),
    "an unknown key here": ("{good}\n[redirect]\nfuture = true\n", None),
    "a unit that is not there": (
        '{good}\n[redirect]\nunits = ["gone.service", "credential-agent-workers.slice"]\n',
        True,
    ),
    "an unknown key elsewhere": ("misspelt = true\n{good}", None),
    "a wrong type elsewhere": ("keys = 5\n", None),
    "a wrong type here": ('{good}\n[redirect]\nuids = "1000"\n', False),
    "no such uid": ('{good}\n[redirect]\nuids = ["1000-99999999999"]\n', False),
    "a syntax error": ("{good}\n[redirect\n", False),
    "no text": ("\x00\x01", False),
    "an empty file": ("", None),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_no_mistake_in_the_configuration_opens(world: World, name: str) -> None:
    """Led where the rules can be told; refused where they cannot, or while the agent itself does not run."""
    text, led = CONFIGURATIONS[name]
    world.config.write_text(text.format(good=world.good))
    machine = world.boot()
    if led:
        world.served()
    else:
        said = world.never_the_machine()
        assert "agent" not in said.values() or led is None, said
        state = machine.run("cat", "/run/credential-agent-redirect/state.json")
        assert '"state": "led"' not in state or led is None


def test_no_configuration_at_all_is_closed_and_mended_by_its_coming(world: World) -> None:
    """The file may come later, by whatever manages the machine: then workers are led without a restart of the rules."""
    world.config.unlink()
    machine = world.boot()
    assert "agent" not in world.never_the_machine().values()
    world.config.write_text(world.good)
    machine.run("systemctl", "start", "credential-agent.target")
    world.served()


def test_a_user_that_comes_later_is_a_worker_soon(world: World) -> None:
    """Reported until then, by ``redirect check``; led afterwards without anybody's doing."""
    world.config.write_text(f'{world.good}\n[redirect]\nusers = ["carol"]\n')
    machine = world.boot()
    world.served()
    for command in (("redirect", "check"), ("status",)):
        machine.until(
            lambda asked=command: "no user 'carol'" in machine.result("credential-agent", *asked).stdout,
            what=f"a word of {command}",
        )
    machine.run("useradd", "--system", "--uid", "700", "carol")
    try:
        machine.until(lambda: world.ask("700") == "agent", seconds=60, what="carol to be led")
    finally:
        machine.run("userdel", "carol")


@pytest.mark.parametrize("start", ["/opt/credential-agent/bin/credential-agent redirect apply", "/bin/false"])
def test_a_downgrade_is_closed_at_worst(world: World, start: str) -> None:
    """The unit of the release before, which may not even start: what this one left at boot holds."""
    (world.disk.root / UNIT).write_text(OLD_UNIT.format(start))
    machine = world.boot()
    machine.result("systemctl", "start", "credential-agent-redirect")
    said = world.never_the_machine()
    assert ("agent" in said.values()) == (start != "/bin/false")


@pytest.mark.parametrize("unit", MASKED)
def test_a_masked_unit_opens_nothing(world: World, unit: str) -> None:
    """Without the redirect unit, and without the agent: refused, or waiting; a firewall's start changes nothing."""
    path = world.disk.root / "etc/systemd/system" / unit
    path.unlink()
    path.symlink_to("/dev/null")
    machine = world.boot()
    assert "agent" not in world.never_the_machine().values()
    machine.run("systemctl", "restart", "nftables")
    machine.until(lambda: world.ask("slice") != "other", what="the slice to be closed again")
    world.never_the_machine()


def test_a_release_that_does_not_start_is_closed(world: World) -> None:
    """The unit tries for ever, and closes each time: also after a flush."""
    (world.disk.root / UNIT).write_text(world.unit.replace("current/bin/python3 -I -c", "current/bin/no-python -I -c"))
    machine = world.boot()
    assert "agent" not in world.never_the_machine().values()
    machine.run("nft", "flush", "ruleset")
    machine.until(lambda: "credential_agent_closed" in machine.run("nft", "list", "tables"), what="closed again")
    world.bridge("zz9")
    machine.until(lambda: world.ask("slice") != "other", what="the slice to be closed again")
    world.never_the_machine()
    assert machine.result("credential-agent", "redirect", "check").returncode != 0


@pytest.mark.parametrize("how", ["cannot be begun", "hangs"])
def test_where_nftables_cannot_be_used_nobody_has_a_way(world: World, how: str) -> None:
    """A package half upgraded, a kernel without modules: workers have no route, the machine has; until it can be used.

    Then all is as if it had been so from the start, without anybody's doing.
    """
    world.off()
    library = next((world.disk.root / "usr/lib").glob("*/libnftables.so.1"))
    program = world.disk.root / "usr/sbin/nft"
    units = [world.disk.root / f"etc/systemd/system/credential-agent-{name}.service.d" for name in WAITS_FOR_NFT]
    library.rename(library.with_suffix(".gone"))
    if how == "hangs":
        program.rename(program.with_suffix(".gone"))
        program.write_text("#!/bin/sh\nexec sleep infinity\n")
        program.chmod(0o755)
        for unit in units:  # what cannot be, is not waited for as long as it is in earnest
            unit.mkdir()
            (unit / "99-short.conf").write_text("[Service]\nTimeoutStartSec=3s\nTimeoutStopSec=3s\n")
    try:
        world.machine = machine = Machine(world.disk, world.cloud).boot(healthy=False)
        # Whoever brings up a network waited until the way was gone.
        said = machine.run("journalctl", "--boot", "--no-pager", "--output", "cat", "_PID=1")
        assert 0 < said.index("Failed to start credential-agent-closed") < said.index("Reached target network-pre")
        # By networkd.conf(5) systemd-networkd takes away what it did not make, but for the kernel's own.
        assert "proto kernel" in machine.run("ip", "-d", "rule", "show", "pref", "170")
        for address in (METADATA, "fd00:ec2::254"):
            assert world.ask("1000", address) == world.ask("65534", address) == "OSError"
            assert world.ask("0", address) == world.ask("1", address) == "other"
        assert world.ask("slice") == "not started"
        forwarded = machine.result("ip", "route", "get", METADATA, "from", "172.17.0.2", "iif", "eth0")
        assert "unreachable" in forwarded.stderr, forwarded
        machine.until(
            lambda: "no way to the metadata service" in machine.result("credential-agent", "status").stdout,
            what="a word of the status",
        )
    finally:
        library.with_suffix(".gone").rename(library)
        if how == "hangs":
            program.with_suffix(".gone").rename(program)
            for unit in units:
                shutil.rmtree(unit)
    machine.run("systemctl", "daemon-reload")
    status = ("systemctl", "show", "--property=StatusText", "--value", "credential-agent-redirect")
    machine.until(lambda: machine.run(*status).startswith("led"), what="rules in force", seconds=150)
    world.bridge("zz9")
    world.served()
    assert "unreachable" not in machine.run("sh", "-c", "ip -4 rule; ip -6 rule")
    machine.until(
        lambda: "credential-agent" not in machine.run("systemctl", "list-units", "--failed", "--no-legend"),
        what="no failed unit of ours",
    )


def test_a_system_user_who_was_a_worker_is_none_of_the_machines_at_the_next_boot(world: World) -> None:
    """Only the configuration makes it a worker: where that does nothing at a boot, the number is known from the last one."""
    world.config.write_text(f'{world.good}\n[redirect]\nusers = ["batch"]\n')
    kept = world.disk.root / "etc/credential-agent/closed.d/workers"
    library = next((world.disk.root / "usr/lib").glob("*/libnftables.so.1"))
    mask = world.disk.root / "etc/systemd/system/credential-agent-redirect.service"
    machine = world.boot()
    machine.run("useradd", "--system", "--uid", "700", "batch")
    try:
        machine.until(lambda: world.ask("700") == "agent", seconds=60, what="batch to be led")
        machine.until(lambda: kept.exists() and kept.read_text() == "700\n", what="the number to be kept")
        mask.unlink()
        mask.symlink_to("/dev/null")
        machine = world.boot()
        assert world.ask("700") == "ConnectionRefusedError"
        assert world.never_the_machine()["1000"] == "ConnectionRefusedError"
        machine.run("systemctl", "stop", "credential-agent-watch")
        machine.run("nft", "flush", "ruleset")
        assert world.ask("700") == "other"  # nobody is left to mend it
        machine.run("systemctl", "start", "credential-agent-watch")
        machine.until(lambda: world.ask("700") != "other", what="batch to be refused again")
        world.off()
        library.rename(library.with_suffix(".gone"))
        world.machine = Machine(world.disk, world.cloud).boot(healthy=False)
        for address in (METADATA, "fd00:ec2::254"):
            assert world.ask("700", address) == "OSError"
            assert world.ask("0", address) == world.ask("1", address) == "other"
    finally:
        if library.with_suffix(".gone").exists():
            library.with_suffix(".gone").rename(library)
        kept.unlink(missing_ok=True)
    world.mended()
    machine = world.boot()
    machine.run("userdel", "batch")


def test_a_system_user_of_the_image_is_none_of_the_machines_at_its_first_boot(world: World) -> None:
    """Nothing of ours ever ran there but the build: the redirection crashes at once, and the number is known all the same."""
    root, kept = world.disk.root, world.disk.root / "etc/credential-agent/closed.d/workers"
    mask = root / "etc/systemd/system/credential-agent-redirect.service"
    world.config.write_text(f'{world.good}\n[redirect]\nusers = ["batch", broken\n')
    m.in_tree(root, "useradd", "--system", "--uid", "701", "batch")
    try:
        m.in_tree(root, "credential-agent", "redirect", "record")
        assert kept.read_text() == "701\n"
        mask.unlink()
        mask.symlink_to("/dev/null")
        world.boot()
        assert world.ask("701") == "ConnectionRefusedError"
        assert world.never_the_machine()["1000"] == "ConnectionRefusedError"
    finally:
        world.off()
        kept.unlink(missing_ok=True)
        m.in_tree(root, "userdel", "batch")


def test_an_empty_file_of_rules_is_closed(world: World) -> None:
    """The release has a copy; without the release too there is no route."""
    file, release = (
        world.disk.root / name for name in ("etc/credential-agent/closed.nft", "opt/credential-agent/current")
    )
    away, text = release.with_name("away"), file.read_text()
    file.write_text("")
    try:
        machine = world.boot()
        assert "other" not in {world.ask("1000"), world.ask("container")}
        machine.run("systemctl", "is-active", "credential-agent-closed")
        machine.run("systemctl", "stop", "credential-agent-redirect", "credential-agent-watch")
        machine.run("nft", "flush", "ruleset")
        release.rename(away)
        assert machine.result("systemctl", "restart", "credential-agent-closed").returncode != 0
        connect = ("python3", "-c", "import socket; socket.create_connection(('169.254.169.254', 80), 3)")
        said = machine.result(*connect, uid=1000).stderr
        assert "OSError" in said, said
        assert not machine.result(*connect).stderr
        away.rename(release)
        machine.run("systemctl", "restart", "credential-agent-closed")
        assert "reject" in machine.run("nft", "list", "table", "inet", "credential_agent_closed")
        assert "unreachable" not in machine.run("sh", "-c", "ip -4 rule; ip -6 rule")
    finally:
        if away.is_symlink():
            away.rename(release)
        file.write_text(text)


BLOWS = {
    "a flush by hand": "nft flush ruleset",
    "tables deleted": "nft delete table inet credential_agent; nft delete table inet credential_agent_closed",
    "a firewall restarts": "systemctl restart nftables",
    "a firewall stops": "systemctl stop nftables; systemctl start nftables",
    "a firewall is loaded": "nft -f /etc/nftables.conf",
    "the rules are killed": "systemctl kill -s KILL credential-agent-redirect",
    "the rules are restarted": "systemctl restart credential-agent-redirect",
    "the rules are reloaded": "systemctl reload credential-agent-redirect",
    "the slice is stopped": "systemctl stop credential-agent-workers.slice",
    "its parents are stopped": "systemctl stop credential.slice",
    "isolate": "systemctl isolate multi-user.target",
    "closed is stopped": "systemctl stop credential-agent-closed",
}


def test_no_blow_opens_and_all_are_led_again(world: World) -> None:
    """Whatever is done to the rules of a machine that runs, and in its very next moment."""
    machine = world.boot()
    world.served()
    for name, command in BLOWS.items():
        machine.result("sh", "-c", f"cd /; {command}")
        said = {who: world.ask(who) for who in ("1000", "slice")}
        assert "other" not in said.values(), (name, said)
        machine.run("systemctl", "start", "credential-agent.target")
        world.bridge("zz9")  # a flush took the masquerading
        world.served()
    assert "FAIL" not in machine.succeeds("credential-agent", "redirect", "check")


def test_what_is_stopped_is_closed_and_says_so(world: World) -> None:
    """status, the metrics, wait and check name it, with a hint that works."""
    machine = world.boot()
    world.served()
    as_alice = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    wait = [*as_alice, "credential-agent", "wait", "--for", "gcp", "--timeout", "1"]
    machine.run(*wait)
    machine.run("systemctl", "stop", "credential-agent-redirect")
    machine.run("systemctl", "start", "credential-agent.service")
    world.never_the_machine()
    # Not for a moment: the unit that watches has a copy of its own, the slice's gate with it.
    assert "credential_agent_closed_kept" in machine.run("nft", "list", "tables")
    assert "slice_" in machine.run("sh", "-c", "nft list table inet credential_agent_closed_kept")
    for _ in range(5):
        machine.run("nft", "flush", "ruleset")
        assert world.ask("1000") == "ConnectionRefusedError"
        assert world.ask("slice") == "ConnectionRefusedError"
    for flush in (["flush", "ruleset"], ["delete", "table", "inet", "credential_agent_closed"]):
        machine.run("nft", *flush)
        machine.until(
            lambda: "table inet credential_agent_closed" in machine.run("nft", "list", "tables"), what="closed"
        )
        machine.until(lambda: "slice_" in machine.run("nft", "list", "ruleset"), what="the slice closed")
        world.never_the_machine()
    machine.run("systemctl", "stop", "credential-agent-watch")
    machine.run("nft", "flush", "ruleset")
    assert world.ask("1000") == "other"  # nobody is left to mend it: that must be said
    said = machine.result(*wait)
    assert said.returncode == 75
    assert "another service answers" in said.stderr
    machine.until(lambda: machine.status()["redirect"]["arrives"] is False, what="the word that it does not arrive")
    text = machine.result("credential-agent", "status").stdout
    hint = next(line for line in text.splitlines() if "systemctl restart credential-agent-redirect" in line).partition(
        "hint: "
    )[2]
    machine.run("sh", "-c", f"cd /; {hint}")
    world.served()
    machine.run(*wait)
    machine.until(lambda: machine.status()["redirect"]["arrives"], what="the word that it arrives")


def test_first_jobs_of_a_slice_that_is_made_anew(world: World) -> None:
    """Twenty times stopped and made again: the first job never is the machine."""
    machine = world.boot()
    world.served()
    for _ in range(20):
        machine.run("systemctl", "stop", "credential-agent-workers.slice")
        assert world.ask("slice") in {"agent", "ConnectionRefusedError"}
    machine.until(lambda: world.ask("slice") == "agent", what="led again")


def test_it_stays_small(world: World) -> None:
    """What is held all day costs some megabytes, and next to no time."""
    machine = world.boot()
    world.served()
    pid = machine.run("systemctl", "show", "-P", "MainPID", "credential-agent-redirect").strip()
    status = machine.run("cat", f"/proc/{pid}/status")
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    assert kilobytes < 40_000
    ticks = [int(field) for field in machine.run("cat", f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[11:13]]
    assert sum(ticks) < 500


def test_firewalls_of_the_boot_open_nothing(world: World) -> None:
    """The distribution's own unit, enabled, with a file that begins with a flush; and another, when all of ours is up."""
    late = world.disk.root / "etc/systemd/system/late.service"
    late.write_text(LATE)
    wants = world.disk.root / "etc/systemd/system/multi-user.target.wants/late.service"
    m.call("chroot", world.disk.root, "systemctl", "enable", "--quiet", "nftables.service", "late.service")
    try:
        machine = world.boot()
        assert "flush ruleset" in machine.run("cat", "/etc/nftables.conf")
        machine.until(
            lambda: machine.result("systemctl", "is-active", "nftables", "late").stdout.split() == ["active"] * 2,
            what="both firewalls",
        )
        world.bridge("zz9")
        world.served()
        machine.run("iptables-save", check=False)
    finally:
        m.call("chroot", world.disk.root, "systemctl", "disable", "--quiet", "nftables.service", "late.service")
        late.unlink()
        assert not wants.exists()


def test_a_reload_of_the_rules_is_no_flush(world: World) -> None:
    """The watcher that closes after a flush is not set off by our own replacing of tables, nor by others' tables."""
    machine = world.boot()
    world.served()

    def closings() -> int:
        log = machine.run("journalctl", "--no-pager", "-o", "cat", "_PID=1")
        return log.count("Finished credential-agent-gate@")

    before = closings()
    for _ in range(3):
        machine.run("systemctl", "reload", "credential-agent-redirect")
        machine.run("nft", "add table inet theirs; delete table inet theirs")
    # The watcher reads in order: what comes of this flush is seen after what would have come of those.
    machine.run("nft", "flush", "ruleset")
    machine.until(lambda: closings() > before, what="the gate after the flush")
    world.bridge("zz9")
    world.served()
    assert closings() == before + 1


def test_a_service_with_a_gate_never_is_the_machine(world: World) -> None:
    """A service's control group is another at each start; with the gate its very first request is not the machine's."""
    world.config.write_text(f'{world.good}\n[redirect]\nunits = ["credential-agent-workers.slice", "job.service"]\n')
    units = world.disk.root / "etc/systemd/system"
    (world.disk.root / "root/connect.py").write_text(m.CONNECT)
    (world.disk.root / "root/said").unlink(missing_ok=True)
    (units / "job.service").write_text(JOB.format(python=m.PYTHON))
    (units / "job.service.d").mkdir(exist_ok=True)
    (units / "job.service.d/50-credential-agent.conf").write_text(GATE)
    try:
        machine = world.boot()
        world.served()
        said = world.disk.root / "root/said"
        for number in range(8):
            if number % 3 == 2:
                machine.run("systemctl", "kill", "--signal=KILL", "job")
            machine.run("systemctl", "restart", "job")
            machine.until(lambda n=number: said.exists() and len(said.read_text().split()) > n, what="a word")
        assert "other" not in said.read_text().split()
        machine.until(lambda: "job.service" in machine.run("nft", "list", "ruleset"), what="the service led")
        assert "gate" not in machine.succeeds("credential-agent", "redirect", "check")
        machine.run("nft", "flush", "ruleset")
        machine.run("systemctl", "restart", "job")
        machine.until(lambda: len(said.read_text().split()) > 8, what="a word")
        assert "other" not in said.read_text().split()
        # Without it that cannot be promised, and is said.
        machine.run("mv", "/etc/systemd/system/job.service.d/50-credential-agent.conf", "/root/")
        machine.run("systemctl", "daemon-reload")
        # Until the flushed rules are back, which takes seconds, `check` speaks of nothing else.
        machine.until(
            lambda: "job.service has no gate" in machine.result("credential-agent", "redirect", "check").stdout,
            what="a word about the gate",
        )
        machine.run("mv", "/root/50-credential-agent.conf", "/etc/systemd/system/job.service.d/")
    finally:
        (units / "job.service.d/50-credential-agent.conf").unlink(missing_ok=True)
        (units / "job.service.d").rmdir()
        (units / "job.service").unlink()
