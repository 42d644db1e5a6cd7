"""Which instance does a *verified* identity token of Google's tell of?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from agent.core.errors import EvidenceError
from agent.core.model import Cloud
from agent.enrol.policy import Machine

_PROJECT: Final = re.compile(r"(?:[a-z0-9.-]{1,63}:)?[a-z][a-z0-9-]{4,28}[a-z0-9]\Z")
_NUMBER: Final = re.compile(r"[0-9]{1,20}\Z")
_EMAIL: Final = re.compile(r"[A-Za-z0-9._%+-]{1,128}@[A-Za-z0-9.-]{1,128}\Z")


def google_machine(claims: Mapping[str, Any]) -> Machine:
    """The instance. The caller has verified signature, issuer, audience and times.

    A token without ``google.compute_engine`` is not of an instance's metadata server: whoever may impersonate a service
    account gets one for any audience (``generateIdToken``), and so does Cloud Run.

    Raises:
        EvidenceError: code ``token``.
    """
    google = claims.get("google")
    instance = google.get("compute_engine") if isinstance(google, Mapping) else None
    if not isinstance(instance, Mapping):
        raise EvidenceError(
            "gcp-identity: the token does not say of which instance it is (no google.compute_engine)", code="token"
        )
    email, project, number = claims.get("email"), instance.get("project_id"), instance.get("instance_id")
    if claims.get("email_verified") is not True or not isinstance(email, str) or not _EMAIL.match(email):
        raise EvidenceError("gcp-identity: the token does not say whose it is (email, email_verified)", code="token")
    if not isinstance(project, str) or not _PROJECT.match(project):
        raise EvidenceError("gcp-identity: the token has no project_id", code="token")
    if not isinstance(number, str) or not _NUMBER.match(number):
        raise EvidenceError("gcp-identity: the token has no instance_id", code="token")
    return Machine(
        cloud=Cloud.GCP,
        account=project,
        principal=email,
        instance_id=number,
        instance_proved=True,
        source="gcp-identity",
    )
