"""The claims: what a bundle says, by the grammar of FORMAT.md, and how it becomes a :class:`~agent.core.model.Bundle`.

Two stages. :func:`decode_claims` reads the frame: version, who, to whom, when. :func:`decode_content` reads grants and
routes; it runs only once the frame was found to be for us, now, from somebody who may say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, get_args

import msgspec

from agent.bundle.codes import Code
from agent.bundle.envelope import KEY_ID, MAX_RECIPIENTS
from agent.bundle.strict import json_object, shown
from agent.core.errors import PayloadError
from agent.core.model import (
    INSTANCE,
    WORD,
    Action,
    AwsAssumeRole,
    AwsSession,
    Cloud,
    Env,
    GcpExternalAccount,
    GcpServiceAccount,
    GcpToken,
    Grant,
    NumericDate,
    OnExpiry,
    SetAside,
    base_cloud_of,
    base_of,
    cloud_of,
)
from agent.core.secret import Secret
from agent.core.text import printable

VERSION: Final = 1
MAX_GRANTS: Final = 32
MAX_VARIABLES: Final = 64
MAX_AUDIENCES: Final = 256
"""As many as recipients: a bundle for a group is addressed to each of its keys."""
MAX_CHAIN: Final = 5
"""Grants from a routed one down to what it stands on: each link is a request before the first credential is there."""
MAX_SECRET_BYTES: Final = 16_384
MAX_LIST: Final = 64
_CLAIMS_DEPTH: Final = 8

Principal = Annotated[str, msgspec.Meta(pattern=WORD)]
KeyId = Annotated[str, msgspec.Meta(pattern=rf"^{KEY_ID.pattern}")]


STATIC: Final = (AwsSession, GcpToken)
"""Grants that are finished credentials: their own ``expires_at`` ends them."""


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The frame of the claims (RFC 7519 names where it has them). Grants and routes are still raw."""

    ver: Literal[1]
    iss: Principal
    sub: Principal
    jti: Principal
    aud: Principal | Annotated[tuple[Principal, ...], msgspec.Meta(min_length=1, max_length=MAX_AUDIENCES)]
    iat: NumericDate
    exp: NumericDate
    seq: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
    action: Action
    recip: Annotated[tuple[KeyId, ...], msgspec.Meta(min_length=1, max_length=MAX_RECIPIENTS)]
    nbf: NumericDate | None = None
    lease_until: NumericDate | None = None
    on_expiry: OnExpiry | None = None
    grants: Annotated[tuple[dict[str, Any], ...], msgspec.Meta(max_length=MAX_GRANTS)] = ()
    routes: dict[Cloud, str] | None = None

    @property
    def audiences(self) -> tuple[str, ...]:
        """``aud`` as a list: RFC 7519 section 4.1.3 lets a single one be a bare string, and some libraries do."""
        return (self.aud,) if isinstance(self.aud, str) else self.aud


class Content(msgspec.Struct, frozen=True):
    """The content of the claims, checked for consistency."""

    grants: tuple[Grant, ...]
    set_aside: tuple[SetAside, ...]
    routes: dict[Cloud, str]


def decode_claims(payload: bytes) -> Claims:
    """Read the frame of the claims.

    Raises:
        FormatError: code ``json``.
        PayloadError: codes ``version`` and ``claims``.
    """
    raw = json_object(payload, "the claims", depth=_CLAIMS_DEPTH)
    # Before anything else: another version may differ in everything but this.
    version = raw.get("ver")
    if type(version) is not int or version != VERSION:
        raise PayloadError(
            f"claim ver must be {VERSION}" + (f", got {version}" if type(version) is int else ""),
            hint="the sender speaks another version of the format than this agent",
            code=Code.VERSION,
        )
    claims: Claims = _convert(raw, Claims, "claims", Code.CLAIMS)
    if claims.action is Action.WITHDRAW and (claims.grants or claims.routes or claims.lease_until is not None):
        raise PayloadError("a withdrawal must not have grants, routes or lease_until", code=Code.CLAIMS)
    if claims.action is Action.SET and not claims.grants:
        raise PayloadError("a bundle must have at least one grant", hint="to take away, withdraw", code=Code.CLAIMS)
    if len(set(claims.recip)) != len(claims.recip):
        raise PayloadError("claim recip must not name a key twice", code=Code.CLAIMS)
    return claims


