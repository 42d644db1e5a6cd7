"""Until when a cloud will work."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.clock import utc
from agent.core.model import (
    AwsAssumeRole,
    AwsKeys,
    AwsSession,
    AwsWebIdentity,
    Cloud,
    Env,
    GcpAuthorizedUser,
    GcpExternalAccount,
    GcpImpersonation,
    GcpServiceAccount,
    GcpToken,
    Grant,
    HttpBroker,
    WebTokenFile,
    WebTokenGce,
    WebTokenInline,
    WebTokenUrl,
    cloud_of,
)
from agent.core.secret import Secret
from agent.core.timekeeping import EARLIEST, LATEST
from agent.identity.forecast import Forecast, forecasts, jwt_end, sentence

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
ROLE = "arn:aws:iam::123456789012:role/x"
S = Secret("s")


def session(hours: float, grant_id: str = "s", **more: Any) -> AwsSession:
    ends = int((NOW + hours * HOUR).timestamp())
    return AwsSession(
        id=grant_id, access_key_id="ASIA" + "A" * 16, secret_access_key=S, session_token=S, expires_at=ends, **more
    )


def role(base: str, hours: float = 1, grant_id: str = "r") -> AwsAssumeRole:
    return AwsAssumeRole(id=grant_id, role_arn=ROLE, base=base, duration_seconds=int(hours * 3600))


def token(hours: float, grant_id: str = "t") -> GcpToken:
    return GcpToken(id=grant_id, access_token=S, expires_at=int((NOW + hours * HOUR).timestamp()))


def jwt(**claims: Any) -> Secret:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return Secret(f"e30.{body}.c2ln")


def forecast(*grants: Grant, lease: float | None = None) -> Forecast:
    """The forecast of the cloud served from the last grant."""
    cloud = cloud_of(grants[-1]) or Cloud.AWS
    lease_until = None if lease is None else NOW + lease * HOUR
    (one,) = forecasts(grants, {cloud: grants[-1].id}, lease_until, NOW)
    assert one.cloud is cloud
    return one


KEYS = AwsKeys(id="k", access_key_id="AKIA" + "A" * 16, secret_access_key=S)
USER = GcpAuthorizedUser(id="u", client_id="c", client_secret=S, refresh_token=S)


@pytest.mark.parametrize(
    ("grants", "hours"),
    [
        ([session(12)], 12),
        ([token(1)], 1),
        ([KEYS], None),
        ([HttpBroker(id="b", url="https://broker.example/x")], None),
        ([USER], None),
        ([GcpServiceAccount(id="g", client_email="a@b", private_key_id="1", private_key=S)], None),
        ([role("instance")], None),
        ([KEYS, role("k", 12)], None),
        # A role session stands on: chaining, one hour each, the last one minted at most 20 minutes before the end.
        ([session(12, role_arn="arn:aws:sts::1:assumed-role/a/b"), role("s", 1)], 12 + 2 / 3),
        ([session(12, role_arn="arn:aws:sts::1:assumed-role/a/b"), role("s", 12)], 12 + 2 / 3),
        # A user's session may assume for twelve hours: the last one at most an hour before the end.
        ([session(36, account_id="123456789012"), role("s", 12)], 36 + 11),
        # A session that tells nothing of its making is taken for a role's.
        ([session(12), role("s", 12)], 12 + 2 / 3),
        # A chain of three: the middle one's last hour, then another.
        ([session(1, "a"), role("a", 1, "b"), role("b", 1, "c")], 1 + 2 / 3 + 2 / 3),
        ([USER, GcpImpersonation(id="i", target_principal="a@b", base="u")], None),
        # Renewed 15 to 20 minutes before its end: the last one may be 45 minutes old when the base ends.
        ([token(1), GcpImpersonation(id="i", target_principal="a@b", base="t")], 1 + 32 / 60),
        ([GcpExternalAccount(id="x", audience="//iam", base="instance")], None),
        ([session(2), GcpExternalAccount(id="x", audience="//iam", base="s")], 2 + 32 / 60),
        ([AwsWebIdentity(id="w", role_arn=ROLE, token=WebTokenFile(path="/t"))], None),
        ([AwsWebIdentity(id="w", role_arn=ROLE, token=WebTokenUrl(url="https://idp.example/t"))], None),
        ([AwsWebIdentity(id="w", role_arn=ROLE, token=WebTokenGce(audience="sts"))], None),
        (
            [
                AwsWebIdentity(
                    id="w",
                    role_arn=ROLE,
                    token=WebTokenInline(token=jwt(exp=int((NOW + HOUR).timestamp()))),
                    duration_seconds=43200,
                )
            ],
            1 + 11,
        ),
    ],
)  # fmt: skip
def test_each_kind_of_credential_has_its_horizon(grants: list[Grant], hours: float | None) -> None:
    """Table: what each kind may still call, and until when that is sure to hold."""
    one = forecast(*grants)
    if hours is None:
        assert one.until is None
        assert one.renewed_by is not None
    else:
        assert one.until is not None
        assert abs(one.until - (NOW + hours * HOUR)) < timedelta(seconds=1)


def test_nothing_renews_a_finished_credential() -> None:
    """A session and a token say so."""
    assert forecast(session(1)).renewed_by is None
    assert forecast(token(1)).renewed_by is None


def test_the_lease_ends_what_would_go_on() -> None:
    """A lease shorter than the credential ends it; one that is longer than what renews it is warned of."""
    assert forecast(KEYS, lease=3).until == NOW + 3 * HOUR
    assert forecast(KEYS, lease=3).cause == "the lease ends"
    assert forecast(session(12), lease=3).until == NOW + 3 * HOUR
    longer = forecast(session(12), lease=36)
    assert longer.until == NOW + 12 * HOUR
    assert any("before the lease does" in warning for warning in longer.warnings)
    assert forecast(session(12), lease=3).warnings == ()


def test_chaining_for_more_than_an_hour_is_warned_of() -> None:
    """A grant that asks for what STS will not give says so beforehand."""
    assert any("gets 1 h" in w for w in forecast(session(12, role_arn="r"), role("s", 12)).warnings)
    assert any("gets 1 h" in w for w in forecast(role("instance", 12)).warnings)
    assert forecast(KEYS, role("k", 12)).warnings == ()


def test_long_impersonation_is_warned_of() -> None:
    """More than an hour of impersonation needs an organization policy, and the warning names it."""
    grant = GcpImpersonation(id="i", target_principal="a@b", base="instance", lifetime_seconds=7200)
    assert any("allowServiceAccountCredentialLifetimeExtension" in w for w in forecast(grant).warnings)


def test_what_has_ended_has_ended() -> None:
    """A session that is over, alone or as a base, gives no horizon in the future."""
    for grants in (
        [session(-1)],
        [session(-1), role("s", 12)],
        [session(-1, "a"), role("a", 1, "b"), role("b", 1, "c")],
    ):
        one = forecast(*grants)
        assert one.until is not None
        assert one.until <= NOW
        assert any("does not work any more" in w for w in one.warnings)
        assert "ended" in sentence(one, NOW)


def test_hostile_shapes_end_now_with_a_warning() -> None:
    """Claims that nobody has decoded yet: a missing base, a circle, a route to variables."""
    for grants in ([role("gone")], [role("b", 1, "a"), role("a", 1, "b")], [role("r")]):
        one = forecast(*grants)
        assert one.until is not None
        assert one.until <= NOW
        assert one.warnings
    (one,) = forecasts([Env(id="e", variables={})], {Cloud.AWS: "e"}, None, NOW)
    assert "no identity" in one.warnings[0]


def test_a_url_is_shown_by_its_host_alone() -> None:
    """What a broker's URL holds beside its host may be a secret."""
    text = sentence(forecast(HttpBroker(id="b", url="https://user:pw@broker.example:8443/secret?k=v")), NOW)
    assert "broker.example:8443" in text
    assert "secret" not in text
    assert "pw" not in text
    assert "k=v" not in text


