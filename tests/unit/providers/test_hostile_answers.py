"""Whatever an upstream answers, a mint has two ways to fail and no other."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.errors import Denied, Transient
from agent.core.issued import Issued
from agent.core.model import (
    AwsAssumeRole,
    AwsCredential,
    AwsWebIdentity,
    Cloud,
    GcpAuthorizedUser,
    GcpExternalAccount,
    GcpImpersonation,
    GoogleToken,
    Grant,
    HttpBroker,
    IdToken,
    WebTokenInline,
    WebTokenUrl,
)
from agent.core.secret import Secret
from tests.fakes.net import Answer
from tests.unit.providers.support import AWS_POOL, BROKER, READER, ROBOT, World, run

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "access_token",
                    "expires_in",
                    "id_token",
                    "token",
                    "accessToken",
                    "expireTime",
                    "error",
                    "status",
                    "AccessKeyId",
                    "SecretAccessKey",
                    "Token",
                    "Expiration",
                    "Code",
                    "code",
                    "email",
                    "scopes",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode())

XML = st.lists(
    st.sampled_from(
        [
            "<AssumeRoleResponse>",
            "<AssumeRoleResult>",
            "<Credentials>",
            "<AccessKeyId>",
            "ASIAAAAAAAAAAAAAAAAA",
            "x",
            "<Expiration>",
            "2026-11-24T13:00:00Z",
            "never",
            "</Expiration>",
            "</AccessKeyId>",
            "</Credentials>",
            "</AssumeRoleResult>",
            "</AssumeRoleResponse>",
            "<ErrorResponse>",
            "<Error>",
            "<Code>",
            "</Code>",
            "</Error>",
            "</ErrorResponse>",
            "&b;",
            "<?xml?>",
            "<!DOCTYPE\ta\t[<!ENTITY\tb\t'c'>]>",
        ]
    ),
    max_size=14,
).map(lambda pieces: "".join(pieces).encode())

#: Deep nesting ends decoders with RecursionError, which is nobody's idea of a parse error.
DEEP = st.sampled_from(
    [
        b'{"access_token":' + b"[" * 20000,
        b'{"error":' * 10000,
        b"[" * 20000 + b"]" * 20000,
        b"<a>" * 10000 + b"</a>" * 10000,
        b"<ErrorResponse>" * 3000 + b"</ErrorResponse>" * 3000,
    ]
)

STATUSES = st.sampled_from([200, 201, 204, 301, 302, 400, 401, 403, 404, 418, 429, 500, 502, 503, 599])
HEADERS = st.dictionaries(
    st.sampled_from(["Date", "Content-Type", "Metadata-Flavor", "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"]),
    st.sampled_from(["Google", "Tue, 24 Nov 2026 06:00:00 GMT", "text/html", "7", "99999999999999999999"]),
)


def outcome(act: Any) -> Any:
    """What an act gives: its value, or one of the two errors that it may raise."""
    try:
        return run(act)
    except (Denied, Transient) as error:
        return error


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    status=STATUSES,
    body=JSON | XML | DEEP | st.binary(max_size=60),
    headers=HEADERS,
    second=JSON | DEEP | st.binary(max_size=20),
)
def test_only_two_ways_to_fail(status: int, body: bytes, headers: dict[str, str], second: bytes) -> None:
    """Any bytes with any status from any upstream end in a usable credential, Denied or Transient."""
    world = World(on_ec2=True, on_gce=True, allowed_origins=(BROKER,))
    headers = {name: value for name, value in headers.items() if name != "Date" or "GMT" in value}
    answers = [Answer(status, body, headers), Answer(200, second, headers)]
    world.net.routes = {"*": lambda asked: answers[asked.method == "PUT"]}
    user = GcpAuthorizedUser(
        id="u", client_id="c", client_secret=Secret("s"), refresh_token=Secret("r"), scopes=("openid",)
    )
    grants: list[tuple[Grant, Any]] = [
        (world.keys(), None),
        (AwsAssumeRole(id="r", role_arn=READER), world.user_session()),
        (AwsWebIdentity(id="w", role_arn=READER, token=WebTokenInline(token=Secret("a.b.c"))), None),
        (AwsWebIdentity(id="w", role_arn=READER, token=WebTokenUrl(url=f"{BROKER}/t", field="token")), None),
        (HttpBroker(id="b", url=f"{BROKER}/c"), None),
        (user, None),
        (GcpImpersonation(id="i", target_principal=ROBOT, base="u"), world.google_token()),
        (GcpExternalAccount(id="x", audience=AWS_POOL, base="instance"), world.role_session()),
    ]
    acts: list[Coroutine[Any, Any, Issued[Any] | IdToken | None]] = [
        *(world.mint.issue(grant, base, world.now) for grant, base in grants),
        *(world.mint.instance(cloud, world.now) for cloud in Cloud),
        world.mint.id_token(None, None, "aud", world.now),
    ]

    for act in acts:
        issued = outcome(act)
        if isinstance(issued, Denied | Transient):
            assert issued.code
            assert str(issued).isprintable()
            continue
        found = issued if isinstance(issued, IdToken) or issued is None else issued.credential
        if isinstance(found, AwsCredential):
            assert found.access_key_id
            assert found.secret_access_key
            assert found.session_token
        if isinstance(found, GoogleToken):
            assert found.access_token
            assert found.expires_at > found.issued_at


def test_a_complete_answer_passes_the_same_road() -> None:
    """The property above is not empty: a good answer through the same routes is a credential."""
    world = World()
    world.net.routes = {"*": lambda asked: Answer(200, b'{"access_token": "x", "expires_in": 5}')}
    user = GcpAuthorizedUser(id="u", client_id="c", client_secret=Secret("s"), refresh_token=Secret("r"))

    assert world.gcp(user).access_token == Secret("x")
    with pytest.raises(Transient):
        world.issue(world.keys())
