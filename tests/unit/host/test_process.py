"""What a process uses, and that it is spared no more than others where it answers strangers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.host.process import Watched, usage

_SPARED = """
import ctypes, os
from pathlib import Path
from agent.host.process import give_up_precedence
score = Path("/proc/self/oom_score_adj")
before = score.read_text()
libc = ctypes.CDLL(None)
os.setresuid(65534, 65534, 65534)
libc.prctl(4, 0, 0, 0, 0)
if not os.fork():
    give_up_precedence(900)
    os._exit(0 if (score.read_text(), libc.prctl(3, 0, 0, 0, 0)) == ("900\\n", 0) else 1)
ended = os.waitstatus_to_exitcode(os.wait()[1])
print(ended, score.read_text() == before, before != "900\\n")
"""


def test_a_process_sees_the_same_of_itself_later() -> None:
    """What was opened once tells memory and time as they are now, also when nothing can be opened any more."""
    watched = Watched()
    try:
        before = watched.usage()
        held = bytearray(64 << 20)
        held[:: os.sysconf("SC_PAGE_SIZE")] = bytes(len(held[:: os.sysconf("SC_PAGE_SIZE")]))
        after, other = watched.usage(), usage()
        assert after.resident_bytes > before.resident_bytes + (32 << 20)
        assert abs(after.resident_bytes - other.resident_bytes) < 16 << 20
        assert after.cpu_seconds >= before.cpu_seconds >= 0
    finally:
        watched.close()


def test_of_one_that_has_ended_there_is_nothing() -> None:
    """No error, and no other process's figures under the number that is free again."""
    begun = [sys.executable, "-c", "print('there', flush=True); input()"]
    with subprocess.Popen(begun, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # until then the kernel may count no memory of it yet
        watched = Watched(process.pid)
        there = watched.usage().resident_bytes
        process.kill()
    gone = watched.usage().resident_bytes
    watched.close()
    assert there > gone == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_who_was_spared_gives_that_up() -> None:
    """Without a privilege, and though its own files in /proc are root's; whoever began it stays spared."""
    done = subprocess.run([sys.executable, "-c", _SPARED], capture_output=True, text=True, check=False)
    assert done.stdout == "0 True True\n", done.stderr


def test_who_was_not_spared_stays_as_it_is() -> None:
    """One that is to be ended first is not made to live longer."""
    code = (
        "from agent.host.process import give_up_precedence; from pathlib import Path;"
        "score = Path('/proc/self/oom_score_adj'); score.write_text('300'); give_up_precedence(); print(score.read_text())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 300
    assert int(Path("/proc/self/oom_score_adj").read_text()) != 300
