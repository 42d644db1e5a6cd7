"""A worker enrols: what its couriers' socket says is verified as a sender verifies it, and what couriers do costs nothing."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt

from agent import enrol
from tests.fakes.ec2_metadata import Ec2MetadataService, Key
from tests.fakes.gce_metadata import GceMetadataServer
from tests.system.harness import Agent, Reply, UnixConnection, World, background, exchange, until

NONCE = enrol.new_nonce(b"0123456789abcdef")
ROLE = Key("ASIAMACHINE000000000", "machine-secret", "machine-token")


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


@pytest.fixture
def clouds() -> Iterator[tuple[Ec2MetadataService, GceMetadataServer]]:
    """A machine that is in both clouds at once."""
    ec2, gce = Ec2MetadataService(region="eu-central-1"), GceMetadataServer()
    ec2.attach("worker-role", ROLE)
    with background(ec2, gce):
        yield ec2, gce


def courier(agent: Agent, path: str, method: str = "GET", body: bytes | None = None) -> Reply:
    return exchange(UnixConnection(agent.control.with_name("courier.sock")), method, path, None, body)


def asked(agent: Agent, nonce: str = NONCE) -> enrol.Enrolment:
    reply = courier(agent, "/v1/enrol", "POST", enrol.write_question(nonce))
    assert reply.status == 200, reply
    return enrol.read_enrolment(reply.body, nonce=nonce)


def evidence(answer: enrol.Enrolment, kind: type[Any]) -> Any:
    (found,) = [one for one in answer.evidence if isinstance(one, kind)]
    return found


def test_a_worker_enrols_and_is_handed_a_bundle(
    world: World, clouds: tuple[Ec2MetadataService, GceMetadataServer]
) -> None:
    """The evidence binds the key and the nonce by both clouds' rules, and what is sealed to that key is served."""
    ec2, gce = clouds
    changes = {"upstream": {"ec2": ec2.url, "gce": gce.url}, "keys": [{"kind": "ephemeral"}], "sources": []}
    with world.agent(changes) as agent:
        agent.wait_for("agent.started")
        path = agent.control.with_name("courier.sock")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        answer = asked(agent)
        assert answer.missing == (
            enrol.Missing("aws-web-identity", "off", "enrol.aws_web_identity is off in the worker's configuration"),
        )
        request = enrol.checked_request(
            evidence(answer, enrol.AwsSts), thumbprint=answer.thumbprint, nonce=NONCE, now=datetime.now(UTC)
        )
        assert request.host == "sts.eu-central-1.amazonaws.com"
        assert request.headers["x-amz-security-token"] == ROLE.session_token
        token = jwt.decode(evidence(answer, enrol.GcpIdentity).token, gce.id_token_keys(), algorithms=["RS256"])
        assert token.claims["aud"] == enrol.audience(answer.thumbprint, NONCE)
        assert enrol.google_machine(token.claims).instance_id == str(gce.instance_id)

        sealed = world.seal(
            world.session(), recipients=[answer.recipient], audiences=[f"urn:credbundle:key:{answer.recipient.kid}"]
        )
        reply = courier(agent, "/v1/bundle", "PUT", sealed)
        assert (reply.status, reply.json()["outcome"], reply.json()["origin"]) == (200, "accepted", "courier")
        assert courier(agent, "/v1/bundle", "PUT", sealed).json()["outcome"] == "same"
        assert agent.access_key() == "ASIAUSER000000000000"

        # What is served now is the bundle's; what vouches is the machine's own all the same.
        again = enrol.new_nonce(b"x" * 16)
        later = evidence(asked(agent, again), enrol.AwsSts)
        assert ROLE.access_key_id in later.headers["Authorization"]
        assert later.headers[enrol.NONCE_HEADER] == again

        status = courier(agent, "/v1/status").json()
        assert status["clouds"]["aws"]["origin"] == "bundle"
        assert status["bundle"]["origin"] == "courier"
        assert status["signers"][0]["kid"] == world.signer.kid
        assert status["refused"] is None
        page = (Path(enrol.__file__).parent / "PROTOCOL.md").read_text()
        (example,) = [json.loads(one) for one in re.findall(r"```json\n(.*?)```", page, re.DOTALL) if '"clouds"' in one]
        assert example.keys() == status.keys()
        assert {cloud: members.keys() for cloud, members in example["clouds"].items()} == {
            cloud: members.keys() for cloud, members in status["clouds"].items()
        }
        for name in ("bundle", "signers"):
            one, other = example[name], status[name]
            assert (one[0] if name == "signers" else one).keys() == (other[0] if name == "signers" else other).keys()
        told = json.dumps(status)
        for hidden in (str(world.root), "s" * 40, "t" * 80, "machine-"):
            assert hidden not in told


