"""What a master relies on in a server and in a controller, one rule a test: each was found by a change nobody noticed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from agent.host import systemd
from agent.server.controllers import MOST_UNSAID, Control, ControllerSocket
from agent.server.forked import Forked, Said, fork, hear, say_served
from agent.server.kept import MOST_BYTES, Kept

SECONDS = 60.0


@contextlib.contextmanager
def begun(work: Callable[[socket.socket, int], None]) -> Iterator[Forked]:
    """A server, and its end."""
    server = fork(work, but=())
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError, OSError):
            server.reap()


def told(server: Forked) -> bool:
    """Wait until there is something to look at, and look: has it ended?"""
    assert select.select([server.watched], [], [], SECONDS)[0]
    return server.hear() is Said.ENDED


def stay(master: socket.socket, _parent: int) -> None:
    """Be there until a signal comes, from when that is said: whatever this process inherits of other tests."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    say_served(master)
    signal.pause()


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


class TestServer:
    def test_it_serves_once_it_has_said_so(self) -> None:
        """Until then nothing is known of it, and before it says anything it has not ended."""

        def work(master: socket.socket, _parent: int) -> None:
            master.recv(1)
            say_served(master)
            signal.pause()

        with begun(work) as server:
            assert server.hear() is Said.NOTHING
            assert not server.serves
            with socket.socket() as given:
                server.link(given)
            assert not told(server)
            assert server.serves

    @pytest.mark.parametrize("said", [(b"+", b"+"), (b"-",), (b"++",), (b"+-",), (b".",), (b"+", b"?")])
    def test_one_that_says_anything_else_is_ended(self, said: tuple[bytes, ...]) -> None:
        """Each word has its time, once: whoever took a server over has no way to talk to its master."""

        def work(master: socket.socket, _parent: int) -> None:
            for one in said:
                master.send(one)
            signal.pause()

        with begun(work) as server:
            assert [told(server) for _ in said] == [*[False] * (len(said) - 1), True]

    def test_what_was_said_while_the_master_stood_still_is_no_offence(self) -> None:
        """That connections wait is heard many times at once then; without end it is not said by an honest one."""

        def work(master: socket.socket, _parent: int) -> None:
            for _ in range(100):
                master.send(b"?")
            signal.pause()

        with begun(work) as server:
            heard = []
            while Said.ENDED not in heard:
                assert select.select([server.watched], [], [], SECONDS)[0]
                heard.append(server.hear())
        assert heard == [Said.WAITING, *[Said.NOTHING] * 64, Said.ENDED]

    def test_one_whose_end_of_the_connection_is_gone_has_ended(self) -> None:
        """Whether it serves or not."""
        with begun(lambda master, _: master.close()) as server:
            assert told(server)

    def test_a_link_reaches_it(self) -> None:
        """By it the server of a controller before is heard by the present one, and what comes after it comes too."""

        def work(master: socket.socket, _parent: int) -> None:
            for _ in range(2):
                _, link = hear(master)
                assert link is not None
                link.sendall(b"here")
                link.close()
            signal.pause()

        with begun(work) as server:
            for _ in range(2):
                ours, its = socket.socketpair()
                with ours, its:
                    ours.settimeout(SECONDS)
                    server.link(its)
                    assert ours.recv(9) == b"here"

    def test_it_hears_that_its_master_has_ended(self) -> None:
        """There is no link then, and no error."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            ours.close()
            assert hear(its) == (b"", None)

    def test_its_end_is_asked_for_once_and_has_one_grace(self) -> None:
        """Whoever asks again does not move the moment at which it is killed."""
        with begun(stay) as server:
            assert not told(server)
            assert server.killed_at is None
            server.end(1000.0)
            first = server.killed_at
            assert first is not None
            server.end(5000.0)
            assert server.killed_at == first
            assert told(server)  # SIGTERM ends this one

    def test_one_that_is_killed_is_not_to_be_killed_again(self) -> None:
        """It has no grace left, and is not asked to end either."""
        with begun(stay) as server:
            server.end(1000.0)
            server.kill()
            assert server.killed_at is None
            server.end(1000.0)
            assert server.killed_at is None

    def test_none_is_left_behind(self, capfd: pytest.CaptureFixture[str]) -> None:
        """Its process is waited for, its descriptors are closed, and the last that it wrote is passed on as its own."""

        def work(_master: socket.socket, _parent: int) -> None:
            for number in range(40):
                os.write(2, b"%d %s\n" % (number, b"x" * 200))

        with begun(work) as server:
            assert told(server)
            descriptors = server.descriptors
            assert all(map(is_open, descriptors))
            server.reap()
            with pytest.raises(ChildProcessError):
                os.waitpid(server.pid, os.WNOHANG)
            assert not any(map(is_open, descriptors))
        lines = capfd.readouterr().err.splitlines()
        assert [line.split()[1] for line in lines] == [str(number) for number in range(10, 40)]
        assert {len(line) for line in lines} == {len("server: ") + 120}
        assert all(line.startswith("server: ") for line in lines)

    def test_it_has_none_of_what_it_must_not_have(self) -> None:
        """What another server, or the controller, is to get, is closed in it; its own connection is open."""
        reader, writer = os.pipe()

        def work(master: socket.socket, _parent: int) -> None:
            master.send(b"+" if not is_open(writer) and is_open(reader) else b"-")
            signal.pause()

        server = fork(work, but=[writer])
        try:
            assert not told(server)
            assert is_open(writer)
        finally:
            server.reap()
            os.close(reader)
            os.close(writer)


@contextlib.contextmanager
def where_controllers_connect(allowed: set[int]) -> Iterator[tuple[ControllerSocket, socket.socket]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind("")
        listening.listen()
        listening.setblocking(False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as controller:
            controller.settimeout(SECONDS)
            controller.connect(listening.getsockname())
            yield ControllerSocket(listening, allowed), controller


class TestControllers:
    def test_one_that_may_is_never_waited_for(self) -> None:
        """The master has one loop: a controller that reads or says nothing holds up nobody."""
        with where_controllers_connect({os.getuid()}) as (connecting, _):
            taken = connecting.accept()
            assert taken is not None
            with taken:
                assert not taken.getblocking()
            assert connecting.accept() is None  # and nobody else is there

    def test_one_that_may_not_is_turned_away_and_that_is_told(self, capfd: pytest.CaptureFixture[str]) -> None:
        """Its connection ends at once: else it would be held by whoever asks for it."""
        with where_controllers_connect({os.getuid() + 1}) as (connecting, controller):
            assert connecting.accept() is None
            assert controller.recv(9) == b""
        assert f"got user {os.getuid()}" in capfd.readouterr().err


@contextlib.contextmanager
def connection() -> Iterator[tuple[Control, socket.socket]]:
    """A connection as the master has it, and the controller's end."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control = Control(ours)
    with its:
        its.settimeout(SECONDS)
        yield control, its
        control.close()


