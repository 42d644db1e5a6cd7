"""`check` sees what the service would see, or says that it did not look."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent import bundle, config
from agent.cli import check as room
from agent.cli import where
from agent.core.errors import ConfigError

CONFIG = """
[[keys]]
kind = "file"
path = "{key}"
[[signers]]
key = "/nowhere/signer.pub.jwk"
issuers = ["https://control.example.com"]
[environment]
group = "credential-workers"
"""


URLS = """
[[sources]]
kind = "https"
url = "https://{0}bundles.example/b"
ack_url = "https://{0}bundles.example/ack"
proxy = "http://{1}proxy.example:3128"
[mint]
sts_endpoint = "https://{0}sts.example"
google_token_url = "https://{0}token.example"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(key=tmp_path / "worker.jwk"))
    return path


def test_before_a_build_the_file_alone_is_checked(path: Path, tmp_path: Path) -> None:
    """With --build a configuration passes whose keys, signers and group are on the worker only, and each is named."""
    done = CliRunner().invoke(room.check, ["--build", "--config", str(path)])
    assert done.exit_code == 0, done.output
    for what in (str(tmp_path / "worker.jwk"), "/nowhere/signer.pub.jwk", "credential-workers"):
        assert what in done.output


@pytest.mark.parametrize(
    ("kind", "cloud", "others"), [("ec2-user-data", "ec2", "gce"), ("gce-attribute", "gce", "ec2")]
)
def test_before_a_build_it_is_said_that_a_metadata_service_is_needed(
    path: Path, kind: str, cloud: str, others: str
) -> None:
    """What an installation refuses on a machine of another kind is said before, unless the service is named."""
    told = {}
    for which in ("", cloud, others):
        named = f'[upstream]\n{which} = "http://169.254.169.254"\n' if which else ""
        signer = '[[signers]]\nkey = "/nowhere/signer.pub.jwk"\nissuers = ["x"]\n'
        path.write_text(f'{named}{signer}[[keys]]\nkind = "ephemeral"\n[[sources]]\nkind = "{kind}"\n')
        done = CliRunner().invoke(room.check, ["--build", "--config", str(path)])
        assert done.exit_code == 0, done.output
        told[which] = f"not looked at: sources[0]: {kind}" in done.output and f"upstream.{cloud}" in done.output
    assert told == {"": True, cloud: False, others: True}


def test_before_a_build_a_mistake_is_still_one(path: Path) -> None:
    """What is wrong with the file itself is said."""
    path.write_text(path.read_text() + "nonsense = 1\n")
    done = CliRunner().invoke(room.check, ["--build", "--config", str(path)])
    assert done.exit_code == 78
    assert "environment.nonsense: unknown key" in done.output


@pytest.mark.parametrize("build", [[], ["--build"]])
def test_a_url_that_no_request_is_made_with_is_said(path: Path, build: list[str]) -> None:
    """A user's name and password are sent to proxies alone: any other URL that has them is never asked. Neither is told."""
    before = path.read_text()
    said = {}
    for name in ("", "david:Hunter2@"):
        path.write_text(before + URLS.format(name, "david:Hunter2@"))
        output = CliRunner().invoke(room.check, [*build, "--config", str(path)]).output
        assert "Hunter2" not in output
        said[name] = [line for line in output.splitlines() if "never asked" in line]
    assert said.pop("") == []
    found = [line.split(": ")[1] for line in said.popitem()[1]]
    assert found == ["sources[0].url", "sources[0].ack_url", "mint.sts_endpoint", "mint.google_token_url"]


