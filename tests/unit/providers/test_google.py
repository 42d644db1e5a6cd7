"""Google grants against endpoints that verify what they are sent."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from agent.core.errors import Denied, Transient
from agent.core.model import (
    CLOUD_PLATFORM,
    AwsSession,
    GcpAuthorizedUser,
    GcpExternalAccount,
    GcpImpersonation,
    GcpServiceAccount,
    GcpToken,
    Grant,
    IdToken,
    WebTokenGce,
    WebTokenInline,
    mints_id_tokens,
)
from agent.core.secret import Secret
from agent.providers import GoogleEndpoints
from tests.fakes.net import Fault
from tests.fakes.sts import Weather
from tests.unit.providers.support import AWS_POOL, MACHINE, OIDC_POOL, ROBOT, World, pem, run, told

STORAGE = "https://www.googleapis.com/auth/devstorage.read_only"


def authorized_user(world: World, **more: Any) -> GcpAuthorizedUser:
    user = world.google.user()
    return GcpAuthorizedUser(
        id="u",
        client_id=user["client_id"],
        client_secret=Secret(user["client_secret"]),
        refresh_token=Secret(user["refresh_token"]),
        **more,
    )


def impersonation(**more: Any) -> GcpImpersonation:
    return GcpImpersonation(id="i", target_principal=ROBOT, base="u", **more)


def federation(world: World, **more: Any) -> GcpExternalAccount:
    """Google from an AWS identity."""
    world.google.pools[AWS_POOL] = "aws"
    return GcpExternalAccount(id="x", audience=AWS_POOL, base="instance", **more)


# -- access tokens


def test_nobody_is_asked_for_a_finished_token() -> None:
    """A finished credential is its own: to ask for one is our own mistake, and reaches nobody."""
    world = World()

    with pytest.raises(RuntimeError, match="finished"):
        world.issue(GcpToken(id="t", access_token=Secret("ya29.x"), expires_at=1800000000))
    assert world.google.calls == []


def test_refresh_token_is_exchanged() -> None:
    """A refresh token becomes an access token whose life counts from our now, and whose owner is known."""
    world = World()

    issued = world.issue(authorized_user(world))

    token = world.google.tokens[issued.credential.access_token.reveal()]
    assert token.principal == issued.credential.email == "ada@example.com"
    assert issued.credential.expires_at == world.now + timedelta(seconds=3599)
    assert issued.server_time == world.now


def test_refresh_token_scopes_are_asked_for_and_reported() -> None:
    """Scopes of the grant are asked for; what was granted is what the credential says."""
    world = World()

    credential = world.gcp(authorized_user(world, scopes=(STORAGE,), email="given@example.com"))

    assert world.google.calls[0].parameters["scope"] == STORAGE
    assert (credential.scopes, credential.email) == ((STORAGE,), "given@example.com")


def test_service_account_signs_an_assertion() -> None:
    """An assertion signed with the account's key becomes a token for its scopes."""
    world = World()

    credential = world.gcp(world.service_account(scopes=(STORAGE, CLOUD_PLATFORM)))

    token = world.google.tokens[credential.access_token.reveal()]
    assert (token.principal, token.scopes) == (ROBOT, (STORAGE, CLOUD_PLATFORM))
    assert credential.email == ROBOT


def test_impersonation_with_another_grant() -> None:
    """A service account is impersonated with the base's token, for the scopes and the lifetime of the grant."""
    world = World()
    delegate = "mid@x.iam.gserviceaccount.com"
    world.google.account(delegate, token_creators=frozenset({"ada@example.com"}))
    world.google.account(ROBOT, token_creators=frozenset({delegate}), max_seconds=43200)
    grant = impersonation(scopes=(STORAGE,), lifetime_seconds=7200, delegates=(delegate,))

    credential = world.gcp(grant, world.google_token())

    token = world.google.tokens[credential.access_token.reveal()]
    assert (token.principal, token.scopes) == (ROBOT, (STORAGE,))
    assert credential.expires_at == world.now + timedelta(hours=2)
    assert credential.email == ROBOT


def test_impersonation_falls_back_to_an_hour_and_remembers() -> None:
    """Without the organisation policy for long tokens, an hour is asked for instead; the refused call happens once."""
    world = World()
    world.google.account(ROBOT)

    for _ in range(2):
        credential = world.gcp(impersonation(lifetime_seconds=43200), world.google_token())
        assert credential.expires_at == world.now + timedelta(hours=1)

    assert len(world.google.calls) == 3


