"""AWS grants against a service that speaks the real protocol."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import ConfigError, Denied, Transient
from agent.core.model import (
    AwsAssumeRole,
    AwsCredential,
    AwsKeys,
    AwsWebIdentity,
    Cloud,
    Env,
    Expect,
    HttpBroker,
    WebTokenFile,
    WebTokenGce,
    WebTokenInline,
    WebTokenUrl,
)
from agent.core.secret import Secret
from agent.providers.aws import account_of, same_identity
from agent.providers.regions import main_region, sts_url
from tests.fakes.net import Answer, Fault
from tests.fakes.sts import Weather
from tests.unit.providers.support import ACCOUNT, BROKER, MACHINE, READER, World, run, told


def reader(**more: Any) -> AwsAssumeRole:
    return AwsAssumeRole(id="reader", role_arn=READER, **more)


# -- finished sessions and keys


def test_keys_are_exchanged() -> None:
    """Long-term keys become a session of the length asked for; the keys themselves are never the credential."""
    world = World()
    grant = world.keys(duration_seconds=7200)

    credential = world.aws(grant)

    assert world.sts.operations() == ["GetSessionToken"]
    assert credential.access_key_id != grant.access_key_id
    assert credential.secret_access_key != grant.secret_access_key
    assert credential.expires_at == world.now + timedelta(hours=2)


def test_server_time_is_reported() -> None:
    """The Date of the answer comes with the credential."""
    world = World()
    world.cloud_time_off = timedelta(seconds=90)

    assert world.issue(world.keys()).server_time == world.now + timedelta(seconds=90)


# -- roles


def test_role_is_assumed_with_everything_the_grant_says() -> None:
    """Every field of the grant reaches STS under its own name."""
    world = World()
    world.sts.role(READER, external_id="ext-1")
    grant = reader(
        session_name="job-7",
        duration_seconds=7200,
        external_id="ext-1",
        policy='{"Version":"2012-10-17"}',
        policy_arns=("arn:aws:iam::aws:policy/ReadOnlyAccess",),
        tags={"team": "a b", "run": "7"},
        transitive_tag_keys=("team",),
        source_identity="ada",
    )

    credential = world.aws(grant, world.user_session())

    sent = world.sts.calls[0].parameters
    assert sent == {
        "Action": "AssumeRole",
        "Version": "2011-06-15",
        "RoleArn": READER,
        "RoleSessionName": "job-7",
        "DurationSeconds": "7200",
        "ExternalId": "ext-1",
        "Policy": '{"Version":"2012-10-17"}',
        "PolicyArns.member.1.arn": "arn:aws:iam::aws:policy/ReadOnlyAccess",
        "Tags.member.1.Key": "team",
        "Tags.member.1.Value": "a b",
        "Tags.member.2.Key": "run",
        "Tags.member.2.Value": "7",
        "TransitiveTagKeys.member.1": "team",
        "SourceIdentity": "ada",
    }
    assert credential.role_arn == f"arn:aws:sts::{ACCOUNT}:assumed-role/reader/job-7"
    assert credential.account_id == ACCOUNT
    assert credential.expires_at == world.now + timedelta(hours=2)


def test_role_from_the_machine() -> None:
    """A role stands on the instance profile's credential."""
    world = World(on_ec2=True)
    issued = run(world.mint.instance(Cloud.AWS, world.now))
    assert issued is not None
    assert isinstance(issued.credential, AwsCredential)

    credential = world.aws(reader(), issued.credential)

    assert credential.expires_at == world.now + timedelta(hours=1)


def test_known_chaining_asks_for_an_hour_at_once() -> None:
    """A role on top of a known role session asks for the hour that AWS allows, in one call."""
    world = World()

    credential = world.aws(reader(duration_seconds=43200), world.role_session())

    assert world.sts.operations() == ["AssumeRole"]
    assert credential.expires_at == world.now + timedelta(hours=1)


def test_unknown_chaining_falls_back_to_an_hour_and_remembers() -> None:
    """A base that turns out to be a role's costs one refused call, once."""
    world = World()
    base = world.role_session(known=False)

    for _ in range(2):
        assert world.aws(reader(duration_seconds=43200), base).expires_at == world.now + timedelta(hours=1)

    assert [call.parameters["DurationSeconds"] for call in world.sts.calls] == ["43200", "3600", "3600"]


