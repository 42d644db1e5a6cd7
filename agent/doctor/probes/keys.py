"""The worker's keys, opened as the service opens them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec

from agent import bundle, config, keys
from agent.core.errors import AgentError, BundleError, HostError
from agent.core.text import os_reason
from agent.doctor.facts import KeyFile, KeyFiles


def look_at_keys(path: Path, environ: Mapping[str, str]) -> KeyFiles:
    """Each key of the configuration at ``path``; ``environ``: what the service would be passed.

    Raises:
        ConfigError: it cannot be read at all.
    """
    settings, _ = config.survey(path)
    directory = environ.get("CREDENTIALS_DIRECTORY")
    return KeyFiles(keys=tuple(_look(f"keys[{index}]", entry, directory) for index, entry in enumerate(settings.keys)))


def _look(key: str, entry: config.KeyEntry, directory: str | None) -> KeyFile:
    match entry:
        case config.FileKey():
            return _file(key, Path(entry.path))
        case config.CredentialKey():
            where = None if directory is None else Path(directory)
            try:
                found = keys.load_credential(where, entry.name)
            except HostError as error:
                return KeyFile(
                    key=key, name=entry.name, state="elsewhere", why=f"systemd credential {entry.name}: {error.message}"
                )
            except BundleError as error:
                return KeyFile(key=key, name=entry.name, state="not-a-key", why=error.message)
            if not found:
                return KeyFile(
                    key=key, name=entry.name, state="elsewhere", why=f"systemd credential {entry.name}, the service's"
                )
            return KeyFile(key=key, kids=tuple(one.kid for one in found))
        case config.AwsKmsKey() | config.GcpKmsKey():
            return msgspec.structs.replace(_public(key, Path(entry.public_key)), public=True)
        case config.EphemeralKey():
            return KeyFile(key=key, state="elsewhere", why="in the agent's memory only")


def _file(key: str, path: Path) -> KeyFile:
    lost = _lost(key, path)
    if lost is not None:
        return lost
    try:
        found = keys.load_key_file(path)
    except HostError as error:
        return KeyFile(key=key, path=str(path), state="shared", why=error.message.rpartition(", ")[2])
    except AgentError as error:
        return KeyFile(key=key, path=str(path), state="not-a-key", why=error.message)
    return KeyFile(key=key, path=str(path), kids=tuple(one.kid for one in found))


def _public(key: str, path: Path) -> KeyFile:
    lost = _lost(key, path)
    if lost is not None:
        return lost
    try:
        kid = bundle.RecipientKey.parse(path.read_text()).kid
    except (AgentError, OSError, UnicodeDecodeError):
        return KeyFile(key=key, path=str(path), state="not-a-key", why="no public key is in it")
    return KeyFile(key=key, path=str(path), kids=(kid,))


def _lost(key: str, path: Path) -> KeyFile | None:
    """Why the file cannot even be opened."""
    for directory in reversed(path.parents):
        if directory.is_dir() and not os.access(directory, os.X_OK):
            return KeyFile(key=key, path=str(path), state="denied", blocked=str(directory))
    try:
        found = path.stat()
    except FileNotFoundError:
        return KeyFile(key=key, path=str(path), state="absent")
    except OSError as error:
        return KeyFile(key=key, path=str(path), state="not-a-file", why=os_reason(error))
    if not stat.S_ISREG(found.st_mode):
        return KeyFile(key=key, path=str(path), state="not-a-file", why=_kind(found.st_mode))
    if not os.access(path, os.R_OK):
        who = f"its mode is {stat.S_IMODE(found.st_mode):04o}, its owner {found.st_uid}:{found.st_gid}"
        return KeyFile(key=key, path=str(path), state="denied", why=who)
    return None


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return name
    return "something else"
