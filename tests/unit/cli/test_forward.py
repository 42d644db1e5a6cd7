"""``credential-agent forward``: what cannot be begun is one line and a status, at once."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agent.cli import main
from tests.unit.sender.support import laptop


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "one of --dask ADDRESS, --ray ADDRESS and --ssh HOST"),
        (["--ssh", "a", "--ray", "b:1"], "one of --dask"),
        (["--ray", "nonsense"], "expected ray://HOST:PORT"),
        (["--ray", "ray://127.0.0.1:{port}"], "cannot connect"),
        (["--ray", "127.0.0.1:{port}"], "cannot connect"),
        (["--ray", "127.0.0.1:99999"], "cannot connect"),
        (["--ssh", "-oProxyCommand=x", "--env", "A=b", "--no-aws", "--no-gcp"], "expected the name of a host"),
    ],
)
def test_what_cannot_be_begun_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, argv: list[str], said: str
) -> None:
    """Two clusters or none, an address that is none, nobody who listens: 64, and ray is not even asked to connect."""
    ray = ModuleType("ray")
    ray.is_initialized = lambda: False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    with socket.socket() as nobody, laptop(monkeypatch, tmp_path):
        nobody.bind(("127.0.0.1", 0))
        port = str(nobody.getsockname()[1])
        with pytest.raises(SystemExit) as caught:
            main(["forward", *(one.replace("{port}", port) for one in argv)])
    told = capsys.readouterr().err
    assert caught.value.code == 64
    assert said in told
    assert "Traceback" not in told


def test_an_address_of_dask_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """Distributed would neither end nor say so."""
    pytest.importorskip("distributed")
    with laptop(monkeypatch, tmp_path), pytest.raises(SystemExit) as caught:
        main(["forward", "--dask", "nonsense"])
    assert caught.value.code == 64
    assert "expected tcp://HOST:PORT" in capsys.readouterr().err