def test_role_maximum_falls_back_to_an_hour() -> None:
    """A role that allows less than the grant asks for gives what it always allows, instead of nothing."""
    world = World()
    world.sts.role(READER, max_seconds=7200)

    credential = world.aws(reader(duration_seconds=43200), world.user_session())

    assert credential.expires_at == world.now + timedelta(hours=1)


def test_user_session_is_not_chaining() -> None:
    """A role on top of exchanged keys may live as long as the role allows."""
    world = World()

    credential = world.aws(reader(duration_seconds=43200), world.user_session())

    assert credential.expires_at == world.now + timedelta(hours=12)


# -- the probe


@pytest.mark.parametrize(
    "expect",
    [
        Expect(account_id=ACCOUNT),
        Expect(arn=READER),
        Expect(arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/reader/credential-agent"),
        Expect(account_id=ACCOUNT, arn=READER),
    ],
)
def test_probe_accepts_the_expected_identity(expect: Expect) -> None:
    """A credential that is who the grant says is handed over after one probe with the new credential itself."""
    world = World()

    credential = world.aws(reader(expect=expect), world.user_session())

    assert world.sts.operations() == ["AssumeRole", "GetCallerIdentity"]
    assert world.sts.calls[1].access_key_id == credential.access_key_id


@pytest.mark.parametrize(
    "expect",
    [
        Expect(account_id="999999999999"),
        Expect(arn=f"arn:aws:iam::{ACCOUNT}:role/other"),
        Expect(arn="arn:aws:iam::999999999999:role/jobs/reader"),
        Expect(arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/reader/somebody-else"),
        Expect(account_id=ACCOUNT, arn=f"arn:aws:iam::{ACCOUNT}:role/other"),
        Expect(account_id="999999999999", arn=READER),
    ],
)
def test_probe_refuses_another_identity(expect: Expect) -> None:
    """A credential that is somebody else's is refused before anybody is given it."""
    world = World()

    with pytest.raises(Denied) as caught:
        world.issue(reader(expect=expect), world.user_session())

    assert caught.value.code == "unexpected-identity"


def test_probe_can_be_switched_off() -> None:
    """Without the probe nothing but the exchange itself is asked."""
    world = World(probe=False)

    world.issue(reader(expect=Expect(account_id="999999999999")), world.user_session())

    assert world.sts.operations() == ["AssumeRole"]


def test_probe_failure_is_passing() -> None:
    """A probe that gets no answer says nothing against the credential: try again."""
    world = World()
    world.weather(Weather(status=500), "GetCallerIdentity")

    with pytest.raises(Transient):
        world.issue(reader(expect=Expect(arn=READER)), world.user_session())


def test_probe_tells_the_account() -> None:
    """The account of exchanged keys is known from the probe."""
    world = World()

    assert world.aws(world.keys(expect=Expect(account_id=ACCOUNT))).account_id == ACCOUNT


@pytest.mark.parametrize(
    ("expected", "caller", "same"),
    [
        ("arn:aws:iam::1:user/a", "arn:aws:iam::1:user/a", True),
        ("arn:aws:iam::1:role/p/q/R", "arn:aws:sts::1:assumed-role/R/s", True),
        ("arn:aws:iam::1:role/R", "arn:aws:sts::1:assumed-role/R/s", True),
        ("arn:aws:iam::1:role/R", "arn:aws:sts::2:assumed-role/R/s", False),
        ("arn:aws-cn:iam::1:role/R", "arn:aws:sts::1:assumed-role/R/s", False),
        ("arn:aws:iam::1:role/R", "arn:aws:sts::1:assumed-role/RR/s", False),
        ("arn:aws:iam::1:role/R", "arn:aws:sts::1:federated-user/R", False),
        ("arn:aws:iam::1:user/R", "arn:aws:sts::1:assumed-role/R/s", False),
        ("arn:aws:iam::1:role/R", "arn:aws:sts::1:assumed-role/R/s/t", False),
        ("arn:aws:iam::1:role/R", "arn:aws:sts::1:another/R/s", False),
        ("R", "arn:aws:sts::1:assumed-role/R/s", False),
        ("", "", True),
    ],
)
def test_an_arn_is_compared_whole_or_a_role_with_its_sessions(expected: str, caller: str, same: bool) -> None:
    """An ARN is compared whole, or a role with its own sessions."""
    assert same_identity(expected, caller) == same


# -- refusals


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", Denied),
        (403, "InvalidClientTokenId", Denied),
        (403, "ExpiredToken", Denied),
        (400, "MalformedPolicyDocument", Denied),
        (400, "PackedPolicyTooLarge", Denied),
        (400, "ValidationError", Denied),
        (403, "RegionDisabledException", Denied),
        (403, "SignatureDoesNotMatch", Denied),
        (403, "OptInRequired", Denied),
        (400, "SomethingNew", Denied),
        (400, "Throttling", Transient),
        (400, "ThrottlingException", Transient),
        (400, "RequestLimitExceeded", Transient),
        (400, "IDPCommunicationError", Transient),
        (400, "RequestExpired", Transient),
        (403, "RequestTimeTooSkewed", Transient),
        (429, "TooManyRequests", Transient),
        (408, "RequestTimeout", Transient),
        (500, "InternalFailure", Transient),
        (503, "ServiceUnavailable", Transient),
        (503, "AccessDenied", Transient),
    ],
)
def test_refusals_are_told_apart_by_code(status: int, code: str, kind: type[Exception]) -> None:
    """What will not pass by itself is Denied, everything else Transient; the code is STS's own."""
    world = World()
    grant = world.keys()
    world.weather(Weather(status=status, code=code))

    with pytest.raises((Denied, Transient)) as caught:
        world.issue(grant)

    assert (type(caught.value), caught.value.code) == (kind, code)
    assert caught.value.server_time == world.now


