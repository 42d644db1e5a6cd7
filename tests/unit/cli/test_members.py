"""Whoever may not use a file or a socket is told which group may, as this machine has it."""

from __future__ import annotations

import grp
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli.members import members_only

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose powers it gives up"),
]
NOBODY = 65534
GROUP = next(entry for entry in grp.getgrall() if entry.gr_gid not in {0, NOBODY})


def opened(path: Path) -> Path:
    """The path, with a way to it for everybody."""
    for directory in [path.parent, *path.parent.parents]:
        if directory.is_relative_to("/tmp") and directory != Path("/tmp"):
            directory.chmod(0o755)
    return path


def typed(*argv: str) -> subprocess.CompletedProcess[str]:
    """A command, typed by a user who is in no group."""
    code = (
        "import importlib, os, pkgutil, agent.cli, agent.config, encodings.idna\n"
        # The interpreter may lie where such a user may not look.
        "for module in pkgutil.walk_packages(agent.cli.__path__, 'agent.cli.'): importlib.import_module(module.name)\n"
        f"os.setgroups([]); os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3); agent.cli.main()"
    )
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)


def test_a_socket_names_the_group_that_may_use_it(tmp_path: Path) -> None:
    """The couriers' socket is not the operators': the hint is the group of the socket that was asked, and the user."""
    path = opened(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        os.chown(path, 0, GROUP.gr_gid)
        path.chmod(0o660)
        (tmp_path / "config.toml").write_text(f'[listen]\ncontrol = "{path}"\n')
        done = typed("status", "--config", str(tmp_path / "config.toml"))
    assert done.returncode == 71, done.stderr
    assert f"usermod -aG {GROUP.gr_name} nobody;" in done.stderr


def test_an_environment_file_names_its_group(tmp_path: Path) -> None:
    """Nobody has to look up what GROUP stands for."""
    path = opened(tmp_path / "env")
    path.write_text("A=1\n")
    os.chown(path, 0, GROUP.gr_gid)
    path.chmod(0o640)
    (tmp_path / "config.toml").write_text(f'[environment]\nfile = "{path}"\n')
    done = typed("env", "--config", str(tmp_path / "config.toml"))
    assert done.returncode == 71, done.stderr
    assert f"usermod -aG {GROUP.gr_name} nobody;" in done.stderr


def test_what_is_roots_alone_has_no_group_to_join(tmp_path: Path) -> None:
    """Nobody is told to join root's group."""
    path = tmp_path / "file"
    path.touch()
    assert members_only(path) == "it is for root"
    assert "as root" in members_only(tmp_path / "nowhere")


def test_a_configuration_that_is_not_for_this_user_is_no_wrong_usage(tmp_path: Path) -> None:
    """`check` ends as every command does that cannot read it, with whose it must be."""
    path = opened(tmp_path / "config.toml")
    path.touch(mode=0o600)
    done = typed("check", "--config", str(path))
    assert done.returncode == 78, done.stderr
    assert "root:credential-agent, mode 0640" in done.stderr
    assert "Usage" not in done.stderr
