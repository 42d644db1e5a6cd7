"""The conditions inside the rules of an identity, one a test: each was found by a change that no other test noticed."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any, ClassVar

import msgspec
import pytest

from agent.core.model import (
    Action,
    AwsCredential,
    AwsSession,
    Bundle,
    Cloud,
    Env,
    GcpAuthorizedUser,
    GcpServiceAccount,
    GcpToken,
    Grant,
    IdToken,
    OnExpiry,
)
from agent.core.secret import Secret
from agent.core.verdict import Accepted, Event, Failure, Key, Mark, Memory, Policy, Refused, Same, Work
from agent.core.view import Absent, Ended, Facts, Live, Origin, Pending
from agent.identity import admission, leftovers, slots
from agent.identity.graph import role_name_of
from agent.identity.transitions import ID_TOKEN_AUDIENCES
from tests.fakes.clock import START
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import HOUR, aws_credential, bundle, google, google_token, role, session

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
OWN_AWS, OWN_GCP = Key(Cloud.AWS, "instance"), Key(Cloud.GCP, "instance")
R = Key(Cloud.AWS, "r")


def store(memory: Memory | None = None, *, waited: timedelta = timedelta(), **policy: object) -> Store:
    return Store(Policy(**policy), memory or Memory("i-1"), START, random.Random(7), waited=waited)  # type: ignore[arg-type]


def take(s: Store, b: Bundle, now: datetime = START) -> None:
    verdict = s.evaluate(b, now)
    assert isinstance(verdict, Accepted), verdict
    s.accept(verdict, now)


def due(s: Store, key: Key, now: datetime = START) -> Work:
    (found,) = [work for work in s.due(now) if work.key == key]
    return found


def fail(now: datetime = START, *, denied: bool = False, message: str = "no") -> Failure:
    return Failure("timeout", message, denied, now)


def served_key(s: Store, now: datetime = START) -> str:
    answer = s.answer(Cloud.AWS, now)
    assert isinstance(answer, Live), answer
    assert isinstance(answer.credential, AwsCredential)
    return answer.credential.access_key_id


def user() -> GcpAuthorizedUser:
    return GcpAuthorizedUser(id="u", client_id="c", client_secret=Secret("s"), refresh_token=Secret("r"))


class TestAdmission:
    def test_a_bundle_of_the_very_moment_of_the_floor_is_refused(self) -> None:
        """What was issued when the last forgotten one was may be that one; a second later it cannot be."""
        s = store(Memory("i-1", floors={"cp": START}))

        verdict = s.evaluate(bundle(session()), START)
        assert isinstance(verdict, Refused)
        assert verdict.code == "rollback"
        assert isinstance(s.evaluate(bundle(session(), now=START + SECOND), START + SECOND), Accepted)

    def test_a_withdrawn_bundle_is_not_taken_again(self) -> None:
        """Only what should be in force is taken again when its copy is lost: not one that another has followed."""
        s = store()
        first = bundle(session(), subject="first")
        take(s, first)
        take(s, bundle(session(), subject="second"))
        s.revoke(START)

        assert s.evaluate(first, START) == Same(1)

    def test_a_withdrawal_where_nothing_is_in_force_changes_no_decision(self) -> None:
        """A late withdrawal of a stream that nobody serves neither opens a cloud nor closes one."""
        s = store(on_expiry=OnExpiry.FALLBACK)
        take(s, bundle(seq=1, action=Action.WITHDRAW))
        assert s.memory.decided == {}
        assert s.memory.active is None
        assert s.memory.mark("cp", "team") is not None

    def test_a_withdrawal_of_another_stream_leaves_the_one_in_force_to_the_next_start(self) -> None:
        """After a restart what is in force is resumed, though another stream was withdrawn meanwhile."""
        s = store()
        mine = bundle(session())
        take(s, mine)
        take(s, bundle(seq=1, action=Action.WITHDRAW, subject="another"))

        again = store(s.memory)
        assert isinstance(again.evaluate(mine, START, resume=True), Accepted)

    def test_a_lapsed_withdrawal_that_allows_the_machine_opens_only_what_it_carried(self) -> None:
        """`fallback` in a withdrawal gives back the clouds that its bundle carried, and no other that was decided."""
        s = store()
        take(s, bundle(google(), session(), seq=1))
        take(s, bundle(session(), seq=2))
        take(s, bundle(seq=3, action=Action.WITHDRAW, on_expiry=OnExpiry.FALLBACK))

        assert s.origin(Cloud.AWS, START) is Origin.FALLBACK
        assert s.origin(Cloud.GCP, START) is Origin.CLOSED


class TestStanding:
    def test_the_configuration_alone_allows_the_machine(self) -> None:
        """A bundle that says fallback opens no machine's identity that the configuration keeps closed."""
        s = store(fallback=frozenset({Cloud.GCP}))
        take(s, bundle(session(hours=1), on_expiry=OnExpiry.FALLBACK))

        assert isinstance(s.answer(Cloud.AWS, START + HOUR), Ended)
        assert s.origin(Cloud.AWS, START + HOUR) is Origin.CLOSED
        assert OWN_AWS not in [Key(one.cloud, one.id) for one in s.slots()]

    def test_the_machine_does_not_follow_while_a_predecessor_is_served(self) -> None:
        """With fallback allowed, a refused first mint is no loss while what an earlier bundle left is alive."""
        s = store(on_expiry=OnExpiry.FALLBACK)
        take(s, bundle(session(hours=2)))
        take(s, bundle(session("base", hours=1), role("r", base="base"), seq=2, routes={Cloud.AWS: "r"}))
        s.failed(due(s, R), fail(denied=True), START)

        assert s.origin(Cloud.AWS, START) is Origin.BUNDLE
        assert served_key(s) == "ASIAUSER000000000000"
        answer = s.answer(Cloud.AWS, START + 2 * HOUR)
        assert not (isinstance(answer, Live) and answer.origin is Origin.BUNDLE)

    def test_what_an_earlier_bundle_left_ends_with_itself_too(self) -> None:
        """Without a lease the predecessor's credential is served until its own end and not a second longer."""
        s = store()
        take(s, bundle(session(hours=1)))
        take(s, bundle(session("base"), role("r", base="base"), seq=2, routes={Cloud.AWS: "r"}))

        assert isinstance(s.answer(Cloud.AWS, START + HOUR - SECOND), Live)
        assert not isinstance(s.answer(Cloud.AWS, START + HOUR), Live)

    def test_a_successor_that_has_its_own_keeps_nothing_of_the_predecessor(self) -> None:
        """A bundle that brings a live session is served alone: its end is not bridged by the one before."""
        s = store()
        take(s, bundle(session(hours=9, key="ASIAUSER000000000001")))
        take(s, bundle(session(hours=1), seq=2))

        assert served_key(s) == "ASIAUSER000000000000"
        assert isinstance(s.answer(Cloud.AWS, START + HOUR), Ended)

    def test_the_machines_own_ends_on_the_second(self) -> None:
        """The machine's credential is not served at its end, nor after it."""
        s = store()
        s.put(due(s, OWN_AWS), aws_credential(START), START)

        assert isinstance(s.answer(Cloud.AWS, START + HOUR - SECOND), Live)
        assert not isinstance(s.answer(Cloud.AWS, START + HOUR), Live)

    def test_a_refusal_of_the_machine_is_no_passing_trouble(self) -> None:
        """Of the machine's own identity too, an outage is told as passing, and a refusal is not."""
        for denied in (False, True):
            s = store()
            s.failed(due(s, OWN_AWS), fail(denied=denied), START)
            answer = s.answer(Cloud.AWS, START)
            assert isinstance(answer, Ended)
            assert answer.passing is not denied

    def test_a_lease_that_is_over_is_no_passing_trouble(self) -> None:
        """A client that is told to come back would wait for what never comes."""
        s = store()
        take(s, bundle(role("r"), lease=START + HOUR))
        answer = s.answer(Cloud.AWS, START + HOUR)

        assert isinstance(answer, Ended)
        assert not answer.passing

    def test_a_grace_that_was_had_is_not_had_again(self) -> None:
        """What an earlier process of this boot waited is taken off the grace of this one, and it is never negative."""
        s = store(grace=10 * MINUTE, waited=8 * MINUTE)
        assert s.origin(Cloud.AWS, START + 2 * MINUTE - SECOND) is Origin.WAITING
        assert s.origin(Cloud.AWS, START + 2 * MINUTE) is Origin.FALLBACK
        assert store(grace=MINUTE, waited=HOUR).origin(Cloud.AWS, START) is Origin.FALLBACK

    def test_what_is_being_opened_waits_until_something_is_in_force(self) -> None:
        """A decided cloud is pending while its bundle is opened, closed when that is given up, and open when it is."""
        mine = bundle(session())
        first = store()
        take(first, mine)
        s = store(first.memory)
        version = s.version
        s.resuming("being opened")
        assert s.answer(Cloud.AWS, START) == Pending("being opened")
        assert s.version > version
        version = s.version
        s.resuming("being opened")
        assert s.version == version
        s.resuming(None)
        assert isinstance(s.answer(Cloud.AWS, START), Ended)
        s.resuming("being opened")
        verdict = s.evaluate(mine, START, resume=True)
        assert isinstance(verdict, Accepted)
        s.accept(verdict, START)
        assert isinstance(s.answer(Cloud.AWS, START), Live)
        assert isinstance(s.answer(Cloud.GCP, START), Pending)  # the machine's own, which is being read

    def test_while_it_is_opened_the_machine_does_not_follow(self) -> None:
        """`on_expiry = fallback` gives nobody the machine's identity for the seconds in which a bundle is opened."""
        first = store()
        take(first, bundle(session()))
        s = store(first.memory, on_expiry=OnExpiry.FALLBACK)
        s.resuming("being opened")

        assert s.origin(Cloud.AWS, START) is Origin.WAITING


