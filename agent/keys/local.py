"""Keys in this process's memory: from a file, from a systemd credential, or made at boot.

An ephemeral key is the best kind where its public half can be brought to the sender: it is nowhere on disk or in an
image, and dies with the machine. A systemd credential comes next: the unit's ``LoadCredentialEncrypted=`` binds it to
the TPM or the host, and it is decrypted into memory that only this service sees.
"""

from __future__ import annotations

import os
import stat
from datetime import datetime
from pathlib import Path
from typing import Final

from agent import bundle
from agent.core.errors import HostError

_LARGEST_FILE_BYTES: Final = 65_536


class LocalKey:
    """A worker key in memory.

    Args:
        key: the private half.
        kind: where it came from, for status.
    """

    __slots__ = ("_key", "kind")

    def __init__(self, key: bundle.OpeningKey, *, kind: str) -> None:
        self._key = key
        self.kind = kind

    def __repr__(self) -> str:
        return f"<LocalKey {self.kind} {self.kid}>"

    @property
    def kid(self) -> str:
        """The key id that recipient entries carry."""
        return self._key.kid

    def public_jwk(self) -> dict[str, str] | None:
        """The public half; ``None`` for a shared key, which has none."""
        return None if self._key.kind == "oct" else self._key.public_jwk()

    async def content_key(self, recipient: bundle.Recipient, now: datetime) -> bytes:  # noqa: ARG002 - the interface
        """Open a recipient entry. Never waits: it is a fraction of a millisecond of arithmetic.

        Raises:
            SealError: it was not made for this key.
        """
        return self._key.content_key(recipient)


def ephemeral_key() -> LocalKey:
    """A new P-256 key that exists in this process only. P-256: every JOSE library can seal to it."""
    return LocalKey(bundle.OpeningKey.generate("P-256"), kind="ephemeral")


def load_key_file(path: Path, *, kid: str | None = None) -> tuple[LocalKey, ...]:
    """Read worker keys from a file: a private JWK, a JWK Set (present and previous key), or unencrypted PEM.

    Args:
        path: the file; only its owner may have access.
        kid: the key id, when it is not the one in the JWK and not the thumbprint; for a single key only.

    Raises:
        HostError: it cannot be read, or others can read it.
        FormatError: code ``key``: it is not a key.
    """
    return _load(path, kid=kid, kind="file", private_directory=False)


def load_credential(directory: Path, name: str, *, kid: str | None = None) -> tuple[LocalKey, ...]:
    """Read worker keys from a systemd credential (systemd.exec(5), ``LoadCredential=``).

    Args:
        directory: the value of ``$CREDENTIALS_DIRECTORY``. systemd keeps it to this service alone, and gives the file
            mode 0440 when it uses ACLs, so its mode says nothing and is not checked.
        name: the credential's name.
        kid: as in :func:`load_key_file`.

    Raises:
        HostError: there is no such credential.
        FormatError: code ``key``: it is not a key.
    """
    if not name or "/" in name or name in (".", ".."):
        raise HostError(f"a credential name must be a plain file name, got {name!r}")
    return _load(directory / name, kid=kid, kind="systemd", private_directory=True)


def _load(path: Path, *, kid: str | None, kind: str, private_directory: bool) -> tuple[LocalKey, ...]:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise HostError(f"cannot read the key file {path}: {error.strerror}") from None
    if not private_directory and mode & 0o077:
        # The check is on the open file, not on the path: nothing can be put in between.
        raise HostError(
            f"the key file {path} must be readable by its owner alone, its mode is {mode:04o}",
            hint=f"chmod 600 {path}",
        )
    return tuple(LocalKey(key, kind=kind) for key in bundle.OpeningKey.parse_all(raw, kid=kid))
