"""Where Google issues tokens: its hosts, each written once.

Sources: "Using OAuth 2.0 for Server to Server Applications" and "OpenID Connect" (developers.google.com/identity), the
references of the Security Token Service API and of the IAM Service Account Credentials API (cloud.google.com).
"""

from __future__ import annotations

from typing import Final

OAUTH_ORIGIN: Final = "https://oauth2.googleapis.com"
STS_ORIGIN: Final = "https://sts.googleapis.com"
IAM_CREDENTIALS_ORIGIN: Final = "https://iamcredentials.googleapis.com"
ACCOUNTS_HOST: Final = "accounts.google.com"
ACCOUNTS_ORIGIN: Final = f"https://{ACCOUNTS_HOST}"

TOKEN_ORIGINS: Final = (OAUTH_ORIGIN, STS_ORIGIN, IAM_CREDENTIALS_ORIGIN, ACCOUNTS_ORIGIN)

TOKEN_PATH: Final = "/token"  # noqa: S105 - a path
STS_PATH: Final = "/v1/token"
TOKEN_URL: Final = f"{OAUTH_ORIGIN}{TOKEN_PATH}"
"""OAuth 2.0: refresh tokens, and assertions of service accounts, whose audience it is."""
STS_URL: Final = f"{STS_ORIGIN}{STS_PATH}"
"""Token exchange (RFC 8693)."""
