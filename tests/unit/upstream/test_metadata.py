"""The metadata clients do the handshakes, and nothing that should not go out goes out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent.core.source import ELSEWHERE
from agent.upstream import (
    Ec2Metadata,
    GceMetadata,
    NotHere,
    OtherCloud,
    SwitchedOff,
    Upstream,
    UpstreamError,
    UpstreamRefused,
)
from tests.fakes.clock import FakeClock
from tests.fakes.machine_metadata import FakeEc2Metadata, FakeGceMetadata
from tests.fakes.net import Answer, Asked, Fault, InProcess, serve
from tests.fakes.wire import RESET, SAME, Pieces, Wire, head

ECHO = "/latest/meta-data/echo"


def ec2(
    scenario: Callable[[Ec2Metadata, FakeEc2Metadata, FakeClock], Awaitable[Any]], *, sockets: bool = False
) -> FakeEc2Metadata:
    clock = FakeClock()
    fake = FakeEc2Metadata(clock.now, dict)

    async def main() -> None:
        if not sockets:
            upstream: Any = InProcess({"http://169.254.169.254": fake})
            await scenario(Ec2Metadata(upstream, clock), fake, clock)
            return
        upstream = Upstream()
        async with serve(fake) as url:
            await scenario(Ec2Metadata(upstream, clock, url), fake, clock)
            await upstream.close()

    asyncio.run(asyncio.wait_for(main(), 30))
    return fake


def gce(scenario: Callable[[GceMetadata, FakeGceMetadata], Awaitable[Any]]) -> FakeGceMetadata:
    clock = FakeClock()
    fake = FakeGceMetadata(clock.now, lambda: ("token", 3599), lambda audience: "a.b.c")
    upstream: Any = InProcess({"http://169.254.169.254": fake})
    asyncio.run(asyncio.wait_for(scenario(GceMetadata(upstream), fake), 30))
    return fake


def _captive(**headers: str) -> Callable[[Asked, FakeEc2Metadata], Answer]:
    return lambda _asked, _fake: Answer(403, b"<html>sign in", {"Content-Type": "text/html", **headers})


def _through(asked: Asked, fake: FakeEc2Metadata) -> Answer:
    """A proxy that tells for whom it asks, and hides itself: EC2 then gives no token, and everything else."""
    if asked.method == "PUT":
        return Answer(403, b"", {"Server": "EC2ws", "Content-Type": "text/plain"})
    said = fake(asked)
    assert isinstance(said, Answer)
    return said


GOOGLES = {
    "a page, as it says of what is not there": Answer(
        404, b"<!DOCTYPE html>".ljust(1604), {"Metadata-Flavor": "Google"}
    ),
    "a refusal": Answer(403, b'Missing required header "Metadata-Flavor": "Google"\n', {"Metadata-Flavor": "Google"}),
    "a refusal of GKE's": Answer(
        403, b'GKE Metadata Server encountered an error: Missing required header "Metadata-Flavor": "Google"\n'
    ),
}
"""What Google's own server has been seen to say to whoever asks for EC2's session token (gcp-metadata#657 has the 1604
bytes, google-cloud-ruby#3750 the refusal without a mark)."""


@pytest.mark.parametrize("said", GOOGLES)
def test_where_googles_server_is_ec2_is_not(said: str) -> None:
    """The other cloud's service is known by its page, whatever its length, and by its own words."""

    async def ask() -> None:
        upstream = Upstream()
        async with serve(lambda _: GOOGLES[said]) as url:
            with pytest.raises(OtherCloud, match=ELSEWHERE):
                await Ec2Metadata(upstream, FakeClock(), url).get("/latest/user-data")
        await upstream.close()

    asyncio.run(asyncio.wait_for(ask(), 30))


STRANGERS: dict[str, Callable[[Asked, FakeEc2Metadata], Answer]] = {
    "a captive portal": _captive(),
    "nginx": _captive(Server="nginx/1.24.0"),
    "squid": _captive(Server="squid/5.7", Via="1.1 gw (squid/5.7)", X_Squid_Error="ERR_ACCESS_DENIED 0"),
    "a gateway that shows the server behind it": _captive(Server="EC2ws", Via="1.1 gateway"),
    "one that says almost its name": _captive(Server="EC2ws/1.0"),
    "one that forwards, and says for whom": _through,
    "another service: google's": _captive(**{"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}),
    "another service: not found": lambda _asked, _fake: Answer(404, b""),
    "another service: no such method": lambda _asked, _fake: Answer(405, b""),
    "another service: not implemented": lambda _asked, _fake: Answer(501, b""),
}
"""What stands at the address and is not EC2's metadata service, or not it alone."""


def puts(fake: FakeEc2Metadata) -> int:
    return sum(asked.method == "PUT" for asked in fake.asked)


def test_ec2_session_token_is_got_and_kept() -> None:
    """One session token serves many requests; over a real socket."""

    async def scenario(metadata: Ec2Metadata, fake: FakeEc2Metadata, clock: FakeClock) -> None:
        for _ in range(3):
            assert await metadata.get("/latest/meta-data/placement/region") == b"eu-west-1"

    assert puts(ec2(scenario, sockets=True)) == 1


def test_ec2_concurrent_requests_share_one_token() -> None:
    """Many requests at once ask for one session token."""

    async def scenario(metadata: Ec2Metadata, fake: FakeEc2Metadata, clock: FakeClock) -> None:
        await asyncio.gather(*(metadata.get(ECHO) for _ in range(20)))

    assert puts(ec2(scenario)) == 1


def test_ec2_session_token_is_renewed_before_its_end() -> None:
    """A token is replaced while it is still good, by the boot-time clock; a step of the wall clock changes nothing."""

    async def scenario(metadata: Ec2Metadata, fake: FakeEc2Metadata, clock: FakeClock) -> None:
        await metadata.get(ECHO)
        clock.move(21600 - 121)
        await metadata.get(ECHO)
        assert puts(fake) == 1
        clock.move(2)
        await metadata.get(ECHO)
        assert puts(fake) == 2

    ec2(scenario)


def test_ec2_forgotten_token_is_replaced_once() -> None:
    """A 401 gets one new token and one more try."""

    async def scenario(metadata: Ec2Metadata, fake: FakeEc2Metadata, clock: FakeClock) -> None:
        await metadata.get(ECHO)
        fake.forget_tokens()
        assert (await metadata.request("GET", ECHO)).status == 200

    assert puts(ec2(scenario)) == 2


def test_ec2_second_401_is_the_answer() -> None:
    """A service that refuses even a new token is not asked a third time."""

    async def scenario(metadata: Ec2Metadata, fake: FakeEc2Metadata, clock: FakeClock) -> None:
        fake.status = 401
        assert (await metadata.request("GET", ECHO)).status == 401

    fake = ec2(scenario)
    assert (puts(fake), len(fake.asked)) == (2, 4)


def test_ec2_forwards_only_what_may_go_out() -> None:
    """The caller's token, forwarding marks and hop-by-hop headers are dropped; the rest and the target go as they are."""

    async def scenario(metadata: Ec2Metadata, fake: FakeEc2Metadata, clock: FakeClock) -> None:
        given = {
            "X-aws-ec2-metadata-token": "the-worker's-own",
            "X-Forwarded-For": "10.0.0.1",
            "Forwarded": "for=10.0.0.1",
            "Host": "evil.example",
            "Connection": "close, X-Hop",
            "X-Hop": "1",
            "Accept-Encoding": "gzip",
            "Transfer-Encoding": "chunked",
            "Content-Length": "999",
            "X-Kept": "yes",
            "User-Agent": "aws-sdk-x",
        }
        answer = await metadata.request("GET", ECHO + "?a=%2f", given)
        method, target, headers = json.loads(answer.body)
        assert (method, target) == ("GET", ECHO + "?a=%2f")
        assert headers["x-kept"] == "yes"
        assert headers["user-agent"] == "aws-sdk-x"
        assert headers["accept-encoding"] == "identity"  # what comes is edited, and kept for other clients
        assert headers["x-aws-ec2-metadata-token"] in fake.tokens
        unwanted = {"x-forwarded-for", "forwarded", "x-hop", "transfer-encoding"}
        assert not unwanted & headers.keys()

    ec2(scenario, sockets=True)


def test_ec2_get_distinguishes_absence_from_failure() -> None:
    """404 is None; any other status is an error."""

    async def scenario(metadata: Ec2Metadata, fake: FakeEc2Metadata, clock: FakeClock) -> None:
        assert await metadata.get("/latest/meta-data/nothing") is None
        fake.status = 503
        with pytest.raises(UpstreamError, match="got 503") as caught:
            await metadata.get(ECHO)
        assert caught.value.code == "status"
        assert caught.value.server_time == clock.now()

    ec2(scenario)


@pytest.mark.parametrize("held", [False, True])
def test_ec2_switched_off_is_its_own_word(held: bool) -> None:
    """A service that is switched off says so at the first question, though we hold a token of before."""

    async def scenario(metadata: Ec2Metadata, fake: FakeEc2Metadata, clock: FakeClock) -> None:
        if held:
            await metadata.get(ECHO)
        fake.enabled = False
        with pytest.raises(SwitchedOff):
            await metadata.get(ECHO)

    ec2(scenario)


@pytest.mark.parametrize("stranger", sorted(STRANGERS))
def test_ec2_a_strangers_answer_is_no_word_of_the_service(stranger: str) -> None:
    """Whoever else answers for a token in its place, it was not EC2 that said it is switched off; and it may pass."""
    clock = FakeClock()
    fake = FakeEc2Metadata(clock.now, dict)
    between = STRANGERS[stranger]

    async def main() -> None:
        net = InProcess({"http://169.254.169.254": lambda asked: between(asked, fake)})
        upstream: Any = net
        metadata = Ec2Metadata(upstream, clock)
        with pytest.raises(UpstreamError) as caught:
            await metadata.get(ECHO)
        assert not isinstance(caught.value, SwitchedOff)
        assert isinstance(caught.value, NotHere) == stranger.startswith("another service")
        net.routes["http://169.254.169.254"] = fake
        assert await metadata.get(ECHO) is not None

    asyncio.run(asyncio.wait_for(main(), 30))


def test_ec2_silence_is_an_upstream_error() -> None:
    """A silent service is an error that may pass, not absence."""

    async def scenario(metadata: Ec2Metadata, fake: FakeEc2Metadata, clock: FakeClock) -> None:
        fake.fault = Fault.HANG
        with pytest.raises(UpstreamError) as caught:
            await metadata.get(ECHO)
        assert (caught.value.code, isinstance(caught.value, NotHere)) == ("timeout", False)
        assert "HttpPutResponseHopLimit" in str(caught.value.hint)

    ec2(scenario)


@pytest.mark.parametrize("path", ["", "latest", "@evil.example/", ".evil.example/", "/a b", "/a\r\nX: 1", "/ü"])
def test_only_paths_are_glued_to_the_base(path: str) -> None:
    """What is not a path cannot change the host that is asked."""

    async def scenario(metadata: Ec2Metadata, fake: FakeEc2Metadata, clock: FakeClock) -> None:
        with pytest.raises(UpstreamRefused):
            await metadata.request("GET", path)

    assert ec2(scenario).asked == []


def test_gce_flavor_is_sent() -> None:
    """Requests carry the flavor header."""

    async def scenario(metadata: GceMetadata, fake: FakeGceMetadata) -> None:
        body = await metadata.get("/computeMetadata/v1/instance/service-accounts/default/token")
        assert body is not None

    assert gce(scenario).asked[0].headers["metadata-flavor"] == "Google"


def test_gce_answers_without_flavor_are_not_here() -> None:
    """An answer without the flavor comes from something else at that address."""

    async def scenario(metadata: GceMetadata, fake: FakeGceMetadata) -> None:
        fake.flavor = False
        with pytest.raises(NotHere):
            await metadata.get("/computeMetadata/v1/instance/service-accounts/default/token")
        with pytest.raises(NotHere):
            await metadata.get("/computeMetadata/v1/nothing")

    gce(scenario)


def test_gce_errors_without_flavor_are_believed_once_it_proved_real() -> None:
    """Some real servers leave the flavor out of a 404; after one flavored answer that is a plain 404."""

    async def scenario(metadata: GceMetadata, fake: FakeGceMetadata) -> None:
        fake.flavor_on_errors = False
        await metadata.get("/computeMetadata/v1/instance/service-accounts/default/token")
        assert await metadata.get("/computeMetadata/v1/nothing") is None

    gce(scenario)


def test_gce_overload_is_not_absence() -> None:
    """A 503 without the flavor is an answer of a server in trouble."""

    async def scenario(metadata: GceMetadata, fake: FakeGceMetadata) -> None:
        fake.flavor, fake.status = False, 503
        assert (await metadata.request("GET", "/computeMetadata/v1/")).status == 503

    gce(scenario)


PARTS: dict[str, Callable[[Answer], Pieces]] = {
    "nothing of it": lambda a: [head(a)],
    "half of it": lambda a: [head(a) + a.body[: len(a.body) // 2]],
    "half of it, and a reset": lambda a: [head(a) + a.body[: len(a.body) // 2], RESET],
}
"""Of an answer that does not say its length, and which its connection ended."""


async def _of_gce(wire: Wire) -> bytes | None:
    return await GceMetadata(wire).get("/computeMetadata/v1/instance/id")  # type: ignore[arg-type]


async def _of_ec2(wire: Wire) -> bytes | None:
    return await Ec2Metadata(wire, FakeClock()).get(ECHO)  # type: ignore[arg-type]


SERVICES: dict[str, tuple[Callable[[Wire], Awaitable[bytes | None]], dict[str, str]]] = {
    "ec2": (_of_ec2, {"Server": "EC2ws"}),
    "gce": (_of_gce, {"Metadata-Flavor": "Google"}),
}


def _ended(service: str, ways: list[Callable[[Answer], Pieces]], body: bytes) -> tuple[bytes | None, int]:
    """What comes of answers that travel in these ways, one after the other, and how often it was asked."""
    ask, headers = SERVICES[service]
    asked: list[Asked] = []

    def handler(one: Asked) -> Answer:
        if one.method == "PUT":
            return Answer(200, b"token", headers)
        asked.append(one)
        return Answer(200, body, headers)

    def travel(answer: Answer) -> Pieces:
        return (SAME["as usual"] if answer.body == b"token" else ways[len(asked) - 1])(answer)

    wire = Wire({"http://169.254.169.254": handler}, travel, silence_seconds=20)
    return asyncio.run(asyncio.wait_for(ask(wire), 30)), len(asked)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("service", SERVICES)
def test_half_an_answer_is_none(service: str, part: str) -> None:
    """What may have been broken off says neither that there is nothing nor who this machine is."""
    for ways in ([PARTS[part], SAME["ended by the connection"]], [SAME["ended by the connection"], PARTS[part]]):
        with pytest.raises(UpstreamError) as caught:
            _ended(service, ways, b"1234567890123")
        assert caught.value.code == "protocol"


@pytest.mark.parametrize("service", SERVICES)
def test_half_an_object_is_none_though_it_ends_as_one(service: str) -> None:
    """A list of attributes that was broken off behind an inner object holds not what comes after that."""

    def part(answer: Answer) -> Pieces:
        return [head(answer) + answer.body[: answer.body.index(b"}") + 1]]

    with pytest.raises(UpstreamError):
        _ended(service, [part, SAME["ended by the connection"]], b'{"a": {"b": 1}, "c": 2}')


@pytest.mark.parametrize("service", SERVICES)
def test_an_answer_that_ends_with_its_connection_is_asked_for_twice_if_nothing_says_its_end(service: str) -> None:
    """A service that speaks HTTP/1.0 is understood, and gives a credential once."""
    ended = [SAME["ended by the connection"], SAME["HTTP/1.0, ended by the connection"]]
    assert _ended(service, ended, b"1234567890123") == (b"1234567890123", 2)
    assert _ended(service, ended, b'{"Code": "Success"}\n') == (b'{"Code": "Success"}\n', 1)
    assert _ended(service, [SAME["chunked"]], b"1234567890123") == (b"1234567890123", 1)
