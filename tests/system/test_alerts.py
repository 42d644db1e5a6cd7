"""Each alert comes up in the state that it is for, on a real agent, and none on a healthy one: a real Prometheus decides.

The rules are those that are shipped, without their time to wait (``tests/test_monitoring.py`` tries that), and with what looks
back for half an hour or two minutes looking back for seconds. Not tried here, since a test cannot put an agent there in
seconds: a redirection that is broken (``tests/system/test_boot.py``), a clock that is wrong, memory, lines of
the log or the audit that are lost.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from agent import bundle
from tests.system.harness import NOBODY, Agent, UnixConnection, World, until
from tests.system.test_scraping import PROMETHEUS, free_port, get, rules, unprivileged
from tests.test_monitoring import RULES

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, several users"),
    pytest.mark.skipif(not PROMETHEUS.exists(), reason="run tests/conformance/prometheus/setup (needs apt)"),
]

SOONER = {"CredentialAgentGone": ("offset 30m", "offset 5s"), "CredentialAgentStale": ("> 120", "> 5")}
"""What looks back too far for a test, and in whose place it looks back less far."""
STS_ERROR = '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Code>{}</Code><Message>no</Message></Error></ErrorResponse>'
STS_ANSWER = (
    '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><AssumedRoleUser>'
    "<Arn>arn:aws:sts::123456789012:assumed-role/Data/x</Arn><AssumedRoleId>A:x</AssumedRoleId></AssumedRoleUser><Credentials>"
    "<AccessKeyId>ASIAMINTED0000000000</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>"
    "<Expiration>{}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
)


class Served(http.server.BaseHTTPRequestHandler):
    """Answers with what its server's function says of the path."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = self.server.says(self.path)  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - the name that http.server wants


@contextlib.contextmanager
def serving(says: Callable[[str], tuple[int, bytes]]) -> Iterator[str]:
    """An HTTP server; its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Served)
    server.says = says  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Fleet:
    """Agents, each with a name, scraped by one Prometheus as a job of that name."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.place, self.stack = place, stack
        self.worlds: dict[str, World] = {}
        self.agents: dict[str, Agent] = {}
        self.port = 0

    def start(self, name: str, changes: Mapping[str, Any] | None = None) -> tuple[World, Agent]:
        """Another agent, served from a bundle with a session of six hours if ``drop`` does not say otherwise."""
        root = self.place / name
        root.mkdir()
        world = self.worlds[name] = World(root)
        return world, self.begin(name, changes)

    def begin(self, name: str, changes: Mapping[str, Any] | None = None) -> Agent:
        """Start it, or once more."""
        agent = self.agents[name] = self.stack.enter_context(self.worlds[name].agent(changes))
        return agent.ready()

    def says(self, path: str) -> tuple[int, bytes]:
        """The metrics of the agent whose name is the path."""
        connection = UnixConnection(self.worlds[path.strip("/")].root / "run" / "control", 5)
        try:
            connection.request("GET", "/metrics")
            return 200, connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return 503, b""
        finally:
            connection.close()

    def watched(self) -> None:
        """Have Prometheus look at all of them, each second."""
        target = urllib.parse.urlsplit(self.stack.enter_context(serving(self.says))).netloc
        document = yaml.safe_load(RULES.read_text())
        for rule in document["groups"][0]["rules"]:
            before, after = SOONER.get(rule["alert"], ("", ""))
            assert before in rule["expr"]
            rule["expr"], rule["for"] = rule["expr"].replace(before, after) if before else rule["expr"], "0s"
        (self.place / "alerts.yml").write_text(json.dumps(document))
        jobs = [
            {"job_name": name, "metrics_path": f"/{name}", "static_configs": [{"targets": [target]}]}
            for name in self.worlds
        ]
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(self.place / "alerts.yml")],
            "scrape_configs": jobs,
        }
        (self.place / "prometheus.yml").write_text(json.dumps(configuration))
        (self.place / "data").mkdir()
        os.chown(self.place / "data", NOBODY, NOBODY)
        self.port = free_port()
        arguments = [
            f"--config.file={self.place / 'prometheus.yml'}", f"--storage.tsdb.path={self.place / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip
        self.stack.enter_context(unprivileged(PROMETHEUS, arguments))
        until(lambda: len(self.known()) == len(self.worlds), what="a scrape of each")

    def known(self) -> set[str]:
        """The jobs that were scraped."""
        said = get(self.port, "/api/v1/query?" + urllib.parse.urlencode({"query": "credential_agent_build_info"}))
        return {one["metric"]["job"] for one in json.loads(said)["data"]["result"]} if said else set()

    def firing(self, name: str) -> set[str]:
        """The alerts that are up for an agent, without what all their names begin with."""
        return {
            rule["name"].removeprefix("CredentialAgent")
            for rule in rules(self.port)
            for alert in rule["alerts"]
            if alert["state"] == "firing" and alert["labels"].get("job") == name
        }


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="al-") as directory, ExitStack() as stack:
        place = Path(directory)
        place.chmod(0o755)
        yield Fleet(place, stack)


def role_of(world: World) -> bytes:
    """A bundle whose session STS makes, from one that lasts."""
    return world.seal(msgspec.structs.replace(world.session(), id="base"), world.role_grant(base="base"))


