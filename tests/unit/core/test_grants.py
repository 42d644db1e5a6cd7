"""What each kind of grant says of itself: what a newcomer who adds one must not forget."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args

import msgspec
import pytest

from agent.core.model import Action, Bundle, Cloud, Grant, base_cloud_of, base_of, cloud_of, ends_of
from agent.core.secret import Secret
from agent.identity.graph import ready

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
    assert (base_cloud_of(grant) is None) == (base_of(grant) is None)
    if hasattr(grant, "base"):
        based = msgspec.structs.replace(grant, base="another")
        assert base_of(based) == "another"
        assert base_cloud_of(based) is not None


def filled(kind: type[msgspec.Struct]) -> Any:
    """A grant of that kind that a bundle could carry, but for its secrets."""
    required = {f.name: Secret("x") if f.type is Secret else "x" for f in msgspec.structs.fields(kind) if f.required}
    return kind(**{**required, **({"expires_at": 1_900_000_000} if "expires_at" in required else {})})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_finished_credential_is_ready(kind: type[msgspec.Struct]) -> None:
    """A grant that says when it ends is a credential: it is served as it is, renewed by nobody, and no other is."""
    grant, now = filled(kind), datetime(2026, 1, 1, tzinfo=UTC)
    bundle = Bundle(
        issuer="i", subject="s", bundle_id="b", seq=1, digest="d", action=Action.SET, issued_at=now, not_before=now,
        accept_until=now, lease_until=None, grants=(grant,),
    )  # fmt: skip
    credential = ready(grant, bundle)

    if ends_of(grant) is None:
        assert credential is None
        assert "expires_at" not in kind.__struct_fields__
    else:
        assert credential is not None
        assert credential.expires_at.timestamp() == ends_of(grant) == 1_900_000_000
