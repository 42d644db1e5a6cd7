"""The kernel names the user at the other end of one connection, at once: real sockets, real users."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import cast

import pytest

from agent.host.sockdiag import NETLINK_SOCK_DIAG, Gone, Holder, SocketDiagnosis

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user or in another network")
NOBODY = 65534
CLIENT = """
import encodings.idna, os, socket, sys
os.setgid(65534), os.setuid(65534)
sock = socket.socket(int(sys.argv[1]))
sock.connect((sys.argv[2], int(sys.argv[3])))
print("on", flush=True)
sys.stdin.read()
"""
# The address that the client believes itself connected to is not the one that we have: as the rules lead it.
LED = """
import socket, subprocess, sys
for words in ("link set lo up", "address add 169.254.169.254/32 dev lo"):
    subprocess.run(["ip", *words.split()], check=True)
from agent.host.sockdiag import SocketDiagnosis
listening = socket.create_server(("169.254.169.254", 80))
client = socket.create_connection(("169.254.169.254", 80))
connection, peer = listening.accept()
asked = SocketDiagnosis()
print(asked.owner(peer, ("127.0.0.1", 16925)))
"""

TWO = """
import os, socket, subprocess, sys
for words in ("link set lo up", "address add 169.254.169.254/32 dev lo", "address add 169.254.170.2/32 dev lo"):
    subprocess.run(["ip", *words.split()], check=True)
from agent.host.sockdiag import SocketDiagnosis
asked = SocketDiagnosis()
held = []
for host, user in (("169.254.169.254", 0), ("169.254.170.2", 65534)):
    held.append(socket.create_server((host, 80)))
    os.seteuid(user)
    held.append(socket.socket())
    held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held[-1].bind(("127.0.0.1", 40000))
    held[-1].connect((host, 80))
    os.seteuid(0)
print(asked.owner(("127.0.0.1", 40000), ("127.0.0.1", 16925)))
"""


@pytest.fixture
def asked() -> Iterator[SocketDiagnosis]:
    diagnosis = SocketDiagnosis()
    yield diagnosis
    diagnosis.close()


@contextlib.contextmanager
def connection(server: socket.socket, family: int, host: str) -> Iterator[socket.socket]:
    """Our end of a connection that another user's process made."""
    argv = [sys.executable, "-c", CLIENT, str(family), host, str(server.getsockname()[1])]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        ours, _ = server.accept()
        try:
            with ours:
                yield ours
        finally:
            process.stdin.close()  # type: ignore[union-attr]


@as_root
@pytest.mark.parametrize(
    ("listening", "family", "host"),
    [
        ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
        ("127.0.0.1", socket.AF_INET6, "::ffff:127.0.0.1"),  # Java's and Go's sockets may be such
        ("::1", socket.AF_INET6, "::1"),
    ],
)
def test_the_user_at_the_other_end(asked: SocketDiagnosis, listening: str, family: int, host: str) -> None:
    """The user whose process holds the other end, whatever the address family of its socket."""
    kind = socket.AF_INET6 if ":" in listening else socket.AF_INET
    with (
        socket.create_server((listening, 0), family=kind) as server,
        connection(server, family, host) as ours,
    ):
        peer, local = ours.getpeername(), ours.getsockname()
        assert asked.owner(peer[:2], local[:2]) == NOBODY
        assert asked.owner(local[:2], peer[:2]) == os.geteuid()  # the other way round it is ours


