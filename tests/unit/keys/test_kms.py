"""Keys in a KMS: the service does its half with real arithmetic, and the bundle opens."""

from __future__ import annotations

import asyncio
import functools
import json
from base64 import b64encode
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc.jwk import JWKRegistry

from agent import bundle
from agent.core.errors import BundleError, ConfigError, KeyUnavailableError, SealError, Transient
from agent.core.model import AwsCredential, Bundle, GoogleToken
from agent.core.secret import Secret
from agent.keys import AwsKmsKey, GcpKmsKey, Keyring, LocalKey, WorkerKey
from agent.upstream import Upstream, UpstreamSettings
from tests.fakes import jose
from tests.fakes.aws_kms import FakeAwsKms, KmsKey
from tests.fakes.gcp_kms import FakeGcpKms
from tests.fakes.net import Answer, Fault, Handler, serve
from tests.unit.bundle.kit import KEYS, NOW, OPENING, TRUST, WORLD
from tests.vectors.bundle import generate

ARN = "arn:aws:kms:eu-west-1:123456789012:key/0f9a1e0c-0000-4000-8000-000000000000"
RSA_ARN = "arn:aws:kms:eu-west-1:123456789012:alias/worker-rsa"
VERSION = "projects/p-1/locations/europe-west1/keyRings/workers/cryptoKeys/open/cryptoKeyVersions/1"
P256, RSA = OPENING[0], OPENING[3]
SECRETS = ("kms-secret-access-key", "kms-session-token", "ya29.vm-token")


@functools.cache
def private(opening: bundle.OpeningKey) -> Any:
    """The key behind it, read by a library that is not ours."""
    return JWKRegistry.import_key({**opening.private_jwk()}).private_key


def aws() -> FakeAwsKms:
    fake = FakeAwsKms("ASIAMACHINEMACHINE00", SECRETS[0], SECRETS[1], now=lambda: NOW)
    p256, rsa_key = private(P256), private(RSA)
    assert isinstance(p256, ec.EllipticCurvePrivateKey)
    assert isinstance(rsa_key, rsa.RSAPrivateKey)
    fake.keys = {ARN: KmsKey(p256), RSA_ARN: KmsKey(rsa_key)}
    return fake


async def instance_credential(now: datetime) -> AwsCredential:
    return AwsCredential(
        access_key_id="ASIAMACHINEMACHINE00",
        secret_access_key=Secret(SECRETS[0]),
        session_token=Secret(SECRETS[1]),
        issued_at=now,
        expires_at=now + timedelta(hours=6),
    )


async def instance_token(now: datetime) -> GoogleToken:
    return GoogleToken(access_token=Secret(SECRETS[2]), issued_at=now, expires_at=now + timedelta(hours=1))


def opened(
    handler: Handler,
    data: bytes,
    make: Callable[[Upstream, str], WorkerKey],
    now: datetime = NOW,
    settings: UpstreamSettings | None = None,
) -> Bundle:
    async def scenario() -> Bundle:
        upstream = Upstream(settings)
        try:
            async with serve(handler) as url:
                keyring = Keyring([make(upstream, url)])
                return await keyring.open(data, trust=TRUST, audiences=WORLD["audiences"], now=now)
        finally:
            await upstream.close()

    return asyncio.run(asyncio.wait_for(scenario(), 30))


def p256_key(upstream: Upstream, url: str, **more: Any) -> AwsKmsKey:
    arguments: dict[str, Any] = {
        "key_id": ARN, "public_key": P256.recipient_key(), "credentials": instance_credential, "upstream": upstream, "endpoint": url,
        **more,
    }  # fmt: skip
    return AwsKmsKey(**arguments)


def rsa_key(upstream: Upstream, url: str) -> AwsKmsKey:
    return p256_key(upstream, url, key_id=RSA_ARN, public_key=RSA.recipient_key())


def gcp_key(upstream: Upstream, url: str, token: Any = instance_token) -> GcpKmsKey:
    return GcpKmsKey(key_version=VERSION, public_key=RSA.recipient_key(), token=token, upstream=upstream, endpoint=url)


def gcp() -> FakeGcpKms:
    return FakeGcpKms(SECRETS[2], {VERSION: private(RSA)})


GENERAL = jose.compact_json(generate.sealed(generate.claims()))
DIRECT = jose.compact(jose.sign(generate.claims(), generate.SIGNER), generate.P256, direct=True).encode()
FOR_RSA = jose.compact_json(
    jose.encrypt(jose.sign(generate.claims(recip=[generate.RSA["kid"]]), generate.SIGNER), [generate.RSA])
)
NOISE_FOR_RSA = generate.bent(
    recipients=[
        {"header": {"alg": "RSA-OAEP-256", "kid": generate.RSA["kid"]}, "encrypted_key": jose.b64(b"\x01" * 384)}
    ]
)


