"""The rules of the state machine, one a test."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import pytest
from msgspec.structs import replace

from agent.core.model import Action, AwsKeys, Bundle, Cloud, Env, GcpAuthorizedUser, OnExpiry
from agent.core.secret import Secret
from agent.core.verdict import Accepted, Event, Failure, Key, Memory, Policy, Refused, Same, Work
from agent.core.view import Absent, Ended, Live, Origin, Pending
from agent.identity import streams
from agent.identity.forecast import forecasts
from tests.fakes.clock import START
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import HOUR, aws_credential, bundle, google, google_token, role, session

INSTANCE_AWS = Key(Cloud.AWS, "instance")
MINUTE = timedelta(minutes=1)


def store(memory: Memory | None = None, **policy: object) -> Store:
    return Store(Policy(**policy), memory or Memory("i-1"), START, random.Random(7))  # type: ignore[arg-type]


def take(s: Store, b: Bundle, now: datetime = START, *, resume: bool = False) -> Memory:
    verdict = s.evaluate(b, now, resume=resume)
    assert isinstance(verdict, Accepted), verdict
    s.accept(verdict, now)
    return verdict.memory


def due(s: Store, key: Key, now: datetime = START) -> Work:
    found = [work for work in s.due(now) if work.key == key]
    assert len(found) == 1
    return found[0]


def fail(now: datetime, *, denied: bool = False, code: str = "timeout") -> Failure:
    return Failure(code, "no", denied, now)


class TestPrecedence:
    def test_inside_the_grace_every_cloud_is_pending(self) -> None:
        """During the boot grace nothing is decided, so nothing is served and nothing is refused."""
        s = store(grace=MINUTE)

        assert isinstance(s.answer(Cloud.AWS, START), Pending)
        assert s.origin(Cloud.AWS, START) is Origin.WAITING

    def test_after_the_grace_the_machine_serves(self) -> None:
        """When the grace ends without a bundle the machine's own identity is served."""
        s = store(grace=MINUTE)
        s.put(due(s, INSTANCE_AWS), aws_credential(START, role_name="worker"), START)

        answer = s.answer(Cloud.AWS, START + MINUTE)

        assert isinstance(answer, Live)
        assert answer.name == "worker"
        assert answer.origin is Origin.FALLBACK

    def test_a_bundle_beats_the_machine(self) -> None:
        """With a bundle the machine's credential is neither served nor kept."""
        s = store()
        s.put(due(s, INSTANCE_AWS), aws_credential(START, role_name="worker"), START)
        take(s, bundle(session()))

        answer = s.answer(Cloud.AWS, START)

        assert isinstance(answer, Live)
        assert answer.credential.access_key_id == "ASIAUSER000000000000"  # type: ignore[union-attr]
        assert INSTANCE_AWS not in [Key(x.cloud, x.id) for x in s.slots()]

    def test_each_cloud_is_routed_separately(self) -> None:
        """A bundle with only Google credentials leaves AWS on the instance profile."""
        s = store(grace=MINUTE)
        take(s, bundle(google()))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, role_name="worker"), START)

        assert s.origin(Cloud.GCP, START) is Origin.BUNDLE
        assert isinstance(s.answer(Cloud.AWS, START), Live)
        assert s.origin(Cloud.AWS, START) is Origin.FALLBACK

    def test_without_permission_there_is_no_fallback(self) -> None:
        """A configuration that allows no fallback closes the cloud when the grace ends."""
        s = store(fallback=frozenset())

        assert isinstance(s.answer(Cloud.AWS, START), Ended)
        assert s.due(START) == []

    def test_a_machine_without_identity_is_absent(self) -> None:
        """When the machine says that it has no identity the answer is absent, not ended."""
        s = store()
        s.put(due(s, INSTANCE_AWS), None, START)

        assert isinstance(s.answer(Cloud.AWS, START), Absent)


