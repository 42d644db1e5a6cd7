"""``credential-agent forward``: what cannot be begun is one line and a status, at once."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from agent import forward as face
from agent.cli import forward as room
from agent.cli import main
from agent.forward import signing
from tests.unit.sender.support import laptop


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "one of --dask ADDRESS, --ray ADDRESS and --ssh HOST"),
        (["--ssh", "a", "--ray", "b:1"], "one of --dask"),
        (["--ray", "nonsense"], "expected ray://HOST:PORT"),
        (["--ray", "ray://127.0.0.1:{port}"], "cannot connect"),
        (["--ray", "127.0.0.1:{port}"], "cannot connect"),
        (["--ray", "127.0.0.1:99999"], "expected ray://HOST:PORT"),
        (["--ssh", "w", "--policy", "policy.json"], "--policy policy.json: expected JSON"),
        (["--ssh", "-oProxyCommand=x", "--env", "A=b", "--no-aws", "--no-gcp"], "expected the name of a host"),
    ],
)
def test_what_cannot_be_begun_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, argv: list[str], said: str
) -> None:
    """Two clusters or none, an address that is none: 64. Nobody who listens: 69, and ray is not even asked to connect."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.json").write_bytes(b'{"Version": "\xe9"}')
    ray = ModuleType("ray")
    ray.is_initialized = lambda: False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    with socket.socket() as nobody, laptop(monkeypatch, tmp_path):
        nobody.bind(("127.0.0.1", 0))
        port = str(nobody.getsockname()[1])
        with pytest.raises(SystemExit) as caught:
            main(["forward", *(one.replace("{port}", port) for one in argv)])
    told = capsys.readouterr().err
    assert caught.value.code == (69 if said == "cannot connect" else 64)
    assert said in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nonsense"], "expected tcp://HOST:PORT"),
        (["http://127.0.0.1:{port}"], "expected tcp://HOST:PORT"),
        (["tcp://user@127.0.0.1:{port}"], "expected tcp://HOST:PORT"),
        (["tcp://127.0.0.1:{port}"], "cannot connect"),
        (["127.0.0.1:99999"], "expected tcp://HOST:PORT"),
        (["tcp://127.0.0.1:{port}", "--tls-ca", "bad.pem"], "are for tls://"),
        (["tls://127.0.0.1:{port}"], "needs --tls-ca and --tls-cert"),
        (["tls://127.0.0.1:{port}", "--tls-ca", "bad.pem"], "needs --tls-ca and --tls-cert"),
        (["tls://127.0.0.1:{port}", "--tls-ca", "bad.pem", "--tls-cert", "bad.pem"], "bad.pem cannot be used"),
        (["tls://127.0.0.1:{port}", "--tls-ca", "none.pem", "--tls-cert", "bad.pem"], "No such file"),
        (["wss://127.0.0.1:{port}", "--tls-cert", "bad.pem"], "needs --tls-ca and --tls-cert"),
    ],
)
def test_a_dask_cluster_that_cannot_be_reached_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, argv: list[str], said: str
) -> None:
    """An address that is none, nobody who listens, certificates that are missing or none: one line, before Dask is asked.

    Dask itself would neither end nor say so.
    """
    pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pem").write_text("no certificate")
    with socket.socket() as nobody, laptop(monkeypatch, tmp_path):
        nobody.bind(("127.0.0.1", 0))
        port = str(nobody.getsockname()[1])
        with pytest.raises(SystemExit) as caught:
            main(["forward", "--dask", *(one.replace("{port}", port) for one in argv)])
    told = capsys.readouterr().err
    assert caught.value.code == (69 if said == "cannot connect" else 64)
    assert said in told
    assert "Traceback" not in told


def test_a_key_is_made_only_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The user's own key is made once, and said; a name that is mistyped, or ``-``, makes none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def told(*argv: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["forward", *argv])
        return (caught.value.code, *capsys.readouterr())

    for argv in (["--launch-line"], ["--ssh", "w", "--env", "MYAPP_A=b", "--no-aws", "--no-gcp"]):
        status, out, err = told(*argv, "--signer", "typo.jwk")
        assert (status, out) == (71, "")
        assert "typo.jwk: there is no signing key" in err
        status, out, err = told(*argv, "--signer", "-")
        assert (status, out) == (64, "")
        assert "expected the name of a file" in err
    assert list(tmp_path.iterdir()) == []
    status, line, err = told("--launch-line")
    assert (status, err) == (0, f"made a signing key: {tmp_path}/config/credential-agent/sender.jwk\n")
    assert told("--launch-line") == (0, line, "")
    assert told("--launch-line", "--signer", str(tmp_path / "config/credential-agent/sender.jwk")) == (0, line, "")


@pytest.mark.parametrize(("served", "code"), [((1, 0, 0), 0), ((0, 1, 0), 0), ((0, 0, 1), 0), ((0, 0, 0), 69)])
def test_whoever_was_served_counts_though_the_cluster_has_gone(
    monkeypatch: pytest.MonkeyPatch, served: tuple[int, ...], code: int
) -> None:
    """69 says that no worker was served, and not that none is there any more at the end of the day."""
    looks, waits = list(served), [False, True]

    class Running:
        def status(self) -> SimpleNamespace:
            return SimpleNamespace(served=looks.pop(0))

    class Ended:
        def wait(self, _seconds: float) -> bool:
            return waits.pop(0)

    monkeypatch.setattr(room, "threading", SimpleNamespace(Event=Ended))
    monkeypatch.setattr(face, "ssh", lambda *_words, **_wanted: contextlib.nullcontext(Running()))
    monkeypatch.setattr(signing, "named", lambda _path: None)
    with pytest.raises(SystemExit) as caught:
        main(["forward", "--ssh", "w"])
    assert caught.value.code == code
