"""Ways to sign on at a laptop, each of them forwarded: AWS's single sign-on with its portal, Google's kinds of file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.credentials import SSOProvider
from botocore.tokens import SSOTokenProvider

from agent.core.errors import Denied
from agent.core.model import AwsSession, Cloud, GcpToken
from agent.forward.local import Local, Options
from tests.fakes.net import Answer, Asked
from tests.fakes.sts import FakeSts
from tests.unit.forward.agents import CourierAgent
from tests.unit.forward.support import ACCOUNT, World, now
from tests.unit.sender.support import laptop, serving
from tests.unit.sender.test_gcp import ACCOUNT as ROBOT
from tests.unit.sender.test_gcp import TARGET, Detour
from tests.unit.sender.test_gcp import World as Google

NEW, LEGACY = "sso_session = corp\n", "sso_start_url = https://corp.awsapps.com/start\nsso_region = eu-west-1\n"


class Portal:
    """IAM Identity Center: its portal (GetRoleCredentials) and its OIDC (CreateToken), by AWS's API references."""

    def __init__(self, sts: FakeSts) -> None:
        self.sts = sts
        self.tokens: set[str] = set()
        self.refresh_tokens: dict[str, str] = {}
        self.assigned = {(ACCOUNT, "DataScientist")}
        self.asked: list[str] = []

    def __call__(self, asked: Asked) -> Answer:
        self.asked.append(asked.path)
        if asked.path == "/token":
            return self._token(json.loads(asked.body))
        query = dict(part.split("=") for part in asked.query.split("&"))
        if asked.path != "/federation/credentials":
            return _error(404, "ResourceNotFoundException", "no such operation")
        if asked.headers.get("x-amz-sso_bearer_token") not in self.tokens:
            return _error(401, "UnauthorizedException", "Session token not found or invalid")
        if (query["account_id"], query["role_name"]) not in self.assigned:
            return _error(403, "ForbiddenException", "No access")
        role = f"arn:aws:sts::{query['account_id']}:assumed-role/AWSReservedSSO_{query['role_name']}_0/ada"
        made = self.sts.session(role, "role-session", 3600)
        ends = datetime.fromisoformat(made["Expiration"])
        given = {
            "accessKeyId": made["AccessKeyId"],
            "secretAccessKey": made["SecretAccessKey"],
            "sessionToken": made["SessionToken"],
            "expiration": int(ends.timestamp() * 1000),
        }
        return _json(200, {"roleCredentials": given})

    def _token(self, said: dict[str, str]) -> Answer:
        token = self.refresh_tokens.pop(said.get("refreshToken", ""), None)
        if said.get("grantType") != "refresh_token" or token is None:
            return _error(400, "InvalidGrantException", "Invalid grant provided")
        self.tokens = {token}
        return _json(200, {"accessToken": token, "tokenType": "Bearer", "expiresIn": 3600, "refreshToken": "next"})


def _json(status: int, document: dict[str, Any], **headers: str) -> Answer:
    return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json", **headers})


def _error(status: int, code: str, message: str) -> Answer:
    return _json(status, {"message": message}, **{"x-amzn-ErrorType": code})


class Desk:
    """A laptop whose only identity is a single sign-on."""

    def __init__(self, world: World, portal: Portal, kind: str) -> None:
        self.world, self.portal = world, portal
        self.cache = world.home / ".aws/sso/cache"
        self.cache.mkdir(parents=True)
        self.name = "corp" if kind == NEW else "https://corp.awsapps.com/start"
        (world.home / "config").write_text(
            f"[profile corp]\n{kind}sso_account_id = {ACCOUNT}\nsso_role_name = DataScientist\nregion = eu-west-1\n"
            "[sso-session corp]\nsso_start_url = https://corp.awsapps.com/start\nsso_region = eu-west-1\n"
            "sso_registration_scopes = sso:account:access\n"
        )

    def sign_on(self, token: str, seconds: int = 28800) -> None:
        """`aws sso login`: the portal knows the token, and it is in the cache."""
        self.portal.tokens.add(token)
        self.portal.refresh_tokens[f"refresh-{token}"] = f"{token}-refreshed"
        ends = [f"{datetime.now(UTC) + timedelta(seconds=part):%Y-%m-%dT%H:%M:%SZ}" for part in (seconds, 7776000)]
        (self.cache / f"{hashlib.sha1(self.name.encode()).hexdigest()}.json").write_text(
            json.dumps(
                {
                    "startUrl": "https://corp.awsapps.com/start",
                    "region": "eu-west-1",
                    "accessToken": token,
                    "expiresAt": ends[0],
                    "clientId": "client",
                    "clientSecret": "client-secret",
                    "registrationExpiresAt": ends[1],
                    "refreshToken": f"refresh-{token}",
                }
            )
        )


@pytest.fixture(params=[NEW, LEGACY], ids=["session", "legacy"])
def desk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with World(tmp_path, monkeypatch) as world:
        portal = Portal(world.sts)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CREDENTIAL_EXPIRATION"):
            monkeypatch.delenv(name)
        for reads in (SSOProvider, SSOTokenProvider):  # botocore looks for the home once, when it is imported
            monkeypatch.setattr(reads, "_SSO_TOKEN_CACHE_DIR", str(tmp_path / ".aws/sso/cache"))
        with serving(portal) as url:
            monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", url)
            monkeypatch.setenv("AWS_ENDPOINT_URL_SSO_OIDC", url)
            monkeypatch.setenv("AWS_PROFILE", "corp")
            yield Desk(world, portal, request.param)


