"""Writes the files that programs on the worker read: the environment files and the bearer token.

They are written when their content has changed or one is missing, each by one rename, in a thread: a full or slow disk
never delays a GET.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
import structlog

from agent import config
from agent.core.clock import Clock
from agent.core.errors import ConfigError, HostError
from agent.core.model import AwsCredential, Cloud
from agent.core.secret import Secret
from agent.core.text import os_reason, reason_of
from agent.core.variables import passes
from agent.core.view import Absent, Live, Origin
from agent.host import containerenv, envfile
from agent.host.files import is_directory, sweep, take_away, write_atomic
from agent.identity import standing
from agent.identity.store import Store

RETRY_SECONDS: Final = 5.0
REFUSED_HINT: Final = "if programs are meant to have them, name them in environment.allow"


def group_id(name: str | None, *, key: str = "environment.group") -> int | None:
    """The id of the group that ``key`` of the configuration names.

    Raises:
        ConfigError: there is no such group.
    """
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"{key}: expected a group of this machine, got {name!r}") from None


def check_paths(settings: config.Environment) -> None:
    """Fail early where no file could ever be written.

    Raises:
        ConfigError: a directory is missing.
    """
    for _, error in absent_directories(settings):
        raise error


def absent_directories(settings: config.Environment) -> Iterator[tuple[str, ConfigError]]:
    """Each key whose directory is missing, with the error."""
    for name in ("file", "shell_file", "container_file", "token_file"):
        path = getattr(settings, name)
        if path is not None and not is_directory(Path(path).parent):
            key = f"environment.{name}"
            yield key, ConfigError(f"{key}: expected an existing directory, got {str(Path(path).parent)!r}")


def _there(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False  # or we may not look: the attempt to write it will say why
    return True


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:
        pass  # it cannot be there
    except OSError as error:
        raise HostError(f"{path}: cannot be removed: {os_reason(error)}") from None


async def _aside(what: Callable[..., None], path: Path, *more: object) -> None:
    """Do it in a thread. For want of one, or of memory, it is not done, as on a disk that refuses: try again."""
    try:
        await asyncio.to_thread(what, path, *more)
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {os_reason(error)}") from None
    except MemoryError:
        raise HostError(f"{path}: cannot be written: out of memory") from None


class Publisher:
    """Keeps the files in step with the store.

    Args:
        settings: where they are and who may read them.
        store: what is served.
        clock: time.
        address: the workers' endpoint, as ``HOST:PORT``.
        container_uri: whether SDKs take that address for a container endpoint.
        token: the bearer token.
        path_id: the id in the path that containers get, in place of a token.
        gid: the group of the files.
        expects_bundle: whether this worker has a key, so that a bundle may come.

    Attributes:
        token_unread: whether the token file may hold another token than ours, which programs have: it stays as it is.

    Resources: one task while there is something to write.
    """

    def __init__(
        self,
        settings: config.Environment,
        *,
        store: Store,
        clock: Clock,
        address: str,
        container_uri: bool = True,
        token: Secret,
        path_id: Secret,
        gid: int | None,
        expects_bundle: bool,
    ) -> None:
        self.settings = settings
        self.gid = gid
        self.expects_bundle = expects_bundle
        self._store = store
        self._clock = clock
        self.address = address
        self._container_uri = container_uri
        self.token = token
        self.token_unread = False
        self._path_id = path_id
        self._written: dict[Path, tuple[bytes, int, int | None]] = {}  # content, mode and group
        self._left: set[Path] = set()  # where they were before a reload moved them
        self._task: asyncio.Task[None] | None = None
        self._is_behind = False  # whether what was asked for last has not been written
        self._again = asyncio.Event()
        self._since: float | None = None  # the loop's time at which the files began to be out of date
        self.trouble: str | None = None
        self._told_refused: tuple[str, ...] = ()
        self._log = structlog.get_logger()
        # A writer that was killed may have left a bundle's variables under a name that no withdrawal would purge.
        self._unswept = {*self._files, Path(settings.token_file)}

    @property
    def token_written(self) -> bool:
        """Whether the token file was last written by us, and with the present token."""
        last = self._written.get(Path(self.settings.token_file))
        return last is not None and last[0] == self.token.reveal().encode()

    @property
    def troubles(self) -> Mapping[str, str]:
        """Why the files are out of date, if they are."""
        return {} if self.trouble is None else {"environment": self.trouble}

    def reconfigure(self, settings: config.Environment, *, gid: int | None, expects_bundle: bool) -> None:
        """Take other settings (a reload): every file is written anew, and none is left where it was before.

        The token file stays where it is until a restart: running programs read it again by the name they were given.
        """
        old = self._files
        self.settings = msgspec.structs.replace(settings, token_file=self.settings.token_file)
        self.gid = gid
        self.expects_bundle = expects_bundle
        self._left |= set(old)
        self._unswept |= set(self._files) - self._left
        self._written.clear()
        self.changed()

    @property
    def _files(self) -> tuple[Path, ...]:
        named = (self.settings.file, self.settings.shell_file, self.settings.container_file)
        return tuple(Path(path) for path in named if path is not None)

    def variables(self, now: datetime, *, container: bool = False) -> Mapping[str, str]:
        """The content of the files now: the operator's variables, the bundle's, and the pointers, which win."""
        store, settings = self._store, self.settings
        answers = {cloud: store.answer(cloud, now) for cloud in Cloud}
        # While a bundle is awaited the file already points to us: a program that starts before it must find it later.
        awaited = self.expects_bundle and store.bundle is None
        variables = dict(settings.variables)
        variables.update(
            {
                name: value.reveal()
                for name, value in standing.variables(store.state, now).items()
                if passes(name, settings.allow)
            }
        )
        variables.update(
            containerenv.pointers(
                aws=awaited or not isinstance(answers[Cloud.AWS], Absent),
                gcp=not isinstance(answers[Cloud.GCP], Absent),
                path=self._path_id,
                region=store.facts().region,
                no_proxy=variables.get("NO_PROXY", ""),
            )
            if container
            else envfile.pointers(
                address=self.address,
                container_uri=self._container_uri,
                aws=awaited or not isinstance(answers[Cloud.AWS], Absent),
                gcp=not isinstance(answers[Cloud.GCP], Absent),
                token_file=settings.token_file,
                token=self.token,
                imds_endpoint=settings.imds_endpoint,
                region=store.facts().region,
                no_proxy=variables.get("NO_PROXY", ""),
            )
        )
        project = store.facts().project_id
        if project is not None and not isinstance(answers[Cloud.GCP], Absent):
            variables.setdefault("GOOGLE_CLOUD_PROJECT", project)
        aws = answers[Cloud.AWS]
        # A variable cannot be told an early end: where a bundle may come, a program that began with the machine's keys
        # would stay the machine for hours. It has the pointers.
        late = self.expects_bundle and isinstance(aws, Live) and aws.origin is Origin.FALLBACK
        if settings.static and not late and isinstance(aws, Live) and isinstance(aws.credential, AwsCredential):
            variables.update(envfile.static_keys(aws.credential))
        return variables

    def refused(self, now: datetime) -> tuple[str, ...]:
        """The names of the bundle's variables that are not passed on; the rest of it is in force all the same."""
        return tuple(
            sorted(n for n in standing.variables(self._store.state, now) if not passes(n, self.settings.allow))
        )

    def _tell_refused(self) -> None:
        refused = self.refused(self._clock.now())
        if refused and refused != self._told_refused:
            self._log.warning("environment.refused", variables=list(refused), hint=REFUSED_HINT)
        self._told_refused = refused

    def changed(self) -> None:
        """Something may have changed. Returns at once."""
        self._is_behind = True
        self._tell_refused()
        if self._task is not None:
            self._again.set()
            return
        self._task = asyncio.get_running_loop().create_task(self._write(), name="environment files")

    def missing(self) -> Callable[[], bool]:
        """What tells, in a thread, whether somebody has removed a file that is written now, or the writing broke off.

        Then call :meth:`changed`: a program that begins without its pointers finds another identity.
        """
        written, broke_off = tuple(self._written), self._is_behind and self._task is None
        return lambda: broke_off or not all(map(_there, written))

    async def settled(self, seconds: float) -> None:
        """Wait until the files say what the store says, but no longer than so many seconds: a disk may stay full.

        A disk that has been full or silent for longer than that is not waited for again: the caller owes somebody an
        acknowledgement.
        """
        if self._since is not None and asyncio.get_running_loop().time() - self._since > seconds:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._task is not None:
                    await asyncio.wait({self._task})

    async def _write(self) -> None:
        try:
            self._since = asyncio.get_running_loop().time()
            while True:
                self._again.clear()
                try:
                    await self._write_once()
                except Exception as error:  # noqa: BLE001 - whatever is in the way: what was withdrawn must not stay
                    reason, known = reason_of(error), isinstance(error, HostError)
                    if self.trouble != reason:
                        # Once a change, not once an attempt: a disk that is full for a night must not fill the journal.
                        self._log.error("environment.not_written", reason=reason, exc_info=not known)
                    self.trouble = reason
                    # Try again later, or at once when the content changes: a withdrawal must not wait.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._again.wait(), RETRY_SECONDS)
                    continue
                if self.trouble is not None:
                    self._log.info("environment.written")
                self.trouble = None
                if not self._again.is_set():
                    self._is_behind = False
                    return
                # The disk answers again: from here on callers may wait for it again.
                self._since = asyncio.get_running_loop().time()
        finally:
            self._task = self._since = None

    async def _write_once(self) -> None:
        now = self._clock.now()
        variables = self.variables(now)
        contents = {
            Path(self.settings.token_file): self.token.reveal().encode(),
            Path(self.settings.file): envfile.render_systemd(variables),
            Path(self.settings.shell_file): envfile.render_shell(variables),
        }
        if self.settings.container_file is not None:
            rendered = containerenv.render(self.variables(now, container=True))
            contents[Path(self.settings.container_file)] = rendered
        mode, gid = int(self.settings.mode, 8), self.gid
        trouble: HostError | None = None
        for path, data in contents.items():
            if self.token_unread and path == Path(self.settings.token_file):
                trouble = HostError(f"{path}: cannot be read, and is not written over")
                continue
            try:
                await _aside(self._bring, path, (data, mode, gid))
            except HostError as error:
                trouble = error  # one directory's; the others get their files all the same
        for path in self._left - contents.keys():
            # It holds a bundle's variables, which no withdrawal would purge from here on.
            await _aside(_remove, path)
            self._left.discard(path)
        if trouble is not None:
            raise trouble

    def _bring(self, path: Path, wanted: tuple[bytes, int, int | None]) -> None:
        """Bring ``path`` up to date. In a thread: on a disk that stalls even a look may never return."""
        if path in self._unswept:
            sweep(path)
            self._unswept.discard(path)
        # Somebody may have removed a file since: a look is cheap, and a program must find the file.
        if self._written.get(path) != wanted or not _there(path):
            data, mode, gid = wanted
            try:
                write_atomic(path, data, mode=mode, gid=gid)
            except HostError:
                self._written.pop(path, None)
                if path != Path(self.settings.token_file):
                    take_away(path, data, mode=mode)
                raise
            self._written[path] = wanted
