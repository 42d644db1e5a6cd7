"""Issuing: make before break, one flight a credential, retries, the clouds' time, and what is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from agent.controller import ISSUE_TIMEOUT_SECONDS
from agent.core.errors import Denied, Transient
from agent.core.model import (
    Action,
    AwsCredential,
    Cloud,
    GcpImpersonation,
    GcpServiceAccount,
    IdToken,
    OnExpiry,
    SealedBundle,
)
from agent.core.refresh import PAUSE_URGENT_SECONDS
from agent.core.secret import Secret
from agent.core.verdict import Policy
from agent.core.view import Absent, Ended, Live, Origin
from agent.identity.events import BundleRevoked
from agent.sources.push import PushSource
from tests.fakes.clock import FakeClock, settle
from tests.unit.controller.support import Call, Issued, World, events, looped
from tests.unit.identity.worlds import HOUR, aws_credential, bundle, google, google_token, role, session

READ = "https://www.googleapis.com/auth/devstorage.read_only"


def machine(call: Call) -> Issued | None:
    """A machine with an AWS role that lives six hours, and everything that stands on it lives one."""
    if call.grant_id == "instance":
        return Issued(aws_credential(call.at, minutes=360, role_name="w")) if call.cloud is Cloud.AWS else None
    return Issued(aws_credential(call.at, key=f"ASIA{call.at:%H%M%S}0000000000"))


def service_account(grant_id: str = "sa") -> GcpServiceAccount:
    return GcpServiceAccount(id=grant_id, client_email="sa@p.example", private_key_id="1", private_key=Secret("k"))


def live(world: World, cloud: Cloud = Cloud.AWS) -> AwsCredential | None:
    answer = world.store.answer(cloud, world.clock.now())
    return answer.credential if isinstance(answer, Live) and isinstance(answer.credential, AwsCredential) else None


@asynccontextmanager
async def renewing(world: World) -> AsyncIterator[list[dict[str, Any]]]:
    """Run ``world`` with a bundle whose role stands on the machine's; its log."""
    world.issuer.answer = machine
    async with world.running() as logs:
        await world.submit(world.knows(b"one", bundle(role("r"))))
        yield logs


class TestFlights:
    @looped
    async def test_a_thousand_cold_askers_are_one_call_a_credential(self) -> None:
        """A thousand programs that look while nothing is there yet cost one call for each credential."""
        world = World()
        world.issuer.answer = machine
        world.issuer.gate.clear()
        async with world.running():
            await world.submit(world.knows(b"one", bundle(role("r"))))
            for _ in range(1000):
                assert live(world) is None
                world.store.answer(Cloud.GCP, world.clock.now())
            world.issuer.gate.set()
            await settle(60)

            assert world.issuer.asked("r") == 1
            assert sum(c.cloud is Cloud.AWS for c in world.issuer.calls) == 1
            assert sum(c.cloud is Cloud.GCP for c in world.issuer.calls) == 1
            assert live(world) is not None

    @looped
    async def test_looking_asks_nobody(self) -> None:
        """However often the listeners look, no call goes out: only the loop refreshes."""
        world = World()
        async with renewing(world):
            await settle(60)
            calls = len(world.issuer.calls)
            for _ in range(1000):
                assert live(world) is not None
            await settle()

            assert len(world.issuer.calls) == calls

    @looped
    async def test_one_flight_over_a_day_of_faults(self) -> None:
        """Whatever fails for a day, no credential ever has two calls under way, and a live one is always served."""
        world = World()
        number = 0

        def flaky(call: Call) -> Issued | Exception | None:
            nonlocal number
            number += 1
            if number % 3 == 0:
                return Transient("throttled", code="Throttling")
            return machine(call)

        world.issuer.answer = flaky
        async with world.running():
            await world.submit(world.knows(b"one", bundle(role("r"))))
            await world.clock.advance(120)
            for _ in range(24 * 6):
                await world.clock.advance(600)
                assert live(world) is not None

            assert set(world.issuer.most.values()) == {1}

    @looped
    async def test_a_call_that_never_ends_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A provider that hangs for ever is cut off, and the credential tried again: renewal cannot stop."""
        monkeypatch.setattr("agent.controller.issuing.ISSUE_TIMEOUT_SECONDS", 0.01)
        world = World()
        world.issuer.answer = machine
        world.issuer.gate.clear()
        async with world.running() as logs:
            await world.submit(world.knows(b"one", bundle(role("r"))))
            async with asyncio.timeout(10):
                await asyncio.gather(*(t for t in asyncio.all_tasks() if t.get_name().startswith("issue ")))
            assert events(logs, "credential.failed")[0]["code"] == "timeout"
            world.issuer.gate.set()
            await world.clock.advance(60)

            assert live(world) is not None
        assert ISSUE_TIMEOUT_SECONDS > 60

    @looped
    async def test_an_issuer_that_crashes_is_contained(self) -> None:
        """A bug in a provider is a failed attempt like any other: logged, retried, and nobody else's trouble."""
        world = World()

        def buggy(call: Call) -> Issued | Exception | None:
            return ZeroDivisionError("s3cret in an exception") if call.grant_id == "r" else machine(call)

        world.issuer.answer = buggy
        async with world.running() as logs:
            await world.submit(world.knows(b"one", bundle(role("r"), google())))
            await world.clock.advance(60)

            answer = world.store.answer(Cloud.AWS, world.clock.now())
            assert isinstance(answer, Ended)
            assert answer.passing
            assert "s3cret" not in answer.why
            assert isinstance(world.store.answer(Cloud.GCP, world.clock.now()), Live)
            assert events(logs, "issue.crashed")[0]["error"] == "ZeroDivisionError"
            world.issuer.answer = machine
            await world.clock.advance(60)
            assert live(world) is not None


