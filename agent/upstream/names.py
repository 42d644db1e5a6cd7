"""Names looked up in threads of our own.

uvloop looks names up in four threads of libuv that the whole process shares, and each look-up at a name server that is
silent holds one of them for half a minute. A host that a bundle or a request names must not delay the look-up of the
one at which a credential is renewed.

Imported with the HTTP library, once somebody is asked.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import Executor

from aiohttp.abc import AbstractResolver, ResolveResult


class Resolver(AbstractResolver):
    """getaddrinfo(3) in the threads of ``executor``, which belong to the caller."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Every address of ``host``.

        Raises:
            OSError: there is none, or no name server answered.
        """

        def look_up() -> list[ResolveResult]:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
            numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            return [
                ResolveResult(
                    hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=numeric
                )
                for kind, _, protocol, _, address in found
            ]

        return await asyncio.get_running_loop().run_in_executor(self._executor, look_up)

    async def close(self) -> None:
        """Nothing is held."""
