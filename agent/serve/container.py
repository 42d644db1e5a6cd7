"""The container credentials dialect: EKS and ECS forms, JSON in every case.

===========  =====================================================================================================
Live         200
Pending      held for a moment, then 503 ``CredentialsUninitialized`` (ECS's own word; retried by nearly all)
Ended        503 ``CredentialsUnavailable``, the body says why and what to do
Absent       404 ``NoCredentials`` (Java gives up at once, and rightly)
not allowed  401 ``Unauthorized``; never 403, which no SDK expects here
===========  =====================================================================================================
"""

from __future__ import annotations

from agent.core.model import AwsCredential, Cloud
from agent.core.view import Answer, Ended, Live, Pending
from agent.serve.early import Early
from agent.serve.handling import Later, Outcome, aws_given
from agent.serve.waiting import Watch
from agent.wire import container
from agent.wire.http import Request, Response
from agent.wire.names import ECS_PREFIX, EKS_PATH


class ContainerDialect:
    """``/v1/credentials`` and ``/v2/credentials/ID``."""

    def __init__(self, watch: Watch, early: Early) -> None:
        self._watch = watch
        self._early = early
        # The document last sent, and the credential it was made of.
        self._credential: AwsCredential | None = None
        self._document = Response(503)

    def handle(self, request: Request) -> Outcome | Later:
        """Answer one request whose first segment is ``v1`` or ``v2``."""
        ecs_id = None
        if request.segments == container.EKS:
            pass
        elif request.segments[:2] == container.ECS and len(request.segments) == 3:
            ecs_id = request.segments[2]
        else:
            return container.failure(404, "NotFound", f"credentials are at {EKS_PATH} and {ECS_PREFIX}ID")
        if request.method not in {"GET", "HEAD"}:
            return container.failure(405, "MethodNotAllowed", "expected GET", ("Allow", "GET, HEAD"))
        now = self._watch.served.now
        # ECS has no Authorization: there the unguessable id in the path is the permission. The gate keeps web pages and
        # SSRF away from it: it refuses foreign names, proxies and browsers.
        if not container.authorized(request.headers.get("Authorization"), now.container_tokens) and not (
            ecs_id is not None and container.authorized(ecs_id, (*now.container_tokens, *now.container_ids))
        ):
            return container.failure(
                401,
                "Unauthorized",
                "expected the content of AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE in the Authorization header",
            ).noted("token")
        answer = self._watch.look(Cloud.AWS)
        if isinstance(answer, Pending):
            return self._settle
        return self._answer(answer)

    async def _settle(self) -> Outcome:
        return self._answer(await self._watch.settled(Cloud.AWS, self._watch.served.settings.container_hold_seconds))

    def forget(self) -> None:
        """Something else is served now: nothing is kept of what was."""
        self._credential, self._document = None, Response(503)

    def _answer(self, answer: Answer) -> Response:
        if isinstance(answer, Live) and isinstance(answer.credential, AwsCredential):
            credential = self._early.aws(answer, answer.credential, self._watch.clock.now(), extends=True)
            if credential is not self._credential:
                given = aws_given("container", answer, credential)
                self._document = container.document(container.render_credential(credential)).noted(given)
                self._credential = credential
            return self._document
        if isinstance(answer, Pending):
            return container.failure(503, "CredentialsUninitialized", answer.why, ("Retry-After", "1"))
        if isinstance(answer, Ended):
            return container.failure(503, "CredentialsUnavailable", answer.why, ("Retry-After", "1"))
        return container.failure(404, "NoCredentials", getattr(answer, "why", "there is no aws identity here"))
