"""When the boot grace began: it runs once for each boot and instance, however often the agent is started.

The descriptor store says it over a restart. Over a stop and a start (an upgrade by a package manager) a file beside the
control socket does: ``/run`` is emptied at each boot. It is no secret and decides nothing: without it the grace begins
once more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from agent.core.errors import HostError
from agent.core.strictjson import NotThatShapeError, decode
from agent.host.files import read_plain, write_atomic

FILE: Final = "grace.json"


class Began(msgspec.Struct, frozen=True):
    """The content of the file.

    Attributes:
        instance_id: the machine; empty while its name is not known.
        began: CLOCK_BOOTTIME, in seconds.
    """

    instance_id: str
    began: float


def read(directory: Path, *, uptime: float) -> Began | None:
    """Read the file of an earlier process of this boot; ``None``: there is none."""
    try:
        found = decode(read_plain(directory / FILE, 4096), Began)
    except (OSError, NotThatShapeError):
        return None
    return found if 0.0 <= found.began <= uptime else None


def write(directory: Path, began: Began) -> None:
    """Leave it for the next process. A failure is ignored: the grace then begins once more."""
    try:
        write_atomic(directory / FILE, msgspec.json.encode(began), mode=0o600)
    except HostError:
        return
