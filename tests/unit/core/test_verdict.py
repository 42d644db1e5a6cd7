"""What a verdict is made of: which mark a stream has, and whose a slot is."""

from __future__ import annotations

import pytest

from agent.core.model import INSTANCE, Cloud
from agent.core.verdict import Key, Mark, Memory

MARKS = (Mark("cp", "team", 7, "a"), Mark("cp", "other", 3, "b"), Mark("another", "team", 9, "c"))


@pytest.mark.parametrize("mark", MARKS)
def test_a_stream_has_its_own_mark(mark: Mark) -> None:
    """Issuer and subject together: neither another subject of the issuer nor the subject of another issuer counts."""
    assert Memory("i-1", MARKS).mark(mark.issuer, mark.subject) is mark


@pytest.mark.parametrize(("issuer", "subject"), [("another", "other"), ("cp", ""), ("", "team"), ("team", "cp")])
def test_a_stream_that_brought_nothing_has_none(issuer: str, subject: str) -> None:
    """What was accepted from others is no bound for it."""
    assert Memory("i-1", MARKS).mark(issuer, subject) is None
    assert Memory("i-1").mark(issuer, subject) is None


@pytest.mark.parametrize("cloud", list(Cloud))
@pytest.mark.parametrize("grant", ["reader", "", INSTANCE.upper()])
def test_the_machines_own_slot_is_told_from_those_of_grants(cloud: Cloud, grant: str) -> None:
    """By the name alone that no grant may have."""
    assert Key(cloud, INSTANCE).is_instance
    assert not Key(cloud, grant).is_instance
