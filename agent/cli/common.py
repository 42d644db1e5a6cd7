"""Constants that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CONFIG_PATH: Final = Path("/etc/credential-agent/config.toml")
