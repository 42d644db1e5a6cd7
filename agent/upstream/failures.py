"""Why is there no answer? Turns exceptions of the HTTP library into errors of ours.

Only the scheme, host and port of the URL, class names and the system's own texts are repeated: the library's may hold
the whole URL, which may be a credential.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agent.core.errors import UpstreamError
from agent.upstream.guard import refused_address

if TYPE_CHECKING:
    import aiohttp


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
                f"the certificate of {origin} does not verify",
                code="tls",
                hint="a private certificate authority is configured as ca_file; check the clock of this machine too",
            )
        case aiohttp.ClientConnectorSSLError():
            return UpstreamError(f"no tls connection to {origin}", code="tls")
        case aiohttp.ClientProxyConnectionError():
            return UpstreamError(f"cannot connect to the configured proxy for {origin}", code="network")
        case aiohttp.ClientConnectorDNSError():
            return UpstreamError(f"the name in {origin} does not resolve", code="network")
    # asyncio puts its own words and the address into strerror; the system's are plainer.
    number = error.os_error.errno
    reason = os.strerror(number).lower() if number is not None else type(error.os_error).__name__
    return UpstreamError(f"cannot connect to {origin}: {reason}", code="network")