class TestIssuing:
    def test_after_the_lease_nobody_is_asked(self) -> None:
        """A lease that is over is not renewed for: neither its grants nor the sources they stand on; the rest is."""
        for before, asked in ((SECOND, {OWN_AWS, OWN_GCP}), (timedelta(), {OWN_GCP})):
            s = store()
            take(s, bundle(role("r"), lease=START + HOUR))
            assert {work.key for work in s.due(START + HOUR - before)} == asked

    def test_a_result_for_nobody_is_not_taken(self) -> None:
        """What was asked for a bundle that is gone is dropped, also when no bundle came after it."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, OWN_AWS), aws_credential(START), START)
        work = due(s, R)
        s.revoke(START)

        assert not s.put(work, aws_credential(START), START)
        s.failed(work, fail(), START)
        assert {one.id for one in s.slots()} == {"instance"}

    def test_only_what_stands_on_it_is_woken(self) -> None:
        """A fresh source makes due what failed for want of it, and leaves the back-off of all others alone."""
        s = store()
        take(s, bundle(role("r"), user(), routes={Cloud.AWS: "r", Cloud.GCP: "u"}))
        works = {work.key: work for work in s.due(START)}
        s.failed(works[OWN_AWS], fail(), START)
        s.failed(works[Key(Cloud.GCP, "u")], fail(denied=True), START)
        before = next(one.renew_at for one in s.slots() if one.id == "u")
        again = next(one.renew_at for one in s.slots() if one.cloud is Cloud.AWS and one.id == "instance")
        assert again is not None
        s.put(due_again(s, OWN_AWS, again), aws_credential(again), again)

        assert next(one.renew_at for one in s.slots() if one.id == "u") == before
        assert R in {work.key for work in s.due(again)}

    def test_an_attempt_has_a_number(self) -> None:
        """The first attempt is the first, and each that fails makes the next one higher."""
        s = store()
        work = due(s, OWN_AWS)
        assert work.attempt == 1
        s.failed(work, fail(), START)
        assert due(s, OWN_AWS, START + HOUR).attempt == 2

    def test_a_source_that_came_back_is_a_first_attempt(self) -> None:
        """Failures for want of a source are not counted against what stands on it."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, OWN_AWS), aws_credential(START), START)
        s.failed(due(s, R), fail(), START)
        later = START + HOUR
        s.put(due_again(s, OWN_AWS, later), aws_credential(later, key="ASIA00000000000000B0"), later)

        assert due(s, R, later).attempt == 1

    def test_a_machine_without_an_identity_is_told_of(self) -> None:
        """What stands on a machine's identity that does not exist is refused with that reason."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, OWN_AWS), None, START)
        s.due(START)
        answer = s.answer(Cloud.AWS, START)

        assert isinstance(answer, Ended)
        assert "this machine has none" in answer.why
        assert not answer.passing

    def test_another_reason_is_told_in_its_place(self) -> None:
        """What is blocked says why it is blocked now, not why it was at first."""
        s = store()
        take(s, bundle(role("r")))
        now = START
        for message in ("first", "second"):
            s.failed(due_again(s, OWN_AWS, now), fail(now, message=message), now)
            s.due(now)
            answer = s.answer(Cloud.AWS, now)
            assert isinstance(answer, Ended)
            assert message in answer.why
            now += HOUR

    def test_a_machine_that_lost_its_role_keeps_what_is_alive(self) -> None:
        """A "no identity" takes no live credential away; once that is over the answer is absent."""
        s = store()
        s.put(due(s, OWN_AWS), aws_credential(START), START)
        later = START + 50 * MINUTE
        s.put(due_again(s, OWN_AWS, later), None, later)

        assert isinstance(s.answer(Cloud.AWS, later), Live)
        assert isinstance(s.answer(Cloud.AWS, START + HOUR), Absent)

    def test_good_news_is_told_though_the_credential_is_the_same(self) -> None:
        """After a failure, and after "no identity", the same credential again is news: the answer changes with it."""
        own = aws_credential(START, minutes=600)
        s = store()
        s.put(due(s, OWN_AWS), own, START)
        later = START + 2 * HOUR
        assert not s.put(due_again(s, OWN_AWS, later), own, later)  # nothing new
        later += 2 * HOUR
        s.failed(due_again(s, OWN_AWS, later), fail(later), later)
        later += HOUR
        assert s.put(due_again(s, OWN_AWS, later), own, later)
        later += HOUR
        s.put(due_again(s, OWN_AWS, later), None, later)
        later += HOUR
        assert s.put(due_again(s, OWN_AWS, later), own, later)

    def test_the_first_mints_are_spread_after_the_acceptance(self) -> None:
        """Within the spread, and never before the bundle was there."""
        for seed in range(20):
            s = Store(Policy(spread=MINUTE), Memory("i-1"), START, random.Random(seed))
            take(s, bundle(role("r")))
            (at,) = [one.renew_at for one in s.slots() if one.id == "r"]
            assert at is not None
            assert START <= at <= START + MINUTE

    def test_doubt_asks_within_half_a_minute_and_not_in_the_past(self) -> None:
        """What is hurried is spread over the half minute that follows."""
        for seed in range(20):
            s = Store(Policy(), Memory("i-1"), START, random.Random(seed))
            s.put(due(s, OWN_AWS), aws_credential(START, minutes=600), START)
            assert s.retry_now(START)
            at = next(one.renew_at for one in s.slots() if one.cloud is Cloud.AWS)
            assert at is not None
            assert START <= at <= START + 30 * SECOND
            assert not s.retry_now(START)

    def test_a_minute_of_doubt_moves_with_the_clock(self) -> None:
        """A clock that is set back hurries nobody again within the same minute."""
        s = store()
        assert s.retry_now(START)
        s.rebase(-HOUR, START - HOUR)
        assert not s.retry_now(START - HOUR + 30 * SECOND)
        assert s.retry_now(START - HOUR + MINUTE)


def due_again(s: Store, key: Key, now: datetime) -> Work:
    """As ``due``, with whatever else is due under way too."""
    return next(work for work in s.due(now) if work.key == key)


class TestLeftOver:
    """What one process leaves to the next."""

    def bridged(self) -> tuple[Store, Bundle]:
        """A bundle in force that has nothing yet, beside which its predecessor's credential is served."""
        s = store()
        take(s, bundle(session(hours=5), lease=START + 4 * HOUR))
        second = bundle(session("base"), role("r", base="base"), seq=2, routes={Cloud.AWS: "r"})
        take(s, second)
        return s, second

    def heir(self, s: Store, second: Bundle) -> Store:
        again = store(s.memory)
        verdict = again.evaluate(second, START, resume=True)
        assert isinstance(verdict, Accepted)
        again.accept(verdict, START)
        return again

    def test_a_remnant_is_served_on_by_the_next(self) -> None:
        """Under its own name, with its own end and the lease that it came with; and it is left on to the one after."""
        s, second = self.bridged()
        (left,) = s.remnants()
        again = self.heir(s, second)

        assert again.restore_remnant(left, START)
        assert served_key(again) == "ASIAUSER000000000000"
        assert again.remnants() == [left]
        assert isinstance(again.answer(Cloud.AWS, START + 4 * HOUR - SECOND), Live)
        assert not isinstance(again.answer(Cloud.AWS, START + 4 * HOUR), Live)
        assert left.name in again.names(Cloud.AWS)

    def test_a_remnant_is_taken_once_and_only_where_it_belongs(self) -> None:
        """Not a second time, not of another bundle, not when it is over, nor beside a credential, nor without a bundle."""
        s, second = self.bridged()
        (left,) = s.remnants()
        again = self.heir(s, second)
        assert not again.restore_remnant(left._replace(digest="0" * 64), START)
        assert not again.restore_remnant(left._replace(cloud=Cloud.GCP), START)
        assert not again.restore_remnant(left, START + 5 * HOUR)
        assert again.restore_remnant(left, START)
        assert not again.restore_remnant(left, START)
        assert not store().restore_remnant(left, START)
        has_its_own = self.heir(s, second)
        has_its_own.put(due(has_its_own, R), aws_credential(START), START)
        assert not has_its_own.restore_remnant(left, START)
        assert served_key(has_its_own) == "ASIAMINTED0000000000"

    def test_the_first_own_credential_ends_the_remnant(self) -> None:
        """Of that cloud; what was left in another is served on."""
        s = store()
        take(s, bundle(session(hours=5), google(hours=5)))
        routes = {Cloud.AWS: "r", Cloud.GCP: "u"}
        take(s, bundle(session("base"), role("r", base="base"), user(), seq=2, routes=routes))
        assert {left.cloud for left in s.remnants()} == {Cloud.AWS, Cloud.GCP}
        s.put(due(s, R), aws_credential(START), START)

        assert [left.cloud for left in s.remnants()] == [Cloud.GCP]
        assert isinstance(s.answer(Cloud.GCP, START), Live)

    def test_the_wait_of_an_outage_goes_on(self) -> None:
        """A restart in an outage asks when the earlier process would have, within two minutes, and counts on."""
        s = store()
        mine = bundle(session("base"), role("r", base="base"), routes={Cloud.AWS: "r"})
        take(s, mine)
        s.failed(due(s, R), fail(), START)
        (left,) = s.waiting()
        assert (left.key, left.digest, left.attempts) == (R, mine.digest, 1)
        again = self.heir(s, mine)

        assert again.restore_waiting(left._replace(again_at=START + 30 * SECOND), START)
        assert R not in {work.key for work in again.due(START + 29 * SECOND)}
        assert due(again, R, START + 30 * SECOND).attempt == 2

    def test_a_wait_is_taken_only_where_it_belongs(self) -> None:
        """Not of another bundle, not twice, and not once somebody is being asked."""
        s = store()
        mine = bundle(session("base"), role("r", base="base"), routes={Cloud.AWS: "r"})
        take(s, mine)
        s.failed(due(s, R), fail(), START)
        (left,) = s.waiting()
        again = self.heir(s, mine)
        assert not again.restore_waiting(left._replace(digest="0" * 64), START)
        assert again.restore_waiting(left, START)
        assert not again.restore_waiting(left, START)
        asking = self.heir(s, mine)
        asking.due(START)
        assert not asking.restore_waiting(left, START)
        assert not store().restore_waiting(left, START)

    def test_what_never_failed_leaves_no_wait(self) -> None:
        """Neither what holds a credential nor what has not been asked for is a retry."""
        s, _ = self.bridged()
        assert s.waiting() == []

    def test_the_machines_own_belongs_to_no_bundle(self) -> None:
        """Its credential is taken over whatever bundle is in force by then, and a bundle's is not, without its bundle."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, OWN_AWS), aws_credential(START), START)
        s.put(due(s, R), aws_credential(START), START)
        held = {left.key: left for left in s.held()}
        assert held[OWN_AWS].digest == ""
        assert held[R].digest != ""
        bare = store(grace=timedelta())
        assert bare.restore(held[OWN_AWS], START)
        assert not bare.restore(held[R], START)
        assert not bare.restore(held[R]._replace(digest=""), START)
        assert bare.names(Cloud.AWS)

    def test_what_serves_nobody_is_named_to_nobody(self) -> None:
        """A source that is taken over is listed under no name: its role is not what workers have."""
        s = store()
        mine = bundle(role("r"))
        take(s, mine)
        s.put(due(s, OWN_AWS), aws_credential(START, role_name="machine"), START)
        again = self.heir(s, mine)
        again.restore(next(left for left in s.held() if left.key == OWN_AWS), START)

        assert "machine" not in again.names(Cloud.AWS)

    def test_another_machines_own_goes_with_its_memory(self) -> None:
        """After a reset nothing of the earlier machine is held, and the machine's own is asked for anew."""
        s = store()
        s.put(due(s, OWN_AWS), aws_credential(START), START)
        s.reset("i-2", START)

        assert s.held() == []
        assert OWN_AWS in {work.key for work in s.due(START)}