class TestRenewal:
    @looped
    async def test_it_is_renewed_before_a_third_of_its_life(self) -> None:
        """Over half a day of one-hour roles, none is ever served with less than two thirds of its life left."""
        world = World()
        async with renewing(world):
            await world.clock.advance(1)
            least = timedelta(hours=9)
            for _ in range(5 * 60):
                await world.clock.advance(60)
                held = live(world)
                assert held is not None
                least = min(least, held.expires_at - world.clock.now())

            assert least >= timedelta(minutes=39)
            assert 15 <= world.issuer.asked("r") <= 21

    @looped
    async def test_a_failure_takes_nothing_away(self) -> None:
        """While renewal is refused the live credential is served to its very end, and not a second longer."""
        world = World()
        async with renewing(world) as logs:
            await world.clock.advance(1)
            held = live(world)
            assert held is not None
            world.issuer.answer = lambda call: (
                Denied("not authorized", code="AccessDenied", hint="look") if call.grant_id == "r" else machine(call)
            )
            await world.clock.advance((held.expires_at - world.clock.now()).total_seconds() - 1)
            assert live(world) == held
            await world.clock.advance(1)

            answer = world.store.answer(Cloud.AWS, world.clock.now())
            assert isinstance(answer, Ended)
            assert "AccessDenied" in answer.why
            assert not answer.passing
            assert world.store.origin(Cloud.AWS, world.clock.now()) is Origin.CLOSED
            assert len(events(logs, "identity.ended")) == 1
            denied = events(logs, "credential.denied")
            assert (denied[0]["log_level"], denied[0]["hint"]) == ("error", "look")

    @looped
    async def test_what_is_over_when_it_comes_is_a_failure_that_is_told(self) -> None:
        """A credential without a moment to live is a failed attempt: logged, counted as such, retried ever later."""
        world = World()

        def over(call: Call) -> Issued | Exception | None:
            if call.grant_id != "r":
                return machine(call)
            return Issued(aws_credential(call.at, minutes=1 / 60), None, timedelta())

        world.issuer.answer = over
        async with world.running() as logs:
            await world.submit(world.knows(b"one", bundle(role("r"))))
            await world.clock.advance(600)

            told = events(logs, "credential.failed")
            assert {(line["code"], line["grant"]) for line in told} == {("expired", "r")}
            assert world.controller.counters.issued.get("aws:r", 0) == 0
            assert world.controller.counters.failures["aws:r:expired"] == world.issuer.asked("r") < 50

    @looped
    async def test_a_refusal_is_retried_slower_than_an_outage(self) -> None:
        """A refusal needs a person, so it is asked about every few minutes; an outage every minute."""
        asked = {}
        for error in (Denied("no", code="AccessDenied"), Transient("down", code="network")):
            world = World()
            world.issuer.answer = machine
            async with world.running():
                await world.submit(world.knows(b"one", bundle(role("r"))))
                await world.clock.advance(1)
                before = world.issuer.asked("r")

                def refuse(call: Call, error: Exception = error) -> Issued | Exception | None:
                    return error if call.grant_id == "r" else machine(call)

                world.issuer.answer = refuse
                await world.clock.advance(40 * 60)
                asked[type(error)] = world.issuer.asked("r") - before

        assert asked[Denied] < asked[Transient] / 2
        assert asked[Denied] >= 4

    @looped
    async def test_an_outage_of_hours_recovers_by_itself(self) -> None:
        """After an outage that outlived the credential, service is back within ten seconds of the cloud's return."""
        world = World()
        async with renewing(world) as logs:
            await world.clock.advance(1)
            world.issuer.answer = lambda call: Transient("down", code="network")
            await world.clock.advance(2 * 3600)
            assert live(world) is None
            assert len(events(logs, "credential.failed")) < world.issuer.asked("instance") / 10
            world.issuer.answer = machine
            await world.clock.advance(21)

            assert live(world) is not None

    @looped
    async def test_no_fallback_in_an_outage(self) -> None:
        """While the bundle's role cannot be renewed the machine's own identity is not served in its place."""
        world = World(policy=Policy(on_expiry=OnExpiry.FALLBACK))
        async with renewing(world):
            await world.clock.advance(1)
            world.issuer.answer = lambda call: (
                Transient("down", code="network") if call.grant_id == "r" else machine(call)
            )
            for _ in range(12):
                await world.clock.advance(600)
                assert world.store.origin(Cloud.AWS, world.clock.now()) in (Origin.BUNDLE, Origin.CLOSED)

    @looped
    async def test_a_machine_without_identity_is_asked_again(self) -> None:
        """A role that is attached to the machine later is seen within the poll."""
        world = World()
        async with world.running() as logs:
            await settle()
            assert isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Absent)
            assert len(events(logs, "instance.absent")) == 2
            world.issuer.answer = machine
            await world.clock.advance(301)

            assert live(world) is not None

    @looped
    async def test_a_new_bundle_leaves_the_old_until_it_has_minted(self) -> None:
        """Make before break: between two bundles there is no moment without a credential."""
        world = World()
        world.issuer.answer = machine
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session())))
            world.issuer.gate.clear()
            await world.submit(world.knows(b"two", bundle(role("r"), seq=2)))
            held = live(world)
            assert held is not None
            assert held.access_key_id == "ASIAUSER000000000000"
            world.issuer.gate.set()
            await settle(60)

            held = live(world)
            assert held is not None
            assert held.access_key_id != "ASIAUSER000000000000"

    @looped
    async def test_watchers_are_told_when_answers_change(self) -> None:
        """Whoever waits for a first answer is woken by it, and not by the mere passing of time."""
        world = World()
        world.issuer.answer = machine
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session(hours=100))))
            await settle(60)
            before = world.changes
            await world.clock.advance(4 * 60)

            assert before > 0
            assert world.changes == before


