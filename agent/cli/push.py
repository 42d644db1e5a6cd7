"""``push``: hand the agent a sealed bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from agent.cli import ask
from agent.cli.documents import json_option, tell
from agent.cli.exits import EX_TEMPFAIL
from agent.cli.options import config_option, control_socket
from agent.cli.stderr import say
from agent.core.errors import BundleError, HostError
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.wire import names

_OUTCOMES: Final = ("accepted", "same", "refused")
_TOLD: Final = {"refused": ("code", "reason"), "taken": ("seq", "issuer", "subject")}
_ANOTHER: Final = (
    "to withdraw that one, credential-agent seal --withdraw --issuer ISSUER --subject SUBJECT; the status names both"
)


@click.command()
@config_option
@json_option
@click.argument("file", type=click.File("rb"))
@ask.understood()
def push(path: Path, as_json: bool, file: Any) -> int:
    """Give the agent a sealed bundle.

    FILE is the bundle; - reads standard input. Exits 65 if the agent refuses it. Exits 75 if the agent serves it but
    could not save it, because the disk is full or hangs: a restart would lose it.
    """
    data = file.read(MAX_BUNDLE_BYTES + 1)
    if not data:
        raise BundleError("expected a bundle, got nothing: the file is empty")
    if len(data) > MAX_BUNDLE_BYTES:
        raise BundleError(f"expected a bundle of at most {MAX_BUNDLE_BYTES} bytes")
    answer = ask.control(control_socket(path), "PUT", names.BUNDLE_PATH, data)
    verdict = _verdict(answer)
    if as_json:
        tell("push", verdict)
    if verdict["outcome"] == "refused":
        raise BundleError(f"refused ({verdict['code']}): {verdict['reason']}")
    if not as_json:
        click.echo(f"{verdict['outcome']}: seq {verdict['seq']} of {verdict['issuer']} {verdict['subject']}")
        if verdict.get("reason") is not None:
            say(f"warning: {verdict['reason']}\n  hint: {_ANOTHER}")
    if not verdict.get("durable", True):
        say(
            "credential-agent: it is in force, but the state directory could not be written: a restart would forget "
            "it. It is tried again; push the same once more to hear whether it is written"
        )
        return EX_TEMPFAIL
    return 0


def _verdict(answer: ask.Answer) -> dict[str, Any]:
    if answer.status == 503 and answer.why().startswith("not confirmed"):
        raise HostError(answer.why(), hint="credential-agent doctor; and push the same again")
    if answer.status not in {200, 422}:
        raise HostError(f"the agent did not evaluate it: {answer.why()}")
    verdict = answer.document("outcome")
    if verdict["outcome"] not in _OUTCOMES:
        raise HostError(f"expected a verdict from the agent, got {str(verdict['outcome'])[:40]!r}")
    # Whole, before anything is said of it: a program would take half a verdict for one.
    return answer.document(*_TOLD["refused" if verdict["outcome"] == "refused" else "taken"])
