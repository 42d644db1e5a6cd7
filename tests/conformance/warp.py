"""Hours in seconds: a clock that real programs and the real daemon share with the fakes.

What a client does about an expiry depends on windows of minutes that no setting shortens (botocore believes an IMDS
credential that has less than 25 minutes left for 17 to 25 minutes more). So instead of toy lifetimes the whole world is
made faster: sessions live their true hour, and the hour passes in seconds.

Clients get :data:`SHIM` by ``LD_PRELOAD``; the daemon gets a clock, which is a parameter of it; fakes get
:meth:`Warp.now`. Only the time of day is moved: timeouts stay what they are.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

SHIM = Path(__file__).with_name("warp.c")

_PRELUDE = """
import asyncio, time
import agent.daemon, agent.daemon.service, agent.serve.server, agent.server.spawn
from agent.host.clock import SystemClock
from agent.serve.clock import ServedClock
SPEED, FROM, BOOT = {speed!r}, {origin!r}, time.clock_gettime(time.CLOCK_BOOTTIME)
def wall():
    return FROM + (time.time() - FROM) * SPEED
def boottime():
    return BOOT + (time.clock_gettime(time.CLOCK_BOOTTIME) - BOOT) * SPEED
class Fast(SystemClock):
    def __init__(self):
        super().__init__(boottime=boottime, wall=wall)
    async def sleep(self, seconds):
        await asyncio.sleep(seconds / SPEED)
assert agent.daemon.service.SystemClock is SystemClock, "the composition root takes its clock elsewhere"
agent.daemon.service.SystemClock = Fast
class FastServed(ServedClock):
    def __init__(self, served):
        super().__init__(served, boottime=boottime, wall=wall)
assert agent.serve.server.ServedClock is ServedClock, "whoever answers takes its clock elsewhere"
agent.serve.server.ServedClock = FastServed
# A process of its own would count on by the machine's clock: here the agent answers itself.
agent.server.spawn.spawn = lambda _environ: ()
agent.daemon.ServerChild = lambda *_: None
"""


class Warp:
    """Time from now on, ``speed`` times as fast. With 1.0 it is the machine's own."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._origin = time.time()

    def time(self) -> float:
        """Seconds since 1970."""
        return self._origin + (time.time() - self._origin) * self.speed

    def now(self) -> datetime:
        """Aware UTC."""
        return datetime.fromtimestamp(self.time(), UTC)

    def really(self, length: timedelta) -> float:
        """How many seconds of the machine's time that takes."""
        return length.total_seconds() / self.speed

    @property
    def prelude(self) -> str:
        """For the daemon's process (see :class:`tests.system.harness.Agent`)."""
        return "" if self.speed == 1.0 else _PRELUDE.format(speed=self.speed, origin=self._origin)

    def environ(self, build: Path) -> dict[str, str]:
        """For a client's process. ``build`` is where the shim is compiled to.

        Raises:
            LookupError: there is no C compiler here.
        """
        if self.speed == 1.0:
            return {}
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise LookupError("a C compiler")
        library = build / "warp.so"
        if not library.exists():
            subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SHIM)], check=True)
        return {"LD_PRELOAD": str(library), "WARP_FROM": repr(self._origin), "WARP_SPEED": repr(self.speed)}
