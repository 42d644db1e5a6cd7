"""The machine's own identity: there, not there, or not to be had now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.core.errors import Transient
from agent.core.issued import Issued
from agent.core.model import AwsCredential, Cloud, GoogleToken
from agent.providers.instance import CONFIRMED
from tests.fakes.net import Answer, Fault
from tests.unit.providers.support import ACCOUNT, World, run


def instance(world: World, cloud: Cloud) -> Issued[Any] | None:
    issued: Issued[Any] | None = run(world.mint.instance(cloud, world.now))
    return issued


def test_ec2_instance_profile() -> None:
    """The instance profile's credential, its role's name and the machine's account."""
    world = World(on_ec2=True)

    issued = instance(world, Cloud.AWS)

    assert issued is not None
    assert isinstance(issued.credential, AwsCredential)
    assert issued.credential.role_name == "machine-role"
    assert issued.credential.account_id == ACCOUNT
    assert issued.credential.expires_at == world.now + timedelta(hours=6)
    assert issued.credential.issued_at == world.now
    assert issued.server_time == world.now


def test_ec2_account_is_asked_once() -> None:
    """The account does not change: the identity document is read once."""
    world = World(on_ec2=True)

    for _ in range(3):
        instance(world, Cloud.AWS)

    assert [a.path for a in world.ec2.asked].count("/latest/dynamic/instance-identity/document") == 1


def test_gce_service_account() -> None:
    """The default account's token with its address and scopes; its life counts from our now."""
    world = World(on_gce=True)

    issued = instance(world, Cloud.GCP)

    assert issued is not None
    assert isinstance(issued.credential, GoogleToken)
    assert issued.credential.email == "worker@project.iam.gserviceaccount.com"
    assert issued.credential.scopes == ("https://www.googleapis.com/auth/cloud-platform",)
    assert issued.credential.expires_at == world.now + timedelta(seconds=3599)


def test_no_metadata_client_means_no_identity() -> None:
    """A cloud whose metadata service is never asked has no identity here."""
    world = World()

    assert instance(world, Cloud.AWS) is None
    assert instance(world, Cloud.GCP) is None


def test_no_role_and_no_account_mean_no_identity() -> None:
    """A machine without an instance profile or service account has none, and says so quickly."""
    world = World(on_ec2=True, on_gce=True)
    world.ec2.role = None
    world.gce.email = None

    assert instance(world, Cloud.AWS) is None
    assert instance(world, Cloud.GCP) is None


def test_another_clouds_service_means_no_identity() -> None:
    """What answers at the address but is not that cloud's service means none; also when IMDS is switched off."""
    world = World(on_ec2=True, on_gce=True)
    world.ec2.enabled = False
    world.gce.flavor = False

    assert instance(world, Cloud.AWS) is None
    assert instance(world, Cloud.GCP) is None


STRANGERS = {
    "a captive portal": Answer(403, b"<html>sign in", {"Server": "nginx"}),
    "its page": Answer(200, b"<html>sign in", {"Server": "nginx"}),
    "its page, after an empty line": Answer(200, b"\r\n<html>sign in", {"Server": "nginx"}),
    "its redirection": Answer(302, b"", {"Location": "http://portal.example/"}),
    "a proxy's denial": Answer(403, b"", {"Server": "squid", "Via": "1.1 squid"}),
    "a wrong address": Answer(404, b"", {"Server": "Apache"}),
    "no such method": Answer(405, b"", {"Server": "Apache"}),
    "a gateway's trouble": Answer(502, b"", {"Server": "haproxy"}),
    "a password": Answer(407, b"", {"Proxy-Authenticate": "Basic"}),
}


@pytest.mark.parametrize("cloud", list(Cloud))
@pytest.mark.parametrize("known", ["it answered", "it was told", "by its firmware"])
@pytest.mark.parametrize("stranger", sorted(STRANGERS))
def test_a_strangers_answer_takes_no_identity_away(cloud: Cloud, known: str, stranger: str) -> None:
    """On a machine that is known to be of that cloud, what stands in the service's place is an outage of it."""
    world = World(on_ec2=True, on_gce=True, **({"machine": cloud} if known == "by its firmware" else {}))
    if known == "it answered":
        assert instance(world, cloud) is not None
        world.clock.move(22_000)  # the session token is over
    elif known == "it was told":
        world.mint.expect(cloud)
    for place in ("http://ec2.metadata", "http://gce.metadata"):
        world.net.routes[place] = lambda _: STRANGERS[stranger]

    with pytest.raises(Transient):
        instance(world, cloud)


@pytest.mark.parametrize("cloud", list(Cloud))
@pytest.mark.parametrize("stranger", sorted(STRANGERS))
def test_a_stranger_who_comes_within_a_session_takes_no_identity_away(cloud: Cloud, stranger: str) -> None:
    """While EC2's session token is good, nobody is asked for another: the first thing asked for is the identity itself."""
    world = World(on_ec2=True, on_gce=True)
    assert instance(world, cloud) is not None
    for place in ("http://ec2.metadata", "http://gce.metadata"):
        world.net.routes[place] = lambda _: STRANGERS[stranger]

    with pytest.raises(Transient):
        instance(world, cloud)


