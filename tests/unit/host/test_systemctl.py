"""What is asked of systemd, by a program in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.host import systemctl, tools

UNIT = "credential-agent-redirect.service"


@pytest.mark.parametrize(
    ("jobs", "restarting"),
    [
        ("", False),
        (f"12 {UNIT} restart running", True),
        (f"12 {UNIT} stop running", False),
        (f"12 {UNIT} reload running\n13 {UNIT} restart waiting", True),
        ("12 other.service restart running", False),
    ],
)
@pytest.mark.parametrize("killed", [0, 1, 3])
def test_what_ends_a_unit_may_end_its_question_and_the_answer_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str, restarting: bool, killed: int
) -> None:
    """Whether a stop is a restart is told by systemd's jobs, asked again where a signal ended the asking."""
    program, asked = tmp_path / "systemctl", tmp_path / "asked"
    program.write_text(
        f"#!/bin/sh\necho >> '{asked}'\n[ $(wc -l < '{asked}') -gt {killed} ] || kill -TERM $$\ncat <<'JOBS'\n{jobs}\nJOBS\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(tools, "SEARCH", f"{tmp_path}:/usr/bin:/bin")
    assert systemctl.is_restarting(UNIT) is restarting
    assert len(asked.read_text().splitlines()) == killed + 1


def test_in_doubt_it_is_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd gives no answer, or every question is killed, workers are refused."""
    program = tmp_path / "systemctl"
    monkeypatch.setattr(tools, "SEARCH", str(tmp_path))
    assert not systemctl.is_restarting(UNIT)
    for text in ("exit 1", "kill -KILL $$"):
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        assert not systemctl.is_restarting(UNIT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("job@.service", ("system-job.slice",)),
        ("my-job@.service", (r"system-my\x2djob.slice",)),
        (r"a\x2db@*.service", (r"system-a\x5cx2db.slice",)),
        ("job@%i.service", ("system-job.slice",)),
        ("job@[12].service", ("system-job.slice",)),
        ("job@1.service", ()),
        ("job@a-b.service", ()),
        ("job.service", ()),
        ("job@.slice", ()),
        ("@.service", ()),
        ("job", ("job.slice", "job.service")),
        (" job.service\n", ("job.service",)),
        ("system.slice/job.service", ("job.service",)),
        ("/sys/fs/cgroup/a.slice/a-b.slice", ("a-b.slice",)),
        ("job.target", ("job.target.slice", "job.target.service")),
        ("a.slice/", ()),
        ("two words", ()),
        ("", ()),
        ("x" * 300, ()),
    ],
)
def test_what_names_no_unit_may_mean_some(text: str, expected: tuple[str, ...]) -> None:
    """A template or a pattern means the slice of all its instances, by the escaping of systemd.slice(5)."""
    assert systemctl.units_meant(text) == expected


@pytest.mark.parametrize(("said", "pid"), [("4711", 4711), ("0", 0), ("", 0)])
@pytest.mark.parametrize("runs", [True, False])
def test_the_main_process_of_a_unit_is_what_systemd_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, pid: int, *, runs: bool
) -> None:
    """Nobody is asked where it does not run."""
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\n[ "$*" = "show --property=MainPID --value {UNIT}" ] && echo "{said}"\n')
    program.chmod(0o755)
    monkeypatch.setattr(tools, "SEARCH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(systemctl, "runs", lambda: runs)
    assert systemctl.main_pid(UNIT) == (pid if runs else 0)


@pytest.mark.parametrize("runs", [True, False])
def test_a_failure_is_forgotten_where_systemd_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, runs: bool
) -> None:
    """Of that unit alone, and of nobody where there is none to ask."""
    program, asked = tmp_path / "systemctl", tmp_path / "asked"
    program.write_text(f"#!/bin/sh\necho \"$*\" >> '{asked}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(tools, "SEARCH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(systemctl, "runs", lambda: runs)
    systemctl.forget_failure(UNIT, seconds=30)
    assert (asked.read_text() if asked.exists() else "") == f"reset-failed {UNIT}\n" * runs
