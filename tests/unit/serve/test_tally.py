"""What a server tells of what it answered: each once, whether or not somebody hears it at first."""

from __future__ import annotations

from agent.core.model import Cloud
from agent.core.served import Given
from agent.serve.audit import Ledger
from agent.serve.handling import Access
from agent.serve.tally import Tally
from agent.snapshot.messages import MOST_COUNTED, MOST_SERVED, Counts, Refused, Served, ServerSays
from agent.wire.names import PROBE_USER_AGENT
from tests.unit.controller.support import looped


class Controller:
    """Hears what is said, while it is there."""

    def __init__(self) -> None:
        self.is_there = True
        self.heard: list[ServerSays] = []

    def __call__(self, *messages: ServerSays) -> bool:
        if self.is_there:
            self.heard += messages
        return self.is_there

    def counts(self) -> dict[int, int]:
        """All that were told, added up."""
        found: dict[int, int] = {}
        for message in self.heard:
            if isinstance(message, Counts):
                for status, count in message.requests:
                    found[status] = found.get(status, 0) + count
        return found


def access(status: int, user_agent: str = "u") -> Access:
    return Access("GET", "/x", status, 0.0, 0, user_agent)


@looped
async def test_each_answer_is_counted_once_whenever_it_is_heard() -> None:
    """What nobody heard is told again, and what was heard is not; the last of it at the end."""
    controller = Controller()
    tally = Tally(controller, Ledger("off", None))
    answered = dict.fromkeys(range(200, 200 + MOST_COUNTED + 1), 2)
    for controller.is_there in (False, True):
        for status in answered:
            tally.access(access(status))
        assert tally.tell() is controller.is_there
    for _ in range(3):
        tally.told()
    assert controller.counts() == answered
    tally.access(access(200))
    tally.close()
    assert controller.counts() == answered | {200: 3}


@looped
async def test_a_refusal_is_told_of_once_it_is_heard() -> None:
    """One of each status, of those that mean a defect or somebody who may not; our own probes are nobody."""
    controller = Controller()
    controller.is_there = False
    tally = Tally(controller, Ledger("off", None))
    statuses = (0, 1, 200, 301, 400, 401, 402, 403, 404, 428, 429, 430, 499, 500, 503)
    for controller.is_there in (False, True, True):
        for status in statuses:
            tally.access(access(status, PROBE_USER_AGENT))
            tally.access(access(status))
    told = [(one.status, one.user_agent) for one in controller.heard if isinstance(one, Refused)]
    assert told == [(status, "u") for status in (0, 403, 429, 500, 503)]
    tally.close()


@looped
async def test_all_that_was_given_is_told_in_messages_that_are_heard() -> None:
    """Each row once, in their order, no more of them in one message than it may have; and how many were refused."""
    controller = Controller()
    ledger = Ledger("off", None)
    tally = Tally(controller, ledger)
    given = [Given("container", Cloud.AWS, "credential", f"role {number}") for number in range(2 * MOST_SERVED + 1)]
    for one in given:
        ledger.serve(one, lambda: None, str)
    ledger.refuse("token")
    assert tally.tell()
    told = [one for one in controller.heard if isinstance(one, Served)]
    assert [row.given for one in told for row in one.rows] == given
    assert [len(one.rows) for one in told if one.rows] == [MOST_SERVED, MOST_SERVED, 1]
    assert [one.refused for one in told if one.refused] == [(("token", 1),)]
    tally.close()
