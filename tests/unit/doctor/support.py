"""A worker on which all is well, as facts; tests break one thing at a time."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.doctor.facts import (
    Access,
    Arrival,
    Bundles,
    Clock,
    Clouds,
    Configuration,
    Control,
    Endpoint,
    Facts,
    Held,
    Inside,
    KeyFile,
    KeyFiles,
    Listener,
    Listeners,
    Memory,
    Metadata,
    Place,
    Places,
    Releases,
    Service,
    Shell,
    Unit,
    Units,
)

SERVICE = "credential-agent.service"
PATH = "/etc/credential-agent/config.toml"
STS = "https://sts.us-east-1.amazonaws.com"
STATE = "/var/lib/credential-agent"
KEY = "/etc/credential-agent/worker.jwk"


def cloud(**changes: Any) -> dict[str, Any]:
    """A cloud of the status document, served from a bundle."""
    return {
        "state": "live", "origin": "bundle", "identity": "user", "role_arn": "arn:aws:iam::123456789012:role/user",
        "why": None, "expires_at": "2030-01-01T01:00:00Z", "horizon": "2030-01-01T12:00:00Z", "horizon_reason": "lease",
        "at_the_end": "nothing",
    } | changes  # fmt: skip


def server(**changes: Any) -> dict[str, Any]:
    """A process that answers workers, in the status document."""
    return {"pid": 43, "since": "2029-12-31T00:00:00Z", "version": 5, "newest": True, "apart": True} | changes


def status(**changes: Any) -> dict[str, Any]:
    """The status document of a daemon that serves AWS from a bundle."""
    return {
        "version": "0.1.0", "now": "2030-01-01T00:00:00Z", "started": "2029-12-31T00:00:00Z",
        "clouds": {"aws": cloud(), "gcp": cloud(state="absent", origin="none", identity=None, why="no grant")},
        "bundle": {"issuer": "https://control.example", "subject": "user:alice", "seq": 7, "origin": "file", "lease_until": "2030-01-01T12:00:00Z"},
        "credentials": [], "sources": {"file": "ok"}, "last_refusal": None, "keys": ["THUMB"],
        "signers": [{"kid": "SIGNER", "issuers": ["https://control.example"], "audiences": ["*"]}],
        "absent_keys": [], "audiences": ["urn:credbundle:key:THUMB"], "memory_unwritten": False, "redirect": None,
        "clock": {"believed": "kernel", "trusted": True, "ahead_seconds": {}, "wall_error_seconds": 0.0, "moves": 0,
                  "lost_seconds": 0.0, "samples": 0},
        "without": {}, "files": [], "log_dropped": 0, "servers": [server()], "servers_replaced": 0,
    } | changes  # fmt: skip


def held(**changes: Any) -> Held:
    """What the source holds: the bundle in force."""
    base = {
        "name": "file", "path": "/run/bundle", "state": "bundle", "recipients": ("THUMB",), "issuer": "https://control.example",
        "subject": "user:alice", "seq": 7, "signer": "SIGNER",
    }  # fmt: skip
    return Held(**{**base, **changes})


def found(**changes: Any) -> Bundles:
    """What is found where a source holds something else."""
    return Bundles(held=(held(**changes),), signers=tuple(status()["signers"]), audiences=("urn:a",), kids=("THUMB",))


def place(**changes: Any) -> Places:
    return Places(places=(Place(key="state.directory", path=STATE, **changes),))


def endpoint(**changes: Any) -> Clouds:
    return Clouds(endpoints=(Endpoint(cloud="aws", origin=STS, **changes),))


def service(**changes: Any) -> Metadata:
    return Metadata(platform="ec2", instance="i-0123456789", services=(Service(name="ec2", **changes),))


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
        bundles=Bundles(held=(held(),), signers=tuple(status()["signers"]), audiences=("urn:a",), kids=("THUMB",)),
        metadata=Metadata(
            platform="ec2", instance="i-0123456789", services=(Service(name="ec2", state="ok", ahead_seconds=0.1),)
        ),
        clouds=Clouds(endpoints=(Endpoint(cloud="aws", origin=STS, ahead_seconds=0.2),)),
        clock=Clock(synchronised=True),
        listeners=Listeners(
            listeners=(Listener(address="127.0.0.1:16925", taken=True, pid=1, program="systemd", ours=True),)
        ),
        places=Places(places=(Place(key="state.directory", path=STATE),)),
        access=Access(),
        inside=Inside(),
        memory=Memory(total=8 << 30, available=4 << 30),
        releases=Releases(ours="0.1.0", installed="r1", running="r1"),
        shell=Shell(),
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


def beside(name: str, **changes: Any) -> Units:
    """A service that runs, and another unit of ours."""
    running = Unit(name=SERVICE, load="loaded", active="active", result="success", enabled="enabled")
    base = {"load": "loaded", "active": "active", "result": "success"}
    return Units(present=True, units={SERVICE: running, name: Unit(name=name, **{**base, **changes})})


def without(name: str, **changes: Any) -> Units:
    """A service that systemd does not start, because another unit of ours is not well."""
    stopped = Unit(name=SERVICE, load="loaded", active="inactive", sub="dead", result="success", enabled="enabled")
    return Units(present=True, units={SERVICE: stopped, name: Unit(name=name, **{"load": "loaded", **changes})})


def silent() -> Control:
    return Control(state="silent", path="/run/credential-agent/control.sock", why="no answer within 2 s")


def answered(**changes: Any) -> Control:
    return Control(state="answered", path="/run/credential-agent/control.sock", document=status(**changes))


def key_file(**changes: Any) -> KeyFiles:
    return KeyFiles(keys=(KeyFile(key="keys[0]", path=KEY, **changes),))
