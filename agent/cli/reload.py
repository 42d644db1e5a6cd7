"""``reload``: have the agent read its configuration anew, and say whether it did."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from agent.cli import ask, documents
from agent.cli.documents import json_option
from agent.cli.exits import EX_CONFIG, EX_OK
from agent.cli.options import config_option, control_socket
from agent.cli.stderr import say
from agent.core.errors import HostError
from agent.wire import names

RELOAD_SECONDS: Final = 45.0
_OUTCOMES: Final = ("applied", "refused", "later")


@click.command()
@config_option
@json_option
@ask.understood()
def reload(path: Path, as_json: bool) -> int:
    """Make the agent read its configuration again.

    "systemctl reload credential-agent" runs this. Names the sections that need a restart. Exits 78 if the configuration
    is refused, and says what of the former one stays in force: all of it, or what a file gave that cannot be read now.
    """
    answer = ask.control(control_socket(path), "POST", names.RELOAD_PATH, b"", timeout_seconds=RELOAD_SECONDS)
    if answer.status not in (200, 422):
        raise HostError(f"the agent did not reload: {answer.why()}")
    done = answer.document("outcome", "reason", "hint", "needs_restart")
    if done["outcome"] not in _OUTCOMES:
        raise HostError(f"expected what came of it from the agent, got {str(done['outcome'])[:40]!r}")
    if as_json:
        documents.tell("reload", done)
        return EX_CONFIG if done["outcome"] == "refused" else EX_OK
    if done["outcome"] == "refused":
        say(f"credential-agent: refused: {done['reason']}")
        if done["hint"]:
            say(f"  hint: {done['hint']}")
        return EX_CONFIG
    if done["outcome"] == "later":
        click.echo("the agent is starting: it reads the configuration again as soon as it has started")
        return 0
    click.echo("applied")
    if done["needs_restart"]:
        say(f"not in force without a restart: {', '.join(done['needs_restart'])}")
        say("  hint: systemctl restart credential-agent")
    return 0
