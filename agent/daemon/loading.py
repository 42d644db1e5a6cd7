"""Everything that a configuration names, read as a whole for a reload."""

from __future__ import annotations

from typing import NamedTuple

from agent import bundle, config, keys
from agent.core.errors import ConfigError
from agent.daemon import beliefs
from agent.daemon.files import WatchedFiles
from agent.daemon.prepare import Prepared
from agent.daemon.publish import check_paths, group_id


class Found(NamedTuple):
    """The content of the configuration's files, read as a whole."""

    files: WatchedFiles
    trust: bundle.Trust
    keyring: keys.Keyring
    gid: int | None
    away: beliefs.Away


def loaded(settings: config.Config, prepared: Prepared, ephemeral: keys.LocalKey | None, away: beliefs.Away) -> Found:
    """Read everything that ``settings`` name, once. In a thread: no file may hold up the loop."""
    directory = prepared.credentials_directory
    files = WatchedFiles(settings, credentials_directory=directory, takes=away.takes)
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
    files.doubt(away.reasons)
    return Found(files, pinned, keyring, gid, away)
