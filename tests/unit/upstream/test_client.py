"""The way out keeps its limits, whatever the other side does."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.upstream import Reach, Upstream, UpstreamError, UpstreamRefused, UpstreamSettings, origin_of
from agent.upstream.authorities import Authorities
from agent.upstream.guard import may_reach
from tests.fakes.net import Answer, Asked, Fault, Handler, serve
from tests.fakes.silent_files import silent

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def ok(asked: Asked) -> Answer:
    return Answer(200, b"hello")


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(scenario, 30))


def once(url: str, settings: UpstreamSettings | None = None) -> Any:
    """One request to wherever."""

    async def scenario() -> Any:
        upstream = Upstream(settings)
        try:
            return await upstream.request("GET", url)
        finally:
            await upstream.close()

    return run(scenario())


def ask(handler: Handler, path: str = "/", settings: UpstreamSettings | None = None, **arguments: Any) -> Any:
    """One request to ``handler`` behind a socket; gives the response and what arrived."""
    seen: list[Asked] = []

    def remember(asked: Asked) -> Answer | Fault:
        seen.append(asked)
        return handler(asked)

    async def scenario() -> Any:
        upstream = Upstream(settings)
        async with serve(remember) as url:
            try:
                return await upstream.request(arguments.pop("method", "GET"), url + path, **arguments), seen
            finally:
                await upstream.close()

    return run(scenario())


@asynccontextmanager
async def raw_peer(talk: Peer, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A peer that says what ``talk`` says, byte for byte."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await talk(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def ask_raw(data: bytes, settings: UpstreamSettings | None = None, **arguments: Any) -> Any:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    async def scenario() -> Any:
        upstream = Upstream(settings)
        async with raw_peer(talk) as port:
            try:
                return await upstream.request("GET", f"http://127.0.0.1:{port}/", **arguments)
            finally:
                await upstream.close()

    return run(scenario())


# -- what goes out


def test_target_is_sent_byte_for_byte() -> None:
    """A path and query reach the other side as they were given: no decoding, no collapsing of slashes."""
    _, seen = ask(ok, "/a%2fb//c/../%41?x=%7e&y=a+b")

    assert seen[0].path_qs == "/a%2fb//c/../%41?x=%7e&y=a+b"


def test_headers_and_body_are_sent() -> None:
    """Headers and body of a request arrive, with our own name and no wish for compression."""
    _, seen = ask(ok, method="PUT", headers={"X-One": "1"}, body=b"payload")

    assert (seen[0].method, seen[0].body, seen[0].headers["x-one"]) == ("PUT", b"payload", "1")
    assert seen[0].headers["accept-encoding"] == "identity"
    assert seen[0].headers["user-agent"].startswith("credential-agent/")


def test_environment_proxies_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment changes nothing."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    response, _ = ask(ok)

    assert response.status == 200


def test_configured_proxy_is_used_except_for_metadata() -> None:
    """An explicit proxy gets every request but those to the metadata services."""
    proxied: list[Asked] = []

    def proxy(asked: Asked) -> Answer:
        proxied.append(asked)
        return Answer(200, b"by proxy")

    async def scenario() -> None:
        async with serve(proxy) as proxy_url, serve(ok) as url:
            upstream = Upstream(UpstreamSettings(proxy=proxy_url))
            try:
                assert (await upstream.request("GET", "http://cloud.invalid/x")).body == b"by proxy"
                assert (await upstream.request("GET", url + "/", reach=Reach.LINK)).body == b"hello"
                with pytest.raises(UpstreamRefused):
                    await upstream.request("GET", "http://169.254.169.254/", reach=Reach.PUBLIC)
            finally:
                await upstream.close()

    run(scenario())
    assert [asked.path_qs for asked in proxied] == ["http://cloud.invalid/x"]


@pytest.mark.parametrize(("url", "said"), [("http://cloud.invalid/", "cannot connect"), ("https://cloud.invalid/", "")])
def test_proxy_that_is_down_is_named(url: str, said: str) -> None:
    """A proxy that does not answer is blamed, not the cloud behind it; its password is not told."""
    with pytest.raises(UpstreamError, match=f"{said}.*proxy") as caught:
        once(url, UpstreamSettings(proxy="http://user:canary@127.0.0.1:1"))

    assert "canary" not in str(caught.value)


def test_proxy_that_refuses_is_named() -> None:
    """A proxy that will not open a tunnel is blamed with its status."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async def scenario() -> None:
        async with raw_peer(talk) as port:
            upstream = Upstream(UpstreamSettings(proxy=f"http://127.0.0.1:{port}"))
            try:
                with pytest.raises(UpstreamError, match=r"proxy refuses https://cloud\.invalid: status 407"):
                    await upstream.request("GET", "https://cloud.invalid/")
            finally:
                await upstream.close()

    run(scenario())


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0b"])
def test_line_breaks_in_headers_are_refused(value: str) -> None:
    """A header value from a bundle cannot smuggle in a second header."""
    with pytest.raises(UpstreamRefused, match="control character"):
        ask(ok, headers={"Authorization": value})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/path",
        "ftp://example.com/",
        "file:///etc/passwd",
        "http:///nohost",
        "http://user:pass@example.com/",
        "http://user@example.com/",
        "http://example.com:99999/",
        "http://exa mple.com/",
        "http://example.com/\r\nHost: evil",
        "http://bücher.example/",
        "https://[::1",
    ],
)
def test_bad_urls_are_refused(url: str) -> None:
    """What is not an absolute http(s) URL in plain ASCII without credentials is refused before anything is sent."""
    with pytest.raises(UpstreamRefused):
        once(url)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Example.COM/a?b", "https://example.com"),
        ("https://example.com:443/", "https://example.com"),
        ("http://example.com:8080/x", "http://example.com:8080"),
        ("http://[::1]:80/x", "http://[::1]"),
    ],
)
def test_origin_is_normalised(url: str, origin: str) -> None:
    """An allow-list compares what the connector would connect to: case and default ports do not matter."""
    assert origin_of(url) == origin