class TestTold:
    def test_a_lease_that_ends_is_told_once(self) -> None:
        """When the lease ends everything that follows the version looks again: the variables are gone."""
        s = store()
        take(s, bundle(Env(id="e", variables={"A": Secret("b")}), lease=START + HOUR))
        s.tick(START)
        version = s.version
        s.tick(START + HOUR)
        assert s.version > version
        version = s.version
        s.tick(START + HOUR + SECOND)
        assert s.version == version

    def test_a_start_that_serves_nothing_yet_tells_nothing(self) -> None:
        """The first look tells of what is served or refused, and not of what is waited for."""
        s = store(grace=MINUTE)
        assert s.tick(START) == []
        refused = store(fallback=frozenset())
        assert [one.event for one in refused.tick(START)] == [Event.ENDED, Event.ENDED]

    def test_what_bundles_never_bring_does_not_end(self) -> None:
        """Where nothing falls back, a bundle for one cloud ends nothing in the other; taking it away ends it in its own."""
        s = store(grace=MINUTE, fallback=frozenset())
        s.tick(START)
        take(s, bundle(session()))
        assert [(one.event, one.cloud) for one in s.tick(START) if one.event is Event.ENDED] == []
        assert isinstance(s.answer(Cloud.GCP, START), Ended)  # on the wire it is refused as ever
        take(s, bundle(seq=2, action=Action.WITHDRAW))
        told = [one.cloud for one in s.tick(START) if one.event is Event.ENDED]
        assert told == [Cloud.AWS]

    def test_an_end_is_near_only_for_what_is_served(self) -> None:
        """What has ended already is told as ended, not as about to end."""
        s = store()
        take(s, bundle(session(hours=1)))
        assert Event.HORIZON not in [one.event for one in s.tick(START + HOUR)]

    def test_the_warning_is_not_repeated_after_the_end(self) -> None:
        """Once it was told that the end is near, the end itself makes it no news again."""
        s = store()
        take(s, bundle(session(hours=2)))
        assert Event.HORIZON in [one.event for one in s.tick(START + HOUR)]
        s.tick(START + 2 * HOUR)
        s.rebase(-30 * MINUTE, START + 90 * MINUTE)
        assert Event.HORIZON not in [one.event for one in s.tick(START + 90 * MINUTE)]

    def test_a_machines_own_has_no_end_to_tell(self) -> None:
        """Without a bundle there is no horizon, nor a reason, nor anything that follows."""
        s = store()
        s.put(due(s, OWN_AWS), aws_credential(START), START)
        assert s.horizon(Cloud.AWS, START) is None
        assert s.horizon_reason(Cloud.AWS, START) == "the machine's own identity has no end"
        assert s.at_the_end(Cloud.AWS, START) == "nothing ends it"
        take(s, bundle(google()))
        assert s.horizon(Cloud.AWS, START) is None
        assert s.at_the_end(Cloud.AWS, START) == "nothing ends it"
        assert s.at_the_end(Cloud.GCP, START) == "requests are refused until a new bundle comes"

    @pytest.mark.parametrize("denied", [False, True])
    def test_a_refusal_and_an_outage_are_told_apart(self, *, denied: bool) -> None:
        """A refused renewal is refused, and needs a bundle; a failing one is tried again and again."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, OWN_AWS), aws_credential(START, minutes=600), START)
        s.put(due(s, R), aws_credential(START), START)
        at = START + 40 * MINUTE
        s.failed(due_again(s, R, at), fail(at, denied=denied), at)

        reason, follows = s.horizon_reason(Cloud.AWS, at), s.at_the_end(Cloud.AWS, at)
        assert ("it is refused" in reason) is denied
        assert ("it is tried again and again" in reason) is not denied
        assert follows.startswith("requests are refused until a new" if denied else "requests are refused until the")

    def test_an_outage_of_a_minute_ends_nothing(self) -> None:
        """Before half of a life is gone a failing renewal sets no end, and says nothing of one."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, OWN_AWS), aws_credential(START, minutes=600), START)
        s.put(due(s, R), aws_credential(START), START)
        at = START + 25 * MINUTE
        s.failed(due_again(s, R, at), fail(at), at)
        assert s.horizon(Cloud.AWS, at) is None

    def test_a_base_that_ends_is_no_outage(self) -> None:
        """A renewal that fails in passing, long before the end that the base sets, is not what ends it then."""
        s = store()
        take(s, bundle(session("base", hours=2), role("r", base="base"), routes={Cloud.AWS: "r"}))
        s.put(due(s, R), aws_credential(START), START)
        at = START + 25 * MINUTE
        s.failed(due_again(s, R, at), fail(at), at)

        assert s.at_the_end(Cloud.AWS, at) == "requests are refused until a new bundle comes"
        assert "nothing on this worker renews it" not in s.horizon_reason(Cloud.AWS, at)

    def test_a_failure_after_the_end_moves_no_end(self) -> None:
        """What was asked for in time and failed when its base was over ended with the base, not with the failure."""
        s = store()
        take(s, bundle(session("base", hours=1), role("r", base="base"), routes={Cloud.AWS: "r"}))
        work, at = due(s, R), START + HOUR + MINUTE
        s.failed(work, fail(at), at)

        assert s.horizon(Cloud.AWS, at) == START + HOUR

    def test_who_watches_hears_of_each_change_and_of_nothing_else(self) -> None:
        """What answers workers is told of a change before anything else is done, and is not told where there is none."""
        s = store()
        seen: list[int] = []
        s.watch(lambda: seen.append(s.version))
        take(s, bundle(session()))
        assert seen[-1] == s.version
        seen.clear()
        s.observe(s.observed)
        assert seen == []