def assumed(arn: str, world: World) -> Weather:
    """An answer of AssumeRole that is whole, and that says that it is ``arn``."""
    ends = (world.now + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Weather(
        body=f"<AssumeRoleResponse><AssumeRoleResult><AssumedRoleUser><Arn>{arn}</Arn></AssumedRoleUser><Credentials>"
        f"<AccessKeyId>ASIAANOTHERS00000000</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
        f"<SessionToken>t</SessionToken><Expiration>{ends}</Expiration></Credentials></AssumeRoleResult>"
        "</AssumeRoleResponse>".encode()
    )


@pytest.mark.parametrize(
    "arn",
    [
        f"arn:aws:sts::{ACCOUNT}:assumed-role/admin/s",
        f"arn:aws:sts::{ACCOUNT}:assumed-role/reader2/s",
        "arn:aws:sts::999999999999:assumed-role/reader/s",
        f"arn:aws-cn:sts::{ACCOUNT}:assumed-role/reader/s",
    ],
)
def test_a_session_of_another_role_is_not_taken(arn: str) -> None:
    """An answer that names another role or account than was asked for (a cache's, say) is nobody's credential."""
    world = World()
    world.weather(assumed(arn, world))

    with pytest.raises(Transient) as caught:
        world.aws(reader(), world.user_session())

    assert caught.value.code == "unexpected-identity"
    assert arn in caught.value.message


@pytest.mark.parametrize(
    "arn",
    [f"arn:aws:sts::{ACCOUNT}:assumed-role/Reader/s", "", "arn:aws:sts:::assumed-role/x/y", "arn:minio:sts:::x", "me"],
)
def test_an_emulator_that_does_not_name_the_role_is_taken_at_its_word(arn: str) -> None:
    """Where the answer names no role in AWS's form, or another spelling of it, there is nothing to compare."""
    world = World()
    world.weather(assumed(arn, world))

    assert world.aws(reader(), world.user_session()).access_key_id == "ASIAANOTHERS00000000"


@pytest.mark.parametrize(
    ("weather", "code"),
    [
        (Weather(fault=Fault.DOWN), "network"),
        (Weather(fault=Fault.HANG), "timeout"),
        (Weather(body=b"<html>proxy login</html>"), "protocol"),
        (Weather(body=b""), "protocol"),
        (Weather(body=b"\xff\xfe\x00"), "protocol"),
        (Weather(body=b"<GetSessionTokenResponse/>"), "protocol"),
        (Weather(body=b"<html/>", status=302), "http-302"),
        (Weather(body=b"<html/>", status=403), "http-403"),
        (Weather(body=b"junk", status=400), "http-400"),
        (Weather(body=b"<html>bad gateway</html>", status=502), "502"),
    ],
)
def test_what_is_not_sts_is_passing(weather: Weather, code: str) -> None:
    """Silence, closed connections and somebody else's pages are Transient, never a crash and never Denied."""
    world = World()
    grant = world.keys()
    world.weather(weather)

    with pytest.raises(Transient) as caught:
        world.issue(grant)

    assert caught.value.code in {code, f"http-{code}"}


@pytest.mark.parametrize("hours", [-30, -1, 1, 30])
def test_a_clock_that_is_off_is_mended_by_the_refusal(hours: int) -> None:
    """A signature refused for its time is Transient and brings the server's time, with which the next attempt works."""
    world = World()
    grant = world.keys()
    world.cloud_time_off = timedelta(hours=hours)

    with pytest.raises(Transient) as caught:
        world.issue(grant)

    assert caught.value.server_time == world.cloud_time
    assert caught.value.hint is not None
    assert f"{abs(hours) * 3600} s {'behind' if hours > 0 else 'ahead of'}" in caught.value.hint
    assert caught.value.server_time is not None
    world.clock.set_utc(caught.value.server_time)
    world.cloud_time_off = timedelta()
    assert world.aws(grant).expires_at > world.now


def test_wrong_secret_is_denied_when_the_clock_is_right() -> None:
    """A signature that does not match while the clocks agree will not match later."""
    world = World()
    grant = AwsKeys(id="k", access_key_id=world.keys().access_key_id, secret_access_key=Secret("wrong"))

    with pytest.raises(Denied) as caught:
        world.issue(grant)

    assert caught.value.code == "SignatureDoesNotMatch"


def test_ended_base_is_denied() -> None:
    """A base that has ended is refused, with a hint that says so."""
    world = World()
    base = world.user_session()
    world.clock.move(43201)

    with pytest.raises(Denied, match="ExpiredToken") as caught:
        world.issue(reader(), base)

    assert caught.value.hint is not None
    assert "stands on" in caught.value.hint


def test_access_denied_names_who_and_what() -> None:
    """An operator sees who may not assume which role."""
    world = World()
    world.sts.role(READER, trusts=frozenset())

    with pytest.raises(Denied, match=rf"assumed-role/machine-role/i-0abc is not authorized .* {READER}"):
        world.issue(reader(), world.role_session())


def test_no_secret_reaches_an_error_text() -> None:
    """STS repeats session tokens and identity tokens in its refusals; we do not."""
    world = World()
    base = world.user_session()
    broken = AwsCredential(
        access_key_id=base.access_key_id,
        secret_access_key=Secret("canary-secret-key"),
        session_token=base.session_token,
        issued_at=base.issued_at,
        expires_at=base.expires_at,
    )
    token = "canary-token-" + "x" * 30
    web = AwsWebIdentity(id="w", role_arn=READER, token=WebTokenInline(token=Secret(token)))
    echoed = World()
    echoed.weather(Weather(status=403, code="AccessDenied"))
    ext = reader(external_id="canary-external-id")
    for where, grant, stands_on in ((world, reader(), broken), (world, web, None), (world, ext, base)):
        with pytest.raises(Denied) as caught:
            where.issue(grant, stands_on)
        text = told(caught.value)
        assert "canary" not in text
        assert base.session_token.reveal() not in text


def test_incomplete_answers_are_refused() -> None:
    """A credential without one of its parts is never handed on: one SDK aborts its process over it."""
    world = World()
    body = (
        b"<GetSessionTokenResponse><GetSessionTokenResult><Credentials><AccessKeyId>ASIAAAAAAAAAAAAAAAAA</AccessKeyId>"
        b"<SecretAccessKey></SecretAccessKey><SessionToken>t</SessionToken>"
        b"<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></GetSessionTokenResult></GetSessionTokenResponse>"
    )
    grant = world.keys()
    world.weather(Weather(body=body))

    with pytest.raises(Transient):
        world.issue(grant)


# -- web identities


def jwt(world: World, seconds: int = 600, **claims: Any) -> str:
    end = int(world.now.timestamp()) + seconds
    return world.google._jwt({"sub": "job", "exp": end, **claims})


def test_web_identity_inline() -> None:
    """A token in the bundle is exchanged without a signature."""
    world = World()
    grant = AwsWebIdentity(
        id="w", role_arn=READER, token=WebTokenInline(token=Secret(jwt(world))), duration_seconds=43200, policy="{}"
    )

    credential = world.aws(grant)

    call = world.sts.calls[0]
    assert (call.operation, call.access_key_id) == ("AssumeRoleWithWebIdentity", None)
    assert call.parameters["Policy"] == "{}"
    assert credential.expires_at == world.now + timedelta(hours=12)


def test_web_identity_file_is_read_afresh(tmp_path: Path) -> None:
    """A token file is read at each mint, because something else keeps it fresh; links inside the directory are fine."""
    world = World(web_token_directories=(str(tmp_path),))
    (tmp_path / "..data").mkdir()
    real = tmp_path / "..data" / "token"
    real.write_text(jwt(world) + "\n")
    (tmp_path / "token").symlink_to(real)
    grant = AwsWebIdentity(id="w", role_arn=READER, token=WebTokenFile(path=str(tmp_path / "token")))

    world.aws(grant)
    real.write_text(jwt(world, sub="another"))
    world.aws(grant)

    sent = [call.parameters["WebIdentityToken"] for call in world.sts.calls]
    assert sent[0] != sent[1]
    assert not sent[0].endswith("\n")


@pytest.mark.parametrize("how", ["outside", "dotdot", "link", "directory link", "fifo", "directory", "prefix"])
def test_web_identity_file_is_confined(tmp_path: Path, how: str) -> None:
    """No path, link or special file leads out of the configured directories, and nothing is sent."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "token").write_text("canary")
    path = inside / "token"
    match how:
        case "outside":
            path = outside / "token"
        case "dotdot":
            path = inside / ".." / "out" / "token"
        case "link":
            path.symlink_to(outside / "token")
        case "directory link":
            (inside / "d").symlink_to(outside)
            path = inside / "d" / "token"
        case "fifo":
            import os

            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "prefix":
            sibling = tmp_path / "in-other"
            sibling.mkdir()
            path = sibling / "token"
            path.write_text("canary")
    world = World(web_token_directories=(str(inside),))
    grant = AwsWebIdentity(id="w", role_arn=READER, token=WebTokenFile(path=str(path)))

    with pytest.raises(Denied) as caught:
        world.issue(grant)

    assert caught.value.code == "file-not-allowed"
    assert world.sts.calls == []


def test_web_identity_file_needs_configuration(tmp_path: Path) -> None:
    """Without a configured directory no file is read at all."""
    (tmp_path / "token").write_text("x.y.z")

    with pytest.raises(Denied, match="outside the allowed directories"):
        World().issue(AwsWebIdentity(id="w", role_arn=READER, token=WebTokenFile(path=str(tmp_path / "token"))))


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"two words", b"x" * 20_001])
def test_web_identity_file_that_is_not_ready_is_passing(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing, empty or not a token may be mended by whatever writes it."""
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    world = World(web_token_directories=(str(tmp_path),))

    with pytest.raises(Transient):
        world.issue(AwsWebIdentity(id="w", role_arn=READER, token=WebTokenFile(path=str(tmp_path / "token"))))


def test_web_identity_url() -> None:
    """A token is fetched from an allow-listed URL, with its authorization, from the field that is named."""
    world = World(allowed_origins=("https://ci.example",))
    seen = []

    def issuer(asked: Any) -> Answer:
        seen.append(asked)
        return Answer(200, json.dumps({"value": jwt(world), "count": 1}).encode())

    world.net.routes["https://ci.example"] = issuer
    token = WebTokenUrl(url="https://ci.example/token?aud=sts", field="value", authorization=Secret("bearer abc"))

    world.aws(AwsWebIdentity(id="w", role_arn=READER, token=token))

    assert (seen[0].path_qs, seen[0].headers["authorization"]) == ("/token?aud=sts", "bearer abc")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(401), Denied),
        (Answer(404), Denied),
        (Answer(429), Transient),
        (Answer(500), Transient),
        (Answer(302, headers={"Location": "http://169.254.169.254/"}), Transient),
        (Answer(200, b"[]"), Transient),
        (Answer(200, b'{"value": 7}'), Transient),
        (Answer(200, b'{"other": "x"}'), Transient),
        (Answer(200, b'{"value": ""}'), Transient),
        (Fault.DOWN, Transient),
    ],
)
def test_web_identity_url_refusals(answer: Answer | Fault, kind: type[Exception]) -> None:
    """An issuer's refusal is Denied; anything that is not a token yet is Transient."""
    world = World(allowed_origins=("https://ci.example",))
    world.net.routes["https://ci.example"] = lambda asked: answer
    token = WebTokenUrl(url="https://ci.example/token", field="value")

    with pytest.raises((Denied, Transient)) as caught:
        world.issue(AwsWebIdentity(id="w", role_arn=READER, token=token))

    assert type(caught.value) is kind