def test_a_worker_gets_no_token_that_vouches_for_a_key(
    world: World, clouds: tuple[Ec2MetadataService, GceMetadataServer]
) -> None:
    """A program that is served the machine's own Google identity gets tokens for audiences, but not for enrolment."""
    _, gce = clouds
    path = "/computeMetadata/v1/instance/service-accounts/default/identity?format=full&audience="
    with world.agent({"upstream": {"gce": gce.url}, "keys": [{"kind": "ephemeral"}]}) as agent:
        agent.wait_for("agent.started")
        flavor = {"Metadata-Flavor": "Google"}
        assert agent.ask(path + "https://vault.example", headers=flavor).status == 200
        wanted = enrol.audience("A" * 43, NONCE)
        for spelled in (wanted, wanted.replace(":", "%3A"), wanted.replace("u", "%75", 1)):
            assert agent.ask(path + spelled, headers=flavor).status == 403
        assert not any("urn:credential-agent" in str(one) for one in gce.asked)


def test_hostile_couriers_cost_nothing(world: World) -> None:
    """Junk, old bundles and floods are refused to who brings them; nobody is alarmed, and nothing that is served is lost."""
    with world.agent({"sources": []}) as agent:
        agent.wait_for("agent.started")
        old = world.seal(world.session("ASIAUSER000000000001"))
        new = world.seal(world.session("ASIAUSER000000000002"))
        assert agent.push(new)["outcome"] == "accepted"
        assert courier(agent, "/v1/bundle", "PUT", old).json()["code"] == "rollback"
        assert courier(agent, "/v1/bundle", "PUT", b"{}").status == 422
        assert courier(agent, "/v1/bundle", "PUT", b"").status == 400
        for nonce in (b"", b"[]", b'{"nonce": "short"}', b'{"nonce": 1}', b"{" * 500):
            assert courier(agent, "/v1/enrol", "POST", nonce).status == 400
        strangers = [
            world.seal(world.session(), signer=enrol_signer)
            for enrol_signer in [type(world.signer).generate() for _ in range(6)]
        ]
        assert {courier(agent, "/v1/bundle", "PUT", one).json()["code"] for one in strangers} == {"signer"}
        assert courier(agent, "/v1/status").json()["refused"]["code"] == "signer"
        statuses = [courier(agent, "/v1/bundle", "PUT", b"{}").status for _ in range(40)]
        assert statuses.count(429) > 20

        status = agent.status()
        assert (status["last_refusal"], status["bundles"]["refused"]) == (None, {})
        assert not [line for line in agent.events("bundle.refused") if line["level"] != "info"]
        assert agent.push(world.seal(world.session("ASIAUSER000000000003")))["outcome"] == "accepted"
        assert agent.access_key() == "ASIAUSER000000000003"


def test_a_worker_without_a_cloud_or_a_key_says_so(world: World) -> None:
    """Without a machine's identity there is no evidence and a reason for each kind; without a key there is no answer."""
    with world.agent() as agent:
        agent.wait_for("agent.started")
        answer = asked(agent)
        assert answer.evidence == ()
        assert {one.kind: one.code for one in answer.missing} == {
            "aws-sts": "no-machine",
            "aws-web-identity": "off",
            "gcp-identity": "no-machine",
        }
        assert answer.recipient.kid == world.recipient.kid
    with world.agent({"keys": [], "signers": [], "sources": []}) as agent:
        agent.wait_for("agent.started")
        assert courier(agent, "/v1/enrol", "POST", enrol.write_question(NONCE)).status == 409


def test_the_socket_can_be_off(world: World) -> None:
    """Who wants no couriers has none."""
    with world.agent({"listen": {"courier": "off"}}) as agent:
        agent.wait_for("agent.started")
        assert not agent.control.with_name("courier.sock").exists()


