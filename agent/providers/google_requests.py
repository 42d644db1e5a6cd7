"""How is Google asked? One POST: its 200, or an error that says what to do; at which URL, and dated when.

The clock matters here: an assertion or a signed request is good for a short time only, and a clock that is off makes it
refused (:mod:`agent.providers.signing_time`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from agent.core.secret import Secret
from agent.providers.google_answers import refusal
from agent.providers.refusals import clock_is_suspect, from_upstream
from agent.providers.remote import AllowList
from agent.providers.settings import GoogleEndpoints, MintSettings
from agent.providers.signing_time import SigningTime
from agent.upstream import Reach, Upstream, UpstreamError, UpstreamResponse

_MAX_ANSWER_BYTES: Final = 65536


class GoogleRequests:
    """Asks Google's token endpoints.

    Args:
        upstream: the way out.
        settings: the operator's, for minting.
        allowed: what a grant may name beside Google's own endpoints.
        boottime: ages what a server said of its own time.

    Error handling: any other status than 200 is raised as :class:`~agent.core.errors.Denied` or
    :class:`~agent.core.errors.Transient`, without the ``secrets`` of the request in its words.
    """

    def __init__(
        self, upstream: Upstream, settings: MintSettings, allowed: AllowList, *, boottime: Callable[[], float]
    ) -> None:
        self._upstream = upstream
        self._timeout_seconds = settings.request_timeout_seconds
        self._endpoints = settings.google
        self._allowed = allowed
        self._times = SigningTime(boottime)

    def time_at(self, url: str, now: datetime) -> datetime:
        """The date of what is signed for ``url``; see :meth:`agent.providers.signing_time.SigningTime.at`."""
        return self._times.at(url, now)

    def route(self, named: str, endpoint: str, doing: str) -> tuple[str, Reach]:
        """Where a request for the URL that a grant names really goes, and how far it may reach."""
        configured: str = getattr(self._endpoints, endpoint)
        default: str = getattr(GoogleEndpoints(), endpoint)
        if configured != default or named == default:
            return configured, Reach.CONFIGURED
        return named, self._allowed.check(named, doing)

    async def post_iam(
        self, principal: str, verb: str, body: dict[str, Any], *, bearer: Secret, doing: str, now: datetime
    ) -> UpstreamResponse:
        """Ask IAM for a token of the service account ``principal``, with the token of one who may speak for it."""
        base = self._endpoints.iamcredentials_url.rstrip("/")
        # The principal is the bundle's: quoted whole, so that it stays one segment of the path.
        url = f"{base}/v1/projects/-/serviceAccounts/{quote(principal, safe='@')}:{verb}"
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {bearer.reveal()}"}
        data = msgspec.json.encode(body)
        return await self._post(url, Reach.CONFIGURED, headers, data, doing=doing, now=now, secrets=(bearer,))

    async def post_form(
        self,
        url: str,
        reach: Reach,
        form: Mapping[str, str],
        *,
        doing: str,
        now: datetime,
        secrets: Iterable[Secret | str],
        timed: bool = False,
    ) -> UpstreamResponse:
        """Post a form to one of the token endpoints; see :meth:`_post`."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return await self._post(
            url, reach, headers, urlencode(form).encode(), doing=doing, now=now, secrets=secrets, timed=timed
        )

    async def _post(
        self,
        url: str,
        reach: Reach,
        headers: Mapping[str, str],
        body: bytes,
        *,
        doing: str,
        now: datetime,
        secrets: Iterable[Secret | str],
        timed: bool = False,
    ) -> UpstreamResponse:
        """POST and return the 200.

        ``timed``: a proof is valid for a short time only, so a clock that is off gets it refused.
        """
        try:
            answer = await self._upstream.request(
                "POST",
                url,
                headers={"Accept": "application/json", **headers},
                body=body,
                timeout_seconds=self._timeout_seconds,
                max_bytes=_MAX_ANSWER_BYTES,
                reach=reach,
            )
        except UpstreamError as error:
            raise from_upstream(error, doing) from None
        if answer.status != 200:
            dated = self._times.at(url, now) if timed else now
            if timed and clock_is_suspect(answer.date, dated):
                self._times.refused(url, answer.date)
            raise refusal(answer, doing, dated, secrets, timed=timed)
        return answer
