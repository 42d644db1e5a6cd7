"""Many programs that ask for the first time at the same instant, on a machine whose processors have no time left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.loads import computing
from tests.system.harness import REPOSITORY, World

pytestmark = pytest.mark.slow

PROGRAMS = 200
COMPUTE = 8
CODE = "import json, sys; from tests.bench.cold import together; print(json.dumps(together(json.loads(sys.argv[1]), {count})))"


@pytest.mark.parametrize("endpoint", ["ec2", "container"])
def test_nobody_goes_without_in_a_cold_start_of_many(endpoint: str, tmp_path: Path) -> None:
    """Botocore asks the metadata service once, for a second, and remembers a miss: each of them has its credential."""
    if os.getloadavg()[0] > 2 * (os.cpu_count() or 1):
        pytest.skip("others compute here: a client's second is theirs, and not the agent's")
    world = World(tmp_path)
    with world.agent() as agent:
        agent.ready()
        world.drop(world.seal(world.session("ASIAUSER000000000001")))
        agent.wait_for("bundle.accepted", seq=1)
        env = world.env()
        names = {
            "ec2": ("AWS_EC2_METADATA_SERVICE_ENDPOINT",),
            "container": ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
        }[endpoint]
        told = json.dumps({name: env[name] for name in names})
        with computing(COMPUTE):
            command = [sys.executable, "-W", "ignore", "-c", CODE.format(count=PROGRAMS), told]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout)
    assert (found["errors"], found["sequences"]) == (0, PROGRAMS), found
    print(found)
