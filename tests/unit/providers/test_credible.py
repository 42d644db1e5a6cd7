"""What was minted is looked at before anybody is given it."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from typing import Any

import pytest

from agent.core.errors import Transient
from agent.core.model import (
    AwsAssumeRole,
    AwsWebIdentity,
    Cloud,
    GcpAuthorizedUser,
    GcpImpersonation,
    Grant,
    HttpBroker,
    WebTokenGce,
    WebTokenUrl,
)
from agent.core.secret import Secret
from agent.providers.credible import LONGEST_GOOGLE
from agent.wire.names import GCE_TOKEN_PATH
from tests.fakes.net import Answer, Asked, Fault, Handler
from tests.unit.providers.support import BROKER, READER, ROBOT, World, run, told

UNSAFE = ['To\nKe"n', "a\r\nb", "a\x00b", "naïve", "a\x7f", "x" * 16385]
USER = GcpAuthorizedUser(id="u", client_id="c", client_secret=Secret("s"), refresh_token=Secret("r"))
KEY_ID = "ASIAAAAAAAAAAAAAAAAA"


def answering(body: dict[str, Any] | str, **where: Any) -> World:
    """A world in which everybody answers with ``body``."""
    world = World(allowed_origins=(BROKER,), **where)
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    world.net.routes = {"*": lambda asked: Answer(200, data, {"Metadata-Flavor": "Google"})}
    return world


def document(world_now: datetime, **changed: str) -> dict[str, str]:
    ends = world_now + timedelta(hours=1)
    return {
        "Code": "Success",
        "AccessKeyId": KEY_ID,
        "SecretAccessKey": "secret",
        "Token": "token",
        "Expiration": ends.isoformat(),
        "LastUpdated": world_now.isoformat(),
        **changed,
    }


def session(token: str, expiration: str) -> str:
    escaped = token.replace("\r", "&#13;").replace("\n", "&#10;")
    return (
        '<GetSessionTokenResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetSessionTokenResult>'
        f"<Credentials><AccessKeyId>{KEY_ID}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>"
        f"<SessionToken>{escaped}</SessionToken><Expiration>{expiration}</Expiration></Credentials>"
        "</GetSessionTokenResult></GetSessionTokenResponse>"
    )


def later(world: World, hours: float = 1) -> str:
    return (world.now + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize("value", [value for value in UNSAFE if "\x00" not in value])
def test_sts_secrets_fit_a_header(value: str) -> None:
    """A session token of STS that no header can hold is a passing failure, and no text repeats it."""
    world = answering(session(value, later(World())))

    with pytest.raises(Transient) as caught:
        world.issue(world.keys())

    assert caught.value.code == "unsafe-secret"
    assert value not in told(caught.value)


@pytest.mark.parametrize("value", UNSAFE)
def test_google_tokens_fit_a_header(value: str) -> None:
    """An access token of Google that no header can hold is a passing failure, whoever generated it."""
    token = answering({"access_token": value, "expires_in": 3600, "token_type": "Bearer"})
    generated = answering({"accessToken": value, "expireTime": later(token)})

    impersonation = GcpImpersonation(id="i", target_principal=ROBOT, base="u")

    with pytest.raises(Transient) as minted:
        token.issue(USER)
    with pytest.raises(Transient) as impersonated:
        generated.issue(impersonation, generated.google_token())

    assert minted.value.code == impersonated.value.code == "unsafe-secret"


@pytest.mark.parametrize("part", ["SecretAccessKey", "Token"])
@pytest.mark.parametrize("value", UNSAFE)
def test_broker_secrets_fit_a_header(part: str, value: str) -> None:
    """A secret of a broker that no header can hold is a passing failure."""
    world = answering(document(World().now, **{part: value}))

    with pytest.raises(Transient) as caught:
        world.issue(HttpBroker(id="b", url=f"{BROKER}/c"))

    assert caught.value.code == "unsafe-secret"


def test_the_machines_token_fits_a_header() -> None:
    """A token of the machine's own metadata server that no header can hold is a passing failure."""
    body = {"email": ROBOT, "access_token": "a\r\nb", "expires_in": 3600, "token_type": "Bearer"}
    world = answering(body, on_gce=True)

    with pytest.raises(Transient) as caught:
        run(world.mint.instance(Cloud.GCP, world.now))

    assert caught.value.code == "unsafe-secret"


@pytest.mark.parametrize(
    "life", ["1000000000000", "43201", "-1", "0", "3600.5", '"9999999"', '"soon"', "true", "null", "NaN", "1e400"]
)
def test_a_google_life_is_believable(life: str) -> None:
    """A life that is no number of seconds from 1 to twelve hours is a passing failure."""
    world = answering(f'{{"access_token": "t", "expires_in": {life}, "token_type": "Bearer"}}')

    with pytest.raises(Transient):
        world.issue(USER)


