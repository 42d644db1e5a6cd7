"""The conditions inside who may have an identity; each was found by a change that no other test noticed."""

from __future__ import annotations

import re
from datetime import timedelta

import msgspec
import pytest

from agent import enrol
from agent.bundle.strict import base64url_encode
from agent.core.model import Cloud
from agent.enrol import AwsSts, EvidenceError, Machine, Policy
from agent.enrol.binding import check_nonce
from agent.enrol.sts import is_vpc_endpoint
from tests.unit.enrol.support import HOST, NONCE, NOW, THUMBPRINT, signed
from tests.unit.enrol.test_policy import AWS, CLAIMS, GCE

ACCOUNT = AWS.account
ROLE = f"arn:aws:iam::{ACCOUNT}:role"


def refusal(evidence: AwsSts) -> str:
    with pytest.raises(EvidenceError) as caught:
        enrol.checked_request(evidence, thumbprint=THUMBPRINT, nonce=NONCE, now=NOW)
    return caught.value.code


def refused(policy: Policy, machine: Machine) -> EvidenceError:
    with pytest.raises(EvidenceError) as caught:
        policy.check(machine)
    assert caught.value.code == "policy"
    return caught.value


@pytest.mark.parametrize(
    "role",
    [
        f"{ROLE}/other",
        f"{ROLE}/worker/other",
        f"{ROLE}-worker",
        f"arn:aws:sts::{ACCOUNT}:role/worker",
        f"arn:aws:iam:{ACCOUNT}",
        "arn:worker",
        f"{ROLE}/",
    ],
)
def test_another_role_s_name_admits_nobody(role: str) -> None:
    """Of an ARN service, account, kind and name must all be the machine's role's; one that is cut off is nobody's."""
    refused(Policy(accounts=(ACCOUNT,), roles=(role,)), AWS)


@pytest.mark.parametrize("path", ["", "team/", "a:b/"])
def test_a_role_is_meant_whatever_its_path(path: str) -> None:
    """A path may have colons (IAM: any printable ASCII), and says nothing of whose role it is."""
    Policy(accounts=(ACCOUNT,), roles=(f"{ROLE}/{path}worker",)).check(AWS)


def test_a_role_s_arn_is_no_service_account() -> None:
    """Of Google's machines only the e-mail counts, to the letter: nothing is read into it."""
    one = f"arn:aws:iam::{GCE.account}:role/{GCE.principal}"
    refused(Policy(projects=(GCE.account,), service_accounts=(one,)), GCE)


def test_the_default_names_only_what_is_sent() -> None:
    """An identity without a project admits no project, and one without an account no account."""
    assert Policy.of_identity(account="1") == Policy(accounts=("1",))
    assert Policy.of_identity(project="p") == Policy(projects=("p",))
    assert Policy.of_identity() == Policy()


@pytest.mark.parametrize("partition", ["aws-cn", "aws-us-gov", ""])
def test_a_machine_of_another_partition_is_nobody_s(partition: str) -> None:
    """Account numbers are drawn in each partition by itself: the same number there is another account."""
    there = msgspec.structs.replace(AWS, partition=partition)
    refused(Policy(accounts=(ACCOUNT,)), there)
    refused(Policy(accounts=(ACCOUNT,), partitions=()), AWS)
    Policy(accounts=(ACCOUNT,), partitions=(partition,)).check(there)
    assert Policy.of_identity(account="1", partition="aws-cn").partitions == ("aws-cn",)


def test_what_would_admit_it_is_told_where_there_is_something_to_name() -> None:
    """A machine of which no instance is known cannot be named by one."""
    assert refused(Policy(accounts=("1",)), AWS).hint == f'to give it the identity all the same: accounts=["{ACCOUNT}"]'
    nameless = msgspec.structs.replace(AWS, instance_id=None)
    assert refused(Policy(accounts=(ACCOUNT,), instance_ids=("i-1",)), nameless).hint is None


@pytest.mark.parametrize("email", ["nobody", "", "a@b\n", "a b@c", 'x"@proj-one.iam.gserviceaccount.com'])
def test_a_service_account_is_an_email_address(email: str) -> None:
    """It is shown to a person and compared with what a person wrote: nothing else may stand there."""
    with pytest.raises(EvidenceError) as caught:
        enrol.google_machine({**CLAIMS, "email": email})
    assert caught.value.code == "token"


