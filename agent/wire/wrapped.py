"""Finding a bundle that a tool has wrapped once more on its way, and noticing one that can no longer be read.

Documents pass through many hands: Terraform encodes user-data that was encoded already, a launch template does again, a
templating engine quotes it as JSON or escapes it as HTML, an editor writes UTF-16, a form cuts it off. An answer "there
is no bundle here" would serve another identity in silence. So an unambiguous bundle is taken out of its wrappings, and
text that only looks like a bundle is reported as unreadable.

*Unambiguously ours* is strict: within a wrapping only a JWE counts whose protected header says ``credbundle+jwe``,
armoured or not. Which wrappings there are is the list :data:`_UNWRAPPINGS`. All work is bounded, whatever the
document: see the constants. Pure functions, no I/O.

Spec: ``agent/sources/README.md``; ``agent/bundle/FORMAT.md`` for the header.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from agent.core.errors import UnreadableError, WireError
from agent.wire.names import BUNDLE_TYPE
from agent.wire.userdata import BEGIN, COMPACT, LIKE_A_BUNDLE, MAX_DOCUMENT_BYTES, extract, parts

MAX_LAYERS: Final = 6
"""Each tool adds one wrapping, some add two; more than four together were never seen."""

MAX_CANDIDATES: Final = 64
MAX_WORK_BYTES: Final = 4 * MAX_DOCUMENT_BYTES
"""Over all candidates together, so that wrappings within wrappings cannot multiply."""

TYPE: Final = BUNDLE_TYPE.encode()
_HINT: Final = "was it encoded twice, or cut off? `credential-agent inspect FILE` on what was sent tells"


def _alignments(data: bytes) -> frozenset[bytes]:
    """How ``data`` looks inside base64, at each of the three places where it may begin; its ends are left out."""
    found = set()
    for skipped in range(3):
        coded = base64.b64encode(b"\0" * skipped + data)
        found.add(coded[4 if skipped else 0 : -4])
    return frozenset(found)


_ONCE: Final = _alignments(TYPE)
_TWICE: Final = frozenset(coded for one in _ONCE for coded in _alignments(one))
_THRICE: Final = frozenset(coded for one in _TWICE for coded in _alignments(one) if len(coded) >= 16)
# base64url writes other characters for two of the sixty-four; neither occurs in these patterns.
_SIGNS: Final = re.compile(
    b"|".join(re.escape(one) for one in sorted({BEGIN.encode(), TYPE, *_ONCE, *_TWICE, *_THRICE}))
)
_GZIP: Final = b"H4sI"
"""How base64 of gzip begins (RFC 1952 section 2.3: two bytes, and the one method that there is)."""
_MOST_COMPRESSED: Final = 4
_LAST_LINE: Final = re.compile(rb"[A-Za-z0-9+/_-]{1,39}={0,2}(?![^\s'\"])")
"""Of folded base64, where all lines before it are as long as each other: a heredoc's end is none."""
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]{32,}={0,2}\Z")
_HEXADECIMAL: Final = re.compile(rb"(?:\\x|0[xX])?((?:[0-9A-Fa-f]{2}){64,})[0-9A-Fa-f]?\Z")
_COMPACT_ANYWHERE: Final = re.compile(rb"eyJ[A-Za-z0-9_-]{16,}(?:\.[A-Za-z0-9_-]*){4}")
_MARKS: Final = ((b"\xff\xfe\0\0", "utf-32-le"), (b"\0\0\xfe\xff", "utf-32-be"), (b"\xff\xfe", "utf-16-le"),
                 (b"\xfe\xff", "utf-16-be"), (b"\xef\xbb\xbf", "utf-8"))  # fmt: skip


def find(document: bytes) -> bytes | None:
    """Find the bundle that ``document`` carries, wrapped or not.

    Returns:
        The bundle's bytes; ``None`` when nothing in the document looks like one, which is the common case.

    Raises:
        WireError: it carries one that is broken, or is a bomb.
        UnreadableError: something in it looks like a bundle and cannot be taken out, or there are two.
    """
    try:
        found = extract(document)
    except WireError as error:
        if _inside(document)[1]:
            raise UnreadableError(error.message, hint=error.hint or _HINT) from None
        raise
    if found is not None and _is_ours(found):
        return found
    inside, signs, reason = _inside(document)
    if len(inside) > 1:
        raise UnreadableError(
            f"expected one bundle in the document, got {len(inside)}", hint="one document, one bundle"
        )
    if inside:
        return inside[0]
    if found is not None:
        return found  # the decoder says what is wrong with it
    if signs:
        raise UnreadableError(
            "something here looks like a bundle and cannot be read" + (f": {reason}" if reason else ""), hint=_HINT
        )
    return None


