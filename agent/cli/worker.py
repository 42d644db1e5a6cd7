"""What programs and people on a worker use: who am I, until when, wait for it, run with it."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from agent.cli import ask
from agent.cli.common import CONFIG_PATH, EX_DATAERR, EX_TEMPFAIL, EX_UNAVAILABLE
from agent.core.errors import BundleError, HostError
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.core.text import os_reason, when
from agent.wire import names

CLOUDS: Final = ("aws", "gcp")
POLL_SECONDS: Final = 0.25
ANSWER_SECONDS: Final = 2.0
REFRESH_SECONDS: Final = 45.0
EX_NOT_FOUND: Final = 127  # as a shell says it
EX_NOT_EXECUTABLE: Final = 126

F = TypeVar("F", bound=Callable[..., Any])


def _config_option(command: F) -> F:
    option = click.option(
        "--config",
        "path",
        # Not for everybody to read; agent.cli.where knows what to do then.
        type=click.Path(path_type=Path, readable=False),
        default=CONFIG_PATH,
        show_default=True,
        help="The agent's configuration; where the doors and files are is read from it.",
    )
    return option(command)


# -- for people --------------------------------------------------------------------------------------------------


@click.command()
@_config_option
@click.option("--json", "as_json", is_flag=True, help="The whole document, for programs.")
def status(path: Path, as_json: bool) -> int:
    """Say which identity this worker has, and until when.

    Exits 69 when no cloud has one, and 71 when the agent does not answer: then it says what systemd knows.
    """
    answer = _status_of(path)
    if answer.status != 200:
        raise HostError(f"the agent refuses to say: {answer.why()}")
    document = answer.json()
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        for line in _told(document, datetime.now(UTC)):
            click.echo(line)
    return 0 if any(cloud["state"] == "live" for cloud in document["clouds"].values()) else EX_UNAVAILABLE


def _status_of(path: Path) -> ask.Answer:
    """Ask for two seconds; longer only if systemd says that the agent runs.

    While it cannot start, its socket is there all the same, and systemd holds whoever asks.
    """
    control = _control(path)
    try:
        return ask.control(control, "GET", "/v1/status", timeout_seconds=ANSWER_SECONDS)
    except ask.NoAnswerError as error:
        from agent.cli import manager

        found = manager.look()
        if found is None:
            raise
        if found.active:
            return ask.control(control, "GET", "/v1/status")
        raise HostError(f"{error.message}: {found.said}", hint=found.hint) from None


@click.command()
@_config_option
@click.argument("file", type=click.File("rb"))
def push(path: Path, file: Any) -> int:
    """Hand the agent a sealed bundle: FILE, or - for standard input.

    Exits 65 when it is refused, 75 when it is in force and a restart would forget it (a full or stalled disk).
    """
    data = file.read(MAX_BUNDLE_BYTES + 1)
    if not data:
        raise BundleError("expected a bundle, got nothing: the file is empty")
    if len(data) > MAX_BUNDLE_BYTES:
        raise BundleError(f"expected a bundle of at most {MAX_BUNDLE_BYTES} bytes")
    answer = ask.control(_control(path), "PUT", "/v1/bundle", data)
    if answer.status not in {200, 422}:
        raise HostError(f"the agent did not judge it: {answer.why()}")
    verdict = answer.json()
    if verdict["outcome"] == "refused":
        raise BundleError(f"refused ({verdict['code']}): {verdict['reason']}")
    click.echo(f"{verdict['outcome']}: seq {verdict['seq']} of {verdict['issuer']} {verdict['subject']}")
    if not verdict.get("durable", True):
        click.echo(
            "credential-agent: it is in force, but the state directory could not be written: a restart would forget "
            "it. It is tried again; push the same once more to hear whether it is written",
            err=True,
        )
        return EX_TEMPFAIL
    return 0


@click.command()
@_config_option
def refresh(path: Path) -> int:
    """Have the agent look at every source now, and say what each one holds.

    User-data is otherwise read again every ten minutes. Exits 65 when a source holds a bundle that is refused, and 69
    when one is here but broken.
    """
    answer = ask.control(_control(path), "POST", "/v1/refresh", b"", timeout_seconds=REFRESH_SECONDS)
    if answer.status != 200:
        raise HostError(f"the agent did not look: {answer.why()}")
    outcomes: set[str] = set()
    for source in answer.json()["sources"]:
        outcomes.add(source["outcome"])
        seq = f": seq {source['seq']}" if source["seq"] is not None else ""
        reason = f" ({source['code']}): {source['reason']}" if source["reason"] else ""
        click.echo(f"{source['source']}: {source['outcome']}{seq}{reason}")
    if not outcomes:
        click.echo("no source is configured")
    if "refused" in outcomes:
        return EX_DATAERR
    return EX_UNAVAILABLE if "broken" in outcomes else 0


# -- for programs ------------------------------------------------------------------------------------------------


class _CloudList(click.ParamType[tuple[str, ...]]):
    name = "cloud[,cloud]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        named = tuple(part.strip() for part in str(value).split(",") if part.strip())
        if not named or any(part not in (*CLOUDS, "any") for part in named):
            self.fail(f"expected aws, gcp, aws,gcp or any, got {value!r}", param, ctx)
        return named


_FOR = click.option(
    "--for",
    "clouds",
    type=_CloudList(),
    default="any",
    show_default=True,
    help="aws, gcp or both with a comma: all of them. any: whichever comes first.",
)


_BUNDLE = click.option(
    "--bundle",
    is_flag=True,
    help="Only an identity that came in a bundle counts; the machine's own does not.",
)


class _Seconds(click.FloatRange):
    """A length of time in seconds. ``nan`` is below no bound and above none, and would never end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"expected a number of seconds, got {value!r}", param, ctx)
        return seconds


