"""Answers that every part of the GCE dialect gives."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from agent.core.view import Absent, Answer, Live, Origin
from agent.serve.handling import Later, Outcome
from agent.wire import gce
from agent.wire.http import Request, Response

NOT_FOUND: Final = gce.failure(404, "no such metadata key")
HIDDEN: Final = gce.failure(
    404,
    "the agent hides metadata of this name from workers, whether it is there or not: an operator shows it by "
    "pass_through.show",
)
UPSTREAM_SILENT: Final = gce.failure(
    503, "the machine's own metadata server does not answer, or the agent restarts; try again"
)


def decided(answer: Answer) -> bool:
    """Whether the machine's own Google identity is not what workers have."""
    return not (isinstance(answer, Absent) or (isinstance(answer, Live) and answer.origin is Origin.FALLBACK))


def redirected(request: Request) -> Response:
    """A directory that was asked for without its slash."""
    # Absolute, with the authority that the client used: it may have come through a port of ours. The gate has
    # seen that it is one of our names, so it cannot lead elsewhere.
    query = f"?{request.query}" if request.query else ""
    return gce.redirect(f"http://{request.host}{request.path}/{query}")


def of_node(
    node: gce.Node | None,
    request: Request,
    query: gce.Query,
    wait: Callable[[Request, gce.Query], Coroutine[Any, Any, Outcome]],
) -> Outcome | Later:
    """Answer for a place in a tree that we hold; ``wait`` answers a ``wait_for_change``."""
    if node is None or isinstance(node, gce.Action):
        return NOT_FOUND
    if isinstance(node, gce.Directory) and not request.slash:
        return redirected(request)
    if query.wait_for_change:
        return partial(wait, request, query)
    body, json = gce.render(node, query)
    return gce.content(body, json=json)


def tagged(answer: Response) -> Response:
    """The answer under our own tag of its body."""
    others = [(name, value) for name, value in answer.headers if name.lower() != "etag"]
    return Response(answer.status, (*others, ("ETag", gce.etag(answer.body))), answer.body)
