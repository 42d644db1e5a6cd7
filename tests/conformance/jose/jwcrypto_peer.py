"""A producer and a reader of bundles on jwcrypto, written from FORMAT.md. See README.md for the protocol."""

from __future__ import annotations

import json
import sys
from typing import Any

from jwcrypto import jwe, jwk, jws

OUTER = {"typ": "credbundle+jwe", "cty": "credbundle+jwt", "enc": "A256GCM"}
ALGS = {"EC": "ECDH-ES+A256KW", "OKP": "ECDH-ES+A256KW", "RSA": "RSA-OAEP-256", "oct": "A256KW"}


def _key(value: dict[str, str]) -> jwk.JWK:
    return jwk.JWK(**{k: v for k, v in value.items() if k not in ("use", "alg")})


def seal(request: dict[str, Any]) -> str:
    signer = request["signer"]
    alg = "EdDSA" if signer["kty"] == "OKP" else "ES256"
    inner = jws.JWS(json.dumps(request["claims"]))
    inner.add_signature(
        _key(signer), alg, protected=json.dumps({"alg": alg, "typ": "credbundle+jwt", "kid": signer["kid"]})
    )
    signed = inner.serialize(compact=True)
    if request["form"] == "compact":
        (only,) = request["recipients"]
        header = {**OUTER, "alg": "ECDH-ES" if request.get("direct") else ALGS[only["kty"]], "kid": only["kid"]}
        token = jwe.JWE(signed, protected=json.dumps(header), recipient=_key(only))
        return str(token.serialize(compact=True))
    token = jwe.JWE(signed, protected=json.dumps(OUTER))
    for recipient in request["recipients"]:
        header = {"alg": ALGS[recipient["kty"]], "kid": recipient["kid"]}
        token.add_recipient(_key(recipient), json.dumps(header))
    return str(token.serialize())


def open_(request: dict[str, Any]) -> str:
    token = jwe.JWE(algs=["ECDH-ES+A256KW", "ECDH-ES", "RSA-OAEP-256", "A256KW", "A256GCM"])
    bundle = request["bundle"]
    if bundle.startswith("{"):
        value = json.loads(bundle)
        if "recipients" in value:
            value["recipients"] = [r for r in value["recipients"] if r["header"]["kid"] == request["key"]["kid"]]
        bundle = json.dumps(value)
    token.deserialize(bundle, _key(request["key"]))
    inner = jws.JWS()
    inner.allowed_algs = ["EdDSA", "Ed25519", "ES256"]
    inner.deserialize(token.payload.decode(), _key(request["signer"]))
    return str(inner.payload.decode())


if __name__ == "__main__":
    sys.stdout.write({"seal": seal, "open": open_}[sys.argv[1]](json.load(sys.stdin)))
