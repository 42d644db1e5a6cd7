"""Every status with which a command ends, in one table: the same in each of them (``agent/cli/COMMANDS.md``).

Those of ``sysexits.h``, and those that a shell has for what it runs. A script may rely on them: they are never given
another meaning.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

EX_OK: Final = 0
EX_USAGE: Final = 64
EX_DATAERR: Final = 65
EX_UNAVAILABLE: Final = 69
EX_SOFTWARE: Final = 70
EX_OSERR: Final = 71
EX_IOERR: Final = 74
EX_TEMPFAIL: Final = 75
EX_CONFIG: Final = 78
EX_NOT_EXECUTABLE: Final = 126
EX_NOT_FOUND: Final = 127
EX_INTERRUPTED: Final = 130

TABLE: Final = MappingProxyType(
    {
        EX_OK: "success: done, or there is an identity, or nothing is broken",
        EX_USAGE: "wrong usage: the options or arguments make no sense, and nothing was done",
        EX_DATAERR: "a bundle was refused, or would be",
        EX_UNAVAILABLE: "there is no identity, or a service does not answer or is broken",
        EX_SOFTWARE: "an internal error: report it",
        EX_OSERR: "the machine refused something, or the agent does not answer",
        EX_IOERR: "stdout cannot be written",
        EX_TEMPFAIL: "not yet: try again",
        EX_CONFIG: "the configuration is wrong",
        EX_NOT_EXECUTABLE: "`exec`: the command cannot be executed",
        EX_NOT_FOUND: "`exec`: there is no such command",
        EX_INTERRUPTED: "interrupted (Ctrl-C)",
    }
)
