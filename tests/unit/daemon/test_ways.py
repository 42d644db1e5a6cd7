"""After a suspend every client that this process has begins with new connections, and gives up what was under way."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

import agent
from agent import bundle, config
from agent.core.errors import UpstreamError
from agent.daemon.prepare import Prepared
from agent.daemon.ways import SLEPT_SECONDS, WaysOut
from agent.host.clock import SystemClock
from agent.sources.https import HttpsSource
from agent.upstream import Upstream


class Peer:
    """A server whose connections of before a suspend are dead: it answers nothing there, and does not close them."""

    def __init__(self) -> None:
        self.connections = 0
        self.answers = True
        self.asked = asyncio.Event()
        self.url = ""

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        born_answering = self.answers
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                self.asked.set()
                if not born_answering:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhal")  # and no more, for ever
                elif self.answers:
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Peer]:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/bundle"
        async with server:
            yield self


def prepared(tmp_path: Path, url: str) -> Prepared:
    for name in ("state", "run"):
        (tmp_path / name).mkdir()
    public = bundle.SigningKey.generate("Ed25519").public_jwk()
    (tmp_path / "signer").write_bytes(msgspec.json.encode(public))
    settings = config.parse(
        f"""
        [listen]
        control = "{tmp_path}/run/control"
        [state]
        directory = "{tmp_path}/state"
        [environment]
        file = "{tmp_path}/run/environment"
        shell_file = "{tmp_path}/run/environment.sh"
        token_file = "{tmp_path}/run/token"
        [upstream]
        ec2 = "off"
        gce = "off"
        [[keys]]
        kind = "ephemeral"
        [[signers]]
        key = "{tmp_path}/signer"
        issuers = ["*"]
        [[sources]]
        kind = "https"
        url = "{url}"
        [[sources]]
        kind = "https"
        url = "{url}"
        """,
        origin="test",
    )
    return Prepared(
        settings,
        environ={},
        clock=SystemClock(),
        rng=random.Random(1),
        hear=lambda _witness, _date, _took: None,
    )


def test_every_client_begins_with_new_connections(tmp_path: Path) -> None:
    """The agent's own, the workers', and each source's: the next request of each goes out on a connection of its own."""

    async def ask() -> None:
        async with Peer().serving() as peer:
            parts = prepared(tmp_path, peer.url)
            calls: list[Callable[[], object]] = [
                lambda: parts.out.request("GET", peer.url),
                lambda: parts.workers_out.request("GET", peer.url),
                *(source.fetch for source in parts.sources),
            ]
            assert sum(isinstance(source, HttpsSource) for source in parts.sources) == 2
            for call in calls:
                for _ in range(2):
                    await call()  # type: ignore[misc]
            assert peer.connections == len(calls)
            parts.ways.reconnect()
            for call in calls:
                await call()  # type: ignore[misc]
            assert peer.connections == 2 * len(calls)
            await parts.close()

    asyncio.run(ask())


def test_none_is_made_elsewhere() -> None:
    """A client that is not among the ways out would keep its dead connections: a call that makes one is found here."""
    root = Path(agent.__file__).parent
    made = {
        f"{path.relative_to(root)}:{ast.unparse(node.func)}"
        for path in root.rglob("*.py")
        if path.parent.name in {"daemon", "controller", "sources", "providers", "serve", "keys", "upstream"}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"Upstream", "compose.upstream", "upstream"}
    }
    assert made == {"daemon/compose.py:Upstream", "daemon/ways.py:compose.upstream"}


@pytest.mark.parametrize(("slept", "gives_up"), [(0.0, False), (SLEPT_SECONDS - 1, False), (SLEPT_SECONDS, True)])
def test_only_a_sleep_gives_up_what_is_under_way(tmp_path: Path, slept: float, *, gives_up: bool) -> None:
    """A step of the clock that nobody slept through costs no answer that is on its way."""
    ahead = 100.0

    async def ask() -> None:
        nonlocal ahead
        async with Peer().serving() as peer:
            peer.answers = False
            ways = WaysOut(config.Config(), uncounted=lambda: ahead)
            out = ways.make()
            under_way = asyncio.create_task(out.request("GET", peer.url, timeout_seconds=60.0))
            await peer.asked.wait()
            ahead += slept
            ways.reconnect()
            if gives_up:
                with pytest.raises(UpstreamError, match="in time"):
                    await under_way
            else:
                await asyncio.wait({under_way}, timeout=0.05)
                assert not under_way.done()
                under_way.cancel()
                await asyncio.gather(under_way, return_exceptions=True)
            await ways.close()

    asyncio.run(ask())


@pytest.mark.parametrize("where", ["before the head", "in the body", "while it connects"])
def test_whoever_waits_is_told_at_once(where: str) -> None:
    """Wherever the answer stands when the machine falls asleep, its caller gets an error, and the next call succeeds."""

    async def ask() -> None:
        async with Peer().serving() as peer:
            out = Upstream()
            url = peer.url
            if where == "while it connects":
                # Nobody accepts: the queue of a socket that listens with none is full at once.
                full = stack.enter_context(socket.socket())
                full.bind(("127.0.0.1", 0))
                full.listen(0)
                url = f"http://127.0.0.1:{full.getsockname()[1]}/"
                for _ in range(3):
                    filler = stack.enter_context(socket.socket())
                    filler.setblocking(False)
                    filler.connect_ex(full.getsockname())
            elif where == "before the head":
                await out.request("GET", url)  # on a connection that was born in good days
            peer.answers = False
            peer.asked.clear()
            under_way = asyncio.create_task(out.request("GET", url, timeout_seconds=60.0))
            if url == peer.url:
                await peer.asked.wait()
            await asyncio.wait({under_way}, timeout=0.05)
            assert not under_way.done()
            out.reconnect(give_up=True)
            with pytest.raises(UpstreamError):
                await under_way
            peer.answers = True
            assert (await out.request("GET", peer.url)).status == 404
            await out.close()

    with contextlib.ExitStack() as stack:
        asyncio.run(ask())
