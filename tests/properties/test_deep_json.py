"""JSON nested without end, wherever bytes of somebody else's are read: each reader fails in its own one way.

msgspec raises ``RecursionError`` for it, typed or not, also inside fields that are skipped; a broker or a proxy that
sends sixty kilobytes of brackets would otherwise end a task whose loop expects its room's error only.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.cli import where
from agent.config import Config
from agent.core import announced, jwt
from agent.core.errors import AgentError
from agent.daemon import grace
from agent.host.state import MEMORY_FILE, StateDirectory
from agent.keys import aws_kms, gcp_kms
from agent.serve import gce_directories as directories
from agent.wire import container, ec2, gce
from agent.wire.http import JSON, Response

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DEEP = b"[" * 60_000
SKIPPED = b'{"unknown":' * 60_000
"""Deep inside a field that no reader knows."""


@pytest.mark.parametrize("data", [DEEP, SKIPPED], ids=["arrays", "skipped-objects"])
@pytest.mark.parametrize(
    "read",
    [
        container.parse_credential,
        ec2.parse_credential,
        ec2.parse_identity,
        gce.parse_account,
        lambda data: gce.parse_token(data, NOW),
        gcp_kms._plaintext,
        lambda data: aws_kms._parse(data, aws_kms._Answer, "DeriveSharedSecret"),
    ],
    ids=["container", "ec2-credential", "ec2-identity", "gce-account", "gce-token", "gcp-kms", "aws-kms"],
)
def test_a_reader_has_one_way_to_fail(read: Callable[[bytes], object], data: bytes) -> None:
    """Nesting deeper than a parser may recurse is the room's own error, without a word of what was sent."""
    with pytest.raises(AgentError) as caught:
        read(data)
    assert "[[[" not in caught.value.message
    assert "unknown" not in caught.value.message


@pytest.mark.parametrize("data", [DEEP, SKIPPED], ids=["arrays", "skipped-objects"])
def test_a_memory_nested_deep(tmp_path: Path, data: bytes) -> None:
    """A memory file that was tampered with is unreadable, and said to be."""
    (tmp_path / MEMORY_FILE).write_bytes(data)
    with pytest.raises(AgentError, match="expected what the agent wrote"):
        StateDirectory(tmp_path).load()


@pytest.mark.parametrize(
    "data",
    [SKIPPED[:65_000], b'{"instance_id": "\xff", "http": "\xff"}', b"\xff\xfe"],
    ids=["deep", "no-utf-8", "no-json"],
)
def test_a_file_of_before_that_is_garbage(tmp_path: Path, data: bytes) -> None:
    """What an earlier process left for this one is as good as not there, whatever is in it."""
    (tmp_path / grace.FILE).write_bytes(data)
    assert grace.read(tmp_path, uptime=1e9) is None
    (tmp_path / announced.FILE).write_bytes(data)
    assert where._told(tmp_path) == where._of(Config())


def test_a_token_nested_deep() -> None:
    """A token's claims that cannot be read are none."""
    assert jwt.claims(f"e30.{base64.urlsafe_b64encode(SKIPPED).decode()}.", dict[str, Any]) is None


def test_a_leaf_that_is_no_json() -> None:
    """A leaf of the real server that is asked for as text, with all below it, is handed on as it is."""
    leaf = Response(200, (("Content-Type", "application/text"),), b"\xff no json")
    assert asyncio.run(directories.Directories._as_text(leaf, ("instance",))) is leaf


def test_a_listing_nested_deep() -> None:
    """A directory of the real metadata server that nobody can look into is not passed on."""
    answer = Response(200, (JSON,), DEEP)
    assert directories._relisted_json(answer, "bundle".__eq__).status == 503


def test_a_refusal_nested_deep() -> None:
    """A key service's refusal that cannot be read is a status without a word."""
    key = gcp_kms.GcpKmsKey.__new__(gcp_kms.GcpKmsKey)
    key._key_version = "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1"
    assert key._refusal(403, SKIPPED).message.endswith("status 403")


def test_it_is_deep_enough() -> None:
    """The inputs do what they are for: a reader without care meets ``RecursionError``."""
    with pytest.raises(RecursionError):
        json.loads(DEEP)
