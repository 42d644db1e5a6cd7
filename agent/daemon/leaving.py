"""What does this process leave to the next? Gathered from its owners; the form: :mod:`agent.daemon.handover`."""

from __future__ import annotations

from agent.controller import Controller
from agent.daemon import handover
from agent.daemon.announce import Announcer
from agent.daemon.prepare import Prepared
from agent.daemon.restore import Restorer
from agent.daemon.who import Who
from agent.identity import leftovers


def handover_of(
    prepared: Prepared, controller: Controller, restorer: Restorer, who: Who, announcer: Announcer
) -> handover.Handover:
    """Gather what the next process must know, beside the credentials."""
    opening, sealed = prepared.opening, controller.durable.sealed
    opened = opening.opened(sealed) if sealed is not None else None
    if (sealed is None or opened is not None) and not controller.durable.is_giving:
        # Else the content of a bundle that is being written down would be gone when it comes into force: the next
        # process would have to ask for its key.
        opening.forget(but=sealed)
    return handover.Handover(
        uptime=restorer.clock.uptime(),
        now=restorer.clock.now(),
        began=restorer.began,
        memory=controller.store.memory,
        doubted=controller.store.doubted,
        gap=restorer.gap.known,
        brought=controller.store.state.brought,
        sealed=handover.encoded(sealed),
        signed=handover.encoded(opened.signed if opened is not None else None),
        recipient=opened.recipient if opened is not None else "",
        signers=handover.fingerprints(opening.trust),
        audiences=sorted(who.audiences),
        facts=controller.store.state.observed,
        files={**prepared.away.files, **prepared.launched.found},
        holding=prepared.holding,
        awaited=dict(controller.store.state.awaited),
        positions=handover.positions(prepared.sources, sealed),
        ephemeral=handover.jwk(opening.keyring.keys),
        token_key=handover.encoded(restorer.token_key),
        tokens=list(prepared.tokens.good),
        waiting=leftovers.waiting(controller.store.state),
        remnants=handover.remnants(controller.store),
        history=list(controller.history.entries),
        announced=dict(announcer.stood),
    )
