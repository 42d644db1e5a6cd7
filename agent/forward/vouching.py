"""Those who vouch for machines: STS and Google, as this computer reaches them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from agent.core.errors import UsageError
from agent.enrol import Policy, is_sts_host, is_vpc_endpoint
from agent.forward.agents import Verify
from agent.sender.evidence import Verifier
from agent.sender.https import Https


class Vouching:
    """Verifies evidence by the way that boto3 takes: its proxies, its certificates, its endpoint of STS.

    Args:
        aws: the ``boto3.Session``, or the name of the profile, that is forwarded; ``"auto"``: the default; ``None``:
            none is, and how STS is configured here is nobody's wish.

    Raises:
        UsageError: STS is configured to be somewhere where anybody could vouch for any machine.
    """

    def __init__(self, aws: Any) -> None:
        self._https = Https(None if aws in (None, "auto") else aws, os.environ)
        self._sts_url = None if aws is None else sts_url(self._https.sts_endpoint())

    def verifier(self, policy: Policy, now: Callable[[], datetime]) -> Verify:
        """What verifies evidence, and checks it by ``policy``."""
        return Verifier(policy, sts_url=self._sts_url, https=self._https, now=now).verify


def sts_url(endpoint: str) -> str | None:
    """Where evidence is sent in place of the STS host that it was signed for; ``None``: to that.

    Whoever answers there says whose machines are genuine. So it is AWS's own STS, a VPC endpoint of it, or this
    computer itself (what plays a cloud in tests); a setting for another service, or one that somebody slipped in, is
    none of these.

    Raises:
        UsageError: it is another place.
    """
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if parts.scheme == "https" and parts.netloc.lower() in (host, f"{host}:443"):
        if is_sts_host(host):
            return None
        if is_vpc_endpoint(host):
            return f"https://{host}/"
    if _is_here(host):
        return endpoint
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"[:100]  # not who somebody is there, nor his password
    raise UsageError(
        f"sts is configured to be at {place!r}, and whoever answers there could vouch for any machine",
        hint="leave out AWS_ENDPOINT_URL_STS, AWS_ENDPOINT_URL and the profile's endpoint_url, or name a VPC endpoint "
        "of STS: https://vpce-ID.sts.REGION.vpce.amazonaws.com",
    )


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