def _timeout_option(seconds: float) -> Callable[[F], F]:
    return click.option(
        "--timeout",
        type=_Seconds(min=0),
        default=seconds,
        show_default=True,
        help="Seconds to wait; exits 75 after.",
    )


@click.command()
@_config_option
@_FOR
@_timeout_option(120.0)
@_BUNDLE
def wait(path: Path, clouds: tuple[str, ...], timeout: float, bundle: bool) -> int:
    """Wait until there is an identity: ask as a program on this worker would, until it is answered.

    Where metadata requests are redirected, one must also arrive. For scripts and for ExecStartPre= of units. Says whose
    identity it is, and exits 75 at the timeout, with the reason and, if a bundle came and was refused, with why.
    """
    return _await(_Doors(path), clouds, timeout, bundle=bundle, tell=True)


@click.command()
@_config_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["shell", "systemd", "json", "null"]),
    default="shell",
    show_default=True,
    help="shell: for eval; systemd: for EnvironmentFile=; null: NAME=value, ended by NUL bytes.",
)
def env(path: Path, form: str) -> None:
    """Print the variables that lead programs to the agent: eval "$(credential-agent env)"."""
    from agent.host import envfile

    variables = _variables(path)
    if form == "json":
        click.echo(json.dumps(variables, indent=2))
    elif form == "null":
        click.echo("".join(f"{name}={value}\0" for name, value in variables.items()), nl=False)
    else:
        render = envfile.render_shell if form == "shell" else envfile.render_systemd
        click.echo(render(variables).decode(), nl=False)


@click.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_config_option
@_FOR
@_timeout_option(120.0)
@_BUNDLE
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(path: Path, clouds: tuple[str, ...], timeout: float, bundle: bool, command: tuple[str, ...]) -> int:
    """Run COMMAND with the agent's variables, once there is an identity.

    Variables that would mask the agent (AWS_ACCESS_KEY_ID, AWS_PROFILE and so on) are taken out. Signals are passed
    on, and the exit status is the command's: 128 and the signal's number when a signal ended it.
    """
    from agent.host import envfile

    waited = _await(_Doors(path), clouds, timeout, bundle=bundle)
    if waited:
        return waited
    return _supervise(command, envfile.overlay(os.environ, _variables(path)))


@click.command(name="credential-process")
@_config_option
def credential_process(path: Path) -> int:
    """Print the AWS credential as JSON, for credential_process = in ~/.aws/config."""
    answer = _Doors(path).aws()
    if answer.status != 200:
        # SDKs show the last lines of stderr to their user.
        click.echo(f"credential-agent: {answer.why()}", err=True)
        return EX_TEMPFAIL if answer.status == 503 else EX_UNAVAILABLE
    document = answer.json()
    click.echo(
        json.dumps(
            {
                "Version": 1,
                "AccessKeyId": document["AccessKeyId"],
                "SecretAccessKey": document["SecretAccessKey"],
                "SessionToken": document["Token"],
                "Expiration": document["Expiration"],
            }
        )
    )
    return 0


# ---------------------------------------------------------------------------------------------------------------------


class _Doors:
    """The workers' door, as an SDK would ask it."""

    def __init__(self, path: Path) -> None:
        from agent.cli import where

        # Each time anew: a worker may wait for an agent that has not told it yet.
        self._find: Callable[[], where.Where] = lambda: where.find(path)
        self._find()

    def aws(self) -> ask.Answer:
        found = self._find()
        try:
            token = found.token_file.read_text()
        except OSError as error:
            raise _unreadable(found.token_file, error) from None
        return ask.worker(found.http, names.EKS_PATH, {"Authorization": token})

    def gcp(self) -> ask.Answer:
        return ask.worker(self._find().http, names.GCE_TOKEN_PATH, {names.GCE_FLAVOR_HEADER: names.GCE_FLAVOR})


