"""The fake metadata services are held to real, unmodified clients: a fake that only we can talk to proves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.gce_metadata import GceMetadataServer, ServiceAccount
from tests.fakes.google_cloud import GoogleCloud
from tests.fakes.served import Fault

KEY = Key("ASIAEXAMPLEEXAMPLE00", "the-secret", "the-session", datetime(2030, 1, 1, tzinfo=UTC))


@asynccontextmanager
async def session(url: str, **headers: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url, headers=headers) as made:
        yield made


async def in_thread(function: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(function)


def test_botocore_reads_the_role_from_the_fake_ec2_service() -> None:
    """Botocore's own instance provider finds the attached role, by token, and nothing else is asked."""
    from botocore.utils import InstanceMetadataFetcher

    async def main() -> None:
        async with Ec2MetadataService() as ec2:
            ec2.attach("worker-role", KEY)
            fetcher = InstanceMetadataFetcher(base_url=ec2.url, timeout=5)
            found = await in_thread(fetcher.retrieve_iam_role_credentials)
            assert found["access_key"] == KEY.access_key_id
            assert found["token"] == KEY.session_token
            assert ec2.paths() == [
                "/latest/api/token",
                "/latest/meta-data/iam/security-credentials/",
                "/latest/meta-data/iam/security-credentials/worker-role",
            ]
            ec2.detach()
            assert await in_thread(fetcher.retrieve_iam_role_credentials) == {}

    asyncio.run(main())


def test_ec2_service_refuses_requests_without_a_live_token() -> None:
    """IMDSv2 only: no token, a wrong one and one whose time is over are all 401; a forwarded token request is 403."""

    async def main() -> None:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        async with Ec2MetadataService(now=lambda: now) as ec2, session(ec2.url) as http:
            header = "X-aws-ec2-metadata-token"
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
            assert (await http.get("/latest/meta-data/")).status == 401
            assert (await http.get("/latest/meta-data/", headers={header: "no"})).status == 401
            assert (await http.put("/latest/api/token")).status == 400
            assert (await http.put("/latest/api/token", headers=ttl | {"X-Forwarded-For": "10.0.0.1"})).status == 403
            token = await (await http.put("/latest/api/token", headers=ttl)).text()
            assert (await http.get("/latest/meta-data/", headers={header: token})).status == 200
            now += timedelta(seconds=60)
            assert (await http.get("/latest/meta-data/", headers={header: token})).status == 401

    asyncio.run(main())


def test_ec2_service_lists_directories_and_hides_what_is_not_there() -> None:
    """A listing names its children, a profile that is not attached is 404, and user-data is the raw bytes."""

    async def main() -> None:
        async with Ec2MetadataService() as ec2, session(ec2.url) as http:
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
            token = await (await http.put("/latest/api/token", headers=ttl)).text()

            async def get(path: str) -> tuple[int, bytes]:
                answer = await http.get(path, headers={"X-aws-ec2-metadata-token": token})
                return answer.status, await answer.read()

            assert (await get("/latest/meta-data/placement/"))[1] == b"availability-zone\nregion"
            assert (await get("/latest/meta-data/placement/availability-zone/"))[1] == b"us-east-1a"
            assert (await get("/latest/meta-data/iam/security-credentials/"))[0] == 404
            ec2.attach("worker-role", KEY)
            assert await get("/latest/meta-data/iam/security-credentials") == (200, b"worker-role")
            assert (await get("/latest/meta-data/iam/security-credentials/other"))[0] == 404
            assert (await get("/latest/user-data"))[0] == 404
            ec2.user_data = b"\x00\xff#!"
            assert await get("/latest/user-data") == (200, b"\x00\xff#!")
            ec2.inject(Fault("/latest/meta-data/", status=503, times=1))
            assert [(await get("/latest/meta-data/"))[0] for _ in range(2)] == [503, 200]

    asyncio.run(main())


def test_google_auth_takes_tokens_from_the_fake_gce_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """google-auth's compute engine credentials get the account's e-mail and a token with its remaining life."""
    from google.auth import compute_engine
    from google.auth.transport.requests import Request

    async def main() -> None:
        async with GceMetadataServer(accounts=[ServiceAccount("robot@p.iam.gserviceaccount.com")]) as gce:
            host = gce.url.removeprefix("http://")
            monkeypatch.setattr("google.auth.compute_engine._metadata._GCE_METADATA_HOST", host)
            make: Any = compute_engine.Credentials  # google-auth types none of it
            credentials = make()
            await in_thread(lambda: credentials.refresh(Request()))
            assert credentials.service_account_email == "robot@p.iam.gserviceaccount.com"
            assert credentials.token.startswith("ya29.")
            assert all(asked.headers.get("metadata-flavor") == "Google" for asked in gce.asked)

    asyncio.run(main())


def test_gce_server_keeps_one_token_until_five_minutes_are_left() -> None:
    """The same token, with a shrinking life, until 300 s before its end."""

    async def main() -> None:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        async with GceMetadataServer(now=lambda: now) as gce, session(gce.url, **{"Metadata-Flavor": "Google"}) as http:

            async def token() -> tuple[str, int]:
                body = await (await http.get("/computeMetadata/v1/instance/service-accounts/default/token")).json()
                return body["access_token"], body["expires_in"]

            first, life = await token()
            now += timedelta(seconds=life - 301)
            assert await token() == (first, 301)
            now += timedelta(seconds=1)
            assert (await token())[0] != first

    asyncio.run(main())


