"""``status``: which identity this worker has, and until when."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from agent.cli import ask
from agent.cli.exits import EX_UNAVAILABLE
from agent.cli.options import config_option, control_socket
from agent.core.errors import HostError
from agent.core.text import when

ANSWER_SECONDS: Final = 2.0


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the whole status as JSON.")
def status(path: Path, as_json: bool) -> int:
    """Show which identity this worker has, and until when.

    Exits 69 if it has none in any cloud. Exits 71 if the agent does not answer, and then shows what systemd knows of
    it.
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
    control = control_socket(path)
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
    yield from (f"without {key}: {why}" for key, why in document.get("without", {}).items())
    yield from _told_files(document.get("files", ()))
    yield from _told_redirect(document.get("redirect"))
    yield from _told_published(document)
    if document["memory_unwritten"]:
        yield "warning: the state directory cannot be written; a restart would forget what was accepted"


def _told_redirect(redirect: Mapping[str, Any] | None) -> Iterator[str]:
    from agent.host.arrival import hint

    if redirect is None:
        return
    if not redirect["arrives"]:
        yield f"redirect: {redirect['state']}: {redirect['why']}"
        yield f"     hint: {hint(redirect['state'])}"
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
