"""What is done apart ends apart, whatever comes of it."""

from __future__ import annotations

import os

import pytest

from agent.core.errors import HostError
from agent.host import apart


def test_what_a_child_says_is_returned_or_raised() -> None:
    """Its words come back; its errors are ours, and its end in the middle is a crash."""
    assert apart.apart(lambda: "done", what="it") == "done"

    def refused() -> str:
        raise HostError("not so")

    with pytest.raises(HostError, match="not so"):
        apart.apart(refused, what="it")


@pytest.mark.parametrize("length", range(len(b"12345678=first\0second")))
def test_what_a_child_has_not_said_whole_is_nothing(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """A child that is killed while it speaks (memory runs out, say) has crashed: half a list is another list."""
    monkeypatch.setattr(apart, "_write", lambda descriptor, data: os.write(descriptor, data[:length]))
    with pytest.raises(apart.CrashedError, match="SIGKILL"):
        apart.apart(lambda: "first\0second", what="it")


def test_a_child_that_nobody_hears_ends_all_the_same() -> None:
    """A child that cannot say what came of it must not go on as a second parent, from the middle of the first."""

    def unheard() -> str:
        os.closerange(3, 1024)  # the way to the parent among them
        return "done"

    with pytest.raises(apart.CrashedError, match="SIGKILL"):
        apart.apart(unheard, what="it")