# -- what comes back


@pytest.mark.parametrize("status", [200, 204, 404, 429, 500, 503])
def test_any_status_is_an_answer(status: int) -> None:
    """Statuses are for the caller to weigh."""
    response, _ = ask(lambda asked: Answer(status))

    assert response.status == status


def test_redirects_are_not_followed() -> None:
    """A redirect is an answer; nobody follows it, and nothing reaches its target."""
    response, seen = ask(lambda asked: Answer(302, headers={"Location": "/elsewhere"}))

    assert (response.status, len(seen)) == (302, 1)


def test_cookies_are_not_kept() -> None:
    """A cookie set by one answer does not go out with the next request."""
    seen: list[Asked] = []

    def handler(asked: Asked) -> Answer:
        seen.append(asked)
        return Answer(200, headers={"Set-Cookie": "a=b; Path=/"})

    async def scenario() -> None:
        upstream = Upstream()
        async with serve(handler) as url:
            for _ in range(2):
                await upstream.request("GET", url.replace("127.0.0.1", "localhost") + "/")
            await upstream.close()

    run(scenario())
    assert "cookie" not in seen[1].headers


def test_bodies_are_not_decompressed() -> None:
    """A compressed body is handed over as it came, so that a small answer cannot become a large one."""
    squeezed = gzip.compress(b"0" * 100_000)

    response, _ = ask(lambda asked: Answer(200, squeezed, {"Content-Encoding": "gzip"}), max_bytes=1000)

    assert response.body == squeezed


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    ],
    ids=["with length", "without length"],
)
def test_too_large_bodies_are_refused(head: bytes) -> None:
    """More than the cap is refused, whether or not the answer announces it."""
    with pytest.raises(UpstreamError, match="more than 100 bytes") as caught:
        ask_raw(head + b"x" * 101, max_bytes=100)

    assert caught.value.code == "too-large"


