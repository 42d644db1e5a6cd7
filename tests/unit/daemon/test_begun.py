"""Which servers a master may say that it has begun: no more than an honest one has, and each once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agent.daemon.begun import Begun
from agent.server import words

ALL = range(1, words.MOST_SERVERS + 1)


def full() -> Begun:
    """As many as there may be were said to be alive; none of them is linked."""
    begun = Begun()
    begun.alive.update(ALL)
    return begun


def test_no_more_are_believed_than_an_honest_master_has() -> None:
    """One that is alive may be linked, once, however many there are; a new one only once another has ended."""
    begun = full()
    assert not begun.may_link(len(ALL) + 1)
    assert begun.may_link(1)
    begun.link(words.LINK, 1)
    assert not begun.may_link(1)
    begun.ended(2)
    assert begun.may_link(2)
    assert begun.may_link(len(ALL) + 1)


@pytest.mark.parametrize(
    ("alive", "word", "answers"),
    [(False, words.LINK, True), (True, words.LINK, False), (False, words.SECOND, False), (True, words.SECOND, False)],
)
def test_who_answers_from_now_on(alive: bool, word: bytes, answers: bool) -> None:
    """One of before answers already, and one that stands by answers nobody yet."""
    begun = Begun()
    begun.alive.update({5} if alive else ())
    assert begun.link(word, 5) is answers
    assert begun.stands_by(5) is (word == words.SECOND)


@pytest.mark.parametrize("how", [Begun.link, Begun.unlinked])
def test_after_the_first_link_none_is_of_before(how: Callable[[Begun, bytes, int], object]) -> None:
    """Whether there was a descriptor for that link or not."""
    begun = Begun()
    assert not begun.has_linked
    how(begun, words.LINK, 5)
    assert begun.has_linked
    assert begun.alive == {5}
