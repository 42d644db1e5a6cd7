"""Whatever lies where the process before us should have left what it knew: no crash, and no time that is nonsense."""

from __future__ import annotations

import json
import os
import random
import tempfile
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import bundle as bundles
from agent import keys
from agent.core.model import Cloud
from agent.core.secret import Secret
from agent.core.verdict import Accepted, Failure, Key, Mark, Memory, Policy
from agent.core.view import Facts
from agent.daemon import handover, kept
from agent.host.clock import SystemClock
from agent.host.systemd import Passed
from agent.identity import leftovers
from agent.identity.events import Remnant, Waiting
from tests.fakes.clock import START
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import HOUR, aws_credential, bundle, google_token, role

BOOT = 500.0
TRUST = bundles.Trust.parse([])
HOSTILE: list[Any] = [
    None, True, 0, 1, -1, 2, 1 << 62, -(1 << 62), 1e308, -1e308, 0.5, "", "x", "aws", "gcp", "=", "\ud800", [], {}, [{}],
    "0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "8999-12-31T23:59:59Z", "9999-12-31T23:59:59Z",
    "2026-11-24T12:00:00", "2026-11-24T12:00:00+14:00", "2026-11-24T12:00:00-00:01", {"aws": "fallback"},
]  # fmt: skip


def clock(elapsed: float = 60.0) -> SystemClock:
    return SystemClock(
        boottime=lambda: BOOT + elapsed, wall=lambda: START.timestamp() + elapsed, synchronised=lambda: True
    )


def store(memory: Memory) -> Store:
    made = Store(Policy(grace=timedelta(minutes=1)), memory, clock().now(), random.Random(1))
    verdict = made.evaluate(bundle(role("r")), clock().now())
    if isinstance(verdict, Accepted):
        made.accept(verdict, clock().now())
    return made


def filled() -> Store:
    made = store(Memory("i-1"))
    now = clock().now()
    for _ in range(2):
        for work in made.due(now):
            token = work.key.cloud is Cloud.GCP
            made.put(work, google_token(now) if token else aws_credential(START), now, ends=now + HOUR)
    return made


def left_behind() -> dict[str, bytes]:
    """What a real process leaves, with everything in it that there can be."""
    made, then = filled(), clock()
    digest = made.bundle.digest if made.bundle is not None else ""
    failure = Failure("x", "y", denied=False, at=then.now())
    remnant = Remnant(Cloud.AWS, digest, aws_credential(START), then.now() + HOUR, "n", then.now() + HOUR)
    ephemeral = keys.ephemeral_key()
    whole = handover.Handover(
        uptime=then.uptime(),
        now=then.now(),
        began=1.0,
        memory=made.memory,
        sealed=handover.encoded(b"sealed"),
        signed=handover.encoded(b"signed"),
        recipient="kid",
        audiences=["a"],
        facts=Facts(region="eu-central-1"),
        files={"/a": "b"},
        ephemeral=handover.jwk((ephemeral,)),
        token_key=handover.encoded(bytes(32)),
        tokens=[Secret("t" * 32)],
        waiting=[Waiting(Key(Cloud.AWS, "r"), digest, 3, then.now(), failure)],
        remnants=[handover.remnant(remnant)],
    )
    return {handover.NAME: handover.encode(whole), kept.NAME: kept.encode(made, then)}


LEFT = left_behind()


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, one in inside for place in places(one, (*here, key)))]


def put(value: Any, place: tuple[Any, ...], what: Any) -> Any:
    if not place:
        return what
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = put(copy[place[0]], place[1:], what)
    return copy


@st.composite
def spoilt(draw: st.DrawFn, name: str) -> bytes:
    """What was left, with some of its values replaced, and cut short or not."""
    value = json.loads(LEFT[name])
    for _ in range(draw(st.integers(0, 3))):
        value = put(value, draw(st.sampled_from(places(value))), draw(st.sampled_from(HOSTILE)))
    data = json.dumps(value).encode()
    return data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))]


