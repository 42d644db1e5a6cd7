"""Which system users were workers outlives the boot: what is written, and what is read back."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import config
from agent.core.errors import HostError
from agent.host import lasting, nft, ranges
from tests.fakes.refusing import refuse


def settled(kept: lasting.Kept, meanwhile: Callable[[], None] = lambda: None) -> None:
    end = time.monotonic() + 60
    while kept.is_writing and time.monotonic() < end:
        meanwhile()
        time.sleep(0.01)
        kept.look()
    assert not kept.is_writing


def test_the_usual_workers_are_the_defaults() -> None:
    """Whom the closed table refuses by itself is not written down."""
    assert ranges.parse_uids(config.Redirect().uids) == lasting.USUAL


def test_only_whom_the_closed_table_does_not_know_is_written(tmp_path: Path) -> None:
    """System users, one range a line; an earlier content is replaced; nothing is written where there is nothing to say."""
    file = tmp_path / "workers"
    kept = lasting.Kept(file)
    kept.keep(lasting.USUAL)
    settled(kept)
    assert not file.exists()
    kept.keep([*lasting.USUAL, [105, 105], [500, 999]])
    settled(kept)
    assert file.read_text() == "105\n500-999\n"
    assert lasting.read(file) == ((105, 105), (500, 999))
    kept.keep([(33, 33)])
    kept.keep([(34, 34)])  # while the first is being written
    settled(kept)
    assert lasting.read(file) == ((34, 34),)
    kept.keep(lasting.USUAL)
    settled(kept)
    assert lasting.read(file) == ()


def test_what_is_there_stays_until_a_plan_is_known(tmp_path: Path) -> None:
    """A planner that crashes at the boot for which it was kept must not have it forgotten."""
    file = tmp_path / "workers"
    file.write_text("105\n")
    kept = lasting.Kept(file)
    kept.look()
    assert not kept.is_writing
    assert lasting.read(file) == ((105, 105),)


def test_a_place_that_cannot_be_written_is_told_and_stops_nobody(tmp_path: Path) -> None:
    """Only where there is somebody to keep."""
    kept = lasting.Kept(tmp_path / "gone" / "workers")
    kept.keep(lasting.USUAL)
    settled(kept)
    assert not kept.lacking
    kept.keep([(105, 105)])
    settled(kept)
    assert any("cannot be written" in said for said in kept.lacking)


def test_what_could_not_be_written_is_tried_again(tmp_path: Path) -> None:
    """A disk that is full or read-only for a moment of a boot must not leave the next boot without the numbers."""
    now = [0.0]
    kept = lasting.Kept(tmp_path / "later" / "workers", clock=lambda: now[0])
    kept.keep([(105, 105)])
    settled(kept)
    assert kept.lacking
    (tmp_path / "later").mkdir()
    kept.look()
    assert not kept.is_writing  # not at each look: there is one each second
    now[0] += lasting.AGAIN_SECONDS
    kept.look()
    settled(kept)
    assert not kept.lacking
    assert lasting.read(tmp_path / "later" / "workers") == ((105, 105),)


def test_a_writer_that_hangs_holds_nothing_of_its_parents(tmp_path: Path) -> None:
    """Rules belong to a socket to the kernel: whoever comes after the parent could not have them while a child has it."""
    file = tmp_path / "workers"
    os.mkfifo(file)
    kept = lasting.Kept(file)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        kept.keep([(105, 105)])
        theirs.close()
        ours.settimeout(60)
        assert ours.recv(1) == b""
    kept.look()
    assert kept.is_writing
    settled(kept, lambda: os.close(os.open(file, os.O_RDWR)))  # so that the child goes on
    assert lasting.read(file) == ((105, 105),)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_what_the_system_refuses_to_read_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whom the file names is not known then, and is to be refused at the next boot too."""
    file = tmp_path / "workers"
    file.write_text("34\n")
    kept = lasting.Kept(file)
    with monkeypatch.context() as patch:
        refuse(patch, file, number)
        with pytest.raises(HostError, match="cannot be read"):
            lasting.read(file)
        kept.keep([(105, 105)], beside=True)
        assert not kept.is_writing
    assert lasting.read(file) == ((34, 34),)
    kept.keep([(105, 105)], beside=True)
    settled(kept)
    assert lasting.read(file) == ((34, 34), (105, 105))


@pytest.mark.parametrize("data", [b"0\n0-5\n105\n", b"105\n\xff\xfe\n9-3\nx; reboot\n", b"105", b"105\n\n4294967295\n"])
def test_a_line_that_makes_no_sense_is_nobodys(tmp_path: Path, data: bytes) -> None:
    """Root least of all; the other lines count."""
    file = tmp_path / "workers"
    file.write_bytes(data)
    assert lasting.read(file) == ((105, 105),)


def test_the_closed_table_takes_them() -> None:
    """Beside its own text, which it is without them."""
    assert nft.refusal(()) == nft.refusal() == nft.CLOSED_FILE.read_text()
    assert nft.refusal(((105, 105), (7, 9))).endswith("worker_uids { 105, 7-9 }\n")


def test_it_can_be_written_at_once(tmp_path: Path) -> None:
    """For an image that is built: nothing where there is nobody to keep, and what is not needed any more goes."""
    file = tmp_path / "workers"
    lasting.write([(1000, 2000)], file)
    assert not file.exists()
    lasting.write([(33, 33), (1000, 2000), (34, 34)], file)
    assert file.read_text() == "33-34\n"
    lasting.write([], file)
    assert lasting.read(file) == ()
    with pytest.raises(HostError):
        lasting.write([(33, 33)], tmp_path / "gone" / "workers")