def decode_content(claims: Claims) -> Content:
    """Read grants and routes.

    Raises:
        PayloadError: codes ``grant``, ``variable`` and ``route``.
    """
    grants: list[Grant] = []
    set_aside: list[SetAside] = []
    for number, raw in enumerate(claims.grants):
        grant = _grant(raw, f"grants[{number}]")
        if isinstance(grant, SetAside):
            set_aside.append(grant)
        else:
            grants.append(grant)
    ids = [g.id for g in (*grants, *set_aside)]
    if len(set(ids)) != len(ids):
        raise PayloadError("every grant must have an id of its own", code=Code.GRANT)
    if INSTANCE in ids:
        raise PayloadError(f"a grant must not be called {INSTANCE!r}: that is the machine itself", code=Code.GRANT)
    _check_variables(grants)
    _check_bases(grants, set_aside)
    routes = _routes(claims.routes, grants, set_aside) if claims.action is Action.SET else {}
    return Content(grants=tuple(grants), set_aside=tuple(set_aside), routes=routes)


def routed(content: Content) -> Iterator[Grant]:
    """The grants that something is served from: the routed ones and everything they stand on."""
    by_id = {g.id: g for g in content.grants}
    seen: set[str] = set()
    for start in content.routes.values():
        step: str | None = start
        while step is not None and step != INSTANCE and step not in seen:
            seen.add(step)
            yield by_id[step]
            step = base_of(by_id[step])


# ---------------------------------------------------------------------------------------------------------------------
# Grants

_TYPE_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,63}\Z")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_KNOWN: Final = frozenset(str(kind.__struct_config__.tag) for kind in get_args(Grant))
_FREE_TEXT: Final = {"policy"}  # a JSON document: line breaks are its own affair
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HEADER_SAFE: Final = re.compile(r"[\x20-\x7e]+\Z")
_PEM_SAFE: Final = re.compile(r"[\x20-\x7e\r\n]+\Z")


def _grant(raw: dict[str, Any], where: str) -> Grant | SetAside:
    kind = raw.get("type")
    if not isinstance(kind, str) or not _TYPE_NAME.match(kind):
        raise PayloadError(f"{where}.type must be a word of small letters, digits and hyphens", code=Code.GRANT)
    if kind not in _KNOWN:
        grant_id = raw.get("id")
        if not isinstance(grant_id, str) or not _ID.match(grant_id):
            raise PayloadError(f"{where}.id must be 1 to 64 letters, digits, - or _", code=Code.GRANT)
        return SetAside(id=grant_id, type=kind)
    grant: Grant = _convert(raw, Grant, where, Code.GRANT)
    _check_values(grant, where)
    if isinstance(grant, GcpExternalAccount) and (grant.base is None) == (grant.token is None):
        raise PayloadError(f"{where} must have exactly one of base and token", code=Code.GRANT)
    if isinstance(grant, AwsAssumeRole):
        _check_tags(grant, where)
    return grant


def _check_values(value: msgspec.Struct, where: str) -> None:
    """Bound and clean every text of a grant: each of them ends in a header, a URL, a form field or a file."""
    for name in value.__struct_fields__:
        item = getattr(value, name)
        path = f"{where}.{name}"
        if isinstance(item, Secret):
            pattern = _PEM_SAFE if isinstance(value, GcpServiceAccount) else _HEADER_SAFE
            if not pattern.match(item.reveal()) or len(item.reveal()) > MAX_SECRET_BYTES:
                raise PayloadError(
                    f"{path} must be 1 to {MAX_SECRET_BYTES} printable ASCII characters", code=Code.GRANT
                )
        elif isinstance(item, str):
            if name not in _FREE_TEXT and _CONTROL.search(item):
                raise PayloadError(f"{path} must not have control characters", code=Code.GRANT)
        elif isinstance(item, msgspec.Struct):
            _check_values(item, path)
        elif isinstance(item, tuple):
            if len(item) > MAX_LIST:
                raise PayloadError(f"{path} must have at most {MAX_LIST} entries, got {len(item)}", code=Code.GRANT)
            if any(_CONTROL.search(i) for i in item):
                raise PayloadError(f"{path} must not have control characters", code=Code.GRANT)


def _check_tags(grant: AwsAssumeRole, where: str) -> None:
    """The limits of STS on session tags, said here because STS would say them on the worker."""
    if len(grant.tags) > 50:
        raise PayloadError(f"{where}.tags must have at most 50 entries, got {len(grant.tags)}", code=Code.GRANT)
    for key, text in grant.tags.items():
        if not 1 <= len(key) <= 128 or len(text) > 256 or _CONTROL.search(key + text):
            raise PayloadError(f"{where}.tags has a key over 128 or a value over 256 characters", code=Code.GRANT)
    if not set(grant.transitive_tag_keys) <= grant.tags.keys():
        raise PayloadError(f"{where}.transitive_tag_keys must name keys of tags", code=Code.GRANT)