def test_gce_server_answers_a_waiter_when_the_value_changes() -> None:
    """``wait_for_change`` hangs on the known ETag, returns on a change, at once on an unknown ETag, and on time-out."""

    async def main() -> None:
        gce = GceMetadataServer(attributes={"bundle": "one"})
        async with gce, session(gce.url, **{"Metadata-Flavor": "Google"}) as http:
            path = "/computeMetadata/v1/instance/attributes/bundle"
            first = await http.get(path)
            etag = first.headers["ETag"]
            assert await (await http.get(f"{path}?wait_for_change=true&last_etag=NONE")).text() == "one"
            same = await http.get(f"{path}?wait_for_change=true&last_etag={etag}&timeout_sec=0")
            assert (await same.text(), same.headers["ETag"]) == ("one", etag)
            waiting = asyncio.create_task(http.get(f"{path}?wait_for_change=true&last_etag={etag}"))
            await gce.someone_waits()
            gce.set_attribute("other", "x")
            gce.set_attribute("bundle", "two")
            assert await (await waiting).text() == "two"
            assert gce.waiting == 0
            assert (await http.get("/computeMetadata/v1/instance/attributes/none?wait_for_change=true")).status == 404

    asyncio.run(main())


def test_gce_server_writes_a_content_once_for_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many who wait for a change of a large directory hold up nobody else; an edit without a word is seen all the same."""

    async def main() -> None:
        gce = GceMetadataServer(attributes={"large": "x" * 100_000})
        written: list[str] = []
        write = gce._write

        def counting(rest: str, *args: Any, **kwargs: Any) -> tuple[bytes, str]:
            written.append(rest)
            return write(rest, *args, **kwargs)

        monkeypatch.setattr(gce, "_write", counting)
        async with gce, session(gce.url, **{"Metadata-Flavor": "Google"}) as http:
            path = "/computeMetadata/v1/instance/?recursive=true"
            waiting = [asyncio.create_task(http.get(f"{path}&wait_for_change=true")) for _ in range(10)]
            async with asyncio.timeout(60):
                while gce.waiting < len(waiting):  # noqa: ASYNC110 - the fake tells of the first alone
                    await asyncio.sleep(0.01)
            gce.set_attribute("other", "one")
            answers = [await (await one).json() for one in waiting]
            assert [one["attributes"]["other"] for one in answers] == ["one"] * len(waiting)
            assert written == ["instance/"] * 2
            gce.attributes["other"] = "two"
            assert (await (await http.get(path)).json())["attributes"]["other"] == "two"

    asyncio.run(main())


def test_gce_server_requires_its_header_and_redirects_directories() -> None:
    """403 without ``Metadata-Flavor``, 403 when forwarded, 301 with the query kept, guest attributes only if enabled."""

    async def main() -> None:
        async with GceMetadataServer() as gce, session(gce.url) as http:
            flavor = {"Metadata-Flavor": "Google"}
            assert (await http.get("/")).headers["Metadata-Flavor"] == "Google"
            assert (await http.get("/computeMetadata/v1/project/project-id")).status == 403
            assert (
                await http.get("/computeMetadata/v1/", headers=flavor | {"X-Forwarded-For": "1.2.3.4"})
            ).status == 403
            moved = await http.get("/computeMetadata/v1/instance?recursive=true", headers=flavor, allow_redirects=False)
            assert (moved.status, moved.headers["Location"]) == (
                301,
                f"{gce.url}/computeMetadata/v1/instance/?recursive=true",
            )
            guest = "/computeMetadata/v1/instance/guest-attributes/agent/key"
            assert (await http.put(guest, headers=flavor, data=b"v")).status == 403
            gce.attributes["enable-guest-attributes"] = "TRUE"
            assert (await http.put(guest, headers=flavor, data=b"v")).status == 200
            assert await (await http.get(guest, headers=flavor)).text() == "v"

    asyncio.run(main())


def test_storage_gives_an_object_only_to_a_live_token_of_a_reader() -> None:
    """No token, an invented one, an ended one and somebody else's are refused; the right one reads the object."""

    async def main() -> None:
        now = 1_800_000_000.0
        cloud = GoogleCloud(clock=lambda: now, token_seconds=60)
        async with cloud, session(cloud.url) as http:
            await http.post(
                "/_admin/user", json={"refresh_token": "r", "email": "a@x", "client_id": "c", "client_secret": "s"}
            )
            await http.post("/_admin/object", json={"bucket": "b", "name": "dir/o", "text": "hello"})
            form = {"grant_type": "refresh_token", "refresh_token": "r", "client_id": "c", "client_secret": "s"}
            assert (await http.post("/token", data=form | {"client_secret": "no"})).status == 401
            token = (await (await http.post("/token", data=form)).json())["access_token"]
            path = "/storage/v1/b/b/o/dir%2Fo?alt=media"

            async def read(value: str | None) -> int:
                headers = {"Authorization": f"Bearer {value}"} if value else {}
                return (await http.get(path, headers=headers)).status

            assert [await read(None), await read("ya29.invented"), await read(token)] == [401, 401, 403]
            await http.post("/_admin/allow", json={"bucket": "b", "email": "a@x"})
            assert await read(token) == 200
            now += 60
            assert await read(token) == 401

    asyncio.run(main())