class TestTime:
    @looped
    async def test_a_doubt_about_the_clock_asks_the_clouds(self) -> None:
        """A wall clock that was stepped is a reason to ask anew within half a minute: the answers say what time it is."""
        world = World()
        async with renewing(world):
            await world.clock.advance(60)
            before = world.issuer.asked("r")
            world.doubt = True
            await world.clock.advance(60 + 30)  # the loop goes round once a minute at least

            assert world.issuer.asked("r") == before + 1

    @looped
    async def test_a_second_doubt_is_put_off_and_not_dropped(self) -> None:
        """A doubt right after another waits for a minute and is followed up then, once: it may be another matter."""
        world = World()
        async with renewing(world):
            await world.clock.advance(60)
            before = world.issuer.asked("r")
            for _ in range(3):
                world.doubt = True
                world.controller.step()
                await world.clock.advance(10)
            assert world.issuer.asked("r") <= before + 1
            await world.clock.advance(180)

            assert world.issuer.asked("r") == before + 2

    @looped
    async def test_a_life_counts_from_the_question_on_and_not_from_the_answer(self) -> None:
        """An answer that was long on its way is as much the older: it is served to its end, and not beyond."""
        world = World()

        def late(call: Call) -> Issued | Exception | None:
            if world.issuer.asked("r") > 1:
                return Transient("nobody answers")
            if call.grant_id == "r":
                world.clock.move(10)
                return Issued(aws_credential(call.at, minutes=600), lifetime=HOUR)
            return machine(call)

        world.issuer.answer = late
        async with world.running():
            await world.submit(world.knows(b"one", bundle(role("r"))))
            (asked_at,) = (call.at for call in world.issuer.calls if call.grant_id == "r")
            assert world.clock.now() - asked_at == timedelta(seconds=10)
            await world.clock.advance((asked_at + HOUR - world.clock.now()).total_seconds() - 1)
            assert live(world) is not None
            await world.clock.advance(2)
            assert live(world) is None

    @looped
    async def test_a_clock_that_was_moved_hides_no_life(self) -> None:
        """When the clock is corrected by hours, what was counted from a moment of ours is served on to its end."""
        world = World()

        def counted(call: Call) -> Issued | None:
            issued = machine(call)
            return replace(issued, lifetime=HOUR) if issued is not None else None

        world.issuer.answer = counted
        async with world.running():
            await world.submit(world.knows(b"one", bundle(role("r"))))
            await world.clock.advance(60)
            held = live(world)
            assert held is not None
            world.clock.set_utc(world.clock.now() + 5 * HOUR)
            world.controller.rebase()
            assert live(world) == held
            world.clock.set_utc(world.clock.now() - 9 * HOUR)
            world.controller.rebase()

            assert live(world) == held

    @looped
    async def test_a_step_of_hours_forwards(self) -> None:
        """When the time is corrected forwards by hours, what has ended by it is no longer served, at once."""
        world = World()
        async with world.running():
            await world.submit(world.knows(b"one", bundle(session(hours=4))))
            world.clock.set_utc(world.clock.now() + 5 * HOUR)

            assert live(world) is None

    @looped
    async def test_a_step_of_hours_backwards_stops_no_renewal(self) -> None:
        """When the time is corrected backwards, renewal goes on by the corrected time and no answer is lost."""
        world = World()
        async with renewing(world):
            await world.clock.advance(60)
            world.clock.set_utc(world.clock.now() - 5 * HOUR)
            for _ in range(7 * 6):
                await world.clock.advance(600)
                assert live(world) is not None

            assert world.issuer.asked("r") > 3

    @looped
    async def test_the_loop_is_seen_to_go_round(self) -> None:
        """The loop goes round at least once a minute, however little there is to do: the watchdog lives on it."""
        world = World(policy=Policy(fallback=frozenset()))
        async with world.running():
            for _ in range(60):
                await world.clock.advance(61)
                assert world.clock.boottime() - world.controller.last_step <= 61