class _Round:
    """The wanted clouds, asked once: why each has not what was wanted, and whose identity the others have."""

    def __init__(self, doors: _Doors, wanted: tuple[str, ...], *, bundle: bool) -> None:
        self.reasons: dict[str, str] = {}
        self.whose: dict[str, str] = {}
        self.refused: str | None = None
        ask_for = {"aws": doors.aws, "gcp": doors.gcp}
        for cloud in wanted:
            try:
                answer = ask_for[cloud]()
            except HostError as error:
                self.reasons[cloud] = error.message  # it may be starting
                continue
            self.refused = answer.refused or self.refused
            if answer.status != 200:
                self.reasons[cloud] = answer.why()
            elif bundle and answer.origin != "bundle":
                self.reasons[cloud] = f"{_WHOSE.get(answer.origin, _NOT_SAID)}; a bundle's was asked for"
            else:
                self.whose[cloud] = answer.origin


def _await(doors: _Doors, clouds: tuple[str, ...], timeout: float, *, bundle: bool = False, tell: bool = False) -> int:
    """Poll until the wanted clouds answer, with the wanted identity; the status to exit with."""
    wanted = CLOUDS if "any" in clouds else clouds
    enough = any if "any" in clouds else all
    end = time.monotonic() + timeout
    while True:
        found = _Round(doors, wanted, bundle=bundle)
        if enough(cloud not in found.reasons for cloud in wanted):
            astray = _astray()
            if astray is None:
                for cloud, origin in found.whose.items():
                    if tell and origin in _WHOSE:
                        click.echo(f"{cloud}: {_WHOSE[origin]}")
                return 0
            found.reasons = {"redirect": astray}
        if time.monotonic() >= end:
            for cloud, reason in found.reasons.items():
                click.echo(f"credential-agent: {cloud}: {reason}", err=True)
            if found.refused is not None:
                click.echo(f"credential-agent: the last bundle was refused: {found.refused}", err=True)
            kind = "identity from a bundle" if bundle else "identity"
            click.echo(f"credential-agent: no {kind} within {timeout:g} s", err=True)
            return EX_TEMPFAIL
        time.sleep(min(POLL_SECONDS, max(end - time.monotonic(), 0)))


def _astray() -> str | None:
    """Why a program of this user that asks the metadata service does not reach the agent; ``None``: it does.

    Asked by ourselves: the agent's door took us for a worker. Where nothing redirects there is nothing to ask.
    """
    from agent.host import arrival, nft

    known = arrival.read()
    if known is None:
        return None
    word = arrival.ask(nft.METADATA["ip"][0], 80)
    if word == "agent":
        return None
    why = "" if known.why is None else f" ({known.why})"
    return f"a request to the metadata service does not arrive: {arrival.said(word)}{why}\n  hint: {arrival.HINT}"


_NOT_SAID: Final = "an identity of which the agent does not say whose it is"
_WHOSE: Final = {"bundle": "an identity from the bundle", "fallback": "the machine's own identity"}


_NOT_PASSED: Final = frozenset(
    {
        *(signal.SIGKILL, signal.SIGSTOP),  # nobody can wait for these
        *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),  # these stop us, as the shell expects
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS, signal.SIGABRT),
        *(signal.SIGPIPE, signal.SIGXFSZ),  # of our own writes
    }
)


def _supervise(command: tuple[str, ...], environ: Mapping[str, str]) -> int:
    """Run ``command`` as our child, pass on the signals that are sent to us, and return its status.

    A signal of the terminal (Ctrl-C) reaches the whole foreground group, the child included: only those that a process
    sent are passed on, or the child would get the first kind twice.
    """
    if not command[0]:
        click.echo("credential-agent: expected the name of a command, got an empty one", err=True)
        return EX_NOT_FOUND
    awaited = signal.valid_signals() - _NOT_PASSED
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    # An interpreter ignores these; a program that inherited that would not end with its pipe.
    default = [signal.SIGPIPE, signal.SIGXFSZ]
    try:
        child = os.posix_spawnp(command[0], command, dict(environ), setsigmask=before, setsigdef=default)
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        click.echo(f"credential-agent: {command[0]}: {os_reason(error, 'cannot be run')}", err=True)
        return EX_NOT_FOUND if isinstance(error, FileNotFoundError) else EX_NOT_EXECUTABLE
    while True:
        got = signal.sigwaitinfo(awaited)
        if got.si_signo != signal.SIGCHLD:
            if got.si_pid:
                os.kill(child, got.si_signo)
            continue
        pid, status_ = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status_)
            return code if code >= 0 else 128 - code


