"""URLs that came out of a bundle: an allow-list before the request, the HTTP client's address guard during it."""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.errors import ConfigError, Denied
from agent.providers.settings import GOOGLE_ORIGINS
from agent.upstream import Reach, UpstreamError, origin_of


class AllowList:
    """The origins that a bundle may send this machine to.

    Args:
        configured: origins or bare host names (https).

    Raises:
        ConfigError: an entry is not an origin.
    """

    def __init__(self, configured: Iterable[str]) -> None:
        self._google = frozenset(GOOGLE_ORIGINS)
        self._configured = frozenset(_origin(entry) for entry in configured)

    def check(self, url: str, doing: str) -> Reach:
        """Return how far a request to ``url`` may reach.

        Google's own origins are known to us and not the bundle's choice, and companies do give them private
        addresses (Private Service Connect): the certificate vouches for them, their address is not checked.

        Raises:
            Denied: the origin is not on the list.
        """
        try:
            origin = origin_of(url)
        except UpstreamError as error:
            raise Denied(f"{doing}: {error.message}", code="url-not-allowed") from None
        if origin in self._google:
            return Reach.CONFIGURED
        if origin in self._configured:
            return Reach.PUBLIC
        raise Denied(
            f"{doing}: {origin} is not an allowed origin",
            hint=f'if it is meant, add "{origin}" to the allowed origins of the configuration',
            code="url-not-allowed",
        )


def _origin(entry: str) -> str:
    url = entry if "://" in entry else f"https://{entry}"
    try:
        origin = origin_of(url)
    except UpstreamError as error:
        raise ConfigError(f"an allowed origin: {error.message}") from None
    if url.rstrip("/").count("/") > 2 or "?" in url or "#" in url:
        raise ConfigError("an allowed origin: expected scheme, host and port only", hint=f"write {origin!r}")
    return origin
