"""A claims file: what a sender, or a program for it, writes before it is sealed.

It has the members of the claims in FORMAT.md, all optional here, save those that sealing makes itself (``ver``,
``iat``, ``recip``). Secrets stand in it in clear, so it is read and never written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent.bundle.claims import Claims, Content, decode_content
from agent.core.errors import PayloadError
from agent.core.model import Action, Cloud, Grant, NumericDate, OnExpiry
from agent.core.secret import reveal

_MADE: frozenset[str] = frozenset({"ver", "iat", "recip"})


class ClaimsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The claims a sender gives. Absent members come from the command line or a default."""

    iss: str | None = None
    sub: str | None = None
    aud: str | tuple[str, ...] = ()
    jti: str | None = None
    seq: int | None = None
    action: Action | None = None
    nbf: NumericDate | None = None
    exp: NumericDate | None = None
    lease_until: NumericDate | None = None
    on_expiry: OnExpiry | None = None
    grants: tuple[dict[str, Any], ...] = ()
    routes: dict[Cloud, str] | None = None

    @property
    def audiences(self) -> tuple[str, ...]:
        """``aud`` as a list; RFC 7519 lets a single one be a bare string."""
        return (self.aud,) if isinstance(self.aud, str) else self.aud


def read_claims(text: bytes) -> ClaimsFile:
    """Read a claims file.

    Raises:
        PayloadError: it is not JSON, has a member that claims do not have, or one of the wrong type.
    """
    why = ""
    try:
        raw = json.loads(text)
        if isinstance(raw, dict) and (made := raw.keys() & _MADE):
            why = f"expected no {', '.join(sorted(made))}: sealing makes that itself"
        else:
            return msgspec.convert(raw, ClaimsFile)
    except msgspec.ValidationError as error:
        why = str(error)
    except (ValueError, RecursionError) as error:
        # The message of a JSON error names a position, never the text.
        why = f"expected JSON, got something else ({error})"
    # Raised out here so that no cause hangs on it: the cause would hold the text, and the text holds secrets.
    raise PayloadError(f"the claims file: {why[:1].lower()}{why[1:]}", hint="agent/bundle/FORMAT.md lists the claims")


def content_of(grants: Sequence[Grant | Mapping[str, Any]], routes: Mapping[Cloud, str] | None) -> Content:
    """The grants as the worker will see them, with the routes it will infer.

    Raises:
        PayloadError: what the worker would refuse.
    """
    raw = tuple(_raw(grant) for grant in grants)
    frame = Claims(
        ver=1,
        iss="-",
        sub="-",
        jti="-",
        aud="-",
        iat=0,
        exp=0,
        seq=0,
        action=Action.SET,
        recip=("-",),
        grants=raw,
        routes=None if routes is None else dict(routes),
    )
    return decode_content(frame)


def redacted(value: Any) -> Any:
    """The value in plain types, with every secret as ``[redacted]``: for showing."""
    return msgspec.to_builtins(value, enc_hook=str)


def _raw(grant: Grant | Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(grant, enc_hook=reveal)
    return {name: value for name, value in plain.items() if value is not None}
