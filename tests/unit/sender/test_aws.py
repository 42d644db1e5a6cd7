"""Grants from the local AWS identity: boto3 as it is, against an STS that verifies signatures."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from agent.core.errors import Denied, Transient, UsageError
from agent.core.model import AwsAssumeRole, AwsKeys, AwsSession, Cloud
from agent.core.secret import Secret
from agent.identity.forecast import forecasts
from agent.sender import Collected
from agent.sender.aws import AwsOptions, Mfa, Mode, Renewal, from_boto
from agent.sender.aws_identity import asked
from tests.fakes.sts import FakeSts, Weather
from tests.unit.sender.support import laptop, serving

ROLE = "arn:aws:iam::111122223333:role/reader"


def now() -> datetime:
    return datetime.now(UTC)


class World:
    """An STS with one user and one role, and a laptop that talks to it."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sts = FakeSts(now)
        self.role = self.sts.role(ROLE)
        self.key, self.secret = self.sts.user()
        self.home = home
        self.monkeypatch = monkeypatch

    def collect(
        self, *, variables: dict[str, str] | None = None, profile: str | None = None, **options: Any
    ) -> Collected:
        if variables is None:
            variables = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}
        with serving(self.sts) as url, laptop(self.monkeypatch, self.home, AWS_ENDPOINT_URL_STS=url, **variables):
            return from_boto(boto3.Session(profile_name=profile), AwsOptions(**options), now=now())

    def session(self, kind: str = "role-session", seconds: int = 3000) -> dict[str, str]:
        """The environment of a laptop that holds a session."""
        arn = (
            "arn:aws:sts::111122223333:assumed-role/sso/ada"
            if kind == "role-session"
            else "arn:aws:iam::111122223333:user/ada"
        )
        answer = self.sts.session(arn, kind, seconds)
        return {
            "AWS_ACCESS_KEY_ID": answer["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": answer["SecretAccessKey"],
            "AWS_SESSION_TOKEN": answer["SessionToken"],
            "AWS_CREDENTIAL_EXPIRATION": answer["Expiration"],
        }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def only_session(collected: Collected) -> AwsSession:
    (grant,) = collected.grants
    assert isinstance(grant, AwsSession)
    assert (collected.cloud, collected.route) == (Cloud.AWS, grant.id)
    return grant


def test_keys_are_exchanged_and_stay_here(world: World) -> None:
    """An IAM user's keys become a GetSessionToken session of twelve hours; the keys are in no grant."""
    collected = world.collect()
    grant = only_session(collected)
    assert world.sts.operations() == ["GetSessionToken", "GetCallerIdentity"]
    assert grant.access_key_id.startswith("ASIA")
    assert abs(grant.expires_at - (now() + timedelta(hours=12)).timestamp()) < 60
    assert (grant.account_id, grant.role_arn, grant.region) == ("111122223333", None, "eu-west-1")
    assert collected.who == "arn:aws:iam::111122223333:user/laptop"
    assert world.sts.principals[grant.access_key_id].secret == grant.secret_access_key.reveal()


def test_the_length_of_the_session_can_be_chosen(world: World) -> None:
    """--duration is what STS is asked for."""
    grant = only_session(world.collect(duration=timedelta(hours=36)))
    assert world.sts.calls[0].parameters["DurationSeconds"] == "129600"
    assert abs(grant.expires_at - (now() + timedelta(hours=36)).timestamp()) < 60


def test_a_session_is_sent_as_it_is_with_its_true_end(world: World) -> None:
    """A role session (single sign-on, CI) cannot be exchanged: it is sent, and ends when it truly ends."""
    variables = world.session()
    grant = only_session(world.collect(variables=variables))
    assert grant.session_token == Secret(variables["AWS_SESSION_TOKEN"])
    assert datetime.fromtimestamp(grant.expires_at, UTC) == datetime.fromisoformat(
        variables["AWS_CREDENTIAL_EXPIRATION"]
    )
    assert grant.role_arn == "arn:aws:sts::111122223333:assumed-role/sso/ada"
    assert world.sts.operations() == ["GetCallerIdentity"]


def test_a_users_session_is_known_as_one(world: World) -> None:
    """A local GetSessionToken session names no role, so that the horizon knows it may assume roles for longer."""
    grant = only_session(world.collect(variables=world.session("user-session")))
    assert (grant.account_id, grant.role_arn) == ("111122223333", None)


def test_a_session_of_unknown_end_is_refused_or_taken_on_the_senders_word(world: World) -> None:
    """Nobody guesses an expiry: it is refused with what to do, or what the sender vouches for is taken, with a warning."""
    variables = world.session()
    del variables["AWS_CREDENTIAL_EXPIRATION"]
    with pytest.raises(Denied) as caught:
        world.collect(variables=variables)
    assert caught.value.code == "no-expiry"
    assert "AWS_CREDENTIAL_EXPIRATION" in (caught.value.hint or "")
    collected = world.collect(variables=variables, assume_expiry=timedelta(minutes=45))
    assert abs(only_session(collected).expires_at - (now() + timedelta(minutes=45)).timestamp()) < 60
    assert "your word" in collected.warnings[0]


@pytest.mark.parametrize("name", ["x_security_token_expires", "aws_expiration", "expiration"])
def test_the_end_that_sign_on_tools_write_down_is_used(world: World, name: str) -> None:
    """saml2aws and its kin write the end beside the session in ~/.aws/credentials: it is the true one."""
    session = world.session()
    end = session["AWS_CREDENTIAL_EXPIRATION"]
    (world.home / "credentials").write_text(
        f"[sso]\naws_access_key_id={session['AWS_ACCESS_KEY_ID']}\naws_secret_access_key={session['AWS_SECRET_ACCESS_KEY']}\n"
        f"aws_session_token={session['AWS_SESSION_TOKEN']}\n{name}={end}\n"
    )
    grant = only_session(world.collect(variables={}, profile="sso"))
    assert datetime.fromtimestamp(grant.expires_at, UTC) == datetime.fromisoformat(end)


def test_a_session_that_refreshes_itself_is_sent_with_the_end_of_what_is_sent(world: World) -> None:
    """A profile that assumes a role has an end that botocore knows: that of the session in hand."""
    (world.home / "credentials").write_text(
        f"[base]\naws_access_key_id={world.key}\naws_secret_access_key={world.secret}\n"
    )
    (world.home / "config").write_text(f"[profile work]\nrole_arn={ROLE}\nsource_profile=base\n")
    collected = world.collect(variables={}, profile="work")
    grant = only_session(collected)
    assert collected.who.startswith("arn:aws:sts::111122223333:assumed-role/reader/")
    assert world.sts.principals[grant.access_key_id].ends == datetime.fromtimestamp(grant.expires_at, UTC)


def test_an_ended_session_is_refused_before_it_is_sent(world: World) -> None:
    """What has ended is not sealed; the sender is told to sign in again."""
    for seconds in (-10, -100_000):
        with pytest.raises(Denied) as caught:
            world.collect(variables=world.session(seconds=seconds))
        assert caught.value.code == "ExpiredToken"
        assert "sign in again" in (caught.value.hint or "")


def test_a_role_is_assumed_with_a_policy_that_narrows_it(world: World) -> None:
    """Least privilege: the session policy, the managed policies, the name and the external id all reach STS."""
    world.role.external_id = "abc"
    policy = json.dumps({"Version": "2012-10-17", "Statement": []})
    collected = world.collect(
        role_arn=ROLE,
        policy=policy,
        policy_arns=("arn:aws:iam::aws:policy/ReadOnlyAccess",),
        external_id="abc",
        session_name="job-7",
        duration=timedelta(hours=2),
    )
    grant = only_session(collected)
    asked = world.sts.calls[0].parameters
    assert asked["Policy"] == policy
    assert asked["PolicyArns.member.1.arn"] == "arn:aws:iam::aws:policy/ReadOnlyAccess"
    assert (asked["DurationSeconds"], asked["RoleSessionName"]) == ("7200", "job-7")
    assert grant.role_arn == collected.who == "arn:aws:sts::111122223333:assumed-role/reader/job-7"
    assert grant.account_id == "111122223333"


def test_a_renewable_role_carries_its_base(world: World) -> None:
    """With --renew-role local the worker gets a session to stand on and the right to assume; its horizon says so."""
    collected = world.collect(role_arn=ROLE, renew=Renewal.LOCAL, policy="{}", duration=timedelta(hours=6))
    base, role = collected.grants
    assert isinstance(base, AwsSession)
    assert isinstance(role, AwsAssumeRole)
    assert (role.base, role.policy, role.duration_seconds, collected.route) == (base.id, "{}", 21600, role.id)
    assert world.sts.operations() == ["GetSessionToken", "GetCallerIdentity"]
    (forecast,) = forecasts(collected.grants, {Cloud.AWS: collected.route}, None, now())
    assert forecast.until is not None
    assert forecast.until > now() + timedelta(hours=12 + 4)


def test_a_role_renewed_by_the_instance_carries_no_secret(world: World) -> None:
    """With --renew-role instance no local identity is needed, and nothing secret is sent."""
    collected = world.collect(variables={}, role_arn=ROLE, renew=Renewal.INSTANCE)
    (role,) = collected.grants
    assert isinstance(role, AwsAssumeRole)
    assert role.base == "instance"
    assert world.sts.calls == []


def test_keys_are_sent_only_when_asked_for_by_name(world: World) -> None:
    """--aws-mode keys sends the long-term keys, with a warning that says what that means."""
    collected = world.collect(mode=Mode.KEYS)
    (grant,) = collected.grants
    assert isinstance(grant, AwsKeys)
    assert grant.access_key_id == world.key
    assert "revoked" in collected.warnings[0]


@pytest.mark.parametrize(
    ("mode", "session", "said"),
    [
        (Mode.SESSION_TOKEN, True, "is a session, and STS exchanges only"),
        (Mode.KEYS, True, "is a session, not the keys"),
        (Mode.RAW, False, "not sent as they are"),
        (Mode.ASSUME_ROLE, False, "which one"),
    ],
)
def test_what_cannot_work_is_said_before_sts_does(world: World, mode: Mode, session: bool, said: str) -> None:
    """A mode that does not fit the local identity is refused without a call, with the mode that would fit."""
    with pytest.raises(UsageError, match=said) as caught:
        world.collect(variables=world.session() if session else None, mode=mode)
    assert world.sts.calls == []
    assert "--" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("session", "options", "said"),
    [
        (True, {"policy": "{}"}, "--policy is about a role"),
        (False, {"policy": "{}"}, "--policy is about a role"),
        (True, {"policy_arns": ("arn:aws:iam::aws:policy/ReadOnlyAccess",)}, "--policy-arn is about a role"),
        (True, {"external_id": "abc"}, "--external-id is about a role"),
        (False, {"renew": Renewal.LOCAL}, "--renew-role is about a role"),
        (True, {"mode": Mode.RAW, "role_arn": ROLE}, "not the role"),
        (False, {"mode": Mode.SESSION_TOKEN, "role_arn": ROLE, "policy": "{}"}, "not the role"),
        (True, {"mfa": Mfa("me", Secret("123456"))}, "none is made here"),
        (False, {"mfa": Mfa("me", Secret("123456")), "mode": Mode.KEYS, "role_arn": ROLE}, "none is made here"),
    ],
)
def test_no_option_is_left_out_in_silence(world: World, session: bool, options: dict[str, Any], said: str) -> None:
    """What would narrow or renew a role is refused where no role is sent: more would be sent than was meant."""
    with pytest.raises(UsageError, match=said) as caught:
        world.collect(variables=world.session() if session else None, **options)
    assert world.sts.calls == []
    assert "--" in (caught.value.hint or "")


