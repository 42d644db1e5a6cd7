"""The redirection reads its own section: what is wrong elsewhere must not decide whether workers are led."""

from __future__ import annotations

import json
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
    read = config.load_redirect(path)
    assert read.section.uids == ("7-9",)
    assert read.port == 16925
    assert read.meant == config.Meant()


def test_a_key_that_a_later_release_wrote_is_told_and_left_out(tmp_path: Path) -> None:
    """A downgrade leads whom it can."""
    read = config.load_redirect(written(tmp_path, '[redirect]\nuids = ["7-9"]\ntwins = true\n'))
    assert read.section.uids == ("7-9",)
    assert read.notes == ("redirect.twins: unknown key, left out",)


MISSPELT = [
    '[redirect]\nuser = ["bob"]',
    '[redirect]\nUsers = "bob"',
    '[redirect]\nworkers = "alice, bob"',
    '[redirect]\njobs = { batch = ["bob"] }',
    "[redirect.user]\nbob = true",
    "[[redirect.user]]\nname = 'bob'",
    '[Redirect]\nusers = ["bob"]',
    '[redirects]\nusers = ["bob"]',
    '[[redirection]]\nwho = ["bob"]',
    'users = ["bob"]\n[redirect]',
    '[redirect]\n[identity]\nusers = ["bob"]',
    '[environment]\nx.user = "bob"',
    '[from_a_later_release]\nx = [{ worker_users = ["bob"] }]',
    "[[sources]]\nkind = 'file'\npath = '/x'\nuser = 'bob'",
]


@pytest.mark.parametrize("text", MISSPELT)
def test_who_is_named_by_a_key_that_is_not_known_may_be_meant(tmp_path: Path, text: str) -> None:
    """A misspelt key leaves nobody open: who is named there is known, and the key is told."""
    read = config.load_redirect(written(tmp_path, text))
    assert "bob" in read.meant.users
    assert any("who is named there is refused" in note for note in read.notes)
    assert "bob" in config.named_workers(written(tmp_path, f"{text}\n[redirect\n")).users


def test_a_number_and_a_unit_may_be_meant_too(tmp_path: Path) -> None:
    """By their shape, whatever the key: what is left is a name."""
    text = '[redirect]\nuid = 33\nmore = ["7-9", 5, "a.slice", "b@c.service", "d"]\nburst = 100\nstrict = true\n'
    read = config.load_redirect(written(tmp_path, text))
    assert set(read.meant.uids) == {"33", "7-9", "5"}
    assert set(read.meant.units) == {"a.slice", "b@c.service"}
    assert read.meant.users == ("d",)


def test_no_depth_makes_it_fall(tmp_path: Path) -> None:
    """Dotted keys nest without end: what lies deeper than anybody writes is not looked at."""
    read = config.load_redirect(written(tmp_path, f"[redirect]\n{'a.' * 3000}a = 'bob'\n"))
    assert read.section == config.Redirect()


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
    assert config.load_redirect(written(tmp_path, '[listen]\nhttp = ["127.0.0.1:81"]')).port == 81
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
    '[redirect]\nport = "none"\nusers.bob = true',
    '[redirect]\nport = "none"\n[redirect.users.bob]',
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


def test_a_name_in_the_wrong_list_is_known(tmp_path: Path) -> None:
    """Who wrote a name among the uids, or a number among the users, meant somebody."""
    path = written(tmp_path, '[redirect]\nport = "x"\nuids = ["bob", "c.slice"]\nusers = ["7-9"]\nunits = ["alice"]\n')
    named = config.named_workers(path)
    assert {"bob", "alice"} <= set(named.users)
    assert "7-9" in named.uids
    assert "c.slice" in named.units


RANGES = [
    ("150-100", "100-150"),
    ("100..150", "100-150"),
    ("100:150", "100-150"),
    ("100 - 150", "100-150"),
    ("100\u2013150", "100-150"),
    ("0-150", "1-150"),
    ("500-99999999999", "500-4294967293"),
]


@pytest.mark.parametrize(("written_so", "meant"), RANGES)
def test_of_a_range_that_nobody_can_read_no_uid_is_left_open(tmp_path: Path, written_so: str, meant: str) -> None:
    """Its ends alone are not who was meant: all between them are, whatever the key is called."""
    path = written(tmp_path, f'[redirect]\nuids = ["{written_so}"]\nport = "x"\n')
    assert meant in config.named_workers(path).uids
    path = written(tmp_path, f'[redirect]\nuids = ["7", "{written_so}"\n')  # no TOML
    assert meant in config.named_workers(path).uids
    assert meant in config.load_redirect(written(tmp_path, f'[redirect]\nuid = "{written_so}"\n')).meant.uids


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


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000])
def test_a_number_without_an_end_is_a_mistake_like_any_other(tmp_path: Path, number: str) -> None:
    """Python reads and writes some thousands of digits at most: that is an error of ours with words, and names nobody."""
    path = written(tmp_path, f'[redirect]\nuids = [{number}]\nuser = [{number}, "{number}", "bob"]\nuid = {number}\n')
    with pytest.raises(ConfigError):
        config.load(path)
    with pytest.raises(ConfigError):
        config.load_redirect(path)
    assert "bob" in config.named_workers(path).users
    read = config.load_redirect(written(tmp_path, f'[redirect]\nuser = ["{number}", "bob"]\n'))
    assert read.meant.uids == ()
    assert "bob" in read.meant.users


@pytest.mark.parametrize("mistake", ["[redirect\n", 'user = ["x"\n', "future = \n"])
def test_the_last_of_many_names_is_refused_too(tmp_path: Path, mistake: str) -> None:
    """Whoever lists a thousand workers makes no other mistakes than who lists three."""
    names = [f"batch{number}" for number in range(1500)]
    uids = [str(number) for number in range(100, 900)]
    path = written(tmp_path, f"[redirect]\nusers = {json.dumps(names)}\nuids = {json.dumps(uids)}\n{mistake}")
    found = config.named_workers(path)
    assert {*names} <= {*found.users}
    assert {*uids} <= {*found.uids}


def test_so_does_an_unknown_key(tmp_path: Path) -> None:
    """All who are named by a key that is not known may be meant."""
    names = [f"batch{number}" for number in range(1500)]
    read = config.load_redirect(written(tmp_path, f"[redirect]\nuser = {json.dumps(names)}\n"))
    assert {*names} <= {*read.meant.users}


def test_a_file_that_is_too_long_names_whom_its_beginning_names(tmp_path: Path) -> None:
    """A log was appended to it, say."""
    path = written(tmp_path, '[redirect]\nusers = ["bob"]\n' + "# more\n" * (config.MAX_FILE_BYTES // 7))
    with pytest.raises(ConfigError, match="at most"):
        config.load_redirect(path)
    assert "bob" in config.named_workers(path).users
