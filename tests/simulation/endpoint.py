"""The workers' endpoint in simulated time: real bytes in, real bytes out, and no socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from agent.core.secret import Secret
from agent.daemon.snapshots import Snapshots
from agent.serve.endpoint import WorkerEndpoint
from agent.serve.waiting import Served
from agent.snapshot import ServeSettings
from tests.simulation.world import World

CONTAINER_TOKEN = "Y29udGFpbmVy"


class Said(NamedTuple):
    """An answer as a client reads it."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class _Wire(asyncio.Transport):
    """One connection: what is written is kept, and its end is told."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.ended = asyncio.get_running_loop().create_future()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 40000) if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.ended.done()

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    abort = close


class Endpoint:
    """What a worker of ``world`` speaks to."""

    def __init__(self, world: World) -> None:
        snapshots = Snapshots(
            world.controller,
            world.clock,
            ServeSettings(token_key=b"k" * 32),
            tokens=lambda: (Secret(CONTAINER_TOKEN),),
            path_id=Secret("for-a-path"),
            expects_bundle=lambda: True,
        )
        served = Served(snapshots.latest)
        snapshots.send_to(served.take)
        self._endpoint = WorkerEndpoint(
            served,
            world.clock,
            wall_ahead=timedelta,
            demand=world.controller.issuing.id_token,
            scoped=world.controller.issuing.scoped.mint,
        )

    async def ask(self, method: str, path: str, **headers: str) -> Said:
        """One request, from the first byte to the end of the connection.

        Args:
            method: of HTTP.
            path: the target.
            headers: underscores stand for hyphens.
        """
        lines = [f"{method} {path} HTTP/1.1", "Host: 169.254.169.254"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        wire = _Wire()
        connection = self._endpoint.protocol()
        connection.connection_made(wire)
        connection.data_received("\r\n".join([*lines, "", ""]).encode())
        async with asyncio.timeout(5):
            await wire.ended
        connection.connection_lost(None)
        head, _, body = wire.sent.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        return Said(int(first.split()[1]), dict(line.split(": ", 1) for line in rest), body)

    async def roles(self) -> Said:
        """The EC2 role list, with a session token."""
        token = await self.ask("PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="60")
        return await self._ec2("", token)

    async def role(self) -> Said:
        """The EC2 credential document of the first role that is listed."""
        token = await self.ask("PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="60")
        roles = await self._ec2("", token)
        return await self._ec2(roles.body.decode(), token)

    async def _ec2(self, name: str, token: Said) -> Said:
        path = f"/latest/meta-data/iam/security-credentials/{name}"
        return await self.ask("GET", path, X_aws_ec2_metadata_token=token.body.decode())

    async def container(self) -> Said:
        """The container endpoint."""
        return await self.ask("GET", "/v1/credentials", Authorization=CONTAINER_TOKEN)

    async def google(self) -> Said:
        """The Google access token."""
        path = "/computeMetadata/v1/instance/service-accounts/default/token"
        return await self.ask("GET", path, Metadata_Flavor="Google")
