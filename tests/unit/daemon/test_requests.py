"""Who was answered, and who was refused? What is counted and what is logged."""

from __future__ import annotations

import structlog

from agent.daemon.requests import Requests
from agent.serve.handling import Access


def access(status: int) -> Access:
    return Access(peer="p", method="GET", path="/x", status=status, size_bytes=0, seconds=0.0, user_agent="u")


def test_refusals_of_one_endpoint_hide_none_of_another() -> None:
    """Each request is counted; one a minute of each endpoint and status is logged: a worker cannot use up an operator's line."""
    requests = Requests()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            requests.of("worker")(access(403))
        requests.of("control")(access(403))
        requests.of("worker")(access(429))
        requests.of("worker")(access(200))
    assert [(line["door"], line["status"]) for line in logs] == [("worker", 403), ("control", 403), ("worker", 429)]
    assert requests.counts == {("worker", 403): 3, ("control", 403): 1, ("worker", 429): 1, ("worker", 200): 1}
