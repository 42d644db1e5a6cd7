"""Bundles inside user-data documents."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from email.mime.text import MIMEText

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import UnreadableError, WireError
from agent.wire import userdata
from agent.wire.userdata import (
    BEGIN,
    END,
    MAX_BOUNDARIES,
    MAX_DOCUMENT_BYTES,
    MAX_PARTS,
    armour,
    dearmour,
    extract,
)

BUNDLE = b'{"protected":"e30","recipients":[],"iv":"","ciphertext":"AAAA","tag":""}'
ARMOURED = armour(BUNDLE).encode()
COMPACT = b"eyJhbGciOiJFQ0RILUVTIn0..aXY.Y2lwaGVy.dGFn"


@pytest.mark.parametrize("write", [userdata.cloud_config, userdata.mime, userdata.systemd, armour])
@given(bundle=st.binary(min_size=1, max_size=2000))
def test_what_is_written_is_found(write: Callable[[bytes], str], bundle: bytes) -> None:
    """Each document that we write gives back exactly the bytes put in."""
    assert extract(write(bundle).encode()) == bundle


@pytest.mark.parametrize("bundle", [BUNDLE, COMPACT])
def test_a_bare_bundle_is_itself(bundle: bytes) -> None:
    """A JSON or compact bundle is the whole document, with or without white space around it."""
    assert extract(bundle) == bundle
    assert (extract(b"\n  " + bundle) or b"").strip() == bundle
    assert extract(gzip.compress(bundle)) == bundle


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"  \n",
        b"#!/bin/bash\nset -e\n",
        b"#cloud-config\nruncmd: [date]\n",
        b"Content-Type: text/plain\n\nhello",
        b'{"ignition": {"version": "3.4.0"}}',
        b'{"systemd.credentials": [{"name": "somebody.else", "text": "x"}]}',
        b'{"systemd.credentials": ["x", 5, null, [], {}]}',
        b"{not json",
        b"[1, 2]",
        b"\xff\xfe\x00binary",
        b"version = 1\n[settings]\n",
    ],
)
def test_other_peoples_user_data_has_no_bundle(document: bytes) -> None:
    """Scripts, cloud-configs, Ignition, TOML, binary: nothing to do with us, and no trouble."""
    assert extract(document) is None


@pytest.mark.parametrize("prefix", ["", "# ", "#", "    ", "\t# ", "// ", ";; ", "      # "])
def test_armour_is_found_commented_out_and_indented(prefix: str) -> None:
    """Wherever a document's language lets a comment or a block stand, armour is found in it."""
    text = "#!/bin/sh\necho before\n" + armour(BUNDLE, prefix=prefix) + "echo after\n"
    assert extract(text.encode()) == BUNDLE
    assert extract(text.replace("\n", "\r\n").encode()) == BUNDLE


def test_armour_inside_write_files_is_found() -> None:
    """A bundle as the content of a cloud-config file entry is found where it stands."""
    block = armour(BUNDLE, prefix="      ")
    document = f"#cloud-config\nwrite_files:\n  - path: /run/bundle\n    content: |\n{block}runcmd: [date]\n"
    assert extract(document.encode()) == BUNDLE


@pytest.mark.parametrize(
    "text",
    [
        BEGIN + "\nAAAA\n",
        "AAAA\n" + END + "\n",
        END + "\nAAAA\n" + BEGIN + "\n",
        armour(b"one") + armour(b"two"),
        BEGIN + "\n!!!!\n" + END + "\n",
        BEGIN + "\nAAA\n" + END + "\n",
        BEGIN + "\n" + END + "\n",
        BEGIN + "\nAAAA # comment\n" + END + "\n",
        BEGIN + "\nAA==AAAA\n" + END + "\n",
    ],
    ids=["no-end", "no-begin", "reversed", "two", "not-base64", "cut", "empty", "trailing", "padding-inside"],
)
def test_broken_armour_is_refused(text: str) -> None:
    """A block that is cut off, doubled or not base64 is an error, and never part of a bundle."""
    with pytest.raises(WireError):
        dearmour(text.encode())


def test_mime_parts_of_our_type_and_with_armour_are_found() -> None:
    """Beside other parts, plain or base64, nested or not, ours is the one that is found."""
    ours = MIMENonMultipart("application", "credbundle+jose")
    ours.set_payload(BUNDLE.decode())
    for part in (
        ours,
        MIMEText(userdata.cloud_config(BUNDLE), "cloud-config"),
        MIMEText(armour(BUNDLE), "plain", "utf-8"),
    ):
        outer, inner = MIMEMultipart(), MIMEMultipart()
        outer.attach(MIMEText("#!/bin/sh\necho hi\n", "x-shellscript"))
        inner.attach(part)
        outer.attach(inner)
        assert extract(outer.as_bytes()) == BUNDLE
        assert extract(gzip.compress(outer.as_bytes())) == BUNDLE


