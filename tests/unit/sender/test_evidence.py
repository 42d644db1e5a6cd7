"""Forged evidence of every kind gets nothing, and is not even sent on where it must not be; what is real says who it is."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from joserfc import jwt
from joserfc.jwk import KeySet, OctKey, RSAKey

from agent import enrol
from agent.core.errors import EvidenceError
from agent.core.secret import Secret
from agent.enrol import AwsSts, AwsWebIdentity, GcpIdentity, Machine, Missing, Policy
from agent.sender.evidence import GOOGLE_CERTS_URL, Verifier
from agent.upstream.sigv4 import SigningKeys
from tests.fakes.bent import bent
from tests.fakes.net import Answer, Asked, Fault
from tests.fakes.sts import FakeSts, Weather
from tests.unit.enrol.support import NONCE, THUMBPRINT, enrolment, signed
from tests.unit.sender.support import serving

ACCOUNT = "123456789012"
ROLE_ARN = f"arn:aws:sts::{ACCOUNT}:assumed-role/worker/i-0123456789abcdef0"
NOW = datetime.now(UTC).replace(microsecond=0)


class World:
    """An STS that verifies signatures, and a sender who reaches it."""

    def __init__(self, sts: FakeSts, url: str) -> None:
        self.sts, self.url = sts, url

    def keys(self, arn: str = ROLE_ARN, seconds: int = 3600) -> SigningKeys:
        made = self.sts.session(arn, "role-session", seconds)
        return SigningKeys(made["AccessKeyId"], Secret(made["SecretAccessKey"]), Secret(made["SessionToken"]))

    def verify(self, evidence: AwsSts, policy: Policy | None = None, **changes: Any) -> Machine:
        verifier = Verifier(policy or Policy(accounts=(ACCOUNT,)), sts_url=self.url, now=lambda: NOW)
        return verifier.verify(enrolment(evidence=(evidence,), **changes))

    def refused(self, evidence: AwsSts, policy: Policy | None = None, **changes: Any) -> EvidenceError:
        with pytest.raises(EvidenceError) as caught:
            self.verify(evidence, policy, **changes)
        return caught.value


@pytest.fixture
def world() -> Iterator[World]:
    sts = FakeSts(lambda: NOW, random.Random(1))
    with serving(sts) as url:
        yield World(sts, url + "/")


def test_sts_says_whose_machine_it_is(world: World) -> None:
    """Evidence that a role's keys signed is confirmed by STS itself: account, role, and what the session is called."""
    machine = world.verify(signed(keys=world.keys(), now=NOW))
    assert (machine.account, machine.principal, machine.instance_id) == (ACCOUNT, "worker", "i-0123456789abcdef0")
    assert not machine.instance_proved
    assert world.sts.operations() == ["GetCallerIdentity"]


OTHER_ACCOUNT = "arn:aws:sts::999999999999:assumed-role/worker/i-0123456789abcdef0"


@pytest.mark.parametrize(
    ("arn", "policy", "code"),
    [
        (OTHER_ACCOUNT, None, "policy"),
        (ROLE_ARN, Policy(), "policy"),
        (ROLE_ARN, Policy(projects=(ACCOUNT,)), "policy"),
        (ROLE_ARN, Policy(accounts=(ACCOUNT,), roles=("other",)), "policy"),
        (ROLE_ARN, Policy(accounts=(ACCOUNT,), instance_ids=("i-00000000000000000",)), "policy"),
        (f"arn:aws:iam::{ACCOUNT}:user/david", None, "principal"),
        (f"arn:aws:iam::{ACCOUNT}:root", None, "principal"),
        (f"arn:aws:sts::{ACCOUNT}:federated-user/david", None, "principal"),
        (f"arn:aws-cn:sts::{ACCOUNT}:assumed-role/worker/i-0123456789abcdef0", None, "principal"),
    ],
)
def test_who_is_not_admitted(world: World, arn: str, policy: Policy | None, code: str) -> None:
    """Another account, role or instance, a person, or another partition: confirmed by STS, and given nothing."""
    assert world.refused(signed(keys=world.keys(arn), now=NOW), policy).code == code


