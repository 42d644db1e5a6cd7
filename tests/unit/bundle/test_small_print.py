"""The smaller rules of the bundle: every member in its place and of its kind, limits to the byte, who is named how."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent import bundle
from agent.bundle.claims import MAX_SECRET_BYTES, MAX_VARIABLES
from agent.bundle.envelope import parse_envelope
from agent.bundle.short_key import read_signer_word, signer_word
from agent.core.errors import FormatError, PayloadError
from tests.fakes import jose
from tests.unit.bundle.kit import KEYS, NOW, OPENING, TRUST, VECTORS, WORLD, opened
from tests.vectors.bundle import generate

ODD: tuple[Any, ...] = (None, 7, "", "x", [], ["x"], {}, {"x": 1})


def whole(form: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.loads((VECTORS / "good" / f"{form}.json").read_text())["bundle"])
    return found


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every member and every entry, at any depth."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in [(*path, key), *places(item, (*path, key))]]


def changed(value: Any, path: tuple[Any, ...], do: Any) -> Any:
    """A copy in which ``do(container, key)`` was done at ``path``."""
    found = json.loads(json.dumps(value))
    container = found
    for key in path[:-1]:
        container = container[key]
    do(container, path[-1])
    return found


@pytest.mark.parametrize(
    ("form", "path"), [(form, path) for form in ("general", "flattened") for path in places(whole(form))]
)
def test_whatever_stands_in_the_place_of_a_member_is_refused(form: str, path: tuple[Any, ...]) -> None:
    """Absent, of another kind, empty, or with another beside it: an error of the format's, never one of the program's."""

    def refused(value: Any) -> None:
        with pytest.raises(FormatError):
            parse_envelope(jose.compact_json(value))

    good = whole(form)
    parse_envelope(jose.compact_json(good))
    refused(changed(good, path, lambda container, key: container.pop(key)))
    for odd in ODD:
        if path[-1] == "kid" and odd == "x":
            continue  # a key may go by any plain word
        refused(changed(good, path, lambda container, key, odd=odd: container.__setitem__(key, odd)))
    if isinstance(path[-1], str):
        refused(changed(good, path, lambda container, _: container.__setitem__("another", "x")))


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_coordinate_has_its_size(name: str, size: int) -> None:
    """Of a point on P-256 each has 32 bytes (RFC 7518 section 6.2.1.2)."""
    good = whole("general")
    good["recipients"][0]["header"]["epk"][name] = jose.b64(b"\1" * size)
    with pytest.raises(FormatError):
        parse_envelope(jose.compact_json(good))


def carrying(*grants: dict[str, Any], **more: Any) -> Any:
    return opened(jose.compact_json(generate.with_grants(generate.SESSION, *grants, **more)))


def variables(count: int, size: int = 1) -> dict[str, Any]:
    return {"type": "env", "id": "env", "variables": {f"V{number}": "v" * size for number in range(count)}}


def test_limits_hold_to_the_last_one() -> None:
    """What FORMAT.md allows at most is allowed, and one more is not."""
    carrying(variables(MAX_VARIABLES))
    carrying(variables(1, MAX_SECRET_BYTES))
    for grant in (variables(MAX_VARIABLES + 1), variables(1, MAX_SECRET_BYTES + 1)):
        with pytest.raises(PayloadError) as caught:
            carrying(grant)
        assert caught.value.code == bundle.Code.VARIABLE


def test_a_policy_may_have_lines() -> None:
    """It is a JSON document, as people write it; any other text of a grant has no control characters."""
    carrying({**generate.ROLE, "policy": '{\n\t"Version": "2012-10-17"\n}'})
    with pytest.raises(PayloadError):
        carrying({**generate.ROLE, "region": "eu-west-1\n"})


@pytest.mark.parametrize(
    ("audiences", "named"),
    [
        (["urn:credbundle:cluster:blue"], False),
        (["urn:credbundle:key:one"], True),
        (["urn:credbundle:key:one", "urn:credbundle:key:two"], True),
        (["urn:credbundle:key:one", "urn:credbundle:cluster:blue"], False),
        (["urn:credbundle:key:one", "urn:of:another"], True),
    ],
)
def test_what_is_addressed_by_name_alone_is_known_as_that(audiences: list[str], named: bool) -> None:
    """The machine's name may be another's tomorrow; what names it by anything else too stays its own."""
    data = jose.compact_json(generate.sealed(generate.claims(aud=audiences)))
    recipient = next(r for r in parse_envelope(data).recipients if r.kid == OPENING[0].kid)
    signed = bundle.decrypt(parse_envelope(data), OPENING[0].content_key(recipient))
    found = bundle.verify(
        signed,
        trust=TRUST,
        recipient_kid=OPENING[0].kid,
        audiences=[*WORLD["audiences"], "urn:credbundle:key:one", "urn:credbundle:key:two"],
        names=["urn:credbundle:key:one", "urn:credbundle:key:two"],
        now=NOW,
    )
    assert found.named is named


@pytest.mark.parametrize("name", ["signer-p256", "signer-ed25519"])
def test_a_word_names_a_signer_and_is_read_as_the_same(name: str) -> None:
    """Short where the key has no id of its own, which would be lost; else the whole key, in one line."""
    public = {k: v for k, v in bundle.SigningKey.parse(KEYS[name]).public_jwk().items() if k != "kid"}
    own, plain = (bundle.VerifyKey.parse(json.dumps({**public, **kid})) for kid in ({"kid": "mine"}, {}))
    for key in (own, plain):
        word = signer_word(key)
        assert len(word.split()) == 1
        assert word.startswith("{") is (key is own)
        again = read_signer_word(word)
        assert (again.kid, again.public_jwk()) == (key.kid, key.public_jwk())
