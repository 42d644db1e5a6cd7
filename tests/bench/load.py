"""The load of ``make bench`` where there is no Go: the same as ``peer load``, with a client that costs more.

A process of its own: ``python -m tests.bench.load --url U (--concurrency N --seconds S | --burst N --rounds R)``; prints
one line of JSON, in the form of :file:`peer.go`'s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

ROLES = "/latest/meta-data/iam/security-credentials/"


class Client(asyncio.Protocol):
    """One request on one connection; ends when the body is whole."""

    def __init__(self, request: bytes, done: asyncio.Future[bytes]) -> None:
        self._request = request
        self._done = done
        self._answer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, separator, body = self._answer.partition(b"\r\n\r\n")
        if not separator:
            return
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:") and len(body) >= int(line[15:]) and not self._done.done():
                if head.startswith(b"HTTP/1.1 200"):
                    self._done.set_result(body)
                else:
                    self._done.set_exception(OSError(f"not 200: {head[:80]!r}"))
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or OSError("closed without an answer"))


async def sequence(host: str, port: int) -> tuple[float, list[float]]:
    """PUT, role list, document; seconds of the whole and of each."""
    loop = asyncio.get_running_loop()
    took: list[float] = []

    async def ask(line: str, header: str) -> str:
        began = time.perf_counter()
        done: asyncio.Future[bytes] = loop.create_future()
        request = f"{line} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: Boto3/1.44.5\r\n{header}\r\n\r\n".encode()
        await loop.create_connection(lambda: Client(request, done), host, port)
        body = await done
        took.append(time.perf_counter() - began)
        return body.decode()

    began = time.perf_counter()
    token = await ask("PUT /latest/api/token", "x-aws-ec2-metadata-token-ttl-seconds: 21600")
    header = f"x-aws-ec2-metadata-token: {token}"
    role = await ask(f"GET {ROLES}", header)
    await ask(f"GET {ROLES}{role}", header)
    return time.perf_counter() - began, took


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    marks = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {name: 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))] for name, q in marks.items()}


async def run(url: str, *, concurrency: int, seconds: float, most: int, burst: int, rounds: int) -> dict[str, Any]:
    """Put the load on and gather."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    sequences: list[float] = []
    requests: list[float] = []
    errors: list[str] = []

    async def one() -> None:
        try:
            whole, each = await sequence(host, port)
        except OSError as error:
            errors.append(str(error))
        else:
            sequences.append(whole)
            requests.extend(each)

    busy = 0.0
    if burst:
        for _ in range(rounds):
            await asyncio.sleep(0.2)
            began = time.perf_counter()
            await asyncio.gather(*(one() for _ in range(burst)))
            busy += time.perf_counter() - began
    else:
        began = time.perf_counter()

        async def worker() -> None:
            count = 0
            while time.perf_counter() - began < seconds and (not most or count < most / concurrency):
                await one()
                count += 1

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        busy = time.perf_counter() - began
    return {
        "sequences": len(sequences),
        "errors": len(errors),
        "error": errors[-1] if errors else "",
        "seconds": busy,
        "sequence_ms": quantiles(sequences),
        "request_ms": quantiles(requests),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load")
    parser.add_argument("--url", required=True)
    parser.add_argument("-c", "--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--sequences", type=int, default=0)
    parser.add_argument("--burst", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(
            run(
                given.url,
                concurrency=given.concurrency,
                seconds=given.seconds,
                most=given.sequences,
                burst=given.burst,
                rounds=given.rounds,
            )
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
