"""Grants from the Google identity of this computer: its application default credentials.

By default a short access token is minted and sent: it ends within the hour and nothing renews it. Secrets that renew
themselves (a user's refresh token, a service account's key) are sent only when asked for by name: whoever opens the
bundle then holds them until they are revoked.

Errors: everything raises :class:`~agent.core.errors.UsageError` (ask for something else),
:class:`~agent.core.errors.Denied` or :class:`~agent.core.errors.Transient`.

Spec: AIP-4110 (application default credentials), AIP-4111 to 4117 for each kind.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.core.errors import Denied, Transient, UsageError
from agent.core.model import (
    CLOUD_PLATFORM,
    Cloud,
    GcpAuthorizedUser,
    GcpImpersonation,
    GcpServiceAccount,
    GcpToken,
    Grant,
)
from agent.core.secret import Secret
from agent.core.strictjson import NotThatShapeError, decode
from agent.sender import Collected
from agent.sender.files import read

USERINFO: Final = "https://openidconnect.googleapis.com/v1/userinfo"
TIMEOUT_SECONDS: Final = 15

# These escape google-auth when a file lacks a member, or when a proxy answers in the place of Google.
_ODD: Final = (ValueError, LookupError, TypeError, AttributeError)

_TRY: Final = "does `gcloud auth application-default print-access-token` work here?"
_EXCHANGED: Final = "is the provider's token still good, and does the pool accept it? sign in with the provider again"

_OAUTH_CODES: Final = frozenset(
    {
        "access_denied",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "invalid_target",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)
"""Of RFC 6749 and RFC 8693: all others, and answers without one, may pass."""

# (method, url, body, headers, timeout=) -> an object with .status, .headers, .data: google-auth's transport interface.
Transport = Callable[..., Any]


class GcpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to make of the local identity.

    Attributes:
        scopes: what the token is to be good for.
        impersonate: a service account whose token is sent instead (least privilege).
        lifetime: of an impersonated token.
        send_refresh_token: send the user's refresh token, for the worker to renew with.
        send_key: send the service account's key, likewise.
        project_id: told to programs that ask for their project; ``None``: what the local identity says.
        adc_file: where the application default credentials are; only long-lived secrets are read from it directly.
    """

    scopes: tuple[str, ...] = (CLOUD_PLATFORM,)
    impersonate: str | None = None
    lifetime: timedelta = timedelta(hours=1)
    send_refresh_token: bool = False
    send_key: bool = False
    project_id: str | None = None
    adc_file: Path | None = None
    grant_id: str = "gcp"


def from_adc(options: GcpOptions, *, now: datetime, transport: Transport | None = None) -> Collected:
    """Turn the application default credentials of this computer into grants.

    Args:
        options: what to make of them.
        now: aware UTC.
        transport: how google-auth reaches the network; ``None`` for its own.

    Raises:
        Denied: there are none, they were revoked, or they may not do what was asked.
        Transient: Google could not be reached.
    """
    request = transport or _transport()
    if options.send_refresh_token or options.send_key:
        return _renewable(options)
    credentials, project = _load(options, request)
    project = options.project_id or project
    if options.impersonate is not None:
        from google.auth import impersonated_credentials  # noqa: PLC0415 - only when it is needed

        impersonated: Any = impersonated_credentials.Credentials  # google-auth types none of it
        credentials = impersonated(
            source_credentials=credentials,
            target_principal=options.impersonate,
            target_scopes=list(options.scopes),
            lifetime=int(options.lifetime.total_seconds()),
        )
    else:
        credentials = _call(lambda: _narrowed(credentials, options))
    _call(lambda: credentials.refresh(request))
    ends = _end(credentials)
    if ends is None or ends <= now:
        raise Denied("Google gave a token whose end is not known, or past", code="no-expiry")
    email = options.impersonate or _email(credentials, request)
    grant = GcpToken(
        id=options.grant_id,
        access_token=Secret(credentials.token),
        expires_at=int(ends.timestamp()),
        email=email,
        scopes=options.scopes,
        project_id=project,
    )
    said = () if email else ("whose Google token it is could not be found out; programs that ask will not be told",)
    return Collected(
        cloud=Cloud.GCP, grants=(grant,), route=grant.id, who=email or _federated(credentials), warnings=said
    )


