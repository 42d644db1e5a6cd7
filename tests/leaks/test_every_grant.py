"""Every kind of grant with marked secrets, refused by clouds that repeat what they were sent; then every output is searched."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

import msgspec
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from agent.core import model
from agent.core.model import (
    AwsAssumeRole,
    AwsCredential,
    AwsKeys,
    AwsSession,
    AwsWebIdentity,
    Env,
    Expect,
    GcpAuthorizedUser,
    GcpExternalAccount,
    GcpImpersonation,
    GcpServiceAccount,
    GcpToken,
    GoogleToken,
    Grant,
    HttpBroker,
    IdToken,
    WebTokenFile,
    WebTokenInline,
    WebTokenUrl,
)
from agent.core.secret import Secret
from tests.fakes.served import Served
from tests.system.harness import NOBODY, Agent, World, as_user, background, until

CANARY = "C4NARY"
ROLE = "arn:aws:iam::123456789012:role/Data"
POOL = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/p"
LATER = int(datetime.now(UTC).timestamp()) + 6 * 3600
PEM = (
    rsa.generate_private_key(public_exponent=65537, key_size=2048)
    .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    .decode()
)
JWT = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg":"RS256"}', json.dumps({"exp": LATER, "aud": "sts"}).encode(), CANARY.encode() * 8)
)
MARKS = [CANARY, base64.b64encode(CANARY.encode()).decode().rstrip("=")[:7], PEM.splitlines()[5], JWT.split(".")[2]]
"""What must not be seen: the canary, the canary in base64, a line of the private key, a token's signature."""


@dataclass
class Echo(Served):
    """A cloud whose every error repeats the request, its secrets first, as several real ones do in part."""

    answer_with: int = 403

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/token-ok":
            return web.json_response({"value": JWT})
        body = (await request.read()).decode()
        values = [*request.headers.values(), *(value for _, value in parse_qsl(body)), body]
        # The secret ones first: a long message is cut.
        said = "you sent " + "; ".join(sorted(values, key=lambda value: not any(mark in value for mark in MARKS)))
        if "Action=" in body or "Action=" in request.raw_path:
            text = f"<ErrorResponse><Error><Code>AccessDenied</Code><Message>{escape(said)}</Message></Error></ErrorResponse>"
            return web.Response(status=self.answer_with, text=text, content_type="text/xml")
        document = {
            "error": "invalid_grant",
            "error_description": said,
            "code": "AccessDenied",
            "message": said,
            "Code": "AccessDenied",
            "Message": said,
        }
        return web.json_response(document, status=self.answer_with)


def session() -> AwsSession:
    return AwsSession(
        id="base",
        access_key_id="ASIA0000000000000000",
        secret_access_key=Secret(f"{CANARY}-session-secret-0123456789012345"),
        session_token=Secret(f"{CANARY}-session-token" * 4),
        expires_at=LATER,
    )


def google() -> GcpToken:
    return GcpToken(id="base", access_token=Secret(f"ya29.{CANARY}-base"), expires_at=LATER, email="a@example.com")


def token_url(url: str, *, path: str = "/token-ok") -> WebTokenUrl:
    return WebTokenUrl(url=url + path, field="value", authorization=Secret(f"Bearer {CANARY}-token-url"))


def role(**more: Any) -> AwsAssumeRole:
    return AwsAssumeRole(id="g", role_arn=ROLE, base="base", region="us-east-1", **more)


def service_account(url: str, key: str) -> GcpServiceAccount:
    return GcpServiceAccount(
        id="g",
        client_email="robot@p.iam.gserviceaccount.com",
        private_key_id="0123",
        private_key=Secret(key),
        token_uri=f"{url}/token",
    )


def external(url: str, **more: Any) -> GcpExternalAccount:
    return GcpExternalAccount(id="g", audience=POOL, token_url=f"{url}/v1/token", region="us-east-1", **more)


