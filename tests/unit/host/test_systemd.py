"""systemd's protocols: sockets passed in, notification, the descriptor store, hardening."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path

import pytest

from agent.core.errors import HostError
from agent.host import notifying
from agent.host.systemd import NEXT, Notifier, passed, peek, watchdog_seconds
from tests.fakes.full_queue import FullQueue


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd listens with."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """This process has as many as it may have; what is open stays so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def heard(manager: socket.socket) -> tuple[list[str], list[int]]:
    data, ancillary, _, _ = manager.recvmsg(4096, socket.CMSG_SPACE(16))
    fds = array.array("i")
    for _, kind, value in ancillary:
        assert kind == socket.SCM_RIGHTS
        fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
    return data.decode().split("\n"), list(fds)


def give(*things: int) -> int:
    """Put descriptors side by side, as systemd does; the first number."""
    first = 200
    for number, descriptor in enumerate(things, first):
        os.dup2(descriptor, number)
    return first


def test_sockets_come_by_name_in_order_and_are_not_inherited() -> None:
    """A socket unit's name finds its listeners, in the order of the file, non-blocking and closed on exec."""
    with socket.socket() as one, socket.socket() as two, socket.socket(socket.AF_UNIX) as three:
        one.bind(("127.0.0.1", 0))
        first = give(one.fileno(), two.fileno(), three.fileno())
        environ = {"LISTEN_PID": "7", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "http:http:control"}
        found = passed(environ, pid=7, first=first)
        try:
            assert [s.fileno() for s in found.sockets["http"]] == [first, first + 1]
            assert found.sockets["http"][0].getsockname() == one.getsockname()
            assert found.sockets["control"][0].family is socket.AF_UNIX
            for group in found.sockets.values():
                for sock in group:
                    assert not sock.getblocking()
                    assert not os.get_inheritable(sock.fileno())
        finally:
            for group in found.sockets.values():
                for sock in group:
                    sock.close()


@pytest.mark.parametrize("environ", [{}, {"LISTEN_PID": "8", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}])
def test_a_parents_sockets_are_not_ours(environ: dict[str, str]) -> None:
    """Variables that name another process were inherited and mean nothing here."""
    assert not passed(environ, pid=7).sockets


@pytest.mark.parametrize(
    "environ",
    [
        {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "http"},
        {"LISTEN_FDS": "-1"},
        {"LISTEN_FDS": "99999"},
        {"LISTEN_FDS": "one"},
        {"LISTEN_FDS": "\u0661"},
    ],
)
def test_variables_that_contradict_themselves_are_an_error(environ: dict[str, str]) -> None:
    """A wrong count or number of names is said, not guessed around."""
    with pytest.raises(HostError):
        passed({"LISTEN_PID": "7", **environ}, pid=7)


