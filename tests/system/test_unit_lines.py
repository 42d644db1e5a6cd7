"""Lines of our units that a machine would not miss at once: what keeps a service in, what begins early, what never gives up."""

from __future__ import annotations

import re

import pytest

from agent import config
from agent.host import machine
from tests.system.test_packaging import SYSTEMD, lines

AGENT, SERVE, REDIRECT, WATCH, CLOSED, GATE, HOLD, AGAIN, STOPPED = SERVICES = [
    f"credential-agent{name}.service"
    for name in ("", "-serve", "-redirect", "-watch", "-closed", "-gate@", "-hold", "-again@", "-stopped")
]
SOCKETS = sorted(path.name for path in SYSTEMD.glob("*.socket"))
SLICE = "credential-agent-workers.slice"

#: Who is kept by less than all others, and why.
LESS = {
    # First of all at boot: what they do without could fail there, and then nobody would be refused.
    CLOSED: {
        "DevicePolicy=closed", "ProtectClock=yes", "ProtectHostname=yes", "ProtectKernelModules=yes", "ProtectKernelTunables=yes",
    },
    # The same; and it makes control groups, which others must be able to look into.
    GATE: {
        "DevicePolicy=closed", "ProtectClock=yes", "ProtectHostname=yes", "ProtectKernelModules=yes", "ProtectKernelTunables=yes",
        "ProtectControlGroups=yes", "UMask=0077",
    },
    # It makes no file at all: more than that.
    SERVE: {"UMask=0077"},
}  # fmt: skip


@pytest.mark.parametrize("unit", SERVICES)
def test_every_service_is_kept_by_the_same_lines(unit: str) -> None:
    """What one service of ours may not do, no other may, except for the reasons above."""
    kept = {
        "LimitCORE=0", "LockPersonality=yes", "MemoryDenyWriteExecute=yes", "NoNewPrivileges=yes", "DevicePolicy=closed",
        "ProtectClock=yes", "ProtectControlGroups=yes", "ProtectHome=yes", "ProtectHostname=yes", "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes", "ProtectKernelTunables=yes", "ProtectSystem=strict", "RestrictNamespaces=yes",
        "RestrictRealtime=yes", "RestrictSUIDSGID=yes", "SystemCallArchitectures=native", "SystemCallErrorNumber=EPERM",
        "SystemCallFilter=@system-service", "UMask=0077",
    }  # fmt: skip
    assert kept - set((SYSTEMD / unit).read_text().splitlines()) == LESS.get(unit, set())


@pytest.mark.parametrize("unit", SERVICES)
def test_no_service_needs_room_in_tmp(unit: str) -> None:
    """PrivateDevices= makes a directory in the machine's /tmp, which any user can fill (so systemd 252 does)."""
    assert lines(unit, "PrivateDevices") == []


def test_no_service_is_forgotten() -> None:
    """A service that is added is kept by the same lines as the others."""
    assert {path.name for path in SYSTEMD.glob("*.service")} == set(SERVICES)


def test_a_service_speaks_and_writes_where_it_has_to() -> None:
    """Whoever loads rules has netlink, whoever asks or binds has the internet, and nobody has a directory but for its work."""
    inet, rules = "AF_UNIX AF_INET AF_INET6", "AF_NETLINK AF_UNIX"
    assert {unit: lines(unit, "RestrictAddressFamilies") for unit in SERVICES} == {
        AGENT: [inet],
        AGAIN: [inet],
        REDIRECT: [f"{rules} AF_INET AF_INET6"],
        **{unit: [rules] for unit in (WATCH, CLOSED, GATE)},
        **{unit: ["AF_UNIX"] for unit in (SERVE, HOLD, STOPPED)},
    }
    assert {unit: found for unit in SERVICES if (found := lines(unit, "ReadWritePaths"))} == {
        AGENT: ["-/var/lib/credential-agent"],
        REDIRECT: ["-/etc/credential-agent/closed.d"],
        WATCH: ["-/run/credential-agent-redirect"],
        GATE: ["/sys/fs/cgroup"],
    }


@pytest.mark.parametrize("unit", [AGENT, SERVE])
def test_the_two_that_last_share_nothing_with_other_programs(unit: str) -> None:
    """No directory of temporary files, device, keyring, leftover of IPC, or word about a process of others."""
    alone = {
        "PrivateTmp=yes", "PrivateMounts=yes", "DevicePolicy=closed", "KeyringMode=private", "RemoveIPC=yes",
        "ProtectProc=invisible", "ProcSubset=pid",
    }  # fmt: skip
    assert alone <= set((SYSTEMD / unit).read_text().splitlines())


