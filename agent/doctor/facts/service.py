"""Facts of the service itself: its units, what it answers, its configuration and keys, and who is led to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """A unit of systemd (systemctl(1), ``show``).

    Attributes:
        load: ``loaded``, ``not-found``, ``masked``, ``bad-setting``, ``error``.
        active: ``active``, ``activating``, ``inactive``, ``failed``...
        result: why it ended last: ``success``, ``exit-code``, ``signal``, ``watchdog``, ``oom-kill``...
        status: the exit status of the main process, when it ended last.
        restarts: how often systemd has started it again.
        enabled: the state of its file: ``enabled``, ``disabled``, ``static``, ``masked``...
        pid: of the main process; 0: there is none.
        process: the state of that process as proc(5) has it (``S``, ``T`` for stopped, ``D``); empty: not known.
        frozen: systemd was told to freeze it (systemctl(1), ``freeze``).
        user: whom it runs as; empty: root, or not known.
        drop_ins: files that change it and that we do not install.
        triggers: the units that it starts.
        stopped: those of its processes that a signal has stopped.
    """

    name: str
    load: str = ""
    active: str = ""
    sub: str = ""
    result: str = ""
    status: str = ""
    restarts: int = 0
    enabled: str = ""
    pid: int = 0
    process: str = ""
    frozen: bool = False
    user: str = ""
    drop_ins: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    stopped: tuple[int, ...] = ()


class Units(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a unit, from systemd.

    Attributes:
        present: whether systemd runs this machine.
        units: ours, by name.
        last_error: what the service last said when it failed; empty: nothing, or we may not read the journal.
    """

    present: bool
    units: Mapping[str, Unit] = {}
    last_error: str = ""


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of the daemon on its control socket, or on the couriers' socket.

    Attributes:
        state: ``answered``; ``silent``: connected and not answered in time; ``absent``: nobody listens; ``denied``: not
            ours to ask; ``broken``: an answer that makes no sense.
        path: of the socket.
        document: the status document.
        courier: it is the redacted document of the couriers' socket.
        why: in words, unless it answered.
    """

    state: Literal["answered", "silent", "absent", "denied", "broken"]
    path: str
    document: Mapping[str, Any] = {}
    courier: bool = False
    why: str = ""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something wrong with the configuration, or with what it names.

    Attributes:
        key: of the configuration, as ``keys[0].path``; empty: the file as a whole.
        said: what is wrong. ``hint``: what to do, for a person.
        text: it is the text of the file that is wrong, not what it names.
        path: of the file that the key names and that the service may not read; empty: that is not what is wrong.
        blocked: the directory on the way to it into which the service may not look; empty: none.
        mode: of that file, with its owner, in words.
    """

    key: str
    said: str
    hint: str | None = None
    text: bool = False
    path: str = ""
    blocked: str = ""
    mode: str = ""


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration as the service sees it.

    Attributes:
        path: of the file.
        faults: everything that is wrong.
        told: what the agent would start without.
        changed: when the file was changed last, since the epoch; 0: not known.
        as_service: whether it was looked at with the service's eyes.
        blocked: the directory on the way to the file into which one may not look; empty: none.
    """

    path: str
    faults: tuple[Fault, ...] = ()
    told: tuple[str, ...] = ()
    changed: int = 0
    as_service: bool = False
    blocked: str = ""


class KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    """One of the worker's keys, as the service can read it.

    Attributes:
        key: of the configuration, as ``keys[0]``.
        path: of its file; empty: it is in no file.
        name: of the systemd credential that it is.
        kids: its thumbprints or key ids, when it can be used.
        state: ``usable``; ``absent``; ``denied``; ``shared``: others may read it; ``not-a-key``; ``not-a-file``;
            ``elsewhere``: it is no file of ours to read (a KMS, memory, a credential that was not given).
        why: in words.
        blocked: the first directory on the way that the service may not enter.
        public: it is the public half of a key in a key service.
    """

    key: str
    path: str = ""
    name: str = ""
    kids: tuple[str, ...] = ()
    state: Literal["usable", "absent", "denied", "shared", "not-a-key", "not-a-file", "elsewhere"] = "usable"
    why: str = ""
    blocked: str = ""
    public: bool = False


class KeyFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Every key that the configuration names."""

    keys: tuple[KeyFile, ...] = ()


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a worker's request arrives.

    Attributes:
        expected: whether this machine leads workers' requests to the agent at all.
        state: ``led``, ``unanswered``, ``astray``, ``closed``, ``unknown`` (:mod:`agent.host.arrival`).
        why: in words. ``notes``: what is not as the configuration says.
        table: whether the kernel has our rules; ``None``: not ours to ask.
        asked: what a request to the metadata address was answered just now: a word of ``agent.host.arrival.ask``, by
            who asked (``uid 1000``).
        loopback: whether the interface ``lo`` is up.
        strangers: users that the configuration names and the machine does not have.
    """

    expected: bool
    state: str = ""
    why: str | None = None
    notes: tuple[str, ...] = ()
    table: bool | None = None
    asked: Mapping[str, str] = {}
    loopback: bool = True
    strangers: tuple[str, ...] = ()


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the kernel has our rules; ``None``: not ours to ask."""

    table: bool | None = None


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """Who listens at an address where workers ask.

    Attributes:
        address: as ``127.0.0.1:16925``.
        pid: of a process that has the socket; 0: not known. ``program``: its name.
        taken: whether anybody listens there.
        ours: whether it is systemd or the agent; ``None``: not known.
        unit: the socket unit that listens there, or should.
    """

    address: str
    taken: bool
    pid: int = 0
    program: str = ""
    ours: bool | None = None
    unit: str = "credential-agent.socket"


class Listeners(msgspec.Struct, frozen=True, kw_only=True):
    """Every address at which the agent listens, or should."""

    listeners: tuple[Listener, ...] = ()