class TestTelling:
    @looped
    async def test_the_horizon_is_told_once_an_hour_before(self) -> None:
        """What nothing can renew is announced one horizon lead early, once, with what to do."""
        world = World()
        async with world.running() as logs:
            await world.submit(world.knows(b"one", bundle(session(hours=6))))
            await world.clock.advance(5 * 3600 - 30)
            assert events(logs, "horizon.near") == []
            await world.clock.advance(1800)

            told = events(logs, "horizon.near")
            assert len(told) == 1
            assert told[0]["horizon"] == f"{world.clock.now() + timedelta(seconds=1830):%Y-%m-%dT%H:%M:%SZ}"
            assert told[0]["log_level"] == "warning"
            await world.clock.advance(4000)
            assert len(events(logs, "horizon.near")) == 1
            assert len(events(logs, "identity.ended")) == 1

    @looped
    async def test_an_identity_is_told_once(self) -> None:
        """A change of identity is one line, renewals of the same are none."""
        world = World()
        async with renewing(world) as logs:
            await world.clock.advance(6 * 3600)

            assert [e["why"] for e in events(logs, "identity.changed") if e["origin"] == "bundle"] == [
                "bundle 1 was accepted; its first credential is being issued",
                "served as credential-agent",
            ]
            assert len([e for e in events(logs, "credential.issued") if e["grant"] == "r"]) > 10


