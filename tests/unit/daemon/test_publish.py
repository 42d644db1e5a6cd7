"""What programs on the worker read: when it is written, what it says, and that nothing of it is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from agent.config import Environment
from agent.core.errors import ConfigError
from agent.core.model import Action, Bundle, Cloud, Env
from agent.core.secret import Secret
from agent.core.verdict import Accepted, Memory, Policy
from agent.core.view import Facts, Live
from agent.daemon import publish
from agent.daemon.publish import Publisher
from agent.daemon.tokens import ContainerTokens
from agent.host.envfile import parse_systemd
from tests.fakes.clock import START, FakeClock
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import aws_credential, bundle, session

HOUR = timedelta(hours=1)
TOKEN = Secret("t" * 43)
NO_FALLBACK = Policy(fallback=frozenset())


def settings(root: Path, **fields: object) -> Environment:
    for name in ("file", "shell_file", "token_file"):
        fields.setdefault(name, str(root / name))
    return Environment(**fields)  # type: ignore[arg-type]


class World:
    """A store, a clock and the files that follow it."""

    def __init__(
        self, root: Path, *, policy: Policy = NO_FALLBACK, expects_bundle: bool = True, **fields: object
    ) -> None:
        self.root = root
        self.clock = FakeClock()
        self.store = Store(policy, Memory("i-1"), START, random.Random(1))
        self.publisher = Publisher(
            settings(root, **fields),
            store=self.store,
            clock=self.clock,
            address="127.0.0.1:9911",
            token=TOKEN,
            path_id=Secret("path"),
            gid=None,
            expects_bundle=expects_bundle,
        )

    def take(self, one: Bundle) -> None:
        verdict = self.store.evaluate(one, self.clock.now())
        assert isinstance(verdict, Accepted), verdict
        self.store.accept(verdict, self.clock.now())

    def variables(self) -> dict[str, str]:
        return dict(self.publisher.variables(self.clock.now()))

    async def written(self) -> dict[str, str]:
        """Have the files follow; what systemd reads then."""
        self.publisher.changed()
        await self.publisher.settled(10)
        return parse_systemd((self.root / "file").read_bytes())


def env(**variables: str) -> Env:
    return Env(id="e", variables={name: Secret(value) for name, value in variables.items()})


class TestWhatTheySay:
    def test_a_cloud_that_is_awaited_is_announced(self, tmp_path: Path) -> None:
        """Where bundles may come the files lead to us before the first: a program that starts first finds it later."""
        absent = World(tmp_path, policy=Policy(), expects_bundle=True)
        for work in absent.store.due(START):
            absent.store.put(work, None, START)
        assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" in absent.variables()
        assert "GCE_METADATA_HOST" not in absent.variables()  # a server that is announced and empty is an error
        absent.publisher.expects_bundle = False
        assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" not in absent.variables()

    def test_a_bundle_without_a_cloud_ends_the_waiting(self, tmp_path: Path) -> None:
        """Once a bundle is there, what it does not carry and the machine has not is announced no more."""
        world = World(tmp_path, policy=Policy())
        for work in world.store.due(START):
            world.store.put(work, None, START)
        world.take(bundle(env(MYAPP_TOKEN="x")))
        assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" not in world.variables()

    def test_nothing_outranks_the_pointers(self, tmp_path: Path) -> None:
        """The bundle's variables come over the operator's, and neither leads an SDK elsewhere."""
        world = World(
            tmp_path,
            variables={"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://x/", "A_URL": "operator", "B_URL": "operator"},
            allow=("AWS_*", "A_URL"),
        )
        world.take(bundle(session(), env(A_URL="bundle", AWS_CONTAINER_CREDENTIALS_FULL_URI="http://y/")))
        found = world.variables()
        assert found["AWS_CONTAINER_CREDENTIALS_FULL_URI"].startswith("http://127.0.0.1:9911/")
        assert (found["A_URL"], found["B_URL"]) == ("bundle", "operator")

    def test_a_variable_that_is_not_allowed_is_named_once_and_left_out(self, tmp_path: Path) -> None:
        """What would load code is not passed on; the log says so once, and again when it is another."""
        world = World(tmp_path)
        world.take(bundle(env(LD_PRELOAD="x", MYAPP_TOKEN="y")))
        assert world.publisher.refused(START) == ("LD_PRELOAD",)
        assert "LD_PRELOAD" not in world.variables()
        assert world.variables()["MYAPP_TOKEN"] == "y"

        async def told() -> list[list[str]]:
            with structlog.testing.capture_logs() as logs:
                await world.written()
                await world.written()
                world.take(bundle(env(PYTHONPATH="x"), seq=2))
                await world.written()
            return [line["variables"] for line in logs if line["event"] == "environment.refused"]

        assert asyncio.run(told()) == [["LD_PRELOAD"], ["PYTHONPATH"]]

    def test_keys_are_written_only_where_that_was_asked_for(self, tmp_path: Path) -> None:
        """`static` alone, and only of an identity that is alive."""
        plain, static = World(tmp_path), World(tmp_path, static=True)
        for world in (plain, static):
            world.take(bundle(session(hours=1)))
        assert "AWS_ACCESS_KEY_ID" not in plain.variables()
        assert static.variables()["AWS_ACCESS_KEY_ID"] == "ASIAUSER000000000000"
        static.clock.move(3600)
        assert "AWS_ACCESS_KEY_ID" not in static.variables()

    @pytest.mark.parametrize("expects_bundle", [True, False])
    def test_the_machine_s_own_keys_are_written_only_where_no_bundle_can_come(
        self, tmp_path: Path, expects_bundle: bool
    ) -> None:
        """A variable has no early end: a program that began before the bundle would be the machine for hours."""
        world = World(tmp_path, policy=Policy(), expects_bundle=expects_bundle, static=True)
        for work in world.store.due(START):
            if work.key.cloud is Cloud.AWS:
                world.store.put(work, aws_credential(START, minutes=360), START)
        world.clock.move(60)  # the grace is over
        assert isinstance(world.store.answer(Cloud.AWS, world.clock.now()), Live)
        variables = world.variables()
        assert ("AWS_ACCESS_KEY_ID" in variables) is not expects_bundle
        assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" in variables

    def test_the_project_is_a_default_and_only_with_google(self, tmp_path: Path) -> None:
        """What the operator or the bundle says of it stays; without Google it is nobody's business."""
        world = World(tmp_path)
        world.store.observe(Facts(project_id="seen"))
        assert world.variables()["GOOGLE_CLOUD_PROJECT"] == "seen"
        own = World(tmp_path, variables={"GOOGLE_CLOUD_PROJECT": "own"})
        own.store.observe(Facts(project_id="seen"))
        assert own.variables()["GOOGLE_CLOUD_PROJECT"] == "own"
        without = World(tmp_path, policy=Policy(fallback=frozenset({Cloud.GCP})))
        without.store.observe(Facts(project_id="seen"))
        for work in without.store.due(START):
            without.store.put(work, None, START)
        assert "GOOGLE_CLOUD_PROJECT" not in without.variables()


