"""Grants from the local Google identity: google-auth as it is, against token endpoints that verify assertions."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.exceptions import TransportError

from agent.core.errors import Denied, Transient, UsageError
from agent.core.model import (
    CLOUD_PLATFORM,
    Cloud,
    GcpAuthorizedUser,
    GcpImpersonation,
    GcpServiceAccount,
    GcpToken,
)
from agent.sender import Collected, gcp
from agent.sender.gcp import GcpOptions, from_adc
from tests.fakes.google_tokens import FakeGoogle
from tests.fakes.net import Answer, Asked, Fault
from tests.fakes.sts import Weather
from tests.unit.sender.support import laptop, serving

ACCOUNT = "robot@demo-project.iam.gserviceaccount.com"
TARGET = "reader@demo-project.iam.gserviceaccount.com"
READ_ONLY = "https://www.googleapis.com/auth/devstorage.read_only"


def now() -> datetime:
    return datetime.now(UTC)


class Detour:
    """google-auth's own transport, with every host led to one loopback server."""

    def __init__(self, base: str) -> None:
        self._inner = gcp._transport()
        self._base = base
        self.urls: list[str] = []

    def __call__(self, url: str, **more: Any) -> Any:
        self.urls.append(url)
        parts = urlsplit(url)
        return self._inner(f"{self._base}{parts.path}" + (f"?{parts.query}" if parts.query else ""), **more)


class World:
    """Google with one user and two accounts, and a laptop that talks to it."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.google = FakeGoogle(now)
        self.user = self.google.user()
        self.home = home
        self.monkeypatch = monkeypatch
        self.google.account(TARGET)
        self.urls: list[str] = []
        self.email: str | None = "ada@example.com"

    def adc(self, **content: Any) -> None:
        """What `gcloud auth application-default login` leaves behind."""
        path = self.home / "gcloud" / "application_default_credentials.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))

    def adc_user(self, **more: Any) -> None:
        self.adc(
            type="authorized_user",
            client_id=self.user["client_id"],
            client_secret=self.user["client_secret"],
            refresh_token=self.user["refresh_token"],
            **more,
        )

    def adc_account(self) -> str:
        key = rsa.generate_private_key(65537, 2048)
        self.google.account(ACCOUNT, keys={"key-1": key.public_key()})
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        self.adc(
            type="service_account",
            project_id="demo-project",
            private_key_id="key-1",
            private_key=pem,
            client_email=ACCOUNT,
            client_id="1",
            token_uri="https://oauth2.googleapis.com/token",
        )
        return pem

    def collect(self, **options: Any) -> Collected:
        def handler(asked: Asked) -> Answer | Fault:
            if asked.path == "/v1/userinfo":
                bearer = asked.headers.get("authorization", "").removeprefix("Bearer ")
                if bearer not in self.google.tokens or self.email is None:
                    return Answer(401, b"{}")
                return Answer(200, json.dumps({"sub": "1", "email": self.email}).encode())
            return self.google(asked)

        options.setdefault("adc_file", self.home / "gcloud" / "application_default_credentials.json")
        with serving(handler) as url, laptop(self.monkeypatch, self.home):
            detour = Detour(url)
            try:
                return from_adc(GcpOptions(**options), now=now(), transport=detour)
            finally:
                self.urls = detour.urls


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def only_token(collected: Collected) -> GcpToken:
    (grant,) = collected.grants
    assert isinstance(grant, GcpToken)
    assert (collected.cloud, collected.route) == (Cloud.GCP, grant.id)
    return grant


def test_a_users_token_is_minted_and_the_refresh_token_stays_here(world: World) -> None:
    """By default an hour's token is sent, with its true end and whose it is."""
    world.adc_user(quota_project_id="billing")
    collected = world.collect()
    grant = only_token(collected)
    assert world.google.operations() == ["refresh_token"]
    held = world.google.tokens[grant.access_token.reveal()]
    assert abs(grant.expires_at - held.ends.timestamp()) <= 2
    assert (grant.email, collected.who) == ("ada@example.com", "ada@example.com")
    assert grant.scopes == (CLOUD_PLATFORM,)
    assert all("ya29" not in url for url in world.urls), "no token in a URL"


def test_whose_token_it_is_may_stay_unknown(world: World) -> None:
    """When Google does not say, the grant names nobody and the sender is told."""
    world.adc_user()
    world.email = None
    collected = world.collect()
    assert only_token(collected).email is None
    assert "could not be found out" in collected.warnings[0]


