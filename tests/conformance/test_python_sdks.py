"""boto3 and google-auth, unmodified, against the workers' endpoint over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from agent.core.model import Cloud, IdToken
from agent.core.secret import Secret
from agent.core.view import Ended, Facts, Pending
from tests.fakes.view import CONTAINER_TOKEN, FakeView, RunningEndpoint, running_endpoint

boto3 = pytest.importorskip("boto3")
pytest.importorskip("google.auth")
pytest.importorskip("requests", reason="google-auth's own transport needs it")


@pytest.fixture
def server() -> Iterator[RunningEndpoint]:
    with running_endpoint(FakeView()) as running:
        yield running


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    import os

    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "GCE_", "GCLOUD_", "CLOUDSDK_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return monkeypatch


class TestBotocore:
    def test_boto3_finds_the_credential_by_the_endpoint_alone(
        self, server: RunningEndpoint, clean_environment: pytest.MonkeyPatch
    ) -> None:
        """boto3 with nothing but the endpoint finds the credential by the EC2 dialect."""
        credential = server.run(lambda: server.view.live_aws(datetime.now(UTC)))
        clean_environment.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)

        found = boto3.session.Session().get_credentials()

        assert found.method == "iam-role"
        frozen = found.get_frozen_credentials()
        assert frozen.access_key == credential.access_key_id
        assert frozen.secret_key == credential.secret_access_key.reveal()
        assert frozen.token == credential.session_token.reveal()
        assert [(a.method, a.status) for a in server.accesses] == [("PUT", 200), ("GET", 200), ("GET", 200)]

    def test_refresh_meets_the_new_credential(
        self, server: RunningEndpoint, clean_environment: pytest.MonkeyPatch
    ) -> None:
        """A client that holds a dying credential gets the renewed one on its next use."""
        server.run(lambda: server.view.live_aws(datetime.now(UTC), life=timedelta(minutes=9), serial=1))
        clean_environment.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        found = boto3.session.Session().get_credentials()
        assert found.get_frozen_credentials().access_key.endswith("1")

        server.run(lambda: server.view.live_aws(datetime.now(UTC), serial=2))
        found._expiry_time = datetime.now(UTC) + timedelta(minutes=1)  # what time would have done

        assert found.get_frozen_credentials().access_key.endswith("2")

    def test_boto3_finds_the_credential_by_the_container_variables(
        self, server: RunningEndpoint, clean_environment: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """boto3 with the container variables and the token's file finds the credential by the container dialect."""
        credential = server.run(lambda: server.view.live_aws(datetime.now(UTC)))
        token = tmp_path / "token"
        token.write_text(CONTAINER_TOKEN)
        clean_environment.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.url + "/v1/credentials")
        clean_environment.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))

        found = boto3.session.Session().get_credentials()

        assert found.method == "container-role"
        assert found.get_frozen_credentials().token == credential.session_token.reveal()
        assert found.account_id == "123456789012"

    def test_botocore_reads_the_region_from_our_zone(
        self, server: RunningEndpoint, clean_environment: pytest.MonkeyPatch
    ) -> None:
        """Botocore's own region fetcher reads the zone we know from configuration."""
        from botocore.utils import InstanceMetadataRegionFetcher

        server.run(lambda: server.view.set_facts(Facts(availability_zone="eu-west-1a")))
        clean_environment.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        fetcher = InstanceMetadataRegionFetcher(base_url=server.url)

        assert fetcher.retrieve_region() == "eu-west-1"

    @pytest.mark.parametrize("answer", [Pending("waiting"), Ended("over", passing=False)])
    def test_no_credential_is_no_credential(
        self, server: RunningEndpoint, clean_environment: pytest.MonkeyPatch, answer: Pending | Ended
    ) -> None:
        """Pending and ended are said on the role list: boto3 finds nothing, and raises nothing."""
        server.run(lambda: server.view.set(Cloud.AWS, answer))
        clean_environment.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)

        assert boto3.session.Session().get_credentials() is None
        assert [a.status for a in server.accesses] == [200, 503]


class TestGoogleAuth:
    @pytest.fixture(autouse=True)
    def metadata_host(self, server: RunningEndpoint, clean_environment: pytest.MonkeyPatch) -> None:
        # google-auth reads its variables once, at import; its module attributes are what they became.
        from google.auth.compute_engine import _metadata

        root = f"127.0.0.1:{server.port}"
        clean_environment.setattr(_metadata, "_GCE_METADATA_HOST", root, raising=False)
        clean_environment.setattr(_metadata, "_METADATA_ROOT", f"http://{root}/computeMetadata/v1/", raising=False)
        clean_environment.setattr(_metadata, "_METADATA_IP_ROOT", f"http://{root}", raising=False)
        clean_environment.setenv("GCE_METADATA_HOST", root)
        clean_environment.setenv("GCE_METADATA_IP", root)

    def test_google_auth_finds_the_project_and_a_token(self, server: RunningEndpoint) -> None:
        """``google.auth.default()`` finds the project and a token that it believes for as long as it lives."""
        import google.auth
        import google.auth.transport.requests

        token = server.run(lambda: server.view.live_gcp(datetime.now(UTC)))
        server.run(lambda: server.view.set_facts(Facts(project_id="example-project", numeric_project_id="42")))

        credentials, project = google.auth.default()
        with requests.Session() as session:
            credentials.refresh(google.auth.transport.requests.Request(session))

        assert project == "example-project"
        assert credentials.token == token.access_token.reveal()
        assert getattr(credentials, "service_account_email") == token.email  # noqa: B009
        assert credentials.valid

    def test_without_a_google_identity_this_is_no_gce_machine(self, server: RunningEndpoint) -> None:
        """Without a Google identity google-auth does not take this machine for a GCE machine."""
        import google.auth
        import google.auth.transport.requests
        from google.auth.compute_engine import _metadata

        with requests.Session() as session:
            assert _metadata.ping(google.auth.transport.requests.Request(session), retry_count=1) is False

    def test_refused_for_good(self, server: RunningEndpoint) -> None:
        """A credential that has ended is a refresh error at once, whose text is ours."""
        import google.auth.exceptions
        import google.auth.transport.requests
        from google.auth.compute_engine import Credentials

        server.run(lambda: server.view.set(Cloud.GCP, Ended("bundle 7 ended; send another", passing=False)))
        with (
            requests.Session() as session,
            pytest.raises(google.auth.exceptions.RefreshError, match="bundle 7 ended; send another"),
        ):
            Credentials().refresh(google.auth.transport.requests.Request(session))

    def test_an_identity_token_is_for_its_audience(self, server: RunningEndpoint) -> None:
        """``fetch_id_token`` gets the minted token of its audience."""
        import google.auth.transport.requests
        from google.oauth2 import id_token

        now = datetime.now(UTC)
        # A JWT's payload is read by the client: header {}, payload {"exp": 4102444800}.
        jwt = "e30.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln"
        server.run(lambda: server.view.live_gcp(now))
        server.view.mints = True
        server.view.id_tokens["https://aud.example"] = IdToken(
            Secret(jwt), "https://aud.example", now, now + timedelta(hours=1)
        )
        server.run(server.view.touch)

        with requests.Session() as session:
            request = google.auth.transport.requests.Request(session)
            assert id_token.fetch_id_token(request, "https://aud.example") == jwt
