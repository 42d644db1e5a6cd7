"""One line from a laptop to a cluster of machines that really boot: who is served, who is not, and who learns nothing.

The machines are switched on once, in :mod:`tests.system.forwarding`, for all tests of this file.
"""

from __future__ import annotations

import base64
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agent import bundle, enrol
from tests.demo import accounts
from tests.demo.cluster import LINE
from tests.demo.stage import Stage
from tests.system import machine as m
from tests.system.forwarding import AWS, GOOGLE, PROGRAM, Cluster
from tests.system.town import Ear

pytest.importorskip("distributed")
pytest.importorskip("moto")

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("cluster")]

image = m.image


@pytest.fixture(scope="module")
def cluster(image: Sequence[Path]) -> Iterator[Cluster]:
    """The cluster, with a machine of David's account and one of somebody else's switched on."""
    inside = m.call("chroot", image[0], m.release().python, "-c", "import sys; print(sys.version_info[:2])").strip()
    if inside != str(sys.version_info[:2]):
        pytest.skip(f"Dask sends code: the machines have Python {inside}, and this one is {sys.version_info[:2]}")
    # Not below tmp_path: unprivileged users look into it.
    directory = Path(tempfile.mkdtemp(prefix="cluster-"))
    directory.chmod(0o755)
    try:
        with Cluster(image, directory, Stage(directory)) as made:
            made.boot("one", "imposter")
            yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


READ = """
import sys
import boto3
from dask.distributed import Client


def read() -> str:
    s3 = boto3.Session().client("s3")
    return s3.get_object(Bucket="davids-numbers", Key="numbers.txt")["Body"].read().decode()


client = Client(sys.argv[1], set_as_default=False)
print(client.submit(read, resources={"late": 1}, retries=0).result())
"""

RESTART = READ.replace(', resources={"late": 1}', "").replace(
    "print", "print(client.submit(read, pure=False).result())\nclient.restart(timeout=60)\nprint"
)

READ_AT_GOOGLE = f"""
import sys
from dask.distributed import Client


def read() -> str:
    import google.auth, google.auth.transport.requests
    from urllib.request import ProxyHandler, Request, build_opener

    ask = google.auth.transport.requests.Request()
    credentials, _ = google.auth.default(request=ask)
    credentials.refresh(ask)
    url = "http://{GOOGLE}/storage/v1/b/{accounts.GCS_BUCKET}/o/{accounts.GCS_OBJECT.replace("/", "%2F")}?alt=media"
    request = Request(url, headers={{"Authorization": "Bearer " + credentials.token}})
    return build_opener(ProxyHandler({{}})).open(request).read().decode()


client = Client(sys.argv[1], set_as_default=False)
print(client.submit(read, retries=0).result())
"""


def test_a_program_reads_private_data_by_one_line_more(cluster: Cluster) -> None:
    """Fifteen lines fail without the line and read with it, by a session of David's, as the cloud sees it."""
    one = cluster.workers["one"]
    text, before = PROGRAM.read_text(), len(cluster.reads())
    with one.joined():
        one.machine.until(lambda: one.machine.status()["clouds"]["aws"]["state"] == "live", what="the end of the grace")
        without = cluster.run("without", cluster.program("without", text.replace(LINE, "if True:")))
        assert without.process.returncode != 0
        assert "AccessDenied" in without.complained()
        with_it = cluster.run("with_it", cluster.program("with_it", text))
        assert with_it.said().count(accounts.NUMBERS) == 6, with_it.complained()
    good = [read["access_key_id"] for read in cluster.reads()[before:] if read["status"] == 200]
    assert len(good) == 6
    assert all(cluster.recognized(key) for key in good)


def test_scheduler_and_wire_have_ciphertext_alone(cluster: Cluster) -> None:
    """Neither the memory of the scheduler nor any byte between the hosts has a secret, or the key of what was sealed."""
    one = cluster.workers["one"]
    ear = Ear(cluster.town, cluster.directory / "heard")
    with one.joined(), cluster.forward() as sender:
        keys = [bytes.fromhex(key) for key in sender.until(one="served")["keys"]]
        remembered = cluster.memory_of_the_scheduler()
        assert cluster.recognized(one.key())
    # Who asks the cloud itself shows it a session: that is no part of what Dask carries.
    heard = ear.said(apart_from=(AWS, GOOGLE))
    told = [session[part] for session in cluster.davids_sessions() for part in ("secret_access_key", "session_token")]
    assert keys
    assert len(told) >= 2
    for place, there in ((heard, b"x-credential-agent-nonce"), (remembered, b"CredentialAgent")):
        assert (
            there in place
        )  # of what only passed through, the scheduler's memory need not keep a byte: of the plugin it does
        assert not [secret for secret in (*told, *cluster.secrets.values()) if seen(secret.encode(), place)]
        assert not [key for key in keys if seen(key, place) or key.hex().encode() in place]