class TestWriting:
    def test_a_withdrawal_is_in_the_files_when_it_is_settled(self, tmp_path: Path) -> None:
        """Who waits for it may acknowledge: no variable of the bundle is in any file any more."""
        world = World(tmp_path, container_file=str(tmp_path / "container"))

        async def story() -> None:
            world.take(bundle(session(), env(MYAPP_TOKEN="very-secret")))
            assert (await world.written())["MYAPP_TOKEN"] == "very-secret"
            assert b"very-secret" in (tmp_path / "container").read_bytes()
            world.take(bundle(seq=2, action=Action.WITHDRAW))
            await world.written()

        asyncio.run(story())
        assert all(b"very-secret" not in path.read_bytes() for path in tmp_path.iterdir())
        assert (tmp_path / "token_file").read_text() == TOKEN.reveal()

    def test_a_file_that_is_gone_is_written_again_and_one_that_is_there_is_not(self, tmp_path: Path) -> None:
        """A look costs less than a program that finds nothing; and nobody who watches is woken for nothing."""
        world = World(tmp_path)

        async def story() -> None:
            await world.written()
            kept = (tmp_path / "file").stat().st_ino
            (tmp_path / "shell_file").unlink()
            await world.written()
            assert (tmp_path / "shell_file").exists()
            assert (tmp_path / "file").stat().st_ino == kept

        asyncio.run(story())

    def test_the_mode_is_the_configured_one(self, tmp_path: Path) -> None:
        """Of each file, whatever the umask; and a reload changes it though the text is the same."""
        world = World(tmp_path, mode="0600")

        def modes() -> set[int]:
            return {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}

        async def story() -> None:
            await world.written()
            assert modes() == {0o600}
            world.publisher.reconfigure(settings(tmp_path, mode="0640"), gid=os.getgid(), expects_bundle=True)
            await world.publisher.settled(10)
            assert modes() == {0o640}

        asyncio.run(story())

    def test_a_file_that_a_reload_moved_is_not_left_behind(self, tmp_path: Path) -> None:
        """It holds a bundle's variables, which no withdrawal would purge; the token stays where programs were told."""
        world = World(tmp_path)

        async def story() -> None:
            await world.written()
            moved = settings(tmp_path, file=str(tmp_path / "elsewhere"), token_file=str(tmp_path / "other"))
            world.publisher.reconfigure(moved, gid=None, expects_bundle=True)
            await world.publisher.settled(10)

        asyncio.run(story())
        assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "shell_file", "token_file"}

    def test_what_a_killed_writer_left_is_swept(self, tmp_path: Path) -> None:
        """Under whatever name it was being written: no withdrawal would purge it."""
        world = World(tmp_path)

        asyncio.run(world.written())
        clean = sorted(tmp_path.iterdir())
        killed = subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_RENAME, tmp_path / "file"], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert sorted(tmp_path.iterdir()) != clean
        asyncio.run(World(tmp_path).written())
        assert sorted(tmp_path.iterdir()) == clean

    def test_a_directory_that_is_missing_costs_the_others_nothing(self, tmp_path: Path) -> None:
        """The rest is written, the trouble is told once, and it is over when the directory is there."""
        world = World(tmp_path, shell_file=str(tmp_path / "missing" / "env.sh"))

        async def story() -> None:
            told = asyncio.Event()

            def hears(_logger: object, _method: str, line: structlog.types.EventDict) -> structlog.types.EventDict:
                told.set()
                return line

            with structlog.testing.capture_logs(processors=[hears]) as logs:
                world.publisher.changed()
                await told.wait()
                assert (tmp_path / "file").exists()
                assert "missing" in world.publisher.troubles["environment"]
                (tmp_path / "missing").mkdir()
                world.publisher.changed()
                while world.publisher.trouble is not None:
                    await world.publisher.settled(10)
                assert (tmp_path / "missing" / "env.sh").exists()
            assert [line["event"] for line in logs] == ["environment.not_written", "environment.written"]

        asyncio.run(story())
        assert world.publisher.troubles == {}