# ---------------------------------------------------------------------------------------------------------------------
# Variables of the environment file

# A signed bundle is still remote input, and a variable is a way to run code (a preloaded library, an interpreter's
# start-up file) or to become somebody else (raw keys win every SDK's chain and never renew). ``env`` is for neither,
# but for opaque values that programs read by name.
_REFUSED_NAMES_TEXT: Final = """
    PATH HOME USER LOGNAME SHELL TMPDIR TEMP TMP IFS PWD OLDPWD ENV BASH_ENV SHELLOPTS BASHOPTS PS4 PROMPT_COMMAND
    CDPATH GLOBIGNORE NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID CREDENTIALS_DIRECTORY
    CLASSPATH JAVA_TOOL_OPTIONS JDK_JAVA_OPTIONS _JAVA_OPTIONS JAVA_OPTS JAVA_HOME
    NODE_OPTIONS NODE_PATH NODE_EXTRA_CA_CERTS PERL5LIB PERL5OPT PERL5DB PERLLIB RUBYLIB RUBYOPT GEM_HOME GEM_PATH
    R_HOME R_PROFILE R_PROFILE_USER R_ENVIRON R_ENVIRON_USER JULIA_LOAD_PATH JULIA_DEPOT_PATH LUA_PATH LUA_CPATH
    LUA_INIT GOFLAGS RUSTC_WRAPPER
    GCONV_PATH LOCPATH NLSPATH HOSTALIASES LOCALDOMAIN RES_OPTIONS RESOLV_HOST_CONF GETCONF_DIR TZDIR TERMINFO
    OPENSSL_CONF OPENSSL_MODULES OPENSSL_ENGINES SSL_CERT_FILE SSL_CERT_DIR SSLKEYLOGFILE REQUESTS_CA_BUNDLE
    CURL_CA_BUNDLE CURL_HOME WGETRC NETRC
    HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY FTP_PROXY
    EDITOR VISUAL PAGER BROWSER MANPAGER LESSOPEN LESSCLOSE SUDO_ASKPASS SSH_ASKPASS SSH_AUTH_SOCK
    BOTO_CONFIG GOOGLE_APPLICATION_CREDENTIALS GOOGLE_API_USE_CLIENT_CERTIFICATE GOOGLE_API_CERTIFICATE_CONFIG
    GOOGLE_OAUTH_ACCESS_TOKEN GOOGLE_CREDENTIALS GOOGLE_GHA_CREDS_PATH NO_GCE_CHECK DETECT_GCP_PRODUCTION
    GS_OAUTH2_REFRESH_TOKEN GCE_METADATA_HOST GCE_METADATA_IP GCE_METADATA_ROOT
"""
_REFUSED_NAMES: Final = frozenset(_REFUSED_NAMES_TEXT.split())
_REFUSED_PREFIXES: Final = (
    "LD_", "DYLD_", "GLIBC_", "MALLOC_", "BASH_FUNC_", "PYTHON", "GIT_", "CLOUDSDK_", "GCE_METADATA_",
)  # fmt: skip
# Of AWS's own only what says where, never who: the rest chooses a credential, a profile, an endpoint or a CA.
_ALLOWED_AWS: Final = frozenset(
    {
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_DEFAULT_OUTPUT",
        "AWS_RETRY_MODE",
        "AWS_MAX_ATTEMPTS",
        "AWS_SDK_UA_APP_ID",
    }
)


def is_refused_variable(name: str) -> bool:
    """Whether a variable of this name could load code, redirect traffic or change who a program is.

    Compared without regard to case, since ``http_proxy`` works like ``HTTP_PROXY``.
    """
    upper = name.upper()
    if upper.startswith("AWS_"):
        return upper not in _ALLOWED_AWS
    return upper in _REFUSED_NAMES or upper.startswith(_REFUSED_PREFIXES)


def _check_variables(grants: list[Grant]) -> None:
    seen: set[str] = set()
    for grant in grants:
        if not isinstance(grant, Env):
            continue
        for name, value in grant.variables.items():
            if is_refused_variable(name):
                raise PayloadError(
                    f"variable {name} of grant {grant.id!r} is not allowed",
                    hint="it could load code, redirect traffic or change the identity of a program",
                    code=Code.VARIABLE,
                )
            if name in seen:
                raise PayloadError(f"variable {name} appears in two grants", code=Code.VARIABLE)
            seen.add(name)
            text = value.reveal()
            if _CONTROL.search(text) or len(text.encode("utf-8")) > MAX_SECRET_BYTES:
                raise PayloadError(
                    f"the value of variable {name} must be at most {MAX_SECRET_BYTES} bytes without line breaks, NUL "
                    "or other control characters",
                    hint="a line break would begin another variable in the environment file; encode it (base64)",
                    code=Code.VARIABLE,
                )
    if len(seen) > MAX_VARIABLES:
        raise PayloadError(f"at most {MAX_VARIABLES} variables are allowed, got {len(seen)}", code=Code.VARIABLE)


