"""The alert rules and the dashboard, on what we export: Prometheus' own tools read both, and each rule is tried."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.test_events import families, rows, scrape, ticked

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "systemd" / "monitoring" / "alerts.yml"
DASHBOARD = ROOT / "systemd" / "monitoring" / "dashboard.json"
FETCHED = ROOT / "tests" / "conformance" / "prometheus" / ".build" / "usr" / "bin"
PROMTOOL = FETCHED / "promtool" if (FETCHED / "promtool").exists() else Path(shutil.which("promtool") or "/nonexistent")

needs_promtool = pytest.mark.skipif(not PROMTOOL.exists(), reason="run tests/conformance/prometheus/setup (needs apt)")

SCRAPER = {"job", "instance"}
"""The labels that a Prometheus adds to all that it scrapes."""
NAME = re.compile(r"\bcredential_agent_[a-z_]+")


def promtool(*arguments: str | Path, text: str | None = None) -> None:
    """Run it; what it says is the failure's message."""
    done = subprocess.run([PROMTOOL, *arguments], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr  # `check metrics` says there what it would write otherwise


def alerts() -> dict[str, dict[str, Any]]:
    """The rules by name."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Each query of the rules and of the dashboard, with what it is called."""
    for name, rule in alerts().items():
        yield name, rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def labels_in(expression: str) -> set[str]:
    """The labels that a query names: in braces, and in ``by``, ``on`` and the like."""
    found = set()
    for inside in re.findall(r"\{([^}]*)\}", expression):
        found |= set(re.findall(r"(\w+)\s*[=!]~?=?\s*\"", inside))
    for inside in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression):
        found |= {word.strip() for word in inside.split(",")}
    return found


# -- the names ---------------------------------------------------------------------------------------------------------


def test_what_is_watched_is_exported() -> None:
    """Rules and dashboard name metrics and labels that a scrape has: none watches something that was renamed."""
    exported = families()
    watched = {name for _, expression in expressions() for name in NAME.findall(expression)}
    assert len(watched) > 15
    assert sorted(watched - set(exported)) == []
    for title, expression in expressions():
        known = SCRAPER | {label for name in NAME.findall(expression) for label in exported[name][1]}
        assert sorted(labels_in(expression) - known) == [], title


def test_what_alerts_watch_stays() -> None:
    """An alert rule is of metrics that are promised to stay."""
    stable = {name for row in rows("Metrics") for name in ticked(row[0]) if row[-1] == "stable"}
    assert sorted({name for rule in alerts().values() for name in NAME.findall(rule["expr"])} - stable) == []


def test_each_alert_waits_and_says_what_to_do() -> None:
    """A rule has a duration, a severity, a summary that names the worker, and a next step."""
    for name, rule in alerts().items():
        assert re.fullmatch(r"[1-9][0-9]*[mh]", rule["for"]), name
        assert rule["labels"]["severity"] in {"warning", "critical"}, name
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"], name
        assert rule["annotations"]["action"], name


