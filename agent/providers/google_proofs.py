"""How is it proved to Google whose token is wanted? With a signed assertion, or a signed request to AWS.

Assertions are signed by joserfc, AWS subject tokens by botocore's signer (:mod:`agent.upstream.sigv4`).

Sources: RFC 7523, Google's pages on OAuth 2.0 for servers and on workload identity federation with AWS.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from agent.core.errors import Denied
from agent.core.google import TOKEN_URL
from agent.core.model import AwsCredential, GcpServiceAccount
from agent.providers.regions import sts_url
from agent.upstream.sigv4 import SigningKeys, signed_headers

#: Google takes no assertion that claims more.
_ASSERTION_LIFE_SECONDS: Final = 3600
#: The same wherever the request is routed: Google's page says so.
_ASSERTION_AUDIENCE: Final = TOKEN_URL


def aws_subject_token(base: AwsCredential, audience: str, region: str, now: datetime) -> str:
    """A signed ``sts:GetCallerIdentity`` request, as Google's token service wants it (it sends it to AWS itself).

    ``x-goog-cloud-target-resource`` is *inside* the signature, as Google's page recommends and google-auth does not
    do: a token caught on the way is then good for this one pool and provider only.
    """
    url = f"{sts_url(region)}?Action=GetCallerIdentity&Version=2011-06-15"
    host = url.removeprefix("https://").partition("?")[0]
    keys = SigningKeys(base.access_key_id, base.secret_access_key, base.session_token)
    headers = signed_headers(
        keys,
        "POST",
        url,
        {"host": host, "x-goog-cloud-target-resource": audience},
        b"",
        service="sts",
        region=region,
        now=now,
    )
    pairs = [{"key": name.lower(), "value": value} for name, value in sorted(headers.items())]
    return quote(msgspec.json.encode({"url": url, "method": "POST", "headers": pairs}))


def signed_assertion(grant: GcpServiceAccount, claims: dict[str, Any], doing: str, now: datetime) -> str:
    """An assertion of a service account (RFC 7523), signed with its key.

    Args:
        grant: whose key signs.
        claims: what is asked for.
        doing: what for, in the words of an error.
        now: when it begins to be good; as the server sees it.

    Raises:
        Denied: the key is none that Google could have given out.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - imported only when a grant needs it
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - as above
    from joserfc import jws  # noqa: PLC0415 - as above
    from joserfc.jwk import RSAKey  # noqa: PLC0415 - as above

    unusable = Denied(f"{doing}: expected a pem rsa private key of 2048 bits or more", code="invalid-key")
    try:
        # The test that p and q are primes is left out: it holds the loop for 70 ms, and finds out only that the sender
        # signed a key that does not work, which Google says as well.
        key = load_pem_private_key(grant.private_key.reveal().encode(), None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise unusable from None  # the parser's own words may quote the key
    if not isinstance(key, RSAPrivateKey) or key.key_size < 2048:
        raise unusable
    issued_at = int(now.timestamp())
    claims = {
        "iss": grant.client_email,
        "aud": _ASSERTION_AUDIENCE,
        "iat": issued_at,
        "exp": issued_at + _ASSERTION_LIFE_SECONDS,
        **claims,
    }
    header = {"alg": "RS256", "typ": "JWT", "kid": grant.private_key_id}
    return jws.serialize_compact(header, msgspec.json.encode(claims), RSAKey.import_key(key), algorithms=["RS256"])
