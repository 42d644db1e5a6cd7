"""Whatever call the kernel refuses: answers and renewals go on, it is said once, and all is well when it takes them again."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web

from agent import bundle
from tests.fakes.gce_metadata import GceMetadataServer
from tests.system.harness import REPOSITORY, Agent, World, background, exchange, until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("refusing kernel")]

RULES_BYTES: Final = 4096
DISK: Final = (
    ("open", "EIO"), ("open", "EMFILE"), ("write", "ENOSPC"), ("fsync", "EIO"), ("rename", "EROFS"), ("chmod", "EPERM"),
    ("stat", "EIO"), ("stat", "EACCES"),
)  # fmt: skip
"""What a disk says that fails, is full, was remounted read-only, or is closed to us."""
NEEDLESS: Final = (
    ("memfd_create", "ENFILE"), ("sendmsg", "ENOBUFS"), ("socketpair", "EMFILE"), ("pipe", "EMFILE"), ("fork", "EAGAIN"),
    ("getpeername", "ENOTCONN"), ("shutdown", "ENOTCONN"), ("inotify_add_watch", "ENOSPC"), ("link", "EMLINK"),
    ("unlink", "EROFS"), ("fallocate", "ENOSPC"),
)  # fmt: skip
"""What no answer and no renewal needs: a process, a descriptor, a word with the service manager."""
WAY_OUT: Final = (
    ("socket", "EMFILE"), ("socket", "EAFNOSUPPORT"), ("connect", "EADDRNOTAVAIL"), ("connect", "EPERM"),
    ("getsockopt", "ENOBUFS"), ("epoll_ctl", "ENOSPC"),
)  # fmt: skip
WAY_IN: Final = ("EMFILE", "EPROTO")


@dataclass
class Closing(GceMetadataServer):
    """A server that ends each connection: each request needs all the calls."""

    async def answer(self, request: web.Request) -> web.Response:
        answer = await super().answer(request)
        answer.force_close()
        return answer


class Kernel:
    """A kernel that refuses: what a daemon needs in its environment, and the file that says which calls."""

    def __init__(self, root: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("needs a C compiler (apt-get install gcc libc6-dev)")
        shim, self._rules = root / "fail.so", root / "rules"
        source = REPOSITORY / "tests" / "fakes" / "fail.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        self._rules.write_bytes(bytes(RULES_BYTES))
        # What begins with LD_ is handed on to the process that answers workers.
        self.environ = {"LD_PRELOAD": str(shim), "LD_FAIL_BY": str(self._rules)}

    def refuse(self, *rules: tuple[str, str, str]) -> None:
        """Refuse calls from now on, each with an error, below a path; none of them: all is well again."""
        text = "".join(f"{call} {getattr(errno, error)} {below}\n" for call, error, below in rules)
        with self._rules.open("r+b") as file:  # never shorter: it is mapped
            file.write(text.encode().ljust(RULES_BYTES, b"\0"))


class Stage:
    """An agent on a kernel that refuses what it is told to."""

    def __init__(self, world: World, agent: Agent, gce: GceMetadataServer, kernel: Kernel) -> None:
        self.world, self.agent, self.gce = world, agent, gce
        self.kernel = kernel
        self._number = 0

    @contextmanager
    def refusing(self, *rules: tuple[str, str, str]) -> Iterator[int]:
        """Refuse calls: each with an error, below a path. Afterwards all is well; gives where the log stands."""
        mark, processes = self.agent.mark, self.agent.every_process()
        self.kernel.refuse(*rules)
        try:
            yield mark
        finally:
            self.kernel.refuse()
        until(lambda: self.asked() == 200, what="an answer")
        self.renewed()
        self.pushed(durable=True)
        assert self.agent.processes == processes
        said = Counter(line["event"] for line in self.agent.lines[mark:] if line["level"] in ("error", "warning"))
        del said["credential.failed"]  # the log of each attempt has its own test
        # Once a change of the words, which may be of one file and then of another; not once an attempt.
        assert not [event for event, times in said.items() if times > 3 or event.endswith(".crashed")], said

    def asked(self) -> int | None:
        """The status that a worker gets, ``None``: no answer."""
        try:
            connection = http.client.HTTPConnection(*self.agent.address, timeout=5)
            return exchange(
                connection, "GET", "/computeMetadata/v1/instance/service-accounts/default/token",
                {"Metadata-Flavor": "Google"},
            ).status  # fmt: skip
        except (OSError, http.client.HTTPException):
            return None

    def renewed(self, *, answered: bool = True) -> None:
        """Wait until the machine's token is asked for twice more; workers have theirs all the while."""
        before = len(self.gce.asked)
        while len(self.gce.asked) < before + 2:
            until(lambda: self.asked() == 200 or not answered, what="an answer")

    def pushed(self, *, durable: bool | None = None) -> None:
        """A bundle is taken and served."""
        self._number += 1
        key = f"ASIAUSER{self._number:012}"
        sealed = self.world.seal(self.world.session(key), self.world.variables(WHO=key))
        ack = self.agent.push(sealed)
        assert ack["outcome"] == "accepted"
        assert durable in (None, ack["durable"])
        assert self.agent.access_key() == key
        if durable:
            file = self.world.root / "run" / "env"
            until(lambda: file.exists() and self.world.env().get("WHO") == key, what="the environment file")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("k")
    kernel = Kernel(root)
    (root / "w").mkdir()
    world = World(root / "w")
    gce = Closing(token_seconds=20)  # asked for anew every two seconds
    with background(gce):
        changes = {"upstream": {"gce": gce.url}, "identity": {"fallback": ["aws", "gcp"]}}
        with world.agent(changes, environ=kernel.environ) as agent:
            agent.ready()
            made = Stage(world, agent, gce, kernel)
            until(lambda: made.asked() == 200, what="the machine's token")
            yield made
            assert agent.stop() == 0