@as_root
def test_a_connection_that_the_rules_led() -> None:
    """A socket that believes itself connected to a metadata address is found by that."""
    argv = ["unshare", "-n", sys.executable, "-c", LED]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_what_is_closed_is_gone(asked: SocketDiagnosis) -> None:
    """A client that has closed its socket reads no answer; one that has ended its side alone still does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        ours, peer = server.accept()
        with ours:
            client.shutdown(socket.SHUT_WR)
            assert asked.owner(peer, ours.getsockname()) == os.geteuid()
            client.close()
            with pytest.raises(Gone):
                asked.owner(peer, ours.getsockname())


def test_who_only_listens_is_not_at_the_other_end(asked: SocketDiagnosis) -> None:
    """Where there is no connection the kernel names a listener: that is not the owner of one; nor is nobody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert asked.owner(server.getsockname(), ("127.0.0.1", 1)) is None
    assert asked.owner(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
    assert asked.owner(("192.0.2.1", 40000), ("127.0.0.1", 80)) is None
    assert asked.owner(("not an address", 40000), ("127.0.0.1", 80)) is None
    assert asked.owner(("127.0.0.1", 40000), ("not an address", 80)) is None


def test_the_socket_that_was_passed_is_asked() -> None:
    """In the unit's sandbox none may be made: the one that the service manager made is used."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    made.bind((0, 0))  # as systemd does
    with socket.socket(socket.AF_UNIX) as other, made, socket.create_server(("127.0.0.1", 0)) as server:
        passed = SocketDiagnosis([other, made])
        with socket.create_connection(server.getsockname()) as client:
            assert passed.owner(client.getsockname(), client.getpeername()) == os.geteuid()
        passed.close()
        assert made.fileno() == -1


def _question(number: int) -> bytes:
    """About a connection that there is not: the kernel answers that, too."""
    body = struct.pack(
        "=BBBBI2s2s16s16sIII", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFF, *[b""] * 4, 0, *[2**32 - 1] * 2
    )
    return struct.pack("=IHHII", 16 + len(body), 20, 1, number, 0) + body


@pytest.mark.parametrize("left", [1, 100, 5000], ids=["one", "many", "more than it holds"])
def test_what_was_left_on_a_socket_that_was_passed_is_thrown_away(left: int) -> None:
    """Whoever had it before, and was taken over, may have asked ahead: none of those answers is taken for one of ours."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    made.setblocking(False)
    with made, socket.create_server(("127.0.0.1", 0)) as server:
        for number in range(left):
            with contextlib.suppress(OSError):  # its buffer is full: ENOBUFS is what the next read says
                made.send(_question(number))
        passed = SocketDiagnosis([made])
        with pytest.raises(BlockingIOError):
            made.recv(4096)
        with socket.create_connection(server.getsockname()) as client:
            assert passed.owner(client.getsockname(), client.getpeername()) == os.geteuid()


@as_root
def test_one_port_to_two_metadata_addresses() -> None:
    """Two users who use one port towards two metadata addresses cannot be told apart, and neither is blamed."""
    argv = ["unshare", "-n", sys.executable, "-c", TWO]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_an_old_answer_is_none_to_a_new_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that was left unread does not name the owner of the next connection: each question has another number."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    monkeypatch.setattr(os, "urandom", lambda count: b"\0" * (count - 1) + b"\7")
    asked = SocketDiagnosis([made])
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        ends = client.getsockname(), client.getpeername()
        address = socket.inet_aton("127.0.0.1").ljust(16, b"\0")
        ports = struct.pack("!HH", ends[0][1], ends[1][1])
        for number in (2**32 - 1, 0, 7):
            question = struct.pack("=IHHII", 72, 20, 1, number, 0)
            question += struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFF) + ports + address * 2
            made.send(question + struct.pack("=III", 0, 2**32 - 1, 2**32 - 1))
        assert asked.owner(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
        assert asked.owner(*ends) == os.geteuid()
    asked.close()


class Kernel:
    """A netlink socket on which a kernel of ours answers.

    Args:
        sockets: by the address that the client believes itself connected to: state, uid and inode.
        attributes: what stands behind each answer.
    """

    family = socket.AF_NETLINK

    def __init__(self, sockets: dict[str, tuple[int, int, int]], attributes: bytes = b"") -> None:
        self._sockets = {
            socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host).ljust(16, b"\0"): one
            for host, one in sockets.items()
        }
        self._attributes = attributes
        self._answers: list[bytes] = []

    def setblocking(self, flag: bool) -> None:
        """There is nothing to wait for."""

    def send(self, question: bytes) -> None:
        number = struct.unpack_from("=IHHII", question)[3]
        found = self._sockets.get(question[44:60])
        if found is None:  # NLMSG_ERROR: -ENOENT, and the question
            told, kind = struct.pack("=i", -2) + question[:16], 2
        else:
            state, uid, inode = found
            told, kind = struct.pack("=BBBB", question[16], state, 0, 0) + question[24:60] + bytes(12), 20
            told += struct.pack("=IIIII", 0, 0, 0, uid, inode) + self._attributes
        self._answers.append(struct.pack("=IHHII", 16 + len(told), kind, 0, number, 0) + told)

    def recv(self, size: int, flags: int) -> bytes:
        if not self._answers:
            raise BlockingIOError
        return self._answers.pop()[:size]


