"""What a reload leaves to a restart: no setting is passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from agent.config import Config, FileKey, FileSourceEntry, PassThrough, SignerEntry
from agent.daemon import LOADED_ONCE, needs_restart

APPLIED = {
    "identity.audience",
    "identity.fallback",
    "identity.on_expiry",
    "identity.role_name",
    "identity.horizon_lead_seconds",
    "keys",
    "signers",
    "aws.availability_zone",
    "aws.account_id",
    "gcp.project_id",
    "gcp.numeric_project_id",
    "gcp.zone",
    "environment.file",
    "environment.shell_file",
    "environment.group",
    "environment.mode",
    "environment.variables",
    "environment.imds_endpoint",
    "environment.static",
    "log.level",
    "log.format",
}
"""What a reload applies at once. Each has a test of its own, here or of the store and the doors."""

ANOTHER_UNIT = "redirect"


def keys() -> Iterator[str]:
    """Every key of the file that has a default; arrays of tables as a whole."""
    for section in Config.__struct_fields__:
        value = getattr(Config(), section)
        if isinstance(value, msgspec.Struct):
            yield from (f"{section}.{field}" for field in value.__struct_fields__)
        else:
            yield section


def changed(key: str) -> Config:
    """The defaults, but for ``key``."""
    section, _, field = key.partition(".")
    tables: dict[str, Any] = {
        "keys": (FileKey(path="/k"),),
        "signers": (SignerEntry(key="/s", issuers=("*",)),),
        "sources": (FileSourceEntry(path="/b"),),
    }
    if not field:
        return msgspec.structs.replace(Config(), **{section: tables[section]})
    inside = msgspec.structs.replace(getattr(Config(), section), **{field: object()})
    return msgspec.structs.replace(Config(), **{section: inside})


@pytest.mark.parametrize("key", list(keys()))
def test_what_is_not_applied_is_named(key: str) -> None:
    """Every setting is either applied by a reload or named in what needs a restart."""
    named = needs_restart(changed(key), Config())
    if key in APPLIED or key.startswith(ANOTHER_UNIT):
        assert named == []
    else:
        assert len(named) == 1
        assert key == named[0] or key.startswith(f"{named[0]}.")


def test_no_name_is_stale() -> None:
    """What is said to be loaded once, or to be applied, exists."""
    known = set(keys())
    assert known >= APPLIED
    assert all(name in known or any(key.startswith(f"{name}.") for key in known) for name in LOADED_ONCE)


def test_what_was_put_back_needs_no_restart() -> None:
    """What counts is the configuration that the process was started with, not the one before."""
    first, second = Config(), Config(pass_through=PassThrough(enabled=False))
    assert needs_restart(second, first) == ["pass_through"]
    assert needs_restart(first, first) == []
