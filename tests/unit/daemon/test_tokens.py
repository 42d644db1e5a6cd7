"""The key of the EC2 session tokens: some clients never drop a token that turned invalid."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest
import structlog

from agent.core.secret import Secret
from agent.daemon import handover
from agent.daemon.tokens import SESSION_KEY_BYTES, session_token_key, written_token
from agent.host import files
from agent.host.files import read_plain

FILE = "imds.key"


def test_it_is_the_same_after_a_stop_and_a_start(tmp_path: Path) -> None:
    """The state directory has it, for us alone; each machine makes its own."""
    made = session_token_key(tmp_path, None)
    assert len(made) == SESSION_KEY_BYTES
    assert session_token_key(tmp_path, None) == made
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    (tmp_path / "other").mkdir()
    assert session_token_key(tmp_path / "other", None) != made


def test_what_the_process_before_used_counts_whatever_the_disk_says(tmp_path: Path) -> None:
    """The disk may be away, or a backup: the tokens that clients hold now are of the key that was handed over."""
    on_disk = session_token_key(tmp_path, None)
    handed = handover.encoded(b"h" * SESSION_KEY_BYTES)
    assert session_token_key(tmp_path, handed) == b"h" * SESSION_KEY_BYTES
    assert session_token_key(tmp_path / "gone", handed) == b"h" * SESSION_KEY_BYTES
    for wrong in (handover.encoded(b"short"), handover.encoded(b"h" * (SESSION_KEY_BYTES + 1)), Secret("?")):
        assert session_token_key(tmp_path, wrong) == on_disk


@pytest.mark.parametrize("written", [b"", b"short", b"x" * (SESSION_KEY_BYTES + 1), b"x" * 65])
def test_a_key_of_another_length_is_none(tmp_path: Path, written: bytes) -> None:
    """A file that was cut off would make tokens that anybody can guess: another key takes its place."""
    (tmp_path / FILE).write_bytes(written)
    made = session_token_key(tmp_path, None)
    assert len(made) == SESSION_KEY_BYTES
    assert (tmp_path / FILE).read_bytes() == made


def test_a_disk_that_takes_nothing_keeps_no_worker_from_its_tokens(tmp_path: Path) -> None:
    """It costs clients their tokens at the next restart, and is said."""
    with structlog.testing.capture_logs() as logs:
        assert len(session_token_key(tmp_path / "gone", None)) == SESSION_KEY_BYTES
    assert [line["event"] for line in logs] == ["imds_key.not_written"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("times", [1, 99])
def test_a_key_that_the_system_refuses_to_read_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, number: int
) -> None:
    """It is read again; and where that does not help either, the next start has it: tokens outlive a disk that errs."""
    made, failed = session_token_key(tmp_path, None), list[Path]()

    def failing(path: Path, most: int) -> bytes:
        if len(failed) < times:
            failed.append(path)
            raise OSError(number, "refused")
        return read_plain(path, most)

    with monkeypatch.context() as patch:
        patch.setattr(files, "read_plain", failing)
        assert (session_token_key(tmp_path, None) == made) is (times == 1)
    assert session_token_key(tmp_path, None) == made


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a" * 32, True),
        ("a" * 128 + "\n", True),
        ("_-" * 20, True),
        ("a" * 31, False),
        ("a" * 129, False),
        ("a" * 31 + "\u00e9", False),
        ("a" * 20 + " " + "a" * 20, False),
        ("a" * 32 + "\nb", False),
        ("", False),
    ],
)
def test_a_bearer_token_is_a_word_that_a_header_can_have(tmp_path: Path, text: str, found: bool) -> None:
    """What an operator has put there by mistake is not what workers send, nor a short word that can be guessed."""
    path = tmp_path / "token"
    path.write_text(text)
    said = written_token(path)
    assert (said.reveal() if said is not None else None) == (text.strip() if found else None)
    path.unlink()
    assert written_token(path) is None
