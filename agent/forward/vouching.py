"""Those who vouch for machines: STS and Google, as this computer reaches them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime

from agent.enrol import Policy
from agent.forward.enrolling import Verify
from agent.sender.evidence import Verifier


def verifier(policy: Policy, now: Callable[[], datetime]) -> Verify:
    """Verifies evidence, and checks it by ``policy``.

    STS is asked at ``AWS_ENDPOINT_URL_STS`` if this computer's user has set that (a VPC endpoint): who says where this
    computer's own credentials are exchanged may also say where a worker's evidence is.
    """
    return Verifier(policy, sts_url=os.environ.get("AWS_ENDPOINT_URL_STS") or None, now=now).verify
