"""What to do where a file, a socket or an agent is not there for this user, in the words of the machine."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
from pathlib import Path

from agent.core.installed import SERVICE_USER
from agent.host import systemctl


def as_root(command: str) -> str:
    """A command that needs root, as others can type it on this machine: a minimal image has no sudo."""
    return f"sudo {command}" if shutil.which("sudo") else f"su --command '{command}'"


def not_running() -> str:
    """The command that says why no agent answers: systemd's, where there is systemd to keep one."""
    return "systemctl status credential-agent" if systemctl.runs() else "credential-agent doctor"


def members_only(path: Path) -> str:
    """What this user may do about a file or a socket that it may not use.

    Args:
        path: it; a link is followed. Its group is the one that may use it.
    """
    try:
        group = grp.getgrgid(path.stat().st_gid).gr_name
    except (OSError, KeyError):
        return "it is not for this user: run the command as root"
    if group == SERVICE_USER:
        # Members of that group could read the worker's key: nobody is to be led into it.
        return "it is for the service alone: environment.group in the configuration names who else may read it"
    if group == "root":
        return "it is for root"
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = "USER"
    return f"it is for root and the group {group}: as root, usermod -aG {group} {user}; then log in again"
