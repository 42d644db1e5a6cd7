"""Google access tokens for fewer scopes than the identity's own, for the programs that ask for fewer.

``token?scopes=`` is ignored by GCE and honoured by Cloud Run and GKE. Here it is honoured where it narrows: what the
grant says is what its sender gives, so a program gets no scope that is not in it. For anything else it gets the
ordinary token, as on GCE: a program that asks for what it needs finds it there, or is told so by the service that it
calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import msgspec
import structlog

from agent.core.clock import Clock
from agent.core.errors import ProviderError
from agent.core.model import (
    CLOUD_PLATFORM,
    Credential,
    GcpExternalAccount,
    GcpImpersonation,
    GcpServiceAccount,
    GoogleToken,
    Grant,
)

LEFT: Final = timedelta(minutes=10)
"""A token with less left is minted anew: clients ask on every call below five."""
MOST: Final = 32
_MOST_ASKED: Final = 16
_AUTH: Final = "https://www.googleapis.com/auth/"
_IN_CLOUD_PLATFORM: Final = (
    "bigquery", "cloud-platform", "cloud_debugger", "cloudkms", "cloudruntimeconfig", "compute", "datastore",
    "devstorage.", "logging.", "monitoring", "ndev.clouddns.", "pubsub", "service.management", "servicecontrol",
    "source.", "spanner.", "sqlservice.", "taskqueue", "trace.", "userinfo.email",
)  # fmt: skip
"""What ``cloud-platform`` covers, by the beginning of its name below ``auth/`` (Google's list of OAuth scopes); and who
it is, which is no right. What is not Google Cloud (Drive, Gmail, the directory) is not covered."""


def narrower(grant: Grant | None, asked: tuple[str, ...]) -> tuple[str, ...] | None:
    """The scopes to mint for; ``None`` when the ordinary token is the answer."""
    wanted = tuple(sorted(set(asked)))
    if not isinstance(grant, GcpServiceAccount | GcpImpersonation | GcpExternalAccount) or not wanted:
        return None
    given = set(grant.scopes)
    if len(wanted) > _MOST_ASKED or given <= set(wanted) or not all(_is_scope(scope) for scope in wanted):
        return None
    whole = CLOUD_PLATFORM in given
    covered = all(scope in given or (whole and _in_cloud_platform(scope)) for scope in wanted)
    return wanted if covered else None


def _is_scope(text: str) -> bool:
    return 0 < len(text) <= 256 and all("!" <= letter <= "~" and letter not in '"\\' for letter in text)


def _in_cloud_platform(scope: str) -> bool:
    return scope in {"openid", "email"} or (
        scope.removeprefix(_AUTH).startswith(_IN_CLOUD_PLATFORM) and (scope.startswith(_AUTH))
    )


class Scoped:
    """The narrower tokens of the identity that is served.

    Args:
        clock: time.
        served: the grant and its base that are served now, or ``None`` (:func:`agent.identity.standing.google_source`).
        issue: mints from a grant.
        seconds: the longest that a mint may take.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        served: Callable[[], tuple[Grant | None, Credential | None] | None],
        issue: Callable[..., Any],
        seconds: float,
    ) -> None:
        self._clock = clock
        self._served = served
        self._issue = issue
        self._seconds = seconds
        self._log = structlog.get_logger()
        self._held: dict[tuple[str, ...], tuple[GoogleToken, Grant]] = {}  # oldest first

    def held(self, asked: tuple[str, ...]) -> GoogleToken | None:
        """One that was minted before, of the identity that is served now, with enough life left."""
        served = self._served()
        wanted = narrower(served[0], asked) if served is not None else None
        token, grant = self._held.get(wanted, (None, None)) if wanted is not None else (None, None)
        if token is None or served is None or grant != served[0] or token.expires_at - self._clock.now() < LEFT:
            return None
        return token

    def narrows(self, asked: tuple[str, ...]) -> bool:
        """Whether there is anything to mint for this wish."""
        served = self._served()
        return served is not None and narrower(served[0], asked) is not None

    async def mint(self, asked: tuple[str, ...]) -> GoogleToken | None:
        """Mint one; ``None`` when the ordinary token is the answer.

        Raises:
            ProviderError: it failed.
        """
        origin = self._served()
        wanted = narrower(origin[0], asked) if origin is not None else None
        if origin is None or wanted is None:
            return None
        grant, base = origin
        assert grant is not None
        try:
            async with asyncio.timeout(self._seconds):
                issued = await self._issue(msgspec.structs.replace(grant, scopes=wanted), base, self._clock.now())
        except ProviderError as error:
            self._log.warning("scoped_token.failed", code=error.code, reason=error.message)
            raise
        except TimeoutError:
            self._log.warning("scoped_token.failed", code="timeout", reason="it took too long")
            return None
        except Exception as error:  # noqa: BLE001 - the controller's border: there is an ordinary token all the same
            self._log.error("scoped_token.crashed", error=type(error).__name__, exc_info=True)
            return None
        now = self._served()
        if now is None or now[0] != grant or not isinstance(issued.credential, GoogleToken):
            return None  # the identity it speaks for was withdrawn or replaced while it was minted
        self._held.pop(wanted, None)
        self._held[wanted] = (issued.credential, grant)
        if len(self._held) > MOST:
            del self._held[next(iter(self._held))]
        return issued.credential
