"""The GCE metadata dialect: the tree and its spellings, tokens, service accounts, queries.

Sources: the Compute Engine documentation ("View and query VM metadata", "Authenticate workloads using service
accounts"), recorded answers of the real server, and measured behaviour of the clients, which is stricter:

* ``expires_in`` is a positive JSON integer and ``token_type`` is there: google-cloud-cpp aborts its process on a
  string, object_store and tensorstore fail on a float.
* ``application/json`` is bare, and every answer carries ``Metadata-Flavor: Google``: Node fails without it.
* A missing credential is 403 or 503, never 404: on a 404 pyarrow reports existing objects as not found, and tensorstore
  goes on anonymously. Missing credentials must not look like missing data.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from agent.core.errors import WireError
from agent.core.model import GoogleToken
from agent.core.secret import Secret
from agent.core.strictjson import NotThatShapeError, decode
from agent.wire.http import Response
from agent.wire.names import GCE_FLAVOR, GCE_FLAVOR_HEADER

_COMMON: Final = (
    (GCE_FLAVOR_HEADER, GCE_FLAVOR),
    ("Server", "Metadata Server for VM"),
    ("X-XSS-Protection", "0"),
    ("X-Frame-Options", "SAMEORIGIN"),
)
_APPLICATION_TEXT: Final = ("Content-Type", "application/text")
_APPLICATION_JSON: Final = ("Content-Type", "application/json")
_PLAIN: Final = ("Content-Type", "text/plain; charset=utf-8")

# ---------------------------------------------------------------------------------------------------------------------
# Queries

MAX_HANG_SECONDS: Final = 3600
"""The longest wait of one request with ``wait_for_change``; a client without ``timeout_sec`` asks again."""


class Query(msgspec.Struct, frozen=True):
    """How a client asks for a node: the parameters of its query.

    Attributes:
        alt: ``text`` or ``json``; ``None`` for the node's own form.
        wait_for_change: answer only when the content's ETag differs from ``last_etag``.
        last_etag: ``None``: the ETag of the content as it is now.
        timeout_seconds: answer after so long at the latest, with the content as it is then.
        audience: of an identity token.
        scopes: of an access token; empty: those of the account.
    """

    recursive: bool = False
    alt: str | None = None
    wait_for_change: bool = False
    last_etag: str | None = None
    timeout_seconds: float = MAX_HANG_SECONDS
    audience: str | None = None
    scopes: tuple[str, ...] = ()


def parse_query(raw: str) -> Query:
    """Read the part after ``?``. Names not known are ignored, as the real server does.

    Values are compared without regard to case: the old guest agent sends Python's ``True``.

    Raises:
        WireError: a value that the server would answer with 400.
    """
    if not raw:
        return _NO_QUERY
    given = parameters(raw)
    alt = given.get("alt")
    if alt is not None and alt.lower() not in {"json", "text"}:
        raise WireError("expected alt=json or alt=text")
    timeout = float(MAX_HANG_SECONDS)
    if "timeout_sec" in given:
        text = given["timeout_sec"]
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            raise WireError("expected timeout_sec to be a whole number of seconds")
        timeout = float(min(int(text), MAX_HANG_SECONDS))
    return Query(
        recursive=given.get("recursive", "").lower() == "true",
        alt=None if alt is None else alt.lower(),
        wait_for_change=given.get("wait_for_change", "").lower() == "true",
        last_etag=given.get("last_etag"),
        timeout_seconds=timeout,
        audience=given.get("audience"),
        scopes=tuple(scope for scope in re.split(r"[, ]+", given.get("scopes", "")) if scope),
    )


_NO_QUERY: Final = Query()


def parameters(raw: str) -> dict[str, str]:
    """The parameters of a query; of a repeated one the first, as Go's servers read it.

    Raises:
        WireError: too many, or not UTF-8.
    """
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, max_num_fields=32, errors="strict")
    except ValueError:  # UnicodeDecodeError is one
        raise WireError("expected at most 32 query parameters in utf-8") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        given.setdefault(name, value)
    return given


# ---------------------------------------------------------------------------------------------------------------------
# The tree


class Directory(msgspec.Struct, frozen=True):
    """A directory: entries in the order of the listing.

    Attributes:
        literal: the entries' names are data (keys of attributes, e-mails), so they keep their spelling in JSON; others
            change from ``kebab-case`` to ``camelCase``.
    """

    entries: Mapping[str, Node]
    literal: bool = False


class Action(msgspec.Struct, frozen=True):
    """A leaf that is listed but never part of a recursive answer: ``token``, ``identity``."""


Node = Directory | Action | str | int | tuple[str, ...]
"""A leaf is a text, a number, or several texts (one a line, an array in JSON)."""


def find(root: Directory, path: tuple[str, ...]) -> Node | None:
    """The node at ``path`` below ``root``; ``None`` when there is none."""
    node: Node = root
    for segment in path:
        if not isinstance(node, Directory):
            return None
        found = node.entries.get(segment)
        if found is None:
            return None
        node = found
    return node


def listing(directory: Directory) -> bytes:
    """One name a line; a directory's ends with a slash."""
    return "".join(f"{name}\n" for name in _listed(directory)).encode()


