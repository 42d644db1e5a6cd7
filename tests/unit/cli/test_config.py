"""`config show`: what takes effect, where it comes from, and no secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli import config as room

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