def test_each_alert_comes_up_in_its_state_and_none_on_a_healthy_agent(fleet: Fleet) -> None:
    """Fifteen agents, each put into one state; Prometheus has exactly the alerts of that state up for each."""
    mood = {"failing": "ok", "denied": "AccessDenied"}

    def sts(path: str) -> tuple[int, bytes]:
        word = mood[path.partition("?")[0].strip("/")]
        if word == "ok":  # so short that it is renewed at once
            until_ = datetime.now(UTC) + timedelta(minutes=3)
            return 200, STS_ANSWER.format(until_.strftime("%Y-%m-%dT%H:%M:%SZ")).encode()
        return 403 if word == "AccessDenied" else 500, STS_ERROR.format(word).encode()

    service = fleet.stack.enter_context(serving(sts))
    worlds = {}
    changes: dict[str, dict[str, Any]] = {
        "healthy": {}, "gone": {}, "restarting": {}, "ended": {}, "horizon": {}, "suspicious": {}, "refused": {}, "source": {},
        "failing": {"mint": {"sts_endpoint": f"{service}/failing"}},
        "denied": {"mint": {"sts_endpoint": f"{service}/denied"}},
        "crowded": {"listen": {"max_connections": 16}},
    }  # fmt: skip
    for name, change in changes.items():
        worlds[name], _ = fleet.start(name, change)
    for name in set(worlds) - {"ended", "horizon", "failing", "denied"}:
        worlds[name].drop(worlds[name].seal(worlds[name].session()))
    audit = {"audit": {"file": fleet.place / "none" / "audit.jsonl", "seconds": 1.0}}
    worlds["audit"], _ = fleet.start("audit", audit)
    worlds["audit"].drop(worlds["audit"].seal(worlds["audit"].session()))

    (fleet.place / "unwritten").mkdir()
    full = worlds["unwritten"] = fleet.worlds["unwritten"] = World(fleet.place / "unwritten")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(full.state)], check=True)
    fleet.stack.callback(subprocess.run, ["umount", "-l", str(full.state)], check=True)
    (full.state / "x").write_bytes(b"x" * 4096)
    fleet.begin("unwritten")
    full.drop(full.seal(full.session()))

    (fleet.place / "without").mkdir()
    lacking = worlds["without"] = fleet.worlds["without"] = World(fleet.place / "without")
    two = [{"kind": "file", "path": lacking.key_file}, {"kind": "file", "path": lacking.root / "etc" / "none.jwk"}]
    fleet.begin("without", {"keys": two})
    lacking.drop(lacking.seal(lacking.session()))

    (fleet.place / "pending").mkdir()
    waiting = fleet.worlds["pending"] = World(fleet.place / "pending")
    long = waiting.agent({"identity": {"grace_seconds": 600.0}})
    fleet.agents["pending"] = fleet.stack.enter_context(long).started()

    fleet.watched()
    # What rises is put into its state only now: what was so from the first scrape on never rose.
    agents = fleet.agents
    worlds["ended"].drop(worlds["ended"].seal(worlds["ended"].session(hours=8 / 3600)))
    worlds["horizon"].drop(worlds["horizon"].seal(worlds["horizon"].session(hours=0.4)))
    for name in ("failing", "denied"):
        worlds[name].drop(role_of(worlds[name]))
    agents["failing"].wait_for("credential.issued")
    mood["failing"] = "InternalFailure"
    worlds["refused"].drop(
        worlds["refused"].seal(worlds["refused"].session(), signer=bundle.SigningKey.generate("Ed25519"))
    )
    worlds["source"].bundle_file.unlink()
    worlds["source"].bundle_file.mkdir()
    agents["source"].signal(signal.SIGHUP)
    agents["suspicious"].ask("/latest/meta-data/", headers={"Host": "evil.example"})
    held = [fleet.stack.enter_context(socket.create_connection(agents["crowded"].address)) for _ in range(40)]
    assert held
    agents["audit"].access_key()
    for count in range(4):
        agents["restarting"].stop()
        fleet.begin("restarting")
        until(partial(restarts, fleet, count + 1), what="Prometheus to see the restart")

    wanted = {
        "healthy": set(), "gone": set(), "restarting": {"Restarting"}, "ended": {"IdentityEnded"},
        "horizon": {"HorizonNear"}, "suspicious": {"SuspiciousRequests"}, "refused": {"BundlesRefused"},
        "source": {"SourceDown"}, "failing": {"RenewalFailing", "ExpiresSoon"}, "denied": {"RenewalDenied", "IdentityEnded"},
        "crowded": {"Crowded"}, "audit": {"Without"}, "unwritten": {"StateUnwritten"}, "without": {"Without"},
        "pending": {"Pending"},
    }  # fmt: skip
    seen: dict[str, set[str]] = {}
    still = set(wanted)

    def all_came() -> bool:
        """An agent is looked at until it has its alerts, all at once: some go by, and some ends bring others."""
        for name in sorted(still):
            seen[name] = fleet.firing(name)
            if seen[name] == wanted[name] != set():
                still.discard(name)
        return still == {"healthy", "gone"}

    try:
        until(all_came, seconds=180, what="the alerts")
    except AssertionError as error:
        error.add_note(str({name: (seen[name], wanted[name]) for name in still}))
        raise
    assert fleet.firing("healthy") == fleet.firing("gone") == set()
    agents["gone"].kill()
    until(lambda: fleet.firing("gone") == {"Gone"}, what="the alert of the agent that has gone")


def restarts(fleet: Fleet, number: int) -> bool:
    """Whether Prometheus has seen so many."""
    query = 'changes(credential_agent_start_timestamp_seconds{job="restarting"}[15m])'
    said = get(fleet.port, "/api/v1/query?" + urllib.parse.urlencode({"query": query}))
    found = json.loads(said)["data"]["result"] if said else []
    return bool(found) and float(found[0]["value"][1]) >= number
