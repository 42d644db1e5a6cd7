"""Mutates bundles for as long as you like, and stops at the first that raises anything but the bundle's own errors.

``python -m tests.fuzz.fuzz_bundle --seconds 3600 [--seed N]``. Three ways in are tried: the sealed bytes, the content
behind the seal, and the claims behind the signature: a mutation of the outer bytes alone would hardly ever get past the
tag. ``tests/unit/bundle/test_fuzz.py`` runs it for some hundred rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from typing import Any

from agent.core.errors import BundleError
from agent.keys import Keyring
from tests.fakes import jose
from tests.unit.bundle.kit import NOW, TRUST, VECTORS, WORLD, case_bytes, local_keys
from tests.vectors.bundle import generate

TOKENS = [
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u0000", b"\\ud800", b"null", b"true", b"-1", b"1e9", b"9" * 400,
    b"NaN", b".", b"=", b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"alg", b"kid", b"epk", b"zip", b"crit", b"type", b"base",
    b"instance", b"grants", b"routes", b"variables", b"[" * 60, b'{"a":' * 60, b"A256KW", b"dir", b"none",
]  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Some random edits: bits, cuts, copies, tokens, and pieces exchanged."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        where = rng.randrange(len(out) + 1)
        length = rng.choice((1, 1, 2, 4, 16, 64))
        match rng.randrange(6):
            case 0 if out:
                out[where % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                del out[where : where + length]
            case 2:
                out[where:where] = out[where : where + length]
            case 3:
                out[where:where] = rng.choice(TOKENS)
            case 4:
                out[where : where + length] = rng.choice(TOKENS)
            case _:
                other = rng.randrange(len(out) + 1)
                out[where : where + length] = out[other : other + length]
    return bytes(out)


def bend(value: Any, rng: random.Random) -> Any:
    """A JSON value with one place in it replaced: keeps the grammar, breaks the meaning."""
    junk: list[Any] = [
        None,
        True,
        -1,
        0,
        2**53 - 1,
        "",
        "x" * 300,
        "instance",
        "a\nb",
        [],
        {},
        [[]],
        {"a": {}},
        "é",
        "urn:x",
    ]
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(sorted(value))
        copy = dict(value)
        match rng.randrange(4):
            case 0:
                del copy[name]
            case 1:
                copy[rng.choice(["extra", "type", "id", "base", "alg", "zip"])] = copy[name]
            case _:
                copy[name] = bend(copy[name], rng)
        return copy
    if isinstance(value, list) and value and rng.random() < 0.8:
        where = rng.randrange(len(value))
        return [
            *value[:where],
            bend(value[where], rng),
            *value[where + 1 :],
            *([value[where]] if rng.random() < 0.2 else []),
        ]
    return rng.choice(junk)


def candidate(seeds: list[bytes], frames: list[dict[str, Any]], rng: random.Random) -> bytes:
    """The next bundle to try, at one of the three ways in."""
    match rng.randrange(5):
        case 0 | 1:
            return mutate(rng.choice(seeds), rng)
        case 2:
            signed = mutate(jose.sign(jose.compact_json(rng.choice(frames)), generate.SIGNER).encode(), rng)
            return jose.compact_json(jose.encrypt(signed, [generate.P256]))
        case 3:
            payload = mutate(jose.compact_json(rng.choice(frames)), rng)
        case _:
            payload = jose.compact_json(bend(rng.choice(frames), rng))
    return jose.compact_json(generate.sealed(payload))


def run(*, seed: int, seconds: float | None = None, rounds: int | None = None) -> dict[str, int]:
    """Try until the time or the rounds are over. Returns how often each outcome came.

    Raises:
        AssertionError: something else than a BundleError came out; the bundle is in the message.
    """
    rng = random.Random(seed)
    seeds = [case_bytes(json.loads(p.read_text())) for p in sorted(VECTORS.glob("good/*.json"))]
    every = [generate.SESSION, generate.ROLE, generate.TOKEN, generate.IMPERSONATION, generate.FEDERATED, generate.ENV]
    frames = [
        json.loads(generate.claims()),
        json.loads(generate.claims(grants=every, routes={"aws": "role", "gcp": "google"})),
    ]
    keyring = Keyring(local_keys())
    counts: dict[str, int] = {}

    async def loop() -> None:
        end = None if seconds is None else time.monotonic() + seconds
        number = 0
        while (rounds is None or number < rounds) and (end is None or time.monotonic() < end):
            number += 1
            data = candidate(seeds, frames, rng)
            try:
                bundle = await keyring.open(data, trust=TRUST, audiences=WORLD["audiences"], now=NOW)
                assert bundle.issuer == "https://control.example" or bundle.issuer.startswith("laptop:")
                outcome = "accepted"
            except BundleError as error:
                outcome = str(error.code) if str(error).isprintable() else "unprintable"
            except Exception as error:
                raise AssertionError(f"seed {seed}, round {number}: {type(error).__name__} from {data!r}") from error
            counts[outcome] = counts.get(outcome, 0) + 1

    asyncio.run(loop())
    assert "unprintable" not in counts
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments = parser.parse_args()
    sys.stdout.write(f"seed {arguments.seed}\n")
    counts = run(seed=arguments.seed, seconds=arguments.seconds)
    for outcome, count in sorted(counts.items(), key=lambda item: -item[1]):
        sys.stdout.write(f"{count:>10} {outcome}\n")
    sys.stdout.write(f"{sum(counts.values()):>10} in all, no escape\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
