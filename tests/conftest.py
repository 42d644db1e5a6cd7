"""What xdist marks as one group runs on one worker, in order: machines of a module are made once, and not side by side.

xdist 3.8 appends a group's name to an item's id by an attribute that pytest 9.2 no longer has, says nothing, and spreads
the group over all workers. The hook goes when xdist does it again: ``test_a_group_stays_together`` passes without it.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator

import pytest
import structlog
from _pytest.nodeid import NodeId
from hypothesis import HealthCheck, settings

# Hypothesis measures no time: how long an example takes to be made and to be run is the machine's business.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

LONGEST_SOCKET_PATH = 107
"""The kernel's limit, without the NUL (unix(7))."""
DEEPEST_SOCKET = "/pytest-of-u/pytest-0/popen-gw0/test_what_ended_meanwhile_is_n0/w/run/courier.sock"
"""Where a test's agent has one, below the directory for temporary files: as short as pytest and xdist can make it."""


def pytest_configure(config: pytest.Config) -> None:
    """Say at once where no test can have its sockets, and not in a thousand failures.

    Raises:
        pytest.UsageError: the directory for temporary files has too long a name.
    """
    place = tempfile.gettempdir()
    room = LONGEST_SOCKET_PATH - len(DEEPEST_SOCKET)
    if not config.option.basetemp and len(os.fsencode(place)) > room:
        raise pytest.UsageError(
            f"TMPDIR: expected a directory whose name has at most {room} bytes, got {place}: tests make sockets below it,"
            f" and the kernel takes no longer path than {LONGEST_SOCKET_PATH}; try: TMPDIR=/tmp make test"
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Append the group's name where xdist distributes by it and has not done so."""
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        names = sorted({str(mark.args[0]) for mark in item.iter_markers("xdist_group")})
        if names and not item.nodeid.endswith(f"@{'_'.join(names)}"):
            item._id = NodeId.parse(f"{item.nodeid}@{'_'.join(names)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is marked as root's is skipped where nobody is root. A condition of its own comes first, and says more."""
    if os.geteuid() != 0 and item.get_closest_marker("root") is not None:
        pytest.skip("needs root")


def _signals() -> dict[str, object]:
    return {
        # Without SIGRTMIN: what wakes a thread that closes stays as long as that (agent/serve/handed.py).
        **{one.name: signal.getsignal(one) for one in signal.Signals if one < signal.SIGRTMIN},
        "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    }


@pytest.fixture(autouse=True)
def _signals_are_left_as_they_were_found() -> Iterator[None]:
    """Each test does so.

    What one leaves behind is inherited by whatever another forks: a signal was heeded before the pause(2) that it was
    meant to end, and a test waited for a minute in one run of thousands.
    """
    before = _signals()
    yield
    assert _signals() == before


@pytest.fixture(autouse=True)
def _logging_is_left_as_it_was_found() -> Iterator[None]:
    """Each test has it put back.

    An agent that reloads in a test's process sets up the process's logging, on the standard error of that moment. Where
    that was the test's own (``capsys``), it was closed with the test, and whatever logged next in that process failed.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configured, before = structlog.is_configured(), structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    if structlog.get_config() != before:
        structlog.reset_defaults()
        if configured:
            structlog.configure(**before)
