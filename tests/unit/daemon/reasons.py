"""Reasons to wait for a bundle, and ways in which the next process begins: what :mod:`.test_never_the_machine` multiplies.

The parts that begin are wired as the daemon does (:mod:`tests.unit.daemon.life`); time is the test's.
"""

from __future__ import annotations

import asyncio
import errno
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent import bundle
from agent.bundle.short_key import signer_word
from agent.core.model import Cloud, OnExpiry
from agent.core.secret import Secret
from agent.core.timekeeping import Witness
from agent.daemon import grace, remembered
from agent.daemon.configured import Configured
from agent.daemon.publish import Publisher
from agent.daemon.ready import Readiness
from agent.daemon.reload import Reloader
from agent.host import state, systemd
from agent.host.clock import SystemClock
from agent.host.files import read_plain
from agent.identity import standing
from agent.wire.signers import line
from tests.fakes import net
from tests.fakes.aws_kms import FakeAwsKms, KmsKey
from tests.fakes.clock import FakeClock
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.refusing import Refused
from tests.fakes.served import Fault
from tests.fakes.silent_files import SilentFile
from tests.system.harness import AUDIENCE, ISSUER, merged
from tests.unit.daemon.life import OTHER_BOOT, Life, Machines
from tests.unit.identity.worlds import session

GRACE_SECONDS = 30.0
LONG_SECONDS = 600.0
"""Longer than the grace, and than any pause before something is tried again."""
STEP_SECONDS = 5.0
ARN = "arn:aws:kms:eu-west-1:123456789012:key/1"
MACHINE = Key("ASIAMACHINE000000000", "machine-secret", "machine-token")


class Hands(SystemClock):
    """A machine's clocks, moved by the test.

    Args:
        start: the true time.
        boottime: seconds.
        ahead: by how much the wall clock is; the metadata service says the true time, which is too far to be believed.
    """

    def __init__(self, start: datetime, *, boottime: float, ahead: timedelta = timedelta()) -> None:
        self.fake = FakeClock(start, boottime=boottime)
        self.ahead = ahead
        super().__init__(
            boottime=self.fake.boottime,
            wall=self._wrong,
            synchronised=lambda: not self.ahead,
        )
        self.hear(Witness.LINK, start)

    def _wrong(self) -> float:
        return (self.fake.now() + self.ahead).timestamp()

    async def sleep(self, seconds: float) -> None:
        await self.fake.sleep(seconds)


