"""How Google is reached from a laptop: as its user's other programs reach it."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.auth.exceptions import TransportError

from agent.sender import gcp
from tests.fakes.https_store import private_ca
from tests.fakes.net import Answer, Asked
from tests.unit.sender.support import serving

pytest.importorskip("requests")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        said = (self.headers.get("Authorization") or "nobody").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server whose certificate is of an authority that only this laptop knows, as behind a proxy that opens TLS."""
    certificate, context = private_ca(tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_address[1]}/", certificate
        finally:
            server.shutdown()
            thread.join()


def test_the_authority_that_the_user_named_is_believed(
    authority: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUESTS_CA_BUNDLE is what companies have people set; without it nobody unknown is believed."""
    url, certificate = authority
    with pytest.raises(TransportError):
        gcp._transport()(url, method="GET")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert gcp._transport()(url, method="GET").status == 200


def test_a_proxy_of_the_user_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy that the environment names carries the question, with the token's identity and nobody else's."""
    asked: list[Asked] = []

    def proxy(question: Asked) -> Answer:
        asked.append(question)
        return Answer(200, b"carried")

    with serving(proxy) as url:
        monkeypatch.setenv("http_proxy", url)
        answer = gcp._transport()("http://google.example/x", method="GET", headers={"Authorization": "Bearer t"})
    assert answer.data == b"carried"
    assert asked[0].headers["authorization"] == "Bearer t"


def test_a_password_file_of_the_user_takes_no_tokens_place(
    authority: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An entry of ~/.netrc for the same host is not sent instead of the token."""
    url, certificate = authority
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    answer = gcp._transport()(url, method="GET", headers={"Authorization": "Bearer t"})
    assert answer.data == b"Bearer t"
