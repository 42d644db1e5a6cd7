"""What does a process without an event loop say? Lines to the journal, words to systemd, documents in a directory.

Nothing here waits, or not for long: a log that nobody reads, a service manager that is busy and a full disk must not
stop whoever holds the rules.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from agent.core.text import os_reason
from agent.host import notifying

ERROR, WARNING, INFO = 3, 4, 6  # sd-daemon(3)
_PAGE_BYTES: Final = 4096  # what a file in memory has, however little is in it


def fitting(lines: Iterable[str], most_bytes: int) -> list[str]:
    """As many of the lines as are so long in JSON, and how many more there are."""
    fits: list[str] = []
    waiting = iter(lines)
    for line in waiting:
        most_bytes -= len(json.dumps(line)) + len(", ")
        if most_bytes < 0:
            fits.append(f"and {1 + sum(1 for _ in waiting)} more: see the journal")
            break
        fits.append(line)
    return fits


class Reporter:
    """Says what changed, once.

    Attributes:
        directory: of the documents, ours alone to write.

    Args:
        directory: the same.
        address: of systemd's socket for us (sd_notify(3)); ``None``: it wants no notification.
    """

    def __init__(self, directory: Path, address: str | None) -> None:
        self.directory, self._address = directory, address
        self._said: dict[str, str | None] = {}

    def say(self, what: str, text: str | None) -> None:
        """Log a trouble once, and once that it is over (``None``)."""
        if self._said.get(what) == text:
            return
        before, self._said[what] = self._said.get(what), text
        if text is not None:
            self.log(ERROR, text)
        elif before is not None:
            self.log(INFO, f"no longer: {before}")

    @staticmethod
    def log(level: int, text: str) -> None:
        """Write a line for the journal. Where standard error does not block, what does not fit is lost."""
        with contextlib.suppress(OSError):
            os.write(2, f"<{level}>credential-agent: {text}\n".encode())

    def notify(self, *lines: str) -> bool:
        """Tell systemd, if it wants to know; ``False``: it is to be told again."""
        return not self._address or notifying.send(self._address, lines)

    def write(self, name: str, document: dict[str, Any], *, mode: int) -> None:
        """Replace a document in the directory; a failure is logged.

        Where there is no room for another file (a full ``/run``), the old one is written over: the old document would
        be believed while it is fresh, and be wrong. A reader who comes in between reads no valid document.

        Not synced to the disk, as :func:`agent.host.files.write_atomic` does it: the directory is in memory, and this
        is done every few seconds.
        """
        path = self.directory / f".{name}.new"
        data = json.dumps(document).encode()
        try:
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                os.fchmod(descriptor, mode)
                file.write(data)
            path.rename(self.directory / name)
        except OSError as error:
            self.say("file", f"{path}: cannot be written: {os_reason(error)}")
            if len(data) <= _PAGE_BYTES:
                self._write_over(self.directory / name, data)
        else:
            self.say("file", None)

    @staticmethod
    def _write_over(path: Path, data: bytes) -> None:
        with contextlib.suppress(OSError), path.open("r+b", buffering=0) as file:
            file.write(data)
            file.truncate()
