"""``credential-process``: what the AWS configuration's ``credential_process`` wants."""

from __future__ import annotations

import json
from pathlib import Path

import click

from agent.cli.exits import EX_TEMPFAIL, EX_UNAVAILABLE
from agent.cli.options import config_option
from agent.cli.stderr import say
from agent.cli.wait import Workers


@click.command(name="credential-process")
@config_option
def credential_process(path: Path) -> int:
    """Print the AWS credential as JSON, for the AWS CLI.

    In ~/.aws/config: credential_process = /usr/local/bin/credential-agent credential-process. Exits 75 while there is
    no answer yet, and 69 if there is no AWS identity.
    """
    answer = Workers(path).aws()
    if answer.status != 200:
        # SDKs show the last lines of stderr to their user.
        say(f"credential-agent: {answer.why()}")
        return EX_TEMPFAIL if answer.status == 503 else EX_UNAVAILABLE
    document = answer.document("AccessKeyId", "SecretAccessKey", "Token", "Expiration")
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
