"""How one process of the agent writes for the next: what :mod:`agent.daemon.kept` and :mod:`.handover` have in common.

Only this unit's processes and root could write the bytes that are read back. It is checked like a stranger's all the
same: it may be of a later version, of one that had a defect, or cut short. At worst everything is asked for again; it
never prevents a start, and never yields a time beyond what a datetime can hold.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from agent.core.errors import HostError
from agent.core.instants import in_utc
from agent.core.model import AwsCredential, Credential, GoogleToken
from agent.core.secret import Secret

T = TypeVar("T")

FIRST_YEAR: Final = 1970
LAST_YEAR: Final = 9000
"""No later time can be computed from one near these: a datetime ends with the year 9999."""


class Bearing(msgspec.Struct, frozen=True, kw_only=True):
    """Holds a credential of either cloud, each under its own name, so that the kind need not be guessed."""

    aws: AwsCredential | None = None
    google: GoogleToken | None = None

    @property
    def credential(self) -> Credential | None:
        """The one that is there."""
        return self.aws or self.google

    def counts(self, ends: datetime | None) -> bool:
        """Whether it can be taken over with that end on our clock: a Google token moves with the clock."""
        google = self.google
        return reckonable(ends) and (google is None or reckonable(google.issued_at, google.expires_at))


def either(credential: Credential) -> dict[str, Any]:
    """The arguments of :class:`Bearing` for that credential."""
    return {"aws" if isinstance(credential, AwsCredential) else "google": credential}


class _Version(msgspec.Struct):
    version: int = 1


def encode(value: msgspec.Struct) -> bytes:
    """In the clear: for the sealed memory that only this unit gets back."""
    return msgspec.json.encode(value, enc_hook=_reveal)


def decode(data: bytes, kind: type[T], *, version: int) -> T:
    """Read what :func:`encode` wrote. Unknown members are ignored; another version is another format.

    Raises:
        HostError: it makes no sense, is of another version, or names an instant without saying that it is UTC.
    """
    try:
        found = msgspec.json.decode(data, type=_Version).version
        if found != version:
            raise HostError(f"expected version {version}, got {found}")
        value = msgspec.json.decode(data, type=kind, dec_hook=_hide)
        utc = in_utc(value)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, OverflowError):
        raise HostError("it makes no sense") from None
    if not utc:
        raise HostError("it has instants that are not utc")
    return value


def reckonable(*instants: datetime | None) -> bool:
    """Whether one can count from those instants; ``None`` is skipped."""
    return all(FIRST_YEAR <= instant.year < LAST_YEAR for instant in instants if instant is not None)


def _reveal(value: object) -> object:
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError


def _hide(kind: type, value: object) -> object:
    return kind(value)
