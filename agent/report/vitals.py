"""What does a report need beside the store? The facts that only the daemon knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import msgspec

from agent.core.history import Entry
from agent.core.served import Caller, Reason
from agent.core.source import Ack
from agent.core.view import Absent, Ended, Live, Pending
from agent.host.arrival import Arrival
from agent.host.process import Usage

ANSWERS = MappingProxyType({Live: "live", Pending: "pending", Ended: "ended", Absent: "absent"})
"""The name of each kind of answer in status and metrics."""


class ClockVitals(msgspec.Struct, frozen=True, kw_only=True):
    """The witness that is believed about the time (:mod:`agent.core.timekeeping`).

    Attributes:
        believed: the witness: ``kernel``, ``metadata``, ``aws``, ``google`` or ``wall``.
        vouched: whether anybody but an unsynchronised wall clock confirms our time.
        heard: how many answers of the clouds it was compared with.
        moves: how often it was moved since the start.
        lost_seconds: how long the machine stood still without its clocks counting it.
        differences: by how many seconds each cloud was ahead of us when last heard.
    """

    believed: str = "wall"
    vouched: bool = False
    heard: int = 0
    moves: int = 0
    lost_seconds: float = 0.0
    differences: Mapping[str, float] = {}


class ServerVitals(msgspec.Struct, frozen=True, kw_only=True):
    """A process that answers workers.

    Attributes:
        pid: its process id.
        since: when it came.
        version: of what it has said it serves; 0: nothing yet.
        newest: whether that is what is served now.
        apart: whether it is a process of its own, and not the agent itself.
        stands_by: whether it answers nobody until the one that does has ended.
    """

    pid: int
    since: datetime
    version: int
    newest: bool
    apart: bool
    stands_by: bool = False


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that a report needs beside the store.

    Attributes:
        wall_error_seconds: how far the machine's wall clock is ahead of our estimate of the time.
        clock: who is believed about the time.
        sources: each source and its state: ``ok``, ``starting`` or what is wrong.
        refusal: the last bundle that was refused.
        memory_unwritten: the state directory could not be written: a restart would forget.
        refused_variables: names of the bundle's variables that are not passed on.
        keys: the key ids by which this worker can be addressed.
        signers: those it trusts: key ids, bounds, and who named them.
        absent_keys: the names of keys that it is configured to have and was not given.
        requests: requests answered, by endpoint and status.
        files: what was loaded from the files that the configuration names.
        configuration_changed: when the configuration's file was changed last that is in force, since the epoch.
        published: each place of our public key for senders, and its state: ``published`` or what is wrong.
        overwritten: how often something else was found in its place.
        log_dropped: lines of the log that nobody read.
        source_read: when each source was last read, or failed to be.
        source_every: the seconds between two looks, of those sources that are looked at seldom.
        history: what happened lately.
        without: why, by key, the machine lacks just now what the configuration names.
        processes: what each of our processes uses, by its name.
        servers: those that answer workers.
        replaced: how often one of those has ended before its time and has had a successor.
        served: what was given, by cloud, dialect and class of the caller.
        refused: requests refused, by reason.
        audit_dropped: lines of the audit that its file has not taken.
    """

    started: datetime
    wall_error_seconds: float
    clock: ClockVitals
    sources: Mapping[str, str]
    refusal: Ack | None
    memory_unwritten: bool
    keys: tuple[str, ...]
    refused_variables: tuple[str, ...] = ()
    signers: Sequence[Mapping[str, Any]] = ()
    absent_keys: tuple[str, ...] = ()
    audiences: tuple[str, ...]
    requests: Mapping[tuple[str, int], int] = {}
    redirect: Arrival | None = None
    files: tuple[msgspec.Struct, ...] = ()
    configuration_changed: float | None = None
    log_dropped: int = 0
    published: Mapping[str, str] = {}
    overwritten: int = 0
    without: Mapping[str, str] = {}
    source_read: Mapping[str, datetime] = {}
    source_every: Mapping[str, float] = {}
    history: Sequence[Entry] = ()
    processes: Mapping[str, Usage] = {}
    servers: Sequence[ServerVitals] = ()
    replaced: int = 0
    served: Mapping[tuple[str, str, Caller], int] = {}
    refused: Mapping[Reason, int] = {}
    audit_dropped: int = 0
