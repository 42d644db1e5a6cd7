"""A bundle in what tools make of documents: taken out when it is unambiguously ours, else said to be unreadable."""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import html
import json
import time
import urllib.parse
import zlib
from collections.abc import Callable
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import UnreadableError, WireError
from agent.wire import userdata
from agent.wire.userdata import MAX_DOCUMENT_BYTES
from agent.wire.wrapped import MAX_CANDIDATES, MAX_LAYERS, MAX_WORK_BYTES, find, layers

HEADER = (
    base64.urlsafe_b64encode(b'{"typ":"credbundle+jwe","cty":"credbundle+jwt","enc":"A256GCM"}').decode().rstrip("=")
)
TEXT = base64.urlsafe_b64encode(bytes(range(256)) * 2).decode().rstrip("=")
GENERAL = json.dumps(
    {"protected": HEADER, "recipients": [{"header": {"kid": "k"}}], "iv": "AAAA", "ciphertext": TEXT, "tag": "AAAA"},
    separators=(",", ":"),
).encode()
COMPACT = f"{HEADER}.{TEXT[:40]}.AAAAAAAAAAAAAAAA.{TEXT}.AAAA".encode()
BUNDLES = {"general": GENERAL, "compact": COMPACT}


def mime(data: bytes) -> bytes:
    inner = MIMEMultipart()
    inner.attach(MIMEText("#!/bin/sh\necho", "x-shellscript"))
    inner.attach(MIMEText(data.decode("latin-1"), "plain"))
    outer = MIMEMultipart()
    outer.attach(inner)
    return outer.as_bytes()


WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "base64": base64.b64encode,
    "base64url without its padding": lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
    "folded base64": base64.encodebytes,
    "gzip": gzip.compress,
    "gzip and base64": lambda data: base64.b64encode(gzip.compress(data)),
    "zlib": zlib.compress,
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data: data.decode("latin-1").encode("utf-16"),
    "UTF-16 without its mark": lambda data: data.decode("latin-1").encode("utf-16-le"),
    "zero bytes at the end": lambda data: data + b"\0" * 7,
    "hexadecimal": lambda data: data.hex().encode(),
    "a database's hexadecimal": lambda data: b"\\x" + data.hex().upper().encode(),
    "a list of bytes": lambda data: json.dumps({"type": "Buffer", "data": list(data)}).encode(),
    "a JSON string": lambda data: json.dumps(data.decode()).encode(),
    "a member of a JSON document": lambda data: json.dumps({"a": [{"user_data": data.decode("latin-1")}]}).encode(),
    "HTML": lambda data: html.escape(data.decode("latin-1")).encode("latin-1", "replace"),
    "percent encoding": lambda data: urllib.parse.quote(data, safe="").encode(),
    "a data: URL": lambda data: b"data:application/credbundle+jose;base64," + base64.b64encode(data),
    "a MIME part within a part": mime,
    "quotes": lambda data: b"'" + data + b"'",
    "CRLF around it": lambda data: b"\r\n" + data + b"\r\n",
}


@pytest.mark.parametrize("form", BUNDLES)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_one_wrapping_is_taken_off(wrapping: str, form: str) -> None:
    """What one tool does to a document hides no bundle."""
    bundle = BUNDLES[form]
    found = find(WRAPPINGS[wrapping](bundle))
    assert found is not None
    assert found.strip() == bundle


@pytest.mark.parametrize("document", ["armour", "cloud_config", "mime", "systemd"])
@pytest.mark.parametrize("wrapping", ["base64", "gzip", "UTF-16", "a JSON string", "HTML", "percent encoding"])
def test_documents_of_ours_may_be_wrapped_too(document: str, wrapping: str) -> None:
    """The documents in which bundles travel lose their wrappings too."""
    assert find(WRAPPINGS[wrapping](getattr(userdata, document)(GENERAL).encode())) == GENERAL


@given(
    st.lists(
        st.sampled_from(["base64", "gzip and base64", "a JSON string", "a byte order mark", "zero bytes at the end"]),
        max_size=3,
    )
)
def test_wrappings_come_off_in_any_order(names: list[str]) -> None:
    """Whatever several tools did one after the other comes off, layer by layer."""
    found = find(reduce(lambda data, name: WRAPPINGS[name](data), names, GENERAL))
    assert found is not None
    assert found.strip() == GENERAL


AROUND = [
    "#cloud-config\nwrite_files:\n- path: /x\n  content: |\n    {}\n",
    "#!/bin/sh\ncat > bundle <<'EOF'\n{}\nEOF\n",
    "#!/bin/sh\nexport BUNDLE='{}'\n",
    "[settings]\nbundle = '{}'\n",
]
NO_TEXT = {"gzip", "zlib", "UTF-16", "UTF-16 without its mark"}
"""What they make of a bundle stands in no text."""
OF_BYTES = {
    "base64", "base64url without its padding", "folded base64", "gzip", "gzip and base64", "zlib", "a data: URL",
    "a JSON string", "zero bytes at the end", "hexadecimal", "a database's hexadecimal", "a list of bytes",
}  # fmt: skip


