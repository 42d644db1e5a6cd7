"""By which names a socket is found, and which of them are made again."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.daemon.socket_name import SocketName
from tests.unit.controller.support import looped


@pytest.fixture
def sock(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "passed"))
        listening.listen()
        yield listening


def is_found(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@looped
async def test_the_link_by_which_programs_look_is_made_again(sock: socket.socket, tmp_path: Path) -> None:
    """It was gone before we began, or somebody empties our directory while we run: the socket's own name is elsewhere."""
    sought = tmp_path / "sought"
    name = SocketName(sock, sought)
    assert is_found(sought)
    sought.unlink()
    assert not await name.lost()
    assert is_found(sought)


@looped
async def test_what_is_in_its_place_stays(sock: socket.socket, tmp_path: Path) -> None:
    """Somebody's file is not ours to remove, nor is a link that leads elsewhere."""
    sought, other = tmp_path / "sought", tmp_path / "other"
    sought.write_text("another's")
    assert not await SocketName(sock, sought).lost()
    assert sought.read_text() == "another's"
    sought.unlink()
    sought.symlink_to(other)
    assert not await SocketName(sock, sought).lost()
    assert sought.readlink() == other


@looped
async def test_one_that_we_made_ourselves_has_no_link(sock: socket.socket, tmp_path: Path) -> None:
    """It is lost when its name is: a link in its place would lead to itself, and keep it from being made again."""
    path = tmp_path / "passed"
    name = SocketName(sock, path)
    path.unlink()
    assert await name.lost()
    assert not path.is_symlink()
