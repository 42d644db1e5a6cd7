"""Permissions, tried by users who have them or not: what mode bits, directories and lists of access really allow."""

from __future__ import annotations

import grp
import json
import os
import struct
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import World

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes other users")]

GROUP = "audio"
"""Some group of every Debian's, in the place of ``credential-workers``."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose files the group may read, in a directory that everybody may enter."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == "root" and directory.is_relative_to("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o011)
    world_root = tmp_path / "w"
    world_root.mkdir(mode=0o755)
    world = World(world_root)
    run = tmp_path / "public"
    run.mkdir(mode=0o755)
    path = world.write_config(
        {
            "environment": {"file": run / "env", "token_file": run / "token", "shell_file": run / "env.sh", "group": GROUP, "mode": "0640"},
            "listen": {"http": ["127.0.0.1:1"], "control": run / "control.sock", "courier": "off"},
        }
    )  # fmt: skip
    for directory in (path, *path.parents):
        if directory.is_relative_to(tmp_path):
            directory.chmod(0o755 if directory.is_dir() else 0o640)
    for name in ("env", "token", "env.sh"):
        (run / name).write_text("x")
        os.chown(run / name, 0, grp.getgrnam(GROUP).gr_gid)
        (run / name).chmod(0o640)
    (run / "listeners.json").write_text("{}")
    (run / "listeners.json").chmod(0o644)
    return path


def looked(config: Path, **more: Any) -> dict[str, list[dict[str, Any]]]:
    """What the probe finds, in a process of its own: it becomes others."""
    program = (
        "import msgspec, pathlib, sys; from agent.doctor.probes.access import look_at_access as look; "
        "sys.stdout.buffer.write(msgspec.json.encode(look(pathlib.Path(sys.argv[1]), root=sys.argv[2] == 'root')))"
    )
    command = [sys.executable, "-c", program, str(config), more.get("who", "root")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return found


def states(config: Path) -> dict[str, str]:
    return {Path(one["path"]).name: one.get("state", "usable") for one in looked(config)["ways"]}


def run_of(config: Path) -> Path:
    return next(parent / "public" for parent in config.parents if (parent / "public").is_dir())


def test_on_a_sound_machine_everything_is_usable(config: Path) -> None:
    """Who is meant to, can; and nobody else can change anything."""
    assert set(states(config).values()) == {"usable"}, looked(config)
    assert looked(config)["exposed"] == []


def test_a_closed_directory_is_told_as_that(config: Path) -> None:
    """The first directory that may not be entered is the cause for all that is in it."""
    run = run_of(config)
    run.chmod(0o700)
    found = looked(config)["ways"]
    assert {one["state"] for one in found} == {"closed"}
    assert {one["blocked"] for one in found} == {str(run)}


def test_a_file_that_the_group_may_not_read_is_told_with_its_mode(config: Path) -> None:
    """By its mode, by its group, and by a list of access that takes away what the mode gives."""
    run = run_of(config)
    (run / "env").chmod(0o600)
    os.chown(run / "token", 0, 0)
    # user::rw- group::--- mask::rwx other::---: its mode is 0670, and its group may not read it.
    entries = [
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 7, 12_345),
        (0x04, 0, 0xFFFFFFFF),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    ]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *one) for one in entries)
    try:
        os.setxattr(run / "env.sh", "system.posix_acl_access", value)
    except OSError:
        pytest.skip("this file system has no lists of access")
    found = {Path(one["path"]).name: one for one in looked(config)["ways"]}
    assert {
        name: one["state"] for name, one in found.items() if one.get("state", "usable") != "usable"
    } == dict.fromkeys(("env", "token", "env.sh"), "denied")
    assert (found["env"]["mode"], found["env"]["wanted"]) == ("0600", "0640")


def test_a_file_that_was_removed_is_absent(config: Path) -> None:
    """It is no matter of permissions, and told as what it is."""
    (run_of(config) / "token").unlink()
    assert states(config)["token"] == "absent"


def test_what_decides_is_nobody_elses_to_change(config: Path) -> None:
    """A configuration, a signer, a directory of ours: open to everybody, to a group, or another user's."""
    run = run_of(config)
    config.chmod(0o666)
    os.chown(run, 12_345, 0)
    signer = Path(tomllib.loads(config.read_text())["signers"][0]["key"])
    os.chown(signer, 0, 12_345)
    signer.chmod(0o664)
    (run / "token").chmod(0o644)
    found = {(Path(one["path"]).name, one["act"]): one["whom"] for one in looked(config)["exposed"]}
    assert found[config.name, "change"] == "every user"
    assert found["public", "change"] == "user 12345"
    assert found[signer.name, "change"] == "the group 12345"
    assert found["token", "read"] == "every user"


def test_a_directory_like_tmp_is_nobodys_to_close(config: Path) -> None:
    """In a sticky directory everybody may add, and nobody may replace what is another's: no machine is told to close it."""
    run = run_of(config)
    run.chmod(0o1777)
    assert looked(config)["exposed"] == []
    run.chmod(0o777)
    assert [one["path"] for one in looked(config)["exposed"]] == [str(run)]


def test_what_only_the_services_sandbox_does_is_seen_through_its_process(config: Path, tmp_path: Path) -> None:
    """A directory that is read-only to the process alone, and a key in whose place it sees something empty."""
    parsed = tomllib.loads(config.read_text())
    state, key = parsed["state"]["directory"], parsed["keys"][0]["path"]
    empty = tmp_path / "inaccessible"
    empty.touch(mode=0)
    script = (
        f"mount --bind {state} {state} && mount -o remount,bind,ro {state} && mount --bind {empty} {key}"
        " && echo here && exec cat"
    )
    program = (
        "import msgspec, pathlib, sys; from agent.doctor.probes.access import look_inside as look; "
        "sys.stdout.buffer.write(msgspec.json.encode(look(pathlib.Path(sys.argv[1]), int(sys.argv[2]), root=True)))"
    )
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
            found = [
                json.loads(subprocess.check_output([sys.executable, "-c", program, str(config), str(pid)]))
                for pid in (process.pid, os.getpid())
            ]
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
    assert found == [{"read_only": [state], "hidden": [key]}, {"read_only": [], "hidden": []}]
