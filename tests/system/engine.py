"""What a container engine does with a ``Containerfile`` and a ``compose.yaml``, in a root and namespaces of our own.

No more than the recipe in ``packer/container`` uses: an instruction, a key or an option that is not known here is an
error, so that none of the recipe goes by unnoticed. Images are overlays on a tree that stands for the base; a service
is a process that systemd-nspawn runs as process 1 of its container, as its user, without a shell.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from tests.system import leftovers
from tests.system import machine as m
from tests.system.harness import until
from tests.system.leftovers import Claim
from tests.system.machine import Disk

SHELLS = ("sh", "bash", "dash", "rbash")


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Containerfile and what follows each."""
    bare = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for line in bare.replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, " ".join(rest.split())


@dataclass
class Image:
    """What a build leaves.

    Attributes:
        layers: of the root, from the bottom up.
    """

    layers: Sequence[Path]
    user: str = "0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    @classmethod
    def build(cls, recipe: Path, context: Path, place: Path, *, base: Path, arguments: Mapping[str, str]) -> Self:
        """Carry out a recipe.

        Args:
            recipe: the Containerfile.
            context: the directory from which it copies.
            place: where its stages are made.
            base: the tree that stands for the base image.
            arguments: ``--build-arg``.
        """
        known: dict[str, str] = {}
        stages: dict[str, Disk] = {}
        image, disk = cls([base]), None
        try:
            for word, rest in instructions(recipe.read_text()):
                if word == "ARG":
                    name, _, default = rest.partition("=")
                    known[name] = arguments.get(name, expand(default, known))
                elif word == "FROM":
                    parts = expand(rest, known).split()
                    assert re.match(r"docker\.io/library/python:[\d.]+-slim-bookworm\Z", parts[0]), parts
                    name = parts[2] if parts[1:2] == ["AS"] else "last"
                    disk = stages[name] = Disk(place / name, [base])
                    image = cls([base, disk.upper])
                else:
                    assert disk is not None
                    image._carry_out(word, rest, disk, context, stages)
        finally:
            for one in stages.values():
                one.close()
        return image

    def _carry_out(self, word: str, rest: str, disk: Disk, context: Path, stages: Mapping[str, Disk]) -> None:
        match word:
            case "COPY":
                copy(rest.split(), disk, context, stages)
            case "RUN":  # in a shell, as root
                bare = ("env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")
                m.call("chroot", disk.root, *bare, "/bin/sh", "-c", rest)
            case "USER":
                self.user = rest
            case "ENTRYPOINT":
                self.entrypoint = json.loads(rest)
            case "CMD":
                self.command = json.loads(rest)
            case "HEALTHCHECK":
                options, _, command = rest.partition(" CMD ")
                assert all(re.match(r"--(interval|timeout|start-period)=\d+s\Z", one) for one in options.split()), rest
                self.health = json.loads(command)
            case "LABEL":
                assert all("=" in one for one in shlex.split(rest)), rest
            case _:
                raise AssertionError(f"{word}: not known here")


def expand(text: str, known: Mapping[str, str]) -> str:
    """``text`` with the build's arguments put in."""
    return re.sub(r"\$\{(\w+)\}", lambda found: known[found[1]], text)


def copy(words: list[str], disk: Disk, context: Path, stages: Mapping[str, Disk]) -> None:
    """``COPY``: files into a directory, or what is in a directory."""
    source = context
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")].root
    *patterns, target = words
    into = disk.root / target.lstrip("/")
    for pattern in patterns:
        found = list(source.glob(pattern.lstrip("/")))
        assert found, f"COPY {pattern}: there is none"
        for path in found:
            into.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, into, symlinks=source is not context, dirs_exist_ok=True)
            else:
                shutil.copy2(path, into)