GRANTS: dict[str, Callable[[str], list[Grant]]] = {
    "aws-keys": lambda _: [
        AwsKeys(
            id="g",
            access_key_id="AKIA0000000000000000",
            secret_access_key=Secret(f"{CANARY}-long-term"),
            region="us-east-1",
            expect=Expect(account_id="123456789012"),
        )
    ],
    "aws-assume-role": lambda _: [session(), role(external_id=f"{CANARY}-external-id")],
    "aws-web-identity inline": lambda _: [
        AwsWebIdentity(id="g", role_arn=ROLE, region="us-east-1", token=WebTokenInline(token=Secret(JWT)))
    ],
    "aws-web-identity url": lambda url: [
        AwsWebIdentity(id="g", role_arn=ROLE, region="us-east-1", token=token_url(url))
    ],
    "aws-web-identity url refused": lambda url: [
        AwsWebIdentity(id="g", role_arn=ROLE, region="us-east-1", token=token_url(url, path="/refused"))
    ],
    "aws-web-identity file": lambda _: [
        AwsWebIdentity(id="g", role_arn=ROLE, region="us-east-1", token=WebTokenFile(path="{tokens}/jwt"))
    ],
    "http-broker": lambda url: [
        HttpBroker(id="g", url=f"{url}/broker", authorization=Secret(f"{CANARY}-broker"), region="us-east-1")
    ],
    "gcp-authorized-user": lambda _: [
        GcpAuthorizedUser(
            id="g",
            client_id="id.apps.googleusercontent.com",
            client_secret=Secret(f"{CANARY}-client-secret"),
            refresh_token=Secret(f"1//{CANARY}-refresh"),
        )
    ],
    "gcp-service-account": lambda url: [service_account(url, PEM)],
    "gcp-service-account garbled": lambda url: [service_account(url, PEM.replace("M", CANARY, 3))],
    "gcp-impersonation": lambda _: [
        google(),
        GcpImpersonation(id="g", base="base", target_principal="robot@p.iam.gserviceaccount.com"),
    ],
    "gcp-external-account aws": lambda url: [session(), external(url, base="base")],
    "gcp-external-account inline": lambda url: [external(url, token=WebTokenInline(token=Secret(JWT)))],
    "gcp-external-account url": lambda url: [external(url, token=token_url(url))],
}


def refused(agent: Agent, grant: str) -> bool:
    """Whether a mint from ``grant`` failed."""
    events = agent.events("credential.denied") + agent.events("credential.failed")
    return any(line["grant"] == grant for line in events)


def test_every_kind_of_grant_is_tried() -> None:
    """No kind of grant that can be minted from is left out of the list above."""
    tried = {grant.__struct_config__.tag for make in GRANTS.values() for grant in make("http://x")}

    assert {kind.__struct_config__.tag for kind in get_args(Grant)} - tried == {"env"}


@pytest.mark.slow
@pytest.mark.parametrize("status", [403, 500])
def test_no_refused_mint_tells_a_secret(tmp_path: Path, status: int) -> None:
    """Every kind of grant is accepted, tried, and refused by an echo; no output of the agent repeats what it heard."""
    root = tmp_path / "w"
    root.mkdir()
    world = World(root)
    tokens = root / "etc" / "tokens"
    tokens.mkdir()
    (tokens / "jwt").write_text(JWT)
    echo = Echo(answer_with=status)
    outputs: list[str] = []
    with background(echo):
        mint = {
            "sts_endpoint": echo.url,
            "google_token_url": f"{echo.url}/token",
            "google_sts_url": f"{echo.url}/v1/token",
            "google_iamcredentials_url": echo.url,
            "allowed_origins": [echo.url],
            "web_token_directories": [tokens],
        }
        changes = {"log": {"level": "debug"}, "mint": mint, "upstream": {"allow_private_addresses": True}}
        with world.agent(changes) as agent:
            agent.ready()
            for number, (name, make) in enumerate(GRANTS.items()):
                own = f"g{number}"
                grants = make(echo.url)
                grants[-1] = msgspec.structs.replace(grants[-1], id=own)
                if "file" in name:
                    assert isinstance(grants[0], AwsWebIdentity)
                    file = WebTokenFile(path=str(tokens / "jwt"))
                    grants = [msgspec.structs.replace(grants[0], token=file)]
                cloud = model.cloud_of(grants[-1])
                assert cloud is not None
                heard = len(echo.asked)
                ack = agent.push(world.seal(*grants, routes={cloud: own}))
                assert ack["outcome"] == "accepted", (name, ack)
                until(partial(refused, agent, own), what=f"the refusal of {name}")
                if "garbled" not in name:
                    assert len(echo.asked) > heard, name
                outputs.append(json.dumps(ack) + json.dumps(agent.status()) + agent.operate("/metrics").body.decode())
                for path in (
                    "/v1/credentials",
                    "/latest/meta-data/iam/info",
                    "/latest/meta-data/iam/security-credentials/",
                ):
                    reply = agent.ask(path, headers={"Authorization": world.token})
                    outputs.append(f"{reply.headers}{reply.body!r}")
                reply = agent.google_token()
                outputs.append(f"{reply.headers}{reply.body!r}")
            agent.signal(signal.SIGHUP)
            agent.wait_for("reload.applied")
            assert agent.stop() == 0
        outputs.append(agent.stderr)
    heard_all = "".join(f"{asked.headers}{asked.body!r}" for asked in echo.asked)
    assert heard_all.count(CANARY) >= 5, "the clouds were really sent the secrets"
    for text in outputs:
        for mark_ in MARKS:
            assert mark_ not in text, text[max(0, text.index(mark_) - 500) :][:1500]
    for file_ in (p for p in root.rglob("*") if p.is_file() and "etc" not in p.parts):
        for mark_ in MARKS:
            assert mark_.encode() not in file_.read_bytes(), file_


