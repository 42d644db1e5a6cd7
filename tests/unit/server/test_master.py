"""The master begins servers, whatever the kernel has and whatever there is too little of."""

from __future__ import annotations

import subprocess
import sys

import pytest

_MASTER = """
import contextlib, errno, os, signal, socket, threading, time
from agent.server import crew, master, words, work

def run(link, sockets, **_):
    ours.close()
    link.sendall(b"here")
    if link.recv(1) == b"-":
        os.closerange(3, 99)  # what the master watches, too
        signal.pause()

work.run = run
ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.settimeout(10)
listening = socket.create_server(("127.0.0.1", 0))
thread = threading.Thread(target=master.Master(its).run)

def server():
    while True:
        said, fds, _, _ = socket.recv_fds(ours, 64, 1)
        if not said.startswith(words.ENDED):
            break
    assert said.split()[:1] == [words.LINK] and int(said.split()[1]), said
    link = socket.socket(fileno=fds[0])
    link.settimeout(10)
    assert link.recv(9) == b"here"
    return link

def begin():
    thread.start()
    socket.send_fds(ours, [words.GIVEN], [listening.fileno()])
    ours.send(words.LISTEN)
    return server()

def end():
    ours.send(words.STOP)
    thread.join(10)
    print("ended" if not thread.is_alive() else "goes on", flush=True)
    os._exit(0)
"""

_CASES = {
    "a successor": "begin().close(); server(); end()",
    "one that had every accept wait": """
link = begin()
os.set_blocking(listening.fileno(), True)  # by its own descriptor: all who have the socket share that
link.close()
server()
assert not os.get_blocking(listening.fileno())
end()
""",
    "a kernel without pidfd_open": "os.pidfd_open = None; begin().close(); server(); end()",
    "no process to be had": """
fork, missing = os.fork, [OSError(errno.EAGAIN, "none"), OSError(errno.ENOMEM, "none")]
def scarce():
    if missing:
        raise missing.pop()
    return fork()
os.fork = scarce
begin()
assert not missing
end()
""",
    "more sockets than one message takes": """
def run(link, sockets, **_):
    link.sendall(b"here" if len({one.fileno() for one in sockets}) == 131 else b"few")
    signal.pause()
work.run = run
for _ in range(2):
    socket.send_fds(ours, [words.GIVEN], [listening.fileno()] * words.MOST_SOCKETS)
socket.send_fds(ours, [words.GIVEN], [listening.fileno()] * 2)
begin()
end()
""",
    "a log that hangs": """
reader, writer = os.pipe()
os.set_blocking(writer, False)
try:
    while True:
        os.write(writer, bytes(65536))
except BlockingIOError:
    pass
os.set_blocking(writer, True)
os.dup2(writer, 2)
left = [True]
run = work.run
def fails(link, sockets, **_):
    link.sendall(b"here")
    raise ValueError("of the first")
work.run = fails
thread.start()
socket.send_fds(ours, [words.GIVEN], [listening.fileno()])
ours.send(words.LISTEN)
server(), server(), server()
end()
""",
    "one that would write to the agent's log, or end it": """
log, journal = socket.socketpair()
journal.settimeout(10)
os.dup2(log.fileno(), 2)  # as the service manager gives it: who shuts it down does so for all who have it
honest = run
def run(link, sockets, **_):
    with contextlib.suppress(OSError):
        socket.socket(fileno=os.dup(2)).shutdown(socket.SHUT_WR)
    os.write(2, b'{"event": "of the agent"}')
    honest(link, sockets)
work.run = run
begin().close()
assert journal.recv(99) == b'server: {"event": "of the agent"}' + bytes([10])
os.write(2, b"ours")
assert journal.recv(99) == b"ours"
server()
end()
""",
    "one that only seems to have ended": "begin().send(b'-'); server(); end()",
    "one that ends as soon as it is begun": """
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
crew.PAUSE_SECONDS = 0.001
def run(link, sockets, **_):
    os._exit(1)
work.run = run
thread.start()
socket.send_fds(ours, [words.GIVEN], [listening.fileno()])
ours.send(words.LISTEN)
said = b""
while not said.startswith(words.FAILING):
    said, fds, _, _ = socket.recv_fds(ours, 64, 1)
    for fd in fds:
        os.close(fd)
assert said == words.number(words.FAILING, 20)
end()
""",
    "a controller that ended unheard": """
begin().close()  # its successor's link is never read
time.sleep(0.5)
ours.close()
thread.join(10)
print("ended" if not thread.is_alive() else "goes on", flush=True)
os._exit(0)
""",
}


_UNIT = """
import errno, os, signal, socket, threading
from agent.host import confine, systemd
from agent.server import crew, master, words, work
from agent.server.controllers import ControllerSocket

begun, begins = os.pipe()

def run(link, sockets, *, parent, **_):
    confine.end_with_parent(parent)
    os.write(begins, b"%d " % os.getpid())
    signal.pause()

work.run = run
listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listening.bind("")
listening.listen()
control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
control.settimeout(10)
control.bind(words.NAME + b"%d" % os.getpid())
control.connect(listening.getsockname())
kept = os.memfd_create("kept")
os.write(kept, b"of before")
workers = socket.create_server(("127.0.0.1", 0))
connecting = ControllerSocket(listening, {os.getuid()})
name = f"credential-agent-test-{os.getpid()}"
notifier = systemd.Notifier("@" + name)
started = master.Master(connecting=connecting, sockets=[workers], notifier=notifier, stored={"snapshot": kept})
threading.Thread(target=started.run, daemon=True).start()
said = []

def hear(until):
    while not said or not said[-1].startswith(until):
        word, fds, _, _ = socket.recv_fds(control, 64, 1)
        said.append(word)
        for fd in fds:
            os.close(fd)
"""


