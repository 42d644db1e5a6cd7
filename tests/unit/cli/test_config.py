"""`config show`: what takes effect, where it comes from, and no secret."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from agent.cli import config as room
from agent.cli.check import check
from tests.readme import _SECTIONS as SECTIONS

SECRET = "s3cr3t"
TEXT = f"""[listen]
control = "/c"
[[sources]]
kind = "https"
url = "https://user:{SECRET}@store.example:8443/{SECRET}?X-Signature={SECRET}"
ack_url = "https://store.example/{SECRET}"
proxy = "http://me:{SECRET}@proxy.example:3128"
[[keys]]
kind = "ephemeral"
[[signers]]
key = "/etc/credential-agent/signers/x.jwk"
issuers = ["*"]
[upstream]
proxy = "http://me:{SECRET}@proxy.example:3128"
[environment]
variables = {{ MYAPP_TOKEN = "{SECRET}" }}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    return path


def test_each_value_says_where_it_comes_from(path: Path) -> None:
    """A value of the file has its line, another is a default; both as they take effect."""
    done = CliRunner().invoke(room.config, ["show", "--json", "--config", str(path)])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["schema"], told["schema_version"], told["faults"]) == ("credential-agent/config", 1, [])
    values = {one["key"]: one for one in told["values"]}
    assert values["listen.control"] == {"key": "listen.control", "value": "/c", "origin": "file", "line": 2}
    assert values["listen.max_connections"] == {
        "key": "listen.max_connections", "value": 8192, "origin": "default", "line": None,
    }  # fmt: skip
    assert values["sources[0].url"]["line"] == 5


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_no_secret_is_shown(path: Path, options: list[str]) -> None:
    """Of a URL scheme, host and port; of a variable its name."""
    done = CliRunner().invoke(room.config, ["show", *options, "--config", str(path)])
    assert SECRET not in done.output
    assert "https://store.example:8443/..." in done.output
    assert "http://proxy.example:3128/..." in done.output
    assert "MYAPP_TOKEN" in done.output


def test_one_section_is_enough(path: Path) -> None:
    """A section alone, with its lines; one that is not there says so, and one that cannot be is refused."""
    shown = CliRunner().invoke(room.config, ["show", "--config", str(path), "listen"]).stdout
    assert f'control = "/c"  # {path}:2' in shown
    assert "sources" not in shown
    none = CliRunner().invoke(room.config, ["show", "--config", str(path), "launch_signers"])
    assert "no [[launch_signers]] entry" in none.stdout
    wrong = CliRunner().invoke(room.config, ["show", "--config", str(path), "signer"])
    assert wrong.exit_code == 2  # 64 by agent.cli.main
    assert "signers" in wrong.output


def test_a_faulty_file_is_shown_with_its_faults(path: Path) -> None:
    """What is wrong is said, exit status 78, and the rest is shown all the same."""
    path.write_text(TEXT + "nonsense = 1\n")
    done = CliRunner().invoke(room.config, ["show", "--config", str(path)], standalone_mode=False)
    assert done.return_value == 78
    assert "environment.nonsense: unknown key" in done.output
    assert 'control = "/c"' in done.output


URLS = [f"https://user:{SECRET}@h.example", f"user:{SECRET}@h.example", f"https://h.example/{SECRET}"]
URLS += [f"https://h.example/?sig={SECRET}", f"https://h.example#{SECRET}", f"http://user:{SECRET}@[bad"]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(("title", "struct"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_no_key_shows_what_a_url_carries(tmp_path: Path, title: str, struct: type, url: str) -> None:
    """Whichever key holds a URL, taken or refused, neither a value nor an error has more of it than scheme, host and port."""
    path = tmp_path / "config.toml"
    head, kind = title.split(" ", maxsplit=1)[0], re.search(r'kind = ".*"', title)
    for field in msgspec.structs.fields(struct):
        if not re.search(r"url|proxy|endpoint|origins|^ec2$|^gce$", field.name) or field.type is bool:
            continue
        for value in (f'"{url}"', f'["{url}"]'):
            path.write_text("\n".join([head, kind[0] if kind else "", f"{field.name} = {value}", ""]))
            for command, options in ((room.config, ["show"]), (check, ["--build"])):
                for as_json in ([], ["--json"]):
                    done = CliRunner().invoke(
                        command, [*options, *as_json, "--config", str(path)], standalone_mode=False
                    )
                    assert SECRET not in done.output + repr(done.exception), (field.name, value, done.output)


@pytest.mark.parametrize(
    "origin", ["https://a.example", "a.example", "a.example:8443", "http://[fd00::1]:80", "HTTPS://A.example/"]
)
def test_an_origin_without_a_secret_is_shown_as_written(tmp_path: Path, origin: str) -> None:
    """Who looks up what a bundle may name finds it, a bare host too."""
    path = tmp_path / "config.toml"
    path.write_text(f'[mint]\nallowed_origins = ["{origin}"]\n')
    done = CliRunner().invoke(room.config, ["show", "--json", "--config", str(path), "mint"])
    values = {one["key"]: one["value"] for one in json.loads(done.stdout)["values"]}
    assert values["mint.allowed_origins"] == [origin]
