"""Keys from files and credentials, and key material in every shape that tools write."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from joserfc.jwk import JWKRegistry

from agent import bundle
from agent.bundle.envelope import parse_envelope
from agent.core.errors import FormatError, HostError
from agent.keys import Keyring, ephemeral_key, load_credential, load_key_file, restored_key
from tests.fakes import jose
from tests.unit.bundle.kit import KEYS, NOW, OPENING, TRUST, WORLD
from tests.vectors.bundle import generate

WORKER = KEYS["worker-p256"]


def put(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def private(key: bundle.OpeningKey) -> Any:
    """The key behind it, read by a library that is not ours."""
    return JWKRegistry.import_key({**key.private_jwk()}).private_key


def pem_of(key: bundle.OpeningKey, form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8) -> str:
    raw: bytes = private(key).private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return raw.decode()


def test_a_jwk_file_is_a_key(tmp_path: Path) -> None:
    """A private JWK in a file of mode 0600 is a worker key under its own id."""
    (key,) = load_key_file(put(tmp_path / "k", json.dumps(WORKER)))
    assert (key.kid, key.kind) == (WORKER["kid"], "file")
    public = key.public_jwk()
    assert public is not None
    assert "d" not in public


def test_a_jwk_set_is_the_present_and_the_previous_key(tmp_path: Path) -> None:
    """Two keys in one file both open."""
    path = put(tmp_path / "k", json.dumps({"keys": [WORKER, KEYS["worker-previous"]]}))
    keyring = Keyring(load_key_file(path))
    for recipient in (generate.P256, generate.PREVIOUS):
        opened = asyncio.run(
            keyring.open(
                jose.compact_json(generate.many(recipient)), trust=TRUST, audiences=WORLD["audiences"], now=NOW
            )
        )
        assert opened.recipient == recipient["kid"]


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_a_pem_file_is_a_key_under_its_thumbprint(tmp_path: Path, form: serialization.PrivateFormat) -> None:
    """PEM has no key id, so the id is the thumbprint, in both of the forms that tools write."""
    (key,) = load_key_file(put(tmp_path / "k", pem_of(OPENING[0], form)))
    assert key.kid == jose.thumbprint(WORKER)


def test_a_key_id_can_be_given(tmp_path: Path) -> None:
    """A key may go by another id than its thumbprint, if it is alone in its file."""
    (key,) = load_key_file(put(tmp_path / "k", pem_of(OPENING[0])), kid="cluster-7")
    assert key.kid == "cluster-7"
    both = put(tmp_path / "two", json.dumps({"keys": [WORKER, KEYS["worker-previous"]]}))
    with pytest.raises(FormatError):
        load_key_file(both, kid="cluster-7")


@pytest.mark.parametrize("mode", [0o604, 0o660, 0o644, 0o610, 0o641])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    """A key file with any access for group or others is refused, with the command that mends it."""
    with pytest.raises(HostError) as caught:
        load_key_file(put(tmp_path / "k", json.dumps(WORKER), mode))
    assert "chmod 600" in (caught.value.hint or "")


def test_a_key_of_root_may_be_read_by_the_group_of_the_service_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``root:credential-agent`` and 0640 is a key that the service reads and cannot change; another group or owner is not."""
    path = put(tmp_path / "k", json.dumps(WORKER), 0o640)
    real = os.fstat

    def owned(uid: int, gid: int) -> None:
        def fstat(fd: int) -> os.stat_result:
            found = list(real(fd))
            found[4], found[5] = uid, gid
            return os.stat_result(found)

        monkeypatch.setattr(os, "fstat", fstat)

    owned(0, os.getegid())
    assert load_key_file(path)[0].kid == WORKER["kid"]
    for uid, gid in ((0, os.getegid() + 1), (1, os.getegid())):
        owned(uid, gid)
        with pytest.raises(HostError, match="mode is 0640"):
            load_key_file(path)


def test_a_systemd_credential_may_have_the_mode_systemd_gives_it(tmp_path: Path) -> None:
    """Systemd gives 0440 where it uses access lists: the directory is the service's own, and the mode is not looked at."""
    put(tmp_path / "worker-key", json.dumps(WORKER), 0o444)  # 0440 of root's is allowed to any key file
    (key,) = load_credential(tmp_path, "worker-key")
    assert (key.kid, key.kind) == (WORKER["kid"], "systemd")


@pytest.mark.parametrize("name", ["", ".", "..", "../etc/shadow", "/etc/shadow", "a/b"])
def test_a_credential_name_cannot_leave_its_directory(tmp_path: Path, name: str) -> None:
    """A name is a name, never a path."""
    with pytest.raises(HostError, match="plain file name"):
        load_credential(tmp_path, name)