@pytest.mark.parametrize(
    ("host", "region", "partition"),
    [
        ("sts.cn-north-1.amazonaws.com.cn", "cn-north-1", "aws-cn"),
        ("sts.us-gov-west-1.amazonaws.com", "us-gov-west-1", "aws-us-gov"),
        ("sts.eu-isoe-west-1.cloud.adc-e.uk", "eu-isoe-west-1", "aws-iso-e"),
        ("sts.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1", "aws-eusc"),
    ],
)
def test_the_sts_of_another_partition_is_not_even_asked(world: World, host: str, region: str, partition: str) -> None:
    """Each has names and account numbers of its own: who answers there vouches for no machine of the same number here."""
    keys = world.keys(f"arn:{partition}:sts::{ACCOUNT}:assumed-role/worker/i-0123456789abcdef0")
    evidence = signed(keys=keys, now=NOW, host=host, region=region)
    refusal = world.refused(evidence)
    assert refusal.code == "policy"
    assert f"arn:{partition}:iam::" in str(refusal.hint)
    assert world.sts.calls == []
    wanted = Policy(
        accounts=(ACCOUNT,), roles=(f"arn:{partition}:iam::{ACCOUNT}:role/worker",), partitions=(partition,)
    )
    assert world.verify(evidence, wanted).partition == partition
    of_here = Policy(accounts=(ACCOUNT,), roles=(f"arn:aws:iam::{ACCOUNT}:role/worker",), partitions=("aws", partition))
    assert world.refused(evidence, of_here).code == "policy"


def test_a_chained_session_named_like_an_instance_is_its_role_and_no_more(world: World) -> None:
    """Who may assume a role may call the session ``i-...``: that counts as the role, which ``roles`` must not admit."""
    chained = world.keys(f"arn:aws:sts::{ACCOUNT}:assumed-role/ci/i-0123456789abcdef0")
    machine = world.verify(signed(keys=chained, now=NOW))
    assert (machine.principal, machine.instance_proved) == ("ci", False)
    workers = Policy(accounts=(ACCOUNT,), roles=("worker",), instance_ids=("i-0123456789abcdef0",))
    assert world.refused(signed(keys=chained, now=NOW), workers).code == "policy"


