"""The install script in a plain chroot: no /proc, no systemd that runs, no bus. All of an installation or nothing of it."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent import bundle
from tests.system import machine as m
from tests.system.machine import Disk
from tests.test_docs import commands

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("install")]

LOOK = """
import aiohttp, botocore.session, google.auth
import agent.cli.run, agent.daemon, agent.server.master
print(agent.daemon.__doc__, aiohttp.ClientSession.__doc__)
"""
OPTIONS = ("--no-start", "--no-packages", "--platform", "none")


class Chroot:
    """A distribution's tree, and nothing mounted in it."""

    def __init__(self, disk: Disk) -> None:
        self.root = disk.root
        shutil.copytree(m.payload(), self.root / "payload", symlinks=False)
        assert not list((self.root / "proc").iterdir())

    def typed(self, *command: str) -> list[str]:
        # Not from the root: people stand in the source tree, and what a script takes for absolute must be so.
        bare = ("env", "-i", "--chdir=/payload", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
        return ["chroot", str(self.root), *bare, *command]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.typed(*command), capture_output=True, text=True, check=False, timeout=300)

    def install(self, *more: str) -> subprocess.CompletedProcess[str]:
        return self.run("/payload/install.sh", *OPTIONS, *more)

    def seen(self) -> dict[str, tuple[str, ...]]:
        """Every file that an installation could touch: kind, mode, owner, content. Groups only ever come."""
        found: dict[str, tuple[str, ...]] = {}
        for top in ("etc", "usr/local", "opt"):
            for path in sorted((self.root / top).rglob("*")):
                name = str(path.relative_to(self.root))
                if name.startswith(("etc/group", "etc/gshadow", "etc/passwd", "etc/shadow", "etc/.pwd")):
                    continue
                info = path.lstat()
                content = ""
                if path.is_symlink():
                    content = str(path.readlink())
                elif stat.S_ISREG(info.st_mode):
                    content = hashlib.sha256(path.read_bytes()).hexdigest()
                found[name] = (oct(info.st_mode), str(info.st_uid), str(info.st_gid), content)
        return found


@pytest.fixture(scope="module")
def chroot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chroot]:
    reason = m.missing()
    if reason:
        pytest.skip(reason)
    with closing(Disk(tmp_path_factory.mktemp("chroot"), [m.base_image()])) as disk:
        yield Chroot(disk)


def test_a_refused_first_installation_leaves_nothing(chroot: Chroot) -> None:
    """A configuration that is not accepted ends it, and the tree is as it was."""
    before = chroot.seen()
    (chroot.root / "bad.toml").write_text("[nonsense]\n")
    done = chroot.install("--config", "/bad.toml")
    assert done.returncode == 1
    assert "everything is as it was" in done.stderr
    after = chroot.seen()
    left = {name for name in after.keys() - before.keys() if not (chroot.root / name).is_dir()}
    assert not left
    assert not list((chroot.root / "opt/credential-agent/releases").iterdir())


def test_a_worker_who_is_no_user_is_said_before_anything_is_made(chroot: Chroot) -> None:
    """A misspelt `--worker` ends it at once, with the option and the name, and not a file is touched."""
    before = chroot.seen()
    done = chroot.install("--worker", "nobody-here")
    assert done.returncode == 1
    assert "error: --worker: expected a user of this machine, got 'nobody-here'" in done.stderr
    assert "installing" not in done.stderr
    assert chroot.seen() == before


def test_it_installs_where_nothing_runs(chroot: Chroot) -> None:
    """Without /proc, a bus or a manager everything is put in place and enabled."""
    chroot.run("useradd", "--create-home", "dave")
    done = chroot.install("--worker", "dave")
    assert done.returncode == 0, done.stderr
    assert "credential-workers" in chroot.run("id", "-nG", "dave").stdout.split()
    assert chroot.run("systemctl", "is-enabled", "credential-agent.service").stdout == "enabled\n"
    config = chroot.run("stat", "-c", "%U:%G %a", "/etc/credential-agent/config.toml").stdout
    assert config == "root:credential-agent 640\n"
    interpreter = (chroot.root / "etc/systemd/system/credential-agent.service.d/40-interpreter.conf").read_text()
    assert "\nExecPaths=/usr/bin/python3." in interpreter
    assert chroot.run("/usr/local/bin/credential-agent", "check").returncode == 0
    validated = chroot.run("/payload/validate.sh")  # "None needs a running systemd", says packer/README.md
    assert validated.returncode == 0, validated.stdout


