"""Google access tokens for fewer scopes than the identity's own (:mod:`agent.core.scopes`): minted, and held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
import structlog

from agent.controller.pause import Pause
from agent.core.clock import Clock
from agent.core.errors import ProviderError
from agent.core.model import GoogleToken
from agent.core.scopes import given_by, narrower
from agent.identity.ahead import until_another
from agent.identity.slots import Held, hold
from agent.identity.standing import MintedFrom, google_source, lacks_base, minted_from
from agent.identity.store import Store

LEFT: Final = timedelta(minutes=10)
"""A token with less left is minted anew: clients ask on every call below five."""
MOST: Final = 32


class Scoped:
    """The narrower tokens of the identity that is served.

    Args:
        clock: time.
        store: whose identity is served; told of each token that is held.
        issue: mints from a grant.
        seconds: the longest that a mint may take.
    """

    def __init__(self, clock: Clock, store: Store, *, issue: Callable[..., Any], seconds: float) -> None:
        self._clock = clock
        self._store = store
        self._issue = issue
        self._seconds = seconds
        self._pause = Pause(clock)
        self._log = structlog.get_logger()
        self._held: dict[tuple[str, ...], tuple[Held, MintedFrom]] = {}  # oldest first

    def held(self, now: datetime) -> Iterator[tuple[tuple[str, ...], GoogleToken, datetime]]:
        """The tokens that may be handed out at ``now``: scopes, a token of the identity that is served, its end."""
        served = minted_from(self._store.state, now)
        for scopes, (held, whose) in self._held.items():
            token, last = held.credential, held.ends - LEFT
            if whose == served and now < last and isinstance(token, GoogleToken):
                yield scopes, token, min(last, until_another(self._store.state, whose.grant, now) or last)

    def moved(self, by: timedelta) -> None:
        """Our clock was moved by ``by``: what was counted from it moves along. The caller has the store tell of it."""
        self._held = {scopes: (held.moved(by), whose) for scopes, (held, whose) in self._held.items()}

    async def mint(self, asked: tuple[str, ...]) -> GoogleToken | None:
        """Mint one; ``None`` when the ordinary token is the answer.

        Raises:
            ProviderError: it failed.
        """
        now = self._clock.now()
        origin = google_source(self._store.state, now)
        wanted = narrower(given_by(origin[0]), asked) if origin is not None else None
        whose = minted_from(self._store.state, now)
        if origin is None or whose is None or wanted is None or lacks_base(origin):
            return None
        grant, base = origin
        assert grant is not None
        self._pause.heed(grant)
        asked_at = self._clock.boottime()
        try:
            async with asyncio.timeout(self._seconds):
                issued = await self._issue(msgspec.structs.replace(grant, scopes=wanted), base, self._clock.now())
        except ProviderError as error:
            self._pause.hear(grant, error)
            self._log.warning("scoped_token.failed", code=error.code, reason=error.message)
            raise
        except TimeoutError:
            self._log.warning("scoped_token.failed", code="timeout", reason="it took too long")
            return None
        except Exception as error:  # noqa: BLE001 - the controller's border: there is an ordinary token all the same
            self._log.error("scoped_token.crashed", error=type(error).__name__, exc_info=True)
            return None
        if minted_from(self._store.state, self._clock.now()) != whose:
            return None  # the identity it speaks for was withdrawn or replaced while it was minted
        # Counted on the clock that never steps, from before the request left.
        began = self._clock.now() - timedelta(seconds=self._clock.boottime() - asked_at)
        held = hold(issued.credential, None if issued.lifetime is None else began + issued.lifetime, began)
        token = held.credential
        if held.ends <= self._clock.now() or not isinstance(token, GoogleToken):
            return None  # a cache, or a wrong clock, hands out what is over
        self._held.pop(wanted, None)
        self._held[wanted] = (held, whose)
        if len(self._held) > MOST:
            del self._held[next(iter(self._held))]
        self._store.tell()
        return token
