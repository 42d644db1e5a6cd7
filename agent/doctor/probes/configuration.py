"""The configuration, read as the service reads it, and everything that it names."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import stat
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from agent import config, daemon
from agent.core.errors import AgentError, ConfigError
from agent.daemon.files import named
from agent.doctor.facts import Configuration, Fault


def look_at_configuration(path: Path, environ: Mapping[str, str], *, as_service: bool) -> Configuration:
    """All its mistakes, in one go.

    Args:
        path: of the file.
        environ: what the service would be passed.
        as_service: whether we have become the service's user.
    """
    try:
        settings, faults = config.survey(path)
    except ConfigError as error:
        fault = Fault(key="", said=error.message, hint=error.hint, text=True)
        return Configuration(path=str(path), faults=(fault,), as_service=as_service, blocked=_blocked(path))
    found, told = asyncio.run(_named(settings, environ))
    texts = [Fault(key=fault.key, said=f"{fault.key}: {fault.said}", hint=fault.hint, text=True) for fault in faults]
    # A faulty section has defaults in place of what was meant: faults that follow from these are not told.
    missing = [_fault(key, error, settings, environ) for key, error in found if not config.follows(key, faults)]
    return Configuration(
        path=str(path),
        faults=(*texts, *missing),
        told=told,
        changed=_changed(path),
        as_service=as_service,
    )


def _blocked(path: Path) -> str:
    """The first directory on the way to ``path`` into which we may not look."""
    for directory in reversed(path.parents):
        if not os.access(directory, os.X_OK):
            return str(directory) if directory.is_dir() else ""
    return ""


def _changed(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return 0


def _fault(key: str, error: AgentError, settings: config.Config, environ: Mapping[str, str]) -> Fault:
    """The fault, with why the file that ``key`` names cannot be read, if it is by its permissions."""
    fault = Fault(key=key, said=error.message, hint=error.hint)
    files = named(settings, credentials_directory=environ.get("CREDENTIALS_DIRECTORY"))
    path = next((one.path for one in files if one.key == key), None)
    if path is None or os.access(path, os.R_OK):
        return fault
    if blocked := _blocked(path):
        return replace(fault, path=str(path), blocked=blocked)
    try:
        found = path.stat()
    except OSError:
        return fault
    mode = f"its mode is {stat.S_IMODE(found.st_mode):04o}, its owner {_owner(found)}"
    return replace(fault, path=str(path), mode=mode)


def _owner(found: os.stat_result) -> str:
    try:
        return f"{pwd.getpwuid(found.st_uid).pw_name}:{grp.getgrgid(found.st_gid).gr_name}"
    except KeyError:
        return f"{found.st_uid}:{found.st_gid}"


async def _named(
    settings: config.Config, environ: Mapping[str, str]
) -> tuple[list[tuple[str, AgentError]], tuple[str, ...]]:
    found = daemon.check(settings, environ=environ)
    return list(found.faults), tuple(found.told)