@pytest.mark.parametrize(("size", "good"), [(15, False), (16, True), (64, True), (65, False), (129, False)])
def test_a_nonce_is_as_long_as_is_said(size: int, good: bool) -> None:
    """A shorter one could be met again, a longer one would be somebody's message."""
    nonce = base64url_encode(bytes(size))
    if good:
        assert check_nonce(nonce) == nonce
        return
    with pytest.raises(EvidenceError) as caught:
        check_nonce(nonce)
    assert caught.value.code == "nonce"


def test_a_request_says_one_host_once() -> None:
    """Two genuine hosts, one where it is sent and one in what is signed: STS's answer would be to either."""
    other = "sts.us-east-1.amazonaws.com"
    good = signed()
    headers = {name: other if name.lower() == "host" else value for name, value in good.headers.items()}
    assert refusal(msgspec.structs.replace(good, headers=headers)) == "host"
    assert refusal(msgspec.structs.replace(good, url=f"https://{other}/")) == "host"


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
def test_the_body_is_a_form_and_is_said_to_be_one(kind: str) -> None:
    """A service that speaks several protocols reads the body by its type: it must be the one that was checked."""
    good = signed()
    headers = {name: kind if name.lower() == "content-type" else value for name, value in good.headers.items()}
    assert refusal(msgspec.structs.replace(good, headers=headers)) == "headers"


def test_the_signature_is_of_the_day_that_the_date_says() -> None:
    """The key that signs is made for one day: another day in the scope is a contradiction that nobody honest makes."""
    good = signed()
    scope = re.sub(r"/20261128/", "/20261127/", good.headers["Authorization"])
    assert scope != good.headers["Authorization"]
    assert refusal(msgspec.structs.replace(good, headers={**good.headers, "Authorization": scope})) == "date"


@pytest.mark.parametrize("way", [1, -1])
def test_five_minutes_are_fresh_and_a_second_more_is_not(way: int) -> None:
    """The bound is what is told: early or late, five minutes pass."""
    at = NOW + way * timedelta(minutes=5)
    assert enrol.checked_request(signed(now=at), thumbprint=THUMBPRINT, nonce=NONCE, now=NOW).host == HOST
    assert refusal(signed(now=at + way * timedelta(seconds=1))) == "date"


@pytest.mark.parametrize(
    "host",
    [
        "sts.eu-central-1.evil.example",
        "sts.eu-central-1.amazonaws.com.cn",
        "s3.eu-central-1.amazonaws.com",
        "vpce-0a1b-xyz.sts.us-east-1.vpce.amazonaws.com",
    ],
)
def test_who_is_no_sts_host(host: str) -> None:
    """The question is asked by itself too, where a way to STS is configured."""
    assert not enrol.is_sts_host(host)
    assert enrol.is_sts_host(HOST)


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        ("vpce-0a1b2c3d-ab12cd34.sts.us-east-1.vpce.amazonaws.com", True),
        ("vpce-0a1b2c3d-ab12cd34-us-east-1a.sts.us-east-1.vpce.amazonaws.com", True),
        ("vpce-0a1b2c3d-ab12cd34.sts.cn-north-1.vpce.amazonaws.com.cn", True),
        ("vpce-0a1b2c3d-ab12cd34.sts.cn-north-1.vpce.amazonaws.com", False),
        ("vpce-0a1b2c3d-ab12cd34.sts.us-east-1.vpce.amazonaws.com.cn", False),
        ("vpce-0a1b2c3d-ab12cd34.sts.us-east-1.vpce.evil.example", False),
        ("vpce-0a1b2c3d-ab12cd34.sts.evil.vpce.amazonaws.com", False),
        ("vpce-0a1b2c3d-ab12cd34.s3.us-east-1.vpce.amazonaws.com", False),
        ("vpce-0a1b.evil.sts.us-east-1.vpce.amazonaws.com", False),
        ("sts.us-east-1.amazonaws.com", False),
        ("", False),
    ],
)
def test_a_vpc_endpoint_of_sts_is_known_by_its_whole_name(host: str, is_one: bool) -> None:
    """Region and suffix are of one partition: AWS alone gives out such a name, and it leads to its STS."""
    assert is_vpc_endpoint(host) is is_one


def test_an_ordinary_machine_s_words() -> None:
    """A person reads which machine it was: role or account, where, and the instance if one is known."""
    assert str(AWS) == f"worker on i-0123456789abcdef0 in account {ACCOUNT}"
    assert str(msgspec.structs.replace(AWS, instance_id=None)) == f"worker in account {ACCOUNT}"
    assert str(GCE) == f"{GCE.principal} on 4711 in project proj-one"
    assert GCE.cloud is Cloud.GCP
