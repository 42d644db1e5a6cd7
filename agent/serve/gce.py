"""The GCE metadata dialect.

Whether to speak as Google comes first: google-auth, Go and Node take ``Metadata-Flavor: Google`` on any answer for
proof that they run on GCE, and then wait for what never comes. So every answer carries it when there is, was or will be
a Google identity (or a real GCE server behind us), and none does otherwise.

===========  =========================================================================================
Live         200
Pending      ``/`` and project data at once; service accounts are held, then 503
Ended        service accounts: 503 when it will pass, 403 when it will not, with the cause as the body
Absent       404 without the flavor; with a real GCE server behind us, whatever that says
===========  =========================================================================================

``token`` is never 404: pyarrow would then report every object as not found, and tensorstore go on anonymously.
``identity`` is 404 when none can ever be minted; a mint that failed is 503, or 403 when it was refused, with the cause.
For gcloud's own audience every failure is 404: it asks on its way to an access token, and minds anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final
from urllib.parse import unquote, urlencode

import msgspec

from agent.core.errors import AgentError, Denied, WireError
from agent.core.model import AwsCredential, Cloud, GoogleToken, IdToken
from agent.core.scopes import narrower
from agent.core.strictjson import NotThatShapeError, decode
from agent.core.view import Absent, Answer, Ended, Facts, Live, Origin, Pending
from agent.serve.early import Early
from agent.serve.handling import Later, Outcome
from agent.serve.hiding import GCE_ROOT, GuestWrites, Hiding, folded
from agent.serve.mints import Demand, Mints, TooOften
from agent.serve.proxy import GCE_STATIC, LARGE_BYTES, Proxy, relisted, target
from agent.serve.waiting import Watch
from agent.wire import gce, names
from agent.wire.http import Request, Response

_ACCOUNTS: Final = ("instance", "service-accounts")
_SCOPED_SECONDS: Final = 1.5
"""How long a narrower token is waited for before the ordinary one is given."""
_GCLOUD_AUDIENCE: Final = "32555940559.apps.googleusercontent.com"
_MAX_AUDIENCE_CHARACTERS: Final = 2048
_HANG_MARGIN_SECONDS: Final = 5.0
"""The real server answers a long poll at its end, not before: this much later we stop believing it."""

_ROOT: Final = gce.content(f"{names.GCE_ROOT}/\n".encode(), json=False)
_VERSIONS: Final = gce.content(f"{names.GCE_VERSION}/\n".encode(), json=False)
_FLAVOR: Final = names.GCE_FLAVOR.lower()
_FLAVOR_MISSING: Final = gce.failure(403, f'Missing required header "{names.GCE_FLAVOR_HEADER}": "{names.GCE_FLAVOR}"')
_GET_ONLY: Final = gce.failure(405, "expected GET", ("Allow", "GET, HEAD"))
_NOT_FOUND: Final = gce.failure(404, "no such metadata key")
_UPSTREAM_SILENT: Final = gce.failure(503, "the machine's own metadata server does not answer; try again")
_TOO_LARGE: Final = gce.failure(503, "too large as text; ask for alt=json")
_MAX_TEXT_CHARACTERS: Final = 1 << 22
_LINES_AT_ONCE: Final = 1000
_NO_AUDIENCE: Final = gce.failure(400, "non-empty audience parameter required")
_NOT_VOUCHED: Final = gce.failure(403, "tokens for this audience are for the agent of this machine alone")
_NO_ID_TOKENS: Final = gce.failure(
    404, "no identity token can be made from this worker's google credential; a service account's can"
)

_FORWARDED_PARAMETERS: Final = (
    "audience", "format", "licenses", "scopes",
    # OS Login: the C library of any program asks by these who a user is.
    "username", "uid", "groupname", "gid", "email", "policy", "pagesize", "pagetoken",
)  # fmt: skip


DemandScoped = Callable[[tuple[str, ...]], Awaitable[GoogleToken | None]]
"""Mint an access token for fewer scopes, or say ``None``; raises :class:`AgentError` when it failed."""


class GceDialect:
    """``/`` and ``/computeMetadata/...``."""

    def __init__(
        self,
        watch: Watch,
        proxy: Proxy | None,
        early: Early,
        *,
        demand: Demand,
        scoped: DemandScoped,
    ) -> None:
        settings = self._settings = watch.served.settings
        self._watch = watch
        self._proxy = proxy
        self._mints = Mints(demand)
        self._scoped_mints: Mints[GoogleToken] = Mints(lambda wanted: scoped(tuple(wanted.split())))
        self._hiding = Hiding(
            GCE_ROOT, hide=settings.hide, show=settings.show, expects_bundle=lambda: watch.served.now.expects_bundle
        )
        self._writes = GuestWrites(settings.own_namespaces)
        self._early = early
        # All mutable state is what was rendered before, with what it was rendered from.
        self._token: tuple[AwsCredential | GoogleToken, int, Response] | None = None
        self._last_large: tuple[tuple[Any, ...], bytes, Response] | None = None
        self._accounts: tuple[GoogleToken, str, gce.Directory] | None = None

    def advertises_google(self) -> bool:
        """Whether this machine is a GCE machine to those who ask."""
        return self._proxy is not None or not isinstance(self._watch.look(Cloud.GCP), Absent)

    def forget(self) -> None:
        """Something else is served now: nothing is kept of what was."""
        self._token = self._accounts = self._last_large = None

    def handle(self, request: Request) -> Outcome | Later:
        """Answer one request."""
        answer = self._watch.look(Cloud.GCP)
        if self._proxy is None and isinstance(answer, Absent):
            return gce.failure(404, f"no google identity on this worker: {answer.why}", flavored=False)
        segments = request.segments
        if not segments:
            return _ROOT  # needs no header: Go's probe sends none
        headers = request.headers
        if headers.get(names.GCE_FLAVOR_HEADER, "").lower() != _FLAVOR and (
            headers.get(names.GCE_LEGACY_HEADER, "").lower() != "true"
        ):
            return _FLAVOR_MISSING
        if len(segments) == 1:
            return _VERSIONS if request.slash else self._redirect(request)
        if segments[1] != names.GCE_VERSION:
            return _NOT_FOUND
        below = segments[2:]
        if request.method not in {"GET", "HEAD"}:
            if self._proxy is None or folded(below[:2]) != ("instance", "guest-attributes"):
                return _GET_ONLY
            refused = self._writes.refusal(below, slash=request.slash, query=request.query)
            return partial(self._put, request) if refused is None else gce.failure(403, refused)
        try:
            query = gce.parse_query(request.query)
        except WireError as error:
            return gce.failure(400, error.message)
        if request.query and names.ENROL_AUDIENCE_PREFIX in unquote(request.query):
            # Anywhere in it, whichever parameter the real server would read: such a token says which key is this
            # machine's (agent/enrol/PROTOCOL.md), and a worker's key is not.
            return _NOT_VOUCHED
        return self._resource(request, below, query, answer)

    def _resource(self, request: Request, below: tuple[str, ...], query: gce.Query, answer: Answer) -> Outcome | Later:
        # No name in this tree has other letters; what the real server would make of them, nobody needs to know.
        if not all(segment.isascii() for segment in below) or self._hiding.hides(below, decided=_decided(answer)):
            return _NOT_FOUND
        if below[:2] == _ACCOUNTS and not self._is_upstreams(below, answer):
            if isinstance(answer, Pending):
                return partial(self._settle, request, below, query)
            return self._account(request, below, query, answer)
        if self._proxy is None:
            return self._known(request, below, query)
        if folded(below[:2]) == _ACCOUNTS and _decided(answer):
            return _NOT_FOUND
        if below in GCE_STATIC and not query.wait_for_change and query.alt is None:
            fresh = self._proxy.fresh(target(request.segments, slash=False))
            if fresh is not None:
                return fresh
        return partial(self._pass, request, below, query)

    def _is_upstreams(self, below: tuple[str, ...], answer: Answer) -> bool:
        """Whether the real server answers for this account: the machine's own, apart from the token that we hold."""
        if self._proxy is None or _decided(answer):
            return False
        if isinstance(answer, Live) and below[3:] == ("token",):
            return below[2] not in {"default", answer.name}
        return True

    # -- service accounts --------------------------------------------------------------------------------------------

    async def _settle(self, request: Request, below: tuple[str, ...], query: gce.Query) -> Outcome:
        answer = await self._watch.settled(Cloud.GCP, self._settings.gce_hold_seconds)
        if self._is_upstreams(below, answer):
            return await self._pass(request, below, query)
        outcome = self._account(request, below, query, answer)
        return outcome if isinstance(outcome, Response) or not callable(outcome) else await outcome()

    def _account(self, request: Request, below: tuple[str, ...], query: gce.Query, answer: Answer) -> Outcome | Later:
        if not isinstance(answer, Live):
            return self._refusal(answer)
        account, rest = below[2:3], below[3:]
        if account and account[0] != "default" and account[0] != answer.name:
            # An e-mail that we gave out a moment ago gets the present account: its client holds a stale listing.
            if account[0] not in self._watch.served.names(Cloud.GCP):
                return gce.failure(404, "no such service account here; use default")
            account = ("default",)
        if rest == ("token",):
            if query.wait_for_change:
                return partial(self._wait, request, query)
            return self._scoped_answer(request, query, answer) if query.scopes else self._token_answer(answer)
        if rest == ("identity",):
            return self._identity(request, query)
        node = gce.find(self._directory(answer), (*account, *rest))
        if node is None or isinstance(node, gce.Action):
            return _NOT_FOUND
        if isinstance(node, gce.Directory) and not request.slash:
            return self._redirect(request)
        if query.wait_for_change:
            return partial(self._wait, request, query)
        body, json = gce.render(node, query)
        return gce.content(body, json=json)

    def _directory(self, live: Live) -> gce.Directory:
        credential = live.credential
        assert isinstance(credential, GoogleToken)
        if self._accounts is None or self._accounts[0] is not credential or self._accounts[1] != live.name:
            self._accounts = (credential, live.name, gce.account_directory(live.name or "default", credential.scopes))
        return self._accounts[2]

    def _token_answer(self, live: Live) -> Response:
        credential = live.credential
        assert isinstance(credential, GoogleToken)
        now = self._watch.clock.now()
        told = self._early.google(live, credential, now)
        left = int((told - now).total_seconds())
        held = self._token
        if held is not None and held[0] is credential and held[1] == left:
            return held[2]
        # The tag follows the token, not its life: one that waits for a change waits for another token.
        tag = gce.etag(credential.access_token.reveal().encode())
        if told != credential.expires_at:
            credential = msgspec.structs.replace(credential, expires_at=told)
        response = gce.content(gce.render_token(credential, now), json=True, tag=tag)
        self._token = (live.credential, left, response)
        return response

    def _scoped_answer(self, request: Request, query: gce.Query, live: Live) -> Outcome | Later:
        """A token for fewer scopes, where it is held or can be minted; else the ordinary one, as GCE gives."""
        now = self._watch.clock.now()
        wanted = narrower(self._watch.served.stretch(Cloud.GCP, now).scopes, query.scopes)
        if live.origin is not Origin.BUNDLE or wanted is None:
            return self._token_answer(live)
        held = self._watch.served.scoped(wanted, now)
        if held is not None:
            return gce.content(gce.render_token(held, now), json=True)
        return partial(self._await_scoped, request, wanted)

    async def _await_scoped(self, request: Request, wanted: tuple[str, ...]) -> Outcome:
        token = None
        with contextlib.suppress(TimeoutError, TooOften, AgentError):
            async with asyncio.timeout(min(_SCOPED_SECONDS, self._settings.gce_hold_seconds)):
                token = await self._scoped_mints.mint(" ".join(wanted), request.asker)
        if token is not None:
            return gce.content(gce.render_token(token, self._watch.clock.now()), json=True)
        now = self._watch.look(Cloud.GCP)
        return self._token_answer(now) if isinstance(now, Live) else self._refusal(now)

    @staticmethod
    def _refusal(answer: Answer) -> Response:
        if isinstance(answer, Pending):
            return gce.failure(503, answer.why, ("Retry-After", "1"))
        if isinstance(answer, Ended) and answer.passing:
            return gce.failure(503, answer.why, ("Retry-After", "1"))
        # Not 404: a missing credential must not look like missing data.
        return gce.failure(403, getattr(answer, "why", ""))

    def _identity(self, request: Request, query: gce.Query) -> Outcome | Later:
        if not query.audience:
            return _NO_AUDIENCE
        if len(query.audience) > _MAX_AUDIENCE_CHARACTERS:
            return gce.failure(400, f"expected an audience of at most {_MAX_AUDIENCE_CHARACTERS} characters")
        served = self._watch.served
        if not served.now.mints_id_tokens:
            return _NO_ID_TOKENS
        token = served.id_token(query.audience, self._watch.clock.now())
        return partial(self._mint, query.audience, request) if token is None else _identity_answer(token)

    async def _mint(self, audience: str, request: Request) -> Outcome:
        try:
            async with asyncio.timeout(self._settings.gce_hold_seconds):
                token = await self._mints.mint(audience, request.asker)
        except TimeoutError:
            failed = gce.failure(503, "an identity token is being minted; try again", ("Retry-After", "1"))
        except TooOften as busy:
            # 503 and not 429: it is what every client of this dialect tries again.
            why = "identity tokens for new audiences are asked for too often; those held already are served"
            failed = gce.failure(503, why, ("Retry-After", str(busy.seconds)))
        except Denied as error:
            failed = gce.failure(403, f"no identity token can be minted: {error.message}")
        except AgentError as error:
            failed = gce.failure(503, f"no identity token could be minted: {error.message}", ("Retry-After", "1"))
        else:
            return _NO_ID_TOKENS if token is None else _identity_answer(token)
        # gcloud asks on its way to an access token, which only 404 does not keep from it.
        return gce.failure(404, failed.body.decode().rstrip("\n")) if audience == _GCLOUD_AUDIENCE else failed

    # -- waiting for a change ----------------------------------------------------------------------------------------

    async def _wait(self, request: Request, query: gce.Query) -> Outcome:
        """``wait_for_change``: answer when the ETag is another than ``last_etag`` (or than now), or at the timeout."""
        plain = msgspec.structs.replace(query, wait_for_change=False)
        known = query.last_etag
        try:
            async with asyncio.timeout(query.timeout_seconds):
                while True:
                    seen = self._watch.served.version
                    outcome = self._now(request, plain)
                    tag = outcome.header("ETag") if isinstance(outcome, Response) else None
                    if known is None:
                        known = tag
                    if tag != known:
                        return outcome
                    await self._watch.served.changed(seen)
        except TimeoutError:
            return self._now(request, plain)

    def _now(self, request: Request, query: gce.Query) -> Outcome:
        below = request.segments[2:]
        if below[:2] == _ACCOUNTS:
            outcome = self._account(request, below, query, self._watch.look(Cloud.GCP))
        else:
            outcome = self._known(request, below, query)
        return _UPSTREAM_SILENT if callable(outcome) else outcome

    # -- everything else ---------------------------------------------------------------------------------------------

    def _known(self, request: Request, below: tuple[str, ...], query: gce.Query) -> Outcome | Later:
        """What can be said without the real server: from the bundle or the configuration."""
        node = gce.find(self._tree(), below)
        if node is None or isinstance(node, gce.Action):
            return _NOT_FOUND
        if isinstance(node, gce.Directory) and not request.slash:
            return self._redirect(request)
        if query.wait_for_change:
            return partial(self._wait, request, query)
        body, json = gce.render(node, query)
        return gce.content(body, json=json)

    def _tree(self) -> gce.Directory:
        answer = self._watch.look(Cloud.GCP)
        accounts = self._directory(answer) if isinstance(answer, Live) else gce.Directory({}, literal=True)
        return _tree_of(self._watch.served.now.facts, accounts)

    @staticmethod
    def _redirect(request: Request) -> Response:
        # Absolute, with the authority that the client used: it may have come through a port of ours. The gate has
        # seen that it is one of our names, so it cannot lead elsewhere.
        query = f"?{request.query}" if request.query else ""
        return gce.redirect(f"http://{request.host}{request.path}/{query}")

    async def _put(self, request: Request) -> Outcome:
        """Guest attributes: what a worker publishes about itself."""
        assert self._proxy is not None
        kind = request.headers.get("Content-Type")
        answer = await self._proxy.fetch(
            request.method,
            target(request.segments, slash=request.slash),
            headers={} if kind is None else {"Content-Type": kind},
            body=request.body,
            asker=request.asker,
        )
        return _UPSTREAM_SILENT if answer is None else answer

    async def _pass(self, request: Request, below: tuple[str, ...], query: gce.Query) -> Outcome:
        assert self._proxy is not None
        if below in GCE_STATIC and not query.wait_for_change and query.alt is None:
            answer = await self._proxy.static(target(request.segments, slash=False), request.asker)
        else:
            answer = await self._ask(request, below, query)
        if answer is None:
            known = self._known(request, below, msgspec.structs.replace(query, wait_for_change=False))
            # The redirect counts: Node's probe asks for `instance` to see whether this is a GCE machine at all.
            return known if isinstance(known, Response) and known.status in {200, 301} else _UPSTREAM_SILENT
        if answer.status == 404 and below[:2] == _ACCOUNTS and below[3:] == ("token",):
            return gce.failure(403, "this machine has no service account, and no bundle has brought a google identity")
        location = answer.header("Location")
        if location is not None:
            return self._redirect(request) if answer.status == 301 and not request.slash else _NOT_FOUND
        return answer

    async def _ask(self, request: Request, below: tuple[str, ...], query: gce.Query) -> Response | None:
        """Ask the real server, and show of a directory what is shown."""
        if not query.recursive and not self._hiding.lists(below):
            return await self._fetch(request, query, alt=query.alt)
        # What is hidden must not show in the tag either, nor by a wait that ends: the tags of directories are ours, and
        # a change of something hidden is none.
        ends = asyncio.get_running_loop().time() + query.timeout_seconds
        alt = "json" if query.recursive and (self._hiding.lists(below) or query.alt == "text") else query.alt
        known = query.last_etag
        ask = msgspec.structs.replace(query, wait_for_change=False)
        while True:
            answer = await self._fetch(request, ask, alt=alt)
            if answer is None or answer.status != 200:
                return answer
            shown = await self._rendered(answer, below, query)
            if not query.wait_for_change or shown.status != 200:
                return shown
            tag, left = answer.header("ETag"), ends - asyncio.get_running_loop().time()
            known = shown.header("ETag") if known is None else known
            if shown.header("ETag") != known or tag is None or left < 1:
                return shown
            ask = msgspec.structs.replace(query, last_etag=tag, timeout_seconds=left)

    async def _fetch(self, request: Request, query: gce.Query, *, alt: str | None) -> Response | None:
        assert self._proxy is not None
        # With or without the final slash: that the real server redirects is its business, not our safeguard.
        return await self._proxy.fetch(
            "GET",
            target(request.segments, slash=request.slash, query=_canonical(request.query, query, alt=alt)),
            hang_seconds=query.timeout_seconds + _HANG_MARGIN_SECONDS if query.wait_for_change else 0.0,
            asker=request.asker,
        )

    async def _rendered(self, answer: Response, below: tuple[str, ...], query: gce.Query) -> Response:
        """What is shown; of a large answer once, however many ask, and as text in slices."""
        if len(answer.body) <= LARGE_BYTES:
            return self._shown(answer, below, query)
        key = (below, query.recursive, query.alt, self._watch.served.version)
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
        """A directory's answer without what is hidden, under a tag of what is left."""
        decided = _decided(self._watch.look(Cloud.GCP))
        if query.recursive:
            return self._shown_tree(answer, below, query, decided=decided)

        def gone(name: str) -> bool:
            return self._hiding.hides((*below, name), decided=decided)

        return _relisted_json(answer, gone) if query.alt == "json" else _tagged(relisted(answer, gone))

    def _shown_tree(self, answer: Response, below: tuple[str, ...], query: gce.Query, *, decided: bool) -> Response:
        is_json = (answer.header("Content-Type") or "").startswith("application/json")
        if not is_json and not self._hiding.lists(below):
            return answer  # a leaf: ``recursive`` means nothing there
        try:
            tree = decode(answer.body)
            shown = self._hiding.pruned(tree, below, decided=decided)
        except (NotThatShapeError, RecursionError):
            return _UPSTREAM_SILENT
        if decided and below in {(), ("instance",)} and isinstance(shown, dict):
            shown = self._with_our_accounts(shown, below)
        if query.alt == "text":
            literal = below[-1:] == ("attributes",)
            lines = gce.flatten(shown, literal=literal) if isinstance(shown, dict | list) else (str(shown),)
            return gce.content("".join(f"{line}\n" for line in lines).encode(), json=False)
        return _tagged(answer) if shown is tree else gce.content(msgspec.json.encode(shown), json=True)

    def _with_our_accounts(self, tree: dict[str, Any], below: tuple[str, ...]) -> dict[str, Any]:
        live = self._watch.look(Cloud.GCP)
        accounts = self._directory(live) if isinstance(live, Live) else gce.Directory({}, literal=True)
        if below == ("instance",):
            return {**tree, "serviceAccounts": gce.to_json(accounts)}
        instance = tree.get("instance")
        if not isinstance(instance, dict):
            return tree
        return {**tree, "instance": {**instance, "serviceAccounts": gce.to_json(accounts)}}


