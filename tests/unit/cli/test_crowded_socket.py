"""Our own clients of a unix socket whose queue others keep full: they are given a place in turn."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.cli import ask
from agent.core.errors import HostError
from agent.forward import onworker
from tests.fakes.crowded import crowded

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def by_command(path: Path) -> str:
    return str(ask.control(path, "GET", "/v1/status").status)


def by_sender(path: Path) -> str:
    reply = json.loads(onworker.main(json.dumps({"seconds": 30, "steps": [["GET", "/v1/status", None]]})))
    return str(reply["answers"][0][0] if reply["answers"] else reply)


@pytest.mark.parametrize("client", [by_command, by_sender])
def test_a_place_in_the_queue_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Callable[[Path], str]
) -> None:
    """Who only looks whether there is room is told that nobody is there, while a flood lasts."""
    path = tmp_path / "s"
    monkeypatch.setenv("CREDENTIAL_AGENT_COURIER", str(path))
    with contextlib.ExitStack() as stack, crowded(path) as listening:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        status = pool.submit(client, path)
        listening.settimeout(20)
        while not status.done():  # whoever it is gets the answer
            taken = stack.enter_context(listening.accept()[0])
            taken.sendall(ANSWER)
            taken.shutdown(socket.SHUT_WR)
            if taken.recv(1):
                break
        assert status.result() == "200"


def test_a_queue_that_stays_full_is_no_answer(tmp_path: Path) -> None:
    """It is not waited for ever, and the error says for how long it was."""
    path = tmp_path / "s"
    with crowded(path), pytest.raises(HostError, match="no answer within"):
        ask.control(path, "GET", "/v1/status", timeout_seconds=0.01)
