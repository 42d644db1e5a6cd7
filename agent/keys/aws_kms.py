"""A worker key in AWS KMS: the machine's own role opens bundles, and no key is in any image or on any disk.

The sender needs the public half only, no AWS account and no KMS permission. The key policy says who may open: grant
``kms:DeriveSharedSecret`` (P-256) or ``kms:Decrypt`` (RSA) to the workers' role, with conditions as narrow as the
account wants them (``kms:RecipientAttestation:NitroTPMPCR*`` for "only this image").

Spec: AWS KMS API reference, ``DeriveSharedSecret`` (key usage ``KEY_AGREEMENT``, ``ECC_NIST_P256``) and ``Decrypt``
(``RSAES_OAEP_SHA_256``); the JSON 1.1 protocol is a POST with an ``X-Amz-Target``. We speak it directly: botocore's
client would cost 20 MB and a worker thread for one request at boot, and would sign with the machine's clock, which is
the one thing that may be wrong then.
"""

from __future__ import annotations

import base64
import contextlib
import re
from datetime import datetime
from http import HTTPStatus
from typing import Final, Protocol, TypeVar

import msgspec

from agent import bundle
from agent.core.errors import ConfigError, KeyUnavailableError, ProviderError, SealError
from agent.core.model import REGION, AwsCredential
from agent.core.partition import domain_of
from agent.core.strictjson import NotThatShapeError, decode
from agent.upstream import Upstream, UpstreamError
from agent.upstream.sigv4 import SigningKeys, signed_headers

_ARN: Final = re.compile(
    r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]{1,64}):[0-9]{12}:(key|alias)/[A-Za-z0-9/_-]{1,256}\Z"
)
_REGION: Final = re.compile(REGION)
_MAX_ANSWER_BYTES: Final = 65_536
_TIMEOUT_SECONDS: Final = 5.0
_SHARED_SECRET_BYTES: Final = 32  # of P-256: one coordinate

# The entry itself is wrong, and will be wrong tomorrow. Everything else (a denied role, a disabled key, a throttle) can
# be mended while the bundle waits.
_FINAL: Final = frozenset({"InvalidCiphertextException", "ValidationException", "IncorrectKeyException"})
_HINTS: Final = {
    "AccessDeniedException": "does the worker's role have kms:DeriveSharedSecret (P-256) or kms:Decrypt (RSA) on it?",
    "NotFoundException": "is the key ARN right, and in this region?",
    "DisabledException": "the key is disabled",
    "KMSInvalidStateException": "the key is pending deletion or not yet usable",
    "InvalidKeyUsageException": "a P-256 key needs key usage KEY_AGREEMENT, an RSA key ENCRYPT_DECRYPT",
}


class Credentials(Protocol):
    """A provider of the machine's own AWS credential (not a bundle's: that would be a circle)."""

    async def __call__(self, now: datetime) -> AwsCredential:
        """The credential.

        Raises:
            ProviderError: there is none now.
        """


_T = TypeVar("_T", bound=msgspec.Struct)


class _Answer(msgspec.Struct, frozen=True):
    KeyId: str = ""
    SharedSecret: str | None = None
    Plaintext: str | None = None


class _Refusal(msgspec.Struct, frozen=True):
    kind: str = msgspec.field(name="__type", default="")