def _inside(document: bytes) -> tuple[list[bytes], bool, str]:
    """The bundles within the wrappings, whether anything looks like one, and what was wrong with the first of those."""
    ours: dict[bytes, bytes] = {}
    signs = _signs(document)
    reason = ""
    for inner in layers(document):
        signs = signs or _signs(inner)
        try:
            one = inner if _is_ours(inner) else extract(inner)
        except WireError as error:
            reason = reason or error.message
            continue
        if one is not None and _is_ours(one):
            ours.setdefault(_same(one), one.strip())
    # A part of a bundle that is also there whole is no second bundle.
    whole = [one for key, one in ours.items() if not any(key in other for other in ours if other != key)]
    return whole, signs, reason


def _signs(data: bytes) -> bool:
    # Without zero bytes, UTF-16 and UTF-32 are the same text.
    data = data[:MAX_DOCUMENT_BYTES].replace(b"\0", b"")
    return _SIGNS.search(data) is not None or _SIGNS.search(b"".join(data.split())) is not None


def _is_ours(data: bytes) -> bool:
    """Whether ``data`` is a JWE of our type."""
    text = data.strip()
    if not text.isascii() or b"\0" in text:
        return False  # json would read UTF-16 too; a bundle is ASCII
    try:
        if text.startswith(b"{"):
            protected = json.loads(text)["protected"].encode()
        else:
            if not COMPACT.match(text):
                return False  # in quotes, say: what is inside them may be one
            protected = text.partition(b".")[0]
        header = json.loads(base64.urlsafe_b64decode(protected + b"=" * (-len(protected) % 4)))
        return bool(header.get("typ") == TYPE.decode())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _same(bundle: bytes) -> bytes:
    """A key that is equal for two spellings of the same bundle."""
    text = bundle.strip()
    return json.dumps(json.loads(text), sort_keys=True).encode() if text.startswith(b"{") else text


def layers(document: bytes) -> Iterator[bytes]:
    """The content of the wrappings, breadth first, within the bounds."""
    level, seen, work = [document], {document}, len(document)
    for _ in range(MAX_LAYERS):
        below: list[bytes] = []
        for outer in level:
            for unwrap in _UNWRAPPINGS:
                for inner in unwrap(outer):
                    if not inner or inner in seen:
                        continue
                    work += len(inner)
                    if len(inner) > MAX_DOCUMENT_BYTES or work > MAX_WORK_BYTES or len(seen) > MAX_CANDIDATES:
                        return
                    seen.add(inner)
                    below.append(inner)
                    yield inner
        level = below


def _of_gzip(data: bytes) -> Iterator[bytes]:
    """Decompress as far as it goes: a document that was cut off still shows what it was."""
    if data.startswith((b"\x1f\x8b", b"\x78\x01", b"\x78\x9c", b"\x78\xda")):
        inflater = zlib.decompressobj(wbits=47)
        try:
            yield inflater.decompress(data, MAX_DOCUMENT_BYTES)
        except zlib.error:
            return


def _of_text(data: bytes) -> Iterator[bytes]:
    """Text in another encoding as UTF-8; text without the byte order mark or the zero bytes at its end."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            yield data[len(mark) :].decode(encoding, "ignore").encode("utf-8", "ignore")
            return
    if data[1::2].count(0) > len(data) // 4:
        yield data.decode("utf-16-le", "ignore").encode("utf-8", "ignore")
    elif data[::2].count(0) > len(data) // 4:
        yield data.decode("utf-16-be", "ignore").encode("utf-8", "ignore")
    elif data.rstrip(b"\0 \t\r\n") != data.rstrip():
        yield data.rstrip(b"\0 \t\r\n")


def _of_base64(data: bytes) -> Iterator[bytes]:
    """A document that is base64 from end to end, of either alphabet, folded or not."""
    packed = b"".join(data.split())
    if _BASE64.match(packed):
        packed = packed.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        packed = packed[: len(packed) - (len(packed) % 4 == 1)]
        try:
            yield base64.b64decode(packed + b"=" * (-len(packed) % 4))
        except (binascii.Error, ValueError):
            return


def _of_hexadecimal(data: bytes) -> Iterator[bytes]:
    """A document that is hexadecimal from end to end, as databases and dumps write bytes, folded or not."""
    match = _HEXADECIMAL.match(b"".join(data.split()))
    if match is not None:
        yield bytes.fromhex(match[1].decode())


def _of_url(data: bytes) -> Iterator[bytes]:
    """A ``data:`` URL, and what is percent-encoded or a form's."""
    text = data.strip()
    if text[:5].lower() == b"data:":
        _, comma, payload = text.partition(b",")
        if comma:
            yield payload
    elif re.search(rb"%(?:7[Bb]|5[Cc]|2[25BbDdEeFf]|3[Dd]|0[Aa])", data):
        yield unquote_to_bytes(data)
        if b"+" in data and b" " not in data:
            yield unquote_to_bytes(data.replace(b"+", b" "))


