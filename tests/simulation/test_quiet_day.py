"""A day on which nothing goes wrong: some forty renewals, and no alert of ours comes up, by Prometheus' own reckoning."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from agent import report
from tests.simulation.plan import Aws, Google, Plan
from tests.simulation.timewarp import WarpLoop, run
from tests.simulation.world import World
from tests.test_monitoring import RULES, needs_promtool, promtool

pytestmark = [pytest.mark.slow, needs_promtool]

MINUTES = 24 * 60


class Scraped(World):
    """A worker that is scraped each minute.

    Attributes:
        seen: by series, in the notation of promtool: the value of each minute since the epoch of that tool.
    """

    def begin(self) -> None:
        """Before it lives."""
        self.seen: dict[str, dict[int, float]] = defaultdict(dict)
        self.first = self.clock.now()

    async def watch(self) -> None:
        """Scrape each minute."""
        for minute in range(MINUTES):
            self.scrape(minute, self.clock.now())
            await asyncio.sleep(60)

    def scrape(self, minute: int, now: datetime) -> None:
        """Keep every sample; an instant is told as that tool has it, whose time begins with 0."""
        vitals = report.Vitals(
            started=self.first, wall_error_seconds=0.0, clock=report.ClockVitals(), sources={"file": "ok"}, refusal=None,
            memory_unwritten=False, keys=("k",), audiences=(),
        )  # fmt: skip
        text = report.metrics(self.store, self.controller.counters, vitals, now).decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = {"job": "node", "instance": "w1", **sample.labels}
                name = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
                dated = sample.name.endswith("_timestamp_seconds") and sample.value > 0
                value = sample.value - self.first.timestamp() if dated else sample.value
                self.seen[f"{sample.name}{{{name}}}"][minute] = value


def lived(aws: Aws, google: Google, hours: float) -> Scraped:
    """A worker after so many hours on which nothing went wrong."""
    worlds: list[Scraped] = []

    async def main(loop: WarpLoop) -> None:
        world = Scraped(loop, Plan(seed=7, aws=aws, google=google, lifetime_seconds=3600, hours=hours))
        world.begin()
        worlds.append(world)
        watching = asyncio.create_task(world.watch())
        try:
            await world.live()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=False)
    try:
        run(main)
    finally:
        structlog.reset_defaults()
    return worlds[0]


def alarms_nobody(world: Scraped, minutes: int, file: Path) -> None:
    """Have Prometheus reckon. Raises AssertionError where a rule is up at any time, or nothing was scraped at the end."""
    series = [
        {"series": name, "values": " ".join(str(values.get(minute, "_")) for minute in range(minutes))}
        for name, values in world.seen.items()
    ]
    quiet = [
        {"expr": 'ALERTS{alertstate="firing"}', "eval_time": f"{minute}m", "exp_samples": []}
        for minute in range(0, minutes, 5)
    ]
    scraped = [
        {
            "expr": "count(credential_agent_build_info)",
            "eval_time": f"{minutes - 1}m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
    ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [*quiet, *scraped]}
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", file)


@pytest.mark.parametrize(
    ("aws", "google"),
    [(Aws.ROLE_ON_KEYS, Google.USER), (Aws.ROLE_ON_MACHINE, Google.MACHINE), (Aws.BROKER, Google.IMPERSONATION)],
)
def test_a_quiet_day_alarms_nobody(aws: Aws, google: Google, tmp_path: Path) -> None:
    """Credentials of an hour are renewed all day, and no rule is up at any time."""
    world = lived(aws, google, MINUTES / 60)
    issued = [max(values.values()) for name, values in world.seen.items() if "credentials_issued_total" in name]
    assert sum(issued) > 20
    alarms_nobody(world, MINUTES - 5, tmp_path / "day.yml")


def test_the_reckoning_sees_what_is_wrong(tmp_path: Path) -> None:
    """The same with a renewal that fails for half an hour is no quiet day."""
    world = lived(Aws.ROLE_ON_KEYS, Google.USER, 2.0)
    alarms_nobody(world, 110, tmp_path / "quiet.yml")
    failing = next(values for name, values in world.seen.items() if "renewal_failing" in name)
    failing.update(dict.fromkeys(range(40, 70), 1.0))
    with pytest.raises(AssertionError, match="CredentialAgentRenewalFailing"):
        alarms_nobody(world, 110, tmp_path / "loud.yml")
