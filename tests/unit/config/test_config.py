"""The configuration file: what is wrong is one line with the key and what was expected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.config import MAX_FILE_BYTES, Config, KeyEntry, SourceEntry, host_port, load, parse
from agent.config.words import derived
from agent.core.errors import ConfigError, HostError
from agent.host.envfile import render_systemd

WRONG = [
    ("[listen", "not valid TOML"),
    ("nonsense = 1", "nonsense: unknown key"),
    ("[listen]\nhtpp = []", "listen.htpp: unknown key"),
    ("[listen]\nhttp = []", "listen.http: expected at least one address"),
    ('[listen]\nhttp = "127.0.0.1:1"', "listen.http: expected"),
    ('[listen]\nhttp = ["example.org:80"]', "expected ADDRESS:PORT"),
    ('[listen]\ncontrol = "run/sock"', "listen.control: expected an absolute path"),
    ('[listen]\ncontrol_mode = "660"', 'listen.control_mode: expected an octal mode such as "0640"'),
    ("[listen]\nmax_connections = 1", "listen.max_connections: expected"),
    ('[identity]\ngrace_seconds = "30"', "identity.grace_seconds: expected number, got string"),
    ("[identity]\ngrace_seconds = -1", "identity.grace_seconds: expected number >= 0.0, got -1"),
    ('[identity]\nfallback = ["azure"]', 'expected "aws" or "gcp", got \'azure\''),
    ('[identity]\non_expiry = "ignore"', 'identity.on_expiry: expected "deny" or "fallback", got \'ignore\''),
    ("[identity]\ngrace_seconds = -0x5", "not valid TOML"),
    ("[identity]\ngrace_seconds = inf", "identity.grace_seconds: expected number <= 604800.0, got inf"),
    (f"[listen]\nmax_connections = 0x{'f' * 5000}", "listen.max_connections: expected integer <= 65536"),
    ("[listen]\nmax_connections = 1.5", "listen.max_connections: expected integer, got float"),
    ('[log]\nlevel = "loud"', "log.level: expected"),
    ("[aws]\nregion = 3", "aws.region: expected string, got integer"),
    ("log = 3", "log: expected table, got integer"),
    ('[[sources]]\nkind = "https"\nurl = "https://x.example"\npoll_seconds = -1', "seconds: expected number >= "),
    ('[aws]\naccount_id = "12"', "aws.account_id: expected a twelve-digit account id"),
    ('[[keys]]\nkind = "floppy"', "keys[0].kind: expected one of file, credential"),
    ('[[keys]]\nkind = "file"', "keys[0]"),
    ('[[keys]]\nkind = "file"\npath = "/k"', "signers: expected at least one beside keys"),
    ('[[sources]]\nkind = "file"\npath = "/b"', "keys: expected at least one beside sources"),
    ('[upstream]\nec2 = "ftp://x"', "upstream.ec2: expected"),
    ('[mint]\nsts_endpoint = "sts.amazonaws.com"', "mint.sts_endpoint: expected an http or https URL"),
    ('[[sources]]\nkind = "file"\npath = "/b"\nname = "a b"', "sources[0].name: expected 1 to 64 letters"),
    (f'[listen]\ncontrol = "/{"x" * 107}"', "listen.control: expected a path of at most 107 bytes, got 108"),
    ('[[sources]]\nkind = "file"\npath = "/b"\nname = "courier"', "sources[0].name: expected another name"),
    ('[[sources]]\nkind = "file"\npath = "/b"\nname = "push"', "sources[0].name: expected another name"),
    ('[[sources]]\nkind = "file"\npath = "/b"\nname = "state"', "sources[0].name: expected another name"),
    ('[environment]\nfile = "/e"\nshell_file = "/x/../e"', "environment.shell_file: expected another path than"),
    ('[environment]\nfile = "/e"\ntoken_file = "//e"', "environment.token_file: expected another path than"),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_a_mistake_is_one_line_that_names_its_key(text: str, words: str) -> None:
    """Each mistake names the file, the key and what was expected, on one line."""
    with pytest.raises(ConfigError) as raised:
        parse(text, origin="config.toml")

    assert words in raised.value.message
    assert raised.value.message.startswith("config.toml: ")
    assert "\n" not in raised.value.message
    assert "\n" not in (raised.value.hint or "")


def test_an_empty_file_is_the_defaults() -> None:
    """Every section may be left out."""
    assert parse("", origin="x") == Config()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:16925", ("127.0.0.1", 16925)), ("[::1]:0", ("::1", 0)), ("0.0.0.0:65535", ("0.0.0.0", 65535))],
)
def test_an_address_is_a_literal_and_a_port(text: str, expected: tuple[str, int]) -> None:
    """An address is a literal and a port; IPv6 stands in brackets."""
    assert host_port(text) == expected


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1", ":80", "::1:80", "127.0.0.1:65536", "127.0.0.1:-1", "a:1", "1.1.1.1:1\n"]
)
def test_what_is_no_address(text: str) -> None:
    """A name, a missing port or one out of range is refused."""
    with pytest.raises(ConfigError, match="expected ADDRESS:PORT"):
        host_port(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is absent, too long or no text is a ConfigError and nothing else; the first and last say what to do."""
    (tmp_path / "long").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, words in (("none", "cannot be read"), ("long", "expected at most"), ("bytes", "expected UTF-8")):
        with pytest.raises(ConfigError, match=words) as raised:
            load(tmp_path / name)
        assert raised.value.hint or name == "long"


