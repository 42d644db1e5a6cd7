"""The lines by which whoever launches a machine names signers for it, in whatever document they stand.

One form for all carriers: a line ``credential-agent-signer: KEY``, anywhere in a text (a comment of a cloud-config or a
script, a part of a MIME document, a text of systemd's credentials), within the same wrappings as a bundle
(:mod:`agent.wire.wrapped`). A key is ``ed25519:`` or ``p256:`` and base64url, one word without quotes, so that no tool
has anything to escape; it fits an EC2 tag. A JWK on one line is taken too. Pure functions, no I/O.
"""

from __future__ import annotations

import re
from typing import Final

from agent.wire.userdata import MAX_DOCUMENT_BYTES
from agent.wire.wrapped import layers

MAX_SIGNERS: Final = 16
"""Of one document; further ones are not read."""

_LINE: Final = re.compile(
    rb"(?<![A-Za-z0-9_-])credential-agent-signer[ \t]*[:=][ \t]*[\"']?"
    rb"((?:ed25519|p256):[A-Za-z0-9_-]{43,44}(?![A-Za-z0-9_-])|\{[^{}\r\n]{8,1000}\})"
)


def line(key: str) -> str:
    """The line that names ``key`` (``ed25519:...``)."""
    return f"credential-agent-signer: {key}"


def find_signers(document: bytes) -> tuple[str, ...]:
    """The keys that lines of ``document`` name, each once, in their order; none is the common case."""
    found: dict[str, None] = {}
    for text in (document[:MAX_DOCUMENT_BYTES], *layers(document[:MAX_DOCUMENT_BYTES])):
        for match in _LINE.finditer(text):
            found.setdefault(match[1].decode("ascii", "replace"))
            if len(found) == MAX_SIGNERS:
                return tuple(found)
    return tuple(found)
