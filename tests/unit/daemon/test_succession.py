"""What the service manager holds between two processes: told to a real socket, taken from real descriptors."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from msgspec.structs import replace

from agent import bundle
from agent.config import MAX_FILE_BYTES
from agent.core.model import Action, Cloud, IdToken, SealedBundle
from agent.core.secret import Secret
from agent.core.source import Position
from agent.core.timekeeping import Witness
from agent.core.verdict import Memory, Policy
from agent.core.view import Live
from agent.daemon import configured, handover, kept, succession
from agent.daemon.handover import Handover
from agent.daemon.succession import Succession
from agent.host import systemd
from agent.host.clock import SystemClock
from agent.identity import standing
from agent.identity.events import IdTokenMinted
from tests.fakes.clock import START
from tests.fakes.notify_socket import NotifySocket
from tests.system.harness import AUDIENCE, ISSUER
from tests.unit.controller.support import FakeSource
from tests.unit.daemon.life import Life, Machines, patient
from tests.unit.daemon.test_reload_between import come_true
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import HOUR, aws_credential, google_token, role

NEVER = 3600.0
SOON = 0.001
OURS = "config:i-1"
OLD, NEW = "ASIAOLD0000000000000", "ASIANEW0000000000000"
TEXT = "[log]\n"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch)


def clock(elapsed: float = 0.0) -> SystemClock:
    return SystemClock(
        boottime=lambda: 500.0 + elapsed, wall=lambda: START.timestamp() + elapsed, synchronised=lambda: False
    )


def descriptor(data: bytes) -> int:
    made = os.memfd_create("test")
    os.write(made, data)
    return made


def heir(files: dict[str, bytes] | None = None, *, address: Path | None = None) -> Succession:
    passed = systemd.Passed({}, {name: descriptor(data) for name, data in (files or {}).items()})
    return Succession(passed, systemd.Notifier(None if address is None else str(address)), clock())


def left(**fields: object) -> Handover:
    return Handover(**{"uptime": 400.0, "now": START, "began": 1.0, "memory": Memory("i-1"), **fields})  # type: ignore[arg-type]


def empty() -> Store:
    return Store(Policy(), Memory("i-1"), clock().now(), random.Random(1))


def holding(machines: Machines, key: str, *, instance: str = OURS) -> Store:
    """What the process before held for the bundle that is in force: an AWS credential, and the machine's own two."""
    before = machines.before
    now = before.clock.now()
    made = Store(Policy(), Memory(instance), now, random.Random(1))
    assert before.store.bundle is not None
    verdict = made.evaluate(before.store.bundle, now)
    made.accept(verdict, now)  # type: ignore[arg-type]
    for _ in range(2):
        for work in made.due(now):
            credential = google_token(now) if work.key.cloud is Cloud.GCP else aws_credential(now, key=key)
            made.put(work, credential, now, ends=now + HOUR)
    served = standing.google_source(made.state, now)
    assert served is not None
    token = IdToken(Secret("jwt"), "them", now, now + HOUR)
    made.apply(IdTokenMinted(token, served[0]), now)
    return made


def play(root: Path, scenario: Callable[[Machines], Awaitable[None]]) -> None:
    async def main() -> None:
        machines = Machines(root)
        try:
            await machines.live(OURS, grants=(role("r"),))
            await scenario(machines)
        finally:
            await machines.before.prepared.close()

    asyncio.run(main())


def passed_by(manager: NotifySocket) -> systemd.Passed:
    """What the manager would hand to the next process."""
    return systemd.Passed({}, {name: os.dup(one) for name, one in manager.stored()})


def told_so_far(manager: NotifySocket) -> list[str | None]:
    """The names of what the manager was given: all of it, however busy the machine is."""
    last = f"STATUS=all {manager.mark} {time.monotonic_ns()}"
    systemd.Notifier(str(manager.path)).tell(last)
    manager.wait_for(last)
    return [told.value("FDNAME") for told in manager.told if "FDSTORE=1" in told.lines]


def served(life: Life) -> str | None:
    """The key that workers get."""
    answer = life.store.answer(Cloud.AWS, life.clock.now())
    return getattr(answer.credential, "access_key_id", None) if isinstance(answer, Live) else None