class TestMemory:
    def test_what_firmware_does_not_say_again_is_still_known(self) -> None:
        """A firmware that could not be read once is no other machine's; one that says more is written down."""
        s = store()
        assert s.adopt("i-1", "boot", {"board_asset_tag": "i-1"})
        assert not s.adopt("i-1")
        assert (s.memory.boot_id, s.memory.firmware) == ("boot", {"board_asset_tag": "i-1"})
        assert s.adopt("i-1", "boot", {"board_asset_tag": "i-1", "product_uuid": "u"})
        assert s.memory.firmware == {"board_asset_tag": "i-1", "product_uuid": "u"}

    @pytest.mark.parametrize(("former", "kept"), [("", True), ("i-1", True), ("i-0", False)])
    def test_a_first_name_takes_nothing_from_the_machine(self, former: str, kept: bool) -> None:
        """A name that comes late is this machine's own; only under another name is a credential another machine's."""
        s = store(Memory(former))
        s.put(due(s, OWN_AWS), aws_credential(START), START)
        s.adopt("i-1")

        assert isinstance(s.answer(Cloud.AWS, START), Live) is kept

    def test_another_boot_of_this_machine_keeps_its_credential(self) -> None:
        """What is learned of the machine beside its name makes it no other one."""
        s = store()
        s.put(due(s, OWN_AWS), aws_credential(START), START)
        assert s.adopt("i-1", "another boot")
        assert isinstance(s.answer(Cloud.AWS, START), Live)

    def test_what_comes_once_more_counts_as_brought_from_then_on(self) -> None:
        """Not what means the machine by its name alone, nor what came from here; an older one decides nothing."""
        s = store()
        first, second = bundle(session()), bundle(google(), seq=2)
        take(s, first)
        before = s.state.brought
        assert admission.brought_again(s.state, first, START) is before  # it came from here
        found = msgspec.structs.replace(s.state, brought=Memory("i-1"))
        named = msgspec.structs.replace(first, named=True)
        assert admission.brought_again(found, named, START) is found.brought
        again = admission.brought_again(found, first, START)
        assert (again.active, again.decided) == (Mark("cp", "team", 1, first.digest, START), {Cloud.AWS: None})
        take(s, second)
        later = msgspec.structs.replace(s.state, brought=Memory("i-1"))
        older = admission.brought_again(later, first, START)
        assert (older.active, older.decided) == (None, {Cloud.AWS: None})
        assert [mark.seq for mark in older.marks] == [1]
        gone = bundle(seq=3, action=Action.WITHDRAW)
        assert [mark.seq for mark in admission.brought_again(later, gone, START).marks] == [3]

    def test_what_follows_a_bundle_that_said_nothing_is_the_operator_s_word(self) -> None:
        """A cloud that it decided, and that the next one does not carry, goes by the configuration."""
        for policy, follows in ((OnExpiry.FALLBACK, Origin.FALLBACK), (OnExpiry.DENY, Origin.CLOSED)):
            s = store(on_expiry=policy)
            take(s, bundle(session()))
            take(s, bundle(google(), seq=2))
            assert s.origin(Cloud.AWS, START) is follows

    def test_in_doubt_only_what_was_decided_is_doubted(self) -> None:
        """A cloud that no bundle ever decided is the machine's, whoever the memory belongs to."""
        s = store()
        take(s, bundle(session()))
        assert not s.doubts(Cloud.AWS, START)
        s.doubt("who knows")
        assert s.doubts(Cloud.AWS, START)
        assert not s.doubts(Cloud.GCP, START)

    def test_what_follows_the_end_is_of_the_bundle_that_has_the_cloud(self) -> None:
        """A bundle says nothing of a cloud that it does not route: there the one that decided it does."""
        s = store()
        take(s, bundle(session(), google(), on_expiry=OnExpiry.FALLBACK))
        take(s, bundle(session(), seq=2, on_expiry=OnExpiry.DENY))
        assert s.origin(Cloud.GCP, START) is Origin.FALLBACK
        assert s.origin(Cloud.AWS, START + 13 * HOUR) is Origin.CLOSED