def test_a_credential_that_the_machine_was_not_given_is_no_key(tmp_path: Path) -> None:
    """Systemd starts a service without a credential it has not; so it is no key yet, and an unreadable one an error.

    So is one of which nobody can tell whether it is there: a reload keeps the key that it gave before.
    """
    assert load_credential(None, "worker-key") == ()
    assert load_credential(tmp_path, "worker-key") == ()
    for blank in ("", "\n"):  # what systemd 249 is told to pass instead: by an earlier release, and now
        put(tmp_path / "worker-key", blank, 0o400)
        assert load_credential(tmp_path, "worker-key") == ()
        (tmp_path / "worker-key").unlink()
    (tmp_path / "worker-key").mkdir()
    with pytest.raises(HostError):
        load_credential(tmp_path, "worker-key")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(HostError, match="cannot read"):
        load_credential(tmp_path / "loop", "worker-key")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    """An absent key is the host's error, with the path and the system's words."""
    with pytest.raises(HostError, match="no such file") as caught:
        load_key_file(tmp_path / "nothing")
    assert "copy it there" in (caught.value.hint or "")
    with pytest.raises(HostError):
        load_key_file(tmp_path)


def _wrong(**changes: Any) -> str:
    return json.dumps({k: v for k, v in {**WORKER, **changes}.items() if v is not None})


P384 = ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "{}",
        "[]",
        "{",
        _wrong(kty=None),
        _wrong(kty="DSA"),
        _wrong(crv="P-384"),
        _wrong(d=None),
        _wrong(d="AAAA="),
        _wrong(d=5),
        _wrong(x=KEYS["worker-previous"]["x"]),
        _wrong(y=WORKER["x"]),
        _wrong(d=KEYS["worker-previous"]["d"]),
        _wrong(d=jose.b64(bytes(32))),
        _wrong(use="sig"),
        _wrong(alg="ES256"),
        _wrong(kid="a b"),
        _wrong(kid=7),
        json.dumps(WORKER)[:-1] + ',"d":"AAAA"}',
        json.dumps({"keys": []}),
        json.dumps({"keys": "x"}),
        json.dumps({"keys": 5}),
        json.dumps({"keys": None}),
        json.dumps({"keys": WORKER}),
        json.dumps({"keys": ["x"]}),
        json.dumps(KEYS["signer-ed25519"]),
        json.dumps({"kty": "oct", "k": jose.b64(bytes(16))}),
        json.dumps({**KEYS["worker-rsa"], "p": KEYS["worker-rsa"]["q"]}),
        json.dumps({k: v for k, v in KEYS["worker-rsa"].items() if k != "p"}),
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        P384.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        private(OPENING[0])
        .private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
        .decode(),
        ed25519.Ed25519PrivateKey.generate()
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode(),
        OPENING[0].public_pem(),
        "x" * 70_000,
    ],
)
def test_what_is_not_a_worker_key_is_refused_without_telling_it(tmp_path: Path, text: str) -> None:
    """Anything else than a private key of a supported kind is a FormatError, whose text has no key material."""
    with pytest.raises(FormatError) as caught:
        load_key_file(put(tmp_path / "k", text))
    said = f"{caught.value} {caught.value.hint}"
    assert caught.value.code in ("key", "json", "encoding")
    for name in ("d", "x", "k"):
        assert WORKER.get(name, "\0") not in said
    assert caught.value.__context__ is None


def test_a_small_rsa_key_is_refused() -> None:
    """RSA below 2,048 bits is not a seal."""
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    pem = small.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(FormatError, match="1024"):
        bundle.OpeningKey.parse(pem)


@pytest.mark.parametrize("kind", ["P-256", "X25519", "oct"])
def test_a_generated_key_survives_writing_and_reading(kind: Any) -> None:
    """A key read back from its JWK is the same key, and opens what was sealed to the first."""
    key = bundle.OpeningKey.generate(kind)
    again = bundle.OpeningKey.parse(json.dumps(key.private_jwk()))
    signer = bundle.SigningKey.generate()
    data = bundle.seal(
        signer=signer,
        recipients=[key.recipient_key()],
        issuer="i",
        subject="s",
        audiences=["a"],
        now=NOW,
        grants=[generate.ENV],
    )
    envelope = parse_envelope(data)
    assert again.kid == key.kid == envelope.recipients[0].kid
    assert again.content_key(envelope.recipients[0]) == key.content_key(envelope.recipients[0])


