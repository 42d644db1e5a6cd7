"""The one loop, and the one owner of what outlives the process."""

from agent.keeper.durable import PATIENCE_SECONDS, WRITE_AGAIN_SECONDS, Durable, Outcome, Recorder
from agent.keeper.loop import (
    ISSUE_TIMEOUT_SECONDS,
    MOVED_SECONDS,
    REVIEW_AGAIN_SECONDS,
    STATE,
    Issued,
    Issuer,
    Keeper,
    Opener,
)

__all__ = [
    "ISSUE_TIMEOUT_SECONDS",
    "MOVED_SECONDS",
    "PATIENCE_SECONDS",
    "REVIEW_AGAIN_SECONDS",
    "STATE",
    "WRITE_AGAIN_SECONDS",
    "Durable",
    "Issued",
    "Issuer",
    "Keeper",
    "Opener",
    "Outcome",
    "Recorder",
]