class TestSlots:
    @pytest.mark.parametrize(("left", "seconds"), [(9, 3), (15, 5), (60, 5)])
    def test_a_nearly_dead_credential_is_not_renewed_at_once(self, left: int, seconds: int) -> None:
        """An upstream that hands out what is nearly over is asked after five seconds, or a third of what is left."""
        slot = slots.new_slot(R, 1, role("r"), START)
        credential = aws_credential(START - HOUR, minutes=60 + left / 60)
        held = slots.hold(credential, None, START)

        assert slots.renewal(slot, held, START, random.Random(1)) == START + seconds * SECOND

    @pytest.mark.parametrize("denied", [False, True])
    def test_what_waits_for_a_source_fails_as_the_source_does(self, denied: bool) -> None:
        """A source in passing trouble comes back by itself, and clients of what stands on it may wait; else not."""
        s = store()
        take(s, bundle(role("r")))
        s.failed(due(s, OWN_AWS), fail(denied=denied), START)
        s.due(START)
        answer = s.answer(Cloud.AWS, START)

        assert isinstance(answer, Ended)
        assert answer.passing is not denied

    def test_what_nobody_renews_is_looked_at_when_it_ends(self) -> None:
        """A sealed session has no renewal to wake for; its end within the minute is told when it comes."""
        s = store(fallback=frozenset())
        take(s, bundle(session(hours=30 / 3600)))
        assert s.next_wake(START) == START + 30 * SECOND
        assert s.next_wake(START + 30 * SECOND) == START + 90 * SECOND

    @pytest.mark.parametrize(
        ("arn", "name"),
        [
            ("arn:aws:iam::123456789012:role/team/worker", "worker"),
            ("arn:aws:sts::123456789012:assumed-role/worker/session", "worker"),
            ("arn:aws:iam::123456789012:role/", None),
            ("arn:aws:iam::123456789012:user/worker", None),
            (None, None),
        ],
    )
    def test_a_role_is_listed_by_its_name_if_it_has_one(self, arn: str | None, name: str | None) -> None:
        """An empty name would be a path that no client can ask for."""
        assert role_name_of(arn) == name

    def test_a_sealed_credential_keeps_its_end_whatever_our_clock_does(self) -> None:
        """It names an instant: a clock that was wrong by an hour makes it live for an hour less, or more."""
        s = store()
        take(s, bundle(session(hours=2)))
        s.rebase(HOUR, START + HOUR)

        assert isinstance(s.answer(Cloud.AWS, START + 2 * HOUR - SECOND), Live)
        assert isinstance(s.answer(Cloud.AWS, START + 2 * HOUR), Ended)


