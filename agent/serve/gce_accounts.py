"""Google's service accounts: who a worker is, and with which tokens. One that is held is answered at once.

Identity tokens and tokens for fewer scopes are minted when they are asked for, within the bounds of
:mod:`agent.serve.mints`; everything else is in the snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

import msgspec

from agent.core.errors import AgentError, Denied
from agent.core.model import AwsCredential, Cloud, GoogleToken, IdToken
from agent.core.scopes import narrower
from agent.core.served import Given, Kind
from agent.core.view import Answer, Ended, Live, Origin, Pending
from agent.serve.early import Early
from agent.serve.gce_answers import of_node
from agent.serve.handling import Later, Outcome
from agent.serve.mints import Demand, Mints, Shares, TooOften
from agent.serve.waiting import Watch
from agent.wire import gce
from agent.wire.http import Request, Response

_SCOPED_SECONDS: Final = 1.5
"""How long a narrower token is waited for before the ordinary one is given."""
_GCLOUD_AUDIENCE: Final = "32555940559.apps.googleusercontent.com"
_MAX_AUDIENCE_CHARACTERS: Final = 2048
_NO_AUDIENCE: Final = gce.failure(400, "non-empty audience parameter required")
_NO_ID_TOKENS: Final = gce.failure(
    404, "no identity token can be made from this worker's google credential; a service account's can"
)

DemandScoped = Callable[[tuple[str, ...]], Awaitable[GoogleToken | None]]
"""Mint an access token for fewer scopes, or say ``None``; raises :class:`AgentError` when it failed."""


class Accounts:
    """``/computeMetadata/v1/instance/service-accounts/...``, of the identity that is served.

    Args:
        watch: what is served.
        early: the ends that clients are told.
        demand: mints an identity token for an audience.
        scoped: mints an access token for fewer scopes.
        wait: waits for a change of what is asked for.
    """

    def __init__(
        self,
        watch: Watch,
        early: Early,
        *,
        demand: Demand,
        scoped: DemandScoped,
        wait: Callable[[Request, gce.Query], Coroutine[Any, Any, Outcome]],
    ) -> None:
        self._watch = watch
        self._early = early
        self._hold_seconds = watch.served.settings.gce_hold_seconds
        shares = Shares()
        self._mints = Mints(demand, shares)
        self._scoped_mints: Mints[GoogleToken] = Mints(lambda wanted: scoped(tuple(wanted.split())), shares)
        self._wait = wait
        # All mutable state is earlier renderings, with what they were rendered from.
        self._token: tuple[AwsCredential | GoogleToken, int, Response] | None = None
        self._accounts: tuple[GoogleToken, str, gce.Directory] | None = None

    def answer(self, request: Request, below: tuple[str, ...], query: gce.Query, answer: Answer) -> Outcome | Later:
        """Answer a path ``below`` the version; ``answer`` says how Google stands."""
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
            return self._identity(request, query, answer)
        return of_node(gce.find(self._directory(answer), (*account, *rest)), request, query, self._wait)

    def forget(self) -> None:
        """Something else is served now: nothing is kept of what was."""
        self._token = self._accounts = None

    def directory(self) -> gce.Directory:
        """The accounts as a part of the tree; empty while there is none."""
        answer = self._watch.look(Cloud.GCP)
        return self._directory(answer) if isinstance(answer, Live) else gce.Directory({}, literal=True)

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
        # The tag follows the token, not its life: a client that waits for a change waits for another token.
        tag = gce.etag(credential.access_token.reveal().encode())
        if told != credential.expires_at:
            credential = msgspec.structs.replace(credential, expires_at=told)
        response = gce.content(gce.render_token(credential, now), json=True, tag=tag).noted(_given(live))
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
            return self._narrow_answer(held, live)
        return partial(self._await_scoped, request, wanted, live.name)

    async def _await_scoped(self, request: Request, wanted: tuple[str, ...], name: str) -> Outcome:
        token = None
        with contextlib.suppress(TimeoutError, TooOften, AgentError):
            async with asyncio.timeout(min(_SCOPED_SECONDS, self._hold_seconds)):
                token = await self._scoped_mints.mint(" ".join(wanted), request.asker, name=name)
        now = self._watch.look(Cloud.GCP)
        if not isinstance(now, Live):
            return self._refusal(now)
        if token is None or now.name != name or now.origin is not Origin.BUNDLE:
            return self._token_answer(now)  # also where another took the place of whom it speaks for
        return self._narrow_answer(token, now)

    def _narrow_answer(self, token: GoogleToken, live: Live) -> Response:
        tag = gce.etag(token.access_token.reveal().encode())  # as of the ordinary one: of the token, not of its life
        return gce.content(gce.render_token(token, self._watch.clock.now()), json=True, tag=tag).noted(_given(live))

    @staticmethod
    def _refusal(answer: Answer) -> Response:
        if isinstance(answer, Pending):
            return gce.failure(503, answer.why, ("Retry-After", "1"))
        if isinstance(answer, Ended) and answer.passing:
            return gce.failure(503, answer.why, ("Retry-After", "1"))
        # Not 404: a missing credential must not look like missing data.
        return gce.failure(403, getattr(answer, "why", ""))

    def _identity(self, request: Request, query: gce.Query, live: Live) -> Outcome | Later:
        if not query.audience:
            return _NO_AUDIENCE
        if len(query.audience) > _MAX_AUDIENCE_CHARACTERS:
            return gce.failure(400, f"expected an audience of at most {_MAX_AUDIENCE_CHARACTERS} characters")
        served = self._watch.served
        if not served.now.mints_id_tokens:
            return _NO_ID_TOKENS
        token = served.id_token(query.audience, self._watch.clock.now())
        return (
            partial(self._mint, query.audience, request, live.name) if token is None else self._identity_answer(token)
        )

    async def _mint(self, audience: str, request: Request, name: str) -> Outcome:
        try:
            async with asyncio.timeout(self._hold_seconds):
                token = await self._mints.mint(audience, request.asker, name=name)
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
            now = self._watch.look(Cloud.GCP)
            if isinstance(now, Live) and now.name == name:
                return _NO_ID_TOKENS if token is None else self._identity_answer(token)
            # Whom it speaks for is not served any more.
            again = gce.failure(503, "another identity is served since; try again", ("Retry-After", "1"))
            failed = again if isinstance(now, Live) else self._refusal(now)
        # gcloud asks on its way to an access token; any failure but 404 would keep it from one.
        return gce.failure(404, failed.body.decode().rstrip("\n")) if audience == _GCLOUD_AUDIENCE else failed

    def _identity_answer(self, token: IdToken) -> Response:
        given = _given(self._watch.look(Cloud.GCP), kind="id-token")
        return gce.content(token.token.reveal().encode("ascii"), json=False).noted(given)


def _given(answer: Answer, *, kind: Kind = "access-token") -> Given:
    return Given("gce", Cloud.GCP, kind, answer.name[:256] if isinstance(answer, Live) else "")