def test_a_controller_knows_of_each_server_before_it_hears_that_its_word_has_come() -> None:
    """Also of one that began between its connection and its first word, with what was kept: that may be withdrawn."""
    case = """
hear(words.AT)
pid = os.read(begun, 99).strip()
control.send(words.SNAPSHOT)
control.send(words.LISTEN)
hear(words.HAD)
assert words.ALIVE + b" " + pid in said, said
hear(words.LINK)
assert said[-1] == words.LINK + b" " + pid, said
hear(words.LINK + b" ")
print("known", flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", _UNIT + case], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("known\n", "")


@pytest.mark.parametrize("of_before", [False, True])
def test_a_controller_of_before_is_told_nothing_that_it_does_not_read(*, of_before: bool) -> None:
    """It goes on where only the master is of the version that was installed since, and cuts off one that says more."""
    case = """
hear(words.AT)
print(any(word.startswith(words.ROOM) for word in said), flush=True)
os._exit(0)
"""
    unit = _UNIT.replace('control.bind(words.NAME + b"%d" % os.getpid())\n', "") if of_before else _UNIT
    done = subprocess.run([sys.executable, "-c", unit + case], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == (f"{not of_before}\n", "")


def test_a_controller_hears_that_its_file_was_lost_on_the_way() -> None:
    """There was no descriptor for it: nothing is kept then, of before neither, and it is to give it again."""
    case = """
hear(words.AT)
receive = socket.recv_fds
def scarce(sock, *rest):
    said, fds, flags, name = receive(sock, *rest)
    if said == words.SNAPSHOT:
        os.close(fds.pop())
        flags |= socket.MSG_CTRUNC
    return said, fds, flags, name
socket.recv_fds = scarce
given = os.memfd_create("given")
os.write(given, b"served now")
socket.send_fds(control, [words.SNAPSHOT], [given])
hear(words.LACKS)
assert said[-1] == words.number(words.LACKS, 1), said
assert not started.may_begin()  # nothing of before is begun with
socket.recv_fds = receive
socket.send_fds(control, [words.SNAPSHOT], [given])
hear(words.HAD)
assert said[-1] == words.number(words.HAD, 2) and started.may_begin(), said
print("told", flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", _UNIT + case], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("told\n", "")


def test_what_a_controller_before_gave_is_for_no_server_of_this_one() -> None:
    """It may be withdrawn. A server that this one has asked for begins with what it gave; without it, with the newest."""
    case = """
lines = os.fdopen(begun, "rb")

def next_one():
    pid, linked, *kept = lines.readline().split(b",")
    return int(pid), bool(int(linked)), [one.strip() for one in kept if one.strip()]

hear(words.AT)
assert next_one()[1:] == (False, [b"of before"])
control.send(words.LISTEN)
first, *found = next_one()
assert found == [True, []], found
given = os.memfd_create("given")
os.write(given, b"of now")
socket.send_fds(control, [words.SNAPSHOT], [given])
hear(words.HAD)
os.kill(first, signal.SIGKILL)
second, *found = next_one()
assert found == [True, [b"of now"]], found
control.shutdown(socket.SHUT_RDWR)  # each that was begun has it, too
os.kill(second, signal.SIGKILL)
_, *found = next_one()
assert found == [False, [b"of now"]], found
print("so", flush=True)
os._exit(0)
"""
    unit = _UNIT.replace("parent, **_", "parent, kept, **_").replace(
        'b"%d " % os.getpid()', 'b"%d,%d,%s\\n" % (os.getpid(), link is not None, b",".join(kept))'
    )
    done = subprocess.run([sys.executable, "-c", unit + case], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("so\n", "")


def test_a_service_manager_that_hears_nothing_just_now_is_told_again() -> None:
    """Its queue is full, say, because it reloads itself: it would end a unit that is never ready, and workers wait."""
    case = """
hear(words.AT)  # it runs, and nobody has heard it
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
    manager.settimeout(20)
    manager.bind(chr(0) + name)
    heard = b""
    while b"READY=1" not in heard:
        heard = manager.recv(4096)
print("heard", flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", _UNIT + case], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("heard\n", "")


def test_a_server_has_nothing_that_the_controller_is_yet_to_get() -> None:
    """By the controller's end of another server's link it could tell that what it is to serve."""
    case = """
def run(link, sockets, *, parent, **_):
    confine.end_with_parent(parent)
    os.write(begins, b"%d %d " % (os.getpid(), len(os.listdir("/proc/self/fd"))))
    signal.pause()
work.run = run
send = socket.send_fds
def scarce(sock, said, *rest):
    if said[0].startswith(words.LINK + b" "):
        raise OSError(errno.ENOBUFS, "none")
    return send(sock, said, *rest)
socket.send_fds = scarce
hear(words.AT)
control.send(words.LISTEN)
counts = []
for _ in range(4):
    pid, count = map(int, os.read(begun, 99).split())
    counts.append(count)
    os.kill(pid, signal.SIGKILL)
assert len(set(counts[1:])) == 1, counts
print("the same", flush=True)
os._exit(0)
"""
    unit = _UNIT.replace('stored={"snapshot": kept}', "stored={}").replace('os.write(kept, b"of before")', "")
    done = subprocess.run([sys.executable, "-c", unit + case], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("the same\n", "")


@pytest.mark.parametrize("case", _CASES)
def test_a_server_is_begun_and_followed(case: str) -> None:
    """Each has a successor, and the end is heard."""
    # From Python 3.12 on, who forks beside a thread is warned: here the master is one, so that the test is beside it.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", _MASTER + _CASES[case]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("ended\n", "")