class TestFacts:
    """What is said of the machine: the bundle first, then the configuration, then the machine."""

    OWN = Facts("eu-own-1", "eu-own-1a", "111111111111", "i-own", "own-project", None, "own-zone")
    SEEN = Facts("eu-seen-1", "eu-seen-1a", "222222222222", "i-seen", "seen-project", "42", "seen-zone")

    def test_the_machine_says_what_nobody_else_does(self) -> None:
        """All of it, when neither a bundle nor the configuration speaks."""
        s = store()
        version = s.version
        s.observe(self.SEEN)
        assert s.facts() == self.SEEN
        assert s.version > version
        version = s.version
        s.observe(self.SEEN)
        assert s.version == version

    def test_the_configuration_comes_before_the_machine(self) -> None:
        """Word by word: what it does not say is still the machine's."""
        s = store(facts=self.OWN)
        s.observe(self.SEEN)
        assert s.facts() == Facts("eu-own-1", "eu-own-1a", "111111111111", "i-own", "own-project", "42", "own-zone")

    def test_the_bundle_comes_before_both(self) -> None:
        """Region, account and project are those of the identity that is served; the number of another project is none."""
        s = store(facts=self.OWN)
        s.observe(self.SEEN)
        aws = AwsSession(
            id="a",
            access_key_id="ASIAUSER000000000000",
            secret_access_key=Secret("s"),
            session_token=Secret("t"),
            expires_at=int((START + HOUR).timestamp()),
            account_id="333333333333",
            region="eu-bundle-1",
        )
        token = GcpToken(
            id="g", access_token=Secret("y"), expires_at=int((START + HOUR).timestamp()), project_id="bundle-project"
        )
        take(s, bundle(aws, token))

        assert s.facts() == Facts(
            "eu-bundle-1", "eu-own-1a", "333333333333", "i-own", "bundle-project", None, "own-zone"
        )

    @pytest.mark.parametrize("name", Facts.__struct_fields__)
    def test_each_fact_is_told_whoever_knows_it(self, name: str) -> None:
        """What only the machine knows of itself, or only the configuration says, workers hear; the latter wins."""
        seen, own = Facts(**{name: "seen"}), Facts(**{name: "own"})
        s = store()
        s.observe(seen)
        assert s.facts() == seen
        s.reconfigure(Policy(facts=own), START)
        assert s.facts() == own

    def test_the_number_goes_with_its_project(self) -> None:
        """A bundle that names the machine's own project keeps the number that the machine knows."""
        s = store()
        s.observe(self.SEEN)
        token = GcpToken(
            id="g", access_token=Secret("y"), expires_at=int((START + HOUR).timestamp()), project_id="seen-project"
        )
        take(s, bundle(token))
        assert s.facts().numeric_project_id == "42"

    def test_another_policy_takes_effect_at_once(self) -> None:
        """A reload that forbids the machine's identity drops its credential; one that allows it asks for it."""
        s = store()
        s.put(due(s, OWN_AWS), aws_credential(START), START)
        s.reconfigure(Policy(fallback=frozenset()), START)
        assert isinstance(s.answer(Cloud.AWS, START), Ended)
        assert s.held() == []
        s.reconfigure(Policy(), START)
        assert OWN_AWS in {work.key for work in s.due(START)}