def test_two_bundles_in_one_document_are_refused() -> None:
    """Which one is meant is not for us to guess."""
    both = MIMEMultipart()
    for _ in range(2):
        both.attach(MIMEText(userdata.cloud_config(BUNDLE), "cloud-config"))
    with pytest.raises(WireError, match="one bundle"):
        extract(both.as_bytes())
    entry = {"name": userdata.CREDENTIAL_NAME, "text": "x"}
    with pytest.raises(WireError, match="one entry"):
        extract(json.dumps({"systemd.credentials": [entry, entry]}).encode())


@pytest.mark.parametrize(
    "value",
    [
        {"text": BUNDLE.decode()},
        {"data": base64.b64encode(BUNDLE).decode()},
        {"data": base64.encodebytes(BUNDLE).decode()},
    ],
)
def test_systemds_document_in_its_forms(value: dict[str, str]) -> None:
    """Text, and base64 with or without line breaks."""
    entries = [{"name": "other", "text": "x"}, {"name": userdata.CREDENTIAL_NAME, **value}]
    assert extract(json.dumps({"systemd.credentials": entries}).encode()) == BUNDLE


@pytest.mark.parametrize(
    "document",
    [
        {"systemd.credentials": {}},
        {"systemd.credentials": [{"name": userdata.CREDENTIAL_NAME}]},
        {"systemd.credentials": [{"name": userdata.CREDENTIAL_NAME, "encrypted": "AAAA"}]},
        {"systemd.credentials": [{"name": userdata.CREDENTIAL_NAME, "data": "!"}]},
    ],
)
def test_systemds_document_broken_or_not_for_us(document: object) -> None:
    """An entry that only systemd can open, or that is broken, is an error that says so."""
    with pytest.raises(WireError):
        extract(json.dumps(document).encode())


@given(st.integers(2, len(gzip.compress(ARMOURED)) - 1))
def test_a_compressed_document_that_was_cut_off_is_broken(at: int) -> None:
    """What is left of it may look like a document without a bundle, which would leave workers the machine's identity."""
    with pytest.raises(WireError):
        extract(gzip.compress(ARMOURED)[:at])


def message(*parts: Message) -> MIMEMultipart:
    """A multipart document of them."""
    outer = MIMEMultipart()
    for part in parts:
        outer.attach(part)
    return outer


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(b"#" * (MAX_DOCUMENT_BYTES - len(ARMOURED) - 1) + b"\n" + ARMOURED, id="bytes"),
        pytest.param(gzip.compress(b"#" * (MAX_DOCUMENT_BYTES - len(ARMOURED) - 1) + b"\n" + ARMOURED), id="inflated"),
        pytest.param(
            message(*(MIMEText("x") for _ in range(MAX_PARTS - 1)), MIMEText(ARMOURED.decode())).as_bytes(), id="parts"
        ),
        pytest.param(
            message(
                *(message(MIMEText("x")) for _ in range(MAX_BOUNDARIES - 2)), message(MIMEText(ARMOURED.decode()))
            ).as_bytes(),
            id="boundaries",
        ),
    ],
)
def test_as_much_as_is_allowed_is_read(document: bytes) -> None:
    """A document at a bound carries its bundle as any other does."""
    assert extract(document) == BUNDLE


