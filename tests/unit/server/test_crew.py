"""One server answers and another stands by: which of them does what, and when, whatever ends or hangs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agent.server import crew

_CREW = """
import os, signal, socket, threading, time
from agent.server import crew, forked, master, words, work

def run(link, sockets, *, master, stands_by, **_):
    ours.close()
    os.close(0)
    if stands_by and second_ends.is_set():
        os._exit(1)
    signal.signal(signal.SIGUSR1, lambda *_: [forked.say_waiting(master) for _ in range(waits)])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    link.sendall(b"second" if stands_by else b"first")
    if not stands_by:
        forked.say_served(master)
    while True:
        said, _ = forked.hear(master)
        if said == forked.TAKE_OVER:
            forked.say_served(master)
            link.sendall(b"took over")
        elif said == forked.ASKED:
            forked.say_alive(master)
            link.sendall(b"asked")
        elif not said:
            return

second_ends = threading.Event()
waits = 1
work.run = run
ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.settimeout(30)
listening = socket.create_server(("127.0.0.1", 0))
thread = threading.Thread(target=master.Master(its).run, daemon=True)
links = {}

def hear():
    said, fds, _, _ = socket.recv_fds(ours, 64, 1)
    word, _, number = said.partition(b" ")
    if fds:
        links[int(number)] = socket.socket(fileno=fds[0])
        links[int(number)].settimeout(30)
    return word, int(number)

def begin(word=words.number(words.LISTEN, words.TWO)):
    thread.start()
    socket.send_fds(ours, [words.GIVEN], [listening.fileno()])
    ours.send(word)
    word, first = hear()
    assert word == words.LINK, word
    assert links[first].recv(99) == b"first"
    return first

def second():
    word, pid = hear()
    assert word == words.SECOND, word
    assert links[pid].recv(99) == b"second"
    return pid

def instead(ended, pid):
    assert sorted([hear(), hear()]) == sorted([(words.ENDED, ended), (words.INSTEAD, pid)])
    assert links[pid].recv(99) == b"took over"

def kill_at_the_next_fork(pid):
    forking, refused = os.fork, []
    def scarce():
        refused.append(1)
        if len(refused) == 1:
            os.kill(pid, signal.SIGKILL)
            raise OSError(11, "no process is to be had")
        return forking()
    os.fork = scarce

def end():
    ours.send(words.STOP)
    thread.join(30)
    print("ended" if not thread.is_alive() else "goes on", flush=True)
    os._exit(0)
"""

_CASES = {
    "the one that answers is killed": """
first, other = begin(), second()
for _ in range(3):
    os.kill(first, signal.SIGKILL)
    instead(first, other)
    first, other = other, second()
end()
""",
    "the one that stands by is killed": """
first, other = begin(), second()
os.kill(other, signal.SIGKILL)
assert hear() == (words.ENDED, other)
second()
end()
""",
    "those that take over end as soon as they have": """
crew.PAUSE_SECONDS = 0.5
first, other = begin(), second()
began = time.monotonic()
for _ in range(6):
    os.kill(first, signal.SIGKILL)
    instead(first, other)
    first, other = other, second()
# From the fourth on each is waited for: else as many would be begun as this machine can, for whoever ends them.
assert time.monotonic() - began >= 3 * crew.PAUSE_SECONDS
end()
""",
    "both are killed": """
first, other = begin(), second()
os.kill(other, signal.SIGKILL)
os.kill(first, signal.SIGKILL)
seen = []
while not seen or seen[-1][0] != words.LINK:
    seen.append(hear())
assert (words.ENDED, first) in seen and (words.ENDED, other) in seen, seen
assert links[seen[-1][1]].recv(99) == b"first"
second()
end()
""",
    "another controller's server comes": """
first, other = begin(), second()
ours.send(words.number(words.LISTEN, words.TWO))
seen = set()
while len(seen) < 6:
    seen.add(hear())
new = {word: number for word, number in seen if number not in (first, other)}
old = {(words.ENDED, first), (words.ENDED, other), (words.LINK, first), (words.SECOND, other)}
assert seen == {*old, *new.items()} and set(new) == {words.LINK, words.SECOND}, seen
assert links[new[words.LINK]].recv(99) == b"first"
end()
""",
    "it hangs, and connections wait": """
crew.ALIVE_SECONDS = 0.2
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
first, other = begin(), second()
os.kill(first, signal.SIGSTOP)
os.kill(other, signal.SIGUSR1)  # connections wait
instead(first, other)
second()
end()
""",
    "the one that takes over hangs": """
