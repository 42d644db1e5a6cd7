"""The environment file: pointers to the agent, in the syntax of systemd and of ``sh``.

A variable is read once, when a program starts, and can never be renewed in it. So the file says *where* to ask, not
what the answer is: raw keys win every SDK's chain, mask the agent and go stale. :func:`static_keys` is the explicit
exception, for programs that can use nothing else.

The bearer token of the container endpoint is in the file beside the path of the file that holds it, because Go v1,
opendal, minio and Java read only the variable, and in the URI, because others send none. It is no cloud key: it is
worth nothing off this machine, and on it the group that may read the one file may read the other.

Pure functions: text in, text out. Writing is :func:`agent.host.files.write_atomic`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from agent.core.errors import HostError
from agent.core.model import AwsCredential
from agent.core.secret import Secret
from agent.core.text import instant
from agent.core.variables import passes
from agent.wire import names

#: The metadata services and our own endpoint. A proxy that caught these would see credentials, and adds the
#: ``X-Forwarded-For`` that metadata services refuse.
NO_PROXY_HOSTS: Final = ("127.0.0.1", "localhost", "::1", *names.METADATA_ADDRESSES, "metadata", names.GCE_HOST)

#: Variables that make an AWS SDK or a Google client look elsewhere than at the agent.
MASKING: Final = frozenset(
    {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",  # the old name, which botocore and others still read
        "AWS_CREDENTIAL_EXPIRATION",
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",  # wins over the full URI in most SDKs
        "AWS_EC2_METADATA_DISABLED",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
        "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE",
        "NO_GCE_CHECK",
    }
)

_SPEAKS_AWS: Final = frozenset({"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_METADATA_SERVICE_TIMEOUT"})
"""The pointers of which at least one is set wherever AWS is served."""
_AWS_MASKING: Final = frozenset(name for name in MASKING if name.startswith("AWS_"))
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# systemd drops a variable whose value has a control character beside tab and line feed; a line feed is legal in quotes,
# but one slip of a reader and it begins another variable.
_UNSAFE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
HEADER: Final = "# Written by credential-agent; changes are lost.\n"
_PROXY_NAMES: Final = ("NO_PROXY", "no_proxy")  # curl and Python read one, Go and Ruby both, Java neither


def pointers(
    *,
    address: str,
    aws: bool,
    gcp: bool,
    token_file: str,
    token: Secret | None = None,
    imds_endpoint: bool = True,
    container_uri: bool = True,
    region: str | None = None,
    no_proxy: str = "",
) -> dict[str, str]:
    """The variables that lead every SDK to the agent.

    Args:
        address: our endpoint as ``HOST:PORT``. ``127.0.0.1`` is the only literal that all AWS SDKs accept.
        aws: AWS is configured here. A container URI that answers nothing makes botocore raise rather than go on, so
            leave it out where the agent will never have an AWS identity.
        gcp: Google is served, pending or ended. Never when it is absent: a metadata server that is announced and
            empty turns "not on Google" into errors.
        token_file: the file with the bearer token of the container endpoint.
        token: the token itself, for the SDKs that read only the variable.
        container_uri: lead SDKs to the container endpoint. Not where they refuse the address: they would ask nobody.
        imds_endpoint: lead IMDS clients here too. Needed where nothing redirects 169.254.169.254.
        region: the AWS region, when it is known.
        no_proxy: an existing list of hosts, to which ours are added.

    Returns:
        Names and values, in the order in which a person would want to read them.
    """
    variables: dict[str, str] = {}
    if aws and container_uri:
        # Some clients follow the URI and send no token (minio-py 7.1, minio-go before 7.0.11, aws-lite), so it holds
        # the token, as in ECS's form.
        path = names.EKS_PATH if token is None else names.ECS_PREFIX + token.reveal()
        variables["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"http://{address}{path}"
        variables["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = token_file
        if token is not None:
            variables["AWS_CONTAINER_AUTHORIZATION_TOKEN"] = token.reveal()
    if aws:
        if imds_endpoint:
            # No trailing slash: one client makes //latest of it.
            variables["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = f"http://{address}"
            variables["AWS_METADATA_ENDPOINT"] = f"http://{address}"  # object_store's name for the same thing
            # GDAL's. It asks EC2's metadata only where the firmware says EC2, and before 3.7 knows no full URI.
            variables["CPL_AWS_EC2_API_ROOT_URL"] = f"http://{address}"
            variables["CPL_AWS_AUTODETECT_EC2"] = "NO"
        variables.update(aws_defaults(region))
    if gcp:
        variables.update(google_defaults(address))
    if variables:
        merged = merge_no_proxy(no_proxy)
        variables.update(dict.fromkeys(_PROXY_NAMES, merged))
    return variables


def aws_defaults(region: str | None) -> dict[str, str]:
    """What every AWS SDK is told beside where we are, on the machine and in a container."""
    # botocore asks IMDS once, for one second, and remembers a miss for the life of the client.
    variables = {"AWS_METADATA_SERVICE_TIMEOUT": "5", "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "5"}
    if region is not None:
        variables.update(dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), region))
    return variables


def google_defaults(address: str) -> dict[str, str]:
    """What every Google client is told, on the machine and in a container: the metadata server is at ``address``."""
    return {
        # Go, Java and Rust read the first; C++ and gcloud the second; Python's probe the third.
        **dict.fromkeys(("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP"), address),
        # On a Shielded VM some releases of google-auth would otherwise speak TLS to us.
        "GCE_METADATA_MTLS_MODE": "none",
        "METADATA_SERVER_DETECTION": "assume-present",
        # GDAL asks only where the firmware says Google, and by none of the names above.
        "CPL_MACHINE_IS_GCE": "YES",
        "CPL_GCE_CREDENTIALS_URL": f"http://{address}{names.GCE_TOKEN_PATH}",
    }


_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CREDENTIAL_EXPIRATION")


def static_keys(credential: AwsCredential) -> dict[str, str]:
    """The keys themselves, for ``static = true``: a program that reads them fails when they expire."""
    secret, token = credential.secret_access_key.reveal(), credential.session_token.reveal()
    return dict(zip(_KEYS, (credential.access_key_id, secret, token, instant(credential.expires_at)), strict=True))


def for_root(told: Mapping[str, str], *, own: Mapping[str, str], allow: Iterable[str], static: bool) -> dict[str, str]:
    """What root takes from the file, which the agent's user can write: what the configuration lets an agent write.

    Else whoever has taken over the agent could name a library to load in a program that root starts, or a file for it
    to send.

    Args:
        told: the content.
        own: the operator's variables. Their values are the configuration's, unless a bundle may replace them.
        allow: the operator's patterns of a bundle's variables.
        static: whether the keys themselves are written.
    """
    ours = {*pointers(address="", aws=True, gcp=True, token_file="", token=Secret(""), region="")}
    # Clients send what is in that file to the address beside it: it might be any of root's. The address has the token.
    ours -= {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"}
    ours |= {*_KEYS} if static else set()
    allow = tuple(allow)
    return {
        name: value if name in ours or passes(name, allow) else own[name]
        for name, value in told.items()
        if name in ours or name in own or passes(name, allow)
    }


def merge_no_proxy(existing: str, hosts: Iterable[str] = NO_PROXY_HOSTS) -> str:
    """Add ``hosts`` to a comma-separated list that may hold some already. A lone ``*`` (no proxy at all) stays."""
    listed = [entry for part in existing.split(",") if (entry := part.strip())]
    if "*" in listed:
        return "*"
    seen = {entry.lower() for entry in listed}
    return ",".join([*listed, *(host for host in hosts if host not in seen)])


def overlay(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """The environment for a program started under the agent: ours override, and what masks us is taken out.

    A region that the caller chose stays, and hosts that the caller exempted from the proxy stay exempt. Only the clouds
    that ``variables`` names are unmasked: ``GOOGLE_APPLICATION_CREDENTIALS`` is nobody's business on a machine where
    the agent serves AWS alone.
    """
    masking = set[str]()
    if _SPEAKS_AWS & variables.keys():
        masking |= _AWS_MASKING
    if "GCE_METADATA_HOST" in variables:
        masking |= MASKING - _AWS_MASKING
    merged = {name: value for name, value in environ.items() if name not in masking}
    chosen = {name for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if environ.get(name)}
    merged.update((name, value) for name, value in variables.items() if not chosen or name not in _REGION)
    for name in _PROXY_NAMES:
        if name in variables:
            inherited = environ.get(name) or environ.get("NO_PROXY") or environ.get("no_proxy") or ""
            merged[name] = merge_no_proxy(inherited, variables[name].split(","))
    return merged


_REGION: Final = frozenset({"AWS_REGION", "AWS_DEFAULT_REGION"})


def render_systemd(variables: Mapping[str, str]) -> bytes:
    """The text of an ``EnvironmentFile=``.

    systemd reads no ``$`` in it, but a shell that sources the file would: the four characters that mean something in
    double quotes are escaped, which systemd undoes (systemd.exec(5)).

    Raises:
        HostError: a name or a value cannot stand in such a file.
    """
    lines = [f'{name}="{_DOUBLE_QUOTED.sub(_BACKSLASH, value)}"\n' for name, value in checked(variables)]
    return (HEADER + "".join(lines)).encode()


def parse_systemd(data: bytes) -> dict[str, str]:
    """Read what :func:`render_systemd` wrote. Not a reader of every ``EnvironmentFile=``: only of ours.

    Raises:
        HostError: it is not what we write.
    """
    variables = {}
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise HostError("environment file: expected UTF-8 text") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise HostError(f'environment file: line {number}: expected NAME="value" as the agent writes it')
        variables[match["name"]] = _ESCAPED.sub(r"\1", match["value"])
    return variables


def render_shell(variables: Mapping[str, str]) -> bytes:
    """The same for ``sh``, to be sourced: exports ours, keeps a chosen region, adds to ``NO_PROXY``, unsets what masks.

    Raises:
        HostError: a name or a value cannot stand in such a file.
    """
    masking = sorted(MASKING - variables.keys())
    if not _SPEAKS_AWS & variables.keys():
        masking = [name for name in masking if name not in _AWS_MASKING]
    if "GCE_METADATA_HOST" not in variables:
        masking = [name for name in masking if name in _AWS_MASKING]
    lines = [f"unset {' '.join(masking)}\n"] if masking else []
    for name, value in checked(variables):
        quoted = _single_quoted(value)
        if name in _PROXY_NAMES:
            # In a shell that has a list already, ours is added to it, once.
            lines.append(
                f"case \",${{{name}-}},\" in *,'*',*|*,{quoted},*) ;; "
                f'*) export {name}="${{{name}:+${name},}}"{quoted} ;; esac\n'
            )
        elif name in _REGION:
            lines.append(f'[ -n "${{{name}-}}" ] || export {name}={quoted}\n')
        else:
            lines.append(f"export {name}={quoted}\n")
    return (HEADER + "".join(lines)).encode()


_DOUBLE_QUOTED: Final = re.compile(r'(["\\$`])')
_BACKSLASH: Final = r"\\\1"


_LINE: Final = re.compile(r'(?P<name>[A-Za-z_][A-Za-z0-9_]*)="(?P<value>(?:[^"\\$`]|\\["\\$`])*)"\Z')
_ESCAPED: Final = re.compile(r'\\(["\\$`])')


def _single_quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def checked(variables: Mapping[str, str], what: str = "environment file") -> Iterable[tuple[str, str]]:
    """Names and values, each of which can stand in such a file.

    Raises:
        HostError: one cannot; its words begin with ``what``.
    """
    for name, value in variables.items():
        if not _NAME.match(name):
            raise HostError(f"{what}: expected the name of a variable, got {name!r}")
        if _UNSAFE.search(value):
            raise HostError(f"{what}: {name}: expected no control character in the value")
        yield name, value
