"""What the controller and the master say to each other: one word and its numbers, in one message of the control socket.

Both ends of a ``SOCK_SEQPACKET`` connection, so that one message is one read. The *controller* says :data:`GIVEN` with
sockets (workers ask on them, or one asks the kernel who does; not to a master that has its own), :data:`LISTEN` to have
a server begun that is linked to it, :data:`SNAPSHOT` with a file that holds the newest snapshot (without one where none
could be made), :data:`END` and a process id to kill the server that does not do what it is told, :data:`STOP` to let
all of them finish.

The *master* says what :func:`read` reads. It parses nothing of a stranger's, but its servers do, and it has their user:
the controller takes each of its words for a stranger's.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Final, NamedTuple

from agent.core.errors import SnapshotError
from agent.core.text import socket_address

NAME: Final = b"\0credential-agent-2-"
"""How the name begins of the socket by which a controller connects. One of before has none, and cuts a master off that
says :data:`ROOM` or :data:`LACKS`: it goes on where a later version was installed and only the master begun anew."""
READS_SECONDS: Final = b"seconds-"
"""After :data:`NAME`: that controller reads :data:`SECOND` of one that was said to be alive."""
GIVEN: Final = b"given"
LISTEN: Final = b"listen"
TWO: Final = 2
"""With :data:`LISTEN`: so many servers, of which the second stands by. A controller of before says no number."""
SNAPSHOT: Final = b"snapshot"
END: Final = b"end"
STOP: Final = b"stop"
MOST_SOCKETS: Final = 64
"""In one message: the kernel takes 253 (SCM_MAX_FD)."""

LINK: Final = b"link"
"""With a process id, and our end of a link to that server: a new one, or one that was said to be alive."""
SECOND: Final = b"second"
"""As :data:`LINK`, of one that stands by. One that was said to be alive is so only to who :data:`READS_SECONDS`."""
INSTEAD: Final = b"instead"
"""With a process id: that server stood by, and answers now, in the place of one that has ended."""
ALIVE: Final = b"alive"
"""With a process id: of a server that was begun before this controller has asked for one."""
ENDED: Final = b"ended"
"""With a process id: that server has ended."""
HAD: Final = b"had"
"""With a number: so many snapshots have come. Each server that may know an older one was said before."""
LACKS: Final = b"lacks"
"""As :data:`HAD`, of one whose file was lost on the way, because the master had no descriptor for it: it begins no
server with a former one, and with none of this controller's until it is given one again."""
ROOM: Final = b"room"
"""With a number: so many descriptors a server may have. Said before :data:`AT`."""
FAILING: Final = b"failing"
"""With a number: so many servers, one after the other, have ended as soon as they were begun."""
AT: Final = b"at"
"""With addresses: of the sockets. All that a controller must know that has just connected was said before."""
MOST_BYTES: Final = 4096
MOST_SERVERS: Final = 64
"""That an honest master has at once: each connection of a controller adds one until that one serves."""

_WITH_NUMBER: Final = (LINK, SECOND, INSTEAD, ALIVE, ENDED, HAD, LACKS, ROOM, FAILING)
_NUMBER: Final = re.compile(rb"[1-9][0-9]{0,9}")


class Said(NamedTuple):
    """A message of the master's.

    Attributes:
        word: which.
        number: the process id, or how many.
        addresses: of :data:`AT`: ``HOST:PORT``.
    """

    word: bytes
    number: int = 0
    addresses: tuple[str, ...] = ()


def number(word: bytes, value: int) -> bytes:
    """The message of a word with a number."""
    return b"%s %d" % (word, value)


def is_of_before(connection: socket.socket) -> bool:
    """Whether the controller that connected has no :data:`NAME`."""
    return not _name_of(connection).startswith(NAME)


def reads_seconds(connection: socket.socket) -> bool:
    """Whether the controller that connected says so (:data:`READS_SECONDS`)."""
    return _name_of(connection).startswith(NAME + READS_SECONDS)


def _name_of(connection: socket.socket) -> bytes:
    try:
        name = connection.getpeername()
    except OSError:
        return b""  # it has left
    return name if isinstance(name, bytes) else b""


def at(addresses: Iterable[str]) -> bytes:
    """The message that names the sockets."""
    return b" ".join([AT, *(one.encode() for one in list(addresses)[:MOST_SOCKETS])])


def read(said: bytes) -> Said:
    """Read what a master said.

    Raises:
        SnapshotError: no honest one says that.
    """
    word, *values = said.split(b" ")
    if said == SNAPSHOT:
        return Said(SNAPSHOT)
    if word in _WITH_NUMBER and len(values) == 1 and _NUMBER.fullmatch(values[0]):
        return Said(word, int(values[0]))
    if word == AT and len(values) <= MOST_SOCKETS:
        return Said(AT, addresses=tuple(map(_address, values)))
    raise SnapshotError(f"expected a word of the master's, got {len(said)} other bytes")


def pid_of(said: bytes) -> int:
    """The number that a controller said with a word; 0: none."""
    value = said.partition(b" ")[2]
    return int(value) if _NUMBER.fullmatch(value) else 0


def _address(value: bytes) -> str:
    """An address in the one spelling that there is of it, which names no network interface."""
    text = value.decode("ascii", "replace")
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    except ValueError:
        number = 0
    if not 0 < number < 65536 or "%" in host or socket_address(str(address), number) != text:
        raise SnapshotError("expected the address of a socket, got something else")
    return text
