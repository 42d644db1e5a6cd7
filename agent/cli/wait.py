"""``wait``: until there is an identity, asked for as a program on this worker would ask."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import click

from agent.cli import ask, documents
from agent.cli.documents import json_option
from agent.cli.exits import EX_OSERR, EX_TEMPFAIL
from agent.cli.options import CLOUDS, bundle_option, config_option, for_option, timeout_option, unreadable
from agent.cli.stderr import say
from agent.core.errors import AgentError, HostError
from agent.wire import names

POLL_SECONDS: Final = 0.25
ANSWER_SECONDS: Final = (5.0, 30.0)
"""One answer of the control socket is waited for so long at least, and at most."""
WORKER_SECONDS: Final = (1.0, 5.0)
"""The same of the workers' endpoint. So long at most is the first one waited for, however little was asked for."""
_NOT_SAID: Final = "an identity of which the agent does not say whose it is"
_WHOSE: Final = {"bundle": "an identity from the bundle", "fallback": "the machine's own identity"}


@click.command()
@config_option
@for_option
@timeout_option(120.0)
@bundle_option
@json_option
@click.option(
    "--workers",
    "watching",
    is_flag=True,
    help="Wait until workers have an identity. For root and operators, who are usually no workers themselves.",
)
def wait(path: Path, clouds: tuple[str, ...], timeout: float, *, bundle: bool, watching: bool, as_json: bool) -> int:
    """Wait until this worker has an identity.

    Asks the agent as a program on this worker would. Where metadata requests are redirected, it also checks that they
    reach the agent. Use it in scripts and in ExecStartPre= of units. Prints whose identity it is. At the timeout it
    exits 75 and prints the reason; if a bundle came and was refused, it prints why.

    Root is no worker, except in a worker's slice: as root, use --workers. Where the rules refuse root, it exits 71 at
    once.
    """
    asked = Watched(path, timeout) if watching else Workers(path, timeout)
    status = await_identity(asked, clouds, timeout, bundle=bundle, tell=_document if as_json else _say)
    if isinstance(asked, Watched):
        for note in asked.notes:
            say(f"credential-agent: {note}")
    return status


class NoWorkerError(HostError):
    """Whoever waits is no worker, and will not become one: nothing is to be waited for."""


class Endpoint(Protocol):
    """Where ``wait`` asks for an identity."""

    def answer(self, cloud: str) -> ask.Answer:
        """The answer to a request for an identity of ``cloud``. Raises HostError where nobody answers."""
        ...

    def astray(self) -> str | None:
        """Why a worker's request to the metadata service does not reach the agent; ``None``: it does."""
        ...


