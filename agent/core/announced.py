"""Where the agent listens, as it tells those who may not read its configuration: the content of ``listeners.json``.

The daemon writes it beside its control socket; the commands of workers and operators read it.
"""

from __future__ import annotations

from typing import Final

import msgspec

FILE: Final = "listeners.json"
FORMER_FILE: Final = "doors.json"
"""The name that an earlier release gave the file. Written and read too, for one release."""


class Announced(msgspec.Struct, frozen=True, kw_only=True):
    """The content. Members are added, none is taken away.

    Attributes:
        http: the workers' endpoint, as ``HOST:PORT``.
        control: path of the control socket.
        courier: path of the couriers' socket; ``None``: there is none.
        file: path of the environment file.
        token_file: path of the token of the container endpoint.
    """

    http: str
    control: str
    file: str
    token_file: str
    courier: str | None = None
