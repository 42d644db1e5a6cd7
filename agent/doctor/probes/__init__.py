"""Finds out what there is: all probes at once, each in a process of its own."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from msgspec.structs import replace

from agent.core.errors import HostError
from agent.doctor import facts, isolation
from agent.doctor.checks.unit import SERVER, SERVICE
from agent.doctor.isolation import Identity, Probe
from agent.doctor.probes.access import look_at_access, look_inside
from agent.doctor.probes.bundles import look_at_bundles
from agent.doctor.probes.configuration import look_at_configuration
from agent.doctor.probes.keys import look_at_keys
from agent.doctor.probes.listeners import look_at_listeners
from agent.doctor.probes.machine import look_at_clock, look_at_memory, look_at_places, look_at_releases
from agent.doctor.probes.outside import look_at_clouds, look_at_metadata
from agent.doctor.probes.redirect import look_at_arrival, look_at_rules
from agent.doctor.probes.shell import look_at_shell
from agent.doctor.probes.units import look_at_units

_SERVICES: Final = ("configuration", "keys", "bundles", "metadata", "places")
"""Looked at as the service sees it, or not at all."""
UNITS_SECONDS: Final = 1.0
"""What systemd has to answer before the rest is looked at."""


class Machine(NamedTuple):
    """Where to look, and as whom.

    Attributes:
        path: the configuration.
        root: whether we are root.
        service: whom the service runs as, if we can become that.
        eyes: whether what this process may read is what the service may: it is root, or started by hand by this user.
        environ: what the service would be passed.
        shell, home: the environment of whoever calls, and their home.
        ask: asks the daemon for its status.
        file: a bundle to evaluate.
    """

    path: Path
    root: bool
    service: Identity | None
    environ: Mapping[str, str]
    shell: Mapping[str, str]
    home: Path
    ask: Callable[[], facts.Control]
    file: bytes | None = None
    eyes: bool = True


def examine(machine: Machine, *, seconds: float = isolation.SECONDS) -> facts.Facts:
    """Look at everything. Takes ``seconds``, and hardly longer whatever hangs."""
    # Imported once, before there are processes that would each import it in their two seconds.
    importlib.import_module("aiohttp")
    path, service = machine.path, machine.service
    # First: whoever connects to a socket that systemd holds for a service that is stopped starts it.
    first = isolation.look({"units": Probe(facts.Units, look_at_units)}, seconds=min(UNITS_SECONDS, seconds))
    ask = not _rests(first["units"])
    # What answers workers may run without the agent, and then to ask it starts nothing.
    worker = ask or _active(first["units"], SERVER)
    served = partial(look_at_configuration, path, machine.environ, as_service=service is not None)
    probes = {
        "arrival": Probe(facts.Arrival, partial(look_at_arrival, path, root=machine.root, ask=worker)),
        "control": Probe(facts.Control, machine.ask if ask else _not_asked),
        "configuration": Probe(facts.Configuration, served, service),
        "keys": Probe(facts.KeyFiles, partial(look_at_keys, path, machine.environ), service),
        "bundles": Probe(facts.Bundles, partial(look_at_bundles, path, machine.environ, machine.file), service),
        "metadata": Probe(facts.Metadata, partial(look_at_metadata, path), service),
        "clouds": Probe(facts.Clouds, partial(look_at_clouds, path), service),
        "clock": Probe(facts.Clock, look_at_clock),
        "listeners": Probe(facts.Listeners, partial(look_at_listeners, path)),
        "access": Probe(facts.Access, partial(look_at_access, path, root=machine.root)),
        "inside": Probe(facts.Inside, partial(look_inside, path, _pid(first["units"]), root=machine.root)),
        "rules": Probe(facts.Rules, partial(look_at_rules, root=machine.root)),
        "places": Probe(facts.Places, partial(look_at_places, path), service),
        "memory": Probe(facts.Memory, look_at_memory),
        "releases": Probe(facts.Releases, look_at_releases),
        "shell": Probe(facts.Shell, partial(look_at_shell, machine.shell, machine.home)),
    }
    if not machine.eyes:
        for name in _SERVICES:
            probes[name] = Probe(facts.Unknown, _for_others)
    found = first | isolation.look(probes, seconds=seconds)
    rules = found.pop("rules")
    if isinstance(found["arrival"], facts.Arrival) and isinstance(rules, facts.Rules):
        found["arrival"] = replace(found["arrival"], table=rules.table)
    sudo = shutil.which("sudo") is not None
    user = not (machine.root and machine.service is None and _installed(first["units"]))
    return facts.Facts(user=user, root=machine.root, seconds=seconds, config_path=str(path), sudo=sudo, **found)


def _for_others() -> facts.Unknown:
    raise HostError("for root and the service alone: what another user may read, and is answered, is not what it is")


def _pid(units: facts.Units | facts.Unknown) -> int:
    """The service's main process; 0: there is none."""
    unit = None if isinstance(units, facts.Unknown) else units.units.get(SERVICE)
    return 0 if unit is None else unit.pid


def _installed(units: facts.Units | facts.Unknown) -> bool:
    unit = None if isinstance(units, facts.Unknown) else units.units.get(SERVICE)
    return unit is not None and unit.load == "loaded"


def _rests(units: facts.Units | facts.Unknown) -> bool:
    """Whether the service is stopped, or has been given up."""
    unit = None if isinstance(units, facts.Unknown) else units.units.get(SERVICE)
    return unit is not None and unit.load == "loaded" and unit.active in {"inactive", "failed"}


def _active(units: facts.Units | facts.Unknown, name: str) -> bool:
    unit = None if isinstance(units, facts.Unknown) else units.units.get(name)
    return unit is not None and unit.active == "active"


def _not_asked() -> facts.Control:
    return facts.Control(state="absent", path="", why="it is stopped, and to ask it would start it")
