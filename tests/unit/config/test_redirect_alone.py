"""The redirection reads its own section: what is wrong elsewhere must not decide whether workers are led."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import config
from agent.core.errors import ConfigError


def written(directory: Path, text: str) -> Path:
    path = directory / "config.toml"
    path.write_text(text)
    return path


ELSEWHERE = [
    'grace = 1\n[redirect]\nuids = ["7-9"]',
    '[identity]\ngrace_seconds = "soon"\n[redirect]\nuids = ["7-9"]',
    'keys = 5\n[redirect]\nuids = ["7-9"]',
    '[[sources]]\nkind = "carrier-pigeon"\n[redirect]\nuids = ["7-9"]',
    'listen = []\n[redirect]\nuids = ["7-9"]',
    '[listen]\nhttp = "everywhere"\n[redirect]\nuids = ["7-9"]',
    '[listen]\nhttp = []\n[redirect]\nuids = ["7-9"]',
    '[listen]\nhttp = [{ a = 1 }]\n[redirect]\nuids = ["7-9"]',
    '[redirect]\nuids = ["7-9"]\n[from_a_later_release]\nx = 1979-05-27',
]


@pytest.mark.parametrize("text", ELSEWHERE)
def test_a_mistake_elsewhere_changes_nothing(tmp_path: Path, text: str) -> None:
    """Unknown keys, wrong types, unknown kinds, whole sections: the daemon refuses them, the redirection goes on."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError):
        config.load(path)
    section, port, _ = config.load_redirect(path)
    assert section.uids == ("7-9",)
    assert port == 16925


def test_a_key_that_a_later_release_wrote_is_told_and_left_out(tmp_path: Path) -> None:
    """A downgrade leads whom it can."""
    section, _, notes = config.load_redirect(written(tmp_path, '[redirect]\nuids = ["7-9"]\ntwins = true\n'))
    assert section.uids == ("7-9",)
    assert notes == ("redirect.twins: unknown key, left out",)


@pytest.mark.parametrize(
    "text",
    ["[redirect", "redirect = 5", '[redirect]\nuids = "7"', "[redirect]\nuids = [7]", "[redirect]\nport = -1", "a" * 9],
)
def test_what_cannot_be_told_is_an_error(tmp_path: Path, text: str) -> None:
    """A value of its own that is wrong, and a file that cannot be read at all: the caller closes."""
    with pytest.raises(ConfigError):
        config.load_redirect(written(tmp_path, text))


@pytest.mark.parametrize("data", [None, b"\xff", b"x = " + b"[" * 5000, b"#" * (config.MAX_FILE_BYTES + 1)])
def test_no_file_makes_it_fall(tmp_path: Path, data: bytes | None) -> None:
    """Absent, no text, nested without end, endless: one kind of error, which closes."""
    path = tmp_path / "config.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError):
        config.load_redirect(path)


def test_the_port_is_the_listeners(tmp_path: Path) -> None:
    """Its own, else that of listen.http."""
    assert config.load_redirect(written(tmp_path, '[listen]\nhttp = ["127.0.0.1:81"]'))[1] == 81
    assert config.load_redirect(written(tmp_path, '[listen]\nhttp = ["127.0.0.1:81"]\n[redirect]\nport = 82'))[1] == 82


BROKEN = [
    '[redirect]\nusers = ["bob"]\nport = "none"',
    '[redirect\nusers = ["bob"]',
    '[[redirect]]\nusers = ["bob"]',
    '[redirect]\nusers = "bob"',
    '[redirect]\nusers = ["bob"\nipv6 = true\n',
    '[redirect]\nusers = [\n  # the batch system\n  "bob",\n',
    '[redirect]\nusers = ["bob"]\nusers = ["bob"]',
    "redirect = { users = ['bob'], port = }",
    '[identity]\nx = "\n[redirect]\nusers = ["bob"]',
    '# f\xfcr\n[redirect]\n"users" = ["bob"]',
    "[redirect]\nusers = [bob]",
    "[redirect]\nusers = bob\nipv6 = true",
    "[redirect]\nusers = [\n  bob,\n]\nipv6 = true",
    '[redirect]\nusers = ["bob]',
    '[redirect]\nusers = [bob"]\nipv6 = true',
    '[redirect]\nusers = ["a, "bob"]',
    '[redirect]\nusers = [  # was = "a"\n  "bob", x',
    '[redirect]\nusers: ["bob"]',
    "redirect:\n  users:\n    - bob\n",
    '[redirect]\nusers = """\nbob\n"""\nipv6 = true',
]


@pytest.mark.parametrize("words", BROKEN)
def test_who_is_named_is_known_in_spite_of_a_mistake(tmp_path: Path, words: str) -> None:
    """Else a mistake would make a worker the machine: the user of a batch system is a system's user."""
    path = tmp_path / "config.toml"
    path.write_bytes(words.encode("latin-1"))
    with pytest.raises(ConfigError):
        config.load_redirect(path)
    assert "bob" in config.named_workers(path).users
    for key in ("uids", "units"):
        path.write_bytes(words.replace("users", key).replace("bob", "7-9").encode("latin-1"))
        assert "7-9" in getattr(config.named_workers(path), key)
        assert set(getattr(config.Redirect(), key)) < set(getattr(config.named_workers(path), key))


def test_a_name_in_a_file_of_another_encoding_is_known(tmp_path: Path) -> None:
    """An editor may have stored the file as UTF-16."""
    path = tmp_path / "config.toml"
    path.write_text('[redirect]\nusers = ["bob"]\n', encoding="utf-16")
    with pytest.raises(ConfigError):
        config.load_redirect(path)
    assert config.named_workers(path).users == ("bob",)


def test_what_is_no_name_of_a_list_is_not_taken_for_one(tmp_path: Path) -> None:
    """Not the next key, not what is said behind a value: both may be the name of a user of the system."""
    path = written(tmp_path, "[redirect]\nusers = [bob] # not backup\nproxy = 1\nuids = [5]\nipv6 = true")
    assert config.named_workers(path) == config.Redirect(uids=(*config.Redirect().uids, "5"), users=("bob",))


@pytest.mark.parametrize(
    "data", [None, b"#" * (config.MAX_FILE_BYTES + 1), b"\n" * config.MAX_FILE_BYTES, b'# users = ["bob"]']
)
def test_a_file_that_names_nobody_names_nobody(tmp_path: Path, data: bytes | None) -> None:
    """Whatever it is, in no time: who is usually a worker is one."""
    path = tmp_path / "config.toml"
    if data is not None:
        path.write_bytes(data)
    assert config.named_workers(path) == config.Redirect()