def seen(secret: bytes, place: bytes) -> bool:
    """Whether it is there, by itself or in the middle of what is written as base64."""
    pieces = [secret]
    for width in range(3):
        piece = base64.b64encode(b"x" * width + secret)[4:-4]
        pieces += [piece, piece.replace(b"+", b"-").replace(b"/", b"_")]
    return any(piece in place for piece in pieces)


def test_a_secret_would_be_seen() -> None:
    """What looks for secrets finds one as it is, and in base64 of either alphabet wherever it begins."""
    secret = bytes(range(200, 232))
    for written in (base64.b64encode, base64.urlsafe_b64encode):
        for width in range(7):
            assert seen(secret, b"before" + written(b"." * width + secret + b"behind"))
    assert seen(secret, b"before" + secret)
    assert not seen(secret, b"before" + base64.b64encode(secret[4:]))


class Middle:
    """Four who are between the laptop and the scheduler, each with a sender, at once: what became of each."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.one = cluster.workers["one"]
        with cluster.between() as ear, cluster.forward(ear.address, on_exit="keep") as honest:
            honest.until(one="served")
        self.answers = [found for message in ear.messages for found in ENROLMENT.findall(message)]
        assert self.answers
        self.key = self.one.key()
        assert cluster.recognized(self.key)
        self.bundle = self.one.machine.status()["bundle"]
        public = bundle.OpeningKey.generate("P-256").public_jwk()
        kid = enrol.thumbprint_of(public)
        self.his = {"x": str(public["x"]), "y": str(public["y"]), "kid": kid, "thumbprint": kid}
        changes = {name: getattr(self, name) for name in ATTACKS}
        with ExitStack() as stack:
            relays = {name: stack.enter_context(cluster.between(change)) for name, change in changes.items()}
            senders = {name: stack.enter_context(cluster.forward(relay.address)) for name, relay in relays.items()}
            self.said = {name: senders[name].until(one=ATTACKS[name][0]) for name in senders}

    def altered(self, message: bytes) -> bytes:
        """A bundle is JSON in base64; a character in the middle becomes another."""
        at = message.find(b"/v1/bundle")
        if at < 0 or len(message) < at + 900:
            return message
        spot = at + 700
        return message[:spot] + (b"B" if message[spot : spot + 1] != b"B" else b"C") + message[spot + 1 :]

    def swapped(self, message: bytes) -> bytes:
        """The key that the worker tells is replaced by his own, as well made; its evidence he cannot make."""
        for name, value in self.his.items():
            told = rb'(\\"%s\\": ?\\")[A-Za-z0-9_-]{43}(?=\\)' % name.encode()
            message = re.sub(told, rb"\g<1>" + value.encode(), message)
        return message

    def replayed(self, message: bytes) -> bytes:
        """The worker's answer to an earlier question takes the place of the one to this."""
        for found in ENROLMENT.findall(message):
            earlier = next(one for one in self.answers if len(one) == len(found))
            message = message.replace(found, earlier)
        return message

    def dropped(self, message: bytes) -> bytes | None:
        """Bundles do not arrive."""
        return None if b"/v1/bundle" in message else message


ENROLMENT = re.compile(rb'\{[^{}]{0,200}"answers": \[\[200, "[^\n]{0,2000}thumbprint.{100,20000}?"\]\]\}')
ATTACKS = {
    "altered": ("refused|unreachable", ""),
    "swapped": ("evidence", "vouches for another key"),
    "replayed": ("evidence", "the answer is to another question"),
    "dropped": ("unreachable", ""),
}


@pytest.fixture(scope="module")
def middle(cluster: Cluster) -> Middle:
    """After four attacks on a forwarding to a machine that was served before."""
    with cluster.workers["one"].joined():
        return Middle(cluster)


@pytest.mark.parametrize("attack", ATTACKS)
def test_who_is_in_the_middle_alters_nothing(middle: Middle, attack: str) -> None:
    """Bytes that were altered, keys swapped, answers replayed, messages kept back: nobody is served, and that is told."""
    ((one,),) = [list(middle.said[attack]["workers"].values())]
    assert ATTACKS[attack][1] in one["reason"]
    assert middle.said[attack]["served"] == 0


def test_what_was_served_before_an_attack_is_served_after_it(middle: Middle) -> None:
    """The machine still serves what the honest sender sent, and nothing else."""
    assert middle.one.key() == middle.key
    assert middle.one.machine.status()["bundle"] == middle.bundle


