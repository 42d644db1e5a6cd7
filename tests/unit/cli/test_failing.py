"""How a command fails: with a line, a status of the table, and one document where a document was asked for."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import click
import pytest

from agent import cli
from agent.cli import ask, documents, exits
from agent.cli.terminal import fitted
from agent.core.errors import HostError
from tests.unit.cli.test_worker import Endpoint

ASKING = (
    ("status",), ("whoami",), ("pubkey",), ("refresh",), ("reload",), ("push", "BUNDLE"),
    ("wait", "--timeout", "0"), ("wait", "--timeout", "0", "--workers"),
)  # fmt: skip
"""Every command with a document that asks the agent, but `doctor`, which begins processes."""
STATUS: dict[str, object] = {
    "clouds": {"aws": {"state": "absent", "why": "verläuft \N{SNOWMAN}"}}, "bundle": None, "sources": {},
    "credentials": [], "last_refusal": None, "memory_unwritten": False,
}  # fmt: skip
ANSWERS = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "other members": b'{"clouds": 7, "keys": {}, "sources": 1, "outcome": []}',
    "a page": b"<html>sign in</html>",
    "half of it": b'{"clouds": {"aws": ',
    "no text": b"\xff\xfe\n",
    "a part of each": b'{"clouds": {"aws": {}}, "last_refusal": null, "bundle": {}, "sources": [{}], "credentials": [{}], '
    b'"memory_unwritten": 0, "keys": [{}], "outcome": "perhaps", "needs_restart": 7}',
}


class Odd:
    """Listens where the agent would, and answers every request with the same bytes; ``None``: hangs up."""

    def __init__(self, root: Path) -> None:
        self.body: bytes | None = b""
        self.config = root / "config.toml"
        self._sockets = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
        self._sockets[1].bind(str(root / "control"))
        self._sockets[1].listen()
        port = self._sockets[0].getsockname()[1]
        self.config.write_text(
            f'[listen]\nhttp = ["127.0.0.1:{port}"]\ncontrol = "{root}/control"\ncourier = "off"\n'
            f'[environment]\nfile = "{root}/env"\ntoken_file = "{root}/token"\n'
        )
        (root / "token").write_text("bearer")
        (root / "BUNDLE").write_text("sealed")
        self._threads = [threading.Thread(target=self._serve, args=(one,)) for one in self._sockets]
        for thread in self._threads:
            thread.start()

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection = listener.accept()[0]
                with connection, connection.makefile("rb") as asked:
                    head = [line.lower() for line in takewhile(bool, iter(asked.readline, b"\r\n"))]
                    asked.read(sum(int(line.split()[1]) for line in head if line.startswith(b"content-length:")))
                    if self.body is not None:
                        said = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.body)}\r\nConnection: close\r\n\r\n"
                        connection.sendall(said.encode() + self.body)

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Odd]:
    opened = Odd(tmp_path)
    yield opened
    opened.close()


def ended(
    words: tuple[str, ...], config: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[dict[str, object]], str]:
    """The status of a command with ``--json``, the documents on its standard output, and its standard error."""
    given = [str(config.parent / word) if word == "BUNDLE" else word for word in words]
    with pytest.raises(SystemExit) as caught:
        cli.main([*given, "--json", "--config", str(config)])
    said = capsys.readouterr()
    found, rest, decoder = [], said.out.strip(), json.JSONDecoder()
    while rest:
        document, length = decoder.raw_decode(rest)
        found.append(document)
        rest = rest[length:].strip()
    assert isinstance(caught.value.code, int)
    return caught.value.code, found, said.err


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_an_answer_that_makes_no_sense_is_one_document(
    odd: Odd, words: tuple[str, ...], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever answers in the agent's place, and whatever: one document, a status of the table, no traceback."""
    odd.body = ANSWERS[answer]
    code, found, error = ended(words, odd.config, capsys)
    assert code in exits.TABLE.keys() - {exits.EX_OK, exits.EX_SOFTWARE}, error
    assert len(found) == 1, (found, error)
    assert "Traceback" not in error
    if found[0]["schema"] == "credential-agent/error":
        assert found[0]["exit_status"] == code
        assert str(found[0]["error"]).splitlines()[0] in error


