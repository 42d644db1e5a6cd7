"""How does a producer learn the verdict on its bundle? The verdict, posted as JSON to a URL of its choice."""

from __future__ import annotations

import random
from typing import Final

import msgspec

from agent.core.clock import Clock
from agent.core.errors import SourceError, UpstreamError
from agent.core.source import Ack
from agent.core.text import instant
from agent.sources.location import Location
from agent.sources.watching import retry_seconds
from agent.upstream import Upstream

ACK_ATTEMPTS: Final = 3
MAX_ACK_BYTES: Final = 65_536


class _Ack(msgspec.Struct, frozen=True, omit_defaults=True):
    """An acknowledgement as it is posted; what claims name too has the name of the claim."""

    outcome: str
    at: str
    worker: str | None = None
    iss: str | None = None
    sub: str | None = None
    jti: str | None = None
    seq: int | None = None
    code: str | None = None
    reason: str | None = None


class Acknowledger:
    """Posts verdicts.

    Args:
        url: where to.
        location: has the bearer token.
        upstream: the way out.
        worker: which worker says so; ``None``: left out.
        clock: sleeps.
        rng: the source of the jitter.
    """

    def __init__(
        self,
        url: str,
        location: Location,
        *,
        upstream: Upstream,
        worker: str | None,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._url, self._location, self._worker = url, location, worker
        self._upstream, self._clock, self._rng = upstream, clock, rng
        self._verdicts = 0  # begun to be posted

    async def post(self, ack: Ack) -> None:
        """Post a verdict. Tried a few times and then dropped: the next one says more. Raises nothing.

        One that is to be tried again when the next has come is dropped too: the last word would be an old one.
        """
        body = _ack_body(ack, self._worker)
        self._verdicts += 1
        mine = self._verdicts
        for attempt in range(1, ACK_ATTEMPTS + 1):
            try:
                headers = {"Content-Type": "application/json", **await self._location.authorization(self._url)}
                answer = await self._upstream.request(
                    "POST", self._url, headers=headers, body=body, max_bytes=MAX_ACK_BYTES
                )
                status = answer.status
            except (SourceError, UpstreamError):
                status = 503
            # A server that refuses once refuses again; only its failures are worth another try.
            if status < 500 and status != 429:
                return
            if attempt < ACK_ATTEMPTS:
                await self._clock.sleep(retry_seconds(attempt, self._rng))
                if mine != self._verdicts:
                    return


def _ack_body(ack: Ack, worker: str | None) -> bytes:
    return msgspec.json.encode(
        _Ack(
            outcome=ack.outcome,
            at=instant(ack.at),
            worker=worker,
            iss=ack.issuer,
            sub=ack.subject,
            jti=ack.bundle_id,
            seq=ack.seq,
            code=ack.code,
            reason=ack.reason,
        )
    )
