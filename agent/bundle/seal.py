"""Sealing: what a control plane or a laptop does. The worker never does this.

Sealing is by joserfc, with the algorithm list closed to ours; opening is not. So every round trip of ours is read by
another implementation than the one that wrote it. A new bundle is first read by the worker's own rules: a bundle that
a worker would refuse is refused here, where somebody can still mend it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from agent.bundle.claims import VERSION, decode_claims, decode_content
from agent.bundle.codes import Code
from agent.bundle.envelope import INNER_TYPE, LARGEST_BYTES, OUTER_TYPE, KeyAlg
from agent.bundle.jwk import RecipientKey, SigningKey
from agent.core.errors import FormatError
from agent.core.model import Action, Cloud, Grant, OnExpiry
from agent.core.secret import reveal

DEFAULT_ACCEPT: Final = timedelta(hours=1)
"""How long a bundle may be accepted unless said otherwise: a boot takes minutes, a queue for capacity may take longer
(then say so), and until ``exp`` a lost older bundle could be played to a worker that has seen none."""

AUDIENCE_PREFIX: Final = "urn:credbundle"


def audience_cluster(cluster_id: str) -> str:
    """The audience of every worker of a cluster (or fleet, or job: whatever the configuration names)."""
    return f"{AUDIENCE_PREFIX}:cluster:{cluster_id}"


def audience_aws_instance(account_id: str, region: str, instance_id: str) -> str:
    """The audience of one EC2 instance, as the instance identity document names it."""
    return f"{AUDIENCE_PREFIX}:instance:aws:{account_id}:{region}:{instance_id}"


def audience_gcp_instance(project_id: str, instance_id: str) -> str:
    """The audience of one GCE instance: project id, and the *numeric* instance id, which is never used twice."""
    return f"{AUDIENCE_PREFIX}:instance:gcp:{project_id}:{instance_id}"


def audience_key(kid: str) -> str:
    """The audience of whoever holds the worker key ``kid``."""
    return f"{AUDIENCE_PREFIX}:key:{kid}"


def seal(
    *,
    signer: SigningKey,
    recipients: Sequence[RecipientKey],
    issuer: str,
    subject: str,
    audiences: Sequence[str],
    now: datetime,
    grants: Sequence[Grant | Mapping[str, Any]] = (),
    routes: Mapping[Cloud, str] | None = None,
    seq: int | None = None,
    action: Action = Action.SET,
    not_before: datetime | None = None,
    accept_until: datetime | None = None,
    lease_until: datetime | None = None,
    on_expiry: OnExpiry | None = None,
    bundle_id: str | None = None,
    form: Literal["general", "flattened", "compact"] = "general",
) -> bytes:
    """Sign and encrypt a bundle.

    Args:
        signer: the key that workers have pinned.
        recipients: the worker keys that can open it; one of them is enough to open it.
        issuer: claim ``iss``: which control plane or sender speaks. A worker pins it together with the key.
        subject: claim ``sub``: the stream that ``seq`` counts in: a user, a cluster, a profile.
        audiences: which workers it is for: see :func:`audience_cluster` and its siblings. One that fits is enough.
        now: the present instant, aware UTC: ``iat``.
        grants: :mod:`agent.core.model` structs, or mappings with the members of FORMAT.md.
        routes: which grant each cloud is served from; may be left out when there is only one candidate for each.
        seq: must be larger than that of every earlier bundle of this issuer and subject, withdrawals included. By
            default the milliseconds since 1970, which needs no memory but a clock that does not go back.
        action: ``set``, or ``withdraw`` to take away at once what is served.
        not_before: accepted from then on; by default at once.
        accept_until: last acceptance; by default :data:`DEFAULT_ACCEPT` from now. Not the end of serving.
        lease_until: serve no longer than this, whatever the credentials would allow.
        on_expiry: what a worker does when the last credential has ended; by default its configuration says.
        bundle_id: claim ``jti``; by default a UUIDv7.
        form: the serialization. ``compact`` is the shortest and fits one recipient only.

    Returns:
        The sealed bundle, ASCII: any channel may carry it, nobody on the way can read or alter it.

    Raises:
        FormatError: the keys, or the size.
        PayloadError: the claims, with the code a worker would give.
        ValueError: an instant is naive.
    """
    kids = [r.kid for r in recipients]
    if not kids or len(set(kids)) != len(kids):
        raise FormatError("at least one recipient is needed, and each only once", code=Code.RECIPIENTS)
    if form != "general" and len(kids) != 1:
        raise FormatError(f"the {form} form has exactly one recipient, got {len(kids)}", code=Code.RECIPIENTS)
    instants = {
        "iat": now,
        "nbf": not_before,
        "exp": accept_until or now + DEFAULT_ACCEPT,
        "lease_until": lease_until,
    }
    claims: dict[str, Any] = {
        "ver": VERSION,
        "iss": issuer,
        "sub": subject,
        "jti": bundle_id or _uuid7(now),
        "aud": list(audiences),
        **{name: _numeric_date(instant) for name, instant in instants.items() if instant is not None},
        "seq": int(now.timestamp() * 1000) if seq is None else seq,
        "action": str(action),
        "recip": kids,
        "on_expiry": None if on_expiry is None else str(on_expiry),
        "grants": [_plain(g) for g in grants] if action is Action.SET else None,
        "routes": None if routes is None else {str(c): g for c, g in routes.items()},
    }
    payload = json.dumps(
        {k: v for k, v in claims.items() if v is not None}, separators=(",", ":"), ensure_ascii=False
    ).encode("utf-8")
    # A bundle that our own workers would refuse is refused here.
    decode_content(decode_claims(payload))
    sealed = _encrypt(_sign(payload, signer), recipients, form)
    if len(sealed) > LARGEST_BYTES:
        raise FormatError(f"a bundle must be at most {LARGEST_BYTES} bytes, got {len(sealed)}", code=Code.SIZE)
    return sealed


def _sign(payload: bytes, signer: SigningKey) -> bytes:
    from joserfc import jws  # noqa: PLC0415 - 7 MB that a worker never needs

    registry = jws.JWSRegistry(algorithms=[signer.alg])
    registry.max_payload_length = LARGEST_BYTES
    header = {"alg": signer.alg, "typ": INNER_TYPE, "kid": signer.kid}
    return jws.serialize_compact(header, payload, _peer(signer.private_jwk()), registry=registry).encode("ascii")


def _encrypt(signed: bytes, recipients: Sequence[RecipientKey], form: str) -> bytes:
    from joserfc import jwe  # noqa: PLC0415 - as above

    registry = jwe.JWERegistry(algorithms=[*(a.value for a in KeyAlg), "A256GCM"])
    protected = {"typ": OUTER_TYPE, "cty": INNER_TYPE, "enc": "A256GCM"}
    if form == "compact":
        (only,) = recipients
        header = {**protected, "alg": only.alg.value, "kid": only.kid}
        return jwe.encrypt_compact(header, signed, _peer(only.jwk()), registry=registry).encode("ascii")
    message = (jwe.GeneralJSONEncryption if form == "general" else jwe.FlattenedJSONEncryption)(protected, signed)
    for recipient in recipients:
        message.add_recipient({"alg": recipient.alg.value, "kid": recipient.kid}, _peer(recipient.jwk()))
    out = jwe.encrypt_json(message, None, registry=registry)
    return json.dumps(out, separators=(",", ":")).encode("ascii")


def _peer(jwk: dict[str, str]) -> Any:
    """Our key as joserfc's."""
    from joserfc import jwk as peer  # noqa: PLC0415 - as above

    kinds: dict[str, Any] = {"EC": peer.ECKey, "OKP": peer.OKPKey, "RSA": peer.RSAKey, "oct": peer.OctKey}
    return kinds[jwk["kty"]].import_key(jwk)


def _plain(grant: Grant | Mapping[str, Any]) -> dict[str, Any]:
    out = msgspec.to_builtins(grant, enc_hook=reveal)
    return {k: v for k, v in out.items() if v is not None}


def _numeric_date(instant: datetime) -> int:
    if instant.tzinfo is None:
        raise ValueError("instants must be aware (UTC), got a naive datetime")
    return int(instant.timestamp())


def _uuid7(now: datetime) -> str:
    """A UUIDv7 (RFC 9562 section 5.7): sortable by time. Python has it from 3.14."""
    value = int(now.timestamp() * 1000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    digits = f"{value:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