class TestSticky:
    def test_an_expired_bundle_denies(self) -> None:
        """The end of a bundle's credential never silently becomes the machine's identity."""
        s = store()
        take(s, bundle(session(hours=1)))

        answer = s.answer(Cloud.AWS, START + HOUR)

        assert isinstance(answer, Ended)
        assert not answer.passing
        assert s.origin(Cloud.AWS, START + HOUR) is Origin.CLOSED

    def test_the_memory_outlives_the_process(self) -> None:
        """After a restart without the bundle a decided cloud stays closed."""
        memory = take(store(), bundle(session()))

        again = store(memory)

        assert isinstance(again.answer(Cloud.AWS, START), Ended)
        assert again.origin(Cloud.AWS, START) is Origin.CLOSED

    def test_fallback_is_an_explicit_choice(self) -> None:
        """With on_expiry = fallback the machine serves once the bundle's identity is lost."""
        s = store(on_expiry=OnExpiry.FALLBACK)
        take(s, bundle(session(hours=1)))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, minutes=300, role_name="worker"), START)

        answer = s.answer(Cloud.AWS, START + HOUR)

        assert isinstance(answer, Live)
        assert answer.origin is Origin.FALLBACK

    def test_the_bundle_may_be_stricter_than_the_configuration(self) -> None:
        """A bundle that says deny is obeyed where the configuration says fallback."""
        s = store(on_expiry=OnExpiry.FALLBACK)
        take(s, bundle(session(hours=1), on_expiry=OnExpiry.DENY))

        assert isinstance(s.answer(Cloud.AWS, START + HOUR), Ended)

    def test_an_outage_is_not_a_loss(self) -> None:
        """A renewable identity that is away with its upstream is not replaced by the machine's, even with fallback."""
        s = store(on_expiry=OnExpiry.FALLBACK)
        take(s, bundle(role("r")))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, minutes=600, role_name="worker"), START)
        s.put(due(s, Key(Cloud.AWS, "r")), aws_credential(START), START)
        late = START + HOUR
        s.failed(due(s, Key(Cloud.AWS, "r"), late), fail(late), late)

        answer = s.answer(Cloud.AWS, late)

        assert isinstance(answer, Ended)
        assert answer.passing

    def test_a_withdrawal_purges_and_sticks(self) -> None:
        """A signed withdrawal takes the credential out of memory and the cloud stays closed."""
        s = store()
        take(s, bundle(session()))
        take(s, bundle(seq=2, action=Action.WITHDRAW))

        assert isinstance(s.answer(Cloud.AWS, START), Ended)
        assert "ASIAUSER" not in repr(list(s.slots()))
        assert s.memory.active is None
        assert isinstance(s.evaluate(bundle(session()), START), Refused)

    @pytest.mark.parametrize("said", [None, OnExpiry.DENY])
    @pytest.mark.parametrize("configured", OnExpiry)
    @pytest.mark.parametrize("before", [None, *OnExpiry])
    def test_a_withdrawal_closes_whatever_was_allowed_before(
        self, said: OnExpiry | None, configured: OnExpiry, before: OnExpiry | None
    ) -> None:
        """What was withdrawn is not replaced by the machine's identity, though its bundle or the operator allow that."""
        s = store(on_expiry=configured)
        take(s, bundle(session(), on_expiry=before))
        take(s, bundle(seq=2, action=Action.WITHDRAW, on_expiry=said))

        assert isinstance(answer := s.answer(Cloud.AWS, START), Ended)
        assert "withdrawn" in answer.why
        assert s.origin(Cloud.AWS, START) is Origin.CLOSED

    def test_a_withdrawal_may_give_the_machine_its_identity_back(self) -> None:
        """Only where it says so itself, and only in the clouds that it takes away: what was closed before stays closed."""
        s = store()
        take(s, bundle(session(), google(), on_expiry=OnExpiry.DENY))
        take(s, bundle(session(), seq=2))
        take(s, bundle(seq=3, action=Action.WITHDRAW, on_expiry=OnExpiry.FALLBACK))

        assert s.origin(Cloud.AWS, START) is Origin.FALLBACK
        assert s.origin(Cloud.GCP, START) is Origin.CLOSED

    def test_a_withdrawal_of_another_stream_changes_nothing(self) -> None:
        """Only the stream whose bundle is in force can withdraw it."""
        s = store()
        take(s, bundle(session()))
        take(s, bundle(seq=9, action=Action.WITHDRAW, subject="other"))

        assert isinstance(s.answer(Cloud.AWS, START), Live)

    def test_a_cloud_that_a_newer_bundle_drops_stays_closed(self) -> None:
        """A newer bundle that no longer carries a cloud does not hand that cloud to the machine."""
        s = store()
        take(s, bundle(session(), google()))
        take(s, bundle(google(), seq=2))

        assert isinstance(s.answer(Cloud.AWS, START), Ended)

    def test_another_instance_starts_clean(self) -> None:
        """What was remembered of another instance is forgotten on reset."""
        s = store(take(store(), bundle(session())))
        s.reset("i-2", START)
        s.put(due(s, INSTANCE_AWS), aws_credential(START, role_name="worker"), START)

        assert isinstance(s.answer(Cloud.AWS, START), Live)
        assert s.memory == Memory("i-2")


