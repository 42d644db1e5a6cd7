"""``status``: which identity this worker has, and until when."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from agent.cli import ask, documents, status_text
from agent.cli.exits import EX_OSERR, EX_UNAVAILABLE
from agent.cli.options import Seconds, config_option, control_socket
from agent.cli.terminal import colourful, fitted, is_screen
from agent.core.errors import HostError
from agent.wire import names

ANSWER_SECONDS: Final = 2.0
PATIENCE_SECONDS: Final = 6.0
"""An agent that runs may be slow on a machine that is overloaded; one that hangs is not waited for."""
_MEMBERS: Final = ("clouds", "bundle", "sources", "credentials", "last_refusal", "memory_unwritten")
"""Without these it is no status."""
_CLEAR: Final = "\033[H\033[2J"


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the whole status as JSON.")
@click.option("--watch", is_flag=True, help="Show it again and again until Ctrl-C; with --json one document a line.")
@click.option(
    "--interval",
    type=Seconds(min=0.5, max=3600),
    default=2.0,
    show_default=True,
    help="Seconds between looks of --watch.",
)
@ask.understood()
def status(path: Path, as_json: bool, watch: bool, interval: float) -> int:
    """Show which identity this worker has, and until when.

    Also shows what is renewed next, what is wrong, and what happened lately. Exits 69 if it has none in any
    cloud. Exits 71 if the agent does not answer, and then shows what systemd knows of it.
    """
    while watch:
        _show_again(path, as_json=as_json)
        time.sleep(interval)
    document = _document(path)
    live = any(cloud["state"] == "live" for cloud in document["clouds"].values())
    if as_json:
        documents.show(document)
    else:
        for line in _lines(document):
            click.echo(line)
    return 0 if live else EX_UNAVAILABLE


def _show_again(path: Path, *, as_json: bool) -> None:
    """One look of many: an agent that is away just now is no reason to stop watching."""
    try:
        document = _document(path)
    except HostError as error:
        document, lines = documents.error_document(EX_OSERR, error.message, error.hint), [error.message]
        lines += [f"  hint: {error.hint}"] if error.hint else []
    else:
        lines = [] if as_json else list(_lines(document))
    if as_json:
        documents.show(document, indent=None)
    else:
        click.echo(_CLEAR + "\n".join(fitted(lines)) if is_screen() else "\n".join(lines))


def _document(path: Path) -> dict[str, Any]:
    answer = _status_of(path)
    if answer.status != 200:
        raise HostError(f"the agent refuses to say: {answer.why()}")
    return answer.document(*_MEMBERS)


def _lines(document: Mapping[str, Any]) -> list[str]:
    return list(status_text.rendered(status_text.told(document, datetime.now(UTC)), colour=colourful()))


def _status_of(path: Path) -> ask.Answer:
    """Ask for two seconds; somewhat longer only if systemd says that the agent runs.

    While it cannot start, its socket is there all the same, and systemd holds whoever asks.
    """
    control = control_socket(path)
    try:
        return ask.control(control, "GET", names.STATUS_PATH, timeout_seconds=ANSWER_SECONDS)
    except ask.NoAnswerError as error:
        from agent.cli import manager

        found = manager.look()
        if found is None:
            raise
        if found.active:
            try:
                return ask.control(control, "GET", names.STATUS_PATH, timeout_seconds=PATIENCE_SECONDS)
            except ask.NoAnswerError:
                said = f"{control}: no answer within {ANSWER_SECONDS + PATIENCE_SECONDS:g} s: {found.said}: it hangs"
                raise HostError(said, hint="credential-agent doctor") from None
        raise HostError(f"{error.message}: {found.said}", hint=found.hint) from None