def test_a_machine_of_another_account_is_refused_and_the_sender_is_told(cluster: Cluster) -> None:
    """STS itself says whose machine it is: the sender hears of which account, and which ones it gives its identity to."""
    one, imposter = cluster.workers["one"], cluster.workers["imposter"]
    with imposter.joined(), one.joined(), cluster.forward() as sender:
        told = sender.until(one="served", imposter="evidence")["workers"].values()
        (found,) = [worker for worker in told if worker["host"] == "imposter"]
        assert f"account {accounts.IMPOSTER_ACCOUNT}" in found["reason"]
        assert f"accounts admits {accounts.ACCOUNT}" in found["reason"]
    assert imposter.machine.status()["bundle"] is None
    assert not cluster.recognized(imposter.key())


@pytest.mark.parametrize(("role", "state"), [("forge", "evidence"), ("pass", "refused")])
def test_evidence_of_another_machine_is_of_no_use(cluster: Cluster, role: str, state: str) -> None:
    """A job that answers with another machine's evidence and its own key is refused; with that machine's key it can open nothing."""
    one, imposter = cluster.workers["one"], cluster.workers["imposter"]
    forger = ("python3", "/opt/forger.py")
    with (
        one.job(*forger, "relay", "9999"),
        imposter.job(*forger, role, "/home/alice/forged.sock", f"{one.address}:9999") as unit,
        imposter.joined(CREDENTIAL_AGENT_COURIER="/home/alice/forged.sock"),
        cluster.forward() as sender,
    ):
        (found,) = sender.until(imposter=state)["workers"].values()
        if role == "forge":
            assert "vouches for another key" in found["reason"]
        else:
            imposter.machine.until(
                lambda: "own agent 422 recipient" in imposter.said(unit), what="its own agent's word"
            )
    assert imposter.machine.status()["bundle"] is None


def test_a_machine_that_boots_later_is_served_before_its_first_task(cluster: Cluster) -> None:
    """A task that waits for a machine which is not there yet reads by David's session, and never fails before."""
    # A slow machine is no reason to let a newcomer go without.
    with cluster.workers["one"].joined(), cluster.forward(patience=120.0) as sender:
        sender.until(one="served")
        waiting = cluster.start("late", cluster.program("late", READ))
        cluster.boot("two")
        two = cluster.workers["two"]
        with two.joined("--no-nanny", "--resources", "late=1"):
            cluster.stage.until(lambda: not waiting.running, "the task", seconds=90)
            assert waiting.said().strip() == accounts.NUMBERS, waiting.complained()
            sender.until(one="served", two="served")
            assert cluster.recognized(two.key())


def test_the_end_of_the_block_takes_it_from_every_machine(cluster: Cluster) -> None:
    """No machine keeps the identity, nor falls back to its own, when the program leaves the block."""
    cluster.boot("two")
    both = [cluster.workers[name] for name in ("one", "two")]
    with both[0].joined(), both[1].joined():
        with cluster.forward() as sender:
            sender.until(one="served", two="served")
            assert all(cluster.recognized(worker.key()) for worker in both)
        for worker in both:
            assert worker.key() == "none"
            assert worker.machine.status()["bundle"] is None


def test_two_clients_at_once_leave_each_other_be(cluster: Cluster) -> None:
    """Several workers of a machine are one agent; what one client withdraws, the other brings back, and takes away at last."""
    one = cluster.workers["one"]
    with one.joined(), one.joined():
        with cluster.forward() as first:
            assert len(first.until(one="served")["workers"]) == 2
            with cluster.forward() as second:
                second.until(one="served")
            one.machine.until(lambda: cluster.recognized(one.key()), what="the first one's identity")
        assert one.key() == "none"


def test_a_worker_that_its_nanny_restarts_reads_on(cluster: Cluster) -> None:
    """A process that was killed comes back to its machine's identity: no task of it fails."""
    one = cluster.workers["one"]
    with one.joined("--nanny"), cluster.forward() as sender:
        sender.until(one="served")
        done = cluster.run("restarted", cluster.program("restarted", RESTART))
        assert done.said().split("\n")[:2] == [accounts.NUMBERS] * 2, done.complained()


def test_googles_machine_is_known_by_its_evidence(cluster: Cluster) -> None:
    """What Google's certificate confirms of the identity's project is served, and reads; nothing else is."""
    cluster.boot("google")
    google = cluster.workers["google"]
    his: dict[str, Any] = {"aws": None, "gcp": "auto"}
    with google.joined():
        with cluster.forward(**his) as sender:
            (found,) = sender.until(google="evidence")["workers"].values()
            assert "google does not confirm it" in found["reason"]
        cluster.certificates()
        with cluster.forward(**his, projects=["another-project"]) as sender:
            (found,) = sender.until(google="evidence")["workers"].values()
            assert f"project {accounts.PROJECT}" in found["reason"]
        with cluster.forward(**his) as sender:
            (found,) = sender.until(google="served")["workers"].values()
            assert accounts.PROJECT in found["machine"]
            read = cluster.run("gcs", cluster.program("gcs", READ_AT_GOOGLE))
            assert read.said().strip() == accounts.GCS_TEXT, read.complained()
    assert google.machine.status()["bundle"] is None
