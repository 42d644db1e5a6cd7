"""AWS's outbound identity federation: what ``sts:GetWebIdentityToken`` gives, and the keys of its issuer.

Written from the API reference of GetWebIdentityToken, and "Understanding token claims" and "Getting started with outbound
identity federation" of the IAM user guide. Each account that has enabled it has an issuer of its own.
"""

from __future__ import annotations

import json
import secrets
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

NAMESPACE = "https://sts.amazonaws.com/"


class RefusedError(Exception):
    """A refusal, with the status and the code of the API reference."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Issuer:
    """The issuer of one account.

    Attributes:
        origins: of sessions that were federated, by the ARN of the role session: the subject that their identity provider
            chose, which ``SubjectMode=OriginIdentity`` asks for.
        instances: of sessions that EC2 delivered: the instance's ARN, likewise.
    """

    account: str
    region: str = "us-east-1"
    origins: dict[str, str] = field(default_factory=dict)
    instances: dict[str, str] = field(default_factory=dict)
    url: str = field(default_factory=lambda: f"https://{uuid.uuid4()}.tokens.sts.global.api.aws")
    _keys: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._keys = {
            "RS256": RSAKey.generate_key(2048, {"kid": "RSA_0", "use": "sig", "alg": "RS256"}),
            "ES384": ECKey.generate_key("P-384", {"kid": "EC384_0", "use": "sig", "alg": "ES384"}),
        }

    def jwks(self) -> bytes:
        """The document at ``/.well-known/jwks.json``."""
        return json.dumps(KeySet([*self._keys.values()]).as_dict(private=False)).encode()

    def token(self, asked: dict[str, str], arn: str, ends: datetime | None, now: datetime) -> tuple[str, datetime]:
        """A token for the caller, and its end.

        Args:
            asked: the parameters of the query protocol.
            arn: of the caller.
            ends: when the caller's session does.
            now: the server's time.
        """
        audiences = [asked[name] for name in sorted(asked) if name.startswith("Audience.member.")]
        if not 1 <= len(audiences) <= 10 or not all(1 <= len(one) <= 1000 for one in audiences):
            raise RefusedError(400, "ValidationError", "1 validation error detected: Value at 'audience'")
        algorithm = asked.get("SigningAlgorithm", "")
        if algorithm not in self._keys:
            raise RefusedError(400, "ValidationError", "1 validation error detected: Value at 'signingAlgorithm'")
        seconds = int(asked.get("DurationSeconds", "300"))
        if not 60 <= seconds <= 3600:
            raise RefusedError(400, "ValidationError", "1 validation error detected: Value at 'durationSeconds'")
        until = now.replace(microsecond=0) + timedelta(seconds=seconds)
        if ends is not None and until > ends:
            raise RefusedError(403, "SessionDurationEscalationException", "it would extend the session")
        role = self._principal(arn)
        claims: dict[str, Any] = {
            "iss": self.url,
            "aud": audiences[0] if len(audiences) == 1 else audiences,
            "sub": self.origins.get(arn, role) if asked.get("SubjectMode") == "OriginIdentity" else role,
            "iat": int(now.timestamp()),
            "exp": int(until.timestamp()),
            "jti": secrets.token_hex(16),
            NAMESPACE: {"aws_account": self.account, "source_region": self.region, "principal_id": role},
        }
        if arn in self.instances:
            claims[NAMESPACE] |= {"ec2_source_instance_arn": self.instances[arn], "ec2_role_delivery": "2"}
        key = self._keys[algorithm]
        return jwt.encode({"alg": algorithm, "kid": key.kid, "typ": "JWT"}, claims, key, algorithms=[algorithm]), until

    def _principal(self, arn: str) -> str:
        """Of a role's session the role; of a user the user."""
        kind, _, rest = arn.split(":", 5)[5].partition("/")
        return f"arn:aws:iam::{self.account}:role/{rest.partition('/')[0]}" if kind == "assumed-role" else arn
