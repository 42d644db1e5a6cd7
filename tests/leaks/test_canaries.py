"""Marked secrets pushed through every path of a real daemon; then every output is searched for them."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.core.model import AwsKeys
from agent.core.secret import Secret
from tests.system.harness import World, background, until

CANARY = "C4NARY"


class Broken:
    """An STS whose error repeats what it was sent, as the real one's SignatureDoesNotMatch does."""

    def __init__(self) -> None:
        from tests.fakes.served import Served

        class Service(Served):
            async def answer(self, request):  # type: ignore[no-untyped-def]
                from aiohttp import web

                text = f"<Error><Code>SignatureDoesNotMatch</Code><Message>{CANARY}-sts-body</Message></Error>"
                body = f"<ErrorResponse>{text}</ErrorResponse>"
                return web.Response(status=403, text=body, content_type="text/xml")

        self.service = Service()


def test_no_output_tells_a_secret(tmp_path: Path) -> None:
    """Logs at debug, status, metrics, errors, argv, environment and state hold no secret of any bundle."""
    root = tmp_path / "w"
    root.mkdir()
    world = World(root)
    sts = Broken().service
    with background(sts), world.agent({"log": {"level": "debug"}, "mint": {"sts_endpoint": sts.url}}) as agent:
        agent.ready()
        good = world.seal(
            world.session(secret=f"{CANARY}-session-secret-0123456789", token=f"{CANARY}-session-token" * 3),
            world.google(f"ya29.{CANARY}-google"),
            world.variables(OPAQUE=f"{CANARY}-variable"),
        )
        assert agent.push(good)["outcome"] == "accepted"
        tampered = json.loads(good)
        tampered["ciphertext"] = ("B" if tampered["ciphertext"][0] == "A" else "A") + tampered["ciphertext"][1:]
        outputs = [json.dumps(agent.push(json.dumps(tampered).encode())), json.dumps(agent.push(f"{CANARY}".encode()))]
        credential = agent.credential()
        assert CANARY in credential["SecretAccessKey"]
        assert CANARY.encode() in agent.google_token().body
        until(lambda: CANARY in world.env().get("OPAQUE", ""), what="the variable")
        keys = AwsKeys(
            id="keys",
            access_key_id="AKIA0000000000000000",
            secret_access_key=Secret(f"{CANARY}-long-term"),
            region="us-east-1",
        )
        sealed = world.seal(keys)
        assert agent.push(sealed)["outcome"] == "accepted"
        until(lambda: agent.events("credential.denied") + agent.events("credential.failed"), what="the refusal")
        outputs += [
            json.dumps(agent.status()),
            agent.operate("/metrics").body.decode(),
            agent.operate("/v1/keys").body.decode(),
        ]
        for path in ("/", "/v1/credentials", "/latest/meta-data/", "/nope", "/computeMetadata/v1/?recursive=true"):
            reply = agent.ask(path)
            outputs.append(f"{reply.headers}{reply.body!r}")
        agent.signal(signal.SIGHUP)
        agent.wait_for("reload.applied")
        process = Path(f"/proc/{agent.process.pid}")
        outputs.append((process / "cmdline").read_text())
        try:
            outputs.append((process / "environ").read_text())
        except PermissionError:
            outputs.append("")  # it made itself undumpable: nobody of its own user can read it either
        assert agent.push(world.withdrawal())["outcome"] == "accepted"
        until(lambda: "OPAQUE" not in world.env(), what="the purge")
        assert agent.stop() == 0
        outputs.append(agent.stderr)

    for text in outputs:
        assert CANARY not in text, text[:2000]
    private = json.loads(world.key_file.read_text())["d"]
    for file in (p for p in root.rglob("*") if p.is_file() and "etc" not in p.parts):
        assert CANARY.encode() not in file.read_bytes(), file
        assert private.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("wrap", [repr, str, lambda v: f"{v}", lambda v: json.dumps([str(v)])])
def test_no_value_tells_a_secret(wrap: object) -> None:
    """The repr, str and format of every value that holds a secret say nothing of it."""
    now = datetime.now(UTC)
    from agent.core.model import AwsCredential, Env, GoogleToken, IdToken

    secret = Secret(CANARY)
    values = [
        secret,
        AwsCredential("ASIA", secret, secret, now, now),
        GoogleToken(secret, now, now),
        IdToken(secret, "aud", now, now),
        Env(id="e", variables={"A": secret}),
        AwsKeys(id="k", access_key_id="AKIA0000000000000000", secret_access_key=secret),
    ]
    assert callable(wrap)
    for value in values:
        assert CANARY not in wrap(value)