LINGER_SECONDS = 3600
OLDER_KERNEL = "import agent.serve.handed\nagent.serve.handed.SO_PASSRIGHTS = 9999\n"
"""One before 6.16, which knows no such option."""
ASKING = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"


# A courier that passes on a socket which whoever closes it last has to wait for. A process of its own does that, and ends
# without closing it: if that is the last, nobody waits. What is behind it comes afterwards.
HANDING = f"""
import os, socket, struct, sys
courier = socket.socket(socket.AF_UNIX)
courier.connect(sys.argv[2])
before, along, behind = map(bytes.fromhex, sys.argv[3:6])
code = 0
try:
    courier.sendall(before)
except ConnectionError:
    os._exit(0)
hands = os.fork()
if not hands:
    sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, {LINGER_SECONDS}))
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    try:
        # (socket.send_fds() takes flags, and does without them.)
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", sock.fileno()))]
        courier.sendmsg([along], passed, int(sys.argv[6]))
    except PermissionError:
        code = 3
    except ConnectionError:  # it was answered before, and ended
        pass
    os._exit(code)
code = os.waitstatus_to_exitcode(os.waitpid(hands, 0)[1])
try:
    courier.sendall(behind)
except ConnectionError:
    pass
os._exit(code)
"""


class Handing:
    """Has sockets passed on whose other ends nobody reads."""

    def __init__(self, stack: ExitStack) -> None:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        self._port = listening.getsockname()[1]

    def hand(self, path: Path, before: bytes, along: bytes, behind: bytes = b"", *, flags: int = 0) -> bool:
        """Send ``before``, then ``along`` with such a socket, then ``behind``; whether the kernel took it."""
        command = [sys.executable, "-S", "-c", HANDING, str(self._port), str(path)]
        command += [before.hex(), along.hex(), behind.hex(), str(int(flags))]
        code = subprocess.run(command, check=False, timeout=60).returncode
        assert code in {0, 3}
        return code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the agent shows its descriptors to no user")
@pytest.mark.parametrize("prelude", ["", OLDER_KERNEL], ids=["this kernel", "an older one"])
@pytest.mark.parametrize("of_couriers", [True, False], ids=["couriers", "operators"])
def test_what_a_courier_hands_over_holds_up_nobody(world: World, prelude: str, of_couriers: bool) -> None:
    """A descriptor that comes along, read or unread, is let go of where nobody waits for that, and none is kept."""
    with ExitStack() as stack, world.agent({"sources": []}, prelude=prelude) as agent:
        agent.wait_for("agent.started")
        agent.ready()
        assert agent.status()["version"]
        held = len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))
        handing, path = Handing(stack), agent.control.with_name("courier.sock") if of_couriers else agent.control
        for _ in range(6):
            taken = {
                handing.hand(path, b"", ASKING),
                handing.hand(path, ASKING[:20], ASKING[20:]),
                handing.hand(path, ASKING, b"more"),
                handing.hand(path, b"PUT /v1/bundle HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n", b"x"),
                # Out of band, which a reader passes over: before and within what is read, and never read.
                handing.hand(path, b"", b"!", ASKING, flags=socket.MSG_OOB),
                handing.hand(path, ASKING[:20], b"!", ASKING[20:], flags=socket.MSG_OOB),
                handing.hand(path, ASKING[:20], b"!", flags=socket.MSG_OOB),
            }
            assert not prelude or True in taken
        assert agent.status()["version"]
        assert courier(agent, "/v1/status").status == 200
        # Two watches of files may have begun meanwhile, with four each; what is handed over are forty.
        until(lambda: len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir())) <= held + 10, what="an end of them")
        assert agent.stop() == 0


def test_what_was_handed_over_before_the_start_holds_up_nobody(world: World) -> None:
    """While only the service manager listens, the kernel takes whatever is sent."""
    with ExitStack() as stack, socket.socket(socket.AF_UNIX) as listening:
        path = world.root / "courier"
        listening.bind(str(path))
        listening.listen(100)
        handing = Handing(stack)
        assert {handing.hand(path, b"", ASKING) for _ in range(20)} == {True}
        with world.agent({"sources": []}, passed=[("courier", listening.fileno())]) as agent:
            agent.wait_for("agent.started")
            for _ in range(3):
                assert exchange(UnixConnection(path), "GET", "/v1/status").status == 200
            assert agent.status()["version"]
            assert agent.stop() == 0
