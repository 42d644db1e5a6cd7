"""Whether a worker's request arrives at the agent: who answers at the metadata address, and how that is reported.

The process that holds the rules writes a small file (:data:`STATE`); ``status``, the metrics and ``wait`` read it. The
file is root's. It carries a heartbeat on the boot-time clock: once that has stopped, the file is not believed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Final, NamedTuple

from agent.core.text import os_reason
from agent.host import unroutable
from agent.wire.names import METADATA_IPV4, PROBE_USER_AGENT

STATE: Final = Path("/run/credential-agent-redirect/state.json")
STALE_SECONDS: Final = 30.0
PROBE_SECONDS: Final = 3.0
MAX_BYTES: Final = 65_536
USER_AGENT: Final = PROBE_USER_AGENT
FINGERPRINT: Final = "508"
_NO_ROUTE: Final = (101, 113)  # ENETUNREACH, EHOSTUNREACH

STATES: Final = ("led", "unanswered", "astray", "closed", "unknown")

#: The command that helps, for each state: a start makes everything anew.
HINT: Final = "systemctl restart credential-agent-redirect; journalctl -u credential-agent-redirect"
#: What a person has closed only a command opens.
_HINT_CLOSED: Final = f"credential-agent redirect apply; {HINT}"
_HINT_AGENT: Final = "credential-agent check; systemctl restart credential-agent; journalctl -u credential-agent"


class Arrival(NamedTuple):
    """Whether workers' requests arrive.

    Attributes:
        state: ``led`` (they arrive), ``closed`` (they are refused), ``astray`` (another service answers them),
            ``unanswered`` (led, and nobody answers), ``unknown`` (no process holds the rules, or nftables did not say
            what became of them).
        why: in words; ``None``: all is well.
        notes: what is not as the configuration says.
    """

    state: str
    why: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def arrives(self) -> bool:
        """Whether a worker that asks the metadata service reaches the agent."""
        return self.state == "led"


def read(path: Path = STATE, *, now: float | None = None) -> Arrival | None:
    """Read the last state of the process that holds the rules; ``None``: this machine has no redirection.

    Args:
        path: the state file.
        now: of the boot-time clock, in seconds.
    """
    now = time.clock_gettime(time.CLOCK_BOOTTIME) if now is None else now
    try:
        if not path.parent.is_dir():
            return None
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_BYTES))
        age = now - float(document["beat"])
        arrival = Arrival(str(document["state"]), document["why"], tuple(map(str, document["notes"])))
    except FileNotFoundError:
        if os.path.lexists(path.parent / unroutable.MARK):  # which raises nothing
            return Arrival("closed", unroutable.WHY)
        return Arrival("unknown", "the rules were never made: credential-agent-redirect is not running")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Arrival("unknown", f"{path}: cannot be read")
    if not 0 <= age <= STALE_SECONDS:
        # (Or it waits for programs, of which each is given up in time, and all together later than this.)
        why = "nobody looks after the rules: credential-agent-redirect does not run, or waits for a program that hangs"
        return Arrival("unknown", why, arrival.notes)
    return arrival


def is_holder(pid: int | str) -> bool:
    """Whether that process holds the rules."""
    try:
        return b"agent.host.hold" in Path(f"/proc/{int(pid)}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False


def ask(address: str, port: int, *, timeout: float = PROBE_SECONDS) -> str:
    """Ask, and say who answers: ``agent``, ``http STATUS``, ``refused``, ``timeout`` or ``unreachable``.

    The agent refuses its own user agent with 508, so that a redirect that catches the agent itself is no endless loop.
    No real metadata service answers so: it is a fingerprint that needs neither a token nor a secret.
    """
    # Not create_connection(): it loads a codec for names, which a process that has become somebody else may not read.
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect((address, port))
            connection.sendall(
                f"GET / HTTP/1.1\r\nHost: {METADATA_IPV4}\r\nUser-Agent: {USER_AGENT}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            with connection.makefile("rb") as answer:
                head = answer.readline(1024).split()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return "unreachable" if error.errno in _NO_ROUTE else f"failed: {os_reason(error, str(error))}"
    status = head[1].decode(errors="replace") if len(head) > 1 else "nothing"
    return "agent" if status == FINGERPRINT else f"http {status}"


def ask_as(uid: int, address: str, port: int) -> str:
    """The same, as somebody else. A process with threads must not do this.

    Raises:
        OSError: there is no process to be had.
    """
    probe = Probe()
    probe.start(uid, address, port)
    return probe.wait()


def hint(state: str) -> str:
    """A hint for a request that does not arrive: the rules are at fault, or the agent does not listen."""
    return {"unanswered": _HINT_AGENT, "closed": _HINT_CLOSED}.get(state, HINT)


def said(answer: str) -> str:
    """An answer of :func:`ask` in words."""
    return {
        "agent": "the agent answers",
        "refused": "refused",
        "timeout": f"no answer within {PROBE_SECONDS:.0f} s (is the agent running? a firewall of what goes out?)",
        "unreachable": "no route: a machine without a default route needs one to any interface, even a dummy",
    }.get(answer, "another service answers" if answer.startswith("http ") else answer)


class Probe:
    """Asks as a worker, in a child that has become one and ends with its answer."""

    def __init__(self) -> None:
        self._pid = 0
        self._pipe = -1
        self._until = 0.0

    @property
    def running(self) -> bool:
        """Whether an answer is awaited."""
        return self._pid != 0

    @property
    def pid(self) -> int:
        """The child that asks; ``0``: none does."""
        return self._pid

    def start(self, uid: int, address: str, port: int) -> None:
        """Begin to ask. A process with threads must not do this."""
        reader, writer = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(reader)
            os.close(writer)
            raise
        if pid == 0:
            word = "failed"
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                # The rules compare whose socket it is. The real and the saved user stay root's: else a process of that
                # user could end or stop this one, and so have workers reported as not redirected.
                os.seteuid(uid)
                word = ask(address, port)
            except BaseException as error:  # noqa: BLE001 - the child ends here, whatever it was
                word = f"failed: {type(error).__name__}"
            finally:
                try:
                    os.write(writer, word.encode()[:200])
                finally:  # also when nobody reads it any more: the child must not go on as its parent
                    os.kill(os.getpid(), signal.SIGKILL)  # at once, so that no exit handler of the parent runs twice
        os.close(writer)
        self._pid, self._pipe = pid, reader
        self._until = time.monotonic() + PROBE_SECONDS * 3

    def result(self) -> str | None:
        """The answer; ``None``: not yet."""
        if select.select([self._pipe], [], [], 0)[0]:
            word = os.read(self._pipe, 200).decode(errors="replace") or "failed"
        elif time.monotonic() > self._until:
            os.kill(self._pid, signal.SIGKILL)
            word = "timeout"
        else:
            return None
        os.close(self._pipe)
        os.waitpid(self._pid, 0)
        self._pid, self._pipe = 0, -1
        return word

    def wait(self) -> str:
        """Wait for the answer."""
        while (word := self.result()) is None:
            select.select([self], [], [], PROBE_SECONDS)
        return word

    def fileno(self) -> int:
        """The descriptor that becomes readable with the answer."""
        return self._pipe
