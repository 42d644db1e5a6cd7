"""What a route needs, what is finished as it comes, and what two bundles share."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from agent.core.model import AwsCredential, Cloud, Env, GcpImpersonation, GoogleToken
from agent.core.secret import Secret
from agent.core.verdict import Key
from agent.identity.graph import dead_on_arrival, reachable, ready, role_name_of, same_chain
from tests.fakes.clock import START
from tests.unit.identity.worlds import HOUR, bundle, google, role, session


@pytest.mark.parametrize(
    ("arn", "name"),
    [
        ("arn:aws:iam::123456789012:role/Data", "Data"),
        ("arn:aws:iam::123456789012:role/jobs/nightly/Data", "Data"),
        ("arn:aws:sts::123456789012:assumed-role/Data/session", "Data"),
        ("arn:aws:sts::123456789012:assumed-role/Data/with:colon/and-slash", "Data"),
        ("arn:aws-cn:sts::123456789012:assumed-role/Data/session", "Data"),
        ("arn:aws:iam::123456789012:user/alice", None),
        ("arn:aws:sts::123456789012:federated-user/alice", None),
        ("arn:aws:iam::123456789012:root", None),
        ("arn:aws:iam::123456789012:role/", None),
        ("role/Data", None),
        ("", None),
        (None, None),
    ],
)
def test_a_roles_name_is_read_from_the_arns_of_roles_alone(arn: str | None, name: str | None) -> None:
    """A role's ARN and a role session's name the role, without its path; nothing else does."""
    assert role_name_of(arn) == name


def test_a_finished_session_is_served_as_it_was_sent() -> None:
    """Every member of a finished AWS session arrives in the credential; its life begins with the bundle."""
    grant = msgspec.structs.replace(
        session(hours=3), account_id="123456789012", role_arn="arn:aws:iam::1:role/r", role_name="r"
    )

    assert ready(grant, bundle(grant)) == AwsCredential(
        access_key_id=grant.access_key_id,
        secret_access_key=grant.secret_access_key,
        session_token=grant.session_token,
        issued_at=START,
        expires_at=START + 3 * HOUR,
        account_id="123456789012",
        role_arn="arn:aws:iam::1:role/r",
        role_name="r",
    )


def test_a_finished_google_token_is_served_as_it_was_sent() -> None:
    """Every member of a finished Google token arrives in the credential."""
    grant = msgspec.structs.replace(google(hours=1), scopes=("https://www.googleapis.com/auth/devstorage.read_only",))

    assert ready(grant, bundle(grant)) == GoogleToken(
        access_token=grant.access_token,
        issued_at=START,
        expires_at=START + HOUR,
        email="u@x.example",
        scopes=grant.scopes,
    )


def test_what_must_be_minted_is_not_ready() -> None:
    """A grant that somebody has to be asked for is no credential."""
    assert ready(role(), bundle(role())) is None


def test_a_route_needs_its_bases_and_nothing_else() -> None:
    """Each grant on the way of a route is named once, the machine's own identity is no grant, strangers are left out."""
    middle, top, beside = role("middle", base="user"), role("top", base="middle"), role("beside")
    robot = GcpImpersonation(id="robot", target_principal="r@p.iam.gserviceaccount.com", base="g")
    one = bundle(
        session(),
        middle,
        top,
        beside,
        google(),
        robot,
        Env(id="v", variables={"A": Secret("b")}),
        routes={Cloud.AWS: "top", Cloud.GCP: "robot"},
    )

    assert sorted(reachable(one), key=lambda found: found[0].grant_id) == [
        (Key(Cloud.GCP, "g"), google()),
        (Key(Cloud.AWS, "middle"), middle),
        (Key(Cloud.GCP, "robot"), robot),
        (Key(Cloud.AWS, "top"), top),
        (Key(Cloud.AWS, "user"), session()),
    ]
    assert [key.grant_id for key, _ in reachable(bundle(beside))] == ["beside"]


def test_grants_that_stand_on_each_other_are_walked_once() -> None:
    """A circle, which the codec refuses, ends the walk rather than the daemon."""
    circle = bundle(role("a", base="b"), role("b", base="a"), routes={Cloud.AWS: "a"})

    assert [key.grant_id for key, _ in reachable(circle)] == ["a", "b"]
    assert same_chain(circle, circle, "a")


def test_a_base_that_is_missing_is_left_out() -> None:
    """What a route leads to beyond the bundle's grants does not keep the rest from being found."""
    one = bundle(google(), role("r", base="gone"), routes={Cloud.AWS: "r", Cloud.GCP: "g"})

    assert {key.grant_id for key, _ in reachable(one)} == {"g", "r"}


def test_a_session_that_ends_now_is_dead_on_arrival() -> None:
    """The instant of the end belongs to the dead; a second before it does not, and a base counts as the route does."""
    one = bundle(session("user", hours=1), role("top", base="user"), routes={Cloud.AWS: "top"})

    assert dead_on_arrival(one, START + HOUR) == "user"
    assert dead_on_arrival(one, START + HOUR - timedelta(seconds=1)) is None
    unused = bundle(session("user", hours=1), google("g", hours=9), routes={Cloud.GCP: "g"})
    assert dead_on_arrival(unused, START + 2 * HOUR) is None


def test_a_chain_is_the_same_when_all_it_stands_on_is() -> None:
    """A changed base makes another chain of an unchanged grant; a changed neighbour does not."""
    top = role("top", base="user")
    old = bundle(session(), top, google())

    assert same_chain(old, bundle(session(), top, google(hours=2), seq=2), "top")
    assert not same_chain(old, bundle(session(key="ASIAOTHER00000000000"), top, seq=2), "top")
    assert not same_chain(old, bundle(session(), role("top", base="instance"), seq=2), "top")
    assert not same_chain(old, bundle(google()), "top")