def test_principal_stays_one_path_segment() -> None:
    """A principal from a bundle cannot reach another path of the API."""
    world = World()
    seen = []
    handler = world.google

    def watch(asked: Any) -> Any:
        seen.append(asked.path_qs)
        return handler(asked)

    world.net.routes["https://iamcredentials.googleapis.com"] = watch
    grant = GcpImpersonation(id="i", target_principal="../../x?a=b#c@y", base="u")

    with pytest.raises(Denied):
        world.issue(grant, world.google_token())

    assert seen == ["/v1/projects/-/serviceAccounts/..%2F..%2Fx%3Fa%3Db%23c@y:generateAccessToken"]


def test_federation_from_aws() -> None:
    """Google from an EC2 worker without any secret: Google verifies the signed request with AWS, and knows the role."""
    world = World()

    credential = world.gcp(federation(world, scopes=(STORAGE,)), world.role_session())

    token = world.google.tokens[credential.access_token.reveal()]
    assert token.principal == f"principal:{AWS_POOL}/subject/{MACHINE}"
    assert (token.scopes, credential.scopes) == ((STORAGE,), (STORAGE,))
    assert world.sts.operations() == ["GetCallerIdentity"]
    assert credential.email is None


def test_federation_with_impersonation() -> None:
    """A federated token is used to impersonate the service account that the grant names."""
    world = World()
    world.google.account(ROBOT, token_creators=frozenset({f"principal:{AWS_POOL}/subject/{MACHINE}"}))

    credential = world.gcp(federation(world, service_account=ROBOT, scopes=(STORAGE,)), world.role_session())

    assert credential.email == ROBOT
    assert world.google.operations() == ["token-exchange", "generateAccessToken"]
    assert world.google.calls[0].parameters["scope"] == CLOUD_PLATFORM
    assert world.google.tokens[credential.access_token.reveal()].scopes == (STORAGE,)


def test_federation_from_an_oidc_token() -> None:
    """An OpenID Connect token is exchanged as it is."""
    world = World()
    world.google.pools[OIDC_POOL] = "https://issuer.example"
    token = world.google._jwt({"iss": "https://issuer.example", "sub": "job"})
    grant = GcpExternalAccount(id="x", audience=OIDC_POOL, token=WebTokenInline(token=Secret(token)))

    credential = world.gcp(grant)

    principal = world.google.tokens[credential.access_token.reveal()].principal
    assert principal == f"principal:{OIDC_POOL}/subject/job"


def test_federation_from_the_gce_machine() -> None:
    """The machine's own identity token serves as the subject."""
    world = World(on_gce=True)
    world.google.pools[OIDC_POOL] = "https://accounts.google.com"
    grant = GcpExternalAccount(id="x", audience=OIDC_POOL, token=WebTokenGce(audience="x"))

    assert world.gcp(grant).expires_at > world.now


@pytest.mark.parametrize("expires_in", [3599, "3599"])
def test_life_as_text_is_a_number(expires_in: object) -> None:
    """Google's token service has been seen to send ``expires_in`` as text."""
    world = World()
    world.google.expires_in = lambda seconds: expires_in

    assert world.gcp(federation(world), world.role_session()).expires_at == world.now + timedelta(seconds=3599)


@pytest.mark.parametrize("expires_in", [0, -1, "", "soon", None, 1.5, "99999999"])
def test_life_that_is_no_life_is_refused(expires_in: object) -> None:
    """A token without a usable end is not handed on."""
    world = World()
    world.google.expires_in = lambda seconds: expires_in

    with pytest.raises(Transient):
        world.issue(authorized_user(world))


# -- where requests go


def test_own_endpoints_win() -> None:
    """An operator's endpoints replace Google's for every kind, whatever a grant names."""
    world = World(google=GoogleEndpoints.at("http://127.0.0.1:9"))
    world.net.routes = {"http://127.0.0.1:9": world.google}
    world.google.account(ROBOT)

    world.issue(authorized_user(world))
    world.issue(world.service_account())
    world.issue(federation(world, service_account=ROBOT), world.role_session())

    assert world.google.operations() == ["refresh_token", "jwt-bearer", "token-exchange", "generateAccessToken"]


