"""The conditions inside what is read of a configuration, and of one that is broken; each by a change nobody noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import config
from agent.config.checks import courier_path, host_port
from agent.core.errors import ConfigError

SIGNER = '[[signers]]\nkey = "/k"\nissuers = ["*"]\n'
KEY = '[[keys]]\nkind = "ephemeral"\n'


def named(directory: Path, text: str) -> config.Redirect:
    path = directory / "config.toml"
    path.write_text(text)
    return config.named_workers(path)


@pytest.mark.parametrize(
    ("courier", "path"), [("auto", "/run/x/courier.sock"), ("off", None), ("/run/y/sock", "/run/y/sock")]
)
def test_where_couriers_come(courier: str, path: str | None) -> None:
    """Beside the control socket, nowhere, or where the operator says."""
    settings = config.parse(f'[listen]\ncontrol = "/run/x/control"\ncourier = "{courier}"', origin="test")
    assert courier_path(settings.listen) == (None if path is None else Path(path))


@pytest.mark.parametrize(
    ("value", "pair"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("[::1]:80", ("::1", 80)),
        ("127.0.0.1:65536", None),
        ("127.0.0.1:-1", None),
        ("::1:80", None),
        ("localhost:80", None),
    ],
)
def test_an_address_has_a_port_that_there_is(value: str, pair: tuple[str, int] | None) -> None:
    """From 0, which the kernel chooses, to the last."""
    if pair is not None:
        assert host_port(value) == pair
        return
    with pytest.raises(ConfigError):
        host_port(value)


def test_signers_that_a_launch_names_are_signers() -> None:
    """With them keys are no contradiction; without either they are."""
    launch = '[[launch_signers]]\nkind = "directory"\npath = "/d"\nissuers = ["*"]\n'
    assert config.parse(KEY + launch, origin="test").keys
    assert config.parse(KEY + SIGNER, origin="test").keys
    with pytest.raises(ConfigError, match="signers: expected at least one beside keys"):
        config.parse(KEY, origin="test")


def test_two_sources_of_one_name_are_told_by_it() -> None:
    """Only that name, however many others there are."""
    sources = "".join(
        f'[[sources]]\nkind = "file"\npath = "/{name}"\nname = "{name[0]}"\n' for name in ("a", "b1", "b2")
    )
    with pytest.raises(ConfigError, match="sources: expected distinct names, got 'b' twice"):
        config.parse(KEY + SIGNER + sources, origin="test")
    assert (
        len(config.parse(KEY + SIGNER + sources.replace("b2", "c").replace('"b"', '"c"', 1), origin="test").sources)
        == 3
    )


def test_a_mark_of_the_encoding_at_the_beginning_is_no_mistake(tmp_path: Path) -> None:
    """For the agent, and for the unit that makes the rules, which would refuse every worker for it."""
    path = tmp_path / "config.toml"
    path.write_text("\ufeff[redirect]\nport = 17000\n", encoding="utf-8")
    assert config.load(path).redirect.port == 17000
    assert config.load_redirect(path).port == 17000


class TestWhoeverIsNamed:
    @pytest.mark.parametrize("key", ["usres", "uers", "uidz", "untis", "USERSS"])
    def test_a_key_that_is_nearly_one_of_the_lists(self, tmp_path: Path, key: str) -> None:
        """Two letters in the wrong order leave nobody open, wherever the key stands."""
        assert "bob" in named(tmp_path, f'{key} = ["bob"]\n').users

    def test_a_list_inside_braces_loses_nobody(self, tmp_path: Path) -> None:
        """Without quotes, on one line with the next key: its first name counts too."""
        assert "bob" in named(tmp_path, "redirect = { users = bob, port = }").users

    def test_the_last_line_of_the_file_counts(self, tmp_path: Path) -> None:
        """Where no other key follows, no line is the next key's."""
        found = named(tmp_path, "[redirect]\nusers = [\n  bob,\n  carol").users
        assert {"bob", "carol"} <= set(found)

    def test_a_file_that_nests_without_end_still_names(self, tmp_path: Path) -> None:
        """What TOML's reader falls over is read as text."""
        assert "bob" in named(tmp_path, '[redirect]\nusers = ["bob"]\nx = ' + "[" * 5000).users
        assert "bob" in named(tmp_path, f'[redirect]\nusers = ["bob"]\n[other]\n{"a." * 3000}users = "x"\n').users
