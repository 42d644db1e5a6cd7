"""A client that is connected anew speaks to the cluster that was meant, or gets nothing; the clusters are stand-ins."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from agent.core.errors import CourierError
from agent.forward import on_ray
from agent.forward.on_dask import Dask
from agent.forward.on_ray import Ray


class Package:
    """``ray``, connected to one cluster after the other; each counts its jobs from one."""

    def __init__(self) -> None:
        self.node = "aa"

    def is_initialized(self) -> bool:
        return True

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_job_id=lambda: "01000000", get_node_id=lambda: self.node, runtime_env={})

    def remote(self, **_: Any) -> Any:
        return lambda function: function

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": self.node, "Alive": True}]


def test_the_first_job_of_another_ray_cluster_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that leaves a fresh cluster for another fresh one has the same job in both."""
    package = Package()
    strategies: Any = SimpleNamespace(NodeAffinitySchedulingStrategy=object)
    monkeypatch.setattr(on_ray, "imported", lambda: package)
    for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, strategies)
    courier = Ray()
    assert courier.workers() == ["aa"]
    package.node = "bb"
    with pytest.raises(CourierError, match="no longer connected"):
        courier.workers()


def test_a_dask_client_that_is_no_longer_encrypted_is_not_taken() -> None:
    """Workers that need not prove who they are were meant by their certificates."""
    closed: list[str] = []

    def client(address: str, status: str) -> Any:
        scheduler = SimpleNamespace(address=address)
        return SimpleNamespace(
            scheduler=scheduler, status=status, register_plugin=None, close=lambda: closed.append(address)
        )

    plain = client("tcp://scheduler:8786", "running")
    courier = Dask(client("tls://scheduler:8786", "closed"), session="one", issuer="laptop:me", reconnect=lambda: plain)
    with pytest.raises(CourierError, match="not encrypted"):
        courier.workers()
    assert closed == ["tcp://scheduler:8786"]