class World:
    """A machine whose bundle is in a file or in user-data, and the trouble that it has with it.

    Attributes:
        cloud: of its workers.
        changes: of the configuration.
        clock: of the process that runs, or is next.
        machine_served: whenever a worker would have been given the machine's own identity.
    """

    cloud = Cloud.AWS

    def __init__(self, root: Path, ec2: Ec2MetadataService, stack: AsyncExitStack) -> None:
        self.ec2, self.stack = ec2, stack
        self.machines = Machines(root, name="auto", ec2=ec2)
        self.file = root / "bundle.jose"
        self.recipient = self.machines.before.key.recipient_key()
        self.audience = AUDIENCE
        self.by_user_data = False
        self.lease_days: float | None = None
        self.changes: dict[str, Any] = {}
        self.now = datetime.now(UTC)
        self.clock = Hands(self.now, boottime=time.clock_gettime(time.CLOCK_BOOTTIME))
        self.kms: net.Answer | None = None
        self.silent: SilentFile | None = None
        self.machine_served: list[str] = []
        self.machines.watching = self.look

    @property
    def configuration(self) -> dict[str, Any]:
        source = {"kind": "ec2-user-data"} if self.by_user_data else {"kind": "file", "path": self.file}
        base = {"identity": {"grace_seconds": GRACE_SECONDS}, "sources": [{"name": "bundle", **source}]}
        return merged(base, self.changes)

    def seal(self) -> None:
        """Put a bundle where its source looks. What follows its loss would be the machine."""
        grant = self.grant()
        sealed = bundle.seal(
            signer=self.machines.before.signer,
            recipients=[self.recipient],
            issuer=ISSUER,
            subject="team",
            audiences=[self.audience],
            now=self.now,
            accept_until=self.now + timedelta(days=20),
            lease_until=None if self.lease_days is None else self.now + timedelta(days=self.lease_days),
            on_expiry=OnExpiry.FALLBACK,
            grants=(grant,),
            routes={self.cloud: grant.id},
            seq=1,
        )
        self.put(sealed)

    def grant(self) -> Any:
        """What it gives to workers."""
        return session(now=self.now, hours=480 if self.lease_days is None else 8700)

    def put(self, sealed: bytes) -> None:
        """Put it where its source looks."""
        if self.by_user_data:
            self.ec2.user_data = sealed
        else:
            self.file.write_bytes(sealed)

    def look(self, life: Life) -> None:
        """Note when a worker is the machine, now or as soon as time passes."""
        state = life.restorer.controller.store.state
        if isinstance(standing.standing(state, self.cloud, life.clock.now()), standing.Machines):
            self.machine_served.append(f"awaited: {dict(state.awaited)}, memory: {state.memory}")

    @asynccontextmanager
    async def living(self) -> AsyncIterator[tuple[Life, Reloader]]:
        """A process, from its start to its end: what begins at the start, and the loop."""
        async with self.machines.start(self.configuration, clock=self.clock) as life:
            reloader = _reloader(life, self.machines.before.root / "etc" / "next.toml")
            life.store.watch(lambda: self.look(life))  # as those are told who answer workers
            life.restorer.audience = lambda: reloader.settings.identity.audience
            tasks = [
                asyncio.create_task(life.controller.run()),
                asyncio.create_task(life.restorer.identify_first(life.found, at_once=life.handed)),
                asyncio.create_task(reloader.follow_launched()),
            ]
            try:
                yield life, reloader
            finally:
                for task in (*tasks, *reloader.tasks):
                    task.cancel()
                await asyncio.gather(*tasks, *reloader.tasks, return_exceptions=True)

    async def until(self, come: Callable[[], object]) -> None:
        """Wait for that, while time passes for those who sleep."""
        async with asyncio.timeout(60):
            while not come():
                self.clock.fake.move(0.05)
                await asyncio.sleep(0.002)

    async def waited(self, life: Life) -> None:
        """The source was looked at, what it brought was evaluated, and then a long time has passed."""
        controller = life.controller
        await self.until(lambda: controller.source_state["bundle"] != "starting")
        if not (self.by_user_data or self.silent) and self.file.exists():
            await self.until(lambda: controller.intake.waiting or life.in_force())
        self.clock.fake.move(LONG_SECONDS)
        await self.until(lambda: controller.last_step >= self.clock.boottime() - 1.0)
        self.look(life)

    async def in_force(self, life: Life) -> None:
        """The bundle comes into force."""

        def come() -> bool:
            self.clock.fake.move(STEP_SECONDS)
            return life.in_force() == 1

        await self.until(come)


def _reloader(life: Life, path: Path) -> Reloader:
    prepared = life.prepared
    publisher = Publisher(
        life.settings.environment,
        store=life.store,
        clock=life.clock,
        address="127.0.0.1:1",
        token=prepared.tokens.present,
        path_id=Secret("path"),
        gid=prepared.gid,
        expects_bundle=True,
    )
    return Reloader(
        life.settings,
        file=Configured(path),
        prepared=prepared,
        who=life.who,
        controller=life.controller,
        publisher=publisher,
        readiness=Readiness(systemd.Notifier(None), life.clock, life.store, life.clock.now()),
        clock=life.clock,
        hand_over=lambda: None,
        keys_changed=lambda: None,
    )


# -- reasons to wait --------------------------------------------------------------------------------------------------