def _narrowed(credentials: Any, options: GcpOptions) -> Any:
    """The credentials for the scopes that were named. google-auth leaves a user's as they are, with all that they have.

    Raises:
        UsageError: of this kind Google narrows none.
    """
    from google.auth.credentials import Scoped  # noqa: PLC0415 - only when it is needed
    from google.oauth2.credentials import Credentials as User  # noqa: PLC0415 - as above

    if options.scopes == (CLOUD_PLATFORM,) or isinstance(credentials, Scoped):
        return credentials
    user: Any = User  # google-auth types none of it
    if isinstance(credentials, user):
        return user.from_authorized_user_info(json.loads(credentials.to_json()), scopes=list(options.scopes))
    raise UsageError(
        f"the token of this Google identity ({type(credentials).__name__}) has all that the identity may do: --scope "
        "cannot narrow it",
        hint="impersonate a service account, whose token can be narrowed (--impersonate)",
    )


def authorized(options: GcpOptions, transport: Transport | None = None) -> tuple[Any, Transport]:
    """The local credentials and a transport, for calls of our own (a metadata update).

    Raises:
        Denied: there are no credentials.
    """
    request = transport or _transport()
    credentials, _ = _load(options, request)
    return credentials, request


def _load(options: GcpOptions, request: Transport) -> tuple[Any, str | None]:
    import google.auth  # noqa: PLC0415 - only when it is needed

    default: Any = google.auth.default
    try:
        found: tuple[Any, str | None] = _call(lambda: default(scopes=list(options.scopes), request=request))
    except Denied as error:
        if error.code == "no-credentials" and options.adc_file is not None and options.adc_file.exists():
            # Somebody meant to have one: what is wrong with it is worth more than that there is none.
            raise Denied(error.message, hint=_TRY, code="unusable") from None
        raise
    return found


class _AdcFile(msgspec.Struct, frozen=True):
    """The file that ``gcloud auth application-default login`` and the console's key download write (AIP-4110)."""

    type: str
    client_id: str = ""
    client_secret: str = ""
    refresh_token: str = ""
    account: str = ""
    quota_project_id: str | None = None
    client_email: str = ""
    private_key_id: str = ""
    private_key: str = ""
    project_id: str | None = None
    source_credentials: _AdcFile | None = None
    service_account_impersonation_url: str = ""
    delegates: tuple[str, ...] | None = None


def _renewable(options: GcpOptions) -> Collected:
    """The long-lived secret with which the worker can renew, from the file; google-auth does not tell it."""
    adc = _read_adc(options.adc_file)
    target = options.impersonate
    delegates: tuple[str, ...] = ()
    if adc.type == "impersonated_service_account" and adc.source_credentials is not None:
        # .../serviceAccounts/EMAIL:generateAccessToken (AIP-4115)
        theirs = adc.service_account_impersonation_url.rpartition("/")[2].partition(":")[0]
        delegates = tuple(one.rpartition("/")[2] for one in adc.delegates or ())
        if target not in (None, theirs):
            # It is the account of this sign-in that may impersonate it, and not whoever signed in.
            delegates = (*delegates, theirs)
        target = target or theirs
        adc = adc.source_credentials
    base_id = options.grant_id if target is None else f"{options.grant_id}-base"
    # Whoever impersonates needs the scope for that: the scopes that are named are those of the token in the end.
    of_base = options if target is None else msgspec.structs.replace(options, scopes=(CLOUD_PLATFORM,))
    base, who = _long_lived(adc, of_base, base_id)
    said = f"the long-lived Google credential of {who} is sent: whoever opens the bundle holds it until it is revoked"
    if target is None:
        return Collected(cloud=Cloud.GCP, grants=(base,), route=base_id, who=who, warnings=(said,))
    grant = GcpImpersonation(
        id=options.grant_id,
        target_principal=target,
        base=base_id,
        delegates=delegates,
        scopes=options.scopes,
        lifetime_seconds=int(options.lifetime.total_seconds()),
        project_id=options.project_id or adc.project_id,
    )
    grants: tuple[Grant, ...] = (base, grant)
    return Collected(cloud=Cloud.GCP, grants=grants, route=grant.id, who=f"{target} by way of {who}", warnings=(said,))


