"""What the daemon decides for the listeners."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import msgspec

from agent.core.secret import Secret
from agent.serve.handling import Limits
from agent.serve.proxy import CONNECTIONS


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """See the attributes; the defaults are the binding ones.

    Attributes:
        token_key: makes and checks EC2 session tokens; at least 16 random bytes, kept over restarts.
        container_tokens: the bearer tokens that are good now, several while they rotate; called for each request, so
            it must be a lookup. None at all closes the container endpoint.
        container_ids: what stands for a token in ``/v2/credentials/ID``, likewise.
        imdsv1: answer EC2 requests without a session token.
        hide: what workers do not see of the machine's own metadata beside :mod:`agent.serve.hiding`'s table, with what
            is below. EC2 paths are given under ``/latest`` and hold for every dated version.
        show: what they do see of it though the table hides it.
        expects_bundle: whether bundles are taken here; called for each request.
        wall_ahead: how far the machine's wall clock, by which clients tell an end, is ahead of our time.
        refused: why the last bundle was refused, for a person; ``None`` when the last one was not.
        early_phase: where the grid of early ends stands (:mod:`agent.core.early`); drawn once by each worker.
        own_namespaces: of guest attributes, those in which the agent publishes: workers do not write there.
        extra_hosts: names beside the usual that ``Host`` may say.
        ec2_hold_seconds: how long the role list waits for a first credential. Go gives up after 0.5 s.
        container_hold_seconds: the same for the container endpoint; C++ gives up after 1 s.
        gce_hold_seconds: the same for Google; google-auth gives up after 3 s.
        ec2_upstream_seconds: how long the real EC2 service may take for what is passed through.
        gce_upstream_seconds: the same for the real GCE server, long polls apart.
        passed_connections: what the way out behind ``ec2`` and ``gce`` may have open.
    """

    token_key: bytes
    container_tokens: Callable[[], tuple[Secret, ...]] = tuple
    container_ids: Callable[[], tuple[Secret, ...]] = tuple
    imdsv1: bool = False
    hide: tuple[str, ...] = ()
    show: tuple[str, ...] = ()
    expects_bundle: Callable[[], bool] = lambda: True
    wall_ahead: Callable[[], timedelta] = timedelta
    refused: Callable[[], str | None] = lambda: None
    early_phase: timedelta = timedelta()
    own_namespaces: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    ec2_hold_seconds: float = 0.35
    container_hold_seconds: float = 0.35
    gce_hold_seconds: float = 2.5
    ec2_upstream_seconds: float = 0.35
    gce_upstream_seconds: float = 2.5
    passed_connections: int = CONNECTIONS
    limits: Limits = Limits()

    def __repr__(self) -> str:
        return "ServeSettings(...)"  # it holds a key
