"""The files of the sender: keys, policies, claims, and the bundle itself."""

from __future__ import annotations

import json
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from agent.core.errors import HostError
from agent.core.text import os_reason
from agent.host.files import read_plain, write_atomic

MAX_INPUT_BYTES: Final = 1_048_576
PRIVATE: Final = 0o600
PUBLIC: Final = 0o644
"""A sealed bundle and a public key are made to travel: who reads them learns nothing, and the agent must read them."""


def read(path: Path) -> bytes:
    """Read a whole small file.

    Raises:
        HostError: it cannot be read, or is larger than anything meant here.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise HostError(f"{path}: cannot be read: {os_reason(error)}") from None
    if len(data) > MAX_INPUT_BYTES:
        raise HostError(f"{path}: expected at most {MAX_INPUT_BYTES} bytes, got more")
    return data


def write(path: Path, data: bytes, *, mode: int, replace: bool) -> None:
    """Write a whole file so that a reader sees the old or the new one.

    Args:
        path: its directory must exist.
        data: the content.
        mode: permission bits.
        replace: whether a file already there is replaced. If not, it is an error to find one, even one that appears
            at the last moment.

    A path that is no regular file (a device, a pipe, ``/dev/stdout``) is written to: a rename would put a file in its
    place, and as root that takes the node away from everybody. A private key is never written to one, and what is
    public never replaces one, whatever ``replace`` says: a key that is replaced is lost.

    Raises:
        HostError: it could not be written, or is there and must not be replaced.
    """
    if mode == PUBLIC:
        spare_private_key(path)
    if _is_stream(path):
        if mode == PRIVATE:
            raise HostError(f"{path}: expected a regular file for a private key, got a device or a pipe")
        _write_through(path, data)
        return
    if replace:
        write_atomic(path, data, mode=mode)
        return
    # Written aside and linked: link() fails when the name is taken, where rename() would replace it.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        write_atomic(aside, data, mode=mode)
        os.link(aside, path)
    except HostError as error:
        raise HostError(error.message.replace(str(aside), str(path)), hint=error.hint) from None
    except FileExistsError:
        raise HostError(f"{path}: exists already", hint="--force replaces it; a key that is replaced is lost") from None
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {os_reason(error)}") from None
    finally:
        aside.unlink(missing_ok=True)


def spare_private_key(path: Path) -> None:
    """Refuse to write over a private key.

    Raises:
        HostError: the file holds one, as JWK or PEM, as far as we may read it; links are followed.
    """
    try:
        data = read_plain(path, MAX_INPUT_BYTES)
    except (OSError, ValueError):
        return
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        is_key = b"PRIVATE KEY-----" in data
    else:
        keys = found.get("keys") if isinstance(found, dict) else None
        entries = [found, *(keys if isinstance(keys, list) else ())]
        is_key = any(isinstance(one, dict) and not one.keys().isdisjoint({"d", "k"}) for one in entries)
    if is_key:
        raise HostError(f"{path}: holds a private key", hint="name another file; a key that is replaced is lost")


def _is_stream(path: Path) -> bool:
    """Whether ``path`` is there and is to be written to, not replaced; links are followed."""
    try:
        kind = path.stat().st_mode
    except OSError:
        return False
    if stat.S_ISDIR(kind):
        return False
    # /dev/stdout may lead to a regular file, and is still no name to rename to.
    directory = path.parent.resolve()
    return not stat.S_ISREG(kind) or directory == Path("/dev") or directory.is_relative_to("/proc")


def _write_through(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(data)
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {os_reason(error)}") from None
