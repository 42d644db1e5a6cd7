"""Why is what answers workers cut off, or what begins it? It may have been taken over, and does not fill the log."""

from __future__ import annotations

import structlog

from agent.controller.seldom import Seldom


def tell(seldom: Seldom, why: str) -> None:
    """Log it, at times only, and then how often it was not."""
    if (unsaid := seldom.unsaid("server.cut_off")) is not None:
        structlog.get_logger().error("server.cut_off", why=why, unsaid=unsaid)
