"""Facts of permissions: who cannot get at what is there for them, and who can change what decides for everybody."""

from __future__ import annotations

from typing import Literal

import msgspec


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A file, a socket or a program that others than the service are to use.

    Attributes:
        act: what they are to do with it.
        group: whose members are to; empty: every user, or ``user`` alone.
        state: ``closed``: a directory on the way may not be entered; ``denied``: it is not theirs to use; ``noexec``:
            nothing on its file system may be run.
        blocked: that directory.
        mode, owner: as they are, where it is denied; ``wanted``: the mode that it is to have. Octal.
    """

    path: str
    act: Literal["read", "connect to", "run"]
    group: str = ""
    user: str = ""
    state: Literal["usable", "absent", "closed", "denied", "noexec"] = "usable"
    blocked: str = ""
    mode: str = ""
    owner: str = ""
    wanted: str = ""


class Exposed(msgspec.Struct, frozen=True, kw_only=True):
    """A file or directory that somebody may change, or read, who is not to.

    Attributes:
        act: what they may do.
        whom: who may: ``every user``, ``user alice``, ``the group staff``.
        owner: the users and groups whose it should be, as chown(1) takes them; ``keep``: what chmod(1) is to take away.
    """

    path: str
    act: Literal["change", "read", "ask"]
    whom: str
    owner: str
    keep: str


class Inside(msgspec.Struct, frozen=True, kw_only=True):
    """What the sandbox of the running service does to the paths that it needs, which nobody outside of it sees.

    Attributes:
        read_only: directories that it writes to, and in which it cannot.
        hidden: files and directories that it reads, and of which it sees something empty.
    """

    read_only: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Both."""

    ways: tuple[Way, ...] = ()
    exposed: tuple[Exposed, ...] = ()
