"""Mutates snapshots: whoever decodes one must refuse it, or have understood exactly what its bytes say.

``python -m tests.fuzz.snapshot --seconds 3600 [--seed N]`` runs it for long; some of it is in the test suite. What is
decoded is encoded again and must be the same bytes; what is refused is refused with one error, that quotes nothing.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agent.core.errors import AgentError
from agent.snapshot import SnapshotError, decode, encode
from tests.fuzz.budget import rounds
from tests.fuzz.fuzz_bundle import mutate

JUNK: list[Any] = [None, True, -1, 0, 1 << 63, 1.5, "", "x" * 300, b"\xff" * 9, [], {}, [[]], {"type": "live"}, "live"]


@dataclass
class Report:
    """What a run did and found."""

    taken: int = 0
    refused: int = 0
    findings: list[str] = field(default_factory=list)


def bend(value: Any, rng: random.Random) -> Any:
    """A plain value with one place in it replaced, left out or doubled: the grammar stays, the meaning does not."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(sorted(value))
        copy = dict(value)
        match rng.randrange(5):
            case 0:
                del copy[name]
            case 1:
                copy["x" + name] = copy[name]
            case _:
                copy[name] = bend(copy[name], rng)
        return copy
    if isinstance(value, list) and value and rng.random() < 0.9:
        items = list(value)
        at = rng.randrange(len(items))
        match rng.randrange(4):
            case 0:
                del items[at]
            case 1:
                items.insert(at, items[-1])
            case _:
                items[at] = bend(items[at], rng)
        return items
    if isinstance(value, str) and rng.random() < 0.5:
        return value + "x"
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + 1
    return rng.choice(JUNK)


def fuzz(seconds: float, rng: random.Random) -> Report:
    """Run for so long."""
    from tests.unit.snapshot.test_codec import full

    report = Report()
    whole = encode(full())
    plain = msgspec.msgpack.decode(whole)
    for _ in rounds(seconds, 1000):
        data = mutate(whole, rng) if rng.random() < 0.5 else msgspec.msgpack.encode(bend(plain, rng))
        try:
            snapshot = decode(data)
        except SnapshotError as error:
            report.refused += 1
            if len(error.message) > 120:
                report.findings.append(f"the refusal quotes what came: {data!r}")
        except (Exception, AgentError) as error:  # noqa: BLE001 - whatever it is, it is a finding
            report.findings.append(f"{type(error).__name__}: {data!r}")
        else:
            report.taken += 1
            if encode(snapshot) != data:
                report.findings.append(f"another spelling was taken: {data!r}")
    return report


def main(name: str, run: Callable[[float, random.Random], Report]) -> int:
    """The command line of a fuzzer of this kind."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    report = run(given.seconds, random.Random(seed))
    print(f"{report.taken} taken, {report.refused} refused")
    for finding in report.findings:
        print(finding)
    return bool(report.findings)


if __name__ == "__main__":
    raise SystemExit(main("tests.fuzz.snapshot", fuzz))
