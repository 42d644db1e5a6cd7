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
from agent.core.text import os_reason
from agent.host.files import opened_plain

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

    def private_jwk(self) -> dict[str, str]:
        """The whole key: for memory that outlives the process, where it may exist nowhere else.

        Raises:
            RuntimeError: it came from a file or a credential, and is there for the next process too.
        """
        if self.kind != "ephemeral":
            raise RuntimeError("only a key that exists nowhere else is handed on")
        return self._key.private_jwk()

    async def content_key(self, recipient: bundle.Recipient, now: datetime) -> bytes:  # noqa: ARG002 - the interface
        """Open a recipient entry. Never waits: it is a fraction of a millisecond of arithmetic.

        Raises:
            SealError: it was not made for this key.
        """
        return self._key.content_key(recipient)


def ephemeral_key() -> LocalKey:
    """A new P-256 key that exists in this process only. P-256: every JOSE library can seal to it."""
    return LocalKey(bundle.OpeningKey.generate("P-256"), kind="ephemeral")


def restored_key(jwk: str) -> LocalKey:
    """The key that an earlier process made with :func:`ephemeral_key` and handed on.

    Raises:
        FormatError: code ``key``: it is not a key.
    """
    return LocalKey(bundle.OpeningKey.parse(jwk), kind="ephemeral")


def load_key_file(path: Path, *, kid: str | None = None) -> tuple[LocalKey, ...]:
    """Read worker keys from a file: a private JWK, a JWK Set (present and previous key), or unencrypted PEM.

    Args:
        path: the file; only its owner may have access, or only root and this process's group
            (``root:credential-agent``, mode 0640: the service cannot change it).
        kid: the key id, when it is not the one in the JWK and not the thumbprint; for a single key only.

    Raises:
        HostError: it cannot be read, or others can read it.
        FormatError: code ``key``: it is not a key.
    """
    return _load(path, kid=kid, kind="file", private_directory=False)


def load_credential(directory: Path | None, name: str, *, kid: str | None = None) -> tuple[LocalKey, ...]:
    """Read worker keys from a systemd credential (systemd.exec(5), ``LoadCredential=``).

    Args:
        directory: the value of ``$CREDENTIALS_DIRECTORY``; ``None`` where systemd had none to pass. systemd keeps it
            to this service alone, and gives the file mode 0440 when it uses ACLs: its mode says nothing and is not
            checked.
        name: the credential's name.
        kid: as in :func:`load_key_file`.

    Returns:
        The keys; none where the machine was not given this credential, or it is blank, as a unit sets it for the case
        that it is absent (``SetCredential=``). An image is made before its machines have keys, and systemd starts
        a service whose credential is missing: neither may fail for it.

    Raises:
        HostError: the name cannot be one, or what was passed cannot be read.
        FormatError: code ``key``: it is not a key.
    """
    if not name or "/" in name or name in (".", ".."):
        raise HostError(f"a credential name must be a plain file name, got {name!r}")
    if directory is None or _is_absent(directory / name):
        return ()
    return _load(directory / name, kid=kid, kind="systemd", private_directory=True)


def _load(path: Path, *, kid: str | None, kind: str, private_directory: bool) -> tuple[LocalKey, ...]:
    try:
        with opened_plain(path) as file:
            found = os.fstat(file.fileno())
            raw = file.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        hint = None
        if isinstance(error, PermissionError):
            hint = "the service reads it as its own user: root:credential-agent, mode 0640"
        elif isinstance(error, FileNotFoundError):
            hint = "copy it there, or make one (credential-agent keygen): root:credential-agent, mode 0640"
        raise HostError(f"cannot read the key file {path}: {os_reason(error)}", hint=hint) from None
    if private_directory and not raw.strip():
        return ()
    # The check is on the open file, not on the path: nothing can be put in between.
    if not private_directory and not _private(found):
        raise HostError(
            f"the key file {path} must be readable by its owner alone, its mode is {stat.S_IMODE(found.st_mode):04o}",
            hint=f"chmod 600 {path}, or root:GROUP and 0640 where GROUP is the service's own",
        )
    return tuple(LocalKey(key, kind=kind) for key in bundle.OpeningKey.parse_all(raw, kid=kid))


def _is_absent(path: Path) -> bool:
    """Whether it is not there. Where that cannot be told it may be: whoever reads it says what is wrong."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _private(found: os.stat_result) -> bool:
    """Whether nobody beside us can read it: its owner alone, or root and our own group."""
    shared = found.st_mode & 0o077
    return shared == 0 or (shared == 0o040 and found.st_uid == 0 and found.st_gid == os.getegid())
