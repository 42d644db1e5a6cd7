"""The recipe of ``packer/container``, carried out word by word: its image is built, its services run, clients ask."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import bundle
from tests.system import machine as m
from tests.system.engine import Image, Project
from tests.system.harness import World
from tests.test_docs import commands

HERE = m.REPOSITORY / "packer/container"

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.xdist_group("boot"),
    pytest.mark.skipif(m.missing() is not None, reason=str(m.missing())),
]

ASK = """
import json, os, boto3, google.auth, google.auth.transport.urllib3, urllib3
found = boto3.Session().get_credentials()
google_found, _ = google.auth.default()
google_found.refresh(google.auth.transport.urllib3.Request(urllib3.PoolManager()))
print(json.dumps([found.method, found.access_key, google_found.token]))
"""
IMDS = """
import os
for name in ("FULL_URI", "TOKEN_FILE"):
    os.environ.pop(f"AWS_CONTAINER_{'CREDENTIALS' if name == 'FULL_URI' else 'AUTHORIZATION'}_{name}")
import boto3
found = boto3.Session().get_credentials()
print(found.method, found.access_key)
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the Containerfile makes of the payload, on the Python that the payload's wheelhouse is for."""
    base = m.base_image()
    version = m.call(
        "chroot", base, m.release().python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"
    ).strip()
    place = tmp_path_factory.mktemp("stages")
    return Image.build(HERE / "Containerfile", m.payload(), place, base=base, arguments={"PYTHON": version})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The sender: its keys, and what it seals."""
    return World(tmp_path_factory.mktemp("w"))


def page(beginning: str) -> list[str]:
    """The lines of the page's console blocks that begin so."""
    blocks = re.findall(r"^```console\n(.*?)^```$", (HERE / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in commands(block) if line.startswith(beginning)]


@pytest.fixture(scope="module")
def site(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the page has its reader make."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "worker.jwk").write_text(world.key_file.read_text())
    (desk / "sender.pub.jwk").write_text(world.signer_file.read_text())
    (desk / "packer").symlink_to(m.REPOSITORY / "packer")
    placed = [line for line in page("install") if "bundle.jose" not in line]
    assert len(placed) == 3
    for line in placed:
        subprocess.run(["sh", "-ec", line], cwd=desk, check=True)
    return desk / "site"


def deliver(site: Path, sealed: bytes) -> None:
    """Put a bundle in place, by the page's own lines."""
    (site.parent / "bundle.jose").write_bytes(sealed)
    for line in [line for line in (*page("install"), *page("mv")) if "bundle.new" in line]:
        subprocess.run(["sh", "-ec", line], cwd=site.parent, check=True)


def seal(world: World) -> bytes:
    return world.seal(
        world.session(),
        world.google("ya29.from-the-bundle"),
        issuer="laptop:alice@x1",
        audiences=[bundle.audience_key(world.key.kid)],
    )


@pytest.fixture(scope="module")
def project(image: Image, site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with Project(site / "compose.yaml", tmp_path_factory.mktemp("p"), image) as project:
        yield project


def test_both_places_get_the_bundles_identity(project: Project, site: Path, world: World) -> None:
    """Unhealthy without a bundle, healthy with one; clients on the bridge and beside the agent get what it brought.

    No shell is in the root, nothing can be written there, and the part that parses requests is a process of its own.
    The next container of the agent has the identity from the volume, before anything is delivered.
    """
    agent = project.service("agent")
    agent.start()
    agent.wait_for("agent.started")
    assert not agent.healthy()

    deliver(site, seal(world))
    agent.wait_healthy()
    for name, place in (("worker", "bridge"), ("sidecar", "loopback")):
        service = project.service(name)
        said = json.loads(service.run("/opt/credential-agent/bin/python", "-c", ASK))
        assert said == ["container-role", "ASIAUSER000000000000", "ya29.from-the-bundle"], place
        assert service.run("/opt/credential-agent/bin/python", "-c", IMDS).split() == [
            "iam-role",
            "ASIAUSER000000000000",
        ]

    # What the page says of the container.
    status = agent.execute("/opt/credential-agent/bin/credential-agent", "status", "--json")
    assert status.returncode == 0, status.stderr
    document = json.loads(status.stdout)
    assert document["clouds"]["aws"]["origin"] == "bundle"
    sound = agent.execute("/opt/credential-agent/bin/credential-agent", "doctor")
    assert sound.returncode == 0, sound.stdout
    assert "server.gone" not in agent.log
    tasks = agent.tasks()
    assert len(tasks) < agent.told["pids_limit"]
    assert [line for line in tasks if "agent.server" in line]
    assert "Read-only" in agent.execute("/bin/touch", "/opt/x").stderr
    looked = project.service("worker").run("/bin/ls", "/run/credential-agent").split()
    assert "token" in looked
    assert not [one for one in looked if one.endswith(".sock")]
    with pytest.raises(AssertionError, match="Permission denied"):
        project.service("sidecar").run("/bin/cat", "/run/credential-agent/token", groups=())

    assert agent.stop() == 0
    (site / "bundle/bundle.jose").unlink()
    again = project.service("agent")
    again.start()
    again.wait_healthy()


def test_the_image_has_what_the_page_says(image: Image, project: Project) -> None:
    """One health check in both files, nothing that installs, and the agent's user can write nowhere in the image."""
    assert project.document["services"]["agent"]["healthcheck"]["test"] == ["CMD", *image.health]
    tree = image.layers[-1]
    assert not list(tree.glob("opt/credential-agent/bin/pip*"))
    assert not list(tree.glob("payload"))
    owned = [path for path in tree.rglob("*") if path.lstat().st_uid == int(image.user)]
    assert sorted(str(path.relative_to(tree)) for path in owned) == [
        "run/agent",
        "run/credential-agent",
        "var/lib/credential-agent",
    ]
    open_to_all = [path for path in tree.rglob("*") if not path.is_symlink() and path.lstat().st_mode & 0o022]
    assert open_to_all == []