def said(text: str, tmp_path: Path) -> list[str]:
    """What a check says of the configuration, but for its hints, each line without the name of the file."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    command = [sys.executable, "-m", "agent", "check", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("  hint: ")]
    assert all(line.startswith(("credential-agent: ", "warning: ")) for line in lines), done.stderr
    return [re.sub("^(credential-agent|warning): ", "", line).removeprefix(f"{path}: ") for line in lines]


def keys(lines: list[str]) -> list[str]:
    return [line.split(":")[0] for line in lines]


SOUND = """
[listen]
http = ["127.0.0.1:0"]
[state]
directory = "{0}"
[environment]
file = "{0}/env"
shell_file = "{0}/env.sh"
token_file = "{0}/token"
"""


def test_every_mistake_in_the_text_is_said_in_one_go(tmp_path: Path) -> None:
    """Unknown keys and sections, wrong values and kinds, missing keys and contradictions, each with its place, once."""
    lines = said(
        """
        nonsense = 1
        [listen]
        http = ["127.0.0.1"]
        control_mode = "rw"
        conections = 3
        [identity]
        fallback = ["azure"]
        grace_seconds = "long"
        [[keys]]
        kind = "aws-kms"
        regoin = "eu-west-1"
        [[keys]]
        kind = "stone"
        [[signers]]
        key = "relative.jwk"
        [[sources]]
        kind = "https"
        [[sources]]
        kind = "file"
        path = 7
        [upstream]
        ec2 = "maybe"
        [mint]
        sts_endpoint = "ftp://x"
        [logg]
        level = "info"
        [log]
        level = "loud"
        [state]
        directory = "/nowhere"
        """,
        tmp_path,
    )
    assert sorted(keys(lines)) == sorted(
        [
            "nonsense", "logg", "listen.http", "listen.control_mode", "listen.conections", "identity.fallback[0]",
            "identity.grace_seconds", "keys[0].regoin", "keys[0].key_id", "keys[0].public_key", "keys[1].kind",
            "signers[0].key", "signers[0].issuers", "sources[1].path", "upstream.ec2", "mint.sts_endpoint", "log.level",
            "state.directory", "environment.file", "environment.shell_file", "environment.token_file",
        ]
    )  # fmt: skip


def test_what_would_never_be_written_is_said(tmp_path: Path) -> None:
    """The groups of the metrics' and the audit's files are looked up too, and no directory passes for a file."""
    (tmp_path / "metrics.prom").mkdir()
    (tmp_path / "container").mkdir()
    lines = said(
        f"""{SOUND.format(tmp_path)}
        container_file = "{tmp_path}/container"
        [metrics]
        textfile = "{tmp_path}/metrics.prom"
        group = "no-such-group"
        [audit]
        group = "none-either"
        """,
        tmp_path,
    )
    assert keys(lines) == ["metrics.group", "audit.group", "environment.container_file", "metrics.textfile"]


def test_a_directory_is_no_place_of_a_bundle(tmp_path: Path) -> None:
    """A source's path with a directory at its end is said: whoever named where bundles lie meant a file in it."""
    lines = said(
        f"""{SOUND.format(tmp_path)}
        [[keys]]
        kind = "ephemeral"
        [[signers]]
        key = "{tmp_path}/absent.jwk"
        issuers = ["laptop:*"]
        [[sources]]
        kind = "file"
        path = "{tmp_path}"
        """,
        tmp_path,
    )
    assert "sources[0].path" in keys(lines)


def test_everything_that_is_missing_is_said_in_one_go(tmp_path: Path) -> None:
    """Keys, signers, authorities, a metadata service, a group and directories are all looked at, and all told."""
    lines = said(
        f"""
        [state]
        directory = "{tmp_path}/nowhere"
        [environment]
        file = "{tmp_path}/no/env"
        shell_file = "{tmp_path}/env.sh"
        token_file = "{tmp_path}/nor/token"
        group = "no-such-group"
        [upstream]
        ca_file = "{tmp_path}/ca.pem"
        ec2 = "off"
        [[keys]]
        kind = "file"
        path = "{tmp_path}/worker.jwk"
        [[keys]]
        kind = "credential"
        name = "worker"
        [[keys]]
        kind = "gcp-kms"
        key_version = "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1"
        public_key = "{tmp_path}/worker.pem"
        [[signers]]
        key = "{tmp_path}/one.jwk"
        issuers = ["*"]
        [[signers]]
        key = "{tmp_path}/two.jwk"
        issuers = ["*"]
        [[sources]]
        kind = "ec2-user-data"
        [[sources]]
        kind = "https"
        url_file = "{tmp_path}/url"
        ca_file = "{tmp_path}/own.pem"
        """,
        tmp_path,
    )
    assert sorted(keys(lines)) == sorted(
        [
            "state.directory", "environment.file", "environment.token_file", "environment.group", "upstream.ca_file",
            "keys[0]", "keys[2]", "signers[0].key", "signers[1].key", "sources[0]", "sources[1].ca_file",
            "key worker", "sources[1].url_file",
        ]
    )  # fmt: skip


def test_who_begins_in_the_middle_of_the_page_is_told_what_to_put_there(tmp_path: Path) -> None:
    """A key or a signer that is named and not there: the line is followed by what to do."""
    path = tmp_path / "config.toml"
    path.write_text(
        SOUND.format(tmp_path)
        + f'[[keys]]\nkind = "file"\npath = "{tmp_path}/k"\n[[signers]]\nkey = "{tmp_path}/s"\nissuers = ["*"]\n'
    )
    result = CliRunner().invoke(room.check, ["--config", str(path)])
    lines = result.output.splitlines()
    for fault, mode in (("keys[0]", "mode 0640"), ("signers[0].key", "mode 0644")):
        (at,) = [number for number, line in enumerate(lines) if fault in line]
        assert lines[at + 1].startswith("  hint: copy it there")
        assert mode in lines[at + 1]


def test_nothing_is_said_that_follows_from_another_mistake(tmp_path: Path) -> None:
    """A list with a faulty entry is not taken for an empty one, nor the default of a faulty key for what was meant."""
    sound = SOUND.format(tmp_path)
    broken_key = '[[keys]]\nkind = "file"\n[[sources]]\nkind = "file"\npath = "/x"\n'
    assert keys(said(sound + broken_key, tmp_path)) == ["keys[0].path"]
    faulty_state = sound.replace(f'directory = "{tmp_path}"', "directory = 3")
    assert keys(said(faulty_state, tmp_path)) == ["state.directory"]


