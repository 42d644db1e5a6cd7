"""An answer of a metadata service that was not broken off.

A body whose length nothing says ends with its connection, with one that breaks too (RFC 9112 section 6.3). Half of one
would say that there is no bundle, or no signer, and half an id names another machine. The services themselves say how
long their answers are; what speaks HTTP/1.0 in their place may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent.core.errors import UpstreamError
from agent.core.strictjson import NotThatShapeError, decode
from agent.upstream.client import Reach, Upstream, UpstreamResponse


async def whole(
    upstream: Upstream,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    body: bytes | None,
    timeout_seconds: float,
    max_bytes: int | None,
) -> UpstreamResponse:
    """Ask as :meth:`Upstream.request` does; what may have been broken off is asked for anew, and must be the same.

    Not so what waits for a change: that is asked for again anyway, and would wait twice.

    Raises:
        UpstreamError: no answer; code ``protocol``: two answers differ.
    """

    async def ask() -> UpstreamResponse:
        return await upstream.request(
            method,
            url,
            headers=headers,
            body=body,
            timeout_seconds=timeout_seconds,
            max_bytes=max_bytes,
            reach=Reach.LINK,
        )

    answer = await ask()
    if method != "GET" or answer.status != 200 or _says_its_end(answer) or "wait_for_change=" in url:
        return answer
    again = await ask()
    if (again.status, again.body) != (answer.status, answer.body):
        raise UpstreamError(
            "the metadata service broke off an answer of which it did not say the length",
            code="protocol",
            server_time=again.date,
        )
    return again


def _says_its_end(answer: UpstreamResponse) -> bool:
    """Whether it could not have been broken off unseen. A JSON object could not: a credential, made anew for each."""
    if "Content-Length" in answer.headers or "chunked" in answer.headers.get("Transfer-Encoding", "").lower():
        return True
    try:
        decode(answer.body, dict[str, Any])
    except NotThatShapeError:
        return False
    return True