def test_each_panel_stands_by_itself() -> None:
    """No two panels share an id or a place, and each has a title and a query."""
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        assert panel["title"]
        assert panel["targets"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


# -- Prometheus' own tools ---------------------------------------------------------------------------------------------


@needs_promtool
def test_the_metrics_follow_the_conventions() -> None:
    """`promtool check metrics` has nothing to say of a scrape: names, units, types and help are as Prometheus wants."""
    promtool("check", "metrics", text=scrape())


@needs_promtool
def test_the_rules_are_rules() -> None:
    """`promtool check rules` reads them, and finds no two that are the same."""
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


@needs_promtool
def test_the_dashboards_queries_are_queries(tmp_path: Path) -> None:
    """Each query of the dashboard is PromQL, with Grafana's variables filled in."""
    queries = [
        {"record": f"panel:{number}:{index}", "expr": target["expr"].replace("$__rate_interval", "5m")}
        for number, panel in enumerate(panels())
        for index, target in enumerate(panel["targets"])
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": queries}]}))
    promtool("check", "rules", file)


# -- each rule, tried --------------------------------------------------------------------------------------------------


class Tried(NamedTuple):
    """One rule, once with series that alarm and once with such that are well; a value each minute.

    Attributes:
        bad: by series without ``credential_agent_``: values, in promtool's notation.
        early: the minute at which it is true and still waits.
        late: the minute at which it alarms.
        good: values under which it never does, for the same series.
        labels: of the alarm, beside the scraper's.
        summary: behind the name of the worker.
    """

    bad: dict[str, str]
    early: int
    late: int
    good: tuple[str, ...]
    labels: dict[str, str]
    summary: str


AWS = {"cloud": "aws"}
ROLE = {"cloud": "aws", "grant": "role"}
TRIED = {
    "CredentialAgentGone": Tried(
        {'build_info{python="3.11.2",version="1"}': "1x40 _x40"}, 48, 54, ("1x80",), {"python": "3.11.2", "version": "1"},
        "the agent no longer says anything",
    ),
    "CredentialAgentStale": Tried(
        {"written_timestamp_seconds": "0x20"}, 3, 6, ("0+60x20",), {}, "the metrics are 6m 0s old",
    ),
    "CredentialAgentRestarting": Tried(
        {"start_timestamp_seconds": "0 60 120 180 240 240x20"}, 4, 6, ("0 60 60x20",), {},
        "the agent was started 4 times within 15 minutes",
    ),
    "CredentialAgentIdentityEnded": Tried(
        {'state{cloud="aws",state="ended"}': "1x20"}, 0, 2, ("0x20",), {"state": "ended", **AWS},
        "requests for aws are refused",
    ),
    "CredentialAgentPending": Tried(
        {'state{cloud="aws",state="pending"}': "1x20"}, 4, 6, ("1x3 0x17",), {"state": "pending", **AWS},
        "requests for aws have been waiting for 5 minutes",
    ),
    "CredentialAgentExpiresSoon": Tried(
        {'expiry_timestamp_seconds{cloud="aws"}': "1200x20", 'renewal_failing{cloud="aws",grant="role"}': "1x20"}, 7, 10,
        ("1200x20", "0x20"), AWS, "the aws credential ends in 10m 0s and is not renewed",
    ),
    "CredentialAgentHorizonNear": Tried(
        {'horizon_timestamp_seconds{cloud="aws"}': "2400x20"}, 13, 20, ("7200x20",), AWS,
        "aws ends in 20m 0s if nothing new arrives",
    ),
    "CredentialAgentRenewalDenied": Tried(
        {'renewal_failing{cloud="aws",grant="role"}': "2x20"}, 4, 6, ("1x20",), ROLE, "aws refuses to issue role",
    ),
    "CredentialAgentRenewalFailing": Tried(
        {'renewal_failing{cloud="aws",grant="role"}': "1x20"}, 14, 16, ("1x12 0 1x7",), ROLE,
        "role of aws has not been renewed for 15 minutes",
    ),
    "CredentialAgentRedirectBroken": Tried(
        {'redirect_state{state="led"}': "0x20"}, 1, 3, ("1x20",), {"state": "led"},
        "workers' requests do not arrive at the agent",
    ),
    "CredentialAgentSuspiciousRequests": Tried(
        {'requests_refused_total{reason="host"}': "0x20 1x20"}, 21, 23, ("4x40",), {"reason": "host"},
        "requests are refused as no program of a worker sends them (host)",
    ),
    "CredentialAgentCrowded": Tried(
        {'requests_refused_total{reason="room"}': "0x20 9+9x20"}, 22, 27, ("4x40",), {"reason": "room"},
        "connections are ended because there is no room",
    ),
    "CredentialAgentBundlesRefused": Tried(
        {'bundles_refused_total{code="signer"}': "0x20 1x20"}, 21, 23, ("1x40",), {"code": "signer"},
        "bundles are refused (signer)",
    ),
    "CredentialAgentSourceDown": Tried(
        {'source_up{source="file"}': "0x20"}, 9, 11, ("1x20",), {"source": "file"}, "the source file is broken",
    ),
    "CredentialAgentKeyOverwritten": Tried(
        {"key_overwritten_total": "0x20 1x20"}, 21, 23, ("3x40",), {},
        "something else stood where the worker's public key is published",
    ),
    "CredentialAgentStateUnwritten": Tried(
        {"memory_unwritten": "1x20"}, 4, 6, ("0x20",), {}, "the state directory cannot be written",
    ),
    "CredentialAgentWithout": Tried(
        {'without{key="keys[0]"}': "1x20"}, 14, 16, ("_x20",), {"key": "keys[0]"}, "keys[0] is not there",
    ),
    "CredentialAgentLogDropped": Tried(
        {"log_dropped_total": "0x20 5x20"}, 21, 23, ("5x40",), {}, "lines of the log are lost",
    ),
    "CredentialAgentClockWrong": Tried(
        {"clock_wall_error_seconds": "-90x20"}, 9, 11, ("2x20",), {}, "the clock is off by 1m 30s",
    ),
    "CredentialAgentAuditIncomplete": Tried(
        {"audit_dropped_total": "0x20 5x20"}, 21, 23, ("5x40",), {}, "the audit's file lacks lines",
    ),
    "CredentialAgentMemoryHigh": Tried(
        {'resident_memory_bytes{process="agent"}': "450000000x20"}, 9, 11, ("70000000x20",), {"process": "agent"},
        "the process agent uses 429.2MiB",
    ),
}  # fmt: skip


def series(tried: Tried, values: tuple[str, ...]) -> list[dict[str, str]]:
    made = []
    for name, value in zip(tried.bad, values, strict=True):
        metric, _, inside = name.rstrip("}").partition("{")
        made.append(
            {
                "series": f'credential_agent_{metric}{{job="node",instance="w1"{inside and ","}{inside}}}',
                "values": value,
            }
        )
    return made


def checked(name: str, rule: dict[str, Any], tried: Tried) -> Iterator[dict[str, Any]]:
    """The rule's two worlds, as promtool's tests."""
    alarm = {
        "exp_labels": {"job": "node", "instance": "w1", **tried.labels, **rule["labels"]},
        "exp_annotations": {"summary": f"w1: {tried.summary}", "action": rule["annotations"]["action"]},
    }
    yield {
        "name": f"{name} alarms",
        "interval": "1m",
        "input_series": series(tried, tuple(tried.bad.values())),
        "alert_rule_test": [
            {"eval_time": f"{tried.early}m", "alertname": name, "exp_alerts": []},
            {"eval_time": f"{tried.late}m", "alertname": name, "exp_alerts": [alarm]},
        ],
        # It is true already at the earlier moment: what keeps it silent is its duration.
        "promql_expr_test": [
            {"eval_time": f"{tried.early}m", "expr": f"count({rule['expr']})", "exp_samples": [{"value": 1, "labels": "{}"}]}
        ],
    }  # fmt: skip
    yield {
        "name": f"{name} is silent",
        "interval": "1m",
        "input_series": series(tried, tried.good),
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []} for minute in (5, tried.early, tried.late)
        ],
    }


def test_each_rule_is_tried_on_series_that_there_are() -> None:
    """No rule is left out, and the series it is tried on have the labels of a scrape."""
    exported = families()
    assert list(TRIED) == list(alerts())
    for name, tried in TRIED.items():
        for one in tried.bad:
            metric, _, inside = one.partition("{")
            assert set(re.findall(r"(\w+)=", inside)) == exported[f"credential_agent_{metric}"][1], name


@needs_promtool
def test_each_rule_alarms_when_it_lasts_and_not_before(tmp_path: Path) -> None:
    """`promtool test rules`: an alarm comes after its time and not before, and what is well alarms nobody."""
    file = tmp_path / "tests.yml"
    tests = [test for name, rule in alerts().items() for test in checked(name, rule, TRIED[name])]
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", file)