crew.ALIVE_SECONDS = crew.TAKES_OVER_SECONDS = 0.2
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
first, other = begin(), second()
os.kill(other, signal.SIGSTOP)
os.kill(first, signal.SIGKILL)
assert sorted([hear(), hear()]) == sorted([(words.ENDED, first), (words.INSTEAD, other)])
assert hear() == (words.ENDED, other)
word, new = hear()
assert word == words.LINK and links[new].recv(99) == b"first", word
end()
""",
    "connections wait, and it is alive": """
crew.ALIVE_SECONDS, forked._DOUBTS_SECONDS = 10.0, 0.0
first, other = begin(), second()
for _ in range(3):  # what it has said is heeded, or it would not be asked again, but ended
    os.kill(other, signal.SIGUSR1)  # connections wait
    assert links[first].recv(99) == b"asked"
os.kill(first, signal.SIGKILL)
instead(first, other)  # until then it was the one that answers
end()
""",
    "connections wait, and it was said while nobody heard": """
waits = 50
first, other = begin(), second()
os.kill(other, signal.SIGUSR1)  # all of it is heard at once: the master has stood still
assert links[first].recv(99) == b"asked"
os.kill(first, signal.SIGKILL)
instead(first, other)
end()
""",
    "those that stand by end as soon as they are begun": """
crew.PAUSE_SECONDS = 0.05
first = begin(words.number(words.LISTEN, 1))  # that none stands by
second_ends.set()
began = time.monotonic()
ours.send(words.number(words.LISTEN, words.TWO))
seen = []
while len([word for word, _ in seen if word == words.SECOND]) < 25:
    seen.append(hear())
assert time.monotonic() - began >= 20 * crew.PAUSE_SECONDS  # as above
assert not [word for word, _ in seen if word == words.FAILING], seen
assert len([word for word, _ in seen if word == words.LINK]) == 2, seen  # the first, linked anew, and its successor
end()
""",
    "the one that answers ends while another controller's server begins": """
first, other = begin(), second()
former = dict(links)
kill_at_the_next_fork(first)
ours.send(words.number(words.LISTEN, words.TWO))
seen = []
while not seen or seen[-1][0] != words.INSTEAD:
    seen.append(hear())
assert seen[-1] == (words.INSTEAD, other) and seen[:2] == [(words.LINK, first), (words.SECOND, other)], seen
end()
""",
    "the same, and the other controller is of before": """
master.Master.reads_seconds = lambda _: False
first, other = begin(), second()
former = dict(links)
kill_at_the_next_fork(first)
ours.send(words.number(words.LISTEN, words.TWO))
seen = []
while not seen or seen[-1][0] != words.SECOND:
    seen.append(hear())
# The other has taken over. This controller knows of none that stands by: a word of one would be no honest master's.
assert (words.ENDED, first) in seen and words.INSTEAD not in dict(seen), seen
end()
""",
    "the end is no end before its time": """
first, other = begin(), second()
ours.send(words.STOP)
assert sorted([hear(), hear()]) == sorted([(words.ENDED, first), (words.ENDED, other)])
end()
""",
    "what only the start needed is forgotten when nobody waits": """
done, forking = [], os.fork
os.fork = lambda: (done.append("fork"), forking())[1]
crew.memory.forget_clean = lambda: done.append("forget")
begin(), second()
assert done == ["fork", "forget", "fork"], done
end()
""",
    "a controller that knows of none that stands by": """
first = begin(words.LISTEN)
os.kill(first, signal.SIGKILL)
assert hear() == (words.ENDED, first)
assert hear()[0] == words.LINK
end()
""",
}


_UNIT = """
import os, signal, socket, threading, time
from agent.host import confine, systemd
from agent.server import forked, master, words, work
from agent.server.controllers import ControllerSocket

begun, begins = os.pipe()
lines = os.fdopen(begun)

def run(link, sockets, *, parent, master, stands_by, **_):
    confine.end_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.write(begins, b"%d %d\\n" % (os.getpid(), stands_by))
    if not stands_by and link is None:
        forked.say_served(master)
    while forked.hear(master)[0]:
        pass

work.run = run
listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listening.bind("")
listening.listen()
workers = socket.create_server(("127.0.0.1", 0))
kept = os.memfd_create("kept")
os.write(kept, b"of before")