@pytest.mark.parametrize("data", [GENERAL, DIRECT], ids=["wrapped", "direct"])
def test_a_p256_key_in_aws_kms_opens_with_one_agreement(data: bytes) -> None:
    """One DeriveSharedSecret, with the sender's point as SPKI, and the bundle is open."""
    fake = aws()
    assert opened(fake, data, p256_key).recipient == generate.P256["kid"]
    assert [operation for operation, _ in fake.asked] == ["DeriveSharedSecret"]


def test_an_rsa_key_in_aws_kms_opens_with_one_decrypt() -> None:
    """One Decrypt with RSAES_OAEP_SHA_256, and the bundle is open, though the answer names the key and we the alias."""
    fake = aws()
    assert opened(fake, FOR_RSA, rsa_key).recipient == generate.RSA["kid"]
    assert [operation for operation, _ in fake.asked] == ["Decrypt"]


def test_an_rsa_key_in_cloud_kms_opens() -> None:
    """One asymmetricDecrypt, and the bundle is open."""
    assert opened(gcp(), FOR_RSA, gcp_key).recipient == generate.RSA["kid"]


def test_requests_are_signed_with_the_agents_time() -> None:
    """The signature bears the time the agent knows, not the machine's: a wrong clock at boot opens nothing else."""
    fake = aws()
    fake.now = lambda: NOW + timedelta(minutes=20)
    with pytest.raises(KeyUnavailableError):
        opened(fake, GENERAL, p256_key)
    data = jose.compact_json(generate.sealed(generate.claims(exp=WORLD["now"] + 7200)))
    assert opened(fake, data, p256_key, now=NOW + timedelta(minutes=20)).seq == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda k: setattr(k, "allowed", False), "AccessDeniedException"),
        (lambda k: setattr(k, "state", "Disabled"), "DisabledException"),
        (lambda k: setattr(k, "state", "PendingDeletion"), "KMSInvalidStateException"),
    ],
)
def test_what_an_operator_can_mend_is_not_a_refusal(change: Callable[[KmsKey], None], words: str) -> None:
    """A denied role or a disabled key leaves the bundle worth another try, and says what to do."""
    fake = aws()
    change(fake.keys[ARN])
    with pytest.raises(KeyUnavailableError) as caught:
        opened(fake, GENERAL, p256_key)
    assert words in str(caught.value)
    assert caught.value.hint


NOT_ANSWERS = [
    Fault.DOWN,
    Answer(500, b""),
    Answer(503, b"<html>"),
    Answer(200, b"<html>"),
    Answer(200, b"{}"),
    Answer(200, b'{"SharedSecret":"!!","plaintext":"!!","Plaintext":"!!"}'),
    Answer(200, b'{"SharedSecret":7,"plaintext":7,"Plaintext":7}'),
    Answer(200, b'{"SharedSecret":null,"plaintext":null,"Plaintext":null}'),
    Answer(200, '{"SharedSecret":"é","plaintext":"é","Plaintext":"é"}'.encode()),
    Answer(200, b'{"error":"please sign in"}'),
    Answer(200, json.dumps({"__type": "ValidationException"}).encode()),
    Answer(503, json.dumps({"__type": "ValidationException", "error": {"status": "INVALID_ARGUMENT"}}).encode()),
    Answer(200, b"x" * 100_000),
    Answer(302, b"", {"Location": "http://169.254.169.254/"}),
    Answer(400, json.dumps({"__type": "ThrottlingException"}).encode()),
    Answer(429, json.dumps({"error": {"status": "RESOURCE_EXHAUSTED"}}).encode()),
]


@pytest.mark.parametrize("answer", NOT_ANSWERS, ids=range(len(NOT_ANSWERS)))
@pytest.mark.parametrize(
    ("make", "data", "fake"), [(p256_key, GENERAL, aws), (rsa_key, FOR_RSA, aws), (gcp_key, FOR_RSA, gcp)]
)
def test_a_service_that_is_not_well_is_asked_again_later(
    make: Any, data: bytes, fake: Any, answer: Answer | Fault
) -> None:
    """Whatever a broken service or a proxy answers, the bundle is neither accepted nor refused, and no secret is told."""
    service = fake()
    service.next.append(answer)
    with pytest.raises(BundleError) as caught:
        opened(service, data, make)
    assert isinstance(caught.value, KeyUnavailableError)
    assert not any(secret in f"{caught.value} {caught.value.hint}" for secret in SECRETS)
    assert opened(service, data, make).seq == 7


