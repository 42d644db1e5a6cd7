"""``pubkey``: the key that senders seal to, to reach this worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from agent.cli import ask
from agent.cli.documents import json_option, tell
from agent.cli.options import config_option
from agent.core.errors import AgentError, HostError
from agent.wire import names


@click.command()
@config_option
@json_option
@click.option(
    "--thumbprint",
    is_flag=True,
    help="Print only the thumbprint of each key (RFC 7638). Bundles are addressed by it.",
)
@ask.understood()
def pubkey(path: Path, as_json: bool, thumbprint: bool) -> int:
    """Print this worker's public keys.

    Senders seal bundles to them. Each is a JWK on one line. They come from the running agent; without one, from the
    files that the configuration names, if this user may read them.
    """
    found = _keys(path)
    if not found:
        raise HostError("this worker has no key with a public half", hint="credential-agent config show keys")
    if as_json:
        tell("pubkey", {"keys": [{"thumbprint": one["kid"], "jwk": one} for one in found]})
    else:
        for one in found:
            click.echo(one["kid"] if thumbprint else json.dumps(one, separators=(",", ":")))
    return 0


def _keys(path: Path) -> list[Mapping[str, Any]]:
    """The public keys, each with its thumbprint as ``kid``."""
    from agent.cli import where

    found = where.find(path)
    try:
        answer = ask.control(found.control, "GET", names.KEYS_PATH, timeout_seconds=2.0)
    except ask.NotAllowedError:
        if found.courier is None:
            raise
        return [_enrolled(found.courier)]
    except (ask.NotListeningError, ask.NoAnswerError) as error:
        return _from_files(path, error)
    if answer.status != 200:
        raise HostError(f"the agent does not say: {answer.why()}")
    return [_named(one) for one in answer.document("keys")["keys"]]


def _named(jwk: Mapping[str, Any]) -> Mapping[str, Any]:
    from agent import bundle

    return {**jwk, "kid": jwk.get("kid") or bundle.thumbprint(jwk)}


def _enrolled(courier: Path) -> Mapping[str, Any]:
    """From the couriers' socket, which every worker may ask."""
    import secrets

    from agent import enrol

    nonce = enrol.new_nonce(secrets.token_bytes(32))
    answer = ask.control(courier, "POST", names.ENROL_PATH, enrol.write_question(nonce))
    if answer.status != 200:
        raise HostError(f"the agent does not say: {answer.why()}")
    return _named(enrol.read_enrolment(answer.body, nonce=nonce).key)


def _from_files(path: Path, error: HostError) -> list[Mapping[str, Any]]:
    """Without an agent: a key in memory, and one of systemd's, is not to be had."""
    from agent import bundle, config, keys

    found: list[Mapping[str, Any]] = []
    try:
        settings = config.load(path)
        for entry in settings.keys:
            match entry:
                case config.FileKey():
                    opened = keys.load_key_file(Path(entry.path))
                    found += [_named(jwk) for one in opened if (jwk := one.public_jwk()) is not None]
                case config.AwsKmsKey() | config.GcpKmsKey():
                    found.append(_named(bundle.RecipientKey.parse(Path(entry.public_key).read_text()).public_jwk()))
                case _:
                    pass
    except (AgentError, OSError, UnicodeDecodeError):
        raise error from None
    if not found:
        raise error
    return found