def test_a_start_compiles_nothing_and_carries_no_docstrings(chroot: Chroot) -> None:
    """Byte code of every module is there, so that a start that could write some writes none; commands have their help."""
    release = chroot.root / chroot.run("readlink", "-f", "/opt/credential-agent/current").stdout.strip().lstrip("/")

    def compiled() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in release.rglob("*.pyc")}

    before = compiled()
    assert {file.parent.parent / f"{file.name.split('.')[0]}.py" for file in before} == set(
        release.rglob("lib/**/*.py")
    )
    said = chroot.run("/opt/credential-agent/current/bin/python3", "-I", "-c", LOOK)
    assert said.stdout == "None None\n", said.stderr
    said = chroot.run("/usr/local/bin/credential-agent", "--help")
    assert "Run the agent in the foreground" in said.stdout
    assert compiled() == before


@pytest.mark.parametrize("name", ["PYTHONPATH", "PYTHONHOME"])
def test_what_a_job_tells_its_python_is_not_told_to_ours(chroot: Chroot, name: str) -> None:
    """A worker's command runs from a job's environment, whose modules are another Python's."""
    theirs = chroot.root / "jobs/agent"
    theirs.mkdir(parents=True, exist_ok=True)
    (theirs / "__init__.py").write_text("raise SystemExit('a module of the job')")
    done = chroot.run("env", f"{name}=/jobs", "/usr/local/bin/credential-agent", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("credential-agent")


def test_the_image_knows_which_system_users_are_workers(chroot: Chroot) -> None:
    """They are refused at its first boot, whatever runs there; also whoever is named beside a mistake made later."""
    kept = chroot.root / "etc/credential-agent/closed.d/workers"
    configuration = chroot.root / "etc/credential-agent/config.toml"
    assert not kept.exists()
    before = configuration.read_text()
    (chroot.root / "workers.toml").write_text(f'{before}\n[redirect]\nusers = ["games"]\n')
    done = chroot.install("--config", "/workers.toml")
    assert done.returncode == 0, done.stderr
    assert kept.read_text() == "5\n"
    configuration.write_text(f'{before}\n[redirect]\nusers = ["news", broken\n')
    assert chroot.run("/usr/local/bin/credential-agent", "redirect", "record").returncode == 0
    assert kept.read_text() == "5\n9\n"
    configuration.write_text(before)
    assert chroot.run("/usr/local/bin/credential-agent", "redirect", "record").returncode == 0
    assert kept.read_text() == ""


def test_whoever_became_root_by_su_installs_too(chroot: Chroot) -> None:
    """With a user's PATH, by another shell and with variables for another Python the script finds all that it needs."""
    shell = ("env", "PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONPATH=/nowhere", "PIP_USER=1", "PIP_TARGET=/nowhere")
    done = chroot.run(*shell, "sh", "/payload/install.sh", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "nftables" not in done.stderr
    assert chroot.run("/usr/local/bin/credential-agent", "check").returncode == 0
    assert not (chroot.root / "nowhere").exists()
    assert chroot.run(*shell, "sh", "/payload/install.sh", "--help").stdout.startswith("Installs the worker")


def test_manual_pages_and_completions_are_those_of_the_packages(chroot: Chroot, tmp_path: Path) -> None:
    """Each command has its page, each shell its completions, and every byte is what the packages' generator makes."""
    (generator,) = (m.payload() / "pages").glob("click_man-*.whl")
    epoch = (m.payload() / "pages/epoch").read_text().strip()
    subprocess.run(
        [sys.executable, m.REPOSITORY / "packer/package/pages.py", tmp_path],
        env={"PYTHONPATH": f"{generator}:{m.REPOSITORY}", "SOURCE_DATE_EPOCH": epoch},
        check=True,
    )
    share = chroot.root / "usr/local/share"
    made = {path.name: path.read_bytes() for path in (tmp_path / "man").iterdir()}
    installed = {path.stem: gzip.decompress(path.read_bytes()) for path in (share / "man/man1").glob("*.gz")}
    assert "credential-agent-doctor.1" in installed
    assert installed == made
    for shell, place in (
        ("bash/credential-agent", "bash-completion/completions/credential-agent"),
        ("zsh/_credential-agent", "zsh/site-functions/_credential-agent"),
        ("fish/credential-agent.fish", "fish/vendor_completions.d/credential-agent.fish"),
    ):
        assert (share / place).read_bytes() == (tmp_path / "completions" / shell).read_bytes()
    assert stat.S_IMODE((share / "man/man1/credential-agent.1.gz").stat().st_mode) == 0o644


def test_without_what_makes_the_pages_it_installs_all_the_same(chroot: Chroot) -> None:
    """A payload that has lost it, or was put together by hand: no identity depends on a page."""
    pages, aside = chroot.root / "payload/pages", chroot.root / "payload/aside"
    pages.rename(aside)
    done = chroot.install()
    assert done.returncode == 0, done.stderr
    assert "without manual pages" in done.stderr
    assert not list((chroot.root / "usr/local/share/man/man1").glob("credential-agent*"))
    aside.rename(pages)
    assert chroot.install().returncode == 0
    assert list((chroot.root / "usr/local/share/man/man1").glob("credential-agent*"))


def test_a_machine_whose_ntp_client_tells_the_kernel_alone_lets_the_agent_ask_the_kernel(chroot: Chroot) -> None:
    """With chrony there the drop-in is, and with chrony gone it is not."""
    drop_in = chroot.root / "etc/systemd/system/credential-agent.service.d/50-kernel-clock.conf"
    assert not drop_in.exists()
    client = chroot.root / "usr/sbin/chronyd"
    client.write_text("#!/bin/sh\n")
    client.chmod(0o755)
    assert chroot.install().returncode == 0
    assert "\nSystemCallFilter=adjtimex\n" in drop_in.read_text()
    client.unlink()
    assert chroot.install().returncode == 0
    assert not drop_in.exists()


@pytest.mark.parametrize(("whose", "killed"), [("new", False), ("present", True)])
def test_a_refused_upgrade_changes_not_a_byte(chroot: Chroot, whose: str, *, killed: bool) -> None:
    """Whether the configuration is given with it or was there: refused, and no file, mode, link or owner differs.

    Nor is it forgotten that a run before it was killed in the middle of its work: only one that succeeds ends that.
    """
    unfinished = chroot.root / "opt/credential-agent/.unfinished"
    if killed:
        unfinished.touch()
    present = chroot.root / "etc/credential-agent/config.toml"
    good = present.read_bytes()
    (chroot.root / "bad.toml").write_text("[aws]\nnonsense = 1\n")
    (chroot.root / "other.pub.jwk").write_text("{}")
    if whose == "present":
        present.write_bytes(good + b"[aws]\nnonsense = 1\n")
        present.chmod(0o644)  # as an earlier release had it
    before = chroot.seen()
    given = (
        ["--config", "/bad.toml", "--signer", "/other.pub.jwk"] if whose == "new" else ["--signer", "/other.pub.jwk"]
    )
    done = chroot.install(*given)
    assert done.returncode == 1
    assert "nonsense" in done.stderr
    assert chroot.seen() == before
    present.write_bytes(good)
    if killed:
        assert chroot.install().returncode == 0
    assert not unfinished.exists()


def test_who_was_in_the_services_group_becomes_an_operator(chroot: Chroot) -> None:
    """An upgrade gives a scraper its own group and takes the one that may read the key; it narrows the configuration."""
    chroot.run("useradd", "scraper")
    chroot.run("usermod", "-aG", "credential-agent", "scraper")
    (chroot.root / "etc/credential-agent/config.toml").chmod(0o644)
    done = chroot.install()
    assert done.returncode == 0, done.stderr
    assert "scraper is an operator" in done.stderr
    groups = chroot.run("id", "-Gn", "scraper").stdout.split()
    assert "credential-operators" in groups
    assert "credential-agent" not in groups
    assert chroot.run("stat", "-c", "%a", "/etc/credential-agent/config.toml").stdout == "640\n"


def test_an_image_is_made_as_the_page_says(chroot: Chroot, tmp_path: Path) -> None:
    """The page's own lines, in order, install into a tree with its configuration of a control plane, and the checks pass.

    The machine that builds is none of the cloud.
    """
    whole = (m.REPOSITORY / "packer/README.md").read_text()
    page = whole.partition("\n## Without Packer\n")[2]
    block = re.search(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block
    (tmp_path / "build").mkdir()
    (tmp_path / "build/payload").symlink_to(m.payload())
    key = bundle.SigningKey.generate()
    (tmp_path / "control-plane.pub.jwk").write_text(json.dumps(key.public_jwk()))
    _, site, upstream = re.findall(r"^```toml\n(.*?)^```$", whole, re.MULTILINE | re.DOTALL)
    (tmp_path / "site.toml").write_text(f"{site}\n{upstream}")
    worker = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "worker.pub.pem").write_bytes(
        worker.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    made, *lines = commands(block[1])
    assert made.startswith("packer/payload.sh ")  # that is `m.payload()`
    for line in lines:
        done = subprocess.run(
            ["sh", "-ec", line.replace("/mnt/image", str(chroot.root))],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    config = (chroot.root / "etc/credential-agent/config.toml").read_text()
    assert "ec2-user-data" in config
    assert (chroot.root / "etc/systemd/system/credential-agent.service.d/50-ec2.conf").exists()
    assert not (chroot.root / "tmp/payload").exists()


def test_an_image_has_nothing_of_the_machine_it_was_built_on(chroot: Chroot) -> None:
    """Its last step takes identity, memory, keys, ids, logs and the upload away, hidden files too; others' keys stay."""
    gone = [
        "upload/etc/site.toml", "var/lib/credential-agent/memory.json", "var/lib/credential-agent/.new",
        "var/lib/credential-agent/a/bundle", "run/credential-agent/token", "etc/ssh/ssh_host_rsa_key",
        "etc/ssh/ssh_host_rsa_key.pub", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed",
        "var/lib/systemd/credential.secret", "var/log/journal/0/system.journal", "root/.bash_history",
        "home/builder/.bash_history", "root/.cache/pip/x",
    ]  # fmt: skip
    stays = ["home/builder/.ssh/authorized_keys", "var/log/others", "etc/ssh/sshd_config"]
    for name in (*gone, *stays, "etc/machine-id", "root/.ssh/authorized_keys"):
        (chroot.root / name).parent.mkdir(parents=True, exist_ok=True)
        (chroot.root / name).write_text("of this machine\n")
    keys = chroot.root / "root/.ssh/authorized_keys"
    keys.write_text("command=\"echo 'Please login as the user'\" ssh-rsa builder\nssh-rsa operator\n")
    shutil.copy(m.REPOSITORY / "packer/cleanup.sh", chroot.root / "cleanup.sh")
    for key in ("ssh-rsa operator\n", None):
        done = chroot.run("/cleanup.sh", "/upload")
        assert done.returncode == 0, done.stderr
        assert [name for name in gone if (chroot.root / name).exists()] == []
        assert (keys.read_text() if keys.exists() else None) == key
        assert (chroot.root / "etc/machine-id").read_bytes() == b""
        keys.write_text("command=\"echo 'Please login as the user'\" ssh-rsa builder\n")  # and nobody else's
    assert all((chroot.root / name).exists() for name in stays)
    assert (chroot.root / "var/lib/credential-agent").is_dir()


@pytest.mark.parametrize("options", [(), ("--no-redirect",)], ids=["redirect", "no-redirect"])
@pytest.mark.parametrize(("policy", "mode"), [("enable", "enable-only"), ("disable", "full")])
def test_a_first_boot_changes_nothing_of_what_was_chosen(
    chroot: Chroot, policy: str, mode: str, options: tuple[str, ...]
) -> None:
    """Whatever policy a distribution applies at a machine's first boot, the units that were installed to start are those."""
    rule = chroot.root / "etc/systemd/system-preset/90-default.preset"
    done = chroot.install(*options)
    assert done.returncode == 0, done.stderr
    chosen = chroot.run("systemctl", "list-unit-files", "--state=enabled", "credential-agent*").stdout
    rule.parent.mkdir(exist_ok=True)
    rule.write_text(f"{policy} *\n")
    try:
        for unit in ("credential-agent*.service", "credential-agent*.socket", "credential-agent.target"):
            names = [str(path.name) for path in (chroot.root / "etc/systemd/system").glob(unit)]
            preset = chroot.run("systemctl", f"--preset-mode={mode}", "preset", *names)
            assert preset.returncode == 0, preset.stderr
    finally:
        rule.unlink()
    assert "credential-agent.service" in chosen
    assert ("credential-agent-closed.service" in chosen) is not bool(options)
    left = chroot.run("systemctl", "list-unit-files", "--state=enabled", "credential-agent*").stdout
    assert [line.split()[:2] for line in left.splitlines()] == [line.split()[:2] for line in chosen.splitlines()]


def test_a_unit_is_left_out_of_an_image_as_the_page_says(chroot: Chroot) -> None:
    """The page's own words leave out a unit that was installed, and no policy of a first boot brings it back; an installation does."""
    page = (m.REPOSITORY / "packer/README.md").read_text()
    (typed,) = re.findall(r"`(ln [^`]* /etc/systemd/system/NAME)`", page)
    unit = "credential-agent-courier.socket"
    done = chroot.install()
    assert done.returncode == 0, done.stderr
    assert chroot.run("sh", "-c", typed.replace("NAME", unit)).returncode == 0
    for mode in ("enable-only", "full"):
        chroot.run("systemctl", f"--preset-mode={mode}", "preset", unit)
        assert chroot.run("systemctl", "is-enabled", unit).stdout.strip() == "masked"
    again = chroot.install()
    assert again.returncode == 0, again.stderr
    assert chroot.run("systemctl", "is-enabled", unit).stdout.strip() == "enabled"


@pytest.mark.parametrize("taken_off", [False, True])
def test_one_run_waits_for_the_other(chroot: Chroot, *, taken_off: bool) -> None:
    """Whoever comes second says so, and goes on when the first has ended; nobody but root can be the first.

    One that takes all off takes the name of the lock away with it, and whoever comes third looks for that name.
    """
    lock = chroot.root / "run/credential-agent-install.lock"
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    with (
        lock.open() as held,
        subprocess.Popen(
            chroot.typed("/payload/install.sh", *OPTIONS), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as second,
    ):
        assert second.stderr is not None
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert "another run of this script" in second.stderr.readline()
            if taken_off:
                lock.unlink()
            fcntl.flock(held, fcntl.LOCK_UN)
            assert "it starts at the next boot" in second.stderr.read()
        finally:
            second.kill()
    assert second.returncode == 0
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


@pytest.mark.parametrize("options", [(), ("--no-redirect",)], ids=["redirect", "no-redirect"])
def test_what_an_operator_put_beside_our_units_stays(chroot: Chroot, options: tuple[str, ...]) -> None:
    """A limit of the workers' slice, a sandbox made wider: an upgrade leaves them, and taking it off takes ours alone.

    So does it with the names of /etc/hosts, though the last has no end of its line.
    """
    hosts, theirs = chroot.root / "etc/hosts", "127.0.0.1 localhost\n192.0.2.1 database.example"
    hosts.write_text(theirs)
    units = chroot.root / "etc/systemd/system"
    mine = [units / f"{unit}.d/60-mine.conf" for unit in (
        "credential-agent.service", "credential-agent.target", "credential-agent-workers.slice", "nftables.service"
    )]  # fmt: skip
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("[Unit]\n")
    assert chroot.install(*options).returncode == 0
    assert (mine[0].with_name("40-interpreter.conf")).exists()
    assert all(path.exists() for path in mine)
    assert hosts.read_text() == f"{theirs}\n169.254.169.254 metadata.google.internal # credential-agent\n"
    assert chroot.run("/payload/install.sh", "uninstall").returncode == 0
    assert hosts.read_text() == f"{theirs}\n"
    left = {path for pattern in ("credential-agent*.d", "nftables.service.d") for path in units.glob(f"{pattern}/*")}
    assert left == set(mine)
    assert not list(units.glob("credential-agent*.service"))
    mine[-1].unlink()
    assert chroot.install().returncode == 0


def test_purge_leaves_no_group_and_no_file(chroot: Chroot) -> None:
    """Uninstalled with --purge, nothing of ours is left."""
    assert chroot.run("/payload/install.sh", "uninstall", "--purge").returncode == 0
    assert "credential" not in chroot.run("getent", "group").stdout
    left = [name for name in chroot.seen() if "credential-agent" in name]
    assert left == []
