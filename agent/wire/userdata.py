"""Carrying a bundle inside EC2 user-data, or any other text: both directions.

A bundle may be the whole document, one part of a MIME multipart document, the value of a ``systemd.credentials``
entry, or *armoured*: base64 between two marker lines, each line of which may be indented and commented out. Armour
makes a bundle invisible to cloud-init: every version ignores a comment in a cloud-config or shell script, but warns of
an unknown top-level key and calls a boot with an unknown MIME type "degraded". And finding armour needs no YAML parser.

This is a codec: no I/O, limits before work, and one way to fail. It finds bytes; whether they are a bundle,
the decoder says.

Spec: ``agent/sources/README.md``; the ``systemd.credentials`` object of systemd-imds(1); RFC 2046 for multipart.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import textwrap
import zlib
from typing import TYPE_CHECKING, Final

from agent.core.errors import WireError
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.wire.names import BUNDLE_MEDIA_TYPE

if TYPE_CHECKING:
    from email.message import Message

CREDENTIAL_NAME: Final = "credential-agent.bundle"
"""The name of the entry in ``systemd.credentials``, and of the systemd credential it becomes."""

BEGIN: Final = "-----BEGIN CREDENTIAL BUNDLE-----"
END: Final = "-----END CREDENTIAL BUNDLE-----"
ARMOUR_COLUMNS: Final = 76

MAX_DOCUMENT_BYTES: Final = MAX_BUNDLE_BYTES
"""The most a document may hold after decompression. EC2 allows 16 KiB; cloud-init gzips, and gzip bombs are cheap."""

MAX_PARTS: Final = 64
MAX_DEPTH: Final = 4
MAX_BOUNDARIES: Final = 16
"""Bounds on a MIME document. The standard library's parser tries every enclosing boundary on every line, so a thousand
nested ones cost it a minute; they are counted before it is asked."""

# Between the markers each line holds base64 only, after what indents it or comments it out.
# Two slashes are base64 too: they are a comment only before a space, or where the marker line has them without one.
_LINE: Final = re.compile(rb"^[ \t]*(?:[#;]+[ \t]*|(?://)+[ \t]+)?([A-Za-z0-9+/=]*)[ \t]*\r?$")
_LINE_AFTER_SLASHES: Final = re.compile(rb"^[ \t]*//([A-Za-z0-9+/=]*)[ \t]*\r?$")
_MARK: Final = re.compile(
    rb"^[ \t]*(?:(?:#|//|;)+[ \t]*)?-----(BEGIN|END) CREDENTIAL BUNDLE-----[ \t]*\r?$", re.MULTILINE
)
# The first header of a MIME document; cloud-init looks for the same two.
_MIME_START: Final = re.compile(rb"^(?:Content-Type:|MIME-Version:)", re.IGNORECASE)
_BOUNDARY: Final = re.compile(rb"\bboundary\*?\d*\*?[ \t]*=", re.IGNORECASE)
LIKE_A_BUNDLE: Final = re.compile(rb'"(?:ciphertext|protected|encrypted_key)"')
COMPACT: Final = re.compile(rb"^[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*){4}\s*$")


def extract(document: bytes) -> bytes | None:
    """Find the bundle that a document carries.

    Args:
        document: user-data as the metadata service gives it; may be gzipped.

    Returns:
        The bundle's bytes; ``None`` when the document carries none, which is the common case.

    Raises:
        WireError: it carries one that is broken, or more than one, or is a bomb.
    """
    document = _inflate(document)
    text = document.lstrip()
    if not text:
        return None
    if text.startswith(b"{"):
        return _from_json(text)
    if COMPACT.match(text):
        return text
    if _MIME_START.match(text):
        return _from_mime(text)
    return dearmour(document)


def parts(document: bytes) -> list[bytes]:
    """The decoded contents of the parts of a MIME document; none when it is no such document.

    Raises:
        WireError: it has too many, or too deep ones.
    """
    text = document.lstrip()
    if not _MIME_START.match(text):
        return []
    contents = [part.get_payload(decode=True) for part in _leaves(_message(text))]
    return [content for content in contents if isinstance(content, bytes)]


def armour(bundle: bytes, *, prefix: str = "") -> str:
    """Write a bundle as armour, each line begun with ``prefix``."""
    body = textwrap.wrap(base64.b64encode(bundle).decode("ascii"), ARMOUR_COLUMNS)
    return "".join(f"{prefix}{line}\n" for line in (BEGIN, *body, END))


def dearmour(text: bytes) -> bytes | None:
    """Find armour anywhere in a text; ``None`` when it has none.

    Raises:
        WireError: one marker without the other, something that is no base64 between them, or two blocks.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        return None
    if [mark[1] for mark in marks] != [b"BEGIN", b"END"]:
        raise WireError(
            f"expected one block between {BEGIN!r} and {END!r}, got {len(marks)} such lines",
            hint="one document carries one bundle; was it cut off?",
        )
    body = bytearray()
    bare_slashes = b"//-" in marks[0][0]
    for line in text[marks[0].end() : marks[1].start()].split(b"\n"):
        match = (_LINE_AFTER_SLASHES.match(line) if bare_slashes else None) or _LINE.match(line)
        if match is None:
            raise WireError("expected base64 between the markers of the bundle, got something else")
        body += match[1]
    return _base64(bytes(body), "the armour")


def cloud_config(bundle: bytes) -> str:
    """A cloud-config document that does nothing but carry the bundle, in comments."""
    return "#cloud-config\n# The lines below are for credential-agent; cloud-init reads them as a comment.\n" + armour(
        bundle, prefix="# "
    )


