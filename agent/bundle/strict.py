"""JSON and base64url without a second reading: what two parsers could take for different things is refused.

Nothing here knows what a bundle is. Every failure is a :class:`FormatError`, raised outside the ``except`` block so
that no library exception, which may carry the whole document, hangs on it as context.
"""

from __future__ import annotations

import binascii
import json
import re
from typing import Any, Final, NoReturn

from agent.bundle.codes import Code
from agent.core.errors import FormatError
from agent.core.text import printable

_BASE64URL: Final = re.compile(rb"[A-Za-z0-9_-]*\Z")
_ESCAPE: Final = re.compile(r"\\.", re.DOTALL)
_BRACKET: Final = re.compile(r"[\[\]{}]")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_LONGEST_NUMBER: Final = 17  # digits and sign of a uint53: Python refuses long ones anyway, but by its own error
_SHOWN: Final = 60  # characters of a hostile name that reach a message


class _Refusal(Exception):
    """Carries a sentence out of the hooks of the JSON parser; never leaves this module."""


def shown(text: str) -> str:
    """``text``, fit for an error message: bounded, printable, one line."""
    clipped = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return printable(clipped)


def base64url(text: str | bytes, what: str) -> bytes:
    """Decode unpadded base64url (RFC 7515 section 2), accepting exactly one spelling of each value.

    Python's decoder skips foreign characters and ignores the unused bits of the last one; either would let one bundle
    have many spellings.

    Args:
        text: the encoded value.
        what: its name, for the message.

    Raises:
        FormatError: it is not base64url, is padded, or is not the canonical spelling.
    """
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    decoded: bytes | None = None
    if _BASE64URL.match(raw) and len(raw) % 4 != 1:
        try:
            decoded = binascii.a2b_base64(raw.translate(_TO_STANDARD) + b"=" * (-len(raw) % 4), strict_mode=True)
        except binascii.Error:
            decoded = None
    if decoded is None or base64url_encode(decoded) != raw.decode("ascii", "replace"):
        raise FormatError(f"{what} is not unpadded, canonical base64url", code=Code.ENCODING)
    return decoded


_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_FROM_STANDARD: Final = bytes.maketrans(b"+/", b"-_")


def base64url_encode(raw: bytes) -> str:
    """Encode as unpadded base64url (RFC 7515 section 2)."""
    return binascii.b2a_base64(raw, newline=False).rstrip(b"=").translate(_FROM_STANDARD).decode("ascii")


def json_object(raw: bytes, what: str, *, depth: int) -> dict[str, Any]:
    """Parse one JSON object (RFC 8259, I-JSON of RFC 7493), strictly.

    Refused: anything but UTF-8, a byte order mark, duplicate names, unpaired surrogates, fractions and exponents, NaN,
    numbers beyond 53 bits, nesting deeper than ``depth``, trailing data.

    Args:
        raw: the document.
        what: its name, for the message.
        depth: how deep objects and arrays may nest, the outermost counting as one.

    Raises:
        FormatError: with code ``json``.
    """
    why = ""
    value: Any = None
    try:
        text = raw.decode("utf-8")
        _check_depth(text, depth)
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_no_fraction,
            parse_constant=_no_constant,
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _Refusal as refusal:
        why = str(refusal)
    except UnicodeDecodeError as error:
        why = f"it is not UTF-8 at byte {error.start}"
    except UnicodeEncodeError:
        why = "it has an unpaired surrogate"
    except json.JSONDecodeError as error:
        why = f"{error.msg[:1].lower()}{error.msg[1:].removesuffix(' at')} at character {error.pos}"
    except RecursionError:
        why = "it nests too deep"
    if why:
        raise FormatError(f"{what} is not strict JSON: {why}", code=Code.JSON)
    if not isinstance(value, dict):
        raise FormatError(f"{what} must be a JSON object, got {type(value).__name__}", code=Code.JSON)
    return value


def _check_depth(text: str, depth: int) -> None:
    """Refuse deep nesting before the parser builds anything from it. Linear whatever the input: no backtracking."""
    level = 0
    outside_strings = _ESCAPE.sub("", text).split('"')[::2]
    for bracket in _BRACKET.findall("".join(outside_strings)):
        level += 1 if bracket in "[{" else -1
        if level > depth:
            raise _Refusal(f"it nests deeper than {depth}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Refusal(f"the name {shown(name)!r} appears twice")
            seen.add(name)
    return out


def _integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER or abs(int(text)) >= 1 << 53:
        raise _Refusal("a number is beyond 53 bits")
    return int(text)


def _no_fraction(_: str) -> NoReturn:
    raise _Refusal("numbers must be whole, without fraction or exponent")


def _no_constant(text: str) -> NoReturn:
    raise _Refusal(f"{text} is not JSON")
