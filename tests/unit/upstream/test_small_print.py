"""The smaller rules of the way out: its limits, whose word a date is, what an error is, whom it believes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from agent.upstream import (
    Ec2Metadata,
    GceMetadata,
    NotHere,
    Reach,
    Upstream,
    UpstreamError,
    UpstreamRefused,
    UpstreamResponse,
    UpstreamSettings,
    authorities,
    client,
)
from agent.upstream.authorities import AuthoritiesError, believed, read_authorities
from tests.fakes.clock import FakeClock
from tests.fakes.https_store import HttpsStore, private_ca
from tests.fakes.net import Answer, serve

LIMITS = UpstreamSettings(connect_timeout_seconds=5.0, read_timeout_seconds=10.0, total_timeout_seconds=30.0)


def run(scenario: Any) -> Any:
    return asyncio.run(asyncio.wait_for(scenario, 30))


async def asked(out: Upstream, url: str, **more: Any) -> UpstreamResponse:
    try:
        return await out.request("GET", url, **more)
    finally:
        await out.close()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The HTTP library's request fails with what is under ``raises``, and leaves under ``timeout`` what it was given."""
    found: dict[str, Any] = {"raises": ConnectionResetError()}

    async def request(_self: Any, _method: str, _url: Any, **more: Any) -> Any:
        found.update(more)
        raise found["raises"]

    monkeypatch.setattr(aiohttp.ClientSession, "request", request)
    return found


@pytest.mark.parametrize(
    ("seconds", "connect", "read", "total"), [(None, 5.0, 10.0, 30.0), (2.0, 2.0, 2.0, 2.0), (70.0, 5.0, 70.0, 70.0)]
)
def test_each_request_has_its_limits(
    library: dict[str, Any], seconds: float | None, connect: float, read: float, total: float
) -> None:
    """A limit that a caller gives is that of the silence and of the whole; to connect never takes longer than it may."""
    with pytest.raises(UpstreamError):
        run(asked(Upstream(LIMITS), "http://127.0.0.1:1/", timeout_seconds=seconds))
    given = library["timeout"]
    assert (given.sock_connect, given.sock_read, given.total) == (connect, read, total)


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (aiohttp.ClientPayloadError(), "protocol"),
        (aiohttp.ServerDisconnectedError(), "network"),
        (TimeoutError(), "timeout"),
        (ConnectionResetError(), "network"),
        (OSError(5, "an error of the system"), "network"),
        (ValueError("of the library"), "network"),
        (RuntimeError("of the loop"), "network"),
    ],
)
def test_whatever_the_library_raises_is_an_error_of_ours(library: dict[str, Any], raised: Exception, code: str) -> None:
    """Callers catch one class; another one would end a loop that is to go on for years."""
    library["raises"] = raised
    with pytest.raises(UpstreamError) as caught:
        run(asked(Upstream(), "http://127.0.0.1:1/"))
    assert caught.value.code == code


def test_a_request_that_is_cancelled_is_cancelled(library: dict[str, Any]) -> None:
    """It is no answer and no error of the server's."""
    library["raises"] = asyncio.CancelledError()

    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asked(Upstream(), "http://127.0.0.1:1/")

    run(scenario())


@pytest.mark.parametrize("raised", [TimeoutError(), OSError(5, "x"), aiohttp.ClientPayloadError()])
def test_a_body_that_breaks_off_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch, raised: Exception) -> None:
    """Also where the head of the answer was there already."""

    class Broken:
        async def __anext__(self) -> bytes:
            raise raised

    monkeypatch.setattr(aiohttp.StreamReader, "iter_any", lambda _self: Broken())

    async def scenario() -> None:
        async with serve(lambda _: Answer(200, b"hello")) as url:
            with pytest.raises(UpstreamError):
                await asked(Upstream(), url)

    run(scenario())


@pytest.mark.parametrize(
    ("reach", "link", "chosen"),
    [(Reach.LINK, True, True), (Reach.CONFIGURED, False, True), (Reach.PUBLIC, False, False)],
)
def test_whose_word_a_date_is_follows_from_who_chose_the_url(
    monkeypatch: pytest.MonkeyPatch, reach: Reach, link: bool, chosen: bool
) -> None:
    """Only what is asked as the machine's metadata service can be that witness, and nothing that a bundle names is one."""
    questions: list[Any] = []
    monkeypatch.setattr(client, "witness_of", lambda origin, **how: questions.append((origin, how)))

    async def scenario() -> None:
        async with serve(lambda _: Answer(200, b"")) as url:
            out = Upstream(UpstreamSettings(allow_private_addresses=True), hear=lambda *_: None)
            await asked(out, url, reach=reach)
            assert questions == [(url, {"link": link, "chosen": chosen})]

    run(scenario())


