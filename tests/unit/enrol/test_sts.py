"""A signed request from a stranger: what is not exactly the one that binds key and nonce is never sent."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import enrol
from agent.core.secret import Secret
from agent.enrol import KEY_HEADER, NONCE_HEADER, STS_BODY, AwsSts, EvidenceError
from agent.providers.regions import data_loader
from agent.upstream.sigv4 import SigningKeys
from tests.unit.enrol.support import HOST, NONCE, NOW, THUMBPRINT, signed


def checked(evidence: AwsSts, **changes: Any) -> enrol.StsRequest:
    return enrol.checked_request(evidence, **{"thumbprint": THUMBPRINT, "nonce": NONCE, "now": NOW, **changes})


def refusal(evidence: AwsSts, **changes: Any) -> str:
    with pytest.raises(EvidenceError) as caught:
        checked(evidence, **changes)
    return caught.value.code


def altered(headers: dict[str, str | None], **members: Any) -> AwsSts:
    """Good evidence with headers replaced (``None``: left out) and members replaced."""
    good = signed()
    low = {name.lower(): name for name in good.headers}
    kept = {name: value for name, value in good.headers.items() if name.lower() not in headers}
    added = {low.get(name, name): value for name, value in headers.items() if value is not None}
    return msgspec.structs.replace(good, headers={**kept, **added}, **members)


def test_what_a_machine_signs_may_be_sent() -> None:
    """Evidence made by the signer of the agent passes, and what is sent is made of checked parts only."""
    request = checked(signed())
    assert (request.host, request.partition) == (HOST, "aws")
    assert request.headers[KEY_HEADER] == THUMBPRINT
    assert request.headers[NONCE_HEADER] == NONCE
    assert "FwoGZXIvYXdzEJr" not in repr(request)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"user@{HOST}",
        f"user:pw@{HOST}",
        f"{HOST}@evil.example",
        f"{HOST}:443",
        f"{HOST}:8443",
        f"{HOST}.",
        f"{HOST}.evil.example",
        f"evil.example/{HOST}",
        f"{HOST}/..",
        f"{HOST}?Action=AssumeRole",
        f"{HOST}#",
        f"{HOST}\\@evil.example",
        f"{HOST}%2eevil.example",
        f"evil.example#.{HOST}",
        "STS.eu-central-1.amazonaws.com",
        "sts.eu-central-1.amazonaws.com\n",
        " sts.eu-central-1.amazonaws.com",
        "sts.eu-central-1.amazonaws.com.cn",
        "sts.cn-north-1.amazonaws.com",
        "sts.eu-central-1.amazonaws.eu",
        "sts.s3.amazonaws.com",
        "sts.s3.eu-central-1.amazonaws.com",
        "sts.eu-central-1.elb.amazonaws.com",
        "sts.execute-api.eu-central-1.amazonaws.com",
        "sts.eu-central-1.evil.amazonaws.com",
        "iam.amazonaws.com",
        "s3.eu-central-1.amazonaws.com",
        "sts.amazonaws.com.evil.example",
        "sts.eu-central-1.amazonaws.com。evil.example",
        "ѕts.eu-central-1.amazonaws.com",
        "sts.eu-central-1.аmazonaws.com",
        "xn--ts-hlc.eu-central-1.amazonaws.com",
        "127.0.0.1",
        "[::1]",
        "localhost",
        "",
    ],
)
def test_no_other_host_is_asked(host: str) -> None:
    """Only a genuine STS host, in its one spelling: no user name, port, path, query, fragment, IDN or foreign suffix."""
    assert refusal(altered({"host": host}, url=f"https://{host}/")) == "host"
    assert refusal(altered({}, url=f"https://{host}/")) == "host"


@pytest.mark.parametrize(
    "url", [f"http://{HOST}/", f"https://{HOST}", f"https://{HOST}//", f"HTTPS://{HOST}/", f"//{HOST}/"]
)
def test_only_https_and_the_root(url: str) -> None:
    """The scheme and the path are part of what is sent, so they are fixed."""
    assert refusal(altered({}, url=url)) == "host"


@pytest.mark.parametrize(
    "body",
    [
        "Action=AssumeRole&Version=2011-06-15&RoleArn=x",
        "Action=GetCallerIdentity&Version=2011-06-15&Action=AssumeRole",
        "Action=GetSessionToken&Version=2011-06-15",
        "Version=2011-06-15&Action=GetCallerIdentity",
        STS_BODY + "&",
        STS_BODY + "\n",
        STS_BODY.lower(),
        "",
    ],
)
def test_no_other_action_is_sent(body: str) -> None:
    """A signature over another body is another question, whose answer may say whatever its asker likes."""
    assert refusal(signed(body=body)) == "action"


@pytest.mark.parametrize("method", ["GET", "PUT", "post", "POST ", ""])
def test_only_a_post(method: str) -> None:
    """A GET would carry its question, and maybe a pre-signed signature, in the query."""
    assert refusal(altered({}, method=method)) == "action"


def test_the_presigned_form_is_refused() -> None:
    """A signature in the query is one that a link can carry; nothing is then said of the headers."""
    url = f"https://{HOST}/?{STS_BODY}&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={'0' * 64}"
    assert refusal(altered({"authorization": None}, url=url, method="GET", body="")) == "action"
    assert refusal(altered({"authorization": None}, url=url)) == "host"


@pytest.mark.parametrize(
    "name", [KEY_HEADER, NONCE_HEADER, "host", "content-type", "x-amz-date", "x-amz-security-token"]
)
def test_a_header_that_is_not_signed_says_nothing(name: str) -> None:
    """Left out of SignedHeaders, a header can be anybody's; left out altogether it is not there."""
    good = signed()
    listed = re.sub(rf"(?<==|;){name};?", "", good.headers["Authorization"], count=1)
    assert listed != good.headers["Authorization"]
    assert refusal(altered({"authorization": listed})) == "unsigned"
    assert refusal(altered({name: None})) == "headers"