class TestRecall:
    """The memory could not be read at the start, every cloud is closed for it, and now it is read."""

    KNOWN = take(store(), bundle(session(), seq=2, on_expiry=OnExpiry.FALLBACK))
    CLOSED = Memory("i-1", decided=dict.fromkeys(Cloud, OnExpiry.DENY), boot_id="now")

    def test_it_counts_as_if_it_had_been_read(self) -> None:
        """What was refused is, what was in force comes back, and no other cloud is closed; the names are the present's."""
        s = store(self.CLOSED)
        assert s.recall(replace(self.KNOWN, instance_id="", boot_id="before"))
        assert s.memory == replace(self.KNOWN, boot_id="now")
        assert isinstance(s.evaluate(bundle(session(), seq=1), START), Refused)
        take(s, bundle(session(), seq=2, on_expiry=OnExpiry.FALLBACK), resume=True)

    @pytest.mark.parametrize("subject", ["team", "other"])
    def test_what_was_withdrawn_meanwhile_stays_so(self, subject: str) -> None:
        """Nothing comes back into force after a withdrawal, nor does the machine; no number is taken back."""
        s = store(self.CLOSED)
        take(s, bundle(seq=3, action=Action.WITHDRAW, subject=subject))
        assert s.recall(self.KNOWN)
        assert s.memory.active is None
        assert s.memory.decided == self.CLOSED.decided
        assert isinstance(s.evaluate(bundle(session(), seq=1), START), Refused)

    def test_an_empty_one_opens_nothing(self) -> None:
        """The file has gone since: that says nothing of what was decided."""
        s = store(self.CLOSED)
        s.recall(Memory())
        assert s.memory == self.CLOSED

    def test_one_that_knows_of_no_bundle_closes_nothing(self) -> None:
        """Nothing was ever accepted on this machine, and it can say so: what stood for that has had its time."""
        s = store(self.CLOSED)
        assert s.recall(Memory("i-1"))
        assert s.memory == Memory("i-1", boot_id="now")

    def test_what_came_meanwhile_of_a_stream_that_was_forgotten_counts(self) -> None:
        """Nothing that is older is taken, though no number of that stream is known any more."""
        s = store(replace(self.CLOSED, floors={"cp": START}))
        s.recall(self.KNOWN)
        assert s.memory.floors["cp"] == START

    @pytest.mark.parametrize("doubted", [False, True])
    def test_what_is_in_force_or_in_doubt_is_left_alone(self, doubted: bool) -> None:
        """What was handed over is in force by its own numbers; in doubt nothing says whose either is."""
        s = store(self.CLOSED)
        if doubted:
            s.doubt("whose?")
        else:
            take(s, bundle(session(), seq=3))
        before = s.memory, s.bundle
        assert not s.recall(self.KNOWN)
        assert (s.memory, s.bundle) == before

    @pytest.mark.parametrize("marks", [256, 1])
    def test_what_it_knows_of_other_streams_counts_beside_what_came_meanwhile(
        self, monkeypatch: pytest.MonkeyPatch, marks: int
    ) -> None:
        """What another sender had withdrawn there stays so, also where its stream was forgotten; what is in force stays."""
        monkeypatch.setattr(streams, "MAX_STREAMS", marks)
        known = store()
        take(known, bundle(session(), seq=2, subject="other"))
        take(known, bundle(seq=3, action=Action.WITHDRAW, subject="other"))
        take(known, bundle(seq=1, action=Action.WITHDRAW, subject="third"))
        s = store(self.CLOSED)
        monkeypatch.setattr(streams, "MAX_STREAMS", 256)
        take(s, bundle(session(), now=START + MINUTE), START + MINUTE)
        assert not s.recall(known.memory)
        assert isinstance(s.answer(Cloud.AWS, START + MINUTE), Live)
        assert isinstance(s.evaluate(bundle(session(), seq=2, subject="other"), START), Refused)

    @pytest.mark.parametrize("withdrawn", [False, True])
    def test_what_came_into_force_meanwhile_by_a_lower_number_ends(self, *, withdrawn: bool) -> None:
        """A slow disk was not waited for, and knows a higher number of that stream: nothing of before that is served."""
        known = self.KNOWN
        if withdrawn:
            before = store(known)
            take(before, bundle(seq=3, action=Action.WITHDRAW))
            known = before.memory
        s = store(self.CLOSED)
        take(s, bundle(session(), seq=1))
        assert s.recall(known)
        assert not isinstance(s.answer(Cloud.AWS, START), Live)
        assert isinstance(s.evaluate(bundle(session(), seq=1), START), Refused)
        assert (s.memory.active is None) is withdrawn

    def test_a_cloud_that_it_does_not_close_is_the_machine_s(self) -> None:
        """What stood for it closed each cloud: one that no bundle ever decided is served, and asked for, again."""
        known = take(store(), bundle(session(), seq=2))
        s = store(self.CLOSED)
        assert s.recall(known)
        assert {work.key.cloud for work in s.due(START)} == {Cloud.GCP}
        assert s.next_wake(START) > START
        assert isinstance(s.answer(Cloud.GCP, START), Pending)


class TestSequence:
    def test_identical_is_nothing_new(self) -> None:
        """The same number with the same content is a no-op."""
        s = store()
        take(s, bundle(session()))

        assert s.evaluate(bundle(session()), START) == Same(1)

    def test_equal_and_different_is_refused_with_an_alarm(self) -> None:
        """The same number with other content is refused, and someone should look."""
        s = store()
        take(s, bundle(session()))

        verdict = s.evaluate(bundle(session(), salt="x"), START)

        assert isinstance(verdict, Refused)
        assert verdict.code == "conflict"
        assert verdict.alarm

    def test_lower_is_refused_also_after_a_restart(self) -> None:
        """A lower number is a rollback, before and after a restart."""
        s = store()
        memory = take(s, bundle(session(), seq=5))

        for machine in (s, store(memory)):
            verdict = machine.evaluate(bundle(session(), seq=4), START)
            assert isinstance(verdict, Refused)
            assert verdict.code == "rollback"

    def test_streams_count_apart(self) -> None:
        """Numbers are compared within one issuer and subject only."""
        s = store()
        take(s, bundle(session(), seq=5))

        assert isinstance(s.evaluate(bundle(session(), seq=1, subject="b"), START), Accepted)

    def test_evaluating_changes_nothing(self) -> None:
        """A verdict alone puts nothing in force."""
        s = store(grace=MINUTE)
        s.evaluate(bundle(session()), START)

        assert isinstance(s.answer(Cloud.AWS, START), Pending)
        assert s.memory == Memory("i-1")

    def test_a_dead_base_is_refused_on_arrival(self) -> None:
        """A role that stands on a session that is already over could never be assumed: it replaces nothing."""
        s = store()
        take(s, bundle(session(hours=12)))
        chain = (session("base", hours=-1), role("a", base="base"), role("r", base="a"))
        verdict = s.evaluate(bundle(*chain, seq=2, routes={Cloud.AWS: "r"}), START)

        assert isinstance(verdict, Refused)
        assert verdict.code == "expired"
        assert "'base'" in verdict.reason

    def test_a_dead_grant_that_nothing_is_served_from_is_no_matter(self) -> None:
        """Only what a route leads to must be alive."""
        s = store()
        submitted = bundle(session("old", hours=-1), session("new"), routes={Cloud.AWS: "new"})

        assert isinstance(s.evaluate(submitted, START), Accepted)

    def test_a_dead_bundle_does_not_replace_a_live_one(self) -> None:
        """A newer bundle whose session has already expired is refused, and the old one goes on."""
        s = store()
        take(s, bundle(session()))

        verdict = s.evaluate(bundle(session(hours=-1), seq=2), START)

        assert isinstance(verdict, Refused)
        assert verdict.code == "expired"
        assert isinstance(s.answer(Cloud.AWS, START), Live)

    def test_resume_takes_only_what_was_accepted_last(self) -> None:
        """Our own copy is taken back by its mark and digest, whatever the bundle's last acceptance says."""
        memory = take(store(), bundle(session()))
        s = store(memory)

        assert isinstance(s.evaluate(bundle(session(), salt="x"), START, resume=True), Refused)
        take(s, bundle(session()), START + 2 * HOUR, resume=True)
        assert isinstance(s.answer(Cloud.AWS, START + 2 * HOUR), Live)

    def test_a_lost_copy_is_taken_again(self) -> None:
        """When the bundle that should be in force is not, the same one submitted anew is accepted rather than ignored."""
        s = store(take(store(), bundle(session())))

        take(s, bundle(session()))

        assert isinstance(s.answer(Cloud.AWS, START), Live)