def _variables(path: Path) -> dict[str, str]:
    from agent.cli import where
    from agent.host import envfile

    file = where.find(path).file
    try:
        data = file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from None
    return envfile.parse_systemd(data)


def _control(path: Path) -> Path:
    from agent.cli import where

    return where.find(path).control


def _unreadable(file: Path, error: OSError) -> HostError:
    hint = "systemctl status credential-agent"
    if isinstance(error, PermissionError):
        hint = "it is for the workers' group: environment.group in the configuration; usermod -aG GROUP USER"
    return HostError(f"{file}: cannot be read: {os_reason(error)}", hint=hint)


def _told(document: Mapping[str, Any], now: datetime) -> Iterator[str]:
    """The status document in a person's words."""
    for name, cloud in document["clouds"].items():
        yield from _told_cloud(name, cloud, now)
    bundle = document["bundle"]
    if bundle is None:
        yield "bundle: none"
    else:
        yield f"bundle: seq {bundle['seq']} from {bundle['issuer']} for {bundle['subject']}, by {bundle['origin']}"
    yield from _told_variables(bundle)
    for name in document.get("absent_keys", ()):  # of an agent that is older than this command
        yield f"key {name}: this machine was not given it; no bundle can be opened with it"
    for name, state in document["sources"].items():
        if state != "ok":
            yield f"source {name}: {state}"
    for one in document["credentials"]:
        failure = one["last_failure"]
        if failure is not None:
            yield f"renewal of {one['cloud']} {one['grant']} fails ({failure['code']}): {failure['reason']}"
    yield from _told_refusal(document)
    yield from _told_files(document.get("files", ()))
    yield from _told_redirect(document.get("redirect"))
    yield from _told_published(document)
    if document["memory_unwritten"]:
        yield "warning: the state directory cannot be written; a restart would forget what was accepted"


def _told_redirect(redirect: Mapping[str, Any] | None) -> Iterator[str]:
    from agent.host.arrival import HINT

    if redirect is None:
        return
    if not redirect["arrives"]:
        yield f"redirect: {redirect['state']}: {redirect['why']}"
        yield f"     hint: {HINT}"
    elif redirect["why"]:
        yield f"redirect: led by the rules of before: {redirect['why']}"
    yield from (f"redirect: {note}" for note in redirect["notes"])


def _told_published(document: Mapping[str, Any]) -> Iterator[str]:
    if document.get("key_overwritten"):
        yield "warning: something else stood where this worker's public key is published; senders may have sealed to it"
    for place, state in document.get("published", {}).items():
        if state != "published":
            yield f"public key at {place}: {state}"


def _told_refusal(document: Mapping[str, Any]) -> Iterator[str]:
    refusal = document["last_refusal"]
    if refusal is None:
        return
    yield f"last refused bundle: {refusal['code']}: {refusal['reason']} (from {refusal['origin']}, {refusal['at']})"
    if document["bundle"] is None:
        ours = [f"key {kid}" for kid in document["keys"]] + [str(name) for name in document["audiences"]]
        yield f"this worker answers to: {', '.join(ours) or 'nothing: it has no key and no name'}"


def _told_files(files: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for file in files:
        count = f", {file['count']} certificates" if file["count"] is not None else ""
        digest = f", sha256 {file['sha256'][:16]}" if file["sha256"] is not None else ""
        yield f"loaded {file['key']}: {file['path']} ({file['what']}{count}{digest})"


def _told_variables(bundle: Mapping[str, Any] | None) -> Iterator[str]:
    for name in (bundle or {}).get("refused_variables", ()):
        yield f"variable {name}: not passed on; environment.allow in the configuration says which are"


def _told_cloud(name: str, cloud: Mapping[str, Any], now: datetime) -> Iterator[str]:
    if cloud["state"] != "live":
        yield f"{name}: none ({cloud['state']}): {cloud['why']}"
        return
    whose = {"bundle": "from the bundle", "fallback": "the machine's own"}.get(cloud["origin"], cloud["origin"])
    yield f"{name}: {cloud.get('role_arn') or cloud['identity']} ({whose})"
    yield f"     this credential ends {_when(cloud['expires_at'], now)}"
    if cloud["horizon"] is not None:
        reason = f": {cloud['horizon_reason']}" if cloud.get("horizon_reason") else ""
        yield f"     served until {_when(cloud['horizon'], now)}{reason}; then: {cloud['at_the_end']}"


def _when(stamp: str, now: datetime) -> str:
    return f"{stamp} ({when(datetime.fromisoformat(stamp), now)})"
