"""What a reload leaves to a restart: no setting is passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest

from agent import config
from agent.config import Config, DirectorySigners, FileKey, FileSourceEntry, PassThrough, SignerEntry
from agent.daemon import LOADED_ONCE, needs_restart
from agent.daemon.files import Named, describe, named

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
    "environment.container_file",
    "environment.shell_file",
    "environment.group",
    "environment.mode",
    "environment.variables",
    "environment.allow",
    "environment.imds_endpoint",
    "environment.static",
    "log.level",
    "log.format",
    "audit.seconds",
    "audit.file",
    "audit.group",
    "audit.file_bytes",
    "metrics.textfile",
    "metrics.group",
    "metrics.seconds",
}
"""What a reload applies at once. Each has a test of its own, here or of the store and the listeners."""

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
        "launch_signers": (DirectorySigners(path="/d", issuers=("*",)),),
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


AT_USE = {
    "FileSourceEntry.path",
    "DirectorySigners.path",
    "Mint.web_token_directories",
    "HttpsEntry.token_file",
    "HttpsEntry.url_file",
}
"""Read whenever they are needed."""

WRITTEN = {
    "Listen.control",
    "EphemeralKey.publish_file",
    "Environment.file",
    "Environment.shell_file",
    "Environment.container_file",
    "Environment.token_file",
    "Audit.file",
    "Metrics.textfile",
    "State.directory",
}
"""The agent's own to write. A token that somebody else has put into `Environment.token_file` is taken."""


def paths() -> Iterator[tuple[type[msgspec.Struct], str]]:
    """Every key of the configuration whose value is a path."""
    for struct in vars(config).values():
        if isinstance(struct, type) and issubclass(struct, msgspec.Struct):
            hints = get_type_hints(struct, include_extras=True)
            for field in struct.__struct_fields__:
                if "^/[" in repr(hints[field]):  # a path of metadata begins otherwise
                    yield struct, field


def test_every_file_of_the_configuration_is_followed() -> None:
    """Each path that the configuration can name is watched, read at use, or written by us; a new key cannot be forgotten."""
    everything = Config(
        keys=(
            FileKey(path="/f/key"),
            config.AwsKmsKey(key_id="k", public_key="/f/aws"),
            config.GcpKmsKey(key_version="projects/p/cryptoKeyVersions/1", public_key="/f/gcp"),
            config.CredentialKey(name="credential"),
        ),
        signers=(SignerEntry(key="/f/signer", issuers=("*",)),),
        sources=(config.HttpsEntry(url_file="/f/url", ca_file="/f/ca", token_file="/f/token"),),
        upstream=config.Upstream(ca_file="/f/upstream"),
    )
    files = named(everything, credentials_directory="/credentials")
    watched = {str(file.path) for file in files if not file.at_use}
    expected = {
        "FileKey.path": "/f/key",
        "AwsKmsKey.public_key": "/f/aws",
        "GcpKmsKey.public_key": "/f/gcp",
        "SignerEntry.key": "/f/signer",
        "HttpsEntry.ca_file": "/f/ca",
        "Upstream.ca_file": "/f/upstream",
    }
    assert watched == {*expected.values(), "/credentials/credential"}
    known = {f"{struct.__name__}.{field}" for struct, field in paths()}
    assert len(known) > 10
    assert known - AT_USE - WRITTEN == set(expected)


def test_no_digest_of_a_secret_is_told(tmp_path: Path) -> None:
    """What is told of a secret file is that it was loaded, and nothing by which its content could be guessed."""
    secret = tmp_path / "key"
    secret.write_text("hunter2")
    (told,) = describe([Named("keys[0].path", secret, "worker's key", secret=True)])
    assert (told.key, told.path, told.sha256, told.count) == ("keys[0].path", str(secret), None, None)