def fill(control: Control) -> int:
    """Say so much that the kernel takes no more; how many words."""
    count = 0
    while control.say_at is None:
        control.say(b"%d" % count)
        count += 1
    return count


class TestControl:
    def test_what_the_kernel_has_no_room_for_is_said_later_and_in_order(self) -> None:
        """No word is left out, and none overtakes another."""
        with connection() as (control, controller):
            count = fill(control)
            assert control.say(b"last")
            heard: list[bytes] = []
            while not heard or heard[-1] != b"last":
                heard.append(controller.recv(64))
                control.say_rest()
            assert heard == [*(b"%d" % number for number in range(count)), b"last"]
            assert control.say_at is None

    def test_what_comes_with_a_word_waits_with_it(self) -> None:
        """It is named, so that no server gets it, and it is closed once it is said, or nobody is there to hear it."""
        with connection() as (control, controller):
            fill(control)
            reader, writer = os.pipe()
            with os.fdopen(reader, "rb"):
                control.say(b"with", writer)
                assert control.files == [writer]
                controller.close()
                control.say_rest()
                assert control.files == []
                assert not is_open(writer)
                assert control.say_at is None

    def test_one_that_ends_leaves_nothing_open(self) -> None:
        """What was to be given to it is closed with its connection."""
        with connection() as (control, controller):
            fill(control)
            reader, writer = os.pipe()
            with os.fdopen(reader, "rb"):
                control.say(b"with", writer)
                control.close()
                assert control.files == []
                assert not is_open(writer)
            assert controller.recv(64) == b"0"
            assert control.fileno() == -1

    def test_one_that_reads_nothing_is_given_up(self) -> None:
        """Words are kept for it up to a bound, and not one more: it learns all of it anew when it connects."""
        with connection() as (control, _):
            fill(control)  # the last of them is kept
            assert all(control.say(b"more") for _ in range(MOST_UNSAID - 1))
            assert not control.say(b"one more")

    def test_what_it_says_is_heard_word_by_word(self) -> None:
        """Nothing now is no end, and an end is heard as such, also of one that left without hearing all."""
        with connection() as (control, controller):
            assert control.hear() is None
            controller.send(b"one")
            controller.send(b"two")
            assert [control.hear(), control.hear(), control.hear()] == [(b"one", []), (b"two", []), None]
            control.say(b"unheard")
            controller.close()
            assert control.hear() == (b"", [])


