"""What is done apart ends apart, whatever comes of it."""

from __future__ import annotations

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


def test_a_child_that_nobody_hears_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent was killed: it must not go on as a second one, from the middle of the first."""

    def unheard(_descriptor: int, _data: bytes) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(apart, "_write", unheard)
    with pytest.raises(apart.CrashedError, match="SIGKILL"):
        apart.apart(lambda: "done", what="it")
