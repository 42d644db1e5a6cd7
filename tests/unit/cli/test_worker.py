"""The workers' commands against endpoints that answer as the agent does."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.cli import ask, members, options, wait
from agent.cli.status_text import at
from agent.core.errors import HostError

CREDENTIAL = {
    "AccessKeyId": "ASIAUSER000000000000",
    "SecretAccessKey": "s",
    "Token": "t",
    "Expiration": "2030-01-01T00:00:00Z",
}


class Endpoint:
    """Stands in for the daemon: the container path with its token, Google's token path, and the control socket.

    Attributes:
        aws, gcp, status, verdict: what is answered.
        not_yet: so many requests of each kind are answered with 503 first.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.aws: tuple[int, Any] = (200, CREDENTIAL)
        self.gcp: tuple[int, Any] = (404, {"error": "no google here"})
        self.status: dict[str, Any] = {}
        self.verdict: tuple[int, Any] = (200, {})
        self.not_yet = 0
        self.pushed = b""
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/v1/status":
                    return self.say(200, endpoint.status)
                if endpoint.not_yet > 0:
                    endpoint.not_yet -= 1
                    return self.say(503, {"message": "a bundle is awaited"})
                if self.path == "/v1/credentials":
                    if self.headers["Authorization"] != "bearer":
                        return self.say(401, {"message": "wrong token"})
                    return self.say(*endpoint.aws)
                return self.say(*(endpoint.gcp if self.headers["Metadata-Flavor"] == "Google" else (403, {})))

            def do_PUT(self) -> None:
                endpoint.pushed = self.rfile.read(int(self.headers["Content-Length"]))
                self.say(*endpoint.verdict)

            def say(self, status: int, document: Any) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        class Unix(http.server.ThreadingHTTPServer):
            address_family = socket.AF_UNIX
            allow_reuse_address = False

            def server_bind(self) -> None:
                self.socket.bind(self.server_address)
                self.server_name, self.server_port = "control", 0

            def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
                connection, _ = self.socket.accept()
                return connection, ("peer", 0)

        self._servers = [
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler),
            Unix(str(root / "control"), Handler),  # type: ignore[arg-type]
        ]
        self.port = self._servers[0].server_address[1]
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in self._servers]
        for thread in self._threads:
            thread.start()
        (root / "token").write_text("bearer")
        (root / "env").write_text('# x\nAWS_CONTAINER_CREDENTIALS_FULL_URI="http://here"\nVALUE="a \\"b\\" \\$c"\n')
        self.config = root / "config.toml"
        self.config.write_text(
            f'[listen]\nhttp = ["127.0.0.1:{self.port}"]\ncontrol = "{root}/control"\n'
            f'[environment]\nfile = "{root}/env"\ntoken_file = "{root}/token"\nallow = ["VALUE"]\n'
        )

    def close(self) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def command(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "agent", name, "--config", str(self.config), *arguments]

    def run(self, name: str, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(name, *arguments), capture_output=True, text=True, check=False, timeout=60, **more
        )