def test_web_identity_from_the_gce_machine() -> None:
    """AWS from a GCE worker without any secret: the machine's own identity token is exchanged."""
    world = World(on_gce=True)
    world.sts.role(READER, trusts=frozenset({"12345"}))
    grant = AwsWebIdentity(id="w", role_arn=READER, token=WebTokenGce(audience="https://sts.amazonaws.com/?x&y"))

    credential = world.aws(grant)

    assert credential.account_id == ACCOUNT
    asked = [a for a in world.gce.asked if a.path.endswith("/identity")]
    assert asked[0].query == "audience=https%3A%2F%2Fsts.amazonaws.com%2F%3Fx%26y&format=full"


def test_web_identity_gce_elsewhere_is_denied() -> None:
    """On a machine that is no GCE instance the grant says so."""
    grant = AwsWebIdentity(id="w", role_arn=READER, token=WebTokenGce(audience="a"))

    with pytest.raises(Denied) as caught:
        World().issue(grant)

    assert caught.value.code == "unsupported"


@pytest.mark.parametrize(("inline", "kind"), [(True, Denied), (False, Transient)])
def test_ended_identity_token(tmp_path: Path, inline: bool, kind: type[Exception]) -> None:
    """An ended token in the bundle is final; one in a file may be replaced at any moment."""
    world = World(web_token_directories=(str(tmp_path),))
    (tmp_path / "token").write_text(jwt(world, -5))
    token: Any = WebTokenFile(path=str(tmp_path / "token"))
    if inline:
        token = WebTokenInline(token=Secret(jwt(world, -5)))

    with pytest.raises((Denied, Transient)) as caught:
        world.issue(AwsWebIdentity(id="w", role_arn=READER, token=token))

    assert (type(caught.value), caught.value.code) == (kind, "ExpiredTokenException")


