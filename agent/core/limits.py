"""Sizes on which several rooms must agree."""

from __future__ import annotations

from typing import Final

MAX_BUNDLE_BYTES: Final = 262_144
"""The largest sealed bundle (FORMAT.md): what the largest channel carries, a GCE attribute. What is longer is not read
to its end."""
