"""AWS KMS, as far as ``DeriveSharedSecret``, ``Decrypt`` and ``GetPublicKey`` go, with real keys.

Written from the KMS API reference (JSON 1.1: ``X-Amz-Target: TrentService.<Operation>``, errors as ``__type``). The
signature of every request is computed again and compared.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from tests.fakes.net import Answer, Asked, Fault
from tests.fakes.sts import signature


@dataclass
class KmsKey:
    """One key: what it may do depends on its kind, as in KMS."""

    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    state: str = "Enabled"
    allowed: bool = True


@dataclass
class FakeAwsKms:
    """A handler for :func:`tests.fakes.net.serve`."""

    access_key_id: str
    secret: str
    session_token: str
    region: str = "eu-west-1"
    keys: dict[str, KmsKey] = field(default_factory=dict)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    next: list[Answer | Fault] = field(default_factory=list)

    def __call__(self, asked: Asked) -> Answer | Fault:
        if self.next:
            return self.next.pop(0)
        if (
            asked.method != "POST"
            or asked.path_qs != "/"
            or asked.headers.get("content-type") != "application/x-amz-json-1.1"
        ):
            return _error("UnknownOperationException")
        refused = self._authenticate(asked)
        if refused is not None:
            return refused
        operation = asked.headers.get("x-amz-target", "").removeprefix("TrentService.")
        parameters = json.loads(asked.body)
        self.asked.append((operation, parameters))
        key = self.keys.get(parameters["KeyId"])
        if key is None:
            return _error("NotFoundException", f"Key '{parameters['KeyId']}' does not exist")
        if not key.allowed:
            return _error("AccessDeniedException", "User is not authorized to perform this action")
        if key.state != "Enabled":
            return _error(
                "DisabledException" if key.state == "Disabled" else "KMSInvalidStateException", f"{key.state}"
            )
        match operation:
            case "DeriveSharedSecret":
                return _derive(key, parameters)
            case "Decrypt":
                return _decrypt(key, parameters)
        return _error("UnknownOperationException")

    def _authenticate(self, asked: Asked) -> Answer | None:
        authorization = asked.headers.get("authorization", "")
        if f"/{self.region}/kms/aws4_request" not in authorization:
            return _error("InvalidSignatureException", "Credential should be scoped to a valid region")
        if (
            f"Credential={self.access_key_id}/" not in authorization
            or asked.headers.get("x-amz-security-token") != self.session_token
        ):
            return _error("UnrecognizedClientException", "The security token included in the request is invalid.")
        _, expected = signature(asked, self.secret)
        if not authorization.endswith(f"Signature={expected}"):
            return _error("InvalidSignatureException", "The request signature we calculated does not match")
        signed_at = datetime.strptime(asked.headers["x-amz-date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
        if abs(self.now() - signed_at) > timedelta(minutes=5):
            return _error("InvalidSignatureException", "Signature expired")
        return None


def _key_arn(key_id: str) -> str:
    """What an answer names: always the key itself, also where an alias was asked for."""
    return key_id if ":alias/" not in key_id else f"{key_id.partition(':alias/')[0]}:key/behind-the-alias"


def _derive(key: KmsKey, parameters: dict[str, Any]) -> Answer:
    if not isinstance(key.private, ec.EllipticCurvePrivateKey):
        return _error("InvalidKeyUsageException")
    if parameters.get("KeyAgreementAlgorithm") != "ECDH":
        return _error("ValidationException")
    try:
        peer = serialization.load_der_public_key(base64.b64decode(parameters["PublicKey"], validate=True))
    except (ValueError, binascii.Error):
        return _error("ValidationException", "PublicKey is not valid")
    assert isinstance(peer, ec.EllipticCurvePublicKey)
    secret = key.private.exchange(ec.ECDH(), peer)
    body = {
        "KeyId": _key_arn(parameters["KeyId"]),
        "KeyAgreementAlgorithm": "ECDH",
        "KeyOrigin": "AWS_KMS",
        "SharedSecret": base64.b64encode(secret).decode(),
    }
    return Answer(200, json.dumps(body).encode(), {"Content-Type": "application/x-amz-json-1.1"})


def _decrypt(key: KmsKey, parameters: dict[str, Any]) -> Answer:
    if not isinstance(key.private, rsa.RSAPrivateKey):
        return _error("InvalidKeyUsageException")
    if parameters.get("EncryptionAlgorithm") != "RSAES_OAEP_SHA_256":
        return _error("ValidationException")
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    try:
        plain = key.private.decrypt(base64.b64decode(parameters["CiphertextBlob"]), oaep)
    except ValueError:
        return _error("InvalidCiphertextException")
    body = {
        "KeyId": _key_arn(parameters["KeyId"]),
        "Plaintext": base64.b64encode(plain).decode(),
        "EncryptionAlgorithm": "RSAES_OAEP_SHA_256",
    }
    return Answer(200, json.dumps(body).encode(), {"Content-Type": "application/x-amz-json-1.1"})


def _error(kind: str, message: str = "") -> Answer:
    return Answer(
        400, json.dumps({"__type": kind, "message": message}).encode(), {"Content-Type": "application/x-amz-json-1.1"}
    )
