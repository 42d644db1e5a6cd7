"""What a daemon makes of its configuration, at the start and at a reload: each was found by a change nobody noticed."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent import bundle, config
from agent.core.errors import ConfigError, HostError
from agent.core.model import Cloud, OnExpiry, SealedBundle
from agent.core.verdict import Memory, Policy
from agent.core.view import Facts
from agent.daemon import beliefs, codec, compose
from agent.host.clock import SystemClock
from agent.upstream import Upstream
from tests.fakes.clock import FakeClock
from tests.system.harness import ISSUER
from tests.unit.daemon.test_reload_between import come_true, ended, hung_up
from tests.unit.daemon.worker import Worker
from tests.unit.identity.worlds import session

NOWHERE = Path("/nonexistent")
SIGNER = '[[signers]]\nkey = "/k"\nissuers = ["*"]\n'
KEY = '[[keys]]\nkind = "ephemeral"\n'


def settings(text: str = "") -> config.Config:
    return config.parse(text, origin="test")


def firmware(root: Path, vendor: str) -> Path:
    (root / "sys/class/dmi/id").mkdir(parents=True)
    (root / "sys/class/dmi/id/sys_vendor").write_text(vendor + "\n")
    return root


class TestPolicy:
    def test_what_the_operator_wrote_is_the_policy(self) -> None:
        """Each key is taken, and no other in its place."""
        wrote = settings("""
            [identity]
            fallback = ["gcp"]
            on_expiry = "fallback"
            grace_seconds = 7.0
            horizon_lead_seconds = 60.0
            role_name = "reader"
            [mint]
            spread_seconds = 3.0
            [aws]
            region = "eu-west-1"
            availability_zone = "eu-west-1b"
            account_id = "123456789012"
            [gcp]
            project_id = "proj-one"
            numeric_project_id = "4711"
            zone = "europe-west1-b"
            [[keys]]
            kind = "ephemeral"
            [[signers]]
            key = "/k"
            issuers = ["*"]
        """)
        assert compose.policy(wrote) == Policy(
            fallback=frozenset({Cloud.GCP}),
            on_expiry=OnExpiry.FALLBACK,
            grace=timedelta(seconds=7),
            horizon_lead=timedelta(seconds=60),
            spread=timedelta(seconds=3),
            role_name="reader",
            facts=Facts(
                region="eu-west-1",
                availability_zone="eu-west-1b",
                account_id="123456789012",
                project_id="proj-one",
                numeric_project_id="4711",
                zone="europe-west1-b",
            ),
        )

    def test_who_can_open_no_bundle_waits_for_none(self) -> None:
        """Without a key no bundle can come: a grace would only be a start at which workers get nothing."""
        assert compose.policy(settings("[identity]\ngrace_seconds = 7.0")).grace == timedelta(0)


class TestMetadata:
    @pytest.mark.parametrize(
        ("vendor", "upstream", "cloud", "there"),
        [
            ("Amazon EC2", "", Cloud.AWS, (True, False)),
            ("Google", "", Cloud.GCP, (False, True)),
            ("QEMU", "", None, (False, False)),
            ("QEMU", 'ec2 = "http://127.0.0.1:1"', Cloud.AWS, (True, False)),
            ("QEMU", 'gce = "http://127.0.0.1:1"', Cloud.GCP, (False, True)),
            ("QEMU", 'ec2 = "http://127.0.0.1:1"\ngce = "http://127.0.0.1:2"', None, (True, True)),
            ("Amazon EC2", 'ec2 = "off"', Cloud.AWS, (False, False)),
            ("Amazon EC2", 'gce = "http://127.0.0.1:2"', Cloud.AWS, (True, True)),
            ("Google", 'ec2 = "http://127.0.0.1:1"', Cloud.GCP, (True, True)),
        ],
    )
    def test_which_services_a_machine_has(
        self, tmp_path: Path, vendor: str, upstream: str, cloud: Cloud | None, there: tuple[bool, bool]
    ) -> None:
        """What firmware or the operator say; whose silence is an outage is said by firmware, or by there being one."""
        wrote, clock = settings(f"[upstream]\n{upstream}"), SystemClock()
        found = compose.Metadata(wrote, Upstream(), clock, root=firmware(tmp_path, vendor))
        assert found.cloud is cloud
        assert (found.ec2 is not None, found.gce is not None) == there
        passed = found.passed(Upstream())
        assert tuple(one is not None for one in passed) == there
        assert not {found.ec2, found.gce} - {None} & set(passed)  # what workers ask goes another way


def made(text: str, *, away: beliefs.Away | None = None, root: Path = NOWHERE) -> list[str]:
    """The names of the sources that a configuration makes."""
    wrote, clock = settings(text + KEY + SIGNER), FakeClock()
    found = compose.sources(
        wrote,
        metadata=compose.Metadata(wrote, Upstream(), clock, root=root),
        make=lambda **_: Upstream(),
        clock=clock,
        rng=random.Random(1),
        away=away,
    )
    return [source.name for source in found]


FILES = '[[sources]]\nkind = "file"\npath = "/a"\n'
USER_DATA = '[[sources]]\nkind = "ec2-user-data"\n'
ATTRIBUTE = '[[sources]]\nkind = "gce-attribute"\nkey = "job"\n'


class TestSources:
    def test_each_has_a_name_of_its_own(self) -> None:
        """By it the log, the status and the acknowledgement of one are told from another's."""
        url = '[[sources]]\nkind = "https"\nurl = "https://a.example/b"\n'
        named = FILES + 'name = "file-2"\n'
        assert made(FILES + named + FILES + FILES + url + url) == [
            "file",
            "file-2",
            "file-3",
            "file-4",
            "https",
            "https-2",
        ]
        assert made(FILES + 'name = "mine"\n' + FILES) == ["mine", "file"]
        # Also where the operator gives the usual name to a later one: else nobody would watch the first.
        assert made(FILES + FILES + 'name = "file"\n') == ["file-2", "file"]

    @pytest.mark.parametrize(("source", "key"), [(USER_DATA, "upstream.ec2"), (ATTRIBUTE, "upstream.gce")])
    def test_one_that_the_machine_cannot_have_is_a_mistake(self, source: str, key: str) -> None:
        """It is told with what to set; who only checks hears of it, and of every other source too."""
        with pytest.raises(ConfigError) as caught:
            made(FILES + source)
        assert caught.value.message.startswith("sources[1]: ")
        assert key in str(caught.value.hint)
        faults = beliefs.Faults()
        assert made(source + FILES, away=faults) == ["file"]
        assert [where for where, _ in faults.errors] == ["sources[0]"]
        with pytest.raises(ConfigError):  # it does not pass by itself: a start is not one without it
            made(source, away=beliefs.Away())

    def test_one_that_the_machine_has(self, tmp_path: Path) -> None:
        """Its firmware says so."""
        assert made(USER_DATA + USER_DATA, root=firmware(tmp_path / "a", "Amazon EC2")) == [
            "ec2-user-data",
            "ec2-user-data-2",
        ]
        assert made(ATTRIBUTE, root=firmware(tmp_path / "b", "Google")) == ["gce-attribute"]