@pytest.mark.parametrize("life", ["1", "3599", '"3599"', "43200"])
def test_a_google_life_up_to_twelve_hours(life: str) -> None:
    """A life up to twelve hours is taken as it is, written as a number or as text."""
    world = answering(f'{{"access_token": "t", "expires_in": {life}, "token_type": "Bearer"}}')

    assert world.issue(USER).lifetime == timedelta(seconds=int(life.strip('"'))) <= LONGEST_GOOGLE


@pytest.mark.parametrize("end", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2001-01-01T00:00:00Z"])
def test_an_impersonation_ends_within_reason(end: str) -> None:
    """A generated token that has ended, or ends beyond what Google gives, is a passing failure."""
    world = answering({"accessToken": "t", "expireTime": end})

    with pytest.raises(Transient):
        world.issue(GcpImpersonation(id="i", target_principal=ROBOT, base="u"), world.google_token())


def test_an_aws_end_is_capped() -> None:
    """An end years away counts as what STS was asked for; from a broker, which was asked nothing, as AWS's longest."""
    far = "9999-12-31T23:59:59Z"
    sts = answering(session("token", far))
    broker = answering(document(sts.now, Expiration=far))

    asked = sts.keys()
    assert sts.issue(asked).credential.expires_at == sts.now + timedelta(seconds=asked.duration_seconds)
    assert broker.issue(HttpBroker(id="b", url=f"{BROKER}/c")).credential.expires_at == sts.now + timedelta(hours=36)


def test_an_end_is_capped_by_what_was_asked_for_at_last() -> None:
    """A role that gives an hour only, and names an end years away: an hour is what its session counts for."""
    world = World()
    world.sts.role(READER, max_seconds=3600)

    def lying(handler: Handler) -> Handler:
        def answer(asked: Asked) -> Answer | Fault:
            given = handler(asked)
            if not isinstance(given, Answer):
                return given
            far = re.sub(rb"(<Expiration>)[^<]*", rb"\g<1>2036-12-31T23:59:59Z", given.body)
            return Answer(given.status, far, given.headers)

        return answer

    world.net.routes = {origin: lying(handler) for origin, handler in world.net.routes.items()}
    grant, base = AwsAssumeRole(id="reader", role_arn=READER, duration_seconds=43200), world.user_session()
    for _ in range(2):
        credential = world.aws(grant, base)
        assert credential.expires_at == world.now + timedelta(hours=1)


@pytest.mark.parametrize("grant", ["sts", "broker", "google", "token", "identity"])
@pytest.mark.parametrize(("asked", "kept"), [("40", 40.0), ("999999", 300.0), ("soon", 0.0)])
def test_a_pause_is_heard_from_every_upstream(grant: str, asked: str, kept: float) -> None:
    """`Retry-After` of STS, a broker, Google and whoever gives identity tokens reaches the schedule, within its bounds."""
    world = World(on_gce=True, allowed_origins=(BROKER,))
    world.net.routes = {"*": lambda _: Answer(503, b"{}", {"Retry-After": asked})}
    grants: dict[str, Grant] = {
        "sts": world.keys(),
        "broker": HttpBroker(id="b", url=f"{BROKER}/c"),
        "google": USER,
        "token": AwsWebIdentity(id="w", role_arn=READER, token=WebTokenUrl(url=f"{BROKER}/t")),
        "identity": AwsWebIdentity(id="w", role_arn=READER, token=WebTokenGce(audience="a")),
    }

    with pytest.raises(Transient) as caught:
        world.issue(grants[grant])

    assert caught.value.pause_seconds == kept


@pytest.mark.parametrize("cloud", list(Cloud))
@pytest.mark.parametrize("at", ["the first question", "the last"])
def test_a_pause_is_heard_from_the_machines_own_service(cloud: Cloud, at: str) -> None:
    """`Retry-After` of the metadata service reaches the schedule of the machine's own identity, wherever it is said."""
    world = World(on_ec2=True, on_gce=True, machine=cloud)
    wait = Answer(429, b"slow down", {"Retry-After": "40", "Metadata-Flavor": "Google"})
    last = {"/latest/meta-data/iam/security-credentials/machine-role", GCE_TOKEN_PATH}

    def throttled(handler: Handler) -> Handler:
        return lambda asked: wait if at == "the first question" or asked.path in last else handler(asked)

    for place in ("http://ec2.metadata", "http://gce.metadata"):
        world.net.routes[place] = throttled(world.net.routes[place])

    with pytest.raises(Transient) as caught:
        run(world.mint.instance(cloud, world.now))

    assert caught.value.pause_seconds == 40.0


def test_an_aws_end_in_the_past_is_refused() -> None:
    """A session that has ended already is a passing failure."""
    world = answering(session("token", "2001-01-01T00:00:00Z"))

    with pytest.raises(Transient) as caught:
        world.issue(world.keys())

    assert caught.value.code == "expired"
