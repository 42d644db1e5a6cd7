"""Shows the real server's directories without the hidden parts, and with our accounts in place of the machine's.

A hidden value must not show in a tag either, nor by a wait that ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from agent.core.model import Cloud
from agent.core.strictjson import NotThatShapeError, decode
from agent.serve.gce_accounts import Accounts
from agent.serve.gce_answers import UPSTREAM_SILENT, decided, tagged
from agent.serve.hiding import Hiding, folded
from agent.serve.proxy import LARGE_BYTES, Proxy, relisted, target
from agent.serve.waiting import Watch
from agent.wire import gce
from agent.wire.http import Request, Response

_ACCOUNTS: Final = ("instance", "service-accounts")
_MADE: Final = (("identity",), ("token",))  # of an account: what the real server makes, not looks up
_HANG_MARGIN_SECONDS: Final = 5.0
"""The real server answers a long poll at its end, not before: this much later we give up."""
_TOO_LARGE: Final = gce.failure(503, "too large as text; ask for alt=json")
_MAX_TEXT_CHARACTERS: Final = 1 << 22
_LINES_AT_ONCE: Final = 1000

FORWARDED_PARAMETERS: Final = (
    "audience", "format", "licenses", "scopes",
    # OS Login: the C library of any program asks by these who a user is.
    "username", "uid", "groupname", "gid", "email", "policy", "pagesize", "pagetoken",
)  # fmt: skip


class Directories:
    """Asks the real server.

    Args:
        proxy: the way to it.
        hiding: what is hidden.
        watch: what is served.
        accounts: ours.
    """

    def __init__(self, proxy: Proxy, hiding: Hiding, watch: Watch, accounts: Accounts) -> None:
        self._proxy = proxy
        self._hiding = hiding
        self._watch = watch
        self._accounts = accounts
        self._last_large: tuple[tuple[Any, ...], bytes, Response] | None = None  # what was shown of it

    def forget(self) -> None:
        """Something else is served now: nothing is kept of what was."""
        self._last_large = None

    async def ask(self, request: Request, below: tuple[str, ...], query: gce.Query) -> Response | None:
        """Ask the real server; of a directory, what may be shown."""
        if not query.recursive and not self._hiding.lists(below):
            return await self._fetch(request, query, alt=query.alt)
        # A hidden value must not show in the tag either, nor by a wait that ends: the tags of directories are ours, and
        # a change of something hidden is none.
        ends = asyncio.get_running_loop().time() + query.timeout_seconds
        alt = "json" if query.recursive and (self._hiding.lists(below) or query.alt == "text") else query.alt
        known = query.last_etag
        ask, had_bytes = msgspec.structs.replace(query, wait_for_change=False), 0
        while True:
            answer = await self._fetch(request, ask, alt=alt, had_bytes=had_bytes)
            if answer is None or answer.status != 200:
                return answer
            shown = await self._rendered(answer, below, query)
            if not query.wait_for_change or shown.status != 200:
                return shown
            tag, left = answer.header("ETag"), ends - asyncio.get_running_loop().time()
            known = shown.header("ETag") if known is None else known
            if shown.header("ETag") != known or tag is None or left < 1:
                return shown
            ask, had_bytes = msgspec.structs.replace(query, last_etag=tag, timeout_seconds=left), len(answer.body)
            del answer, shown  # hundreds may wait, each with a megabyte

    async def _fetch(
        self, request: Request, query: gce.Query, *, alt: str | None, had_bytes: int = 0
    ) -> Response | None:
        # With or without the final slash: we do not rely on it that the real server redirects.
        return await self._proxy.fetch(
            "GET",
            target(request.segments, slash=request.slash, query=_canonical(request.query, query, alt=alt)),
            hang_seconds=query.timeout_seconds + _HANG_MARGIN_SECONDS if query.wait_for_change else 0.0,
            had_bytes=had_bytes,
            made=folded(request.segments[2:4]) == _ACCOUNTS and folded(request.segments[5:6]) in _MADE,
            asker=request.asker,
        )

    async def _rendered(self, answer: Response, below: tuple[str, ...], query: gce.Query) -> Response:
        """The visible part; a large answer is rendered once, however many ask, and as text in slices."""
        if len(answer.body) <= LARGE_BYTES:
            return self._shown(answer, below, query)
        # Time alone ends what is served, too.
        managed, accounts = decided(self._watch.look(Cloud.GCP)), self._accounts.directory()
        key = (below, query.recursive, query.alt, self._watch.served.version, managed, accounts)
        last = self._last_large
        if last is not None and last[0] == key and last[1] == answer.body:
            return last[2]
        if query.recursive and query.alt == "text":
            shown = await self._as_text(self._shown(answer, below, msgspec.structs.replace(query, alt="json")), below)
        else:
            shown = self._shown(answer, below, query)
        self._last_large = (key, answer.body, shown)
        return shown

    @staticmethod
    async def _as_text(shown: Response, below: tuple[str, ...]) -> Response:
        if shown.status != 200:
            return shown
        try:
            tree = decode(shown.body)
        except NotThatShapeError:
            return shown  # a leaf that is no JSON: ``recursive`` means nothing there
        lines, size = [], 0
        for line in gce.flatten(tree, literal=below[-1:] == ("attributes",)):
            lines.append(line + "\n")
            size += len(line)
            if size > _MAX_TEXT_CHARACTERS:
                # Each line repeats the names above it: a megabyte of JSON can be made to be a gigabyte of text.
                return _TOO_LARGE
            if not len(lines) % _LINES_AT_ONCE:
                await asyncio.sleep(0)
        return gce.content("".join(lines).encode(), json=False)

    def _shown(self, answer: Response, below: tuple[str, ...], query: gce.Query) -> Response:
        """A directory's answer without the hidden parts, under a tag of the rest."""
        managed = decided(self._watch.look(Cloud.GCP))
        if query.recursive:
            return self._shown_tree(answer, below, query, managed=managed)

        def gone(name: str) -> bool:
            return self._hiding.hides((*below, name), decided=managed)

        return _relisted_json(answer, gone) if query.alt == "json" else tagged(relisted(answer, gone))

    def _shown_tree(self, answer: Response, below: tuple[str, ...], query: gce.Query, *, managed: bool) -> Response:
        is_json = (answer.header("Content-Type") or "").startswith("application/json")
        if not is_json and not self._hiding.lists(below):
            return answer  # a leaf: ``recursive`` means nothing there
        try:
            tree = decode(answer.body)
            shown = self._hiding.pruned(tree, below, decided=managed)
        except (NotThatShapeError, RecursionError):
            return UPSTREAM_SILENT
        if managed and below in {(), ("instance",)} and isinstance(shown, dict):
            shown = self._with_our_accounts(shown, below)
        if query.alt == "text":
            literal = below[-1:] == ("attributes",)
            lines = gce.flatten(shown, literal=literal) if isinstance(shown, dict | list) else (str(shown),)
            return gce.content("".join(f"{line}\n" for line in lines).encode(), json=False)
        return tagged(answer) if shown is tree else gce.content(msgspec.json.encode(shown), json=True)

    def _with_our_accounts(self, tree: dict[str, Any], below: tuple[str, ...]) -> dict[str, Any]:
        accounts = gce.to_json(self._accounts.directory())
        if below == ("instance",):
            return {**tree, "serviceAccounts": accounts}
        instance = tree.get("instance")
        if not isinstance(instance, dict):
            return tree
        return {**tree, "instance": {**instance, "serviceAccounts": accounts}}


def _canonical(raw: str, query: gce.Query, *, alt: str | None) -> str:
    """The query to send on: as we understood it, so that the real server cannot understand another."""
    pairs: list[tuple[str, str]] = []
    if query.recursive:
        pairs.append(("recursive", "true"))
    if alt is not None:
        pairs.append(("alt", alt))
    if query.wait_for_change:
        pairs.append(("wait_for_change", "true"))
        pairs.append(("timeout_sec", str(int(query.timeout_seconds))))
        if query.last_etag is not None:
            pairs.append(("last_etag", query.last_etag))
    pairs.extend((name, value) for name, value in gce.parameters(raw).items() if name in FORWARDED_PARAMETERS)
    return urlencode(pairs)


def _relisted_json(answer: Response, gone: Callable[[str], bool]) -> Response:
    try:
        names = decode(answer.body, list[str])
    except NotThatShapeError:
        return UPSTREAM_SILENT
    kept = [name for name in names if not gone(name.rstrip("/"))]
    return tagged(answer) if kept == names else gce.content(msgspec.json.encode(kept), json=True)
