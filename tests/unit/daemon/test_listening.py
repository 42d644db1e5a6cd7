"""Which address the environment files name, and under which names the listener answers."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
from pathlib import Path

import pytest

from agent import config
from agent.core.errors import HostError
from agent.daemon import listening


@pytest.mark.parametrize(
    ("bound", "named"),
    [
        (["172.17.0.1:16925", "127.0.0.1:16925"], "127.0.0.1:16925"),
        (["[::1]:16925", "127.0.0.2:1"], "127.0.0.2:1"),
        (["[::1]:16925"], "[::1]:16925"),
        (["0.0.0.0:16925"], "127.0.0.1:16925"),
        (["[::]:16925"], "[::1]:16925"),
        (["172.17.0.1:80", "169.254.170.2:80"], "169.254.170.2:80"),
        (["[fd00:ec2::23]:80"], "[fd00:ec2::23]:80"),
        (["172.17.0.1:16925"], None),
        (["169.254.171.2:16925", "[fd6c:9e1f:25b2::2]:16925"], None),
    ],
)
def test_the_address_that_is_named_is_one_that_sdks_take(bound: list[str], named: str | None) -> None:
    """Loopback, ECS's and EKS's addresses are taken for a container endpoint by SDKs, and no other is named."""
    assert listening.pointer(bound) == named


def test_what_is_bound_is_ours_and_a_wildcard_is_nobodys() -> None:
    """Every bound address is one that a request may be addressed to; a wildcard is no address."""
    bound = ["172.17.0.1:16925", "0.0.0.0:80", "[::]:80", "[fd00::1]:80"]
    assert listening.hosts(bound) == ("172.17.0.1", "fd00::1")


def test_an_address_that_the_machine_lacks_closes_no_other_listener() -> None:
    """With an address or family that is not there the others serve and it is told; with nothing else it is an error."""
    found, absent = listening.worker_sockets(config.Listen(http=("127.0.0.1:0", "192.0.2.1:0", "[2001:db8::1]:0")), {})
    try:
        assert [sock.getsockname()[0] for sock in found] == ["127.0.0.1"]
        assert ["192.0.2.1:0" in str(absent[0]), "[2001:db8::1]:0" in str(absent[1])] == [True, True]
    finally:
        for sock in found:
            sock.close()
    with pytest.raises(HostError, match=r"192\.0\.2\.1:0: cannot be bound"):
        listening.worker_sockets(config.Listen(http=("192.0.2.1:0",)), {})


def test_an_address_in_use_is_an_error_whatever_else_is_there() -> None:
    """What somebody else holds is not taken for absent: half an agent beside another one would be nobody's."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(HostError, match="cannot be bound") as caught:
            listening.worker_sockets(config.Listen(http=("127.0.0.1:0", taken)), {})
    assert not isinstance(caught.value, listening.AbsentAddressError)
    assert errno.EADDRINUSE not in listening.ABSENT


@pytest.mark.parametrize("is_left", [True, False], ids=["to look at what is left there", "to listen"])
def test_without_a_descriptor_a_socket_is_one_that_cannot_be_bound(tmp_path: Path, is_left: bool) -> None:
    """Whoever looks after it goes on to do so, and tries again: any other error would end that for good."""
    path = tmp_path / "control"
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as held:
        if is_left:
            with socket.socket(socket.AF_UNIX) as before:
                before.bind(str(path))
        try:
            most = max(int(one.name) for one in Path("/proc/self/fd").iterdir())
            resource.setrlimit(resource.RLIMIT_NOFILE, (most + 1, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    held.enter_context(socket.socket(socket.AF_UNIX))
            with pytest.raises(HostError, match="cannot be bound"):
                listening.unix_socket(path, 0o600, key="listen.control")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    listening.unix_socket(path, 0o600, key="listen.control").close()