def test_an_agent_that_hangs_is_not_waited_for_beyond_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`wait --workers` gives a question no more time than is left, and a few seconds: units have a timeout of their own."""
    given: list[float] = []

    def hangs(*_words: object, timeout_seconds: float = 30.0) -> ask.Answer:
        given.append(timeout_seconds)
        raise ask.NoAnswerError("no answer")

    monkeypatch.setattr(ask, "control", hangs)
    (tmp_path / "config.toml").write_text("")
    assert wait.await_identity(wait.Watched(tmp_path / "config.toml", 0), ("any",), 0) == 75
    assert given
    assert max(given) <= wait.ANSWER_SECONDS[0] < 10
    with pytest.raises(HostError):
        wait.Watched(tmp_path / "config.toml", 3600).answer("aws")
    assert given[-1] == wait.ANSWER_SECONDS[1]


@pytest.mark.parametrize("timeout", [0, 1, 7, 60])
@pytest.mark.parametrize("clouds", [("any",), ("aws", "gcp")])
def test_a_worker_waits_no_longer_for_an_agent_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clouds: tuple[str, ...], timeout: float
) -> None:
    """Of `wait` and `exec` one answer has five seconds, and those of both clouds share what is left of the timeout."""
    now = [100.0]

    def pass_(seconds: float) -> None:
        now[0] += seconds

    def hangs(*_words: object, timeout_seconds: float, **_more: object) -> ask.Answer:
        pass_(timeout_seconds)
        raise HostError("no answer: timed out")

    monkeypatch.setattr(wait, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=pass_))
    monkeypatch.setattr(ask, "worker", hangs)
    (tmp_path / "token").write_text("bearer")
    (tmp_path / "config.toml").write_text(f'[environment]\ntoken_file = "{tmp_path}/token"\n')
    assert wait.await_identity(wait.Workers(tmp_path / "config.toml", timeout), clouds, timeout) == 75
    least, most = wait.WORKER_SECONDS
    assert timeout <= now[0] - 100.0 <= max(timeout, most) + 2 * least


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    opened = Endpoint(tmp_path)
    yield opened
    opened.close()


def test_wait_ends_when_an_identity_comes(endpoint: Endpoint) -> None:
    """It asks again while the answer is 503, and then says nothing."""
    endpoint.not_yet = 3
    done = endpoint.run("wait", "--for", "aws")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert endpoint.not_yet == 0


@pytest.mark.parametrize(("clouds", "status"), [("aws", 0), ("aws,gcp", 75)])
def test_wait_tells_programs_whose_identity_it_is(endpoint: Endpoint, clouds: str, status: int) -> None:
    """With --json one document on stdout, whatever comes of it; nothing on stderr."""
    done = endpoint.run("wait", "--json", "--for", clouds, "--timeout", "0")
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (status, "")
    assert (told["schema"], told["schema_version"], told["ok"]) == ("credential-agent/wait", 1, status == 0)
    assert set(told["clouds"]) == {"aws"}
    assert told["reasons"] == ({} if status == 0 else {"gcp": "no google here"})


def test_wait_gives_the_agents_reason_at_the_timeout(endpoint: Endpoint) -> None:
    """Exit status 75 (try again), and why."""
    done = endpoint.run("wait", "--for", "aws,gcp", "--timeout", "0")
    assert done.returncode == 75
    assert "gcp: no google here" in done.stderr
    assert "aws:" not in done.stderr


def _said(live: str, origin: str = "bundle", **redirect: Any) -> dict[str, Any]:
    cloud = {"state": live, "origin": origin, "why": "a bundle is awaited"}
    return {"clouds": {"aws": cloud, "gcp": cloud}, "last_refusal": None, "redirect": redirect or None}


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (_said("live"), 0, "aws: an identity from the bundle"),
        (_said("live", "fallback"), 75, "aws, gcp: the machine's own identity; a bundle's was asked for"),
        (_said("pending", "none"), 75, "aws, gcp: a bundle is awaited"),
        (_said("live", arrives=False, state="closed", why="x"), 75, "does not arrive: closed (x)"),
        (_said("live", arrives=True, state="led", why=None), 0, "aws: an identity from the bundle"),
        (
            _said("live", arrives=True, state="led", why=None, notes=["redirect.user: so and so"]),
            0,
            "redirect.user: so",
        ),
        (
            {**_said("absent", "none"), "bundle": {"seq": 7, "issuer": "laptop:ada"}, "sticky": []},
            75,
            "(seq 7 of laptop:ada) brings variables and no identity",
        ),
    ],
)
def test_an_operator_waits_for_the_workers(endpoint: Endpoint, said: dict[str, Any], status: int, words: str) -> None:
    """`wait --workers` asks the control socket, since whoever delivers a bundle (root) is no worker."""
    endpoint.status = said
    done = endpoint.run("wait", "--bundle", "--workers", "--timeout", "0")
    assert done.returncode == status
    assert words in done.stdout + done.stderr


def test_a_reason_is_told_once_and_with_its_hint(endpoint: Endpoint, tmp_path: Path) -> None:
    """What both clouds have in common is one line, and what to do about it follows."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "config.toml").write_text(endpoint.config.read_text().replace(str(endpoint.port), str(port)))
    told = endpoint.run("wait", "--timeout", "0").stderr.splitlines()
    assert told[0].startswith("credential-agent: aws, gcp: 127.0.0.1:")
    assert told[1].startswith(f"  hint: {members.not_running()}")
    assert len(told) == 3


