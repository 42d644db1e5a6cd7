"""What the caller's own shell says before the agent is asked: names that are set, files that are there, and no value."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.doctor.facts import Shell
from agent.doctor.probes.shell import look_at_shell

PROXY = "http://user:secret@proxy.example:3128"


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, Shell()),
        ({"AWS_PROFILE": "mine", "AWS_ACCESS_KEY_ID": "AKIA"}, Shell(variables=("AWS_ACCESS_KEY_ID", "AWS_PROFILE"))),
        ({"AWS_PROFILE": ""}, Shell()),
        ({"AWS_EC2_METADATA_DISABLED": "true"}, Shell(variables=("AWS_EC2_METADATA_DISABLED",))),
        ({"AWS_EC2_METADATA_DISABLED": "false", "NO_GCE_CHECK": "no"}, Shell()),
        ({"http_proxy": PROXY, "ALL_PROXY": PROXY}, Shell(proxies=("http_proxy", "ALL_PROXY"))),
        ({"https_proxy": PROXY}, Shell()),
        ({"http_proxy": PROXY, "NO_PROXY": "localhost, 169.254.169.254"}, Shell()),
        ({"http_proxy": PROXY, "no_proxy": "*"}, Shell()),
    ],
    ids=str,
)
def test_what_leads_past_the_agent_is_named(environ: dict[str, str], found: Shell, tmp_path: Path) -> None:
    """A variable counts if it is set to something that an SDK heeds; a proxy, if the metadata address is not spared."""
    assert look_at_shell(environ, tmp_path) == found


def test_files_of_ones_own_are_seen_where_sdks_look(tmp_path: Path) -> None:
    """Below the home, or where the variable says; an empty file is none."""
    aws, google = tmp_path / ".aws/credentials", tmp_path / ".config/gcloud/application_default_credentials.json"
    for path in (aws, google):
        path.parent.mkdir(parents=True)
        path.touch()
    assert look_at_shell({}, tmp_path).files == ()
    for path in (aws, google):
        path.write_text("[default]")
    assert look_at_shell({}, tmp_path).files == (str(aws), str(google))
    elsewhere = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), "CLOUDSDK_CONFIG": str(google.parent)}
    assert look_at_shell(elsewhere, Path("/nonexistent")).files == (str(google),)


def test_no_value_is_a_fact(tmp_path: Path) -> None:
    """A key or a proxy's password that is set in the shell is in nothing that is told."""
    facts = look_at_shell({"AWS_SECRET_ACCESS_KEY": "wJalr", "http_proxy": PROXY}, tmp_path)
    text = msgspec.json.encode(facts).decode()
    assert "wJalr" not in text
    assert "secret@" not in text
