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
old = {(words.ENDED, first), (words.ENDED, other), (words.LINK, first), (words.LINK, other)}
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
    "connections wait, and it is alive": """
first, other = begin(), second()
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
crew.PAUSE_SECONDS = 0.001
first = begin(words.number(words.LISTEN, 1))  # that none stands by
second_ends.set()
ours.send(words.number(words.LISTEN, words.TWO))
seen = []
while len([word for word, _ in seen if word == words.SECOND]) < 25:
    seen.append(hear())
assert not [word for word, _ in seen if word == words.FAILING], seen
assert len([word for word, _ in seen if word == words.LINK]) == 2, seen  # the first, linked anew, and its successor
end()
""",
    "the one that answers ends while another controller's server begins": """
first, other = begin(), second()
former = dict(links)
forking, refused = os.fork, []
def scarce():
    refused.append(1)
    if len(refused) == 1:
        os.kill(first, signal.SIGKILL)
        raise OSError(11, "no process is to be had")
    return forking()
os.fork = scarce
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
    "a controller that knows of none that stands by": """
first = begin(words.LISTEN)
os.kill(first, signal.SIGKILL)
assert hear() == (words.ENDED, first)
assert hear()[0] == words.LINK
end()
""",
}


@pytest.mark.parametrize("case", _CASES)
def test_one_answers_and_one_stands_by(case: str) -> None:
    """The controller hears of each change; the one that stands by answers as soon as the other has ended or hangs."""
    command = [sys.executable, "-c", _CREW + _CASES[case]]
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
