"""Whatever lies where a file is named: it is said, holds up nothing else, and the right one is used once it is there."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fakes.https_store import private_ca
from tests.system.harness import World, until

USER: Final = "ASIAUSER000000000000"
OTHER: Final = "ASIAUSER000000000001"


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


#: What somebody, or a tool that failed half-way, may have put there.
ODD: Final[dict[str, Callable[[Path], object]]] = {
    "a FIFO": os.mkfifo,
    "a device without an end": lambda path: path.symlink_to("/dev/zero"),
    "a directory": Path.mkdir,
    "a socket": _socket,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "an empty file": Path.touch,
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


def put_aside(path: Path, instead: Callable[[Path], object]) -> None:
    path.rename(path.with_suffix(".aside"))
    instead(path)


def put_back(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.with_suffix(".aside").replace(path)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_in_the_place_of_each_named_file(world: World, odd: Callable[[Path], object]) -> None:
    """At the start: what needs them waits, all else goes on; the right files are used without a restart."""
    authority, _ = private_ca(world.root / "etc")
    url, token = world.root / "etc" / "url", world.root / "etc" / "bearer"
    url.write_text("https://127.0.0.1:9/b")
    token.write_text("t" * 32)
    named = [world.key_file, world.signer_file, Path(authority), url, token]
    published = world.root / "drop" / "public.jwk"
    odd(published)
    for path in named:
        put_aside(path, odd)
    changes: dict[str, Any] = {
        "keys": [*world.base["keys"], {"kind": "ephemeral", "publish_file": published}],
        "upstream": {"ca_file": authority},
        "sources": [*world.base["sources"], {"kind": "https", "url_file": url, "token_file": token, "name": "far"}],
    }
    with world.agent(changes) as agent:
        agent.ready()
        assert {"keys[0]", "signers[0].key", "upstream.ca_file"} <= set(agent.status()["without"])
        agent.wait_for("source.failed", source="far")
        for path in named:
            put_back(path)
        agent.wait_for("reload.applied")

        def taken() -> bool:
            return bool(agent.push(world.seal(world.session(USER)))["outcome"] == "accepted")

        until(taken, what="a bundle that is taken")
        assert agent.access_key() == USER
        until(lambda: agent.status()["without"] == {}, what="everything")
        if published.is_dir():
            published.rmdir()
        until(lambda: published.is_file() and b'"kty"' in published.read_bytes(), what="the public key", seconds=60)
        assert agent.stop() == 0


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_in_the_place_of_a_file_that_was_read(world: World, odd: Callable[[Path], object]) -> None:
    """While it runs: what was read stays in force, and what comes after it is read."""
    with world.agent() as agent:
        agent.ready()
        for path in (world.key_file, world.signer_file):
            put_aside(path, odd)
        agent.wait_for("reload.refused")
        assert agent.push(world.seal(world.session(USER)))["outcome"] == "accepted"
        assert agent.access_key() == USER
        for path in (world.key_file, world.signer_file):
            put_back(path)
        mark = agent.mark
        assert agent.push(world.seal(world.session(OTHER)))["outcome"] == "accepted"
        assert agent.access_key() == OTHER
        assert agent.operate("/v1/reload", method="POST").status == 200
        assert not [one for one in agent.events("reload.refused", after=mark) if "does not answer" in one["reason"]]
        assert agent.stop() == 0
