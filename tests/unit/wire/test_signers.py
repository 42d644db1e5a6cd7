"""Whoever launches a machine names signers by one line, which is found in every carrier that a bundle is found in."""

from __future__ import annotations

import base64
import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.wire.signers import MAX_SIGNERS, find_signers, line

KEY = "ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
OTHER = "p256:" + "A" * 44
LINE = line(KEY)

CARRIERS = {
    "a script's comment": f"#!/bin/sh\n# {LINE}\nmake-worker\n".encode(),
    "a cloud-config's comment": f"#cloud-config\n# {LINE}\npackages: [dask]\n".encode(),
    "a YAML member": f'#cloud-config\ncredential-agent-signer: "{KEY}"\n'.encode(),
    "an assignment": f"credential-agent-signer={KEY}\r\n".encode(),
    "systemd's text": json.dumps(
        {"systemd.credentials": [{"name": "credential-agent.signers", "text": LINE}]}
    ).encode(),
    "systemd's data": json.dumps(
        {"systemd.credentials": [{"name": "x", "data": base64.b64encode(LINE.encode()).decode()}]}
    ).encode(),
    "a MIME part": (
        'Content-Type: multipart/mixed; boundary="b"\nMIME-Version: 1.0\n\n--b\nContent-Type: text/x-shellscript\n'
        f"Content-Transfer-Encoding: base64\n\n{base64.b64encode(f'#!/bin/sh{chr(10)}# {LINE}'.encode()).decode()}\n--b--\n"
    ).encode(),
    "UTF-16": f"# {LINE}\n".encode("utf-16"),
    "HTML": f"&quot;# {LINE}&quot;\n".encode(),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    "wrap",
    [bytes, gzip.compress, base64.b64encode, lambda d: base64.b64encode(gzip.compress(d))],
    ids=["as it is", "gzip", "base64", "both"],
)
def test_a_line_is_found_in_every_carrier(carrier: str, wrap: object) -> None:
    """Encoded, compressed or neither, the line names the key."""
    assert callable(wrap)
    assert find_signers(wrap(CARRIERS[carrier])) == (KEY,)


def test_a_jwk_on_one_line_is_taken_too() -> None:
    """Who pastes the public key as it is, in a comment, is understood."""
    jwk = '{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","use":"sig"}'
    assert find_signers(f"#cloud-config\n# {line(jwk)}\n".encode()) == (jwk,)


def test_each_key_is_told_once_and_so_many_at_most() -> None:
    """Two lines name two keys, one twice is one, and a document full of lines is not read for ever."""
    text = "\n".join([LINE, line(OTHER), LINE])
    assert find_signers(text.encode()) == (KEY, OTHER)
    many = "\n".join(line("ed25519:" + f"{number:043}") for number in range(100))
    assert len(find_signers(many.encode())) == MAX_SIGNERS


@pytest.mark.parametrize(
    "text",
    [
        "",
        KEY,
        f"not-credential-agent-signer: {KEY}",
        f"credential-agent-signers: {KEY}",
        f"credential-agent-signer: {KEY}AAA",
        "credential-agent-signer: {}",
        'credential-agent-signer: {"kty":"OKP",\n"crv":"Ed25519"}',
        f"credential-agent-signer:\n{KEY}",
        "credential-agent-signer: rsa:AAAA",
        "credential-agent-signer: ed25519:short",
    ],
)
def test_what_is_no_such_line_names_nobody(text: str) -> None:
    """A key without the name, another name, another kind or length is no signer."""
    assert find_signers(text.encode()) == ()


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_no_document_breaks_it(document: bytes) -> None:
    """Whatever a document holds, it is read to its end, and a line beside it is found."""
    assert find_signers(document) == ()
    assert KEY in find_signers(b"# " + LINE.encode() + b"\n" + document.replace(b"\0", b""))
