"""What the configuration says, for probes that do not evaluate it."""

from __future__ import annotations

from pathlib import Path

from agent import config
from agent.core.errors import ConfigError


def settings_of(path: Path) -> config.Config:
    """What it says as far as it is understood; the defaults, where it cannot be read."""
    try:
        return config.survey(path)[0]
    except ConfigError:
        return config.Config()
