"""An identity reaches a cluster by a courier of the documented three methods: who is served, who is not, and why."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import google.auth
import pytest

from agent.core.errors import Denied, HostError, UsageError
from agent.core.model import Action, AwsSession, Env
from agent.enrol import Policy
from agent.forward import State, Status, WorkerStatus, signing
from agent.forward.agents import Verify
from agent.forward.courier import GROUP
from agent.forward.on_ray import Ray
from agent.forward.telling import Teller
from tests.unit.forward.agents import CourierAgent
from tests.unit.forward.support import ACCOUNT, ISSUER, World, verifier


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with World(tmp_path, monkeypatch) as made:
        yield made


def test_every_worker_is_served_by_one_exchange_and_withdrawn_from_at_the_end(world: World) -> None:
    """All machines get the session of the laptop, from one look at STS, and lose it when the block is left."""
    machines = [world.machine(f"m{index}", workers=2) for index in range(3)]
    with world.forward() as f:
        status = f.status()
        assert (status.served, len(status.workers), status.trouble) == (6, 6, None)
        assert {one.machine for one in status.workers} == {"worker-role in account 111122223333"}
        for one in machines:
            assert one.bundle is not None
            (grant,) = one.bundle.grants
            assert isinstance(grant, AwsSession)
            assert one.bundle.issuer == ISSUER
        asked = world.sts.operations()
        assert asked == ["GetCallerIdentity"]  # a session is sent as it is; whose it is is asked once
    assert [one.bundle for one in machines] == [None, None, None]
    assert all(one.accepted[-1].action is Action.WITHDRAW for one in machines)


def test_what_runs_on_a_worker_needs_nothing_of_ours(world: World) -> None:
    """An interpreter without any package, in an environment without anything, carries it all the same."""
    world.courier.real = True
    machine = world.machine("m")
    with world.forward() as f:
        assert f.status().served == 1
    assert [one.action for one in machine.accepted] == [Action.SET, Action.WITHDRAW]


def test_workers_of_one_machine_share_its_agent(world: World) -> None:
    """Twelve workers on a machine are one enrolment and one bundle, whatever the share of their user id is."""
    machine = world.machine("m", workers=12)
    with world.forward() as f:
        assert f.status().served == 12
        assert [path for _, path in machine.asked].count("/v1/enrol") == 1
        assert len(machine.accepted) == 1


def test_more_machines_than_one_bundle_holds_are_served_by_several(world: World) -> None:
    """A bundle is addressed to so many keys at most; who is beyond that gets another one, of the same session."""
    machines = [world.machine(f"m{index}") for index in range(GROUP + 3)]
    with world.forward() as f:
        assert f.status().served == GROUP + 3
        assert len({one.accepted[0].seq for one in machines}) == 2
        assert world.sts.operations() == ["GetCallerIdentity"]


def test_a_courier_that_reaches_many_at_once_says_so(world: World) -> None:
    """A shared directory or a topic carries one bundle for all: its ``group`` says for how many, 256 at most."""
    machines = [world.machine(f"m{index}") for index in range(GROUP + 3)]
    world.courier.group = 256  # type: ignore[attr-defined]
    with world.forward() as f:
        assert f.status().served == GROUP + 3
        assert len({one.accepted[0].seq for one in machines}) == 1
    assert {one.bundle for one in machines} == {None}
    for odd in (0, 257, "all", True):
        world.courier.group = odd  # type: ignore[attr-defined]
        with pytest.raises(UsageError, match="from 1 to 256"):
            world.forward()


def test_what_is_kept_stays_on_the_workers(world: World) -> None:
    """on_exit="keep" leaves the identity to its end."""
    machine = world.machine("m")
    with world.forward(on_exit="keep"):
        pass
    assert machine.bundle is not None


def test_a_machine_of_another_account_gets_nothing(world: World) -> None:
    """By default only the account of the identity that is sent; the reason and what would let it in are told."""
    own, other = world.machine("own"), world.machine("other", account="999900001111")
    with world.forward() as f:
        by_name = {one.name: one for one in f.status().workers}
        assert by_name["own-0"].state is State.SERVED
        assert by_name["other-0"].state is State.EVIDENCE
        assert "999900001111" in str(by_name["other-0"].reason)
        assert 'accounts=["999900001111"]' in str(by_name["other-0"].hint)
    assert own.accepted
    assert not other.accepted
    with world.forward(accounts=["999900001111"]) as f:
        assert {one.name: one.state for one in f.status().workers} == {
            "own-0": State.EVIDENCE,
            "other-0": State.SERVED,
        }


def test_machines_of_the_identitys_own_partition_and_of_those_that_are_named(world: World) -> None:
    """China's and GovCloud's accounts have numbers of their own: an ARN of a role names another partition, nothing else."""
    seen: list[Policy] = []

    def keep(policy: Policy, now: Callable[[], datetime]) -> Verify:
        seen.append(policy)
        return verifier(policy, now)

    world.machine("m")
    world.forward(verify=keep).close()
    world.forward(verify=keep, accounts=["222233334444"], roles=["worker", "arn:aws-us-gov:iam::2:role/w"]).close()
    world.sign_on(arn=f"arn:aws-cn:sts::{ACCOUNT}:assumed-role/sso/ada")
    world.forward(verify=keep).close()
    assert [one.partitions for one in seen] == [("aws",), ("aws", "aws-us-gov"), ("aws-cn",)]


def test_without_evidence_nothing_is_given_over_a_channel_that_can_be_altered(world: World) -> None:
    """No evidence, no identity; the channel's word counts only where nobody can alter what it carries."""
    machine = world.machine("m")
    machine.evidence = lambda *_: []
    with world.forward() as f:
        (one,) = f.status().workers
        assert (one.state, machine.accepted) == (State.EVIDENCE, [])
        assert "there is no metadata service here" in str(one.reason)
        assert machine.key.recipient_key().kid in str(one.hint)
    with pytest.raises(UsageError, match="not encrypted"):
        world.forward(without_evidence=True)
    world.courier.private = True
    with world.forward(without_evidence=True) as f:
        assert f.status().served == 1


