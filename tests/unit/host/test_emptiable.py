"""A file that was given away can be made to hold nothing, by whoever made it and by nobody else."""

from __future__ import annotations

import fcntl
import os

import pytest

from agent.core.errors import HostError
from agent.host.emptiable import Emptiable


def test_whoever_has_it_has_nothing_any_more() -> None:
    """A reader from before reads nothing; nobody can write into it, or make it shorter by what he was given."""
    made = Emptiable.holding(b"secret")
    reader = made.reader()
    assert os.pread(reader, 99, 0) == b"secret"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(reader, b"x")
    with pytest.raises(OSError, match="Invalid argument"):
        os.ftruncate(reader, 0)
    made.empty()
    made.empty()  # there is no more to do
    assert os.pread(reader, 99, 0) == b""
    os.close(reader)


def test_the_next_process_of_the_same_user_empties_it() -> None:
    """It opens it anew, given back what can only read."""
    made = Emptiable.holding(b"secret")
    reader = made.reader()
    Emptiable.taken_back(reader).empty()
    assert os.pread(reader, 99, 0) == b""
    os.close(reader)
    made.empty()


def test_what_is_closed_is_left_as_it_is() -> None:
    """Whoever else has it may empty it; and one file is told from another for as long as both are open."""
    made, other = Emptiable.holding(b"secret"), Emptiable.holding(b"secret")
    reader = made.reader()
    again = Emptiable.taken_back(reader)
    assert again.is_same(made)
    assert not other.is_same(made)
    made.close()
    assert not again.is_same(made)
    assert os.pread(reader, 99, 0) == b"secret"
    again.empty()
    assert os.pread(reader, 99, 0) == b""
    other.close()
    os.close(reader)


def test_nobody_can_make_it_say_anything_else() -> None:
    """Not even its owner: it can be shortened, and neither written to, nor made longer, nor sealed so that it stays."""
    made = Emptiable.holding(b"secret")
    reader = made.reader()
    assert os.fstat(reader).st_mode & 0o777 == 0o600  # another user may not open it anew
    writer = os.open(f"/proc/self/fd/{reader}", os.O_RDWR)
    for forbidden in (
        lambda: os.pwrite(writer, b"x", 0),
        lambda: os.ftruncate(writer, 99),
        lambda: fcntl.fcntl(writer, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK),
    ):
        with pytest.raises(OSError, match="Operation not permitted"):
            forbidden()
    assert os.pread(reader, 99, 0) == b"secret"
    made.empty()
    assert os.pread(reader, 99, 0) == b""
    os.close(writer)
    os.close(reader)


def test_what_is_longer_than_one_write_is_held_whole() -> None:
    """However many pieces the kernel takes it in."""
    data = os.urandom(1 << 20)
    made = Emptiable.holding(data)
    reader = made.reader()
    assert os.pread(reader, len(data) + 1, 0) == data
    os.close(reader)
    made.empty()


def test_something_else_is_not_emptied() -> None:
    """A socket, a pipe, a file, memory that nobody sealed: a master may hand in anything."""
    memory, (reader, writer) = os.memfd_create("x"), os.pipe()
    for descriptor in (memory, reader, writer, os.open(__file__, os.O_RDONLY)):
        with pytest.raises(HostError, match="expected a file that an agent made"):
            Emptiable.taken_back(descriptor)
        os.close(descriptor)