def handed(data: bytes) -> handover.Handover | None:
    """By way of a descriptor, as it comes."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return handover.take(Passed({}, {handover.NAME: os.dup(file.fileno())}), clock())


def go_on(left: handover.Handover) -> Store:
    """All that a start does with it."""
    left.key()
    for text in (left.sealed, left.signed, left.token_key):
        handover.decoded(text)
    memory, _ = handover.reconcile(left, Memory("i-1", (Mark("i", "s", 1, "d"),)), b"")
    next_ = store(memory)
    remnants, waiting = left.rest(clock(), TRUST)
    now = clock().now()
    for remnant in remnants:
        next_.apply(remnant, now)
    for one in waiting:
        next_.apply(one, now)
    return next_


def look(next_: Store) -> None:
    """It answers, and can be handed on."""
    for later in (timedelta(0), HOUR, 30 * HOUR):
        now = clock().now() + later
        next_.tick(now)
        next_.due(now)
        for cloud in Cloud:
            next_.answer(cloud, now)
    kept.encode(next_, clock())
    leftovers.waiting(next_.state)


@given(spoilt(handover.NAME))
def test_a_spoilt_handover_does_not_keep_it_from_starting(data: bytes) -> None:
    """Whatever is in it, the start goes on, and answers."""
    left = handed(data)
    if left is not None:
        look(go_on(left))


@given(spoilt(kept.NAME))
def test_spoilt_credentials_do_not_keep_it_from_starting(data: bytes) -> None:
    """Whatever is in it, the start goes on, answers, and believes no time but one that a witness could say."""
    fresh = clock()
    left = kept.decode(data, fresh)
    if left is None:
        return
    left.sync_clock(fresh)
    assert abs(fresh.now() - START) < HOUR
    next_ = store(Memory("i-1"))
    for holding in left.holdings("i-1", fresh):
        next_.take(holding, fresh.now())
    look(next_)


def test_the_whole_is_taken() -> None:
    """What the others spoil is good: else they would prove nothing."""
    left = handed(LEFT[handover.NAME])
    assert left is not None
    assert left.key() is not None
    assert [len(part) for part in left.rest(clock(), TRUST)] == [1, 1]
    found = kept.decode(LEFT[kept.NAME], clock())
    assert found is not None
    assert len(found.holdings("i-1", clock())) == 3


@pytest.mark.parametrize("version", [0, 2, 1 << 62, -1, "1", None, 1.5])
def test_another_version_is_another_format(version: Any) -> None:
    """What another version wrote is not guessed at, whatever else it says."""
    for name, take in ((handover.NAME, handed), (kept.NAME, lambda data: kept.decode(data, clock()))):
        spoilt_ = {**json.loads(LEFT[name]), "version": version}
        assert take(json.dumps(spoilt_).encode()) is None


def test_what_a_later_one_of_the_same_version_adds_is_ignored() -> None:
    """A downgrade within one version loses nothing."""
    for name, take in ((handover.NAME, handed), (kept.NAME, lambda data: kept.decode(data, clock()))):
        assert take(json.dumps({**json.loads(LEFT[name]), "more": {"a": 1}}).encode()) is not None


def test_one_part_that_cannot_be_reckoned_with_costs_only_itself() -> None:
    """An instant at the end of all years takes with it what bears it, and neither the bundle nor its memory."""
    value = json.loads(LEFT[handover.NAME])
    for place in (("remnants", 0, "ends"), ("waiting", 0, 3), ("waiting", 0, 4, "at")):
        value = put(value, place, "9999-12-31T23:59:59Z")
    left = handed(json.dumps(value).encode())
    assert left is not None
    assert left.rest(clock(), TRUST) == ([], [])
    assert left.sealed is not None
    assert left.memory.marks
    assert left.now.tzinfo == UTC
    assert isinstance(left.now, datetime)
