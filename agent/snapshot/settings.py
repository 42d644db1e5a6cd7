"""The settings of a process that answers, fixed when it begins: limits, waits, hidden paths, the key of the tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final

import msgspec

from agent.core.served import AuditMode

Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
Line = Annotated[str, msgspec.Meta(max_length=4096)]
Lines = Annotated[tuple[Line, ...], msgspec.Meta(max_length=1024)]

PASSED_CONNECTIONS: Final = 288
"""The connections that the pass-through (:mod:`agent.serve.proxy`) may have open, on a way out that nothing else uses:
32 requests and 256 long polls."""


class Limits(msgspec.Struct, frozen=True):
    """The limits of one client, and of all together.

    Attributes:
        head_bytes: the request line and all fields. EKS tokens are JWTs of 2 kB; SDK user agents reach 1 kB.
        line_bytes: the request line, or one field.
        headers: their number.
        body_bytes: of a request that means a body; on the workers' endpoint only guest attributes (GCE) do.
        head_seconds: from the connection to the whole request. SDKs send it at once; their own patience is 1 s.
        connections: open at once; each holds a file descriptor, so ``LimitNOFILE`` must be well above.
        held: requests that wait for a change at once; a thousand programs that start before the first credential do.
        spared_seconds: a connection younger than this is closed to make room after all others of its owner.
        buffered_bytes: of all requests that are not whole or wait, and of all answers that are not read, together.
        unread_seconds: how long an answer may stay unread.
        half_closed_seconds: how long a request may be held whose client has ended its side. One that only wants to read
            (``nc -N``) looks like one that is gone, and one that is gone must not hold a long poll for an hour.
    """

    head_bytes: Count = 16384
    line_bytes: Count = 8190
    headers: Count = 64
    body_bytes: Count = 65536
    head_seconds: Seconds = 5.0
    connections: Count = 8192
    held: Count = 4096
    spared_seconds: Seconds = 0.5
    unread_seconds: Seconds = 5.0
    half_closed_seconds: Seconds = 3.0
    buffered_bytes: Count = 1 << 24


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """See the attributes; the defaults are the binding ones.

    Attributes:
        token_key: makes and checks EC2 session tokens; at least 16 random bytes, kept over restarts.
        imdsv1: answer EC2 requests without a session token.
        hide: what workers do not see of the machine's own metadata beside :mod:`agent.serve.hiding`'s table, with what
            is below. EC2 paths are given under ``/latest`` and hold for every dated version.
        show: what they do see of it though the table hides it.
        early_phase: where the grid of early ends stands (:mod:`agent.core.early`); drawn once by each worker.
        own_namespaces: of guest attributes, those in which the agent publishes: workers do not write there.
        audit: how much is asked about those who are given something (:mod:`agent.serve.audit`).
        extra_hosts: names beside the usual that ``Host`` may say.
        ec2_hold_seconds: how long the role list waits for a first credential. Go gives up after 0.5 s.
        container_hold_seconds: the same for the container endpoint; C++ gives up after 1 s.
        gce_hold_seconds: the same for Google; google-auth gives up after 3 s.
        ec2_upstream_seconds: how long the real EC2 service may take for what is passed through.
        gce_upstream_seconds: the same for the real GCE server, long polls apart.
        real_ec2, real_gce: whether there is a real service behind us that may be asked for what is no credential.
        passed_connections: what the way out behind both may have open.
        limits: of the listener.
    """

    token_key: Annotated[bytes, msgspec.Meta(max_length=64)]
    imdsv1: bool = False
    audit: AuditMode = "summary"
    hide: Lines = ()
    show: Lines = ()
    early_phase: timedelta = timedelta()
    own_namespaces: Lines = ()
    extra_hosts: Lines = ()
    ec2_hold_seconds: Seconds = 0.35
    container_hold_seconds: Seconds = 0.35
    gce_hold_seconds: Seconds = 2.5
    ec2_upstream_seconds: Seconds = 0.35
    gce_upstream_seconds: Seconds = 2.5
    real_ec2: bool = False
    real_gce: bool = False
    passed_connections: Count = PASSED_CONNECTIONS
    limits: Limits = Limits()

    def __repr__(self) -> str:
        return "ServeSettings(...)"  # it holds a key
