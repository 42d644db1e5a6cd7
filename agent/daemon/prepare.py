"""Is everything there that the configuration names? All of it is opened and checked; nothing is started.

A mistake is reported at once. A file system that does not answer is not waited for. A file that is away just now (a
directory that is not mounted yet, a key that the machine was not given) is an alarm and no reason to stop serving: the
agent starts without it, and uses it once it is there. A check takes note of all of it and goes on, so that everything
that is wrong is told in one go.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agent import config, keys
from agent.core.errors import AgentError, ConfigError
from agent.daemon import beliefs, compose, disk, handover, listening
from agent.daemon.age import Age
from agent.daemon.files import WatchedFiles
from agent.daemon.launched import Launched
from agent.daemon.opening import Opening
from agent.daemon.publish import absent_directories, group_id
from agent.daemon.tokens import ContainerTokens
from agent.daemon.ways import WaysOut
from agent.host import descriptors
from agent.host.clock import SystemClock
from agent.host.files import is_directory
from agent.host.patience import FirstLook
from agent.host.state import MEMORY_FILE, StateDirectory
from agent.snapshot import PASSED_CONNECTIONS
from agent.sources.push import PushSource

NO_POINTER_HINT: Final = (
    "SDKs take no container endpoint at these addresses (only loopback, 169.254.170.2, 169.254.170.23 and "
    "fd00:ec2::23), so the environment file names none: add 127.0.0.1:16925, or lead containers by the redirect"
)
ABSENT_KEY_HINT: Final = (
    "no bundle can be opened without it: give it to the machine (SMBIOS, /etc/credstore/, LoadCredential=), "
    "then restart the agent"
)


class Prepared:
    """Everything that the configuration names, opened.

    Args:
        settings: the configuration.
        environ: what the service manager passed.
        clock: time.
        rng: for the retries of the sources.
        hear: called with what servers say of the time.
        left: what the previous process left.
        root: where ``/sys`` and ``/etc`` are.
        faults: takes note of everything that is wrong or away: to check the configuration, rather than to serve.

    Attributes:
        away: what is not there just now.
        age: whether the disk has gone back in time.
        ways: every way out; ``out``: the agent's own; ``workers_out``: the one that requests of workers may use.
        shares: of the file descriptors.
        late_files: those that did not answer; they are read once they do.
        holding: whether no worker may get the machine's identity until then.

    Raises:
        ConfigError: something is missing or wrong.
    """

    def __init__(
        self,
        settings: config.Config,
        *,
        environ: Mapping[str, str],
        clock: SystemClock,
        rng: random.Random,
        hear: compose.Hear,
        left: handover.Handover | None = None,
        root: Path = Path("/"),
        faults: beliefs.Faults | None = None,
    ) -> None:
        self.credentials_directory = environ.get("CREDENTIALS_DIRECTORY")
        self.first_look = FirstLook(disk.LOOK_SECONDS if left is not None else disk.FIRST_LOOK_SECONDS)
        self.ways = WaysOut(settings)
        self.out = self.ways.make(hear=hear)
        self._most_connections = settings.listen.max_connections
        self.shares = descriptors.shares(
            descriptors.raised(), connections=self._most_connections, passed=PASSED_CONNECTIONS
        )
        self.workers_out = self.ways.make(connections=self.shares.passed)
        self.metadata = compose.Metadata(settings, self.out, clock, root=root)
        self.mint = compose.mint(settings, self.out, self.metadata, clock)
        self.away = faults or beliefs.Away(left.files if left is not None else None, self.first_look)
        self._clock = clock
        self._open_files(settings, left)
        self.sources = compose.sources(
            settings, metadata=self.metadata, make=self.ways.make, clock=clock, rng=rng, away=faults
        )
        self.push = PushSource(clock=clock)

    def answered_apart(self, limit: int | None) -> None:
        """Workers' connections are another unit's, which may have so many descriptors; ``None``: it has not said."""
        if limit is None:
            limit = self._most_connections + 2 * descriptors.RESERVE  # what it cannot have it does not take
        theirs = descriptors.shares(limit, connections=self._most_connections, passed=0)
        self.shares = msgspec.structs.replace(self.shares, limit=limit, connections=theirs.connections)

    def _open_files(self, settings: config.Config, left: handover.Handover | None) -> None:
        away, tolerant = self.away, self._tolerate
        ask, look = away.ask, self.first_look
        self.state = StateDirectory(_directory(settings.state.directory, "state.directory", tolerant, ask))
        self.age = Age(self.state, self._clock)
        with tolerant("environment"):
            paths = settings.environment
            for key, error in ask(Path(paths.file), lambda: list(absent_directories(paths))):
                away.takes(key, error)
        self.gid: int | None = None
        with tolerant("environment.group"):
            self.gid = ask(Path("the group of the files"), partial(group_id, settings.environment.group))
        handed = left.tokens if left is not None else ()
        self.tokens = ContainerTokens(None, handed)
        with tolerant("environment.token_file"):
            path = Path(settings.environment.token_file)
            self.tokens = ask(path, partial(ContainerTokens, path, handed))
        directory = self.credentials_directory
        self.files = WatchedFiles(settings, credentials_directory=directory, takes=away.takes, ask=ask)
        for file in self.files.named:
            if file.at_use:
                with tolerant(file.key):
                    ask(file.path, partial(os.path.lexists, file.path))
        keyring = self.keyring(settings, left.key() if left is not None else None, away)
        self.opening = Opening(keyring, beliefs.trust(settings, away), frozenset())
        self.files.doubt(away.reasons)
        self.launched = Launched(
            settings.launch_signers,
            ec2=self.metadata.ec2,
            gce=self.metadata.gce,
            credentials_directory=directory,
            left=left.files if left is not None else {},
            clock=self._clock,
        )
        opening = self.opening
        opening.launched, opening.unsaid = lambda: self.launched.trust, lambda: self.launched.silent
        opening.away, opening.disputed = lambda: self.away.reasons, lambda: self._clock.disputed_seconds
        # While it is not known whose bundles count, no worker gets the machine's identity for want of one.
        self.late_files = {file.path for file in self.files.named} & look.stalled
        self.holding = bool(self.late_files and settings.keys) and (left is None or left.holding)

    @contextlib.contextmanager
    def _tolerate(self, key: str) -> Iterator[None]:
        """Take note of what is not there just now; it is logged once the log is set up."""
        try:
            yield
        except AgentError as error:
            if not self.away.takes(key, error):
                raise

    def keyring(self, settings: config.Config, ephemeral: keys.LocalKey | None, away: beliefs.Away) -> keys.Keyring:
        """The worker's keys, as ``settings`` name them.

        Args:
            settings: the configuration, or a newer one.
            ephemeral: the key that was made at the start, if any.
            away: where to note what is not there.
        """
        return beliefs.keyring(
            settings,
            out=self.out,
            mint_=self.mint,
            credentials_directory=self.credentials_directory,
            ephemeral=ephemeral,
            away=away,
        )

    @property
    def absent_keys(self) -> tuple[str, ...]:
        """The names of keys that the configuration expects and that systemd did not pass.

        Other keys are files: those are ``away``, and read once they are there.
        """
        return tuple(name for name in self.opening.keyring.absent if name not in self.away.reasons)

    @property
    def ephemeral(self) -> keys.LocalKey | None:
        """The key that was made at the start, if the configuration asks for one."""
        return next(
            (k for k in self.opening.keyring.keys if isinstance(k, keys.LocalKey) and k.kind == "ephemeral"), None
        )

    async def close(self) -> None:
        """Close the ways out."""
        await self.ways.close()


class Checked(NamedTuple):
    """The result of a check.

    Attributes:
        faults: what is missing or wrong, with the key of each.
        told: what the agent would start without, and a person should know of: a line each.
    """

    faults: Sequence[tuple[str, AgentError]]
    told: Sequence[str]


def check(settings: config.Config, *, environ: Mapping[str, str], root: Path = Path("/")) -> Checked:
    """Open everything that the configuration names, start nothing, and tell of everything that is wrong."""
    faults = beliefs.Faults()
    prepared = Prepared(
        settings,
        environ=environ,
        clock=SystemClock(),
        rng=random.Random(0),  # noqa: S311 - nothing is retried
        hear=lambda _witness, _date, _took: None,
        root=root,
        faults=faults,
    )
    for key, error in _never_written(settings, faults.ask):
        faults.takes(key, error)
    told = [f"key {name}: not given to this machine; {ABSENT_KEY_HINT}" for name in prepared.absent_keys]
    told += [
        f"{file.key}: {file.path}: cannot be read; the source brings nothing until it can"
        for file in prepared.files.named
        if file.at_use and not os.access(file.path, os.R_OK)
    ]
    if listening.pointer(settings.listen.http) is None:
        told.append(f"listen.http: {NO_POINTER_HINT}")
    return Checked(faults.errors, told)


def _never_written(settings: config.Config, ask: beliefs.Ask) -> Iterator[tuple[str, AgentError]]:
    """What the agent starts without, and then tries in vain for ever: no such group, a directory in a file's place."""
    groups = {"metrics.group": settings.metrics.group, "audit.group": settings.audit.group}
    for key, group in groups.items():
        try:
            ask(Path("the group of the files"), partial(group_id, group, key=key))
        except AgentError as error:
            yield key, error
    named = settings.environment
    files = {
        "environment.file": named.file,
        "environment.shell_file": named.shell_file,
        "environment.container_file": named.container_file,
        "environment.token_file": named.token_file,
        "metrics.textfile": settings.metrics.textfile,
        "audit.file": settings.audit.file,
    }
    read = {
        f"sources[{n}].path": one.path
        for n, one in enumerate(settings.sources)
        if isinstance(one, config.FileSourceEntry)
    }
    for key, path in {**files, **read}.items():
        if path is not None and ask(Path(path), partial(os.path.isdir, path)):
            yield key, ConfigError(f"{key}: expected a file, or nothing there yet, got the directory {path!r}")


def _directory(
    name: str, key: str, tolerate: Callable[[str], contextlib.AbstractContextManager[None]], ask: beliefs.Ask
) -> Path:
    path = Path(name)

    def look() -> None:
        if not is_directory(path):
            raise ConfigError(f"{key}: expected an existing directory, got {name!r}")
        if not os.access(path, os.W_OK | os.X_OK):
            raise ConfigError(f"{key}: {name!r} is not writable by the agent")

    with tolerate(key):
        ask(path / MEMORY_FILE, look)
    return path
