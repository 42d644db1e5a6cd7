"""The start of a process that takes over: what brings back what was accepted, wired as the daemon does, and no listener.

The process before is a :class:`tests.unit.daemon.worker.Worker`, which has accepted a bundle. What it left (the state
directory, and what the service manager holds) is the test's to change, and so is the machine: its firmware, its boot,
its metadata service.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent import bundle, config
from agent.core.model import Cloud, Grant, SealedBundle
from agent.core.source import Source
from agent.core.verdict import Memory
from agent.daemon import disk, handover, kept, restore
from agent.daemon.announce import Announcer
from agent.daemon.leaving import handover_of
from agent.daemon.prepare import Prepared
from agent.daemon.remembered import Remembered
from agent.daemon.restore import Restorer
from agent.daemon.succession import Succession
from agent.daemon.who import Who
from agent.host import machine, systemd
from agent.host.clock import SystemClock
from agent.providers.machine import Machine
from tests.fakes.ec2_metadata import Ec2MetadataService
from tests.system.harness import AUDIENCE, ISSUER, merged, toml
from tests.unit.daemon.worker import Worker
from tests.unit.identity.worlds import session

READY_SECONDS = 60.0
BOOT = "0123456789abcdef0123456789abcdef"
OTHER_BOOT = "fedcba9876543210fedcba9876543210"
UUID = "ec2e1916-9099-7caf-fd21-012345abcdef"
OTHER_UUID = "ec2e1916-9099-7caf-fd21-fedcba543210"


def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No disk of the test counts as silent because the machine under it is busy."""
    monkeypatch.setattr(disk, "LOOK_SECONDS", READY_SECONDS)
    monkeypatch.setattr(disk, "FIRST_LOOK_SECONDS", READY_SECONDS)
    monkeypatch.setattr(restore, "LOOK_AT_RUN_SECONDS", READY_SECONDS)


def sealed_for(
    worker: Worker, *, seq: int = 1, audiences: tuple[str, ...] = (AUDIENCE,), grants: tuple[Grant, ...] = ()
) -> bytes:
    """A bundle that gives the worker an AWS identity."""
    now = worker.clock.now()
    grants = grants or (session(now=now),)
    return bundle.seal(
        signer=worker.signer,
        recipients=[worker.key.recipient_key()],
        issuer=ISSUER,
        subject="team",
        audiences=list(audiences),
        now=now,
        grants=grants,
        routes={Cloud.AWS: grants[0].id},
        seq=seq,
    )


class Machines:
    """A machine, and what lies on it.

    Attributes:
        name: what the configuration calls it; ``auto``: its metadata service says.
        before: the process before, once :meth:`live` was called.
        ec2: its metadata service, if it has one.
        stored: what the service manager holds, by name.
        manager: the socket of the service manager that the next process tells; ``None``: it tells nobody.
        watching: called whenever an answer of the next process may have changed.
    """

    def __init__(self, root: Path, *, name: str = "i-1", ec2: Ec2MetadataService | None = None) -> None:
        self.root = root / "machine"
        for place in ("proc/sys/kernel/random", "sys/class/dmi/id", "etc"):
            (self.root / place).mkdir(parents=True)
        self.name, self.ec2 = name, ec2
        self.says(boot=BOOT, uuid=UUID)
        (root / "worker").mkdir()
        self.before = Worker(root / "worker")
        self.stored: dict[str, bytes] = {}
        self.manager: Path | None = None
        self.watching: Callable[[Life], None] = lambda _life: None

    def says(self, *, boot: str | None = None, uuid: str | None = None) -> None:
        """The kernel's boot, and the firmware's name of the machine; empty: it has none."""
        if boot is not None:
            (self.root / "proc/sys/kernel/random/boot_id").write_text(boot)
        if uuid is not None:
            (self.root / "sys/class/dmi/id/product_uuid").write_text(uuid)

    @property
    def base(self) -> dict[str, Any]:
        return merged(
            self.before.base,
            {
                "identity": {"instance_id": self.name, "audience": [AUDIENCE]},
                "upstream": {"ec2": self.ec2.url if self.ec2 is not None else "off"},
            },
        )

    @property
    def state(self) -> Path:
        return self.before.root / "state"

    @property
    def boot_id(self) -> str:
        return machine.boot(self.state, {}, self.root)

    async def live(
        self,
        instance: str,
        *,
        seq: int = 1,
        audiences: tuple[str, ...] = (AUDIENCE,),
        grants: tuple[Grant, ...] = (),
    ) -> bytes:
        """The process before accepts a bundle as ``instance``, writes it down, and leaves everything; the bundle."""
        worker = self.before
        firmware = machine.firmware_names(self.root)
        worker.prepared.opening.answer_to(audiences, ())
        worker.controller.durable.adopt(instance, self.boot_id, firmware)
        sealed = sealed_for(worker, seq=seq, audiences=audiences, grants=grants)
        ack = await worker.controller.intake.submit(SealedBundle(sealed, "push"))
        assert ack.outcome == "accepted", ack
        await worker.controller.durable.last(10)
        self.leave()
        return sealed

    def leave(self, **fields: Any) -> None:
        """The service manager holds what the process before leaves, with these fields of the handover otherwise."""
        worker, clock = self.before, self.before.clock
        sealed = worker.controller.durable.sealed
        opened = worker.prepared.opening.opened(sealed) if sealed is not None else None
        made = handover.Handover(
            uptime=clock.uptime(),
            now=clock.now(),
            began=clock.uptime() - 5.0,
            memory=worker.store.memory,
            brought=worker.store.state.brought,
            sealed=handover.encoded(sealed),
            signed=handover.encoded(opened.signed if opened is not None else None),
            recipient=opened.recipient if opened is not None else "",
            signers=handover.fingerprints(worker.prepared.opening.trust),
        )
        self.stored = {
            handover.NAME: handover.encode(replace(made, **fields)),
            kept.NAME: kept.encode(worker.store, clock),
        }

    def written(self) -> Memory:
        """What the state directory says."""
        return self.before.prepared.state.load()[0]

    @asynccontextmanager
    async def start(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        clock: SystemClock | None = None,
        sources: Sequence[Source] = (),
        waits_for_disk: bool = True,
    ) -> AsyncIterator[Life]:
        """The next process, from its start to its end.

        Args:
            changes: of its configuration.
            clock: its time.
            sources: that it has beside those of its configuration.
            waits_for_disk: whether the state directory answers.
        """
        path = self.before.root / "etc" / "next.toml"
        path.write_text(toml(merged(self.base, changes or {})))
        life = Life(self, config.load(path), clock or SystemClock())
        life.prepared.sources.extend(sources)
        try:
            yield await life.begun(waits_for_disk=waits_for_disk)
        finally:
            await life.close()