# -- brokers


def broker(**more: Any) -> HttpBroker:
    return HttpBroker(id="b", url=f"{BROKER}/v1/credentials?job=7", **more)


def test_broker_hands_out_a_credential() -> None:
    """A broker's document becomes the credential, with its own end."""
    world = World(allowed_origins=("broker.example",))
    world.broker.authorization = "Bearer abc"
    world.broker.extra = {"RoleArn": READER, "Other": "ignored"}

    credential = world.aws(broker(authorization=Secret("Bearer abc")))

    assert credential.expires_at == world.now + timedelta(hours=1)
    assert (credential.role_arn, credential.account_id) == (READER, ACCOUNT)
    assert world.broker.asked[0].path_qs == "/v1/credentials?job=7"


def test_broker_credential_is_probed() -> None:
    """A broker that hands out somebody else's credential is caught before it is served."""
    world = World(allowed_origins=(BROKER,))

    world.issue(broker(expect=Expect(arn=MACHINE)))
    with pytest.raises(Denied) as caught:
        world.issue(broker(expect=Expect(arn=READER)))

    assert caught.value.code == "unexpected-identity"


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (400, {"code": "InvalidRequest"}, Denied, "InvalidRequest"),
        (401, {"code": "Unauthorized", "message": "canary"}, Denied, "Unauthorized"),
        (403, {}, Denied, "http-403"),
        (404, {}, Denied, "http-404"),
        (429, {"code": "Throttled"}, Transient, "Throttled"),
        (500, {}, Transient, "http-500"),
        (503, {"code": "not a word! canary"}, Transient, "http-503"),
    ],
)
def test_a_brokers_statuses_are_told_apart_and_not_its_words(
    status: int, body: dict[str, str], kind: type[Exception], code: str
) -> None:
    """A broker's statuses are told apart like a cloud's; its words are not repeated."""
    world = World(allowed_origins=(BROKER,))
    world.broker.refusal = (status, body)

    with pytest.raises((Denied, Transient)) as caught:
        world.issue(broker())

    assert (type(caught.value), caught.value.code) == (kind, code)
    assert "canary" not in told(caught.value)