def _read_adc(path: Path | None) -> _AdcFile:
    hint = "sign in with `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
    if path is None or not path.exists():
        raise Denied("there are no application default credentials on this computer", hint=hint, code="no-credentials")
    broken = ""
    try:
        return msgspec.json.decode(read(path), type=_AdcFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # A position or the name of a member, never a value.
        broken = str(error) if isinstance(error, msgspec.MsgspecError) else "not plain JSON"
    raise Denied(f"{path}: not application default credentials: {broken}", hint=hint, code="no-credentials")


def _long_lived(adc: _AdcFile, options: GcpOptions, grant_id: str) -> tuple[Grant, str]:
    project = options.project_id or adc.project_id
    if adc.type == "service_account":
        if not options.send_key:
            raise UsageError(
                "the local Google identity is a service account's key, not a user",
                hint="send the key with --send-service-account-key, or a one-hour token by leaving both out",
            )
        key = GcpServiceAccount(
            id=grant_id,
            client_email=adc.client_email,
            private_key_id=adc.private_key_id,
            private_key=Secret(adc.private_key),
            scopes=options.scopes,
            project_id=project,
        )
        return key, adc.client_email
    if adc.type == "authorized_user":
        if not options.send_refresh_token:
            raise UsageError(
                "the local Google identity is a user, not a service account's key",
                hint="send the refresh token with --send-refresh-token, or a one-hour token by leaving both out",
            )
        user = GcpAuthorizedUser(
            id=grant_id,
            client_id=adc.client_id,
            client_secret=Secret(adc.client_secret),
            refresh_token=Secret(adc.refresh_token),
            email=adc.account or None,
            # Unless it is narrowed: all that the sign-in has, among it the scope that tells whose it is.
            scopes=() if options.scopes == (CLOUD_PLATFORM,) else options.scopes,
            project_id=project,
            quota_project_id=adc.quota_project_id,
        )
        return user, adc.account or "this user"
    raise UsageError(
        f"the local Google identity (of type {adc.type[:64]!r}) has nothing long-lived to send",
        hint="send a one-hour token by leaving out --send-refresh-token and --send-service-account-key",
    )


def _end(credentials: Any) -> datetime | None:
    """The true end of the token. google-auth holds naive UTC."""
    expiry = credentials.expiry
    return expiry.replace(tzinfo=UTC) if isinstance(expiry, datetime) else None


def _email(credentials: Any, request: Transport) -> str | None:
    """The owner of the token: by the credential itself, or else by Google; ``None`` when neither knows."""
    for name in ("service_account_email", "account"):
        known = getattr(credentials, name, None)
        if isinstance(known, str) and "@" in known:
            return known
    try:
        # In a header, never in the URL: URLs are logged by everyone on the way.
        answer = _call(
            lambda: request(
                USERINFO,
                method="GET",
                headers={"Authorization": f"Bearer {credentials.token}"},
                timeout=TIMEOUT_SECONDS,
            )
        )
        if answer.status != 200:
            return None
        return decode(answer.data, _UserInfo).email
    except (Denied, Transient, NotThatShapeError):
        return None


def _federated(credentials: Any) -> str:
    """What an identity without an address is called: one of a pool (AIP-4117), by the provider that vouches for it."""
    # //iam.googleapis.com/[projects/NUMBER/]locations/global/(workloadIdentityPools|workforcePools)/POOL/providers/NAME
    parts = str(getattr(credentials, "_audience", None) or "").split("/")
    pool = next((at for at, part in enumerate(parts) if part in {"workloadIdentityPools", "workforcePools"}), None)
    if pool is None or len(parts) <= pool + 3:
        return type(credentials).__name__
    return f"an identity of {parts[pool + 3]} in the pool {parts[pool + 1]}"[:200]


class _UserInfo(msgspec.Struct):
    email: str | None = None


def _transport() -> Transport:
    """google-auth's usual one: this computer's proxies and certificate authorities count, as for its user's programs.

    That needs the package ``requests``, which is beside every Google client; without it neither is known.
    """
    try:
        from google.auth.transport.requests import Request  # noqa: PLC0415 - only when it is needed
    except ImportError:
        return _plain_transport()
    make: Any = Request  # google-auth types none of it
    request = make()
    # A callable is an identity of its own: ~/.netrc is not looked into for one that would take the token's place.
    request.session.auth = lambda asked: asked
    return functools.partial(request, timeout=TIMEOUT_SECONDS)


def _plain_transport() -> Transport:
    import google.auth.transport.urllib3  # noqa: PLC0415 - only when it is needed
    import urllib3  # noqa: PLC0415

    pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=5, read=TIMEOUT_SECONDS))
    request: Any = google.auth.transport.urllib3.Request
    made: Transport = request(pool)
    return made