def test_a_duration_that_nothing_would_honour_is_refused(world: World) -> None:
    """The length of a session that is sent as it is cannot be chosen."""
    with pytest.raises(UsageError, match="length of a session cannot be chosen"):
        world.collect(variables=world.session(), duration=timedelta(hours=1))


def test_chaining_beyond_an_hour_is_explained(world: World) -> None:
    """STS refuses more than an hour to a role session; the hint says so."""
    with pytest.raises(Denied, match="1 hour session limit") as caught:
        world.collect(variables=world.session(), role_arn=ROLE, duration=timedelta(hours=2))
    assert "an hour at most" in (caught.value.hint or "")


def test_refusals_carry_the_code_and_no_secret(world: World) -> None:
    """AWS's own code and words, and nothing of the keys, even where AWS repeats what it was sent."""
    with pytest.raises(Denied) as caught:
        world.collect(role_arn="arn:aws:iam::111122223333:role/other")
    assert caught.value.code == "AccessDenied"
    variables = {"AWS_ACCESS_KEY_ID": world.key, "AWS_SECRET_ACCESS_KEY": "wrongsecretwrongsecret"}
    with pytest.raises(Denied) as caught:
        world.collect(variables=variables)
    assert caught.value.code == "SignatureDoesNotMatch"
    session = world.session()
    session["AWS_SECRET_ACCESS_KEY"] = "wrongsecretwrongsecret"
    with pytest.raises(Denied) as caught:
        world.collect(variables=session)
    assert session["AWS_SESSION_TOKEN"] not in caught.value.message
    assert "wrongsecret" not in f"{caught.value!r}"
    assert caught.value.__cause__ is None


