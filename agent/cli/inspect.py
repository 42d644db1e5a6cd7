"""``inspect``: show what a bundle says, and with keys what it carries. No secret is shown."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import click

from agent import bundle
from agent.cli.exits import EX_DATAERR
from agent.cli.inputs import FILE, keys_in, read
from agent.core.errors import BundleError, FormatError, SealError, UnreadableError, WireError
from agent.core.model import Bundle
from agent.core.text import spell
from agent.identity.forecast import forecasts, sentence
from agent.sender import claims
from agent.wire import wrapped

Value = TypeVar("Value")


@click.command()
@click.argument("file", type=FILE)
@click.option("--key", "key_file", type=FILE, help="A worker's private key, to decrypt the bundle.")
@click.option(
    "--signer",
    "signer_file",
    type=FILE,
    multiple=True,
    help="A sender's public key, to verify the signature. Repeatable.",
)
@click.option(
    "--audience",
    multiple=True,
    help="Check the bundle as a worker of this name would. Repeatable. Default: the audience it names.",
)
def inspect(file: Path, key_file: Path | None, signer_file: tuple[Path, ...], audience: tuple[str, ...]) -> int:
    """Show what is in a bundle, without its secrets.

    FILE is a bundle, or a document that contains one; - reads stdin. Without keys only the envelope is shown. Each
    check is printed with its result; exits 65 if one fails. Only a worker knows whether `seq` is new: it is not checked
    here.
    """
    data = read(file)
    checks = _Checks()
    try:
        sealed = checks.run("document", lambda: _extract(data))
        envelope = checks.run("envelope", lambda: bundle.parse_envelope(sealed, max_bytes=bundle.LARGEST_BYTES))
        click.echo(f"bundle: {len(sealed)} bytes, {envelope.form}, encrypted with A256GCM")
        for recipient in envelope.recipients:
            click.echo(f"  recipient {recipient.kid} by {recipient.alg.value}")
        if key_file is None:
            click.echo("not opened: give --key to open it, and --signer to evaluate it")
            return 0
        keys = keys_in(key_file, bundle.OpeningKey.parse_all)
        kid, signed = checks.run("opens", lambda: _open(envelope, keys))
        if not signer_file:
            raise click.UsageError("--key needs --signer too: without it the content cannot be verified")
        trust = _trust(signer_file)
        opened = checks.run(
            "signature, claims, times, grants",
            lambda: bundle.verify(
                signed,
                trust=trust,
                recipient_kid=kid,
                audiences=audience or _claimed_audiences(signed),
                now=datetime.now(UTC),
                origin=str(file),
            ),
        )
    except BundleError:
        if not checks.refused:
            raise  # a key file, not the bundle
        return EX_DATAERR
    _show(opened)
    return 0


def _extract(data: bytes) -> bytes:
    """The bundle in a document; bytes in no form that we know are taken for a bundle, and checked as one."""
    try:
        found = wrapped.find(data)
    except (UnreadableError, WireError) as error:
        raise FormatError(error.message, hint=error.hint) from None
    return data if found is None else found


class _Checks:
    """Prints a verdict for each check, and remembers whether one refused."""

    def __init__(self) -> None:
        self.refused = False

    def run(self, name: str, check: Callable[[], Value]) -> Value:
        try:
            value = check()
        except BundleError as error:
            self.refused = True
            click.echo(f"check {name}: refused, {error.code}: {error.message}")
            if error.hint:
                click.echo(f"  hint: {error.hint}")
            raise
        click.echo(f"check {name}: ok")
        return value


def _open(envelope: bundle.Envelope, keys: Sequence[bundle.OpeningKey]) -> tuple[str, bytes]:
    by_kid = {key.kid: key for key in keys}
    for recipient in envelope.recipients:
        if (key := by_kid.get(recipient.kid)) is not None:
            return key.kid, bundle.decrypt(envelope, key.content_key(recipient))
    ours = ", ".join(sorted(by_kid))
    raise SealError("it is not sealed to this key", hint=f"this key is {ours}", code=bundle.Code.RECIPIENT)


def _trust(paths: Sequence[Path]) -> bundle.Trust:
    entries = [
        {"name": str(path), "key": read(path).decode("utf-8", "replace"), "issuers": ["*"], "audiences": ["*"]}
        for path in paths
    ]
    return bundle.Trust.parse(entries)


def _claimed_audiences(signed: bytes) -> tuple[str, ...]:
    """The audiences that it claims, unverified: they let everything else be checked when no audience is given."""
    try:
        payload = signed.split(b".")[1]
        said = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))["aud"]
    except (ValueError, IndexError, KeyError, TypeError, RecursionError):
        return ()
    audiences = [said] if isinstance(said, str) else said
    return tuple(a for a in audiences if isinstance(a, str)) if isinstance(audiences, list) else ()


def _show(opened: Bundle) -> None:
    """The claims of a bundle that passed every check."""
    now = datetime.now(UTC)
    click.echo(json.dumps(claims.redacted(opened), indent=2, default=str))
    for one in forecasts(opened.grants, opened.routes, opened.lease_until, now):
        click.echo(sentence(one, now))
        for warning in one.warnings:
            click.echo(f"  warning: {warning}")
    left = opened.accept_until - now
    click.echo(
        f"accepted for another {spell(left)}" if left > timedelta(0) else "accepted only within the leeway of clocks"
    )
