"""A token for fewer scopes, over the socket: the narrower one when it can be had in time, else the ordinary one."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from agent.core.errors import Denied
from agent.core.model import CLOUD_PLATFORM, Cloud, GoogleToken, IdToken
from agent.core.secret import Secret
from agent.core.view import Answer, Ended, Live, Origin, Pending
from agent.snapshot import ServeSettings
from tests.fakes.clock import START, FakeClock
from tests.fakes.view import KEY, FakeView, RunningEndpoint, google_token, running_endpoint

PATH = "/computeMetadata/v1/instance/service-accounts/default/token"


AUTH = "https://www.googleapis.com/auth/"


def narrow_scope(name: str) -> str:
    return f"{AUTH}devstorage.{name}"


class Narrow:
    """Mints tokens for fewer scopes, as scripted: ``slow`` not before ``release``, ``denied`` is refused.

    What it minted is in the next snapshot, as with the controller.
    """

    def __init__(self, view: FakeView) -> None:
        self.view = view
        self.view.scopes = (CLOUD_PLATFORM,)
        self.minted: list[tuple[str, ...]] = []
        self.release = asyncio.Event()

    async def __call__(self, wanted: tuple[str, ...]) -> GoogleToken | None:
        names = tuple(scope.rpartition(".")[2] for scope in wanted)
        self.minted.append(names)
        if "slow" in names:
            await self.release.wait()
        if "denied" in names:
            raise Denied("no")
        token = msgspec.structs.replace(google_token(START), access_token=Secret("ya29.narrow-" + "-".join(names)))
        self.view.scoped[wanted] = token
        self.view.touch()
        return token


def ask(server: RunningEndpoint, query: str) -> str:
    query = re.sub(r"(?<![a-z])(read|write|slow|denied|a|b)(?![a-z])", lambda found: narrow_scope(found[0]), query)
    got = server.send(f"GET {PATH}{query} HTTP/1.1\r\nHost: metadata\r\nMetadata-Flavor: Google\r\n\r\n".encode())
    assert got.startswith(b"HTTP/1.1 200 ")
    document: dict[str, Any] = json.loads(got.partition(b"\r\n\r\n")[2])
    assert document["token_type"] == "Bearer"
    assert isinstance(document["expires_in"], int)
    return str(document["access_token"])


@pytest.mark.parametrize(
    ("query", "token"),
    [
        ("?scopes=read", "ya29.narrow-read"),
        ("?scopes=write,read", "ya29.narrow-read-write"),
        ("?scopes=read%20write", "ya29.narrow-read-write"),
        ("?scopes=read,read", "ya29.narrow-read"),
        ("?scopes=", "ya29.example-1"),
        ("", "ya29.example-1"),
        ("?scopes=wide", "ya29.example-1"),
        ("?scopes=slow", "ya29.example-1"),
        ("?scopes=denied", "ya29.example-1"),
        ("?scopes=denied&recursive=true", "ya29.example-1"),
    ],
)
def test_a_token_is_always_there(query: str, token: str) -> None:
    """Whatever becomes of the wish, the answer is 200 with a whole token."""
    view = FakeView()
    narrow = Narrow(view)
    view.live_gcp(START)
    settings = ServeSettings(token_key=KEY, gce_hold_seconds=0.2)
    with running_endpoint(view, settings=settings, clock=FakeClock(), scoped=narrow) as server:
        assert ask(server, query) == token
        server.run(narrow.release.set)


def test_who_waits_for_a_change_has_a_token_for_its_wish() -> None:
    """At once where another one was known, and with the next one else; its tag is the token's, not that of its life."""
    view, clock = FakeView(), FakeClock()
    narrow = Narrow(view)
    view.live_gcp(START)
    scope = narrow_scope("read")
    path = f"GET {PATH}?scopes={scope}"
    rest = " HTTP/1.1\r\nHost: metadata\r\nMetadata-Flavor: Google\r\n\r\n"
    with running_endpoint(view, clock=clock, scoped=narrow) as server, ThreadPoolExecutor(1) as other:
        assert ask(server, "?scopes=read&wait_for_change=true&last_etag=0") == "ya29.narrow-read"
        tags = []
        for _ in range(2):
            tags += re.findall(r"ETag: (\w+)", server.send((path + rest).encode()).decode())
            server.run(lambda: clock.move(1))
        assert tags[0] == tags[1]
        waits = other.submit(server.send, f"{path}&wait_for_change=true&last_etag={tags[0]}{rest}".encode())
        while not server.run(lambda: server.endpoint.listener.held):
            assert not waits.done()
        server.run(view.touch)  # something changed, but not this

        def renew() -> None:
            view.scoped[scope,] = msgspec.structs.replace(google_token(START), access_token=Secret("ya29.narrow-next"))
            view.touch()

        server.run(renew)
        assert b"ya29.narrow-next" in waits.result(60)


