"""Mutates what the server and the controller say to each other: refused with one error, or understood exactly.

``python -m tests.fuzz.messages --seconds 3600 [--seed N]`` runs it for long; some of it is in the test suite.
"""

from __future__ import annotations

import random
import struct
from typing import Any, Final

import msgspec

from agent.core.errors import AgentError
from agent.core.model import Cloud, IdToken
from agent.core.secret import Secret
from agent.core.served import Given, Serving, Who
from agent.snapshot import SnapshotError
from agent.snapshot.frames import Frames, frame_of, from_controller, from_server
from agent.snapshot.messages import (
    Counts,
    Crashed,
    Left,
    Mint,
    Minted,
    MintScoped,
    Pass,
    Passed,
    Refused,
    Served,
    Taken,
    Tell,
    Uses,
)
from tests.fakes.clock import START
from tests.fakes.view import google_token
from tests.fuzz.budget import rounds
from tests.fuzz.fuzz_bundle import mutate
from tests.fuzz.snapshot import Report, bend, main

SERVER: Final[tuple[Any, ...]] = (
    Taken(7),
    Mint(1, "https://aud.example"),
    MintScoped(2, ("a", "b")),
    Pass(3, Cloud.GCP, "PUT", "/computeMetadata/v1/x", (("Content-Type", "text/plain"),), b"\x00", 2.5),
    Left(3),
    Counts(((200, 5), (0, 1))),
    Uses(25 << 20, 1.5, 12),
    Served((Serving(Given("ec2", Cloud.AWS, "credential", "role", "ABCD"), Who(uid=1000), "curl", 3),), (("host", 2),)),
    Refused("GET", "/x", 403, 0.5, 10, "curl", "127.0.0.1:1"),
    Crashed("/x", "ValueError", "File ..."),
)
CONTROLLER: Final[tuple[Any, ...]] = (
    Minted(1, id_token=IdToken(Secret("a.b.c"), "aud", START, START)),
    Minted(2, access_token=google_token(START)),
    Minted(3, denied=True, why="no"),
    Passed(4, 200, (("Content-Type", "text/plain"),), b"body"),
    Tell(),
)


def fuzz(seconds: float, rng: random.Random) -> Report:
    """Run for so long."""
    report = Report()
    sides: tuple[tuple[Any, Any], ...] = ((from_server, SERVER), (from_controller, CONTROLLER))
    for _ in rounds(seconds, 1000):
        make, known = rng.choice(sides)
        frame = frame_of(rng.choice(known))
        if rng.random() < 0.4:
            data = mutate(frame, rng)
        else:
            content = msgspec.msgpack.encode(bend(msgspec.msgpack.decode(frame[5:]), rng))
            data = struct.pack(">IB", len(content) + 1, 1) + content
        _look(make(), data, report)
    return report


def _look(frames: Frames[Any], data: bytes, report: Report) -> None:
    at = 0
    try:
        for said in frames.feed(data):
            report.taken += 1
            again = struct.pack(">IB", len(said) + 1, 0) + said if isinstance(said, bytes) else frame_of(said)
            if data[at : at + len(again)] != again:
                report.findings.append(f"another spelling was taken: {data!r}")
            at += len(again)
    except SnapshotError as error:
        report.refused += 1
        if len(error.message) > 120:
            report.findings.append(f"the refusal quotes what came: {data!r}")
    except (Exception, AgentError) as error:  # noqa: BLE001 - whatever it is, it is a finding
        report.findings.append(f"{type(error).__name__}: {data!r}")


if __name__ == "__main__":
    raise SystemExit(main("tests.fuzz.messages", fuzz))
