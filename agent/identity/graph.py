"""The grants of a bundle as a graph: what a route needs, what is already finished, what two bundles share."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from agent.core.model import (
    INSTANCE,
    AwsCredential,
    AwsSession,
    Bundle,
    Credential,
    GcpToken,
    GoogleToken,
    Grant,
    base_of,
    cloud_of,
    ends_of,
)
from agent.core.verdict import Key


def role_name_of(arn: str | None) -> str | None:
    """The role's name in ``arn:aws:sts::1234:assumed-role/NAME/session`` or ``arn:aws:iam::1234:role/path/NAME``."""
    if arn is None:
        return None
    kind, _, rest = arn.partition(":")[2].split(":", 4)[-1].partition("/")
    if not rest:
        return None
    name = rest.split("/")[0] if kind == "assumed-role" else rest.rsplit("/", 1)[-1]
    return name if kind in ("assumed-role", "role") and name else None


def dead_on_arrival(bundle: Bundle, now: datetime) -> str | None:
    """The id of a finished credential that a route leads to, bases included, and that has already expired."""
    for key, grant in reachable(bundle):
        ends = ends_of(grant)
        if ends is not None and ends <= now.timestamp():
            return key.grant_id
    return None


def ready(grant: Grant, bundle: Bundle) -> Credential | None:
    """The credential of a finished grant: nobody has to be asked for it."""
    if isinstance(grant, AwsSession):
        return AwsCredential(
            access_key_id=grant.access_key_id,
            secret_access_key=grant.secret_access_key,
            session_token=grant.session_token,
            issued_at=bundle.issued_at,
            expires_at=datetime.fromtimestamp(grant.expires_at, tz=bundle.issued_at.tzinfo),
            account_id=grant.account_id,
            role_arn=grant.role_arn,
            role_name=grant.role_name,
        )
    if isinstance(grant, GcpToken):
        return GoogleToken(
            access_token=grant.access_token,
            issued_at=bundle.issued_at,
            expires_at=datetime.fromtimestamp(grant.expires_at, tz=bundle.issued_at.tzinfo),
            email=grant.email,
            scopes=grant.scopes,
        )
    return None


def reachable(bundle: Bundle) -> Iterator[tuple[Key, Grant]]:
    """The grants that a route needs, bases included."""
    seen = set()
    pending = [grant_id for _, grant_id in sorted(bundle.routes.items())]
    while pending:
        grant_id = pending.pop()
        grant = bundle.grant(grant_id)
        if grant is None or grant_id in seen:
            continue
        seen.add(grant_id)
        cloud = cloud_of(grant)
        if cloud is None:
            raise AssertionError("internal error: a route to variables")
        yield Key(cloud, grant_id), grant
        base = base_of(grant)
        if base is not None and base != INSTANCE:
            pending.append(base)


def same_chain(old: Bundle, new: Bundle, grant_id: str) -> bool:
    """Whether the grant and all it stands on are the same in both bundles."""
    seen = set()
    while grant_id != INSTANCE and grant_id not in seen:
        seen.add(grant_id)
        before, after = old.grant(grant_id), new.grant(grant_id)
        if before is None or before != after:
            return False
        grant_id = base_of(before) or INSTANCE
    return True