def test_it_is_minted_once() -> None:
    """What is held costs no mint, in whichever order it is asked for."""
    view = FakeView()
    narrow = Narrow(view)
    view.live_gcp(START)
    with running_endpoint(view, clock=FakeClock(), scoped=narrow) as server:
        for query in ("?scopes=a,b", "?scopes=b,a", "?scopes=b,a,a"):
            assert ask(server, query) == "ya29.narrow-a-b"
    assert narrow.minted == [("a", "b")]


def test_the_machines_own_token_is_as_it_is() -> None:
    """Without a bundle nothing is minted for a wish: GCE ignores it."""
    view = FakeView()
    narrow = Narrow(view)
    view.live_gcp(START, origin=Origin.FALLBACK)
    with running_endpoint(view, clock=FakeClock(), scoped=narrow) as server:
        assert ask(server, "?scopes=read") == "ya29.example-1"
    assert not narrow.minted


IDENTITY = "/computeMetadata/v1/instance/service-accounts/default/identity?audience=https://a.example"


@pytest.mark.parametrize(
    ("then", "status", "holds"),
    [
        (Ended("withdrawn", passing=False), 403, "withdrawn"),
        (Pending("another is waited for"), 503, "another is waited for"),
        (Live(google_token(START), "other@example.com", Origin.BUNDLE), 200, "ya29.example-1"),
        (Live(google_token(START), "machine@example.com", Origin.FALLBACK), 200, "ya29.example-1"),
    ],
    ids=["withdrawn", "pending", "another", "the machine"],
)
def test_what_was_minted_for_one_is_not_given_to_the_next(then: Answer, status: int, holds: str) -> None:
    """A mint takes its time: what is served when it comes is what is answered, and the token speaks for nobody."""
    view = FakeView()
    view.scopes, view.mints = (CLOUD_PLATFORM,), True
    view.live_gcp(START)

    async def scoped(_wanted: tuple[str, ...]) -> GoogleToken:
        view.set(Cloud.GCP, then)
        return msgspec.structs.replace(google_token(START), access_token=Secret("ya29.of-before"))

    async def demand(audience: str) -> IdToken:
        view.set(Cloud.GCP, then)
        return IdToken(Secret("eyJ.of.before"), audience, START, START + timedelta(hours=1))

    for path in (f"{PATH}?scopes={narrow_scope('read')}", IDENTITY):
        view.live_gcp(START)
        with running_endpoint(view, clock=FakeClock(), scoped=scoped, demand=demand) as server:
            got = server.send(f"GET {path} HTTP/1.1\r\nHost: metadata\r\nMetadata-Flavor: Google\r\n\r\n".encode())
        assert b"before" not in got
        if path is not IDENTITY:
            assert got.startswith(b"HTTP/1.1 %d " % status)
            assert holds.encode() in got
        else:
            assert got.startswith(b"HTTP/1.1 %d " % (503 if status == 200 else status))


def test_what_is_under_way_for_one_identity_is_not_the_next_ones() -> None:
    """Who asks as the next has a mint of its own: it neither shares the one before, nor waits for it, nor hears its error."""
    view = FakeView()
    view.mints = True
    view.live_gcp(START)
    second = Live(google_token(START, serial=2), "other@example.com", Origin.BUNDLE)
    came, next_came = threading.Event(), asyncio.Event()
    minted: list[str] = []

    async def demand(audience: str) -> IdToken:
        minted.append(audience)
        if len(minted) == 1:
            view.set(Cloud.GCP, second)
            came.set()
            await next_came.wait()
            raise Denied("of before")
        next_came.set()
        return IdToken(Secret("eyJ.of.next"), audience, START, START + timedelta(hours=1))

    asked = f"GET {IDENTITY} HTTP/1.1\r\nHost: metadata\r\nMetadata-Flavor: Google\r\n\r\n".encode()
    with running_endpoint(view, clock=FakeClock(), demand=demand) as server, ThreadPoolExecutor(1) as other:
        first = other.submit(server.send, asked)
        assert came.wait(60)
        assert b"eyJ.of.next" in server.send(asked)
        assert b"eyJ" not in first.result()
        assert b"eyJ.of.next" in server.send(asked)
