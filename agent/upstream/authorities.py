"""The certificate authorities of an operator's file, and the system's: read again when either file has changed.

An operator who rotates a private authority replaces the file, and expects the next request to trust the new one: an
agent that went on with the old one would fail at the next renewal, hours later. A file that cannot be read then (it is
just being written, or gone) changes nothing: the authorities read before stay trusted.

The system's are one file for OpenSSL on some distributions (Fedora's ``/etc/pki/tls/cert.pem``), which a library reads
once; ``update-ca-trust`` may run after us. Where they are a directory (Debian's), OpenSSL looks there each time.
"""

from __future__ import annotations

import asyncio
import functools
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
    """The system's authorities, and those in one file of certificates (PEM) beside them.

    Args:
        path: that file; ``None``: the system's alone.

    Mutable state: the context in use, how the files looked when they were read, and the look that is under way.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._context: ssl.SSLContext | None = None
        self._seen: tuple[Look | None, Look | None] | None = None
        self._looking: asyncio.Future[bool] | None = None
        self._late = False

    @property
    def context(self) -> ssl.SSLContext | None:
        """The verifying context; ``None``: the HTTP library's own, with the system's authorities alone.

        That is so until something else can be read. Servers of a private authority then fail, and all others (the
        clouds, the plain metadata service) are reached.
        """
        return self._context

    async def changed(self) -> bool:
        """Look at the files, in a thread: they may lie on a network. Returns whether the context is another now.

        Await it before the first use: nothing else reads them.
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
        own = None if self._path is None else _look(self._path)
        seen = self._seen or (None, first_look_at_system())
        looks = (own, _look_at_system() or seen[1])  # one that is gone is just being replaced
        if looks == seen or (self._path is not None and own is None):
            return False
        try:
            data = None if self._path is None else read_authorities(self._path)
            context = ssl.create_default_context()
            if looks[1] != seen[1] and not context.cert_store_stats()["x509_ca"]:
                return False  # it is just being written: the next request looks at it again
            if data is not None:
                _add(context, data)
        except AuthoritiesError:
            return False  # likewise
        self._context, self._seen = context, looks
        return True


@functools.cache
def first_look_at_system() -> Look | None:
    """How the file of the system's authorities looked at the first call: before the HTTP library read it.

    ``None``: there was none, or they are no file.
    """
    return _look_at_system()


def _look_at_system() -> Look | None:
    return _look(ssl.get_default_verify_paths().cafile or "")


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
    return context, _add(context, data)


def _add(context: ssl.SSLContext, data: bytes) -> int:
    # The certificates alone: what people write between them (names in any encoding) may not even be text.
    found = _CERTIFICATE.findall(data)
    if not found:
        raise AuthoritiesError("expected certificates in PEM, got none")
    try:
        context.load_verify_locations(cadata=b"\n".join(found).decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise AuthoritiesError("expected certificates in PEM, got broken ones") from None
    return len(found)


def _look(path: str) -> Look | None:
    try:
        return look_of(os.stat(path))  # noqa: PTH116 - half the cost of Path.stat
    except OSError:
        return None