def kept_file(data: bytes) -> int:
    descriptor = os.memfd_create("snapshot")
    os.write(descriptor, data)
    return descriptor


class TestKept:
    def test_what_was_emptied_is_not_there(self) -> None:
        """Whoever wrote it takes it away so: a server begun now has nothing to begin with."""
        one, other = kept_file(b"one"), kept_file(b"other")
        kept = Kept(systemd.Notifier(None), {"snapshot": one, "snapshot-next": other})
        names = len(kept.files)
        os.ftruncate(one, 0)
        assert len(kept.files) == names - 1
        kept.take([])
        assert kept.files == ()
        assert not is_open(one)

    def test_what_is_longer_than_any_snapshot_is_read_no_further(self) -> None:
        """A file that grows without end takes no memory; the server tells that it is none."""
        one = kept_file(b"")
        os.ftruncate(one, 2 * MOST_BYTES)
        (found,) = Kept(systemd.Notifier(None), {"snapshot": one}).read()
        assert len(found) == MOST_BYTES + 1
        assert not is_open(one)

    def test_where_nobody_keeps_anything_there_is_nothing_to_tell(self) -> None:
        """Without a service manager a snapshot is told at once; and whose it is is known."""
        kept = Kept(systemd.Notifier(None), {}, wall=lambda: 7.0)
        assert (kept.ours, kept.wall) == (False, None)
        one = kept_file(b"one")
        kept.take([one])
        assert (kept.ours, kept.wall) == (True, 7.0)
        assert kept.tell()
        assert kept.files == (one,)
        assert kept.read() == (b"one",)

    def test_the_service_manager_has_one_at_each_instant(self) -> None:
        """The new one is given before the former is dropped, under another name; one that hears nothing is told again."""
        name = f"credential-agent-kept-{os.getpid()}"
        kept = Kept(systemd.Notifier(f"@{name}"), {"snapshot": kept_file(b"of before")})
        kept.take([kept_file(b"first")])
        assert not kept.tell()  # nobody is there
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(f"\0{name}")
            manager.setblocking(False)

            def heard() -> list[tuple[bytes, list[bytes]]]:
                found: list[tuple[bytes, list[bytes]]] = []
                while True:
                    try:
                        said, fds, _, _ = socket.recv_fds(manager, 4096, 4)
                    except BlockingIOError:
                        return found
                    found.append((said, [os.pread(fd, 99, 0) for fd in fds]))
                    for fd in fds:
                        os.close(fd)

            assert kept.tell()
            told = heard()
            given = next(at for at, (_, data) in enumerate(told) if data)
            assert told[given] == (b"FDSTORE=1\nFDNAME=snapshot-next", [b"first"])
            assert [
                b"FDSTOREREMOVE=1" in said and b"FDNAME=snapshot\n" in said + b"\n" for said, _ in told[given:]
            ] == [
                False,
                True,
            ]
            assert kept.tell()
            assert heard() == []  # it knows
            kept.take([kept_file(b"second")])
            assert [data for _, data in heard() if data] == [[b"second"]]
        (left,) = kept.read()
        assert left == b"second"
