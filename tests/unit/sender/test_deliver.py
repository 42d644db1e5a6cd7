"""Delivery to a GCE metadata attribute."""

from __future__ import annotations

from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from agent.core.errors import Denied, Transient
from agent.sender import gcp
from agent.sender.deliver import ATTEMPTS, GceAttribute, GceTarget
from tests.fakes.compute_api import FakeCompute, Metadata
from tests.unit.sender.support import serving

INSTANCE = "zones/europe-west1-b/instances/worker-1"
TARGET = "gce:demo-project/europe-west1-b/worker-1"


def put(compute: FakeCompute, text: str = TARGET, bundle: bytes = b"sealed") -> None:
    compute.tokens.add("good")
    target = GceTarget.parse(text)
    assert target is not None
    with serving(compute) as url:
        GceAttribute(
            target, credentials=Credentials("good"), request=gcp._transport(), endpoint=f"{url}/compute/v1"
        ).put(bundle)


def test_the_attribute_is_set_and_all_others_are_left_alone() -> None:
    """One item is replaced under the fingerprint it was read with; the rest is as it was."""
    compute = FakeCompute(metadata={INSTANCE: Metadata({"ssh-keys": "ada", "credential-bundle": "old"})}, waits=2)
    put(compute)
    assert compute.metadata[INSTANCE].items == {"ssh-keys": "ada", "credential-bundle": "sealed"}
    assert [a.path.rpartition("/")[2] for a in compute.asked] == ["worker-1", "setMetadata", "wait", "wait"]


def test_an_instance_without_metadata_gets_its_first_item() -> None:
    """The API leaves ``items`` out when there are none."""
    compute = FakeCompute(metadata={INSTANCE: Metadata()})
    put(compute, f"{TARGET}#other-key")
    assert compute.metadata[INSTANCE].items == {"other-key": "sealed"}


def test_a_whole_project_can_be_addressed() -> None:
    """``gce:PROJECT`` sets the project's common metadata."""
    compute = FakeCompute(metadata={"": Metadata({"a": "b"})})
    put(compute, "gce:demo-project")
    assert compute.metadata[""].items == {"a": "b", "credential-bundle": "sealed"}


def test_somebody_elses_change_in_between_is_kept() -> None:
    """A write that finds the fingerprint changed reads again and puts ours beside theirs."""
    compute = FakeCompute(metadata={INSTANCE: Metadata()}, conflicts=2)
    put(compute)
    assert compute.metadata[INSTANCE].items == {"somebody-else": "0", "credential-bundle": "sealed"}


def test_endless_conflict_is_given_up() -> None:
    """After a few rounds it is Transient, and nothing was written."""
    compute = FakeCompute(metadata={INSTANCE: Metadata()}, conflicts=ATTEMPTS)
    with pytest.raises(Transient, match="keep changing"):
        put(compute)
    assert "credential-bundle" not in compute.metadata[INSTANCE].items


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"metadata": {}}, Denied, "404"),
        ({"status": [403]}, Denied, "403"),
        ({"status": [503]}, Transient, "503"),
        ({"status": [429]}, Transient, "429"),
        ({"waits": 100}, Transient, "not done"),
        ({"operation_error": {"code": "QUOTA", "message": "no"}}, Denied, "QUOTA: no"),
    ],
)
def test_refusals_say_what_the_api_said(change: dict[str, Any], kind: type[Exception], said: str) -> None:
    """What may pass is Transient, what will not is Denied, and the attribute is named."""
    compute = FakeCompute(**{"metadata": {INSTANCE: Metadata()}, **change})
    with pytest.raises(kind, match=said) as caught:
        put(compute)
    assert "worker-1" in str(caught.value)


def test_what_is_too_long_is_not_sent() -> None:
    """A value of more than 256 KiB is refused here."""
    with pytest.raises(Denied, match="262144"):
        put(FakeCompute(metadata={INSTANCE: Metadata()}), bundle=b"x" * 262_145)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gce:",
        "gce:p/z",
        "gce:p/z/i/x",
        "gce:p/z/i#",
        "gce:p/../i",
        "gce:p/z/i?x",
        "aws:p",
        "gce:P/z/i",
        "gce:p/z/i#a b",
    ],
)
def test_other_targets_are_not_understood(text: str) -> None:
    """What is not exactly a target is none: it becomes a URL."""
    assert GceTarget.parse(text) is None


def test_targets_are_read() -> None:
    """Project, zone, instance by name or number, key; domain-scoped projects too."""
    assert GceTarget.parse("gce:p/europe-west1-b/123") == GceTarget("p", "europe-west1-b", "123")
    assert GceTarget.parse("gce:example.com:p#k") == GceTarget("example.com:p", None, None, "k")