FORGERIES: dict[str, Callable[[World], tuple[AwsSts, dict[str, Any]]]] = {
    "another machine's, for its key": lambda w: (signed(keys=w.keys(), now=NOW, thumbprint="A" * 43), {}),
    "an old answer": lambda w: (signed(keys=w.keys(), now=NOW, nonce="A" * 22), {}),
    "a stale date": lambda w: (signed(keys=w.keys(), now=NOW - timedelta(minutes=6)), {}),
    "another action": lambda w: (signed(keys=w.keys(), now=NOW, body="Action=GetSessionToken&Version=2011-06-15"), {}),
    "another host": lambda w: (signed(keys=w.keys(), now=NOW, host="sts.evil.example"), {}),
    "http": lambda w: (msgspec.structs.replace(signed(keys=w.keys(), now=NOW), url="http://sts.amazonaws.com/"), {}),
    "a header more": lambda w: (
        msgspec.structs.replace(
            good := signed(keys=w.keys(), now=NOW), headers={**good.headers, "accept": "application/json"}
        ),
        {},
    ),
    "another key in the answer": lambda w: (signed(keys=w.keys(), now=NOW), {"thumbprint": "A" * 43}),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_is_not_sent_on(world: World, forgery: str) -> None:
    """What must not be sent is refused before anybody is asked."""
    evidence, changes = FORGERIES[forgery](world)
    assert world.refused(evidence, **changes).code not in {"none", "unavailable", "rejected"}
    assert world.sts.calls == []


@pytest.mark.parametrize("header", [enrol.KEY_HEADER, enrol.NONCE_HEADER, "x-amz-security-token", "x-amz-date"])
def test_a_value_that_was_swapped_after_signing_is_rejected(world: World, header: str) -> None:
    """The signature covers key, nonce and date: whoever puts its own in has no signature."""
    good = signed(keys=world.keys(), now=NOW)
    (name,) = [one for one in good.headers if one.lower() == header]
    other = {
        enrol.KEY_HEADER: "A" * 43,
        enrol.NONCE_HEADER: "A" * 22,
        "x-amz-security-token": "B" * 20,
        "x-amz-date": (NOW + timedelta(seconds=1)).strftime("%Y%m%dT%H%M%SZ"),
    }[header]
    forged = msgspec.structs.replace(good, headers={**good.headers, name: other})
    changes: dict[str, Any] = {enrol.KEY_HEADER: {"thumbprint": other}, enrol.NONCE_HEADER: {"nonce": other}}.get(
        header, {}
    )
    refusal = world.refused(forged, **changes)
    assert refusal.code == "rejected"
    assert "SignatureDoesNotMatch" in str(refusal)


def test_an_ended_session_is_rejected_and_nothing_of_it_is_told(world: World) -> None:
    """STS repeats what it was sent; an error of ours has its code alone, no session token."""
    keys = world.keys(seconds=-10)
    assert "ExpiredToken" in str(world.refused(signed(keys=keys, now=NOW)))
    assert keys.session_token is not None
    forged = SigningKeys(keys.access_key_id, Secret("wrong"), keys.session_token)
    refusal = world.refused(signed(keys=forged, now=NOW))
    assert keys.session_token.reveal() not in f"{refusal} {refusal.hint}"


@pytest.mark.parametrize(
    "weather",
    [
        Weather(status=503),
        Weather(status=400, code="Throttling"),
        Weather(body=b"<html>a portal</html>"),
        Weather(body=b"\x00" * 100_000),
        Weather(fault=Fault.DOWN),
    ],
)
def test_a_silence_of_sts_is_no_verdict(world: World, weather: Weather) -> None:
    """An outage, a throttle or a portal is told as such: the worker may be asked again, and is not given anything."""
    world.sts.weather = lambda _: weather
    assert world.refused(signed(keys=world.keys(), now=NOW)).code in {"unavailable", "principal"}


def test_where_nobody_listens_is_no_verdict(world: World) -> None:
    """A laptop without a network, or an address without anybody: the worker may be asked again."""
    evidence = signed(keys=world.keys(), now=NOW)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        world.url = f"http://127.0.0.1:{gone.getsockname()[1]}/"
    assert world.refused(evidence).code == "unavailable"


def test_a_redirect_is_not_followed() -> None:
    """Whoever answers with a redirect gets no second request, and no session token."""
    asked: list[str] = []

    def elsewhere(one: Asked) -> Answer:
        asked.append(one.path)
        return Answer(302, b"", {"Location": "/elsewhere"})

    with serving(elsewhere) as url, pytest.raises(EvidenceError):
        Verifier(Policy(accounts=(ACCOUNT,)), sts_url=url + "/", now=lambda: NOW).verify(
            enrolment(evidence=(signed(now=NOW),))
        )
    assert asked == ["/"]


def test_no_evidence_is_no_machine() -> None:
    """Without evidence the refusal says why the worker has none."""
    with pytest.raises(EvidenceError, match="no ec2 metadata service") as caught:
        Verifier(Policy(accounts=(ACCOUNT,))).verify(
            enrolment(evidence=(), missing=(Missing("aws-sts", "no-machine", "no ec2 metadata service"),))
        )
    assert caught.value.code == "none"


# -- Google -----------------------------------------------------------------------------------------------------------

PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SIGNER = RSAKey.import_key(
    PRIVATE.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    {"kid": "k1", "alg": "RS256", "use": "sig"},
)
STRANGER = RSAKey.generate_key(2048, {"kid": "k1"})
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "federated-signon")])
CERTIFICATE = (
    x509.CertificateBuilder()
    .subject_name(NAME)
    .issuer_name(NAME)
    .public_key(PRIVATE.public_key())
    .serial_number(1)
    .not_valid_before(NOW - timedelta(days=1))
    .not_valid_after(NOW + timedelta(days=1))
    .sign(PRIVATE, hashes.SHA256())
    .public_bytes(serialization.Encoding.PEM)
    .decode()
)
AUDIENCE = enrol.audience(THUMBPRINT, NONCE)
EMAIL = "w@proj-one.iam.gserviceaccount.com"
CLAIMS: dict[str, Any] = {
    "iss": "https://accounts.google.com",
    "aud": AUDIENCE,
    "iat": int(NOW.timestamp()),
    "exp": int(NOW.timestamp()) + 3600,
    "email": EMAIL,
    "email_verified": True,
    "google": {"compute_engine": {"project_id": "proj-one", "instance_id": "4711", "zone": "z"}},
}


def token(key: RSAKey | OctKey = SIGNER, alg: str = "RS256", kid: str = "k1", **changes: Any) -> str:
    claims = {name: value for name, value in {**CLAIMS, **changes}.items() if value is not None}
    return jwt.encode({"alg": alg, "kid": kid, "typ": "JWT"}, claims, key, algorithms=[alg])


def google(evidence: str, policy: Policy | None = None, fetched: list[str] | None = None) -> Machine:
    def get(url: str) -> bytes:
        if fetched is not None:
            fetched.append(url)
        assert url == GOOGLE_CERTS_URL
        return json.dumps({"k1": CERTIFICATE}).encode()

    verifier = Verifier(policy or Policy(projects=("proj-one",)), get=get, now=lambda: NOW)
    return verifier.verify(enrolment(evidence=(GcpIdentity(evidence),)))


