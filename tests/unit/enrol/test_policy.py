"""To whom is an identity given? Only whom a line of the policy names; and what Google's token says of an instance."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent import enrol
from agent.core.model import Cloud
from agent.enrol import EvidenceError, Machine, Policy

AWS = Machine(
    cloud=Cloud.AWS, account="123456789012", principal="worker", instance_id="i-0123456789abcdef0", source="aws-sts"
)
GCE = Machine(
    cloud=Cloud.GCP,
    account="proj-one",
    principal="w@proj-one.iam.gserviceaccount.com",
    instance_id="4711",
    instance_proved=True,
    source="gcp-identity",
)


@pytest.mark.parametrize(
    ("machine", "policy"),
    [
        (AWS, Policy.of_identity(account="123456789012")),
        (AWS, Policy(accounts=("123456789012",), roles=("worker",))),
        (AWS, Policy(accounts=("123456789012",), roles=("arn:aws:iam::123456789012:role/team/worker",))),
        (AWS, Policy(accounts=("1", "123456789012"), instance_ids=("i-0123456789abcdef0",))),
        (GCE, Policy.of_identity(project="proj-one")),
        (
            GCE,
            Policy(
                projects=("proj-one",), service_accounts=("w@proj-one.iam.gserviceaccount.com",), instance_ids=("4711",)
            ),
        ),
    ],
)
def test_who_is_named_is_admitted(machine: Machine, policy: Policy) -> None:
    """Every line that says something admits the machine."""
    policy.check(machine)


@pytest.mark.parametrize(
    ("machine", "policy"),
    [
        (AWS, Policy()),
        (AWS, Policy.of_identity()),
        (AWS, Policy.of_identity(project="123456789012")),
        (AWS, Policy.of_identity(account="999999999999")),
        (AWS, Policy(roles=("worker",))),
        (AWS, Policy(accounts=("123456789012",), roles=("work",))),
        (AWS, Policy(accounts=("123456789012",), roles=("Worker",))),
        (AWS, Policy(accounts=("123456789012",), roles=("arn:aws:iam::999999999999:role/worker",))),
        (AWS, Policy(accounts=("123456789012",), roles=("arn:aws:iam::123456789012:user/worker",))),
        (AWS, Policy(accounts=("123456789012",), instance_ids=("i-0",))),
        (GCE, Policy.of_identity(account="proj-one")),
        (GCE, Policy(projects=("proj-one",), service_accounts=("other@x",))),
        (GCE, Policy(projects=("proj-one",), instance_ids=("i-0123456789abcdef0",))),
    ],
)
def test_who_is_not_named_is_refused(machine: Machine, policy: Policy) -> None:
    """An empty policy is nobody; one line that does not fit is enough."""
    with pytest.raises(EvidenceError) as caught:
        policy.check(machine)
    assert caught.value.code == "policy"


@settings(deadline=None)
@given(st.text(min_size=1, max_size=14), st.text(min_size=1, max_size=14))
@example("123456789012", "123456789012")
def test_the_default_admits_its_own_account_only(account: str, other: str) -> None:
    """By default an identity goes to machines of its own account, and to no other whatever it is called."""
    machine = Machine(cloud=Cloud.AWS, account=other, principal="worker", source="aws-sts")
    policy = Policy.of_identity(account=account)
    if account == other:
        policy.check(machine)
    else:
        with pytest.raises(EvidenceError):
            policy.check(machine)


CLAIMS: dict[str, Any] = {
    "email": "w@proj-one.iam.gserviceaccount.com",
    "email_verified": True,
    "google": {"compute_engine": {"project_id": "proj-one", "instance_id": "4711", "zone": "europe-west1-b"}},
}


def test_an_instance_is_told_by_its_claims() -> None:
    """Project, number and service account, and that the service itself says which instance."""
    assert enrol.google_machine(CLAIMS) == GCE


@pytest.mark.parametrize(
    "changes",
    [
        {"google": None},
        {"google": {}},
        {"google": {"compute_engine": []}},
        {"google": {"compute_engine": {"instance_id": "4711"}}},
        {"google": {"compute_engine": {"project_id": "proj-one", "instance_id": 4711}}},
        {"google": {"compute_engine": {"project_id": "proj-one\n", "instance_id": "4711"}}},
        {"google": {"compute_engine": {"project_id": "proj-one", "instance_id": ""}}},
        {"email": None},
        {"email_verified": "true"},
        {"email_verified": False},
    ],
)
def test_a_token_that_names_no_instance_is_refused(changes: dict[str, Any]) -> None:
    """One that somebody was given by impersonating the service account has no instance in it."""
    with pytest.raises(EvidenceError) as caught:
        enrol.google_machine({**CLAIMS, **changes})
    assert caught.value.code == "token"
