"""What the server and the controller say to each other beside snapshots. What each means stands in ``SNAPSHOT.md``.

A *server* answers workers and may have been taken over by one; the *controller* takes each word of it for a stranger's.
Whatever waits for an answer has a number, which the server chooses.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from agent.core.model import Cloud, GoogleToken, IdToken
from agent.core.served import Reason, Serving

MOST_BODY_BYTES: Final = 1 << 20
"""Of an answer of the real service."""
MOST_SENT_BYTES: Final = 65536
"""Of a body that a worker has written."""
MOST_COUNTED: Final = 128
"""Kinds of counts in one message."""
MOST_SERVED: Final = 32
"""Rows of what was given, in one message."""

Number = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
Status = Annotated[int, msgspec.Meta(ge=0, le=999)]
Word = Annotated[str, msgspec.Meta(max_length=256)]
Target = Annotated[str, msgspec.Meta(min_length=1, max_length=16384)]
Fields = Annotated[
    tuple[tuple[Word, Annotated[str, msgspec.Meta(max_length=4096)]], ...],
    msgspec.Meta(max_length=16),
]


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """The server serves this version now, and no older one."""

    version: Annotated[int, msgspec.Meta(ge=0)]


class Mint(msgspec.Struct, frozen=True, tag="mint"):
    """An identity token for an audience that the snapshot has none for."""

    number: Number
    audience: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]


class MintScoped(msgspec.Struct, frozen=True, tag="mint-scoped"):
    """An access token for fewer scopes that the snapshot has none for."""

    number: Number
    scopes: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=512)], ...], msgspec.Meta(max_length=64)]


class Pass(msgspec.Struct, frozen=True, tag="pass"):
    """What the real metadata service of a cloud is to be asked on a worker's behalf.

    Attributes:
        target: in the one canonical spelling.
        headers: of those that a worker's request may pass on.
        seconds: how long the answer is waited for.
    """

    number: Number
    cloud: Cloud
    method: Annotated[str, msgspec.Meta(max_length=32)]
    target: Target
    headers: Fields
    body: Annotated[bytes, msgspec.Meta(max_length=MOST_SENT_BYTES)] | None
    seconds: Annotated[float, msgspec.Meta(ge=0, le=7200)]

    def __repr__(self) -> str:
        return f"Pass({self.number}, {self.cloud}, {self.method!r})"


class Left(msgspec.Struct, frozen=True, tag="left"):
    """Nobody waits any more for the answer to that number."""

    number: Number


class Counts(msgspec.Struct, frozen=True, tag="counts"):
    """How many requests were answered since the last such message, by status; 0: without an answer."""

    requests: Annotated[
        tuple[tuple[Status, Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]], ...],
        msgspec.Meta(max_length=MOST_COUNTED),
    ]


class Uses(msgspec.Struct, frozen=True, tag="uses"):
    """What the server's process uses, for the metrics: memory in RAM, time on a processor, open files and sockets."""

    resident_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
    cpu_seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    descriptors: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]


class Served(msgspec.Struct, frozen=True, tag="served"):
    """What was given to whom since the last such message, and how many requests were refused, by reason."""

    rows: Annotated[tuple[Serving, ...], msgspec.Meta(max_length=MOST_SERVED)] = ()
    refused: Annotated[
        tuple[tuple[Reason, Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]], ...], msgspec.Meta(max_length=32)
    ] = ()


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """A request that was refused, for the log: one of each kind a minute. The members are those of an ``Access``."""

    method: Word
    path: Annotated[str, msgspec.Meta(max_length=1024)]
    status: Status
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    user_agent: Annotated[str, msgspec.Meta(max_length=512)]
    peer: Annotated[str, msgspec.Meta(max_length=128)] | None
    note: Reason | None = None


class Crashed(msgspec.Struct, frozen=True, tag="crashed"):
    """A defect of the server's, which cost one request: the error's kind, and where it was raised."""

    path: Annotated[str, msgspec.Meta(max_length=1024)]
    error: Word
    where: Annotated[str, msgspec.Meta(max_length=4096)]


class Tell(msgspec.Struct, frozen=True, tag="tell"):
    """The controller is asked for numbers: say :class:`Counts` now, also when there is nothing to count."""


class Minted(msgspec.Struct, frozen=True, tag="minted"):
    """What became of a :class:`Mint` or a :class:`MintScoped`.

    Attributes:
        id_token, access_token: the one that was asked for; neither: none can be made, or ``why`` says why not.
        denied: whether whoever could make it refused, and will again.
        why: for a person; ``None``: it did not fail.
    """

    number: Number
    id_token: IdToken | None = None
    access_token: GoogleToken | None = None
    denied: bool = False
    why: Annotated[str, msgspec.Meta(max_length=4096)] | None = None


class Passed(msgspec.Struct, frozen=True, tag="passed"):
    """What the real service answered to a :class:`Pass`. ``status`` 0: nothing usable, or it may not be asked that."""

    number: Number
    status: Status
    headers: Fields = ()
    body: Annotated[bytes, msgspec.Meta(max_length=MOST_BODY_BYTES)] = b""

    def __repr__(self) -> str:
        return f"Passed({self.number}, {self.status})"


ServerSays = Taken | Mint | MintScoped | Pass | Left | Counts | Uses | Served | Refused | Crashed
ControllerSays = Minted | Passed | Tell


def shortened(value: str, most: int) -> str:
    """``value`` as far as a message takes it, without what no text may hold (half a pair, from an undecodable byte)."""
    return value[:most].encode("utf-8", "replace").decode()


def hide(kind: type, value: object) -> object:
    """A ``dec_hook``: a secret is text in a message."""
    return kind(value)