class TestTaking:
    @pytest.mark.parametrize("newer", ["credentials", "credentials-next"])
    def test_of_two_that_were_left_the_newer_counts(self, tmp_path: Path, newer: str) -> None:
        """The process before may have ended between any two steps of putting one in the other's place."""

        async def scenario(machines: Machines) -> None:
            uptime = machines.before.clock.uptime()
            first = SystemClock(boottime=lambda: uptime - 1.0)
            second = SystemClock(boottime=lambda: uptime)
            old, new = kept.encode(holding(machines, OLD), first), kept.encode(holding(machines, NEW), second)
            names = ["credentials", "credentials-next"]
            machines.stored |= {name: new if name == newer else old for name in names}
            async with machines.start() as life:
                assert served(life) == NEW

        play(tmp_path, scenario)

    @pytest.mark.parametrize("garbled", [b"", b"{", b"[]", b'{"version":9}'])
    def test_one_that_makes_no_sense_costs_only_itself(self, tmp_path: Path, garbled: bytes) -> None:
        """The other one is taken; and where there is none, the bundle is in force all the same."""

        async def scenario(machines: Machines) -> None:
            good = kept.encode(holding(machines, OLD), machines.before.clock)
            machines.stored |= {"credentials": good, "credentials-next": garbled}
            async with machines.start() as life:
                assert served(life) == OLD

        play(tmp_path, scenario)

    def test_what_cannot_be_read_keeps_nobody_from_starting(self, tmp_path: Path) -> None:
        """The service manager hands it over at each start: an error would end every one of them."""

        async def scenario(machines: Machines) -> None:
            machines.stored["credentials"] = b"x" * ((1 << 20) + 1)
            with structlog.testing.capture_logs() as logs:
                async with machines.start() as life:
                    assert life.in_force() == 1
                    assert served(life) is None
            assert "credentials.not_restored" in [line["event"] for line in logs]

        play(tmp_path, scenario)

    @pytest.mark.parametrize("instance", [OURS, "config:i-2"])
    def test_credentials_and_identity_tokens_are_this_machines_alone(self, tmp_path: Path, instance: str) -> None:
        """Of a process that knew the machine by another name none is taken: it would speak for that one."""

        async def scenario(machines: Machines) -> None:
            machines.stored["credentials"] = kept.encode(
                holding(machines, OLD, instance=instance), machines.before.clock
            )
            async with machines.start() as life:
                token = life.store.view_id_token("them", life.clock.now())
                found = served(life), token.token.reveal() if token is not None else None
                assert found == ((OLD, "jwt") if instance == OURS else (None, None))

        play(tmp_path, scenario)

    def test_the_former_time_is_taken_with_them(self, tmp_path: Path) -> None:
        """Before anything is measured by our clock: a wall clock that is hours off ends no live credential."""

        async def scenario(machines: Machines) -> None:
            before = machines.before.clock
            true = before.now()
            right = SystemClock(
                boottime=before.uptime, wall=lambda: true.timestamp() - 7200, synchronised=lambda: False
            )
            right.hear(Witness.LINK, true)
            machines.stored["credentials"] = kept.encode(holding(machines, OLD), right)
            async with machines.start(clock=right_after(before, true.timestamp() - 7200)) as life:
                assert abs(life.clock.now() - before.now()) < timedelta(minutes=5)
                assert served(life) == OLD

        play(tmp_path, scenario)

    def test_the_configuration_of_before_is_dropped(self) -> None:
        """Whoever needed it has read it: else its descriptor stays open for as long as this process lives."""
        made = descriptor(b"x" * (MAX_FILE_BYTES + 1))
        Succession(systemd.Passed({}, {configured.NAME: made}), systemd.Notifier(None), clock())
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(made)


def right_after(before: SystemClock, wall: float) -> SystemClock:
    """The clock of a process that starts where the wall clock says that."""
    return SystemClock(boottime=before.uptime, wall=lambda: wall, synchronised=lambda: False)


