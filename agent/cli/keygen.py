"""``keygen``: make a key pair. The public key, which can be piped, goes to stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click

from agent import bundle
from agent.cli.inputs import NEW
from agent.sender import files

_SIGNING_KINDS: Final = {"ed25519": "Ed25519", "es256": "P-256"}
_OPENING_KINDS: Final = {"p256": "P-256", "x25519": "X25519", "rsa": "RSA", "oct": "oct"}


@click.command()
@click.option(
    "--kind",
    type=click.Choice([*_OPENING_KINDS, *_SIGNING_KINDS]),
    default="p256",
    show_default=True,
    help="A worker's key, which opens bundles: p256, x25519, rsa, oct. A sender's key, which signs them: ed25519, "
    "es256.",
)
@click.option("--out", type=NEW, required=True, help="File for the private key (JWK, mode 0600).")
@click.option(
    "--public",
    type=NEW,
    help="Also write the public key to this file. Unlike `>`, this leaves an existing file alone if the command fails.",
)
@click.option("--force", is_flag=True, help="Replace an existing private key.")
def keygen(kind: str, out: Path, public: Path | None, force: bool) -> None:
    """Make a key pair and print its public key.

    The private key goes to a file that only you can read. The public key goes to stdout: a JWK on one line, with its
    RFC 7638 thumbprint as `kid`. Give a worker's public key to those who seal for it. Give a sender's public key to the
    workers that shall accept its bundles. An `oct` key has no public half: whoever seals with it needs the same file.
    """
    if public is not None and (public.parent.resolve(), public.name) == (out.parent.resolve(), out.name):
        raise click.UsageError(f"--public {public}: expected another file than that of the private key")
    key: bundle.SigningKey | bundle.OpeningKey
    if kind in _SIGNING_KINDS:
        key = bundle.SigningKey.generate(_SIGNING_KINDS[kind])  # type: ignore[arg-type]  # the table's values
    else:
        key = bundle.OpeningKey.generate(_OPENING_KINDS[kind])  # type: ignore[arg-type]  # the table's values
    private = {**key.private_jwk(), "kid": key.kid}
    if kind == "oct":
        shown: dict[str, str] = {"kty": "oct", "kid": key.kid}
        if public is not None:
            raise click.UsageError("an oct key has no public half to write")
    else:
        shown = {**key.public_jwk(), "kid": key.kid}
    line = json.dumps(shown, separators=(",", ":"))
    if public is not None:
        files.spare_private_key(public)  # before the other key is replaced
    files.write(out, (json.dumps(private) + "\n").encode(), mode=files.PRIVATE, replace=force)
    told = False
    try:
        if public is not None:
            files.write(public, (line + "\n").encode(), mode=files.PUBLIC, replace=True)
            told = True
        click.echo(line)
    except BaseException:  # Ctrl-C, too
        if not force and not told:  # nobody has its public half, and the next attempt would not replace it
            out.unlink(missing_ok=True)
        raise
