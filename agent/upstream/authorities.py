"""The certificate authorities of an operator's file, read again when the file has changed.

An operator who rotates a private authority replaces the file, and expects the next request to trust the new one: an
agent that went on with the old one would fail at the next renewal, hours later. A file that cannot be read then (it is
just being written, or gone) changes nothing: the authorities read before stay trusted.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import stat
from typing import Final

from agent.core.looks import Look, look_of
from agent.core.text import os_reason

MAX_BYTES: Final = 4 << 20
"""The bundle of all public authorities is 220 kB."""

_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")

LOOK_SECONDS: Final = 5.0
"""How long a request waits for the file. A hanging mount costs that once, and later requests nothing; on a machine that
is only busy the file must still be read."""


class AuthoritiesError(Exception):
    """The file cannot be read, or holds no certificate. The text says which."""


class Authorities:
    """One file of certificates (PEM), trusted beside the system's own.

    Mutable state: the context in use, how the file looked when it was read, and the look that is under way.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._context: ssl.SSLContext | None = None
        self._seen: Look | None = None
        self._looking: asyncio.Future[bool] | None = None
        self._late = False

    @property
    def context(self) -> ssl.SSLContext | None:
        """The verifying context; ``None`` while the file was never readable: the system's authorities alone.

        Servers of the private authority then fail, and all others (the clouds, the plain metadata service) are reached.
        """
        return self._context

    async def changed(self) -> bool:
        """Look at the file, in a thread: it may lie on a network. Returns whether the context is another than before.

        Await it before the first use: nothing else reads the file.
        """
        looking = self._looking
        if looking is None or looking.get_loop() is not asyncio.get_running_loop():
            looking = self._looking = asyncio.ensure_future(asyncio.to_thread(self._again))
        await asyncio.wait({looking}, timeout=0.0 if self._late else LOOK_SECONDS)
        if not looking.done():
            self._late = True
            return False
        self._late = False
        if self._looking is not looking:
            return False  # whoever asked at the same time has returned it
        self._looking = None
        return looking.result()

    def _again(self) -> bool:
        look = _look(self._path)
        if look is None or look == self._seen:
            return False
        try:
            context, _ = load(self._path)
        except AuthoritiesError:
            return False  # the next request looks at it again
        self._context, self._seen = context, look
        return True


def load(path: str) -> tuple[ssl.SSLContext, int]:
    """A context that trusts the system's authorities and those in ``path``, and how many the latter are.

    Raises:
        AuthoritiesError: it cannot be read, or holds no certificate.
    """
    return believed(read_authorities(path))


def read_authorities(path: str) -> bytes:
    """The content of the file.

    Raises:
        AuthoritiesError: it cannot be read, or is too long.
    """
    try:
        # Non-blocking, and a plain file: to open a FIFO would wait for a writer, and a device has no end.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise AuthoritiesError("expected a plain file")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise AuthoritiesError(f"cannot be read: {os_reason(error)}") from None
    if len(data) > MAX_BYTES:
        raise AuthoritiesError(f"expected at most {MAX_BYTES} bytes of certificates, got more")
    return data


def believed(data: bytes) -> tuple[ssl.SSLContext, int]:
    """A context that trusts the system's authorities and those in ``data``, and how many the latter are.

    Raises:
        AuthoritiesError: it holds no certificate.
    """
    context = ssl.create_default_context()
    # The certificates alone: what people write between them (names in any encoding) may not even be text.
    found = _CERTIFICATE.findall(data)
    if not found:
        raise AuthoritiesError("expected certificates in PEM, got none")
    try:
        context.load_verify_locations(cadata=b"\n".join(found).decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise AuthoritiesError("expected certificates in PEM, got broken ones") from None
    return context, len(found)


def _look(path: str) -> Look | None:
    try:
        return look_of(os.stat(path))  # noqa: PTH116 - half the cost of Path.stat
    except OSError:
        return None
