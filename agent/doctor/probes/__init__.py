"""Finds out what there is: all probes at once, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from agent.doctor import facts, isolation
from agent.doctor.isolation import Identity, Probe
from agent.doctor.probes.configuration import look_at_configuration
from agent.doctor.probes.keys import look_at_keys
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
    """

    path: Path
    root: bool
    service: Identity | None
    environ: Mapping[str, str]
    ask: Callable[[], facts.Control]


def examine(machine: Machine, *, seconds: float = isolation.SECONDS) -> facts.Facts:
    """Look at everything. Takes ``seconds``, and hardly longer whatever hangs."""
    service = machine.service
    probes = {
        "units": Probe(facts.Units, look_at_units),
        "control": Probe(facts.Control, machine.ask),
        "configuration": Probe(
            facts.Configuration,
            partial(look_at_configuration, machine.path, machine.environ, as_service=service is not None),
            service,
        ),
        "keys": Probe(facts.KeyFiles, partial(look_at_keys, machine.path, machine.environ), service),
        "arrival": Probe(facts.Arrival, partial(look_at_arrival, root=machine.root)),
    }
    found = isolation.look(probes, seconds=seconds)
    return facts.Facts(root=machine.root, seconds=seconds, config_path=str(machine.path), **found)
