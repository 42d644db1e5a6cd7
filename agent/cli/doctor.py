"""``doctor``: everything that can be wrong with this worker, its cause, and the one command to type next."""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from agent.cli import ask, documents
from agent.cli.exits import EX_DATAERR, EX_OSERR, EX_UNAVAILABLE
from agent.cli.options import config_option
from agent.cli.terminal import colourful
from agent.core.installed import CONFIG_PATH, SERVICE_USER
from agent.core.text import instant
from agent.wire import names

if TYPE_CHECKING:
    from agent import doctor as examination

AHEAD: Final = -10
"""As the agent itself (``Nice=`` of its unit)."""
CONFIGURATION_SECONDS: Final = 0.5
ANSWER_SECONDS: Final = 1.2
PROGRAM_SECONDS: Final = 0.6
_FILE: Final = click.Path(path_type=Path, dir_okay=False, allow_dash=True, readable=False)


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--bundle", "file", type=_FILE, help="Also check whether this worker would accept the bundle in FILE.")
def doctor(path: Path, as_json: bool, file: Path | None) -> int:
    """Find what is wrong here, and what to do about it.

    Names the cause and the next command for each finding. Works with and without a running agent, and takes two
    seconds, whatever hangs. Root sees everything, and checks files as the service's own user; others see what they may.
    Exits 69 if something is broken, 65 if the bundle of --bundle would be refused, and 71 if that cannot be told here.
    """
    import agent
    from agent import doctor as examination
    from agent.cli import where

    root = os.geteuid() == 0
    if root:
        # A look has two seconds: on an overloaded machine it would say more of the load than of what it asks.
        with contextlib.suppress(OSError):
            os.nice(AHEAD)
    machine = examination.Machine(
        path=path,
        root=root,
        service=_service(),
        environ=where.passed(),
        shell=os.environ,
        home=Path(os.environ.get("HOME") or "/"),
        ask=lambda: what_it_says(path),
        file=None if file is None else _read(file),
        eyes=root or path != CONFIG_PATH or not _installed(),
    )
    findings = examination.diagnose(examination.examine(machine))
    if as_json:
        now = datetime.now(UTC)
        document = examination.document(findings, version=agent.__version__, now=now, redacted=not root)
        documents.show(document)
    else:
        for line in examination.lines(findings, colour=colourful()):
            click.echo(line)
    if file is not None:
        verdicts = {one.level for one in findings if one.about == "the file"}
        if examination.Level.FAIL in verdicts:
            return EX_DATAERR
        if examination.Level.OK not in verdicts:
            return EX_OSERR
    return EX_UNAVAILABLE if examination.failed(findings) else 0


def _read(file: Path) -> bytes:
    """The bundle to evaluate; ``-`` is standard input.

    Raises:
        HostError: it cannot be read, or does not answer.
    """
    from agent.core.errors import HostError
    from agent.core.limits import MAX_BUNDLE_BYTES
    from agent.core.text import os_reason

    if str(file) == "-":
        return sys.stdin.buffer.read(MAX_BUNDLE_BYTES + 1)

    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            return opened.read(MAX_BUNDLE_BYTES + 1) or b""
    except OSError as error:
        raise HostError(f"{file}: cannot be read: {os_reason(error)}") from None


def _service() -> examination.Identity | None:
    """The service's user, if we can become it."""
    from agent import doctor as examination

    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return None
    return examination.Identity(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _installed() -> bool:
    """Whether the service has a user of its own here, who is not the caller."""
    try:
        return pwd.getpwnam(SERVICE_USER).pw_uid != os.geteuid()
    except KeyError:
        return False


def what_it_says(path: Path) -> examination.Control:
    """The status: from the control socket, or redacted from the couriers'."""
    from agent import config
    from agent import doctor as examination
    from agent.cli import where
    from agent.core.errors import HostError
    from agent.host.threads import aside

    try:
        found = aside(lambda: where.find(path), CONFIGURATION_SECONDS)
        control, courier, http = found.control, found.courier, found.http
    except (TimeoutError, HostError):
        # A mount that does not answer, or a mistake: another check tells it. The daemon may run all the same.
        usual = config.Listen()
        control, courier, http = Path(usual.control), config.courier_path(usual), config.host_port(usual.http[0])
    try:
        answer = ask.control(control, "GET", names.STATUS_PATH, timeout_seconds=ANSWER_SECONDS)
        if answer.status != 200:
            return examination.Control(state="broken", path=str(control), why=answer.why())
        return examination.Control(state="answered", path=str(control), document=answer.document("now", "clouds"))
    except ask.NotAllowedError as error:
        return _ask_as_courier(control, courier, http, error.message)
    except ask.NoAnswerError as error:
        return examination.Control(state="silent", path=str(control), why=error.message)
    except ask.NotListeningError as error:
        return examination.Control(state="absent", path=str(control), why=error.message)
    except HostError as error:
        return examination.Control(state="broken", path=str(control), why=error.message)


def _ask_as_courier(control: Path, courier: Path | None, http: tuple[str, int], why: str) -> examination.Control:
    """The redacted status that members of the workers' group may have; others ask as their SDKs do."""
    from agent import doctor as examination
    from agent.core.errors import HostError

    denied = examination.Control(state="denied", path=str(control), why=why)
    if courier is None:
        return _ask_as_program(denied, http)
    try:
        answer = ask.control(courier, "GET", names.STATUS_PATH, timeout_seconds=ANSWER_SECONDS)
        if answer.status == 200:
            return examination.Control(
                state="answered", path=str(courier), document=answer.document("now", "clouds"), courier=True
            )
    except HostError:
        pass
    return _ask_as_program(denied, http)


def _ask_as_program(denied: examination.Control, http: tuple[str, int]) -> examination.Control:
    """Which identity a program of this user gets, as far as that is said in time."""
    from msgspec.structs import replace

    from agent.cli import whoami
    from agent.core.errors import HostError

    now = datetime.now(UTC)
    try:
        clouds = {
            "aws": whoami.ask_aws(http, now, patience=PROGRAM_SECONDS),
            "gcp": whoami.ask_gcp(http, now, patience=PROGRAM_SECONDS),
        }
    except HostError:
        return denied
    return replace(denied, document={"now": instant(now), "clouds": clouds})
