"""Bundles and credentials for the tests of core, made by hand."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from agent.core.model import (
    Action,
    AwsAssumeRole,
    AwsCredential,
    AwsSession,
    Bundle,
    Cloud,
    Env,
    GcpToken,
    GoogleToken,
    Grant,
    OnExpiry,
)
from agent.core.secret import Secret
from tests.fakes.clock import START

HOUR = timedelta(hours=1)


def session(
    grant_id: str = "user", *, hours: float = 12, now: datetime = START, key: str = "ASIAUSER000000000000"
) -> AwsSession:
    return AwsSession(
        id=grant_id,
        access_key_id=key,
        secret_access_key=Secret("s"),
        session_token=Secret("t"),
        expires_at=int((now + HOUR * hours).timestamp()),
    )


def google(grant_id: str = "g", *, hours: float = 1, now: datetime = START) -> GcpToken:
    return GcpToken(
        id=grant_id, access_token=Secret("ya29"), expires_at=int((now + HOUR * hours).timestamp()), email="u@x.example"
    )


def role(grant_id: str = "role", *, base: str = "instance") -> AwsAssumeRole:
    return AwsAssumeRole(id=grant_id, role_arn="arn:aws:iam::123456789012:role/Data", base=base)


def bundle(
    *grants: Grant,
    seq: int = 1,
    routes: dict[Cloud, str] | None = None,
    on_expiry: OnExpiry | None = None,
    lease: datetime | None = None,
    action: Action = Action.SET,
    issuer: str = "cp",
    subject: str = "team",
    now: datetime = START,
    salt: str = "",
) -> Bundle:
    if routes is None:
        routes = {}
        for grant in grants:
            if isinstance(grant, GcpToken):
                routes[Cloud.GCP] = grant.id
            elif not isinstance(grant, Env):
                routes[Cloud.AWS] = grant.id
    text = f"{issuer}|{subject}|{seq}|{action}|{[g.id for g in grants]}|{salt}"
    return Bundle(
        issuer=issuer,
        subject=subject,
        bundle_id=f"b{seq}",
        seq=seq,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        action=action,
        issued_at=now,
        not_before=now,
        accept_until=now + HOUR,
        lease_until=lease,
        grants=grants,
        routes=routes if action is Action.SET else {},
        on_expiry=on_expiry,
        origin="file",
    )


def aws_credential(
    now: datetime, *, minutes: float = 60, key: str = "ASIAMINTED0000000000", role_name: str | None = None
) -> AwsCredential:
    return AwsCredential(
        access_key_id=key,
        secret_access_key=Secret("s"),
        session_token=Secret("t"),
        issued_at=now,
        expires_at=now + timedelta(minutes=minutes),
        role_name=role_name,
    )


def google_token(now: datetime, *, minutes: float = 60) -> GoogleToken:
    return GoogleToken(
        access_token=Secret("ya29"),
        issued_at=now,
        expires_at=now + timedelta(minutes=minutes),
        email="sa@p.iam.example",
    )