def test_named_token_uris_must_be_allowed() -> None:
    """The token endpoints that a key or a federation names are compared with the allow-list before anything is sent."""
    world = World()
    key = world.service_account()
    asked: list[Any] = []
    world.net.routes["*"] = asked.append  # type: ignore[assignment]
    elsewhere = "https://token.evil.example/token"
    grants: list[tuple[Grant, Any]] = [
        (
            GcpServiceAccount(
                id="s",
                client_email=key.client_email,
                private_key_id=key.private_key_id,
                private_key=key.private_key,
                token_uri=elsewhere,
            ),
            None,
        ),
        (federation(world, token_url=elsewhere), world.role_session()),
    ]
    for grant, base in grants:
        with pytest.raises(Denied) as caught:
            world.issue(grant, base)
        assert caught.value.code == "url-not-allowed"
    assert asked == []


def test_older_token_uri_of_google_is_known() -> None:
    """Old key files name another of Google's own endpoints; the assertion goes there."""
    world = World()
    uri = "https://accounts.google.com/token"
    world.net.routes["https://accounts.google.com"] = world.google

    assert world.gcp(world.service_account(token_uri=uri)).expires_at > world.now


# -- refusals


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_grant", Denied),
        (401, "invalid_client", Denied),
        (400, "unauthorized_client", Denied),
        (400, "invalid_scope", Denied),
        (403, "access_denied", Denied),
        (400, "internal_failure", Transient),
        (400, "temporarily_unavailable", Transient),
        (400, "server_error", Transient),
        (429, "rate_limit", Transient),
        (408, "timeout", Transient),
        (500, "internal_failure", Transient),
        (503, "backend_error", Transient),
    ],
)
def test_refusals_are_told_apart(status: int, code: str, kind: type[Exception]) -> None:
    """What will not pass by itself is Denied, everything else Transient."""
    world = World()
    grant = authorized_user(world)
    world.weather(Weather(status=status, code=code))

    with pytest.raises((Denied, Transient)) as caught:
        world.issue(grant)

    assert (type(caught.value), caught.value.code, caught.value.server_time) == (kind, code, world.now)


@pytest.mark.parametrize(
    "weather",
    [
        Weather(fault=Fault.HANG),
        Weather(fault=Fault.DOWN),
        Weather(body=b"<html>login</html>"),
        Weather(body=b""),
        Weather(body=b"[]"),
        Weather(body=b'{"access_token": 7}'),
        Weather(body=b'{"expires_in": 3599}'),
        Weather(body=b"\xff\xfe"),
        Weather(body=b"<html/>", status=302),
        Weather(body=b"<html/>", status=403),
        Weather(body=b'{"error": 7}', status=400),
    ],
)
def test_what_is_not_google_is_passing(weather: Weather) -> None:
    """Silence, closed connections and somebody else's pages are Transient for every exchange."""
    world = World()
    world.google.account(ROBOT)
    grants: list[tuple[Grant, Any]] = [
        (authorized_user(world), None),
        (world.service_account(), None),
        (impersonation(), world.google_token()),
        (federation(world), world.role_session()),
    ]
    world.google.weather = lambda operation: weather
    for grant, base in grants:
        with pytest.raises(Transient):
            world.issue(grant, base)


def test_revoked_refresh_token_is_denied() -> None:
    """A revoked refresh token is said as such, with what to do."""
    world = World()
    grant = authorized_user(world)
    world.google.users.clear()

    with pytest.raises(Denied, match=r"invalid_grant: Token has been expired or revoked\.") as caught:
        world.issue(grant)

    assert caught.value.hint is not None
    assert "new bundle" in caught.value.hint


def test_not_allowed_to_impersonate() -> None:
    """A missing permission names it, and the role that gives it."""
    world = World()
    world.google.account(ROBOT, token_creators=frozenset())

    with pytest.raises(Denied, match=r"PERMISSION_DENIED: .*getAccessToken") as caught:
        world.issue(impersonation(), world.google_token())

    assert caught.value.hint is not None
    assert "serviceAccountTokenCreator" in caught.value.hint


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_is_off_is_mended_by_the_refusal(hours: int) -> None:
    """An assertion or a signed request refused for its time is Transient and brings the server's time."""
    world = World()
    grants: list[tuple[Grant, Any]] = [
        (world.service_account(), None),
        (federation(world), world.role_session()),
    ]
    world.cloud_time_off = timedelta(hours=hours)
    for grant, base in grants:
        with pytest.raises(Transient) as caught:
            world.issue(grant, base)
        assert caught.value.server_time == world.cloud_time
        assert caught.value.code == "invalid_grant"


