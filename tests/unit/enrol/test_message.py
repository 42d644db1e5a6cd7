"""The question and the answer: what one end writes the other reads, and nothing that decides is read leniently."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agent.enrol
from agent import enrol
from agent.bundle import OpeningKey
from agent.enrol import EvidenceError, GcpIdentity, Missing
from tests.unit.enrol.support import KEY, NONCE, THUMBPRINT, enrolment, signed

OTHER = OpeningKey.generate("P-256").recipient_key().public_jwk()


def test_an_enrolment_comes_back_as_it_was_written() -> None:
    """Every member survives the way, evidence and what is missing included."""
    told = enrolment(
        evidence=(signed(), GcpIdentity("a.b.c")), missing=(Missing("aws-web-identity", "off", "it is off"),)
    )
    assert enrol.read_enrolment(enrol.write_enrolment(told), nonce=NONCE) == told
    assert told.recipient.kid == KEY["kid"]


@settings(deadline=None)
@given(st.binary(min_size=16, max_size=64))
def test_every_nonce_of_16_to_64_bytes_comes_back(random: bytes) -> None:
    """A nonce is told from its one spelling, whatever its bytes."""
    assert enrol.read_question(enrol.write_question(enrol.new_nonce(random))) == enrol.new_nonce(random)


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=15), st.binary(min_size=65, max_size=200)))
def test_a_nonce_of_another_length_is_none(random: bytes) -> None:
    """Too short can be guessed, too long is somebody's payload."""
    with pytest.raises(EvidenceError) as caught:
        enrol.new_nonce(random)
    assert caught.value.code == "nonce"


@pytest.mark.parametrize("nonce", ["", "A" * 21 + "B", "A" * 22 + "==", "+/" * 12, "é" * 22, "A" * 10_000, "\x00" * 22])
def test_another_spelling_is_no_nonce(nonce: str) -> None:
    """Padding, the other alphabet, stray bits: two spellings of one nonce would be two questions."""
    with pytest.raises(EvidenceError) as caught:
        enrol.check_nonce(nonce)
    assert caught.value.code == "nonce"


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_bytes_of_a_stranger_are_refused_in_one_way(data: bytes) -> None:
    """Neither end fails in another way than by an EvidenceError."""
    for read in (enrol.read_question, lambda raw: enrol.read_enrolment(raw, nonce=NONCE)):
        with pytest.raises(EvidenceError):
            read(data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    member=st.sampled_from(["ver", "nonce", "key", "thumbprint", "audiences", "host", "evidence", "missing"]),
    value=VALUES,
)
def test_a_member_of_another_shape_never_breaks_the_reader(member: str, value: Any) -> None:
    """Whatever stands in a member, it is read as an enrolment with our key and nonce, or refused."""
    document = json.loads(enrol.write_enrolment(enrolment()))
    document[member] = value
    try:
        read = enrol.read_enrolment(json.dumps(document).encode(), nonce=NONCE)
    except EvidenceError:
        return
    assert (read.nonce, read.thumbprint, read.key) == (NONCE, THUMBPRINT, KEY)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"nonce": enrol.new_nonce(b"m" * 32)}, "nonce"),
        ({"ver": 2}, "form"),
        ({"key": OTHER}, "key"),
        ({"thumbprint": OTHER["kid"]}, "key"),
        ({"key": {**KEY, "x": OTHER["x"]}, "thumbprint": THUMBPRINT}, "key"),
        ({"key": {"kty": "oct", "k": "A" * 43}}, "key"),
        ({"key": {**KEY, "kid": "a b"}}, "key"),
        ({"evidence": [{"kind": "gcp-identity", "token": "a"}, {"kind": "gcp-identity", "token": "b"}]}, "form"),
        ({"evidence": [{"kind": "aws-sts", "url": 1}]}, "form"),
        ({"audiences": ["x" * 2000]}, "form"),
        ({"host": "a\nb"}, "form"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], code: str) -> None:
    """Key, thumbprint and nonce belong together, of each kind of evidence there is one, texts are short and one line."""
    document = {**json.loads(enrol.write_enrolment(enrolment())), **changes}
    with pytest.raises(EvidenceError) as caught:
        enrol.read_enrolment(json.dumps(document).encode(), nonce=NONCE)
    assert caught.value.code == code


def test_a_private_key_in_an_answer_is_not_kept() -> None:
    """A worker that tells too much is sealed to all the same, and what it told goes no further."""
    document = json.loads(enrol.write_enrolment(enrolment()))
    document["key"]["d"] = "A" * 43
    with pytest.raises(EvidenceError):
        enrol.read_enrolment(json.dumps(document).encode(), nonce=NONCE)


def test_what_a_later_version_adds_is_passed_over() -> None:
    """An unknown kind of evidence and an unknown member do not make an answer unreadable."""
    document = json.loads(enrol.write_enrolment(enrolment()))
    document["evidence"].append({"kind": "tpm", "quote": "..."})
    document["later"] = {"a": 1}
    assert enrol.read_enrolment(json.dumps(document).encode(), nonce=NONCE) == enrolment()


def test_evidence_never_shows_itself() -> None:
    """Neither a session token nor an identity token is in a repr, which ends in logs and tracebacks."""
    told = enrolment(evidence=(signed(), GcpIdentity("eyJsecret.a.b")))
    assert "FwoGZXIvYXdzEJr" not in repr(told)
    assert "eyJsecret" not in repr(told)


def test_the_example_of_the_page_has_every_member() -> None:
    """The enrolment of PROTOCOL.md has the members and the kinds of evidence that the code writes, and no other."""
    page = (Path(agent.enrol.__file__).parent / "PROTOCOL.md").read_text()
    (told,) = [
        json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL) if '"evidence"' in block
    ]
    evidence = (signed(), enrol.AwsWebIdentity("a.b.c"), GcpIdentity("a.b.c"))
    written = json.loads(enrol.write_enrolment(enrolment(evidence=evidence, missing=(Missing("x", "y", "z"),))))
    assert told.keys() == written.keys()
    assert [one.keys() for one in told["evidence"]] == [one.keys() for one in written["evidence"]]
    assert [one["kind"] for one in told["evidence"]] == [one["kind"] for one in written["evidence"]]
    assert told["missing"][0].keys() == written["missing"][0].keys()
    assert told["key"].keys() == written["key"].keys()


def test_the_protocol_names_what_the_code_does() -> None:
    """PROTOCOL.md and the constants agree: the body, the headers, the audience, the kinds."""
    page = (Path(agent.enrol.__file__).parent / "PROTOCOL.md").read_text()
    for said in (
        f"`{enrol.STS_BODY}`",
        f"`{enrol.STS_CONTENT_TYPE}`",
        f"`{enrol.KEY_HEADER}`",
        f"`{enrol.NONCE_HEADER}`",
        f"`{enrol.audience('THUMBPRINT', 'NONCE')}`",
        "`aws-sts`",
        "`aws-web-identity`",
        "`gcp-identity`",
    ):
        assert said in page
