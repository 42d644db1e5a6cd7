"""Finds out what there is: all probes at once, each in a process of its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from agent.doctor import facts, isolation
from agent.doctor.isolation import Identity, Probe
from agent.doctor.probes.bundles import look_at_bundles
from agent.doctor.probes.configuration import look_at_configuration
from agent.doctor.probes.keys import look_at_keys
from agent.doctor.probes.listeners import look_at_listeners
from agent.doctor.probes.machine import look_at_clock, look_at_memory, look_at_places, look_at_releases
from agent.doctor.probes.outside import look_at_clouds, look_at_metadata
from agent.doctor.probes.redirect import look_at_arrival
from agent.doctor.probes.units import look_at_units


class Machine(NamedTuple):
    """Where to look, and as whom.

    Attributes:
        path: the configuration.
        root: whether we are root.
        service: whom the service runs as, if we can become that.
        environ: what the service would be passed.
        ask: asks the daemon for its status.
        file: a bundle to judge.
    """

    path: Path
    root: bool
    service: Identity | None
    environ: Mapping[str, str]
    ask: Callable[[], facts.Control]
    file: bytes | None = None


def examine(machine: Machine, *, seconds: float = isolation.SECONDS) -> facts.Facts:
    """Look at everything. Takes ``seconds``, and hardly longer whatever hangs."""
    # Imported once, before there are processes that would each import it in their two seconds.
    importlib.import_module("aiohttp")
    path, service = machine.path, machine.service
    served = partial(look_at_configuration, path, machine.environ, as_service=service is not None)
    probes = {
        "units": Probe(facts.Units, look_at_units),
        "control": Probe(facts.Control, machine.ask),
        "configuration": Probe(facts.Configuration, served, service),
        "keys": Probe(facts.KeyFiles, partial(look_at_keys, path, machine.environ), service),
        "bundles": Probe(facts.Bundles, partial(look_at_bundles, path, machine.environ, machine.file), service),
        "metadata": Probe(facts.Metadata, partial(look_at_metadata, path), service),
        "clouds": Probe(facts.Clouds, partial(look_at_clouds, path), service),
        "clock": Probe(facts.Clock, look_at_clock),
        "listeners": Probe(facts.Listeners, partial(look_at_listeners, path)),
        "arrival": Probe(facts.Arrival, partial(look_at_arrival, path, root=machine.root)),
        "places": Probe(facts.Places, partial(look_at_places, path), service),
        "memory": Probe(facts.Memory, look_at_memory),
        "releases": Probe(facts.Releases, look_at_releases),
    }
    found = isolation.look(probes, seconds=seconds)
    return facts.Facts(root=machine.root, seconds=seconds, config_path=str(path), **found)
