"""A controller with a real store, and the world around it in the test's hands: the clock, the clouds, the disk, the sources."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import structlog

from agent.controller import Controller
from agent.core import issued
from agent.core.errors import BundleError, FormatError
from agent.core.history import Entry
from agent.core.model import Bundle, Cloud, Credential, Grant, IdToken, SealedBundle, base_of
from agent.core.source import Ack, OnError, OnSuccess, Source, Submit
from agent.core.verdict import Memory, Policy
from tests.fakes.clock import FakeClock, settle
from tests.unit.identity.driver import Store

Issued = issued.Issued[Credential]
"""What a provider gives."""


@dataclass(frozen=True)
class Call:
    """One call of the issuer."""

    at: datetime
    cloud: Cloud | None
    grant_id: str
    base: Credential | None = None


class FakeIssuer:
    """The clouds. ``answer`` is asked at every call and returns or raises; a call may be held with :attr:`gate`.

    Attributes:
        calls: what was asked, oldest first.
        answer: of grants and of the machine: given the call, an :class:`Issued`, ``None`` or an exception.
        gate: calls wait until it is set.
        most: how many calls were under way at once, at most, by grant.
    """

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.calls: list[Call] = []
        self.answer: Callable[[Call], Issued | Exception | None] = lambda _: None
        self.id_answer: Callable[[str], IdToken | Exception] = RuntimeError
        self.id_calls: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.most: dict[str, int] = {}
        self._now: dict[str, int] = {}

    def asked(self, grant_id: str) -> int:
        """How often ``grant_id`` was asked for."""
        return sum(call.grant_id == grant_id for call in self.calls)

    async def issue(self, grant: Grant, base: Credential | None, now: datetime) -> Issued:
        assert base is not None or base_of(grant) is None  # else it is an error of ours
        issued = await self._call(Call(now, None, grant.id, base))
        assert issued is not None
        return issued

    async def instance(self, cloud: Cloud, now: datetime) -> Issued | None:
        return await self._call(Call(now, cloud, "instance"))

    async def id_token(self, grant: Grant | None, base: Credential | None, audience: str, now: datetime) -> IdToken:
        assert base is not None or grant is None or base_of(grant) is None  # else it is an error of ours
        self.id_calls.append(audience)
        await self.gate.wait()
        answer = self.id_answer(audience)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _call(self, call: Call) -> Issued | None:
        self.calls.append(call)
        name = f"{call.cloud}:{call.grant_id}"
        self._now[name] = self._now.get(name, 0) + 1
        self.most[name] = max(self.most.get(name, 0), self._now[name])
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            answer = self.answer(call)
        finally:
            self._now[name] -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeOpener:
    """Opens what it was told about, by its bytes."""

    def __init__(self) -> None:
        self.table: dict[bytes, Bundle | BundleError | Callable[[datetime, str | None], Bundle]] = {}
        self.opened: list[tuple[bytes, str | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.gates: dict[bytes, asyncio.Event] = {}  # of some alone
        self.busy = 0
        self.most = 0

    async def __call__(self, sealed: SealedBundle, now: datetime, accepted_digest: str | None) -> Bundle:
        self.opened.append((sealed.data, accepted_digest))
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            await self.gates.get(sealed.data, self.gate).wait()
            await asyncio.sleep(0)
        finally:
            self.busy -= 1
        found = self.table.get(sealed.data, FormatError("expected a bundle, got something else"))
        if isinstance(found, BundleError):
            raise found
        return found if isinstance(found, Bundle) else found(now, accepted_digest)


class FakeRecorder:
    """The disk.

    Attributes:
        saved: what was written, oldest first.
        trouble: the disk is in trouble: every write fails with it.
        before: called at the begin of each write.
    """

    def __init__(self) -> None:
        self.saved: list[tuple[Memory, bytes | None]] = []
        self.noted: tuple[Entry, ...] = ()
        self.note_gate = asyncio.Event()
        self.note_gate.set()
        self.trouble: Exception | None = None
        self.before: Callable[[], None] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()

    async def save(self, memory: Memory, sealed: bytes | None) -> None:
        self.before()
        await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        self.saved.append((memory, sealed))

    async def note(self, history: tuple[Entry, ...]) -> None:
        await self.note_gate.wait()
        self.noted = history


class FakeSource:
    """A way in that the test pushes through."""

    def __init__(self, name: str = "file") -> None:
        self.name = name
        self.acks: list[Ack] = []
        self.watches = 0
        self.crash: Exception | None = None
        self._queue: asyncio.Queue[Callable[[Submit, OnError, OnSuccess], Any]] = asyncio.Queue()

    async def watch(self, submit: Submit, *, on_error: OnError, on_success: OnSuccess) -> NoReturn:
        self.watches += 1
        if self.crash is not None:
            raise self.crash
        while True:
            act = await self._queue.get()
            result = act(submit, on_error, on_success)
            if result is not None:
                await result

    def act(self, what: Callable[[Submit, OnError, OnSuccess], Any]) -> None:
        """Let the source do something with its three callbacks."""
        self._queue.put_nowait(what)

    def bring(self, data: bytes) -> None:
        """Let it submit ``data``."""
        self.act(lambda submit, _trouble, _ok: submit(SealedBundle(data, self.name)))

    async def fetch(self) -> SealedBundle | None:
        return None

    async def acknowledge(self, ack: Ack) -> None:
        self.acks.append(ack)


class World:
    """The controller and everything around it."""

    def __init__(
        self,
        *,
        policy: Policy | None = None,
        memory: Memory | None = None,
        sources: Sequence[Source] | None = None,
        keys: bool = True,
    ) -> None:
        self.clock = FakeClock()
        self.issuer = FakeIssuer(self.clock)
        self.opener = FakeOpener()
        self.recorder = FakeRecorder()
        self.source = FakeSource()
        self.store = Store(policy or Policy(), memory or Memory("i-1"), self.clock.now(), random.Random(3))
        self.changes = 0
        self.unconfirmed: list[bool] = []  # what is said next of whether all who answer workers serve so
        self.doubt = False  # what the next look at the wall clock says
        self.controller = Controller(
            store=self.store,
            issuer=self.issuer,
            opener=self.opener if keys else None,
            recorder=self.recorder,
            sources=[self.source] if sources is None else sources,
            clock=self.clock,
            rng=random.Random(5),
            changed=self._changed,
            told=self._told,
            follow=self._follow,
        )

    async def _told(self) -> bool:
        return self.unconfirmed.pop() if self.unconfirmed else True

    def _changed(self) -> None:
        self.changes += 1

    def _follow(self) -> bool:
        doubt, self.doubt = self.doubt, False
        return doubt

    def knows(self, data: bytes, found: Bundle | BundleError | Callable[[datetime, str | None], Bundle]) -> bytes:
        """Let the opener know what is in ``data``."""
        self.opener.table[data] = found
        return data

    async def submit(self, data: bytes, origin: str = "file", part: str = "") -> Ack:
        ack = await self.controller.intake.submit(SealedBundle(data, origin, part))
        await settle()
        return ack

    @asynccontextmanager
    async def running(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Run the loop; gives what it logs."""
        with structlog.testing.capture_logs() as logs:
            task = asyncio.create_task(self.controller.run())
            await settle()
            try:
                yield logs  # type: ignore[misc]
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


def events(logs: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] == name]


def looped(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test in a loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run
