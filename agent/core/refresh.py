"""When to renew, and when to try again: pure functions of instants and a random source.

The rule for AWS is the one that EC2 itself follows, and under which every SDK finds a *fresh* credential at its first
attempt to refresh: renew at an age drawn from ``min(60 min, L/3) x U(0.75, 1.0)`` of the lifetime ``L``. The served
credential then always has at least ``2L/3`` left, so a client that comes at half-life (Java), at 60 minutes before the
end (the 2026 cross-SDK rule for sessions of 90 minutes and more) or at 15 (botocore) meets a new one. The draw spreads
ten thousand workers that started in one second over a quarter of the period.

Google tokens live an hour and clients ask again from five minutes before the end, on every call (some storm below
300 seconds): so none is served with less than ten minutes left, not even after twenty minutes without an upstream.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Final

AWS_LONGEST_AGE: Final = timedelta(minutes=60)
AWS_AGE_FRACTION: Final = 1 / 3
AWS_SPREAD: Final = (0.75, 1.0)

GOOGLE_LEAD: Final = (timedelta(minutes=32), timedelta(minutes=40))
"""A Google token is renewed this long before its end (drawn between the two): ten minutes of life, an outage of twenty
minutes and the longest retries after it. Of a token that lives less than an hour, the same share of its life."""
_GOOGLE_WHOLE: Final = timedelta(hours=1)

INSTANCE_POLL: Final = timedelta(minutes=5)
"""The machine's own credential is re-read this often: a role attached, changed or rotated is seen within it."""

INSTANCE_GOOGLE_EAGER: Final = timedelta(minutes=12)
"""The real GCE metadata server hands out one token until 300 s before its end; with this much left we ask often."""

RETRY_FIRST_SECONDS: Final = 1.0
RETRY_CAP_SECONDS: Final = 60.0
RETRY_CAP_URGENT_SECONDS: Final = 30.0
"""With the draw from its upper half, 22.5 s between attempts: ten thousand workers whose credentials end soon ask 450
times a second, below the 600 at which STS throttles an account. (Ten seconds drawn in full were 1,900 a second.)"""
RETRY_CAP_LOCAL_SECONDS: Final = 10.0
PAUSE_URGENT_SECONDS: Final = 30.0
"""The most that a server may ask us to wait (``Retry-After``) when little or nothing is held."""
RETRY_FLOOR_SECONDS: Final = 0.2
"""Full jitter may draw nearly nothing; this keeps one worker from hammering in a tight loop."""
URGENT: Final = timedelta(minutes=15)

DENIED_FIRST_SECONDS: Final = 15.0
DENIED_CAP_SECONDS: Final = 300.0
DENIED_CAP_URGENT_SECONDS: Final = 60.0


def renew_aws_at(issued: datetime, expires: datetime, rng: random.Random) -> datetime:
    """The instant at which an AWS credential should be replaced.

    Args:
        issued: when it was minted (aware UTC).
        expires: its true end.
        rng: the source of the spread.
    """
    return issued + oldest_aws(expires - issued) * rng.uniform(*AWS_SPREAD)


def renew_google_at(issued: datetime, expires: datetime, rng: random.Random) -> datetime:
    """The instant at which a Google token should be replaced: 32 to 40 minutes early when it lives an hour or more."""
    low, high = GOOGLE_LEAD
    share = min(1.0, (expires - issued) / _GOOGLE_WHOLE)
    return expires - (low + (high - low) * rng.random()) * share


def oldest_aws(lifetime: timedelta) -> timedelta:
    """The age at which an AWS credential of that lifetime is replaced at the latest."""
    return min(AWS_LONGEST_AGE, lifetime * AWS_AGE_FRACTION)


def oldest_google(lifetime: timedelta) -> timedelta:
    """The age at which a Google token of that lifetime is replaced at the latest."""
    return lifetime - GOOGLE_LEAD[0] * min(1.0, lifetime / _GOOGLE_WHOLE)


def reread_instance_at(now: datetime, expires: datetime, *, google: bool, rng: random.Random) -> datetime:
    """The instant at which the machine's own credential should be read again from the real metadata service.

    It costs one to three requests on the link-local address and no quota, so the period is fixed, not a share of the
    lifetime; near the end of a Google token it is every half minute, since the service replaces it only at the last.
    """
    left = expires - now
    if google:
        if left > INSTANCE_GOOGLE_EAGER:
            return min(now + INSTANCE_POLL * 6, expires - INSTANCE_GOOGLE_EAGER)
        return now + min(timedelta(seconds=30), max(left / 10, timedelta(seconds=2))) * rng.uniform(*AWS_SPREAD)
    return now + max(min(INSTANCE_POLL, left / 3), timedelta(seconds=2)) * rng.uniform(*AWS_SPREAD)


def retry_seconds(
    attempt: int, left: timedelta | None, *, denied: bool, rng: random.Random, local: bool = False
) -> float:
    """How long to wait, in seconds, after the ``attempt``-th failure in a row (1 is the first).

    Passing failures: full jitter over ``min(60, 2^(attempt-1))`` seconds. In the last quarter hour of a credential, and
    without one, the pause is at most 15 to 30 seconds: an outage that ends is noticed within half a minute when it
    matters, and a whole fleet that comes to its last quarter hour at once does not keep the outage up by asking.
    Refusals are retried too, since a person may correct a policy, but more slowly.

    Args:
        attempt: failures in a row, from 1.
        left: the life left in what is held; ``None`` when nothing is.
        denied: the upstream refused, rather than failed.
        rng: the source of the jitter.
        local: the upstream is this machine's own, and no other worker asks it: 10 s are the most when it matters.
    """
    urgent = left is None or left <= URGENT
    exponent = min(attempt - 1, 16)
    if denied:
        cap = DENIED_CAP_URGENT_SECONDS if urgent else DENIED_CAP_SECONDS
        # Equal jitter: a refusal needs no hurry, only spreading.
        return float(min(cap, DENIED_FIRST_SECONDS * 2**exponent) * rng.uniform(0.5, 1.0))
    backoff = RETRY_FIRST_SECONDS * 2**exponent
    if urgent and local:
        return max(RETRY_FLOOR_SECONDS, rng.uniform(0.0, min(RETRY_CAP_LOCAL_SECONDS, backoff)))
    if urgent and backoff >= RETRY_CAP_URGENT_SECONDS:
        return RETRY_CAP_URGENT_SECONDS * rng.uniform(0.5, 1.0)
    return max(RETRY_FLOOR_SECONDS, rng.uniform(0.0, min(RETRY_CAP_SECONDS, backoff)))


def pause_seconds(asked: float, left: timedelta | None) -> float:
    """How much of the pause that a server asked for we observe, in seconds.

    All of it while much is held; half a minute in the last quarter hour and when nothing is held. Never more than a
    quarter of the life left: no server can make us miss the end of what we serve.
    """
    if left is None:
        return min(asked, PAUSE_URGENT_SECONDS)
    return min(asked, PAUSE_URGENT_SECONDS if left <= URGENT else asked, max(left.total_seconds(), 0.0) / 4)
