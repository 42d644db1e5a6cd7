"""What is believed of the word that the holder of the rules leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.host import arrival

NOW = 5000.0
WELL = {"beat": NOW - 5, "state": "led", "why": None, "notes": []}


def test_where_nothing_redirects_there_is_nothing_to_say(tmp_path: Path) -> None:
    """A laptop, a container: the directory is not there."""
    assert arrival.read(tmp_path / "absent/state.json", now=NOW) is None


def test_a_word_that_is_fresh_is_believed(tmp_path: Path) -> None:
    """And only one state of all means that it arrives."""
    path = tmp_path / "state.json"
    for state in arrival.STATES:
        path.write_text(json.dumps({**WELL, "state": state, "notes": ["n"]}))
        said = arrival.read(path, now=NOW)
        assert said == arrival.Arrival(state, None, ("n",))
        assert said.arrives is (state == "led")


@pytest.mark.parametrize("beat", [NOW - arrival.STALE_SECONDS - 1, NOW + 1, -1e9, 1e300, float("nan"), float("inf")])
def test_a_heart_that_has_stopped_is_not_believed(tmp_path: Path, beat: float) -> None:
    """Nor one that beats in the future, which is another boot's."""
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**WELL, "beat": beat}))
    said = arrival.read(path, now=NOW)
    assert said is not None
    assert said.state == "unknown"


@pytest.mark.parametrize("data", [None, b"", b"\xff", b"[]", b"{}", b"5", b'{"beat": "x"}', b"[" * 70_000])
def test_what_cannot_be_read_is_unknown(tmp_path: Path, data: bytes | None) -> None:
    """Expected and not there, cut off, something else: nobody is told that all is well, and nothing falls."""
    path = tmp_path / "state.json"
    if data is not None:
        path.write_bytes(data)
    said = arrival.read(path, now=NOW)
    assert said is not None
    assert said.state == "unknown"
    assert said.why


def test_the_hint_is_for_what_is_at_fault() -> None:
    """Where the rules lead and nobody answers, making the rules anew is no help."""
    assert "restart credential-agent;" in arrival.hint("unanswered")
    assert {arrival.hint(state) for state in arrival.STATES if state != "unanswered"} == {arrival.HINT}