def test_a_promised_descriptor_that_is_not_there_is_an_error() -> None:
    """Better no start than a listener that nobody listens at."""
    with pytest.raises(HostError, match="promised"):
        passed({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, pid=7, first=3000)


def test_what_is_kept_comes_back_whole_and_sealed(manager: socket.socket) -> None:
    """Bytes given to the store reach the next process unchanged, and nobody can change them in between."""
    notifier = Notifier(manager.getsockname())
    data = os.urandom(300_000)
    assert notifier.keep("credentials", data)
    lines, (spare,) = heard(manager)
    assert lines == ["FDSTORE=1", "FDNAME=credentials-next"]
    assert heard(manager) == (["FDSTOREREMOVE=1", "FDNAME=credentials"], [])
    lines, (descriptor,) = heard(manager)
    assert lines == ["FDSTORE=1", "FDNAME=credentials"]
    assert heard(manager) == (["FDSTOREREMOVE=1", "FDNAME=credentials-next"], [])
    assert os.fstat(spare).st_ino != os.fstat(descriptor).st_ino  # systemd takes no descriptor twice
    os.close(spare)
    try:
        with pytest.raises(PermissionError):
            os.write(descriptor, b"x")
        first = give(descriptor)
    finally:
        os.close(descriptor)
    environ = {"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "credentials"}
    found = passed(environ, pid=7, first=first)
    assert found.take("credentials") == data
    assert found.take("nothing") is None


def test_a_kept_file_that_is_too_long_is_an_error() -> None:
    """Another process's mistake does not fill our memory."""
    descriptor = os.memfd_create("long")
    os.write(descriptor, b"x" * 11)
    found = passed({"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}, pid=7, first=give(descriptor))
    os.close(descriptor)
    with pytest.raises(HostError, match="at most 10 bytes"):
        found.take("a", max_bytes=10)


def test_notifications_are_systemds_own_words(manager: socket.socket) -> None:
    """Readiness, watchdog, reload and stop in the assignments of sd_notify(3)."""
    notifier = Notifier(manager.getsockname())
    notifier.ready("aws: role")
    assert heard(manager)[0] == ["READY=1", "STATUS=aws: role"]
    notifier.starts_within(930.5)
    assert heard(manager)[0] == ["EXTEND_TIMEOUT_USEC=930500000"]
    notifier.alive()
    assert heard(manager)[0] == ["WATCHDOG=1"]
    notifier.reloading(monotonic_seconds=12.5)
    assert heard(manager)[0] == ["RELOADING=1", "MONOTONIC_USEC=12500000"]
    notifier.stopping()
    assert heard(manager)[0] == ["STOPPING=1"]


def test_an_abstract_address_is_understood() -> None:
    """A leading @ is how systemd writes the abstract namespace."""
    name = f"credential-agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        assert Notifier(f"@{name}").alive()


def test_a_deaf_manager_is_no_error(tmp_path: Path) -> None:
    """Nobody listens, or nobody asked us to tell: serving goes on."""
    assert not Notifier(None).ready("x")
    assert not Notifier(str(tmp_path / "nothing")).alive()
    assert not Notifier(None).keep("a", b"b")


def test_a_place_in_a_queue_that_others_keep_full_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who only looks whether there is room finds none, since whoever fills the queue takes each place at once."""
    if os.geteuid():
        pytest.skip("needs root, to see what a thread waits for")
    monkeypatch.setattr(notifying, "WAIT_SECONDS", 20.0)
    with FullQueue(tmp_path / "n") as manager, ThreadPoolExecutor(1) as pool:
        thread = pool.submit(threading.get_native_id).result()
        told = pool.submit(Notifier(str(manager.path)).alive)
        while "unix" not in Path(f"/proc/self/task/{thread}/wchan").read_text() and not told.done():
            pass
        assert not told.done()
        manager.read_until("WATCHDOG=1")
        assert told.result()


def test_a_manager_that_reads_nothing_is_not_waited_for(tmp_path: Path) -> None:
    """What is told is lost, and whoever tells goes on."""
    with FullQueue(tmp_path / "n") as manager:
        assert not Notifier(str(manager.path)).alive()


def test_without_a_descriptor_nothing_is_told_and_nothing_raised(manager: socket.socket) -> None:
    """The loop that feeds the watchdog, and the first process of what answers workers, would end by it."""
    notifier = Notifier(manager.getsockname())
    with no_descriptor_left():
        told = notifier.alive(), notifier.forget("a"), notifier.keep("a", b"b")
    assert told == (False, False, False)
    assert notifier.alive()


def test_a_status_cannot_smuggle_an_assignment(manager: socket.socket) -> None:
    """A line break in a status would be another message to systemd."""
    with pytest.raises(ValueError, match="one assignment"):
        Notifier(manager.getsockname()).status("fine\nMAINPID=1")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_ours_or_nobodys(environ: dict[str, str], seconds: float | None) -> None:
    """Only what names this process, or no process, is a watchdog of ours."""
    assert watchdog_seconds(environ, pid=7) == seconds


def test_a_hardened_process_has_no_core_and_no_readers() -> None:
    """After hardening the process is not dumpable and its core limit is zero."""
    code = (
        "import ctypes, resource; from agent.host.systemd import harden; harden(); harden();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 (0, 0)"


def test_what_is_kept_is_looked_at_without_being_taken(tmp_path: Path) -> None:
    """The newest first, what is too long left out, nothing closed; variables of another process say nothing."""
    files: list[BufferedReader] = []
    for text in (b"old", b"new", b"x" * 9):
        path = tmp_path / str(len(files))
        path.write_bytes(text)
        files.append(path.open("rb"))
    first = give(*(file.fileno() for file in files))
    environ = {"LISTEN_PID": "7", "LISTEN_FDS": "3", "LISTEN_FDNAMES": f"kept:kept{NEXT}:kept"}
    try:
        assert peek(environ, "kept", pid=7, max_bytes=8, first=first) == [b"new", b"old"]
        assert peek(environ, "kept", pid=7, max_bytes=9, first=first) == [b"new", b"old", b"x" * 9]
        assert peek(environ, "other", pid=7, max_bytes=8, first=first) == []
        assert peek(environ, "kept", pid=8, max_bytes=8, first=first) == []
        assert peek({}, "kept", pid=7, max_bytes=8, first=first) == []
        assert os.pread(first, 3, 0) == b"old"
    finally:
        for number, file in enumerate(files, first):
            os.close(number)
            file.close()