@pytest.mark.parametrize(
    "extra",
    ["accept", "accept-encoding", "x-forwarded-for", "x-amz-target", "transfer-encoding", "connection", "expect"],
)
def test_no_header_more_than_is_needed(extra: str) -> None:
    """A header more could ask STS for another form of answer, or tear the request in two."""
    assert refusal(altered({extra: "application/json"})) == "headers"


@pytest.mark.parametrize("twice", [KEY_HEADER.upper(), NONCE_HEADER.title(), "HOST"])
def test_a_header_that_is_there_twice_is_refused(twice: str) -> None:
    """Two spellings of one name: one is signed, the other read."""
    good = signed()
    assert refusal(msgspec.structs.replace(good, headers={**good.headers, twice: "x"})) == "headers"


def test_a_header_is_one_line() -> None:
    """No value can begin a header of its own."""
    assert refusal(altered({"x-amz-security-token": "a\r\nX-Other: b"})) == "headers"
    assert refusal(altered({"x-amz-security-token": ""})) == "headers"


def test_evidence_for_another_key_or_question_is_refused() -> None:
    """What a job replays of another machine, or of yesterday, vouches for neither its key nor this question."""
    assert refusal(signed(thumbprint="A" * 43)) == "binding"
    assert refusal(signed(nonce="A" * 22)) == "binding"
    assert refusal(altered({KEY_HEADER: "A" * 43}), thumbprint="B" * 43) == "binding"
    assert refusal(signed(), thumbprint="A" * 43) == "binding"
    assert refusal(signed(), nonce="A" * 22) == "binding"


@pytest.mark.parametrize("minutes", [-16, -6, 6, 16, 60 * 24 * 365])
def test_a_stale_date_is_refused(minutes: int) -> None:
    """STS itself takes a quarter of an hour, and nobody keeps evidence for later here."""
    assert refusal(signed(now=NOW + timedelta(minutes=minutes))) == "date"
    assert checked(signed(now=NOW + timedelta(minutes=4))).host == HOST


@pytest.mark.parametrize(
    "date", ["20261128T173000", "20261128T993000Z", "20261128", "٢٠٢٦١١٢٨T173000Z", "20261127T173000Z"]
)
def test_a_date_that_is_none_is_refused(date: str) -> None:
    """Digits, and those of the credential's scope."""
    assert refusal(altered({"x-amz-date": date})) in {"date", "headers"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/sts/", "/s3/"),
        ("/eu-central-1/", "/us-east-1/"),
        ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
        ("aws4_request", "aws4_requests"),
        ("SignedHeaders=", "SignedHeaders=accept;"),
        ("SignedHeaders=host;", "SignedHeaders=host;host;"),
        (", Signature=", ", SignedHeaders=host, Signature="),
    ],
)
def test_another_signature_is_refused(old: str, new: str) -> None:
    """The authorization is read in one form only: service, region and algorithm are those of the host."""
    good = signed().headers["Authorization"]
    spelled = good.replace(old, new) if old in good else good.replace("SignedHeaders=", "SignedHeaders=accept;")
    assert refusal(altered({"authorization": spelled})) in {"headers", "unsigned"}


