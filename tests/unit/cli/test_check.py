"""`check` sees what the service would see, or says that it did not look."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli import check as room
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(key=tmp_path / "worker.jwk"))
    return path


def test_before_a_build_the_file_alone_is_judged(path: Path, tmp_path: Path) -> None:
    """With --build a configuration passes whose keys, signers and group are on the worker only, and each is named."""
    done = CliRunner().invoke(room.check, ["--build", "--config", str(path)])
    assert done.exit_code == 0, done.output
    for what in (str(tmp_path / "worker.jwk"), "/nowhere/signer.pub.jwk", "credential-workers"):
        assert what in done.output


def test_before_a_build_a_mistake_is_still_one(path: Path) -> None:
    """What is wrong with the file itself is said."""
    path.write_text(path.read_text() + "nonsense = 1\n")
    done = CliRunner().invoke(room.check, ["--build", "--config", str(path)])
    assert isinstance(done.exception, ConfigError)
    assert "environment.nonsense" in str(done.exception)


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