def test_a_role_that_is_taken_away_is_gone() -> None:
    """EC2's own word that there is no role counts, though there was one a moment ago."""
    world = World(on_ec2=True)
    assert instance(world, Cloud.AWS) is not None
    world.ec2.role = None

    assert instance(world, Cloud.AWS) is None


@pytest.mark.parametrize("stranger", ["a captive portal", "a proxy's denial", "a wrong address"])
def test_a_stranger_on_an_unknown_machine_means_no_identity(stranger: str) -> None:
    """Where nothing says that this is a cloud's machine, whoever refuses there is nobody's metadata service."""
    world = World(on_ec2=True, on_gce=True)
    for place in ("http://ec2.metadata", "http://gce.metadata"):
        world.net.routes[place] = lambda _: STRANGERS[stranger]

    assert instance(world, Cloud.AWS) is None
    assert instance(world, Cloud.GCP) is None


def test_a_service_that_is_switched_off_is_taken_at_its_word() -> None:
    """EC2 says that the instance's metadata are switched off: the operator wants no identity, though there was one."""
    world = World(on_ec2=True, machine=Cloud.AWS)
    assert instance(world, Cloud.AWS) is not None
    world.ec2.enabled = False

    assert instance(world, Cloud.AWS) is None


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.DOWN])
def test_silence_on_an_unknown_machine_means_no_identity(fault: Fault) -> None:
    """Where nothing says that this is a cloud's machine, silence is absence."""
    world = World(on_ec2=True, on_gce=True)
    world.ec2.fault = world.gce.fault = fault

    assert instance(world, Cloud.AWS) is None
    assert instance(world, Cloud.GCP) is None


@pytest.mark.parametrize("cloud", list(Cloud))
def test_silence_where_the_firmware_names_the_cloud_is_an_outage(cloud: Cloud) -> None:
    """On a machine of that cloud, silence is an outage."""
    world = World(on_ec2=True, on_gce=True, machine=cloud)
    world.ec2.fault = world.gce.fault = Fault.HANG

    with pytest.raises(Transient) as caught:
        instance(world, cloud)

    assert caught.value.code == "timeout"


@pytest.mark.parametrize("cloud", list(Cloud))
def test_silence_after_it_once_answered_is_an_outage(cloud: Cloud) -> None:
    """A service that gave an identity before is not believed to have gone."""
    world = World(on_ec2=True, on_gce=True)
    instance(world, cloud)
    world.ec2.fault = world.gce.fault = Fault.DOWN

    with pytest.raises(Transient):
        instance(world, cloud)


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("cloud", list(Cloud))
def test_trouble_is_not_absence(cloud: Cloud, status: int) -> None:
    """A service that answers with an error is there."""
    world = World(on_ec2=True, on_gce=True)
    world.ec2.status = world.gce.status = status

    with pytest.raises(Transient):
        instance(world, cloud)


@pytest.mark.parametrize(
    "changes",
    [
        {"Code": "AssumeRoleUnauthorizedAccess"},
        {"Token": ""},
        {"SecretAccessKey": None},
        {"Expiration": "never"},
        {"AccessKeyId": 7},
    ],
)
def test_ec2_documents_that_nobody_could_use(changes: dict[str, Any]) -> None:
    """A document that says no, is incomplete or has ended is trouble that may pass, not an identity."""
    world = World(on_ec2=True)
    document = {**world.ec2._document(), **changes}
    world.ec2.document = {name: value for name, value in document.items() if value is not None}

    with pytest.raises(Transient) as caught:
        instance(world, Cloud.AWS)

    if changes.get("Code"):
        assert caught.value.code == "AssumeRoleUnauthorizedAccess"


def test_what_ec2_hands_out_though_it_has_ended_is_passed_on() -> None:
    """EC2 that cannot renew hands out an ended credential, which SDKs go on to use: it is kept, with its true end."""
    world = World(on_ec2=True)
    world.ec2.document = {**world.ec2._document(), "Expiration": "2020-01-01T00:00:00Z"}

    found = instance(world, Cloud.AWS)

    assert found is not None
    assert found.credential.expires_at == datetime(2020, 1, 1, tzinfo=UTC)
    assert found.lifetime == CONFIRMED


@pytest.mark.parametrize("role", ["../x", "a b", "<html>", "x" * 65])
def test_ec2_role_list_that_is_no_name(role: str) -> None:
    """A role list that is not a role's name is not glued into a path."""
    world = World(on_ec2=True)
    world.ec2.role = role

    with pytest.raises(Transient):
        instance(world, Cloud.AWS)


@pytest.mark.parametrize("made", [("", 3599), ("token", 0), ("token", -5)])
def test_gce_tokens_that_nobody_could_use(made: tuple[str, int]) -> None:
    """A token that is empty or has no life is trouble that may pass."""
    world = World(on_gce=True)
    world.gce.access_token = lambda: made

    with pytest.raises(Transient):
        instance(world, Cloud.GCP)
