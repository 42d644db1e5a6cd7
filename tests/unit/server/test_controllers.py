"""Where controllers connect, as the master has it."""

from __future__ import annotations

import os
import socket
import time

from agent.server.controllers import RETRY_SECONDS, ControllerSocket
from tests.unit.host.test_systemd import no_descriptor_left


def test_a_controller_that_cannot_be_taken_is_waited_for_and_not_looked_at_without_end() -> None:
    """No descriptor is to be had for a while: it stays in the queue, and the master does not keep a processor busy by it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind("")
        listening.listen()
        listening.setblocking(False)
        connecting = ControllerSocket(listening, {os.getuid()})
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as controller:
            controller.connect(listening.getsockname())
            began = time.monotonic()
            with no_descriptor_left():
                assert connecting.accept() is None
            assert time.monotonic() - began >= RETRY_SECONDS
            taken = connecting.accept()
            assert taken is not None
            taken.close()
