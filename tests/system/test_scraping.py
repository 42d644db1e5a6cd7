"""Scraped as it would be: the daemon's file, node_exporter that may read nothing else, and a Prometheus with our rules."""

from __future__ import annotations

import contextlib
import grp
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import NOBODY, World, as_user, until
from tests.test_events import rows, ticked
from tests.test_monitoring import DASHBOARD, FETCHED, NAME, RULES

COLLECTOR = FETCHED / "prometheus-node-exporter"
PROMETHEUS = FETCHED / "prometheus"
GROUP = "audio"
"""Some group of every Debian's, in the place of ``credential-metrics``."""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: several users"),
    pytest.mark.skipif(not COLLECTOR.exists(), reason="run tests/conformance/prometheus/setup (needs apt)"),
]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may pass, as /run is."""
    root = Path(tempfile.mkdtemp(prefix="scrape-"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str) -> str:
    """The body of a 200; empty while nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status == 200:
            return answer.read().decode()
    return ""


@contextmanager
def unprivileged(program: Path, arguments: Sequence[str], *, group: str | None = None) -> Iterator[None]:
    """A program as a user without any right, and perhaps one group."""
    command = as_user([], NOBODY)
    if group is not None:
        command[command.index("--clear-groups")] = f"--groups={grp.getgrnam(group).gr_gid}"
    # By its descriptor: the user need not pass the directories where the tests lie.
    binary = os.open(program, os.O_RDONLY)
    try:
        process = subprocess.Popen(
            [*command, f"/proc/self/fd/{binary}", *arguments],
            pass_fds=[binary], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
    finally:
        os.close(binary)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def collecting(directory: Path, *, group: str | None) -> Iterator[int]:
    """A node_exporter that has its textfile collector alone; its port."""
    port = free_port()
    arguments = [
        "--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={directory}",
        "--web.disable-exporter-metrics", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with unprivileged(COLLECTOR, arguments, group=group):
        until(lambda: get(port, "/metrics"), what="node_exporter")
        yield port


def readable(path: Path, group: str | None) -> bool:
    command = as_user(["cat", str(path)], NOBODY)
    if group is not None:
        command[command.index("--clear-groups")] = f"--groups={grp.getgrnam(group).gr_gid}"
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def ours(port: int) -> str:
    """What the collector says, once our metrics are in it."""
    text = get(port, "/metrics")
    return text if "credential_agent_" in text else ""


def names(text: str) -> set[str]:
    """The families of a scrape, as the tables name them; a family without a row has its heading."""
    found = re.findall(r"^# TYPE (credential_agent_\w+) (\w+)$", text, re.MULTILINE)
    return {name for name, _ in found}


def ask(port: int, query: str) -> list[dict[str, Any]]:
    """The answer of Prometheus to an instant query."""
    said = get(port, "/api/v1/query?" + urllib.parse.urlencode({"query": query}))
    found: list[dict[str, Any]] = json.loads(said)["data"]["result"] if said else []
    return found


def rules(port: int) -> list[dict[str, Any]]:
    """Our alert rules, once each of them was evaluated."""
    said = get(port, "/api/v1/rules")
    groups = json.loads(said)["data"]["groups"] if said else []
    found = [rule for group in groups for rule in group["rules"]]
    return found if all(rule["health"] != "unknown" for rule in found) else []


def test_a_prometheus_sees_the_worker_and_no_worker_sees_the_metrics(place: Path, tmp_path: Path) -> None:
    """By the textfile collector every metric arrives, rules run on it, and only a member of the group may read the file."""
    world_root = tmp_path / "w"
    world_root.mkdir()
    world = World(world_root)
    file = place / "run" / "metrics.prom"
    collected = place / "collected"
    for directory in (file.parent, collected, place / "data"):
        directory.mkdir(mode=0o755)
    os.chown(place / "data", NOBODY, NOBODY)
    # As the page says: a link in the directory that the collector reads.
    (collected / "credential-agent.prom").symlink_to(file)

    changes = {"metrics": {"textfile": file, "group": GROUP, "seconds": 1.0}}
    with world.agent(changes) as agent:
        agent.ready()
        world.drop(world.seal(world.session("ASIAUSER000000000001")))
        agent.wait_for("bundle.accepted", seq=1)
        until(lambda: file.exists() and 'state{cloud="aws",state="live"} 1.0' in file.read_text(), what="the file")
        assert readable(file, GROUP)
        assert not readable(file, None)

        with collecting(collected, group=None) as stranger:
            assert "credential_agent_" not in get(stranger, "/metrics")
        with collecting(collected, group=GROUP) as port:
            text = until(partial(ours, port), what="metrics")
            assert "node_textfile_scrape_error 0" in text
            of_ours = {name for name in names(text) if name.startswith("credential_agent_")}
            # node_exporter says only what has a row; the control socket also says the headings of what has none.
            exported = names(agent.operate("/metrics").body.decode())
            said = {re.sub(r"_total$", "", name) for row in rows("Metrics") for name in ticked(row[0])}
            assert {re.sub(r"_total$", "", name) for name in exported} == said
            assert {re.sub(r"_total$", "", name) for name in of_ours} <= said
            watched = set(NAME.findall(RULES.read_text())) | set(NAME.findall(DASHBOARD.read_text()))
            assert {re.sub(r"_total$", "", name) for name in watched} <= said

            configuration = {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(place / "alerts.yml")],
                "scrape_configs": [{"job_name": "node", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}],
            }
            (place / "prometheus.yml").write_text(json.dumps(configuration))
            shutil.copy(RULES, place / "alerts.yml")
            web = free_port()
            arguments = [
                f"--config.file={place / 'prometheus.yml'}", f"--storage.tsdb.path={place / 'data'}",
                f"--web.listen-address=127.0.0.1:{web}",
            ]  # fmt: skip
            with unprivileged(PROMETHEUS, arguments):
                (live,) = until(lambda: ask(web, 'credential_agent_state{cloud="aws",state="live"}'), what="a scrape")
                assert live["value"][1] == "1"
                (left,) = ask(web, 'credential_agent_expiry_timestamp_seconds{cloud="aws"} - time()')
                assert 0 < float(left["value"][1]) <= 6 * 3600
                evaluated = until(lambda: rules(web), what="the rules")
                assert {rule["health"] for rule in evaluated} == {"ok"}
                assert [rule["name"] for rule in evaluated if rule["state"] == "firing"] == []
        assert agent.stop() == 0
    assert not file.exists()
