"""Bundles of ours opened by other JOSE libraries, and theirs by us: run for real, both ways."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent import bundle
from agent.bundle.seal import _encrypt, _sign
from tests.conformance.jose.peers import CASES, PEERS, Peer, able
from tests.conformance.jose.request import seal_request
from tests.fakes import jose
from tests.unit.bundle.kit import KEYS, OPENING, CountingKey, opened
from tests.vectors.bundle import generate


def pairs() -> list[Any]:
    return [
        pytest.param(peer, case, id=f"{peer.name}-{case}")
        for peer in PEERS.values()
        for case in CASES
        if able(peer, case)
    ]


def ready(peer: Peer) -> None:
    if peer.missing:
        pytest.skip(f"{peer.name}: {peer.missing}")


@pytest.mark.parametrize(("peer", "case"), pairs())
def test_a_bundle_made_elsewhere_opens_for_each_of_its_recipients(peer: Peer, case: str) -> None:
    """What another library makes from FORMAT.md, every worker it was sealed to opens to the same claims."""
    ready(peer)
    request = seal_request(case)
    data = peer.run("seal", request).encode()
    mine = [key for key in OPENING if key.kid in request["claims"]["recip"]]
    assert mine
    for key in mine:
        result = opened(data, [CountingKey(key)])
        assert (result.bundle_id, result.recipient) == (f"peer-{case}", key.kid)
        assert len(result.grants) == 4


@pytest.mark.parametrize(("peer", "case"), pairs())
def test_a_bundle_of_ours_opens_elsewhere(peer: Peer, case: str) -> None:
    """What we seal, another library opens for each recipient, and reads the very claims."""
    ready(peer)
    request = seal_request(case)
    if request["direct"]:
        pytest.skip("we seal with key wrapping only")
    signer = bundle.SigningKey.parse(request["signer"])
    if peer.name in {"gojose", "nimbus", "jwcrypto"} and signer.alg == "Ed25519":
        # They know EdDSA only by its older name; the signature is the same, and FORMAT.md allows both names.
        signed = jose.sign(jose.compact_json(request["claims"]), request["signer"], {"alg": "EdDSA"}).encode()
    else:
        signed = _sign(jose.compact_json(request["claims"]), signer)
    data = _encrypt(signed, [bundle.RecipientKey.parse(r) for r in request["recipients"]], request["form"])
    for name in CASES[case][1]:
        key = KEYS[name]
        answer = peer.run("open", {"bundle": data.decode(), "key": key, "signer": jose.public(request["signer"])})
        assert json.loads(answer) == request["claims"]


def test_every_peer_of_the_readme_is_here() -> None:
    """The vectors hold for machines without toolchains: each peer made all of its cases."""
    made = {path.stem for path in (generate.HERE / "peers").glob("*.json")}
    assert made == {f"{peer.name}-{case}" for peer in PEERS.values() for case in CASES if able(peer, case)}
