"""The way to those who vouch for machines is the one that boto3 takes: certificates, proxies, endpoints."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import botocore.session
import pytest
from botocore.config import Config

from agent.core.errors import UsageError
from agent.forward.vouching import Vouching, sts_url
from agent.forward.wanted import begin
from agent.sender.https import Https
from tests.fakes.https_store import private_ca
from tests.unit.sender.support import laptop


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        # A proxy is asked for a whole URL, a server for a path.
        said = b"by a proxy" if "://" in self.path else b"directly"
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Answers who asks for a path, and who takes it for a proxy; gives its port."""
    made = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    if context is not None:
        made.socket = context.wrap_socket(made.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made.server_address[1]
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def body(https: Https, url: str) -> bytes:
    return https.exchange("GET", url, {}, None)[2]


def test_certificates_that_boto3_would_trust_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the forwarded profile names, AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE; without any of these nobody's."""
    authority, context = private_ca(tmp_path)
    (tmp_path / "config").write_text(f"[profile corp]\nca_bundle = {authority}\n")
    with server(context) as port:
        url = f"https://127.0.0.1:{port}/"
        with laptop(monkeypatch, tmp_path):
            assert body(Https("corp"), url) == b"directly"
            assert body(Https(boto3.Session(profile_name="corp")), url) == b"directly"
            with pytest.raises(OSError, match="SSLError"):
                body(Https(environ=os.environ), url)
        for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
            with laptop(monkeypatch, tmp_path, **{name: str(authority)}):
                assert body(Https(environ=os.environ), url) == b"directly"
        with laptop(monkeypatch, tmp_path, AWS_PROFILE="of-another-cloud"), pytest.raises(OSError, match="SSLError"):
            body(Https(environ=os.environ), url)


def test_a_proxy_is_asked_for_the_hosts_that_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """no_proxy= is about the host that is asked, not about any other of AWS's; a session's own proxies come first."""
    with server() as proxy, server() as port:
        there = f"http://127.0.0.1:{proxy}"
        with laptop(monkeypatch, tmp_path, http_proxy=there, no_proxy="localhost"):
            https = Https()
            assert body(https, f"http://127.0.0.1:{port}/") == b"by a proxy"
            assert body(https, f"http://localhost:{port}/") == b"directly"
        with laptop(monkeypatch, tmp_path, no_proxy="*"):
            configured = botocore.session.Session()
            configured.set_default_client_config(Config(proxies={"http": there}))
            assert body(Https(boto3.Session(botocore_session=configured)), f"http://127.0.0.1:{port}/") == b"by a proxy"


def test_evidence_is_sent_to_sts_or_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's hosts, a VPC endpoint of STS, this computer. Any other place could vouch for any machine: nothing begins."""
    own = "https://vpce-0a1-b2.sts.eu-west-1.vpce.amazonaws.com"
    assert sts_url("https://sts.eu-west-1.amazonaws.com") is None
    assert sts_url(own) == own + "/"
    for here in ("http://127.0.0.1:5000", "http://localhost:4566", "https://[::1]:5000/"):
        assert sts_url(here) == here
    for other in (
        "http://sts.eu-west-1.amazonaws.com",
        "http://vpce-0a1-b2.sts.eu-west-1.vpce.amazonaws.com",
        "https://vpce-0a1-b2.sts.eu-west-1.vpce.amazonaws.com.example",
        "https://vpce-0a1-b2.vpce-svc-0f.eu-west-1.vpce.amazonaws.com",
        "https://vpce-0a1-b2.sts.nowhere.vpce.amazonaws.com",
        "https://minio.example:9000",
        "http://10.0.0.1",
        "https://127.0.0.1.example",
        "https://sts.amazonaws.com:8443",
        "https://sts.amazonaws.com:99999",
        "https://ada:password@minio.example",
    ):
        with pytest.raises(UsageError, match="vouch for any machine") as caught:
            sts_url(other)
        assert "AWS_ENDPOINT_URL_STS" in str(caught.value.hint)
        assert "password" not in caught.value.message
    (tmp_path / "config").write_text(
        f"[profile vpc]\nservices = s\n[profile far]\nendpoint_url = https://minio.example\n[services s]\nsts =\n"
        f"  endpoint_url = {own}\n"
    )
    with laptop(monkeypatch, tmp_path):
        assert Https("vpc").sts_endpoint() == own
        Vouching("vpc")
        Vouching("no-such-profile")  # whoever looks for the identity says that
        with pytest.raises(UsageError, match=r"minio\.example"):
            Vouching("far")
    with laptop(monkeypatch, tmp_path, AWS_ENDPOINT_URL="https://minio.example"):
        Vouching(None)  # nothing of AWS is forwarded, and nobody said where its STS is
        with pytest.raises(UsageError, match=r"minio\.example"):
            Vouching("auto")
    with (
        laptop(monkeypatch, tmp_path, AWS_ENDPOINT_URL_STS="no url"),
        pytest.raises(UsageError, match="cannot be used"),
    ):
        Vouching("auto")
    for wanted in ({}, {"aws": "auto"}):  # and that is what a forwarding does that nobody told anything
        with (
            laptop(monkeypatch, tmp_path, AWS_ENDPOINT_URL_STS="https://minio.example"),
            pytest.raises(UsageError, match=r"minio\.example"),
        ):
            begin(lambda *_: None, wanted)
