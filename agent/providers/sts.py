"""The AWS Security Token Service: questions and answers of its query protocol.

botocore's own model, serializer, parser and signer do the protocol; the transport is our own HTTP client instead of
botocore's client. That keeps one set of limits for all traffic, lets time be a parameter, needs no worker threads that
may hang, leaves the environment and ``~/.aws`` unread by construction, and costs 7 MB instead of 18.

Not done here: retries, and the choice of what to ask.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, cast
from urllib.parse import urlencode

import msgspec

from agent.core.errors import Denied, ProviderError, Transient
from agent.core.secret import Secret
from agent.providers.refusals import clock_hint, clock_is_suspect, from_upstream, passing_status, said, word
from agent.providers.regions import data_loader, main_region, sts_url
from agent.providers.signing_time import SigningTime
from agent.upstream import Upstream, UpstreamError, UpstreamResponse
from agent.upstream.sigv4 import SigningKeys, signed_headers

#: An STS answer is about 2 KB; the packed session token can reach a few more.
_MAX_ANSWER_BYTES: Final = 65536

#: Refusals with a 4xx status that pass by themselves (botocore's retry tables and the STS API reference).
_PASSING_CODES: Final = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "SlowDown",
        "EC2ThrottledException",
        "TransactionInProgressException",
        "RequestTimeout",
        "RequestTimeoutException",
        "InternalError",
        "InternalFailure",
        "ServiceUnavailable",
        "Unavailable",
        "IDPCommunicationError",
    }
)
#: Always the clock's doing: the next attempt is signed with the time that this very answer names.
_CLOCK_CODES: Final = frozenset({"RequestExpired", "RequestTimeTooSkewed", "RequestInTheFuture"})
#: The clock's doing only when the clocks do disagree; else the secret key is wrong.
_SIGNATURE_CODES: Final = frozenset({"SignatureDoesNotMatch", "InvalidSignatureException", "AuthFailure"})


class StsAnswer(msgspec.Struct, frozen=True):
    """An answer of STS.

    Attributes:
        result: the operation's result as botocore's parser gives it. Holds secrets in the clear.
        server_time: the answer's ``Date``.
    """

    result: dict[str, Any]
    server_time: datetime | None

    def __repr__(self) -> str:
        return "<StsAnswer>"


class Sts:
    """Asks STS one question at a time.

    Args:
        upstream: the way out.
        endpoint: one URL for all regions, or ``None`` for the regional endpoints.
        timeout_seconds: for one request, start to end.
        boottime: see :class:`~agent.providers.signing_time.SigningTime`.
    """

    def __init__(
        self, upstream: Upstream, endpoint: str | None, timeout_seconds: float, boottime: Callable[[], float]
    ) -> None:
        self._upstream = upstream
        self._endpoint = endpoint
        self._timeout_seconds = timeout_seconds
        self._times = SigningTime(boottime)

    async def call(
        self,
        operation: str,
        parameters: dict[str, Any],
        *,
        region: str,
        keys: SigningKeys | None,
        now: datetime,
        confidential: Iterable[Secret] = (),
    ) -> StsAnswer:
        """Call ``operation``; unsigned when ``keys`` is ``None``.

        Args:
            operation: its name in the API (``AssumeRole``).
            parameters: as the API names them.
            region: whose endpoint is asked, and for which the request is signed.
            keys: who asks.
            now: our time; the signature is dated by it, or by the server's own if that refused it before.
            confidential: parameters that must not come back in an error text.

        Raises:
            Denied: STS will say no again.
            Transient: no answer, throttling, an error of theirs, or our clock was off.
        """
        await ready()
        model = _operation(operation)
        serialized = _serializer().serialize_to_request(parameters, model)
        body = urlencode(serialized["body"]).encode()
        headers = {str(name): str(value) for name, value in serialized["headers"].items()}
        url = (self._endpoint or sts_url(region)).rstrip("/") + "/"
        dated = self._times.at(url, now)
        if keys is not None:
            headers = signed_headers(keys, "POST", url, headers, body, service="sts", region=region, now=dated)
        try:
            answer = await self._upstream.request(
                "POST",
                url,
                headers=headers,
                body=body,
                timeout_seconds=self._timeout_seconds,
                max_bytes=_MAX_ANSWER_BYTES,
            )
        except UpstreamError as error:
            raise from_upstream(error, f"sts {operation}") from None
        parsed = _parse(operation, answer)
        if answer.status != 200:
            secrets = [*confidential]
            if keys is not None:
                secrets += [keys.secret_access_key, *([keys.session_token] if keys.session_token else [])]
            refusal = _refusal(operation, answer, parsed.get("Error", {}), secrets, dated)
            if (
                keys is not None
                and refusal.code in _CLOCK_CODES | _SIGNATURE_CODES
                and clock_is_suspect(answer.date, dated)
            ):
                self._times.refused(url, answer.date)
            raise refusal
        return StsAnswer(parsed, answer.date)


def broken(operation: str, server_time: datetime | None = None) -> Transient:
    """The error for an answer that is not what the API promises."""
    return Transient(
        f"sts {operation}: the answer is not what the api promises", code="protocol", server_time=server_time
    )


def aware(instant: object) -> datetime:
    """A parsed timestamp as aware UTC.

    Raises:
        TypeError: it is not a timestamp.
    """
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        raise TypeError("expected an aware datetime")
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise TypeError("expected an instant of the years 1 to 9999") from None


def _parse(operation: str, answer: UpstreamResponse) -> dict[str, Any]:
    from botocore.parsers import ResponseParserError  # noqa: PLC0415 - imported only when a grant needs STS

    envelope = {
        "status_code": answer.status,
        "headers": {name.lower(): value for name, value in answer.headers.items()},
        "body": answer.body,
    }
    shape = _operation(operation).output_shape
    try:
        parsed = _parser().parse(envelope, shape)
    except (ResponseParserError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError):
        # botocore's parser has no single way to fail; whatever it trips over is not STS's XML (a proxy's page, say).
        # A time it cannot hold is a RuntimeError there.
        parsed = None
    if answer.status == 200:
        if not _fits(parsed, shape):
            raise broken(operation, answer.date)
        return cast("dict[str, Any]", parsed)
    return parsed if isinstance(parsed, dict) and isinstance(parsed.get("Error"), dict) else {}


def _fits(parsed: object, shape: Any) -> bool:
    """Whether that is of the type that the model says: the parser makes a list of any element that is there twice."""
    if shape.type_name != "structure":
        return not isinstance(parsed, dict | list)  # no result that we ask for has either
    return isinstance(parsed, dict) and all(
        _fits(parsed[name], member) for name, member in shape.members.items() if name in parsed
    )


def _refusal(
    operation: str, answer: UpstreamResponse, error: dict[str, Any], secrets: list[Secret], now: datetime
) -> ProviderError:
    code = word(error.get("Code"), f"http-{answer.status}")
    skewed = clock_is_suspect(answer.date, now)
    if code in _CLOCK_CODES or (code in _SIGNATURE_CODES and skewed):
        return Transient(
            f"sts {operation}: {code}: the signature's time was not accepted",
            hint=clock_hint(answer.date, now),
            code=code,
            server_time=answer.date,
        )
    # A signature error's text repeats the canonical request, session token included: never repeated.
    text = "" if code in _SIGNATURE_CODES else said(error.get("Message"), secrets)
    passing = passing_status(answer.status) or code in _PASSING_CODES or not error
    kind = Transient if passing else Denied
    return kind(
        f"sts {operation}: {code}" + (f": {text}" if text else ""),
        hint=_HINTS.get(code),
        code=code,
        server_time=answer.date,
        pause_seconds=answer.pause_seconds,
    )


_HINTS: Final = {
    "AccessDenied": "check the role's trust policy and the caller's permission for the operation",
    "InvalidClientTokenId": "the access key does not exist any more, or belongs to another partition",
    "ExpiredToken": "the credential that this one stands on has ended",
    "ExpiredTokenException": "the identity token has ended",
    "RegionDisabledException": "activate sts in this region, or name another region in the grant",
}


async def ready() -> None:
    """Load botocore if this is the first time, off the loop: a tenth of a second that no client should wait."""
    if _parser.cache_info().currsize == 0:
        await asyncio.to_thread(warm)


def warm() -> None:
    """Load what the first call needs. Simulations that bring their own event loop call it first."""
    from botocore import auth, awsrequest  # noqa: F401, PLC0415 - loaded here, used in sigv4

    _service()
    _serializer()
    main_region(None)
    _parser()


@functools.cache
def _service() -> Any:
    from botocore.model import ServiceModel  # noqa: PLC0415 - imported only when a grant needs STS

    return ServiceModel(data_loader().load_service_model("sts", "service-2"), "sts")


@functools.cache
def _operation(name: str) -> Any:
    return _service().operation_model(name)


@functools.cache
def _serializer() -> Any:
    from botocore.serialize import create_serializer  # noqa: PLC0415 - imported only when a grant needs STS

    # Without botocore's client-side validation: its error texts quote the values, secrets included. STS validates.
    return create_serializer("query", include_validation=False)


@functools.cache
def _parser() -> Any:
    from botocore.parsers import create_parser  # noqa: PLC0415 - imported only when a grant needs STS

    return create_parser("query")
