"""Makes the kit: bundles good and hostile, each file with the outcome that FORMAT.md promises.

Run from the top of the repository: ``python -m tests.vectors.bundle.generate``. The output is committed; a test makes
it again and compares. It is written with tests/fakes/jose.py, which does not import the agent.
"""

from __future__ import annotations

import base64
import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fakes import jose

HERE = Path(__file__).parent
KEYS: dict[str, dict[str, str]] = json.loads((HERE / "keys.json").read_text())
NOW = 1_768_478_400  # 2026-01-15T12:00:00Z

WORLD: dict[str, Any] = {
    "now": NOW,
    "worker_keys": ["worker-p256", "worker-previous", "worker-x25519", "worker-rsa", "group"],
    "audiences": ["urn:credbundle:cluster:blue", "urn:credbundle:instance:aws:123456789012:eu-west-1:i-0abc"],
    "signers": [
        {
            "name": "control-plane",
            "key": jose.public(KEYS["signer-ed25519"]),
            "issuers": ["https://control.example", "laptop:*"],
            "audiences": ["urn:credbundle:cluster:blue", "urn:credbundle:key:*"],
            "max_lease_seconds": 86400,
        },
        {
            "name": "next-control-plane",
            "key": jose.public(KEYS["signer-p256"]),
            "issuers": ["https://control.example"],
            "audiences": ["*"],
        },
    ],
}

P256 = jose.public(KEYS["worker-p256"])
PREVIOUS = jose.public(KEYS["worker-previous"])
X25519 = jose.public(KEYS["worker-x25519"])
RSA = jose.public(KEYS["worker-rsa"])
GROUP = KEYS["group"]
FELLOW = jose.public(KEYS["fellow"])
STRANGER = jose.public(KEYS["stranger"])
SIGNER = KEYS["signer-ed25519"]

SESSION: dict[str, Any] = {
    "type": "aws-session",
    "id": "alice",
    "access_key_id": "ASIAQWERTYUIOPASDFGH",
    "secret_access_key": "wJalrXUtnFEMIexamplekey",
    "session_token": "IQoJb3JpZ2luX2VjEXAMPLE//////////wEaCXVzLWVhc3QtMSJHMEUC",
    "expires_at": NOW + 3600,
}
TOKEN: dict[str, Any] = {
    "type": "gcp-token",
    "id": "google",
    "access_token": "ya29.example-token",
    "expires_at": NOW + 3600,
    "email": "alice@example.com",
}
ROLE: dict[str, Any] = {
    "type": "aws-assume-role",
    "id": "role",
    "role_arn": "arn:aws:iam::123456789012:role/reader",
    "base": "alice",
}
IMPERSONATION: dict[str, Any] = {
    "type": "gcp-impersonation",
    "id": "impersonated",
    "target_principal": "job@project.iam.gserviceaccount.com",
    "base": "google",
}
FEDERATED: dict[str, Any] = {
    "type": "gcp-external-account",
    "id": "federated",
    "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/aws",
    "base": "instance",
}
ENV: dict[str, Any] = {"type": "env", "id": "env", "variables": {"WANDB_API_KEY": "0123456789abcdef"}}

BASE: dict[str, Any] = {
    "ver": 1,
    "iss": "https://control.example",
    "sub": "user:alice",
    "jti": "019bc1a1-7c00-7000-8000-000000000001",
    "aud": ["urn:credbundle:cluster:blue"],
    "iat": NOW - 30,
    "exp": NOW + 900,
    "seq": 7,
    "action": "set",
    "recip": [KEYS["worker-p256"]["kid"]],
    "grants": [SESSION],
}

Case = dict[str, Any]


def claims(**changes: Any) -> bytes:
    """BASE with members replaced; ``None`` drops one, ``"null"`` makes it null."""
    merged = {**copy.deepcopy(BASE), **changes}
    return jose.compact_json({k: (None if v == "null" else v) for k, v in merged.items() if v is not None})


def sealed(payload: bytes, *, signer: dict[str, str] = SIGNER, header: dict[str, Any] | None = None) -> dict[str, Any]:
    return jose.encrypt(jose.sign(payload, signer, header), [P256])


def text(jwe: Any) -> str:
    return jwe if isinstance(jwe, str) else jose.compact_json(jwe).decode()


def case(name: str, rule: str, expect: str, bundle: Any, **more: Any) -> Case:
    body: dict[str, Any] = {"name": name, "rule": rule, "expect": expect, **more}
    if isinstance(bundle, bytes):
        body["bundle_base64"] = base64.b64encode(bundle).decode()
    else:
        body["bundle"] = text(bundle)
    return body


def bent(**changes: Any) -> dict[str, Any]:
    """The good bundle with members of the container replaced; ``None`` drops one."""
    jwe = sealed(claims())
    return {k: v for k, v in {**jwe, **changes}.items() if v is not None}


def bent_recipient(entry_changes: dict[str, Any] | None = None, **header_changes: Any) -> dict[str, Any]:
    jwe = sealed(claims())
    entry = {**jwe["recipients"][0], **(entry_changes or {})}
    if "header" not in (entry_changes or {}):
        entry["header"] = {k: v for k, v in {**entry["header"], **header_changes}.items() if v is not None}
    jwe["recipients"] = [entry]
    return jwe


def with_grants(*grants: dict[str, Any], **more: Any) -> dict[str, Any]:
    return sealed(claims(grants=list(grants), **more))


def many(*recipients: dict[str, str], recip: list[str] | None = None, **more: Any) -> dict[str, Any]:
    kids = recip or [r["kid"] for r in recipients]
    return jose.encrypt(jose.sign(claims(recip=kids, **more), SIGNER), list(recipients))


# ---------------------------------------------------------------------------------------------------------------------