HELD, ANOTHERS, LEFT = (1, 1000, 77), (1, 1001, 78), (6, 0, 0)  # the last in time-wait: nobody's any more


@pytest.mark.parametrize(
    ("peer", "sockets", "owner"),
    [
        ("10.0.0.1", {"127.0.0.1": HELD}, 1000),
        ("10.0.0.1", {"127.0.0.1": HELD, "169.254.169.254": ANOTHERS}, 1000),
        ("10.0.0.1", {"127.0.0.1": LEFT}, "gone"),
        ("10.0.0.1", {"169.254.169.254": HELD}, 1000),
        ("10.0.0.1", {"169.254.170.2": HELD}, 1000),
        ("fd00::1", {"fd00:ec2::254": HELD}, 1000),
        ("10.0.0.1", {"169.254.169.254": HELD, "169.254.170.2": ANOTHERS}, None),
        ("10.0.0.1", {"169.254.169.254": HELD, "169.254.170.2": HELD}, 1000),
        ("10.0.0.1", {"169.254.169.254": LEFT, "169.254.170.2": HELD}, 1000),
        ("10.0.0.1", {"169.254.169.254": HELD, "169.254.170.2": LEFT}, 1000),
        ("10.0.0.1", {"169.254.169.254": LEFT}, "gone"),
        ("10.0.0.1", {"fd00:ec2::254": HELD}, None),
        ("10.0.0.1", {}, None),
    ],
)
def test_whose_a_connection_is(peer: str, sockets: dict[str, tuple[int, int, int]], owner: object) -> None:
    """Whoever is connected to us, or by the rules to one metadata address; of two it is neither, and the dead do not count."""
    asked = SocketDiagnosis([cast(socket.socket, Kernel(sockets))])
    try:
        found: object = asked.owner((peer, 40000), ("127.0.0.1", 8181))
    except Gone:
        found = "gone"
    assert found == owner


GROUP = struct.pack("=HHQ", 12, 21, 4242)


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        (b"", 0),
        (GROUP, 4242),
        (struct.pack("=HHB3x", 5, 8, 1) + GROUP, 4242),  # another before it, padded to four bytes
        (struct.pack("=HHQ", 12, 8, 4242), 0),
        (struct.pack("=HHI", 8, 21, 4242), 0),
        (GROUP[:-1], 0),
        (struct.pack("=HH", 0, 0) + GROUP, 4242),
        (bytes(400), 0),
        (b"\xff" * 400, 0),
        (GROUP + struct.pack("=HHQ", 12, 21, 17), 4242),
    ],
    ids=[
        "none",
        "alone",
        "second",
        "of another kind",
        "short",
        "cut off",
        "after an empty one",
        "zeros",
        "ones",
        "two",
    ],
)
def test_the_control_group_is_read_wherever_it_stands(attributes: bytes, group: int) -> None:
    """Kernels put other attributes before it, and more of them with each release; what is not whole is none."""
    asked = SocketDiagnosis([cast(socket.socket, Kernel({"127.0.0.1": HELD}, attributes))])
    assert asked.holder(("10.0.0.1", 1), ("127.0.0.1", 2)) == Holder(1000, group)


def test_what_another_left_unread_is_no_answer_to_us() -> None:
    """A process that was killed between question and answer leaves one on the socket that its successor has."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    with made, socket.create_server(("127.0.0.1", 0)) as server:
        made.send(struct.pack("=IHHII", 16, 20, 1, 1, 0))  # the first of whoever has it: refused, by the same number
        passed = SocketDiagnosis([made])
        with socket.create_connection(server.getsockname()) as client:
            assert passed.owner(client.getsockname(), client.getpeername()) == os.geteuid()
        passed.close()
