"""One line from a laptop to a cluster: the identity of this computer, on every worker, renewed while this runs.

.. code-block:: python

    from dask.distributed import Client
    from agent import forward

    client = Client(cluster)
    with forward.dask(client):
        df = dd.read_parquet("s3://private/...")     # unchanged

Nothing is installed in the workers' Python; an agent must run on the workers and be told at launch to believe this
computer's key (:func:`launch_line`; the status says who is not served, and what to do). The identity travels sealed to
keys that the workers' machines have vouched for: neither the scheduler nor anybody on the way can read or alter it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

from agent.core.errors import AgentError
from agent.forward import signing
from agent.forward.courier import Courier, Job, LateError
from agent.forward.on_ssh import Ssh
from agent.forward.session import Forward
from agent.forward.status import CloudStatus, State, Status, WorkerStatus
from agent.forward.wanted import Wanted, begin

__all__ = [
    "AgentError",
    "CloudStatus",
    "Courier",
    "Forward",
    "Job",
    "LateError",
    "State",
    "Status",
    "Wanted",
    "WorkerStatus",
    "dask",
    "launch_line",
    "ray",
    "ray_hook",
    "ssh",
    "to",
]


def dask(client: Any, *, reconnect: Callable[[], Any] | None = None, **wanted: Unpack[Wanted]) -> Forward:
    """Forward to every present and future worker of a Dask cluster.

    A worker that joins is served before its first task. In a coroutine of an asynchronous client nothing begins before
    ``async with``.

    Args:
        client: the ``distributed.Client``.
        reconnect: makes another client when this one was closed, by the network or by somebody. By default that is the
            end of what is renewed here; the status says so.
        wanted: see :class:`Wanted`.

    Returns:
        When every worker that is there now has been dealt with; see :meth:`Forward.status`.

    Raises:
        UsageError: the arguments contradict each other.
        Denied: there is no identity on this computer, or it may not do what was asked.
        Transient: AWS or Google could not be reached.
        HostError: the signing key cannot be read or made.
        CourierError: the scheduler does not answer.
    """
    from agent.forward.on_dask import Dask  # noqa: PLC0415 - only when it is used

    def courier(session: str, issuer: str) -> Dask:
        return Dask(client, session=session, issuer=issuer, reconnect=reconnect)

    return begin(courier, wanted, lazy=lambda made: made.in_its_loop)


def ray(**wanted: Unpack[Wanted]) -> Forward:
    """Forward to every present and future node of the Ray cluster that this program is connected to.

    That is by ``ray.init``, on a node of it or from outside (``ray://HEAD:10001``). A node that joins is served within
    a second or so, and before its first task if :func:`ray_hook` is given to
    ``ray.init``. Otherwise as :func:`dask`.

    Args:
        wanted: see :class:`Wanted`.

    Raises:
        UsageError: also when there is no package ``ray`` here, or it is not connected.
    """
    from agent.forward.on_ray import Ray  # noqa: PLC0415 - only when it is used

    return begin(lambda _session, _issuer: Ray(), wanted)


def ray_hook() -> Callable[[], None]:
    """What has every process of Ray's wait for the identity before its first task, for ten seconds at most.

    .. code-block:: python

        ray.init("auto", runtime_env={"worker_process_setup_hook": forward.ray_hook()})
        with forward.ray(): ...

    It runs on the nodes, is sent by value and needs nothing of ours there. It is for a program that does forward. Over
    ``ray://`` Ray takes no such function: there the first tasks of a newcomer may be a second too early.
    """
    from agent.forward.on_ray import hook  # noqa: PLC0415 - only when it is used

    return hook()


def to(courier: Courier, **wanted: Unpack[Wanted]) -> Forward:
    """Forward to whatever ``courier`` reaches (:mod:`agent.forward.courier`). Otherwise as :func:`dask`."""
    return begin(lambda _session, _issuer: courier, wanted)


def ssh(hosts: Sequence[str], *, command: Sequence[str] = ("ssh",), **wanted: Unpack[Wanted]) -> Forward:
    """Forward to hosts by the user's own ``ssh``. Otherwise as :func:`dask`.

    ``ssh`` knows a host by its key: no other evidence is needed, unless ``accounts`` or the like ask for it.

    Args:
        hosts: as ``ssh`` takes them.
        command: what is run in place of ``ssh``, with options of it.
        wanted: see :class:`Wanted`.
    """
    return begin(lambda _session, _issuer: Ssh(hosts, command=command), wanted)


def launch_line(signer: str | Path | None = None) -> str:
    """The line for the workers' user-data that makes them believe this computer: it names your public key.

    Raises:
        HostError: the key cannot be read, or made where none is named.
    """
    return signing.launch_line(signing.named(signer))
