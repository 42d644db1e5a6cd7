"""Messages as bytes on a stream: a length, a kind, and MessagePack of one spelling; bounded before it is read.

A frame is four bytes, big-endian, which say how long the rest is; one byte: 0 for a snapshot as
:mod:`agent.snapshot.codec` writes it, 1 for a message; and the content. Each side says how long a frame of the other
may be at most, and reads no more once a length is above that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec

from agent.core.errors import SnapshotError
from agent.core.instants import in_utc
from agent.core.secret import reveal
from agent.snapshot.codec import MAX_BYTES
from agent.snapshot.messages import MOST_BODY_BYTES, MOST_SENT_BYTES, ControllerSays, ServerSays, hide

_HEAD: Final = struct.Struct(">IB")
_SNAPSHOT: Final = 0
_MESSAGE: Final = 1
MOST_FROM_SERVER: Final = MOST_SENT_BYTES + (32 << 10)
"""The longest is a body that is passed through, with its target and headers."""
MOST_FROM_CONTROLLER: Final = max(MAX_BYTES, MOST_BODY_BYTES + (128 << 10)) + 1

_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=reveal)
_FROM_SERVER: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(ServerSays, dec_hook=hide)
_FROM_CONTROLLER: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(ControllerSays, dec_hook=hide)

T = TypeVar("T")


def frame_of(message: ServerSays | ControllerSays) -> bytes:
    """The frame of a message."""
    content = _ENCODER.encode(message)
    return _HEAD.pack(len(content) + 1, _MESSAGE) + content


def frame_from_server(message: ServerSays) -> bytes:
    """The frame of a message that quotes what a worker sent, if it is one that the controller takes.

    Raises:
        SnapshotError: it is not: too long, most likely. To say it would end the connection.
    """
    try:
        frame = frame_of(message)
        same = frame == frame_of(_FROM_SERVER.decode(memoryview(frame)[_HEAD.size :]))
    except (msgspec.MsgspecError, UnicodeError, TypeError):
        same = False
    if not same:
        raise SnapshotError("expected a message that the controller takes, got another")
    return frame


def frame_of_snapshot(data: bytes) -> bytes:
    """The frame of an encoded snapshot."""
    return _HEAD.pack(len(data) + 1, _SNAPSHOT) + data


class Frames(Generic[T]):
    """Reads what one side says. Give it bytes as they come, and take what is whole.

    Args:
        decoder: of the messages of that side.
        most: bytes of a frame after its length.
        snapshots: whether that side sends snapshots.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[T], *, most: int, snapshots: bool) -> None:
        self._decoder = decoder
        self._most = most
        self._snapshots = snapshots
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[T | bytes]:
        """What is whole now, in its order: a message, or the bytes of a snapshot, which are not decoded here.

        Raises:
            SnapshotError: what came is not what that side may say. Nothing after it can be read.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= _HEAD.size:
                length, kind = _HEAD.unpack_from(buffer, at)
                if not 1 <= length <= self._most:
                    raise SnapshotError(f"expected a frame of at most {self._most} bytes, got {length}")
                end = at + _HEAD.size - 1 + length
                if len(buffer) < end:
                    break
                content = bytes(memoryview(buffer)[at + _HEAD.size : end])
                at = end
                yield self._read(kind, content)
        finally:
            del buffer[:at]

    def _read(self, kind: int, content: bytes) -> T | bytes:
        if kind == _SNAPSHOT and self._snapshots:
            return content
        if kind != _MESSAGE:
            raise SnapshotError(f"expected a frame of a known kind, got {kind}")
        try:
            message = self._decoder.decode(content)
            again = _ENCODER.encode(message)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, OverflowError, TypeError):
            raise SnapshotError("expected a message, got something else") from None
        if again != content or not in_utc(message):
            raise SnapshotError("expected the one spelling of a message, got another")
        return message


def from_server() -> Frames[ServerSays]:
    """Reads what a server says; one for each connection."""
    return Frames(_FROM_SERVER, most=MOST_FROM_SERVER, snapshots=False)


def from_controller() -> Frames[ControllerSays]:
    """Reads what the controller says; one for each connection."""
    return Frames(_FROM_CONTROLLER, most=MOST_FROM_CONTROLLER, snapshots=True)