# ---------------------------------------------------------------------------------------------------------------------
# Bases and routes


def _check_bases(grants: list[Grant], set_aside: list[SetAside]) -> None:
    by_id = {g.id: g for g in grants}
    unknown = {s.id: s.type for s in set_aside}
    for grant in grants:
        base, cloud = base_of(grant), base_cloud_of(grant)
        if base is None or base == INSTANCE:
            continue
        if base in unknown:
            raise PayloadError(
                f"grant {grant.id!r} stands on {base!r}, whose type {unknown[base]!r} this version does not know",
                code=Code.GRANT,
            )
        if base not in by_id:
            raise PayloadError(f"grant {grant.id!r} stands on {shown(base)!r}, which is not there", code=Code.GRANT)
        if cloud_of(by_id[base]) is not cloud:
            raise PayloadError(f"grant {grant.id!r} must stand on a grant of {cloud}, not {base!r}", code=Code.GRANT)
    for grant in grants:
        length, step = 1, base_of(grant)
        while step is not None and step != INSTANCE:
            length, step = length + 1, base_of(by_id[step])
            # A cycle has no end, so it meets this bound too.
            if length > MAX_CHAIN:
                raise PayloadError(
                    f"grant {grant.id!r} stands on a chain of more than {MAX_CHAIN} grants, or on itself",
                    code=Code.GRANT,
                )


def _routes(claimed: dict[Cloud, str] | None, grants: list[Grant], set_aside: list[SetAside]) -> dict[Cloud, str]:
    if claimed is not None:
        by_id = {g.id: g for g in grants}
        for cloud, grant_id in claimed.items():
            if any(s.id == grant_id for s in set_aside):
                raise PayloadError(
                    f"route {cloud} leads to {shown(grant_id)!r}, whose type this version does not know",
                    code=Code.ROUTE,
                )
            if grant_id not in by_id:
                raise PayloadError(f"route {cloud} leads to {shown(grant_id)!r}, which is not there", code=Code.ROUTE)
            if cloud_of(by_id[grant_id]) is not cloud:
                raise PayloadError(f"route {cloud} leads to {grant_id!r}, which is not of {cloud}", code=Code.ROUTE)
        return dict(claimed)
    out: dict[Cloud, str] = {}
    for cloud in Cloud:
        implied = _implied(cloud, grants, set_aside)
        if implied is not None:
            out[cloud] = implied
    return out


def _implied(cloud: Cloud, grants: list[Grant], set_aside: list[SetAside]) -> str | None:
    """The one grant of ``cloud`` that nothing stands on.

    Anything less plain must be said by the sender: a guess here would hand out a credential that was meant only to
    obtain another, or leave a cloud on the machine's identity.
    """
    bases = {base_of(g) for g in grants}
    mine = [g for g in grants if cloud_of(g) is cloud]
    heads = [g.id for g in mine if g.id not in bases]
    unknown = [s.id for s in set_aside if s.type.startswith(f"{cloud}-")]
    if len(heads) == 1 and not unknown:
        return heads[0]
    if mine or unknown:
        raise PayloadError(
            f"claim routes must say which grant serves {cloud}: {len(heads)} grants could"
            + (", and one has a type this version does not know" if unknown else ""),
            hint=f'give claim routes, such as {{"{cloud}": "<grant id>"}}',
            code=Code.ROUTE,
        )
    return None


# ---------------------------------------------------------------------------------------------------------------------


def _convert(raw: Any, kind: Any, where: str, code: Code) -> Any:
    why = ""
    out: Any = None
    try:
        out = msgspec.convert(raw, kind, dec_hook=_secret)
    except msgspec.ValidationError as error:
        why = str(error)
    if why:
        # msgspec names the expectation and the path, never a value; names of members may be hostile.
        why = why.replace(" - at `$", f" at `{where}").replace("`key` in", "a name in")
        raise PayloadError(shown_sentence(why[:1].lower() + why[1:]), code=code)
    return out


def shown_sentence(text: str) -> str:
    """``text``, printable and bounded, but longer than a name may be."""
    return printable(text[:300])


def _secret(kind: type, value: object) -> object:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    # The type's name only: this text ends in a message.
    raise ValueError(f"expected `str`, got `{type(value).__name__}`")
