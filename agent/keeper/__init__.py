"""The one loop, and the one owner of what outlives the process."""

from agent.keeper.loop import (
    ISSUE_TIMEOUT_SECONDS,
    MOVED_SECONDS,
    REVIEW_AGAIN_SECONDS,
    STATE,
    WRITE_AGAIN_SECONDS,
    Issued,
    Issuer,
    Keeper,
    Opener,
    Recorder,
)

__all__ = [
    "ISSUE_TIMEOUT_SECONDS",
    "MOVED_SECONDS",
    "REVIEW_AGAIN_SECONDS",
    "STATE",
    "WRITE_AGAIN_SECONDS",
    "Issued",
    "Issuer",
    "Keeper",
    "Opener",
    "Recorder",
]
