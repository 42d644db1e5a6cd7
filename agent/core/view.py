"""The answer for one cloud at one instant: all that an endpoint may know.

The endpoints (``serve``) read these and translate them into a dialect. They never see grants, bundles or keys.
"""

from __future__ import annotations

import enum

import msgspec

from agent.core.model import AwsCredential, GoogleToken


class Origin(enum.StrEnum):
    """The origin of the identity that a cloud has."""

    WAITING = "waiting"  # inside the boot grace: no bundle yet, and no decision
    BUNDLE = "bundle"
    FALLBACK = "fallback"  # the machine's own identity
    CLOSED = "closed"  # a bundle decided this cloud and is gone, or no fallback is allowed


class Live(msgspec.Struct, frozen=True, tag="live"):
    """An unexpired credential. Serve it, whatever the refresh is doing.

    Attributes:
        name: the EC2 role name under which it is listed, or the Google account's e-mail.
        origin: bundle or fallback.
    """

    credential: AwsCredential | GoogleToken
    name: str
    origin: Origin


class Pending(msgspec.Struct, frozen=True, tag="pending"):
    """No credential yet, but one is on its way: boot grace, first mint. Ask again."""

    why: str


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """There was an identity, or there should be one, but there is none now.

    Attributes:
        why: a sentence for a person, no secret: the cause and the next step.
        passing: true when it is expected to come back without anybody acting (an upstream outage).
    """

    why: str
    passing: bool


class Absent(msgspec.Struct, frozen=True, tag="absent"):
    """This cloud has no identity here and never had one: neither bundle nor instance."""

    why: str


Answer = Live | Pending | Ended | Absent


class Facts(msgspec.Struct, frozen=True):
    """The facts that SDKs ask for beside credentials, from the bundle or the configuration. ``None``: not known here.

    Attributes:
        region: AWS region (``eu-west-1``).
        availability_zone: AWS zone (``eu-west-1a``).
        zone: Google zone (``europe-west1-b``), without the ``projects/...`` prefix.
    """

    region: str | None = None
    availability_zone: str | None = None
    account_id: str | None = None
    instance_id: str | None = None
    project_id: str | None = None
    numeric_project_id: str | None = None
    zone: str | None = None
