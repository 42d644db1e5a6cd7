"""The controller: bundles in, credentials in, and the one owner of what outlives the process."""

from agent.keeper.durable import PATIENCE_SECONDS, WRITE_AGAIN_SECONDS, Durable, Outcome, Recorder
from agent.keeper.intake import REVIEW_AGAIN_SECONDS, STATE, Intake, Opener
from agent.keeper.issuing import ISSUE_TIMEOUT_SECONDS, Issuer, Issuing
from agent.keeper.loop import MOVED_SECONDS, Keeper

__all__ = [
    "ISSUE_TIMEOUT_SECONDS",
    "MOVED_SECONDS",
    "PATIENCE_SECONDS",
    "REVIEW_AGAIN_SECONDS",
    "STATE",
    "WRITE_AGAIN_SECONDS",
    "Durable",
    "Intake",
    "Issuer",
    "Issuing",
    "Keeper",
    "Opener",
    "Outcome",
    "Recorder",
]