def _call(function: Callable[[], Any]) -> Any:
    """Call google-auth; every way it fails becomes an error of ours."""
    from google.auth import exceptions  # noqa: PLC0415 - only when it is needed

    try:
        return function()
    except exceptions.DefaultCredentialsError as error:
        raise Denied(
            f"there is no usable Google identity on this computer: {_first_sentence(error)}",
            hint="sign in with `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
            code="no-credentials",
        ) from None
    except exceptions.TransportError as error:
        raise Transient(f"Google cannot be reached: {_first_sentence(error)}", code="network") from None
    except exceptions.RefreshError as error:
        if getattr(error, "retryable", False):
            raise Transient(f"Google could not renew the local identity: {_first_sentence(error)}") from None
        raise Denied(
            f"Google refused the local identity: {_first_sentence(error)}",
            hint="sign in again with `gcloud auth application-default login`",
            code="invalid_grant",
        ) from None
    except exceptions.OAuthError as error:
        # Of an exchange, whatever its status. Only the code: the description repeats the token that was exchanged.
        if (code := _oauth_code(error)) is None:
            raise Transient("Google could not exchange the local identity", code="network") from None
        raise Denied(f"Google refused the local identity: {code}", hint=_EXCHANGED, code=code) from None
    except exceptions.GoogleAuthError as error:
        raise Denied(f"the local Google identity cannot be used: {_first_sentence(error)}", hint=_TRY) from None
    except _ODD as error:
        raise Denied(
            "the local Google identity cannot be used: an answer or a file is not as google-auth expects it "
            f"({type(error).__name__})",
            hint=_TRY,
        ) from None


def _oauth_code(error: Exception) -> str | None:
    try:
        code = decode(str(error.args[1]).encode(), _OAuthRefusal).error
    except (NotThatShapeError, IndexError, UnicodeEncodeError):
        return None
    return code if code in _OAUTH_CODES else None


class _OAuthRefusal(msgspec.Struct):
    error: str = ""


def _first_sentence(error: Exception) -> str:
    """The first words of google-auth's error. The rest may be a whole answer, in which a token could stand."""
    said = str(error.args[0]) if error.args else type(error).__name__
    words = said.split("\n")[0].split(". ")[0].split()
    return " ".join(map(_plain, words))[:200].rstrip(".")


def _plain(word: str) -> str:
    """A word that may be read. What an address asks for may be a secret; a long word is a path, an address, or one."""
    if word.lstrip("'\"(").startswith(("/", "~", "http")):
        return word.partition("?")[0]
    return word if len(word) <= 40 else "..."
