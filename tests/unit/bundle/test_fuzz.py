"""The fuzzer, for a moment; for an hour: python -m tests.fuzz.fuzz_bundle --seconds 3600."""

from __future__ import annotations

from tests.fuzz.fuzz_bundle import run


def test_nothing_but_the_bundles_own_errors_escapes() -> None:
    """Mutated bytes, contents and claims end in a bundle or in a BundleError, and the mutations reach every layer."""
    counts = run(seed=1, rounds=1500)
    assert {"json", "content", "signature", "claims", "grant", "accepted"} <= counts.keys(), counts