@pytest.mark.parametrize("form", BUNDLES)
@pytest.mark.parametrize("inner", WRAPPINGS)
def test_two_wrappings_come_off_whichever_they_are(inner: str, form: str) -> None:
    """Each within each, as far as it can stand there: what comes out is the bundle, and not what is still around it."""
    once = WRAPPINGS[inner](BUNDLES[form])
    for outer, wrap in WRAPPINGS.items():
        if inner not in NO_TEXT or outer in OF_BYTES - {"a JSON string"}:
            found = find(wrap(once))
            assert found is not None, outer
            assert found.strip() == BUNDLES[form], outer


@pytest.mark.parametrize("form", BUNDLES)
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("wrapping", ["base64", "folded base64", "gzip and base64", "gzip and folded base64"])
def test_a_wrapped_one_is_found_inside_other_text(wrapping: str, around: str, form: str) -> None:
    """As cloud-init has it, also compressed (`encoding: gz+b64`), beside files that are none."""
    data = gzip.compress(BUNDLES[form]) if "gzip" in wrapping else BUNDLES[form]
    folded = base64.encodebytes(data).decode().strip().replace("\n", "\n    ")
    wrapped = folded if "folded" in wrapping else "".join(folded.split())
    others = base64.b64encode(gzip.compress(b"#!/bin/sh\necho hello\n" * 20)).decode()
    assert find(around.replace("{}", wrapped).encode()) == BUNDLES[form]
    assert find((around.replace("{}", others) + around.replace("{}", wrapped)).encode()) == BUNDLES[form]
    assert find(around.replace("{}", others).encode()) is None


@pytest.mark.parametrize("form", BUNDLES)
@pytest.mark.parametrize("around", AROUND)
def test_it_is_found_inside_other_text(around: str, form: str) -> None:
    """A YAML block, a here-document, a quoted value: the bundle that stands in it is found."""
    bundle = BUNDLES[form]
    assert find(around.replace("{}", bundle.decode()).encode()) == bundle
    assert find(around.replace("{}", base64.b64encode(bundle).decode()).encode()) == bundle


@pytest.mark.parametrize("form", BUNDLES)
@pytest.mark.parametrize(
    "cut",
    [
        lambda data: base64.b64encode(data)[:-70],
        lambda data: base64.b64encode(base64.b64encode(data))[:-70],
        lambda data: base64.b64encode(base64.b64encode(base64.b64encode(data)))[:-70],
        lambda data: gzip.compress(data)[:-20],
        lambda data: base64.b64encode(gzip.compress(data)[:-20]),
        lambda data: json.dumps({"user_data": data.decode()}).encode()[:-60],
        lambda data: json.dumps({"user_data": data.decode()}).encode("utf-16")[:-60],
        lambda data: userdata.armour(data).encode()[:-60],
        lambda data: base64.b64encode(userdata.cloud_config(data).encode())[40:],
        lambda data: base64.b64encode(data).replace(b"I", b"!", 1),
        lambda data: b"#cloud-config\nx: " + base64.b64encode(base64.b64encode(data))[:-60] + b"...\n",
    ],
)  # fmt: skip
def test_what_cannot_be_read_any_more_is_said(cut: Callable[[bytes], bytes], form: str) -> None:
    """A bundle that was cut off or garbled on its way is never "no bundle here"."""
    document = cut(BUNDLES[form])
    said = None
    try:
        found = find(document)
    except UnreadableError as error:
        said = error.message
    # Where enough is left to be told from other text, it is the decoder's to refuse.
    assert said is not None or found is not None
    assert "credbundle" not in (said or "")


def test_two_are_not_chosen_between() -> None:
    """Two bundles in one document are refused, wherever in it they stand; one that is there twice is one."""
    other = GENERAL.replace(b"AAAA", b"BBBB")
    both = [base64.b64encode(one).decode() for one in (GENERAL, other)]
    with pytest.raises(UnreadableError, match="expected one bundle"):
        find(json.dumps(both).encode())
    assert find(json.dumps([both[0], both[0], GENERAL.decode()]).encode()) == GENERAL


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(json.dumps(dict(reversed(json.loads(GENERAL).items())), indent=1).encode(), id="another order"),
        pytest.param(b"\n" + GENERAL + b"\n", id="white space around it"),
    ],
)
def test_another_spelling_of_a_bundle_is_no_second_one(again: bytes) -> None:
    """What a tool has written anew says the same: nobody is asked which of the two is meant."""
    assert find(json.dumps([GENERAL.decode(), again.decode()]).encode()) == GENERAL


def test_a_part_of_a_bundle_is_no_second_one() -> None:
    """What was cut off and is there whole too (a preview of it, a folded line) is read as what is whole."""
    assert find(json.dumps([COMPACT[:-2].decode(), COMPACT.decode()]).encode()) == COMPACT


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(urllib.parse.quote_plus(json.dumps(json.loads(GENERAL))).encode(), id="a form's"),
        pytest.param(b'bundle: "' + GENERAL.replace(b'"', b'\\"') + b'"\n', id="escaped quotes"),
        pytest.param(b"'" + userdata.armour(GENERAL).encode().replace(b"\n", b"\\n") + b"'", id="lines in one"),
        pytest.param(b"`" + GENERAL.replace(b"/", b"\\/").replace(b'"', b'\\"') + b"`", id="escaped slashes"),
    ],
)
def test_what_was_written_in_one_line_is_read(document: bytes) -> None:
    """Escapes of a form, a shell or YAML come off, alone and together."""
    found = find(document)
    assert found is not None
    assert json.loads(found) == json.loads(GENERAL)


