"""With nothing but a region known, clients find it whichever path they ask."""

from __future__ import annotations

import pytest

from agent.core.view import Facts
from tests.fakes.view import FakeView, running_endpoint

REGION = "ap-southeast-2"


def test_every_client_finds_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore, which asks for the zone, and google-auth's AWS credentials, which cut it, find the configured region."""
    from botocore.utils import InstanceMetadataRegionFetcher
    from google.auth import aws
    from google.auth.transport.urllib3 import Request
    from urllib3 import PoolManager

    view = FakeView()
    view.set_facts(Facts(region=REGION))
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with running_endpoint(view) as server:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        config = {"ec2_metadata_service_endpoint": server.url}
        assert InstanceMetadataRegionFetcher(config=config).retrieve_region() == REGION
        supplier = aws._DefaultAwsSecurityCredentialsSupplier(
            {
                "region_url": f"{server.url}/latest/meta-data/placement/availability-zone",
                "imdsv2_session_token_url": f"{server.url}/latest/api/token",
            }
        )
        with PoolManager() as pool:
            assert supplier.get_aws_region(None, Request(pool)) == REGION
