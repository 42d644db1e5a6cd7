"""``credential-agent redirect``: lead workers' metadata requests to the agent, and show that they arrive."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from agent import config as configuration
from agent.cli.documents import json_option, tell
from agent.cli.exits import EX_CONFIG, EX_OK, EX_UNAVAILABLE
from agent.cli.members import as_root
from agent.cli.redirect_plan import Plan, make_plan, plan_of, uid_of
from agent.cli.stderr import say
from agent.core.errors import HostError
from agent.core.installed import CONFIG_PATH, SERVICE_USER
from agent.host import aliases, arrival, heard, hold, lasting, nft, planning, ports, ranges, systemctl, unroutable

CLOSED_SECONDS: Final = 15.0
"""A holder whose rules the kernel did not take tries again, at first every second."""

_CONFIG = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, readable=False),  # whoever reads it says whether it can be read
    default=CONFIG_PATH,
    show_default=True,
    help="The agent's configuration file. Its [redirect] section says who is a worker.",
)
_USER = click.option(
    "--user",
    default=SERVICE_USER,
    show_default=True,
    help="The user that the agent runs as. It keeps the real metadata service.",
)


@click.group()
def redirect() -> None:
    """Redirect workers' metadata requests to the agent.

    Uses nftables; needs root or CAP_NET_ADMIN.
    """


@redirect.command()
@_CONFIG
@_USER
@click.option("--print", "only_print", is_flag=True, help="Print the rules and change nothing.")
def apply(path: Path, user: str, only_print: bool) -> int:
    """Load the rules. Safe to repeat.

    Reads only the [redirect] section. Where credential-agent-redirect.service runs, it is told to load them. Exits 78
    if the section has a mistake: the rules before then stay in force, or, if there are none, workers are refused. Exits
    71 if the kernel does not take the rules.
    """
    if only_print:
        plan = make_plan(path, user)
        click.echo(plan.scripts[0], nl=False)
        return _said_of(plan)
    holder = _Holder.found()
    command = heard.RELOAD if _is_reload(holder) else heard.APPLY
    if command == heard.APPLY:
        with contextlib.suppress(OSError):
            _closed_file().unlink()
    elif os.path.lexists(_closed_file()) or (holder is not None and holder.by_command):
        return _stay_refused(command)
    if holder is not None:
        return _told(command, holder.ask(command))
    plan = make_plan(path, user)
    _load(plan)
    if os.path.lexists(_closed_file()):  # somebody closes: what he loads is there already, or comes after this
        _load(msgspec.structs.replace(plan, scripts=(plan.closed,), lacking=()))
        return _stay_refused(command)
    if (holder := _Holder.found()) is not None:  # it has started meanwhile, and perhaps looked before
        return _told(command, holder.ask(command))
    return _said_of(plan)


def _said_of(plan: Plan) -> int:
    for note in (*plan.notes, *plan.pending):
        say(f"credential-agent: {note}")
    if plan.error is None:
        return 0
    say(f"credential-agent: {plan.error}")
    say("  hint: workers are refused until this is mended: credential-agent redirect apply")
    return EX_CONFIG


@redirect.command()
@_CONFIG
@_USER
@click.option("--print", "only_print", is_flag=True, help="Print the rules and change nothing.")
def close(path: Path, user: str, only_print: bool) -> None:
    """Refuse workers' metadata requests.

    No worker then gets an identity, and none gets the machine's. "apply" redirects again, and so does the next boot. A
    start, a restart or a reload of credential-agent-redirect.service does not.
    """
    if only_print:
        click.echo(make_plan(path, user).closed, nl=False)
        return
    # First, since a holder that starts meanwhile would put its own rules back: it finds this. So does a reload.
    with contextlib.suppress(OSError):
        _closed_file().touch(mode=0o600)
    holder = None
    with contextlib.suppress(HostError):  # systemd is silent: workers are refused all the same, and it is asked again
        holder = _Holder.found()
    if holder is not None:
        holder.close()
        _check_that_it_lasts()
        return
    plan = make_plan(path, user)
    _load(msgspec.structs.replace(plan, scripts=(plan.closed,), lacking=()))
    if (holder := _Holder.found()) is not None:
        holder.close()  # it had looked just before, perhaps
    if os.path.lexists(_closed_file().parent):  # else there is no unit that would redirect again
        _check_that_it_lasts()


@redirect.command(name="plan", hidden=True)
@_CONFIG
@_USER
def plan_(path: Path, user: str) -> None:
    """Print the rules and what belongs to them as JSON: for the process that holds them."""
    addresses = ports.to_reserve()
    plan = msgspec.structs.replace(
        make_plan(path, user), reserve=tuple(addresses or ()), reserve_is_known=addresses is not None
    )
    click.echo(msgspec.json.encode(plan).decode())


@redirect.command()
@_CONFIG
@_USER
def record(path: Path, user: str) -> None:
    """Write down which system users are workers.

    For a boot on which the rules cannot be made: the install script and the build of an image call it, and it needs no
    system that runs. In doubt too many are written down: they are refused at that boot, and led by nothing.
    """
    plan = make_plan(path, user)
    before = lasting.read() if plan.error is not None else ()
    lasting.write((*plan.uids, *plan.refused, *before))


@redirect.command()
def remove() -> None:
    """Remove the rules: workers are refused no more.

    From then on workers reach the machine's real metadata service, until the next boot or "apply".
    """
    if _Holder.found() is not None:
        systemctl.stop(hold.UNIT)
        if (holder := _Holder.found()) is not None:
            raise HostError(f"process {holder.pid} holds the rules", hint=f"end it first: kill {holder.pid}")
    systemctl.stop_watch()
    unroutable.lift(arrival.STATE.parent / unroutable.MARK)
    nft.run(nft.removal())
    aliases.set_aliases(present=False)
    shutil.rmtree(arrival.STATE.parent, ignore_errors=True)


@redirect.command()
def show() -> None:
    """Print the rules in force, with their counters."""
    table = nft.show()
    if table is None:
        raise HostError(f"table {nft.TABLE} is not loaded", hint=arrival.HINT)
    click.echo(table, nl=False)


@redirect.command()
@_CONFIG
@json_option
def check(path: Path, as_json: bool) -> int:
    """Test the rules: ask as a worker and as others.

    Prints who answered each. Needs root; changes nothing. Exits 69 if a request goes the wrong way.
    """
    read = configuration.load_redirect(path)
    if nft.show() is None:
        raise HostError(f"table {nft.TABLE} is not loaded: workers are refused", hint=arrival.HINT)
    known = _settled()
    found: list[tuple[bool, str, str | None]] = []
    if known is not None and (known.why is not None or not known.arrives):
        state = "led by the rules of before" if known.arrives else known.state
        found.append((False, f"{state}: {known.why}", arrival.hint(known.state)))
    plan = plan_of(read, SERVICE_USER)
    # What follows from the section was just looked up anew; the rest only the process that holds the rules knows.
    held = () if known is None else (note for note in known.notes if not note.startswith("redirect."))
    found += [(False, note, None) for note in (*plan.notes, *plan.pending, *held)]
    found += [(fine, line, None) for fine, line in _findings(read.section, read.port, plan.uid)]
    if as_json:
        tell("redirect-check", {"findings": [{"ok": fine, "said": said, "hint": hint} for fine, said, hint in found]})
    for fine, said, hint in () if as_json else found:
        click.echo(f"{'ok  ' if fine else 'FAIL'}  {said}" + (f"\n      hint: {hint}" if hint else ""))
    return EX_OK if all(fine for fine, _, _ in found) else EX_UNAVAILABLE


@redirect.command(hidden=True)
@click.argument("address")
@click.argument("port", type=int)
def probe(address: str, port: int) -> None:
    """Say in one word who answers at ADDRESS:PORT: for ``check``, which starts this as somebody else."""
    click.echo(arrival.ask(address, port))


# ---------------------------------------------------------------------------------------------------------------------


def _closed_file() -> Path:
    """What the process that holds the rules goes by when it starts; it may just not be there."""
    return arrival.STATE.with_name(hold.CLOSED_FILE)


def _is_reload(holder: _Holder | None) -> bool:
    """Whether this is the ExecReload= of the unit whose process is ``holder``; ``None``: its state cannot be read."""
    asked = os.environ.get("MAINPID")
    return asked is not None if holder is None else asked == str(holder.pid)


def _stay_refused(command: str) -> int:
    """The unit's ExecReload= is no error then, and opens nothing; "apply" was to open.

    Whatever starts workers reloads it (their gate, nftables.service): a worker that ends because it is refused, and is
    started again, must not take back what an operator has closed.
    """
    hint = "to redirect again: credential-agent redirect apply"
    if command == heard.APPLY:
        raise HostError(
            "workers stay refused: somebody has closed meanwhile (credential-agent redirect close)", hint=hint
        )
    say("credential-agent: workers stay refused, by command")
    say(f"  hint: {hint}")
    return EX_OK


def _check_that_it_lasts() -> None:
    """Raise HostError where a process that holds the rules, when it starts next, would not know what was commanded."""
    if not os.path.lexists(_closed_file()):
        raise HostError(
            f"workers are refused, but {_closed_file()} cannot be written: a restart of {hold.UNIT} redirects again",
            hint="make room there, then repeat: credential-agent redirect close",
        )


class _Holder:
    """The process that holds the rules, when there is one."""

    def __init__(self, pid: int, document: dict[str, Any]) -> None:
        self.pid = pid
        self.by_command = document.get("by_command") is True  # whether it refuses workers because of ``close``
        self._first = document

    @classmethod
    def found(cls) -> _Holder | None:
        document = cls._document()
        if document is not None and arrival.is_holder(document["pid"]):
            return cls(int(document["pid"]), document)
        # On a full /run it has no state, or there is still that of the process before it: what anybody loads beside it
        # it undoes, so it must be asked all the same.
        pid = systemctl.main_pid(hold.UNIT)
        return cls(pid, {}) if arrival.is_holder(pid) and heard.heeds(pid) else None

    def close(self) -> None:
        """Have it refuse workers, and wait until they are."""
        document, end = self.ask(heard.CLOSE), time.monotonic() + CLOSED_SECONDS
        while document["state"] != "closed" and document.get("by_command", True) and time.monotonic() < end:
            time.sleep(0.05)
            document = self._document() or document
        if not document.get("by_command", True):
            raise HostError("workers are not refused: somebody has opened meanwhile (credential-agent redirect apply)")
        if document["state"] != "closed":
            why = document.get("kernel") or document.get("why")
            raise HostError(f"workers are not refused yet, which is tried again and again: {why}", hint=arrival.HINT)

    def ask(self, command: str) -> dict[str, Any]:
        """Have it do something (a command of :mod:`agent.host.heard`), and wait until it has; its state then."""
        asked = time.monotonic()
        # Of an earlier release: SIGUSR2 would end it.
        former, is_known = bool(self._first) and "done" not in self._first, bool(self._first)
        try:
            os.kill(self.pid, heard.SIGNALS[heard.APPLY if former and command == heard.RELOAD else command])
        except PermissionError:
            name = heard.CLOSE if command == heard.CLOSE else heard.APPLY
            raise HostError("this needs root", hint=as_root(f"credential-agent redirect {name}")) from None
        except ProcessLookupError:
            raise HostError(f"process {self.pid}, which held the rules, has ended", hint="try again") from None
        end = asked + planning.PLAN_SECONDS + 5
        while (now := time.monotonic()) < end and (is_known or now < asked + CLOSED_SECONDS):
            document = self._document()
            is_known = is_known or (document is not None and document["pid"] == self.pid)
            if document is not None and self._has_done(command, asked, document):
                return document
            time.sleep(0.05)
        if is_known:
            raise HostError(f"process {self.pid} does not answer", hint=arrival.HINT)
        said = f"process {self.pid}, which holds the rules, was told, and whether it has done it is not known"
        raise HostError(f"{arrival.STATE}: cannot be read: {said}", hint="make room there, then repeat")

    def _has_done(self, command: str, asked: float, document: dict[str, Any]) -> bool:
        done = document.get("done")
        if isinstance(done, dict):
            return bool(done.get(command, 0.0) >= asked)
        # An earlier release does not say what it has done, and an older one not by whom it is closed. (The state of a
        # process before this one, where this one has no room to replace it, says nothing.)
        if document["pid"] != self.pid:
            return False
        if command == heard.CLOSE:
            return bool(document.get("by_command", document["state"] == "closed"))
        return bool(document["plans"] > self._first.get("plans", 0))

    @staticmethod
    def _document() -> dict[str, Any] | None:
        try:
            document = json.loads(arrival.STATE.read_bytes())
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) and {"pid", "plans", "state"} <= document.keys() else None


def _settled() -> arrival.Arrival | None:
    """Read the holder's state: it probes every two seconds, so its word may be older than the rules just loaded."""
    end = time.monotonic() + 2 * hold.PROBE_AGAIN_SECONDS + arrival.PROBE_SECONDS
    while (known := arrival.read()) is not None and not known.arrives and time.monotonic() < end:
        if known.state == "closed":
            break
        time.sleep(0.1)
    return known