class Reason:
    """Why a bundle that is here cannot be in force yet: it begins, and ends."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def prepare(self) -> None:
        """The machine as it should be, before the bundle is sealed."""

    def begin(self) -> None:
        """From now on."""

    def end(self) -> None:
        """It is over."""
        self.world.ec2.faults.clear()


class KeyService(Reason):
    """The key service refuses: the role's permission comes late."""

    async def prepare(self) -> None:
        world, private = self.world, ec.generate_private_key(ec.SECP256R1())

        def now() -> datetime:
            return world.clock.now()  # of the process that runs

        kms = FakeAwsKms(
            MACHINE.access_key_id,
            MACHINE.secret_access_key,
            MACHINE.session_token,
            keys={ARN: KmsKey(private)},
            now=now,
        )
        url = await world.stack.enter_async_context(net.serve(lambda asked: world.kms or kms(asked)))
        public = world.machines.before.root / "etc" / "public.jwk"
        public.write_text(json.dumps(bundle.OpeningKey(private).public_jwk()))
        world.recipient = bundle.RecipientKey.parse(public.read_text())
        key = {"kind": "aws-kms", "key_id": ARN, "public_key": public, "region": "eu-west-1", "endpoint": url}
        world.changes["keys"] = [key]

    def begin(self) -> None:
        self.world.kms = net.Answer(400, b'{"__type": "AccessDeniedException"}')

    def end(self) -> None:
        self.world.kms = None


class Unsaid(Reason):
    """The place that names the signer is silent, with all of its service."""

    fault = Fault("/", drop=True, times=None)

    async def prepare(self) -> None:
        self.world.ec2.user_data = line(signer_word(self.world.machines.before.signer.verify_key())).encode()
        self.world.changes |= {"signers": [], "launch_signers": [{"kind": "ec2-user-data", "issuers": [ISSUER]}]}

    def begin(self) -> None:
        self.world.ec2.inject(self.fault)


class UnsaidByPage(Unsaid):
    """A page stands in its place."""

    fault = Fault("/latest/user-data", status=404, body=b"<html>sign in", times=None)


class Unnamed(Reason):
    """The service does not say the machine's name."""

    fault = Fault("/latest/dynamic", status=503, times=None)

    async def prepare(self) -> None:
        ec2 = self.world.ec2
        self.world.audience = bundle.audience_aws_instance(ec2.account_id, ec2.region, ec2.instance_id)

    def begin(self) -> None:
        self.world.ec2.inject(self.fault)


class UnnamedByPage(Unnamed):
    """A page stands in the service's place, and says that there is no such thing."""

    fault = Fault("/latest", status=404, body=b"<html>", times=None)


class Unread(Reason):
    """User-data, which holds the bundle, is not answered."""

    async def prepare(self) -> None:
        self.world.by_user_data = True

    def begin(self) -> None:
        self.world.ec2.inject(Fault("/latest/user-data", status=503, times=None))


class SilentMount(Reason):
    """The bundle's file does not answer."""

    def begin(self) -> None:
        self.world.silent = SilentFile(self.world.file)

    def end(self) -> None:
        if self.world.silent is not None:
            self.world.silent.answer()
            self.world.silent = None


class KeyAway(Reason):
    """A file that the configuration names is not there yet."""

    name = "worker.jwk"

    @property
    def _path(self) -> Path:
        return self.world.machines.before.root / "etc" / self.name

    def begin(self) -> None:
        self._path.rename(self._path.with_suffix(".away"))

    def end(self) -> None:
        self._path.with_suffix(".away").rename(self._path)


class SignerAway(KeyAway):
    name = "sender.jwk"


class CopyRefused(KeyAway):
    """The system refuses to read the sealed copy, and no source has the bundle any more."""

    number = errno.EIO

    @property
    def _path(self) -> Path:
        return self.world.file

    def begin(self) -> None:
        super().begin()
        self._disk = Refused(self.number, "bundle-*.jose", read_plain)
        patch = pytest.MonkeyPatch()
        self.world.stack.callback(patch.undo)
        patch.setattr(state, "read_plain", self._disk)
        patch.setattr(remembered, "AGAIN_SECONDS", (0.0, 0.0))

    def end(self) -> None:
        self._disk.refuses = False