class TestWhatIsHidden:
    def test_what_carries_a_bundle_is_hidden_in_both_scopes(self) -> None:
        """An attribute of the project is read where the instance has none: whichever it is, it is not the workers'."""
        hide, show = compose.hidden(
            settings(ATTRIBUTE + KEY + SIGNER + '[pass_through]\nhide = ["/latest/meta-data/tags"]\n')
        )
        v1 = "/computeMetadata/v1"
        assert set(hide) == {
            "/latest/meta-data/tags",
            f"{v1}/instance/attributes/job",
            f"{v1}/project/attributes/job",
        }
        assert show == ()

    def test_user_data_is_shown_where_that_is_asked_for(self) -> None:
        """EC2's, and the attribute of that name in either scope; and what is named besides."""
        wrote = settings('[pass_through]\nshow_user_data = true\nshow = ["/latest/meta-data/public-keys"]\n')
        v1 = "/computeMetadata/v1"
        assert compose.hidden(wrote) == (
            (),
            (
                "/latest/meta-data/public-keys",
                "/latest/user-data",
                f"{v1}/instance/attributes/user-data",
                f"{v1}/project/attributes/user-data",
            ),
        )
        assert compose.hidden(settings()) == ((), ())

    def test_the_agents_own_namespaces_are_those_that_it_publishes_in(self) -> None:
        """Workers may not write there: senders would seal to whoever did."""
        published = KEY + 'publish_guest_attribute = "agent/key"\n'
        assert compose.own_namespaces(settings(published + SIGNER)) == ("agent",)
        assert compose.own_namespaces(settings(KEY + SIGNER)) == ()
        assert compose.own_namespaces(settings('[[keys]]\nkind = "file"\npath = "/k"\n' + SIGNER)) == ()


