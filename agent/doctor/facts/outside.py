"""Facts of the world outside: sources, bundles, metadata services, clouds, the time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What a source, or a file, holds just now; and what this worker would say of it.

    Attributes:
        name: of the source.
        path: of its file; empty: it is none.
        state: ``none``: nothing is there; ``broken``: it cannot be read; ``bundle``: something was found.
        why: what is wrong, when it is broken. ``hint``: what to do, for a person.
        code: why it would be refused (``agent/bundle/FORMAT.md``); empty: it would be taken.
        recipients: the key ids that it is sealed to.
        issuer, subject, seq, signer: of a bundle that could be opened.
        withdraws: it takes back what its sender sent, and brings nothing.
    """

    name: str
    path: str = ""
    state: Literal["none", "broken", "bundle"] = "none"
    why: str = ""
    hint: str = ""
    code: str = ""
    recipients: tuple[str, ...] = ()
    issuer: str = ""
    subject: str = ""
    seq: int = 0
    signer: str = ""
    withdraws: bool = False


class Bundles(msgspec.Struct, frozen=True, kw_only=True):
    """What the sources hold, and whom this worker believes and answers to.

    Attributes:
        held: by each source, and by the file that was asked about (its name is empty).
        signers: as in the status document.
        audiences: what this worker answers to.
        kids: the keys that could be used for this look.
        configured: whether keys are configured: without one no bundle is expected.
    """

    held: tuple[Held, ...] = ()
    signers: tuple[Mapping[str, Any], ...] = ()
    audiences: tuple[str, ...] = ()
    kids: tuple[str, ...] = ()
    configured: bool = True


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A metadata service of the machine.

    Attributes:
        name: ``ec2`` or ``gce``.
        state: ``ok``; ``disabled``; ``hop-limit``: it answers, and its tokens do not come this far; ``absent``:
            something else answers; ``elsewhere``: the other cloud's does; ``between``: a proxy does; ``silent``;
            ``no-identity``: the machine has none of its own.
        why: in words.
        ahead_seconds: by how much its clock is ahead of this machine's.
    """

    name: str
    state: Literal["ok", "disabled", "between", "hop-limit", "absent", "elsewhere", "silent", "no-identity"]
    why: str = ""
    ahead_seconds: float | None = None


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """Those that this machine has.

    Attributes:
        platform: what the firmware says: ``ec2``, ``gce`` or ``other``.
        instance: what EC2's firmware calls this machine, ``i-...``; empty: it does not say.
    """

    platform: str
    instance: str = ""
    services: tuple[Service, ...] = ()


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A cloud's endpoint where credentials are renewed.

    Attributes:
        cloud: ``aws`` or ``gcp``. ``origin``: scheme and host.
        why: why there was no answer; empty: there was one.
        kind: of failure: ``proxy``, ``name``, ``tls``, ``network``, ``timeout``.
        ahead_seconds: by how much its clock is ahead of this machine's.
    """

    cloud: str
    origin: str
    why: str = ""
    kind: str = ""
    ahead_seconds: float | None = None


class Clouds(msgspec.Struct, frozen=True, kw_only=True):
    """The clouds' endpoints. ``proxy``: whether one is configured."""

    endpoints: tuple[Endpoint, ...] = ()
    proxy: bool = False