def test_body_of_exactly_the_cap_is_accepted() -> None:
    """The cap itself is allowed."""
    assert len(ask_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 100, max_bytes=100).body) == 100


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", "protocol"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "protocol"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "protocol"),
        (b"", "network"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20000 + b"\r\n\r\n", "protocol"),
    ],
    ids=["truncated", "bad chunk", "not http", "nothing", "huge header"],
)
def test_broken_answers_are_upstream_errors(data: bytes, code: str) -> None:
    """Whatever bytes come back, the only way to fail is an UpstreamError."""
    with pytest.raises(UpstreamError) as caught:
        ask_raw(data)

    assert caught.value.code == code


def test_silence_times_out() -> None:
    """A server that says nothing costs the time limit and no more."""
    with pytest.raises(UpstreamError) as caught:
        ask(lambda asked: Fault.HANG, timeout_seconds=0.1)

    assert caught.value.code == "timeout"


HELLO_PIECES = {
    "nothing": [],
    "a byte now and then": [b"\x16"] * 1000,
    "half a record": [b"\x16\x03\x03\x00\x7a\x02\x00"],
    "records without an end": [b"\x16\x03\x03\x00\x01\x00"] * 1000,
}


@pytest.mark.parametrize("hello", sorted(HELLO_PIECES))
def test_a_handshake_that_never_ends_is_given_up(hello: str) -> None:
    """A server, or whoever took its place, that begins TLS and does not go on costs the time limit and no more."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in HELLO_PIECES[hello]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        await reader.read()

    async def scenario() -> str:
        upstream = Upstream(UpstreamSettings(total_timeout_seconds=0.3))
        async with raw_peer(talk) as port:
            with pytest.raises(UpstreamError) as caught:
                await upstream.request("GET", f"https://127.0.0.1:{port}/")
            await upstream.close()
        return caught.value.code

    assert run(scenario()) in ({"timeout", "tls"} if hello.startswith("records") else {"timeout"})


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
@pytest.mark.parametrize("field", ["Location", "Refresh", "Alt-Svc"])
def test_nothing_is_taken_to_another_host(status: int, field: str) -> None:
    """Whatever a server says about where else to ask: what was meant for it (a signature, a token) goes nowhere else."""
    visited = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visited.append(await reader.read(1))

    async def scenario() -> int:
        upstream = Upstream()
        async with raw_peer(elsewhere) as port:
            value = {
                "Location": f"http://127.0.0.1:{port}/",
                "Refresh": f"0; url=http://127.0.0.1:{port}/",
                "Alt-Svc": f'http/1.1="127.0.0.1:{port}"; persist=1',
            }[field]
            async with serve(lambda _: Answer(status, b"", {field: value})) as url:
                for _ in range(2):
                    answer = await upstream.request("POST", url, headers={"Authorization": "secret"}, body=b"secret")
                await upstream.close()
        return answer.status

    assert run(scenario()) == status
    assert visited == []


def test_dripping_times_out() -> None:
    """A server that sends a byte now and then cannot hold a request beyond the total limit."""
    dripped = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dripped
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            dripped += 1
            await writer.drain()
            await asyncio.sleep(0.01)

    async def scenario() -> None:
        upstream = Upstream(UpstreamSettings(read_timeout_seconds=5, total_timeout_seconds=0.2))
        async with raw_peer(talk) as port:
            with pytest.raises(UpstreamError) as caught:
                await upstream.request("GET", f"http://127.0.0.1:{port}/")
            await upstream.close()
        assert caught.value.code == "timeout"

    run(scenario())
    assert dripped > 1


def test_refused_connection_is_said_plainly() -> None:
    """A closed port is a network error that names the address and the system's reason."""
    with pytest.raises(UpstreamError, match=r"cannot connect to http://127.0.0.1:1: connection refused"):
        once("http://127.0.0.1:1/")


