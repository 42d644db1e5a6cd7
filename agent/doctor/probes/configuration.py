"""The configuration, read as the service reads it, and everything that it names."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from agent import config, daemon
from agent.core.errors import AgentError, ConfigError
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
    named = [
        Fault(key=key, said=error.message, hint=error.hint) for key, error in found if not config.follows(key, faults)
    ]
    return Configuration(
        path=str(path),
        faults=(*texts, *named),
        told=told,
        as_service=as_service,
    )


def _blocked(path: Path) -> str:
    """The first directory on the way to ``path`` into which we may not look."""
    for directory in reversed(path.parents):
        if not os.access(directory, os.X_OK):
            return str(directory) if directory.is_dir() else ""
    return ""


async def _named(
    settings: config.Config, environ: Mapping[str, str]
) -> tuple[list[tuple[str, AgentError]], tuple[str, ...]]:
    found = daemon.check(settings, environ=environ)
    return list(found.faults), tuple(found.told)
