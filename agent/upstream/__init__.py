"""The one client for plain HTTP(S), and clients of the two metadata services.

Time limits, byte caps, "no redirects", "no cookies", "no proxy from the environment" and the refusal of private
addresses are decided here once, so that no source, provider or pass-through can forget one. The caller decides what an
answer *means*: any status is an answer here, and only its absence is an error.
"""

from agent.core.errors import UpstreamError
from agent.upstream.authorities import AuthoritiesError, believed, read_authorities
from agent.upstream.client import (
    NotHere,
    OtherCloud,
    Reach,
    SwitchedOff,
    Upstream,
    UpstreamResponse,
    UpstreamSettings,
    UpstreamStream,
)
from agent.upstream.dates import just_modified
from agent.upstream.guard import UpstreamRefused, origin_of
from agent.upstream.metadata import Ec2Metadata, GceMetadata, by_ec2, by_gce, speaks_gce, switched_off
from agent.upstream.pause import LONGEST_PAUSE_SECONDS, asked_pause

__all__ = [
    "LONGEST_PAUSE_SECONDS",
    "AuthoritiesError",
    "Ec2Metadata",
    "GceMetadata",
    "NotHere",
    "OtherCloud",
    "Reach",
    "SwitchedOff",
    "Upstream",
    "UpstreamError",
    "UpstreamRefused",
    "UpstreamResponse",
    "UpstreamSettings",
    "UpstreamStream",
    "asked_pause",
    "believed",
    "by_ec2",
    "by_gce",
    "just_modified",
    "origin_of",
    "read_authorities",
    "speaks_gce",
    "switched_off",
]
