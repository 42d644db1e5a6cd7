"""AWS Signature Version 4, with the time as a parameter.

botocore computes the signature; only its habit of reading the machine's clock is overridden: the controller knows the
true time better (:mod:`agent.core.timekeeping`), and a signature made with a clock that is off is
refused for as long as the clock is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from agent.core.secret import Secret


class SigningKeys(msgspec.Struct, frozen=True):
    """The key that signs: a long-term one has no session token."""

    access_key_id: str
    secret_access_key: Secret
    session_token: Secret | None = None


class _Credentials(NamedTuple):
    """The members that the signer reads. botocore's own class would bring its whole credential chain along."""

    access_key: str
    secret_key: str
    token: str | None


def signed_headers(
    keys: SigningKeys,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    service: str,
    region: str,
    now: datetime,
) -> dict[str, str]:
    """``headers`` and those of the signature (``X-Amz-Date``, ``X-Amz-Security-Token``, ``Authorization``).

    Every header given is signed, and ``host``.
    """
    from botocore.awsrequest import AWSRequest  # noqa: PLC0415 - 5 MB that an agent with static grants never pays

    token = keys.session_token.reveal() if keys.session_token is not None else None
    credentials = _Credentials(keys.access_key_id, keys.secret_access_key.reveal(), token)
    request = AWSRequest(method=method, url=url, headers=dict(headers), data=body)
    _signer_class()(credentials, service, region, now).add_auth(request)
    return {str(name): str(value) for name, value in request.headers.items()}


@functools.cache
def _signer_class() -> Any:
    from botocore.auth import SIGV4_TIMESTAMP, SigV4Auth  # noqa: PLC0415 - see signed_headers

    class SigV4AuthAt(SigV4Auth):  # type: ignore[misc] # botocore is untyped
        """``SigV4Auth`` whose ``add_auth`` takes its time from outside; the steps are the parent's own.

        ``tests/unit/upstream/test_sigv4.py`` checks it against AWS's published examples, so that a botocore whose
        steps change fails there and not in production.
        """

        def __init__(self, credentials: Any, service: str, region: str, now: datetime) -> None:
            super().__init__(credentials, service, region)
            self._now = now

        def add_auth(self, request: Any) -> None:
            # The parent does the same, and logs the canonical request (which holds the session token) at debug level.
            request.context["timestamp"] = self._now.strftime(SIGV4_TIMESTAMP)
            self._modify_request_before_signing(request)
            to_sign = self.string_to_sign(request, self.canonical_request(request))
            self._inject_signature_to_request(request, self.signature(to_sign, request))

    return SigV4AuthAt
