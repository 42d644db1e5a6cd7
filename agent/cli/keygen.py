"""``keygen``: make a key pair. The public key, which can be piped, goes to stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click

from agent import bundle
from agent.cli.inputs import NEW
from agent.core.errors import HostError
from agent.sender import files

_SIGNING_KINDS: Final = {"ed25519": "Ed25519", "es256": "P-256"}
_OPENING_KINDS: Final = {"p256": "P-256", "x25519": "X25519", "rsa": "RSA", "oct": "oct"}


@click.command()
@click.option(
    "--kind",
    type=click.Choice([*_OPENING_KINDS, *_SIGNING_KINDS]),
    default="p256",
    show_default=True,
    help="p256, x25519, rsa, oct open bundles (a worker's key); ed25519, es256 sign them (a sender's key).",
)
@click.option("--out", type=NEW, required=True, help="Where the private key goes, as a JWK, mode 0600.")
@click.option(
    "--public",
    type=NEW,
    help="Also write the public key to this file; with `>` a shell empties it first, whatever follows.",
)
@click.option("--force", is_flag=True, help="Replace a key that is there already.")
def keygen(kind: str, out: Path, public: Path | None, force: bool) -> None:
    """Make a key pair; print its public half.

    The private key is written as a JWK that only you may read. The public key, a JWK on one line with its RFC 7638
    thumbprint as `kid`, goes to stdout: give a worker's to whoever seals for it, a sender's to the workers that are to
    believe it. An `oct` key has no public half: whoever seals with it needs the same file.
    """
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
    files.write(out, (json.dumps(private) + "\n").encode(), mode=files.PRIVATE, replace=force)
    if public is not None:
        try:
            files.write(public, (line + "\n").encode(), mode=files.PUBLIC, replace=True)
        except HostError:
            if not force:  # nobody has its public half, and the next attempt would not replace it
                out.unlink(missing_ok=True)
            raise
    click.echo(line)
