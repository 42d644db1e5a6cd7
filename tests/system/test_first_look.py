"""What is here and could not be looked at may be the first bundle: nobody is the machine meanwhile, however long it takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent import bundle
from agent.bundle.short_key import signer_word
from agent.core.model import Cloud
from agent.wire.signers import line
from tests.fakes import net
from tests.fakes.aws_kms import FakeAwsKms, KmsKey
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.gce_metadata import GceMetadataServer
from tests.fakes.notify_socket import NotifySocket
from tests.fakes.served import Fault
from tests.system.harness import ISSUER, Agent, World, background, until

USER, MACHINE = "ASIAUSER000000000001", "ASIAMACHINE000000000"
USER_DATA = "/latest/user-data"
ARN = "arn:aws:kms:eu-west-1:123456789012:key/1"
INSTEAD: dict[str, dict[str, Any]] = {
    "an outage": {"status": 503},
    "a throttle": {"status": 429},
    "a proxy's page": {"status": 302, "body": b"<html>sign in"},
}
GRACE_SECONDS = 2.0
"""A source that answers is read in that time, on a busy machine too; and it is waited for to its end."""
RETRIED_SECONDS = 60.0
"""What has failed is asked again within ten seconds by itself, and a busy machine takes its time on top."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path / "n") as manager:
        yield manager


@pytest.fixture
def ec2() -> Iterator[Ec2MetadataService]:
    service = Ec2MetadataService()
    service.attach("worker-role", Key(MACHINE, "machine-secret", "machine-token"))
    with background(service):
        yield service


def by_user_data(service: Ec2MetadataService) -> dict[str, Any]:
    return {
        "identity": {"instance_id": "auto"},
        "upstream": {"ec2": service.url},
        "sources": [{"kind": "ec2-user-data", "name": "user-data"}],
    }


def by_file(world: World, service: Ec2MetadataService) -> dict[str, Any]:
    """The bundle is in a file, and the service says who the machine is."""
    return {
        **by_user_data(service),
        "identity": {"instance_id": "auto", "grace_seconds": GRACE_SECONDS},
        "sources": [{"kind": "file", "path": world.bundle_file}],
    }


def waits_for(agent: Agent, why: str, *, issued: bool = True) -> None:
    """The machine's own credential is at hand, the grace is over, and nobody gets it, for this reason."""
    if issued:
        agent.wait_for("credential.issued", cloud="aws", seconds=RETRIED_SECONDS)

    def says() -> bool:
        aws = agent.status()["clouds"]["aws"]
        return aws["state"] == "pending" and why in (aws["why"] or "")

    until(says, what=why)
    assert agent.role() is None


def was_never_the_machine(agent: Agent, cloud: Cloud = Cloud.AWS) -> None:
    told = [line["origin"] for line in agent.events("identity.changed") if line["cloud"] == cloud]
    assert "fallback" not in told


def takes_the_bundle(agent: Agent) -> None:
    """It comes into force, and nobody was the machine before."""
    agent.wait_for("bundle.accepted", seconds=RETRIED_SECONDS)
    assert agent.access_key() == USER
    was_never_the_machine(agent)