def test_the_refresh_token_is_sent_only_when_asked_for_by_name(world: World) -> None:
    """--send-refresh-token sends what renews itself, without minting anything, and warns."""
    world.adc_user(quota_project_id="billing")
    collected = world.collect(send_refresh_token=True)
    (grant,) = collected.grants
    assert isinstance(grant, GcpAuthorizedUser)
    assert grant.refresh_token.reveal() == world.user["refresh_token"]
    assert grant.client_secret.reveal() == world.user["client_secret"]
    assert grant.quota_project_id == "billing"
    assert "revoked" in collected.warnings[0]
    assert world.google.calls == []


def test_a_service_accounts_token_is_minted(world: World) -> None:
    """From a key file an hour's token is sent; the account's name and project come with it."""
    world.adc_account()
    grant = only_token(world.collect())
    assert (grant.email, grant.project_id) == (ACCOUNT, "demo-project")
    assert world.google.operations() == ["jwt-bearer"]


def test_a_service_accounts_key_is_sent_only_when_asked_for_by_name(world: World) -> None:
    """--send-service-account-key sends the key as the file has it."""
    pem = world.adc_account()
    collected = world.collect(send_key=True)
    (grant,) = collected.grants
    assert isinstance(grant, GcpServiceAccount)
    assert (grant.client_email, grant.private_key_id) == (ACCOUNT, "key-1")
    assert grant.private_key.reveal() == pem
    assert "revoked" in collected.warnings[0]


def test_the_wrong_kind_of_long_lived_credential_is_explained(world: World) -> None:
    """A refresh token cannot be sent from a key file, nor a key from a user's sign-in; the hint names the other option."""
    world.adc_account()
    with pytest.raises(UsageError) as caught:
        world.collect(send_refresh_token=True)
    assert "--send-service-account-key" in (caught.value.hint or "")
    world.adc_user()
    with pytest.raises(UsageError) as caught:
        world.collect(send_key=True)
    assert "--send-refresh-token" in (caught.value.hint or "")


def test_a_users_token_is_for_the_scopes_that_were_named(world: World) -> None:
    """--scope narrows a user's token, and not only what is said of it; who cannot be narrowed is not sent."""
    world.adc_user()
    grant = only_token(world.collect(scopes=(READ_ONLY,)))
    assert world.google.tokens[grant.access_token.reveal()].scopes == grant.scopes == (READ_ONLY,)
    sign_on = {
        "audience": "//iam.googleapis.com/locations/global/workforcePools/p/providers/q",
        "client_id": "i",
        "token_url": "https://sts.googleapis.com/v1/oauthtoken",
    }
    world.adc(type="external_account_authorized_user", client_secret="s", refresh_token="r", **sign_on)
    with pytest.raises(UsageError, match="cannot narrow") as caught:
        world.collect(scopes=(READ_ONLY,))
    assert "--impersonate" in (caught.value.hint or "")


def test_a_service_account_is_impersonated_for_least_privilege(world: World) -> None:
    """--impersonate sends that account's token and no more."""
    world.adc_user()
    grant = only_token(world.collect(impersonate=TARGET, scopes=(READ_ONLY,)))
    held = world.google.tokens[grant.access_token.reveal()]
    assert (held.principal, held.scopes) == (TARGET, grant.scopes)
    assert grant.email == TARGET


def test_impersonation_can_be_left_to_the_worker(world: World) -> None:
    """With the refresh token sent, the worker impersonates by itself: a base and what stands on it."""
    world.adc_user()
    collected = world.collect(impersonate=TARGET, send_refresh_token=True)
    base, grant = collected.grants
    assert isinstance(base, GcpAuthorizedUser)
    assert isinstance(grant, GcpImpersonation)
    assert (grant.base, grant.target_principal, collected.route) == (base.id, TARGET, grant.id)


def test_what_impersonates_is_not_narrowed_with_what_is_impersonated(world: World) -> None:
    """--scope is of the token that programs get; without the scope to impersonate the worker would never get one."""
    world.adc_account()
    base, grant = world.collect(impersonate=TARGET, scopes=(READ_ONLY,), send_key=True).grants
    assert isinstance(base, GcpServiceAccount)
    assert isinstance(grant, GcpImpersonation)
    assert (base.scopes, grant.scopes) == ((CLOUD_PLATFORM,), (READ_ONLY,))


def test_a_refresh_token_is_used_for_no_more_than_the_scopes_that_are_named(world: World) -> None:
    """--scope narrows what the worker mints from the refresh token too."""
    world.adc_user()
    (grant,) = world.collect(scopes=(READ_ONLY,), send_refresh_token=True).grants
    assert isinstance(grant, GcpAuthorizedUser)
    assert grant.scopes == (READ_ONLY,)


