"""What a connection costs the process that answers workers, in memory of its own, counted from outside.

`agent/CONFIGURATION.md` (`max_connections`) promises about 10 kB for each, and 16 MB for all that is half read or half
written together. The bounds here are below twice what was measured (in brackets), so that a connection that comes to
cost twice as much is noticed.
"""

from __future__ import annotations

import os
import re
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.system.harness import Agent, World, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the agent shows its memory to no user")

COUNT: Final = 1000
LINE: Final = b"GET /latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\n"
WHOLE_HEAD: Final = LINE + b"".join(b"X-%d: %s\r\n" % (number, b"a" * 1000) for number in range(15))
"""All but its end, and nearly all that a head may have."""

SENT: Final = {
    "nothing": (b"", 2_800),  # (1,400)
    "a byte": (b"G", 5_200),  # (2,700)
    "half a head": (LINE, 6_000),  # (3,100)
    "half a body": (b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc", 7_800),  # (4,000)
}
MOST_TOGETHER: Final = 40_000_000  # (23,000,000: 16 MB of theirs, and what a thousand connections cost beside it)


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8 * COUNT:
        pytest.skip(f"needs {8 * COUNT} descriptors, may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (8 * COUNT, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    (tmp_path / "w").mkdir()
    with World(tmp_path / "w").agent({"identity": {"grace_seconds": 0.0}}) as agent:
        agent.ready()
        agent.every_process()
        agent.ask("/latest/meta-data/")
        yield agent
        assert agent.stop() == 0


def own_bytes(pid: int) -> int:
    """The memory that this process shares with nobody."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Private_(?:Clean|Dirty): *(\d+) kB", text, re.MULTILINE))) * 1024


def unread(port: int) -> int:
    """How many bytes wait to be read, and connections to be accepted, at that port."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[4].partition(":")[2], 16) for row in rows if row[1].endswith(f":{port:04X}"))


def opened(agent: Agent, stack: ExitStack, data: bytes, count: int = COUNT) -> None:
    """So many more connections on which so much was sent, and read."""
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(agent.address))
        try:
            client.sendall(data)
        except OSError:
            continue  # it had to make room for another
    until(lambda: unread(agent.address[1]) == 0, what="all to be read")
    agent.ask("/latest/meta-data/")  # and dealt with


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.parametrize(("data", "most"), SENT.values(), ids=SENT)
def test_a_connection_costs_no_more_than_is_promised(agent: Agent, data: bytes, most: int) -> None:
    """A thousand that are open, or half sent, cost what is promised for each, and nothing once they have gone."""
    pid = agent.processes[-1]
    before, files = own_bytes(pid), open_files(pid)
    for _ in range(2):
        with ExitStack() as stack:
            opened(agent, stack, data)
            used = own_bytes(pid) - before
            if open_files(pid) < files + COUNT // 2:
                pytest.skip("so starved is this machine that they were over before they were counted")
            assert used < most * COUNT
        until(lambda: open_files(pid) <= files + 2, what="them to be gone")


def test_what_all_send_together_is_bounded(agent: Agent) -> None:
    """Three thousand heads at their limit, 45 MB, of which no more is kept than is promised."""
    pid = agent.processes[-1]
    before = own_bytes(pid)
    with ExitStack() as stack:
        for _ in range(3):
            opened(agent, stack, WHOLE_HEAD)
            assert own_bytes(pid) - before < MOST_TOGETHER
