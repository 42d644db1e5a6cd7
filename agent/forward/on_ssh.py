"""Hosts by OpenSSH: the user's own ``ssh``, with its configuration, keys, agents and known hosts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from agent.core.errors import CourierError, UsageError
from agent.forward.courier import LARGEST_REPLY, Job

AT_ONCE: Final = 32
CONNECT_SECONDS: Final = 20.0

_REMOTE: Final = 'p=$(command -v python3 || echo /opt/credential-agent/bin/python3); exec "$p" -I -'
"""Any Python 3 will do; where an agent is there is one. The program that it runs comes through its standard input."""


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

    def workers(self) -> Sequence[str]:
        """The hosts."""
        return self._hosts

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        """Run it on each, so many at once."""
        with ThreadPoolExecutor(min(AT_ONCE, len(workers) or 1), "ssh") as pool:
            return dict(zip(workers, pool.map(lambda host: self._one(host, job), workers), strict=True))

    def watch(self, joined: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        """No host joins later: the hosts are those that were named."""
        del joined
        return lambda: None

    def _one(self, host: str, job: Job) -> str | Exception:
        # BatchMode: a question of ssh's would wait for somebody who is not there.
        command = [*self._command, "-T", "-o", "BatchMode=yes", "--", host, _REMOTE]
        try:
            ran = subprocess.run(  # noqa: S603 - the user's own ssh, a list and no shell here
                command,
                input=job.script.encode(),
                capture_output=True,
                timeout=job.seconds + CONNECT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return CourierError(f"ssh to {host} did not end in time")
        except OSError as error:
            return CourierError(f"{self._command[0]} cannot be run: {type(error).__name__}")
        lines = ran.stdout[: LARGEST_REPLY + 4096].decode("utf-8", "replace").strip().splitlines()
        if ran.returncode != 0 or not lines:
            said = ran.stderr.decode("utf-8", "replace").strip().splitlines()
            return CourierError(f"ssh to {host}: {said[-1][:200] if said else f'status {ran.returncode}'}")
        # A login shell may have said something of its own before.
        return lines[-1]
