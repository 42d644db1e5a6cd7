"""Both clouds have one address, and an image for both names it twice: what a machine of one of them does with the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.model import Cloud
from agent.daemon import compose
from agent.host.clock import SystemClock
from agent.upstream import Upstream
from tests.unit.daemon.test_small_print import firmware, settings

LINK, EMULATOR = "http://169.254.169.254", "http://127.0.0.1:8080"
BOTH = frozenset(Cloud)


@pytest.mark.parametrize(
    ("vendor", "ec2", "gce", "passes"),
    [
        ("Amazon EC2", LINK, LINK, {Cloud.AWS}),
        ("Google", LINK, LINK, {Cloud.GCP}),
        ("Amazon EC2", "auto", "http://metadata.google.internal", {Cloud.AWS}),
        ("Google", "http://[fd00:ec2::254]:80", "auto", {Cloud.GCP}),
        ("Amazon EC2", LINK, EMULATOR, BOTH),
        ("Google", EMULATOR, LINK, BOTH),
        ("QEMU", LINK, LINK, BOTH),
        ("Amazon EC2", "off", LINK, set()),
        ("Amazon EC2", "off", "off", set()),
    ],
)
def test_workers_are_not_led_to_the_other_clouds_service(
    tmp_path: Path, vendor: str, ec2: str, gce: str, passes: set[Cloud]
) -> None:
    """Where the firmware names a cloud, nobody is told in the other's dialect that this is one of its machines."""
    wrote = settings(f'[upstream]\nec2 = "{ec2}"\ngce = "{gce}"')
    found = compose.Metadata(wrote, Upstream(), SystemClock(), root=firmware(tmp_path, vendor))
    assert found.passes == passes
    of_aws, of_google = found.passed(Upstream())
    assert (of_aws is not None, of_google is not None) == (Cloud.AWS in passes, Cloud.GCP in passes)
    # The agent itself asks both: what is there is said by whoever answers.
    assert (found.ec2 is not None, found.gce is not None) == (ec2 != "off", gce != "off")
