"""The files that programs on the worker read at their start: in step with the store, for the right eyes, in nobody's way."""

from __future__ import annotations

import grp
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.system.harness import NOBODY, World, until

STATIC = {"environment": {"static": True}}
OLD, NEW = "ASIAUSER000000000001", "ASIAUSER000000000002"


@pytest.fixture
def world(tmp_path: Path) -> World:
    root = tmp_path / "w"
    root.mkdir()
    return World(root)


NO_OTHER_TURN = "import agent.daemon.publish; agent.daemon.publish.RETRY_SECONDS = 3600.0\n"


@pytest.fixture
def nobody() -> Iterator[World]:
    """A world that belongs to a user whom permissions bind, as they do not bind root."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv to run the agent as another user")
    with tempfile.TemporaryDirectory(prefix="w") as directory:
        world = World(Path(directory))
        for path in (world.root, *world.root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        yield world


class TestInStep:
    def test_a_newer_bundle_replaces_everything_at_once(self, world: World) -> None:
        """Variables of a newer bundle are there at once, and those of the older are gone from both files."""
        with world.agent() as agent:
            agent.ready()
            agent.push(world.seal(world.session(), world.variables(FIRST="1", BOTH="1")))
            until(lambda: world.env().get("FIRST") == "1", what="the first")
            agent.push(world.seal(world.session(), world.variables(SECOND="2", BOTH="2")))
            env = until(lambda: world.env() if "SECOND" in world.env() else None, what="the second")
            assert env is not None
            assert env["BOTH"] == "2"
            assert "FIRST" not in env
            text = until(lambda: "SECOND" in (world.root / "run" / "env.sh").read_text(), what="the shell's")
            assert text
            assert "FIRST" not in (world.root / "run" / "env.sh").read_text()

    def test_a_reader_never_sees_a_half(self, world: World) -> None:
        """Whoever reads while bundles come sees one of them whole: each file is replaced by a rename."""
        with world.agent() as agent:
            agent.ready()
            path = world.root / "run" / "env"
            agent.push(world.seal(world.session(), world.variables(A="0" * 2000, B="0" * 2000)))
            until(lambda: "A" in world.env(), what="the first")
            inodes = set()
            for number in range(1, 30):
                agent.push(world.seal(world.session(), world.variables(A=f"{number}" * 2000, B=f"{number}" * 2000)))
                env = world.env()
                assert env["A"] == env["B"]
                inodes.add(path.stat().st_ino)
            assert len(inodes) > 1

    def test_no_key_is_in_them_unless_it_is_asked_for(self, world: World) -> None:
        """Without `static` neither file holds a key of a cloud, whatever is served."""
        with world.agent() as agent:
            agent.ready()
            agent.push(world.seal(world.session(OLD, secret="S3CRET" * 6), world.variables(SEEN="1")))
            until(lambda: world.env().get("SEEN") == "1", what="the files")
            assert agent.access_key() == OLD
            for name in ("env", "env.sh", "token"):
                text = (world.root / "run" / name).read_text()
                assert "S3CRET" not in text
                assert OLD not in text


class TestStatic:
    def test_keys_are_written_and_renewed(self, world: World) -> None:
        """With `static` the keys themselves are in the file, all four parts of one credential, and follow a renewal."""
        with world.agent(STATIC) as agent:
            agent.ready()
            agent.push(world.seal(world.session(OLD)))
            until(lambda: world.env().get("AWS_ACCESS_KEY_ID") == OLD, what="the keys")
            agent.push(world.seal(world.session(NEW, secret="n" * 40, token="u" * 80)))
            until(lambda: world.env().get("AWS_ACCESS_KEY_ID") == NEW, what="the new keys")
            env, served = world.env(), agent.credential()
            assert env["AWS_SECRET_ACCESS_KEY"] == served["SecretAccessKey"] == "n" * 40
            assert env["AWS_SESSION_TOKEN"] == served["Token"] == "u" * 80
            assert env["AWS_CREDENTIAL_EXPIRATION"] == served["Expiration"]

    def test_a_withdrawal_takes_them_away(self, world: World) -> None:
        """After a withdrawal no file holds a key."""
        with world.agent(STATIC) as agent:
            agent.ready()
            agent.push(world.seal(world.session(OLD)))
            until(lambda: world.env().get("AWS_ACCESS_KEY_ID") == OLD, what="the keys")
            agent.push(world.withdrawal())
            until(lambda: "AWS_ACCESS_KEY_ID" not in world.env(), what="the purge")
            until(lambda: OLD not in (world.root / "run" / "env.sh").read_text(), what="the shell's")

    def test_the_end_of_the_lease_takes_them_away(self, world: World) -> None:
        """When the lease ends the keys leave the files by themselves."""
        with world.agent(STATIC) as agent:
            agent.ready()
            lease = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=5)  # a claim has whole seconds
            agent.push(world.seal(world.session(OLD), lease_until=lease))
            until(lambda: world.env().get("AWS_ACCESS_KEY_ID") == OLD, what="the keys")
            until(lambda: "AWS_ACCESS_KEY_ID" not in world.env(), what="the end")
            assert datetime.now(UTC) >= lease
            until(lambda: OLD not in (world.root / "run" / "env.sh").read_text(), what="the shell's")

    def test_switched_off_by_a_reload_they_go(self, world: World) -> None:
        """`static = false` and SIGHUP take the keys out of the files at once."""
        with world.agent(STATIC) as agent:
            agent.ready()
            agent.push(world.seal(world.session(OLD)))
            until(lambda: world.env().get("AWS_ACCESS_KEY_ID") == OLD, what="the keys")
            world.write_config()
            agent.signal(signal.SIGHUP)
            agent.wait_for("reload.applied")
            until(lambda: "AWS_ACCESS_KEY_ID" not in world.env(), what="the purge")
            assert agent.access_key() == OLD


class TestPermissions:
    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
    def test_modes_do_not_depend_on_the_umask(self, world: World, mode: int) -> None:
        """Every file has exactly the configured mode, whatever umask the agent was started with."""
        with world.agent({"environment": {"mode": f"{mode:04o}"}}, prelude="import os; os.umask(0o077)") as agent:
            agent.ready()
            agent.push(world.seal(world.session(), world.variables(SEEN="1")))
            until(lambda: world.env().get("SEEN") == "1", what="the files")
            assert agent.stop() == 0
        for name in ("env", "env.sh", "token"):
            assert stat.S_IMODE((world.root / "run" / name).stat().st_mode) == mode, name

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files to a group that the agent is not in")
    def test_they_are_given_to_the_group(self, world: World) -> None:
        """With `group` every file belongs to it, also after it was replaced, and to the agent's user."""
        group = next(entry for entry in grp.getgrall() if entry.gr_gid != os.getegid())
        with world.agent({"environment": {"mode": "0640", "group": group.gr_name}}) as agent:
            agent.ready()
            agent.push(world.seal(world.session(), world.variables(SEEN="1")))
            until(lambda: world.env().get("SEEN") == "1", what="the files")
            assert agent.stop() == 0
        for name in ("env", "env.sh", "token"):
            found = (world.root / "run" / name).stat()
            assert (found.st_gid, found.st_uid) == (group.gr_gid, os.geteuid()), name


