"""Where is the bundle, and with which token is it asked for? Both may stand in files that are replaced at any time.

A URL may be a credential (a pre-signed one), and a token is: no error quotes either.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from agent.core.errors import SourceError, UnansweredError
from agent.core.text import os_reason
from agent.host.files import read_plain
from agent.host.patience import Patience, StalledError
from agent.sources.watching import broken_here
from agent.upstream import origin_of

MAX_TOKEN_BYTES: Final = 8192
MAX_URL_BYTES: Final = 4096

_URL: Final = re.compile(rb"https?://[\x21-\x7e]{1,4000}\Z")


class Location:
    """A URL, or the file that holds it; and the file of a bearer token.

    Args:
        url: ``None``: ``url_file`` holds it.
        url_file: read again each time.
        token_file: likewise; ``None``: no token is sent.
    """

    def __init__(self, url: str | None, url_file: Path | None, token_file: Path | None) -> None:
        self._url, self._url_file, self._token_file = url, url_file, token_file
        self._patience = Patience()

    async def url(self) -> str:
        """The URL to ask now.

        Raises:
            SourceError: its file cannot be read, or holds none; its content is not shown.
        """
        return self._url or "" if self._url_file is None else await self._read(self._url_file, _read_url)

    async def authorization(self, url: str) -> dict[str, str]:
        """The header that carries the bearer token to ``url``; empty when there is none.

        Raises:
            SourceError: its file cannot be read, or holds none; or others could read it on the way.
        """
        path = self._token_file
        if path is None:
            return {}
        if not _is_confidential(url):
            raise SourceError("a bearer token is not sent over plain http", hint="use an https URL, or no token")
        return {"Authorization": f"Bearer {await self._read(path, _read_token)}"}

    async def _read(self, path: Path, read: Callable[[Path], str]) -> str:
        try:
            return await self._patience.ask(path, partial(read, path))
        except StalledError as error:
            raise UnansweredError(error.message, hint=error.hint) from None


def _read_url(path: Path) -> str:
    try:
        raw = read_plain(path, MAX_URL_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {os_reason(error)}") from None
    url = raw.strip()
    # The rule of agent.config for a URL. The error does not quote the content: it may be a credential.
    if len(raw) > MAX_URL_BYTES or not _URL.match(url):
        raise SourceError(f"{path}: expected one http or https url of printable ascii")
    found = url.decode("ascii")
    with broken_here():
        origin_of(found)
    return found


def _read_token(path: Path) -> str:
    try:
        raw = read_plain(path, MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {os_reason(error)}") from None
    token = raw.strip()
    if not token or len(raw) > MAX_TOKEN_BYTES or not all(0x21 <= byte <= 0x7E for byte in token):
        raise SourceError(f"{path}: expected a bearer token of printable characters without spaces")
    return token.decode("ascii")


def _is_confidential(url: str) -> bool:
    """Whether nobody on the way can read what is sent: TLS, or loopback."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"
