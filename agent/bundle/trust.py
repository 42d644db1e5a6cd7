"""The signers that this worker trusts, and what each may sign.

A signer is pinned by key id together with everything it may say: which issuers it may speak as, which audiences it may
address, how long its leases may be. So a team's control plane cannot sign for another team's workers even though both
keys are in the same image, and a stolen key is worth no more than its entry.

Several signers at once are how keys are rotated: pin the next one beside the present one, switch the sender, remove
the old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Self

from agent.bundle.codes import Code
from agent.bundle.jwk import VerifyKey
from agent.bundle.strict import shown
from agent.core.errors import FormatError

_MEMBERS: Final = {"key", "issuers", "audiences", "max_lease_seconds", "name", "kid"}
_LONGEST_LEASE_SECONDS: Final = 366 * 86_400


def matches(pattern: str, value: str) -> bool:
    """Whether ``value`` is what ``pattern`` says: the same text, or, when it ends in ``*``, a text that begins so.

    The star is explicit because a bare prefix is a trap: ``...cluster:team-a`` would also admit ``...cluster:team-ab``.
    """
    return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern


@dataclass(frozen=True, slots=True)
class Signer:
    """One pinned key and what it may sign for.

    Attributes:
        name: for people: logs and status.
        issuers: what claim ``iss`` may be; a trailing ``*`` makes a prefix.
        audiences: through which of our audiences it may reach us; a trailing ``*`` makes a prefix.
        max_lease: the longest lease it may give, counted from ``iat``; ``None`` for no bound of its own. A bundle of a
            bounded signer that names no ``lease_until`` is leased for this long.
    """

    name: str
    key: VerifyKey
    issuers: tuple[str, ...]
    audiences: tuple[str, ...]
    max_lease: timedelta | None = None

    @property
    def kid(self) -> str:
        """The key id that a bundle's signature must carry."""
        return self.key.kid

    def may_issue(self, issuer: str) -> bool:
        """Whether it may speak as ``issuer``."""
        return any(matches(p, issuer) for p in self.issuers)

    def may_address(self, audience: str) -> bool:
        """Whether it may reach a worker through ``audience``."""
        return any(matches(p, audience) for p in self.audiences)


@dataclass(frozen=True, slots=True)
class Trust:
    """The pinned signers of this worker."""

    signers: tuple[Signer, ...]

    def signer(self, kid: str) -> Signer | None:
        """The signer whose key id is ``kid``."""
        return next((s for s in self.signers if s.kid == kid), None)

    @classmethod
    def parse(cls, entries: Iterable[Mapping[str, object]]) -> Self:
        """Read the signers from plain configuration values.

        Args:
            entries: mappings with ``key`` (JWK, JWK Set or PEM *text*, or a JWK as a mapping), ``issuers`` and
                ``audiences`` (lists of strings), and optionally ``max_lease_seconds`` (0: any), ``name`` and ``kid``.
                A JWK Set pins each of its keys alike.

        Raises:
            FormatError: code ``key``; the message names the entry and the member. It is the operator's mistake: the
                caller turns it into a ``ConfigError``.
        """
        signers: list[Signer] = []
        for number, entry in enumerate(entries, 1):
            name = entry.get("name", f"signer {number}")
            where = f"signer {number}" if not isinstance(name, str) else name
            try:
                signers += _parse(entry, where)
            except FormatError as error:
                raise FormatError(f"{where}: {error.message}", hint=error.hint, code=Code.KEY) from None
        kids = [s.kid for s in signers]
        for kid in kids:
            if kids.count(kid) > 1:
                raise FormatError(f"two signers have the key id {kid}", code=Code.KEY)
        return cls(tuple(signers))


def _parse(entry: Mapping[str, object], name: str) -> list[Signer]:
    foreign = entry.keys() - _MEMBERS
    if foreign:
        raise FormatError(f"there is no member {shown(str(min(foreign)))!r}")
    key = entry.get("key")
    if not isinstance(key, str | bytes | Mapping):
        raise FormatError("key must be a JWK or PEM public key")
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise FormatError("kid must be a string")
    lease = entry.get("max_lease_seconds")
    if lease is not None and (type(lease) is not int or not 0 <= lease <= _LONGEST_LEASE_SECONDS):
        raise FormatError(f"max_lease_seconds must be a whole number from 0 (any) to {_LONGEST_LEASE_SECONDS}")
    issuers = _patterns(entry.get("issuers"), "issuers")
    audiences = _patterns(entry.get("audiences"), "audiences")
    return [
        Signer(
            name=name,
            key=k,
            issuers=issuers,
            audiences=audiences,
            max_lease=None if not lease else timedelta(seconds=lease),
        )
        for k in VerifyKey.parse_all(key, kid=kid)
    ]


def _patterns(value: object, what: str) -> tuple[str, ...]:
    if (
        not isinstance(value, list | tuple)
        or not value
        or not all(isinstance(v, str) and v and v.isascii() and v.isprintable() and " " not in v for v in value)
    ):
        raise FormatError(
            f"{what} must be a list of at least one text without spaces",
            hint=f'"*" at the end makes a prefix; ["*"] allows any, at the price of trusting this key with all {what}',
        )
    if any("*" in v[:-1] for v in value):
        raise FormatError(f"{what} may have * at the end only")
    return tuple(value)