def test_long_term_keys_are_no_machine() -> None:
    """A machine's role comes with a session token; the keys of a user do not."""
    keys = SigningKeys("AKIAIOSFODNN7EXAMPLE", Secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"))
    assert refusal(signed(keys=keys)) == "headers"


@settings(deadline=None)
@given(
    st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=8), st.text(max_size=40), st.text(max_size=40)
)
def test_nothing_random_is_sent(headers: dict[str, str], url: str, body: str) -> None:
    """Any other values are refused, and in one way."""
    for evidence in (AwsSts(url, "POST", headers, body), AwsSts(f"https://{HOST}/", "POST", headers, STS_BODY)):
        with pytest.raises(EvidenceError):
            checked(evidence)


def test_every_region_of_every_partition_is_an_sts_host() -> None:
    """The table of hosts is the SDK's: each region, by its usual and its dual-stack name, belongs to its partition."""
    told = 0
    for partition in data_loader().load_data("partitions")["partitions"]:
        for region in partition["regions"]:
            if region.endswith("-global"):
                continue
            for suffix in (partition["outputs"]["dnsSuffix"], partition["outputs"]["dualStackDnsSuffix"]):
                host = f"sts.{region}.{suffix}"
                assert checked(signed(host=host, region=region)).partition == partition["id"]
                told += 1
    assert told > 60
    assert enrol.is_sts_host("sts.amazonaws.com")
    assert enrol.is_sts_host("sts-fips.us-east-1.amazonaws.com")


ACCOUNT = "123456789012"


def test_an_instance_profile_is_a_machine() -> None:
    """Account and role are proved; the instance is what the session's name says, and is told as no more than that."""
    machine = enrol.aws_machine(
        f"arn:aws:sts::{ACCOUNT}:assumed-role/worker/i-0123456789abcdef0", ACCOUNT, partition="aws"
    )
    assert (machine.account, machine.principal, machine.instance_id) == (ACCOUNT, "worker", "i-0123456789abcdef0")
    assert machine.instance_proved is False


def test_a_session_named_like_an_instance_proves_the_role_only() -> None:
    """Whoever may assume a role chooses the session's name, so the name never counts as proof of an instance."""
    named = enrol.aws_machine(
        f"arn:aws:sts::{ACCOUNT}:assumed-role/chained/i-0123456789abcdef0", ACCOUNT, partition="aws"
    )
    assert named.instance_proved is False
    assert (
        enrol.aws_machine(f"arn:aws:sts::{ACCOUNT}:assumed-role/chained/david", ACCOUNT, partition="aws").instance_id
        is None
    )


@pytest.mark.parametrize(
    ("arn", "account", "partition"),
    [
        (f"arn:aws:iam::{ACCOUNT}:user/david", ACCOUNT, "aws"),
        (f"arn:aws:iam::{ACCOUNT}:root", ACCOUNT, "aws"),
        (f"arn:aws:iam::{ACCOUNT}:role/worker", ACCOUNT, "aws"),
        (f"arn:aws:sts::{ACCOUNT}:federated-user/david", ACCOUNT, "aws"),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/a/b/c", ACCOUNT, "aws"),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role//b2", ACCOUNT, "aws"),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/worker", ACCOUNT, "aws"),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/worker/b2\n", ACCOUNT, "aws"),
        (f"arn:aws:sts:eu-central-1:{ACCOUNT}:assumed-role/worker/b2", ACCOUNT, "aws"),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/worker/b2", "999999999999", "aws"),
        (f"arn:aws-cn:sts::{ACCOUNT}:assumed-role/worker/b2", ACCOUNT, "aws"),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/worker/b2", ACCOUNT, "aws-cn"),
        ("arn:aws:sts::12345678901٢:assumed-role/worker/b2", "12345678901٢", "aws"),
        ("", "", "aws"),
        (None, None, "aws"),
        (["arn"], 1, "aws"),
    ],
)
def test_who_is_no_machine(arn: Any, account: Any, partition: str) -> None:
    """A user, a root, a federated user, an ARN that contradicts its account or its host, or no ARN."""
    with pytest.raises(EvidenceError) as caught:
        enrol.aws_machine(arn, account, partition=partition)
    assert caught.value.code == "principal"
