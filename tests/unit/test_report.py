"""The metrics keep what the alerts of the README watch."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

from prometheus_client.parser import text_string_to_metric_families

from agent.core.counters import Counters
from agent.core.store import Store
from agent.core.verdict import Accepted, Memory, Policy
from agent.report import ClockVitals, Vitals, metrics
from tests.fakes.clock import START
from tests.unit.core.worlds import HOUR, aws_credential, bundle, session


def values(store: Store, now: datetime, **labels: str) -> dict[str, float]:
    """Every sample whose labels are exactly ``labels``, by name without the prefix."""
    vitals = Vitals(
        started=START,
        wall_error_seconds=0,
        clock=ClockVitals(),
        sources={},
        refusal=None,
        memory_unwritten=False,
        keys=(),
        audiences=(),
    )
    text = metrics(store, Counters(), vitals, now).decode()
    return {
        sample.name.removeprefix("credential_agent_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels == labels
    }


def store(*, grace: timedelta = timedelta()) -> Store:
    return Store(Policy(grace=grace), Memory("i-1"), START, random.Random(7))


def with_session() -> Store:
    """A store that serves an AWS session of one hour, which nothing renews."""
    made = store()
    verdict = made.judge(bundle(session(hours=1)), START)
    assert isinstance(verdict, Accepted)
    made.accept(verdict, START)
    for work in made.due(START):
        if not work.key.is_instance:
            made.put(work, aws_credential(START, minutes=60), START)
    return made


def test_a_live_cloud_counts_down() -> None:
    """While a cloud is live its two clocks say how much is left."""
    found = values(with_session(), START + HOUR / 2, cloud="aws")

    assert found == {"expires_seconds": 1800, "horizon_seconds": 1800}


def test_an_ended_cloud_stays_at_zero() -> None:
    """After the end both clocks stay, at 0, so that an alert on them goes on through the outage."""
    found = values(with_session(), START + 2 * HOUR, cloud="aws")

    assert found == {"expires_seconds": 0, "horizon_seconds": 0}


def test_an_ended_cloud_is_in_that_state() -> None:
    """The state series is 1 for what a cloud is and 0 for what it is not, all the time."""
    served = with_session()

    for now, ended in ((START, 0), (START + 2 * HOUR, 1)):
        assert values(served, now, cloud="aws", state="ended") == {"state": ended}
        assert values(served, now, cloud="aws", state="live") == {"state": 1 - ended}


def test_a_pending_cloud_alarms_nobody() -> None:
    """While nothing is decided yet there is no clock to be at 0: a boot is no outage."""
    assert values(store(grace=HOUR), START, cloud="aws") == {}