class TestIdTokens:
    def token(self, audience: str = "a", *, minutes: int = 60) -> IdToken:
        return IdToken(Secret("t"), audience, START, START + minutes * MINUTE)

    def test_it_is_of_whoever_is_served_now(self) -> None:
        """A token that was minted from the machine is not shown under a bundle, nor the other way round."""
        s = store()
        s.put(due(s, OWN_GCP), google_token(START), START)
        s.put_id_token(self.token(), None)
        assert s.view_id_token("a", START) == self.token()
        assert s.view_id_token("b", START) is None
        take(s, bundle(user(), routes={Cloud.GCP: "u"}))
        assert s.view_id_token("a", START) is None
        s.put_id_token(self.token(), None)  # it comes late
        assert s.view_id_token("a", START) is None
        s.put_id_token(self.token(), user())
        assert s.view_id_token("a", START) == self.token()

    def test_it_is_not_shown_when_nobody_is_served(self) -> None:
        """With Google closed there is no token, minted or not."""
        s = store(fallback=frozenset())
        s.put_id_token(self.token(), None)
        assert s.view_id_token("a", START) is None

    def test_of_many_the_one_that_ends_first_gives_way_to_another(self) -> None:
        """An audience that is there already takes nobody's place."""
        s = store()
        s.put(due(s, OWN_GCP), google_token(START), START)
        for number in range(ID_TOKEN_AUDIENCES):
            s.put_id_token(self.token(str(number), minutes=60 + number), None)
        s.put_id_token(self.token("5", minutes=200), None)
        assert s.view_id_token("0", START) is not None
        s.put_id_token(self.token("more"), None)
        assert s.view_id_token("0", START) is None
        assert s.view_id_token("more", START) is not None
        assert len(s.state.id_tokens) == ID_TOKEN_AUDIENCES

    def test_one_that_was_left_comes_back_to_whom_it_speaks_for(self) -> None:
        """After a restart: not under another grant or another bundle, and not where nobody is served."""
        s = store()
        take(s, bundle(user(), routes={Cloud.GCP: "u"}))
        s.put_id_token(self.token(), user())
        (left,) = leftovers.id_tokens(s.state)
        event = leftovers.minted(s.state, left, START)
        assert event is not None
        assert (event.token, event.grant) == (self.token(), user())
        assert leftovers.minted(store(fallback=frozenset()).state, left, START) is None
        assert leftovers.minted(store().state, left, START) is None
        take(s, bundle(user(), seq=2, routes={Cloud.GCP: "u"}))
        assert leftovers.minted(s.state, left, START) is None

    def test_it_has_ten_minutes_left(self) -> None:
        """A token that is nearly over is minted anew rather than shown."""
        s = store()
        s.put(due(s, OWN_GCP), google_token(START), START)
        s.put_id_token(self.token(), None)
        assert s.view_id_token("a", START + 50 * MINUTE) is not None
        assert s.view_id_token("a", START + 50 * MINUTE + SECOND) is None

    def test_whether_one_can_be_minted(self) -> None:
        """By a service account and by the machine that has one; not by a bare access token, nor by nobody."""
        s = store()
        assert not s.can_mint_id_tokens()
        s.put(due(s, OWN_GCP), google_token(START), START)
        assert s.can_mint_id_tokens()
        take(s, bundle(google()))
        assert not s.can_mint_id_tokens()
        account = GcpServiceAccount(
            id="sa", client_email="sa@p.iam.gserviceaccount.com", private_key_id="k", private_key=Secret("p")
        )
        take(s, bundle(account, seq=2, routes={Cloud.GCP: "sa"}))
        assert s.can_mint_id_tokens()
        assert not store(fallback=frozenset()).can_mint_id_tokens()