def test_google_says_whose_instance_it_is() -> None:
    """The token proves project, instance and service account."""
    machine = google(token(), Policy(projects=("proj-one",), service_accounts=(EMAIL,), instance_ids=("4711",)))
    assert (machine.account, machine.principal, machine.instance_id, machine.instance_proved) == (
        "proj-one",
        EMAIL,
        "4711",
        True,
    )


@pytest.mark.parametrize(
    ("forged", "code"),
    [
        (token(STRANGER), "token"),
        (token(kid="k2"), "token"),
        (token(OctKey.import_key(CERTIFICATE.encode().hex()), alg="HS256"), "token"),
        (token(aud="https://vault.example"), "binding"),
        (token(aud=enrol.audience("A" * 43, NONCE)), "binding"),
        (token(aud=enrol.audience(THUMBPRINT, "A" * 22)), "binding"),
        (token(aud=[AUDIENCE, "x"]), "binding"),
        (token(iss="https://accounts.evil.example"), "token"),
        (token(iss=None), "token"),
        (token(exp=int(NOW.timestamp()) - 3600, iat=int(NOW.timestamp()) - 7200), "token"),
        (token(iat=int(NOW.timestamp()) + 7200, exp=int(NOW.timestamp()) + 9000), "token"),
        (token(google=None), "token"),
        (token(email_verified=False), "token"),
        (token(google={"compute_engine": {"project_id": "proj-two", "instance_id": "4711"}}), "policy"),
        (token().rpartition(".")[0] + ".", "token"),
        ("", "binding"),
        ("a.b.c", "binding"),
        ("A" * 30_000, "token"),
    ],
)
def test_a_forged_google_token_gets_nothing(forged: str, code: str) -> None:
    """Another signer, algorithm, audience, issuer, time or project, or a token of no instance."""
    with pytest.raises(EvidenceError) as caught:
        google(forged)
    assert caught.value.code == code


def test_an_unsigned_google_token_gets_nothing() -> None:
    """``alg: none`` is no signature."""
    head, claims, _ = token().split(".")
    bare = jwt.encode({"alg": "HS256", "kid": "k1"}, CLAIMS, OctKey.import_key("x" * 32)).split(".")[1]
    assert claims
    with pytest.raises(EvidenceError):
        google(f"eyJhbGciOiJub25lIiwia2lkIjoiazEifQ.{bare}.")
    assert head


def test_googles_keys_are_fetched_once_for_many() -> None:
    """Ten thousand workers are not ten thousand requests for the same certificates."""
    fetched: list[str] = []

    def get(url: str) -> bytes:
        fetched.append(url)
        return json.dumps({"k1": CERTIFICATE}).encode()

    verifier = Verifier(Policy(projects=("proj-one",)), get=get, now=lambda: NOW)
    for _ in range(5):
        verifier.verify(enrolment(evidence=(GcpIdentity(token()),)))
    assert fetched == [GOOGLE_CERTS_URL]


# -- tokens of AWS ----------------------------------------------------------------------------------------------------

ISSUER = "https://01234567-89ab-cdef-0123-456789abcdef.tokens.sts.global.api.aws"
AWS_CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": f"arn:aws:iam::{ACCOUNT}:role/team/worker",
    "google": None,
    "email": None,
    "email_verified": None,
    "https://sts.amazonaws.com/": {
        "aws_account": ACCOUNT,
        "principal_id": f"arn:aws:iam::{ACCOUNT}:role/team/worker",
        "ec2_source_instance_arn": f"arn:aws:ec2:eu-central-1:{ACCOUNT}:instance/i-0123456789abcdef0",
    },
}


def nested(**changes: str | None) -> dict[str, Any]:
    """The claims with others under AWS's own name; ``None``: left out."""
    said = {**AWS_CLAIMS["https://sts.amazonaws.com/"], **changes}
    return {"https://sts.amazonaws.com/": {name: value for name, value in said.items() if value is not None}}


def aws(evidence: str, policy: Policy | None = None) -> Machine:
    def get(url: str) -> bytes:
        assert url == f"{ISSUER}/.well-known/jwks.json"
        return json.dumps(KeySet([SIGNER]).as_dict(private=False)).encode()

    verifier = Verifier(policy or Policy(accounts=(ACCOUNT,)), get=get, now=lambda: NOW)
    return verifier.verify(enrolment(evidence=(AwsWebIdentity(evidence),)))