class Service:
    """A service of a project, as process 1 of a container."""

    def __init__(self, project: Project, name: str) -> None:
        self._project, self.name = project, name
        self.told = project.document["services"][name]
        container = f"{name}-{secrets.token_hex(2)}"
        self._disk = Disk(project.place / container, project.image.layers)
        self._group = leftovers.group(f"{project.name}-{container}")
        self._process: subprocess.Popen[str] | None = None
        for shell in SHELLS:
            for directory in ("bin", "usr/bin", "usr/local/bin"):
                (self._disk.root / directory / shell).unlink(missing_ok=True)

    def _options(self) -> list[str]:
        known = {"image", "restart", "read_only", "cap_drop", "security_opt", "pids_limit", "mem_limit", "networks", "sysctls",
                 "secrets", "volumes", "tmpfs", "healthcheck", "command", "depends_on", "group_add", "environment",
                 "network_mode"}  # fmt: skip
        assert self.told.keys() <= known, self.told.keys() - known
        found = [f"--network-namespace-path=/run/netns/{self._project.network_of(self.name)}"]
        for source, target, *options in self._project.mounts(self.told):
            inside = self._disk.root / target.lstrip("/")
            if source.is_dir():
                inside.mkdir(parents=True, exist_ok=True)
            elif not inside.exists():
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.touch()
            found.append(f"--bind{'-ro' if options == ['ro'] else ''}={source}:{target}")
        found += [f"--tmpfs={mount}" for mount in self.told.get("tmpfs", [])]
        if self.told.get("read_only"):
            found.append("--read-only")
        return found

    def command(self, *program: str, user: str | None = None, groups: Sequence[str] | None = None) -> list[str]:
        """The command line that runs a program in the container: as the image's user, or as another.

        Args:
            program: what runs.
            user: its number; ``None``: the image's user.
            groups: further ones; ``None``: those that the service says.
        """
        become = ["setpriv"]
        if self.told.get("cap_drop"):
            assert self.told["cap_drop"] == ["ALL"]
            become += ["--bounding-set=-all", "--inh-caps=-all"]
        if self.told.get("security_opt"):
            assert self.told["security_opt"] == ["no-new-privileges:true"]
            become.append("--no-new-privs")
        more = self.told.get("group_add", []) if groups is None else groups
        if user is None:
            user = self._project.image.user
            become.append("--init-groups")  # those of the image
        else:
            become.append(f"--groups={','.join(more)}" if more else "--clear-groups")
        become += [f"--reuid={user}", f"--regid={user}", "--"]
        # As engines do; nspawn adds variables of its own, by which the agent would take it for a service manager.
        become += ["env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin"]
        become += [f"{name}={value}" for name, value in self.told.get("environment", {}).items()]
        options = [
            "--console=pipe",
            "--resolv-conf=off",
            "--timezone=off",
            f"--machine={self._project.name}-{self.name}",
        ]
        return m.nspawn(self._disk.root, *options, *self._options(), *become, *program, group=self._group.name)

    def start(self) -> None:
        """Begin what the image begins."""
        image = self._project.image
        with (self._project.place / f"{self.name}.log").open("a") as log:
            self._process = subprocess.Popen(
                self.command(*image.entrypoint, *image.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )

    def wait_for(self, event: str) -> None:
        """Wait until it says so."""

        def look() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, f"{self.name} ended:\n{self.log}"
            return event in self.log

        until(look, seconds=60, what=event)

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return (self._project.place / f"{self.name}.log").read_text()

    def _leader(self) -> int:
        """Process 1, as it is seen from here."""
        assert self._process is not None

        def look() -> int:
            assert self._process is not None
            assert self._process.poll() is None, f"{self.name} ended:\n{self.log}"
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            started = [
                one for one in children if self._project.image.entrypoint[0] in Path(f"/proc/{one}/cmdline").read_text()
            ]
            return int(started[0]) if started else 0

        return until(look, seconds=30, what=self.name)

    def execute(self, *program: str) -> subprocess.CompletedProcess[str]:
        """What ``compose exec`` does: run a program in it, as its user."""
        user = self._project.image.user
        enter = [
            "nsenter",
            "--target",
            str(self._leader()),
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--wd=/",
            "--root",
        ]
        enter += [f"--setuid={user}", f"--setgid={user}", "--"]
        return subprocess.run([*enter, *program], capture_output=True, text=True, check=False, timeout=60, env={})

    def tasks(self) -> list[str]:
        """The command line of each process and thread: not all machines of tests have the controller that bounds them."""
        found = [self._leader()]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        return [Path(f"/proc/{pid}/cmdline").read_text() for pid in found for _ in Path(f"/proc/{pid}/task").iterdir()]

    def healthy(self) -> bool:
        """What its health check says now."""
        kind, *program = self.told["healthcheck"]["test"]
        assert kind == "CMD"
        return self.execute(*program).returncode == 0

    def wait_healthy(self) -> None:
        until(self.healthy, seconds=60, what=f"{self.name}'s health")

    def stop(self) -> int:
        """What ``compose stop`` does; the status with which it ended."""
        os.kill(self._leader(), signal.SIGTERM)
        assert self._process is not None
        return self._process.wait(30)

    def run(self, *program: str, user: str = "1000", groups: Sequence[str] | None = None) -> str:
        """Run a program as the service, to its end; what it wrote."""
        return m.call(*self.command(*program, user=user, groups=groups))

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        self._group.release()
        self._disk.close()


class Project:
    """A compose file with what lies beside it.

    Args:
        file: the compose file.
        place: for volumes and roots.
        image: what every service of it runs.
    """

    def __init__(self, file: Path, place: Path, image: Image) -> None:
        self.document: dict[str, Any] = yaml.safe_load(file.read_text())
        self.place, self.image, self._site = place, image, file.parent
        self.name = f"compose{os.getpid() % 100000}x{secrets.token_hex(2)}"
        self._claims: list[Claim] = []
        self._services: list[Service] = []
        self._hosts = 2

    def __enter__(self) -> Self:
        try:
            self._volumes()
            self._networks()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for service in self._services:
            service.close()
        for claim in reversed(self._claims):
            claim.release()

    def service(self, name: str) -> Service:
        """A new container of a service."""
        made = Service(self, name)
        self._services.append(made)
        return made

    def _volumes(self) -> None:
        for name, told in self.document["volumes"].items():
            place = self.place / "volumes" / name
            place.mkdir(parents=True)
            options = told.get("driver_opts", {})
            if options:
                assert options.keys() == {"type", "device", "o"}, options
                self._claims.append(Claim("mount", str(place)))
                m.call("mount", "-t", options["type"], "-o", options["o"], options["device"], place)

    def mounts(self, told: Mapping[str, Any]) -> Iterator[list[Any]]:
        """What a service mounts: the source here, the place there, options."""
        for secret in told.get("secrets", []):
            yield [self._site / self.document["secrets"][secret["source"]]["file"], secret["target"], "ro"]
        for mount in told.get("volumes", []):
            source, target, *options = mount.split(":")
            if source.startswith("."):
                yield [(self._site / source).resolve(), target, *options]
                continue
            assert source in self.document["volumes"], mount
            place = self.place / "volumes" / source
            if not self.document["volumes"][source]:
                self._take_over(place, target)
            yield [place, target, *options]

    def _take_over(self, place: Path, target: str) -> None:
        """A new volume has the owner and the mode of the directory that it hides."""
        found = next(layer for layer in reversed(self.image.layers) if (layer / target.lstrip("/")).exists())
        there = (found / target.lstrip("/")).stat()
        os.chown(place, there.st_uid, there.st_gid)
        place.chmod(there.st_mode & 0o7777)

    # -- networks: those inside alone, since nothing here may reach the outside

    def _space(self, name: str) -> str:
        return f"{self.name}{name[:1]}"

    def network_of(self, name: str) -> str:
        """The network namespace of a service."""
        kind, _, other = self.document["services"][name].get("network_mode", "").partition(":")
        assert kind in {"", "service"}, kind
        return self._space(other or name)

    def _add_space(self, space: str) -> None:
        self._claims.append(Claim("netns", space))
        m.call("ip", "netns", "add", space)
        m.call("ip", "-n", space, "link", "set", "lo", "up")

    def _networks(self) -> None:
        self._add_space(switch := f"{self.name}-")
        inside = {name: told for name, told in self.document["networks"].items() if told.get("internal")}
        for name, told in inside.items():
            m.call("ip", "-n", switch, "link", "add", name[:12], "type", "bridge")
            m.call("ip", "-n", switch, "link", "set", name[:12], "up")
            (told["subnet"],) = [one["subnet"] for one in told["ipam"]["config"]]
        for name, told in self.document["services"].items():
            if "network_mode" in told:
                continue
            self._add_space(space := self._space(name))
            for key, value in told.get("sysctls", {}).items():
                m.call("ip", "netns", "exec", space, "sysctl", "-qw", f"{key}={value}")
            joined = told["networks"]
            for network in set(joined) & inside.keys():
                given = joined[network].get("ipv4_address") if isinstance(joined, dict) else None
                self._join(space, switch, network[:12], inside[network]["subnet"], given)

    def _join(self, space: str, switch: str, bridge: str, subnet: str, address: str | None) -> None:
        base, _, length = subnet.partition("/")
        if address is None:
            self._hosts += 1
            address = f"{base.rpartition('.')[0]}.{self._hosts}"
        port = f"p{secrets.token_hex(3)}"
        m.call("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        m.call("ip", "-n", switch, "link", "set", port, "master", bridge, "up")
        m.call("ip", "-n", space, "address", "add", f"{address}/{length}", "dev", "eth0")
        m.call("ip", "-n", space, "link", "set", "eth0", "up")
