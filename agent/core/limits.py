"""Sizes and durations on which several packages must agree."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

MAX_BUNDLE_BYTES: Final = 262_144
"""The largest sealed bundle (FORMAT.md): what the largest channel carries, a GCE attribute. Anything longer is not read
to its end."""

CHAINED_ROLE: Final = timedelta(hours=1)
"""A role assumed with the session of another role lasts an hour at most, whatever its own maximum; STS refuses to be
asked for more."""

USUAL_GOOGLE_TOKEN: Final = timedelta(hours=1)
"""A Google token lasts an hour; an impersonated one up to twelve where an organization policy allows the account."""
