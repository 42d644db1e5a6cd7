"""Checks a credential that an upstream minted, before anybody is given it: can it be sent, and does its end make sense?

The codec checks the credentials of a bundle. Minted ones end in the same headers, files and JSON documents, so the same
rule holds for them (FORMAT.md: printable ASCII, space to ``~``, 16,384 characters at most): a line feed in a token
would write a second line into every client's request head and into the environment file.

A value that breaks a rule is the upstream's fault, and may be gone next time: the held credential stays.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

import msgspec

from agent.core.errors import Transient
from agent.core.model import AwsCredential
from agent.core.secret import Secret

_HEADER_SAFE: Final = re.compile(r"[\x20-\x7e]{1,16384}\Z")

#: ``GetSessionToken`` with 36 hours is the longest that AWS gives; ``AssumeRole`` ends at twelve.
LONGEST_AWS: Final = timedelta(hours=36)
#: Google's tokens live an hour; twelve with an organisation policy.
LONGEST_GOOGLE: Final = timedelta(hours=12)


def sendable(doing: str, server_time: datetime | None, *secrets: Secret) -> None:
    """Refuse values that no header can hold.

    Raises:
        Transient: code ``unsafe-secret``. The text says nothing of the value.
    """
    if not all(_HEADER_SAFE.match(secret.reveal()) for secret in secrets):
        raise Transient(
            f"{doing}: expected 1 to 16384 printable ascii characters as a secret, got something else",
            code="unsafe-secret",
            server_time=server_time,
        )


def capped(
    credential: AwsCredential, now: datetime, said_at: datetime | None, asked: timedelta = LONGEST_AWS
) -> AwsCredential:
    """``credential`` with an end that AWS could have given it, having been asked for so long.

    Capped and not refused: brokers and emulators do write ends of years, the secret in the document works all the
    same, and a nearer end only makes us ask again sooner.

    Args:
        credential: not ended yet.
        now: our time.
        said_at: the ``Date`` of the answer.
        asked: how long a life was asked for; the most that AWS gives, when nobody asked.
    """
    # Either clock may be wrong: an end that is credible by one of them is left as it is. A difference cannot
    # overflow, whatever both are.
    if min(credential.expires_at - now, credential.expires_at - (said_at or now)) <= asked:
        return credential
    return msgspec.structs.replace(credential, expires_at=now + asked)
