"""Hosts by OpenSSH: the user's own ``ssh``, with its configuration, keys, agents and known hosts."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from agent.core.errors import CourierError, UsageError
from agent.forward.courier import CHATTER, LARGEST_REPLY, Job, LateError

AT_ONCE: Final = 32
MOST_SAID: Final = LARGEST_REPLY + CHATTER
"""So many bytes of each stream are kept, the last: the reply ends it."""
CONNECT_SECONDS: Final = 20.0

_OF_SSH: Final = 255
"""The status of ``ssh`` when it is its own, and not that of what ran there."""
_NO_PYTHON: Final = 127
_REMOTE: Final = (
    "exec sh -c 'for p in python3 /opt/credential-agent/bin/python3; do "
    '"$p" -c "import sys; sys.exit(sys.version_info < (3, 7))" 2>/dev/null && exec "$p" -I -; done; '
    f"exit {_NO_PYTHON}'"
)
"""Any Python from 3.7 on will do; where an agent is there is one, though the system has an older one. The program that
it runs comes through its standard input. Only ``sh`` is made to understand this: the login shell of that user may be
another, such as fish."""


class Ssh:
    """The courier of hosts that the user names.

    Args:
        hosts: as ``ssh`` takes them: names of the configuration, ``USER@HOST``.
        command: what is run, and options of it.

    Raises:
        UsageError: there is no host, or one that ``ssh`` would take for an option.
    """

    name = "ssh"
    private = True
    named = True

    def __init__(self, hosts: Sequence[str], *, command: Sequence[str] = ("ssh",)) -> None:
        if isinstance(hosts, str) or not hosts:
            raise UsageError("forward.ssh() takes a list of hosts", hint='forward.ssh(["worker-1", "worker-2"])')
        for host in hosts:
            if not host or host.startswith("-") or any(c.isspace() or not c.isprintable() for c in host):
                raise UsageError(f"expected the name of a host, got {host!r}")
        self._hosts = tuple(dict.fromkeys(hosts))
        self._command = tuple(command)
        self._turn = threading.BoundedSemaphore(AT_ONCE)  # of all that this forwarding asks at the same time
        self._running: set[subprocess.Popen[bytes]] = set()

    def workers(self) -> Sequence[str]:
        """The hosts."""
        return self._hosts

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        """Run it on each, so many at once."""
        begun: list[subprocess.Popen[bytes]] = []
        with ThreadPoolExecutor(min(AT_ONCE, len(workers) or 1), "ssh") as pool:
            try:
                return dict(zip(workers, pool.map(lambda host: self._one(host, job, begun), workers), strict=True))
            except BaseException:
                # Ctrl-C: they have no terminal from which they would hear of it.
                pool.shutdown(wait=False, cancel_futures=True)
                for process in begun:
                    process.kill()
                raise

    def watch(self, joined: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        """No host joins later: the hosts are those that were named. At the end nobody waits for one that hangs."""
        del joined

        def leave() -> None:
            # A program waits at its end for threads such as those that read from these.
            for process in list(self._running):
                process.kill()

        return leave

    def _one(self, host: str, job: Job, begun: list[subprocess.Popen[bytes]]) -> str | Exception:
        # BatchMode: a question of ssh's would wait for somebody who is not there. A jump host's ssh does not know of
        # that; it finds no terminal to ask on, and no window.
        command = [*self._command, "-T", "-o", "BatchMode=yes", "--", host, _REMOTE]
        with self._turn:
            try:
                process = subprocess.Popen(  # noqa: S603 - the user's own ssh, a list and no shell here
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
                    start_new_session=True,
                )
            except OSError as error:
                return CourierError(f"{self._command[0]} cannot be run: {type(error).__name__}")
            begun.append(process)
            self._running.add(process)
            with process:
                try:
                    said, complaint = _said(process, job.script.encode(), job.seconds + CONNECT_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    return LateError(f"ssh to {host} did not end in {job.seconds + CONNECT_SECONDS:.0f} s")
                finally:
                    self._running.discard(process)
        if process.returncode == -signal.SIGKILL:
            return LateError(f"ssh to {host} was ended")
        return _reply(host, process.returncode, said, complaint)


def _said(process: subprocess.Popen[bytes], text: bytes, seconds: float) -> tuple[bytes, bytes]:
    """Give a program its input; the end of what it says on either stream. A host that talks on and on is not kept.

    Raises:
        TimeoutExpired: of subprocess: it has not ended.
    """
    stdin, out, err = process.stdin, process.stdout, process.stderr
    if stdin is None or out is None or err is None:
        raise AssertionError("internal error: a process without pipes")
    end = time.monotonic() + seconds
    ends = {out.fileno(): b"", err.fileno(): b""}
    with selectors.DefaultSelector() as selector:
        selector.register(stdin, selectors.EVENT_WRITE)
        for stream in (out, err):
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(end - time.monotonic(), 0))
            if time.monotonic() >= end:
                raise subprocess.TimeoutExpired(process.args, seconds)
            for key, _ in ready:
                if key.fileobj is stdin:
                    with contextlib.suppress(BrokenPipeError):  # it has ended, or wants no more: what it says counts
                        text = text[os.write(key.fd, text[: select.PIPE_BUF]) :]
                        if text:
                            continue
                    selector.unregister(stdin)
                    stdin.close()
                elif more := os.read(key.fd, CHATTER):
                    ends[key.fd] = (ends[key.fd] + more)[-MOST_SAID:]
                else:
                    selector.unregister(key.fileobj)
    process.wait(max(end - time.monotonic(), 0))
    return ends[out.fileno()], ends[err.fileno()]


def _reply(host: str, status: int, said: bytes, complaint: bytes) -> str | Exception:
    # A login shell may have said something of its own before.
    lines = said.decode("utf-8", "replace").strip().splitlines()
    if status == 0 and lines:
        return lines[-1]
    if status == _NO_PYTHON:
        return CourierError(
            f"there is no python3 on {host}, or it is older than 3.7",
            hint="install it there; no package of it is needed",
        )
    # A jump host's own words come before those about it; what ran there in place of a shell speaks on either stream.
    words = complaint.decode("utf-8", "replace").strip().splitlines()[-2 if status == _OF_SSH else -1 :]
    if status != _OF_SSH and lines:
        words = lines[-1:]
    message = f"ssh to {host}: {'; '.join(words)[:250] if words else f'status {status}, and no word'}"
    hint = f"does this work here? ssh -o BatchMode=yes {host} true" if status == _OF_SSH else None
    return CourierError(message, hint=hint)
