"""A machine that runs may be copied whole: what the copy has in memory is the original's, and nobody is served it."""

from __future__ import annotations

import random
from datetime import datetime

from agent.core.model import Action, Bundle, Cloud, OnExpiry
from agent.core.verdict import Accepted, Key, Memory, Policy
from agent.core.view import Ended, Live, Pending
from tests.fakes.clock import START
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import HOUR, aws_credential, bundle, session

MACHINE = Key(Cloud.AWS, "instance")


def store() -> Store:
    return Store(Policy(), Memory("aws:i-1"), START, random.Random(7))


def take(it: Store, one: Bundle, now: datetime = START, *, resume: bool = False) -> None:
    verdict = it.evaluate(one, now, resume=resume)
    assert isinstance(verdict, Accepted), verdict
    it.accept(verdict, now)


def served(it: Store) -> str | None:
    answer = it.answer(Cloud.AWS, START)
    return answer.credential.access_key_id if isinstance(answer, Live) else None  # type: ignore[union-attr]


def test_what_was_in_force_is_not_served_in_a_doubt_and_goes_on_after_it() -> None:
    """Another name may be an error of the metadata service: nothing is forgotten by it."""
    it, first = store(), bundle(session())
    take(it, first)
    before = served(it)
    assert before is not None
    it.doubt("another name")
    assert isinstance(it.answer(Cloud.AWS, START), Pending)
    assert it.memory.active is not None
    it.adopt("aws:i-1")
    take(it, first, resume=True)
    assert served(it) == before


def test_nobody_becomes_the_machine_by_a_doubt() -> None:
    """What is set aside is not lost: its sender lets the machine's identity follow it at its end, and not before."""
    it, first = store(), bundle(session(), on_expiry=OnExpiry.FALLBACK)
    take(it, first)
    before = served(it)
    it.doubt("another name")
    for work in it.due(START):
        it.put(work, aws_credential(START, minutes=60), START)
    assert isinstance(it.answer(Cloud.AWS, START), Pending)
    it.adopt("aws:i-1")
    take(it, first, resume=True)
    assert served(it) == before


def test_a_doubt_takes_no_fallback_that_a_withdrawal_gave() -> None:
    """Nothing is set aside then: whichever machine this is, its own identity is what it has."""
    it = store()
    take(it, bundle(session()))
    take(it, bundle(seq=2, action=Action.WITHDRAW, on_expiry=OnExpiry.FALLBACK))
    it.doubt("another name")
    (work,) = [one for one in it.due(START) if one.key == MACHINE]
    it.put(work, aws_credential(START, minutes=60), START)
    assert served(it) is not None


def test_what_comes_during_a_doubt_is_in_force_and_stays_so() -> None:
    """It came to this machine, whoever that is; to doubt once more takes nothing away."""
    it = store()
    take(it, bundle(session()))
    it.doubt("another name")
    take(it, bundle(session(), seq=2))
    assert served(it) is not None
    it.doubt("another name still")
    assert served(it) is not None


def test_a_copy_takes_anew_what_is_meant_for_it_too_and_nothing_else() -> None:
    """A bundle of the whole fleet is brought to the copy as to any machine: by its signer, not by the original's memory."""
    it, fleet = store(), bundle(session())
    take(it, fleet)
    it.doubt("another name")
    it.reset("aws:i-2", START)
    assert served(it) is None
    assert it.memory.active is None
    take(it, fleet)
    assert served(it) is not None


def test_a_withdrawal_that_a_copy_brings_along_holds() -> None:
    """What was taken away stays so, whichever of the two it was brought to: no older bundle comes after it."""
    it = store()
    take(it, bundle(session(), seq=2))
    take(it, bundle(seq=3, action=Action.WITHDRAW))
    it.doubt("another name")
    it.reset("aws:i-2", START)
    assert not isinstance(it.evaluate(bundle(session(), seq=2), START), Accepted)
    assert isinstance(it.answer(Cloud.AWS, START), Ended)


def test_the_machines_own_credential_is_the_originals() -> None:
    """A copy asks its own metadata service for one, whether the name is another now, or not known."""
    for another in ("name", "doubt"):
        it = store()
        (work,) = [one for one in it.due(START) if one.key == MACHINE]
        it.put(work, aws_credential(START, minutes=360), START)
        assert served(it) is not None
        it.adopt("aws:i-1")
        assert served(it) is not None
        if another == "name":
            it.adopt("aws:i-2")
        else:
            it.doubt("no name")
        assert served(it) is None
        assert [one.key for one in it.due(START + HOUR) if one.key == MACHINE] == [MACHINE]