# An exception would not do: what it interrupts is cleaned up.
KILLED_BEFORE_THE_RENAME = """
import os, pathlib, signal, sys
from agent.host import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomic(pathlib.Path(sys.argv[1]), b"left by a dead one", mode=0o600)
"""


class TestTokens:
    def test_who_read_one_once_goes_on(self, tmp_path: Path) -> None:
        """What is in the file is the present one; the one before is good too, and no third."""
        a, b, c = (Secret(letter * 43) for letter in "abc")
        path = tmp_path / "token"
        path.write_text(a.reveal() + "\n")
        assert ContainerTokens(path, (b, c)).good == (a, b)
        assert ContainerTokens(path, (b, a)).good == (a, b)
        assert ContainerTokens(None, (b, c)).good == (b, c)
        assert ContainerTokens(tmp_path / "none", (b, c)).good == (b, c)
        path.write_text("short")
        assert ContainerTokens(path, (Secret("also short"), c)).good == (c,)

    def test_a_new_one_cannot_be_guessed(self, tmp_path: Path) -> None:
        """Where there is none one is made, each time another."""
        (one,) = ContainerTokens(tmp_path / "none").good
        (other,) = ContainerTokens(None).good
        assert one != other
        assert len(one.reveal()) >= 43


def test_a_group_that_is_not_there_is_the_configurations_mistake() -> None:
    """No group is nobody's; root's is there on every machine."""
    assert publish.group_id(None) is None
    assert publish.group_id("root") == 0
    with pytest.raises(ConfigError, match=r"environment\.group"):
        publish.group_id("no-such-group-here")


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    """Each key whose directory is not there, and the first of them ends a check."""
    fine = settings(tmp_path)
    assert list(publish.absent_directories(fine)) == []
    publish.check_paths(fine)
    bad = settings(tmp_path, file=str(tmp_path / "x" / "f"), container_file=str(tmp_path / "y" / "f"))
    assert [key for key, _ in publish.absent_directories(bad)] == ["environment.file", "environment.container_file"]
    with pytest.raises(ConfigError, match=r"environment\.file"):
        publish.check_paths(bad)


def test_a_directory_that_may_not_be_looked_at_counts_as_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails, or a parent that was closed to us, is an error that can be told; it is no defect of ours."""

    def refuse(path: Path, **_: object) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    assert "environment.file" in [key for key, _ in publish.absent_directories(settings(tmp_path))]
