"""Which configuration does a start use? The file's; where that does not answer, the previous one.

The file may lie on a mount whose server is gone, and a call that asks it never returns. A restart must lose nothing by
that: the service manager holds the text that the previous process used, and we use it until the file answers. At a
first start there is none: nothing is served, which is logged, and the file is waited for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from agent import config
from agent.core.errors import AgentError
from agent.host import systemd
from agent.host.threads import Threads

NAME: Final = "configuration"
WAIT_SECONDS: Final = 2.0
_HINT: Final = "look at the mount that it lies on"


class Written(NamedTuple):
    """What was read: the configuration, and the text that says it."""

    settings: config.Config
    text: str


class Configured:
    """The file of the configuration.

    Args:
        path: the file.

    Attributes:
        text: what says the configuration that is in force: the next process uses it where the file does not answer. It
            may hold secrets. Whoever applies another one sets it, with it: what was refused must not come back.
        late: the first reading of it, while the text of the previous process is in force.
    """

    def __init__(self, path: Path) -> None:
        self.text = ""
        self.late: Future[Written] | None = None
        self._path = path
        self._changed: dict[str, float] = {}

    @property
    def changed(self) -> float | None:
        """When the file was changed last that says what is in force, since the epoch; ``None``: it was not read."""
        return self._changed.get(self.text)

    def read(self) -> Written:
        """Read it, however long that takes. It is not in force by that.

        Raises:
            ConfigError: it cannot be read, or is not valid.
        """
        changed = _changed(self._path)  # before: what is written meanwhile is told as a change
        text = config.text(self._path)
        settings = config.parse(text, origin=str(self._path))
        self._changed = {self.text: self._changed.get(self.text, 0.0), text: changed}
        return Written(settings, text)

    def first(self, environ: Mapping[str, str]) -> config.Config:
        """The configuration that a start uses: see the module.

        Args:
            environ: what the service manager passed.

        Raises:
            ConfigError: as :meth:`read`.
            HostError: what was passed contradicts itself.
        """
        reading: Future[Written] = Threads(1).submit(self.read)
        wait((reading,), WAIT_SECONDS)
        if reading.done():
            return self._begin(reading.result())
        before = self._before(environ)
        structlog.get_logger().error(
            "config.stalled", path=str(self._path), instead="the one before" if before is not None else None, hint=_HINT
        )
        if before is None:
            systemd.Notifier(environ.get("NOTIFY_SOCKET")).status(
                "nothing is served: the configuration does not answer"
            )
            return self._begin(reading.result())
        self.late = reading
        return self._begin(before)

    def _begin(self, written: Written) -> config.Config:
        self.text = written.text
        return written.settings

    def _before(self, environ: Mapping[str, str]) -> Written | None:
        for data in systemd.peek(environ, NAME, pid=os.getpid(), max_bytes=config.MAX_FILE_BYTES):
            try:
                text = data.decode()
                return Written(config.parse(text, origin=str(self._path)), text)
            except (AgentError, UnicodeDecodeError):
                continue
        return None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # the reading says what is wrong
