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
from functools import partial
from typing import Final
from urllib.parse import unquote

import msgspec

from agent.core.errors import WireError
from agent.core.model import Cloud
from agent.core.view import Absent, Answer, Facts, Live, Pending
from agent.serve.early import Early
from agent.serve.gce_accounts import Accounts, DemandScoped
from agent.serve.gce_answers import HIDDEN, NOT_FOUND, UPSTREAM_SILENT, decided, of_node, redirected
from agent.serve.gce_directories import Directories
from agent.serve.handling import Later, Outcome
from agent.serve.hiding import GCE_ROOT, GuestWrites, Hiding, folded
from agent.serve.mints import Demand
from agent.serve.proxy import GCE_STATIC, Proxy, target
from agent.serve.waiting import Watch
from agent.wire import gce, names
from agent.wire.http import Request, Response

_ACCOUNTS: Final = ("instance", "service-accounts")

_ROOT: Final = gce.content(f"{names.GCE_ROOT}/\n".encode(), json=False)
_VERSIONS: Final = gce.content(f"{names.GCE_VERSION}/\n".encode(), json=False)
_FLAVOR: Final = names.GCE_FLAVOR.lower()
_FLAVOR_MISSING: Final = gce.failure(
    403, f'Missing required header "{names.GCE_FLAVOR_HEADER}": "{names.GCE_FLAVOR}"'
).noted("flavor")
_GET_ONLY: Final = gce.failure(405, "expected GET", ("Allow", "GET, HEAD"))
_NOT_VOUCHED: Final = gce.failure(403, "tokens for this audience are for the agent of this machine alone")


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
        self._accounts = Accounts(watch, early, demand=demand, scoped=scoped, wait=self._wait)
        self._hiding = Hiding(
            GCE_ROOT, hide=settings.hide, show=settings.show, expects_bundle=lambda: watch.served.now.expects_bundle
        )
        self._writes = GuestWrites(settings.own_namespaces)
        self._directories = None if proxy is None else Directories(proxy, self._hiding, watch, self._accounts)

    def advertises_google(self) -> bool:
        """Whether this machine is a GCE machine to those who ask."""
        return self._proxy is not None or not isinstance(self._watch.look(Cloud.GCP), Absent)

    def forget(self) -> None:
        """Something else is served now: nothing is kept of what was."""
        self._accounts.forget()
        if self._directories is not None:
            self._directories.forget()

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
            return _VERSIONS if request.slash else redirected(request)
        if segments[1] != names.GCE_VERSION:
            return NOT_FOUND
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
            # Anywhere in the query, whichever parameter the real server reads: such a token says which key is this
            # machine's (agent/enrol/PROTOCOL.md), and a worker's key is not.
            return _NOT_VOUCHED
        return self._resource(request, below, query, answer)

    def _resource(self, request: Request, below: tuple[str, ...], query: gce.Query, answer: Answer) -> Outcome | Later:
        # No name in this tree has other letters than ASCII: what the real server makes of them does not matter.
        if not all(segment.isascii() for segment in below):
            return NOT_FOUND
        ours = self._ours(request, below, query, answer)
        if ours is not None:
            return ours
        if self._proxy is None:
            return self._known(request, below, query)
        if below in GCE_STATIC and not query.wait_for_change and query.alt is None:
            fresh = self._proxy.fresh(target(request.segments, slash=False))
            if fresh is not None:
                return fresh
        return partial(self._pass, request, below, query)

    def _ours(
        self, request: Request, below: tuple[str, ...], query: gce.Query, answer: Answer
    ) -> Outcome | Later | None:
        """The answer that is ours whatever the real server says; ``None``: the real server is asked."""
        if self._hiding.hides(below, decided=decided(answer)):
            return HIDDEN
        if below[:2] == _ACCOUNTS:
            if self._is_upstreams(below, answer):
                return None
            if isinstance(answer, Pending):
                return partial(self._settle, request, below, query)
            return self._accounts.answer(request, below, query, answer)
        # The real server may take another spelling of the path for the accounts' own.
        return NOT_FOUND if decided(answer) and folded(below[:2]) == _ACCOUNTS else None

    def _is_upstreams(self, below: tuple[str, ...], answer: Answer) -> bool:
        """Whether the real server answers for this account: the machine's own, apart from the token that we hold."""
        if self._proxy is None or decided(answer):
            return False
        if isinstance(answer, Live) and below[3:] == ("token",):
            return below[2] not in {"default", answer.name}
        return True

    # -- service accounts --------------------------------------------------------------------------------------------

    async def _settle(self, request: Request, below: tuple[str, ...], query: gce.Query) -> Outcome:
        answer = await self._watch.settled(Cloud.GCP, self._settings.gce_hold_seconds)
        if self._is_upstreams(below, answer):
            return await self._pass(request, below, query)
        outcome = self._accounts.answer(request, below, query, answer)
        return await _come(outcome)

    # -- waiting for a change ----------------------------------------------------------------------------------------

    async def _wait(self, request: Request, query: gce.Query) -> Outcome:
        """``wait_for_change``: answer when the ETag differs from ``last_etag`` (or from now's), or at the timeout."""
        plain = msgspec.structs.replace(query, wait_for_change=False)
        known = query.last_etag
        try:
            async with asyncio.timeout(query.timeout_seconds):
                while True:
                    seen = self._watch.served.version
                    outcome = await self._now(request, plain)
                    tag = outcome.header("ETag") if isinstance(outcome, Response) else None
                    if known is None:
                        known = tag
                    if tag != known:
                        return outcome
                    await self._watch.served.changed(seen)
        except TimeoutError:
            return await self._now(request, plain)

    async def _now(self, request: Request, query: gce.Query) -> Outcome:
        below = request.segments[2:]
        if below[:2] == _ACCOUNTS:
            outcome = self._accounts.answer(request, below, query, self._watch.look(Cloud.GCP))
        else:
            outcome = self._known(request, below, query)
        return await _come(outcome)  # a token for fewer scopes may have to be minted

    # -- everything else ---------------------------------------------------------------------------------------------

    def _known(self, request: Request, below: tuple[str, ...], query: gce.Query) -> Outcome | Later:
        """Answer without the real server: from the bundle or the configuration."""
        return of_node(gce.find(self._tree(), below), request, query, self._wait)

    def _tree(self) -> gce.Directory:
        return _tree_of(self._watch.served.now.facts, self._accounts.directory())

    async def _put(self, request: Request) -> Outcome:
        """Guest attributes: what a worker publishes about itself."""
        assert self._proxy is not None
        kind = request.headers.get("Content-Type")
        answer = await self._proxy.fetch(
            request.method,
            target(request.segments, slash=request.slash),
            headers={} if kind is None else {"Content-Type": kind},
            body=request.body,
            made=True,
            asker=request.asker,
        )
        return UPSTREAM_SILENT if answer is None else answer

    async def _overtaken(self, request: Request, below: tuple[str, ...], query: gce.Query) -> Outcome | None:
        """The answer to give instead, if a bundle decided Google while the real server was asked."""
        plain = msgspec.structs.replace(query, wait_for_change=False)
        ours = self._ours(request, below, plain, self._watch.look(Cloud.GCP))
        return await ours() if callable(ours) and not isinstance(ours, Response) else ours

    async def _pass(self, request: Request, below: tuple[str, ...], query: gce.Query) -> Outcome:
        assert self._proxy is not None
        assert self._directories is not None
        if below in GCE_STATIC and not query.wait_for_change and query.alt is None:
            answer = await self._proxy.static(target(request.segments, slash=False), request.asker)
        else:
            answer = await self._directories.ask(request, below, query)
        overtaken = await self._overtaken(request, below, query)
        if overtaken is not None:
            return overtaken
        if answer is None:
            known = self._known(request, below, msgspec.structs.replace(query, wait_for_change=False))
            # The redirect counts: Node's probe asks for `instance` to see whether this is a GCE machine at all.
            return known if isinstance(known, Response) and known.status in {200, 301} else UPSTREAM_SILENT
        if answer.status == 404 and below[:2] == _ACCOUNTS and below[3:] == ("token",):
            return gce.failure(403, "this machine has no service account, and no bundle has brought a google identity")
        location = answer.header("Location")
        if location is not None:
            return redirected(request) if answer.status == 301 and not request.slash else NOT_FOUND
        return answer


async def _come(outcome: Outcome | Later) -> Outcome:
    """What comes of it."""
    return outcome if isinstance(outcome, Response) or not callable(outcome) else await outcome()


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
