"""The operator's settings for minting."""

from __future__ import annotations

from typing import Final

import msgspec

from agent.core import google
from agent.core.model import Cloud

#: Where Google itself answers; grants may name these without any configuration.
GOOGLE_ORIGINS: Final = (*google.TOKEN_ORIGINS, "https://www.googleapis.com")


class GoogleEndpoints(msgspec.Struct, frozen=True):
    """Google's token endpoints. An operator's value other than the default wins over what a grant names.

    Attributes:
        token_url: OAuth 2.0 token endpoint (refresh tokens, service account assertions).
        sts_url: security token service (RFC 8693 token exchange).
        iamcredentials_url: scheme, host and port of the IAM credentials API, no path.
    """

    token_url: str = google.TOKEN_URL
    sts_url: str = google.STS_URL
    iamcredentials_url: str = google.IAM_CREDENTIALS_ORIGIN

    @classmethod
    def at(cls, base_url: str) -> GoogleEndpoints:
        """All three behind one base URL (a private endpoint, a fake), at the paths they have at Google."""
        base = base_url.rstrip("/")
        return cls(token_url=f"{base}{google.TOKEN_PATH}", sts_url=f"{base}{google.STS_PATH}", iamcredentials_url=base)


class MintSettings(msgspec.Struct, frozen=True):
    """Limits on what a bundle can make this machine do, and where the clouds answer.

    Attributes:
        sts_endpoint: one URL for every region; ``None`` for ``https://sts.<region>.<suffix of its partition>``.
        region: the AWS region when a grant names none; ``None`` asks the EC2 metadata service, and failing that takes
            the partition's main region.
        google: Google's endpoints.
        allowed_origins: origins (``https://broker.example``, ``http://10.0.0.5:8080``; a bare host means https) that
            the URLs of ``http-broker`` grants, token URLs and token exchanges may name. Google's own are always in.
        web_token_directories: absolute directories below which ``file`` tokens may lie; empty refuses them all.
        probe: ask ``sts:GetCallerIdentity`` who a new AWS credential is when its grant says who it must be.
        request_timeout_seconds: for one request to a cloud or broker, start to end.
        machine: the cloud that the hypervisor says this machine runs in, when known: a silent metadata service is
            then an outage, not the sign of another kind of machine.
    """

    sts_endpoint: str | None = None
    region: str | None = None
    google: GoogleEndpoints = GoogleEndpoints()
    allowed_origins: tuple[str, ...] = ()
    web_token_directories: tuple[str, ...] = ()
    probe: bool = True
    request_timeout_seconds: float = 15.0
    machine: Cloud | None = None