class TestRenewal:
    def test_what_is_under_way_is_not_due_again(self) -> None:
        """What is under way is not due again."""
        s = store()

        due(s, INSTANCE_AWS)
        assert [work for work in s.due(START) if work.key == INSTANCE_AWS] == []

    def test_a_failure_replaces_nothing(self) -> None:
        """A failed renewal leaves the live credential served."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, role_name="w"), START)
        s.put(due(s, Key(Cloud.AWS, "r")), aws_credential(START), START)
        later = START + 20 * MINUTE
        s.failed(due(s, Key(Cloud.AWS, "r"), later), fail(later, denied=True, code="AccessDenied"), later)

        assert isinstance(s.answer(Cloud.AWS, later), Live)

    def test_a_base_comes_first(self) -> None:
        """A grant that stands on another is due when its base is alive, and gets it."""
        s = store()
        take(s, bundle(session("base"), role("r", base="base"), routes={Cloud.AWS: "r"}))

        work = due(s, Key(Cloud.AWS, "r"))

        assert work.base is not None
        assert work.base.access_key_id == "ASIAUSER000000000000"  # type: ignore[union-attr]

    def test_a_first_base_under_way_is_no_failure(self) -> None:
        """While its base is issued for the first time a role is pending: nothing has ended, and nobody is alarmed."""
        s = store()
        take(s, bundle(role()))
        due(s, INSTANCE_AWS)

        assert isinstance(s.answer(Cloud.AWS, START), Pending)
        assert all(notice.event is not Event.ENDED for notice in s.tick(START))

    def test_a_dead_base_is_named(self) -> None:
        """When the base has ended for good the answer says so and does not pass."""
        s = store()
        take(s, bundle(session("base", hours=1), role("r", base="base"), routes={Cloud.AWS: "r"}))
        late = START + 2 * HOUR

        assert Key(Cloud.AWS, "r") not in [work.key for work in s.due(late)]
        answer = s.answer(Cloud.AWS, late)
        assert isinstance(answer, Ended)
        assert "'base'" in answer.why
        assert not answer.passing

    def test_a_machine_base_is_read_first(self) -> None:
        """A role on the machine's own identity waits for it and is woken by it."""
        s = store(fallback=frozenset())
        take(s, bundle(role("r")))
        first = s.due(START)
        assert [w.key for w in first] == [INSTANCE_AWS]
        s.put(first[0], aws_credential(START, role_name="w"), START)

        assert due(s, Key(Cloud.AWS, "r")).base is not None

    def test_a_new_bundle_keeps_the_old_identity_until_it_has_minted(self) -> None:
        """Make before break across bundles: the old credential is served until the new one is in hand."""
        s = store()
        take(s, bundle(session()))
        take(
            s,
            bundle(session("base", key="ASIABASE000000000000"), role("r", base="base"), seq=2, routes={Cloud.AWS: "r"}),
        )
        before = s.answer(Cloud.AWS, START)
        s.put(due(s, Key(Cloud.AWS, "r")), aws_credential(START), START)
        after = s.answer(Cloud.AWS, START)

        assert isinstance(before, Live)
        assert before.credential.access_key_id == "ASIAUSER000000000000"  # type: ignore[union-attr]
        assert isinstance(after, Live)
        assert after.credential.access_key_id == "ASIAMINTED0000000000"  # type: ignore[union-attr]

    def test_what_is_kept_over_ends_with_its_own_lease(self) -> None:
        """The old identity that bridges to a newer bundle is not served beyond the lease under which it came."""
        s = store()
        take(s, bundle(session(), lease=START + HOUR))
        take(s, bundle(session("base"), role("r", base="base"), seq=2, routes={Cloud.AWS: "r"}))

        assert isinstance(s.answer(Cloud.AWS, START + HOUR - MINUTE), Live)
        assert not isinstance(s.answer(Cloud.AWS, START + HOUR), Live)

    def test_an_unchanged_grant_keeps_its_credential(self) -> None:
        """A new bundle with the same grant does not mint again."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, role_name="w"), START)
        s.put(due(s, Key(Cloud.AWS, "r")), aws_credential(START), START)
        take(s, bundle(role("r"), seq=2))

        assert isinstance(s.answer(Cloud.AWS, START), Live)
        assert [w for w in s.due(START) if w.key == Key(Cloud.AWS, "r")] == []

    def test_a_result_for_a_replaced_bundle_is_dropped(self) -> None:
        """A credential that was minted for an older bundle does not reach the newer one."""
        s = store()
        take(s, bundle(session("base"), role("r", base="base"), routes={Cloud.AWS: "r"}))
        work = due(s, Key(Cloud.AWS, "r"))
        take(s, bundle(session("base2"), role("r", base="base2"), seq=2, routes={Cloud.AWS: "r"}))

        assert s.put(work, aws_credential(START), START) is False
        assert isinstance(s.answer(Cloud.AWS, START), Pending)

    def test_a_result_for_what_a_newer_bundle_kept_is_taken(self) -> None:
        """A flight whose grant and bases a newer bundle carries on is neither lost nor flown a second time."""
        s = store()
        take(s, bundle(role("r")))
        machine = due(s, INSTANCE_AWS)
        take(s, bundle(role("r"), seq=2))
        assert s.due(START) == []
        assert s.put(machine, aws_credential(START, role_name="w"), START)
        work = due(s, Key(Cloud.AWS, "r"))
        take(s, bundle(role("r"), seq=3))

        assert [w for w in s.due(START) if w.key == Key(Cloud.AWS, "r")] == []
        assert s.put(work, aws_credential(START), START)
        assert isinstance(s.answer(Cloud.AWS, START), Live)

    def test_an_expired_result_is_a_failure(self) -> None:
        """A credential that is dead on arrival counts as a failure."""
        s = store()
        work = due(s, INSTANCE_AWS)

        assert s.put(work, aws_credential(START, minutes=-1), START) is False
        assert isinstance(s.answer(Cloud.AWS, START), Ended)

    def test_absent_is_for_machines_only(self) -> None:
        """Saying that a grant is absent is our own misuse."""
        s = store()
        take(s, bundle(session("base"), role("r", base="base"), routes={Cloud.AWS: "r"}))

        with pytest.raises(RuntimeError):
            s.put(due(s, Key(Cloud.AWS, "r")), None, START)


class TestHorizon:
    def test_a_session_ends_with_itself(self) -> None:
        """The forecast of a finished session is its end."""
        s = store()
        take(s, bundle(session(hours=12)))

        assert s.horizon(Cloud.AWS, START) == START + 12 * HOUR

    def test_the_lease_is_a_bound(self) -> None:
        """The lease ends serving before the credential does, to the second."""
        s = store()
        take(s, bundle(session(hours=12), lease=START + 2 * HOUR))

        assert s.horizon(Cloud.AWS, START) == START + 2 * HOUR
        assert isinstance(s.answer(Cloud.AWS, START + 2 * HOUR - MINUTE), Live)
        assert isinstance(s.answer(Cloud.AWS, START + 2 * HOUR), Ended)

    def test_a_role_on_the_machine_is_endless(self) -> None:
        """What the machine's own identity renews has no horizon."""
        s = store()
        take(s, bundle(role("r")))

        assert s.horizon(Cloud.AWS, START) is None

    def test_a_chained_role_is_sure_for_two_thirds_of_an_hour_beyond_its_base(self) -> None:
        """The last renewal before the base ends may be 20 minutes old by then, so the whole hour is not promised."""
        s = store()
        take(s, bundle(session("base", hours=6), role("r", base="base"), routes={Cloud.AWS: "r"}))

        assert s.horizon(Cloud.AWS, START) == START + 6 * HOUR + 40 * MINUTE

    def test_what_is_in_hand_is_sure(self) -> None:
        """What was minted just before its base ended counts to its own end; after the base nothing else does."""
        s = store()
        take(s, bundle(session("base", hours=1), role("r", base="base"), routes={Cloud.AWS: "r"}))
        late = START + 55 * MINUTE
        s.put(due(s, Key(Cloud.AWS, "r"), late), aws_credential(late), late, ends=late + HOUR)

        assert s.horizon(Cloud.AWS, late) == late + HOUR
        assert s.horizon(Cloud.AWS, late + 10 * MINUTE) == late + HOUR
        assert "the session ends" in s.horizon_reason(Cloud.AWS, late)

    def test_after_the_base_only_what_is_in_hand_counts(self) -> None:
        """A renewal that failed until the base ended shortens the horizon to the end of what is held."""
        s = store()
        take(s, bundle(session("base", hours=1), role("r", base="base"), routes={Cloud.AWS: "r"}))
        early = START + 25 * MINUTE
        s.put(due(s, Key(Cloud.AWS, "r"), early), aws_credential(early), early, ends=early + HOUR)

        assert s.horizon(Cloud.AWS, early) == START + HOUR + 40 * MINUTE
        assert s.horizon(Cloud.AWS, START + HOUR) == early + HOUR

    def test_a_shorter_life_than_asked_for_is_reckoned_with(self) -> None:
        """Where the cloud gives half an hour instead of one, two thirds of that are sure after the base."""
        s = store()
        take(s, bundle(session("base", hours=6), role("r", base="base"), routes={Cloud.AWS: "r"}))
        s.put(due(s, Key(Cloud.AWS, "r")), aws_credential(START, minutes=30), START)

        assert s.horizon(Cloud.AWS, START) == START + 6 * HOUR + 20 * MINUTE

    def test_a_refusal_ends_it_with_what_is_held(self) -> None:
        """A refused grant ends with the credential in hand, and with the refusal when there is none."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, minutes=600), START)
        work = due(s, Key(Cloud.AWS, "r"))
        s.failed(work, fail(START, denied=True, code="AccessDenied"), START)
        assert s.horizon(Cloud.AWS, START) == START

        later = START + 5 * MINUTE
        s.put(due(s, Key(Cloud.AWS, "r"), later), aws_credential(later), later)
        assert s.horizon(Cloud.AWS, later) is None
        again = START + 26 * MINUTE
        s.failed(due(s, Key(Cloud.AWS, "r"), again), fail(again, denied=True, code="AccessDenied"), again)

        assert s.horizon(Cloud.AWS, again) == later + HOUR
        assert "AccessDenied" in s.horizon_reason(Cloud.AWS, again)

    def test_a_refused_base_is_followed_to_its_end(self) -> None:
        """When the keys below a role are revoked, the role renews from what they gave last, and ends after that."""
        s = store()
        keys = AwsKeys(id="k", access_key_id="AKIA0000000000000000", secret_access_key=Secret("s"))
        take(s, bundle(keys, role("r", base="k"), routes={Cloud.AWS: "r"}))
        s.put(due(s, Key(Cloud.AWS, "k")), aws_credential(START, minutes=600), START)
        s.put(due(s, Key(Cloud.AWS, "r")), aws_credential(START), START)
        assert s.horizon(Cloud.AWS, START) is None
        later = START + 61 * MINUTE
        works = {work.key.grant_id: work for work in s.due(later)}
        s.failed(works["k"], fail(later, denied=True, code="InvalidClientTokenId"), later)

        assert s.horizon(Cloud.AWS, later) == START + 10 * HOUR + 40 * MINUTE

    def test_the_worker_and_the_sender_say_the_same(self) -> None:
        """Before anything was minted the worker's horizon is the one that was told when the bundle was sealed."""
        s = store()
        chain = (session("base", hours=6), role("a", base="base"), role("r", base="a"))
        take(s, bundle(*chain, routes={Cloud.AWS: "r"}, lease=START + 9 * HOUR))
        (sealed,) = forecasts(chain, {Cloud.AWS: "r"}, START + 9 * HOUR, START)

        assert s.horizon(Cloud.AWS, START) == sealed.until == START + 7 * HOUR + 20 * MINUTE

    def test_a_renewal_near_the_horizon_is_no_new_warning(self) -> None:
        """Each renewal moves the end a little; an operator hears of it once, and again only after it was far away."""
        s = store(horizon_lead=HOUR)
        take(s, bundle(session("base", hours=2), role("r", base="base"), routes={Cloud.AWS: "r"}))
        told = []
        for minute in range(150):
            now = START + minute * MINUTE
            for work in s.due(now):
                s.put(work, aws_credential(now), now)
            told += [n for n in s.tick(now) if n.event is Event.HORIZON]
        assert [n.horizon for n in told] == [START + 2 * HOUR + 40 * MINUTE]

        take(s, bundle(session(hours=12), seq=2), START + 150 * MINUTE)
        s.tick(START + 150 * MINUTE)
        assert any(n.event is Event.HORIZON for n in s.tick(START + 11 * HOUR))

    def test_it_is_told_once(self) -> None:
        """Coming near the horizon is one notice, not one a minute."""
        s = store(horizon_lead=HOUR)
        take(s, bundle(session(hours=2)))
        s.tick(START)
        told = [n for m in (61, 62, 90) for n in s.tick(START + m * MINUTE) if n.event is Event.HORIZON]

        assert len(told) == 1
        assert told[0].horizon == START + 2 * HOUR

    def test_the_end_is_told_once(self) -> None:
        """The end of an identity is one notice."""
        s = store()
        take(s, bundle(session(hours=2)))
        s.tick(START)
        told = [
            n
            for m in (121, 122, 150)
            for n in s.tick(START + m * MINUTE)
            if n.event is Event.ENDED and n.cloud is Cloud.AWS
        ]

        assert len(told) == 1

    def test_a_first_attempt_that_fails_in_passing_ends_nothing(self) -> None:
        """Nobody is woken for a role that has not been there yet and may come; a refusal is told, and so is a real end, once."""

        def ends(at: datetime) -> list[str]:
            return [n.why for n in s.tick(at) if n.event is Event.ENDED and n.cloud is Cloud.AWS]

        s = store()
        take(s, bundle(role()))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, minutes=600, role_name="worker"), START)
        key = Key(Cloud.AWS, "role")
        assert ends(START) == []
        s.failed(due(s, key), fail(START, code="first"), START)
        assert isinstance(s.answer(Cloud.AWS, START), Ended)
        assert ends(START) == []
        at = START + MINUTE
        s.failed(due(s, key, at), fail(at, code="second"), at)
        assert ends(at) == []
        refused = START + 2 * MINUTE
        s.failed(due(s, key, refused), fail(refused, denied=True), refused)
        assert len(ends(refused)) == 1
        again = START + 30 * MINUTE
        s.put(due(s, key, again), aws_credential(again, minutes=15), again)
        assert ends(again) == []
        over = again + 15 * MINUTE
        s.failed(due(s, key, over), fail(over, code="third"), over)
        assert len(ends(over)) == 1
        later = over + MINUTE
        s.failed(due(s, key, later), fail(later, code="fourth"), later)
        assert ends(later) == []

    def test_an_outage_past_half_of_a_life_has_a_horizon(self) -> None:
        """Once half of its life is gone and renewal still fails, the end of what is held is the horizon, told once."""
        s = store(horizon_lead=timedelta(minutes=45), on_expiry=OnExpiry.FALLBACK)
        take(s, bundle(role()))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, minutes=600, role_name="worker"), START)
        s.put(due(s, Key(Cloud.AWS, "role")), aws_credential(START), START)
        s.tick(START)
        failed = START + 20 * MINUTE
        s.failed(due(s, Key(Cloud.AWS, "role"), failed), fail(failed), failed)

        assert s.horizon(Cloud.AWS, START + 29 * MINUTE) is None
        assert s.horizon(Cloud.AWS, START + 30 * MINUTE) == START + HOUR
        told = [n for minute in range(21, 60) for n in s.tick(START + minute * MINUTE)]
        assert [(n.event, n.cloud) for n in told] == [(Event.HORIZON, Cloud.AWS)]
        assert "timeout" in told[0].why
        assert s.at_the_end(Cloud.AWS, START + 59 * MINUTE).startswith("requests are refused until the renewal works")
        assert s.horizon_reason(Cloud.AWS, START + 59 * MINUTE).endswith("it is tried again and again")
        late = START + 59 * MINUTE
        s.put(due(s, Key(Cloud.AWS, "role"), late), aws_credential(late), late)
        assert s.horizon(Cloud.AWS, late) is None

    def test_the_controller_is_woken_for_the_end_that_an_outage_sets(self) -> None:
        """However rare the retries, the loop goes round often enough to tell of an outage's horizon."""
        s = store()
        take(s, bundle(role()))

        assert s.next_wake(START) <= START + MINUTE

    def test_what_follows_the_end_is_said_of_every_state(self) -> None:
        """What will happen at the end is never said to be nothing while requests are already refused."""
        s = store()
        take(s, bundle(session(hours=1)))
        assert s.at_the_end(Cloud.AWS, START) == "requests are refused until a new bundle comes"
        take(s, bundle(seq=2, action=Action.WITHDRAW))

        assert isinstance(s.answer(Cloud.AWS, START), Ended)
        assert s.at_the_end(Cloud.AWS, START) == "requests are refused until a new bundle comes"
        assert s.at_the_end(Cloud.GCP, START) == "nothing ends it"