def test_parts_are_counted_together_however_deep_they_are() -> None:
    """Two levels that are each within the bound are above it together."""
    inner = message(*(MIMEText("x") for _ in range(MAX_PARTS // 2 + 1)))
    with pytest.raises(WireError, match="parts"):
        extract(message(*(MIMEText("x") for _ in range(MAX_PARTS // 2)), inner).as_bytes())


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(b"Content-Type: multipart/mixed; boundary*=a\0'b'c\n\n--c\n\nx\n", id="a charset with a null"),
        pytest.param(b"Content-Type: multipart/mixed; boundary*=idna'b'%ff\n\n--c\n\nx\n", id="a charset that cannot"),
        pytest.param(b"Content-Type: multipart/mixed; boundary*%b*=a\n\nx\n" % (b"9" * 5000), id="a long number"),
        pytest.param(b"Content-Type: message/rfc822\n\n" * 3000, id="deeper than a parser may recurse"),
        pytest.param(b"Content-Type: application/credbundle+jose\n\n \n", id="a part of our type that is empty"),
    ],
)
def test_broken_mime_documents_are_refused_in_one_way(document: bytes) -> None:
    """Whatever the standard library's parser raises, and an empty part of our type, is an error that says so."""
    with pytest.raises(WireError):
        extract(document)


def test_bombs_cost_nothing() -> None:
    """A gzip bomb ends at the limit; so does one in a MIME part, a thousand parts, and parts a hundred deep."""
    bomb = gzip.compress(b"\n" * (8 * MAX_DOCUMENT_BYTES))
    assert len(bomb) < 65_536
    with pytest.raises(WireError, match="after decompression"):
        extract(bomb)
    part = MIMENonMultipart("application", "octet-stream")
    part["Content-Transfer-Encoding"] = "base64"
    part.set_payload(base64.encodebytes(bomb).decode())
    document = MIMEMultipart()
    document.attach(part)
    with pytest.raises(WireError, match="after decompression"):
        extract(document.as_bytes())
    wide = MIMEMultipart()
    for _ in range(1000):
        wide.attach(MIMEText("x"))
    with pytest.raises(WireError, match="parts"):
        extract(wide.as_bytes())
    deep = MIMEMultipart()
    for _ in range(100):
        above = MIMEMultipart()
        above.attach(deep)
        deep = above
    with pytest.raises(WireError, match="boundaries"):
        extract(deep.as_bytes())
    nested = MIMEMultipart()
    for _ in range(6):
        above = MIMEMultipart()
        above.attach(nested)
        nested = above
    with pytest.raises(WireError, match="deep"):
        extract(nested.as_bytes())
    with pytest.raises(WireError, match="at most"):
        extract(b"x" * (MAX_DOCUMENT_BYTES + 1))


@pytest.mark.parametrize(
    "document",
    [
        b"MIME-Version: 1.0\n"
        + b"".join(b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (n, n) for n in range(900))
        + b"x\n" * 100_000,
        b"MIME-Version: 1.0\n"
        + b"".join(b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (n, n) for n in range(15))
        + b"x\n" * 120_000,
        b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="b"\n\n' + b"--b\n\nx\n" * 30_000,
        b"Content-Type: multipart/mixed; " + b'a="b"; ' * 37_000 + b"\n\n--b\n",
        b"MIME-Version: 1.0\n" + b"A: b\n" * 50_000,
        b"#" * 130_000 + b" " * 130_000,
        b'{"a":' * 50_000,  # deeper than a parser may recurse
    ],
    ids=["nested", "nested-within-bounds", "many-parts", "long-header", "many-headers", "comment", "deep-json"],
)
def test_documents_made_to_be_slow_are_not(document: bytes) -> None:
    """The worst that the size allows costs a few seconds of CPU at the very most (in a thread), not minutes."""
    began = time.process_time()
    with contextlib.suppress(WireError):
        extract(document)
    assert time.process_time() - began < 5


@given(st.binary(max_size=400))
def test_hostile_documents_raise_nothing_else(document: bytes) -> None:
    """Whatever the bytes are, the answer is bytes, None or our own error."""
    for text in (
        document,
        b"MIME-Version: 1.0\n" + document,
        b"\x1f\x8b" + document,
        b"{" + document,
        BEGIN.encode() + b"\n" + document,
    ):
        try:
            found = extract(text)
        except (UnreadableError, WireError):
            continue
        assert found is None or isinstance(found, bytes)


@given(
    st.integers(min_value=0, max_value=10_000),
    st.sampled_from(["mime", "cloud_config", "systemd"]),
    st.binary(max_size=3),
)
def test_mutated_documents_raise_nothing_else(at: int, kind: str, patch: bytes) -> None:
    """A document with a few bytes changed or cut off is found, not found, or refused with our own error."""
    document = getattr(userdata, kind)(BUNDLE).encode()
    at %= len(document)
    for text in (document[:at], document[:at] + patch + document[at + len(patch) :]):
        try:
            extract(text)
        except (UnreadableError, WireError):
            continue


def test_cloud_init_sees_nothing_in_what_we_write() -> None:
    """The cloud-config we write is an empty document to a YAML reader: there is nothing for cloud-init to dislike."""
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which reads as cloud-init does")
    text = userdata.cloud_config(BUNDLE)
    assert text.startswith("#cloud-config\n")
    assert yaml.safe_load(text) is None
    with_more = text + "runcmd: [date]\n"
    assert yaml.safe_load(with_more) == {"runcmd": ["date"]}


def test_a_shell_sees_nothing_in_what_we_write() -> None:
    """Armour in comments of a script does not change what the script does."""
    sh = shutil.which("sh")
    if sh is None:
        pytest.skip("needs sh")
    script = "#!/bin/sh\n" + armour(BUNDLE, prefix="# ") + "echo ran\n"
    done = subprocess.run([sh], input=script, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("ran\n", "")


@pytest.mark.parametrize("columns", [4, 50, 64, 76])
@pytest.mark.parametrize("prefix", ["", "// ", "//", "# ", "#", "  ;; "])
def test_lines_that_begin_like_a_comment_are_whole(columns: int, prefix: str) -> None:
    """Two slashes are base64 too: a line that begins with them loses nothing, however it was folded."""
    body = base64.b64encode(b"\xff\xff\xff" * 60).decode()
    lines = [BEGIN, *(body[at : at + columns] for at in range(0, len(body), columns)), END]
    assert dearmour("".join(f"{prefix}{line}\n" for line in lines).encode()) == b"\xff\xff\xff" * 60
