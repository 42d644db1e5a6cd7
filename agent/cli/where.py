"""Where a command of a worker or an operator finds the agent.

The configuration says it, but only root and the service may read it: a URL in it may be a credential. Others read
``listeners.json``, which the daemon writes beside its control socket. Root never does: that file belongs to another
user.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from agent import config
from agent.cli.stderr import say
from agent.core.announced import FILE, FORMER_FILE, Announced
from agent.core.errors import ConfigError
from agent.core.installed import CONFIG_PATH
from agent.core.strictjson import NotThatShapeError, decode

DIRECTORY: Final = Path("/run/credential-agent")
CREDENTIALS: Final = Path("/run/credentials/credential-agent.service")
MAX_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Where:
    """The workers' endpoint as host and port, and four paths; ``courier`` is ``None`` where there is no such socket.

    Attributes:
        environment: what the configuration says of the environment file; ``None``: it is not ours to read.
    """

    http: tuple[str, int]
    control: Path
    courier: Path | None
    file: Path
    token_file: Path
    environment: config.Environment | None = None


def find(path: Path, *, announced: Path | None = None) -> Where:
    """Look it up, in the configuration at ``path`` if we may read that.

    Args:
        path: the configuration.
        announced: the directory of the daemon's file, for when we may not read the configuration.

    Raises:
        ConfigError: a configuration other than the usual one is wrong or is not there.
    """
    if os.geteuid() != 0 and path == CONFIG_PATH and not os.access(path, os.R_OK):
        return _told(announced or DIRECTORY)
    try:
        return _of(config.load(path))
    except ConfigError as error:
        if path != CONFIG_PATH:
            raise
        # A running agent goes on with what it read before: a mistake in the file is no reason not to ask it.
        _warn(error.message + (f"\n  hint: {error.hint}" if error.hint else ""))
        return _of(config.Config())


@cache
def _warn(text: str) -> None:
    """Warn once: ``wait`` looks again and again."""
    say(f"warning: {text}")


def _told(directory: Path) -> Where:
    # During an upgrade the agent that runs may still be the earlier release.
    for path in (directory / FILE, directory / FORMER_FILE):
        try:
            with path.open("rb") as file:
                told = decode(file.read(MAX_BYTES), Announced)
            address = config.host_port(told.http, origin=str(path))
        except (OSError, NotThatShapeError, ConfigError):
            continue
        courier = None if told.courier is None else Path(told.courier)
        return Where(address, Path(told.control), courier, Path(told.file), Path(told.token_file))
    return _of(config.Config())  # the agent has not started yet: the defaults


def _of(settings: config.Config) -> Where:
    return Where(
        config.host_port(settings.listen.http[0]),
        Path(settings.listen.control),
        config.courier_path(settings.listen),
        Path(settings.environment.file),
        Path(settings.environment.token_file),
        settings.environment,
    )


def passed() -> Mapping[str, str]:
    """What systemd passes to the service, as far as it lies about: there while the service runs."""
    return {"CREDENTIALS_DIRECTORY": str(CREDENTIALS)} if os.access(CREDENTIALS, os.F_OK) else {}