def key_of(machine: CourierAgent) -> str:
    assert machine.bundle is not None
    (grant,) = machine.bundle.grants
    assert isinstance(grant, AwsSession)
    return grant.access_key_id


def test_a_single_sign_on_is_forwarded_and_followed(desk: Desk) -> None:
    """What the portal gives is on the workers with its end; a new sign-on brings what it gives then."""
    machine = desk.world.machine("m")
    desk.sign_on("first")
    with desk.world.forward() as f:
        (cloud,) = f.status().clouds
        assert "AWSReservedSSO_DataScientist_0/ada" in cloud.who
        assert cloud.until is not None
        before = key_of(machine)
        f.refresh()
        assert key_of(machine) == before
        desk.portal.tokens.clear()
        desk.sign_on("second")
        assert f.refresh().served == 1
        assert key_of(machine) != before
        secrets = [json.loads(path.read_text())["accessToken"] for path in desk.cache.glob("*.json")]
        assert secrets == ["second"]
        assert not any(word in repr(f.status()) for word in ("second", "client-secret"))


def test_a_sign_on_that_ended_takes_nothing_away(desk: Desk) -> None:
    """The workers keep what they have to its end; the status says what to do; signing on again goes on from there."""
    machine = desk.world.machine("m")
    desk.sign_on("first")
    with desk.world.forward() as f:
        before = key_of(machine)
        desk.portal.tokens.clear()
        desk.portal.refresh_tokens.clear()
        desk.world.time_gone = timedelta(minutes=45)
        (cloud,) = f.refresh().clouds
        assert "aws sso login" in str(cloud.trouble)
        assert (f.status().served, key_of(machine)) == (1, before)
        desk.sign_on("second")
        (cloud,) = f.refresh().clouds
        assert (cloud.trouble, key_of(machine) == before) == (None, False)


def test_a_code_is_asked_for_at_the_beginning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A profile with a multi-factor device: whoever begins is asked, and told that nothing renews it; nobody is later."""
    asked: list[str] = []

    def code(question: str) -> str:
        asked.append(question)
        return "123456"

    monkeypatch.setattr("getpass.getpass", code)
    with World(tmp_path, monkeypatch) as world:
        machine = world.machine("m")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CREDENTIAL_EXPIRATION"):
            monkeypatch.delenv(name)
        world.sts.role(role := f"arn:aws:iam::{ACCOUNT}:role/reader")
        key, secret = world.sts.user()
        (tmp_path / "credentials").write_text(f"[me]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")
        (tmp_path / "config").write_text(
            f"[default]\nrole_arn={role}\nsource_profile=me\nmfa_serial=arn:aws:iam::{ACCOUNT}:mfa/me\n"
        )
        with world.forward(progress=True) as f:
            (cloud,) = f.status().clouds
            assert "code of a multi-factor device" in str(cloud.trouble)
            assert "aws cannot be renewed here: the profile wants the code" in capsys.readouterr().err
            before = key_of(machine)
            world.time_gone = timedelta(minutes=50)
            (cloud,) = f.refresh().clouds
            assert "nobody is asked for it later" in str(cloud.trouble)
            assert (f.status().served, key_of(machine), len(asked)) == (1, before, 1)
            world.sign_on()  # a session, as the hint says
            (cloud,) = f.refresh().clouds
            assert cloud.trouble is None
            assert (key_of(machine) == before, len(asked)) == (False, 1)


@pytest.mark.parametrize("how", ["never", "ended", "not-assigned"])
def test_a_sign_on_that_gives_nothing_is_one_line(desk: Desk, how: str) -> None:
    """Nobody signed on, the sign-on has ended, the role is not assigned: what is the matter, what to do, no secret."""
    desk.world.machine("m")
    if how == "ended":
        desk.sign_on("old", seconds=-60)
        desk.portal.tokens.clear()
        desk.portal.refresh_tokens.clear()
    if how == "not-assigned":
        desk.sign_on("first")
        desk.portal.assigned.clear()
    with pytest.raises(Denied) as caught:
        desk.world.forward()
    told = f"{caught.value.message} {caught.value.hint}"
    assert ("assigned" if how == "not-assigned" else "aws sso login") in told
    assert "\n" not in told
    assert "client-secret" not in told
    assert desk.world.courier.calls == []


@pytest.mark.parametrize("kind", ["user", "account", "impersonating"])
def test_a_google_sign_on_of_each_kind_is_forwarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A user's sign-on, an account's key, an impersonation: a token of it is sent, with its end, and nothing that lasts."""
    google = Google(tmp_path, monkeypatch)
    if kind == "account":
        google.adc_account()
    else:
        google.adc_user(quota_project_id="demo-project")
    with serving(google.google) as url, laptop(monkeypatch, tmp_path):
        local = Local(Options(aws=None, impersonate=TARGET if kind == "impersonating" else None), transport=Detour(url))
        assert local.collect(now())
        (grant,) = local.parts[Cloud.GCP].collected.grants
        assert isinstance(grant, GcpToken)
        ends = datetime.fromtimestamp(grant.expires_at, UTC)
        due = local.due()
        assert due is not None
        assert now() < due < ends
        if kind != "user":
            assert local.parts[Cloud.GCP].collected.who == {"account": ROBOT, "impersonating": TARGET}[kind]
        assert not local.collect(now())
        # A successor near the end, another sign-on at once.
        assert local.collect(ends - timedelta(minutes=5))
        google.adc_account()
        assert local.collect(now())
        assert isinstance(local.parts[Cloud.GCP].collected.grants[0], GcpToken)