@pytest.mark.parametrize("columns", [5, 8, 13, 20, 64, 76])
@pytest.mark.parametrize("times", [1, 2])
def test_what_is_folded_and_cannot_be_read_is_said(columns: int, times: int) -> None:
    """Wherever a line ends: the word by which a bundle is known may stand on two of them."""
    data = reduce(lambda one, _: base64.b64encode(one), range(times), GENERAL)[:-70] + b"!"
    folded = b"\n".join(data[at : at + columns] for at in range(0, len(data), columns))
    with pytest.raises(UnreadableError):
        find(b"x:\n" + folded)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(json.dumps([f"{i:0100}" for i in range(3 * MAX_CANDIDATES)]).encode(), id="many"),
        pytest.param(json.dumps([f"{i:0200000}" for i in range(12)]).encode(), id="large together"),
        pytest.param(json.dumps("!" * (MAX_DOCUMENT_BYTES + 1)).encode(), id="one that is larger than a document"),
        pytest.param(json.dumps(["!" * 100] * 9).encode(), id="the same again"),
    ],
)
def test_no_more_is_looked_at_than_the_bounds_say(document: bytes) -> None:
    """Contents are looked at once each, so many of them, none larger than a document, and so many bytes together."""
    found = list(layers(document))

    assert len(found) == len(set(found)) <= MAX_CANDIDATES + 1
    assert all(0 < len(one) <= MAX_DOCUMENT_BYTES for one in found)
    assert len(document) + sum(map(len, found)) <= max(MAX_WORK_BYTES, len(document))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"#!/bin/bash\nset -e\n",
        b"#cloud-config\nruncmd: [date]\n",
        b'{"ignition": {"version": "3.4.0"}}',
        b'{"token": "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2lnbmF0dXJl"}',
        b'{"a": {"protected": "x", "ciphertext": "y"}, "b": 1}',
        base64.b64encode(b"#!/bin/sh\necho hello\n" * 20),
        gzip.compress(b"#!/bin/sh\necho hello\n" * 20, mtime=0),
        b"\xff\xfe\x00binary",
        b"credential-agent reads bundles from /run/credential-agent/inbox\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ],
)
def test_other_peoples_documents_have_none(document: bytes) -> None:
    """What is not ours is "no bundle", and no error: most user-data is somebody else's."""
    assert find(document) is None


def test_more_layers_than_any_tool_adds_are_not_followed() -> None:
    """The depth is bounded, and what is deeper is not taken."""
    document = GENERAL
    for _ in range(MAX_LAYERS + 2):
        document = base64.b64encode(document)
    with contextlib.suppress(UnreadableError, WireError):
        assert find(document) is None


@functools.cache
def bombs() -> list[bytes]:
    zeros = gzip.compress(b"\0" * 50_000_000)
    nested = gzip.compress(gzip.compress(b"{" * 30_000_000))
    many = json.dumps([base64.b64encode(gzip.compress(bytes([i]) * 250_000)).decode() for i in range(200)]).encode()
    quoted = b'"' * 200_000
    for _ in range(3):
        quoted = json.dumps(quoted[:60_000].decode()).encode()
    return [
        base64.b64encode(zeros), json.dumps(base64.b64encode(zeros).decode()).encode(), base64.b64encode(nested), many,
        quoted, b"[" * 200_000, b'{"ciphertext":' * 15_000, b"&quot;" * 40_000, b"%22" * 80_000, b"A" * 262_144,
        b"eyJ" + b"A" * 100_000 + b"." * 100_000, (b"A" * 50 + b" ") * 5000 + b"!", b"\\n" * 100_000,
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(13))
def test_bombs_cost_little(number: int) -> None:
    """No document, however it is made, costs more than bounded work; it is compared with as much plain work."""
    started = time.process_time()
    for _ in range(400):
        zlib.crc32(bytes(MAX_DOCUMENT_BYTES))
        json.loads(b"[" + b"1," * 5000 + b"1]")
    unit = time.process_time() - started
    started = time.process_time()
    with contextlib.suppress(UnreadableError, WireError):
        find(bombs()[number])
    # Making the bombs may be in it too.
    assert time.process_time() - started < 20 * unit + 5


@given(st.binary(max_size=300), st.integers(0, 400), st.sampled_from(sorted(WRAPPINGS)))
def test_mutants_raise_nothing_else(patch: bytes, at: int, name: str) -> None:
    """Whatever is done to a wrapped bundle ends in a bundle, in none, or in one kind of error."""
    document = WRAPPINGS[name](GENERAL)
    with contextlib.suppress(UnreadableError, WireError):
        find(document[:at] + patch + document[at + len(patch) :])
