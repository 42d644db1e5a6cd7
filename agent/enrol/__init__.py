"""Enrolment: which key is this worker's, and what says so? The codec and the rules of PROTOCOL.md.

Both ends use it: the worker writes an enrolment, the sender reads it and checks its evidence. No I/O and no clock
here: evidence is collected by :mod:`agent.daemon`, and verified with those who vouch for it by :mod:`agent.sender`.
"""

from __future__ import annotations

from agent.core.errors import EvidenceError
from agent.enrol.binding import KEY_HEADER, NONCE_HEADER, audience, check_nonce, new_nonce
from agent.enrol.google import google_machine
from agent.enrol.message import (
    LARGEST_ENROLMENT,
    AwsSts,
    AwsWebIdentity,
    Enrolment,
    Evidence,
    GcpIdentity,
    Missing,
    read_enrolment,
    read_question,
    thumbprint_of,
    write_enrolment,
    write_question,
)
from agent.enrol.policy import Machine, Policy
from agent.enrol.sts import (
    STS_BODY,
    STS_CONTENT_TYPE,
    StsRequest,
    aws_machine,
    checked_request,
    is_sts_host,
    is_vpc_endpoint,
)

__all__ = [
    "KEY_HEADER",
    "LARGEST_ENROLMENT",
    "NONCE_HEADER",
    "STS_BODY",
    "STS_CONTENT_TYPE",
    "AwsSts",
    "AwsWebIdentity",
    "Enrolment",
    "Evidence",
    "EvidenceError",
    "GcpIdentity",
    "Machine",
    "Missing",
    "Policy",
    "StsRequest",
    "audience",
    "aws_machine",
    "check_nonce",
    "checked_request",
    "google_machine",
    "is_sts_host",
    "is_vpc_endpoint",
    "new_nonce",
    "read_enrolment",
    "read_question",
    "thumbprint_of",
    "write_enrolment",
    "write_question",
]