def test_an_impersonating_sign_in_is_taken_apart(world: World) -> None:
    """`gcloud auth application-default login --impersonate-service-account`: the token by default, both parts on request."""
    source = {"type": "authorized_user", **{k: world.user[k] for k in ("client_id", "client_secret", "refresh_token")}}
    world.adc(
        type="impersonated_service_account",
        source_credentials=source,
        service_account_impersonation_url=f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{TARGET}:generateAccessToken",
        delegates=["projects/-/serviceAccounts/first@demo-project.iam.gserviceaccount.com"],
    )
    world.google.account("first@demo-project.iam.gserviceaccount.com")
    assert only_token(world.collect()).email == TARGET
    base, grant = world.collect(send_refresh_token=True).grants
    assert isinstance(base, GcpAuthorizedUser)
    assert isinstance(grant, GcpImpersonation)
    assert (grant.target_principal, grant.delegates) == (TARGET, ("first@demo-project.iam.gserviceaccount.com",))
    # A third account, which that of the sign-in may impersonate, and the user may not: either way says who asks whom.
    world.google.account(ACCOUNT, token_creators=frozenset({TARGET}))
    assert only_token(world.collect(impersonate=ACCOUNT)).email == ACCOUNT
    _, grant = world.collect(impersonate=ACCOUNT, send_refresh_token=True).grants
    assert isinstance(grant, GcpImpersonation)
    assert grant.target_principal == ACCOUNT
    assert grant.delegates == ("first@demo-project.iam.gserviceaccount.com", TARGET)


def test_a_revoked_sign_in_is_explained(world: World) -> None:
    """invalid_grant becomes a sentence and the command that mends it, without the token."""
    world.adc_user()
    world.google.users.clear()
    with pytest.raises(Denied) as caught:
        world.collect()
    assert caught.value.code == "invalid_grant"
    assert "gcloud auth application-default login" in (caught.value.hint or "")
    assert world.user["refresh_token"] not in f"{caught.value}{caught.value.hint}"


def test_a_file_that_is_no_credential_is_explained_without_its_content(world: World) -> None:
    """Missing, not JSON, of another type: a sentence, and no secret in it."""
    with pytest.raises(Denied, match="no application default credentials"):
        world.collect(send_refresh_token=True)
    world.adc(type="external_account", client_secret="sssecret")
    with pytest.raises(UsageError, match="nothing long-lived") as caught:
        world.collect(send_refresh_token=True)
    assert "sssecret" not in str(caught.value)
    world.adc(type="authorized_user", refresh_token=["sssecret"])
    with pytest.raises(Denied, match="not application default credentials") as denied:
        world.collect(send_refresh_token=True)
    assert "sssecret" not in str(denied.value)
    assert caught.value.__context__ is None


def test_an_outage_may_pass(world: World) -> None:
    """A network that does not answer is Transient."""
    world.adc_user()
    with laptop(world.monkeypatch, world.home), pytest.raises(Transient):
        from_adc(GcpOptions(), now=now(), transport=Detour("http://127.0.0.1:9"))


def test_what_an_address_asks_for_is_not_repeated(world: World) -> None:
    """An identity provider's address may carry a secret in its query; the address itself helps whoever reads it."""

    def unreachable(*_: object, **__: object) -> None:
        raise TransportError("Max retries exceeded with url: https://idp.example/token?key=sssecret now")

    world.adc_user()
    with laptop(world.monkeypatch, world.home), pytest.raises(Transient) as caught:
        from_adc(GcpOptions(), now=now(), transport=unreachable)
    assert "https://idp.example/token now" in str(caught.value)
    assert "sssecret" not in str(caught.value)


def test_a_server_error_may_pass(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token endpoint in trouble is tried again by google-auth, and then Transient."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    world.adc_user()
    world.google.weather = lambda _: Weather(status=503, code="internal_failure")
    with pytest.raises(Transient):
        world.collect()


def test_no_identity_is_explained(world: World) -> None:
    """No application default credentials, or broken ones: what to do is said."""
    with pytest.raises(Denied, match="no usable Google identity") as caught:
        world.collect()
    assert "gcloud auth application-default login" in (caught.value.hint or "")
    world.adc(type="something_new")
    with pytest.raises(Denied):
        world.collect()


def test_a_token_without_an_end_is_not_sent(world: World) -> None:
    """A credential whose end is not known would be served past it."""
    world.adc_user()
    world.google.expires_in = lambda _: -timedelta(hours=1).total_seconds()
    with pytest.raises(Denied, match="not known, or past"):
        world.collect()
