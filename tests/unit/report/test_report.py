"""The metrics keep what the alerts of the operators' page watch."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.core.counters import Counters
from agent.core.model import Cloud
from agent.core.source import ELSEWHERE
from agent.core.verdict import Accepted, Memory, Policy
from agent.host.arrival import STATES, Arrival
from agent.host.process import Usage
from agent.report import ClockVitals, ServerVitals, Vitals, metrics, status
from tests.fakes.clock import START
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import HOUR, aws_credential, bundle, session

VITALS = Vitals(
    started=START,
    wall_error_seconds=0,
    clock=ClockVitals(),
    sources={},
    refusal=None,
    memory_unwritten=False,
    keys=(),
    audiences=(),
)


def values(store: Store, now: datetime, **labels: str) -> dict[str, float]:
    """Every sample whose labels are exactly ``labels``, by name without the prefix."""
    text = metrics(store, Counters(), VITALS, now).decode()
    return {
        sample.name.removeprefix("credential_agent_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels == labels
    }


def store(*, grace: timedelta = timedelta(), fallback: frozenset[Cloud] = frozenset(Cloud)) -> Store:
    return Store(Policy(grace=grace, fallback=fallback), Memory("i-1"), START, random.Random(7))


def with_session() -> Store:
    """A store that serves an AWS session of one hour, which nothing renews."""
    made = store()
    verdict = made.evaluate(bundle(session(hours=1)), START)
    assert isinstance(verdict, Accepted)
    made.accept(verdict, START)
    for work in made.due(START):
        if not work.key.is_instance:
            made.put(work, aws_credential(START, minutes=60), START)
    return made


def test_a_live_cloud_counts_down() -> None:
    """While a cloud is live its two clocks say how much is left, and the two instants stay where they are."""
    found = values(with_session(), START + HOUR / 2, cloud="aws")

    end = (START + HOUR).timestamp()
    assert found == {
        "expires_seconds": 1800, "horizon_seconds": 1800, "expiry_timestamp_seconds": end, "horizon_timestamp_seconds": end,
    }  # fmt: skip


def test_an_ended_cloud_stays_at_zero() -> None:
    """After the end clocks and instants stay, at 0, so that an alert on them goes on through the outage."""
    found = values(with_session(), START + 2 * HOUR, cloud="aws")

    assert found == dict.fromkeys(
        ("expires_seconds", "horizon_seconds", "expiry_timestamp_seconds", "horizon_timestamp_seconds"), 0
    )


def test_an_ended_cloud_is_in_that_state() -> None:
    """The state series is 1 for what a cloud is and 0 for what it is not, all the time."""
    served = with_session()

    for now, ended in ((START, 0), (START + 2 * HOUR, 1)):
        assert values(served, now, cloud="aws", state="ended") == {"state": ended}
        assert values(served, now, cloud="aws", state="live") == {"state": 1 - ended}


def test_a_cloud_that_bundles_never_bring_has_not_ended() -> None:
    """Where nothing falls back, a cloud is absent while bundles decide only the other, and has ended before any did."""
    served = store(fallback=frozenset())
    assert values(served, START, cloud="gcp", state="ended") == {"state": 1}
    verdict = served.evaluate(bundle(session(hours=1)), START)
    assert isinstance(verdict, Accepted)
    served.accept(verdict, START)

    assert values(served, START, cloud="gcp", state="ended") == {"state": 0}
    assert values(served, START, cloud="gcp", state="absent") == {"state": 1}
    assert values(served, START, cloud="gcp") == {}
    assert status(served, Counters(), VITALS, START)["clouds"]["gcp"]["state"] == "absent"
    # A lease or a session of the other that ends is an end of that one alone.
    later = START + 2 * HOUR
    assert values(served, later, cloud="aws", state="ended") == {"state": 1}
    assert values(served, later, cloud="gcp", state="ended") == {"state": 0}


def test_a_pending_cloud_alarms_nobody() -> None:
    """While nothing is decided yet there is no clock to be at 0: a boot is no outage."""
    assert values(store(grace=HOUR), START, cloud="aws") == {}


def test_who_answers_workers_is_in_both() -> None:
    """Its process, since when, what it serves and how often it was replaced; one that is behind counts for nothing."""
    one = ServerVitals(pid=7, since=START, version=3, newest=True, apart=True)
    old = ServerVitals(pid=6, since=START, version=2, newest=False, apart=True)
    vitals = msgspec.structs.replace(
        VITALS,
        servers=(old, one),
        replaced=2,
        processes={"server": Usage(resident_bytes=5, cpu_seconds=1.5, descriptors=0)},
    )
    text = metrics(store(), Counters(), vitals, START).decode()
    for line in ('servers{process="server"} 1.0', 'servers{process="agent"} 0.0', "server_replacements_total 2.0",
                 'resident_memory_bytes{process="server"} 5.0'):  # fmt: skip
        assert f"credential_agent_{line}" in text
    assert "open_descriptors{" not in text  # what is not known is not said to be none
    document = status(store(), Counters(), vitals, START)
    assert [(told["pid"], told["version"], told["newest"], told["apart"]) for told in document["servers"]] == [
        (6, 2, False, True), (7, 3, True, True),
    ]  # fmt: skip
    assert document["servers_replaced"] == 2


@pytest.mark.parametrize("state", STATES)
def test_what_becomes_of_a_workers_request_is_in_both(state: str) -> None:
    """One series per state, 1 for the one it is in; the document says whether it arrives, and why not."""
    arrival = Arrival(state, "because", ("no user 'x'",))
    vitals = msgspec.structs.replace(VITALS, redirect=arrival)
    text = metrics(store(), Counters(), vitals, START).decode()
    assert [s for s in STATES if f'credential_agent_redirect_state{{state="{s}"}} 1.0' in text] == [state]
    assert status(store(), Counters(), vitals, START)["redirect"] == {
        "state": state, "arrives": state == "led", "why": "because", "notes": ["no user 'x'"],
    }  # fmt: skip


def test_without_a_redirection_nobody_is_told_of_one() -> None:
    """A laptop, a container, a demo: no series, no line."""
    assert "redirect_state{" not in metrics(store(), Counters(), VITALS, START).decode()
    assert status(store(), Counters(), VITALS, START)["redirect"] is None


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ({"ec2-user-data": f"no ec2 metadata service: google{ELSEWHERE}", "gce-attribute": "ok"}, {"gce-attribute": 1}),
        (
            {
                "ec2-user-data": "ok",
                "gce-attribute": f"no gce metadata server: ec2{ELSEWHERE}",
                "file": "it is not there",
            },
            {"ec2-user-data": 1, "file": 0},
        ),
        # By itself it is a mistake, and so is what is broken here.
        ({"ec2-user-data": f"no ec2 metadata service: google{ELSEWHERE}"}, {"ec2-user-data": 0}),
        ({"ec2-user-data": "status 503", "gce-attribute": "ok"}, {"ec2-user-data": 0, "gce-attribute": 1}),
    ],
)
def test_a_source_of_the_other_cloud_is_not_down(sources: dict[str, str], told: dict[str, float]) -> None:
    """An image for both clouds has a source of each; the one that cannot be here raises no alarm."""
    text = metrics(store(), Counters(), msgspec.structs.replace(VITALS, sources=sources), START).decode()
    found = {
        sample.labels["source"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "credential_agent_source_up"
    }
    assert found == told