def _told(command: str, document: dict[str, Any]) -> int:
    """Print what the holder said of its rules; returns the status to exit with.

    Raises:
        HostError: the kernel does not take them, or somebody has closed meanwhile.
    """
    for note in document["notes"]:
        say(f"credential-agent: {note}")
    if document["error"] is not None:
        say(f"credential-agent: {document['error']}")
        return EX_CONFIG
    if document.get("kernel") is not None:
        raise HostError(f"{document['kernel']}; this is tried again and again", hint=arrival.HINT)
    return _stay_refused(command) if document.get("by_command") else EX_OK


def _load(plan: Plan) -> None:
    for number, script in enumerate(plan.scripts):
        try:
            nft.run(script)
        except HostError:
            if number == len(plan.scripts) - 1:
                raise
            continue
        if any(plan.lacking[number : number + 1]):
            say(f"credential-agent: {plan.lacking[number]}")
        break
    # Rules first: the address must not be there before the rules that guard it.
    aliases.set_aliases(present=True, ipv6=plan.ipv6)


def _findings(section: configuration.Redirect, port: int, uid: int | None) -> Iterator[tuple[bool, str]]:
    metadata = nft.METADATA["ip"][0]
    named = ((uid, uid) for name in section.users if (uid := uid_of(name)))
    workers = ranges.merge([*ranges.parse_uids(section.uids), *named])
    if uid is not None:
        answer = _as_user(uid, metadata, 80)
        yield answer == "agent", f"uid {uid} asks {metadata}: {arrival.said(answer)}"
    for unit in section.units:
        if not unit.endswith(".slice"):
            continue  # a probe cannot be started inside a running service
        answer = _in_slice(unit, metadata, 80)
        yield answer == "agent", f"root in {unit} asks {metadata}: {arrival.said(answer)}"
    outsider = next((max(low, 1) for low, high in ranges.complement(workers) if high >= 1), None)
    if outsider is not None:
        answer = _as_user(outsider, "127.0.0.1", port)
        yield answer == "refused", f"uid {outsider}, no worker, asks the agent's endpoint: {arrival.said(answer)}"
    answer = _as_user(0, metadata, 80)
    yield answer != "agent", f"root outside of them asks {metadata}: {arrival.said(answer)}"


def _as_user(uid: int, address: str, port: int) -> str:
    # Not by a program that is started as that user: whoever is it could trace it, and so say what it says, and type on
    # the terminal of root that it was given.
    if os.geteuid() != 0:
        raise HostError("to ask as somebody else needs root", hint=as_root("credential-agent redirect check"))
    try:
        return arrival.ask_as(uid, address, port)
    except OSError as error:
        raise HostError(f"the probe could not be started: {error}") from None


def _in_slice(unit: str, address: str, port: int) -> str:
    run = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--slice={unit}", "--property=NoNewPrivileges=1"]
    command = [*run, sys.executable, "-I", "-m", "agent", "redirect", "probe", address, str(port)]
    try:
        done = subprocess.run(  # noqa: S603 - ourselves, with checked arguments
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=arrival.PROBE_SECONDS * 5,
            check=False,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"the probe could not be started: {error}") from None
    return done.stdout.strip() or f"the probe failed: {done.stderr.strip()[-200:]}"