@pytest.mark.parametrize("kind", ["Ed25519", "P-256"])
def test_a_generated_signing_key_survives_writing_and_reading(kind: Any) -> None:
    """A signing key read back has the same id and the same public half, as JWK and as PEM."""
    key = bundle.SigningKey.generate(kind)
    again = bundle.SigningKey.parse(json.dumps(key.private_jwk()))
    assert again.public_jwk() == key.public_jwk()
    assert bundle.VerifyKey.parse(key.public_pem()).kid == key.kid == bundle.thumbprint(key.public_jwk())


def test_private_keys_do_not_show_in_a_repr() -> None:
    """A key in a log line is its kind and id."""
    for key in (OPENING[0], OPENING[4], bundle.SigningKey.parse(KEYS["signer-p256"])):
        assert key.kid in repr(key)
        for secret in (KEYS["worker-p256"]["d"], KEYS["group"]["k"], KEYS["signer-p256"]["d"]):
            assert secret not in repr(key)


def test_a_private_key_is_refused_where_a_public_one_belongs() -> None:
    """Pasting a private key into a sender's recipients or a worker's signers is told, not silently used."""
    with pytest.raises(FormatError, match="private"):
        bundle.RecipientKey.parse(WORKER)
    with pytest.raises(FormatError, match="private"):
        bundle.RecipientKey.parse(pem_of(OPENING[0]))
    with pytest.raises(FormatError, match="private"):
        bundle.VerifyKey.parse(KEYS["signer-ed25519"])


def test_an_ephemeral_key_is_new_each_time() -> None:
    """Two ephemeral keys differ, and their public half can be published."""
    one, two = ephemeral_key(), ephemeral_key()
    assert one.kid != two.kid
    assert one.kind == "ephemeral"
    assert bundle.RecipientKey.parse(json.dumps(one.public_jwk())).kid == one.kid


def test_a_shared_key_has_no_public_half() -> None:
    """The AES key of a group is never published by mistake."""
    assert "public" not in repr(OPENING[4])
    with pytest.raises(FormatError):
        OPENING[4].public_jwk()


def test_keys_made_by_openssl_are_read(tmp_path: Path) -> None:
    """The commands in FORMAT.md make keys that are understood."""
    for arguments in (
        ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        ["ecparam", "-name", "prime256v1", "-genkey"],
        ["genpkey", "-algorithm", "X25519"],
    ):
        path = tmp_path / "key.pem"
        try:
            subprocess.run(["openssl", *arguments, "-out", str(path)], check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("needs openssl (apt-get install openssl)")
        path.chmod(0o600)
        (key,) = load_key_file(path)
        assert key.kind == "file"


def test_the_thumbprint_is_that_of_rfc_7638() -> None:
    """The example of RFC 7638 section 3.1."""
    jwk = {
        "kty": "RSA",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        "e": "AQAB",
        "alg": "RS256",
        "kid": "2011-04-29",
    }
    assert bundle.thumbprint(jwk) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    with pytest.raises(FormatError):
        bundle.thumbprint({"kty": "EC"})


def test_the_key_derivation_is_that_of_rfc_7518() -> None:
    """In direct mode the derived key is one SHA-256 over counter, secret and OtherInfo, as RFC 7518 section 4.6.2 says."""
    _, z = jose.agree(generate.P256, "any")
    direct = parse_envelope(jose.compact(b"x", generate.P256, direct=True).encode()).recipients[0]
    assert bundle.content_key_from_secret(direct, z) == jose.concat_kdf(z, "A256GCM")


def test_only_a_key_that_exists_nowhere_else_is_handed_on(tmp_path: Path) -> None:
    """The key of an earlier process opens what was sealed to it; a file's own private half is given to nobody."""
    made = ephemeral_key()
    again = restored_key(json.dumps(made.private_jwk()))
    assert (again.kid, again.kind, again.private_jwk()) == (made.kid, "ephemeral", made.private_jwk())
    (filed,) = load_key_file(put(tmp_path / "k", json.dumps(WORKER)))
    with pytest.raises(RuntimeError):
        filed.private_jwk()


def test_a_keyring_asks_its_keys_in_the_order_given() -> None:
    """The keys are told in the order of preference; two of one id, of which one would never be asked, are a mistake."""
    first, second = ephemeral_key(), ephemeral_key()
    assert Keyring([second, first]).keys == (second, first)
    assert Keyring([second, first]).kids == (second.kid, first.kid)
    with pytest.raises(RuntimeError):
        Keyring([first, second, restored_key(json.dumps(first.private_jwk()))])
