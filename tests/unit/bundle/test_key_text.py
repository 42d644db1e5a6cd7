"""Keys as text: what is read back, what is refused and why; a wrong key must not begin to work by chance."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519

from agent import bundle
from agent.bundle.codes import Code
from agent.bundle.envelope import EphemeralKey, KeyAlg, Recipient
from agent.bundle.jwk import checked_content_key, ephemeral_public_key_der
from agent.bundle.key_text import LARGEST_KEY_TEXT, thumbprint
from agent.bundle.strict import base64url, base64url_encode
from agent.core.errors import FormatError, SealError

SMALL, OTHER = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)
KINDS = ("P-256", "X25519", "RSA", "oct")


def pem(key: Any, password: bytes | None = None) -> bytes:
    """A private key as PKCS#8."""
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))


def refused(parse: Any, text: Any, **more: Any) -> str:
    """The message of the refusal, which never has key material in it."""
    with pytest.raises(FormatError) as caught:
        parse(text, **more)
    assert caught.value.code is Code.KEY or caught.value.code in (Code.JSON, Code.ENCODING)
    return f"{caught.value}; {caught.value.hint}"


WORKERS = {kind: bundle.OpeningKey.generate(kind) for kind in ("P-256", "X25519", "oct")}
WORKERS["RSA"] = bundle.OpeningKey(SMALL)
SIGNERS = {kind: bundle.SigningKey.generate(kind) for kind in ("P-256", "Ed25519")}


class TestRoundTrip:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_worker_key_is_read_as_it_was_written(self, kind: str) -> None:
        """The private JWK makes the same key, under the same id; so does its public half for the sender."""
        key = WORKERS[kind]
        again = bundle.OpeningKey.parse(json.dumps(key.private_jwk()))
        assert (again.kind, again.kid, again.private_jwk()) == (kind, key.kid, key.private_jwk())
        recipient = bundle.RecipientKey.parse(key.recipient_key().jwk())
        assert (recipient.kid, recipient.kind) == (key.kid, kind)
        assert recipient.jwk() == (key.private_jwk() if kind == "oct" else key.public_jwk())

    @pytest.mark.parametrize("kind", SIGNERS)
    def test_a_signing_key_is_read_as_it_was_written(self, kind: str) -> None:
        """The private JWK makes the same key, and its public half is that of its verify key."""
        key = SIGNERS[kind]
        again = bundle.SigningKey.parse(key.private_jwk())
        assert (again.kid, again.private_jwk(), again.alg) == (key.kid, key.private_jwk(), key.alg)
        assert again.verify_key().public_jwk() == bundle.VerifyKey.parse(key.public_jwk()).public_jwk()

    @pytest.mark.parametrize("kind", ["P-256", "X25519", "RSA"])
    def test_pem_is_the_same_key(self, kind: str) -> None:
        """Both halves, as openssl and the KMSs write them."""
        made = {"P-256": ec.generate_private_key(ec.SECP256R1()), "X25519": x25519.X25519PrivateKey.generate()}
        private = made.get(kind, SMALL)
        key = bundle.OpeningKey.parse(pem(private))
        assert (key.kind, key.kid) == (kind, thumbprint(key.public_jwk()))
        assert bundle.RecipientKey.parse(key.public_pem()).jwk() == key.public_jwk()
        assert bundle.RecipientKey.parse(key.public_pem(), kid="mine").kid == "mine"

    def test_numbers_are_written_whole(self) -> None:
        """A coordinate with zeros in front has 32 bytes all the same, and so has a private number (RFC 7518 section 6.2)."""
        for number in (1, 2, 3):
            small = bundle.OpeningKey(ec.derive_private_key(number, ec.SECP256R1()))
            members = small.private_jwk()
            assert {len(members[name]) for name in ("x", "y", "d")} == {43}
            assert bundle.OpeningKey.parse(members).private_jwk() == members
        assert bundle.OpeningKey(SMALL).public_jwk()["e"] == "AQAB"

    def test_generated_keys_are_long_enough(self) -> None:
        """RSA has 3,072 bits and the usual exponent; a shared key has 32 bytes."""
        made = bundle.OpeningKey.generate("RSA").recipient_key().public_numbers()
        assert (made.key_size, made.public_numbers().e) == (3072, 65537)
        assert len(bundle.OpeningKey.generate("oct").recipient_key().public_numbers()) == 32

    def test_the_thumbprint_is_that_of_the_rfc(self) -> None:
        """The example of RFC 7638 section 3.1, whatever else stands in the JWK."""
        n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
        jwk = {"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"}
        assert thumbprint(jwk) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