def test_a_key_that_a_person_compared_needs_no_evidence(world: World) -> None:
    """thumbprints= names keys; another key of the same kind of machine still gets nothing."""
    known, other = world.machine("known"), world.machine("other")
    for one in (known, other):
        one.evidence = lambda *_: []
    with world.forward(thumbprints=[known.key.recipient_key().kid]) as f:
        assert {one.name: one.state for one in f.status().workers} == {
            "known-0": State.SERVED,
            "other-0": State.EVIDENCE,
        }


def test_evidence_that_was_made_for_another_key_is_refused(world: World) -> None:
    """A job that answers with its own key and its machine's evidence for another gets nothing."""
    honest, thief = world.machine("honest"), world.machine("thief")
    thief.evidence = lambda _thumbprint, nonce: honest.evidence(honest.key.recipient_key().kid, nonce)
    with world.forward() as f:
        assert {one.name: one.state for one in f.status().workers} == {
            "honest-0": State.SERVED,
            "thief-0": State.EVIDENCE,
        }
    assert not thief.accepted


def test_each_reason_for_which_a_worker_is_not_served_is_told(world: World) -> None:
    """No agent, an agent that does not know us, one that refuses: the reason, and what a person can do."""
    world.machine("fine")
    world.machine("stranger", trust=[])
    world.machine("narrow", trust=world.trusting(audiences=["urn:credbundle:cluster:x"]))
    world.courier.sockets["bare-0"] = world.home / "no.sock"
    with world.forward() as f:
        by_name = {one.name: one for one in f.status().workers}
        assert {name: one.state for name, one in by_name.items()} == {
            "fine-0": State.SERVED,
            "stranger-0": State.UNKNOWN_SIGNER,
            "narrow-0": State.REFUSED,
            "bare-0": State.NO_AGENT,
        }
        assert signing.launch_line(world.key) in str(by_name["stranger-0"].hint)
        assert "may not address" in str(by_name["narrow-0"].reason)
        assert "packer/README.md" in str(by_name["bare-0"].hint)