@given(st.characters(codec="utf-8"))
@example("\x1b")
@example("\t")
@example("\x7f")
@example("\x85")
def test_variables_are_what_an_environment_file_can_hold(character: str) -> None:
    """A value passes here exactly if the environment file takes it: else the file would never be written."""
    value = f"a{character}"
    try:
        render_systemd({"A": value})
    except HostError:
        with pytest.raises(ConfigError, match="one line without control characters"):
            parse(f"[environment.variables]\nA = {json.dumps(value)}", origin="x")
    else:
        text = "".join(f"\\U{ord(c):08x}" for c in value)
        assert parse(f'[environment.variables]\nA = "{text}"', origin="x").environment.variables == {"A": value}


def test_every_pattern_has_itsderived() -> None:
    """No regular expression is shown to an operator: each stands beside its words, in the type itself."""

    def shapes(part: Any) -> Iterator[dict[str, str]]:
        if isinstance(part, dict):
            if isinstance(part.get("pattern"), str):
                yield part
            part = list(part.values())
        for one in part if isinstance(part, list) else []:
            yield from shapes(one)

    found = {shape["pattern"]: shape.get("description") for shape in shapes(msgspec.json.schema(Config))}
    assert len(found) > 8
    assert all(found.values()), found
    assert {repr(pattern): words for pattern, words in found.items()} == derived().shapes


@pytest.mark.parametrize(
    ("lines", "got"),
    [("", "neither"), ('url = "https://h/SECRET"\nurl_file = "/f"', "both")],
)
def test_a_bundle_has_one_place_that_says_its_url(tmp_path: Path, lines: str, got: str) -> None:
    """An https source has a URL or a file with one, never both or neither, and the error shows no URL."""
    path = tmp_path / "config.toml"
    key = '[[keys]]\nkind = "file"\npath = "/k"\n[[signers]]\nkey = "/s"\nissuers = ["*"]\n'
    path.write_text(f'{key}[[sources]]\nkind = "https"\n{lines}\n')
    with pytest.raises(ConfigError, match=rf"sources\[0\]: expected one of url and url_file, got {got}") as caught:
        load(path)
    assert "SECRET" not in str(caught.value)


def test_the_url_may_be_in_a_file(tmp_path: Path) -> None:
    """With the file alone the configuration itself holds no credential."""
    path = tmp_path / "config.toml"
    key = '[[keys]]\nkind = "file"\npath = "/k"\n[[signers]]\nkey = "/s"\nissuers = ["*"]\n'
    path.write_text(f'{key}[[sources]]\nkind = "https"\nurl_file = "/etc/credential-agent/url"\n')
    assert [getattr(source, "url_file", None) for source in load(path).sources] == ["/etc/credential-agent/url"]


@pytest.mark.parametrize(("section", "entry"), [("keys", KeyEntry), ("sources", SourceEntry)])
def test_the_hint_names_every_kind(section: str, entry: object) -> None:
    """Who misspells a kind is told each kind that there is."""
    with pytest.raises(ConfigError) as caught:
        parse(f'[[{section}]]\nkind = "nothing"\n', origin="x")
    kinds = {struct.__struct_config__.tag for struct in get_args(entry)}
    assert caught.value.hint is not None
    assert set(caught.value.hint.partition(": ")[2].split(", ")) == kinds