@pytest.mark.parametrize("content", [None, b"", b"no certificate"], ids=["absent", "empty", "nonsense"])
def test_a_server_that_nobody_vouches_for_is_never_believed(tmp_path: Path, content: bytes | None) -> None:
    """A file of authorities that cannot be used is no reason to verify nothing."""
    _, context = private_ca(tmp_path)
    file = tmp_path / "authorities.pem"
    if content is not None:
        file.write_bytes(content)

    async def scenario() -> None:
        store = HttpsStore(tls=context)
        async with store:
            store.put("/x", b"x")
            with pytest.raises(UpstreamError, match="does not verify") as caught:
                await asked(Upstream(UpstreamSettings(ca_file=str(file))), f"{store.url}/x")
            assert caught.value.code == "tls"

    run(scenario())


def test_what_is_no_file_of_certificates_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent, a directory, a queue that nobody writes to, too long, without a certificate, with a broken one."""
    monkeypatch.setattr(authorities, "MAX_BYTES", 5000)
    made, _ = private_ca(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "long").write_bytes(b"x" * 5001)
    for name, said in (
        ("absent", "cannot be read"),
        (".", "cannot be read"),
        ("fifo", "plain file"),
        ("long", "at most"),
    ):
        with pytest.raises(AuthoritiesError, match=said):
            read_authorities(str(tmp_path / name))
    (tmp_path / "longest").write_bytes(b"x" * 5000)
    assert len(read_authorities(str(tmp_path / "longest"))) == 5000
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    odd = b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n"
    for data in (b"", b"no certificate", broken, odd):
        with pytest.raises(AuthoritiesError, match="expected certificates in PEM"):
            believed(data)
    pem = made.read_bytes()
    assert believed(b"\xff\xfe a name in no encoding\n" + pem + pem)[1] == 2


@pytest.mark.parametrize(
    ("url", "reach", "refused"),
    [
        ("http://broker.example/", Reach.PUBLIC, False),  # the proxy resolves it, and decides
        ("http://93.184.216.34/", Reach.PUBLIC, False),
        ("http://10.0.0.1/", Reach.PUBLIC, True),
        ("http://169.254.169.254/", Reach.PUBLIC, True),
        ("http://10.0.0.1/", Reach.CONFIGURED, False),
    ],
)
def test_what_a_bundle_names_is_checked_before_a_proxy_is_asked(
    library: dict[str, Any], url: str, reach: Reach, refused: bool
) -> None:
    """An address that may not be reached is not reached through a proxy either; what the operator names is."""
    with pytest.raises(UpstreamError) as caught:
        run(asked(Upstream(UpstreamSettings(proxy="http://127.0.0.1:1")), url, reach=reach))
    assert isinstance(caught.value, UpstreamRefused) is refused
    assert ("proxy" in library) is not refused


@pytest.mark.parametrize("url", ["http://:password@example.com/", "http://example.com/\t", "http://example.com/\x7f"])
def test_a_url_with_a_password_or_a_control_character_is_refused(url: str) -> None:
    """Whatever part of it that is in."""
    with pytest.raises(UpstreamRefused):
        run(asked(Upstream(), url))


@pytest.mark.parametrize("name", ["X-A\r\nX-B", "X\tA", "é"])
def test_a_name_of_a_header_is_plain(name: str) -> None:
    """It may come out of a bundle, as a value may."""
    with pytest.raises(UpstreamRefused, match="control character"):
        run(asked(Upstream(), "http://127.0.0.1:1/", headers={name: "x"}))


@pytest.mark.parametrize("give_up", [False, True])
def test_new_connections_end_what_is_under_way_only_if_that_is_asked(give_up: bool) -> None:
    """Whoever waits for a connection that may be dead gets an error at once, or else its answer in peace."""

    async def scenario() -> None:
        arrived, go = asyncio.Event(), asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            arrived.set()
            await go.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        out = Upstream()
        async with server:
            waiting = asyncio.ensure_future(out.request("GET", url))
            await arrived.wait()
            out.reconnect(give_up=give_up)
            if give_up:
                with pytest.raises(UpstreamError, match="in time"):
                    await waiting
            go.set()
            other = await out.request("GET", url)  # by a connection of its own
            assert other.body == b"ok"
            if not give_up:
                assert (await waiting).body == b"ok"
            await out.close()

    run(scenario())


class Service:
    """A metadata service without sockets: gives the answers in their order, and notes what it was asked with."""

    def __init__(self, *answers: UpstreamResponse) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, dict[str, Any]]] = []

    async def request(self, method: str, url: str, **more: Any) -> UpstreamResponse:
        self.asked.append((method, url, more))
        return self.answers.pop(0)


def said(status: int = 200, body: bytes = b"x", headers: Mapping[str, str] | None = None) -> UpstreamResponse:
    named = {"Content-Length": str(len(body)), **(headers or {})}
    return UpstreamResponse(status, CIMultiDictProxy(CIMultiDict(named)), body)


FLAVOR = {"Metadata-Flavor": "Google"}


@pytest.mark.parametrize("ends", [None, 70.0])
def test_a_long_poll_of_the_metadata_service_is_given_its_time(ends: float | None) -> None:
    """The usual two seconds are for what is answered at once."""
    ec2, gce = Service(said(body=b"token"), said()), Service(said(headers=FLAVOR))
    run(Ec2Metadata(cast(Upstream, ec2), FakeClock()).request("GET", "/x", timeout_seconds=ends))
    run(GceMetadata(cast(Upstream, gce)).request("GET", "/x", timeout_seconds=ends))
    assert [more["timeout_seconds"] for _, _, more in ec2.asked] == [2.0, ends or 2.0]
    assert [more["timeout_seconds"] for _, _, more in gce.asked] == [ends or 2.0]
    assert {more["reach"] for _, _, more in ec2.asked + gce.asked} == {Reach.LINK}


@pytest.mark.parametrize("make", [lambda out: Ec2Metadata(out, FakeClock()), GceMetadata], ids=["ec2", "gce"])
@pytest.mark.parametrize("path", ["@evil.example/", ".evil.example/", "", "/a b", "/é", "/\n"])
def test_nothing_but_a_path_is_glued_to_the_services_address(make: Callable[[Any], Any], path: str) -> None:
    """Anything else could name another host, and the session token or the identity's name would go there."""
    service = Service(said(), said())
    with pytest.raises(UpstreamRefused):
        run(make(service).request("GET", path))
    assert service.asked == []


