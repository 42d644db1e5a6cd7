"""A second of each fuzzer; ``python -m tests.fuzz.endpoint`` runs them for long."""

from __future__ import annotations

import asyncio

import pytest

from tests.fuzz.endpoint import CANARY_REQUEST, Report, evaluate, fuzz


@pytest.mark.parametrize("kind", ["bytes", "requests"])
def test_nothing_is_found(kind: str) -> None:
    """Whatever is sent, each connection ends with nothing or one whole answer, and no secret goes astray."""
    report = asyncio.run(fuzz(kind, 1.0, seed=20261124))

    assert not report.findings
    assert report.inputs > 50
    assert len(report.answers) > 4, "the inputs were too alike"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 23\r\nConnection: close\r\n\r\nTHE-MACHINES-OWN-SECRET",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nya29.",
        b"nonsense",
    ],
)
def test_the_check_is_not_blind(answer: bytes) -> None:
    """Each kind of wrong answer is a finding."""
    report = Report()
    evaluate(report, CANARY_REQUEST, answer, may_have_ours=False)
    assert report.findings