def values() -> Iterator[Any]:
    """One of everything that can hold a secret."""
    now = datetime.now(UTC)
    secret = Secret(CANARY)
    for make in GRANTS.values():
        yield from make("http://x")
    yield from (secret, Env(id="e", variables={"A": secret}), google(), session())
    yield from (AwsCredential("ASIA", secret, secret, now, now), GoogleToken(secret, now, now))
    yield from (IdToken(secret, "aud", now, now), token_url("http://x"), WebTokenInline(token=secret))


@pytest.mark.parametrize(
    "told",
    [
        repr,
        str,
        "{}".format,
        lambda value: repr(msgspec.structs.asdict(value)) if isinstance(value, msgspec.Struct) else "",
        lambda value: repr(msgspec.structs.astuple(value)) if isinstance(value, msgspec.Struct) else "",
        lambda value: json.dumps(value, default=repr),
        lambda value: repr(ValueError(value)),
        lambda value: f"{[value]} { ({'a': value}) } {value!s} {value!r}",
    ],
    ids=["repr", "str", "format", "asdict", "astuple", "json", "exception", "nested"],
)
def test_no_value_tells_a_secret(told: Callable[[Any], str]) -> None:
    """However a value is turned into text, its secrets are not in it; an external id is none to AWS, nor to us."""
    for value in values():
        text = told(value).replace(f"{CANARY}-external-id", "")
        for mark in MARKS:
            assert mark not in text, type(value).__name__


HOLDERS = [
    v for v in values() if not isinstance(v, GcpImpersonation | AwsWebIdentity | AwsAssumeRole | GcpExternalAccount)
]
"""Those with a secret of their own; the others may hold one in their token, which is in the list itself."""


@pytest.mark.parametrize("value", HOLDERS, ids=lambda value: type(value).__name__)
def test_no_value_is_encoded_by_accident(value: Any) -> None:
    """An encoder that was not told how to reveal raises, and says no secret in doing so."""
    for encode in (msgspec.json.encode, msgspec.msgpack.encode, json.dumps):
        with pytest.raises(TypeError) as raised:
            encode(value)
        assert CANARY not in str(raised.value)


def test_no_variable_of_the_process_holds_a_secret(tmp_path: Path) -> None:
    """Neither its environment nor its arguments hold the opening key or what it opened, and both could be read."""
    root = tmp_path / "w"
    root.mkdir()
    world = World(root)
    with world.agent(environ={"MARKED": "readable"}) as agent:
        agent.ready()
        agent.push(world.seal(world.session(secret=f"{CANARY}-session-secret-0123456789012345")))
        process = Path(f"/proc/{agent.process.pid}")
        try:
            environ = (process / "environ").read_text()
        except PermissionError:
            pytest.skip("only root may read the environment of a process that made itself undumpable")
        assert "MARKED=readable" in environ
        private = json.loads(world.key_file.read_text())["d"]
        for text in (environ, (process / "cmdline").read_text()):
            assert CANARY not in text
            assert private not in text


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv to run as another user"
)
class TestMemory:
    @pytest.fixture
    def world(self) -> Iterator[World]:
        with tempfile.TemporaryDirectory(prefix="w") as directory:
            world = World(Path(directory))
            for path in (world.root, *world.root.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            yield world

    @staticmethod
    def reads(path: Path) -> bool:
        """Whether a program of the same user and group can open ``path``."""
        done = subprocess.run(as_user(["head", "-c", "0", str(path)], NOBODY), capture_output=True, check=False)
        assert done.returncode == 0 or b"denied" in done.stderr or b"permitted" in done.stderr, done.stderr
        return done.returncode == 0

    def test_a_program_of_the_same_user_cannot_read_it(self, world: World) -> None:
        """No other program of the agent's own user can read its memory, its environment or its descriptors.

        The counter-example beside it can be read: it is not the machine that forbids it.
        """
        with world.agent(user=NOBODY) as agent:
            agent.ready()
            process = Path(f"/proc/{agent.process.pid}")
            status = (process / "status").read_text()
            assert f"Uid:\t{NOBODY}\t{NOBODY}" in status
            with subprocess.Popen(as_user(["sleep", "60"], NOBODY), stdout=subprocess.DEVNULL) as other:
                plain = Path(f"/proc/{other.pid}")
                until(lambda: (plain / "cmdline").read_bytes() == b"sleep\x0060\x00", what="the other")
                assert self.reads(plain / "environ")
                other.kill()
            for name in ("mem", "environ", "maps"):
                assert not self.reads(process / name), name
            listed = subprocess.run(as_user(["ls", str(process / "fd")], NOBODY), capture_output=True, check=False)
            assert listed.returncode != 0

    def test_it_leaves_no_core(self, world: World) -> None:
        """Its limit for core files is nothing, soft and hard."""
        with world.agent(user=NOBODY) as agent:
            agent.ready()
            limits = Path(f"/proc/{agent.process.pid}/limits").read_text()
            line = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
            assert line.split()[4:6] == ["0", "0"]