TAKEN = {"outcome": "accepted", "seq": 4, "issuer": "i", "subject": "s"}
WHOLE: tuple[tuple[str, dict[str, object]], ...] = (
    ("push", TAKEN),
    ("push", {"outcome": "refused", "code": "rollback", "reason": "seq 3 is not above 4"}),
    ("reload", {"outcome": "applied", "reason": None, "hint": None, "needs_restart": []}),
    ("refresh", {"source": "file", "outcome": "same", "code": None, "reason": None, "seq": 4}),
)


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize(("command", "members"), WHOLE, ids=[f"{name}-{said['outcome']}" for name, said in WHOLE])
def test_an_answer_that_is_not_whole_is_told_as_none(  # noqa: PLR0917 - what pytest gives
    odd: Odd,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    members: dict[str, object],
    form: list[str],
) -> None:
    """A part of what an agent says of its own deeds says nothing, to people and to programs alike."""

    def status(said: dict[str, object]) -> object:
        odd.body = json.dumps({"sources": [said]} if command == "refresh" else said).encode()
        words = [command, *form, *([str(tmp_path / "BUNDLE")] if command == "push" else [])]
        with pytest.raises(SystemExit) as caught:
            cli.main([*words, "--config", str(odd.config)])
        return caught.value.code

    assert status(members) == (exits.EX_DATAERR if members["outcome"] == "refused" else exits.EX_OK)
    capsys.readouterr()
    for name in members:
        assert status({member: value for member, value in members.items() if member != name}) == exits.EX_OSERR, name
    assert status({**members, "outcome": "perhaps"}) == exits.EX_OSERR
    assert '"credential-agent/error"' in capsys.readouterr().out or not form


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_without_an_agent_there_is_one_document_too(
    tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody listens: the document says so, with what to do, and names the status with which the command ends."""
    opened = Odd(tmp_path)
    opened.close()
    (tmp_path / "control").unlink()
    code, (document,), error = ended(words, opened.config, capsys)
    assert code in {exits.EX_OSERR, exits.EX_TEMPFAIL}
    if words[0] != "wait":
        assert (document["schema"], document["exit_status"]) == ("credential-agent/error", code)
        assert document["hint"]
        assert "hint:" in error


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("status", "--no-such-option"), exits.EX_USAGE),
        (("status", "--interval", "nan"), exits.EX_USAGE),
        (("push",), exits.EX_USAGE),
        (("no-such-command",), exits.EX_USAGE),
        (("config", "show", "no-such-section"), exits.EX_USAGE),
    ],
)
def test_wrong_usage_is_a_document(
    odd: Odd, words: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that asked for a document reads why nothing was done."""
    ended_with, (document,), _ = ended(words, odd.config, capsys)
    assert (ended_with, document["exit_status"], document["schema"]) == (code, code, "credential-agent/error")


def test_what_a_command_runs_may_say_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """``--json`` behind `exec` is of the program that it runs: its standard output stays that program's."""
    with pytest.raises(SystemExit):
        cli.main(["exec", "--timeout", "0", "--config", str(tmp_path / "none.toml"), "--", "true", "--json"])
    assert capsys.readouterr().out == ""


def test_a_misspelt_option_is_no_command_to_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What stands before `exec`'s command is an option of `exec`, or wrong usage: nothing is waited for, nothing run."""
    with pytest.raises(SystemExit) as ended_with:
        cli.main(
            ["exec", "--timeout", "0", "--config", str(tmp_path / "none.toml"), "--bundel", "true", "--for", "aws"]
        )
    assert ended_with.value.code == 64
    assert "--bundle" in capsys.readouterr().err


def test_what_nobody_foresaw_is_a_line_without_its_words(
    odd: Odd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of ours is told with its place, ends with 70, and shows no value: its words may hold a secret."""

    def broken(*_words: object, **_more: object) -> ask.Answer:
        raise ZeroDivisionError("SECRET")

    monkeypatch.setattr(ask, "control", broken)
    code, (document,), error = ended(("status",), odd.config, capsys)
    assert code == exits.EX_SOFTWARE
    assert "ZeroDivisionError at " in error
    assert "test_failing.py:" in error
    assert "SECRET" not in error + json.dumps(document)
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ModuleNotFoundError("SECRET", name="agent.x"), exits.EX_OSERR, "agent.x): the installation is not whole"),
        (PermissionError(13, "Permission denied", "/some/file"), exits.EX_OSERR, "/some/file: permission denied"),
        (EOFError(), exits.EX_OSERR, "nobody to give it"),
    ],
    ids=["half installed", "a file", "no terminal"],
)
def test_what_the_machine_lacks_is_told_as_that(  # noqa: PLR0917 - what pytest gives
    odd: Odd,
    error: Exception,
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A package that is half there, a closed file, nobody who types: what it is, no defect of ours and no Ctrl-C."""

    def broken(*_words: object, **_more: object) -> ask.Answer:
        raise error

    monkeypatch.setattr(ask, "control", broken)
    ended_with, (document,), said = ended(("status",), odd.config, capsys)
    assert (ended_with, document["exit_status"]) == (code, code)
    assert words in said
    assert "SECRET" not in said


def test_a_reader_that_has_gone_ends_it_with_a_status_of_the_table(odd: Odd, tmp_path: Path) -> None:
    """As with ``| head -1``: 74, and nothing is said about it."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "agent", "config", "show", "--config", str(odd.config)]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (exits.EX_IOERR, b"")


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_an_output_that_is_closed_is_no_failure(command: str, tmp_path: Path) -> None:
    """Whoever wants the status alone (``>&-``) gets the same as whoever throws the words away."""
    endpoint = Endpoint(tmp_path)
    try:
        endpoint.status = STATUS
        words = endpoint.command(command)
        thrown_away = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, timeout=60)
        closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *words], stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        endpoint.close()
    assert (closed.returncode, closed.stderr) == (thrown_away.returncode, thrown_away.stderr)
    assert closed.returncode != exits.EX_SOFTWARE


@pytest.mark.parametrize("words", [("push", "-"), ("inspect", "-"), ("seal", "--signer", "-", "--recipient", "-")])
def test_an_input_that_is_closed_is_empty(words: tuple[str, ...]) -> None:
    """Whoever closes standard input (``<&-``) hears that nothing came, as with an empty file."""
    command = ["sh", "-c", '"$@" <&-', "sh", sys.executable, "-m", "agent", *words]
    closed = subprocess.run(command, capture_output=True, check=False, timeout=60, text=True)
    empty = subprocess.run(
        command[4:], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60, text=True
    )
    assert (closed.returncode, closed.stdout, closed.stderr) == (empty.returncode, empty.stdout, empty.stderr)
    assert closed.returncode in {exits.EX_USAGE, exits.EX_DATAERR}


def test_a_locale_without_the_letters_is_no_failure(tmp_path: Path) -> None:
    """What others wrote is told to a terminal that does not know them."""
    endpoint = Endpoint(tmp_path)
    try:
        endpoint.status = STATUS
        environ = {**os.environ, "PYTHONIOENCODING": "latin-1"}
        done = subprocess.run(endpoint.command("status"), capture_output=True, check=False, timeout=60, env=environ)
    finally:
        endpoint.close()
    assert (done.returncode, done.stderr) == (exits.EX_UNAVAILABLE, b"")
    assert b"verl\xe4uft \\u2603" in done.stdout


def test_every_document_names_its_schema() -> None:
    """A document is printed with its schema and version, the error's too."""
    for name in documents.SCHEMAS:
        made = documents.documented(name, {})
        assert (made["schema"], made["schema_version"]) == (f"credential-agent/{name}", 1)
    assert documents.error_document(71, "said", None)["exit_status"] == 71
    assert isinstance(cli.cli, click.Group)


@pytest.mark.parametrize(("columns", "rows", "shown"), [(80, 24, 12), (80, 8, 6), (20, 8, 5), (10, 3, 1), (1, 1, 1)])
def test_what_is_watched_fits_the_terminal(columns: int, rows: int, shown: int) -> None:
    """The first lines stay on the screen, whatever its size, and it is said that there are more."""
    lines = ["\033[32m" + "x" * 30 + "\033[0m", *("y" * 8 for _ in range(11))]
    told = fitted(lines, columns=columns, rows=rows)
    assert told[0] == lines[0]
    if shown == len(lines):
        assert told == lines
    else:
        assert told == [*lines[:shown], f"({len(lines) - shown} more lines)"]


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n", b""])
def test_an_answer_that_drips_is_none(tmp_path: Path, head: bytes) -> None:
    """The time of a question is that of its whole answer: whoever sends a byte now and then is waited for no longer."""
    waiting = threading.Event()
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
        unix.bind(str(tmp_path / "control"))
        unix.listen()

        def drip(listener: socket.socket) -> None:
            connection = listener.accept()[0]
            with connection, contextlib.suppress(OSError):  # until whoever asks hangs up
                connection.recv(65_536)
                connection.sendall(head)
                for _ in range(10_000):
                    if waiting.wait(0.001):
                        break
                    connection.sendall(b"H" if head else b"HTTP/1.1 100 Continue\r\n\r\n")

        threads = [threading.Thread(target=drip, args=(one,), daemon=True) for one in (unix, tcp)]
        for thread in threads:
            thread.start()
        try:
            with pytest.raises(ask.NoAnswerError, match=r"no answer within 0\.2 s"):
                ask.control(tmp_path / "control", "GET", "/", timeout_seconds=0.2)
            with pytest.raises(HostError, match="no answer: timed out"):
                ask.worker(tcp.getsockname(), "/", {}, timeout_seconds=0.2)
            for thread in threads:
                thread.join()
        finally:
            waiting.set()


@pytest.mark.parametrize("gone", ["full", "closed pipe", "closed"])
def test_a_person_who_cannot_be_told_changes_nothing(tmp_path: Path, gone: str) -> None:
    """Where standard error fails, a command does what it does without it, whole, and ends with the same status."""

    def status(*words: str, to: int | None = None) -> tuple[int, str]:
        command = [sys.executable, "-m", "agent", *words]
        if to is None:
            command = ["sh", "-c", '"$@" 2>&-', "sh", *command]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=to, text=True, check=False, timeout=60)
        return done.returncode, done.stdout

    for kind in ("ed25519", "p256"):
        made = ["keygen", "--kind", kind, "--out", str(tmp_path / kind), "--public", str(tmp_path / f"{kind}.pub")]
        assert status(*made, to=subprocess.DEVNULL)[0] == 0
    (tmp_path / "config.toml").write_text(f'[environment]\ntoken_file = "{tmp_path}/none"\n')
    seal = ["seal", "--signer", str(tmp_path / "ed25519"), "--recipient", str(tmp_path / "p256.pub")]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a redirection, as a shell makes it
        to = {"full": full.fileno(), "closed pipe": writer}.get(gone)
        code, sealed = status(*seal, "--env", "MYAPP_A=b", "--env", "ODD=warned of", to=to)
        assert code == 0
        assert json.loads(sealed)["recipients"]
        asked = ("wait", "--for", "aws", "--timeout", "0", "--config", str(tmp_path / "config.toml"))
        assert status(*asked, "--json", to=to)[0] == 75
        assert status(*asked, to=to) == (75, "")
        assert status(*seal, to=to) == (64, "")
    os.close(writer)


def test_nothing_is_told_to_a_person_in_another_way() -> None:
    """`click.echo` to standard error raises where that fails: every command tells by what does not."""
    rooms = Path(cli.__file__).parent.glob("*.py")
    assert [room.name for room in rooms if re.search(r"echo\([^#]*?err=True", room.read_text())] == ["stderr.py"]
