"""The environment file: what it points at, and that systemd's and a shell's readers read what was written."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.errors import HostError
from agent.core.model import AwsCredential
from agent.core.secret import Secret
from agent.host import containerenv, envfile

VALUES = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.just("\t"), max_size=60)
NAMES = st.from_regex(r"[A-Z_][A-Z0-9_]{0,20}", fullmatch=True).filter(lambda n: n not in {"NO_PROXY", "_"})


def everything(**changes: object) -> dict[str, str]:
    arguments: dict[str, object] = {
        "address": "127.0.0.1:16925",
        "aws": True,
        "gcp": True,
        "token_file": "/run/credential-agent/token",
        "token": Secret("bearer"),
        "region": "eu-west-1",
    }
    return envfile.pointers(**{**arguments, **changes})  # type: ignore[arg-type]


def test_every_client_is_led_here() -> None:
    """The variables that the measured clients read, each with the form that they accept."""
    said = everything()
    assert said["AWS_CONTAINER_CREDENTIALS_FULL_URI"] == "http://127.0.0.1:16925/v2/credentials/bearer"
    assert said["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] == "/run/credential-agent/token"
    assert said["AWS_CONTAINER_AUTHORIZATION_TOKEN"] == "bearer"
    assert said["AWS_EC2_METADATA_SERVICE_ENDPOINT"] == said["AWS_METADATA_ENDPOINT"] == "http://127.0.0.1:16925"
    assert said["AWS_REGION"] == said["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert {said[f"GCE_METADATA_{name}"] for name in ("HOST", "ROOT", "IP")} == {"127.0.0.1:16925"}
    assert said["GCE_METADATA_MTLS_MODE"] == "none"
    assert said["METADATA_SERVER_DETECTION"] == "assume-present"
    assert said["NO_PROXY"] == said["no_proxy"]
    assert {"127.0.0.1", "169.254.169.254", "metadata.google.internal"} <= set(said["NO_PROXY"].split(","))


def test_gdal_is_led_whatever_the_firmware_says() -> None:
    """GDAL reads other names than SDKs, and asks nobody on a machine whose firmware is not that cloud's."""
    said = everything()
    assert said["CPL_AWS_EC2_API_ROOT_URL"] == "http://127.0.0.1:16925"
    assert said["CPL_AWS_AUTODETECT_EC2"] == "NO"
    assert said["CPL_MACHINE_IS_GCE"] == "YES"
    token = "http://127.0.0.1:16925/computeMetadata/v1/instance/service-accounts/default/token"
    assert said["CPL_GCE_CREDENTIALS_URL"] == token
    # With another root than EC2's own it would not look at a container's relative URI.
    inside = containerenv.pointers(aws=True, gcp=True, path=Secret("p" * 32))
    assert "CPL_AWS_EC2_API_ROOT_URL" not in inside
    assert inside["CPL_GCE_CREDENTIALS_URL"] == token.replace("127.0.0.1:16925", "169.254.169.254")


def test_without_a_token_the_uri_has_none() -> None:
    """The path that wants a token in a header, then."""
    uri = everything(token=None)["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
    assert uri == "http://127.0.0.1:16925/v1/credentials"


def test_no_key_is_ever_among_the_pointers() -> None:
    """Keys go stale and mask the agent."""
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS"}
    assert keys <= envfile.MASKING
    assert not envfile.MASKING & everything().keys()


def test_an_absent_cloud_is_not_announced() -> None:
    """A metadata server that is announced and empty turns "not on Google" into errors."""
    assert not any(name.startswith(("GCE_", "METADATA_", "CPL_GCE", "CPL_MACHINE")) for name in everything(gcp=False))
    assert not any(name.startswith(("AWS_", "CPL_AWS")) for name in everything(aws=False))
    assert everything(aws=False, gcp=False) == {}


def test_static_keys_are_the_explicit_exception() -> None:
    """They carry the true end."""
    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    credential = AwsCredential("ASIA", Secret("s"), Secret("t"), moment, moment)
    assert envfile.static_keys(credential) == {
        "AWS_ACCESS_KEY_ID": "ASIA",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_SESSION_TOKEN": "t",
        "AWS_CREDENTIAL_EXPIRATION": "2030-01-02T03:04:05Z",
    }


@pytest.mark.parametrize(
    ("existing", "merged"),
    [("", "a,b"), ("x", "x,a,b"), ("x, A ,", "x,A,b"), ("*", "*"), ("a,b", "a,b")],
)
def test_no_proxy_is_added_to_once(existing: str, merged: str) -> None:
    """Hosts that were exempt stay so; ours are added when they are missing."""
    assert envfile.merge_no_proxy(existing, ("a", "b")) == merged


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_what_is_written_is_read_again(variables: dict[str, str]) -> None:
    """Whatever the values hold, reading our file gives them back."""
    assert envfile.parse_systemd(envfile.render_systemd(variables)) == variables


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(NAMES.filter(lambda n: n.startswith("T")), VALUES, min_size=1, max_size=5))
def test_a_shell_reads_both_forms(variables: dict[str, str]) -> None:
    """A real sh that sources either file has exactly these values: nothing is expanded, nothing is run."""
    for text in (envfile.render_shell(variables), b"set -a\n" + envfile.render_systemd(variables)):
        shell = ["env", "-i", "/bin/sh", "-c", ". /dev/stdin; exec env -0"]
        out = subprocess.run(shell, input=text, capture_output=True, check=True).stdout
        found = dict(entry.split("=", 1) for entry in out.decode().split("\0") if entry)
        assert {name: found.get(name) for name in variables} == variables