@pytest.mark.parametrize(("call", "error"), DISK)
def test_a_disk_that_fails(stage: Stage, call: str, error: str) -> None:
    """Every file of ours fails: a bundle is taken and served, and the machine's token is renewed."""
    root = stage.world.root
    with stage.refusing((call, error, f"{root}/state"), (call, error, f"{root}/run")):
        stage.pushed()
        stage.renewed()


@pytest.mark.parametrize("refused", [(("pthread_create", "EAGAIN"),), NEEDLESS], ids=["threads", "the rest"])
def test_what_no_answer_needs(stage: Stage, refused: tuple[tuple[str, str], ...]) -> None:
    """There is no further thread, as beside a worker that forks without end: a bundle is taken, and the token renewed."""
    with stage.refusing(*((call, error, "") for call, error in refused)):
        stage.pushed(durable=True)
        stage.renewed()


@pytest.mark.parametrize(("call", "error"), WAY_OUT)
def test_a_way_out_that_is_shut(stage: Stage, call: str, error: str) -> None:
    """No connection can be made: workers are answered with what there is, and it is renewed once there can."""
    with stage.refusing((call, error, "")) as mark:
        stage.agent.wait_for("credential.failed", after=mark)
        until(lambda: stage.asked() == 200, what="an answer")


@pytest.mark.parametrize("error", WAY_IN)
def test_a_way_in_that_is_shut(stage: Stage, error: str) -> None:
    """No connection can be taken: renewal goes on, and whoever waited is answered once one can."""
    with stage.refusing(("accept", error, "")):
        stage.renewed(answered=False)


BEGIN: Final = (
    ("fork", "EAGAIN"), ("socketpair", "EMFILE"), ("pipe2", "EMFILE"), ("recvmsg", "ENOMEM"), ("sendmsg", "ENOBUFS"),
)  # fmt: skip