def test_a_token_of_aws_proves_the_instance() -> None:
    """Where AWS itself says from which instance a session is, that is proved, and not what somebody called it."""
    machine = aws(token(**AWS_CLAIMS))
    assert (machine.account, machine.principal) == (ACCOUNT, "worker")
    assert (machine.instance_id, machine.instance_proved) == ("i-0123456789abcdef0", True)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"iss": "https://evil.example"}, "token"),
        ({"iss": "https://01234567-89ab-cdef-0123-456789abcdef.tokens.sts.global.api.aws.evil.example"}, "token"),
        ({"iss": "https://x@01234567-89ab-cdef-0123-456789abcdef.tokens.sts.global.api.aws"}, "token"),
        ({"aud": enrol.audience("A" * 43, NONCE)}, "binding"),
        ({"aud": [AUDIENCE, "other"]}, "binding"),
        ({"exp": int(NOW.timestamp()) - 61}, "date"),
        ({"exp": None}, "token"),
        ({"sub": f"arn:aws:iam::{ACCOUNT}:user/david"}, "principal"),
        ({"sub": "arn:aws:iam::999999999999:role/worker"}, "principal"),
        ({"https://sts.amazonaws.com/": None}, "principal"),
        (nested(ec2_source_instance_arn="arn:aws:ec2:x:999999999999:instance/i-0123456789abcdef0"), "principal"),
        # Asked for with SubjectMode=OriginIdentity: the subject is what an identity provider wrote.
        (nested(principal_id=f"arn:aws:iam::{ACCOUNT}:role/a-job"), "principal"),
        (nested(principal_id=None), "principal"),
        (
            {
                "sub": f"arn:aws-cn:iam::{ACCOUNT}:role/worker",
                **nested(principal_id=f"arn:aws-cn:iam::{ACCOUNT}:role/worker", ec2_source_instance_arn=None),
            },
            "policy",
        ),
    ],
)
def test_a_forged_token_of_aws_gets_nothing(changes: dict[str, Any], code: str) -> None:
    """Another issuer, audience, time, principal, or claims that contradict each other."""
    with pytest.raises(EvidenceError) as caught:
        aws(token(**{**AWS_CLAIMS, **changes}))
    assert caught.value.code == code


def test_a_token_that_somebody_else_signed_gets_nothing() -> None:
    """The issuer's name is not enough: its keys must have signed."""
    with pytest.raises(EvidenceError) as caught:
        aws(token(STRANGER, **AWS_CLAIMS))
    assert caught.value.code == "token"


class Told:
    """Whoever vouches says ``body`` to everything."""

    def __init__(self, status: int, body: bytes) -> None:
        self.answer: tuple[int, dict[str, str], bytes] = (status, {}, body)

    def exchange(self, *_: object) -> tuple[int, dict[str, str], bytes]:
        return self.answer


def test_whatever_those_who_vouch_answer_is_a_machine_or_a_told_refusal(world: World) -> None:
    """An answer that is bent anywhere ends nothing, and one that is not theirs is no verdict."""
    keys, ended = world.keys(), world.keys(seconds=-5)
    fetched = json.dumps(KeySet([SIGNER]).as_dict(private=False)), json.dumps({"k1": CERTIFICATE})
    vouched: list[tuple[enrol.Evidence, int, bytes]] = [
        (AwsWebIdentity(token(**AWS_CLAIMS)), 200, fetched[0].encode()),
        (GcpIdentity(token()), 200, fetched[1].encode()),
    ]
    for one in (keys, ended):
        evidence = signed(keys=one, now=NOW)
        body = urlencode([("Action", "GetCallerIdentity"), ("Version", "2011-06-15")]).encode()
        headers = {name.lower(): value for name, value in evidence.headers.items()}
        said = world.sts(Asked("POST", "/", headers, body, headers["host"]))
        assert isinstance(said, Answer)
        vouched.append((evidence, said.status, said.body))
    assert [status for _, status, _ in vouched] == [200, 200, 200, 403]
    pages = (b"", b"null", b"[]", b"<html>", b"<!DOCTYPE html><title>Sign in</title>")
    for vouching, status, right in vouched:
        for body in bent(right):
            https: Any = Told(status, body)
            verifier = Verifier(Policy(accounts=(ACCOUNT,), projects=("proj-one",)), https=https, now=lambda: NOW)
            code = "none"
            try:
                verifier.verify(enrolment(evidence=(vouching,)))
            except EvidenceError as error:
                code = error.code
            assert code == "unavailable" or body not in pages, (vouching, body)
