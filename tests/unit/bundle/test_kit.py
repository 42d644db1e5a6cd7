"""The kit of tests/vectors/bundle, down every road."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.bundle import Code
from agent.core.errors import BundleError, FormatError, PayloadError, SealError
from agent.core.model import Bundle
from tests.unit.bundle.kit import VECTORS, case_bytes, counting_keys, jws_digest, local_keys, opened
from tests.vectors.bundle import generate

FILES = sorted(VECTORS.glob("good/*.json")) + sorted(VECTORS.glob("hostile/*.json"))
KNOWN = {
    "name", "rule", "expect", "bundle", "bundle_base64", "max_bytes", "accepted_digest", "resume", "random",
    "routes", "seq", "action", "lease_until", "set_aside",
}  # fmt: skip
FAMILY = {
    FormatError: {"size", "encoding", "json", "header", "algorithm", "recipients"},
    SealError: {"recipient", "unwrap", "content", "signer", "signature"},
    PayloadError: {
        "version", "claims", "issuer", "audience", "expired", "not-yet-valid", "far-future", "lease", "forwarded", "grant", "route",
        "variable", "changed",
    },
}  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    case: dict[str, Any] = json.loads(path.read_text())
    # A misspelt expectation would be an expectation that nobody checks.
    assert not case.keys() - KNOWN
    return case


def road(case: dict[str, Any], **overrides: Any) -> Bundle:
    more: dict[str, Any] = {}
    if "max_bytes" in case:
        more["max_bytes"] = case["max_bytes"]
    if "accepted_digest" in case:
        more["accepted_digest"] = case["accepted_digest"]
    if case.get("resume"):
        more["accepted_digest"] = jws_digest(case)
    return opened(overrides.pop("data", case_bytes(case)), **{**more, **overrides})


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_file_of_the_kit_ends_as_it_says(path: Path) -> None:
    """A bundle of the kit is accepted, or refused with the very code its file names."""
    case = load(path)
    if case["expect"] == "accepted":
        bundle = road(case)
        assert str(bundle.action) == case.get("action", "set")
        assert {str(c): g for c, g in bundle.routes.items()} == case.get("routes", bundle.routes)
        assert bundle.seq == case.get("seq", bundle.seq)
        assert [s.id for s in bundle.set_aside] == case.get("set_aside", [])
        if "lease_until" in case:
            lease = bundle.lease_until
            assert (None if lease is None else int(lease.timestamp())) == case["lease_until"]
        return
    with pytest.raises(BundleError) as caught:
        road(case)
    assert caught.value.code == case["expect"], caught.value
    assert case["expect"] in FAMILY[type(caught.value)]
    # Nothing that knows the document hangs on the error.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_refusal_repeats_a_secret(path: Path) -> None:
    """No message, hint or repr of a refusal or of a bundle has a secret of the bundle in it."""
    case = load(path)
    try:
        shown = repr(road(case))
    except BundleError as error:
        shown = f"{error!r} {error} {error.hint}"
    for secret in (
        generate.SESSION["secret_access_key"],
        generate.SESSION["session_token"],
        "ya29.example",
        "0123456789abcdef",
    ):
        assert secret not in shown


def test_the_kit_is_what_its_generator_makes() -> None:
    """The committed kit is the generator's output, so that nobody edits one without the other."""
    made = generate.cases()
    committed = {f"{p.parent.name}/{p.name}": load(p) for p in FILES}
    assert committed.keys() == made.keys()
    for path, case in made.items():
        if not case.get("random"):
            assert committed[path] == json.loads(json.dumps(case)), path
    assert json.loads((VECTORS / "world.json").read_text()) == generate.WORLD


def test_the_kit_meets_every_code() -> None:
    """Every refusal that opening can end in has a bundle in the kit that ends so."""
    met = {load(path)["expect"] for path in FILES} - {"accepted"}
    elsewhere = {"key", "rollback", "conflict", "key-unavailable"}  # key files, the store, key services
    assert met == {str(code) for code in Code} - elsewhere


def test_white_space_around_changes_nothing() -> None:
    """A file's line break, or an editor's, neither saves nor spoils a bundle."""
    for path in FILES:
        case = load(path)
        if case["expect"] in ("size", "encoding", "json"):
            continue
        data = b"\n " + case_bytes(case) + b"\r\n"
        if case["expect"] == "accepted":
            assert road(case, data=data).seq == road(case).seq
        else:
            with pytest.raises(BundleError) as caught:
                road(case, data=data)
            assert caught.value.code == case["expect"]


def test_what_the_container_refuses_never_costs_a_key() -> None:
    """No key, and so no key service, is asked for a bundle that its container already condemns."""
    container = {"size", "encoding", "json", "header", "algorithm", "recipients", "recipient"}
    met = set()
    for path in VECTORS.glob("hostile/*.json"):
        case = load(path)
        if case["expect"] not in container or path.stem.startswith(("signatures-", "frame-", "grants-")):
            continue
        keys = counting_keys()
        with pytest.raises(BundleError):
            road(case, keys=list(keys))
        assert sum(key.asked for key in keys) == 0, path.stem
        met.add(case["expect"])
    assert met == container


def test_local_keys_are_in_the_worlds_order() -> None:
    """The worker tries its keys in its own order, whatever the order of the entries."""
    assert local_keys()[0].kid == generate.P256["kid"]
    assert opened(case_bytes(load(VECTORS / "good" / "mixed.json"))).recipient == generate.P256["kid"]
