"""The key that this user signs with: made at first use, kept in the user's configuration directory, 0600."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import stat
from pathlib import Path

from agent import bundle
from agent.bundle.short_key import signer_word
from agent.core.errors import HostError, UsageError
from agent.core.text import os_reason
from agent.sender import files
from agent.wire import signers


def default_path() -> Path:
    """Where the key is: ``$XDG_CONFIG_HOME/credential-agent/sender.jwk``, or below ``~/.config``.

    Raises:
        HostError: this user has no home directory, as an unknown uid in a container.
    """
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        directory = Path(base) if base.startswith("/") else Path("~/.config").expanduser()
    except RuntimeError:
        raise HostError("the signing key: this user has no home directory to keep it in", hint="set HOME") from None
    return directory / "credential-agent" / "sender.jwk"


def named(path: str | Path | None) -> bundle.SigningKey:
    """The key of the file that the user names, which must be there; ``None``: the user's own.

    A name that is mistyped makes no key: workers would refuse what it signs, and nobody would know why.

    Raises:
        UsageError: ``-``: whoever reads a standard input cannot read it again.
        HostError, FormatError: as :func:`load`.
    """
    if path is None:
        return load()
    if str(path) == "-":
        raise UsageError("signer: expected the name of a file, got '-'")
    return load(Path(path), make=False)


def load(path: Path | None = None, *, make: bool = True) -> bundle.SigningKey:
    """The user's signing key.

    Args:
        path: where it is; ``None``: at :func:`default_path`.
        make: whether one is made if there is none.

    Raises:
        HostError: it cannot be read or made, or others may read it.
        FormatError: the file holds no signing key.
    """
    path = path or default_path()
    for _ in range(2):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            if not make:
                hint = f"is its name right? credential-agent keygen --kind ed25519 --out {path} makes one"
                raise HostError(f"{path}: there is no signing key", hint=hint) from None
            _make(path)
            continue
        except OSError as error:
            raise HostError(f"{path}: cannot be read: {os_reason(error)}") from None
        if stat.S_IMODE(mode) & 0o077:
            raise HostError(
                f"{path}: expected a private key that only you may read, got mode {stat.S_IMODE(mode):04o}",
                hint=f"chmod 600 {path}; if others could read it, remove it and let a new one be made",
            )
        return bundle.SigningKey.parse(files.read(path))
    raise HostError(f"{path}: is made and removed by something else at the same time")


def _make(path: Path) -> None:
    try:
        # Each with its mode: mkdir() itself makes the parents by the umask, which may let others replace what is below.
        for directory in reversed([one for one in (path.parent, *path.parent.parents) if not one.exists()]):
            directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostError(f"{path.parent}: cannot be made: {os_reason(error)}") from None
    key = bundle.SigningKey.generate()
    text = json.dumps(key.private_jwk()) + "\n"
    try:
        files.write(path, text.encode(), mode=files.PRIVATE, replace=False)
    except HostError:
        # Two programs that begin at the same moment: the first one's key is the key.
        if not path.exists():
            raise


def public_line(key: bundle.SigningKey) -> str:
    """The public half on one line, as whoever launches workers names it."""
    return json.dumps(key.public_jwk(), separators=(",", ":"))


def default_issuer() -> str:
    """The issuer when none is given: a person recognizes it; a worker believes the key, not the name."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such uid in the user database, as in a container
        user = str(os.getuid())
    return "laptop:" + re.sub(r"[^A-Za-z0-9.@_-]", "-", f"{user}@{socket.gethostname()}")


def check_issuer(issuer: str) -> str:
    """An issuer, if it can be one.

    Raises:
        UsageError: it cannot.
    """
    if not issuer or len(issuer) > 256 or not issuer.isprintable():
        raise UsageError("issuer: expected 1 to 256 printable characters")
    return issuer


def launch_line(key: bundle.SigningKey) -> str:
    """The line by which whoever launches a machine names this key (``launch_signers`` of its configuration).

    A comment, in a script and in a cloud-config, so that it can be added to either.
    """
    return f"# {signers.line(signer_word(key.verify_key()))}"


def at_launch(key: bundle.SigningKey, issuer: str) -> str:
    """A hint: how to make workers believe this sender."""
    return (
        f"launch workers with this line in their user-data: {launch_line(key)} (their configuration says which "
        f"launch_signers are taken, and that they may speak as {issuer})"
    )
