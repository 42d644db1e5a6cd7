"""Whatever a name server does, requests are answered at once, and a credential is renewed before its end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web

from agent.core.model import AwsKeys
from agent.core.secret import Secret
from tests.conformance.clouds import ShortSts
from tests.fakes import dns
from tests.fakes.behind import Behind
from tests.fakes.dns import NameServer
from tests.system.harness import Agent, World, background, until

NAME: Final = "sts.cloud.test"
ROLE: Final = "arn:aws:iam::123456789012:role/Data"
LIFE_SECONDS: Final = 16
"""Renewed when a quarter to a third of it is over."""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: port 53, a mount namespace"),
    pytest.mark.slow,
]


@dataclass
class Closing(Behind):
    """A server that ends each connection: the name is looked up for each request."""

    host: str = field(kw_only=True)
    port: int = field(default=0, kw_only=True)

    async def start(self, host: str = "", port: int = 0) -> str:
        return await super().start(host or self.host, port or self.port)

    async def answer(self, request: web.Request) -> web.Response:
        answer = await super().answer(request)
        answer.force_close()
        return answer


class Stage:
    """An agent whose STS has a name."""

    def __init__(self, agent: Agent, names: NameServer, sts: ShortSts, port: int) -> None:
        self.agent, self.names, self._sts, self.port = agent, names, sts, port

    def renewed(self, *, seconds: float = 60) -> None:
        """Wait for another session, which is served; every question meanwhile is answered with one that is good."""
        before = self.key()
        until(lambda: self.key() != before, seconds=seconds, what="another session")

    def key(self) -> str:
        credential = self.agent.credential()
        assert credential["Expiration"] > datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return str(credential["AccessKeyId"])

    def moved(self, host: str) -> Closing:
        """The same service at another address."""
        return Closing(handler=self._sts, host=host, port=self.port)

    def looked_up(self) -> None:
        """Wait until the name server is asked twice more: each question meanwhile is answered."""
        asked = len(self.names.asked)
        until(lambda: self.key() and len(self.names.asked) > asked + 1, seconds=60, what="a look-up")


@contextmanager
def staged(root: Path, *addresses: str, host: str = "127.0.0.1") -> Iterator[Stage]:
    """An agent with a role's session, which it got from STS under its name.

    Args:
        root: an empty directory.
        addresses: of the name.
        host: where STS listens.
    """
    (root / "w").mkdir()
    world = World(root / "w")
    sts = ShortSts(lambda: datetime.now(UTC))
    sts.role_seconds = LIFE_SECONDS
    sts.role(ROLE)
    key, secret = sts.user()
    service = Closing(handler=sts, host=host)
    with NameServer() as names, background(service):
        names.names[NAME] = list(addresses)
        resolv = root / "resolv.conf"
        resolv.write_text(f"nameserver {names.address}\noptions timeout:2 attempts:2\n")
        alone = ["unshare", "--mount", "sh", "-c", f'mount --bind {resolv} /etc/resolv.conf && exec "$@"', "sh"]
        port = int(service.url.rpartition(":")[2])
        with world.agent({"mint": {"sts_endpoint": f"http://{NAME}:{port}"}}, through=alone) as agent:
            agent.ready()
            base = AwsKeys(id="keys", access_key_id=key, secret_access_key=Secret(secret))
            world.drop(world.seal(base, world.role_grant(base="keys")))
            until(lambda: agent.role() is not None, what="a session")
            yield Stage(agent, names, sts, port)
            assert not agent.events("raw")


@contextmanager
def deaf(port: int) -> Iterator[str]:
    """An address at which nobody answers a connection, and nobody refuses it either: its queue is full."""
    with ExitStack() as kept:
        listening = kept.enter_context(socket.socket())
        listening.bind(("127.9.9.9", port))
        listening.listen(0)
        for _ in range(4):
            one = kept.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        yield "127.9.9.9"


def test_a_name_server_that_is_silent_for_a_while(tmp_path: Path) -> None:
    """It answers nothing at two renewals: requests are answered at once; then the session is renewed before its end."""
    with staged(tmp_path, "127.0.0.1") as stage:
        stage.names.silent = True
        stage.looked_up()
        stage.names.silent = False
        stage.renewed()


@pytest.mark.parametrize("code", [dns.SERVER_FAILURE, dns.NO_ERROR])
def test_a_name_server_that_fails(tmp_path: Path, code: int) -> None:
    """It cannot; it can, and the name has no address: the next look-up is another one."""
    with staged(tmp_path, "127.0.0.1") as stage:
        stage.names.names[NAME], stage.names.code = [], code
        stage.looked_up()
        stage.names.names[NAME], stage.names.code = ["127.0.0.1"], dns.NO_ERROR
        stage.renewed()


def test_addresses_of_which_one_answers(tmp_path: Path) -> None:
    """Beside sixty that refuse, more than a datagram can say, and then beside one that is deaf: it is found."""
    refusing = [f"127.9.1.{number}" for number in range(60)]
    with staged(tmp_path, "::1", *refusing, "127.0.0.1") as stage, deaf(stage.port) as silent:
        stage.names.names[NAME] = [silent, "127.0.0.1"]
        stage.renewed()


def test_an_address_that_changes(tmp_path: Path) -> None:
    """The service moves, and its name with it: the session comes from where it is now."""
    with staged(tmp_path, "127.0.0.1") as stage:
        elsewhere = stage.moved("127.0.0.77")
        with background(elsewhere):
            stage.names.names[NAME] = ["127.0.0.77"]
            until(lambda: stage.key() and elsewhere.asked, seconds=60, what="a question there")


def test_only_an_address_of_ipv6(tmp_path: Path) -> None:
    """The name has no other."""
    with staged(tmp_path, "::1", host="::1") as stage:
        stage.renewed()
