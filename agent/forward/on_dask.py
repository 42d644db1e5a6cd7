"""Dask: every worker that is there and every one that comes, by what each scheduler and worker of `distributed` can do.

Workers are sent text: an object that is unpickled by evaluating an expression, which needs nothing of ours there and no
bytecode of another Python. A worker awaits the ``setup`` of plugins before it takes tasks, and answers nobody
meanwhile. So a newcomer asks from there: it puts a message into a queue of the scheduler's, and runs what comes into
one of its own, until it has been served. The scheduler passes all of it on unread.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as Late
from typing import Any, Final

from agent.core.errors import CourierError, UsageError
from agent.forward.courier import PROGRAM, Job, LateError, slices

PATIENCE_SECONDS: Final = 10.0
"""How long a newcomer waits to be served before it takes tasks all the same: we may be gone."""
SLICE: Final = 128
"""Workers of one call: one that hangs holds up only so many others."""
STILL_SECONDS: Final = 2.0
"""When no call has returned for so long, each worker that is left is called by itself: one that hangs is among them."""
BEYOND_SECONDS: Final = 1.0
"""How long a reply may be on its way."""
SCHEDULER_SECONDS: Final = 15.0
"""How long the scheduler may take to say who is there: a network that drops all says nothing either."""
GOODBYE_SECONDS: Final = 2.0

_UNREAD: Final = "it sent an error that is not read here: see the logs of the worker and of the scheduler"

_ON_WORKER: Final = (
    PROGRAM
    + """

import asyncio


async def carry(request, dask_worker=None):
    reply = await asyncio.get_running_loop().run_in_executor(None, main, request)
    asked = json.loads(request)
    if asked.get("after") == "withdrawn":
        # Another forwarding of this worker may bring its own back.
        for name, plugin in list(dask_worker.plugins.items()):
            if name.startswith("credential-agent-") and name != "credential-agent-" + asked["session"]:
                try:
                    await plugin.lost(dask_worker)
                except Exception:
                    pass
    return reply


def plugin(session, issuer, patience, owner):
    from distributed.diagnostics.plugin import WorkerPlugin

    class CredentialAgent(WorkerPlugin):
        name = session

        async def setup(self, worker):
            try:
                await asyncio.wait_for(self._ask(worker), patience)
            except Exception:
                pass  # whoever forwards may be gone; a worker starts all the same

        async def _ask(self, worker):
            loop = asyncio.get_running_loop()
            status = json.dumps({"steps": [["GET", "/v1/status", None]], "seconds": patience})
            reply = json.loads(await loop.run_in_executor(None, main, status))
            word = {"joined": worker.address}
            if reply["problem"] or not reply["answers"] or self._served(reply["answers"][0][1]):
                await worker.scheduler.queue_put(name=session, data=word)
                return
            if await self._gone(worker):
                await worker.scheduler.queue_put(name=session, data=word)
                return
            box = session + "-" + os.urandom(8).hex()
            await worker.scheduler.queue_create(name=box, client=box)
            await worker.scheduler.queue_put(name=session, data={"joined": worker.address, "box": box})
            while True:
                request = (await worker.scheduler.queue_get(name=box, timeout=patience))["value"]
                said = await loop.run_in_executor(None, main, request)
                await worker.scheduler.queue_put(name=session, data={"box": box, "reply": said})
                if json.loads(request).get("after"):
                    return

        async def _gone(self, worker):
            # The scheduler remembers this plugin longer than whoever forwarded; of the client it says when that left.
            try:
                told = [one[1].get("action") for one in await worker.scheduler.events(topic=owner)]
            except Exception:
                return False
            return [one for one in told if one in ("add-client", "remove-client")][-1:] != ["add-client"]

        def _served(self, text):
            found = json.loads(text)
            bundle = found.get("bundle") or {}
            states = [one.get("state") for one in found.get("clouds", {}).values()]
            return bundle.get("issuer") == issuer and "live" in states

        async def lost(self, worker):
            await worker.scheduler.queue_put(name=session, data={"joined": worker.address})

    return CredentialAgent()
"""
)


def _expression(name: str, *arguments: object) -> str:
    call = f"({', '.join(map(repr, arguments))})" if arguments else ""
    return f"(lambda n: (exec({_ON_WORKER!r}, n), n[{name!r}])[1]{call})({{'__name__': 'credential-agent'}})"


class _Carry:
    """Pickled, it is an expression; unpickled, the function of that name on the worker."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return eval, (_expression("carry"),)

    def __call__(self) -> None:
        raise AssertionError("internal error: it runs on workers only")


class _Box:
    """The queue of a newcomer that waits.

    Args:
        name: of the queue.
        patience: how long the newcomer waits.
    """

    def __init__(self, name: str, patience: float) -> None:
        self.name = name
        self.ends = time.monotonic() + patience
        self.answers: deque[asyncio.Future[str]] = deque()  # it answers in the order in which it is asked

    @property
    def over(self) -> bool:
        """Whether it takes tasks by now, and can be called as any other."""
        return time.monotonic() >= self.ends