@pytest.mark.parametrize(("systemd", "command"), [(True, "systemctl status"), (False, "credential-agent doctor")])
def test_what_to_type_is_there_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, systemd: bool, command: str
) -> None:
    """Where no agent answers, systemd is named only on a machine that was booted with it."""
    monkeypatch.setattr("agent.host.systemctl.runs", lambda: systemd)
    with pytest.raises(HostError) as raised:
        ask.control(tmp_path / "none", "GET", "/")
    for error in (raised.value, options.unreadable(tmp_path / "none", FileNotFoundError())):
        assert error.hint is not None
        assert error.hint.startswith(command)


def test_wait_refuses_a_cloud_it_does_not_know(endpoint: Endpoint) -> None:
    """Exit status 64 (usage)."""
    assert endpoint.run("wait", "--for", "azure").returncode == 64


def test_credential_process_prints_what_sdks_read(endpoint: Endpoint) -> None:
    """The document of AWS's ``credential_process``, version 1."""
    done = endpoint.run("credential-process")
    assert json.loads(done.stdout) == {
        "Version": 1,
        "AccessKeyId": CREDENTIAL["AccessKeyId"],
        "SecretAccessKey": "s",
        "SessionToken": "t",
        "Expiration": "2030-01-01T00:00:00Z",
    }


@pytest.mark.parametrize("written", ["bearer\n", "bearer\r\n"])
def test_a_token_that_an_operator_wrote_may_end_its_line(endpoint: Endpoint, written: str) -> None:
    """As the agent reads it: until it has written the file anew, its own commands ask with the same token."""
    (endpoint.root / "token").write_bytes(written.encode())
    assert endpoint.run("credential-process").returncode == 0


def test_a_token_file_with_anything_else_is_one_line(endpoint: Endpoint) -> None:
    """What cannot be sent is no defect of the command."""
    (endpoint.root / "token").write_bytes(b"a\nX-Forwarded-For: b\xff")
    done = endpoint.run("credential-process")
    assert done.returncode == 71
    assert "expected a token" in done.stderr
    assert "X-Forwarded-For" not in done.stderr


@pytest.mark.parametrize(("status", "code"), [(503, 75), (404, 69), (401, 69)])
def test_credential_process_fails_with_the_reason(endpoint: Endpoint, status: int, code: int) -> None:
    """Nothing on stdout, the agent's words on stderr, and whether trying again may help in the status."""
    endpoint.aws = (status, {"message": "the bundle ended; seal a new one"})
    done = endpoint.run("credential-process")
    assert (done.returncode, done.stdout) == (code, "")
    assert "the bundle ended" in done.stderr


def test_exec_gives_variables_and_takes_what_masks(endpoint: Endpoint) -> None:
    """The child sees ours, its own, and no stale keys; the exit status is its own."""
    environ = {**os.environ, "AWS_ACCESS_KEY_ID": "AKIASTALE", "MINE": "1"}
    done = endpoint.run("exec", "--", "sh", "-c", 'echo "$VALUE|$MINE|${AWS_ACCESS_KEY_ID-none}"; exit 7', env=environ)
    assert (done.returncode, done.stdout.strip()) == (7, 'a "b" $c|1|none')


@pytest.mark.skipif(os.geteuid() != 0, reason="what root takes; a worker takes all")
def test_root_takes_no_variable_that_the_configuration_lets_nobody_write(endpoint: Endpoint) -> None:
    """Whoever has taken over the agent can write its file, and must not choose what root's programs load."""
    forged = 'LD_PRELOAD="/x.so"\nPATH="/x"\nBASH_ENV="/x"\nAWS_ACCESS_KEY_ID="AKIA"\nVALUE="b"\n'
    (endpoint.root / "env").write_text(forged)
    told = json.loads(endpoint.run("env", "--format", "json").stdout)
    assert told == {"VALUE": "b"}
    done = endpoint.run("exec", "--", "sh", "-c", 'echo "${LD_PRELOAD-none}|${BASH_ENV-none}|$VALUE"')
    assert done.stdout.strip() == "none|none|b"