@pytest.mark.parametrize(
    "extra",
    [
        {"Token": None},
        {"Token": ""},
        {"Expiration": None},
        {"Expiration": "soon"},
        {"Expiration": "2026-11-24T13:00:00"},
        {"Expiration": "2020-01-01T00:00:00Z"},
        {"AccessKeyId": "not a key"},
        {"SecretAccessKey": ""},
    ],
)
def test_broker_documents_that_nobody_could_use(extra: dict[str, str | None]) -> None:
    """A document that is incomplete, has no clear end, or has ended is refused, and may be better next time."""
    world = World(allowed_origins=(BROKER,))
    world.broker.extra = extra

    with pytest.raises(Transient):
        world.issue(broker())


def test_broker_must_be_allowed() -> None:
    """A bundle cannot send the machine to a host that the operator did not name."""
    world = World(allowed_origins=("https://other.example",))

    with pytest.raises(Denied, match=r"https://broker\.example is not an allowed origin") as caught:
        world.issue(broker())

    assert caught.value.code == "url-not-allowed"
    assert world.broker.asked == []


@pytest.mark.parametrize(
    ("entry", "url", "allowed"),
    [
        ("broker.example", "https://broker.example/x", True),
        ("broker.example", "https://BROKER.example:443/x", True),
        ("broker.example", "http://broker.example/x", False),
        ("broker.example", "https://broker.example:8443/x", False),
        ("broker.example", "https://broker.example.evil.test/x", False),
        ("broker.example", "https://broker.example@evil.test/x", False),
        ("broker.example", "https://evil.test/broker.example", False),
        ("broker.example", "https://evil.test\\@broker.example/x", False),
        ("broker.example", "https://broker.example./x", False),
        ("https://broker.example:8443", "https://broker.example:8443/x", True),
        ("http://10.0.0.5:8080", "http://10.0.0.5:8080/x", True),
        ("http://10.0.0.5:8080", "https://10.0.0.5:8080/x", False),
    ],
)
def test_origins_are_compared_whole(entry: str, url: str, allowed: bool) -> None:
    """Scheme, host and port must all be those of the list."""
    world = World(allowed_origins=(entry,))
    asked = []

    def anybody(request: Any) -> Answer:
        asked.append(request)
        return Answer(503)

    world.net.routes = {"*": anybody}

    with pytest.raises((Denied, Transient)) as caught:
        world.issue(HttpBroker(id="b", url=url))

    assert isinstance(caught.value, Transient) == allowed
    assert bool(asked) == allowed