def test_errors_do_not_tell_paths_and_queries() -> None:
    """The signature of a pre-signed URL, or a secret path, never reaches an error text."""
    with pytest.raises(UpstreamError) as caught:
        once("http://127.0.0.1:1/canary-path?X-Amz-Signature=canary-query")

    assert "canary" not in f"{caught.value} {caught.value.hint} {caught.value!r}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_repr_does_not_tell_the_body() -> None:
    """A response that is logged by mistake shows its size, not its content."""
    response, _ = ask(lambda asked: Answer(200, b"canary"))

    assert "canary" not in repr(response)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tue, 24 Nov 2026 06:00:00 GMT", datetime(2026, 11, 24, 6, tzinfo=UTC)),
        ("Tue, 24 Nov 2026 06:00:00 +0200", datetime(2026, 11, 24, 4, tzinfo=UTC)),
        ("yesterday", None),
        ("Tue, 99 Nov 2026 06:00:00 GMT", None),
    ],
)
def test_date_is_read(text: str, expected: datetime | None) -> None:
    """The server's Date is aware UTC, or None when it is not a date."""
    response, _ = ask(lambda asked: Answer(200, headers={"Date": text}))

    assert response.date == expected


def test_open_gives_the_head_before_the_body() -> None:
    """A streamed answer is handed over when its head is there."""

    async def scenario() -> list[bytes]:
        more = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Head: yes\r\n\r\n")
            await more.wait()
            writer.write(b"second")
            await writer.drain()

        upstream = Upstream()
        async with raw_peer(talk) as port:
            async with upstream.open("GET", f"http://127.0.0.1:{port}/") as stream:
                assert (stream.status, stream.headers["x-head"]) == (200, "yes")
                more.set()
                chunks = [chunk async for chunk in stream]
            await upstream.close()
        return chunks

    assert b"".join(run(scenario())) == b"second"


def test_usable_after_close() -> None:
    """A closed endpoint can be used again."""

    async def scenario() -> None:
        upstream = Upstream()
        async with serve(ok) as url:
            await upstream.request("GET", url + "/")
            await upstream.close()
            assert (await upstream.request("GET", url + "/")).status == 200
            await upstream.close()

    run(scenario())


# -- where it may go


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:db8::1",
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    """A URL from a bundle leads to no private, loopback, link-local or reserved address, in no disguise."""
    assert not may_reach(address, allow_private=False)


@pytest.mark.parametrize("address", ["52.94.236.248", "2600:1f00::1", "::ffff:52.94.236.248", "64:ff9b::345e:ecf8"])
def test_public_addresses_are_reached(address: str) -> None:
    """Public addresses are reached, also through NAT64."""
    assert may_reach(address, allow_private=False)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "::1", "fc00::1", "52.94.236.248"])
def test_private_addresses_can_be_allowed(address: str) -> None:
    """The operator may allow private and loopback addresses."""
    assert may_reach(address, allow_private=True)


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "169.254.170.23", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254", "0.0.0.0"]
)
def test_link_local_addresses_are_never_allowed(address: str) -> None:
    """Allowing private addresses does not open the metadata services to a bundle."""
    assert not may_reach(address, allow_private=True)


def test_every_ipv4_verdict_is_the_same_when_mapped() -> None:
    """An IPv4 address written as IPv6 is checked as itself."""
    for address in ("8.8.8.8", "10.1.2.3", "127.0.0.1", "169.254.1.1", "198.51.100.7"):
        mapped = str(ip_address("::ffff:" + address))
        for allow in (True, False):
            assert may_reach(mapped, allow_private=allow) == may_reach(address, allow_private=allow)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_the_connected_address_is_checked(host: str) -> None:
    """A name that resolves to a loopback address is refused where the connection is made: nothing arrives."""
    seen: list[Asked] = []

    async def scenario() -> None:
        upstream = Upstream()

        def remember(asked: Asked) -> Answer:
            seen.append(asked)
            return Answer(200)

        async with serve(remember) as url:
            with pytest.raises(UpstreamRefused, match="private, loopback or link-local"):
                await upstream.request("GET", url.replace("127.0.0.1", host) + "/", reach=Reach.PUBLIC)
            await upstream.close()

    run(scenario())
    assert seen == []