def test_throttling_and_outages_may_pass(world: World) -> None:
    """A throttled or unreachable STS is Transient, everything else Denied."""
    world.sts.weather = lambda _: Weather(status=400, code="Throttling")
    with pytest.raises(Transient):
        world.collect()
    # A hotel's network answers everything with a page of its own, or with nothing.
    for page in (b"<html>sign in</html>", b"", b"no"):
        for status in (400, 429, 503):
            bad = Weather(status=status, body=page)
            world.sts.weather = {"GetCallerIdentity": bad, "GetSessionToken": bad}.__getitem__
            with pytest.raises(Transient):
                world.collect()
    with (
        laptop(
            world.monkeypatch,
            world.home,
            AWS_ACCESS_KEY_ID="AKIAAAAAAAAAAAAAAAAA",
            AWS_SECRET_ACCESS_KEY="x",
            AWS_ENDPOINT_URL_STS="http://127.0.0.1:9",
        ),
        pytest.raises(Transient, match="cannot be reached"),
    ):
        from_boto(boto3.Session(), AwsOptions(), now=now())


def test_no_identity_is_explained(world: World) -> None:
    """A laptop without credentials, and one with a broken profile, get a sentence and a way on."""
    with pytest.raises(Denied, match="finds no AWS identity") as caught:
        world.collect(variables={})
    assert "aws sso login" in (caught.value.hint or "")
    (world.home / "config").write_text("[profile p]\nrole_arn=arn:aws:iam::111122223333:role/x\nsource_profile=gone\n")
    with pytest.raises(Denied, match="cannot use"):
        world.collect(variables={}, profile="p")