def id_token(world: World, audience: str, *, minutes: float = 60, token: str = "jwt") -> IdToken:
    now = world.clock.now()
    return IdToken(Secret(token), audience, now, now + timedelta(minutes=minutes))


class TestIdTokens:
    async def serving(self, world: World) -> None:
        world.issuer.answer = lambda call: Issued(google_token(call.at)) if call.cloud is not Cloud.AWS else None
        await world.submit(world.knows(b"one", bundle(service_account(), routes={Cloud.GCP: "sa"})))
        await settle(40)

    @looped
    async def test_a_thousand_askers_are_one_mint(self) -> None:
        """A thousand programs that ask for one audience at once share one mint."""
        world = World()
        world.issuer.id_answer = lambda audience: id_token(world, audience)
        async with world.running():
            await self.serving(world)
            world.issuer.gate.clear()
            askers = [asyncio.create_task(world.controller.issuing.id_token("aud")) for _ in range(1000)]
            await settle()
            world.issuer.gate.set()
            tokens = await asyncio.gather(*askers)

            assert world.issuer.id_calls == ["aud"]
            assert len({id(token) for token in tokens}) == 1
            assert await world.controller.issuing.id_token("aud") == tokens[0]
            assert world.issuer.id_calls == ["aud"]

    @looped
    async def test_an_asker_that_leaves_takes_nobody_along(self) -> None:
        """The one who asked first may hang up; the others still get the token."""
        world = World()
        world.issuer.id_answer = lambda audience: id_token(world, audience)
        async with world.running():
            await self.serving(world)
            world.issuer.gate.clear()
            first = asyncio.create_task(world.controller.issuing.id_token("aud"))
            second = asyncio.create_task(world.controller.issuing.id_token("aud"))
            await settle()
            first.cancel()
            await settle()
            world.issuer.gate.set()

            assert (await second) is not None
            assert world.issuer.id_calls == ["aud"]

    @pytest.mark.parametrize(
        ("error", "heard"),
        [
            (Denied("no", code="unsupported"), None),
            (Denied("no", code="PERMISSION_DENIED"), Denied),
            (Transient("unreachable"), Transient),
            (TimeoutError(), Transient),
            (ZeroDivisionError("bug"), Transient),
        ],
    )
    @looped
    async def test_a_mint_that_fails_says_how(self, error: Exception, heard: type[Exception] | None) -> None:
        """What can never be made is none, what failed is an error of its kind, and the next asker tries again."""
        world = World()
        world.issuer.id_answer = lambda audience: error
        async with world.running():
            await self.serving(world)
            if heard is None:
                assert await world.controller.issuing.id_token("aud") is None
            else:
                with pytest.raises(heard):
                    await world.controller.issuing.id_token("aud")
            world.issuer.id_answer = lambda audience: id_token(world, audience)
            assert await world.controller.issuing.id_token("aud") is not None

    @looped
    async def test_a_pause_that_was_asked_for_is_heard(self) -> None:
        """`Retry-After`: until then no audience is a call, for half a minute at most; another identity has no pause."""
        world = World()
        world.issuer.id_answer = lambda _: Transient("slow down", code="RESOURCE_EXHAUSTED", pause_seconds=300.0)
        async with world.running():
            await self.serving(world)
            for audience in ("a", "b", "a"):
                with pytest.raises(Transient, match="slow down"):
                    await world.controller.issuing.id_token(audience)
            assert world.issuer.id_calls == ["a"]
            await world.clock.advance(PAUSE_URGENT_SECONDS)
            world.issuer.id_answer = lambda audience: id_token(world, audience)
            assert await world.controller.issuing.id_token("b") is not None
            world.issuer.id_answer = lambda _: Transient("slow down", pause_seconds=300.0)
            with pytest.raises(Transient):
                await world.controller.issuing.id_token("c")
            world.issuer.id_answer = lambda audience: id_token(world, audience)
            await world.submit(world.knows(b"two", bundle(service_account("sb"), seq=2, routes={Cloud.GCP: "sb"})))
            await settle(40)
            assert await world.controller.issuing.id_token("c") is not None

    @looped
    async def test_a_mint_that_a_withdrawal_overtook_is_dropped(self) -> None:
        """A token that was being minted when its identity was withdrawn reaches nobody."""
        world = World()
        world.issuer.id_answer = lambda audience: id_token(world, audience)
        async with world.running():
            await self.serving(world)
            world.issuer.gate.clear()
            asker = asyncio.create_task(world.controller.issuing.id_token("aud"))
            await settle()
            await world.submit(world.knows(b"end", bundle(seq=2, action=Action.WITHDRAW)))
            world.issuer.gate.set()

            assert await asker is None
            assert world.store.view_id_token("aud", world.clock.now()) is None

    @pytest.mark.parametrize("event", [BundleRevoked(), None], ids=["withdrawn", "nothing"])
    @looped
    async def test_what_is_taken_away_before_the_asker_has_its_turn_is_not_given(
        self, event: BundleRevoked | None
    ) -> None:
        """A token that was minted and kept, and whose identity went before its asker was woken, reaches nobody."""
        world = World()

        def answer(audience: str) -> IdToken:
            if event is not None:  # the next thing that happens, before the asker hears of the token
                asyncio.get_running_loop().call_soon(lambda: world.store.apply(event, world.clock.now()))
            return id_token(world, audience)

        world.issuer.id_answer = answer
        async with world.running():
            await self.serving(world)
            asker = asyncio.create_task(world.controller.issuing.id_token("aud"))
            await asyncio.wait({asker})
            if event is None:
                assert asker.result() is not None
            else:
                assert isinstance(asker.exception(), Transient)

    @looped
    async def test_a_token_that_is_over_when_it_comes_is_not_given(self) -> None:
        """What a cache hands out is a failure that passes, and is not kept."""
        world = World()
        world.issuer.id_answer = lambda audience: id_token(world, audience, minutes=0)
        async with world.running():
            await self.serving(world)
            with pytest.raises(Transient, match="is over already"):
                await world.controller.issuing.id_token("aud")
            assert world.store.view_id_token("aud", world.clock.now()) is None

    async def overtaken(self, world: World, grant_id: str = "sb") -> asyncio.Task[IdToken | None]:
        """Who has asked for a token, while a newer bundle came before it was minted."""
        await self.serving(world)
        world.issuer.gate.clear()
        asker = asyncio.create_task(world.controller.issuing.id_token("aud"))
        await settle()
        newer = bundle(service_account(grant_id), seq=2, routes={Cloud.GCP: grant_id}, salt="2")
        await world.submit(world.knows(b"two", newer))
        world.issuer.gate.set()
        return asker

    @pytest.mark.parametrize("grant_id", ["sb", "sa"], ids=["another grant", "another bundle's, which reads the same"])
    @looped
    async def test_a_mint_that_a_newer_bundle_overtook_is_made_anew(self, grant_id: str) -> None:
        """A token of the old identity is not served, and not kept, under the new one; nor is "none" said for that.

        A grant that reads the same may stand on another person's.
        """
        world = World()
        world.issuer.id_answer = lambda audience: id_token(world, audience, token=f"{len(world.issuer.id_calls)}")
        async with world.running():
            asker = await self.overtaken(world, grant_id)

            fresh = await asker
            assert fresh is not None
            assert fresh.token.reveal() == "2"
            assert await world.controller.issuing.id_token("aud") is fresh
            assert world.issuer.id_calls == ["aud"] * 2

    @pytest.mark.parametrize("code", ["unsupported", "PERMISSION_DENIED"])
    @looped
    async def test_what_refuses_the_former_identity_says_nothing_of_the_next(self, code: str) -> None:
        """Else whoever asks as the next hears that it may have none, and takes it for good."""
        world = World()
        world.issuer.id_answer = lambda audience: (
            Denied("no", code=code) if len(world.issuer.id_calls) < 2 else id_token(world, audience)
        )
        async with world.running():
            asker = await self.overtaken(world)
            assert await asker is not None

    @looped
    async def test_the_end_of_the_lease_ends_them(self) -> None:
        """Beyond the lease an identity token of the bundle is not shown, even where the machine's identity follows."""
        world = World(policy=Policy(on_expiry=OnExpiry.FALLBACK))
        world.issuer.answer = lambda call: (
            Issued(google_token(call.at, minutes=600)) if call.cloud is not Cloud.AWS else None
        )
        world.issuer.id_answer = lambda audience: id_token(world, audience, minutes=600)
        async with world.running():
            one = bundle(service_account(), routes={Cloud.GCP: "sa"}, lease=world.clock.now() + HOUR)
            await world.submit(world.knows(b"one", one))
            await settle(40)
            assert await world.controller.issuing.id_token("aud") is not None
            assert world.store.view_id_token("aud", world.clock.now()) is not None
            await world.clock.advance(3601)

            assert world.store.origin(Cloud.GCP, world.clock.now()) is Origin.FALLBACK
            assert world.store.view_id_token("aud", world.clock.now()) is None

    @looped
    async def test_nothing_is_minted_before_the_base_has_a_credential(self) -> None:
        """Who asks meanwhile is told to ask again, and has the ordinary access token; it is no error of ours."""
        world = World()
        world.issuer.id_answer = lambda audience: id_token(world, audience)
        async with world.running() as logs:
            await self.serving(world)
            world.issuer.gate.clear()
            robot = GcpImpersonation(id="robot", target_principal="r@p.example", base="sb")
            newer = bundle(service_account("sb"), robot, seq=2, routes={Cloud.GCP: "robot"})
            await world.submit(world.knows(b"two", newer))
            asker = asyncio.create_task(world.controller.issuing.id_token("aud"))
            narrow = asyncio.create_task(world.controller.issuing.scoped.mint((READ,)))
            await settle()
            world.issuer.gate.set()
            with pytest.raises(Transient, match="no credential yet"):
                await asker
            assert await narrow is None
            await settle(40)
            assert await world.controller.issuing.id_token("aud") is not None
            assert not [line for line in logs if line["event"].endswith(".crashed")]

    @looped
    async def test_without_google_none_is_minted(self) -> None:
        """Where Google is not served nobody is asked for an identity token."""
        world = World(policy=Policy(fallback=frozenset()))
        async with world.running():
            assert await world.controller.issuing.id_token("aud") is None
            assert world.issuer.id_calls == []


