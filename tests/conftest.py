"""What xdist marks as one group runs on one worker, in order: machines of a module are made once, and not side by side.

xdist 3.8 appends a group's name to an item's id by an attribute that pytest 9.2 no longer has, says nothing, and spreads
the group over all workers. The hook goes when xdist does it again: ``test_a_group_stays_together`` passes without it.
"""

from __future__ import annotations

import pytest
from _pytest.nodeid import NodeId
from hypothesis import HealthCheck, settings

# Hypothesis measures no time: how long an example takes to be made and to be run is the machine's business.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Append the group's name where xdist distributes by it and has not done so."""
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        names = sorted({str(mark.args[0]) for mark in item.iter_markers("xdist_group")})
        if names and not item.nodeid.endswith(f"@{'_'.join(names)}"):
            item._id = NodeId.parse(f"{item.nodeid}@{'_'.join(names)}")
