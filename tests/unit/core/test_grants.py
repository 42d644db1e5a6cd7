"""What each kind of grant says of itself: what a newcomer who adds one must not forget."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from agent.core.model import Cloud, Grant, base_of, cloud_of

KINDS: tuple[type[msgspec.Struct], ...] = get_args(Grant)


def bare(kind: type[msgspec.Struct]) -> Any:
    """A grant of that kind in which nothing is said but what has a default: a value in each other field."""
    values = {field.name: None for field in msgspec.structs.fields(kind) if field.required}
    return kind(**values)


CLOUDS = {"aws": Cloud.AWS, "http": Cloud.AWS, "gcp": Cloud.GCP, "env": None}
"""By the first word of the type that a bundle names. A broker speaks the container protocol, which is AWS's."""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_grant_belongs_to_the_cloud_that_its_type_names(kind: type[msgspec.Struct]) -> None:
    """An ``aws-...`` is of AWS, a ``gcp-...`` of Google: who forgets to say so of a new grant does not get Google."""
    assert cloud_of(bare(kind)) is CLOUDS[str(kind.__struct_config__.tag).partition("-")[0]]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_grant_with_a_base_says_so(kind: type[msgspec.Struct]) -> None:
    """Whoever has a field ``base`` stands on what it names."""
    grant = bare(kind)
    assert base_of(grant) == getattr(grant, "base", None)
    if hasattr(grant, "base"):
        assert base_of(msgspec.structs.replace(grant, base="another")) == "another"