class TestKeeping:
    @pytest.fixture
    def manager(self, tmp_path: Path) -> Iterator[NotifySocket]:
        with NotifySocket(tmp_path / "n") as manager:
            yield manager

    def test_all_three_are_held(self, manager: NotifySocket) -> None:
        """The credentials, the configuration and the rest; each whole, and one of each."""

        async def scenario() -> None:
            heir(address=manager.path).keep(empty(), TEXT, left)

        asyncio.run(scenario())
        assert manager.wait_content("credentials", lambda data: json.loads(data)["instance_id"] == "i-1")
        assert manager.wait_content("configuration", lambda data: data == TEXT.encode())
        assert manager.wait_content("handover", lambda data: data == handover.encode(left()))

    def test_only_what_has_changed_is_told_again(self, manager: NotifySocket) -> None:
        """A handover that differs in its moment alone says the same; each telling takes the manager's queue."""

        async def scenario() -> None:
            one = heir(address=manager.path)
            one.keep(empty(), TEXT, left)
            one.keep(empty(), TEXT, lambda: left(uptime=401.0, now=START + HOUR))
            one.keep(empty(), TEXT + "x", lambda: left(began=2.0))

        asyncio.run(scenario())
        manager.wait_content("handover", lambda data: json.loads(data)["began"] == 2.0)
        manager.wait_content("configuration", lambda data: data.endswith(b"x"))
        stored = told_so_far(manager)
        assert [stored.count(name) for name in ("credentials", "configuration", "handover")] == [3, 2, 2]

    def test_credentials_that_were_not_given_back_are_not_told_over(self, manager: NotifySocket) -> None:
        """They may be all that was left: until what they came from is in force nothing takes their place."""

        async def scenario() -> None:
            one = heir({kept.NAME: kept.encode(empty(), clock())}, address=manager.path)
            one.take_credentials()
            assert one.pending
            one.keep(empty(), TEXT, left)
            assert told_so_far(manager) == []
            one.drop()
            one.keep(empty(), TEXT, left)

        asyncio.run(scenario())
        assert manager.wait_content("handover", lambda data: data == handover.encode(left()))

    def test_nothing_is_told_while_the_manager_holds_more_than_we_do(self, manager: NotifySocket) -> None:
        """A process that ends before what was in force is opened again leaves what it was left."""
        for files in ({handover.NAME: handover.encode(left())}, {}):

            async def scenario(files: dict[str, bytes] = files) -> None:
                one = heir(files, address=manager.path)
                assert one.pending is bool(files)
                one.keep(empty(), TEXT, left)
                assert bool(told_so_far(manager)) is not bool(files)
                one.drop()
                assert not one.pending
                one.keep(empty(), TEXT, lambda: left(began=3.0))

            asyncio.run(scenario())
            manager.wait_content("handover", lambda data: json.loads(data)["began"] == 3.0)
            manager.drop()
            manager.told.clear()

    @pytest.mark.parametrize(("attempts", "pauses"), [(2, (SOON, NEVER)), (1, (NEVER, SOON))])
    def test_what_was_not_taken_is_told_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int, pauses: tuple[float, float]
    ) -> None:
        """However long the manager takes nothing: often at first, seldom after many attempts, and never not at all."""
        monkeypatch.setattr(succession, "TELL_AGAIN_SECONDS", pauses[0])
        monkeypatch.setattr(succession, "TELL_SLOWLY_SECONDS", pauses[1])
        path = tmp_path / "later"

        async def scenario() -> None:
            one = heir(address=path)
            one.keep(empty(), TEXT, left, attempts=attempts)
            with NotifySocket(path) as manager:
                await come_true(lambda: manager.content("handover"))
                manager.wait_content("configuration", lambda data: data == TEXT.encode())
                manager.wait_content("credentials", bool)
                before = told_so_far(manager)
                # All was taken, so there is nothing to tell again.
                for _ in range(20):
                    await asyncio.sleep(SOON)
                assert told_so_far(manager) == before

        asyncio.run(scenario())

    def test_what_broke_off_while_it_was_told_again_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody waits for the next attempt: where it breaks off, for want of memory say, another follows."""
        monkeypatch.setattr(succession, "TELL_AGAIN_SECONDS", SOON)
        broken: list[int] = []

        def gather() -> Handover:
            if len(broken) < 3:
                broken.append(1)
                raise MemoryError
            return left()

        async def scenario() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
            one = heir(address=tmp_path / "later")
            with pytest.raises(MemoryError):
                one.keep(empty(), TEXT, gather)
            with NotifySocket(tmp_path / "later") as manager:
                await come_true(lambda: manager.content("handover"))

        asyncio.run(scenario())

    def test_after_many_attempts_it_is_told_seldom(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A manager whose queue stays full for a night is not written to twice a second for as long."""
        monkeypatch.setattr(succession, "TELL_AGAIN_SECONDS", SOON)
        monkeypatch.setattr(succession, "TELL_SLOWLY_SECONDS", NEVER)
        gathered: list[Handover] = []

        def gather() -> Handover:
            gathered.append(left(began=float(len(gathered))))
            return gathered[-1]

        async def scenario() -> None:
            heir(address=tmp_path / "nobody").keep(empty(), TEXT, gather, attempts=3)
            await come_true(lambda: len(gathered) == 3)
            for _ in range(20):
                await asyncio.sleep(SOON)
            assert len(gathered) == 3

        asyncio.run(scenario())

    def test_what_is_told_anew_takes_the_place_of_what_was_to_be_told_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A withdrawal that was told must not be followed by what was held before it."""
        monkeypatch.setattr(succession, "TELL_AGAIN_SECONDS", SOON)
        path = tmp_path / "later"

        async def scenario() -> None:
            one = heir(address=path)
            one.keep(empty(), TEXT, lambda: left(began=1.0))
            with NotifySocket(path) as manager:
                one.keep(empty(), TEXT, lambda: left(began=2.0))
                for _ in range(20):
                    await asyncio.sleep(SOON)
                assert told_so_far(manager).count("handover") == 1
                assert json.loads(manager.wait_content("handover", bool))["began"] == 2.0

        asyncio.run(scenario())

    def test_without_a_manager_nothing_is_gathered(self) -> None:
        """In a container without one, no change costs the gathering of what nobody takes."""

        def never() -> Handover:
            raise AssertionError

        heir().keep(empty(), TEXT, never)


class Placed(FakeSource):
    """A source that can go on from where another process stopped."""

    position: Position | None = None

    def go_on(self, position: Position) -> None:
        self.position = position


class TestGivingBack:
    @pytest.mark.parametrize("in_force", [True, False])
    def test_a_source_goes_on_where_it_was_if_what_it_read_is_in_force(self, tmp_path: Path, in_force: bool) -> None:
        """What is not in force, since its key is away, say, must be brought again."""

        async def scenario(machines: Machines) -> None:
            sealed = machines.before.controller.durable.sealed
            assert sealed is not None
            at = Position("place", '"tag"', hashlib.sha256(sealed).hexdigest())
            machines.leave(positions={"file": at}, **({} if in_force else {"signed": None}))
            if not in_force:
                (machines.before.root / "etc" / "worker.jwk").rename(tmp_path / "away")
            source = Placed("file")
            async with machines.start(sources=[source]) as life:
                assert life.in_force() == (1 if in_force else None)
                assert source.position == (at if in_force else None)

        play(tmp_path, scenario)

    def test_it_is_kept_until_the_bundle_is_in_force(self, tmp_path: Path) -> None:
        """A key service is away: the credentials of that bundle wait, and are there when it is opened."""

        async def scenario(machines: Machines) -> None:
            machines.leave(sealed=None, signed=None)
            machines.stored["credentials"] = kept.encode(holding(machines, OLD), machines.before.clock)
            key = machines.before.root / "etc" / "worker.jwk"
            away = key.rename(key.with_suffix(".away"))
            async with machines.start() as life:
                assert life.in_force() is None
                assert life.succession.pending
                away.rename(key)
                life.prepared.opening.keyring = life.prepared.keyring(life.settings, None, life.prepared.away)
                life.controller.intake.reconsider()
                life.controller.intake.step(life.clock.boottime())
                await come_true(lambda: life.in_force() == 1 and not life.succession.pending)
                assert served(life) == OLD

        play(tmp_path, scenario)

    def test_a_doubt_outlives_a_process_that_could_not_open_it(self, tmp_path: Path) -> None:
        """What was left stays with the manager, bundle and credentials, and with it what was learned of whose it is."""

        async def scenario(machines: Machines) -> None:
            (machines.before.root / "etc" / "worker.jwk").rename(tmp_path / "away")
            machines.leave(signed=None)
            with NotifySocket(tmp_path / "n") as manager:
                machines.manager = manager.path
                async with machines.start() as life:
                    assert life.succession.pending
                    life.hand_over()
                    before = told_so_far(manager).count("handover")
                    life.controller.durable.doubt("another name")
                    life.changed()
                    manager.wait_content("handover", lambda data: json.loads(data)["doubted"])
                    told = handover.take(passed_by(manager), life.clock)
                    assert told is not None
                    assert life.succession.left is not None
                    assert told.same_as(replace(life.succession.left, doubted=True, gap=life.restorer.gap.known))
                    assert told.sealed is not None
                    assert told.shift(life.clock) > timedelta(seconds=-1)  # its instants are where they were
                    assert manager.content("credentials") == []
                    life.changed()
                    life.changed()
                    assert told_so_far(manager).count("handover") == before + 1

        play(tmp_path, scenario)

    def test_a_later_bundle_of_the_disk_is_not_confused_with_the_one_that_was_left(self, tmp_path: Path) -> None:
        """The disk is ahead of the handover, and its bundle cannot be opened now: the next process asks the disk again."""

        async def scenario(machines: Machines) -> None:
            stored = dict(machines.stored)
            await machines.live(OURS, seq=2, grants=(role("r"),))
            machines.stored = stored
            (machines.before.root / "etc" / "worker.jwk").rename(tmp_path / "away")
            with NotifySocket(tmp_path / "n") as manager:
                machines.manager = manager.path
                async with machines.start() as life:
                    assert life.succession.pending
                    assert life.store.memory.active is not None
                    assert life.store.memory.active.seq == 2
                    life.hand_over()
                    manager.wait_content("handover", lambda data: json.loads(data)["memory"]["active"]["seq"] == 2)
                    told = handover.take(passed_by(manager), life.clock)
                    assert told is not None
                    assert (told.sealed, told.signed, told.recipient) == (None, None, "")
                    memory, sealed = handover.reconcile(told, *machines.before.prepared.state.load())
                    assert memory.active == life.store.memory.active
                    assert sealed == machines.before.controller.durable.sealed

        play(tmp_path, scenario)

    def test_a_withdrawal_ends_what_could_not_be_opened(self, tmp_path: Path) -> None:
        """Another key opens it: from then on the manager holds nothing of what was withdrawn, memory and credentials."""

        async def scenario(machines: Machines) -> None:
            other = bundle.OpeningKey.generate("P-256")
            path = machines.before.root / "etc" / "other.jwk"
            path.write_text(json.dumps({**other.private_jwk(), "kid": other.kid}))
            path.chmod(0o600)
            machines.stored["credentials"] = kept.encode(holding(machines, OLD), machines.before.clock)
            with NotifySocket(tmp_path / "n") as manager:
                machines.manager = manager.path
                async with machines.start({"keys": [{"kind": "file", "path": path}]}) as life:
                    assert life.succession.pending
                    sealed = bundle.seal(
                        signer=machines.before.signer,
                        recipients=[other.recipient_key()],
                        issuer=ISSUER,
                        subject="team",
                        audiences=[AUDIENCE],
                        now=life.clock.now(),
                        action=Action.WITHDRAW,
                        seq=2,
                    )
                    ack = await life.controller.intake.submit(SealedBundle(sealed, "push"))
                    assert ack.outcome == "accepted", ack
                    life.changed()
                    assert not life.succession.pending
                    manager.wait_content("handover", lambda data: json.loads(data)["memory"]["active"] is None)
                    manager.wait_content("credentials", lambda data: OLD.encode() not in data)

        play(tmp_path, scenario)

    def test_where_nothing_was_in_force_nothing_is_waited_for(self, tmp_path: Path) -> None:
        """A process that had no bundle leaves nothing that one could come back for: from now on ours is held."""

        async def main() -> None:
            machines = Machines(tmp_path)
            machines.before.controller.durable.adopt(OURS, machines.boot_id, {})
            machines.leave()
            try:
                async with machines.start() as life:
                    assert not life.succession.pending
            finally:
                await machines.before.prepared.close()

        asyncio.run(main())
