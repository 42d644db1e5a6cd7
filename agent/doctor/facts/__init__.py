"""What the probes found: everything that a check may go by, as frozen values.

A fact that could not be had is an :class:`Unknown`, which says why; no check fails for the want of one.
"""

from __future__ import annotations

import shlex

import msgspec

from agent.doctor.facts.access import Access, Exposed, Inside, Way
from agent.doctor.facts.machine import Clock, Memory, Place, Places, Releases
from agent.doctor.facts.outside import Bundles, Clouds, Endpoint, Held, Metadata, Service
from agent.doctor.facts.service import (
    Arrival,
    Configuration,
    Control,
    Fault,
    KeyFile,
    KeyFiles,
    Listener,
    Listeners,
    Rules,
    Unit,
    Units,
)
from agent.doctor.facts.shell import Shell
from agent.doctor.facts.unknown import Unknown

__all__ = [
    "Access",
    "Arrival",
    "Bundles",
    "Clock",
    "Clouds",
    "Configuration",
    "Control",
    "Endpoint",
    "Exposed",
    "Facts",
    "Fault",
    "Held",
    "Inside",
    "KeyFile",
    "KeyFiles",
    "Listener",
    "Listeners",
    "Memory",
    "Metadata",
    "Place",
    "Places",
    "Releases",
    "Rules",
    "Service",
    "Shell",
    "Unit",
    "Units",
    "Unknown",
    "Way",
]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found.

    Attributes:
        root: whether it was looked with the rights of root.
        seconds: how long each probe had.
        user: whether the service's user is there, where the service is installed.
        sudo: whether there is one: a minimal image has none.
    """

    root: bool
    seconds: float
    config_path: str
    units: Units | Unknown
    control: Control | Unknown
    configuration: Configuration | Unknown
    keys: KeyFiles | Unknown
    bundles: Bundles | Unknown
    metadata: Metadata | Unknown
    clouds: Clouds | Unknown
    clock: Clock | Unknown
    listeners: Listeners | Unknown
    arrival: Arrival | Unknown
    places: Places | Unknown
    access: Access | Unknown
    inside: Inside | Unknown
    memory: Memory | Unknown
    releases: Releases | Unknown
    shell: Shell | Unknown
    sudo: bool = True
    user: bool = True

    @property
    def more(self) -> str | None:
        """The command that would see more, for whoever has not the rights of root."""
        return None if self.root else self.as_root("credential-agent doctor")

    def as_root(self, command: str) -> str:
        """A command that needs the rights of root, as whoever looks can type it on this machine."""
        if self.root:
            return command
        if not self.sudo:
            return f"su --command {shlex.quote(command)}"
        return f"sudo sh -c {shlex.quote(command)}" if "&&" in command else f"sudo {command}"