def _listed(directory: Directory) -> Iterator[str]:
    for name, node in directory.entries.items():
        yield name + "/" if isinstance(node, Directory) else name


def to_json(node: Node) -> object:
    """The recursive form, as plain JSON values."""
    if isinstance(node, Directory):
        return {
            name if node.literal else camel(name): to_json(child)
            for name, child in node.entries.items()
            if not isinstance(child, Action)
        }
    if isinstance(node, tuple):
        return list(node)
    return node


def camel(name: str) -> str:
    """``numeric-project-id`` to ``numericProjectId``."""
    first, *rest = name.split("-")
    return first + "".join(part.capitalize() for part in rest)


def kebab(name: str) -> str:
    """``numericProjectId`` to ``numeric-project-id``."""
    return re.sub(r"(?<=[a-z0-9])[A-Z]", lambda match: "-" + match.group().lower(), name)


_LITERAL_BELOW: Final = frozenset({"attributes", "serviceAccounts", "guestAttributes"})


def flatten(value: object, prefix: str = "", *, literal: bool = False) -> Iterator[str]:
    """The recursive form with ``alt=text``: a line ``path value`` for each leaf (``disks/0/type PERSISTENT``)."""
    if isinstance(value, dict):
        for name, child in value.items():
            shown = name if literal else kebab(name)
            yield from flatten(child, f"{prefix}/{shown}" if prefix else shown, literal=name in _LITERAL_BELOW)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from flatten(child, f"{prefix}/{index}" if prefix else str(index))
    elif isinstance(value, bool):
        yield f"{prefix} {'TRUE' if value else 'FALSE'}"
    else:
        yield f"{prefix} {value}"


def render(node: Node, query: Query) -> tuple[bytes, bool]:
    """The body of a node and whether it is JSON.

    A directory without ``recursive`` is its listing; ``recursive`` on a leaf is ignored (gcloud-aio sends it).
    """
    if isinstance(node, Directory):
        if query.recursive:
            tree = to_json(node)
            if query.alt == "text":
                return "".join(line + "\n" for line in flatten(tree, literal=node.literal)).encode(), False
            return msgspec.json.encode(tree), True
        if query.alt == "json":
            return msgspec.json.encode(list(_listed(node))), True
        return listing(node), False
    if query.alt == "json":
        return msgspec.json.encode(to_json(node)), True
    if isinstance(node, tuple):
        return "".join(f"{line}\n" for line in node).encode(), False
    return str(node).encode(), False