def start(**stored):
    notifier = systemd.Notifier("@nobody")
    connecting = ControllerSocket(listening, {os.getuid()})
    started = master.Master(connecting=connecting, sockets=[workers], notifier=notifier, stored=stored)
    threading.Thread(target=started.run, daemon=True).start()

def server():
    pid, stands_by = map(int, lines.readline().split())
    return pid, bool(stands_by)

def connect(name):
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.settimeout(30)
    control.bind(name + b"%d" % os.getpid())
    control.connect(listening.getsockname())
    while not hear(control)[0].startswith(words.AT):
        pass
    return control

def hear(control):
    said, fds, _, _ = socket.recv_fds(control, 4096, 1)
    for fd in fds:
        os.close(fd)
    word, _, value = said.partition(b" ")
    return word, int(value) if value.isdigit() else 0

def links(control, count):
    found = []
    while len(found) < count:
        word, pid = hear(control)
        found += [(word, pid)] if word in (words.LINK, words.SECOND) else []
    return found
"""

_UNIT_CASES = {
    "one of before that stands by is said to": """
start(snapshot=os.dup(kept))
(first, _), (other, _) = server(), server()
control = connect(words.NAME + words.READS_SECONDS)
control.send(words.number(words.LISTEN, words.TWO))
assert links(control, 2) == [(words.LINK, first), (words.SECOND, other)]
""",
    "a controller of before is told of it as it was": """
start(snapshot=os.dup(kept))
(first, _), (other, _) = server(), server()
control = connect(words.NAME)
control.send(words.number(words.LISTEN, words.TWO))
assert links(control, 2) == [(words.LINK, first), (words.LINK, other)]
""",
    "a controller that ends before it has asked for a server": """
start()
control = connect(words.NAME)
socket.send_fds(control, [words.SNAPSHOT], [kept])
assert hear(control) == (words.HAD, 1)
control.close()
assert not server()[1]
assert server()[1]
""",
    "a controller that ends while its server begins, and with it what stands by": """
start(snapshot=os.dup(kept))
(first, _), (other, _) = server(), server()
control = connect(words.NAME)
control.send(words.number(words.LISTEN, words.TWO))
new, _ = server()  # it is linked, and has nothing to serve yet
control.close()
os.kill(other, signal.SIGKILL)
time.sleep(0.5)  # while another begins there is none to stand by
os.kill(new, signal.SIGKILL)
assert server()[1]
""",
    "a controller that ends before its server begins, and with it what stands by": """
start(snapshot=os.dup(kept))
(first, _), (other, _) = server(), server()
control = connect(words.NAME)
control.send(words.SNAPSHOT)  # it has no file for it: nothing that is begun from now on has what to serve
assert hear(control)[0] == words.HAD
os.kill(other, signal.SIGKILL)
assert hear(control)[0] == words.ENDED
time.sleep(0.5)  # its successor would have been begun by now
control.close()
control = connect(words.NAME)  # and ends, too
socket.send_fds(control, [words.SNAPSHOT], [kept])
control.close()
assert server()[1]
""",
}


@pytest.mark.parametrize("case", _UNIT_CASES)
def test_whatever_becomes_of_controllers_one_answers_and_one_stands_by(case: str) -> None:
    """As soon as there is what they serve; the next controller is told which of those of before is which."""
    command = [sys.executable, "-c", _UNIT + _UNIT_CASES[case] + "print('so', flush=True)\nos._exit(0)\n"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("so\n", "")


@pytest.mark.parametrize("case", _CASES)
def test_one_answers_and_one_stands_by(case: str) -> None:
    """The controller hears of each change; the one that stands by answers as soon as the other has ended or hangs."""
    # From Python 3.12 on, who forks beside a thread is warned: here the master is one, so that the test is beside it.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", _CREW + _CASES[case]]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("ended\n", "")


def test_where_one_after_the_other_is_too_slow_the_next_has_more_time() -> None:
    """On a machine that has too much to do an honest one is late: if each were ended for it nobody would ever answer."""
    patience, now, had = crew.Patience(), 1000.0, list[float]()
    while len(had) < 8:
        had.append(patience.seconds(now))
        now += had[-1]
        patience.ends(now)
    assert had == [1, 2, 4, 8, 10, 10, 10, 10]
    assert patience.seconds(now + 60) == 10
    assert patience.seconds(now + 3600) == 1
    patience.ends(now + 3600)
    assert patience.seconds(now + 3600) == 2
