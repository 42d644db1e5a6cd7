"""The system's programs (``nft``, ``ip``, ``systemctl``): from the system's own directories, without our variables."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Final

from agent.core.errors import HostError
from agent.core.text import os_reason

TIMEOUT_SECONDS: Final = 30.0
SEARCH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_PACKAGES: Final = {"nft": "nftables", "ip": "iproute2 (iproute on Amazon Linux)", "systemctl": "systemd"}


class KilledError(HostError):
    """A signal ended the program."""


class LateError(HostError):
    """The program did not answer in time, and was ended: whether it has done what it was asked is not known."""


class RefusedError(HostError):
    """The program has run, and its answer is no."""


def call(program: str, arguments: Sequence[str], text: str = "", *, seconds: float = TIMEOUT_SECONDS) -> str:
    """Run a program, with ``text`` as its input; returns what it prints.

    Raises:
        HostError: it is not there, or cannot be run.
        LateError: it takes longer than ``seconds``.
        RefusedError: it refuses.
        KilledError: a signal ended it.
    """
    # Neither shutil nor dataclasses here: their imports would make the process that holds the rules a sixth larger.
    places = (f"{directory}/{program}" for directory in SEARCH.split(":"))
    path = next((place for place in places if os.access(place, os.X_OK)), None)
    if path is None:
        raise HostError(f"{program}: not found in {SEARCH}", hint=f"install the package {_PACKAGES[program]}")
    try:
        done = subprocess.run(  # noqa: S603 - fixed program, checked arguments
            [path, *arguments],
            input=text.encode(),
            capture_output=True,
            timeout=seconds,
            check=False,
            env={"PATH": SEARCH, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise LateError(f"{program} {arguments[0]}: no answer within {seconds:.0f} s") from None
    except OSError as error:  # no process, descriptor or memory to be had just now
        raise HostError(f"{program}: cannot be run: {os_reason(error)}") from None
    if done.returncode != 0:
        ended = f"exit status {done.returncode}" if done.returncode > 0 else f"crashed: {_signal(-done.returncode)}"
        first = next(iter(done.stderr.decode(errors="replace").strip().splitlines()), ended)
        hint = "this needs CAP_NET_ADMIN; run it as root" if "not permitted" in first.lower() else None
        kind = RefusedError if done.returncode > 0 else KilledError
        raise kind(f"{program}: {first}", hint=hint)
    return done.stdout.decode(errors="replace")


def _signal(number: int) -> str:
    return signal.Signals(number).name