def test_loopback_is_reached_when_allowed() -> None:
    """With private addresses allowed, a URL from a bundle reaches a loopback broker."""
    response, _ = ask(ok, settings=UpstreamSettings(allow_private_addresses=True), reach=Reach.PUBLIC)

    assert response.status == 200


# -- tls


def certificate_authority(
    directory: Path, *, address: str = "127.0.0.1", days: int = 1, called: str = "test authority"
) -> tuple[Path, ssl.SSLContext]:
    """A private authority's file and a server context with its certificate for ``address``, good for so many days."""
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, called)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=3))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = directory / "authority.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    both = directory / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    both.write_bytes(private + file.read_bytes())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(both)
    return file, context


@pytest.mark.parametrize("trusted", [True, False])
def test_private_authorities_are_configured(tmp_path: Path, trusted: bool) -> None:
    """A certificate of a private authority verifies with its file configured, and only then."""
    file, context = certificate_authority(tmp_path)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()

    async def scenario() -> Any:
        upstream = Upstream(UpstreamSettings(ca_file=str(file) if trusted else None))
        async with raw_peer(talk, context) as port:
            try:
                return await upstream.request("GET", f"https://127.0.0.1:{port}/")
            finally:
                await upstream.close()

    if trusted:
        assert run(scenario()).body == b"ok"
    else:
        with pytest.raises(UpstreamError, match="does not verify") as caught:
            run(scenario())
        assert caught.value.code == "tls"


async def nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    pass


def _no_longer(directory: Path) -> tuple[Path, ssl.SSLContext]:
    return certificate_authority(directory, days=-1)


def _for_another(directory: Path) -> tuple[Path, ssl.SSLContext]:
    return certificate_authority(directory, address="127.0.0.2")


def _not_trusted(directory: Path) -> tuple[Path, ssl.SSLContext]:
    (directory / "other").mkdir()
    return certificate_authority(directory / "other")[0], certificate_authority(directory)[1]


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (_no_longer, "does not verify: certificate has expired"),
        (_for_another, "does not verify: IP address mismatch, certificate is not valid for '127.0.0.1'"),
        (_not_trusted, "does not verify: self-signed certificate"),
    ],
)
def test_why_a_certificate_does_not_verify_is_said(
    tmp_path: Path, server: Callable[[Path], tuple[Path, ssl.SSLContext]], words: str
) -> None:
    """Whoever reads it knows what to mend: its end, its name, or its authority."""
    file, context = server(tmp_path)

    async def scenario() -> None:
        upstream = Upstream(UpstreamSettings(ca_file=str(file)))
        async with raw_peer(nothing, context) as port:
            try:
                await upstream.request("GET", f"https://127.0.0.1:{port}/")
            finally:
                await upstream.close()

    with pytest.raises(UpstreamError, match=words) as caught:
        run(scenario())
    assert (caught.value.code, caught.value.hint is None) == ("tls", False)


