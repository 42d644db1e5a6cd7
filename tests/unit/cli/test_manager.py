"""What a command that gets no answer says of the unit."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cli import manager


@pytest.mark.parametrize(
    ("status", "words"),
    [("238", "/var/lib/credential-agent"), ("217", "systemd-sysusers"), ("78", "credential-agent check")],
)
def test_the_hint_is_for_who_failed(status: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd itself could not start the program (a directory, the user), `check` would find nothing."""
    shown = (
        f"LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nResult=exit-code\nExecMainStatus={status}\n"
    )
    for name, text in (("systemctl", shown), ("journalctl", "")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n/usr/bin/printf %s '{text}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = manager.look()
    assert found is not None
    assert words in found.hint
    assert status in found.said
