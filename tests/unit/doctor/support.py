"""A worker on which all is well, as facts; tests break one thing at a time."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.doctor.facts import (
    Arrival,
    Configuration,
    Control,
    Facts,
    KeyFile,
    KeyFiles,
    Unit,
    Units,
)

SERVICE = "credential-agent.service"
PATH = "/etc/credential-agent/config.toml"
KEY = "/etc/credential-agent/worker.jwk"


def cloud(**changes: Any) -> dict[str, Any]:
    """A cloud of the status document, served from a bundle."""
    return {
        "state": "live", "origin": "bundle", "identity": "user", "role_arn": "arn:aws:iam::123456789012:role/user",
        "why": None, "expires_at": "2030-01-01T01:00:00Z", "horizon": "2030-01-01T12:00:00Z", "horizon_reason": "lease",
        "at_the_end": "nothing",
    } | changes  # fmt: skip


def status(**changes: Any) -> dict[str, Any]:
    """The status document of a daemon that serves AWS from a bundle."""
    return {
        "version": "0.1.0", "now": "2030-01-01T00:00:00Z", "started": "2029-12-31T00:00:00Z",
        "clouds": {"aws": cloud(), "gcp": cloud(state="absent", origin="none", identity=None, why="no grant")},
        "bundle": {"issuer": "https://control.example", "seq": 7, "origin": "file", "lease_until": "2030-01-01T12:00:00Z"},
        "credentials": [], "sources": {"file": "ok"}, "last_refusal": None, "keys": ["THUMB"],
        "signers": [{"kid": "SIGNER", "issuers": ["https://control.example"], "audiences": ["*"]}],
        "absent_keys": [], "audiences": ["urn:credbundle:key:THUMB"], "memory_unwritten": False, "redirect": None,
        "clock": {"believed": "kernel", "trusted": True, "ahead_seconds": {}, "wall_error_seconds": 0.0, "moves": 0,
                  "lost_seconds": 0.0, "samples": 0},
        "without": {}, "files": [], "log_dropped": 0,
    } | changes  # fmt: skip


def healthy() -> Facts:
    """Nothing is wrong."""
    unit = Unit(
        name=SERVICE,
        load="loaded",
        active="active",
        sub="running",
        result="success",
        status="0",
        enabled="enabled",
        pid=7,
    )
    return Facts(
        root=True,
        seconds=2.0,
        config_path=PATH,
        units=Units(present=True, units={SERVICE: unit}),
        control=Control(state="answered", path="/run/credential-agent/control.sock", document=status()),
        configuration=Configuration(path=PATH, as_service=True),
        keys=KeyFiles(keys=(KeyFile(key="keys[0]", path=KEY, kids=("THUMB",)),)),
        arrival=Arrival(expected=True, state="led", table=True, asked={"uid 1000": "agent"}),
    )


def with_(**changes: Any) -> Facts:
    """The same with other facts."""
    return msgspec.structs.replace(healthy(), **changes)


def unit(**changes: Any) -> Units:
    """What systemd says of a service that does not answer."""
    last_error = changes.pop("last_error", "")
    base = Unit(name=SERVICE, load="loaded", active="failed", sub="failed", result="exit-code", status="1")
    return Units(present=True, units={SERVICE: msgspec.structs.replace(base, **changes)}, last_error=last_error)


def silent() -> Control:
    return Control(state="silent", path="/run/credential-agent/control.sock", why="no answer within 2 s")


def answered(**changes: Any) -> Control:
    return Control(state="answered", path="/run/credential-agent/control.sock", document=status(**changes))


def key_file(**changes: Any) -> KeyFiles:
    return KeyFiles(keys=(KeyFile(key="keys[0]", path=KEY, **changes),))
