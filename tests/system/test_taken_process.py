"""A process that answers workers is taken over, without a service manager: what each may do then, as a table.

The same program is tried within the booted unit, in :mod:`tests.system.test_units`, where nothing at all is left.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.system.harness import NOBODY

CHILD = """
import contextlib, os, signal, socket, sys
from agent.host import systemd
from agent.server import starting, words
from agent.snapshot.frames import frame_of, frame_of_snapshot
from agent.snapshot.messages import Tell
from tests.fakes.view import FakeView
from tests.system import probe_process
os.setgroups([])
os.setgid({user})
os.setuid({user})
systemd.harden()
data = FakeView().data()
probe_process.install({{"files": [{key!r}, "/etc/passwd"], "paths": [{path!r}], "names": [{name!r}], "pids": [os.getpid()],
                       "x32": [2, 41, 57, 59, 520]}})
ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
parent = os.getpid()
if not os.fork():
    ours.close()
    starting.main(its.detach(), parent)
    os._exit(0)
its.close()
ours.settimeout(60)
workers = socket.create_server(("127.0.0.1", 0))
socket.send_fds(ours, [words.GIVEN], [workers.fileno()])
file = os.memfd_create("snapshot")
os.write(file, data)
socket.send_fds(ours, [words.SNAPSHOT], [file])
ours.send(words.number(words.LISTEN, words.TWO))
links = {{}}
while len(links) < 2:
    said, fds, _, _ = socket.recv_fds(ours, 4096, 1)
    word, _, pid = said.partition(b" ")
    if fds:
        links[int(pid)] = socket.socket(fileno=fds[0])
        links[int(pid)].sendall(frame_of_snapshot(data))
        links[int(pid)].settimeout(0.2)
        heard = b""
        while b"counts" not in heard:  # it answers: it has tried
            links[int(pid)].sendall(frame_of(Tell()))
            with contextlib.suppress(TimeoutError):
                heard += links[int(pid)].recv(999)
for pid in links:
    os.kill(pid, signal.SIGKILL)
for _ in links:
    while not socket.recv_fds(ours, 4096, 1)[0].startswith(words.ENDED):
        pass
os._exit(0)
"""


def kinds(said: str) -> dict[str, dict[str, list[str]]]:
    """By process, and by kind, what was not refused; of those only that have tried to the end."""
    found: dict[str, dict[str, list[str]]] = {}
    ended = set()
    for role, what in re.findall(r"probe ([a-z-]+): (.*)", said):
        found.setdefault(role, {})
        if what == "end":
            ended.add(role)
        else:
            kind, _, rest = what.partition(": ")
            found[role].setdefault(kind, []).append(rest)
    return {role: rows for role, rows in found.items() if role in ended}


@pytest.mark.root
def test_without_a_unit_who_parses_may_do_nothing_but_answer() -> None:
    """It signals nobody of its own user either. The master, which parses nothing, has that user's rights, but no program."""
    if os.geteuid():
        pytest.skip("only root becomes another user")
    with tempfile.TemporaryDirectory(prefix="p") as directory:
        key = Path(directory) / "worker.jwk"
        key.write_text("a key")
        for one in (Path(directory), key):
            os.chown(one, NOBODY, NOBODY)
        code = CHILD.format(user=NOBODY, key=str(key), path="/run/systemd/private", name="nobody")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    found = kinds(done.stderr)
    assert found["server"] == found["stand-by"] == {}, done.stderr
    assert {"files", "network", "processes"} <= set(found["master"]), "nothing was tried"
    assert not {"programs", "io_uring", "x32"} & set(found["master"]), done.stderr
