"""Where commands look for the agent when the configuration is not for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.cli import where
from agent.core.announced import FILE, FORMER_FILE
from agent.core.errors import ConfigError


@pytest.fixture
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The usual configuration, which this user may not read."""
    path = tmp_path / "config.toml"
    path.write_text('[listen]\nhttp = ["127.0.0.1:1"]\n')
    path.chmod(0)
    monkeypatch.setattr(where, "CONFIG_PATH", path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda *_: False)
    return path


def test_a_worker_reads_what_the_daemon_told(sealed: Path, tmp_path: Path) -> None:
    """Who may not read the configuration takes listeners.json."""
    told = tmp_path / FILE
    told.write_text('{"http":"127.0.0.1:7","control":"/c","courier":"/o","file":"/e","token_file":"/t"}')
    found = where.Where(("127.0.0.1", 7), Path("/c"), Path("/o"), Path("/e"), Path("/t"))
    assert where.find(sealed, announced=tmp_path) == found


@pytest.mark.parametrize(
    ("said", "found"), [("auto", "/run/x/courier.sock"), ("/elsewhere", "/elsewhere"), ("off", None)]
)
def test_the_couriers_socket_is_where_the_configuration_says(tmp_path: Path, said: str, found: str | None) -> None:
    """Beside the control socket by itself, or at another path, or nowhere."""
    path = tmp_path / "config.toml"
    path.write_text(f'[listen]\ncontrol = "/run/x/control.sock"\ncourier = "{said}"\n')
    assert where.find(path).courier == (None if found is None else Path(found))


def test_the_file_of_the_release_before_is_understood(sealed: Path, tmp_path: Path) -> None:
    """During an upgrade a new command asks the agent that still runs; the new file wins when both are there."""
    (tmp_path / FORMER_FILE).write_text('{"http":"127.0.0.1:7","control":"/c","file":"/e","token_file":"/t"}')
    assert where.find(sealed, announced=tmp_path).http == ("127.0.0.1", 7)
    (tmp_path / FILE).write_text('{"http":"127.0.0.1:8","control":"/c","file":"/e","token_file":"/t"}')
    assert where.find(sealed, announced=tmp_path).http == ("127.0.0.1", 8)


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"http":"x","control":"/c","file":"/e","token_file":"/t"}'])
def test_without_it_the_defaults_hold(sealed: Path, tmp_path: Path, content: str | None) -> None:
    """Before the agent's first start, and whatever is in the file: where the agent is when nobody says otherwise."""
    told = tmp_path / FILE
    if content is not None:
        told.write_text(content)
    assert where.find(sealed, announced=tmp_path).http == ("127.0.0.1", 16925)


def test_root_reads_the_configuration_alone(sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another user wrote does not lead root anywhere."""
    told = tmp_path / FILE
    told.write_text('{"http":"127.0.0.1:7","control":"/c","file":"/e","token_file":"/t"}')
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    sealed.chmod(0o600)
    assert where.find(sealed, announced=tmp_path).http == ("127.0.0.1", 1)


def test_a_mistake_in_the_file_is_no_reason_not_to_ask_an_agent_that_runs(
    sealed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root asks where the agent is by default, and is told of the mistake, once."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    sealed.chmod(0o600)
    sealed.write_text("[listen]\nhtttp = []\n")
    assert [where.find(sealed).http for _ in range(3)] == [("127.0.0.1", 16925)] * 3
    assert capsys.readouterr().err.count("listen.htttp: unknown key") == 1


def test_another_configuration_that_cannot_be_read_is_an_error(sealed: Path, tmp_path: Path) -> None:
    """The file that somebody named is meant."""
    with pytest.raises(ConfigError, match="cannot be read"):
        where.find(tmp_path / "other.toml")
