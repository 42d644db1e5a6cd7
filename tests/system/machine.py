"""A worker that really boots: a distribution with systemd in systemd-nspawn, alone on a network with a fake cloud.

Debian 12, or what ``BOOT_SUITE`` names (:data:`RELEASES`).

Layers, each made once and kept in a cache (``CREDENTIAL_AGENT_TEST_CACHE``, else the user's cache directory):

* ``base-*``: debootstrap's system with what an image of a worker has. A minute, once.
* ``image-*``: that, plus the install script run on it. Half a minute, again when the code or the script changes.
* a machine's own layer, gone with the machine unless it is to boot again, or an image is to be made of it.

The network of a machine is a namespace with one cable to another namespace, where 169.254.169.254 is a fake metadata
service. Neither touches the host's own network.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import importlib.util
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest

from tests.system import leftovers
from tests.system.leftovers import Claim

REPOSITORY = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "libnss-systemd", "nftables", "iproute2", "ca-certificates", "procps", "util-linux",
)  # fmt: skip


@dataclass(frozen=True)
class Release:
    """How a base is made of a release.

    Attributes:
        suite: its name in an archive.
        python: the name of the interpreter that the install script finds there.
        keyring: what proves that a package is the distribution's.
        components: of the archive.
        updated: take packages of the release's updates too, as a machine has them that apt looks after. Python too.
        script: of debootstrap, where it has none by the suite's name.
    """

    suite: str
    python: str = "python3"
    keyring: Path = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    components: str = "main"
    updated: bool = False
    script: str = "sid"

    @property
    def packages(self) -> tuple[str, ...]:
        """What a worker's image has."""
        return (*PACKAGES, self.python, f"{self.python}-venv")


_NOBLE = Release(
    "noble",
    keyring=Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
    components="main,universe",  # as Ubuntu's own images have it; venv is in the second
    script="gutsy",
)
RELEASES = {
    "bookworm": Release("bookworm"),
    "trixie": Release("trixie"),
    "jammy": replace(
        _NOBLE,
        suite="jammy",
        python="python3.11",
        updated=True,  # 3.11 came later than the release
    ),
    "noble": _NOBLE,
}
SCRIPTS = Path("/usr/share/debootstrap/scripts")
TOOLS = ("systemd-nspawn", "debootstrap", "nsenter", "ip", "nft", "mount")
PYTHON = "/opt/credential-agent/current/bin/python3"
PORT = 16925

MACHINE_KEY = "ASIAMACHINE000000000"
USER_KEY = "ASIAUSER000000000000"
USER_TOKEN = "ya29.user-token"
WORKER_UID = 1000
SYSTEM_UID = 1  # "daemon": no worker, no root

_numbers = itertools.count()


def release() -> Release:
    """What the containers run: ``BOOT_SUITE``, else Debian 12."""
    return RELEASES[os.environ.get("BOOT_SUITE") or SUITE]


def mirror(keyring: Path = RELEASES[SUITE].keyring) -> str:
    """Where this machine's own apt gets the distribution from: a container's packages come from the same place.

    Empty, which is debootstrap's own default, when apt knows only others.
    """
    suites = {known.suite for known in RELEASES.values() if known.keyring == keyring}
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = (line.split() for line in done.stdout.splitlines())
    return next((uri for uri, name in found if name in suites), "")