class TestPush:
    @looped
    async def test_each_push_gets_its_own_verdict(self) -> None:
        """A push whose client hung up leaves its verdict to nobody: the next push is told of its own bundle."""
        push = PushSource(clock=FakeClock())
        world = World(sources=[push])
        world.knows(b"one", bundle(session(), seq=1))
        world.knows(b"two", bundle(session(), seq=2))
        async with world.running():
            world.opener.gate.clear()
            first = asyncio.create_task(push.push(b"one"))
            await settle()
            first.cancel()
            await settle()
            second = asyncio.create_task(push.push(b"two"))
            await settle()
            world.opener.gate.set()
            ack = await second

            assert (ack.outcome, ack.seq) == ("accepted", 2)
            assert [memory.marks[0].seq for memory, _ in world.recorder.saved] == [1, 2]

    @looped
    async def test_a_push_while_starting_is_told_so(self) -> None:
        """Before the controller runs a push is refused with a hint, not lost."""
        from agent.core.errors import SourceError

        push = PushSource(clock=FakeClock())
        with pytest.raises(SourceError, match="starting"):
            await push.push(b"one")


@looped
async def test_stopping_ends_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """When the controller is cancelled nothing of it runs on, and no error is left unretrieved."""
    world = World()
    world.issuer.gate.clear()
    world.opener.gate.clear()
    async with world.running():
        submission = asyncio.create_task(world.controller.intake.submit(SealedBundle(b"x", "file")))
        await settle()
    await settle()
    submission.cancel()
    await asyncio.gather(submission, return_exceptions=True)
    others = asyncio.all_tasks() - {asyncio.current_task()}

    assert {task.get_name() for task in others} == set()
    assert capsys.readouterr().err == ""


def test_the_store_has_no_clock_of_its_own() -> None:
    """The controller asks the injected clock for every instant: in a world that stands still nothing ever becomes due."""

    async def stand_still() -> int:
        world = World()
        async with renewing(world):
            await settle(60)
            calls = len(world.issuer.calls)
            await settle(300)
            return len(world.issuer.calls) - calls

    assert asyncio.run(stand_still()) == 0
    assert isinstance(World().clock.now(), datetime)