def _decided(answer: Answer) -> bool:
    """Whether the machine's own Google identity is not what workers have."""
    return not (isinstance(answer, Absent) or (isinstance(answer, Live) and answer.origin is Origin.FALLBACK))


def _identity_answer(token: IdToken) -> Response:
    return gce.content(token.token.reveal().encode("ascii"), json=False)


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
    pairs.extend((name, value) for name, value in gce.parameters(raw).items() if name in _FORWARDED_PARAMETERS)
    return urlencode(pairs)


def _relisted_json(answer: Response, gone: Callable[[str], bool]) -> Response:
    try:
        names = decode(answer.body, list[str])
    except NotThatShapeError:
        return _UPSTREAM_SILENT
    kept = [name for name in names if not gone(name.rstrip("/"))]
    return _tagged(answer) if kept == names else gce.content(msgspec.json.encode(kept), json=True)


def _tagged(answer: Response) -> Response:
    """The answer under our own tag of its body."""
    others = [(name, value) for name, value in answer.headers if name.lower() != "etag"]
    return Response(answer.status, (*others, ("ETag", gce.etag(answer.body))), answer.body)


def _tree_of(facts: Facts, accounts: gce.Directory) -> gce.Directory:
    project: dict[str, gce.Node] = {"attributes": gce.Directory({}, literal=True)}
    if facts.numeric_project_id is not None:
        project["numeric-project-id"] = int(facts.numeric_project_id)
    if facts.project_id is not None:
        project["project-id"] = facts.project_id
    instance: dict[str, gce.Node] = {"attributes": gce.Directory({}, literal=True)}
    if facts.instance_id is not None and facts.instance_id.isdecimal():
        instance["id"] = int(facts.instance_id)
    number = facts.numeric_project_id or 0
    if facts.zone is not None:
        # Cloud Run has the region too, and what runs in both worlds asks for it.
        instance["region"] = f"projects/{number}/regions/{facts.zone.rpartition('-')[0] or facts.zone}"
    instance["service-accounts"] = accounts
    if facts.zone is not None:
        instance["zone"] = f"projects/{number}/zones/{facts.zone}"
    return gce.Directory(
        {
            "instance": gce.Directory(instance),
            "project": gce.Directory(project),
            "universe": gce.Directory({"universe-domain": "googleapis.com"}),
        }
    )
