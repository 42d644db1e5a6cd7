"""What was not there at the start: it is used once it is there, and no reload in between loses it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent import config
from agent.core.errors import ConfigError
from agent.daemon import grace, late
from agent.daemon.late import Late
from agent.daemon.prepare import Prepared
from agent.daemon.reload import Reloader
from agent.daemon.restore import Restorer
from agent.daemon.who import ASK_AGAIN_SECONDS
from agent.identity.events import GraceMoved
from tests.fakes.clock import FakeClock
from tests.unit.daemon.life import Machines, patient
from tests.unit.daemon.test_reload_between import come_true, ended
from tests.unit.daemon.worker import Worker

GROUP = "environment.group"


def of_group(worker: Worker, name: str) -> config.Config:
    worker.configure({"environment": {"group": name}})
    return config.load(worker.configuration)


@asynccontextmanager
async def begun(
    before: Worker,
    prepared: Prepared,
    *,
    restorer: Restorer,
    clock: Any,
    reloader: Reloader,
    listen: Callable[[Sequence[socket.socket]], None] = lambda sockets: sockets[0].close(),
) -> AsyncIterator[tuple[Late, list[asyncio.Task[None]]]]:
    """What waits for all that is not there, and its tasks; the control socket is there."""
    late = Late(reloader.settings, file=before.file, prepared=prepared, passed={}, restorer=restorer, clock=clock)
    operators: Any = SimpleNamespace(listener=SimpleNamespace(listen=listen))
    control = socket.socket(socket.AF_UNIX)
    control.bind(reloader.settings.listen.control)
    late.listen(operators, control)
    tasks = late.begin(operators, [], reloader=reloader, publisher=before.publisher, reload=lambda: None)
    try:
        yield late, tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Groups:
    """The groups of the machine; ``asked``: those that somebody asked for, which ``looking`` is told first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[str, int] = {}
        self.asked: list[str] = []
        self.looking: Callable[[str], None] = lambda _name: None
        monkeypatch.setattr(late, "group_id", self._look)

    def _look(self, name: str) -> int:
        self.looking(name)
        self.asked.append(name)
        if name not in self.known:
            raise ConfigError("expected a group of this machine")
        return self.known[name]


def test_the_workers_group_is_used_once_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are its own from then on, by the name that is configured then, whatever a reload found before.

    No thread, and no memory, for one look is not the last look.
    """
    groups, clock, gid = Groups(monkeypatch), FakeClock(), os.getegid()

    async def scenario() -> None:
        worker = Worker(tmp_path)
        prepared, publisher, reloader = worker.prepared, worker.publisher, worker.reloader

        async def until(look: Callable[[], bool]) -> None:
            def looked() -> bool:
                clock.move(ASK_AGAIN_SECONDS)
                return look()

            await come_true(looked)

        def is_used() -> bool:
            assert (prepared.gid == gid) == (publisher.gid == gid) == (GROUP not in prepared.away.reasons)
            return prepared.gid == gid

        def lose() -> None:
            prepared.gid = publisher.gid = None
            prepared.away.reasons[GROUP] = "there was none when it was looked for"

        def reloaded(name: str) -> None:
            if name == "first":  # the reload comes while it is looked for, and found
                groups.known["first"] = gid + 1
                reloader.settings = of_group(worker, "second")

        crashes = [OSError(errno.EAGAIN, "no thread"), MemoryError()]

        def crashing(_name: str) -> None:
            if crashes:
                raise crashes.pop()

        async with ended(worker):
            reloader.settings = of_group(worker, "first")
            lose()
            restorer: Any = SimpleNamespace(known=grace.Began("i-1", 0.0), controller=worker.controller)
            async with begun(worker, prepared, restorer=restorer, clock=clock, reloader=reloader):
                await until(lambda: "first" in groups.asked)
                assert not is_used()
                groups.looking = reloaded
                await until(lambda: "second" in groups.asked)
                assert not is_used()
                groups.known["second"] = gid
                await until(is_used)
                lose()  # a reload that had looked before is applied
                await until(is_used)
                groups.looking = crashing
                lose()
                await until(lambda: not crashes)
                await until(is_used)

    asyncio.run(scenario())


def test_a_control_socket_that_nobody_could_listen_on_is_made_again(tmp_path: Path) -> None:
    """There was no descriptor to watch it with: it has its name, and is not taken for one that answers."""
    clock, refusals, listened = FakeClock(), list[OSError](), list[Sequence[socket.socket]]()

    def listen(sockets: Sequence[socket.socket]) -> None:
        sockets[0].close()
        if refusals:
            raise refusals.pop()
        listened.append(sockets)

    def take_away(path: Path) -> None:
        refusals.append(OSError(errno.EMFILE, "too many open files"))
        path.unlink()

    async def scenario() -> None:
        worker = Worker(tmp_path)
        restorer: Any = SimpleNamespace(known=grace.Began("i-1", 0.0), controller=worker.controller)

        def is_made() -> bool:
            clock.move(ASK_AGAIN_SECONDS)
            return len(listened) == 2

        async with ended(worker):
            parts = {"restorer": restorer, "clock": clock, "reloader": worker.reloader, "listen": listen}
            async with begun(worker, worker.prepared, **parts):
                take_away(Path(worker.reloader.settings.listen.control))
                await come_true(is_made)
                assert not refusals

    asyncio.run(scenario())


@pytest.mark.parametrize("holding", [True, False])
def test_the_grace_counts_from_the_answer_of_what_held_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holding: bool
) -> None:
    """Files that decide whose bundles count are read: only now the bundle has its time, and the next process knows."""
    patient(monkeypatch)
    whole = timedelta(seconds=1000)

    async def scenario() -> None:
        machines, answers = Machines(tmp_path), asyncio.Event()
        async with machines.start({"identity": {"grace_seconds": whole.total_seconds()}}) as life:
            held = life.clock.now() + 10 * whole
            life.store.apply(GraceMoved(held), life.clock.now())
            life.prepared.holding, life.prepared.late_files = holding, {tmp_path}
            began = life.restorer.began = life.clock.uptime() - 7.0
            reloader: Any = SimpleNamespace(apply_late=answers.wait, settings=life.settings)
            clock: Any = SimpleNamespace(sleep=lambda _: asyncio.Event().wait(), uptime=life.clock.uptime)
            parts = begun(machines.before, life.prepared, restorer=life.restorer, clock=clock, reloader=reloader)
            async with parts as (late, tasks):
                await asyncio.sleep(0)
                assert (life.prepared.holding, life.store.state.grace_until) == (holding, held)
                earliest = life.clock.now()
                answers.set()
                await tasks[-1]  # what waits for those files
                await late.noted(60.0)
            assert not life.prepared.holding
            assert (life.restorer.began == began) != holding
            if holding:
                assert earliest <= life.store.state.grace_until - whole <= life.clock.now()
            else:
                assert life.store.state.grace_until == held
            noted = grace.read(machines.before.root / "run", uptime=life.clock.uptime())
            assert noted is not None
            assert (noted.holding, noted.began) == (False, life.restorer.began)

    asyncio.run(scenario())
