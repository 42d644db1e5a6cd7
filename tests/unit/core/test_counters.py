"""What is counted is bounded."""

from __future__ import annotations

from agent.core.counters import MAX_KEYS, bump


def test_a_grant_a_job_makes_no_series_a_job() -> None:
    """Ten thousand names cost a bounded number of series, nothing is uncounted, and labels stay as many as they were."""
    table: dict[str, int] = {}
    for job in range(10_000):
        bump(table, f"aws:job-{job}:AccessDenied")

    assert len(table) <= MAX_KEYS + 1
    assert sum(table.values()) == 10_000
    assert table["aws:other:other"] == 10_000 - MAX_KEYS
