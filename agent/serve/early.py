"""Which end a client is told: the true one of a bundle's credential, an early one of the machine's own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec

from agent.core.early import early_end
from agent.core.model import AwsCredential, GoogleToken
from agent.core.view import Live, Origin
from agent.serve.waiting import Served


class Early:
    """Tells ends. Keeps the last credential it made, so that a caller that compares by identity renders it once.

    Args:
        served: what is served.
        wall_ahead: how far the machine's wall clock, by which clients measure an end, is ahead of our time.
    """

    def __init__(self, served: Served, wall_ahead: Callable[[], timedelta]) -> None:
        self._served = served
        self._wall_ahead = wall_ahead
        self._last: tuple[AwsCredential, datetime, AwsCredential] | None = None

    def forget(self) -> None:
        """Something else is served now: nothing is kept of what was."""
        self._last = None

    def aws(self, live: Live, credential: AwsCredential, now: datetime, *, extends: bool = False) -> AwsCredential:
        """``credential`` with the end that a client is told.

        Args:
            live: what is served.
            credential: of ``live``.
            now: our time.
            extends: whether its client drops what has ended (with EC2's answer it would go on): where the real
                service hands out an ended one (it cannot renew, and AWS still takes it), tell the early end.
        """
        if live.origin is not Origin.FALLBACK:
            return credential
        ended = credential.expires_at <= now
        if ended and not extends:
            return credential
        if not ended and not self._served.now.expects_bundle:
            return credential
        end = early_end(now + self._wall_ahead(), self._served.settings.early_phase)
        if end >= credential.expires_at and not ended:
            return credential
        last = self._last
        if last is None or last[0] is not credential or last[1] != end:
            last = self._last = (credential, end, msgspec.structs.replace(credential, expires_at=end))
        return last[2]

    def google(self, live: Live, token: GoogleToken, now: datetime) -> datetime:
        """The end from which ``expires_in`` is counted."""
        if live.origin is not Origin.FALLBACK or not self._served.now.expects_bundle:
            return token.expires_at
        return min(token.expires_at, early_end(now, self._served.settings.early_phase))
