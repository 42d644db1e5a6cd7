"""The machine's metadata services and the clouds' endpoints, asked as the service asks them: its user, CA and proxy."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from agent import config
from agent.core.errors import UpstreamError, WireError
from agent.core.source import ELSEWHERE
from agent.daemon import compose
from agent.doctor.facts import Clouds, Endpoint, Metadata, Service
from agent.doctor.probes.settings import settings_of
from agent.host import machine
from agent.host.clock import SystemClock
from agent.host.threads import Threads
from agent.providers import GoogleEndpoints
from agent.providers.regions import sts_url
from agent.upstream import NotHere, OtherCloud, Reach, Upstream, UpstreamResponse, origin_of, speaks_gce, switched_off
from agent.wire.ec2 import parse_token
from agent.wire.names import (
    EC2_REGION_PATH,
    EC2_ROLES_PATH,
    EC2_TOKEN_HEADER,
    EC2_TOKEN_PATH,
    EC2_TTL_HEADER,
    GCE_ACCOUNT_PATH,
    METADATA_URL,
)

T = TypeVar("T")

SECONDS: Final = 0.8
"""For one request to a metadata service: two or three follow each other."""
LEFT_SECONDS: Final = 0.4
"""For a second one, where the first had no answer: what is silent is told as that, and not as a look that hangs."""
CLOUD_SECONDS: Final = 1.5
MAIN_REGION: Final = "us-east-1"
_COMMERCIAL: Final = re.compile(r"(?:us|eu|ap|sa|ca|me|af|il|mx)-(?!iso)[a-z]+-\d+\Z")


def look_at_metadata(path: Path) -> Metadata:
    """Ask both, as far as the machine has them; ``path``: the configuration, defaults where it cannot be read."""
    return _run(_metadata(settings_of(path)))


def look_at_clouds(path: Path) -> Clouds:
    """Ask each endpoint for anything: any answer will do."""
    return _run(_clouds(settings_of(path)))


def _run(question: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(Threads())  # a look-up that hangs is not waited for at the end
        return runner.run(question)


async def _metadata(settings: config.Config) -> Metadata:
    clock, out = SystemClock(), compose.upstream(settings)
    known = compose.Metadata(settings, out, clock)
    asked: list[Coroutine[Any, Any, Service]] = []
    if known.ec2 is not None:
        url = settings.upstream.ec2 if settings.upstream.ec2.startswith("http") else METADATA_URL
        asked.append(_ec2(out, url.rstrip("/"), clock))
    if known.gce is not None:
        asked.append(_gce(known, clock))
    try:
        services = await asyncio.gather(*asked)
    finally:
        await out.close()
    instance = machine.firmware_names().get("board_asset_tag", "")
    return Metadata(platform=machine.platform(), instance=instance, services=tuple(services))


async def _ec2(out: Upstream, url: str, clock: SystemClock) -> Service:
    """The steps that an SDK makes, each with its own way to fail."""

    async def ask(method: str, path: str, headers: dict[str, str], seconds: float = SECONDS) -> UpstreamResponse:
        return await out.request(method, url + path, headers=headers, timeout_seconds=seconds, reach=Reach.LINK)

    try:
        token = await ask("PUT", EC2_TOKEN_PATH, {EC2_TTL_HEADER: "60"})
    except UpstreamError as error:
        # Without a token it answers 401, or 200 to version 1: then only answers that carry a token are lost.
        try:
            answer = await ask("GET", EC2_REGION_PATH, {}, LEFT_SECONDS)
        except UpstreamError:
            return Service(name="ec2", state="silent", why=error.message)
        ahead = _ahead(answer.date, clock)
        return Service(
            name="ec2", state="hop-limit", why=f"status {answer.status} without a token", ahead_seconds=ahead
        )
    if speaks_gce(token):
        return Service(name="ec2", state="elsewhere", why=f"google{ELSEWHERE}")
    ahead = _ahead(token.date, clock)
    if token.status == 403:
        try:
            without = await ask("GET", EC2_REGION_PATH, {})
        except UpstreamError:
            without = token
        off = switched_off(token, without)
        why = "status 403 for a session token"
        return Service(
            name="ec2", state="disabled" if off else "between", why=why, ahead_seconds=ahead if off else None
        )
    if token.status != 200:
        return Service(name="ec2", state="absent", why=f"status {token.status} for a session token")
    try:
        session = {EC2_TOKEN_HEADER: parse_token(token.body)}
    except WireError:
        return Service(name="ec2", state="absent", why="a page in place of a session token")
    try:
        return _with_role(await ask("GET", EC2_ROLES_PATH, session), ahead)
    except UpstreamError as error:
        return Service(name="ec2", state="silent", why=error.message, ahead_seconds=ahead)


def _with_role(roles: UpstreamResponse, ahead: float | None) -> Service:
    if roles.status == 404:
        return Service(name="ec2", state="no-identity", why="no role is attached", ahead_seconds=ahead)
    if roles.status != 200:
        return Service(name="ec2", state="absent", why=f"status {roles.status} for the role", ahead_seconds=ahead)
    return Service(
        name="ec2", state="ok", why=f"role {roles.body.decode('ascii', 'replace')[:64]}", ahead_seconds=ahead
    )


async def _gce(known: compose.Metadata, clock: SystemClock) -> Service:
    assert known.gce is not None
    try:
        answer = await known.gce.request("GET", GCE_ACCOUNT_PATH, timeout_seconds=SECONDS)
    except NotHere as error:
        other = isinstance(error, OtherCloud)
        return Service(name="gce", state="elsewhere" if other else "absent", why=error.message)
    except UpstreamError as error:
        return Service(name="gce", state="silent", why=error.message)
    ahead = _ahead(answer.date, clock)
    if answer.status == 404:
        return Service(name="gce", state="no-identity", why="no service account is attached", ahead_seconds=ahead)
    if answer.status != 200:
        return Service(name="gce", state="absent", why=f"status {answer.status}", ahead_seconds=ahead)
    return Service(name="gce", state="ok", why="a service account is attached", ahead_seconds=ahead)


async def _clouds(settings: config.Config) -> Clouds:
    clock, out, mint, google = SystemClock(), compose.upstream(settings), settings.mint, GoogleEndpoints()
    urls = [
        ("aws", mint.sts_endpoint or _sts(settings.aws.region or MAIN_REGION)),
        ("gcp", mint.google_token_url or google.token_url),
        ("gcp", mint.google_sts_url or google.sts_url),
        ("gcp", mint.google_iamcredentials_url or google.iamcredentials_url),
    ]
    places = dict.fromkeys((cloud, origin_of(url)) for cloud, url in urls)
    try:
        endpoints = await asyncio.gather(*(_endpoint(out, cloud, origin, clock) for cloud, origin in places))
    finally:
        await out.close()
    return Clouds(endpoints=tuple(endpoints), proxy=settings.upstream.proxy is not None)


def _sts(region: str) -> str:
    """STS of a region; the data of all partitions is large, and hardly a machine is in another than the first."""
    return f"https://sts.{region}.amazonaws.com" if _COMMERCIAL.match(region) else sts_url(region)


async def _endpoint(out: Upstream, cloud: str, origin: str, clock: SystemClock) -> Endpoint:
    try:
        answer = await out.request("GET", f"{origin}/", timeout_seconds=CLOUD_SECONDS)
    except UpstreamError as error:
        return Endpoint(cloud=cloud, origin=origin, why=error.message, kind=_kind(error))
    return Endpoint(cloud=cloud, origin=origin, ahead_seconds=_ahead(answer.date, clock))


def _kind(error: UpstreamError) -> str:
    if "proxy" in error.message:
        return "proxy"
    if "does not resolve" in error.message:
        return "name"
    return error.code if error.code in {"tls", "timeout"} else "network"


def _ahead(date: datetime | None, clock: SystemClock) -> float | None:
    return None if date is None else (date - clock.now()).total_seconds()
