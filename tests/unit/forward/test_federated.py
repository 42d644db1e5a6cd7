"""Identities that somebody else vouches for at Google (workload and workforce pools), forwarded from a laptop."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import Denied, Transient
from agent.core.model import Cloud, GcpToken
from agent.enrol import Policy
from agent.forward.local import Local, Options
from tests.fakes.net import Answer, Asked, Handler
from tests.unit.forward.support import now
from tests.unit.sender.support import laptop, serving
from tests.unit.sender.test_gcp import TARGET, Detour, World

NUMBER, PROJECT = "123456789012", "demo-project"
POOL = f"//iam.googleapis.com/projects/{NUMBER}/locations/global/workloadIdentityPools/ci/providers/corp-oidc"
WORKFORCE = "//iam.googleapis.com/locations/global/workforcePools/staff/providers/corp-saml"
ISSUER = "https://login.corp.example"


class Desk:
    """A laptop with the configuration that ``gcloud iam workload-identity-pools create-cred-config`` writes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.token = world.home / "subject-token"
        world.google.pools[POOL] = ISSUER
        world.google.projects[NUMBER] = PROJECT

    def subject(self, seconds: int = 600, subject: str = "ada") -> None:
        """The corporate provider puts a token where the configuration says."""
        claims = {"iss": ISSUER, "sub": subject, "exp": int((now() + timedelta(seconds=seconds)).timestamp())}
        parts = [base64.urlsafe_b64encode(json.dumps(one).encode()).decode().rstrip("=") for one in ({}, claims)]
        self.token.write_text(".".join([*parts, "signed"]))

    def workload(self, **more: Any) -> None:
        self.world.adc(
            **{
                "type": "external_account",
                "audience": POOL,
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": "https://sts.googleapis.com/v1/token",
                "credential_source": {"file": str(self.token)},
                **more,
            }
        )

    def workforce(self) -> None:
        self.world.google.workforce["the-refresh-token"] = ("staff", "client-secret", "principal://staff/ada")
        self.world.adc(
            type="external_account_authorized_user",
            audience=WORKFORCE,
            refresh_token="the-refresh-token",
            token_url="https://sts.googleapis.com/v1/oauthtoken",
            token_info_url="https://sts.googleapis.com/v1/introspect",
            client_id="staff",
            client_secret="client-secret",
        )

    def local(self, url: str, **options: Any) -> Local:
        return Local(Options(aws=None, **options), transport=Detour(url))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(World(tmp_path, monkeypatch))


def token_of(local: Local) -> GcpToken:
    (grant,) = local.parts[Cloud.GCP].collected.grants
    assert isinstance(grant, GcpToken)
    return grant


@pytest.mark.parametrize("kind", ["workload", "impersonating", "workforce"])
def test_an_identity_of_a_pool_is_forwarded_and_renewed(desk: Desk, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A token of Google's is sent, with its end, and nothing with which another could be had; a successor in time."""
    desk.subject()
    if kind == "workforce":
        desk.workforce()
    else:
        host = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts"
        url = {"service_account_impersonation_url": f"{host}/{TARGET}:generateAccessToken"}
        desk.workload(**(url if kind == "impersonating" else {}))
    with serving(desk.world.google) as base, laptop(monkeypatch, desk.world.home):
        local = desk.local(base)
        assert local.collect(now())
        grant, collected = token_of(local), local.parts[Cloud.GCP].collected
        ends = datetime.fromtimestamp(grant.expires_at, UTC)
        assert timedelta(minutes=55) < ends - now() <= timedelta(hours=1)
        said = {
            "workload": "corp-oidc in the pool ci",
            "impersonating": TARGET,
            "workforce": "corp-saml in the pool staff",
        }
        assert said[kind] in collected.who
        sent = grant.access_token.reveal()
        assert desk.world.google.tokens[sent].principal.endswith({"impersonating": TARGET}.get(kind, "ada"))
        # The machines of the project that the pool is in, as google.auth says; a workforce is in none.
        admitted = () if kind == "workforce" else (PROJECT,)
        assert local.policy() == Policy(projects=admitted)
        assert not local.collect(now())
        desk.subject(seconds=7200)
        due = local.due()
        assert due is not None
        assert due < ends
        assert local.collect(due)
        assert token_of(local).access_token.reveal() != sent


def test_an_identity_of_a_pool_that_ended_takes_nothing_away(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider's token has ended when a successor is due: that is said, without it; a new one goes on from there."""
    desk.subject()
    desk.workload()
    with serving(desk.world.google) as base, laptop(monkeypatch, desk.world.home):
        local = desk.local(base)
        local.collect(now())
        before, due = token_of(local), local.due()
        assert due is not None
        desk.subject(seconds=-1)
        assert not local.collect(due)
        trouble = str(local.parts[Cloud.GCP].trouble)
        assert "Google refused the local identity" in trouble
        assert desk.token.read_text() not in trouble
        assert token_of(local) == before
        desk.subject(seconds=7200)
        assert local.collect(due + timedelta(minutes=1))
        assert local.parts[Cloud.GCP].trouble is None


def refused(asked: Asked) -> Answer:
    """The pool is not there; the description repeats all that was sent."""
    body = {"error": "invalid_target", "error_description": f"no such pool: {asked.body.decode()}"}
    return Answer(400, json.dumps(body).encode())


def page(_: Asked) -> Answer:
    """What a proxy says in the place of anybody."""
    return Answer(403, b"<html>blocked</html>", {"Content-Type": "text/html"})


def busy(_: Asked) -> Answer:
    return Answer(503, b'{"error": "temporarily_unavailable"}')


@pytest.mark.parametrize("handler", [page, busy])
def test_a_silence_of_the_exchange_may_pass(desk: Desk, monkeypatch: pytest.MonkeyPatch, handler: Handler) -> None:
    """A page of a proxy, an exchange that is down: nobody has refused anything."""
    desk.subject()
    desk.workload()
    with (
        serving(handler) as base,
        laptop(monkeypatch, desk.world.home),
        pytest.raises(Transient) as caught,
    ):
        desk.local(base).collect(now())
    assert "html" not in caught.value.message


@pytest.mark.parametrize(
    ("source", "handler", "word"),
    [
        ({}, refused, "invalid_target"),
        ({"file": "/nonexistent/token"}, None, "/nonexistent/token"),
        ({"executable": {"command": "/bin/true", "timeout_millis": 5000}}, None, "xecutable"),
        ({"certificate": {"use_default_certificate_config": True}}, None, "ertificate"),
        ({"nothing": "known"}, None, "Failed to load external account"),
        ("text", None, ""),
    ],
    ids=["no-pool", "no-file", "executable", "certificate", "unknown", "text"],
)
def test_what_cannot_be_had_of_a_pool_is_one_line(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, source: Any, handler: Handler | None, word: str
) -> None:
    """A provider that is not there, a program that may not be run, a proxy: a refusal with a word that leads on."""
    desk.subject()
    desk.workload(**({"credential_source": source} if source else {}))
    with (
        serving(handler or desk.world.google) as base,
        laptop(monkeypatch, desk.world.home),
        pytest.raises(Denied) as caught,
    ):
        desk.local(base).collect(now())
    told = f"{caught.value.message} {caught.value.hint}"
    assert word in told
    assert caught.value.hint
    assert "\n" not in told
    assert "<html>" not in told
    assert desk.token.read_text() not in told