@pytest.mark.parametrize("unit", [AGENT, SERVE])
def test_the_two_that_last_lack_what_passes_by_a_sandbox(unit: str) -> None:
    """Calls that filters do not see, that read other processes, or that make links; and, in the server, any file."""
    (allowed, *_), refused = (
        [value for value in lines(unit, "SystemCallFilter") if value.startswith("~") is no] for no in (False, True)
    )
    assert allowed == "@system-service"
    words = {word.lstrip("~") for value in refused for word in value.split()}
    neither = {
        "@privileged", "@resources", "@aio", "@debug", "@keyring", "process_vm_readv", "process_vm_writev", "process_madvise",
        "kcmp", "pidfd_getfd", "userfaultfd", "symlink", "symlinkat", "link", "linkat", "mknod", "mknodat",
    }  # fmt: skip
    makes = {"memfd_create", "memfd_secret", "mkdir", "mkdirat", "rename", "renameat", "renameat2"}
    changes = {
        "unlink", "unlinkat", "rmdir", "chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat", "lchown"
    }  # fmt: skip
    assert words == (neither if unit == AGENT else neither | makes | changes | {"connect"})


def test_who_answers_workers_sees_nothing_of_the_machine() -> None:
    """Of what systemd would leave there, and it names what a systemd that cannot empty /run leaves there."""
    hidden = {path.lstrip("-") for value in lines(SERVE, "InaccessiblePaths") for path in value.split()}
    assert hidden == {
        "/boot", "/lost+found", "/sys", "/dev/shm", "/run/credential-agent", "/run/credential-agent-control.sock",
        "/run/credential-agent-courier.sock", "/run/dbus", "/run/systemd/journal", "/run/systemd/private",
    }  # fmt: skip
    assert lines(SERVE, "UMask") == ["0777"]
    assert lines(SERVE, "PrivateIPC") == ["yes"]
    assert lines(SERVE, "User") == lines(SERVE, "Group") == ["credential-agent-serve"]
    # What parses strangers' bytes may be ended for its memory by itself, and what begins it ends it.
    assert lines(SERVE, "OOMPolicy") == ["continue"]
    assert lines(SERVE, "KillMode") == ["mixed"]


def test_a_child_of_who_holds_the_rules_may_end_for_its_memory() -> None:
    """Systemd would stop the unit for it, and a stop refuses every worker."""
    assert lines(REDIRECT, "OOMPolicy") == ["continue"]


def test_nothing_is_given_up() -> None:
    """However often something does not start, fails or is asked, it is tried again; whatever ends is begun again."""
    for unit in (*SERVICES, *SOCKETS):
        assert lines(unit, "StartLimitIntervalSec") == ([] if unit == HOLD else ["0"]), unit  # it only waits
    for unit in SOCKETS:
        assert lines(unit, "TriggerLimitIntervalSec") == ["0"], unit
    lasting = (AGENT, SERVE, REDIRECT, WATCH)
    assert {unit: lines(unit, "Restart") for unit in SERVICES if lines(unit, "Restart")} == {
        **{unit: ["always"] for unit in lasting},
        AGAIN: ["on-failure"],
    }
    for unit in (AGENT, SERVE, REDIRECT):
        assert lines(unit, "Type") == ["notify"]
        assert re.fullmatch("[0-9]+s", "".join(lines(unit, "WatchdogSec"))), unit
    # Addresses and files that another may have taken, without which the agent does not run.
    for unit in ("credential-agent.socket", "credential-agent-ipv6.socket", "credential-agent-control.socket"):
        assert lines(unit, "OnFailure") == ["credential-agent-again@%n.service"], unit


def test_a_start_that_fails_at_once_fills_no_log() -> None:
    """Whoever is begun again after ten milliseconds waits for seconds if its own error ended it."""
    for unit in SERVICES:
        if unit in (AGENT, SERVE):
            assert lines(unit, "RestartSec") == ["10ms"], unit
            (waits,) = lines(unit, "ExecStopPost")
            assert re.search(r'test "\$SERVICE_RESULT" != exit-code \|\| exec sleep [15]\b', waits), unit
        elif lines(unit, "Restart"):
            assert re.fullmatch("[15]s", "".join(lines(unit, "RestartSec"))), unit


