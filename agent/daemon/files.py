"""The files that the configuration names: how they look, and what they hold.

A file is read anew when it changes, not only when somebody sends SIGHUP: whoever rotates a signer's key, a worker's key
or a certificate authority replaces the file and expects that to suffice. Each file that a configuration can name is one
of three kinds, and a test checks that there is no fourth:

* *watched* (:func:`named`): opened at the start, looked at every :data:`LOOK_SECONDS`, and when one has changed the
  running configuration is applied once more; what cannot be read stays as it was, and holds back no other;
* *read at use*: the bundle itself, the file of its URL, bearer tokens, web identity tokens, and the certificate
  authorities too, which are also watched so that their mistakes are reported;
* *written* by the agent; of these, the token of the container endpoint is taken over when somebody else writes one.

Each reload logs the files that were loaded, and ``status`` shows them: a name and a digest or thumbprint for each file,
nothing of a secret one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from agent import config
from agent.core.errors import ConfigError
from agent.core.looks import Look, look_of
from agent.daemon.beliefs import Ask
from agent.host.files import read_plain
from agent.host.patience import Patience, StalledError, directly
from agent.upstream import AuthoritiesError, believed, read_authorities

LOOK_SECONDS: Final = 2.0
"""Between two looks at the files. A change counts when two looks agree: one may just be written in place."""

MAX_FILE_BYTES: Final = 4 << 20


class Named(msgspec.Struct, frozen=True):
    """A file that the configuration names.

    Attributes:
        key: by which key, as in ``signers[0].key``.
        what: what it holds.
        secret: whether nothing of its content may be shown, not even a digest.
        at_use: whether it is read whenever it is needed, so that a change needs no reload.
    """

    key: str
    path: Path
    what: str
    secret: bool
    at_use: bool = False


class Loaded(msgspec.Struct, frozen=True):
    """The content of a file in short, for ``status`` and the log.

    Attributes:
        sha256: of a public file; ``None`` of a secret one, whose digest could be guessed against.
        count: the certificates in a file of authorities, else ``None``.
    """

    key: str
    path: str
    what: str
    sha256: str | None = None
    count: int | None = None


Looks = Mapping[Path, Look | None]
"""How each file looks by stat(2); ``None`` where that fails."""


def named(settings: config.Config, *, credentials_directory: str | None) -> tuple[Named, ...]:
    """The files that are read, in the order of the configuration; neither bundles nor what the agent writes."""
    found = _keys(settings, credentials_directory)
    for index, signer in enumerate(settings.signers):
        found.append(Named(f"signers[{index}].key", Path(signer.key), "signer", secret=False))
    for index, source in enumerate(settings.sources):
        if isinstance(source, config.HttpsEntry):
            where = f"sources[{index}]"
            if source.ca_file is not None:
                found.append(Named(f"{where}.ca_file", Path(source.ca_file), AUTHORITIES, secret=False))
            if source.url_file is not None:
                found.append(Named(f"{where}.url_file", Path(source.url_file), "url", secret=True, at_use=True))
            if source.token_file is not None:
                token = Path(source.token_file)
                found.append(Named(f"{where}.token_file", token, "bearer token", secret=True, at_use=True))
    if settings.upstream.ca_file is not None:
        found.append(Named("upstream.ca_file", Path(settings.upstream.ca_file), AUTHORITIES, secret=False))
    return tuple(found)


def _keys(settings: config.Config, credentials_directory: str | None) -> list[Named]:
    found: list[Named] = []
    for index, key in enumerate(settings.keys):
        where = f"keys[{index}]"
        match key:
            case config.FileKey():
                found.append(Named(f"{where}.path", Path(key.path), "worker's key", secret=True))
            case config.CredentialKey() if credentials_directory:
                path = Path(credentials_directory) / key.name
                found.append(Named(f"{where}.name", path, "worker's key", secret=True))
            case config.AwsKmsKey() | config.GcpKmsKey():
                found.append(Named(f"{where}.public_key", Path(key.public_key), "worker's public key", secret=False))
            case _:
                pass
    return found


AUTHORITIES: Final = "certificate authorities"


def describe(
    files: Iterable[Named],
    takes: Callable[[str, ConfigError], bool] = lambda _key, _error: False,
    ask: Ask = directly,
) -> tuple[Loaded, ...]:
    """Describe the files as they are now; a file that is missing is left out, unless it holds authorities.

    Args:
        files: which.
        takes: gets each error with its key; returns whether that is enough, so that it need not be raised.
        ask: how they are asked.

    Raises:
        ConfigError: a file of certificate authorities cannot be read or holds none. Faulty keys are others' to report.
    """
    found = []
    for file in files:
        count = None
        if file.what == AUTHORITIES:
            try:
                count = believed(ask(file.path, partial(read_authorities, str(file.path))))[1]
            except (AuthoritiesError, StalledError) as error:
                said = error.message if isinstance(error, StalledError) else f"{file.path}: {error}"
                fault = ConfigError(f"{file.key}: {said}")
                if takes(file.key, fault):
                    continue
                raise fault from None
        try:
            digest = ask(file.path, file.path.stat if file.secret else partial(_digest, file.path))
        except (OSError, StalledError):
            continue
        found.append(Loaded(file.key, str(file.path), file.what, digest if isinstance(digest, str) else None, count))
    return tuple(found)


def looks(files: Iterable[Named], ask: Ask = directly) -> Looks:
    """How the files whose change must be applied look; a file that does not answer is left out."""
    found = {}
    for file in files:
        if not file.at_use:
            with contextlib.suppress(StalledError):
                found[file.path] = ask(file.path, partial(look_at, file.path))
    return found


async def looks_patiently(files: Iterable[Named], patience: Patience, before: Looks) -> tuple[Looks, list[str]]:
    """How the files look, by directories: one that does not answer keeps no other waiting.

    Args:
        files: which.
        patience: how long each directory is waited for.
        before: how they looked; kept for those in a directory that does not answer.

    Returns:
        How they look, and the keys of the files in directories that do not answer.
    """
    directories: dict[Path, list[Named]] = {}
    for file in files:
        directories.setdefault(file.path.parent, []).append(file)
    asked = (patience.ask(directory, partial(looks, inside)) for directory, inside in directories.items())
    answers = await asyncio.gather(*asked, return_exceptions=True)
    found: dict[Path, Look | None] = {}
    silent: list[str] = []
    for inside, answer in zip(directories.values(), answers, strict=True):
        if isinstance(answer, StalledError):
            found.update({file.path: before[file.path] for file in inside if file.path in before})
            silent += [file.key for file in inside if not file.at_use]
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found.update(answer)
    return found, silent


def look_at(path: Path) -> Look | None:
    """What stat(2) says of a file; ``None`` where it fails."""
    try:
        return look_of(os.stat(path))  # noqa: PTH116 - half the cost of Path.stat, and it runs for ever
    except OSError:
        return None


def _digest(path: Path) -> str:
    return hashlib.sha256(read_plain(path, MAX_FILE_BYTES)).hexdigest()


class WatchedFiles:
    """The files that were loaded, and how they looked then.

    Args:
        settings: the configuration.
        credentials_directory: where the service manager put what it decrypted for us.
        takes: gets what is wrong with a file of certificate authorities; see :func:`describe`.
        ask: how the files are asked.

    Attributes:
        named: those that the configuration names.
        seen: how they looked before they were opened.
        loaded: what they held.

    Raises:
        ConfigError: a file of certificate authorities is not valid, and ``takes`` does not tolerate that.
    """

    def __init__(
        self,
        settings: config.Config,
        *,
        credentials_directory: str | None,
        takes: Callable[[str, ConfigError], bool] = lambda _key, _error: False,
        ask: Ask = directly,
    ) -> None:
        self.named = named(settings, credentials_directory=credentials_directory)
        self.seen = looks(self.named, ask)
        self.loaded = describe(self.named, takes, ask)

    def doubt(self, keys: Iterable[str]) -> None:
        """Something was wrong with what these keys name: it is loaded again at the next look, however it looks then.

        A disk that errs, or a machine that has no descriptor left just then, changes no file.
        """
        of = tuple(keys)
        failed = {file.path for file in self.named if file.key.startswith(of)}
        self.seen = {path: None if path in failed else look for path, look in self.seen.items()}

    def keep(self, keys: Iterable[str], before: WatchedFiles) -> None:
        """Something was wrong with what these keys name: what was loaded of it before is what is in force.

        It is loaded again at each look, until it can be: it looks otherwise than what was loaded. Where nothing was,
        any look is another one.
        """
        of = tuple(keys)
        failed = {file.key: file.path for file in self.named if f"{file.key}.".startswith(tuple(f"{k}." for k in of))}
        unasked = {file.path for file in self.named if not file.at_use} - self.seen.keys()
        seen = {path: before.seen.get(path) if path in failed.values() else look for path, look in self.seen.items()}
        self.seen = seen | {path: before.seen[path] for path in unasked & before.seen.keys()}
        former = {one.path: one for one in before.loaded}
        told = {one.key: one for one in self.loaded if one.key not in failed}
        for key, path in failed.items():
            if (one := former.get(str(path))) is not None:
                told[key] = msgspec.structs.replace(one, key=key)
        self.loaded = tuple(told[file.key] for file in self.named if file.key in told)

    def changed(self, seen: Looks) -> list[str]:
        """The keys of the files that look otherwise than when they were loaded."""
        return [file.key for file in self.named if seen.get(file.path) != self.seen.get(file.path)]


def otherwise(watched: Callable[[], WatchedFiles], beside: Path, seen: Sequence[Look | None]) -> Callable[[], bool]:
    """What tells, in a thread, whether one of the files looks otherwise than it did, or others are watched now.

    Args:
        watched: those that are watched.
        beside: one more.
        seen: how that one looked; nothing: as at the first call.
    """
    files = watched()
    before = list(seen)

    def differs() -> bool:
        look = look_at(beside)
        before.append(look)
        del before[1:]
        return watched() is not files or looks(files.named) != files.seen or look != before[0]

    return differs