@pytest.mark.parametrize("body", [b"<html>", b"{}", json.dumps({"__type": "ThrottlingException"}).encode()])
@pytest.mark.parametrize(
    ("make", "data", "fake"), [(p256_key, GENERAL, aws), (rsa_key, FOR_RSA, aws), (gcp_key, FOR_RSA, gcp)]
)
def test_when_to_come_again_is_heard(make: Any, data: bytes, fake: Any, body: bytes) -> None:
    """`Retry-After` of a key service, or of a proxy before it, comes with the error."""
    service = fake()
    service.next.append(Answer(429, body, {"Retry-After": "40"}))
    with pytest.raises(KeyUnavailableError) as caught:
        opened(service, data, make)
    assert caught.value.pause_seconds == 40.0


@pytest.mark.parametrize("secret", [b"", b"x" * 16, b"x" * 31, b"x" * 64])
def test_a_shared_secret_of_another_length_is_no_verdict(secret: bytes) -> None:
    """A point of P-256 has a coordinate of 32 bytes: a service that gives another number of them is not well."""
    fake = aws()
    fake.next.append(Answer(200, json.dumps({"KeyId": ARN, "SharedSecret": b64encode(secret).decode()}).encode()))
    with pytest.raises(KeyUnavailableError, match="32 bytes"):
        opened(fake, GENERAL, p256_key)
    assert opened(fake, GENERAL, p256_key).seq == 7


@pytest.mark.parametrize("says", [ARN.replace("0f9a", "ffff"), "arn:aws:kms:eu-west-1:123456789012:key/other"])
def test_an_answer_of_another_key_is_no_verdict(says: str) -> None:
    """KMS names the key that it used: what another key computed neither opens nor refuses a bundle."""
    fake = aws()
    fake.next.append(Answer(200, json.dumps({"KeyId": says, "SharedSecret": "A" * 43 + "="}).encode()))
    with pytest.raises(KeyUnavailableError, match="another key"):
        opened(fake, GENERAL, p256_key)


@pytest.mark.parametrize(
    ("make", "data", "fake", "answer"),
    [
        (p256_key, GENERAL, aws, {"SharedSecret": "A" * 43 + "="}),
        (p256_key, DIRECT, aws, {"SharedSecret": "A" * 43 + "="}),
        (rsa_key, FOR_RSA, aws, {"Plaintext": "A" * 43 + "="}),
        (gcp_key, FOR_RSA, gcp, {"plaintext": "A" * 43 + "="}),
    ],
    ids=["wrapped", "direct", "rsa", "gcp"],
)
def test_a_refusal_on_the_word_of_a_service_is_a_doubtful_one(
    make: Any, data: bytes, fake: Any, answer: dict[str, str]
) -> None:
    """A service that computed with another key looks like an altered bundle: the refusal says that it may be either."""
    service = fake()
    service.next.append(Answer(200, json.dumps(answer).encode()))
    with pytest.raises(SealError) as caught:
        opened(service, data, make)
    assert caught.value.doubtful
    assert opened(service, data, make).seq == 7


def test_a_refusal_by_a_key_of_our_own_is_no_doubtful_one() -> None:
    """What a key in memory does not open, it will not open on another day."""
    keyring = Keyring([LocalKey(OPENING[0], kind="file")])
    noise = generate.bent(
        recipients=[
            {"header": {"alg": "RSA-OAEP-256", "kid": generate.P256["kid"]}, "encrypted_key": jose.b64(b"1" * 384)}
        ]
    )
    with pytest.raises(SealError) as caught:
        asyncio.run(keyring.open(jose.compact_json(noise), trust=TRUST, audiences=WORLD["audiences"], now=NOW))
    assert not caught.value.doubtful


def test_a_service_that_hangs_costs_its_time_limit_only() -> None:
    """A KMS that accepts and says nothing is given up after the key's own time limit."""
    fake = aws()
    fake.next.append(Fault.HANG)
    with pytest.raises(KeyUnavailableError, match="time"):
        opened(fake, GENERAL, lambda u, url: p256_key(u, url, timeout_seconds=0.05))


def test_without_an_identity_of_the_machine_the_key_waits() -> None:
    """No instance profile or service account yet: try again, rather than refuse the bundle."""

    async def nothing(now: datetime) -> Any:
        raise Transient("no instance profile is attached", hint="attach one")

    with pytest.raises(KeyUnavailableError, match="no instance profile"):
        opened(aws(), GENERAL, lambda u, url: p256_key(u, url, credentials=nothing))
    with pytest.raises(KeyUnavailableError, match="no instance profile"):
        opened(gcp(), FOR_RSA, lambda u, url: gcp_key(u, url, token=nothing))