def good() -> Iterator[Case]:
    def ok(name: str, rule: str, bundle: Any, **more: Any) -> Case:
        return case(name, rule, "accepted", bundle, **more)

    yield ok("general", "one recipient, general JSON", sealed(claims()), routes={"aws": "alice"}, seq=7)
    yield ok("flattened", "flattened JSON", jose.flattened(sealed(claims())))
    yield ok("compact", "compact form", jose.compact(jose.sign(claims(), SIGNER), P256))
    yield ok(
        "compact-direct",
        "ECDH-ES without wrapping, compact only",
        jose.compact(jose.sign(claims(), SIGNER), P256, direct=True),
    )
    x_claims = claims(recip=[X25519["kid"]])
    yield ok("x25519", "X25519 key agreement", jose.encrypt(jose.sign(x_claims, SIGNER), [X25519]))
    yield ok(
        "compact-direct-x25519", "ECDH-ES on X25519", jose.compact(jose.sign(x_claims, SIGNER), X25519, direct=True)
    )
    yield ok("group", "a shared AES key", jose.encrypt(jose.sign(claims(recip=[GROUP["kid"]]), SIGNER), [GROUP]))
    yield ok("rsa", "RSA-OAEP-256", jose.encrypt(jose.sign(claims(recip=[RSA["kid"]]), SIGNER), [RSA]), random=True)
    yield ok("mixed", "recipients of every kind, ours among them", many(STRANGER, X25519, GROUP, FELLOW, P256))
    yield ok("previous-key", "the previous key still opens", many(PREVIOUS))
    yield ok("second-of-ours", "an entry of ours that is damaged does not spoil the other", _first_entry_broken())
    yield ok("es256", "a second pinned signer, ES256", sealed(claims(), signer=KEYS["signer-p256"]))
    yield ok("eddsa-name", "the older name of Ed25519 signatures", sealed(claims(), header={"alg": "EdDSA"}))
    yield ok("alg-in-protected", "alg, kid and epk may stand in the protected header", _alg_in_protected())
    yield ok("white-space", "white space around the bundle is ignored", "\r\n \t" + text(sealed(claims())) + "\n\n")
    repeated = sealed(claims())
    repeated["encrypted_key"] = repeated["recipients"][0]["encrypted_key"]
    yield ok("key-repeated", "encrypted_key beside recipients, as go-jose repeats it", repeated)
    yield ok("pretty-json", "white space inside JSON is JSON's own", json.dumps(sealed(claims()), indent=2))
    yield ok("aud-string", "a single audience may be a bare string", sealed(claims(aud="urn:credbundle:cluster:blue")))
    yield ok(
        "aud-several",
        "one audience that fits is enough",
        sealed(claims(aud=["urn:other", "urn:credbundle:cluster:blue"])),
    )
    yield ok("aud-key", "addressed to the key", sealed(claims(aud=[f"urn:credbundle:key:{P256['kid']}"])))
    yield ok("issuer-prefix", "an issuer by prefix", sealed(claims(iss="laptop:alice")))
    yield ok("nbf", "nbf within the leeway", sealed(claims(nbf=NOW + 60)))
    yield ok("exp-leeway", "exp passed, within the leeway", sealed(claims(exp=NOW - 29)))
    yield ok(
        "nulls",
        "null is absent, where a member is optional",
        sealed(claims(nbf="null", lease_until="null", routes="null", on_expiry="null")),
    )
    yield ok("lease", "a lease", sealed(claims(lease_until=NOW + 7200)), lease_until=NOW + 7200)
    yield ok(
        "lease-implied", "no lease from a bounded signer is its longest", sealed(claims()), lease_until=NOW - 30 + 86400
    )
    yield ok(
        "no-lease",
        "no lease from an unbounded signer is none",
        sealed(claims(), signer=KEYS["signer-p256"]),
        lease_until=None,
    )
    yield ok("seq-largest", "the largest seq", sealed(claims(seq=2**53 - 1)), seq=2**53 - 1)
    yield ok("seq-zero", "the smallest seq", sealed(claims(seq=0)), seq=0)
    withdraw = claims(action="withdraw", grants=None)
    yield ok("withdraw", "a withdrawal", sealed(withdraw), action="withdraw", routes={})
    yield ok("on-expiry", "the sender's wish", sealed(claims(on_expiry="fallback")))
    yield ok("chain", "a role on a session, implied route", with_grants(SESSION, ROLE), routes={"aws": "role"})
    yield ok(
        "both-clouds",
        "each cloud has its route",
        with_grants(SESSION, TOKEN, ENV),
        routes={"aws": "alice", "gcp": "google"},
    )
    yield ok("gcp-only", "AWS is left alone", with_grants(TOKEN), routes={"gcp": "google"})
    yield ok("impersonation", "a Google chain", with_grants(TOKEN, IMPERSONATION), routes={"gcp": "impersonated"})
    yield ok(
        "federated-instance", "Google from the machine's AWS role", with_grants(FEDERATED), routes={"gcp": "federated"}
    )
    routed = with_grants(SESSION, {**FEDERATED, "base": "alice"}, routes={"gcp": "federated"})
    yield ok("federated-session", "a base in the other cloud, with routes", routed, routes={"gcp": "federated"})
    yield ok("env-only", "variables alone", with_grants(ENV), routes={})
    two = with_grants(SESSION, {**SESSION, "id": "bob"}, routes={"aws": "bob"})
    yield ok("routes", "routes choose", two, routes={"aws": "bob"})
    spare = with_grants({**SESSION, "expires_at": NOW - 5}, {**SESSION, "id": "bob"}, routes={"aws": "bob"})
    yield ok("spare-ended", "an ended session that nothing is routed to", spare, routes={"aws": "bob"})
    future = {"type": "quantum-token", "id": "q", "anything": {"deep": [1, {"er": True}]}}
    yield ok("set-aside", "a grant of an unknown type is set aside", with_grants(SESSION, future), set_aside=["q"])
    aws_future = {"type": "aws-sso", "id": "q"}
    yield ok(
        "set-aside-routed",
        "with routes, an unknown type of the same cloud too",
        with_grants(SESSION, aws_future, routes={"aws": "alice"}),
        set_aside=["q"],
    )
    full = [{**SESSION, "id": f"g{n}"} for n in range(32)]
    yield ok("most-grants", "32 grants", with_grants(*full, routes={"aws": "g31"}))
    regions = {"AWS_REGION": "eu-west-1", "GOOGLE_CLOUD_PROJECT": "p", "EMPTY": "", "UNICODE": "naïve ☂"}
    yield ok("variables", "variables that say where, not who", with_grants({**ENV, "variables": regions}))
    late = sealed(
        claims(exp=NOW - 5000, iat=NOW - 9000, lease_until=NOW - 10, grants=[{**SESSION, "expires_at": NOW - 4}])
    )
    yield ok("resume", "re-opened after a restart: its times are not judged again", late, resume=True)


def _first_entry_broken() -> dict[str, Any]:
    jwe = many(P256, PREVIOUS)
    broken = bytearray(jose.unb64(jwe["recipients"][0]["encrypted_key"]))
    broken[0] ^= 1
    jwe["recipients"][0]["encrypted_key"] = jose.b64(bytes(broken))
    return jwe


def _alg_in_protected() -> dict[str, Any]:
    probe = jose.encrypt(b"x", [P256])["recipients"][0]
    jwe = jose.encrypt(jose.sign(claims(), SIGNER), [P256], protected=probe["header"])
    out = jose.flattened(jwe)
    del out["header"]
    return out


