"""What xdist marks as one group runs on one worker, in order: machines of a module are made once, and not side by side.

xdist 3.8 appends a group's name to an item's id by an attribute that pytest 9.2 no longer has, says nothing, and spreads
the group over all workers. Goes when xdist does it again: ``test_a_group_stays_together`` passes without this file.
"""

from __future__ import annotations

import pytest
from _pytest.nodeid import NodeId


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Append the group's name where xdist distributes by it and has not done so."""
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        names = sorted({str(mark.args[0]) for mark in item.iter_markers("xdist_group")})
        if names and not item.nodeid.endswith(f"@{'_'.join(names)}"):
            item._id = NodeId.parse(f"{item.nodeid}@{'_'.join(names)}")
