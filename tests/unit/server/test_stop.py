"""A server that is told to stop in the moment in which it begins stops."""

from __future__ import annotations

import subprocess
import sys

_STOPPED = """
import os, signal, socket
from agent.server import starting, work

class Master:
    def __init__(self, control):
        pass

    def run(self):
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)  # before it can heed it
            work.run(its, [], parent=os.getppid())
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

async def serve(link, sockets, diagnosis, stop, use, **_):
    await stop.wait()

its, ours = socket.socketpair()
starting.Master, work.serve = Master, serve
starting.main(its.fileno(), os.getppid())
"""


def test_a_stop_at_once_is_heeded() -> None:
    """It waits until it is: else the server goes on to answer, and the agent's end waits for it until it gives up."""
    command = [sys.executable, "-c", _STOPPED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=30)
    assert done.stdout == "7\n", done.stderr