class TestMetadata:
    def test_user_data_that_is_not_answered_is_waited_for(self, world: World, ec2: Ec2MetadataService) -> None:
        """The service gives credentials before it gives user-data, or the network is up between the two."""
        ec2.user_data = world.seal(world.session(USER))
        ec2.inject(Fault(USER_DATA, drop=True, times=None))
        with world.agent(by_user_data(ec2)) as agent:
            agent.started()
            waits_for(agent, "user-data does not answer")
            ec2.faults.clear()
            takes_the_bundle(agent)

    @pytest.mark.parametrize("instead", INSTEAD.values(), ids=INSTEAD)
    def test_what_comes_in_place_of_an_answer_is_none(
        self, world: World, ec2: Ec2MetadataService, instead: dict[str, Any]
    ) -> None:
        """An outage, a throttle or a proxy's page says nothing of user-data: while credentials are refused, and after."""
        ec2.user_data = world.seal(world.session(USER))
        ec2.inject(Fault("/", times=None, **instead))
        with world.agent(by_user_data(ec2)) as agent:
            agent.started()
            until(lambda: "user-data does not answer" in (agent.status()["clouds"]["aws"]["why"] or ""), what="a wait")
            ec2.inject(Fault(USER_DATA, times=None, **instead))  # first: at no moment is there none
            ec2.faults.popleft()
            waits_for(agent, "user-data does not answer")
            ec2.faults.clear()
            takes_the_bundle(agent)

    @pytest.mark.parametrize("status", [200, 404])
    def test_what_another_says_in_the_place_of_ec2_is_none(
        self, world: World, ec2: Ec2MetadataService, status: int
    ) -> None:
        """EC2 gives the session token and credentials, and a portal's page comes for user-data."""
        ec2.user_data = world.seal(world.session(USER))
        ec2.inject(Fault(USER_DATA, status=status, body=b"<html>sign in", times=None))
        with world.agent(by_user_data(ec2)) as agent:
            agent.started()
            waits_for(agent, "user-data does not answer")
            ec2.faults.clear()
            takes_the_bundle(agent)

    @pytest.mark.parametrize("instead", [{"drop": True}, {"status": 503}])
    def test_a_bundle_of_a_signer_whom_user_data_may_name_is_waited_for(
        self, world: World, ec2: Ec2MetadataService, instead: dict[str, Any]
    ) -> None:
        """It is here and may be right: until user-data has been read nobody is the machine; nor once it names the signer."""
        ec2.user_data = line(signer_word(bundle.VerifyKey.parse(world.signer_file.read_text()))).encode()
        ec2.inject(Fault(USER_DATA, times=None, **instead))
        world.drop(world.seal(world.session(USER)))
        changes = {
            **by_file(world, ec2),
            "signers": [],
            "launch_signers": [{"kind": "ec2-user-data", "issuers": [ISSUER]}],
        }
        with world.agent(changes) as agent:
            agent.started()
            waits_for(agent, "ec2-user-data has not said yet")
            ec2.faults.clear()
            takes_the_bundle(agent)

    def test_a_bundle_for_a_name_that_is_not_said_yet_is_waited_for(
        self, world: World, ec2: Ec2MetadataService
    ) -> None:
        """It is here and may be for this machine: nobody is the machine before its name is known, nor then."""
        name = bundle.audience_aws_instance(ec2.account_id, ec2.region, ec2.instance_id)
        world.drop(world.seal(world.session(USER), audiences=[name]))
        ec2.inject(Fault("/latest/dynamic", status=503, times=None))
        changes = by_file(world, ec2)
        with world.agent(changes) as agent:
            agent.started()
            waits_for(agent, "does not say this machine's name")
            ec2.faults.clear()
            takes_the_bundle(agent)

    def test_a_bundle_for_that_name_is_waited_for_over_a_restart(
        self, world: World, ec2: Ec2MetadataService, manager: NotifySocket
    ) -> None:
        """The next process has not asked for the name yet when it reads the bundle."""
        name = bundle.audience_aws_instance(ec2.account_id, ec2.region, ec2.instance_id)
        world.drop(world.seal(world.session(USER), audiences=[name]))
        ec2.inject(Fault("/latest/dynamic", status=503, times=None))
        changes = by_file(world, ec2)
        environ = {"NOTIFY_SOCKET": str(manager.path)}
        with world.agent(changes, environ=environ) as agent:
            waits_for(agent, "does not say this machine's name")
            manager.wait_content("handover", lambda data: bool(json.loads(data).get("awaited")))
            agent.kill()
        ec2.faults.clear()
        ec2.inject(Fault("/latest/dynamic", delay=600, times=None))
        with world.agent(changes, environ=environ, passed=manager.stored()) as agent:
            waits_for(agent, "does not say this machine's name", issued=False)
            ec2.faults.clear()
            takes_the_bundle(agent)

    def test_user_data_without_a_bundle_ends_it(self, world: World, ec2: Ec2MetadataService) -> None:
        """From the first answer on the machine's identity is served, as the configuration has it."""
        ec2.inject(Fault(USER_DATA, drop=True, times=None))
        with world.agent(by_user_data(ec2)) as agent:
            agent.started()
            waits_for(agent, "user-data does not answer")
            ec2.faults.clear()
            until(lambda: agent.access_key() == MACHINE, what="the machine's identity")

    def test_a_service_that_refuses_user_data_has_answered(self, world: World, ec2: Ec2MetadataService) -> None:
        """A status of its own is an answer: a worker whose user-data is closed to it does not wait for ever."""
        ec2.inject(Fault(USER_DATA, status=403, headers={"Server": "EC2ws"}, times=None))
        with world.agent(by_user_data(ec2)) as agent:
            until(lambda: agent.access_key() == MACHINE, what="the machine's identity")

    def test_what_is_served_goes_on(self, world: World, ec2: Ec2MetadataService, manager: NotifySocket) -> None:
        """Over a restart too: once the machine's identity was served, a silent source takes it from nobody."""
        environ = {"NOTIFY_SOCKET": str(manager.path)}
        with world.agent(by_user_data(ec2), environ=environ) as agent:
            until(lambda: agent.access_key() == MACHINE, what="the machine's identity")
            manager.wait_content("credentials", lambda data: MACHINE.encode() in data)
            manager.wait_content("handover", lambda data: not json.loads(data).get("awaited"))
            agent.kill()
        ec2.inject(Fault(USER_DATA, drop=True, times=None))
        with world.agent(by_user_data(ec2), environ=environ, passed=manager.stored()) as agent:
            agent.wait_for("source.failed", source="user-data")
            assert agent.access_key() == MACHINE

    @pytest.mark.parametrize("instead", [{"drop": True}, {"status": 503}, {"status": 200, "body": b"<html>sign in"}])
    def test_an_attribute_that_is_not_answered_is_waited_for(self, world: World, instead: dict[str, Any]) -> None:
        """Google's too."""
        service = GceMetadataServer(attributes={"b": world.seal(world.google("ya29.user")).decode()})
        changes: dict[str, Any] = {
            "identity": {"instance_id": "auto"},
            "sources": [{"kind": "gce-attribute", "name": "attribute", "key": "b"}],
        }
        with background(service):
            service.inject(Fault("/computeMetadata/v1/instance/attributes/b", times=None, **instead))
            changes["upstream"] = {"gce": service.url}
            with world.agent(changes) as agent:
                agent.started()
                agent.wait_for("credential.issued", cloud=str(Cloud.GCP), seconds=RETRIED_SECONDS)
                agent.wait_for("source.failed", source="attribute")
                assert agent.google_token().status == 503
                service.faults.clear()
                agent.wait_for("bundle.accepted", seconds=RETRIED_SECONDS)
                assert agent.google_token().json()["access_token"] == "ya29.user"
                was_never_the_machine(agent, Cloud.GCP)