class TestReload:
    def test_files_that_moved_leave_nothing_behind(self, world: World) -> None:
        """After a reload that moves the files the new ones hold the variables and the old ones are gone."""
        run = world.root / "run"
        with world.agent() as agent:
            agent.ready()
            agent.push(world.seal(world.session(OLD), world.variables(DB="S3CRET")))
            assert "S3CRET" in (run / "env").read_text()
            token = world.token
            world.write_config({"environment": {"file": run / "moved", "shell_file": run / "moved.sh"}})
            agent.signal(signal.SIGHUP)
            until(lambda: not (run / "env").exists() and not (run / "env.sh").exists(), what="the old ones' end")
            assert "S3CRET" in (run / "moved").read_text()
            assert "S3CRET" in (run / "moved.sh").read_text()
            assert world.token == token
            agent.push(world.withdrawal())
            assert "S3CRET" not in (run / "moved").read_text()
            assert agent.events("environment.not_written") == []

    def test_files_that_change_places_are_both_kept(self, world: World) -> None:
        """A reload after which one file bears the other's name removes neither."""
        run = world.root / "run"
        with world.agent() as agent:
            agent.ready()
            agent.push(world.seal(world.session(OLD), world.variables(DB="here")))
            system, shell = (run / "env").read_text(), (run / "env.sh").read_text()
            assert system != shell
            world.write_config({"environment": {"file": run / "env.sh", "shell_file": run / "env"}})
            agent.signal(signal.SIGHUP)
            until(lambda: (run / "env.sh").read_text() == system, what="the one")
            until(lambda: (run / "env").read_text() == shell, what="the other")

    def test_the_token_stays_where_programs_were_told_that_it_is(self, world: World) -> None:
        """A reload moves no token file, says that this needs a restart, and the files go on naming the present one."""
        run = world.root / "run"
        with world.agent() as agent:
            agent.ready()
            world.write_config({"environment": {"token_file": run / "other", "variables": {"SEEN": "1"}}})
            agent.signal(signal.SIGHUP)
            assert agent.wait_for("reload.applied")["needs_restart"] == ["environment.token_file"]
            until(lambda: world.env().get("SEEN") == "1", what="the files")
            assert (run / "token").exists()
            assert not (run / "other").exists()
            assert str(run / "token") in world.env().values()

    def test_another_mode_is_given_at_once(self, world: World) -> None:
        """A reload with another mode gives it to every file, though not one of them says anything new."""
        run = world.root / "run"
        with world.agent() as agent:
            agent.ready()
            world.write_config({"environment": {"mode": "0644"}})
            agent.signal(signal.SIGHUP)
            files = [run / name for name in ("env", "env.sh", "token")]
            until(lambda: all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in files), what="the mode")

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files to a group that the agent is not in")
    def test_another_group_is_given_at_once(self, world: World) -> None:
        """A reload with another group gives it every file."""
        group = next(entry for entry in grp.getgrall() if entry.gr_gid != os.getegid())
        with world.agent() as agent:
            agent.ready()
            world.write_config({"environment": {"group": group.gr_name}})
            agent.signal(signal.SIGHUP)
            files = [world.root / "run" / name for name in ("env", "env.sh", "token")]
            until(lambda: all(path.stat().st_gid == group.gr_gid for path in files), what="the group")