@pytest.mark.parametrize(("call", "error"), BEGIN)
def test_no_server_can_be_begun_for_a_while(stage: Stage, call: str, error: str) -> None:
    """Both were killed, and there is no process for another: it is begun once there is one, and no wall falls for it."""
    *others, second, server = stage.agent.every_process()
    stage.kernel.refuse((call, error, ""))
    try:
        for one in (second, server):
            os.kill(one, signal.SIGKILL)
        for _ in range(3):
            before = len(stage.gce.asked)  # as much time as some renewals take
            until(lambda before=before: len(stage.gce.asked) > before, what="a renewal")  # type: ignore[misc]
    finally:
        stage.kernel.refuse()
    until(lambda: stage.asked() == 200, what="an answer")
    until(lambda: stage.agent.every_process()[:-2] == others, what="both servers")
    assert not stage.agent.events("server.gone")
    assert not stage.agent.events("server.failing")
    stage.pushed(durable=True)


def test_the_words_of_the_kernel_are_no_defect_of_ours(stage: Stage) -> None:
    """After all of it: no traceback was written."""
    assert not [line for line in stage.agent.lines if line["event"] == "raw"]


@pytest.mark.parametrize("name", ["sender.jwk", "worker.jwk"])
def test_a_key_that_cannot_be_read_at_the_start_is_read_once_it_can(tmp_path: Path, name: str) -> None:
    """No descriptor is left, or the disk errs, for an instant: the file has not changed after it, and is read all the same."""
    kernel = Kernel(tmp_path)
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    world.drop(world.seal(world.session("ASIAUSER000000000001")))
    kernel.refuse(("open", "ENFILE", f"{world.root}/etc/{name}"))
    with world.agent(environ=kernel.environ) as agent:
        agent.wait_for("agent.ready", seconds=60)  # it waits for the bundle first
        agent.wait_for("start.without")
        assert agent.access_key() is None
        kernel.refuse()
        until(lambda: agent.access_key() == "ASIAUSER000000000001", what="the bundle")
        assert agent.stop() == 0


def test_a_key_that_cannot_be_read_when_it_is_rotated_is_read_once_it_can(tmp_path: Path) -> None:
    """The former one stays in force meanwhile, and it is said once."""
    kernel = Kernel(tmp_path)
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    with world.agent(environ=kernel.environ) as agent:
        agent.ready()
        kernel.refuse(("open", "EIO", f"{world.root}/etc/sender.jwk"))
        former, world.signer = world.signer, bundle.SigningKey.generate("Ed25519")
        world.signer_file.write_text(json.dumps({**world.signer.public_jwk(), "kid": world.signer.kid}))
        agent.wait_for("reload.refused")
        assert agent.push(world.seal(world.session("ASIAUSER000000000001"), signer=former))["outcome"] == "accepted"
        assert agent.push(world.seal(world.session("ASIAUSER000000000002")))["outcome"] == "refused"
        kernel.refuse()
        agent.wait_for("reload.applied", changed=["signers[0].key"])
        assert agent.push(world.seal(world.session("ASIAUSER000000000003")))["outcome"] == "accepted"
        assert len(agent.events("reload.refused")) == 1
        assert agent.stop() == 0


@pytest.mark.parametrize(("call", "error"), [("fork", "EAGAIN"), ("socketpair", "EMFILE"), ("pipe", "EMFILE")])
def test_a_server_that_can_have_no_successor_has_one_once_it_can(tmp_path: Path, call: str, error: str) -> None:
    """What answers workers ends while there is no process to be had: nobody gives up, and the agent parses no request."""
    kernel = Kernel(tmp_path)
    (tmp_path / "w").mkdir()
    world = World(tmp_path / "w")
    with world.agent(environ=kernel.environ) as agent:
        agent.ready()
        key = "ASIAUSER000000000001"
        assert agent.push(world.seal(world.session(key)))["outcome"] == "accepted"
        *others, second, server = agent.every_process()
        kernel.refuse((call, error, ""))
        for one in (second, server):
            os.kill(one, signal.SIGKILL)
        waiting = http.client.HTTPConnection(*agent.address, timeout=60)
        waiting.request("PUT", "/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        until(lambda: agent.processes == others, what="the end of both")
        kernel.refuse()
        with contextlib.closing(waiting):
            assert waiting.getresponse().status == 200
        assert agent.access_key() == key
        until(lambda: agent.every_process()[:-2] == others, what="both servers")
        assert not agent.events("server.gone")
        assert agent.stop() == 0
