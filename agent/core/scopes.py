"""Which sets of Google's scopes are narrower than others, so that a program may get a token for them.

``token?scopes=`` is ignored by GCE and honoured by Cloud Run and GKE. Here it is honoured if it asks for less: the
sender gives the scopes of the grant, so a program gets no scope beyond them. For anything else it gets the ordinary
token, as on GCE: that has the scopes it needs, or the service that it calls refuses it.
"""

from __future__ import annotations

from typing import Final

from agent.core.model import CLOUD_PLATFORM, GcpExternalAccount, GcpImpersonation, GcpServiceAccount, Grant

_MOST_ASKED: Final = 16
_AUTH: Final = "https://www.googleapis.com/auth/"
_IN_CLOUD_PLATFORM: Final = (
    "bigquery", "cloud-platform", "cloud_debugger", "cloudkms", "cloudruntimeconfig", "compute", "datastore",
    "devstorage.", "logging.", "monitoring", "ndev.clouddns.", "pubsub", "service.management", "servicecontrol",
    "source.", "spanner.", "sqlservice.", "taskqueue", "trace.", "userinfo.email",
)  # fmt: skip
"""What ``cloud-platform`` covers, by the beginning of its name below ``auth/`` (Google's list of OAuth scopes); and who
it is, which gives no access. Scopes that are not Google Cloud's (Drive, Gmail, the directory) are not covered."""


def given_by(grant: Grant | None) -> tuple[str, ...]:
    """The scopes that ``grant`` gives, where tokens for fewer can be minted from it; else none."""
    return grant.scopes if isinstance(grant, GcpServiceAccount | GcpImpersonation | GcpExternalAccount) else ()


def narrower(given: tuple[str, ...], asked: tuple[str, ...]) -> tuple[str, ...] | None:
    """The scopes to mint for, in order; ``None`` when the ordinary token is the answer."""
    wanted = tuple(sorted(set(asked)))
    if not given or not wanted or len(wanted) > _MOST_ASKED:
        return None
    if set(given) <= set(wanted) or not all(_is_scope(scope) for scope in wanted):
        return None
    whole = CLOUD_PLATFORM in given
    covered = all(scope in given or (whole and _in_cloud_platform(scope)) for scope in wanted)
    return wanted if covered else None


def _is_scope(text: str) -> bool:
    return 0 < len(text) <= 256 and all("!" <= letter <= "~" and letter not in '"\\' for letter in text)


def _in_cloud_platform(scope: str) -> bool:
    return scope in {"openid", "email"} or (
        scope.removeprefix(_AUTH).startswith(_IN_CLOUD_PLATFORM) and (scope.startswith(_AUTH))
    )