def _of_html(data: bytes) -> Iterator[bytes]:
    """Undo the escapes of HTML and XML."""
    if re.search(rb"&(?:quot|#34|#x22|amp|#43|#45);", data, re.IGNORECASE):
        import html  # noqa: PLC0415 - its table of names is large, and next to nothing comes as HTML

        yield html.unescape(data.decode("utf-8", "replace")).encode("utf-8", "replace")


def _of_json(data: bytes) -> Iterator[bytes]:
    """The texts, bytes and JWEs in a JSON document: a quoted bundle, a bundle in a member of something else's."""
    text = data.strip()
    if text[:1] not in (b'"', b"{", b"["):
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return
    waiting: list[Any] = [document]
    for _ in range(4 * MAX_CANDIDATES):
        if not waiting:
            return
        value = waiting.pop(0)
        if isinstance(value, str) and len(value) > 32:
            yield value.encode("utf-8", "replace")
        elif isinstance(value, dict):
            if value is not document and value.keys() & {"ciphertext", "protected"}:
                yield json.dumps(value, separators=(",", ":")).encode()
            waiting += value.values()
        elif isinstance(value, list):
            # A list of bytes, as JavaScript's Buffer writes itself.
            if len(value) > 32 and all(type(one) is int and 0 <= one < 256 for one in value):
                yield bytes(value)
            else:
                waiting += value


def _of_mime(data: bytes) -> Iterator[bytes]:
    """The parts of a MIME document, each of which may be wrapped by itself."""
    try:
        yield from parts(data)
    except WireError:
        return


def _of_quotes(data: bytes) -> Iterator[bytes]:
    """A text in quotes, as a shell or YAML has it, or with the escapes of one line."""
    text = data.strip()
    if len(text) > 2 and text[:1] == text[-1:] and text[:1] in (b"'", b'"', b"`"):
        yield text[1:-1]
    if b"\\n" in data or b'\\"' in data:
        yield data.replace(b"\\r", b"").replace(b"\\n", b"\n").replace(b'\\"', b'"').replace(b"\\/", b"/")


def _of_other_text(data: bytes) -> Iterator[bytes]:
    """A bundle standing in any text, such as a YAML block, a shell's here-document or a line ``bundle=...``."""
    for match in list(_COMPACT_ANYWHERE.finditer(data))[:4]:
        yield match[0]
    member = LIKE_A_BUNDLE.search(data)
    if member is not None:
        decoder, text = json.JSONDecoder(), data.decode("latin-1")
        for brace in [match.start() for match in re.finditer(r"\{", text[: member.start()])][-8:]:
            try:
                _, end = decoder.raw_decode(text, brace)
            except (ValueError, RecursionError):
                continue
            yield data[brace:end]
            return
    compressed = 0
    for block in re.finditer(rb"(?:^|[\s:=\"'|>])((?:[A-Za-z0-9+/_-]{40,}={0,2}\s*)+)", data):
        signs = _signs(block[1])
        # cloud-init's `gz+b64` shows no sign of what is inside.
        if not signs and (compressed >= _MOST_COMPRESSED or not block[1].startswith(_GZIP)):
            continue
        compressed += 1
        yield block[1]
        lines = block[1].split()
        last = _LAST_LINE.match(data, block.end()) if len(lines) > 1 and len({*map(len, lines)}) == 1 else None
        if last is not None:
            yield block[1] + last[0]
        if signs:
            return


_UNWRAPPINGS: Final[tuple[Callable[[bytes], Iterator[bytes]], ...]] = (
    _of_gzip,
    _of_text,
    _of_base64,
    _of_hexadecimal,
    _of_url,
    _of_html,
    _of_json,
    _of_mime,
    _of_quotes,
    _of_other_text,
)