def test_without_a_region_sts_is_asked_all_the_same(world: World) -> None:
    """A laptop without a configured region still seals; the grant then names none."""
    world.monkeypatch.setattr("botocore.session.Session.get_config_variable", _without_region(world))
    assert only_session(world.collect()).region is None


def _without_region(world: World) -> Any:
    import botocore.session

    real = botocore.session.Session.get_config_variable

    def get(self: Any, name: str, methods: Any = None) -> Any:
        return None if name == "region" else real(self, name, methods)

    return get


@pytest.mark.parametrize(
    "command", ["/nonexistent/helper", "/bin/false", "/bin/echo SECRETSECRET", "/bin/echo {}", "/bin/echo [1]"]
)
def test_a_broken_credential_process_is_explained(world: World, command: str) -> None:
    """A helper that is missing, fails, or prints rubbish is one line, without what it printed."""
    (world.home / "config").write_text(f"[profile p]\ncredential_process={command}\n")
    with pytest.raises(Denied, match="cannot use the AWS identity") as caught:
        world.collect(variables={}, profile="p")
    assert "SECRETSECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_multi_factor_code_reaches_sts(world: World) -> None:
    """Device and code are sent where the exchange or the role asks for them."""
    world.collect(mfa=Mfa("arn:aws:iam::111122223333:mfa/me", Secret("123456")))
    assert world.sts.calls[0].parameters["TokenCode"] == "123456"
    assert world.sts.calls[0].parameters["SerialNumber"].endswith("mfa/me")


def test_a_code_that_nobody_can_type_is_explained() -> None:
    """A profile with a multi-factor device asks for its code: without a terminal that is a refusal, and no Ctrl-C."""

    def prompt() -> str:
        raise EOFError

    with pytest.raises(Denied, match="no terminal") as caught:
        asked(prompt)
    assert "export-credentials" in (caught.value.hint or "")


def test_keys_can_be_the_base_of_a_role_for_twelve_hours(world: World) -> None:
    """With the keys themselves as the base nothing is chained: the role renews for as long as the keys live."""
    collected = world.collect(mode=Mode.KEYS, role_arn=ROLE, renew=Renewal.LOCAL, duration=timedelta(hours=12))
    keys, role = collected.grants
    assert isinstance(keys, AwsKeys)
    assert isinstance(role, AwsAssumeRole)
    assert (role.base, role.duration_seconds, collected.route) == (keys.id, 43_200, role.id)
    assert any("long-term keys" in warning for warning in collected.warnings)
