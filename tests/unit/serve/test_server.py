"""What a server says of itself."""

from __future__ import annotations

import asyncio

from agent.serve.link import Link
from agent.serve.server import WorkerServer
from agent.snapshot.frames import frame_from_server, frame_of
from agent.snapshot.messages import Counts, Tell, Uses
from tests.fakes.view import FakeView
from tests.unit.controller.support import looped


class Wire(asyncio.Transport):
    """Keeps what is written, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0  # it reads at once

    def close(self) -> None:
        """Nothing is held."""


@looped
async def test_an_idle_server_that_is_asked_says_all_in_one_piece() -> None:
    """Each piece wakes the controller, and it asks all servers again and again though nothing happens."""
    link, wire, uses = Link(), Wire(), Uses(1, 0.5, 3)
    connection = link.protocol()
    connection.connection_made(wire)
    server = WorkerServer(link, FakeView().served, None, use=lambda _: uses)
    connection.data_received(frame_of(Tell()))
    assert wire.pieces == [frame_from_server(uses) + frame_from_server(Counts(()))]
    await server.close(0)
