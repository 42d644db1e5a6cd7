"""A worker key in Google Cloud KMS: the VM's service account opens bundles.

The key has purpose ``ASYMMETRIC_DECRYPT`` and an ``RSA_DECRYPT_OAEP_*_SHA256`` algorithm (JOSE's ``RSA-OAEP-256``:
SHA-256 for the hash and for MGF1); the service account needs ``roles/cloudkms.cryptoKeyDecrypter`` on it. Senders need
the public half only (``gcloud kms keys versions get-public-key``).

Spec: Cloud KMS REST reference, method ``asymmetricDecrypt`` of ``cryptoKeyVersions``. Its optional CRC32C fields are
left out: a content key damaged on the way cannot open an authenticated content.
"""

from __future__ import annotations

import base64
import contextlib
import re
from datetime import datetime
from http import HTTPStatus
from typing import Final, Protocol

import msgspec

from agent import bundle
from agent.core.errors import ConfigError, KeyUnavailableError, ProviderError, SealError
from agent.core.model import GoogleToken
from agent.core.strictjson import NotThatShapeError, decode
from agent.upstream import Upstream, UpstreamError

_KEY_VERSION: Final = re.compile(
    r"projects/[a-z0-9.:-]{1,100}/locations/[a-z0-9-]{1,63}/keyRings/[A-Za-z0-9_-]{1,63}"
    r"/cryptoKeys/[A-Za-z0-9_-]{1,63}/cryptoKeyVersions/[0-9]{1,9}\Z"
)
_ENDPOINT: Final = "https://cloudkms.googleapis.com"
_MAX_ANSWER_BYTES: Final = 65_536
_TIMEOUT_SECONDS: Final = 5.0
_HINTS: Final = {
    "PERMISSION_DENIED": "does the service account have roles/cloudkms.cryptoKeyDecrypter on the key, "
    "and the VM the cloud-platform or cloudkms scope?",
    "NOT_FOUND": "is the name of the key version right?",
    "FAILED_PRECONDITION": "the key version is disabled or destroyed, or its purpose is not ASYMMETRIC_DECRYPT",
    "UNAUTHENTICATED": "the VM's own token was not accepted",
}


class Token(Protocol):
    """A provider of the VM's own Google token (not a bundle's: that would be a circle)."""

    async def __call__(self, now: datetime) -> GoogleToken:
        """The token.

        Raises:
            ProviderError: there is none now.
        """


class _Answer(msgspec.Struct, frozen=True):
    plaintext: str | None = None


class _Status(msgspec.Struct, frozen=True):
    status: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    error: _Status = _Status()


class GcpKmsKey:
    """A key in Google Cloud KMS.

    Args:
        key_version: ``projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V``.
        public_key: the public half (RSA): its id is the id bundles carry.
        token: the VM's own access token.
        upstream: the HTTP client.
        endpoint: a base URL instead of the global one.
        timeout_seconds: for the whole request.

    Raises:
        ConfigError: the name or the kind of key cannot be.
    """

    kind = "gcp-kms"

    def __init__(
        self,
        *,
        key_version: str,
        public_key: bundle.RecipientKey,
        token: Token,
        upstream: Upstream,
        endpoint: str | None = None,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        if not _KEY_VERSION.match(key_version):
            raise ConfigError(
                f"a gcp-kms key must be the name of a key version, got {key_version!r}",
                hint="projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V",
            )
        if public_key.kind != "RSA":
            raise ConfigError(f"a gcp-kms key must be RSA, its public half is {public_key.kind}")
        self._key_version = key_version
        self._public_key = public_key
        self._token = token
        self._upstream = upstream
        self._url = f"{(endpoint or _ENDPOINT).rstrip('/')}/v1/{key_version}:asymmetricDecrypt"
        self._timeout_seconds = timeout_seconds

    def __repr__(self) -> str:
        return f"<GcpKmsKey {self._key_version} {self.kid}>"

    @property
    def kid(self) -> str:
        """The key id that recipient entries carry."""
        return self._public_key.kid

    def public_jwk(self) -> dict[str, str] | None:
        """The public half."""
        return self._public_key.public_jwk()

    async def content_key(self, recipient: bundle.Recipient, now: datetime) -> bytes:
        """Open a recipient entry with one request to Cloud KMS. See :meth:`agent.keys.WorkerKey.content_key`."""
        if recipient.alg is not bundle.KeyAlg.RSA_OAEP_256:
            raise SealError(f"key {self.kid} is RSA and cannot open {recipient.alg}", code=bundle.Code.UNWRAP)
        body = msgspec.json.encode({"ciphertext": base64.b64encode(recipient.encrypted_key).decode("ascii")})
        try:
            token = await self._token(now)
            response = await self._upstream.request(
                "POST",
                self._url,
                headers={
                    "Authorization": f"Bearer {token.access_token.reveal()}",
                    "Content-Type": "application/json",
                },
                body=body,
                timeout_seconds=self._timeout_seconds,
                max_bytes=_MAX_ANSWER_BYTES,
            )
        except (ProviderError, UpstreamError) as error:
            raise KeyUnavailableError(
                f"cloud kms: {error.message}", hint=error.hint, pause_seconds=error.pause_seconds
            ) from None
        if response.status != HTTPStatus.OK:
            raise self._refusal(response.status, response.body, response.pause_seconds)
        return bundle.checked_content_key(_plaintext(response.body))

    def _refusal(self, status: int, body: bytes, pause_seconds: float = 0.0) -> SealError | KeyUnavailableError:
        word = ""
        with contextlib.suppress(NotThatShapeError):
            word = decode(body, _Refusal).error.status
        if status == HTTPStatus.BAD_REQUEST and word == "INVALID_ARGUMENT":
            # "Decryption failed: the ciphertext is invalid": for good. A disabled key is FAILED_PRECONDITION.
            return SealError(f"cloud kms does not open the entry for key {self.kid}", code=bundle.Code.UNWRAP)
        return KeyUnavailableError(
            f"cloud kms with {self._key_version}: status {status}"
            + (f" {word}" if re.fullmatch(r"[A-Z_]{1,40}", word) else ""),
            hint=_HINTS.get(word),
            pause_seconds=pause_seconds,
        )


def _plaintext(body: bytes) -> bytes:
    with contextlib.suppress(NotThatShapeError, ValueError):
        plaintext = decode(body, _Answer).plaintext
        if plaintext is not None:
            return base64.b64decode(plaintext, validate=True)
    raise KeyUnavailableError("cloud kms: expected a plaintext in the answer, got something else")