def test_a_shell_keeps_what_the_user_chose() -> None:
    """A region and proxy exemptions of the user's own stay; what would mask the agent goes; twice is as once."""
    text = envfile.render_shell(everything())
    before = {"AWS_REGION": "us-east-2", "NO_PROXY": "intra.example", "AWS_ACCESS_KEY_ID": "AKIA", "AWS_PROFILE": "x"}
    arguments = [f"{name}={value}" for name, value in before.items()]
    out = subprocess.run(
        ["env", "-i", *arguments, "/bin/sh", "-eu"], input=text + text + b"env\n", capture_output=True, check=True
    ).stdout.decode()
    found = dict(line.split("=", 1) for line in out.splitlines())
    assert found["AWS_REGION"] == "us-east-2"
    hosts = found["NO_PROXY"].split(",")
    assert hosts[0] == "intra.example"
    assert len(hosts) == len(set(hosts))
    assert "AWS_ACCESS_KEY_ID" not in found
    assert "AWS_PROFILE" not in found


@pytest.mark.parametrize(("name", "value"), [("A B", "x"), ("1A", "x"), ("A", "x\ny"), ("A", "x\0"), ("A=", "x")])
def test_what_cannot_stand_in_the_file_is_refused(name: str, value: str) -> None:
    """A line break would begin another variable."""
    for render in (envfile.render_systemd, envfile.render_shell):
        with pytest.raises(HostError):
            render({name: value})


@pytest.mark.parametrize("line", ["A=1", 'A="', 'A="x" B="y"', 'A="$x"', "export A=1"])
def test_a_file_that_is_not_ours_is_refused(line: str) -> None:
    """The reader is for what the agent wrote, not for every EnvironmentFile."""
    with pytest.raises(HostError):
        envfile.parse_systemd(line.encode())


def test_a_program_gets_ours_on_top_and_nothing_that_masks() -> None:
    """Masking variables go for the clouds we serve, and only for those."""
    environ = {
        "PATH": "/bin",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_REGION": "us-east-2",
        "GOOGLE_APPLICATION_CREDENTIALS": "/x.json",
        "no_proxy": "intra.example",
    }
    merged = envfile.overlay(environ, everything(gcp=False))
    assert "AWS_ACCESS_KEY_ID" not in merged
    assert merged["AWS_REGION"] == "us-east-2"
    assert "AWS_DEFAULT_REGION" not in merged
    assert merged["GOOGLE_APPLICATION_CREDENTIALS"] == "/x.json"
    assert merged["NO_PROXY"].startswith("intra.example,")
    assert "GOOGLE_APPLICATION_CREDENTIALS" not in envfile.overlay(environ, everything())


def test_root_takes_what_an_agent_may_write_and_nothing_else() -> None:
    """Pointers, the operator's variables with the configuration's values, and of a bundle's those that may pass."""
    token = Secret("t")
    led = envfile.pointers(address="127.0.0.1:1", aws=True, gcp=True, token_file="/t", token=token, region="r")
    told = {**led, "GOOGLE_CLOUD_PROJECT": "p", "APP_TOKEN": "a", "MINE_X": "b", "OWN": "forged", "ODD_KEY": "bundle"}
    forged = {"LD_PRELOAD": "x", "PATH": "x", "PYTHONPATH": "x", "AWS_CONFIG_FILE": "x", "AWS_ACCESS_KEY_ID": "x"}
    taken = envfile.for_root({**told, **forged}, own={"OWN": "o", "ODD_KEY": "k"}, allow=["MINE_*"], static=False)
    assert taken.keys() == told.keys() - {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"}  # a file of root's, to be sent
    assert taken == {**{name: told[name] for name in taken}, "OWN": "o"}
    keys = envfile.for_root(forged, own={}, allow=[], static=True)
    assert keys == {"AWS_ACCESS_KEY_ID": "x"}
