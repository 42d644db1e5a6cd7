"""Which commands are done: whoever asks for something is told what was done after he asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.host.heard import APPLY, CLOSE, RELOAD, SIGNALS, Heard, heeds


def test_a_plan_answers_what_was_heard_before_it_was_begun_and_nothing_later() -> None:
    """The plan under way read the configuration before; only the next one does what is asked now."""
    heard = Heard(1.0)
    heard.begin()
    assert heard.done == {CLOSE: 1.0}
    heard.end()
    assert heard.done == {CLOSE: 1.0, APPLY: 1.0, RELOAD: 1.0}
    heard.begin()
    heard.hear({APPLY}, 2.0)
    heard.end()
    assert heard.done[APPLY] == 1.0
    heard.begin()
    heard.hear({APPLY, RELOAD}, 3.0)
    heard.end()
    assert (heard.done[APPLY], heard.done[RELOAD]) == (2.0, 1.0)
    heard.begin()
    heard.end()
    assert (heard.done[APPLY], heard.done[RELOAD]) == (3.0, 3.0)


def test_closing_waits_for_no_plan() -> None:
    """It is done when it was tried; no plan that ends meanwhile answers it."""
    heard = Heard(1.0)
    heard.begin()
    heard.hear({CLOSE}, 2.0)
    heard.end()
    assert heard.done[CLOSE] == 1.0
    heard.close()
    assert heard.done == {CLOSE: 2.0, APPLY: 1.0, RELOAD: 1.0}


@pytest.mark.parametrize(
    ("how", "heeded"),
    [
        ("signal.pthread_sigmask(signal.SIG_BLOCK, numbers)", True),
        ("[signal.signal(number, lambda *_: None) for number in numbers]", True),
        ("[signal.signal(number, signal.SIG_IGN) for number in numbers]", False),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, numbers[1:])", False),
        ("pass", False),
    ],
)
def test_a_process_is_told_nothing_that_would_end_it_or_be_lost(how: str, *, heeded: bool) -> None:
    """The kernel says what it heeds, one that blocks it for a while too; who is gone heeds nothing."""
    code = f"import signal\nnumbers = {[int(number) for number in SIGNALS.values()]}\n{how}\nprint(flush=True)\ninput()"
    argv = [sys.executable, "-I", "-S", "-c", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert heeds(process.pid) is heeded
        process.kill()
    assert not heeds(process.pid)


def test_what_the_kernel_does_not_say_is_not_heeded(tmp_path: Path) -> None:
    """A table of another shape."""
    (tmp_path / str(os.getpid())).mkdir()
    (tmp_path / str(os.getpid()) / "status").write_text("SigBlk:\tnone\n")
    assert not heeds(os.getpid(), tmp_path)