def test_a_web_token_of_unknown_end_is_warned_of() -> None:
    """An inline token that cannot be read counts as over, with a warning."""
    one = forecast(AwsWebIdentity(id="w", role_arn=ROLE, token=WebTokenInline(token=Secret("opaque"))))
    assert any("cannot be read" in w for w in one.warnings)
    assert one.until is not None
    assert one.until < NOW + HOUR


def test_clouds_are_told_in_order_and_only_when_routed() -> None:
    """One forecast for each routed cloud, AWS first."""
    both = forecasts([token(1), session(1)], {Cloud.GCP: "t", Cloud.AWS: "s"}, None, NOW)
    assert [one.cloud for one in both] == [Cloud.AWS, Cloud.GCP]
    assert forecasts([session(1)], {}, None, NOW) == []


def test_a_sentence_says_until_when_and_who() -> None:
    """The line an operator reads at night."""
    assert sentence(forecast(session(12)), NOW) == (
        "aws: until 2026-11-25T00:00:00Z (12 h) (grant s); nothing renews it; then the session ends"
    )
    assert sentence(forecast(KEYS), NOW).startswith("aws: no end in sight (grant k); renewed by sts:GetSessionToken")


def test_a_token_nested_without_end_is_not_read() -> None:
    """A payload deeper than a parser may recurse is a token whose end cannot be read."""
    deep = base64.urlsafe_b64encode(b'{"a":' + b"[" * 60_000).decode().rstrip("=")
    assert jwt_end(f"e30.{deep}.c2ln") is None