class TestRemoved:
    def test_the_next_change_brings_them_back(self, world: World) -> None:
        """A file that somebody removed is there again after the next change, the token with its old content too."""
        run = world.root / "run"
        with world.agent() as agent:
            agent.ready()
            token = world.token
            (run / "token").unlink()
            (run / "env.sh").unlink()
            agent.push(world.seal(world.session(OLD), world.variables(SEEN="1")))
            assert world.token == token
            assert "SEEN" in (run / "env.sh").read_text()

    def test_a_reload_brings_them_back(self, world: World) -> None:
        """SIGHUP writes every file that was removed, though nothing has changed."""
        run = world.root / "run"
        with world.agent() as agent:
            agent.ready()
            token = world.token
            files = [run / name for name in ("env", "env.sh", "token")]
            for path in files:
                path.unlink()
            agent.signal(signal.SIGHUP)
            until(lambda: all(path.exists() for path in files), what="the files")
            assert world.token == token


class TestRotation:
    def test_a_token_that_an_operator_writes_is_taken_beside_the_one_before(self, world: World) -> None:
        """A reload takes the token in the file; whoever read the one before is served on, until the restart after."""
        new = "n" * 40
        with world.agent() as agent:
            agent.ready()
            agent.push(world.seal(world.session(OLD)))
            before = world.token

            def served(token: str) -> int:
                return agent.ask("/v1/credentials", headers={"Authorization": token}).status

            (world.root / "run" / "token").write_text(new + "\n")
            assert (served(before), served(new)) == (200, 401)
            agent.signal(signal.SIGHUP)
            agent.wait_for("token.rotated")
            assert (served(before), served(new)) == (200, 200)
            until(lambda: world.token == new, what="the file")
        with world.agent() as agent:
            agent.ready()
            assert (served(before), served(new)) == (401, 200)


class TestADirectoryThatRefuses:
    def test_it_is_ready_and_ends_though_nothing_can_be_written(self, nobody: World) -> None:
        """No file can be written: it says so, is ready all the same, serves, and ends on SIGTERM in time."""
        sealed = nobody.seal(nobody.session(OLD))
        run = nobody.root / "run"
        nobody.base["listen"]["control"] = nobody.root / "state" / "control"
        run.chmod(0o500)
        with nobody.agent(user=NOBODY) as agent:
            agent.wait_for("environment.not_written")
            agent.ready()
            assert agent.push(sealed)["outcome"] == "accepted"
            assert agent.access_key() == OLD
            assert agent.stop() == 0
        assert list(run.iterdir()) == []

    def test_they_are_written_when_it_is_over(self, nobody: World) -> None:
        """When the directory can be written again the files come, without anybody's doing."""
        run = nobody.root / "run"
        nobody.base["listen"]["control"] = nobody.root / "state" / "control"
        run.chmod(0o500)
        with nobody.agent(user=NOBODY) as agent:
            agent.wait_for("environment.not_written")
            run.chmod(0o700)
            until(lambda: (run / "env").exists() and (run / "token").exists(), what="the files")

    @pytest.mark.parametrize("mode", [0o500, 0o000])
    def test_a_withdrawal_is_tried_at_once(self, nobody: World, mode: int) -> None:
        """What a withdrawal has to purge is not left for the next turn of a retry."""
        run = nobody.root / "run"
        nobody.base["listen"]["control"] = nobody.root / "state" / "control"
        with nobody.agent(STATIC, user=NOBODY, prelude=NO_OTHER_TURN) as agent:
            agent.ready()
            agent.push(nobody.seal(nobody.session(OLD)))
            until(lambda: nobody.env().get("AWS_ACCESS_KEY_ID") == OLD, what="the keys")
            run.chmod(mode)
            agent.push(nobody.seal(nobody.session(NEW)))
            agent.wait_for("environment.not_written")
            run.chmod(0o700)
            agent.push(nobody.withdrawal())
            until(lambda: "AWS_ACCESS_KEY_ID" not in nobody.env(), what="the purge")