def reloaded(
    root: Path, before: Mapping[str, Any], after: Mapping[str, Any], then: Callable[[Worker], Awaitable[None]]
) -> None:
    """A worker with a bundle of ``urn:team`` in force, whose configuration is changed."""

    async def scenario() -> None:
        worker = Worker(root)
        async with ended(worker):
            worker.configure(before)
            await hung_up(worker)
            now = worker.clock.now()
            sealed = bundle.seal(
                signer=worker.signer,
                recipients=[worker.key.recipient_key()],
                issuer=ISSUER,
                subject="team",
                audiences=["urn:team"],
                now=now,
                grants=(session(now=now),),
                routes={Cloud.AWS: "user"},
                seq=1,
            )
            ack = await worker.controller.intake.submit(SealedBundle(sealed, "push"))
            assert ack.outcome == "accepted", ack
            worker.rekeyed.clear()
            worker.configure(after)
            await hung_up(worker)
            await then(worker)

    asyncio.run(scenario())


TEAM = {"identity": {"audience": ["urn:team"]}}


def signers(worker_root: Path, **more: Any) -> dict[str, Any]:
    return {"signers": [{"key": worker_root / "etc" / "sender.jwk", "issuers": [ISSUER], **more}]}


class TestReload:
    @pytest.mark.parametrize(
        ("after", "code"),
        [
            ({"identity": {"audience": ["urn:other"]}}, "audience"),
            ({**TEAM, "issuers": ["https://other.example"]}, "issuer"),
            ({**TEAM, "audiences": ["urn:other"]}, "audience"),
        ],
        ids=["audience", "issuer", "what a signer may address"],
    )
    def test_what_is_not_believed_any_more_is_not_in_force_any_more(
        self, tmp_path: Path, after: dict[str, Any], code: str
    ) -> None:
        """A restart would not take the bundle: nor does the reload leave it, whoever it is that is not meant now."""
        narrower = {name: after.pop(name) for name in ("issuers", "audiences") if name in after}
        changes = {**after, **(signers(tmp_path, **narrower) if narrower else {})}

        async def then(worker: Worker) -> None:
            worker.controller.intake.step(worker.clock.boottime())
            await come_true(lambda: worker.store.bundle is None)
            refusal = worker.controller.intake.last_refusal
            assert refusal is not None
            assert refusal.code == code

        reloaded(tmp_path, TEAM, changes, then)

    def test_a_pin_that_narrows_a_signer_of_the_launch_is_heeded(self, tmp_path: Path) -> None:
        """Where a key is both pinned and named by the launch, the pin counts, also of what is in force by it."""

        async def scenario() -> None:
            worker = Worker(tmp_path)
            named = bundle.SigningKey.generate("Ed25519")
            public = {**named.public_jwk(), "kid": named.kid}
            trusted = [{"name": "launch:directory", "key": public, "issuers": ["*"], "audiences": ["*"]}]
            worker.prepared.opening.launched = lambda: bundle.Trust.parse(trusted)
            async with ended(worker):
                worker.configure(TEAM)
                await hung_up(worker)
                now = worker.clock.now()
                sealed = bundle.seal(
                    signer=named,
                    recipients=[worker.key.recipient_key()],
                    issuer="https://other.example",
                    subject="team",
                    audiences=["urn:team"],
                    now=now,
                    grants=(session(now=now),),
                    routes={Cloud.AWS: "user"},
                    seq=1,
                )
                assert (await worker.controller.intake.submit(SealedBundle(sealed, "push"))).outcome == "accepted"
                pinned = tmp_path / "etc" / "named.jwk"
                pinned.write_text(json.dumps(public))
                pins = [{"key": path, "issuers": [ISSUER]} for path in (worker.signer_file, pinned)]
                worker.configure({**TEAM, "signers": pins})
                await hung_up(worker)
                worker.controller.intake.step(worker.clock.boottime())
                await come_true(lambda: worker.store.bundle is None)

        asyncio.run(scenario())

    @pytest.mark.parametrize(
        "after",
        [
            {"identity": {"audience": ["urn:team", "urn:other"]}},
            {**TEAM, "log": {"level": "debug"}},
            {**TEAM, "keys": ()},
        ],
        ids=["more", "the same", "no key"],
    )
    def test_what_is_in_force_is_not_asked_about_where_nothing_is_narrower(
        self, tmp_path: Path, after: dict[str, Any]
    ) -> None:
        """A key service that is slow just then has nothing to do with it; and a key may go, once it has opened."""
        if "keys" in after:
            other = bundle.OpeningKey.generate("P-256")
            path = tmp_path / "other.jwk"
            path.write_text(json.dumps({**other.private_jwk(), "kid": other.kid}))
            path.chmod(0o600)
            after = {**after, "keys": [{"kind": "file", "path": path}]}

        async def then(worker: Worker) -> None:
            assert worker.controller.intake.due_at == float("inf")
            assert worker.store.bundle is not None
            assert len(worker.rekeyed) == ("keys" in after)  # a new key is published; else nothing is

        reloaded(tmp_path, TEAM, after, then)

    @pytest.mark.parametrize("changed", [True, False])
    def test_rules_that_are_another_unit_s_are_said_to_be(
        self, tmp_path: Path, changed: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Whoever changes who is a worker, and reloads the agent, is told what else to reload; nobody else is."""

        async def then(_worker: Worker) -> None:
            return

        reloaded(tmp_path, TEAM, {**TEAM, **({"redirect": {"users": ["nobody"]}} if changed else {})}, then)
        assert ("systemctl reload credential-agent-redirect" in capsys.readouterr().err) is changed

    def test_who_wants_to_know_is_told_after_it_was_applied(self, tmp_path: Path) -> None:
        """What depends on the configuration sees the new one, in the store and in what the next process gets too."""

        async def then(worker: Worker) -> None:
            seen: list[tuple[str, str, bool]] = []

            def tell() -> None:
                role = worker.reloader.settings.identity.role_name
                seen.append((role, worker.store.state.policy.role_name, worker.handed[-1] == worker.file.text))

            worker.reloader.applied.append(tell)
            worker.configure({**TEAM, "identity": {**TEAM["identity"], "role_name": "later"}})
            await hung_up(worker)
            assert seen == [("later", "later", True)]

        reloaded(tmp_path, TEAM, TEAM, then)

    @pytest.mark.parametrize("wrong", [False, True])
    def test_the_service_manager_hears_of_its_begin_and_its_end(self, tmp_path: Path, wrong: bool) -> None:
        """``systemctl reload`` waits for the end, whatever comes of it: without that word it would be ended."""

        async def scenario() -> list[bytes]:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.bind(str(tmp_path / "notify"))
                manager.setblocking(False)
                worker = Worker(tmp_path, notify=str(tmp_path / "notify"))
                worker.readiness.told = True
                async with ended(worker):
                    if wrong:
                        worker.configuration.write_text("[wrong")
                    await hung_up(worker)
                heard = []
                while True:
                    try:
                        heard.append(manager.recv(4096))
                    except BlockingIOError:
                        return heard

        heard = asyncio.run(scenario())
        assert b"RELOADING=1" in heard[0]
        assert b"READY=1" in heard[-1]

    def test_who_asked_and_has_gone_takes_no_word_from_the_others(self, tmp_path: Path) -> None:
        """Each that asks for a reload is told what came of it; one that hung up meanwhile is told nothing."""

        async def scenario() -> None:
            worker = Worker(tmp_path)
            async with ended(worker):
                worker.configure({"aws": {"imdsv1": True}})
                gone, stays = (asyncio.ensure_future(worker.reloader.reload()) for _ in range(2))
                await asyncio.sleep(0)
                gone.cancel()
                told = await stays
                assert (told.outcome, told.needs_restart, told.reason) == ("applied", ["aws.imdsv1"], None)
                worker.configuration.write_text("[wrong")
                told = await worker.reloader.reload()
                assert told.outcome == "refused"
                assert str(worker.configuration) in str(told.reason)

        asyncio.run(scenario())


@pytest.mark.parametrize(
    "data", [b"", b"no json", b"[]", b'{"version": 2}', b'{"marks": 5}', b'{"version": 1', b"\xff\xfe", b"[" * 5000]
)
def test_what_the_service_manager_held_may_be_anything(data: bytes) -> None:
    """A damaged handover is one kind of error, which no start fails by."""
    with pytest.raises(HostError):
        codec.decode(data, Memory, version=1)