def missing() -> str | None:
    """Why nothing can boot here; ``None``: it can."""
    if os.geteuid() != 0:
        return "needs root: boots containers"
    absent = [tool for tool in TOOLS if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if absent:
        return f"needs {', '.join(absent)} (apt-get install systemd-container debootstrap nftables iproute2)"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "needs overlayfs"
    if leftovers.unified() is None:
        return "needs cgroup v2"
    chosen = os.environ.get("BOOT_SUITE") or SUITE
    if chosen not in RELEASES:
        return f"BOOT_SUITE: expected one of {', '.join(RELEASES)}, got {chosen!r}"
    if not release().keyring.exists():
        return f"needs {release().keyring} (its distribution's package with the archive's keys)"
    return None


def call(*command: str | Path, **more: Any) -> str:
    """Run a command; its standard output. An error shows everything it said."""
    argv = [str(part) for part in command]
    done: subprocess.CompletedProcess[str] = subprocess.run(argv, capture_output=True, text=True, check=False, **more)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def cache() -> Path:
    """Where images are kept between runs."""
    chosen = os.environ.get("CREDENTIAL_AGENT_TEST_CACHE")
    path = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    path = path if chosen else path / "credential-agent-tests"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    with (cache() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def nspawn(root: Path, *arguments: str, group: str) -> list[str]:
    """systemd-nspawn as it works on machines that were not booted by systemd themselves.

    It puts a machine into the control group that it runs in itself; so each has one (``group``), and goes with whoever
    started it.
    """
    enter = f'echo $$ > {group}/cgroup.procs; exec setpriv --pdeathsig=KILL "$@"'
    return ["sh", "-ec", enter, "sh", "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--link-journal=no",
            f"--directory={root}", *arguments]  # fmt: skip


def in_tree(root: Path, *arguments: str) -> str:
    """Run a command in a tree that is not booted."""
    with leftovers.group(f"tree-{secrets.token_hex(4)}") as group:
        return call(*nspawn(root, *arguments, group=group.name))


# -- images ---------------------------------------------------------------------------------------------------------------


def base_image() -> Path:
    """The system as a worker's image has it, without the agent."""
    made = release()
    recipe = (made.suite, made.components, str(made.updated), *made.packages)
    root = cache() / f"base-{_digest(*(part.encode() for part in recipe))}"
    with _locked("base"):
        if not (root / ".complete").exists():
            shutil.rmtree(root, ignore_errors=True)
            script = [] if (SCRIPTS / made.suite).exists() else [made.script]
            packages = PACKAGES if made.updated else made.packages
            call("debootstrap", "--variant=minbase", "--force-check-gpg", f"--keyring={made.keyring}",
                 f"--components={made.components}", f"--include={','.join(packages)}",
                 made.suite, root, mirror(made.keyring), *script)  # fmt: skip
            if made.updated:  # debootstrap reads one suite
                sources = root / "etc/apt/sources.list"
                lines = sources.read_text()
                sources.write_text(lines + lines.replace(f" {made.suite} ", f" {made.suite}-updates "))
                apt = ("chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--yes")
                call(*apt, "update")
                call(*apt, "install", "--no-install-recommends", *made.packages)
            (root / "etc/machine-id").write_text("")
            call("chroot", root, "useradd", "--create-home", "--uid", str(WORKER_UID), "alice")
            (root / ".complete").touch()
    return root


def with_packages(*names: str) -> Sequence[Path]:
    """The layers of the base with more of the distribution's packages, whose services are not enabled."""
    base = base_image()
    layer = cache() / f"packages-{_digest(base.name.encode(), *(name.encode() for name in names))}"
    with _locked("packages"):
        if not (layer / ".complete").exists():
            shutil.rmtree(layer, ignore_errors=True)
            with contextlib.closing(Disk(layer, [base])) as disk:
                resolver = disk.root / "etc/resolv.conf"
                resolver.unlink(missing_ok=True)
                shutil.copy("/etc/resolv.conf", resolver)
                (disk.root / "etc/systemd/system-preset").mkdir(exist_ok=True)
                (disk.root / "etc/systemd/system-preset/00-none.preset").write_text("disable *\n")
                apt = ("chroot", disk.root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--yes")
                call(*apt, "update")
                call(*apt, "install", "--no-install-recommends", *names)
                call(*apt, "clean")
            (layer / ".complete").touch()
    return [base, layer / "upper"]


def payload() -> Path:
    """What ``packer/payload.sh`` gathers, with a wheelhouse: the machines have no network to install from."""
    locked = (REPOSITORY / "requirements/runtime.txt").read_bytes()
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = call("chroot", base_image(), release().python, "-c", ask).strip()
    sources = sorted(
        path
        for folder in ("agent", "systemd", "packer")
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    )
    target = cache() / f"payload-{_digest(locked, version.encode(), *(p.read_bytes() for p in sources))}"
    wheelhouse = cache() / f"wheelhouse-{_digest(locked, version.encode())}"
    with _locked("payload"):
        if not (target / ".complete").exists():
            arguments = [] if wheelhouse.exists() else ["--wheelhouse", version]
            call(REPOSITORY / "packer/payload.sh", target, *arguments, env={**os.environ, "PYTHON": sys.executable})
            if not wheelhouse.exists():
                (target / "wheelhouse").rename(wheelhouse)
            (target / "wheelhouse").symlink_to(wheelhouse)
            (target / ".complete").touch()
            _prune("payload-*", keep=target)
    return target


class Disk:
    """A root file system of layers, the topmost writable. ``layers`` are from the bottom up."""

    def __init__(self, place: Path, layers: Sequence[Path]) -> None:
        self.place = place
        self.upper, self.root = place / "upper", place / "root"
        self._layers = layers
        for directory in (self.upper, self.root, place / "work"):
            directory.mkdir(parents=True, exist_ok=True)
        below = ":".join(str(layer) for layer in reversed(layers))
        options = f"lowerdir={below},upperdir={self.upper},workdir={place / 'work'}"
        self._claim = Claim("mount", str(self.root))
        call("mount", "-t", "overlay", "overlay", "-o", options, self.root)

    def clone(self, place: Path) -> Disk:
        """The disk of a machine made from an image of this one, which must be off."""
        place.mkdir()
        call("cp", "-a", self.upper, place / "taken")
        # What every tool that makes images does, so that each boot draws its own.
        (place / "taken/etc").mkdir(exist_ok=True)
        (place / "taken/etc/machine-id").write_text("")
        return Disk(place, [*self._layers, place / "taken"])

    def close(self) -> None:
        """Unmount it."""
        self._claim.release()


def sdk() -> list[Path]:
    """What google-auth's usual transport needs beside the agent's own packages, from the interpreter that runs the tests."""
    packages = []
    for name in ("requests", "certifi", "charset_normalizer", "packaging"):
        found = importlib.util.find_spec(name)
        assert found is not None, name
        assert found.origin is not None, name
        packages.append(Path(found.origin).parent)
    return packages


def installed_image() -> Sequence[Path]:
    """The layers of an image with the agent in it, as the install script leaves it."""
    base, source = base_image(), payload()
    layer = cache() / f"image-{_digest(base.name.encode(), source.name.encode())}"
    with _locked("image"):
        if not (layer / ".complete").exists():
            shutil.rmtree(layer, ignore_errors=True)
            disk = Disk(layer, [base])
            try:
                for package in sdk():
                    shutil.copytree(package, disk.root / "opt/sdk" / package.name)
                install(disk.root, source, "--no-start", "--no-packages", "--platform", "none")
                validate = [f"--bind-ro={source}:/payload", f"--bind-ro={(source / 'wheelhouse').resolve()}"]
                in_tree(disk.root, *validate, "/payload/validate.sh")
            finally:
                disk.close()
            (layer / ".complete").touch()
            _prune("image-*", keep=layer)
    return [base, layer / "upper"]


def install(root: Path, source: Path, *arguments: str) -> str:
    """Run the install script in a tree that is not booted."""
    binds = [f"--bind-ro={source}:/payload", f"--bind-ro={(source / 'wheelhouse').resolve()}"]
    return in_tree(root, *binds, "/payload/install.sh", *arguments)


def _prune(pattern: str, *, keep: Path) -> None:
    for path in cache().glob(pattern):
        if path != keep and path.suffix != ".lock" and time.time() - path.stat().st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)


# -- the cloud -------------------------------------------------------------------------------------------------------------


_SERVICES = {
    "ec2": ("tests.fakes.ec2_metadata", "Ec2MetadataService"),
    "gce": ("tests.fakes.gce_metadata", "GceMetadataServer"),
}


class Cloud:
    """A network namespace with a metadata service, and another one for a machine, with a cable between them.

    Args:
        fake: ``ec2`` or ``gce``.
        fields: of the fake service, as Python source.
    """

    ADDRESSES = ("169.254.169.254", "fd00:ec2::254", "fd20:ce::254")

    def __init__(self, fake: str, **fields: str) -> None:
        self.name = f"ca{os.getpid()}x{next(_numbers)}x{secrets.token_hex(2)}"
        self.here, self.there = f"{self.name}c", f"{self.name}m"
        self._claims: list[Claim] = []
        self._processes: list[subprocess.Popen[str]] = []
        self._module, self._class = _SERVICES[fake]
        self._fields = fields

    def __enter__(self) -> Self:
        for name in (self.here, self.there):
            self._claims.append(Claim("netns", name))
            call("ip", "netns", "add", name)
            call("ip", "-n", name, "link", "set", "lo", "up")
        call("ip", "-n", self.here, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.there)
        for name, last in ((self.here, "1"), (self.there, "2")):
            call("ip", "-n", name, "address", "add", f"10.77.0.{last}/24", "dev", "eth0")
            call("ip", "-n", name, "address", "add", f"fd77::{last}/64", "dev", "eth0", "nodad")
            call("ip", "-n", name, "link", "set", "eth0", "up")
        call("ip", "-n", self.there, "route", "add", "default", "via", "10.77.0.1")
        call("ip", "-n", self.there, "-6", "route", "add", "default", "via", "fd77::1")
        # A machine with containers forwards. Inside, /proc/sys is read-only.
        call("ip", "netns", "exec", self.there, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for address in self.ADDRESSES:
            family = ["-6"] if ":" in address else []
            length = "128" if ":" in address else "32"
            nodad = ["nodad"] if ":" in address else []
            call("ip", "-n", self.here, *family, "address", "add", f"{address}/{length}", "dev", "lo", *nodad)
        # The service itself, its IPv6 face, and another port as Google's has it: whoever gets there has got through.
        for host, port in (("0.0.0.0", 80), ("::", 80), ("0.0.0.0", 443)):
            code = (
                f"from tests.fakes.served import run; from {self._module} import *\n"
                f"run({self._class}({', '.join(f'{k}={v}' for k, v in self._fields.items())}),"
                f" ['--host', '{host}', '--port', '{port}'])"
            )
            command = ["setpriv", "--pdeathsig=KILL", "ip", "netns", "exec", self.here, sys.executable, "-c", code]
            process = subprocess.Popen(
                command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}
            )
            self._processes.append(process)
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline(), "the fake metadata service does not start"
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()
        for claim in self._claims:
            claim.release()
        self._claims.clear()

    def admin(self, name: str, document: Mapping[str, Any]) -> None:
        """What a control plane does."""
        code = (
            "import sys, urllib.request as u; "
            "u.urlopen(u.Request(f'http://10.77.0.1/_admin/{sys.argv[1]}', sys.stdin.buffer.read(), method='POST'))"
        )
        call("ip", "netns", "exec", self.here, sys.executable, "-c", code, name, input=json.dumps(document))

    def set_user_data(self, data: bytes | None) -> None:
        self.admin("user-data", {"base64": None if data is None else base64.b64encode(data).decode()})


def ec2(**fields: str) -> Cloud:
    """An EC2 instance with an instance profile."""
    until = (datetime.now(UTC) + timedelta(hours=6)).isoformat()
    key = f"Key({MACHINE_KEY!r}, 's' * 40, 't' * 80, datetime.fromisoformat({until!r}))"
    return Cloud("ec2", role="'machine-role'", key=key, **fields)


def gce(**fields: str) -> Cloud:
    """A GCE virtual machine with a service account."""
    return Cloud("gce", **fields)


# -- the machine -----------------------------------------------------------------------------------------------------------


class Machine:
    """A booted container.

    Args:
        disk: its root file system.
        cloud: its network.
    """

    #: More of what the container is given, or not.
    options: Sequence[str] = ()

    def __init__(self, disk: Disk, cloud: Cloud) -> None:
        self.disk, self.cloud = disk, cloud
        self._process: subprocess.Popen[bytes] | None = None
        self._group: Claim | None = None
        self._leader = 0

    @property
    def root(self) -> Path:
        return self.disk.root

    @property
    def leader(self) -> int:
        """The process id of its systemd, here."""
        return self._leader

    def boot(self, *, healthy: bool = True) -> Self:
        """Switch it on, and wait until systemd has started everything.

        Args:
            healthy: a unit of ours that failed is an error.

        A kernel that boots has no rules and no addresses of ours. The namespace outlives the container, so what the last
        boot left is taken away: only what this one does can be seen.
        """
        self.wipe()
        arguments = [
            "--boot",
            "--resolv-conf=off",
            "--console=pipe",
            f"--network-namespace-path=/run/netns/{self.cloud.there}",
            "--capability=CAP_NET_ADMIN",
            "--kill-signal=SIGRTMIN+3",
            f"--machine={self.cloud.name}",
            *self.options,
        ]
        # Nobody answers there, and at once: an SDK that looks up a name must not wait for a resolver that is not there.
        resolver = self.root / "etc/resolv.conf"
        resolver.unlink(missing_ok=True)
        resolver.write_text("nameserver 127.0.0.1\n")
        environ = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        self._group = leftovers.group(self.cloud.name)
        self._process = subprocess.Popen(
            nspawn(self.root, *arguments, group=self._group.name),
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._leader = self._wait_leader()
        wait = ["--wait"] if healthy else []  # a unit that is tried for ever never is done
        state = self.run("systemctl", "is-system-running", *wait, check=False, seconds=120).strip()
        if not healthy:
            # A start that a mistake ends is tried again and again before the target gives it up.
            self.until(
                lambda: self.run("systemctl", "is-active", "multi-user.target", check=False).strip() == "active",
                seconds=75,
                what="multi-user.target",
            )
        assert state in {"running", "degraded"} or not healthy, f"booted to {state!r}"
        failed = self.run("systemctl", "list-units", "--failed", "--plain", "--no-legend").strip()
        assert not healthy or "credential-agent" not in failed, f"{failed}\n{self.log()}"
        return self

    def wipe(self) -> None:
        """Leave the network as the kernel has it at power-on."""
        inside = ("ip", "netns", "exec", self.cloud.there)
        call(*inside, "nft", "flush", "ruleset")
        rules = "for f in -4 -6; do for p in 169 170 171; do while ip $f rule del pref $p; do :; done; done; done"
        call(*inside, "sh", "-c", f"({rules}) 2>/dev/null; true")
        call(*inside, "ip", "address", "flush", "dev", "lo")
        call(*inside, "ip", "address", "add", "127.0.0.1/8", "dev", "lo")
        call(*inside, "ip", "address", "add", "::1/128", "dev", "lo", "nodad")

    def _wait_leader(self) -> int:
        assert self._process is not None
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self._process.poll() is None, "systemd-nspawn ended at once"
            found = subprocess.run(["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=False)
            for pid in found.stdout.split():
                self._leader = int(pid)
                # The bus is what systemctl needs.
                if "credential" in self.run(
                    "sh", "-c", "test -S /run/dbus/system_bus_socket && echo credential", check=False
                ):
                    return int(pid)
            time.sleep(0.1)
        raise AssertionError("systemd did not start")

    def shut_down(self) -> None:
        """Switch it off; the disk stays."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._leader, signal.SIGRTMIN + 4)  # systemd: power off
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process = None
        if self._group is not None:
            self._group.release()
        self._group = None
        self.wipe()

    def __enter__(self) -> Self:
        try:
            return self.boot()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc: object) -> None:
        self.shut_down()
        self.disk.close()

    # -- inside

    def run(
        self,
        *command: str,
        uid: int = 0,
        check: bool = True,
        seconds: float = 60,
        text: str | None = None,
    ) -> str:
        """Run a command inside, in no unit's control group, with a bare environment; its output."""
        done = self.result(*command, uid=uid, seconds=seconds, text=text)
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(command)[:500]}: status {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.log()}"
            )
        return done.stdout

    def result(
        self, *command: str, uid: int = 0, seconds: float = 60, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The same, with everything that came of it."""
        return subprocess.run(
            [*self.enter(uid), *command], capture_output=True, text=True, timeout=seconds, check=False, input=text
        )

    def enter(self, uid: int = 0) -> list[str]:
        """The beginning of a command line that runs the rest inside."""
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
        bare = [
            "env",
            "-i",
            "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            f"HOME={'/home/alice' if uid else '/root'}",
        ]
        return ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C", "--wd=/", *bare, *become]

    def in_slice(self, *command: str, name: str = "credential-agent-workers.slice") -> str:
        """Run a command as root in a slice, as a job's unit does."""
        return self.run("systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--slice={name}", *command)

    def log(self) -> str:
        """The agent's journal."""
        done = self.result("journalctl", "--no-pager", "-o", "cat", "-n", "60", "-u", "credential-agent*")
        return done.stdout

    def status(self) -> dict[str, Any]:
        document = json.loads(self.result("credential-agent", "status", "--json").stdout)
        assert isinstance(document, dict)
        return document

    def succeeds(self, *command: str, seconds: float = 30) -> str:
        """Run what may fail until something has settled, until it does not; its output. An error shows the last failure."""
        last: list[subprocess.CompletedProcess[str]] = []

        def well() -> bool:
            last[:] = [self.result(*command)]
            return last[0].returncode == 0

        try:
            self.until(well, seconds=seconds, what=" ".join(command))
        except AssertionError as error:
            error.add_note(f"status {last[0].returncode}\n{last[0].stdout}\n{last[0].stderr}")
            raise
        return last[0].stdout

    def until(self, look: Any, *, seconds: float = 30, what: str = "it") -> Any:
        """The first true value of ``look()``."""
        end = time.monotonic() + seconds
        while not (found := look()):
            if time.monotonic() > end:
                raise AssertionError(f"{what} did not come true in {seconds} s\n{self.log()}")
            time.sleep(0.1)
        return found


AWS = """
import boto3
credentials = boto3.Session().get_credentials()
print(credentials.get_frozen_credentials().access_key if credentials else "none")
"""

GOOGLE = """
import sys; sys.path.append("/opt/sdk")
import google.auth, google.auth.transport.requests
request = google.auth.transport.requests.Request()
credentials, _ = google.auth.default(request=request)
credentials.refresh(request)
print(credentials.token)
"""

CONNECT = """
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
kind = socket.SOCK_STREAM
family = socket.AF_INET6 if ":" in address else socket.AF_INET
protocol = int(sys.argv[3]) if len(sys.argv) > 3 else 0
try:
    s = socket.socket(family, kind, protocol)
    s.settimeout(3)
    s.connect((address, port))
    s.sendall(b"GET / HTTP/1.1\\r\\nHost: 169.254.169.254\\r\\nUser-Agent: credential-agent/probe\\r\\nConnection: close\\r\\n\\r\\n")
    words = s.recv(100).split()
    print("nothing" if not words else "agent" if words[1] == b"508" else "other")
except OSError as error:
    print(type(error).__name__)
"""


def python(source: str) -> list[str]:
    """Run Python source with the SDKs that are installed, and nothing of the environment."""
    return [PYTHON, "-I", "-W", "ignore", "-c", source]


@pytest.fixture(scope="session")
def image() -> Sequence[Path]:
    """The layers of an image with the agent."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    leftovers.sweep()
    return installed_image()


def main() -> None:
    """Make the images that tests ask for, before they do."""
    if reason := missing():
        print(f"no images: {reason}")
        return
    leftovers.sweep()
    print(*installed_image())


if __name__ == "__main__":
    main()