def test_bad_assertion_is_denied_when_the_clock_is_right() -> None:
    """A key that Google does not know will not be known later."""
    world = World()
    grant = world.service_account()
    world.google.accounts[ROBOT].keys.clear()

    with pytest.raises(Denied, match="invalid_grant"):
        world.issue(grant)


UNUSABLE_KEYS = {
    "empty": "",
    "no pem": "canary",
    "bad pem": "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n",
    "elliptic": pem(ec.generate_private_key(ec.SECP256R1())),
    "edwards": pem(ed25519.Ed25519PrivateKey.generate()),
    "short": pem(rsa.generate_private_key(65537, 1024)),
}


@pytest.mark.parametrize("key", UNUSABLE_KEYS.values(), ids=UNUSABLE_KEYS)
def test_unusable_key_is_denied(key: str) -> None:
    """A private key that is none is refused without repeating it."""
    grant = GcpServiceAccount(id="s", client_email=ROBOT, private_key_id="k", private_key=Secret(key))

    with pytest.raises(Denied) as caught:
        World().issue(grant)

    assert caught.value.code == "invalid-key"
    assert "canary" not in told(caught.value)


def test_no_secret_reaches_an_error_text() -> None:
    """Subject tokens that come back in a refusal are cut out."""
    world = World()
    base = world.role_session()
    world.google.pools[OIDC_POOL] = "https://issuer.example"
    inline = GcpExternalAccount(id="x", audience=OIDC_POOL, token=WebTokenInline(token=Secret("canary.token.x")))
    aws = federation(world)
    world.sts.principals.clear()
    for grant, stands_on in ((inline, None), (aws, base)):
        with pytest.raises(Denied) as caught:
            world.issue(grant, stands_on)
        text = told(caught.value)
        assert "redacted" in text
        assert "canary" not in text
        assert base.session_token.reveal() not in text
        assert "Signature" not in text


# -- identity tokens


def id_token(world: World, grant: Grant | None, base: Any = None, audience: str = "https://service.example") -> IdToken:
    token = run(world.mint.id_token(grant, base, audience, world.now))
    assert isinstance(token, IdToken)
    return token


def test_identity_token_of_the_machine() -> None:
    """The GCE machine's own identity token, with its own end."""
    world = World(on_gce=True)

    token = id_token(world, None)

    assert (token.audience, token.expires_at) == ("https://service.example", world.now + timedelta(hours=1))


def test_identity_tokens_of_the_kinds_that_can() -> None:
    """Keys, impersonation and federation with a service account make identity tokens for any audience."""
    world = World()
    world.google.account(ROBOT)
    key = world.service_account()
    kinds: list[tuple[Grant, Any]] = [
        (key, None),
        (impersonation(), world.google_token()),
        (federation(world, service_account=ROBOT), world.role_session()),
    ]
    for grant, base in kinds:
        assert mints_id_tokens(grant)
        token = id_token(world, grant, base)
        assert token.expires_at == world.now + timedelta(hours=1)
        assert token.token.reveal().count(".") == 2


def test_identity_tokens_of_the_kinds_that_cannot() -> None:
    """Other kinds say that they cannot, with the code for it."""
    world = World()
    session = AwsSession(
        id="s", access_key_id="A" * 20, secret_access_key=Secret("s"), session_token=Secret("t"), expires_at=1
    )
    finished = GcpToken(id="t", access_token=Secret("x"), expires_at=1)
    for grant in (authorized_user(world), finished, federation(world), session):
        assert not mints_id_tokens(grant)
        with pytest.raises(Denied) as caught:
            id_token(world, grant)
        assert caught.value.code == "unsupported"


def test_identity_token_of_a_machine_that_is_no_gce_instance() -> None:
    """Elsewhere the machine has no Google identity token."""
    world = World()

    with pytest.raises(Denied) as caught:
        id_token(world, None)
    assert caught.value.code == "unsupported"


def test_identity_token_without_a_service_account() -> None:
    """A GCE machine without a service account has no identity token."""
    world = World(on_gce=True)
    world.gce.email = None

    with pytest.raises(Denied) as caught:
        id_token(world, None)
    assert caught.value.code == "unsupported"


def _says(text: str, _audience: str) -> str:
    return text


def test_identity_token_without_an_end_is_refused() -> None:
    """What is not a token with an end is not handed on."""
    world = World(on_gce=True)
    for text in ("abc", "a.b.c", "a.e30.c"):
        world.gce.identity = partial(_says, text)
        with pytest.raises(Transient):
            id_token(world, None)