@given(st.text(max_size=200))
def test_reading_the_end_of_a_token_never_raises(text: str) -> None:
    """Whatever stands where a token should, the answer is an instant or None."""
    assert jwt_end(text) is None or isinstance(jwt_end(text), datetime)


@given(st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.none()))
def test_any_exp_is_read_or_not(exp: object) -> None:
    """One out of every range is the last instant of ours, or the first, or none: no sum with it is an error."""
    answer = jwt_end(jwt(exp=exp).reveal())
    assert answer is None or answer.tzinfo is UTC
    assert answer is None or answer - timedelta(days=10_000) < answer < answer + timedelta(days=10_000)


@pytest.mark.parametrize("exp", [253402300799, -62135596800, 10**18, -(10**18)])
def test_a_token_that_never_ends_ends_no_loop(exp: int) -> None:
    """What follows from its end is told and planned as from any other."""
    assert jwt_end(jwt(exp=exp).reveal()) == utc(LATEST if exp > 0 else EARLIEST)


@given(
    hours=st.floats(min_value=0.1, max_value=36),
    lengths=st.lists(st.integers(min_value=900, max_value=43200), min_size=1, max_size=4),
    lease=st.none() | st.floats(min_value=0.1, max_value=100),
)
def test_a_horizon_is_never_before_its_base_nor_after_its_lease(
    hours: float, lengths: list[int], lease: float | None
) -> None:
    """Each link adds time and never more than its own length; the lease bounds it all."""
    grants: list[Grant] = [session(hours, "g0")]
    for n, length in enumerate(lengths, 1):
        grants.append(AwsAssumeRole(id=f"g{n}", role_arn=ROLE, base=f"g{n - 1}", duration_seconds=length))
    one = forecast(*grants, lease=lease)
    assert one.until is not None
    most = NOW + hours * HOUR + sum((timedelta(seconds=n) for n in lengths), timedelta())
    least = NOW + hours * HOUR - timedelta(seconds=1)
    if lease is not None:
        assert one.until <= NOW + lease * HOUR
        least = min(least, NOW + lease * HOUR)
    assert least <= one.until <= most