class TestClocks:
    """What a corrected clock moves, and what it must not."""

    def test_a_counted_life_moves_with_our_clock(self) -> None:
        """An hour that was counted from a moment of ours is an hour, however the clock is corrected."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, minutes=600), START)
        s.put(due(s, Key(Cloud.AWS, "r")), aws_credential(START), START, ends=START + HOUR)
        s.rebase(5 * HOUR, START + 5 * HOUR)

        assert isinstance(s.answer(Cloud.AWS, START + 5 * HOUR + 59 * MINUTE), Live)
        assert not isinstance(s.answer(Cloud.AWS, START + 6 * HOUR), Live)

    def test_an_instant_that_somebody_named_stays(self) -> None:
        """A session whose end is named by the sender ends then: a clock that was behind showed it for too long."""
        s = store()
        take(s, bundle(session(hours=3)))
        s.rebase(5 * HOUR, START + 5 * HOUR)

        assert isinstance(s.answer(Cloud.AWS, START + 5 * HOUR), Ended)

    def test_a_google_token_is_told_in_our_time(self) -> None:
        """What a client is told of a Google token's life is what was counted, before and after a correction."""
        s = store()
        take(
            s,
            bundle(
                GcpAuthorizedUser(id="u", client_id="c", client_secret=Secret("s"), refresh_token=Secret("r")),
                routes={Cloud.GCP: "u"},
            ),
        )
        lied = google_token(START - 3 * HOUR)  # issued by a clock three hours behind ours
        s.put(due(s, Key(Cloud.GCP, "u")), lied, START, ends=START + HOUR)
        answer = s.answer(Cloud.GCP, START)
        assert isinstance(answer, Live)
        assert answer.credential.expires_at == START + HOUR
        s.rebase(-2 * HOUR, START - 2 * HOUR)
        answer = s.answer(Cloud.GCP, START - 2 * HOUR)

        assert isinstance(answer, Live)
        assert answer.credential.expires_at == START - HOUR

    def test_a_retry_is_as_far_away_as_it_was(self) -> None:
        """A retry planned for seconds hence does not wait for hours when the clock is set back."""
        s = store()
        take(s, bundle(role("r")))
        s.failed(due(s, INSTANCE_AWS), fail(START), START)
        s.rebase(-5 * HOUR, START - 5 * HOUR)

        assert any(work.key == INSTANCE_AWS for work in s.due(START - 5 * HOUR + 2 * MINUTE))

    def test_the_grace_is_as_long_as_it_was(self) -> None:
        """A clock that is set forward inside the boot grace does not end it."""
        s = store(grace=MINUTE)
        s.rebase(5 * HOUR, START + 5 * HOUR)

        assert isinstance(s.answer(Cloud.AWS, START + 5 * HOUR + 30 * timedelta(seconds=1)), Pending)

    def test_an_end_that_came_nearer_is_renewed_for(self) -> None:
        """When the clock is set forward, what ends at a named instant is renewed by what is left of it."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, minutes=600), START)
        s.put(due(s, Key(Cloud.AWS, "r")), aws_credential(START, minutes=360), START)
        s.rebase(5 * HOUR, START + 5 * HOUR)
        planned = next(slot.renew_at for slot in s.slots() if slot.id == "r")

        assert planned is not None
        assert planned <= START + 5 * HOUR + MINUTE

    def test_what_came_late_is_renewed_by_its_whole_life(self) -> None:
        """An answer that a suspend held up for 40 of its 60 minutes is renewed at once, not after a share of the rest."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, minutes=600), START)
        late = START + 40 * MINUTE
        s.put(due(s, Key(Cloud.AWS, "r")), aws_credential(START), late, ends=START + HOUR, began=START)
        planned = next(slot.renew_at for slot in s.slots() if slot.id == "r")

        assert planned is not None
        assert late < planned <= late + timedelta(seconds=5)

    def test_doubt_asks_soon_and_not_again(self) -> None:
        """Doubt about the clock asks for everything within half a minute, once a minute at most; more is put off."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, minutes=600), START)
        s.put(due(s, Key(Cloud.AWS, "r")), aws_credential(START), START)
        assert s.retry_now(START)
        now = START + timedelta(seconds=30)
        works = s.due(now)
        assert {work.key.grant_id for work in works} >= {"instance", "r"}
        for work in works:
            s.put(work, aws_credential(now, minutes=60, key="ASIA000000000000NEW1"), now)
        assert not s.retry_now(now)
        assert s.due(now + timedelta(seconds=31)) == []
        assert s.retry_now(START + MINUTE)
        assert len(s.due(START + 2 * MINUTE)) == len(works)

    def test_doubt_disturbs_no_backoff(self) -> None:
        """What failed keeps its own pace of retries: a clock that is stepped to and fro storms nobody."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, minutes=600), START)
        s.put(due(s, Key(Cloud.AWS, "r")), aws_credential(START), START)
        later = START + 25 * MINUTE
        s.failed(due(s, Key(Cloud.AWS, "r"), later), fail(later, denied=True), later)
        before = next(slot.renew_at for slot in s.slots() if slot.id == "r")
        s.retry_now(later)

        assert next(slot.renew_at for slot in s.slots() if slot.id == "r") == before

    def test_what_came_back_dead_is_a_failure(self) -> None:
        """A credential whose counted life is over on arrival replaces nothing and is retried."""
        s = store()
        take(s, bundle(role("r")))
        s.put(due(s, INSTANCE_AWS), aws_credential(START, minutes=600), START)

        assert not s.put(due(s, Key(Cloud.AWS, "r")), aws_credential(START), START, ends=START)
        assert s.answer(Cloud.AWS, START) == Ended(
            "bundle 1, grant 'r': the credential that was issued had already expired (expired)", passing=True
        )

    def test_a_later_process_takes_over_what_was_held(self) -> None:
        """What one store held another restores, by the same bundle and with the life that is left on its own clock."""
        first, second = store(), store()
        submitted = bundle(role("r"))
        take(first, submitted)
        first.put(due(first, INSTANCE_AWS), aws_credential(START, minutes=600), START)
        first.put(due(first, Key(Cloud.AWS, "r")), aws_credential(START), START, ends=START + HOUR)
        take(second, submitted, START + 2 * HOUR)
        two_hours_ahead = [h._replace(ends=h.ends + 2 * HOUR) for h in first.held() if h.ends is not None]
        assert [second.restore(h, START + 2 * HOUR) for h in two_hours_ahead] == [True]

        assert isinstance(second.answer(Cloud.AWS, START + 2 * HOUR + 59 * MINUTE), Live)
        assert not isinstance(second.answer(Cloud.AWS, START + 3 * HOUR), Live)

    def test_what_was_held_for_another_bundle_is_not_taken_over(self) -> None:
        """A restored credential must be of the very bundle in force, alive, and for an empty place."""
        first, second = store(), store()
        take(first, bundle(role("r")))
        first.put(due(first, INSTANCE_AWS), aws_credential(START, minutes=600), START)
        first.put(due(first, Key(Cloud.AWS, "r")), aws_credential(START), START)
        (of_r,) = [h for h in first.held() if h.key.grant_id == "r"]
        take(second, bundle(role("r"), salt="other"))
        assert not second.restore(of_r, START)
        assert not first.restore(of_r, START)
        fresh = store()
        take(fresh, bundle(role("r")))
        assert not fresh.restore(of_r, START + HOUR)
        assert fresh.restore(of_r, START)


