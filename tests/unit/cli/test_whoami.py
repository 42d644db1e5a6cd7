"""Who answers at the workers' endpoint may be anybody who was there first: what he writes is shown, and nothing more."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli import ask, doctor, pubkey, report, whoami
from agent.core.errors import HostError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HTTP = ("127.0.0.1", 16925)


def test_what_others_wrote_commands_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Names and reasons, and the errors that quote them, hold neither an escape nor a line of their own."""
    ends = {"horizon": None, "expires_at": None}
    aws = {
        "state": "live",
        "origin": "bundle",
        "identity": "a\x1b]0;x\x07\naws: b",
        "account_id": "\x9b2J",
        "why": None,
    }
    gcp = {"state": "absent", "origin": "none", "identity": None, "why": "\x1b[2J"}
    document = json.dumps({"clouds": {"aws": {**aws, **ends}, "gcp": {**gcp, **ends}}})
    monkeypatch.setattr(ask, "control", lambda *_, **__: ask.Answer(200, document.encode()))
    config = tmp_path / "config.toml"
    config.write_text("")
    shown = CliRunner().invoke(whoami.whoami, ["--config", str(config)], standalone_mode=False).output
    assert len(shown.splitlines()) == 3
    assert all(c.isprintable() or c == "\n" for c in shown)
    report(HostError("a\x1b[2J", hint="b\x9b"))
    assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().err)


@pytest.mark.parametrize("body", ["[]", '"x"', json.dumps({"expires_in": 10**30}), "[" * 100_000])
def test_an_answer_that_makes_no_sense_is_no_crash(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Another document than an SDK expects is told, or its end is not known."""

    def worker(*_: Any, **__: Any) -> ask.Answer:
        return ask.Answer(200, body.encode())

    monkeypatch.setattr(ask, "worker", worker)
    for ask_cloud in (whoami.ask_gcp, whoami.ask_aws):
        try:
            until = ask_cloud(HTTP, NOW)["until"]
        except HostError as error:
            until = None if "JSON" in error.message else error.message
        assert until is None


@pytest.mark.parametrize("command", ["whoami", "pubkey", "doctor"])
@pytest.mark.parametrize("courier", ["configured", "off"])
def test_the_couriers_socket_is_asked_where_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, courier: str
) -> None:
    """Who may not ask the control socket asks the couriers' own, at the path that the configuration gives it, if any."""
    path, elsewhere = tmp_path / "config.toml", tmp_path / "elsewhere.sock"
    said = elsewhere if courier == "configured" else courier
    path.write_text(f'[listen]\ncontrol = "{tmp_path}/control.sock"\ncourier = "{said}"\n')
    asked: list[str] = []

    def control(socket: Path, *_: Any, **__: Any) -> ask.Answer:
        asked.append(socket.name)
        raise ask.NotAllowedError("not for you")

    def worker(*_: Any, **__: Any) -> ask.Answer:
        raise HostError("nobody there")

    monkeypatch.setattr(ask, "control", control)
    monkeypatch.setattr(ask, "worker", worker)
    if command == "doctor":
        assert doctor.what_it_says(path).state == "denied"
    else:
        invoked = {"whoami": whoami.whoami, "pubkey": pubkey.pubkey}[command]
        result = CliRunner().invoke(invoked, ["--config", str(path)], standalone_mode=False)
        assert isinstance(result.exception, HostError)
    assert asked == ["control.sock", *(["elsewhere.sock"] if courier == "configured" else [])]
