"""The closed list of refusals: every ``BundleError.code`` that opening a bundle can end in.

FORMAT.md documents the same words (a test compares the two). They are for logs, metrics and acknowledgements, so they
are stable: a word is never renamed, and never used for another thing.
"""

from __future__ import annotations

import enum


class Code(enum.StrEnum):
    """Why a bundle was not accepted."""

    # The bytes (FormatError).
    SIZE = "size"
    ENCODING = "encoding"
    JSON = "json"
    HEADER = "header"
    ALGORITHM = "algorithm"
    RECIPIENTS = "recipients"
    KEY = "key"

    # The seals (SealError).
    RECIPIENT = "recipient"
    UNWRAP = "unwrap"
    CONTENT = "content"
    SIGNER = "signer"
    SIGNATURE = "signature"

    # The claims (PayloadError).
    VERSION = "version"
    CLAIMS = "claims"
    ISSUER = "issuer"
    AUDIENCE = "audience"
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    FAR_FUTURE = "far-future"
    LEASE = "lease"
    FORWARDED = "forwarded"
    GRANT = "grant"
    ROUTE = "route"
    VARIABLE = "variable"
    CHANGED = "changed"

    # The store, which refuses by a verdict and raises nothing: listed here so that the list is one.
    ROLLBACK = "rollback"
    CONFLICT = "conflict"

    # The key service (KeyUnavailableError): not a refusal, try the same bytes again.
    KEY_UNAVAILABLE = "key-unavailable"
