"""A service manager that a worker keeps busy: whatever it sends there, the agent's units are started, and none is ended for it.

The socket by which services speak to systemd (``/run/systemd/notify``) is open to everybody, and its queue is short.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.system import machine as m
from tests.system.machine import Disk, Machine, python
from tests.system.test_boot import EC2, Sender

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("boot")]

image = m.image
UNITS = ("credential-agent", "credential-agent-serve", "credential-agent-redirect")
WATCHDOG_SECONDS = 6
#: Fills the queue, and takes each place in it that becomes free.
FLOOD = """
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect("/run/systemd/notify")
s.setblocking(sys.argv[1] == "waits")
print("on", flush=True)
while True:
    try:
        s.send(b"STATUS=x")
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def machine(image: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    sender = Sender()
    with closing(Disk(tmp_path_factory.mktemp("crowd"), image)) as disk, m.ec2() as cloud:
        sender.configure(disk.root, source="ec2-user-data", upstream=EC2)
        cloud.set_user_data(sender.seal())
        for unit in UNITS:
            drop_in = disk.root / f"etc/systemd/system/{unit}.service.d"
            drop_in.mkdir(exist_ok=True)
            (drop_in / "90-soon.conf").write_text(f"[Service]\nWatchdogSec={WATCHDOG_SECONDS}\n")
        with Machine(disk, cloud) as machine:
            yield machine


@contextmanager
def flood(machine: Machine, count: int) -> Iterator[None]:
    with ExitStack() as stack:
        for number in range(count):
            source = python(FLOOD)
            process = stack.enter_context(
                subprocess.Popen(
                    [*machine.enter(m.WORKER_UID), *source, "waits" if number % 2 else "spins"],
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "on\n"
        yield


def shown(machine: Machine, unit: str, *names: str) -> list[str]:
    return machine.run("systemctl", "show", "--value", "-p", ",".join(names), f"{unit}.service").split()


def sign_of_life(machine: Machine, unit: str) -> float:
    """When systemd heard the last one, in seconds."""
    return int(shown(machine, unit, "WatchdogTimestampMonotonic")[0]) / 1e6


def test_a_worker_that_writes_to_the_manager_ends_nothing(machine: Machine) -> None:
    """Signs of life come through for longer than the watchdog waits; what is started meanwhile is told to be ready."""
    before = {unit: (shown(machine, unit, "MainPID", "NRestarts"), sign_of_life(machine, unit)) for unit in UNITS}
    with flood(machine, 4):
        for unit, (who, began) in before.items():
            until = began + 4 * WATCHDOG_SECONDS
            machine.until(lambda: sign_of_life(machine, unit) > until, seconds=90, what=f"a sign of life of {unit}")  # noqa: B023
            assert shown(machine, unit, "MainPID", "NRestarts") == who
        machine.run("systemctl", "restart", *(f"{unit}.service" for unit in UNITS), seconds=200)
        for unit in UNITS:
            assert shown(machine, unit, "NRestarts") == ["0"]
    assert machine.run(*python(m.AWS), uid=m.WORKER_UID).strip() == m.USER_KEY