def test_exec_reports_the_signal_that_ended_its_child(endpoint: Endpoint) -> None:
    """A child that a signal ended is reported as a shell does it: 128 and the number of the signal."""
    assert endpoint.run("exec", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


def test_exec_passes_signals_on(endpoint: Endpoint) -> None:
    """A SIGTERM from systemd reaches the program, which ends as it likes."""
    script = 'trap "echo got; exit 5" TERM; echo up; while :; do sleep 0.05; done'
    with subprocess.Popen(endpoint.command("exec", "sh", "-c", script), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "got\n"
        assert process.wait(30) == 5


@pytest.mark.parametrize("name", ["WINCH", "ALRM", "USR1", "IO", "PWR", "RTMIN"])
def test_exec_passes_every_kind_of_signal_on(endpoint: Endpoint, name: str) -> None:
    """What a process sends to us and would end or tell the program reaches the program."""
    number = int(signal.Signals[f"SIG{name}"])
    script = f'trap "echo got; exit 5" {number}; echo up; while :; do sleep 0.05; done'
    with subprocess.Popen(endpoint.command("exec", "sh", "-c", script), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.stdout.read() == "got\n"
        assert process.wait(30) == 5


def test_exec_outlives_a_signal_that_it_may_not_pass_on(endpoint: Endpoint) -> None:
    """What it runs may have become another user, as sudo does: its end is awaited all the same."""
    program = (
        "import os, sys\nfrom agent import cli\n"
        "def refused(*_): raise PermissionError(1, 'Operation not permitted')\n"
        "os.kill = refused\ncli.main(sys.argv[1:])"
    )
    words = endpoint.command("exec", "sh", "-c", "kill -TERM $PPID; exit 7")[3:]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (7, b"")


@pytest.mark.parametrize(("program", "code"), [("", 127), ("/no/such/program", 127), ("/etc/passwd", 126)])
def test_exec_of_what_cannot_run_says_so(endpoint: Endpoint, program: str, code: int) -> None:
    """The statuses of a shell."""
    done = endpoint.run("exec", program)
    assert done.returncode == code
    assert program in done.stderr


def test_env_prints_every_form(endpoint: Endpoint) -> None:
    """``env`` prints the variables for a shell, for systemd and for programs, each with its own quotes."""
    assert json.loads(endpoint.run("env", "--format", "json").stdout)["VALUE"] == 'a "b" $c'
    assert 'VALUE=a "b" $c\0' in endpoint.run("env", "--format", "null").stdout
    assert "export VALUE='a \"b\" $c'" in endpoint.run("env").stdout
    assert 'VALUE="a \\"b\\" \\$c"' in endpoint.run("env", "--format", "systemd").stdout


@pytest.mark.parametrize("form", ["shell", "systemd", "null"])
def test_env_prints_the_bytes_of_the_file(endpoint: Endpoint, form: str) -> None:
    """A locale that does not know a letter changes no value: programs get it as the file has it."""
    (endpoint.root / "env").write_text('VALUE="\N{SNOWMAN}"\n')
    environ = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        endpoint.command("env", "--format", form), capture_output=True, check=False, timeout=60, env=environ
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert "\N{SNOWMAN}".encode() in done.stdout


def test_env_without_a_file_says_who_may_read_it(endpoint: Endpoint) -> None:
    """A missing file is one line and a hint."""
    (endpoint.root / "env").unlink()
    done = endpoint.run("env")
    assert done.returncode == 71
    assert "hint:" in done.stderr


def test_push_tells_the_verdict(endpoint: Endpoint) -> None:
    """Accepted: the sequence number; refused: exit 65 and the reason."""
    endpoint.verdict = (200, {"outcome": "accepted", "seq": 4, "issuer": "https://i", "subject": "user:a"})
    done = endpoint.run("push", "-", input="sealed")
    assert (done.returncode, done.stdout.strip()) == (0, "accepted: seq 4 of https://i user:a")
    assert endpoint.pushed == b"sealed"
    stays = {"outcome": "accepted", "seq": 5, "issuer": "https://i", "subject": "user:b", "reason": "another stays"}
    endpoint.verdict = (200, stays)
    done = endpoint.run("push", "-", input="sealed")
    assert done.returncode == 0
    assert "warning: another stays\n  hint: to withdraw that one, credential-agent seal" in done.stderr
    endpoint.verdict = (422, {"outcome": "refused", "code": "rollback", "reason": "seq 3 is not above 4"})
    done = endpoint.run("push", "-", input="sealed")
    assert done.returncode == 65
    assert "refused (rollback): seq 3 is not above 4" in done.stderr


def test_without_an_agent_one_line_says_so(endpoint: Endpoint, tmp_path: Path) -> None:
    """No traceback when nothing listens."""
    endpoint.config.write_text(f'[listen]\ncontrol = "{tmp_path}/nothing"\n')
    done = endpoint.run("status")
    assert done.returncode == 71
    assert "Traceback" not in done.stderr
    assert "does not listen there" in done.stderr


def test_status_says_who_and_until_when(endpoint: Endpoint) -> None:
    """The question of an operator at 3 a.m., answered on two lines for each cloud."""
    live = {
        "state": "live", "origin": "bundle", "identity": "role", "why": None, "expires_at": "2030-01-01T00:00:00Z",
        "horizon": "2030-01-02T00:00:00Z", "horizon_reason": "the lease ends", "at_the_end": "deny",
        "role_arn": "arn:aws:iam::1:role/r",
    }  # fmt: skip
    none = {"state": "absent", "origin": "fallback", "identity": None, "why": "no google identity here"}
    endpoint.status = {
        "clouds": {"aws": live, "gcp": none}, "bundle": None, "sources": {"file": "broken"}, "credentials": [],
        "last_refusal": None, "memory_unwritten": True,
    }  # fmt: skip
    done = endpoint.run("status")
    assert done.returncode == 0
    assert "aws: arn:aws:iam::1:role/r (from the bundle)" in done.stdout
    assert "the lease ends; then: deny" in done.stdout
    assert "gcp: none (absent): no google identity here" in done.stdout
    assert "source file: broken" in done.stdout
    assert "a restart would forget" in done.stdout
    assert "key " not in done.stdout
    endpoint.status["absent_keys"] = ["worker.key"]
    assert "key worker.key: this machine was not given it" in endpoint.run("status").stdout
    endpoint.status["clouds"]["aws"] = none
    assert endpoint.run("status").returncode == 69
    assert json.loads(endpoint.run("status", "--json").stdout) == endpoint.status


@pytest.mark.parametrize("command", ["status", "env", "credential-process"])
def test_output_that_cannot_be_written_is_one_line(endpoint: Endpoint, command: str) -> None:
    """A full disk below stdout is one line and EX_IOERR."""
    endpoint.status = {
        "clouds": {}, "bundle": None, "sources": {}, "credentials": [], "last_refusal": None, "memory_unwritten": False,
    }  # fmt: skip
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a redirection, as a shell makes it
        done = subprocess.run(
            endpoint.command(command), stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert done.returncode == 74
    assert done.stderr == "credential-agent: stdout: cannot be written: no space left on device\n"


def test_push_of_nothing_is_bad_data(endpoint: Endpoint, tmp_path: Path) -> None:
    """An empty file is refused with 65 (bad data), and the agent is not asked."""
    (tmp_path / "empty").touch()
    done = endpoint.run("push", str(tmp_path / "empty"))
    assert done.returncode == 65
    assert "the file is empty" in done.stderr


def test_wait_refuses_a_timeout_that_is_no_number(endpoint: Endpoint) -> None:
    """Not a number would never end: exit status 64 (usage)."""
    assert endpoint.run("wait", "--timeout", "nan").returncode == 64


@pytest.mark.parametrize(
    ("seconds", "words"), [(20, "in 20 s"), (119, "in 119 s"), (120, "in 2 min"), (-20, "20 s ago")]
)
def test_less_than_two_minutes_are_told_in_seconds(seconds: int, words: str) -> None:
    """A person who has seconds left is not told of zero minutes."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert words in at((now + timedelta(seconds=seconds)).isoformat(), now)
