"""What the holder of the rules says, and to whom."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from agent.host.reporting import WARNING, Reporter, fitting


def test_each_thing_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is wrong, what else is wrong with it, and that it no longer is: each when it changes, with its priority."""
    reporter = Reporter(tmp_path, None)
    for text in ("it broke", "it broke", "it broke anew", None, None):
        reporter.say("it", text)
    reporter.say("another", None)
    reporter.log(WARNING, "look")

    assert capfd.readouterr().err.splitlines() == [
        "<3>credential-agent: it broke",
        "<3>credential-agent: it broke anew",
        "<6>credential-agent: no longer: it broke anew",
        "<4>credential-agent: look",
    ]


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_at_either_kind_of_address(tmp_path: Path, *, abstract: bool) -> None:
    """sd_notify(3): a path, or a name that begins with @."""
    address = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{address[1:]}" if abstract else address)
        Reporter(tmp_path, address).notify("READY=1")

        assert manager.recv(100, socket.MSG_DONTWAIT) == b"READY=1"


def test_a_service_manager_that_does_not_listen_holds_up_nobody(tmp_path: Path) -> None:
    """No address, an address where nobody is, and a queue that is full."""
    Reporter(tmp_path, None).notify("WATCHDOG=1")
    Reporter(tmp_path, str(tmp_path / "nobody")).notify("WATCHDOG=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        reporter = Reporter(tmp_path, str(tmp_path / "notify"))
        while reporter.notify("WATCHDOG=1"):
            pass


def test_a_document_is_replaced_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With its mode whatever the umask, and what a run that was ended left does not stand in the way."""
    reporter = Reporter(tmp_path, None)
    (tmp_path / ".state.json.new").symlink_to(tmp_path / "elsewhere")
    for number in (1, 2):
        reporter.write("state.json", {"n": number}, mode=0o604)

    assert json.loads((tmp_path / "state.json").read_bytes()) == {"n": 2}
    assert (tmp_path / "state.json").stat().st_mode & 0o7777 == 0o604
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert capfd.readouterr().err == ""


def test_a_document_that_cannot_be_written_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A document that cannot be written is said once and raises nothing: who holds the rules goes on."""
    absent = tmp_path / "absent"
    reporter = Reporter(absent, None)
    reporter.write("state.json", {}, mode=0o644)
    reporter.write("state.json", {}, mode=0o644)
    absent.mkdir()
    reporter.write("state.json", {}, mode=0o644)

    said = f"{absent}/.state.json.new: cannot be written: no such file or directory"
    assert capfd.readouterr().err.splitlines() == [
        f"<3>credential-agent: {said}",
        f"<6>credential-agent: no longer: {said}",
    ]


def test_where_no_file_can_be_made_the_word_is_still_the_last_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full directory: what stands there is not left to say what was true before."""
    reporter = Reporter(tmp_path, None)
    reporter.write("state.json", {"state": "closed", "why": "the rules are being made"}, mode=0o644)
    (tmp_path / ".state.json.new" / "in the way").mkdir(parents=True)
    reporter.write("state.json", {"state": "led"}, mode=0o644)

    assert json.loads((tmp_path / "state.json").read_bytes()) == {"state": "led"}
    assert "cannot be written" in capfd.readouterr().err


@pytest.mark.parametrize("lines", [[], ["a"], ["a"] * 100, ["\x00" * 30, "b", "c"], ["x" * 5000, "y"]])
def test_what_fits_is_told_and_how_much_does_not(lines: list[str]) -> None:
    """In the order in which it is given, as long as JSON writes it; the rest is counted, and nothing passes for all."""
    for most in (0, 10, 100, 200, 100_000):
        found = fitting(lines, most)
        kept = [one for one in found if one in lines]
        assert kept == lines[: len(kept)]
        assert len(json.dumps(kept)) <= most + len("[]")
        more = len(lines) - len(kept)
        assert found == [*kept, *([f"and {more} more: see the journal"] if more else [])]
        assert not more or len(json.dumps([*kept, lines[len(kept)]])) + len(", ") > most
