"""Opening: from an envelope and its content key to a verified :class:`~agent.core.model.Bundle`.

In two halves, because the content key may come from a KMS and this package does no I/O: :func:`parse_envelope` says who
may open it, the caller obtains the content key (:mod:`agent.keys`), and :func:`decrypt` and :func:`verify` do the rest.

The signature inside is not a luxury. Every recipient of a bundle knows its content key and could encrypt other words to
its peers under it; and anybody at all can encrypt to a public key. Encryption keeps the secret, only the signature says
who speaks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agent.bundle.claims import STATIC, Claims, Content, decode_claims, decode_content, routed
from agent.bundle.codes import Code
from agent.bundle.envelope import INNER_TYPE, KEY_ID, Envelope
from agent.bundle.strict import base64url, json_object, shown
from agent.bundle.trust import Signer, Trust
from agent.core.clock import utc
from agent.core.errors import FormatError, PayloadError, SealError
from agent.core.model import Action, Bundle
from agent.core.text import instant, spell

LEEWAY: Final = timedelta(seconds=60)
"""How far two honest clocks may differ (RFC 7519 section 4.1.4 allows "a few minutes"; we estimate ours)."""
FARTHEST: Final = timedelta(days=366)
"""No instant in a bundle may be farther ahead: it is a mistake (milliseconds, usually) or a way to own a worker
for good."""

_JWS_PARTS: Final = 3
_JWS_MEMBERS: Final = {"alg", "typ", "kid"}
_JWS_ALGS: Final = ("ES256", "Ed25519", "EdDSA")


def decrypt(envelope: Envelope, content_key: bytes) -> bytes:
    """Decrypt the content: the inner JWS, still unverified.

    Args:
        envelope: from :func:`~agent.bundle.envelope.parse_envelope`.
        content_key: 32 bytes.

    Raises:
        SealError: code ``content``: the content or the protected header was altered, or the key is another's.
    """
    plain: bytes | None
    try:
        plain = AESGCM(content_key).decrypt(envelope.iv, envelope.ciphertext + envelope.tag, envelope.protected)
    except InvalidTag:
        plain = None
    if plain is None:
        raise SealError("the content does not match its seal: damaged or tampered with", code=Code.CONTENT)
    return plain


def verify(
    signed: bytes,
    *,
    trust: Trust,
    recipient_kid: str,
    audiences: Collection[str],
    now: datetime,
    accepted_digest: str | None = None,
    origin: str = "",
    names: Collection[str] = (),
) -> Bundle:
    """Verify what was inside and read it. The order is that of FORMAT.md; the first failure ends it.

    The steps before (size, container, choosing a recipient, unwrapping, decrypting) are behind us. The high-water mark
    of ``seq`` is *not* checked here: it is memory, and belongs to the store.

    Args:
        signed: the decrypted content.
        trust: the pinned signers.
        recipient_kid: the key that opened it.
        audiences: what this worker answers to.
        now: the present instant, aware UTC.
        accepted_digest: the digest of a bundle that this instance accepted before and now reads again after a restart.
            The content must be that one; its instants were checked when it was accepted, and are not checked again, or
            a restart after ``exp`` would lose a live credential. What has ended since is the store's to say.
        origin: the source it came from, kept in the result.
        names: those of the audiences that are the machine's name, as its metadata services say.

    Returns:
        The bundle. It is genuine, for us and timely; it is not yet accepted.

    Raises:
        FormatError: codes ``encoding``, ``json``, ``header``, ``algorithm``: not a JWS of the grammar.
        SealError: codes ``signer``, ``signature``.
        PayloadError: the claims; every other code.
    """
    # 6. The inner JWS: three parts, exactly the three header parameters, an algorithm of the list.
    signing_input, header, payload, signature = _parse_jws(signed)

    # 7. The signer is one that is pinned, and signs with its own algorithm, whatever the header would like.
    signer = trust.signer(header["kid"])
    if signer is None:
        raise SealError(
            f"no pinned signer has the key id {shown(header['kid'])}",
            hint="add the sender's public key to the signers of the configuration, or check who sent this",
            code=Code.SIGNER,
        )
    if header["alg"] not in signer.key.algs:
        raise SealError(f"signer {signer.name} does not sign with {header['alg']}", code=Code.SIGNER)

    # 8. The signature.
    if not signer.key.verifies(signature, signing_input):
        raise SealError(f"the signature is not that of signer {signer.name}", code=Code.SIGNATURE)
    digest = hashlib.sha256(signing_input).hexdigest()
    if accepted_digest is not None and digest != accepted_digest:
        raise PayloadError("this is not the bundle that was accepted before", code=Code.CHANGED)

    # 9. The frame of the claims.
    claims = decode_claims(payload)

    # 10. The issuer is one that this signer may speak as.
    if not signer.may_issue(claims.iss):
        raise PayloadError(f"signer {signer.name} may not speak as issuer {shown(claims.iss)}", code=Code.ISSUER)

    # 11. It is addressed to us, in a way that this signer may address us.
    named = _by_name_alone(claims, signer, audiences, names)

    # 12. Now is the time. 13. The lease is one that this signer may give.
    if accepted_digest is None:
        _check_times(claims, now)
        _check_lease(claims, signer, now)

    # 14. Our key is one that the signer sealed it to: a fellow recipient cannot pass it on under another.
    if recipient_kid not in claims.recip:
        raise PayloadError(
            f"it was opened with key {recipient_kid}, to which the signer did not seal it",
            hint="somebody who could read it sealed it again; or claim recip lacks a recipient",
            code=Code.FORWARDED,
        )

    # 15. Grants, variables, routes. 16. What is routed is not over already.
    content = decode_content(claims)
    if accepted_digest is None:
        _check_credentials(content, now)
    bundle = _bundle(claims, content, signer)
    return msgspec.structs.replace(bundle, digest=digest, recipient=recipient_kid, origin=origin, named=named)


def _parse_jws(signed: bytes) -> tuple[bytes, dict[str, Any], bytes, bytes]:
    parts = signed.split(b".")
    if len(parts) != _JWS_PARTS:
        raise FormatError(
            f"the content must be a compact JWS of {_JWS_PARTS} parts, got {len(parts)}",
            hint="a bundle is signed first, then encrypted",
            code=Code.ENCODING,
        )
    header = json_object(base64url(parts[0], "the signature's header"), "the signature's header", depth=1)
    foreign = header.keys() - _JWS_MEMBERS
    if foreign:
        raise FormatError(f"the signature's header must not have {shown(min(foreign))!r}", code=Code.HEADER)
    if header.get("typ") != INNER_TYPE:
        # An explicit type keeps any other JWT of the same signer from passing as a bundle (RFC 8725 section 3.11).
        raise FormatError(f"the signature's header must have typ {INNER_TYPE!r}", code=Code.HEADER)
    if header.get("alg") not in _JWS_ALGS:
        raise FormatError(f"the signature's alg must be one of {', '.join(_JWS_ALGS)}", code=Code.ALGORITHM)
    kid = header.get("kid")
    if not isinstance(kid, str) or not KEY_ID.match(kid):
        raise FormatError("the signature's header must have a kid of 1 to 256 plain characters", code=Code.HEADER)
    payload = base64url(parts[1], "the claims")
    return parts[0] + b"." + parts[1], header, payload, base64url(parts[2], "the signature")


def _by_name_alone(claims: Claims, signer: Signer, audiences: Collection[str], names: Collection[str]) -> bool:
    """Whether it is addressed to us by one of ``names`` only.

    Raises:
        PayloadError: it is not addressed to us, or not by whom it may be.
    """
    mine = [a for a in claims.audiences if a in audiences]
    if not mine:
        raise PayloadError(
            f"it is addressed to {', '.join(shown(a) for a in claims.audiences[:3])}"
            + (" and others" if len(claims.audiences) > 3 else "")
            + ", none of which is this worker",
            hint="this worker answers to: " + (", ".join(sorted(audiences)) or "nothing"),
            code=Code.AUDIENCE,
        )
    rightly = [a for a in mine if signer.may_address(a)]
    if not rightly:
        raise PayloadError(f"signer {signer.name} may not address {shown(mine[0])}", code=Code.AUDIENCE)
    return all(a in names for a in rightly)


def _check_times(claims: Claims, now: datetime) -> None:
    not_before = claims.iat if claims.nbf is None else claims.nbf
    if claims.exp <= max(claims.iat, not_before):
        raise PayloadError("claim exp must be later than iat and nbf", code=Code.CLAIMS)
    for name, at in (("iat", claims.iat), ("nbf", not_before)):
        _check_near(name, at, now)
        if utc(at) > now + LEEWAY:
            raise PayloadError(
                f"claim {name} is {spell(utc(at) - now, seconds=True)} ahead of this worker's clock",
                hint="is a clock wrong?",
                code=Code.NOT_YET_VALID,
            )
    _check_near("exp", claims.exp, now)
    if utc(claims.exp) + LEEWAY <= now:
        raise PayloadError(
            f"it could be accepted until {instant(utc(claims.exp))}, {spell(now - utc(claims.exp), seconds=True)} ago",
            hint="seal a new one; claim exp must leave time for the worker to boot",
            code=Code.EXPIRED,
        )


def _lease(claims: Claims, signer: Signer) -> datetime | None:
    if claims.lease_until is not None:
        return utc(claims.lease_until)
    if signer.max_lease is not None and claims.action is Action.SET:
        # Silence is not a longer lease than the longest that may be asked for.
        return utc(claims.iat) + signer.max_lease
    return None


def _check_lease(claims: Claims, signer: Signer, now: datetime) -> None:
    if claims.lease_until is not None:
        _check_near("lease_until", claims.lease_until, now)
    lease = _lease(claims, signer)
    if lease is not None and lease <= now:
        raise PayloadError(f"its lease ended {spell(now - lease, seconds=True)} ago", code=Code.LEASE)
    if claims.lease_until is None:
        return
    if claims.lease_until <= claims.iat:
        raise PayloadError("claim lease_until must be later than iat", code=Code.CLAIMS)
    if signer.max_lease is not None and utc(claims.lease_until) - utc(claims.iat) > signer.max_lease:
        raise PayloadError(
            f"signer {signer.name} may lease for {spell(signer.max_lease, seconds=True)} at most, "
            f"got {spell(utc(claims.lease_until) - utc(claims.iat), seconds=True)}",
            code=Code.LEASE,
        )


def _check_credentials(content: Content, now: datetime) -> None:
    """A bundle whose credential is over could only take away what is served now; for that there is withdrawal."""
    for grant in content.grants:
        if isinstance(grant, STATIC):
            _check_near(f"expires_at of grant {grant.id!r}", grant.expires_at, now)
    for grant in routed(content):
        if isinstance(grant, STATIC) and utc(grant.expires_at) <= now:
            raise PayloadError(
                f"the credential of grant {grant.id!r} ended {spell(now - utc(grant.expires_at), seconds=True)} ago",
                hint="seal a live one, or a grant that the worker can renew",
                code=Code.EXPIRED,
            )


def _check_near(name: str, instant: int, now: datetime) -> None:
    if utc(instant) > now + FARTHEST:
        raise PayloadError(
            f"{name} is more than {FARTHEST.days} days ahead",
            hint="instants are in seconds since 1970, not milliseconds",
            code=Code.FAR_FUTURE,
        )


def _bundle(claims: Claims, content: Content, signer: Signer) -> Bundle:
    return Bundle(
        issuer=claims.iss,
        subject=claims.sub,
        bundle_id=claims.jti,
        seq=claims.seq,
        digest="",
        action=claims.action,
        issued_at=utc(claims.iat),
        not_before=utc(claims.iat if claims.nbf is None else claims.nbf),
        accept_until=utc(claims.exp),
        lease_until=_lease(claims, signer),
        grants=content.grants,
        routes=content.routes,
        on_expiry=claims.on_expiry,
        set_aside=content.set_aside,
        signer=signer.name,
        signer_kid=signer.kid,
    )