class Dask:
    """The courier of a Dask cluster.

    Args:
        client: a ``distributed.Client``, synchronous or not.
        session: this forwarding's, also the name of its plugin and topic.
        issuer: as whom we speak.
        patience: how long a newcomer waits for us.
        reconnect: makes another client when this one was closed; ``None``: that is the end.
    """

    name = "dask"
    named = False

    def __init__(
        self,
        client: Any,
        *,
        session: str,
        issuer: str,
        patience: float = PATIENCE_SECONDS,
        reconnect: Callable[[], Any] | None = None,
    ) -> None:
        if not hasattr(client, "scheduler") or not hasattr(client, "register_plugin"):
            raise UsageError(
                f"forward.dask() takes a distributed.Client, got {type(client).__name__}",
                hint="from dask.distributed import Client; client = Client(cluster)",
            )
        self._client = client
        self._session = f"credential-agent-{session}"
        self._issuer = issuer
        self._patience = patience
        self._reconnect = reconnect
        self._boxes: dict[str, _Box] = {}  # of newcomers that wait, by address
        self._late: set[str] = set()  # who did not answer in time, the last time
        self._inbox: asyncio.Task[None] | None = None
        self._register: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._registering: Future[Any] | None = None
        self._comm: Any = None
        self.private = _is_encrypted(client)

    @property
    def in_its_loop(self) -> bool:
        """Whether this very thread runs the client's loop: then nothing may be waited for here."""
        try:
            return asyncio.get_running_loop() is self._client.loop.asyncio_loop
        except RuntimeError:
            return False

    def workers(self) -> Sequence[str]:
        """The addresses of the cluster's workers."""
        if self._reconnect is not None and self._closed:
            self._again(self._reconnect)

        async def ask() -> Any:
            found = await self._client.nthreads()
            # A scheduler that was started anew knows neither queue nor plugin of ours.
            if self._register is not None and self._client.scheduler_comm is not self._comm:
                self._registering = self._begin(self._register())
            return found

        found = [one for one in self._wait(self._begin(ask()), SCHEDULER_SECONDS) if isinstance(one, str)]
        # Newcomers that have given up waiting, and those that hung and have left.
        for name in [name for name, box in list(self._boxes.items()) if box.over]:
            self._boxes.pop(name, None)
        self._late.intersection_update(found)
        return found

    def _again(self, reconnect: Callable[[], Any]) -> None:
        """Dask gives a client up after half a minute without a scheduler: no end for a program that does only this."""
        try:
            made = reconnect()
        except Exception as error:  # noqa: BLE001 - distributed raises what it likes
            raise CourierError(f"{type(error).__name__}: {error}"[:300]) from None
        if self.private and not _is_encrypted(made):
            # Perhaps nobody need prove here who he is, since that channel did.
            with contextlib.suppress(Exception):
                made.close()
            raise CourierError("the dask client that was made anew is not encrypted, and the one before was")
        self._client = made
        # Its loop has ended with the former one.
        self._inbox = None
        self._boxes.clear()

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        """Run it on them, outside of tasks and beside them."""
        said: dict[str, str | Exception] = {}
        # Who hung the last time, or has a queue of its own, holds up only itself.
        apart = [one for one in workers if one in self._boxes or one in self._late]
        parts = [*([one] for one in apart), *slices([one for one in workers if one not in apart], SLICE)]
        begun = {self._begin(self._run(job, some)): some for some in parts}
        while (shared := [one for one, some in begun.items() if len(some) > 1]) and self._take(
            job, begun, min(STILL_SECONDS, job.seconds), said
        ):
            pass
        for future in shared:
            # One that hangs holds up the others of its slice: each for itself then.
            future.cancel()
            begun.update({self._begin(self._run(job, [one])): [one] for one in begun.pop(future)})
        while self._take(job, begun, max(job.seconds - STILL_SECONDS, BEYOND_SECONDS) + BEYOND_SECONDS, said):
            pass
        self._late.difference_update(said)
        self._late.update(one for some in begun.values() for one in some)
        for future, names in begun.items():
            future.cancel()
            said.update(dict.fromkeys(names, LateError(f"no answer in {job.seconds:.0f} s")))
        return said

    def _take(
        self, job: Job, begun: dict[Future[Any], Sequence[str]], seconds: float, said: dict[str, str | Exception]
    ) -> bool:
        """Take what comes next; false: nothing has come for so long, or nothing is outstanding."""
        done, _ = wait(begun, seconds, FIRST_COMPLETED)
        for future in done:
            names = begun.pop(future)
            try:
                said.update(self._wait(future, 0))
            except CourierError as error:
                if len(names) > 1 and not self._closed:
                    # One of them has left, or sent what is not read here: no fault of the others.
                    begun.update({self._begin(self._run(job, [one])): [one] for one in names})
                else:
                    said.update(dict.fromkeys(names, error))
        return bool(done)

    async def _run(self, job: Job, workers: Sequence[str]) -> dict[str, str | Exception]:
        if len(workers) == 1 and (box := self._boxes.get(workers[0])) is not None and not box.over:
            return {workers[0]: await self._post(job, workers[0], box)}
        found = await self._client.run(_Carry(), job.request, workers=list(workers), on_error="return")
        return {one: CourierError(_UNREAD) if _is_unread(said) else said for one, said in found.items()}

    async def _post(self, job: Job, worker: str, box: _Box) -> str | Exception:
        """A newcomer answers nobody until it is served: its messages go through its queue."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        box.answers.append(answer)
        try:
            await self._client.scheduler.queue_put(name=box.name, data=job.request)
            return await asyncio.wait_for(answer, min(job.seconds, box.ends - time.monotonic()))
        except TimeoutError:
            return LateError(f"no answer in {job.seconds:.0f} s")
        except Exception as error:  # noqa: BLE001 - distributed raises what it likes
            box.ends = 0.0
            return CourierError(f"{type(error).__name__}: {error}"[:300])
        finally:
            if job.after or box.over:
                self._boxes.pop(worker, None)
                self._client._send_to_scheduler(  # noqa: SLF001 - as distributed.Queue.close() does
                    {"op": "queue_release", "name": box.name, "client": box.name}
                )

    def watch(self, joined: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        """Have every newcomer tell us, before it takes a task."""
        from distributed.diagnostics.plugin import WorkerPlugin  # noqa: PLC0415 - not a dependency of ours

        async def register() -> None:
            expression = _expression("plugin", self._session, self._issuer, self._patience, self._client.id)
            members = {"name": self._session, "__reduce__": lambda _: (eval, (expression,))}
            plugin = type("CredentialAgent", (WorkerPlugin,), members)()
            self._comm = self._client.scheduler_comm
            await self._client.scheduler.queue_create(name=self._session, client=self._session)
            # Who asked before the network was lost is still asked for by the scheduler, and takes what comes next.
            await self._client.scheduler.queue_put(name=self._session, data={})
            if self._inbox is None or self._inbox.done():
                self._inbox = asyncio.get_running_loop().create_task(self._hear(joined))
            # No caller waits for this. It returns when the last worker has been served.
            await self._client.register_plugin(plugin, name=self._session)

        self._register = register
        self._registering = self._begin(register())

        async def leave() -> None:
            self._register = None
            if self._inbox is not None:
                # Not cancelled: the scheduler would go on asking for it, or complain in its log.
                await self._client.scheduler.queue_put(name=self._session, data={"end": True})
                await asyncio.wait([self._inbox], timeout=GOODBYE_SECONDS)
                self._inbox.cancel()
            # First of all the scheduler forgets it; then it waits for every worker, also for one that hangs.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._client.unregister_worker_plugin(self._session), GOODBYE_SECONDS)
            self._client._send_to_scheduler(  # noqa: SLF001 - as distributed.Queue.close() does
                {"op": "queue_release", "name": self._session, "client": self._session}
            )

        def unwatch() -> None:
            # What was not registered yet cannot be taken back. It never returns if a worker hangs.
            if self._registering is not None and not self._closed:
                wait([self._registering], GOODBYE_SECONDS)
            self._wait(self._begin(leave()), 3 * GOODBYE_SECONDS)

        return unwatch

    async def _hear(self, joined: Callable[[Sequence[str]], None]) -> None:
        while True:
            try:
                # Without a timeout: the scheduler would write each one that passes into its log, with a traceback.
                word = (await self._client.scheduler.queue_get(name=self._session, timeout=None))["value"]
            except Exception:  # noqa: BLE001 - no network, no queue: workers() makes another when it is back
                await asyncio.sleep(1)
                continue
            if not isinstance(word, dict):
                continue
            if word.get("end"):
                return
            box, reply, name = word.get("box"), word.get("reply"), word.get("joined")
            if isinstance(name, str):
                if isinstance(box, str):
                    self._boxes[name] = _Box(box, self._patience)
                joined([name])
                continue
            answers = next((one.answers for one in list(self._boxes.values()) if one.name == box), None)
            if answers and not (answer := answers.popleft()).done():
                answer.set_result(reply if isinstance(reply, str) else "")

    @property
    def _closed(self) -> bool:
        return getattr(self._client, "status", "running") in {"closed", "closing"}

    def _begin(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        if self._closed:
            work.close()
            raise CourierError("the dask client is closed", hint="forward again with the client that is open now")
        return asyncio.run_coroutine_threadsafe(work, self._client.loop.asyncio_loop)

    @staticmethod
    def _wait(future: Future[Any], seconds: float) -> Any:
        try:
            return future.result(seconds)
        except Late:
            future.cancel()
            raise LateError("no answer in time") from None
        except Exception as error:  # noqa: BLE001 - distributed raises what it likes
            said = _UNREAD if _is_unread(error) else f"{type(error).__name__}: {error}"
            raise CourierError(said[:300]) from None


def _is_unread(said: object) -> bool:
    """Whether it is an error whose class was not looked up here: distributed shows the pickle in which it came."""
    return isinstance(said, Exception) and bool(said.args) and isinstance(said.args[0], bytes | bytearray)


def _is_encrypted(client: Any) -> bool:
    return re.match(r"(tls|wss)://", str(getattr(client.scheduler, "address", ""))) is not None