def etag(body: bytes) -> str:
    """Sixteen hexadecimal digits that change with the content, as the real server's do."""
    return hashlib.sha256(body).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# Service accounts and tokens


class ServiceAccount(msgspec.Struct, frozen=True):
    """One account as ``?recursive=true`` shows it."""

    email: str
    aliases: tuple[str, ...] = ("default",)
    scopes: tuple[str, ...] = ()


def account_directory(email: str, scopes: tuple[str, ...]) -> Directory:
    """``service-accounts/``: the account under its e-mail and as ``default``."""
    account = Directory(
        {
            "aliases": ("default",),
            "email": email,
            "identity": Action(),
            "scopes": scopes,
            "token": Action(),
        }
    )
    return Directory({email: account, "default": account}, literal=True)


def parse_account(data: bytes) -> ServiceAccount:
    """Read ``service-accounts/default/?recursive=true``.

    Raises:
        WireError: it is no account, or its e-mail is empty.
    """
    try:
        account = decode(data, ServiceAccount)
    except NotThatShapeError:
        raise WireError("expected a gce service account in json, got something else") from None
    if not account.email:
        raise WireError("the gce service account has no email")
    return account


class _Token(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: int
    token_type: str


def render_token(token: GoogleToken, now: datetime) -> bytes:
    """The answer of ``token``. ``expires_in`` is rounded down and at least 1 (0 makes google-auth ask without end)."""
    left = int((token.expires_at - now).total_seconds())
    return msgspec.json.encode(_Token(token.access_token.reveal(), max(1, left), "Bearer"))


def parse_token(data: bytes, now: datetime, *, email: str | None = None, scopes: tuple[str, ...] = ()) -> GoogleToken:
    """Read the answer of ``token``.

    Args:
        data: the body.
        now: the instant at which it was *asked for*, so that the end is never too late.
        email: of the account whose token it is.
        scopes: of the token.

    Raises:
        WireError: it is no such answer, or the token has ended.
    """
    try:
        answer = decode(data, _Token)
    except NotThatShapeError:
        raise WireError("expected a gce access token in json, got something else") from None
    if not answer.access_token or not 0 < answer.expires_in <= 86400 * 7:
        raise WireError("expected a gce access token with a life between a second and a week")
    return GoogleToken(
        access_token=Secret(answer.access_token),
        issued_at=now,
        expires_at=now + timedelta(seconds=answer.expires_in),
        email=email,
        scopes=scopes,
    )


_JWT = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z")


def parse_identity(data: bytes) -> str:
    """Read the answer of ``identity``: a bare JWT (RFC 7515 compact form). Nothing in it is verified here.

    Raises:
        WireError: it does not have the form of a JWT.
    """
    token = data.strip()
    if len(token) > 16384 or not _JWT.match(token):
        raise WireError("expected a json web token from the gce metadata server")
    return token.decode("ascii")


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def content(body: bytes, *, json: bool, tag: str | None = None) -> Response:
    """200, as the real server sends it."""
    kind = _APPLICATION_JSON if json else _APPLICATION_TEXT
    return Response(200, (kind, *_COMMON, ("ETag", etag(body) if tag is None else tag)), body)


def failure(status: int, message: str = "", *headers: tuple[str, str], flavored: bool = True) -> Response:
    """A refusal. SDKs show the body to a person, so it names the cause and the next step.

    Args:
        status: 400 and above.
        message: a sentence, without a final line break.
        *headers: further ones.
        flavored: whether this machine answers as Google at all. If not, not even an error may carry the flavor:
            google-auth and Go take it for proof that they run on GCE.
    """
    body = (message + "\n").encode() if message else b""
    return Response(status, (_PLAIN, *(_COMMON if flavored else ()), *headers), body)


def redirect(location: str) -> Response:
    """301 to the directory, whose path ends with a slash. ``location`` must hold the query, or clients lose it."""
    return Response(301, (_PLAIN, *_COMMON, ("Location", location)), b"")
