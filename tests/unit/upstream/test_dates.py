"""What answers say of the time: a table of hostile dates through the real client, and whose word is heard."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from agent.core.clock import utc
from agent.core.timekeeping import ALONE_SECONDS, Witness
from agent.host.clock import SystemClock
from agent.upstream import Reach, Upstream, just_modified
from agent.upstream.dates import date_of, witness_of

TABLE: list[dict[str, Any]] = tomllib.loads(
    (Path(__file__).parents[2] / "vectors/time/dates.toml").read_text(encoding="utf-8")
)["dates"]
NOW = utc(1_795_500_000.0)


def lines(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The header lines of a row, in the order they are sent."""
    found = []
    for name, key in (("Date", "date"), ("Age", "age")):
        values = row.get(key, [])
        found += [(name, value) for value in ([values] if isinstance(values, str) else values)]
    return found


def expected(row: dict[str, Any]) -> datetime | None:
    return datetime.fromisoformat(row["read"]) if "read" in row else None


@asynccontextmanager
async def saying(headers: list[tuple[str, str]]) -> AsyncIterator[str]:
    """A server that sends exactly these lines with an empty answer; gives its URL."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        writer.write(f"HTTP/1.1 200 OK\r\n{head}Content-Length: 2\r\nConnection: close\r\n\r\nok".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["name"])
def test_a_date_is_read_or_says_nothing(row: dict[str, Any]) -> None:
    """Over a real connection, each row gives the instant it should or none, and never anything else."""

    async def ask() -> datetime | None:
        out = Upstream()
        try:
            async with saying(lines(row)) as url:
                return (await out.request("GET", url)).date
        finally:
            await out.close()

    assert asyncio.run(ask()) == expected(row)
    assert date_of(CIMultiDict(lines(row))) == expected(row)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["name"])
def test_an_odd_time_of_change_is_no_error(row: dict[str, Any]) -> None:
    """The same table as `Last-Modified`, and beside it: an answer that says no time is of nothing that is young."""
    now, within = "Tue, 24 Nov 2026 06:00:00 GMT", timedelta(seconds=2)
    changed = [("Last-Modified", value) for name, value in lines(row) if name == "Date"]
    young = just_modified(CIMultiDict([("Date", now), *changed]), within)
    assert young or expected(row) != datetime.fromisoformat("2026-11-24T06:00:00Z")
    young = just_modified(CIMultiDict([*lines(row), ("Last-Modified", now)]), within)
    assert young is (expected(row) == datetime.fromisoformat("2026-11-24T06:00:00Z"))


@pytest.mark.parametrize("witness", [Witness.LINK, Witness.AWS, Witness.GOOGLE])
def test_no_date_moves_us_beyond_the_bound(witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the head of an answer to our clock, whoever says it: all rows, one after the other, over and over."""
    boot = 1000.0
    clock = SystemClock(boottime=lambda: boot, wall=lambda: NOW.timestamp() - 1000.0 + boot, synchronised=lambda: False)
    monkeypatch.setattr("agent.upstream.client.witness_of", lambda *_, **__: witness)

    async def ask() -> None:
        nonlocal boot
        out = Upstream(hear=clock.hear)
        try:
            for row in TABLE * 2:
                async with saying(lines(row)) as url:
                    await out.request("GET", url, reach=Reach.LINK)
                    boot += 20.0
                    clock.follow()
                    assert abs(clock.wall_error_seconds) <= ALONE_SECONDS
        finally:
            await out.close()

    asyncio.run(ask())
    assert clock.timekeeper.heard > 0
    assert witness is Witness.LINK or clock.timekeeper.moves == 0


def test_a_cached_answer_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer with an Age, be it right, is a cache's word: whoever sits there is no witness."""
    heard: list[Any] = []
    monkeypatch.setattr("agent.upstream.client.witness_of", lambda *_, **__: Witness.AWS)

    async def ask() -> None:
        out = Upstream(hear=lambda *said: heard.append(said))
        for age in ([("Age", "0")], [("Age", "60")], []):
            async with saying([("Date", "Tue, 24 Nov 2026 06:00:00 GMT"), *age]) as url:
                await out.request("GET", url)
        await out.close()

    asyncio.run(ask())
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("origin", "witness"),
    [
        ("https://sts.amazonaws.com", Witness.AWS),
        ("https://sts.eu-west-1.amazonaws.com", Witness.AWS),
        ("https://sts.us-gov-west-1.amazonaws.com", Witness.AWS),
        ("https://sts.cn-north-1.amazonaws.com.cn", Witness.AWS),
        ("https://sts-fips.us-east-1.amazonaws.com", Witness.AWS),
        ("https://oauth2.googleapis.com", Witness.GOOGLE),
        ("https://sts.googleapis.com", Witness.GOOGLE),
        ("http://sts.amazonaws.com", None),
        ("https://sts.amazonaws.com:8443", None),
        ("https://sts.amazonaws.com.evil.example", None),
        ("https://evil-sts.amazonaws.com", None),
        ("https://bucket.s3.amazonaws.com", None),
        ("https://storage.googleapis.com", None),
        ("https://sts.internal.example", None),
        ("http://169.254.169.254", None),
        ("http://127.0.0.1:4566", None),
    ],
)
def test_whose_word_an_answer_is(origin: str, witness: Witness | None) -> None:
    """The clouds' token endpoints under their own names over TLS, and no other; never where a bundle chose the URL."""
    assert witness_of(origin, link=False, chosen=True) is witness
    assert witness_of(origin, link=False, chosen=False) is None


@pytest.mark.parametrize(
    ("origin", "witness"),
    [
        ("http://169.254.169.254", Witness.LINK),
        ("http://[fd00:ec2::254]", Witness.LINK),
        ("http://[fd20:ce::254]", Witness.LINK),
        ("http://127.0.0.1:1338", None),
        ("http://10.0.0.1", None),
        ("http://metadata.google.internal", None),
        ("http://169.254.169.254.example", None),
    ],
)
def test_a_metadata_service_elsewhere_is_none(origin: str, witness: Witness | None) -> None:
    """Only at an address that no router passes on is it the machine's own."""
    assert witness_of(origin, link=True, chosen=True) is witness


def test_a_resume_begins_with_new_connections() -> None:
    """What was idle before a suspend is not used after it: a connection that died meanwhile hangs until a timeout."""
    served = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except asyncio.IncompleteReadError:
            writer.close()

    async def ask() -> None:
        out = Upstream()
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with server:
            for _ in range(2):
                await out.request("GET", url)
            assert served == 1
            out.reconnect()
            await out.request("GET", url)
            assert served == 2
            await out.close()

    asyncio.run(ask())
