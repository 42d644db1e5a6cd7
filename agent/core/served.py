"""What was given to whom, and why something was refused: the words in which those who answer workers tell it.

For audit and metrics. Nothing here is a secret: of an access key there are the last four characters, of a token
nothing. What a worker says of itself (its user agent) is text of a stranger: bounded, and plain before it is kept.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from agent.core.model import Cloud

Dialect = Literal["ec2", "container", "gce"]
Kind = Literal["credential", "access-token", "id-token"]
Caller = Literal["root", "system", "user", "subordinate", "forwarded", "unknown"]
AuditMode = Literal["off", "summary", "full"]
Reason = Literal[
    "method", "host", "proxy", "browser", "loop", "token", "flavor", "malformed", "too-large", "too-slow", "room"
]

CALLERS: Final[tuple[Caller, ...]] = ("root", "system", "user", "subordinate", "forwarded", "unknown")
REASONS: Final[tuple[Reason, ...]] = (
    *("method", "host", "proxy", "browser", "loop"),  # the gate's
    *("token", "flavor"),  # the dialects'
    *("malformed", "too-large", "too-slow"),
    "room",  # somebody had more than a fair share of what is left
)

MOST_AGENT_CHARACTERS: Final = 120
_Name = Annotated[str, msgspec.Meta(max_length=256)]


class Given(msgspec.Struct, frozen=True):
    """What one answer holds.

    Attributes:
        identity: the role or the account that it is of.
        key: the last four characters of an access key id; of tokens nothing is told.
    """

    dialect: Dialect
    cloud: Cloud
    kind: Kind
    identity: _Name
    key: Annotated[str, msgspec.Meta(max_length=4)] = ""


class Who(msgspec.Struct, frozen=True):
    """Who asked, as the kernel says.

    Attributes:
        uid: of the socket at the other end; ``None``: it is not on this machine, or was not asked for.
        cgroup: the id of that socket's control group; 0: not known.
        address: where it comes from, if that is not this machine.
        asked: whether the kernel was asked: in a flood it is not, each time.
    """

    uid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None = None
    cgroup: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    address: Annotated[str, msgspec.Meta(max_length=64)] = ""
    asked: bool = True

    @property
    def caller(self) -> Caller:
        """The class of the user: few words, for a metric."""
        if self.uid is None:
            return "forwarded" if self.address else "unknown"
        if self.uid == 0:
            return "root"
        # systemd's borders (systemd.io/UIDS-GIDS): dynamic and system users, people, and what containers are given.
        if self.uid < 1000 or 60578 <= self.uid < 65536:
            return "system"
        return "user" if self.uid < 60578 else "subordinate"


NOT_ASKED: Final = Who(asked=False)


class Serving(msgspec.Struct, frozen=True):
    """How often one program was given one thing since that was last told.

    Attributes:
        agent: what it calls itself, plain; empty: nothing, or it is not told.
    """

    given: Given
    who: Who
    agent: Annotated[str, msgspec.Meta(max_length=MOST_AGENT_CHARACTERS)]
    count: Annotated[int, msgspec.Meta(ge=1, lt=1 << 40)]


def plain(text: str, most: int = MOST_AGENT_CHARACTERS) -> str:
    """A stranger's text as one that stands in a line of a log: short, in printable ASCII, without a line of its own."""
    cut = text[:most]
    if not cut.isascii() or not cut.isprintable():
        cut = cut.encode("ascii", "backslashreplace").decode("ascii")
        cut = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in cut)[:most]
    return cut
