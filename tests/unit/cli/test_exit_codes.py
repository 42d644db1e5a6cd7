"""What a calling script learns from the exit status: the family of the error, in the words of sysexits.h."""

from __future__ import annotations

import os

import pytest

from agent import cli
from agent.core import errors


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UsageError("x"), os.EX_USAGE),
        (errors.ConfigError("x"), os.EX_CONFIG),
        (errors.SealError("x"), os.EX_DATAERR),
        (errors.HostError("x"), os.EX_OSERR),
        (errors.Denied("x"), os.EX_UNAVAILABLE),
        (errors.Transient("x"), os.EX_UNAVAILABLE),
        (errors.UnreadableError("x"), os.EX_UNAVAILABLE),
        (errors.UpstreamError("x"), os.EX_UNAVAILABLE),
        (errors.WireError("x"), os.EX_SOFTWARE),  # whoever calls a codec catches it
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_family_has_its_status(error: errors.AgentError, status: int) -> None:
    """What was asked wrongly, what is refused and what is broken are different statuses."""
    assert cli.exit_code(error) == status


CAUGHT = {errors.EvidenceError, errors.WireError, errors.TargetError, errors.SnapshotError}
"""The families that no command lets out: whoever calls the codec, or asks the worker, catches them."""


def test_no_family_is_taken_for_a_defect_of_ours() -> None:
    """A family that is added has a status of its own; 70 is for what nobody foresaw."""
    families = set(errors.AgentError.__subclasses__())
    assert {family for family in families if cli.exit_code(family.__new__(family)) == os.EX_SOFTWARE} == CAUGHT
