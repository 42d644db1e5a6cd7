"""The real metadata services, as their client: handshakes and nothing else.

Sources, the machine's own identity and the pass-through all speak through these, so that the IMDSv2 token, the
``Metadata-Flavor`` check and the headers that must never go out are in one place. Paths and documents are their
callers' business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from multidict import CIMultiDict

from agent.core.clock import Clock
from agent.core.errors import UpstreamError, WireError
from agent.core.source import ELSEWHERE
from agent.upstream.client import NotHere, OtherCloud, Reach, SwitchedOff, Upstream, UpstreamResponse
from agent.upstream.guard import UpstreamRefused
from agent.upstream.whole import whole
from agent.wire.ec2 import MAX_TTL_SECONDS, SERVER, parse_token
from agent.wire.names import (
    EC2_REGION_PATH,
    EC2_TOKEN_HEADER,
    EC2_TOKEN_PATH,
    EC2_TTL_HEADER,
    GCE_FLAVOR,
    GCE_FLAVOR_HEADER,
    METADATA_URL,
)

#: Both services answer from the host below; one that takes longer is broken.
DEFAULT_TIMEOUT_SECONDS: Final = 2.0

_HOPS_HINT: Final = (
    "in a container on a bridge, ec2 answers only if the instance's hop limit (HttpPutResponseHopLimit) is 2 or more; "
    "else see the route and the firewall to 169.254.169.254"
)
_TOKEN_MARGIN_SECONDS: Final = 120
_TOKEN_MAX_BYTES: Final = 65_536
"""Of an answer to the question for a session token: Google's own pages of 404 have 1604 bytes
(googleapis/gcp-metadata#657). What is a token's own bound is the codec's business."""
#: What Google's server says to whoever does not name it in a header, as in the question for a session token; GKE's
#: leaves out its mark (googleapis/google-cloud-ruby#3750).
_UNNAMED: Final = b'Missing required header "Metadata-Flavor": "Google"'
#: Never sent on: hop-by-hop (RFC 9110 section 7.6.1), what the HTTP library writes itself, and ``X-Forwarded-For``,
#: whose presence makes both services refuse (their guard against being reached through a proxy). Neither is
#: ``Accept-Encoding`` sent: answers are edited and kept for other clients here, so they are asked for uncompressed.
_NOT_FORWARDED: Final = frozenset(
    {
        "host",
        "connection",
        "proxy-connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "expect",
        "accept-encoding",
        "forwarded",
        "x-forwarded-for",
        EC2_TOKEN_HEADER.lower(),
    }
)

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


class Ec2Metadata:
    """The EC2 instance metadata service, version 2 only.

    Args:
        upstream: the way out.
        clock: its boot time ages the session token; steps of the wall clock do not.
        base_url: scheme, host and port, no path.
        timeout_seconds: for one request; the token handshake has its own.

    Error handling: :class:`SwitchedOff` when it says that it is ("HttpEndpoint=disabled"); :class:`NotHere` when what
    answers is not this service; :class:`UpstreamError` otherwise.

    **Whose 403 is it?** EC2 answers 403 to everything while it is switched off; to a token alone where the request came
    through a proxy (``X-Forwarded-For``); and so does any captive or filtering proxy that stands at this address. The
    first must be told from the others: it takes the machine's identity away. EC2's own answers bear ``Server: EC2ws``
    (seen in its 403 too: ansible/ansible#68098), a proxy's ``Via`` (RFC 9110 section 7.6.3) or another ``Server``; and
    a service that is on has an answer other than 403 to a request without a token.
    """

    def __init__(
        self,
        upstream: Upstream,
        clock: Clock,
        base_url: str = METADATA_URL,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._upstream = upstream
        self._clock = clock
        self._base_url = base_url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        # Mutable state: the session token and when it ends, in boot-time seconds.
        self._token: str | None = None
        self._token_ends = 0.0
        self._token_lock = asyncio.Lock()
        self._is_ec2 = False  # whether EC2 itself gave the token, by its own word

    async def request(
        self,
        method: str,
        path_qs: str,
        headers: Headers = (),
        body: bytes | None = None,
        *,
        timeout_seconds: float | None = None,
        max_bytes: int | None = None,
    ) -> UpstreamResponse:
        """Send ``path_qs`` as it is, with our own session token; a 401 gets one new token and one more try."""
        _check_path(path_qs)
        outgoing = _forwardable(headers)
        for attempt in (1, 2):
            token = await self._session_token()
            outgoing[EC2_TOKEN_HEADER] = token
            answer = await whole(
                self._upstream,
                method,
                self._base_url + path_qs,
                headers=outgoing,
                body=body,
                timeout_seconds=timeout_seconds or self._timeout_seconds,
                max_bytes=max_bytes,
            )
            if answer.status not in {401, 403} or attempt == 2:
                break
            if self._token == token:
                # The service forgot it (it restarted, or the instance was moved), or was switched off since. Somebody
                # else may have renewed it meanwhile: forget only the one that was refused.
                self._token = None
        return answer

    async def get(self, path: str) -> bytes | None:
        """The body of ``path``; ``None`` when the service has nothing there (404).

        Raises:
            UpstreamError: any other status, or no answer; likewise :meth:`own`.
        """
        return _body_or_none(self.own(await self.request("GET", path), path), path)

    def own(self, answer: UpstreamResponse, path: str) -> UpstreamResponse:
        """An answer of :meth:`request` for ``path``, unless it is not the service's own.

        Raises:
            UpstreamError: code ``stranger`` where EC2 gave our session token and something else says now that a thing
                is there, or is not, or is refused: while that token is good, nobody is asked for another.
        """
        if self._is_ec2 and answer.status < 500 and not by_ec2(answer):
            raise _stranger(f"{path} of the ec2 metadata service is answered by something else", answer)
        return answer

    async def _session_token(self) -> str:
        async with self._token_lock:
            if self._token is not None and self._clock.boottime() < self._token_ends:
                return self._token
            asked_at = self._clock.boottime()
            try:
                answer = await self._upstream.request(
                    "PUT",
                    self._base_url + EC2_TOKEN_PATH,
                    headers={EC2_TTL_HEADER: str(MAX_TTL_SECONDS)},
                    timeout_seconds=self._timeout_seconds,
                    max_bytes=_TOKEN_MAX_BYTES,
                    reach=Reach.LINK,
                )
            except UpstreamError as error:
                if error.code == "timeout" and error.hint is None:
                    # A session token goes no further than the instance allows: it is lost on the way to a container.
                    error.hint = _HOPS_HINT
                raise
            if answer.status == 403:
                raise await self._refusal(answer)
            if answer.status in {404, 405, 501}:
                if self._is_ec2:
                    raise _stranger(
                        f"status {answer.status} for an ec2 metadata token, where ec2 has given one", answer
                    )
                if speaks_gce(answer):
                    raise OtherCloud(f"no ec2 metadata service: google{ELSEWHERE}", server_time=answer.date)
                raise NotHere(
                    f"no ec2 metadata service: status {answer.status} for a session token", server_time=answer.date
                )
            if answer.status != 200:
                raise UpstreamError(
                    f"expected 200 for an ec2 metadata token, got {answer.status}",
                    code="status",
                    server_time=answer.date,
                    pause_seconds=answer.pause_seconds,
                )
            try:
                token = parse_token(answer.body)
            except WireError:
                raise UpstreamError("the ec2 metadata token is not printable ascii", code="protocol") from None
            granted = answer.headers.get(EC2_TTL_HEADER, "")
            life = int(granted) if granted.isdecimal() and len(granted) < 6 else MAX_TTL_SECONDS
            self._token, self._is_ec2 = token, by_ec2(answer)
            self._token_ends = asked_at + max(1, min(life, MAX_TTL_SECONDS) - _TOKEN_MARGIN_SECONDS)
            return token

    async def _refusal(self, answer: UpstreamResponse) -> UpstreamError:
        """What a 403 for a token means: see the class."""
        if speaks_gce(answer):
            return OtherCloud(f"no ec2 metadata service: google{ELSEWHERE}", server_time=answer.date)
        if by_ec2(answer):
            without = await self._upstream.request(
                "GET",
                self._base_url + EC2_REGION_PATH,
                headers={},
                timeout_seconds=self._timeout_seconds,
                reach=Reach.LINK,
            )
            if switched_off(answer, without):
                return SwitchedOff(
                    "no ec2 metadata service: it is switched off for this instance", server_time=answer.date
                )
        return _stranger("status 403 for an ec2 metadata token, and not because the service is switched off", answer)


class GceMetadata:
    """The GCE metadata server.

    Error handling: :class:`NotHere` when an answer below 500 does not carry ``Metadata-Flavor: Google``: it comes
    from something else at that address. Some hosts leave it out of their errors (googleapis/gcp-metadata#657, GKE), so
    once an answer carried it, a 4xx without it is handed on, and another answer is a stranger's.
    """

    def __init__(
        self,
        upstream: Upstream,
        base_url: str = METADATA_URL,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._upstream = upstream
        self._base_url = base_url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._flavored = False  # mutable: whether an answer has carried the flavor

    async def request(
        self,
        method: str,
        path_qs: str,
        headers: Headers = (),
        body: bytes | None = None,
        *,
        timeout_seconds: float | None = None,
        max_bytes: int | None = None,
    ) -> UpstreamResponse:
        """Send ``path_qs`` as it is, with the flavor header."""
        _check_path(path_qs)
        outgoing = _forwardable(headers)
        outgoing[GCE_FLAVOR_HEADER] = GCE_FLAVOR
        answer = await whole(
            self._upstream,
            method,
            self._base_url + path_qs,
            headers=outgoing,
            body=body,
            timeout_seconds=timeout_seconds or self._timeout_seconds,
            max_bytes=max_bytes,
        )
        if by_gce(answer):
            self._flavored = True
        elif self._flavored and answer.status < 400:
            raise _stranger("the gce metadata server is answered for by something else", answer)
        elif answer.status < 500 and not self._flavored:
            raise _no_gce(answer)
        return answer

    async def get(self, path_qs: str) -> bytes | None:
        """The body of ``path_qs``; ``None`` when the server has nothing there (404).

        Raises:
            UpstreamError: any other status, or no answer.
        """
        return _body_or_none(await self.request("GET", path_qs), path_qs)

    async def attribute(self, directory: str, key: str) -> bytes | None:
        """The attribute ``key`` of ``directory``; ``None`` when the server itself says that there is none.

        A 404 without the flavor may be a page that stands in its place. So the list of the attributes is asked then,
        which is always there.

        Raises:
            UpstreamError: any other status, or no answer; code ``stranger`` where something else says that there is
                none.
        """
        answer = await self.request("GET", directory + key)
        if answer.status == 404 and not by_gce(answer):
            listed = await self.get(directory)
            if listed is None or key.encode() in listed.split():
                raise _stranger("an attribute of the gce metadata server is answered by something else", answer)
        return _body_or_none(answer, directory + key)


def _no_gce(answer: UpstreamResponse) -> NotHere:
    if by_ec2(answer):
        return OtherCloud(f"no gce metadata server: ec2{ELSEWHERE}", server_time=answer.date)
    return NotHere(f"no gce metadata server: status {answer.status} without its flavor", server_time=answer.date)


def _stranger(message: str, answer: UpstreamResponse) -> UpstreamError:
    return UpstreamError(
        message,
        code="stranger",
        server_time=answer.date,
        hint="a proxy stands between: nothing may take requests to the metadata service's address to itself",
    )


def by_ec2(answer: UpstreamResponse) -> bool:
    """Whether an answer, also one that refuses, is EC2's own, as it came from there."""
    return ("Server", answer.headers.get("Server")) == SERVER and "Via" not in answer.headers


def by_gce(answer: UpstreamResponse) -> bool:
    """Whether an answer is Google's own by its ``Metadata-Flavor``, which some hosts leave out of their errors."""
    return answer.headers.get(GCE_FLAVOR_HEADER) == GCE_FLAVOR


def speaks_gce(answer: UpstreamResponse) -> bool:
    """Whether what answers EC2's question for a session token is Google's server, also one that leaves out its mark."""
    return by_gce(answer) or (answer.status == 403 and _UNNAMED in answer.body)


def switched_off(token: UpstreamResponse, without: UpstreamResponse) -> bool:
    """Whether EC2 itself says that its metadata service is switched off: see :class:`Ec2Metadata`.

    Args:
        token: its answer to the question for a session token.
        without: its answer to a question that carries none.
    """
    return all(answer.status == 403 and by_ec2(answer) for answer in (token, without))


def _check_path(path_qs: str) -> None:
    # It is glued to the base URL: anything but a path could change the host ("@evil", ".evil").
    if not path_qs.startswith("/") or not path_qs.isascii() or not path_qs.isprintable() or " " in path_qs:
        raise UpstreamRefused("expected a path that starts with / in printable ascii")


def _forwardable(headers: Headers) -> CIMultiDict[str]:
    given: CIMultiDict[str] = CIMultiDict(headers)
    named_by_connection = {name.strip().lower() for name in given.get("Connection", "").split(",")}
    return CIMultiDict(
        (name, value)
        for name, value in given.items()
        if name.lower() not in _NOT_FORWARDED and name.lower() not in named_by_connection
    )


def _body_or_none(answer: UpstreamResponse, path: str) -> bytes | None:
    if answer.status == 404:
        return None
    if answer.status != 200:
        raise UpstreamError(
            f"expected 200 from the metadata service for {path.partition('?')[0]}, got {answer.status}",
            code="status",
            server_time=answer.date,
            pause_seconds=answer.pause_seconds,
        )
    return answer.body