class Life:
    """The parts of a process that take over. See the module."""

    def __init__(self, on: Machines, settings: config.Config, clock: SystemClock) -> None:
        self.on, self.settings = on, settings
        self.clock = clock
        rng = random.Random(1)
        self.passed = systemd.Passed({}, {name: _file(data) for name, data in on.stored.items()})
        notifier = systemd.Notifier(None if on.manager is None else str(on.manager), stored=self.passed.stored)
        self.succession = Succession(self.passed, notifier, self.clock)
        self.handed = self.succession.left is not None
        self.prepared = Prepared(
            settings,
            environ={},
            clock=self.clock,
            rng=rng,
            hear=lambda _w, _d, _t: None,
            left=self.succession.left,
            root=on.root,
        )
        self.announcer = Announcer(self.clock, None, needed=lambda: None)
        self.who = Who(self.prepared.metadata, self.clock, configured=settings.identity.instance_id, root=on.root)
        remembered = Remembered(
            self.prepared.state, on.state, clock=self.clock, environ={}, root=on.root, activated=False
        )
        self.restorer = Restorer(
            settings,
            prepared=self.prepared,
            who=self.who,
            remembered=remembered,
            succession=self.succession,
            clock=self.clock,
            rng=rng,
        )

    async def begun(self, *, waits_for_disk: bool) -> Life:
        self.prepared.opening.unnamed = lambda: self.who.unnamed
        found: list[Machine] = [] if self.handed else await self.who.ask()
        if not self.handed:
            await self.prepared.launched.look_first()
        self.found = found
        assert await self.restorer.look_at_state(
            [], notifier=systemd.Notifier(None), stop=asyncio.Event(), ready_seconds=READY_SECONDS
        )
        await self.restorer.restore(found, changed=self.changed, told=self.told, follow=self.clock.follow)
        self.controller, self.store = self.restorer.controller, self.restorer.controller.store
        begun = [self.restorer.resuming, *([self.restorer.recalling] if waits_for_disk else [])]
        await asyncio.gather(*begun)
        return self

    def changed(self) -> None:
        """As the daemon does."""
        self.restorer.changed()
        self.hand_over()
        self.on.watching(self)

    def hand_over(self) -> None:
        """As the daemon does."""
        self.succession.keep(self.store, "", self._handover, self.restorer.gap.known)

    def handed_on(self) -> dict[str, bytes]:
        """What the service manager would hold by now, had it been told."""
        return {handover.NAME: handover.encode(self._handover()), kept.NAME: kept.encode(self.store, self.clock)}

    def _handover(self) -> handover.Handover:
        return handover_of(self.prepared, self.controller, self.restorer, self.who, self.announcer)

    async def told(self) -> bool:
        return True

    def in_force(self) -> int | None:
        """The number of the bundle in force."""
        return None if self.store.bundle is None else self.store.bundle.seq

    async def close(self) -> None:
        await self.restorer.recalling
        self.restorer.copying.cancel()
        await self.controller.durable.last(10)
        await self.prepared.close()
        if (lock := self.prepared.state._lock) is not None:
            os.close(lock)  # as the kernel does
            self.prepared.state._lock = None


def _file(data: bytes) -> int:
    descriptor = os.memfd_create("test")
    os.write(descriptor, data)
    return descriptor
