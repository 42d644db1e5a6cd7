"""Which commands are done: whoever asks for something is told what was done after he asked."""

from __future__ import annotations

from agent.host.heard import APPLY, CLOSE, RELOAD, Heard


def test_a_plan_answers_what_was_heard_before_it_was_begun_and_nothing_later() -> None:
    """The plan under way read the configuration before; only the next one does what is asked now."""
    heard = Heard(1.0)
    heard.begin()
    assert heard.done == {CLOSE: 1.0}
    heard.end()
    assert heard.done == {CLOSE: 1.0, APPLY: 1.0, RELOAD: 1.0}
    heard.begin()
    heard.hear({APPLY}, 2.0)
    heard.end()
    assert heard.done[APPLY] == 1.0
    heard.begin()
    heard.hear({APPLY, RELOAD}, 3.0)
    heard.end()
    assert (heard.done[APPLY], heard.done[RELOAD]) == (2.0, 1.0)
    heard.begin()
    heard.end()
    assert (heard.done[APPLY], heard.done[RELOAD]) == (3.0, 3.0)


def test_closing_waits_for_no_plan() -> None:
    """It is done when it was tried; no plan that ends meanwhile answers it."""
    heard = Heard(1.0)
    heard.begin()
    heard.hear({CLOSE}, 2.0)
    heard.end()
    assert heard.done[CLOSE] == 1.0
    heard.close()
    assert heard.done == {CLOSE: 2.0, APPLY: 1.0, RELOAD: 1.0}