class TestNames:
    def test_what_was_listed_is_answered_to(self) -> None:
        """A client that listed one name and asks for it after a change is answered; an unknown name is not."""
        s = store()
        s.put(due(s, OWN_AWS), aws_credential(START, role_name="worker"), START)
        assert s.names(Cloud.AWS) == {"worker"}
        take(s, bundle(session()))
        assert s.names(Cloud.AWS) == {"worker", Policy().role_name}
        assert s.names(Cloud.GCP) == frozenset()

    def test_whom_it_is_listed_as(self) -> None:
        """By the role's name, else by its ARN, else as configured; an account by its e-mail, else as the default."""
        made: dict[str, Grant] = {
            "named": AwsSession(**self.FIELDS, role_name="named", role_arn="arn:aws:iam::123456789012:role/arn"),
            "arn": AwsSession(**self.FIELDS, role_arn="arn:aws:iam::123456789012:role/path/arn"),
            "configured": AwsSession(**self.FIELDS),
            "u@x.example": google(),
            "default": GcpToken(id="g", access_token=Secret("y"), expires_at=self.FIELDS["expires_at"]),
        }
        for name, grant in made.items():
            s = store(role_name="configured")
            take(s, bundle(grant))
            answer = s.answer(Cloud.GCP if isinstance(grant, GcpToken) else Cloud.AWS, START)
            assert isinstance(answer, Live)
            assert answer.name == name

    FIELDS: ClassVar[dict[str, Any]] = {
        "id": "a",
        "access_key_id": "ASIAUSER000000000000",
        "secret_access_key": Secret("s"),
        "session_token": Secret("t"),
        "expires_at": int((START + HOUR).timestamp()),
    }