def test_a_port_that_speaks_no_tls_is_told_as_that() -> None:
    """With what the library found in its place, and what to look at."""

    async def scenario() -> None:
        def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        upstream = Upstream()
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        try:
            await upstream.request("GET", f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        finally:
            server.close()
            await upstream.close()

    with pytest.raises(UpstreamError, match=r"no tls connection to .*: [a-z ]+$") as caught:
        run(scenario())
    assert "does that port speak tls" in str(caught.value.hint)


def test_unreadable_authorities_cost_only_what_is_private(tmp_path: Path) -> None:
    """Without its file of authorities it believes the system's alone, and goes on asking whom these vouch for."""
    with pytest.raises(UpstreamError, match="connection refused"):
        once("https://127.0.0.1:1/", UpstreamSettings(ca_file=str(tmp_path / "missing.pem")))


def test_rotated_authorities_are_believed_by_the_next_request(tmp_path: Path) -> None:
    """A replaced authority file holds from the next request on, the old one no more; a broken one changes nothing."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, old_context = certificate_authority(tmp_path / "old")
    new, new_context = certificate_authority(tmp_path / "new")
    file = tmp_path / "ca.pem"
    file.write_bytes(old.read_bytes())

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async def scenario() -> None:
        upstream = Upstream(UpstreamSettings(ca_file=str(file)))
        async with raw_peer(talk, old_context) as before, raw_peer(talk, new_context) as after:
            try:
                async with upstream.open("GET", f"https://127.0.0.1:{before}/") as under_way:
                    with pytest.raises(UpstreamError, match="does not verify"):
                        await upstream.request("GET", f"https://127.0.0.1:{after}/")
                    file.write_text("half a certif")
                    assert (await upstream.request("GET", f"https://127.0.0.1:{before}/")).body == b"ok"
                    new.replace(file)
                    assert (await upstream.request("GET", f"https://127.0.0.1:{after}/")).body == b"ok"
                    with pytest.raises(UpstreamError, match="does not verify"):
                        await upstream.request("GET", f"https://127.0.0.1:{before}/")
                    # What was under way on a connection of the former authorities ends undisturbed.
                    assert b"".join([chunk async for chunk in under_way]) == b"ok"
                assert upstream._former == []
            finally:
                await upstream.close()

    run(scenario())


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside an operator's file"])
def test_the_systems_authorities_are_read_again_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    """What is added to the system's file, or taken away, holds from the next request on; a gap changes nothing."""
    for name in ("old", "new", "own"):
        (tmp_path / name).mkdir()
    old, old_context = certificate_authority(tmp_path / "old", called="old")
    new, new_context = certificate_authority(tmp_path / "new", called="new")
    own, own_context = certificate_authority(tmp_path / "own", called="own")
    system = tmp_path / "system.pem"
    system.write_bytes(old.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async def scenario() -> None:
        upstream = Upstream(UpstreamSettings(ca_file=str(own) if beside else None))
        async with (
            raw_peer(talk, old_context) as before,
            raw_peer(talk, new_context) as after,
            raw_peer(talk, own_context) as private,
        ):
            try:
                for gap in (lambda: None, lambda: system.write_bytes(b""), system.unlink):
                    gap()
                    assert (await upstream.request("GET", f"https://127.0.0.1:{before}/")).body == b"ok"
                    with pytest.raises(UpstreamError, match="does not verify"):
                        await upstream.request("GET", f"https://127.0.0.1:{after}/")
                new.replace(system)
                assert (await upstream.request("GET", f"https://127.0.0.1:{after}/")).body == b"ok"
                with pytest.raises(UpstreamError, match="does not verify"):
                    await upstream.request("GET", f"https://127.0.0.1:{before}/")
                if beside:
                    assert (await upstream.request("GET", f"https://127.0.0.1:{private}/")).body == b"ok"
            finally:
                await upstream.close()

    run(scenario())


def test_authorities_that_do_not_answer_hold_up_one_request_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file on a mount that hangs is read in one thread, and believed once it is."""
    monkeypatch.setattr("agent.upstream.authorities.LOOK_SECONDS", 0.0)
    path, _ = certificate_authority(tmp_path)
    begun = 0

    class Counted(Authorities):
        def _again(self) -> bool:
            nonlocal begun
            begun += 1
            return super()._again()

    async def story() -> None:
        authorities = Counted(str(path))
        with silent(path):
            for _ in range(20):
                assert not await authorities.changed()
            assert begun == 1
            assert authorities.context is None
        assert authorities._looking is not None
        await asyncio.wait({authorities._looking})
        assert await authorities.changed()
        assert authorities.context is not None

    asyncio.run(story())