@pytest.mark.parametrize(
    "entry", ["", "https://", "ftp://x", "https://a/b", "https://a?b", "https://a#b", "user@host", "a b"]
)
def test_bad_origins_are_a_configuration_error(entry: str) -> None:
    """An entry of the allow-list that is not an origin stops the start, not the first renewal."""
    with pytest.raises(ConfigError, match="allowed origin"):
        World(allowed_origins=(entry,))


def test_plain_http_is_not_believed_about_the_time() -> None:
    """The Date of an answer that anybody on the way could have written does not move our clock."""
    world = World(allowed_origins=("http://10.0.0.5:8080", BROKER))
    world.net.routes["http://10.0.0.5:8080"] = world.broker

    assert world.issue(HttpBroker(id="b", url="http://10.0.0.5:8080/x")).server_time is None
    assert world.issue(broker()).server_time == world.now


# -- where STS is


@pytest.mark.parametrize(
    ("region", "url"),
    [
        ("eu-west-1", "https://sts.eu-west-1.amazonaws.com"),
        ("us-east-1", "https://sts.us-east-1.amazonaws.com"),
        ("cn-north-1", "https://sts.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", "https://sts.us-gov-west-1.amazonaws.com"),
        ("us-iso-east-1", "https://sts.us-iso-east-1.c2s.ic.gov"),
        ("eu-middle-9", "https://sts.eu-middle-9.amazonaws.com"),
        ("cn-middle-9", "https://sts.cn-middle-9.amazonaws.com.cn"),
        ("xx-middle-9", "https://sts.xx-middle-9.amazonaws.com"),
    ],
)
def test_endpoints_are_regional(region: str, url: str) -> None:
    """STS is asked in the region, under its partition's own suffix, also for regions newer than the data."""
    assert sts_url(region) == url


