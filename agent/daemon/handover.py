"""The state that one process of the agent hands to the next, beside the credentials (:mod:`agent.daemon.kept`).

A restart asks for nothing again. So that workers are answered before a key, a key service, the metadata service, a name
server or a disk is asked, the next process is given what each of them would say: the bundle in force with its content,
the machine's names, the memory, the keys that exist nowhere else, how far retries and the boot grace have come, and how
far each source has read what is in force, so that a fleet that is upgraded downloads no bundle again. Values that cost
only one request to the machine's own metadata service are left out: its session token, and the tags of its attributes.

**Where it lies.** In sealed anonymous memory that systemd holds for this unit alone (``FileDescriptorStoreMax=``), over
a crash and a restart, not over a stop or a boot. The design forbids an opened bundle on a disk, where it would outlive
the machine in an image or a backup; this is memory, as much the unit's own as the heap of the previous process, and
gone with the kernel. Whoever can read it can read that heap.

**Why it may be trusted.** Nobody but this unit's main process and root can put a descriptor there. Even so no
verdict is taken over: the content of the bundle is handed on *signed*, and is evaluated anew by the trust, the
audiences and the leases of the present configuration. Bundles of a signer that is no longer pinned are not served after
a restart.

**Other versions.** Unknown members are ignored and missing ones have defaults; another ``version`` is another format,
and is left alone: everything is then asked for again, as at the start of a machine.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
import structlog

from agent import bundle, keys
from agent.core.errors import AgentError, HostError
from agent.core.history import Entry
from agent.core.model import Cloud
from agent.core.secret import Secret
from agent.core.source import Position, Resumable, Source
from agent.core.verdict import Memory
from agent.core.view import Facts
from agent.daemon import codec, disk
from agent.daemon.gap import Known
from agent.host.clock import SystemClock
from agent.host.systemd import Passed
from agent.identity import leftovers, streams
from agent.identity.events import Remnant, Waiting
from agent.identity.store import Store

NAME: Final = "handover"
VERSION: Final = 1
MAX_BYTES: Final = 16 << 20


class _Remnant(codec.Bearing, frozen=True, kw_only=True):
    cloud: Cloud
    digest: str
    ends: datetime | None
    name: str
    lease: datetime | None
    stream: tuple[str, str] | None = None  # earlier versions said neither whose it was,
    signer: str = ""  # nor who had signed that


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """See the module.

    Attributes:
        version: of this format.
        uptime: CLOCK_BOOTTIME, in seconds, when it was left.
        now: the time by that process, at that instant.
        positions: how far each source has read what is in force, by its name.
        began: CLOCK_BOOTTIME when the boot grace of this boot and instance began.
        memory: what that process remembered, whether or not the state directory can be read.
        doubted: it was not known whether that memory is this machine's: a restart makes it no more so.
        gap: what is known of a gap in this machine's clocks.
        brought: what of it was brought to this machine in this boot (:attr:`agent.identity.state.State.brought`).
        sealed: the bundle in force, as it came, in base64.
        signed: its content, in base64.
        recipient: the key that it was sealed to.
        signers: the keys that were trusted, and for what: see :func:`fingerprints`.
        audiences: the names that the machine itself answers to.
        facts: what the machine said of region, zone and the like.
        files: what the public files of the configuration said, by path.
        holding: whether the boot grace had not begun to count: a file had not answered yet.
        awaited: why a first bundle was waited for longer than that, by cloud.
        ephemeral: the private JWK that exists nowhere else, as text.
        token_key: the key of the EC2 session tokens, in base64.
        tokens: the bearer tokens of the container endpoint, the present one first.
        waiting: what could not be issued so far.
        remnants: what an earlier bundle left.
        history: what happened lately.
        announced: where our public key stood when last looked at (:attr:`agent.daemon.announce.Announcer.stood`).
    """

    version: int = VERSION
    uptime: float
    now: datetime
    began: float
    memory: Memory = Memory()
    doubted: bool = False
    gap: Known | None = None
    brought: Memory = Memory()
    sealed: Secret | None = None
    signed: Secret | None = None
    recipient: str = ""
    positions: dict[str, Position] = {}
    signers: list[str] = []
    audiences: list[str] = []
    facts: Facts = Facts()
    files: dict[str, str] = {}
    holding: bool = False
    awaited: dict[Cloud, str] = {}
    ephemeral: Secret | None = None
    token_key: Secret | None = None
    tokens: list[Secret] = []
    waiting: list[Waiting] = []
    remnants: list[_Remnant] = []
    history: list[Entry] = []
    announced: dict[str, str] = {}

    def same_as(self, other: Handover | None) -> bool:
        """Whether it says the same, at another moment."""
        return other is not None and msgspec.structs.replace(self, uptime=other.uptime, now=other.now) == other

    def shift(self, clock: SystemClock) -> timedelta:
        """The difference by which our time is behind that process's, zero or less.

        Never above: where we are ahead, that process may have been right, and a stop of the machine makes no end later.
        """
        by = clock.now() - (self.now + timedelta(seconds=clock.uptime() - self.uptime))
        return min(by, timedelta())

    def key(self) -> keys.LocalKey | None:
        """The key that was made at an earlier start."""
        if self.ephemeral is None:
            return None
        try:
            return keys.restored_key(self.ephemeral.reveal())
        except AgentError:
            return None

    def since(self, memory: Memory) -> Handover:
        """The same without what was withdrawn since, of another stream than that in force, say.

        Args:
            memory: the present one. A stream whose mark has moved was withdrawn, or has another bundle in force.
        """

        def stays(left: _Remnant) -> bool:
            if left.stream is None:  # an earlier version left it: it may be of any stream
                return memory.marks == self.memory.marks
            return memory.mark(*left.stream) == self.memory.mark(*left.stream)

        return msgspec.structs.replace(self, remnants=[left for left in self.remnants if stays(left)])

    def rest(self, clock: SystemClock, trust: bundle.Trust) -> tuple[list[Remnant], list[Waiting]]:
        """Credentials of earlier bundles, and retries, moved to our clock."""
        by = self.shift(clock)
        remnants_ = []
        if set(self.signers) <= set(fingerprints(trust)):
            # Else it may be of a signer that is not trusted any more, and nothing tells whose it was.
            for left in self.remnants:
                if left.credential is not None and left.counts(left.ends):
                    ends = left.ends + by if left.ends is not None else None
                    whose = left.name, left.lease, left.stream, left.signer
                    remnants_.append(Remnant(left.cloud, left.digest, left.credential, ends, *whose))
        waiting = []
        for one in self.waiting:
            if codec.reckonable(one.again_at, one.failure.at):
                failure = msgspec.structs.replace(one.failure, at=one.failure.at + by)
                waiting.append(one._replace(again_at=one.again_at + by, failure=failure))
        return remnants_, waiting


def reconcile(left: Handover | None, read: Memory, sealed: bytes | None) -> tuple[Memory, bytes | None]:
    """The memory to go on with: the disk's or the one handed over, whichever is later.

    The disk may be behind, since it was full, or a backup was put back; or ahead, since a descriptor could not be
    handed over. What was handed over is taken unless a stream has a higher number on the disk. (A disk that lost its
    memory has none.) No number that either has is taken back. What only stood for a memory that could not be read has
    had its time once that can be.
    """
    if left is None:
        return read, sealed
    if read.instance_id and left.memory.instance_id and read.instance_id != left.memory.instance_id:
        return read, sealed
    stood_in = left.memory.decided and not left.memory.marks and not left.memory.floors
    if stood_in and (read.marks or read.boot_id or read.instance_id):
        return read, sealed
    if not disk.is_later(read, left.memory):
        memory = streams.closed_by(left.memory, read)
    elif streams.covers(read, left.memory):
        return streams.closed_by(read, left.memory), sealed
    else:
        memory = streams.united(read, left.memory)
    if memory.active is None:
        return memory, None
    kept = decoded(left.sealed) if memory.active == left.memory.active else None
    return memory, kept if kept is not None else sealed


def remnants(store: Store) -> list[_Remnant]:
    """The credentials of earlier bundles, as they are handed over."""
    return [remnant(left) for left in leftovers.remnants(store.state)]


def remnant(left: Remnant) -> _Remnant:
    """A credential of an earlier bundle, as it is handed over."""
    return _Remnant(
        cloud=left.cloud,
        digest=left.digest,
        ends=left.ends,
        name=left.name,
        lease=left.lease,
        stream=left.stream,
        signer=left.signer,
        **codec.either(left.credential),
    )


def positions(sources: Iterable[Source], sealed: bytes | None) -> dict[str, Position]:
    """How far those sources have read that brought what is in force. A refused bundle must be brought again."""
    if sealed is None:
        return {}
    content = hashlib.sha256(sealed).hexdigest()
    found = {one.name: one.position for one in sources if isinstance(one, Resumable)}
    return {name: at for name, at in found.items() if at is not None and at.content == content}


def go_on(sources: Iterable[Source], left: Mapping[str, Position], sealed: bytes | None) -> None:
    """Let the sources go on from there, if the bundle that they read there is in force."""
    content = None if sealed is None else hashlib.sha256(sealed).hexdigest()
    for source in sources:
        at = left.get(source.name)
        if at is not None and at.content == content and isinstance(source, Resumable):
            source.go_on(at)


def fingerprints(trust: bundle.Trust) -> list[str]:
    """Each signer with all that it is trusted for."""
    return sorted(repr((s.kid, s.key.public_jwk(), s.issuers, s.audiences, s.max_lease)) for s in trust.signers)


def encode(handover: Handover) -> bytes:
    """In the clear: for the sealed memory that only this unit gets back."""
    return codec.encode(handover)


def take(passed: Passed, clock: SystemClock) -> Handover | None:
    """Read what the previous process left; ``None``: nothing, or nothing that makes sense. It never fails a start."""
    found, reason = [], None
    try:
        for data in passed.take_each(NAME, max_bytes=MAX_BYTES):
            try:
                found.append(_decode(data, clock.uptime()))
            except HostError as error:
                reason = error.message
    except HostError as error:
        reason = error.message
    if reason is not None and not found:
        structlog.get_logger().error("handover.not_taken", reason=reason, hint="everything is asked for again")
    return max(found, key=lambda left: left.uptime, default=None)


def _decode(data: bytes, uptime: float) -> Handover:
    left = codec.decode(data, Handover, version=VERSION)
    if not 0.0 <= left.began <= left.uptime <= uptime:
        raise HostError("it is of another boot")
    if not codec.reckonable(left.now):
        raise HostError("it is of a time that cannot be reckoned with")
    return left


def encoded(data: bytes | None) -> Secret | None:
    """Bytes as they are handed over."""
    return None if data is None else Secret(base64.b64encode(data).decode())


def decoded(text: Secret | None) -> bytes | None:
    """The bytes; ``None`` where there are none, or they make no sense."""
    if text is None:
        return None
    try:
        return base64.b64decode(text.reveal(), validate=True)
    except ValueError:
        return None


def jwk(worker_keys: tuple[keys.WorkerKey, ...]) -> Secret | None:
    """The key that lives in memory only, if there is one."""
    found = (k for k in worker_keys if isinstance(k, keys.LocalKey) and k.kind == "ephemeral")
    private: Mapping[str, Any] | None = next((k.private_jwk() for k in found), None)
    return None if private is None else Secret(msgspec.json.encode(private).decode())