def mime(bundle: bytes) -> str:
    """A MIME multipart document with the bundle as one part, to which others are added.

    The part is a cloud-config with armour in comments, not one of :data:`BUNDLE_MEDIA_TYPE`, for which cloud-init would
    log a warning. Both are read.
    """
    boundary = "==credential-agent=="
    return (
        f'Content-Type: multipart/mixed; boundary="{boundary}"\nMIME-Version: 1.0\n\n'
        f'--{boundary}\nContent-Type: text/cloud-config; charset="us-ascii"\nMIME-Version: 1.0\n'
        f'Content-Transfer-Encoding: 7bit\nContent-Disposition: attachment; filename="credential-bundle.cfg"\n\n'
        f"{cloud_config(bundle)}\n--{boundary}--\n"
    )


def systemd(bundle: bytes) -> str:
    """The JSON document that systemd-imdsd imports as a credential, and that older systems leave alone."""
    entry = {"name": CREDENTIAL_NAME, "data": base64.b64encode(bundle).decode("ascii")}
    return json.dumps({"systemd.credentials": [entry]}) + "\n"


def _inflate(document: bytes) -> bytes:
    """Undo gzip, no further than the limit."""
    if len(document) > MAX_DOCUMENT_BYTES:
        raise WireError(f"expected a document of at most {MAX_DOCUMENT_BYTES} bytes, got {len(document)}")
    if not document.startswith(b"\x1f\x8b"):
        return document
    inflater = zlib.decompressobj(wbits=31)
    try:
        data = inflater.decompress(document, MAX_DOCUMENT_BYTES + 1)
    except zlib.error as error:
        raise WireError("expected gzip, as its first bytes say, got something broken") from error
    if len(data) > MAX_DOCUMENT_BYTES:
        raise WireError(f"expected at most {MAX_DOCUMENT_BYTES} bytes after decompression, got more")
    if not inflater.eof:
        raise WireError("expected a whole gzip document, got one that was cut off")
    return data


def _from_json(text: bytes) -> bytes | None:
    """A bundle in a JSON form, or systemd's document."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        # It may be a bundle that was cut off: then the decoder says what is wrong with it. Other people's JSON
        # (Ignition's, say) carries none.
        return text if LIKE_A_BUNDLE.search(text) else None
    if "systemd.credentials" not in document:
        return text if document.keys() & {"ciphertext", "protected", "encrypted_key"} else None
    entries = document["systemd.credentials"]
    if not isinstance(entries, list):
        raise WireError("systemd.credentials: expected a list, got something else")
    ours = [entry for entry in entries if isinstance(entry, dict) and entry.get("name") == CREDENTIAL_NAME]
    if not ours:
        return None
    if len(ours) > 1:
        raise WireError(f"systemd.credentials: expected one entry {CREDENTIAL_NAME!r}, got {len(ours)}")
    value = ours[0]
    if isinstance(value.get("text"), str):
        return str(value["text"]).encode()
    if isinstance(value.get("data"), str):
        return _base64(value["data"].encode(), f"systemd.credentials: {CREDENTIAL_NAME}")
    raise WireError(
        f"systemd.credentials: expected {CREDENTIAL_NAME!r} to have text or data, got neither",
        hint="an encrypted entry is opened by systemd alone: give it to the agent with LoadCredentialEncrypted=",
    )


def _from_mime(text: bytes) -> bytes | None:
    """A part of our type, or armour in any other part."""
    found = [bundle for part in _leaves(_message(text)) if (bundle := _from_part(part)) is not None]
    if len(found) > 1:
        raise WireError(f"expected one bundle in the MIME document, got {len(found)}")
    return found[0] if found else None


def _message(text: bytes) -> Message:
    if (boundaries := len(_BOUNDARY.findall(text))) > MAX_BOUNDARIES:
        raise WireError(f"expected at most {MAX_BOUNDARIES} MIME boundaries, got {boundaries}")
    # Imported for a MIME document only: imports at the top cost time at every start.
    from email import message_from_bytes, policy  # noqa: PLC0415
    from email.errors import MessageError  # noqa: PLC0415

    try:
        return message_from_bytes(text, policy=policy.compat32)
    except (ValueError, LookupError, RecursionError, MessageError) as error:
        raise WireError("expected a MIME document, got a broken one") from error


def _leaves(message: Message) -> list[Message]:
    """Every part that is not itself a multipart, in order, within the bounds."""
    leaves: list[Message] = []
    level: list[Message] = [message]
    for _ in range(MAX_DEPTH):
        below: list[Message] = []
        for part in level:
            children = part.get_payload()
            if isinstance(children, list):
                below += [child for child in children if not isinstance(child, str)]
            else:
                leaves.append(part)
        if len(leaves) + len(below) > MAX_PARTS:
            raise WireError(f"expected at most {MAX_PARTS} MIME parts, got more")
        if not below:
            return leaves
        level = below
    raise WireError(f"expected MIME parts at most {MAX_DEPTH} deep, got deeper ones")


def _from_part(part: Message) -> bytes | None:
    try:
        content = part.get_payload(decode=True)
    except (ValueError, LookupError) as error:  # an unknown charset or transfer encoding
        raise WireError("expected a MIME part that can be decoded, got one that cannot") from error
    if not isinstance(content, bytes):
        return None
    if part.get_content_type() == BUNDLE_MEDIA_TYPE:
        bundle = content.strip()
        if not bundle:
            raise WireError(f"expected a bundle in the MIME part of type {BUNDLE_MEDIA_TYPE}, got nothing")
        return bundle
    return dearmour(_inflate(content))


def _base64(text: bytes, where: str) -> bytes:
    try:
        bundle = base64.b64decode(b"".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"{where}: expected base64, got something else") from error
    if not bundle:
        raise WireError(f"{where}: expected a bundle, got nothing")
    return bundle
