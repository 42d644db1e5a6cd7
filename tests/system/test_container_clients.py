"""Unmodified clients in a container and on the host, with nothing but the containers' file, through the real packet filter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host import aliases, nft, ranges
from tests.system import lab
from tests.system.harness import Agent, World, until
from tests.system.lab import AGENT_PORT, AGENT_UID, Lab

pytestmark = [
    pytest.mark.skipif(lab.missing() is not None, reason=lab.missing() or ""),
    pytest.mark.xdist_group("lab"),
]
WORKERS = nft.Workers(uids=ranges.parse_uids(["1000-60513"]))

#: Become a user, but one who may still read this interpreter wherever it lies (its home may be root's).
BECOME = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
os.setresgid(1000, 1000, 1000)
os.setresuid(1000, 1000, 1000)
header, data = struct.pack("II", 0x20080522, 0), struct.pack("6I", 4, 4, 0, 0, 0, 0)  # CAP_DAC_READ_SEARCH
assert libc.capset(header, data) == 0
"""
BOTO = """
import botocore.session
found = botocore.session.Session().get_credentials()
print(found.method, found.get_frozen_credentials().access_key)
"""
GOOGLE = """
import google.auth, google.auth.transport.urllib3, urllib3
credentials, project = google.auth.default()
credentials.refresh(google.auth.transport.urllib3.Request(urllib3.PoolManager()))
print(credentials.token)
"""
CRT = """
from awscrt.auth import AwsCredentialsProvider
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup
group = EventLoopGroup(1)
bootstrap = ClientBootstrap(group, DefaultHostResolver(group))
print(AwsCredentialsProvider.new_default_chain(bootstrap).get_credentials().result(20).access_key_id)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Agent, dict[str, str]]]:
    """A host with an agent that serves both clouds, a container behind a bridge, and the containers' file."""
    root = tmp_path_factory.mktemp("w")
    world = World(root)
    file = root / "run" / "container.env"
    with Lab("docker0") as net:
        net.at(net.host, "ip", "address", "add", f"{aliases.ALIAS4}/32", "dev", "lo", "scope", "host")
        net.at(net.host, "ip", "address", "add", f"{aliases.ALIAS6}/128", "dev", "lo", "nodad")
        changes = {
            "listen": {
                "http": [
                    f"127.0.0.1:{AGENT_PORT}",
                    f"[::1]:{AGENT_PORT}",
                    f"{aliases.ALIAS4}:{AGENT_PORT}",
                    f"[{aliases.ALIAS6}]:{AGENT_PORT}",
                ]
            },
            "environment": {"container_file": file},
        }
        with world.agent(changes, through=["ip", "netns", "exec", net.host]) as agent:
            agent.ready()
            agent.push(world.seal(world.session(), world.google("ya29.from-the-bundle")))
            net.nft(nft.ruleset(WORKERS, port=AGENT_PORT, agent_uid=AGENT_UID))
            text = until(lambda: file.read_text() if "GCE_METADATA_HOST" in file.read_text() else "", what="the file")
            yield net, agent, dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))


def run(net: Lab, where: str, environ: dict[str, str], program: str) -> str:
    """What a program says that runs in the container, or as an ordinary user of the host."""
    space = net.job if where == "container" else net.host
    given = [f"{name}={value}" for name, value in environ.items()]
    code = program if where == "container" else BECOME + program
    return net.at(space, "env", "-i", "HOME=/nonexistent", *given, sys.executable, "-c", code).strip()


@pytest.mark.parametrize("where", ["container", "host"])
@pytest.mark.parametrize(
    ("program", "said"), [(BOTO, "container-role"), (GOOGLE, "ya29.from-the-bundle"), (CRT, "ASIA")]
)
def test_a_client_finds_its_identity(
    served: tuple[Lab, Agent, dict[str, str]], where: str, program: str, said: str
) -> None:
    """botocore, the CRT and google-auth need nothing but the file: no file, no name, no loopback of the host."""
    net, _, environ = served
    if program is CRT:
        pytest.importorskip("awscrt", reason="needs awscrt (make matrix installs it)")
    assert said in run(net, where, environ, program)


@pytest.mark.parametrize("address", ["169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"])
@pytest.mark.parametrize("where", ["container", "host"])
def test_each_address_of_a_container_endpoint_is_led(
    served: tuple[Lab, Agent, dict[str, str]], where: str, address: str
) -> None:
    """The id opens the endpoint under each address that SDKs take, and nothing opens it without the id."""
    net, _, environ = served
    path = environ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]
    ask = (
        "import sys, urllib.request as r, urllib.error as e\n"
        f"for path in ({path!r}, '/v2/credentials/guess', '/v1/credentials'):\n"
        f"    try: print(r.urlopen('http://{address}' + path, timeout=5).status)\n"
        "    except e.HTTPError as error: print(error.code)\n"
    )
    assert run(net, where, {}, ask).split() == ["200", "401", "401"]


def test_the_file_names_nothing_of_the_host(served: tuple[Lab, Agent, dict[str, str]]) -> None:
    """What a container is told is an address that it has a way to."""
    _, _, environ = served
    assert not [value for value in environ.values() if "127." in value or "localhost" in value or Path(value).exists()]