P256 = WORKERS["P-256"].private_jwk()
X = WORKERS["X25519"].private_jwk()
ED = SIGNERS["Ed25519"].private_jwk()
EC_SIGNER = SIGNERS["P-256"].private_jwk()
OTHER_EC = bundle.OpeningKey.generate("P-256").private_jwk()
OTHER_X = bundle.OpeningKey.generate("X25519").private_jwk()
RSA_JWK = WORKERS["RSA"].private_jwk()


def without(jwk: dict[str, str], *names: str, **more: Any) -> dict[str, Any]:
    """The JWK with members left out and others put in."""
    return {**{k: v for k, v in jwk.items() if k not in names}, **more}


HOSTILE: dict[str, tuple[Any, Any, str]] = {
    "a public key for a private one": (bundle.OpeningKey, without(P256, "d"), "must be private, got a public JWK"),
    "a private key for a public one": (bundle.RecipientKey, P256, "must be public, got a private JWK"),
    "a private RSA key for a public one": (bundle.RecipientKey, RSA_JWK, "must be public, got a private JWK"),
    "a private Ed25519 key for a public one": (bundle.VerifyKey, ED, "must be public, got a private JWK"),
    "a private PEM for a public one": (bundle.RecipientKey, pem(SMALL), "must be public, got a private key"),
    "a public PEM for a private one": (bundle.OpeningKey, WORKERS["P-256"].public_pem(), "PKCS#8 or SEC1, unencrypted"),
    "an encrypted PEM": (bundle.OpeningKey, pem(SMALL, b"password"), "PKCS#8 or SEC1, unencrypted"),
    "a PEM that is none": (bundle.RecipientKey, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "in PEM"),
    "halves of two EC keys": (bundle.OpeningKey, without(P256, d=OTHER_EC["d"]), "not a valid JWK"),
    "halves of two X25519 keys": (bundle.OpeningKey, without(X, d=OTHER_X["d"]), "not a valid JWK"),
    "halves of two Ed25519 keys": (
        bundle.SigningKey,
        without(ED, x=bundle.SigningKey.generate().private_jwk()["x"]),
        "not a valid JWK",
    ),
    "halves of two RSA keys": (
        bundle.OpeningKey,
        without(RSA_JWK, n=bundle.OpeningKey(OTHER).public_jwk()["n"]),
        "not a valid JWK",
    ),
    "a point beside the curve": (bundle.RecipientKey, without(P256, "d", y=OTHER_EC["y"]), "not a valid JWK"),
    "a coordinate with a zero more": (
        bundle.RecipientKey,
        without(P256, "d", x=base64url_encode(b"\0" + base64url(P256["x"], "x"))),
        "not a valid JWK",
    ),
    "another curve": (bundle.RecipientKey, without(P256, "d", crv="P-384"), "not a valid JWK"),
    "a curve of the other type": (
        bundle.RecipientKey,
        {"kty": "OKP", "crv": "P-256", "x": P256["x"]},
        "not a valid JWK",
    ),
    "X25519 as EC": (bundle.RecipientKey, {"kty": "EC", "crv": "X25519", "x": X["x"], "y": X["x"]}, "not a valid JWK"),
    "Ed25519 as EC": (bundle.VerifyKey, {"kty": "EC", "crv": "Ed25519", "x": ED["x"]}, "not a valid JWK"),
    "Ed448": (bundle.VerifyKey, {"kty": "OKP", "crv": "Ed448", "x": ED["x"]}, "not a valid JWK"),
    "no type": (bundle.RecipientKey, without(P256, "d", "kty"), "not a valid JWK"),
    "an unknown type": (bundle.RecipientKey, without(P256, "d", kty="AKP"), "not a valid JWK"),
    "a member left out": (bundle.RecipientKey, without(P256, "d", "y"), "not a valid JWK"),
    "a member that is a number": (bundle.RecipientKey, without(P256, "d", x=7), "not a valid JWK"),
    "an RSA key without its primes": (bundle.OpeningKey, without(RSA_JWK, "p"), "not a valid JWK"),
    "a shared key that is short": (bundle.OpeningKey, {"kty": "oct", "k": "AAAA"}, "must be 32 bytes, got 3"),
    "an RSA key that is short": (bundle.OpeningKey, pem(rsa.generate_private_key(65537, 1024)), "2048 to 8192 bits"),
    "a curve that is not used": (bundle.OpeningKey, pem(ec.generate_private_key(ec.SECP384R1())), "is not supported"),
    "a signing key as a worker's": (bundle.OpeningKey, pem(ed25519.Ed25519PrivateKey.generate()), "got Ed25519"),
    "a worker's key as a signer's": (bundle.VerifyKey, without(X, "d", "use"), "got X25519"),
    "a shared key as a signer's": (bundle.VerifyKey, {"kty": "oct", "k": "A" * 43}, "got oct"),
    "marked for encryption": (bundle.VerifyKey, without(EC_SIGNER, "d", use="enc"), "marked for another use"),
    "marked for signatures": (bundle.RecipientKey, without(P256, "d", use="sig"), "marked for another use"),
    "marked for another alg": (bundle.RecipientKey, without(P256, "d", alg="RSA-OAEP-256"), "marked for alg"),
    "marked for no alg": (bundle.VerifyKey, without(EC_SIGNER, "d", alg="none"), "marked for alg"),
    "an id that is a number": (bundle.RecipientKey, without(P256, "d", kid=7), "kid of a JWK must be a string"),
    "an id of two lines": (bundle.RecipientKey, without(P256, "d", kid="a\nb"), "1 to 256 plain characters"),
    "an id too long": (bundle.RecipientKey, without(P256, "d", kid="k" * 257), "1 to 256 plain characters"),
    "a set of none": (bundle.RecipientKey, {"keys": []}, "keys must be a list of JWKs"),
    "a set that is none": (bundle.RecipientKey, {"keys": {"0": without(P256, "d")}}, "keys must be a list of JWKs"),
    "a set with a stranger": (
        bundle.RecipientKey,
        {"keys": [without(P256, "d"), "text"]},
        "keys must be a list of JWKs",
    ),
    "two where one is meant": (bundle.RecipientKey, {"keys": [without(P256, "d"), without(X, "d")]}, "got a set of 2"),
    "a text that is neither": (bundle.RecipientKey, "ssh-ed25519 AAAA", "must be a JWK (JSON) or PEM"),
    "a JWK that nests": (bundle.RecipientKey, '{"keys":[{"a":{"b":{"c":1}}}]}', "nests deeper than 4"),
    "too large": (bundle.RecipientKey, " " * LARGEST_KEY_TEXT + "{", "at most 65536 bytes"),
    "a padded member": (bundle.RecipientKey, without(P256, "d", x=P256["x"] + "="), "base64url"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_such_key_is_refused_with_the_reason(name: str) -> None:
    """What is no such key is refused, with a reason that holds no member of the key."""
    cls, text, why = HOSTILE[name]
    said = refused(cls.parse, text)
    assert why in said
    secrets = [v for k, v in text.items() if k == "d"] if isinstance(text, dict) else []
    assert not any(str(secret) in said for secret in secrets)


def test_the_largest_text_is_read() -> None:
    """The bound itself is allowed."""
    text = json.dumps(WORKERS["P-256"].public_jwk())
    assert bundle.RecipientKey.parse(text + " " * (LARGEST_KEY_TEXT - len(text))).kid == WORKERS["P-256"].kid


def test_marks_that_fit_are_no_hindrance() -> None:
    """``alg`` under either name of RFC 8037 and RFC 9864, ``use``, and no mark at all."""
    public = without(ED, "d")
    for marks in ({"alg": "EdDSA"}, {"alg": "Ed25519"}, {"use": "sig"}, {"use": None}, {}):
        assert bundle.VerifyKey.parse({**public, **marks}).kid == ED["kid"]
    for alg in ("ECDH-ES", "ECDH-ES+A256KW"):
        assert bundle.RecipientKey.parse({**without(P256, "d"), "alg": alg}).alg is KeyAlg.ECDH_ES_A256KW


def test_a_set_is_read_key_by_key() -> None:
    """Each under its own id; an id from outside names a single key, and none where there are more."""
    keys = [without(P256, "d"), without(X, "d")]
    assert [k.kind for k in bundle.RecipientKey.parse_all({"keys": keys})] == ["P-256", "X25519"]
    assert bundle.RecipientKey.parse({"keys": keys[:1]}, kid="mine").kid == "mine"
    assert "a kid can be given to a single key only" in refused(
        bundle.RecipientKey.parse_all, {"keys": keys}, kid="mine"
    )
    assert bundle.RecipientKey.parse(without(P256, "d", "kid")).kid == thumbprint(P256)


def test_a_shared_key_has_no_public_half() -> None:
    """Neither as JWK nor as PEM: it would be the key."""
    for tell in (WORKERS["oct"].public_jwk, WORKERS["oct"].public_pem):
        with pytest.raises(FormatError, match="no public half"):
            tell()


@pytest.mark.parametrize(
    "jwk", [{}, {"kty": 7}, {"kty": "EC", "crv": "P-256", "x": "a"}, {"kty": "OKP", "crv": 1, "x": "a"}]
)
def test_what_is_no_jwk_has_no_thumbprint(jwk: dict[str, object]) -> None:
    """A member that is not there, or is no text."""
    with pytest.raises(FormatError, match="a JWK of type"):
        thumbprint(jwk)


def test_a_content_key_has_its_length() -> None:
    """Whoever unwrapped it: 32 bytes or nothing."""
    assert checked_content_key(b"k" * 32) == b"k" * 32
    for wrong in (b"", b"k" * 16, b"k" * 33):
        with pytest.raises(SealError, match=f"32 bytes, got {len(wrong)}"):
            checked_content_key(wrong)


def test_what_a_kms_is_sent_is_a_point_of_its_curve() -> None:
    """SubjectPublicKeyInfo of the sender's ephemeral key; another curve's, or none, is not sent."""
    sent = ec.generate_private_key(ec.SECP256R1()).public_key()
    numbers = sent.public_numbers()
    point = EphemeralKey("P-256", numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big"))

    def recipient(epk: EphemeralKey | None) -> Recipient:
        return Recipient(alg=KeyAlg.ECDH_ES_A256KW, kid="k", epk=epk, encrypted_key=b"")

    der = ephemeral_public_key_der(recipient(point))
    assert serialization.load_der_public_key(der).public_numbers() == numbers  # type: ignore[union-attr]
    for wrong in (None, EphemeralKey("X25519", b"x" * 32, b"")):
        with pytest.raises(SealError, match="epk must be on P-256"):
            ephemeral_public_key_der(recipient(wrong))
    with pytest.raises(SealError, match="not a point"):
        ephemeral_public_key_der(recipient(EphemeralKey("P-256", b"\x01" * 32, b"\x02" * 32)))
