"""Ray: every node that is there and every one that comes, by tasks that are bound to a node and ask for no CPU of it.

What runs there is text, in the arguments of a function that is pickled by value: nothing of ours is on the nodes. Ray
has no place where a node that comes waits for us. So its nodes are asked for twice a second, and a program that wants a
task of a newcomer to wait all the same says so when it connects (:func:`agent.forward.ray_hook`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from agent.core.errors import CourierError, UsageError
from agent.forward.courier import PROGRAM, PROMPT_SECONDS, Job, LateError

START_SECONDS: Final = 20.0
"""How long a node may take to start its first process for us, beside what the request itself may take."""
AGAIN_SECONDS: Final = 5.0
"""The same, for a node that has answered before."""
BEYOND_SECONDS: Final = 1.0
"""The same, while others wait: whose answer does not come then is asked again apart from them, and patiently."""
GLANCE_SECONDS: Final = 0.5
"""How often we look who is there."""
SHARE: Final = 20
"""In a large cluster a look takes longer: of so many parts of the time one is spent with it."""
PATIENCE_SECONDS: Final = 10.0
"""How long a process waits by the hook before it takes tasks all the same: whoever forwards may be gone."""

_ASKING: Final = "CREDENTIAL_AGENT_CARRIES"
"""A variable of the processes that carry for us: they must not wait for what they bring."""

_ON_NODE: Final = f"""
def carry(program, request):
    names = {{"__name__": "credential-agent"}}
    exec(program, names)
    return names["main"](request)


def wait_for_identity(program={PROGRAM!r}, patience={PATIENCE_SECONDS!r}):
    import json
    import os
    import time

    if os.environ.get({_ASKING!r}):
        return
    names = {{"__name__": "credential-agent"}}
    exec(program, names)
    ends = time.monotonic() + patience
    request = json.dumps({{"steps": [["GET", "/v1/status", None]], "seconds": 2}})
    while time.monotonic() < ends:
        reply = json.loads(names["main"](request))
        if reply["problem"] == "no-agent":
            return
        try:
            if json.loads(reply["answers"][0][1]).get("bundle"):
                return
        except (LookupError, ValueError, AttributeError):
            pass
        time.sleep(0.1)
"""


def _function(name: str) -> Any:
    # Of a module that nobody can import: cloudpickle sends such a function by value.
    names: dict[str, Any] = {"__name__": "credential-agent"}
    exec(_ON_NODE, names)  # noqa: S102 - the text above
    return names[name]


def hook() -> Callable[[], None]:
    """The function for ``worker_process_setup_hook``: see :func:`agent.forward.ray_hook`."""
    return _function("wait_for_identity")  # type: ignore[no-any-return]


def imported() -> Any:
    """The package.

    Raises:
        UsageError: it is not there.
    """
    try:
        import ray  # noqa: PLC0415 - no dependency of ours
    except ImportError:
        raise UsageError(
            "forwarding to Ray needs the package ray beside this program",
            hint="pip install 'ray[client]', in the version that the cluster has",
        ) from None
    if not hasattr(ray, "is_initialized"):
        raise UsageError("what is imported as ray is another package", hint="is there a ray.py or ray/ in this folder?")
    return ray


class Ray:
    """The courier of the Ray cluster that this program is connected to.

    Raises:
        UsageError: there is no ``ray`` here, or it is not connected.
    """

    name = "ray"
    named = False

    def __init__(self) -> None:
        self._ray = imported()
        if not self._ray.is_initialized():
            raise UsageError(
                "forward.ray() takes the cluster that this program is connected to, and there is none",
                hint='first: ray.init("ray://HEAD:10001")',
            )
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        self._at = NodeAffinitySchedulingStrategy
        context = self._ray.get_runtime_context()
        self._job = self._connection()
        self._carry = self._ray.remote(num_cpus=0, max_retries=0)(_function("carry"))
        self._answered: set[str] = set()
        self._options: dict[str, Any] = {}
        if (context.runtime_env or {}).get("worker_process_setup_hook"):
            self._options["runtime_env"] = {"env_vars": {_ASKING: "1"}}
        # As Ray itself reads it: then every connection of the cluster is TLS by its own certificates, or none.
        self.private = os.environ.get("RAY_USE_TLS", "0").lower() in {"1", "true"}

    def _connection(self) -> str:
        context = self._ray.get_runtime_context()
        # Every cluster counts its jobs from one, so the next cluster may have the same job. Ids of nodes are random.
        return f"{context.get_job_id()} on {context.get_node_id()}"

    def _check(self) -> None:
        # Else Ray would start a cluster of its own here, or it would go to one that nobody named.
        if not self._ray.is_initialized() or self._connection() != self._job:
            raise CourierError(
                "this program is no longer connected to the ray cluster that it forwarded to",
                hint="forward again after ray.init()",
            )

    def workers(self) -> Sequence[str]:
        """The ids of the nodes that are alive."""
        self._check()
        try:
            return [str(node["NodeID"]) for node in self._ray.nodes() if node["Alive"]]
        except Exception as error:  # noqa: BLE001 - ray raises what it likes
            raise _said(error) from None

    def call(self, job: Job, workers: Sequence[str]) -> Mapping[str, str | Exception]:
        """Run it on them, beside their tasks."""
        self._check()
        said: dict[str, str | Exception] = {}
        begun: dict[Any, str] = {}
        for node in workers:
            try:
                bound = self._carry.options(scheduling_strategy=self._at(node, soft=False), **self._options)
                begun[bound.remote(PROGRAM, job.request)] = node
            except Exception as error:  # noqa: BLE001 - ray raises what it likes
                said[node] = _said(error)
        if not begun:
            return said
        start = AGAIN_SECONDS if self._answered.issuperset(workers) else START_SECONDS
        if job.seconds <= PROMPT_SECONDS:
            start = BEYOND_SECONDS
        try:
            ready, late = self._ray.wait(list(begun), num_returns=len(begun), timeout=job.seconds + start)
        except Exception as error:  # noqa: BLE001 - ray raises what it likes
            raise _said(error) from None
        for one in ready:
            try:
                said[begun[one]] = self._ray.get(one)
                self._answered.add(begun[one])
            except Exception as error:  # noqa: BLE001 - a node may have left meanwhile
                said[begun[one]] = _said(error)
        for one in late:
            said[begun[one]] = LateError(f"no answer in {job.seconds:.0f} s")
            with contextlib.suppress(Exception):
                self._ray.cancel(one, force=True)
        return said

    def watch(self, joined: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        """Look who has come, twice a second."""
        ended = threading.Event()
        known = set(self.workers())

        def look() -> None:
            pause = GLANCE_SECONDS
            while not ended.wait(pause):
                begun = time.monotonic()
                with contextlib.suppress(CourierError):  # it is told by who asks for all of them
                    found = set(self.workers())
                    if found - known:
                        joined(sorted(found - known))
                    known.clear()
                    known.update(found)
                pause = max(GLANCE_SECONDS, (time.monotonic() - begun) * SHARE)

        thread = threading.Thread(target=look, name="credential-agent-ray", daemon=True)
        thread.start()

        def leave() -> None:
            ended.set()
            thread.join(START_SECONDS)

        return leave


def _said(error: Exception) -> CourierError:
    lines = str(error).strip().splitlines()
    return CourierError(f"{type(error).__name__}: {lines[0] if lines else ''}"[:300])
