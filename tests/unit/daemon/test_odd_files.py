"""What lies at a path that somebody names may be anything: whoever reads it comes back, and says what is wrong."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from agent import config
from agent.core.errors import AgentError, ConfigError
from agent.daemon import beliefs, files, launched
from agent.host.clock import SystemClock
from agent.host.patience import FirstLook, StalledError
from agent.keys import load_credential, load_key_file
from agent.sources.location import Location
from agent.upstream.authorities import AuthoritiesError, read_authorities

LONG: Final = 60.0
ODD: Final = ("a pipe", "a device without an end", "a directory", "a loop of links", "a socket", "closed")


def lay(kind: str, path: Path) -> None:
    """Put something of that kind at ``path``."""
    match kind:
        case "a pipe":
            os.mkfifo(path)
        case "a device without an end":
            path.symlink_to("/dev/zero")
        case "a directory":
            path.mkdir()
        case "a loop of links":
            path.symlink_to(path)
        case "a socket":
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(path))
        case "closed":
            path.touch(mode=0)


def signer(path: Path) -> None:
    beliefs.trust(config.Config(signers=(config.SignerEntry(key=str(path), issuers=("*",)),)), beliefs.Former())


def authorities(path: Path) -> None:
    try:
        read_authorities(str(path))
    except AuthoritiesError as error:
        raise ConfigError(str(error)) from None


def url(path: Path) -> None:
    asyncio.run(Location(None, path, None).url())


def token(path: Path) -> None:
    asyncio.run(Location("https://localhost/", None, path).authorization("https://localhost/"))


READERS: Final[dict[str, Callable[[Path], object]]] = {
    "a signer's key": signer,
    "a worker's key": load_key_file,
    "a systemd credential": lambda path: load_credential(path.parent, path.name),
    "authorities": authorities,
    "the file of a URL": url,
    "a bearer token": token,
}


@contextmanager
def no_longer_than(path: Path) -> Iterator[Callable[[Callable[[], object]], object]]:
    """Calls something in a thread, and lets that go in the end, whatever it waits for."""
    look = FirstLook(LONG)
    try:
        yield lambda fn: look(path, fn)
    finally:
        if look.stalled:
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("what", READERS)
def test_what_is_no_plain_file_is_an_error_and_not_waited_for(tmp_path: Path, what: str, kind: str) -> None:
    """Whatever lies there: one error, of ours, which names no content; nothing is waited for, and nothing fills memory."""
    if kind == "closed" and os.geteuid() == 0:
        pytest.skip("root reads it")
    path = tmp_path / "odd"
    lay(kind, path)
    with no_longer_than(path) as call, pytest.raises(AgentError) as raised:
        call(lambda: READERS[what](path))
    assert not isinstance(raised.value, StalledError)


def test_a_key_that_grows_without_end_is_an_error(tmp_path: Path) -> None:
    """A log in place of a key, say: as much as a key can be is read of it, and no more."""
    path = tmp_path / "long"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(AgentError, match="at most"):
        signer(path)
    for reader in (load_key_file, authorities, url, token):
        with pytest.raises(AgentError):
            reader(path)


@pytest.mark.parametrize("kind", ODD)
def test_what_was_loaded_is_described_whatever_came_in_its_place(tmp_path: Path, kind: str) -> None:
    """The digests of a status wait for nothing."""
    path = tmp_path / "odd"
    lay(kind, path)
    named = files.Named("signers[0].key", path, "signer", secret=False)

    def all_of_it() -> None:
        files.describe([named])
        files.looks([named])

    with no_longer_than(path) as call:
        call(all_of_it)


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "closed"])
def test_an_odd_file_among_the_signers_of_the_launch_revokes_nobody(tmp_path: Path, kind: str) -> None:
    """Silence and a mistake revoke nobody: those who were named before stay, and the place is asked again."""
    lay(kind, tmp_path / "odd.pub")
    before = {f"launch:directory:{tmp_path}": "p256:of-before"}
    found = launched.Launched(
        [config.DirectorySigners(path=str(tmp_path), issuers=("*",), max_lease_seconds=60)],
        ec2=None,
        gce=None,
        credentials_directory=None,
        left=before,
        clock=SystemClock(),
    )
    with no_longer_than(tmp_path / "odd.pub") as call:
        call(lambda: asyncio.run(found.look()))
    assert found.found == before