@pytest.mark.parametrize(
    ("arn", "region"),
    [
        (None, "us-east-1"),
        ("nonsense", "us-east-1"),
        ("arn:aws:iam::1:role/r", "us-east-1"),
        ("arn:aws-cn:iam::1:role/r", "cn-northwest-1"),
        ("arn:aws-us-gov:iam::1:role/r", "us-gov-west-1"),
        ("arn:aws-unheard:iam::1:role/r", "us-east-1"),
    ],
)
def test_main_region_of_a_partition(arn: str | None, region: str) -> None:
    """With nothing to say which region, the role's partition does."""
    assert main_region(arn) == region


def test_region_of_the_grant_wins() -> None:
    """The grant's region is asked before the configuration's."""
    world = World()
    world.net.routes["https://sts.ap-south-1.amazonaws.com"] = world.sts

    world.aws(world.keys(region="ap-south-1"))

    assert len(world.sts.calls) == 1


def test_region_of_the_machine_is_learned_once() -> None:
    """On EC2 without a configured region the machine's own is asked, and remembered."""
    world = World(on_ec2=True, region=None)

    for _ in range(2):
        world.aws(world.keys())

    assert [a.path for a in world.ec2.asked].count("/latest/meta-data/placement/region") == 1


def test_region_does_not_need_the_metadata_service() -> None:
    """A silent metadata service costs the nearest region, not the credential."""
    world = World(on_ec2=True, region=None)
    world.ec2.fault = Fault.HANG
    world.net.routes["https://sts.us-east-1.amazonaws.com"] = world.sts

    assert world.aws(world.keys()).expires_at > world.now


def test_own_endpoint_is_used_for_every_region() -> None:
    """A configured STS endpoint replaces all, and the signature keeps the region."""
    world = World(sts_endpoint="http://sts.internal:5000/")
    world.net.routes["http://sts.internal:5000"] = world.sts

    assert world.aws(world.keys(region="ap-south-1")).expires_at > world.now


# -- misuse


def test_wrong_base_is_our_own_mistake() -> None:
    """A base of the wrong kind is a TypeError, not a provider's failure."""
    with pytest.raises(TypeError):
        World().issue(reader(), None)


def test_env_has_no_credential() -> None:
    """Asking for the credential of an env grant is our own mistake."""
    with pytest.raises(RuntimeError):
        World().issue(Env(id="e", variables={}))


def test_construction_loads_no_sdk() -> None:
    """A mint can be made without importing botocore or google-auth."""
    import subprocess
    import sys

    code = (
        "import sys; from agent.providers import Mint, MintSettings; from agent.upstream import Upstream; "
        "from agent.host.clock import SystemClock; Mint(Upstream(), MintSettings(), SystemClock()); "
        "bad = [m for m in sys.modules if m.split('.')[0] in ('botocore', 'boto3', 'joserfc') or m.startswith('google.')]; "
        "sys.exit(repr(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arn", "account"),
    [
        (None, None),
        ("", None),
        ("arn:aws:sts::111122223333:assumed-role/r/s", "111122223333"),
        ("arn:aws:s3:::bucket", None),
        ("a:b:c:d:1:f", None),
    ],
)
def test_the_account_is_read_from_an_arn_that_has_one(arn: str | None, account: str | None) -> None:
    """The account is read from an ARN that has one."""
    assert account_of(arn) == account