def test_what_one_worker_makes_up_is_no_trouble_of_the_others(world: World) -> None:
    """Evidence that breaks what reads it, a lease beyond all calendars, a verdict of another shape: the others are served."""
    fine, broken, endless, odd = (world.machine(name) for name in ("fine", "broken", "endless", "odd"))
    broken.evidence = lambda *_: [{"kind": "gcp-identity", "token": "{"}]
    endless_answer, odd_answer = endless.answer, odd.answer

    def no_end(method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        status, said = endless_answer(method, path, body)
        if path == "/v1/status":
            said["signers"] = [{"kid": world.key.kid, "max_lease_seconds": 10**18}]
        return status, said

    def no_code(method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        return (422, {"code": [], "reason": "no"}) if method == "PUT" else odd_answer(method, path, body)

    endless.answer, odd.answer = no_end, no_code  # type: ignore[method-assign]
    with world.forward() as f:
        assert {one.name: one.state for one in f.status().workers} == {
            "fine-0": State.SERVED,
            "broken-0": State.EVIDENCE,
            "endless-0": State.SERVED,
            "odd-0": State.REFUSED,
        }
    assert fine.bundle is None


def test_what_workers_say_is_text_and_a_terminal_may_go(world: World) -> None:
    """On a terminal a worker's words move no cursor and begin no line; a terminal that is closed ends nothing."""
    lost = WorkerStatus(name="w", state=State.REFUSED, reason="\x1b[2J\ncredential-agent: all is well")
    status, out = Status(issuer="i", key="k", workers=(lost,)), io.StringIO()
    Teller(out).now(status, world.now())
    assert "\x1b" not in out.getvalue()
    assert len(out.getvalue().splitlines()) == 2
    out.close()
    Teller(out).now(status, world.now())


def test_a_cloud_that_is_not_there_is_looked_for_once(world: World) -> None:
    """The SDKs ask metadata services for seconds before they give up: once, and again when somebody has signed on."""
    asked: list[dict[str, Any]] = []
    default: Any = google.auth.default

    def counted(**more: Any) -> Any:
        asked.append(more)
        return default(**more)

    world.monkeypatch.setattr(google.auth, "default", counted)
    machine = world.machine("m")
    with world.forward(gcp="auto") as f:
        f.refresh()
        assert len(asked) == 1
        (world.home / "gcloud").mkdir()
        (world.home / "gcloud/application_default_credentials.json").write_text("{")
        f.refresh()
        f.refresh()
        assert len(asked) == 2
    assert len(machine.accepted) == 2


def test_a_new_sign_on_is_delivered(world: World) -> None:
    """What changes on the laptop is on the workers, without enrolling anew."""
    machine = world.machine("m")
    with world.forward() as f:
        second = world.sign_on()
        f.refresh()
        (grant,) = machine.accepted[-1].grants
        assert isinstance(grant, AwsSession)
        assert grant.access_key_id == second
        assert [path for _, path in machine.asked].count("/v1/enrol") == 1
        assert f.status().renewals == 1


def test_a_sign_on_to_another_account_is_for_the_machines_of_that_account(world: World) -> None:
    """Who was admitted for one identity has not been for another; the first one is withdrawn at the end all the same."""

    def keys(machine: CourierAgent) -> list[str]:
        return [
            grant.access_key_id for one in machine.accepted for grant in one.grants if isinstance(grant, AwsSession)
        ]

    first, second = world.machine("first"), world.machine("second", account="444455556666")
    with world.forward() as f:
        assert f.status().served == 1
        before = keys(first)
        other = world.sign_on(account="444455556666")
        f.refresh()
        assert keys(first) == before
        assert keys(second) == [other]
        states = {one.name: one.state for one in f.status().workers}
        assert states == {"first-0": State.EVIDENCE, "second-0": State.SERVED}
    assert (first.bundle, second.bundle) == (None, None)


def test_a_session_is_replaced_before_its_end(world: World) -> None:
    """A role's session is made anew when a third of it is left: one exchange, and no worker ever sees its end."""
    role = "arn:aws:iam::111122223333:role/reader"
    world.sts.role(role)
    machine = world.machine("m")
    with world.forward(role_arn=role) as f:
        assert world.sts.operations() == ["AssumeRole"]
        world.time_gone = timedelta(minutes=39)
        f.refresh()
        assert world.sts.operations() == ["AssumeRole"]
        world.time_gone = timedelta(minutes=41)
        f.refresh()
        assert world.sts.operations() == ["AssumeRole", "AssumeRole"]
        assert len(machine.accepted) == 2


def test_a_session_of_unknown_end_lives_as_long_as_was_said_of_it(world: World) -> None:
    """assume_expiry= counts from when the session was seen first: looking again makes it no longer. A new one has its own."""
    world.monkeypatch.delenv("AWS_CREDENTIAL_EXPIRATION")
    with pytest.raises(Denied) as caught:
        world.forward()
    assert "assume_expiry=" in str(caught.value.hint)
    world.machine("m")
    began = world.now()
    with world.forward(assume_expiry=timedelta(minutes=45)) as f:
        until = f.status().until
        assert until is not None
        assert abs(until - began - timedelta(minutes=45)) < timedelta(minutes=1)
        world.time_gone = timedelta(minutes=40)
        assert f.refresh().until == until
        world.time_gone = timedelta(minutes=44)
        world.sign_on()
        del os.environ["AWS_CREDENTIAL_EXPIRATION"]
        later = f.refresh().until
        assert later is not None
        assert later > until + timedelta(minutes=40)


def test_what_is_said_of_a_session_is_not_said_of_what_tells_its_end(world: World) -> None:
    """assume_expiry= is for a session whose end nothing tells: keys that last renew a role for longer than that."""
    key, secret = world.sts.user()
    world.monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    world.monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    world.monkeypatch.delenv("AWS_SESSION_TOKEN")
    role = "arn:aws:iam::111122223333:role/reader"
    world.sts.role(role)
    world.machine("m")
    with world.forward(role_arn=role, assume_expiry=timedelta(minutes=20)) as f:
        world.time_gone = timedelta(minutes=41)
        (cloud,) = f.refresh().clouds
        assert cloud.trouble is None
        assert world.sts.operations() == ["AssumeRole", "AssumeRole"]


def test_a_lease_is_renewed_and_no_longer_than_a_worker_lets_us(world: World) -> None:
    """lease= ends serving when this program is gone; a worker's own limit is kept to, and each is renewed in time."""
    wide, narrow = world.machine("wide"), world.machine("narrow", trust=world.trusting(max_lease_seconds=600))
    with world.forward(lease=timedelta(minutes=30)) as f:
        assert f.status().served == 2
        for one, seconds in ((wide, 1800), (narrow, 600)):
            bundle = one.accepted[-1]
            assert bundle.lease_until is not None
            assert round((bundle.lease_until - bundle.issued_at).total_seconds()) == seconds
        until = f.status().until
        assert until is not None
        assert until <= world.now() + timedelta(seconds=600)  # what the first of them ends at
        world.time_gone = timedelta(seconds=205)
        f.refresh()
        assert [len(one.accepted) for one in (wide, narrow)] == [1, 2]
        world.time_gone = timedelta(seconds=605)
        f.refresh()
        assert [len(one.accepted) for one in (wide, narrow)] == [2, 3]


def test_a_worker_that_joins_is_served_without_another_exchange(world: World) -> None:
    """The courier tells of a newcomer, and it gets what the others have."""
    world.machine("m")
    with world.forward() as f:
        late = world.machine("late")
        assert world.courier.joined is not None
        world.courier.joined(["late-0"])
        with late.changed:
            assert late.changed.wait_for(lambda: bool(late.accepted), 30)
        f.refresh()
        assert f.status().served == 2
        assert world.sts.operations() == ["GetCallerIdentity"]


def test_an_agent_that_lost_its_key_enrols_anew(world: World) -> None:
    """A machine that was set up anew has another key: it is asked again, and served."""
    machine = world.machine("m")
    with world.forward() as f:
        machine.key = type(machine.key).generate()
        machine.bundle = None
        f.refresh()
        assert f.status().served == 1
        assert machine.bundle is not None
        machine.key = type(machine.key).generate()  # behind our back: found out when the bundle is refused
        world.sign_on()
        f.refresh()
        assert f.status().served == 1
        assert len(machine.accepted) == 3


def test_two_forwardings_do_not_take_away_each_others(world: World) -> None:
    """The one that ends withdraws its own; the other brings its own back when it looks."""
    machine = world.machine("m")
    with world.forward() as first:
        with world.forward():
            assert len(machine.accepted) == 2
        assert machine.bundle is None
        first.refresh()
        assert machine.bundle is not None


def test_no_network_changes_nothing_that_is_served(world: World) -> None:
    """While the cluster cannot be reached the status says so, and afterwards it goes on."""
    machine = world.machine("m")
    with world.forward() as f:
        world.courier.broken = True
        with pytest.raises(OSError, match="no network"):
            f.refresh()
        assert machine.bundle is not None
        world.courier.broken = False
        world.sign_on()
        assert f.refresh().served == 1
        assert len(machine.accepted) == 2


def test_variables_are_sent_alone(world: World) -> None:
    """credentials=None sends no identity; nothing of AWS is asked, and the policy must be given."""
    machine = world.machine("m")
    with world.forward(credentials=None, environ={"MYAPP_TOKEN": "t0ps3cret"}) as f:
        assert f.status().not_served()[0].state is State.EVIDENCE  # no identity: no account to be of
    with world.forward(credentials=None, environ={"MYAPP_TOKEN": "t0ps3cret"}, accounts=["111122223333"]) as f:
        assert f.status().served == 1
        assert f.status().variables == ("MYAPP_TOKEN",)
        assert machine.bundle is not None
        (grant,) = machine.bundle.grants
        assert isinstance(grant, Env)
        assert "t0ps3cret" not in repr(f.status())
    assert world.sts.operations() == []


def test_a_list_that_can_be_read_once_restricts_as_any_other(world: World) -> None:
    """To whom it goes may be named by a generator: whom that leaves out gets nothing."""
    machine = world.machine("m")
    with world.forward(roles=(name for name in ("another-role",))) as f:
        assert [one.state for one in f.status().workers] == [State.EVIDENCE]
    assert machine.accepted == []


@pytest.mark.parametrize("name", ["accounts", "roles", "projects", "service_accounts", "instance_ids"])
@pytest.mark.parametrize("nobody", [[], (), iter(())], ids=["list", "tuple", "generator"])
def test_a_list_that_came_out_empty_is_no_restriction_that_was_meant(world: World, name: str, nobody: Any) -> None:
    """Whoever names nobody is asked to say so: it would be any role, and over an encrypted channel anybody at all."""
    machine = world.machine("m")
    world.courier.private = world.courier.named = True
    with pytest.raises(UsageError, match=f"{name}= takes at least one"):
        world.forward(**{name: nobody})
    assert machine.accepted == []


def test_what_makes_no_sense_is_said_at_once(world: World) -> None:
    """A mistake in the arguments is an error with a hint, before anybody is asked."""
    for wanted, words in (
        ({"polcy": "{}"}, "knows no polcy="),
        ({"policy": "{}"}, "role_arn="),
        ({"aws": None}, "nothing to forward"),
        ({"renew": "instance"}, "role_arn="),
        ({"on_exit": "leave"}, "on_exit"),
        ({"accounts": "111122223333"}, "takes a list"),
        ({"accounts": [111122223333]}, "list of texts"),
        ({"accounts": 111122223333}, "list of texts"),
        ({"accounts": ["1111-2222-3333"]}, "12 digits"),
        ({"roles": ["w", None]}, "list of texts"),
        ({"lease": 600}, "datetime.timedelta"),
        ({"lease": timedelta(0)}, "between 1 s and"),
        ({"duration": timedelta(minutes=5)}, "between 15 min and"),
        ({"environ": {"A": 1}}, "are texts"),
        ({"environ": "A=1"}, "are texts"),
        ({"role_arn": "reader"}, "takes arn:aws:iam::ACCOUNT:role/NAME"),
        ({"role_arn": f"arn:aws:sts::{ACCOUNT}:assumed-role/reader/ada"}, "takes arn:aws:iam::ACCOUNT:role/NAME"),
        ({"renew": "workers"}, "one of here, worker, instance, never"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            world.forward(**wanted)
    assert world.courier.calls == []


def test_a_laptop_without_an_identity_is_told_how_to_get_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found: what to do about it, and no worker is asked."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Denied) as caught:
        world.forward()
    assert caught.value.hint is not None
    assert "aws sso login" in caught.value.hint
    assert world.courier.calls == []


def test_the_signing_key_is_made_once_for_this_user_alone(world: World) -> None:
    """0600, in a directory of its own; the same key the next time; one that others may read is not used."""
    path = world.home / "config/credential-agent/sender.jwk"
    before = os.umask(0)
    try:
        first = signing.load(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700, (
        "who may write there could put another key in place"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert signing.load(path).kid == first.kid
    path.chmod(0o640)
    with pytest.raises(HostError, match="only you may read"):
        signing.load(path)


def test_without_ray_or_a_connection_of_it_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package, another one of that name, no ``ray.init``: one line that says what to do, and no cluster is started."""
    stranger = ModuleType("ray")
    idle = ModuleType("ray")
    idle.is_initialized = lambda: False  # type: ignore[attr-defined]
    for module, words in ((None, "package ray"), (stranger, "another package"), (idle, "connected to")):
        monkeypatch.setitem(sys.modules, "ray", module)
        with pytest.raises(UsageError, match=words) as caught:
            Ray()
        assert caught.value.hint
