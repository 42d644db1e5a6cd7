"""What the tests of the sender share: fakes behind real sockets for clients that block, and a laptop's environment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.net import Handler, serve


@contextmanager
def serving(handler: Handler) -> Iterator[str]:
    """Serve ``handler`` on a loopback port from a thread of its own; gives the base URL."""
    ready = threading.Event()
    url: list[str] = []
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        async with serve(handler) as base:
            done = asyncio.Event()
            url.append(base)
            stop.append((asyncio.get_running_loop(), done))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield url[0]
    finally:
        loop, done = stop[0]
        loop.call_soon_threadsafe(done.set)
        thread.join(10)


@contextmanager
def laptop(monkeypatch: pytest.MonkeyPatch, home: Path, **variables: str) -> Iterator[None]:
    """An environment in which SDKs find nothing but what the test gives them."""
    import os

    with monkeypatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "GOOGLE_", "CLOUDSDK_", "GCE_")):
                patch.delenv(name)
        given = {
            "HOME": str(home),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials"),
            "AWS_CONFIG_FILE": str(home / "config"),
            "AWS_DEFAULT_REGION": "eu-west-1",
            "CLOUDSDK_CONFIG": str(home / "gcloud"),
            "NO_GCE_CHECK": "true",
            **variables,
        }
        for name, value in given.items():
            patch.setenv(name, value)
        yield