@pytest.mark.parametrize(("make", "fake"), [(rsa_key, aws), (gcp_key, gcp)])
def test_an_entry_made_for_another_key_is_refused_for_good(make: Any, fake: Any) -> None:
    """The service's "invalid ciphertext" is a refusal of the bundle: the same bytes will never open."""
    with pytest.raises(SealError) as caught:
        opened(fake(), jose.compact_json(NOISE_FOR_RSA), make)
    assert caught.value.code == "unwrap"


def test_a_point_off_the_curve_never_reaches_the_service() -> None:
    """An invalid point is refused here; no request is spent on it."""
    fake = aws()
    jwe = generate.sealed(generate.claims())
    epk = jwe["recipients"][0]["header"]["epk"]
    epk["y"] = epk["x"]
    with pytest.raises(SealError):
        opened(fake, jose.compact_json(jwe), p256_key)
    assert fake.asked == []


@pytest.mark.parametrize(
    ("make", "jwe"),
    [
        (p256_key, {"alg": "A256KW", "kid": generate.P256["kid"]}),
        (gcp_key, {"alg": "A256KW", "kid": generate.RSA["kid"]}),
        (rsa_key, {"alg": "A256KW", "kid": generate.RSA["kid"]}),
        (p256_key, {"alg": "RSA-OAEP-256", "kid": generate.P256["kid"]}),
        (rsa_key, {"alg": "ECDH-ES+A256KW", "kid": generate.RSA["kid"], "epk": generate.sealed(generate.claims())["recipients"][0]["header"]["epk"]}),
    ],
)  # fmt: skip
def test_an_algorithm_of_another_kind_of_key_never_reaches_the_service(make: Any, jwe: dict[str, str]) -> None:
    """The key's own kind decides what is asked of the service, never the unsigned header."""
    data = generate.bent(
        recipients=[{"header": jwe, "encrypted_key": jose.b64(bytes(384 if "RSA" in jwe["alg"] else 40))}]
    )
    fake = aws()
    with pytest.raises(SealError) as caught:
        opened(fake, jose.compact_json(data), make)
    assert caught.value.code == "unwrap"
    assert fake.asked == []


@pytest.mark.parametrize(
    "key_id", ["", "alias/x", "1234", "arn:aws:s3:::bucket", "arn:aws:kms:eu-west-1:123456789012:key/a b"]
)
def test_a_key_id_that_is_no_arn_is_a_mistake_of_configuration(key_id: str) -> None:
    """Only an ARN says region and account, so nothing has to be guessed at boot."""
    with pytest.raises(ConfigError):
        p256_key(Upstream(), "http://127.0.0.1:1", key_id=key_id)


def test_a_kind_of_key_that_the_service_cannot_have_is_a_mistake_of_configuration() -> None:
    """An X25519 or shared key cannot live in these services in a form that JOSE can use."""
    for key in (OPENING[2], OPENING[4]):
        with pytest.raises(ConfigError):
            p256_key(Upstream(), "http://127.0.0.1:1", public_key=key.recipient_key())
    with pytest.raises(ConfigError):
        GcpKmsKey(key_version=VERSION, public_key=P256.recipient_key(), token=instance_token, upstream=Upstream())
    with pytest.raises(ConfigError):
        GcpKmsKey(key_version="x", public_key=RSA.recipient_key(), token=instance_token, upstream=Upstream())


def test_the_regional_endpoint_follows_the_arn() -> None:
    """The host is the region's own; China has another suffix. A region that is given outranks the ARN's."""

    def where(of_arn: str, region: str | None = None) -> str:
        return p256_key(Upstream(), "", key_id=ARN.replace("eu-west-1", of_arn), endpoint=None, region=region)._endpoint

    assert where("us-east-2") == "https://kms.us-east-2.amazonaws.com/"
    assert where("cn-north-1") == "https://kms.cn-north-1.amazonaws.com.cn/"
    assert where("us-east-2", region="eu-west-1") == "https://kms.eu-west-1.amazonaws.com/"
    with pytest.raises(ConfigError):
        where("us-east-2", region="evil.example/")


def test_a_kms_key_that_is_away_does_not_keep_a_local_one_from_opening() -> None:
    """Of several keys of ours, one that works is enough."""
    fake = aws()
    fake.next.append(Fault.DOWN)
    both = jose.compact_json(generate.many(generate.P256, generate.PREVIOUS))

    async def scenario() -> Bundle:
        upstream = Upstream()
        try:
            async with serve(fake) as url:
                keyring = Keyring([p256_key(upstream, url), LocalKey(OPENING[1], kind="file")])
                return await keyring.open(both, trust=TRUST, audiences=WORLD["audiences"], now=NOW)
        finally:
            await upstream.close()

    assert asyncio.run(scenario()).recipient == KEYS["worker-previous"]["kid"]