@pytest.mark.parametrize(
    "text", ["[listen", "a = 1\na = 2\n", "keys = 3\n", "listen = []\n", "keys = [1, 2]\n", "x = {}\n"]
)
def test_what_is_hardly_a_configuration_is_a_line(text: str, tmp_path: Path) -> None:
    """Text that is no TOML, and TOML of another shape, end with a line for each mistake and status 78."""
    assert said(text, tmp_path)


def test_the_check_and_the_start_agree(tmp_path: Path) -> None:
    """What the start refuses the check refuses, with the same first words."""
    for section, key, value in (("log", "level", '"loud"'), ("listen", "http", "[]"), ("aws", "account_id", '"12"')):
        path = tmp_path / "config.toml"
        text = f"[{section}]\n{key} = {value}\n"
        path.write_text(text)
        with pytest.raises(ConfigError) as refused:
            config.load(path)
        settings, faults = config.survey(path)
        assert [str(fault.error(str(path))) for fault in faults] == [str(refused.value)]
        assert faults[0].hint == refused.value.hint
        assert settings == config.Config() or key == "http"


def test_a_key_that_systemd_passed_to_the_service_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd passes to the service is checked too: such a key is not called absent, and a damaged one is refused."""
    path = tmp_path / "config.toml"
    path.write_text(f'[[keys]]\nkind = "credential"\nname = "the.key"\n[state]\ndirectory = "{tmp_path / "state"}"\n')
    monkeypatch.setattr(where, "CREDENTIALS", tmp_path / "passed")
    monkeypatch.setattr(room, "SERVICE_USER", "nobody-here")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)

    def told() -> str:
        done = CliRunner().invoke(room.check, ["--config", str(path)])
        return done.output

    assert "not given to this machine" in told()
    (tmp_path / "passed").mkdir()
    assert "not given to this machine" in told()
    key = tmp_path / "passed" / "the.key"
    key.write_text(json.dumps(bundle.OpeningKey.generate("P-256").private_jwk()))
    assert "the.key" not in told()
    key.write_text("no key")
    assert "keys[0]: a worker key must be a JWK" in told()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose powers it gives up")
def test_root_looks_with_the_services_eyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that only root can read is refused; one in the service's group is read."""
    service = pwd.getpwnam("nobody")
    monkeypatch.setattr(room, "SERVICE_USER", "nobody")
    for directory in [tmp_path, *tmp_path.parents]:
        if directory.is_relative_to("/tmp") and directory != Path("/tmp"):
            directory.chmod(0o755)
    key = tmp_path / "key"
    key.write_text("x")

    def readable() -> bool:
        child = os.fork()
        if not child:
            room._become_the_service()
            os._exit(0 if os.access(key, os.R_OK) and os.getresuid() == (service.pw_uid,) * 3 else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    key.chmod(0o600)
    assert not readable()
    os.chown(key, 0, service.pw_gid)
    key.chmod(0o640)
    assert readable()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose powers it gives up")
@pytest.mark.parametrize("which", ["config", "key"])
def test_what_the_service_may_not_read_is_said_with_whose_it_must_be(which: str, tmp_path: Path) -> None:
    """Whoever copied a file as root is told which owner and mode it needs, and not only that it cannot be read."""
    secret = tmp_path / "file"
    secret.write_text("x")
    secret.chmod(0)
    look = {
        "config": f"from agent.config import load as look; look(Path({str(secret)!r}))",
        "key": f"from agent.keys import load_key_file as look; look(Path({str(secret)!r}))",
    }[which]
    code = (
        "import os; from pathlib import Path; import agent.config, agent.keys\n"
        "from agent.core.errors import AgentError\n"
        "os.setresuid(65534, 65534, 65534)\n"
        f"try:\n    {look}\nexcept AgentError as error:\n    print(error.hint)\n"
    )
    for directory in [tmp_path, *tmp_path.parents]:
        if directory.is_relative_to("/tmp") and directory != Path("/tmp"):
            directory.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "root:credential-agent, mode 0640" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("uids", ("1000-", "60000-1000", "0", "4294967295", "1e3", "")),
        ("units", ("a.timer", "-.slice", "a--b.slice", "")),
        ("bridges", ("br-*0", "an-interface-too-long", "")),
        ("exempt_bridges", ("*", "a b")),
    ],
)
@pytest.mark.parametrize("build", [False, True])
def test_whatever_the_rules_cannot_be_made_of_is_said(
    tmp_path: Path, key: str, values: tuple[str, ...], build: bool
) -> None:
    """The unit that makes them would refuse all workers for it; each wrong value is said, and a right one is not."""
    path = tmp_path / "config.toml"
    right = {"uids": "1000", "units": "a.slice"}.get(key, "br-*")
    path.write_text(SOUND.format(tmp_path) + f"[redirect]\n{key} = {json.dumps([right, *values])}\n")
    command = [sys.executable, "-m", "agent", "check", "--config", str(path), "--json", *["--build"][:build]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78, done.stderr
    faults = [fault["said"] for fault in json.loads(done.stdout)["faults"]]
    assert keys(faults) == [f"redirect.{key}"] * len(values)
