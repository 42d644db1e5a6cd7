"""The containers' environment file: addresses that SDKs take and the redirection leads, and nothing of the host's own."""

from __future__ import annotations

import pytest

from agent.core.errors import HostError
from agent.host import containerenv, nft

PATH = containerenv.path_id(b"k" * 32, "m")


def test_nothing_in_it_is_the_hosts() -> None:
    """No loopback, no file, no name: a container has none of ours."""
    text = containerenv.render(containerenv.pointers(aws=True, gcp=True, path=PATH, region="eu-west-1")).decode()
    for foreign in ("127.", "localhost", "::1", "/run/", "metadata.google.internal", "169.254.171."):
        assert foreign not in text


def test_every_address_in_it_is_led() -> None:
    """The redirection leads each address that the file sends programs to, ECS's own included."""
    variables = containerenv.pointers(aws=True, gcp=True, path=PATH)
    led = {address for addresses in nft.METADATA.values() for address in addresses}
    named = {value for name, value in variables.items() if name.startswith("GCE_METADATA_") and "MTLS" not in name}
    assert named | {"169.254.170.2"} <= led
    assert variables["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"].startswith("/v2/credentials/")
    # Go's first SDK puts the full URI first and refuses every address but loopback in it.
    assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" not in variables


def test_only_what_is_served_is_named() -> None:
    """A cloud that is not served here has no variable."""
    assert not containerenv.pointers(aws=False, gcp=False, path=PATH)
    assert not any(name.startswith("AWS") for name in containerenv.pointers(aws=False, gcp=True, path=PATH))
    assert not any(name.startswith("GCE") for name in containerenv.pointers(aws=True, gcp=False, path=PATH))


def test_the_id_cannot_be_guessed_from_another_machines() -> None:
    """Another key or another machine has another id; the same has the same, after any restart."""
    assert containerenv.path_id(b"k" * 32, "m") == PATH
    others = {containerenv.path_id(b"k" * 32, "n").reveal(), containerenv.path_id(b"l" * 32, "m").reveal()}
    assert len(others | {PATH.reveal()}) == 3
    assert len(PATH.reveal()) == 32


def test_values_stand_as_they_are() -> None:
    """Docker takes no quotes away: a value is written as it is."""
    assert containerenv.render({"A": "x y", "B": '"q" $HOME'}).decode().splitlines()[1:] == ["A=x y", 'B="q" $HOME']


@pytest.mark.parametrize("variables", [{"A": "x\ny"}, {"A": "x\0"}, {"A=B": "x"}, {"#A": "x"}, {" A": "x"}])
def test_no_line_is_smuggled_in(variables: dict[str, str]) -> None:
    """A name or value that would be read as something else is refused."""
    with pytest.raises(HostError):
        containerenv.render(variables)