class CopyUndescribed(CopyRefused):
    number = errno.EMFILE


class CopyForbidden(CopyRefused):
    number = errno.EACCES


class CopyAndKey(CopyRefused):
    """Nor is the key there that opens it."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._key = KeyAway(world)

    def begin(self) -> None:
        super().begin()
        self._key.begin()

    def end(self) -> None:
        super().end()
        self._key.end()


COPIES = (CopyRefused, CopyUndescribed, CopyForbidden, CopyAndKey)


class Disputed(Reason):
    """The clock is ahead by most of a year, and the metadata service alone says so."""

    def begin(self) -> None:
        before = self.world.clock.fake
        self.world.clock = Hands(before.now(), boottime=before.boottime(), ahead=timedelta(days=300))

    def end(self) -> None:
        self.world.clock.ahead = timedelta()


class DisputedLease(Disputed):
    """The same, and it is not the credential that is over by then."""

    async def prepare(self) -> None:
        self.world.lease_days = 20.0


REASONS = (
    KeyService,
    Unsaid,
    UnsaidByPage,
    Unnamed,
    UnnamedByPage,
    Unread,
    SilentMount,
    KeyAway,
    SignerAway,
    Disputed,
)


# -- successors -------------------------------------------------------------------------------------------------------


def _note(life: Life, *, orderly: bool) -> None:
    known = life.restorer.known_at_the_end if orderly else life.restorer.known
    assert grace.write(Path(life.settings.listen.control).parent, known)


def restarted(world: World, life: Life) -> None:
    """The service manager holds what it left."""
    world.machines.stored = life.handed_on()
    _note(life, orderly=False)


def stopped(world: World, life: Life) -> None:
    """It ended in order, and nothing was handed over: an upgrade by a package manager."""
    _note(life, orderly=True)


def crashed(world: World, life: Life) -> None:
    """It was killed without a service manager."""
    _note(life, orderly=False)


def rebooted(world: World, life: Life) -> None:
    """Nothing is left but the disk."""
    world.machines.says(boot=OTHER_BOOT)


SUCCESSORS = (restarted, stopped, crashed, rebooted)


def succeed(world: World, life: Life, successor: Callable[[World, Life], None]) -> None:
    """Time goes on from one process to the next."""
    before = world.clock
    world.machines.stored = {}
    successor(world, life)
    boot = successor is rebooted
    if boot:
        (Path(life.settings.listen.control).parent / grace.FILE).unlink(missing_ok=True)
    world.clock = Hands(
        before.fake.now() + timedelta(seconds=1),
        boottime=100.0 if boot else before.fake.boottime() + 1,
        ahead=before.ahead,
    )


async def resumes(world: World, it: Reason, successor: Callable[[World, Life], None]) -> None:
    """A bundle is in force, and the next process begins while the reason is there: nobody is the machine meanwhile."""
    async with world.living() as (life, _):
        await world.in_force(life)
        await life.controller.durable.last(10)
        succeed(world, life, successor)
    world.machine_served.clear()
    it.begin()
    async with world.living() as (life, reloader):
        await world.waited(life)
        assert world.machine_served == []
        it.end()
        await reloader.reload()
        await world.in_force(life)
    assert world.machine_served == []


def play(root: Path, reason: type[Reason], scenario: Callable[[World, Reason], Any]) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack, Ec2MetadataService() as ec2:
            ec2.attach("worker-role", MACHINE)
            world = World(root, ec2, stack)
            it = reason(world)
            await it.prepare()
            world.seal()
            try:
                await scenario(world, it)
            finally:
                if world.silent is not None:
                    world.silent.answer()
                await world.machines.before.prepared.close()

    asyncio.run(main())