@pytest.mark.parametrize(
    ("granted", "seconds"),
    [("60", 1), ("300", 180), ("21600", 21480), ("99999", 21480), ("999999", 21480), ("", 21480), ("soon", 21480), ("-5", 21480), ("0", 1)],
)  # fmt: skip
def test_a_session_token_is_used_for_as_long_as_it_was_granted(granted: str, seconds: int) -> None:
    """Two minutes less, six hours at most; services that do not say how long grant what was asked for."""
    headers = {"X-aws-ec2-metadata-token-ttl-seconds": granted} if granted else {}

    async def scenario() -> None:
        clock, service = FakeClock(), Service(*[said(body=b"token", headers=headers)] * 9)
        metadata = Ec2Metadata(cast(Upstream, service), clock)
        for passed, methods in ((0, "PUT GET"), (seconds - 0.5, "GET"), (0.5, "PUT GET")):
            await clock.advance(passed)
            service.asked.clear()
            await metadata.request("GET", "/x")
            assert " ".join(method for method, _, _ in service.asked) == methods

    run(scenario())


@pytest.mark.parametrize(("status", "body", "code"), [(500, b"token", "status"), (200, b"", "protocol"), (200, "é".encode(), "protocol")])  # fmt: skip
def test_what_is_no_session_token_is_not_sent_as_one(status: int, body: bytes, code: str) -> None:
    """A service in trouble, or something that answers in its place."""
    service = Service(said(status, body), said())
    with pytest.raises(UpstreamError) as caught:
        run(Ec2Metadata(cast(Upstream, service), FakeClock()).request("GET", "/x"))
    assert caught.value.code == code
    assert len(service.asked) == 1


@pytest.mark.parametrize("proved", [False, True])
@pytest.mark.parametrize("status", [200, 302, 403, 404, 500, 503])
def test_what_of_googles_is_believed_without_its_flavor(proved: bool, status: int) -> None:
    """A server in trouble always; a refusal once it proved real; an answer never: it would be another's.

    Once it proved real, another's answer does not say that it is not here.
    """
    service = Service(*[said(headers=FLAVOR)] * proved, said(status))
    metadata = GceMetadata(cast(Upstream, service))
    if proved:
        run(metadata.request("GET", "/x"))
    if status >= 500 or (proved and status >= 400):
        assert run(metadata.request("GET", "/x")).status == status
    else:
        with pytest.raises(UpstreamError) as caught:
            run(metadata.request("GET", "/x"))
        assert isinstance(caught.value, NotHere) is not proved