class Workers:
    """The workers' endpoint, as an SDK would ask it.

    Args:
        path: the configuration.
        timeout: in seconds; an agent that hangs is not waited for much beyond it. ``None``: each answer has its time.
    """

    def __init__(self, path: Path, timeout: float | None = None) -> None:
        from agent.cli import where

        # Looked up each time: a worker may wait for an agent that has not told its address yet.
        self._find: Callable[[], where.Where] = lambda: where.find(path)
        self._find()
        self._path = path
        self._end = None if timeout is None else time.monotonic() + max(timeout, WORKER_SECONDS[1])

    def _seconds(self) -> float:
        least, most = WORKER_SECONDS
        return most if self._end is None else min(max(self._end - time.monotonic(), least), most)

    @ask.understood()
    def answer(self, cloud: str) -> ask.Answer:
        """Ask for a credential. Raises HostError where nobody answers."""
        try:
            answer = self.gcp() if cloud == "gcp" else self._role_or_aws()
        except ask.NotLetInError:
            from agent.host import arrival

            known = arrival.read()
            if known is None or not known.arrives:
                raise
            kind = NoWorkerError if _is_root_outside(self._path) else HostError
            raise kind(
                f"uid {os.geteuid()} is no worker: the agent answers workers, and refuses others",
                hint="--workers waits for them; [redirect] in the configuration says who is one",
            ) from None
        if answer.status == 200 and cloud == "gcp":
            answer.document("access_token")
        return answer

    def aws(self) -> ask.Answer:
        """Ask for an AWS credential. Raises HostError where nobody answers."""
        found = self._find()
        try:
            token = found.token_file.read_text(errors="replace").strip()  # an operator's may end with a new line
        except OSError as error:
            raise unreadable(found.token_file, error) from None
        if not (token.isascii() and token.isprintable()):
            raise HostError(f"{found.token_file}: expected a token in printable ascii, got something else")
        return ask.worker(found.http, names.EKS_PATH, {"Authorization": token}, timeout_seconds=self._seconds())

    def gcp(self) -> ask.Answer:
        """Ask for a Google token. Raises HostError where nobody answers."""
        headers = {names.GCE_FLAVOR_HEADER: names.GCE_FLAVOR}
        return ask.worker(self._find().http, names.GCE_TOKEN_PATH, headers, timeout_seconds=self._seconds())

    def astray(self) -> str | None:
        """Ask the metadata address ourselves: we were answered as a worker. Without a redirection, do not ask."""
        from agent.host import arrival, nft

        known = arrival.read()
        if known is None:
            return None
        word = arrival.ask(nft.METADATA["ip"][0], 80)
        return (
            None
            if word == "agent"
            else _does_not_arrive("unanswered" if word == "timeout" else "astray", arrival.said(word), known.why)
        )

    def _role_or_aws(self) -> ask.Answer:
        """The SDKs of a worker that may not read the token ask EC2's metadata service, which the rules redirect."""
        from agent.host import arrival

        found = self._find()
        led = arrival.read() is not None
        if led and not os.access(found.token_file, os.R_OK):
            return ask.role(found.http, timeout_seconds=self._seconds())
        answer = self.aws()
        if answer.status == 200:
            answer.document("AccessKeyId")
        return answer


def _is_root_outside(path: Path) -> bool:
    """Whether we are root in no unit of workers. Of other users only the rules know whether they are workers."""
    from agent import config

    if os.geteuid() != 0:
        return False
    try:
        units = config.load_redirect(path).section.units
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except (AgentError, OSError, ValueError):
        return False
    parts = {part for line in group.splitlines() for part in line.rpartition(":")[2].split("/")}
    return parts.isdisjoint(units)


