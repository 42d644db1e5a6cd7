"""Constants that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CONFIG_PATH: Final = Path("/etc/credential-agent/config.toml")

# Of sysexits.h; those that a command returns itself.
EX_DATAERR: Final = 65
EX_UNAVAILABLE: Final = 69
EX_TEMPFAIL: Final = 75
EX_CONFIG: Final = 78
