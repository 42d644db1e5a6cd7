"""The bundle: a sealed, signed message that carries credentials to workers. FORMAT.md is its specification.

This package is a codec: bytes to values and back, strict in both directions, no I/O, no clock. It does not remember
accepted bundles (the store does) and holds no keys (:mod:`agent.keys` does).

For a control plane written in Python the face is small::

    from agent import bundle

    sender = bundle.SigningKey.parse(signing_jwk_text)
    worker = bundle.RecipientKey.parse(worker_public_jwk_or_pem_text)
    sealed = bundle.seal(
        signer=sender,
        recipients=[worker],
        issuer="https://control.example",
        subject="user:alice",
        audiences=[bundle.audience_cluster("c-42")],
        now=datetime.now(UTC),
        grants=[{"type": "aws-session", "id": "alice", "access_key_id": ..., ...}],
    )

What is promised: the names in ``__all__`` and the format. A producer written from FORMAT.md in another language makes
bundles that every later agent of the same ``ver`` accepts, unless accepting them turns out to be a security hole.
"""

from __future__ import annotations

from agent.bundle.claims import is_refused_variable
from agent.bundle.codes import Code
from agent.bundle.envelope import (
    LARGEST_BYTES,
    MAX_BYTES,
    MEDIA_TYPE,
    Envelope,
    KeyAlg,
    Recipient,
    parse_envelope,
)
from agent.bundle.jwk import (
    OpeningKey,
    RecipientKey,
    SigningKey,
    VerifyKey,
    checked_content_key,
    content_key_from_secret,
    ephemeral_public_key_der,
)
from agent.bundle.key_text import thumbprint
from agent.bundle.open import LEEWAY, decrypt, verify
from agent.bundle.seal import (
    DEFAULT_ACCEPT,
    audience_aws_instance,
    audience_cluster,
    audience_gcp_instance,
    audience_key,
    seal,
)
from agent.bundle.short_key import read_short_key, short_key
from agent.bundle.trust import Signer, Trust

__all__ = [
    "DEFAULT_ACCEPT",
    "LARGEST_BYTES",
    "LEEWAY",
    "MAX_BYTES",
    "MEDIA_TYPE",
    "Code",
    "Envelope",
    "KeyAlg",
    "OpeningKey",
    "Recipient",
    "RecipientKey",
    "Signer",
    "SigningKey",
    "Trust",
    "VerifyKey",
    "audience_aws_instance",
    "audience_cluster",
    "audience_gcp_instance",
    "audience_key",
    "checked_content_key",
    "content_key_from_secret",
    "decrypt",
    "ephemeral_public_key_der",
    "is_refused_variable",
    "parse_envelope",
    "read_short_key",
    "seal",
    "short_key",
    "thumbprint",
    "verify",
]
