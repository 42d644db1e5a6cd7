"""What of the real service's answer a server that a stranger has taken over gets: no more than any worker."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest
from multidict import CIMultiDict

from agent.core.model import Cloud
from agent.daemon.passing import LONGEST_SECONDS
from agent.serve.gce_directories import FORWARDED_PARAMETERS
from agent.snapshot.messages import Pass, Passed
from tests.fakes.upstreams import CANARY, Answer, Scripted, answer
from tests.unit.daemon.test_passing import MACHINE, Taken, run

ATTRIBUTES = f"{MACHINE}/attributes/"


def got(target: str, real: Answer) -> Passed:
    return run(Taken(Scripted({target: real})).ask(target))


def tree(of: Any) -> Answer:
    return answer(of if isinstance(of, str) else json.dumps(of, separators=(",", ":")), Content_Type="application/json")


@pytest.mark.parametrize("status", [0, 199, 600])
def test_what_is_no_status_is_no_answer(status: int) -> None:
    """As where the real service gives none."""
    assert got("/latest/meta-data/hostname", answer("x", status)) == Passed(1, 0)


@pytest.mark.parametrize("fault", ["broken", "silent"])
def test_without_an_answer_the_server_hears_so(fault: str) -> None:
    """Whether the real service cannot be reached or says nothing for as long as the server waits."""
    real = Scripted()
    setattr(real, fault, True)
    wanted = Pass(1, Cloud.AWS, "GET", "/latest/meta-data/hostname", (), None, 0.01)
    assert run(Taken(real).passing.ask(wanted)) == Passed(1, 0)
    assert len(real.asked) == 1


@pytest.mark.parametrize(("wanted", "asked"), [(1.0, 1.0), (LONGEST_SECONDS + 1, LONGEST_SECONDS)])
def test_no_question_waits_for_longer_than_a_long_poll(wanted: float, asked: float) -> None:
    """Whatever the server says that it would wait for."""
    real = Scripted()
    real.always = answer("x")
    run(Taken(real).passing.ask(Pass(1, Cloud.AWS, "GET", "/latest/meta-data/hostname", (), None, wanted)))
    assert [one.timeout_seconds for one in real.asked] == [asked]


def test_only_headers_that_may_stand_in_an_answer_come() -> None:
    """Each of those that a worker gets, no longer than any has reason to be."""
    given = answer("x", ETag="a" * 5000, Server="a\r\nSet-Cookie: b", Set_Cookie="c", Last_Modified="now")
    found = dict(got("/latest/meta-data/hostname", given).headers)
    assert found == {"Content-Type": "text/plain", "ETag": "a" * 4096, "Last-Modified": "now"}


@pytest.mark.parametrize(
    ("target", "given", "shown"),
    [
        (f"{ATTRIBUTES}?alt=json", {"fine": 1, "kube-env": CANARY}, {"fine": 1}),
        (f"{ATTRIBUTES}?alt=json", [1, "fine", "kube-env", "ssh-keys/"], [1, "fine"]),
        (f"{MACHINE}/disks/?recursive=true", [{"deviceName": "x", "apiToken": CANARY}], [{"deviceName": "x"}]),
        (
            f"{MACHINE}/disks/?recursive=true",
            {"0": {"deviceName": "x", "api-token": CANARY}},
            {"0": {"deviceName": "x"}},
        ),
        (f"{MACHINE}/?recursive=true", {"id": 1, "serviceAccounts": {"default": {"email": CANARY}}}, {"id": 1}),
        (
            "/computeMetadata/v1/?recursive=true",
            {"instance": {"id": 1, "service-accounts": {"default": CANARY}}, "project": {"projectId": "p"}},
            {"instance": {"id": 1}, "project": {"projectId": "p"}},
        ),
    ],
)
def test_what_is_hidden_is_in_no_document(target: str, given: Any, shown: Any) -> None:
    """However it is asked for, and wherever in it that stands."""
    assert json.loads(got(target, tree(given)).body) == shown


@pytest.mark.parametrize(
    ("target", "given"),
    [
        (f"{ATTRIBUTES}fine", tree({"password": "a value, and no name of an attribute"})),
        (f"{ATTRIBUTES}fine?recursive=true", answer("kube-env")),
        (f"{MACHINE}/guest-attributes/?recursive=true", tree({"mine": {"serviceAccounts": "x", "key": "y"}})),
        (ATTRIBUTES, answer("kube-env is not here", 404)),
        (f"{ATTRIBUTES}?recursive=true", answer("kube-env", 503)),
        (f"{MACHINE}/?recursive=true", tree([1])),
        (f"{MACHINE}/?recursive=true", tree("null")),
        ("/computeMetadata/v1/?recursive=true", tree({"instance": "x"})),
    ],
)
def test_what_hides_nothing_comes_as_it_is(target: str, given: Answer) -> None:
    """A value, what workers wrote themselves, an error, and a document that is of no form known."""
    found = got(target, given)
    assert (found.status, found.body) == (given.status, given.body)


def test_a_listing_whose_type_is_not_said_is_one_of_lines() -> None:
    """As the real service writes it."""
    assert got(ATTRIBUTES, Answer(200, b"fine\nkube-env", CIMultiDict())).body == b"fine"


@pytest.mark.parametrize(
    ("nested", "depth"), [('{"a":', 1), ('{"a":', 100), ('{"a":', 100_000), ("[", 1), ("[", 600), ("[", 100_000)]
)
def test_however_deep_it_is_nothing_hidden_comes(nested: str, depth: int) -> None:
    """What is too deep to be looked at does not come, and ends nothing."""
    body = nested * depth + json.dumps({"apiToken": CANARY}) + ("]" if nested == "[" else "}") * depth
    found = got(f"{ATTRIBUTES}?recursive=true", tree(body))
    assert found.status == 200
    assert CANARY.encode() not in found.body


def test_all_that_an_honest_server_asks_with_may_be_asked_at_once() -> None:
    """The parameters of its own, and those that it passes on."""
    own = {"recursive": "true", "alt": "json", "wait_for_change": "true", "timeout_sec": "1", "last_etag": "x"}
    target = f"{MACHINE}/disks/?" + urlencode({**own, **dict.fromkeys(FORWARDED_PARAMETERS, "x")})
    assert got(target, tree({"0": "x"})).status == 200
