"""What the agent hears of the process that answers workers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from agent.daemon.child import ServerChild
from agent.server import words
from agent.server.words import LINK
from tests.system.harness import until
from tests.unit.controller.support import looped
from tests.unit.daemon.test_servers import Controller


@looped
async def test_a_server_that_ends_again_and_again_is_told_of() -> None:
    """The first is none; its successors are said, and not once for each: they may come five times a second."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    controller, gone = Controller(), asyncio.Event()
    child = ServerChild(None, ours)
    with structlog.testing.capture_logs() as logs:
        child.answer([], controller.servers, gone.set)
        for number in range(5):
            theirs, _unused = socket.socketpair()
            with theirs, _unused:
                socket.send_fds(its, [b"%s %d" % (LINK, 4711 + number)], [theirs.fileno()])
            await asyncio.sleep(0.01)
        its.close()
        async with asyncio.timeout(10):
            await gone.wait()
    assert [(line["event"], line["times"]) for line in logs] == [("server.again", 1)]
    assert child.replaced == 4
    child.kill()


def _begun(its: socket.socket, code: str = "") -> subprocess.Popen[bytes]:
    """A master that hears nothing: it ends at once, unless ``code`` does something else."""
    with its:
        return subprocess.Popen([sys.executable, "-c", code], pass_fds=(its.fileno(),))


@looped
async def test_a_master_that_has_ended_leaves_no_zombie() -> None:
    """It is taken in by whoever began it, not only when that ends itself: its place among the processes is free."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    process = _begun(its)
    gone = asyncio.Event()
    child = ServerChild(process, ours)
    child.answer([], Controller().servers, gone.set)
    async with asyncio.timeout(20):
        await gone.wait()
    await asyncio.to_thread(until, lambda: not Path(f"/proc/{process.pid}").exists(), what="its place to be free")
    assert child.usage() is None
    child.kill()


@looped
async def test_without_a_thread_workers_are_answered_here_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever took all threads of the machine may have ended the master, too: nobody else would answer."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    process = _begun(its)
    gone = asyncio.Event()
    child = ServerChild(process, ours)

    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", none)
    child.answer([], Controller().servers, gone.set)
    async with asyncio.timeout(20):
        await gone.wait()
    child.kill()
    assert process.returncode is not None


@looped
async def test_a_master_that_cannot_be_told_is_ended() -> None:
    """It has not been given all sockets, and would answer nobody: its end is heard, and workers are answered here."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    process = _begun(its, "import signal; signal.pause()")
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(b"unread")
    gone = asyncio.Event()
    child = ServerChild(process, ours)
    child.answer([], Controller().servers, gone.set)
    async with asyncio.timeout(20):
        await gone.wait()
    child.kill()


@looped
async def test_where_no_server_stays_workers_are_answered_here() -> None:
    """A libc that needs what the wall between the processes refuses ends each at once: better a thinner wall than none."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    its.send(words.number(words.FAILING, 20))
    process = _begun(its, "import signal; signal.pause()")
    gone = asyncio.Event()
    child = ServerChild(process, ours)
    with structlog.testing.capture_logs() as logs:
        child.answer([], Controller().servers, gone.set)
        async with asyncio.timeout(20):
            await gone.wait()
    assert [(line["event"], line["times"]) for line in logs] == [("server.failing", 20)]
    child.kill()


def test_the_first_descriptors_are_not_ours_to_take() -> None:
    """An agent that was started with its standard streams closed begins the same process: nothing of it is lost."""
    code = (
        "import os, socket, sys; from agent.daemon.child import ServerChild; said = os.dup(1); os.closerange(0, 3);"
        "child = ServerChild.begin({}); listening = socket.create_server(('127.0.0.1', 0));"
        "import asyncio; from tests.unit.daemon.test_servers import Controller\n"
        "async def run():\n"
        "    servers = Controller().servers\n"
        "    child.answer([listening], servers, lambda: os._exit(7))\n"
        "    await servers.serving()\n"
        "    os.write(said, b'serves'); child.kill(); os._exit(0)\n"
        "asyncio.run(run())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "serves")
