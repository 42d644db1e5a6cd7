"""``refresh``: have the agent look at every source now."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from agent.cli import ask
from agent.cli.documents import json_option, tell
from agent.cli.exits import EX_DATAERR, EX_UNAVAILABLE
from agent.cli.options import config_option, control_socket
from agent.core.errors import HostError
from agent.core.text import printable
from agent.wire import names

REFRESH_SECONDS: Final = 45.0
_OUTCOMES: Final = ("accepted", "same", "refused", "none", "broken")
_MEMBERS: Final = {"source", "outcome", "code", "reason", "seq"}


@click.command()
@config_option
@json_option
@ask.understood()
def refresh(path: Path, as_json: bool) -> int:
    """Make the agent look at every source now.

    Prints what each source holds. Without this command the agent reads EC2 user-data every ten minutes. Exits 65 if a
    source holds a bundle that is refused, and 69 if a source exists but cannot be read.
    """
    answer = ask.control(control_socket(path), "POST", names.REFRESH_PATH, b"", timeout_seconds=REFRESH_SECONDS)
    if answer.status != 200:
        raise HostError(f"the agent did not look: {answer.why()}")
    sources = answer.document("sources")["sources"]
    if any(not source.keys() >= _MEMBERS or source["outcome"] not in _OUTCOMES for source in sources):
        raise HostError("expected what each source holds from the agent, got something else")
    outcomes = {source["outcome"] for source in sources}
    if as_json:
        tell("refresh", {"sources": sources})
    for source in () if as_json else sources:
        seq = f": seq {source['seq']}" if source["seq"] is not None else ""
        reason = f" ({source['code']}): {source['reason']}" if source["reason"] else ""
        click.echo(printable(f"{source['source']}: {source['outcome']}{seq}{reason}"))
    if not outcomes and not as_json:
        click.echo("no source is configured")
    if "refused" in outcomes:
        return EX_DATAERR
    return EX_UNAVAILABLE if "broken" in outcomes else 0
