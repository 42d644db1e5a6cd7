"""Whose socket is at the other end, by the kernel's own table of real connections."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from agent.host.sockets import SocketTable, read_socket_table

CLIENT = "import encodings.idna, os, socket, sys; os.setuid(65534); s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); sys.stdin.read()"
ROW = "  %d: %s %s %s 00000000:00000000 00:00000000 00000000 %5d        0 %d 1 0000000000000000 20 4 30 10 -1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
@pytest.mark.parametrize(("listen", "connect"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")])
def test_a_connection_is_its_own_users(listen: str, connect: str) -> None:
    """A connection of another user's process is that user's, over IPv4, IPv6 and one in the form of the other."""
    dual = listen == "::"
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.create_server((listen, 0), family=family, dualstack_ipv6=dual) as server:
        command = [sys.executable, "-c", CLIENT, connect, str(server.getsockname()[1])]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as client:
            server.settimeout(20)
            accepted, _ = server.accept()
            with accepted:
                table = read_socket_table()
                assert table.owner(accepted.getpeername()[:2], accepted.getsockname()[:2]) == 65534
            assert client.stdin is not None
            client.stdin.close()


def test_one_that_is_not_on_this_machine() -> None:
    """An address that no socket here has is nobody's."""
    assert read_socket_table().owner(("192.0.2.1", 40000), ("127.0.0.1", 80)) is None


def table(*rows: tuple[str, str, str, int, int]) -> SocketTable:
    return SocketTable("".join(ROW % (number, *row) for number, row in enumerate(rows)).encode())


def test_led_by_the_rules() -> None:
    """A client that believes itself connected to the metadata address is found though our end has another one."""
    led = table(("0100000A:9C40", "FEA9FEA9:0050", "01", 1000, 7))
    assert led.owner(("10.0.0.1", 40000), ("127.0.0.1", 8181)) == 1000


def test_no_owner_any_more() -> None:
    """A socket in time-wait is shown with user 0 and without an inode: it is not root's."""
    assert (
        table(("0100007F:9C40", "0100007F:1FF5", "06", 0, 0)).owner(("127.0.0.1", 40000), ("127.0.0.1", 8181)) is None
    )


def test_one_port_to_two_metadata_addresses() -> None:
    """Two users who use one port towards two metadata addresses cannot be told apart, and neither is blamed."""
    both = table(("0100000A:9C40", "FEA9FEA9:0050", "01", 1000, 7), ("0100000A:9C40", "02AAFEA9:0050", "01", 1001, 8))
    assert both.owner(("10.0.0.1", 40000), ("127.0.0.1", 8181)) is None