class Watched:
    """The control socket, which says what workers are answered.

    Args:
        path: the configuration.
        timeout: in seconds; an agent that hangs is not waited for much beyond it.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        from agent.cli.options import control_socket

        self._control = control_socket(path)
        self._end = time.monotonic() + timeout
        self._document: Mapping[str, Any] = {}

    @ask.understood()
    def answer(self, cloud: str) -> ask.Answer:
        """Look at it. Raises HostError where the agent does not say."""
        seconds = min(max(self._end - time.monotonic(), ANSWER_SECONDS[0]), ANSWER_SECONDS[1])
        answer = ask.control(self._control, "GET", names.STATUS_PATH, timeout_seconds=seconds)
        self._document = answer.document("clouds", "last_refusal") if answer.status == 200 else {}
        if answer.status != 200:
            return answer
        said = self._document["clouds"][cloud]
        refusal = self._document["last_refusal"]
        return ask.Answer(
            200 if said["state"] == "live" else 503,
            json.dumps({"message": said["why"]}).encode(),
            said["origin"] if said["state"] == "live" else "none",
            None if refusal is None else f"{refusal['code']}: {refusal['reason']}",
        )

    @property
    def notes(self) -> list[str]:
        """Why some have none for all that: the rules differ from the configuration, the bundle brings no identity."""
        redirect, held = self._document.get("redirect") or {}, self._document.get("bundle")
        notes = [note for note in redirect.get("notes", ()) if note.startswith("redirect.")]
        if held and not self._document.get("sticky"):
            notes.append(
                f"the bundle in force (seq {held['seq']} of {held['issuer']}) brings variables and no identity of a "
                "cloud: nothing to wait for with --bundle"
            )
        return notes

    def astray(self) -> str | None:
        """The result of the process that holds the rules, which asks as a worker."""
        redirect = self._document.get("redirect")
        return (
            None
            if redirect is None or redirect["arrives"]
            else _does_not_arrive(redirect["state"], redirect["state"], redirect["why"])
        )


def _does_not_arrive(state: str, said: str, why: str | None) -> str:
    from agent.host import arrival

    return (
        f"a request to the metadata service does not arrive: {said}"
        f"{'' if why is None else f' ({why})'}\n  hint: {arrival.hint(state)}"
    )


class _Round:
    """The wanted clouds, asked once: why some lack what was wanted, and whose identity the others have."""

    def __init__(self, endpoint: Endpoint, wanted: tuple[str, ...], *, bundle: bool) -> None:
        self.reasons: dict[str, str] = {}
        self.whose: dict[str, str] = {}
        self.refused: str | None = None
        self.in_vain = False  # it will be the same the next time
        for cloud in wanted:
            try:
                answer = endpoint.answer(cloud)
            except HostError as error:
                self.in_vain = self.in_vain or isinstance(error, NoWorkerError)
                self.reasons[cloud] = error.message + (
                    f"\n  hint: {error.hint}" if error.hint else ""
                )  # it may be starting
                continue
            self.refused = answer.refused or self.refused
            if answer.status != 200:
                self.reasons[cloud] = answer.why()
            elif bundle and answer.origin != "bundle":
                self.reasons[cloud] = f"{_WHOSE.get(answer.origin, _NOT_SAID)}; a bundle's was asked for"
            else:
                self.whose[cloud] = answer.origin


def await_identity(
    endpoint: Endpoint,
    clouds: tuple[str, ...],
    timeout: float,
    *,
    bundle: bool = False,
    tell: Callable[[_Round, str | None], None] | None = None,
) -> int:
    """Poll until the wanted clouds answer, with the wanted identity; the status to exit with.

    Args:
        endpoint: who is asked.
        clouds: those that are wanted.
        timeout: in seconds.
        bundle: whether it must be a bundle's.
        tell: tells what the last round found, and why it is not enough. ``None``: only the latter is told, to people.
    """
    wanted = CLOUDS if "any" in clouds else clouds
    enough = any if "any" in clouds else all
    end = time.monotonic() + timeout
    while True:
        found = _Round(endpoint, wanted, bundle=bundle)
        if enough(cloud not in found.reasons for cloud in wanted):
            astray = endpoint.astray()
            if astray is None:
                if tell is not None:
                    tell(found, None)
                return 0
            found.reasons = {"redirect": astray}
        if found.in_vain:
            (tell or _say)(found, "not waited for, since nothing would come of it")
            return EX_OSERR
        if time.monotonic() >= end:
            kind = "identity from a bundle" if bundle else "identity"
            (tell or _say)(found, f"no {kind} within {timeout:g} s")
            return EX_TEMPFAIL
        time.sleep(min(POLL_SECONDS, max(end - time.monotonic(), 0)))


def _say(found: _Round, lacking: str | None) -> None:
    """For people: whose identity it is, or why there is none."""
    if lacking is None:
        for cloud, origin in found.whose.items():
            if origin in _WHOSE:
                click.echo(f"{cloud}: {_WHOSE[origin]}")
        return
    for reason in dict.fromkeys(found.reasons.values()):
        whose = ", ".join(cloud for cloud, its in found.reasons.items() if its == reason)
        say(f"credential-agent: {whose}: {reason}")
    if found.refused is not None:
        say(f"credential-agent: the last bundle was refused: {found.refused}")
    say(f"credential-agent: {lacking}")


def _document(found: _Round, lacking: str | None) -> None:
    """For programs."""
    members = {"ok": lacking is None, "clouds": found.whose, "reasons": found.reasons, "refused": found.refused}
    documents.tell("wait", members)