def test_workers_are_refused_before_there_is_a_network() -> None:
    """What closes and what leads comes before any network, and after who empties the rules when it starts."""
    for unit in (CLOSED, REDIRECT):
        before, after = (" ".join(lines(unit, key)).split() for key in ("Before", "After"))
        assert "network-pre.target" in before
        assert (
            "network-pre.target" in " ".join(lines(unit, "Wants")).split()
        )  # a passive target: nobody else need want it
        assert "nftables.service" in after
    assert "sysinit.target" in lines(CLOSED, "Before")[0].split()
    assert "nftables.service" in lines(GATE, "After")[0].split()
    # Else they would wait for sysinit.target, and the jobs of early boot would be first.
    for unit in (CLOSED, GATE, REDIRECT, WATCH, AGAIN, STOPPED, SLICE):
        assert lines(unit, "DefaultDependencies") == ["no"], unit
    # So they say themselves what those would: that their files are there, and, who would go on, that it ends.
    for unit in (CLOSED, GATE, REDIRECT, WATCH, AGAIN):
        assert lines(unit, "RequiresMountsFor"), unit
    for unit in (REDIRECT, WATCH, AGAIN):
        assert lines(unit, "Conflicts") == ["shutdown.target"], unit
        assert "shutdown.target" in " ".join(lines(unit, "Before")).split(), unit
    for unit in (CLOSED, WATCH):
        assert lines(unit, "WantedBy") == ["sysinit.target"], unit


def test_who_waits_for_the_rules_waits_until_they_are_loaded() -> None:
    """A unit that loads rules has started when it has loaded them; a slice of workers is made after its own."""
    for unit in (CLOSED, GATE):
        assert lines(unit, "Type") == ["oneshot"], unit
    # Once in a boot the one; before each start of its slice the other.
    assert (lines(CLOSED, "RemainAfterExit"), lines(GATE, "RemainAfterExit")) == (["yes"], [])
    for key in ("Requires", "After"):
        assert lines(SLICE, key) == [f"credential-agent-gate@{SLICE}.service"], key
    for unit in (REDIRECT, WATCH):
        assert CLOSED in lines(unit, "After"), unit
    assert {CLOSED, WATCH} <= set(" ".join(lines(REDIRECT, "Wants")).split())
    assert SLICE in lines(REDIRECT, "Wants")
    assert SLICE in lines(REDIRECT, "After")


def test_what_ends_the_redirection_closes() -> None:
    """Before each start and after each end the closed table is loaded, as root and outside the sandbox; an error ends nothing."""
    close = "-+/usr/bin/timeout -k 1 10 /usr/sbin/nft -f /etc/credential-agent/closed.nft"
    assert close in lines(REDIRECT, "ExecStartPre")
    assert lines(REDIRECT, "ExecStopPost") == [close]
    assert lines(REDIRECT, "KillMode") == ["mixed"]  # its own end first, then its child's


def test_nobody_waits_long_for_an_nft_that_hangs() -> None:
    """What loads rules beside a unit's own work has a time of its own, far below that of a whole start: it may be mended."""
    for file in (*SYSTEMD.glob("*.service"), *SYSTEMD.glob("drop-ins/*.conf")):
        assert re.findall(r"^Exec\w+=[-+@!:]*/usr/sbin/nft .*$", file.read_text(), re.MULTILINE) == [], file.name


def test_what_is_told_outlives_who_told_it() -> None:
    """Files that others read, and memory that a successor takes up, are there while a service is begun again."""
    for unit in SERVICES:
        if lines(unit, "RuntimeDirectory"):
            assert lines(unit, "RuntimeDirectoryPreserve") == ["yes"], unit
    assert lines(AGENT, "FileDescriptorStoreMax") == lines(SERVE, "FileDescriptorStoreMax") == ["8"]
    # By which a successor knows that it is the same boot: in its sandbox it cannot read that.
    assert f"{machine.BOOT_ID_VARIABLE}=%b" in lines(AGENT, "Environment")


