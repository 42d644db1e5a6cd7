"""No Date in any answer keeps a credential from a worker, or makes one live on: the Expiration is right all the time."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from agent.core.errors import Denied, Transient
from agent.core.model import Cloud, GcpAuthorizedUser, GcpImpersonation, Grant, HttpBroker
from agent.core.secret import Secret
from tests.fakes.net import Answer, Asked, Fault, Handler
from tests.unit.providers.support import BROKER, ROBOT, World, run
from tests.unit.upstream.test_dates import TABLE, lines

HOUR = timedelta(hours=1)


def dated(handler: Handler, headers: Callable[[], dict[str, str]]) -> Handler:
    """``handler`` with another ``Date``, and an ``Age`` perhaps."""

    def answer(asked: Asked) -> Answer | Fault:
        given = handler(asked)
        if not isinstance(given, Answer):
            return given
        kept = {name: value for name, value in given.headers.items() if name not in {"Date", "Age"}}
        return Answer(given.status, given.body, {**kept, **headers()})

    return answer


def worlds(headers: Callable[[World], dict[str, str]]) -> World:
    world = World(on_ec2=True, on_gce=True, allowed_origins=(BROKER,))
    world.net.routes = {origin: dated(handler, lambda: headers(world)) for origin, handler in world.net.routes.items()}
    return world


def check(world: World) -> None:
    """Everything that can be issued is, and lives as long as it does."""
    user = world.google.user()
    robot_base = world.google_token()
    world.google.account(ROBOT)
    grants: list[tuple[Any, Any]] = [
        (world.keys(), None),
        (HttpBroker(id="b", url=f"{BROKER}/x"), None),
        (
            GcpAuthorizedUser(
                id="u",
                client_id=user["client_id"],
                client_secret=Secret(user["client_secret"]),
                refresh_token=Secret(user["refresh_token"]),
            ),
            None,
        ),
        (world.service_account(), None),
        (GcpImpersonation(id="r", target_principal=ROBOT, base="u"), robot_base),
    ]
    for grant, base in grants:
        issued = world.issue(grant, base)
        left = issued.credential.expires_at - world.now
        if issued.lifetime is not None:
            left = min(issued.lifetime, left)
        longest = timedelta(seconds=getattr(grant, "duration_seconds", 3600))
        assert timedelta() < left <= longest, grant
    for cloud in Cloud:
        issued_ = run(world.mint.instance(cloud, world.now))
        assert issued_ is not None
        assert issued_.lifetime is None or timedelta() < issued_.lifetime <= 6 * HOUR, cloud


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["name"])
def test_no_date_of_the_table_matters(row: dict[str, Any]) -> None:
    """Each hostile date, on every answer of every upstream."""
    check(worlds(lambda _: dict(lines(row))))


@pytest.mark.parametrize("minutes", [-600, -90, -30, -3, 3, 30, 59, 61, 90, 600])
def test_a_date_that_is_off_matters_nowhere(minutes: int) -> None:
    """A Date that is minutes or hours off, beside a right Expiration and a right check of what is signed."""

    def wrong(world: World) -> dict[str, str]:
        said: datetime = world.now + timedelta(minutes=minutes)
        return {"Date": f"{said:%a, %d %b %Y %H:%M:%S} GMT"}

    check(worlds(wrong))


@pytest.mark.parametrize("minutes", [-90, -30, 30, 90])
def test_a_session_is_held_for_as_long_as_was_asked(minutes: int) -> None:
    """An end that lies as far ahead of our time as was asked for is believed, whatever the Date says of it."""
    world = worlds(lambda w: {"Date": f"{w.now + timedelta(minutes=minutes):%a, %d %b %Y %H:%M:%S} GMT"})
    issued = world.issue(world.keys(duration_seconds=3600))

    assert issued.lifetime is not None
    assert timedelta(minutes=59) <= issued.lifetime <= HOUR


EXPIRATIONS = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "1970-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-14:00",
    "10000-01-01T00:00:00Z",
    "2016-12-31T23:59:60Z",
    "2026-13-01T00:00:00Z",
    "2026-11-24T12:30:00",
    "2026-11-24",
    "-1",
    "-99999999999999999999999999999999",
    "99999999999999999999",
    "1e400",
    "nan",
    "inf",
    "",
    "soon",
]


@pytest.mark.parametrize("said", EXPIRATIONS)
def test_no_expiration_crashes_a_mint(said: str) -> None:
    """An end that is no time, or none that a datetime holds: issued with a credible one, or told as a failure that may pass."""
    world = World(on_ec2=True, allowed_origins=(BROKER,))

    def lying(handler: Handler) -> Handler:
        def answer(asked: Asked) -> Answer | Fault:
            given = handler(asked)
            if not isinstance(given, Answer):
                return given
            body = re.sub(rb"(<Expiration>)[^<]*", rb"\g<1>" + said.encode(), given.body)
            body = re.sub(rb'("(?:Expiration|expireTime|LastUpdated)": ?")[^"]*', rb"\g<1>" + said.encode(), body)
            return Answer(given.status, body, given.headers)

        return answer

    grants: list[tuple[Grant, Any]] = [(world.keys(), None), (HttpBroker(id="b", url=f"{BROKER}/x"), None)]
    world.google.account(ROBOT)
    grants.append((GcpImpersonation(id="r", target_principal=ROBOT, base="u"), world.google_token()))
    world.net.routes = {origin: lying(handler) for origin, handler in world.net.routes.items()}
    asked = [world.mint.issue(grant, base, world.now) for grant, base in grants]
    for one in (*asked, world.mint.instance(Cloud.AWS, world.now)):
        try:
            issued = run(one)
        except (Transient, Denied):
            continue
        assert issued is not None
        assert issued.credential.expires_at - world.now <= timedelta(hours=36)
        assert issued.credential.issued_at >= world.now - timedelta(hours=36)


@pytest.mark.parametrize(
    "instants", [{"exp": 253402300799}, {"exp": 253402300799, "iat": 0}, {"exp": 1 << 62}, {"exp": -1}, {"exp": 1e300}]
)
def test_no_identity_token_is_kept_for_ever(instants: dict[str, float]) -> None:
    """An identity token that says it ends in the year 9999 is kept for half a day at most."""
    world = World(on_gce=True)
    world.gce.identity = lambda audience: world.google._jwt({"aud": audience, "sub": "1", **instants})
    try:
        token = run(world.mint.id_token(None, None, "aud", world.now))
    except (Transient, Denied):
        return
    assert token.expires_at - world.now <= timedelta(hours=12)