class TestRest:
    def test_variables_are_the_bundles(self) -> None:
        """Opaque variables live and die with the bundle."""
        s = store()
        take(s, bundle(session(), Env(id="e", variables={"A": Secret("1")})))
        assert s.variables(START)["A"].reveal() == "1"
        take(s, bundle(seq=2, action=Action.WITHDRAW))

        assert s.variables(START) == {}

    def test_variables_end_with_the_lease(self) -> None:
        """Opaque variables are served no longer than the lease, also by a bundle without any cloud; who writes them hears."""
        s = store()
        take(s, bundle(Env(id="e", variables={"A": Secret("1")}), lease=START + HOUR))
        s.tick(START)
        before = s.version
        late = START + HOUR
        assert s.next_wake(START + HOUR - timedelta(seconds=1)) <= late
        s.tick(late)

        assert s.variables(late) == {}
        assert s.version > before

    def test_next_wake_is_in_the_future(self) -> None:
        """The loop can always sleep."""
        s = store()
        for minute in range(200):
            now = START + minute * MINUTE
            for work in s.due(now):
                s.put(work, aws_credential(now) if work.key.cloud is Cloud.AWS else google_token(now), now)
            assert s.next_wake(now) > now

    def test_an_outage_recovers_at_once_when_the_base_returns(self) -> None:
        """A dependent that failed is due the moment its base is renewed."""
        s = store()
        take(s, bundle(role("r")))
        s.failed(due(s, INSTANCE_AWS), fail(START), START)
        later = s.next_wake(START) + MINUTE
        s.put(due(s, INSTANCE_AWS, later), aws_credential(later, role_name="w"), later)

        due(s, Key(Cloud.AWS, "r"), later)