class AwsKmsKey:
    """A key in AWS KMS.

    Args:
        key_id: key ARN, or alias ARN.
        public_key: the public half, P-256 or RSA: its id is the id bundles carry, and its kind decides the operation.
        credentials: the machine's own credential.
        upstream: the HTTP client.
        region: the region, when the ARN shall not say it.
        endpoint: a base URL instead of the regional one (VPC endpoint, FIPS, another partition).
        timeout_seconds: for the whole request.

    Raises:
        ConfigError: the ARN, the region or the kind of key cannot be.
    """

    kind = "aws-kms"

    def __init__(
        self,
        *,
        key_id: str,
        public_key: bundle.RecipientKey,
        credentials: Credentials,
        upstream: Upstream,
        region: str | None = None,
        endpoint: str | None = None,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        arn = _ARN.match(key_id)
        if arn is None:
            raise ConfigError(
                f"an aws-kms key must be a key ARN or alias ARN, got {key_id!r}",
                hint="arn:aws:kms:REGION:ACCOUNT:key/ID",
            )
        if public_key.kind not in ("P-256", "RSA"):
            raise ConfigError(f"an aws-kms key must be P-256 or RSA, its public half is {public_key.kind}")
        self._region = region or arn["region"]
        if not _REGION.match(self._region):
            raise ConfigError(f"{self._region!r} is not an AWS region")
        self._key_id = key_id
        self._public_key = public_key
        self._credentials = credentials
        self._upstream = upstream
        self._endpoint = (endpoint or _endpoint(self._region)).rstrip("/") + "/"
        self._timeout_seconds = timeout_seconds

    def __repr__(self) -> str:
        return f"<AwsKmsKey {self._key_id} {self.kid}>"

    @property
    def kid(self) -> str:
        """The key id that recipient entries carry."""
        return self._public_key.kid

    def public_jwk(self) -> dict[str, str] | None:
        """The public half."""
        return self._public_key.public_jwk()

    async def content_key(self, recipient: bundle.Recipient, now: datetime) -> bytes:
        """Open a recipient entry with one request to KMS. See :meth:`agent.keys.WorkerKey.content_key`."""
        if recipient.epk is not None and self._public_key.kind == "P-256":
            # The point is checked to lie on the curve before anything is sent.
            point = bundle.ephemeral_public_key_der(recipient)
            parameters = {"KeyAgreementAlgorithm": "ECDH", "PublicKey": base64.b64encode(point).decode("ascii")}
            answer = await self._call("DeriveSharedSecret", parameters, now)
            secret = _decoded(answer.SharedSecret)
            if len(secret) != _SHARED_SECRET_BYTES:
                raise KeyUnavailableError(
                    f"aws kms: expected a shared secret of {_SHARED_SECRET_BYTES} bytes, got {len(secret)}"
                )
            return bundle.content_key_from_secret(recipient, secret)
        if recipient.alg is bundle.KeyAlg.RSA_OAEP_256 and self._public_key.kind == "RSA":
            parameters = {
                "EncryptionAlgorithm": "RSAES_OAEP_SHA_256",
                "CiphertextBlob": base64.b64encode(recipient.encrypted_key).decode("ascii"),
            }
            answer = await self._call("Decrypt", parameters, now)
            # A wrong length is the sender's fault: anybody can seal anything to a public key.
            return bundle.checked_content_key(_decoded(answer.Plaintext))
        raise SealError(
            f"key {self.kid} is {self._public_key.kind} and cannot open {recipient.alg}", code=bundle.Code.UNWRAP
        )

    async def _call(self, operation: str, parameters: dict[str, str], now: datetime) -> _Answer:
        body = msgspec.json.encode({"KeyId": self._key_id, **parameters})
        headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"TrentService.{operation}"}
        try:
            credential = await self._credentials(now)
            keys = SigningKeys(credential.access_key_id, credential.secret_access_key, credential.session_token)
            signed = signed_headers(
                keys, "POST", self._endpoint, headers, body, service="kms", region=self._region, now=now
            )
            response = await self._upstream.request(
                "POST",
                self._endpoint,
                headers=signed,
                body=body,
                timeout_seconds=self._timeout_seconds,
                max_bytes=_MAX_ANSWER_BYTES,
            )
        except (ProviderError, UpstreamError) as error:
            raise KeyUnavailableError(
                f"aws kms {operation}: {error.message}", hint=error.hint, pause_seconds=error.pause_seconds
            ) from None
        pause = response.pause_seconds
        if response.status == HTTPStatus.OK:
            return self._by_this_key(_parse(response.body, _Answer, operation))
        try:
            code = _word(_parse(response.body, _Refusal, operation).kind)
        except KeyUnavailableError as error:
            error.pause_seconds = pause
            raise
        if code in _FINAL and response.status == HTTPStatus.BAD_REQUEST:
            raise SealError(f"aws kms does not open the entry for key {self.kid}: {code}", code=bundle.Code.UNWRAP)
        raise KeyUnavailableError(
            f"aws kms {operation} with {self._key_id}: {code or f'status {response.status}'}",
            hint=_HINTS.get(code),
            pause_seconds=pause,
        )

    def _by_this_key(self, answer: _Answer) -> _Answer:
        """``answer``, unless it says that another key computed it. An alias may be any key's."""
        mine, theirs = self._key_id.rpartition("/")[2], answer.KeyId.rpartition("/")[2]
        if ":key/" in self._key_id and theirs not in ("", mine):
            raise KeyUnavailableError(f"aws kms: expected an answer of {self._key_id}, got one of another key")
        return answer


def _endpoint(region: str) -> str:
    return f"https://kms.{region}.{domain_of(region)}"


def _word(kind: str) -> str:
    """The code alone: some services send ``com.amazonaws.kms#DisabledException``, some ``Code:http://...``."""
    word = kind.rpartition("#")[2].partition(":")[0]
    return word if re.fullmatch(r"[A-Za-z]{1,80}", word) else ""


def _parse(body: bytes, kind: type[_T], operation: str) -> _T:
    try:
        return decode(body, kind)
    except NotThatShapeError:  # a proxy's page, say; its words are not repeated
        pass
    raise KeyUnavailableError(f"aws kms {operation}: expected a JSON answer, got something else")


def _decoded(text: str | None) -> bytes:
    # An answer without it is not this service's: a sign-in page in JSON, say.
    with contextlib.suppress(ValueError):
        if text is not None:
            return base64.b64decode(text, validate=True)
    raise KeyUnavailableError("aws kms: expected base64 in the answer, got something else")