def test_a_socket_of_the_machines_is_made_by_root_and_goes_with_its_unit() -> None:
    """In the directory of root, in which nobody else can put another file in its place; none is left to be taken for one."""
    for unit in SOCKETS:
        if not lines(unit, "ListenStream") or lines(unit, "ListenStream")[0].startswith("/"):
            assert lines(unit, "RemoveOnStop") == ["yes"], unit
            assert lines(unit, "DirectoryMode") == ["0755"], unit
            assert lines(unit, "SocketUser") == [AGENT[:-8] if unit == "credential-agent-serve.socket" else "root"], (
                unit
            )
        else:
            assert lines(unit, "Backlog") == ["4096"], unit
            assert lines(unit, "NoDelay") == lines(unit, "FreeBind") == lines(unit, "ReusePort") == ["yes"], unit


def test_sockets_are_made_one_after_the_other() -> None:
    """What gives a socket's file to its group has copies of systemd's others for a moment: an address is in use meanwhile."""
    addresses, control = ["credential-agent.socket", "credential-agent-ipv6.socket"], "credential-agent-control.socket"
    after = {unit: " ".join(lines(unit, "After")).split() for unit in SOCKETS}
    assert after == {
        "credential-agent.socket": [],
        "credential-agent-ipv6.socket": addresses[:1],
        control: addresses,
        "credential-agent-serve.socket": addresses,
        "credential-agent-courier.socket": [*addresses, control],
    }


def seconds(unit: str, key: str) -> int:
    (value,) = lines(unit, key)
    return int(value.removesuffix("s"))


def test_jobs_have_as_long_to_end_as_systemd_gives_them() -> None:
    """At power-off the agent waits longer for the workers' slice than a job has by default (90 seconds).

    Until then what answers is there, and workers are led to it.
    """
    assert seconds(HOLD, "TimeoutStopSec") > 90
    assert lines(HOLD, "RemainAfterExit") == ["yes"]  # else it stops when it has started
    workers = set(SOCKETS) - {"credential-agent-courier.socket"}
    assert set(lines(HOLD, "After")[0].split()) == {AGENT, SERVE, REDIRECT, *workers}
    for unit in (AGENT, SERVE):
        assert REDIRECT in lines(unit, "After"), unit


def test_a_start_has_the_time_that_it_needs() -> None:
    """The usual grace and ten seconds more, three times over; whoever is asked to end or closes has a limit too."""
    assert seconds(AGENT, "TimeoutStartSec") >= 3 * (config.Identity().grace_seconds + 10)
    for unit in (SERVE, REDIRECT, CLOSED, GATE, STOPPED):
        assert seconds(unit, "TimeoutStartSec") <= 90, unit  # systemd's own
    for unit in (AGENT, SERVE, REDIRECT):
        assert seconds(unit, "TimeoutStopSec") <= 30, unit


def test_nobody_takes_the_machine() -> None:
    """Whatever goes wrong in what lasts, its memory and its processes are bounded; who holds the rules is ended last."""
    for unit in (AGENT, SERVE, REDIRECT, WATCH, AGAIN):
        assert re.fullmatch("[0-9]+M", "".join(lines(unit, "MemoryMax"))), unit
    for unit in (AGENT, SERVE):
        assert int(lines(unit, "TasksMax")[0]) <= 128, unit
        assert int(lines(unit, "LimitNOFILE")[0]) >= 4 * config.Listen().max_connections, unit
    for unit in (REDIRECT, WATCH):
        assert lines(unit, "OOMScoreAdjust") == ["-900"], unit
    for unit in (HOLD, STOPPED):
        assert lines(unit, "PrivateNetwork") == ["yes"], unit  # they speak to systemd alone


def test_what_tmpfiles_makes_is_its_owners() -> None:
    """The state and what is in it are the agent's alone; what the next boot refuses is root's."""
    made = (SYSTEMD / "tmpfiles.d/credential-agent.conf").read_text()
    assert {line.split()[1]: line.split() for line in made.splitlines() if line.startswith("d ")} == {
        path: ["d", path, mode, user, user, "-"]
        for path, mode, user in (
            ("/run/credential-agent", "0755", "credential-agent"),
            ("/var/lib/credential-agent", "0700", "credential-agent"),
            ("/etc/credential-agent/closed.d", "0755", "root"),
        )
    }
    assert "Z /var/lib/credential-agent - credential-agent credential-agent -\n" in made
    # What clients follow to a socket of root's, with the directory or after it.
    linked = {(line.split()[1], line.split()[-1]) for line in made.splitlines() if line.startswith("L ")}
    sockets = [unit for unit in SOCKETS if lines(unit, "Symlinks")]
    assert linked == {(lines(unit, "Symlinks")[0], lines(unit, "ListenStream")[0]) for unit in sockets}
