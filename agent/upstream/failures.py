"""Why is there no answer? Turns exceptions of the HTTP library into errors of ours.

Only the scheme, host and port of the URL, class names and the system's own texts are repeated: the library's may hold
the whole URL, which may be a credential.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from agent.core.errors import UpstreamError
from agent.core.served import plain
from agent.upstream.guard import refused_address

if TYPE_CHECKING:
    import aiohttp

_MOST_REASON_CHARACTERS: Final = 200


class AddressRefusedError(OSError):
    """Raised inside the connector. One fixed text, so that several refused addresses of a name stay one error."""

    def __init__(self) -> None:
        super().__init__("address refused")


def as_upstream_error(error: BaseException, origin: str) -> UpstreamError:
    """Our error for an exception that the HTTP library raised while ``origin`` was asked."""
    import aiohttp  # noqa: PLC0415 - loaded by now: it raised this

    cause = getattr(error, "os_error", None)
    if isinstance(error, AddressRefusedError) or isinstance(cause, AddressRefusedError):
        return refused_address(origin)
    match error:
        case TimeoutError():
            return UpstreamError(f"{origin} did not answer in time", code="timeout")
        case aiohttp.ClientHttpProxyError():
            return UpstreamError(f"the configured proxy refuses {origin}: status {error.status}", code="network")
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorError():
            return _not_connected(error, origin)
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionError():
            return UpstreamError(f"{origin} closed the connection without an answer", code="network")
        case aiohttp.ClientPayloadError() | aiohttp.ClientResponseError():
            return UpstreamError(f"{origin} sent a broken answer ({type(error).__name__})", code="protocol")
        case _:
            return UpstreamError(f"no answer from {origin} ({type(error).__name__})", code="network")


def _not_connected(
    error: aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorError, origin: str
) -> UpstreamError:
    import aiohttp  # noqa: PLC0415 - as above

    match error:
        case aiohttp.ClientConnectorCertificateError():
            return UpstreamError(
                f"the certificate of {origin} does not verify{_why(error.certificate_error)}",
                code="tls",
                hint="a private certificate authority is configured as ca_file; check the clock of this machine too",
            )
        case aiohttp.ClientConnectorSSLError():
            return UpstreamError(
                f"no tls connection to {origin}{_why(error.os_error)}",
                code="tls",
                hint="does that port speak tls, in version 1.2 or later, and want no certificate of ours?",
            )
        case aiohttp.ClientProxyConnectionError():
            return UpstreamError(f"cannot connect to the configured proxy for {origin}", code="network")
        case aiohttp.ClientConnectorDNSError():
            return UpstreamError(f"the name in {origin} does not resolve", code="network")
    # asyncio puts its own words and the address into strerror; the system's are plainer.
    number = error.os_error.errno
    reason = os.strerror(number).lower() if number is not None else type(error.os_error).__name__
    return UpstreamError(f"cannot connect to {origin}: {reason}", code="network")


def _why(error: BaseException) -> str:
    """What OpenSSL says of it: one of its own texts, and the name that was looked for in the certificate."""
    said = getattr(error, "verify_message", None) or (getattr(error, "reason", None) or "").replace("_", " ").lower()
    shown = plain(str(said).rstrip("."), _MOST_REASON_CHARACTERS)
    return f": {shown}" if shown else ""
