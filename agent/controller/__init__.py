"""The controller: bundles in, credentials in, and the one owner of what outlives the process."""

from agent.controller.awaited import Awaited
from agent.controller.durable import PATIENCE_SECONDS, WRITE_AGAIN_SECONDS, Durable, Outcome, Recorder
from agent.controller.intake import Intake
from agent.controller.issuing import ISSUE_TIMEOUT_SECONDS, Issuer, Issuing
from agent.controller.loop import MOVED_SECONDS, Controller
from agent.controller.opener import Opener
from agent.controller.review import REVIEW_AGAIN_SECONDS

__all__ = [
    "ISSUE_TIMEOUT_SECONDS",
    "MOVED_SECONDS",
    "PATIENCE_SECONDS",
    "REVIEW_AGAIN_SECONDS",
    "WRITE_AGAIN_SECONDS",
    "Awaited",
    "Controller",
    "Durable",
    "Intake",
    "Issuer",
    "Issuing",
    "Opener",
    "Outcome",
    "Recorder",
]
