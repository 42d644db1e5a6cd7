"""What our clients ask the real services for, our own listener has under the same words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agent.core.model import IdToken
from agent.core.secret import Secret
from agent.core.view import Facts
from agent.wire import names
from tests.fakes.view import CONTAINER_TOKEN, FakeView, RunningEndpoint, running_endpoint

NOT_OURS = {
    "EC2_USER_DATA_PATH",  # hidden: it may carry the bundle
    "EC2_TOKEN_PATH",  # asked for in the tests, with PUT
    # Of the sockets of operators and couriers, which no worker's listener has.
    *("BUNDLE_PATH", "ENROL_PATH", "KEYS_PATH", "REFRESH_PATH", "RELOAD_PATH", "STATUS_PATH"),
}
PATHS = sorted(word for word in vars(names) if word.endswith("_PATH") and word not in NOT_OURS)


@pytest.fixture(scope="module")
def server() -> object:
    view, now = FakeView(), datetime.now(UTC)
    view.live_aws(now)
    view.live_gcp(now)
    view.set_facts(
        Facts(
            region="eu-west-1",
            account_id="123456789012",
            instance_id="7001",
            project_id="example-project",
            numeric_project_id="424242",
            zone="europe-west1-b",
        )
    )
    view.mints = True
    view.id_tokens["a"] = IdToken(Secret("e30.e30.c2ln"), "a", now, now + timedelta(hours=1))
    with running_endpoint(view) as running:
        yield running


def ask(server: RunningEndpoint, method: str, path: str, headers: dict[str, str]) -> tuple[str, str]:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {names.METADATA_IPV4}", *(f"{k}: {v}" for k, v in headers.items())]
    head, _, body = server.send(("\r\n".join(lines) + "\r\n\r\n").encode()).decode().partition("\r\n\r\n")
    return head, body


@pytest.mark.parametrize("word", PATHS)
def test_each_path_is_served(server: RunningEndpoint, word: str) -> None:
    """Each path of a dialect, with the header of that dialect, is answered 200."""
    path: str = vars(names)[word]
    if word.startswith("EC2"):
        head, token = ask(server, "PUT", names.EC2_TOKEN_PATH, {names.EC2_TTL_HEADER: "60"})
        assert f"\r\n{names.EC2_TTL_ECHO}: 60\r\n" in head
        headers = {names.EC2_TOKEN_HEADER: token}
    elif word.startswith("GCE"):
        headers = {names.GCE_FLAVOR_HEADER: names.GCE_FLAVOR}
        path += "?audience=a" if word == "GCE_IDENTITY_PATH" else ""
    else:
        headers = {"Authorization": CONTAINER_TOKEN}

    assert ask(server, "GET", path, headers)[0].startswith("HTTP/1.1 200 ")


def test_the_unguessable_path_of_containers_is_served(server: RunningEndpoint) -> None:
    """What stands behind the prefix of a relative URI is itself the permission."""
    assert ask(server, "GET", names.ECS_PREFIX + CONTAINER_TOKEN, {})[0].startswith("HTTP/1.1 200 ")


def test_whose_it_is_is_said_to_our_own_commands(server: RunningEndpoint) -> None:
    """The header by which ``wait`` asks whose identity it is, is answered under the same name."""
    headers = {"Authorization": CONTAINER_TOKEN, names.ORIGIN_HEADER: "?"}
    assert f"\r\n{names.ORIGIN_HEADER}: bundle" in ask(server, "GET", names.EKS_PATH, headers)[0]