class KeyService:
    """A key of the worker's in AWS KMS, and what is wrong with it just now."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.kms = FakeAwsKms(MACHINE, "machine-secret", "machine-token", keys={ARN: KmsKey(self.private)})
        self.wrong: net.Answer | net.Fault | None = None

    def __call__(self, asked: net.Asked) -> net.Answer | net.Fault:
        return self.wrong if self.wrong is not None else self.kms(asked)

    def public(self) -> dict[str, str]:
        return bundle.OpeningKey(self.private).public_jwk()


@contextmanager
def served(call: Callable[[Any], Any], one: AbstractAsyncContextManager[str]) -> Iterator[str]:
    url = call(one.__aenter__())
    try:
        yield url
    finally:
        call(one.__aexit__(None, None, None))


def by_key_service(world: World, ec2: Ec2MetadataService, service: KeyService, url: str) -> dict[str, Any]:
    """The bundle is sealed to the key of the key service alone."""
    public = world.root / "etc" / "public.jwk"
    public.write_text(json.dumps(service.public()))
    world.recipient = bundle.RecipientKey.parse(public.read_text())
    world.drop(world.seal(world.session(USER)))
    return {
        "identity": {"grace_seconds": GRACE_SECONDS},
        "upstream": {"ec2": ec2.url},
        "keys": [{"kind": "aws-kms", "key_id": ARN, "public_key": public, "region": "eu-west-1", "endpoint": url}],
    }


WRONG: dict[str, net.Answer | net.Fault] = {
    "hangs": net.Fault.HANG,
    "refuses": net.Answer(400, b'{"__type": "AccessDeniedException"}'),
    "is a page": net.Answer(200, b"<html>sign in</html>"),
}


@pytest.mark.slow
class TestKeyService:
    @pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
    def test_a_bundle_that_cannot_be_opened_yet_is_waited_for(
        self, world: World, ec2: Ec2MetadataService, wrong: net.Answer | net.Fault
    ) -> None:
        """Whatever a key service does instead of its work, a worker that has a bundle is not the machine meanwhile."""
        service = KeyService()
        service.wrong = wrong
        with (
            background() as call,
            served(call, net.serve(service)) as url,
            world.agent(by_key_service(world, ec2, service, url)) as agent,
        ):
            agent.started()
            waits_for(agent, "cannot be opened yet" if wrong is not net.Fault.HANG else "opened")
            service.wrong = None
            takes_the_bundle(agent)

    def test_it_is_waited_for_over_a_restart(
        self, world: World, ec2: Ec2MetadataService, manager: NotifySocket
    ) -> None:
        """The next process knows that the one before waited, though the grace is over by then."""
        service = KeyService()
        service.wrong = net.Fault.DOWN
        environ = {"NOTIFY_SOCKET": str(manager.path)}
        with background() as call, served(call, net.serve(service)) as url:
            changes = by_key_service(world, ec2, service, url)
            with world.agent(changes, environ=environ) as agent:
                waits_for(agent, "cannot be opened yet")
                manager.wait_content("handover", lambda data: bool(json.loads(data).get("awaited")))
                agent.kill()
            with world.agent(changes, environ=environ, passed=manager.stored()) as agent:
                waits_for(agent, "cannot be opened yet", issued=False)
                service.wrong = None
                takes_the_bundle(agent)

    @pytest.mark.parametrize("end", [Agent.stop, Agent.kill], ids=["stopped", "killed"])
    def test_it_is_waited_for_over_a_stop(
        self, world: World, ec2: Ec2MetadataService, end: Callable[[Agent], object]
    ) -> None:
        """The next process knows it where nothing was handed over, too: an upgrade stops the agent, and starts it."""
        service = KeyService()
        service.wrong = net.Fault.DOWN
        with background() as call, served(call, net.serve(service)) as url:
            changes = by_key_service(world, ec2, service, url)
            with world.agent(changes) as agent:
                waits_for(agent, "cannot be opened yet")
                note = world.root / "run" / "grace.json"
                until(lambda: bool(json.loads(note.read_text()).get("awaited")), what="the note")
                end(agent)
            with world.agent(changes) as agent:
                waits_for(agent, "cannot be opened yet")
                service.wrong = None
                takes_the_bundle(agent)

    def test_what_comes_later_takes_nothing_away(self, world: World, ec2: Ec2MetadataService) -> None:
        """A machine's identity that is served since the grace is over is served on while a first bundle is opened."""
        service = KeyService()
        service.wrong = net.Fault.DOWN
        with background() as call, served(call, net.serve(service)) as url:
            changes = by_key_service(world, ec2, service, url)
            sealed = world.bundle_file.read_bytes()
            world.bundle_file.unlink()
            with world.agent(changes) as agent:
                until(lambda: agent.access_key() == MACHINE, what="the machine's identity")
                world.drop(sealed)
                agent.wait_for("bundle.held")
                assert agent.access_key() == MACHINE
                service.wrong = None
                until(lambda: agent.access_key() == USER, seconds=60, what="the bundle's identity")
