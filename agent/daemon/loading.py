"""Everything that a configuration names, read as a whole for a reload."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import NamedTuple, TypeVar

from agent import bundle, config, keys
from agent.core.errors import ConfigError
from agent.daemon import beliefs, files
from agent.daemon.prepare import Prepared
from agent.daemon.publish import check_paths, group_id
from agent.host.patience import StalledError

T = TypeVar("T")


class Found(NamedTuple):
    """The content of the configuration's files, read as a whole."""

    files: files.WatchedFiles
    trust: bundle.Trust
    keyring: keys.Keyring
    gid: int | None
    away: beliefs.Away


def loaded(settings: config.Config, prepared: Prepared, ephemeral: keys.LocalKey | None, away: beliefs.Away) -> Found:
    """Read everything that ``settings`` name, once. In a thread: no file may hold up the loop."""
    directory = prepared.credentials_directory
    watched = files.WatchedFiles(settings, credentials_directory=directory, takes=away.takes, ask=away.ask)
    pinned = beliefs.trust(settings, away)
    keyring = prepared.keyring(settings, ephemeral, away)
    gid = prepared.gid
    try:
        gid = group_id(settings.environment.group)
    except ConfigError as error:
        if not away.takes("environment.group", error):
            raise
    try:
        check_paths(settings.environment)
    except ConfigError as error:
        if not away.takes("environment", error):
            raise
    watched.keep(away.reasons, prepared.files)
    return Found(watched, pinned, keyring, gid, away)


def former(
    running: config.Config, settings: config.Config, prepared: Prepared, *, silent: Container[Path], tolerant: bool
) -> beliefs.Former:
    """What is in force, in the place of whatever of it cannot be read.

    Args:
        running: the configuration in force.
        settings: the one that is loaded.
        prepared: what was opened.
        silent: the files that do not answer: they are not asked.
        tolerant: whether what was never read is as little an error.
    """
    named = files.named(settings, credentials_directory=prepared.credentials_directory)
    paths = {file.path for file in prepared.files.named}
    both = {file.key for file in named if file.path in paths}
    both |= {key.partition(".")[0] for key in both if key.startswith("keys[")}  # a key is told as a whole
    both |= {"environment.group"} if settings.environment.group == running.environment.group else set()
    both |= {"environment"} if settings.environment == running.environment else set()

    def ask(path: Path, fn: Callable[[], T]) -> T:
        if path in silent:
            raise StalledError(path)
        return fn()

    def stays(key: str) -> bool:
        return tolerant or key in both

    found = beliefs.Former(prepared.away, stays, ask)
    found.files = {path: text for path, text in found.files.items() if Path(path) in {file.path for file in named}}
    return found