def container() -> Iterator[Case]:
    yield case("empty", "nothing", "size", "")
    yield case("white-space-only", "only white space", "size", " \n\t ")
    yield case("oversize", "larger than the limit", "size", "{" + " " * 70_000 + "}")
    yield case("html", "a web page", "encoding", "<!DOCTYPE html><html><body>login.</body></html>")
    yield case("bare-jws", "signed but not encrypted", "encoding", jose.sign(claims(), SIGNER))
    yield case(
        "base64-of-bundle", "encoded once too often", "encoding", base64.b64encode(text(bent()).encode()).decode()
    )
    yield case("gzip", "compressed", "encoding", b"\x1f\x8b\x08\x00" + bytes(40))
    yield case("nul", "a NUL after the end", "json", text(bent()).encode() + b"\0")
    yield case("bom", "a byte order mark", "encoding", b"\xef\xbb\xbf" + text(bent()).encode())
    yield case("utf16", "UTF-16", "json", text(bent()).encode("utf-16-le"))
    yield case("bad-utf8", "not UTF-8", "json", b'{"protected":"\xff"}')
    yield case("trailing", "something after the end", "json", text(bent()) + "{}")
    yield case("twice", "two bundles", "json", text(bent()) + "\n" + text(bent()))
    yield case("array", "an array", "encoding", "[" + text(bent()) + "]")
    yield case("deep", "nested deep", "json", '{"recipients":' + "[" * 5_000 + "]" * 5_000 + "}")
    yield case("deep-open", "nested deep and never closed", "json", '{"a":' * 10_000)
    yield case("escape-storm", "a string of escapes that never ends", "json", '{"' + '\\"' * 30_000)
    yield case("duplicate-name", "one name twice", "json", text(bent())[:-1] + ',"iv":"AAAAAAAAAAAAAAAA"}')
    yield case(
        "duplicate-name-escaped",
        "one name twice, once escaped",
        "json",
        text(bent())[:-1] + ',"\\u0069v":"AAAAAAAAAAAAAAAA"}',
    )
    yield case("nan", "NaN", "json", '{"protected":NaN}')
    yield case("float", "a fraction", "json", '{"protected":1.5}')
    yield case("huge-number", "a number of ten thousand digits", "json", '{"protected":' + "9" * 10_000 + "}")
    yield case("surrogate", "half a character", "json", '{"protected":"\\ud800"}')
    yield case("single-quotes", "not JSON", "json", "{'protected': 'x'}")
    yield case("comment", "JSON with a comment", "json", "{/* hi */}")
    for member in ("protected", "iv", "ciphertext", "tag"):
        yield case(f"no-{member}", f"without {member}", "header", bent(**{member: None}))
        yield case(f"number-{member}", f"{member} is a number", "encoding", bent(**{member: 7}))
        yield case(f"padded-{member}", f"{member} with padding", "encoding", bent(**{member: bent()[member] + "="}))
    yield case("standard-base64", "the other base64 alphabet", "encoding", bent(iv="++++////++++////"))
    yield case("base64-space", "a space in base64", "encoding", bent(tag=bent()["tag"][:4] + " " + bent()["tag"][4:]))
    yield case(
        "base64-loose-bits",
        "unused bits set: another spelling of the same bytes",
        "encoding",
        bent(tag=bent()["tag"][:-1] + _loose(bent()["tag"][-1])),
    )
    yield case("unprotected", "a shared unprotected header", "header", bent(unprotected={"foo": "bar"}))
    yield case("aad", "additional authenticated data", "header", bent(aad="AAAA"))
    yield case("foreign-member", "an unknown member", "header", bent(extra="x"))
    yield case("short-iv", "a nonce of 8 bytes", "encoding", bent(iv=jose.b64(bytes(8))))
    yield case("long-iv", "a nonce of 16 bytes", "encoding", bent(iv=jose.b64(bytes(16))))
    yield case("short-tag", "a tag of 4 bytes", "encoding", bent(tag=jose.b64(bytes(4))))
    yield case("empty-ciphertext", "no content", "encoding", bent(ciphertext=""))
    yield case(
        "compact-four-parts",
        "four parts",
        "encoding",
        text(jose.compact(jose.sign(claims(), SIGNER), P256)).rpartition(".")[0],
    )
    yield case(
        "compact-six-parts", "six parts", "encoding", text(jose.compact(jose.sign(claims(), SIGNER), P256)) + ".AAAA"
    )
    yield case(
        "compact-newline",
        "a line break inside",
        "encoding",
        text(jose.compact(jose.sign(claims(), SIGNER), P256)).replace(".", ".\n", 1),
    )


def _loose(char: str) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(char) ^ 1]


def headers() -> Iterator[Case]:
    signed = jose.sign(claims(), SIGNER)

    def protected(**changes: Any) -> dict[str, Any]:
        return jose.encrypt(signed, [P256], protected=changes)

    yield case("typ-missing", "no typ", "header", protected(typ=None))
    yield case("typ-jwt", "typ of something else", "header", protected(typ="JWT"))
    yield case("typ-case", "typ in capitals", "header", protected(typ="CREDBUNDLE+JWE"))
    yield case("cty-missing", "no cty", "header", protected(cty=None))
    yield case("cty-other", "cty of something else", "header", protected(cty="JWT"))
    yield case("enc-missing", "no enc", "algorithm", protected(enc=None))
    for enc in ("A128GCM", "A192GCM", "A256CBC-HS512", "C20P", "none"):
        yield case(f"enc-{enc.lower()}", f"content encryption {enc}", "algorithm", protected(enc=enc))
    yield case("zip", "compression: a bomb", "header", protected(zip="DEF"))
    yield case("crit", "a critical extension", "header", protected(crit=["exp"], exp=1))
    yield case("crit-empty", "an empty list of critical extensions", "header", protected(crit=[]))
    header: tuple[tuple[str, Any], ...] = (
        ("jku", "https://evil.example/keys"),
        ("jwk", jose.public(KEYS["rogue"])),
        ("x5u", "https://evil.example/cert"),
        ("x5c", ["MIIB"]),
        ("x5t", "AAAA"),
        ("apu", "QWxpY2U"),
        ("apv", "Qm9i"),
        ("iss", "https://control.example"),
        ("p2c", 1_000_000_000),
    )
    for name, value in header:
        yield case(f"protected-{name}", f"{name} in the protected header", "header", protected(**{name: value}))
        if name != "iss":
            yield case(
                f"recipient-{name}", f"{name} in a recipient's header", "header", bent_recipient(**{name: value})
            )
    yield case("protected-empty", "an empty protected header", "encoding", bent(protected="!!"))
    yield case("protected-not-json", "a protected header that is not JSON", "json", bent(protected=jose.b64(b"{")))
    yield case("protected-array", "a protected header that is an array", "json", bent(protected=jose.b64(b"[]")))
    double = b'{"typ":"credbundle+jwe","cty":"credbundle+jwt","enc":"A256GCM","enc":"A128GCM"}'
    yield case(
        "protected-duplicate",
        "enc twice in the protected header",
        "json",
        jose.encrypt(signed, [P256], raw_protected=double),
    )
    yield case("protected-deep", "a deep protected header", "json", bent(protected=jose.b64(b'{"a":[[[1]]]}')))
    yield case("alg-both-headers", "alg in both headers", "header", protected(alg="ECDH-ES+A256KW"))
    yield case("kid-both-headers", "kid in both headers", "header", protected(kid=P256["kid"]))
    for alg in (
        "dir",
        "RSA1_5",
        "RSA-OAEP",
        "RSA-OAEP-512",
        "A128KW",
        "A256GCMKW",
        "ECDH-ES+A128KW",
        "PBES2-HS512+A256KW",
        "ECDH-1PU+A256KW",
        "none",
        "",
    ):
        name = "empty" if not alg else alg.lower().replace("+", "-").replace("_", "-")
        yield case(f"alg-{name}", f"key management {alg!r}", "algorithm", bent_recipient(alg=alg))
    yield case("alg-missing", "no alg", "algorithm", bent_recipient(alg=None))
    yield case("alg-number", "alg is a number", "algorithm", bent_recipient(alg=1))
    yield case("alg-list", "alg is a list", "algorithm", bent_recipient(alg=["ECDH-ES+A256KW"]))
    yield case(
        "alg-direct-json",
        "ECDH-ES outside the compact form",
        "algorithm",
        bent_recipient({"encrypted_key": ""}, alg="ECDH-ES"),
    )
    compact_pbes = jose.compact(
        signed, P256, protected={"alg": "PBES2-HS256+A128KW", "p2c": 10_000_000, "p2s": "AAAA", "epk": None}
    )
    yield case("compact-pbes2", "a password with ten million rounds", "header", compact_pbes)
    yield case(
        "compact-dir",
        "a shared content key",
        "algorithm",
        jose.compact(signed, P256, protected={"alg": "dir", "epk": None}),
    )


