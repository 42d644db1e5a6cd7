"""OpenID Connect tokens that prove who this machine is to somebody else's token service."""

from __future__ import annotations

import os
import stat
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from agent.core.errors import Denied, Transient
from agent.core.model import WebToken, WebTokenFile, WebTokenGce, WebTokenInline, WebTokenUrl
from agent.core.secret import Secret
from agent.core.strictjson import NotThatShapeError, decode
from agent.core.text import os_reason
from agent.host.patience import Patience, StalledError
from agent.providers.refusals import from_upstream, refusal
from agent.providers.remote import AllowList
from agent.upstream import GceMetadata, NotHere, Upstream, UpstreamError, by_gce
from agent.wire.names import ENROL_AUDIENCE_PREFIX, GCE_IDENTITY_PATH

#: ``WebIdentityToken`` of ``sts:AssumeRoleWithWebIdentity`` is at most 20,000 characters.
MAX_TOKEN_BYTES: Final = 20_000


class WebTokens:
    """Gets the token that a grant names, and looks anew each time: somebody else keeps it fresh.

    Args:
        upstream: the way out.
        allowed: which URLs a grant may name.
        timeout_seconds: for one request, start to end.
        directories: where ``file`` tokens may lie.
        gce: the worker's own metadata server, if it is a GCE machine.
    """

    def __init__(
        self,
        upstream: Upstream,
        allowed: AllowList,
        directories: tuple[str, ...],
        gce: GceMetadata | None,
        timeout_seconds: float,
    ) -> None:
        self._upstream = upstream
        self._allowed = allowed
        self._directories = directories
        self._gce = gce
        self._timeout_seconds = timeout_seconds
        self._patience = Patience()  # a file may lie on a mount that hangs

    async def fetch(self, source: WebToken) -> Secret:
        """Get the token.

        Raises:
            Denied: the source is not allowed, or says no.
            Transient: it is not there now.
        """
        match source:
            case WebTokenInline():
                return source.token
            case WebTokenFile():
                return await self._read(source.path)
            case WebTokenUrl():
                return await self._fetch_url(source)
            case WebTokenGce():
                return (await fetch_gce_identity(self._gce, source.audience))[0]

    async def _read(self, path: str) -> Secret:
        try:
            data = await self._patience.ask(Path(path), partial(_read_confined, path, self._directories))
        except StalledError:
            raise Transient("identity token: the file does not answer", code="file") from None
        return _token(data)

    async def _fetch_url(self, source: WebTokenUrl) -> Secret:
        doing = "identity token"
        reach = self._allowed.check(source.url, doing)
        headers = {"Accept": "application/json" if source.field is not None else "*/*"}
        if source.authorization is not None:
            headers["Authorization"] = source.authorization.reveal()
        try:
            answer = await self._upstream.request(
                "GET",
                source.url,
                headers=headers,
                timeout_seconds=self._timeout_seconds,
                max_bytes=MAX_TOKEN_BYTES * 2,
                reach=reach,
            )
        except UpstreamError as error:
            raise from_upstream(error, doing) from None
        if answer.status != 200:
            raise refusal(answer)(
                f"{doing}: expected 200, got {answer.status}",
                code=f"http-{answer.status}",
                pause_seconds=answer.pause_seconds,
            )
        if source.field is None:
            return _token(answer.body)
        try:
            document = decode(answer.body, dict[str, msgspec.Raw])
            value = decode(bytes(document[source.field]), str)
        except (NotThatShapeError, KeyError):
            raise Transient(f"{doing}: no text field {source.field!r} in the answer", code="protocol") from None
        return _token(value.encode())


async def fetch_gce_identity(gce: GceMetadata | None, audience: str) -> tuple[Secret, datetime | None]:
    """The identity token of the GCE machine itself for ``audience``, and the server's ``Date``.

    Raises:
        Denied: this is no GCE machine, or it has no service account.
        Transient: its metadata server does not answer.
    """
    if audience.startswith(ENROL_AUDIENCE_PREFIX):
        # Neither a worker nor a bundle's signer gets a token that says "this machine's key is mine".
        raise Denied("gce identity token: this audience is kept for the machine's own agent", code="unsupported")
    if gce is None:
        raise Denied("gce identity token: this machine is not configured as a gce instance", code="unsupported")
    return await ask_gce_identity(gce, audience)


async def ask_gce_identity(gce: GceMetadata, audience: str) -> tuple[Secret, datetime | None]:
    """The same for any audience: for the agent itself.

    Raises:
        Denied, Transient: as there.
    """
    doing = "gce identity token"
    try:
        answer = await gce.request("GET", f"{GCE_IDENTITY_PATH}?audience={quote(audience, safe='')}&format=full")
    except NotHere as error:
        raise Denied(f"{doing}: {error.message}", code="unsupported") from None
    except UpstreamError as error:
        raise from_upstream(error, doing) from None
    if answer.status == 200:
        return _token(answer.body), answer.date
    if answer.status < 500 and not by_gce(answer):
        # Also where a host leaves the mark out of its errors: "not found" would be taken for good.
        raise Transient(
            f"{doing}: status {answer.status} without the metadata server's mark",
            code="stranger",
            server_time=answer.date,
            pause_seconds=answer.pause_seconds,
        )
    if answer.status == 404:
        raise Denied(f"{doing}: this instance has no service account", code="unsupported", server_time=answer.date)
    raise refusal(answer)(
        f"{doing}: expected 200, got {answer.status}",
        code=f"http-{answer.status}",
        server_time=answer.date,
        pause_seconds=answer.pause_seconds,
    )


def _token(data: bytes) -> Secret:
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable() or " " in text:
        raise Transient("identity token: expected one line of printable ascii", code="protocol")
    if len(text) > MAX_TOKEN_BYTES:
        raise Transient(f"identity token: expected at most {MAX_TOKEN_BYTES} bytes", code="protocol")
    return Secret(text)


def _read_confined(path: str, directories: tuple[str, ...]) -> bytes:
    """Read the regular file that ``path`` leads to, if it lies below one of ``directories``.

    Symbolic links are followed, because the usual writers of such files (projected volumes) put the token behind two
    of them; where they lead is checked twice. Before opening, so that no device outside is touched; and on the opened
    descriptor, because whoever may write below the directory could swap a link in between.
    """
    roots = [Path(os.path.realpath(directory)) for directory in directories]
    resolved = Path(os.path.realpath(path))
    if not any(resolved.is_relative_to(root) for root in roots):
        raise Denied(
            "identity token: the file is outside the allowed directories",
            hint="add its directory to the allowed directories of the configuration",
            code="file-not-allowed",
        )
    try:
        descriptor = os.open(resolved, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise Transient(f"identity token: cannot open the file: {os_reason(error)}", code="file") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Denied("identity token: not a regular file", code="file-not-allowed")
        opened = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not any(opened.is_relative_to(root) for root in roots):
            raise Denied("identity token: the file moved outside the allowed directories", code="file-not-allowed")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_TOKEN_BYTES + 2)  # one more than the limit, and a final newline
    except OSError as error:
        raise Transient(f"identity token: cannot read the file: {os_reason(error)}", code="file") from None
    finally:
        os.close(descriptor)
