"""Google Cloud KMS, as far as ``asymmetricDecrypt`` goes, with a real key. Written from the REST reference."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.fakes.net import Answer, Asked, Fault


@dataclass
class FakeGcpKms:
    """A handler for :func:`tests.fakes.net.serve`."""

    token: str
    keys: dict[str, rsa.RSAPrivateKey] = field(default_factory=dict)
    disabled: set[str] = field(default_factory=set)
    denied: bool = False
    next: list[Answer | Fault] = field(default_factory=list)

    def __call__(self, asked: Asked) -> Answer | Fault:
        if self.next:
            return self.next.pop(0)
        if asked.headers.get("authorization") != f"Bearer {self.token}":
            return _error(401, "UNAUTHENTICATED")
        name, _, method = asked.path.removeprefix("/v1/").rpartition(":")
        if asked.method != "POST" or method != "asymmetricDecrypt" or name not in self.keys:
            return _error(404, "NOT_FOUND")
        if self.denied:
            return _error(403, "PERMISSION_DENIED")
        if name in self.disabled:
            return _error(400, "FAILED_PRECONDITION")
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
        try:
            plain = self.keys[name].decrypt(base64.b64decode(json.loads(asked.body)["ciphertext"]), oaep)
        except ValueError:
            return _error(400, "INVALID_ARGUMENT")
        body = {"plaintext": base64.b64encode(plain).decode(), "plaintextCrc32c": "0", "protectionLevel": "HSM"}
        return Answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})


def _error(status: int, word: str) -> Answer:
    body = {"error": {"code": status, "message": f"{word}: a sentence for people", "status": word}}
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json"})