def recipients() -> Iterator[Case]:
    yield case("recipients-empty", "no recipient", "recipients", bent(recipients=[]))
    yield case("recipients-object", "recipients is an object", "recipients", bent(recipients={}))
    yield case("recipients-strings", "recipients are strings", "recipients", bent(recipients=["x"]))
    entry = sealed(claims())["recipients"][0]
    crowd = [{**entry, "header": {**entry["header"], "kid": f"k{n}"}} for n in range(257)]
    yield case("recipients-257", "too many", "recipients", bent(recipients=crowd), max_bytes=262144)
    yield case("recipients-same-kid", "one key id twice", "recipients", bent(recipients=[entry, entry]))
    yield case("recipients-and-header", "both JSON forms at once", "header", bent(header={}))
    yield case(
        "key-beside-recipients",
        "an encrypted_key beside recipients that is another",
        "header",
        bent(encrypted_key="AAAA"),
    )
    yield case("recipient-foreign", "an unknown member in an entry", "header", bent(recipients=[{**entry, "x": 1}]))
    yield case("recipient-no-key", "no encrypted_key", "header", bent(recipients=[{"header": entry["header"]}]))
    yield case("kid-missing", "no kid", "recipients", bent_recipient(kid=None))
    yield case("kid-number", "kid is a number", "recipients", bent_recipient(kid=5))
    yield case("kid-long", "kid of 300 characters", "recipients", bent_recipient(kid="k" * 300))
    yield case("kid-control", "a line break in kid", "recipients", bent_recipient(kid="a\nb"))
    yield case("kid-unicode", "a look-alike letter in kid", "recipients", bent_recipient(kid="\u0430bc"))
    epk = entry["header"]["epk"]
    yield case("epk-missing", "no epk", "algorithm", bent_recipient(epk=None))
    yield case("epk-string", "epk is a string", "algorithm", bent_recipient(epk="x"))
    yield case("epk-p384", "another curve", "algorithm", bent_recipient(epk={**epk, "crv": "P-384"}))
    yield case("epk-secp256k1", "another curve", "algorithm", bent_recipient(epk={**epk, "crv": "secp256k1"}))
    yield case("epk-kty", "kty does not fit crv", "algorithm", bent_recipient(epk={**epk, "kty": "OKP"}))
    yield case("epk-private", "a private epk", "header", bent_recipient(epk={**epk, "d": epk["x"]}))
    yield case("epk-extra", "a member too many in epk", "header", bent_recipient(epk={**epk, "kid": "x"}))
    yield case("epk-no-y", "no y", "header", bent_recipient(epk={k: v for k, v in epk.items() if k != "y"}))
    yield case("epk-short", "x of 31 bytes", "encoding", bent_recipient(epk={**epk, "x": jose.b64(bytes(31))}))
    yield case("epk-number", "x is a number", "encoding", bent_recipient(epk={**epk, "x": 1}))
    yield case(
        "epk-off-curve",
        "a point that is not on the curve (invalid curve attack)",
        "unwrap",
        bent_recipient(epk={**epk, "y": epk["x"]}),
    )
    yield case(
        "epk-infinity",
        "the point (0, 0)",
        "unwrap",
        bent_recipient(epk={**epk, "x": jose.b64(bytes(32)), "y": jose.b64(bytes(32))}),
    )
    yield case("epk-other", "another valid point", "unwrap", bent_recipient(epk=jose.agree(P256, "other")[0]))
    yield case(
        "epk-wrong-curve", "an X25519 epk for a P-256 key", "unwrap", bent_recipient(epk=jose.agree(X25519, "s")[0])
    )
    x_entry = jose.encrypt(b"x", [X25519])
    for name, point in (
        ("zero", bytes(32)),
        ("one", b"\x01" + bytes(31)),
        ("order-8", bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")),
    ):
        bad = copy.deepcopy(x_entry)
        bad["recipients"][0]["header"]["epk"]["x"] = jose.b64(point)
        yield case(f"x25519-{name}", "a point of small order", "unwrap", bad)
    yield case(
        "epk-with-rsa",
        "epk where none belongs",
        "header",
        bent_recipient({"encrypted_key": jose.b64(bytes(256))}, alg="RSA-OAEP-256"),
    )
    yield case(
        "wrapped-short", "a wrapped key of 24 bytes", "encoding", bent_recipient({"encrypted_key": jose.b64(bytes(24))})
    )
    yield case("wrapped-empty", "no wrapped key", "encoding", bent_recipient({"encrypted_key": ""}))
    yield case(
        "wrapped-zero", "a wrapped key of zeros", "unwrap", bent_recipient({"encrypted_key": jose.b64(bytes(40))})
    )
    yield case(
        "wrapped-rsa-short",
        "RSA of 64 bytes",
        "encoding",
        bent_recipient({"encrypted_key": jose.b64(bytes(64))}, alg="RSA-OAEP-256", epk=None),
    )
    rsa_entry = {"header": {"alg": "RSA-OAEP-256", "kid": RSA["kid"]}, "encrypted_key": jose.b64(b"\x01" * 384)}
    yield case("wrapped-rsa-noise", "RSA of noise", "unwrap", bent(recipients=[rsa_entry]))
    yield case(
        "wrapped-rsa-length",
        "RSA of another modulus",
        "unwrap",
        bent(recipients=[{**rsa_entry, "encrypted_key": jose.b64(b"\x01" * 256)}]),
    )
    yield case(
        "alg-for-other-kind",
        "RSA-OAEP-256 for a P-256 key",
        "unwrap",
        bent_recipient({"encrypted_key": jose.b64(bytes(256))}, alg="RSA-OAEP-256", epk=None),
    )
    yield case(
        "alg-swapped",
        "A256KW instead of ECDH-ES+A256KW for a P-256 key",
        "unwrap",
        bent_recipient(alg="A256KW", epk=None),
    )
    kdf = sealed(claims())
    kdf["recipients"][0] = jose.wrap(jose._seeded("seed/cek", 32), P256, "seed/0", alg_in_kdf="A256GCM")
    yield case("kdf-wrong-alg", "the algorithm's name is part of the derivation", "unwrap", kdf)
    short = sealed(claims())
    short["recipients"][0] = jose.wrap(bytes(16) + bytes(16), P256, "seed/0")
    yield case("cek-other", "another content key, wrapped rightly", "content", short)
    yield case("stranger-only", "sealed to others", "recipient", many(STRANGER, FELLOW))
    renamed = many(STRANGER, recip=[P256["kid"]])
    renamed["recipients"][0]["header"]["kid"] = P256["kid"]
    yield case("kid-lie", "another's entry under our key id", "unwrap", renamed)


def content() -> Iterator[Case]:
    jwe = bent()

    def flipped(member: str, where: int) -> dict[str, Any]:
        raw = bytearray(jose.unb64(jwe[member]))
        raw[where] ^= 1
        return bent(**{member: jose.b64(bytes(raw))})

    yield case("ciphertext-bit", "a bit of the content", "content", flipped("ciphertext", 100))
    yield case("tag-bit", "a bit of the tag", "content", flipped("tag", 0))
    yield case("iv-bit", "a bit of the nonce", "content", flipped("iv", 0))
    yield case("ciphertext-cut", "the content cut short", "content", bent(ciphertext=jwe["ciphertext"][:-4]))
    reordered = jose.b64(b'{"enc":"A256GCM","typ":"credbundle+jwe","cty":"credbundle+jwt"}')
    yield case(
        "protected-respelled",
        "the protected header in other words of the same meaning",
        "content",
        bent(protected=reordered),
    )
    other = jose.encrypt(jose.sign(claims(seq=8), SIGNER), [P256], seed="other")
    yield case(
        "mix-and-match", "recipients of one bundle, content of another", "content", bent(recipients=other["recipients"])
    )


def signatures() -> Iterator[Case]:
    good_jws = jose.sign(claims(), SIGNER)
    head, body, signature = good_jws.split(".")

    def inner(signed: str | bytes) -> dict[str, Any]:
        return jose.encrypt(signed, [P256])

    yield case("inner-claims", "claims without a signature", "encoding", inner(claims()))
    yield case("inner-empty-signature", "an empty signature", "signature", inner(f"{head}.{body}."))
    yield case(
        "inner-cut-signature", "half a signature", "signature", inner(good_jws[:-40] + "AA"[: -len(good_jws[:-40]) % 2])
    )
    raw = bytearray(jose.unb64(signature))
    raw[5] ^= 1
    yield case("signature-bit", "a bit of the signature", "signature", inner(f"{head}.{body}.{jose.b64(bytes(raw))}"))
    yield case(
        "claims-swapped",
        "other claims under the signature",
        "signature",
        inner(f"{head}.{jose.b64(claims(seq=99))}.{signature}"),
    )
    yield case(
        "reencrypted-by-fellow", "a fellow recipient signs as itself", "signer", sealed(claims(), signer=KEYS["rogue"])
    )
    lie = jose.sign(claims(), KEYS["rogue"], {"kid": SIGNER["kid"]})
    yield case("signer-lie", "a stranger signs under the signer's key id", "signature", inner(lie))
    yield case(
        "alg-none",
        "no signature at all",
        "algorithm",
        inner(
            jose.b64(jose.compact_json({"alg": "none", "typ": "credbundle+jwt", "kid": SIGNER["kid"]})) + f".{body}."
        ),
    )
    for alg in ("HS256", "RS256", "PS256", "ES384", "Ed448", "ES256K"):
        yield case(
            f"jws-{alg.lower()}", f"signature algorithm {alg}", "algorithm", sealed(claims(), header={"alg": alg})
        )
    yield case("jws-alg-of-other-key", "ES256 by an Ed25519 key", "signer", sealed(claims(), header={"alg": "ES256"}))
    yield case(
        "jws-alg-of-other-key-2",
        "Ed25519 by a P-256 key",
        "signer",
        sealed(claims(), signer=KEYS["signer-p256"], header={"alg": "Ed25519"}),
    )
    yield case("jws-alg-missing", "no alg", "algorithm", sealed(claims(), header={"alg": None}))
    yield case(
        "jws-typ-missing", "no typ: any JWT of the signer would do", "header", sealed(claims(), header={"typ": None})
    )
    yield case("jws-typ-jwt", "an ordinary JWT of the same signer", "header", sealed(claims(), header={"typ": "JWT"}))
    yield case("jws-kid-missing", "no kid", "header", sealed(claims(), header={"kid": None}))
    for name, value in (
        ("jwk", jose.public(KEYS["rogue"])),
        ("jku", "https://evil.example"),
        ("x5c", ["MIIB"]),
        ("crit", ["b64"]),
        ("b64", False),
        ("cty", "x"),
    ):
        expected = "json" if isinstance(value, dict | list) else "header"
        yield case(f"jws-{name}", f"{name} in the signature's header", expected, sealed(claims(), header={name: value}))
    double = b'{"alg":"Ed25519","typ":"credbundle+jwt","kid":"x","kid":"' + SIGNER["kid"].encode() + b'"}'
    yield case("jws-duplicate", "kid twice", "json", inner(jose.sign(claims(), SIGNER, raw_header=double)))
    yield case("inner-trailing", "a line break after the signature", "encoding", inner(good_jws + "\n"))
    yield case(
        "inner-json-jws",
        "a JSON JWS",
        "encoding",
        inner(jose.compact_json({"payload": body, "protected": head, "signature": signature})),
    )
    yield case("inner-nested", "a bundle in a bundle", "encoding", inner(jose.compact(good_jws, P256)))
    es = jose.sign(claims(), KEYS["signer-p256"])
    zero = es.rpartition(".")[0] + "." + jose.b64(bytes(64))
    yield case("es256-zero", "the signature (0, 0), accepted by some (CVE-2022-21449)", "signature", inner(zero))
    yield case(
        "es256-der",
        "a DER signature",
        "signature",
        inner(es.rpartition(".")[0] + "." + jose.b64(b"\x30\x44" + bytes(68))),
    )


def frame() -> Iterator[Case]:
    yield case("claims-not-json", "claims that are not JSON", "json", sealed(b"hello"))
    yield case("claims-array", "claims that are an array", "json", sealed(b"[]"))
    yield case("claims-deep", "claims nested deep", "json", sealed(b'{"a":' * 50 + b"1" + b"}" * 50))
    yield case("claims-duplicate", "a claim twice", "json", sealed(claims()[:-1] + b',"seq":8}'))
    yield case("claims-empty", "no claim", "version", sealed(b"{}"))
    for value, name in ((0, "0"), (2, "2"), ("1", "text"), (True, "true"), (None, "missing")):
        yield case(f"ver-{name}", f"version {value!r}", "version", sealed(claims(ver=value)))
    yield case("unknown-claim", "an unknown claim", "claims", sealed(claims(extra=1)))
    for name in ("iss", "sub", "jti", "aud", "iat", "exp", "seq", "action", "recip"):
        yield case(f"no-{name}", f"without {name}", "claims", sealed(claims(**{name: None})))
        yield case(f"null-{name}", f"{name} is null", "claims", sealed(claims(**{name: "null"})))
    for name in ("iss", "sub", "jti"):
        yield case(f"empty-{name}", f"{name} is empty", "claims", sealed(claims(**{name: ""})))
        yield case(f"long-{name}", f"{name} of 300 characters", "claims", sealed(claims(**{name: "x" * 300})))
        yield case(f"line-{name}", f"a line break in {name}", "claims", sealed(claims(**{name: "a\nb"})))
    for name in ("iat", "exp", "nbf", "seq", "lease_until"):
        yield case(f"text-{name}", f"{name} is text", "claims", sealed(claims(**{name: "7"})))
        yield case(f"negative-{name}", f"{name} is negative", "claims", sealed(claims(**{name: -1})))
        yield case(f"true-{name}", f"{name} is true", "claims", sealed(claims(**{name: True})))
        yield case(f"fraction-{name}", f"{name} has a fraction", "json", sealed(claims(**{name: 1.5})))
    yield case("seq-54-bits", "seq beyond 53 bits", "json", sealed(claims(seq=2**53)))
    yield case("action-other", "an unknown action", "claims", sealed(claims(action="delete")))
    yield case("on-expiry-other", "an unknown on_expiry", "claims", sealed(claims(on_expiry="ignore")))
    yield case("aud-empty", "no audience", "claims", sealed(claims(aud=[])))
    yield case("aud-257", "257 audiences", "claims", sealed(claims(aud=[f"a{n}" for n in range(257)])))
    yield case("recip-empty", "recip names nobody", "claims", sealed(claims(recip=[])))
    yield case("recip-twice", "recip names a key twice", "claims", sealed(claims(recip=[P256["kid"]] * 2)))
    yield case("recip-text", "recip is text", "claims", sealed(claims(recip=P256["kid"])))
    yield case("set-nothing", "a set without grants", "claims", sealed(claims(grants=[])))
    yield case("withdraw-grants", "a withdrawal with grants", "claims", sealed(claims(action="withdraw")))
    yield case(
        "withdraw-routes",
        "a withdrawal with routes",
        "claims",
        sealed(claims(action="withdraw", grants=None, routes={"aws": "x"})),
    )
    yield case(
        "withdraw-lease",
        "a withdrawal with a lease",
        "claims",
        sealed(claims(action="withdraw", grants=None, lease_until=NOW + 60)),
    )
    yield case(
        "withdraw-rogue",
        "a withdrawal that nobody signed",
        "signer",
        sealed(claims(action="withdraw", grants=None), signer=KEYS["rogue"]),
    )


def policy() -> Iterator[Case]:
    yield case(
        "issuer-other", "an issuer the signer may not speak as", "issuer", sealed(claims(iss="https://evil.example"))
    )
    yield case(
        "issuer-longer",
        "an issuer that only begins like an allowed one",
        "issuer",
        sealed(claims(iss="https://control.example.evil")),
    )
    yield case("audience-other", "another cluster", "audience", sealed(claims(aud=["urn:credbundle:cluster:red"])))
    yield case(
        "audience-longer",
        "a cluster whose name only begins like ours",
        "audience",
        sealed(claims(aud=["urn:credbundle:cluster:blue2"])),
    )
    yield case("audience-shorter", "a prefix of ours", "audience", sealed(claims(aud=["urn:credbundle:cluster:blu"])))
    yield case(
        "audience-star",
        "a star is not a wildcard in a bundle",
        "audience",
        sealed(claims(aud=["*", "urn:credbundle:*"])),
    )
    instance = ["urn:credbundle:instance:aws:123456789012:eu-west-1:i-0abc"]
    yield case(
        "audience-not-pinned",
        "our instance, which this signer may not address",
        "audience",
        sealed(claims(aud=instance)),
    )
    yield case(
        "audience-other-key",
        "addressed to a key that is not ours",
        "audience",
        sealed(claims(aud=[f"urn:credbundle:key:{FELLOW['kid']}"])),
    )
    yield case("expired", "last acceptance passed", "expired", sealed(claims(iat=NOW - 900, exp=NOW - 61)))
    yield case("exp-before-iat", "exp before iat", "claims", sealed(claims(exp=NOW - 40)))
    yield case("exp-before-nbf", "exp before nbf", "claims", sealed(claims(nbf=NOW + 901)))
    yield case("iat-future", "made in the future", "not-yet-valid", sealed(claims(iat=NOW + 61)))
    yield case("nbf-future", "not yet valid", "not-yet-valid", sealed(claims(nbf=NOW + 61)))
    far = NOW + 367 * 86400
    yield case("exp-far", "exp more than a year ahead", "far-future", sealed(claims(exp=far)))
    yield case(
        "exp-milliseconds", "exp in milliseconds", "far-future", sealed(claims(exp=(NOW + 900) * 1000 % 253402300799))
    )
    yield case("iat-far", "iat more than a year ahead", "far-future", sealed(claims(iat=far, exp=far + 1)))
    yield case(
        "lease-far",
        "a lease of more than a year",
        "far-future",
        sealed(claims(lease_until=far), signer=KEYS["signer-p256"]),
    )
    yield case(
        "session-far", "a session of more than a year", "far-future", with_grants({**SESSION, "expires_at": far})
    )
    yield case("time-beyond-9999", "a time that no calendar has", "claims", sealed(claims(exp=253402300800)))
    yield case(
        "lease-long", "a lease longer than the signer may give", "lease", sealed(claims(lease_until=NOW - 30 + 86401))
    )
    yield case("lease-ended", "a lease that has ended", "lease", sealed(claims(lease_until=NOW)))
    yield case("session-ended", "the routed session has ended", "expired", with_grants({**SESSION, "expires_at": NOW}))
    yield case(
        "base-ended",
        "the session under the routed role has ended",
        "expired",
        with_grants({**SESSION, "expires_at": NOW - 1}, ROLE),
    )
    yield case("token-ended", "the routed token has ended", "expired", with_grants({**TOKEN, "expires_at": NOW - 1}))
    passed_on = jose.encrypt(jose.sign(claims(recip=[FELLOW["kid"]]), SIGNER), [P256])
    yield case("forwarded", "a fellow recipient seals the signed claims to us", "forwarded", passed_on)
    yield case(
        "resume-other",
        "re-opened after a restart, but not what was accepted",
        "changed",
        sealed(claims()),
        accepted_digest="0" * 64,
    )


def grants() -> Iterator[Case]:
    def bad(name: str, rule: str, grant: dict[str, Any], expect: str = "grant") -> Case:
        return case(name, rule, expect, with_grants(grant))

    yield case("grants-33", "33 grants", "claims", with_grants(*({**SESSION, "id": f"g{n}"} for n in range(33))))
    yield case("grants-object", "grants is an object", "claims", sealed(claims(grants={"a": SESSION})))
    yield case("grants-strings", "grants are strings", "claims", sealed(claims(grants=["x"])))
    yield bad("type-missing", "no type", {k: v for k, v in SESSION.items() if k != "type"})
    yield bad("type-number", "type is a number", {**SESSION, "type": 1})
    yield bad("type-capitals", "type in capitals", {**SESSION, "type": "AWS-SESSION"})
    yield bad("type-control", "a line break in type", {**SESSION, "type": "a\nb"})
    yield bad("unknown-no-id", "an unknown type without id", {"type": "quantum"})
    for member in ("id", "access_key_id", "secret_access_key", "session_token", "expires_at"):
        yield bad(
            f"session-no-{member.replace('_', '-')}",
            f"without {member}",
            {k: v for k, v in SESSION.items() if k != member},
        )
        yield bad(f"session-null-{member.replace('_', '-')}", f"{member} is null", {**SESSION, member: None})
    for member, value in (
        ("id", "a b"), ("id", ""), ("id", "x" * 65), ("id", "instance"), ("access_key_id", "short"), ("access_key_id", "asialowercase00000"),
        ("secret_access_key", ""), ("secret_access_key", "a\r\nX-Evil: 1"), ("secret_access_key", 5), ("session_token", "a\0b"),
        ("session_token", "é"), ("session_token", "x" * 16385), ("expires_at", "soon"), ("expires_at", -1), ("account_id", "123"),
        ("region", "mars"), ("region", "eu-west-1\n"), ("role_name", "a/b"), ("role_arn", "x\ny"), ("extra", 1),
    ):  # fmt: skip
        shown = (
            str(value)[:12]
            .encode("unicode_escape")
            .decode()
            .replace("\\", "")
            .replace("/", "-")
            .replace(" ", "_")
            .replace(":", "")
        )
        yield bad(
            f"session-{member.replace('_', '-')}-{shown or 'empty'}",
            f"{member} is {str(value)[:20]!r}",
            {**SESSION, member: value},
        )

    yield case(
        "grant-duplicate-name",
        "a member of a grant twice",
        "json",
        sealed(claims().replace(b'"id":"alice"', b'"id":"alice","id":"bob"')),
    )

    yield case("grant-ids", "two grants of one id", "grant", with_grants(SESSION, {**TOKEN, "id": "alice"}))
    yield case(
        "grant-id-set-aside",
        "a known and an unknown grant of one id",
        "grant",
        with_grants(SESSION, {"type": "quantum", "id": "alice"}),
    )
    alone = {**ROLE, "base": "instance"}
    bent_members: tuple[tuple[str, Any], ...] = (
        ("role_arn", "arn:aws:iam::123:role/x"), ("role_arn", "arn:aws:iam::123456789012:user/x"), ("duration_seconds", 899),
        ("duration_seconds", 43201), ("session_name", "x"), ("session_name", "a b"), ("policy_arns", "x"), ("policy_arns", [""]),
        ("tags", {"": "x"}), ("tags", {"k": "v" * 257}), ("tags", {"k": "a\nb"}), ("tags", {"k": 1}), ("tags", {f"k{n}": "v" for n in range(51)}),
        ("transitive_tag_keys", ["nope"]), ("source_identity", "-" * 65), ("external_id", ""), ("external_id", "a\0"), ("policy", "p" * 2049),
        ("expect", {"account_id": "1"}), ("expect", {"user": "x"}), ("policy_arns", [f"arn:aws:iam::aws:policy/{n}" for n in range(65)]),
    )  # fmt: skip
    for member, value in bent_members:
        kind = (
            type(value).__name__
            if not isinstance(value, str | int)
            else str(value)[-14:].replace("/", "-").replace("\0", "nul").replace(" ", "_").replace(":", "")
        )
        digest = jose.b64(jose._seeded(json.dumps(value), 3))
        yield bad(
            f"role-{member.replace('_', '-')}-{kind or 'empty'}-{digest}",
            f"{member} is {str(value)[:24]!r}",
            {**alone, member: value},
        )
    yield bad("base-missing", "a base that is not there", ROLE)
    yield case(
        "base-other-cloud", "an AWS role on a Google token", "grant", with_grants({**ROLE, "base": "google"}, TOKEN)
    )
    yield case(
        "base-other-cloud-2",
        "an impersonation on an AWS session",
        "grant",
        with_grants({**IMPERSONATION, "base": "alice"}, SESSION),
    )
    yield case("base-env", "a role on variables", "grant", with_grants({**ROLE, "base": "env"}, ENV))
    yield bad("base-self", "a role on itself", {**ROLE, "base": "role"})
    ring = [{**ROLE, "id": f"r{n}", "base": f"r{(n + 1) % 3}"} for n in range(3)]
    yield case("base-ring", "three roles in a ring", "grant", with_grants(*ring))
    chain = [{**ROLE, "id": f"r{n}", "base": f"r{n + 1}" if n < 5 else "instance"} for n in range(6)]
    yield case("base-long", "a chain of six", "grant", with_grants(*chain))
    yield case(
        "base-set-aside",
        "a role on a grant of unknown type",
        "grant",
        with_grants({**ROLE, "base": "q"}, {"type": "aws-sso", "id": "q"}),
    )
    yield bad("federated-both", "base and token", {**FEDERATED, "token": {"from": "inline", "token": "x"}})
    yield bad("federated-neither", "neither base nor token", {k: v for k, v in FEDERATED.items() if k != "base"})
    web = {"type": "aws-web-identity", "id": "web", "role_arn": ROLE["role_arn"]}
    for name, token in (
        ("none", None), ("text", "x"), ("from-missing", {"token": "x"}), ("from-executable", {"from": "executable", "command": "/bin/sh"}),
        ("file-relative", {"from": "file", "path": "etc/passwd"}), ("file-newline", {"from": "file", "path": "/a\nb"}),
        ("url-ftp", {"from": "url", "url": "ftp://x/"}), ("url-space", {"from": "url", "url": "https://a b/"}),
        ("url-header", {"from": "url", "url": "https://a/", "authorization": "Bearer x\r\nHost: y"}), ("inline-extra", {"from": "inline", "token": "x", "y": 1}),
    ):  # fmt: skip
        yield bad(f"web-{name}", f"web identity token {name}", {**web, "token": token} if token is not None else web)
    yield bad("broker-file-url", "a broker at a file", {"type": "http-broker", "id": "b", "url": "file:///etc/passwd"})
    yield bad("google-email", "an e-mail with a line break", {**TOKEN, "email": "a@b\nc"})
    yield bad("google-scopes", "a scope with a space", {**TOKEN, "scopes": ["a b"]})
    yield bad(
        "google-key-control",
        "a private key with a NUL",
        {
            "type": "gcp-service-account",
            "id": "k",
            "client_email": "a@b",
            "private_key_id": "1",
            "private_key": "-----BEGIN\0",
        },
    )


def routes() -> Iterator[Case]:
    yield case("route-nowhere", "a route to nothing", "route", sealed(claims(routes={"aws": "bob"})))
    yield case(
        "route-other-cloud", "AWS routed to Google", "route", with_grants(SESSION, TOKEN, routes={"aws": "google"})
    )
    yield case("route-env", "AWS routed to variables", "route", with_grants(SESSION, ENV, routes={"aws": "env"}))
    yield case("route-instance", "AWS routed to the machine", "route", sealed(claims(routes={"aws": "instance"})))
    yield case("route-azure", "a cloud we do not know", "claims", sealed(claims(routes={"azure": "alice"})))
    yield case("route-list", "routes is a list", "claims", sealed(claims(routes=["alice"])))
    yield case("route-null", "a route is null", "claims", sealed(claims(routes={"aws": None})))
    yield case(
        "route-set-aside",
        "a route to a grant of unknown type",
        "route",
        with_grants(SESSION, {"type": "aws-sso", "id": "q"}, routes={"aws": "q"}),
    )
    yield case("ambiguous", "two sessions and no routes", "route", with_grants(SESSION, {**SESSION, "id": "bob"}))
    yield case(
        "ambiguous-cross-cloud",
        "the only AWS grant is a base for Google",
        "route",
        with_grants(SESSION, {**FEDERATED, "base": "alice"}),
    )
    yield case(
        "ambiguous-set-aside",
        "an unknown grant of that cloud",
        "route",
        with_grants(SESSION, {"type": "aws-sso", "id": "q"}),
    )
    yield case(
        "ambiguous-set-aside-only",
        "only an unknown grant of that cloud",
        "route",
        with_grants(TOKEN, {"type": "aws-sso", "id": "q"}),
    )


def variables() -> Iterator[Case]:
    for name in (
        "LD_PRELOAD", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "PYTHONSTARTUP", "BASH_ENV", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS",
        "PERL5OPT", "GCONV_PATH", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT", "GOOGLE_APPLICATION_CREDENTIALS", "GCE_METADATA_HOST", "CLOUDSDK_CONFIG", "http_proxy",
        "HTTPS_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "GIT_SSH_COMMAND", "HOME", "IFS", "ld_preload",
    ):  # fmt: skip
        yield case(
            f"variable-{name}",
            f"{name} would load code, redirect traffic or change identity",
            "variable",
            with_grants(SESSION, {**ENV, "variables": {name: "x"}}),
        )
    for label, value in (
        ("newline", "a\nAWS_ACCESS_KEY_ID=x"),
        ("return", "a\rb"),
        ("nul", "a\0b"),
        ("escape", "\x1b[2J"),
        ("c1", "\x85"),
        ("line-separator", "a\u2028b"),
        ("long", "x" * 16385),
    ):
        yield case(
            f"value-{label}",
            "a value that would be more than a value",
            "variable",
            with_grants({**ENV, "variables": {"X": value}}),
        )
    for label, key in (
        ("equals", "A=B"),
        ("space", "A B"),
        ("empty", ""),
        ("digit", "1A"),
        ("newline", "A\nB"),
        ("unicode", "É"),
    ):
        yield case(f"name-{label}", "a name that is not one", "grant", with_grants({**ENV, "variables": {key: "x"}}))
    yield case(
        "variables-65", "65 variables", "variable", with_grants({**ENV, "variables": {f"V{n}": "x" for n in range(65)}})
    )
    yield case("variables-twice", "one variable in two grants", "variable", with_grants(ENV, {**ENV, "id": "e2"}))
    yield case("variables-number", "a value that is a number", "grant", with_grants({**ENV, "variables": {"A": 1}}))
    yield case("variables-list", "variables is a list", "grant", with_grants({**ENV, "variables": ["A=1"]}))


def cases() -> dict[str, Case]:
    """All files of the kit, by path below this directory."""
    out: dict[str, Case] = {}
    groups = {
        "good": [good],
        "hostile": [container, headers, recipients, content, signatures, frame, policy, grants, routes, variables],
    }
    for folder, makers in groups.items():
        for maker in makers:
            for item in maker():
                prefix = "" if folder == "good" else f"{maker.__name__}-"
                path = f"{folder}/{prefix}{item['name']}.json"
                assert path not in out, f"two cases called {path}"
                out[path] = item
    return out


def main() -> int:
    (HERE / "world.json").write_text(json.dumps(WORLD, indent=2) + "\n")
    made = cases()
    for folder in ("good", "hostile"):
        (HERE / folder).mkdir(exist_ok=True)
        for old in (HERE / folder).glob("*.json"):
            old.unlink()
    for path, item in made.items():
        (HERE / path).write_text(json.dumps(item, indent=2, ensure_ascii=True) + "\n")
    sys.stdout.write(f"{len(made)} cases\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
