"""keygen, seal and inspect, as a person runs them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent import bundle
from agent.cli import cli, main
from agent.core.model import Action, AwsSession, Bundle, Cloud, Env, OnExpiry
from agent.keys import Keyring, load_key_file
from agent.wire import userdata
from tests.fakes.compute_api import FakeCompute, Metadata
from tests.fakes.sts import FakeSts
from tests.unit.sender.support import laptop, serving

SECRET = "wJalrXUtnFEMIcanarycanarycanaryEXAMPLEKEY"


@dataclass
class Done:
    """What a command did."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


@dataclass
class Desk:
    """A directory with a sender's and a worker's keys, and the command at hand."""

    home: Path
    capture: Any
    patch: pytest.MonkeyPatch

    def run(self, *argv: object) -> Done:
        """Run the command in this process, as the console script does."""
        self.capture.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(a) for a in argv])
        out, err = self.capture.readouterr()
        return Done(int(exit_.value.code or 0), out, err.decode())

    def ok(self, *argv: object) -> Done:
        done = self.run(*argv)
        assert done.code == 0, done.err
        return done

    def path(self, name: str) -> Path:
        return self.home / name

    def claims(self, **claims: Any) -> Path:
        ends = int((datetime.now(UTC) + timedelta(hours=12)).timestamp())
        grant = {
            "type": "aws-session",
            "id": "s",
            "access_key_id": "ASIAAAAAAAAAAAAAAAAA",
            "secret_access_key": SECRET,
            "session_token": f"token-{SECRET}",
            "expires_at": ends,
        }
        path = self.path("claims.json")
        path.write_text(json.dumps({"grants": [grant], **claims}))
        return path

    def seal(self, *argv: object) -> Done:
        return self.ok("seal", "--signer", self.path("me.jwk"), "--recipient", self.path("worker.pub"), *argv)

    def open(self, sealed: bytes, audience: str | None = None) -> Bundle:
        """Open it as the worker does."""
        trust = bundle.Trust.parse([{"key": self.path("me.pub").read_text(), "issuers": ["*"], "audiences": ["*"]}])
        keyring = Keyring(load_key_file(self.path("worker.jwk")))
        audiences = [audience] if audience else []
        return asyncio.run(keyring.open(sealed, trust=trust, audiences=audiences, now=datetime.now(UTC)))


def to_full(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run the command with a full disk below its standard output."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a redirection, as a shell makes it
        return subprocess.run(
            [sys.executable, "-m", "agent", *argv],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path, capsysbinary: Any, monkeypatch: pytest.MonkeyPatch) -> Desk:
    made = Desk(tmp_path, capsysbinary, monkeypatch)
    made.ok("keygen", "--kind", "ed25519", "--out", tmp_path / "me.jwk", "--public", tmp_path / "me.pub")
    made.ok("keygen", "--out", tmp_path / "worker.jwk", "--public", tmp_path / "worker.pub")
    return made


# -- keygen


@pytest.mark.parametrize("kind", ["p256", "x25519", "rsa", "ed25519", "es256"])
def test_keygen_writes_the_private_half_and_prints_the_public_one(desk: Desk, kind: str) -> None:
    """Private: a JWK only its owner may read. Public: one line, the RFC 7638 thumbprint as kid, nothing private."""
    done = desk.ok("keygen", "--kind", kind, "--out", desk.path("k"))
    public, private = json.loads(done.out), json.loads(desk.path("k").read_text())
    assert done.out.count(b"\n") == 1
    assert done.err == ""
    assert stat.S_IMODE(desk.path("k").stat().st_mode) == 0o600
    assert not public.keys() & {"d", "p", "q", "dp", "dq", "qi", "k", "oth"}
    assert public["kid"] == private["kid"] == bundle.thumbprint(public)
    assert "d" in private
    if kind in ("ed25519", "es256"):
        assert bundle.SigningKey.parse(desk.path("k").read_text()).kid == public["kid"]
    else:
        assert bundle.OpeningKey.parse(desk.path("k").read_text()).kid == public["kid"]
        assert bundle.RecipientKey.parse(done.text).kid == public["kid"]


def test_keygen_leaves_no_key_whose_public_half_nobody_has(desk: Desk) -> None:
    """Where the public half cannot be written the next try finds nothing in its way."""
    failed = desk.run("keygen", "--out", desk.path("k"), "--public", desk.path("no/such/place"))
    assert failed.code == 71
    assert not desk.path("k").exists()
    full = to_full("keygen", "--out", str(desk.path("k")))
    assert full.returncode == 74
    assert not desk.path("k").exists()
    same = desk.run("keygen", "--out", desk.path("k"), "--public", desk.path("me.jwk").parent / "." / "k")
    assert (same.code, desk.path("k").exists()) == (64, False)
    assert "another file" in same.err
    desk.ok("keygen", "--out", desk.path("k"), "--public", desk.path("p"))


def test_keygen_oct_prints_no_secret(desk: Desk) -> None:
    """A shared key has no public half: only its kid is shown; sealing takes the same file."""
    done = desk.ok("keygen", "--kind", "oct", "--out", desk.path("k"))
    assert json.loads(done.out).keys() == {"kty", "kid"}
    assert json.loads(desk.path("k").read_text())["k"] not in done.text
    assert desk.run("keygen", "--kind", "oct", "--out", desk.path("k2"), "--public", desk.path("p")).code == 64
    assert not desk.path("k2").exists()
    desk.ok(
        "seal",
        "--signer",
        desk.path("me.jwk"),
        "--recipient",
        desk.path("k"),
        "--claims",
        desk.claims(),
        "--out",
        desk.path("b"),
    )
    assert desk.run("inspect", desk.path("b"), "--key", desk.path("k"), "--signer", desk.path("me.pub")).code == 0


def test_keygen_replaces_nothing_unless_forced(desk: Desk) -> None:
    """A key that is there stays there: to lose it is to lose every bundle sealed to it."""
    before = desk.path("worker.jwk").read_bytes()
    done = desk.run("keygen", "--out", desk.path("worker.jwk"))
    assert done.code == 71
    assert "exists already" in done.err
    assert "--force" in done.err
    assert desk.path("worker.jwk").read_bytes() == before
    desk.ok("keygen", "--out", desk.path("worker.jwk"), "--force")
    assert desk.path("worker.jwk").read_bytes() != before
    assert {p.name for p in desk.home.iterdir()} == {"me.jwk", "me.pub", "worker.jwk", "worker.pub"}


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_keygen_writes_no_private_key_to_a_pipe_or_dash(desk: Desk, force: tuple[str, ...]) -> None:
    """A private key goes to a regular file only: a pipe stays one and gets nothing, and - is no file."""
    os.mkfifo(desk.path("pipe"))
    done = desk.run("keygen", "--out", desk.path("pipe"), *force)
    assert (done.code, done.out) == (71, b"")
    assert "expected a regular file for a private key" in done.err
    assert stat.S_ISFIFO(desk.path("pipe").stat().st_mode)
    desk.patch.chdir(desk.home)
    assert desk.run("keygen", "--out", "-", *force).code == 64
    assert not desk.path("-").exists()


def test_seal_writes_through_a_pipe(desk: Desk) -> None:
    """What is there and is no regular file is written to, also through a link, and stays what it is."""
    os.mkfifo(desk.path("pipe"))
    desk.path("link").symlink_to("pipe")
    reader = os.open(desk.path("pipe"), os.O_RDWR | os.O_NONBLOCK)  # so that opening it to write waits for nobody
    try:
        desk.seal("--withdraw", "--out", desk.path("link"))
        assert os.read(reader, 65536).startswith(b"{")
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(desk.path("pipe").stat().st_mode)
    assert desk.path("link").is_symlink()


def test_seal_says_that_its_output_cannot_be_written(desk: Desk) -> None:
    """A full disk below stdout is one line and EX_IOERR."""
    signer, recipient = str(desk.path("me.jwk")), str(desk.path("worker.pub"))
    done = to_full("seal", "--withdraw", "--signer", signer, "--recipient", recipient)
    assert done.returncode == 74
    assert done.stderr.splitlines()[-1] == "credential-agent: stdout: cannot be written: no space left on device"
    assert "Traceback" not in done.stderr


def test_seal_refuses_a_variable_that_is_no_text(desk: Desk) -> None:
    """A value that is not UTF-8 is a usage error that names its variable, not its value."""
    desk.patch.setenv("ODD", os.fsdecode(b"caf\xe9"))
    signer, recipient = desk.path("me.jwk"), desk.path("worker.pub")
    done = desk.run("seal", "--signer", signer, "--recipient", recipient, "--env", "ODD")
    assert done.code == 64
    assert "--env ODD: expected UTF-8" in done.err
    assert "caf" not in done.err


def test_keygen_into_no_directory_is_one_line(desk: Desk) -> None:
    """A directory that does not exist: the path and what is wrong, no traceback."""
    done = desk.run("keygen", "--out", desk.path("no") / "k")
    assert (done.code, done.err) == (
        71,
        f"credential-agent: {desk.path('no') / 'k'}: cannot be written: no such file or directory\n",
    )


# -- seal


def test_what_is_sealed_opens_on_the_worker(desk: Desk) -> None:
    """A claims file, a variable and every option reach the worker as they were given."""
    desk.patch.setenv("DB_PASSWORD", "hunter2hunter2")
    desk.seal(
        "--claims", desk.claims(), "--env", "DB_PASSWORD", "--issuer", "cp", "--subject", "team-a", "--audience", "urn:credbundle:cluster:c1",
        "--seq", 7, "--lease", "2h", "--expires-in", "30m", "--on-expiry", "fallback", "--out", desk.path("b"),
    )  # fmt: skip
    opened = desk.open(desk.path("b").read_bytes(), "urn:credbundle:cluster:c1")
    session, env = opened.grants
    assert isinstance(session, AwsSession)
    assert isinstance(env, Env)
    assert session.secret_access_key.reveal() == SECRET
    assert env.variables["DB_PASSWORD"].reveal() == "hunter2hunter2"
    assert (opened.issuer, opened.subject, opened.seq, opened.on_expiry) == ("cp", "team-a", 7, OnExpiry.FALLBACK)
    assert opened.lease_until == opened.issued_at + timedelta(hours=2)
    assert opened.accept_until == opened.issued_at + timedelta(minutes=30)
    assert opened.routes == {Cloud.AWS: "s"}


def test_defaults_need_no_thought(desk: Desk) -> None:
    """Without options it is addressed to the holder of the key, accepted for an hour, and numbered by the clock."""
    desk.seal("--claims", desk.claims(), "--out", desk.path("b"))
    first = desk.open(desk.path("b").read_bytes())
    assert first.issuer.startswith("laptop:")
    assert first.accept_until == first.issued_at + timedelta(hours=1)
    assert abs(first.seq / 1000 - datetime.now(UTC).timestamp()) < 60
    desk.seal("--claims", desk.claims(), "--out", desk.path("b"))
    assert desk.open(desk.path("b").read_bytes()).seq > first.seq


def test_the_bundle_goes_to_stdout_and_words_to_stderr(desk: Desk) -> None:
    """Without --out the bundle alone is on stdout, so that it can be piped."""
    done = desk.seal("--claims", desk.claims())
    assert desk.open(done.out).grants
    assert "aws: until" in done.err
    assert "sealed bundle" in done.err


def test_no_secret_is_shown(desk: Desk) -> None:
    """Neither sealing nor looking inside prints a secret, nor does an error about one."""
    desk.patch.setenv("CANARY", SECRET)
    sealed = desk.seal("--claims", desk.claims(), "--env", "CANARY", "--out", desk.path("b"))
    shown = desk.ok("inspect", desk.path("b"), "--key", desk.path("worker.jwk"), "--signer", desk.path("me.pub"))
    broken = desk.path("broken.json")
    broken.write_text(desk.claims().read_text().replace('"id"', '"idd"'))
    bad = desk.run("seal", "--signer", desk.path("me.jwk"), "--recipient", desk.path("worker.pub"), "--claims", broken)
    cut = desk.path("cut.json")
    cut.write_text(desk.claims().read_text()[:-10])
    worse = desk.run("seal", "--signer", desk.path("me.jwk"), "--recipient", desk.path("worker.pub"), "--claims", cut)
    private = json.loads(desk.path("worker.jwk").read_text())["d"]
    for done in (sealed, shown, bad, worse):
        assert SECRET not in done.text + done.err
        assert private not in done.text + done.err
    assert (bad.code, worse.code) == (65, 65)
    assert "[redacted]" in shown.text


def test_no_option_takes_a_secret() -> None:
    """Every value an option takes may be read by every user of the machine; none of them is a secret's."""
    for command in ("keygen", "seal", "inspect"):
        text = CliRunner().invoke(cli, [command, "--help"]).output.lower()
        for word in ("--secret", "--password", "--access-key", "--token ", "--mfa-code"):
            assert word not in text


def test_a_withdrawal_carries_nothing(desk: Desk) -> None:
    """--withdraw makes a bundle that takes away; with something to carry it is refused."""
    done = desk.seal("--withdraw", "--out", desk.path("b"))
    opened = desk.open(desk.path("b").read_bytes())
    assert (opened.action, opened.grants, opened.routes) == (Action.WITHDRAW, (), {})
    assert "withdrawal" in done.err
    refused = desk.run(
        "seal",
        "--signer",
        desk.path("me.jwk"),
        "--recipient",
        desk.path("worker.pub"),
        "--withdraw",
        "--claims",
        desk.claims(),
    )
    assert refused.code == 64


@pytest.mark.parametrize("document", ["armored", "cloud-config", "mime", "systemd", "raw"])
def test_documents_carry_the_bundle(desk: Desk, document: str) -> None:
    """Each format is found again by the user-data source, and by inspect."""
    done = desk.seal("--claims", desk.claims(), "--format", document)
    found = userdata.extract(done.out)
    assert found is not None
    assert desk.open(found).grants
    desk.path("d").write_bytes(done.out)
    assert "recipient" in desk.ok("inspect", desk.path("d")).text


def test_a_document_too_long_for_user_data_is_warned_of(desk: Desk) -> None:
    """EC2 holds 16 KiB; who writes more hears of it before EC2 says so."""
    desk.patch.setenv("LONG", "x" * 15_000)
    assert "16384" in desk.seal("--env", "LONG", "--format", "cloud-config", "--out", desk.path("b")).err
    assert "16384" not in desk.seal("--env", "LONG", "--out", desk.path("b")).err


def test_the_file_is_replaced_in_one_step(desk: Desk) -> None:
    """A second bundle replaces the first; nothing else is left in the directory, and the agent may read it."""
    for _ in range(2):
        desk.seal("--claims", desk.claims(), "--out", desk.path("b"))
    assert sorted(p.name for p in desk.home.iterdir()) == [
        "b",
        "claims.json",
        "me.jwk",
        "me.pub",
        "worker.jwk",
        "worker.pub",
    ]
    assert stat.S_IMODE(desk.path("b").stat().st_mode) == 0o644


def test_several_recipients_open_it_each_alone(desk: Desk) -> None:
    """Keys of mixed kinds, from several files and from a JWK Set."""
    kinds = {"x25519": "x", "rsa": "r"}
    publics = []
    for kind, name in kinds.items():
        publics.append(json.loads(desk.ok("keygen", "--kind", kind, "--out", desk.path(name)).out))
    desk.path("set").write_text(json.dumps({"keys": publics}))
    desk.seal("--recipient", desk.path("set"), "--claims", desk.claims(), "--out", desk.path("b"))
    for name in ("worker.jwk", *kinds.values()):
        assert desk.run("inspect", desk.path("b"), "--key", desk.path(name), "--signer", desk.path("me.pub")).code == 0


def test_claims_come_from_stdin_too(desk: Desk) -> None:
    """A program pipes claims in and takes the bundle out: through a real process, no file in between."""
    claims = desk.claims(
        iss="cp", sub="s", aud="urn:credbundle:cluster:c9", seq=5, routes={"aws": "s"}, jti="j-1"
    ).read_bytes()
    argv = [
        sys.executable,
        "-m",
        "agent",
        "seal",
        "--claims",
        "-",
        "--signer",
        str(desk.path("me.jwk")),
        "--recipient",
        str(desk.path("worker.pub")),
    ]
    done = subprocess.run(argv, input=claims, capture_output=True, check=True)
    opened = desk.open(done.stdout, "urn:credbundle:cluster:c9")
    assert (opened.issuer, opened.subject, opened.seq, opened.bundle_id) == ("cp", "s", 5, "j-1")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ([], 64, "nothing to seal"),
        (["--role-arn", "arn:aws:iam::123456789012:role/x"], 64, "--from-boto"),
        (["--send-refresh-token"], 64, "--from-adc"),
        (["--env", "NO_SUCH_VARIABLE_HERE"], 64, "no such variable"),
        (["--env", "PATH"], 65, "not allowed"),
        (["--claims", "/nonexistent/claims"], 71, "cannot be read"),
        (["--withdraw", "--lease", "forever"], 64, "length of time"),
        (["--withdraw", "--lease", "0s"], 64, "between 1s and 366d"),
        (["--withdraw", "--to", "gce:nowhere/x"], 64, "--to"),
        (["--withdraw", "--form", "flattened", "--recipient", "{me}"], 65, "recipient"),
        (["--withdraw", "--audience", "two words"], 65, "aud"),
        (["--withdraw", "--seq", "-1"], 64, "--seq"),
        (["--withdraw", "--watch"], 64, "--out"),
        (["--watch", "--from-boto", "--mfa-serial", "me", "--out", "/nonexistent/b"], 64, "on a terminal"),
        (["--withdraw", "--watch", "--seq", "7", "--out", "/nonexistent/b"], 64, "more than once"),
    ],
)
def test_mistakes_are_one_line_and_a_status(desk: Desk, argv: list[str], code: int, said: str) -> None:
    """Usage is 64, bad data 65, files 71; the message says what was expected, and nothing is written to stdout."""
    argv = [a.replace("{me}", str(desk.path("worker.pub"))) for a in argv]
    done = desk.run("seal", "--signer", desk.path("me.jwk"), "--recipient", desk.path("worker.pub"), *argv)
    assert (done.code, done.out) == (code, b"")
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_wrong_key_file_is_named(desk: Desk) -> None:
    """A public key where a private one belongs, or rubbish: the file is named, and never shown."""
    rubbish = desk.path("rubbish")
    rubbish.write_text(SECRET)
    for signer, recipient in (
        (desk.path("me.pub"), desk.path("worker.pub")),
        (rubbish, desk.path("worker.pub")),
        (desk.path("me.jwk"), rubbish),
    ):
        done = desk.run("seal", "--signer", signer, "--recipient", recipient, "--withdraw")
        assert done.code == 65
        assert str(signer if recipient != rubbish else rubbish) in done.err
        assert SECRET not in done.err


def test_the_horizon_is_told_and_warned_of(desk: Desk) -> None:
    """For each cloud until when and by whom; a lease beyond it is warned of; a cloud that is not there is named."""
    done = desk.seal("--claims", desk.claims(), "--lease", "2d", "--out", desk.path("b"))
    assert "nothing renews it; then the session ends" in done.err
    assert "before the lease does" in done.err
    assert "gcp: not in this bundle" in done.err
    assert (
        "will have no aws from it"
        in desk.seal("--claims", desk.claims(), "--expires-in", "2d", "--out", desk.path("b")).err
    )


def test_from_boto_seals_what_boto3_finds(desk: Desk, tmp_path: Path) -> None:
    """The whole way: local keys, STS, a sealed session that the worker opens; and a role with a policy file."""
    sts = FakeSts(lambda: datetime.now(UTC))
    key, secret = sts.user()
    sts.role("arn:aws:iam::111122223333:role/reader")
    policy = tmp_path / "policy.json"
    policy.write_text('{\n  "Version": "2012-10-17",\n  "Statement": []\n}')
    with (
        serving(sts) as url,
        laptop(desk.patch, tmp_path, AWS_ENDPOINT_URL_STS=url, AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret),
    ):
        done = desk.seal("--from-boto", "--out", desk.path("b"))
        (grant,) = desk.open(desk.path("b").read_bytes()).grants
        assert isinstance(grant, AwsSession)
        assert sts.principals[grant.access_key_id].kind == "user-session"
        assert "arn:aws:iam::111122223333:user/laptop" in done.err
        assert secret not in done.err
        desk.seal(
            "--from-boto",
            "--role-arn",
            "arn:aws:iam::111122223333:role/reader",
            "--policy",
            policy,
            "--out",
            desk.path("b"),
        )
        (grant,) = desk.open(desk.path("b").read_bytes()).grants
        assert isinstance(grant, AwsSession)
        assert sts.principals[grant.access_key_id].kind == "role-session"
        assert sts.calls[-1].parameters["Policy"] == '{"Version":"2012-10-17","Statement":[]}'
        accepted = desk.open(desk.path("b").read_bytes())
        assert accepted.accept_until.timestamp() <= grant.expires_at, "not accepted beyond what it carries"
        refused = desk.run(
            "seal",
            "--from-boto",
            "--profile",
            "nope",
            "--signer",
            desk.path("me.jwk"),
            "--recipient",
            desk.path("worker.pub"),
        )
        assert (refused.code, "nope" in refused.err) == (64, True)


def test_watch_seals_at_every_new_sign_on_and_outlives_what_may_pass(desk: Desk, tmp_path: Path) -> None:
    """A new sign-on is sealed; an ended one, a broken file and a directory that went away are told; Ctrl-C ends it."""
    sts = FakeSts(lambda: datetime.now(UTC))
    profile, out, seen = tmp_path / "credentials", tmp_path / "out/b", []
    out.parent.mkdir()

    def sign_on(seconds: int = 3600) -> None:
        made = sts.session("arn:aws:sts::111122223333:assumed-role/sso/ada", "role-session", 3600)
        ends = datetime.now(UTC) + timedelta(seconds=seconds)
        profile.write_text(
            f"[default]\naws_access_key_id={made['AccessKeyId']}\naws_secret_access_key={made['SecretAccessKey']}\n"
            f"aws_session_token={made['SessionToken']}\naws_expiration={ends.isoformat()}\n"
        )
        seen.append(made["AccessKeyId"])

    def sealed() -> str:
        (grant, env) = desk.open(out.read_bytes()).grants
        assert isinstance(grant, AwsSession)
        assert isinstance(env, Env)
        assert {name: value.reveal() for name, value in env.variables.items()} == {"PLACE": "here"}
        return grant.access_key_id

    def nothing_new() -> None:
        before.append(out.read_bytes())

    def ended() -> None:
        assert [out.read_bytes()] == before
        sign_on(seconds=-60)

    def broken() -> None:
        assert [out.read_bytes()] == before
        profile.write_text("[default\n")

    def away() -> None:
        assert [out.read_bytes()] == before
        out.parent.rename(tmp_path / "away")
        sign_on()

    def back() -> None:
        (tmp_path / "away").rename(out.parent)
        sign_on()

    def interrupted() -> None:
        assert sealed() == seen[-1]
        raise KeyboardInterrupt

    before: list[bytes] = []
    story = iter([nothing_new, ended, broken, away, back, interrupted])
    desk.patch.setattr("agent.cli.seal.time.sleep", lambda _: next(story)())
    with serving(sts) as url, laptop(desk.patch, tmp_path, AWS_ENDPOINT_URL_STS=url):
        sign_on()
        done = desk.run(
            *("seal", "--signer", desk.path("me.jwk"), "--recipient", desk.path("worker.pub"), "--from-boto"),
            *("--env", "PLACE=here", "--watch", "--out", out),
        )
    assert done.code == 130
    told = [line for line in done.err.splitlines() if line.startswith("not sealed")]
    assert len(told) == 3, done.err
    assert "has ended" in told[0]
    assert "Traceback" not in done.err


def test_delivery_to_an_instance_leaves_stdout_empty(desk: Desk, tmp_path: Path) -> None:
    """--to puts the bundle into the attribute, and prints it nowhere else unless --out says so."""
    instance = "zones/europe-west1-b/instances/worker-1"
    compute = FakeCompute(metadata={instance: Metadata({"a": "b"})}, tokens={"good"})

    def authorized(*_: object) -> Any:
        from google.oauth2.credentials import Credentials

        from agent.sender import gcp

        return Credentials("good"), gcp._transport()

    desk.patch.setattr("agent.sender.gcp.authorized", authorized)
    with serving(compute) as url:
        done = desk.seal(
            "--claims",
            desk.claims(),
            "--to",
            "gce:demo-project/europe-west1-b/worker-1",
            "--gce-endpoint",
            f"{url}/compute/v1",
        )
    assert done.out == b""
    assert "delivered to attribute credential-bundle of instance worker-1" in done.err
    assert compute.metadata[instance].items["a"] == "b"
    assert desk.open(compute.metadata[instance].items["credential-bundle"].encode()).grants


# -- inspect


def test_inspect_without_keys_shows_the_outside(desk: Desk) -> None:
    """Size, form, recipients and how; nothing is opened, and the status is 0."""
    desk.seal("--claims", desk.claims(), "--out", desk.path("b"))
    text = desk.ok("inspect", desk.path("b")).text
    kid = json.loads(desk.path("worker.pub").read_text())["kid"]
    assert f"recipient {kid} by ECDH-ES+A256KW" in text
    assert "not opened" in text


def _flip(data: bytes) -> bytes:
    document = json.loads(data)
    document["ciphertext"] = ("A" if document["ciphertext"][0] != "A" else "B") + document["ciphertext"][1:]
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data[:-20], "json"),
        (_flip, "content"),
        (lambda _: b"<html></html>", "encoding"),
        (lambda _: b"", "size"),
    ],
    ids=["cut", "flipped", "html", "empty"],
)
def test_inspect_says_which_check_refuses(desk: Desk, change: Callable[[bytes], bytes], code: str) -> None:
    """A damaged bundle: the check, the code that a worker would give, and status 65."""
    desk.seal("--claims", desk.claims(), "--out", desk.path("b"))
    desk.path("b").write_bytes(change(desk.path("b").read_bytes()))
    done = desk.run("inspect", desk.path("b"), "--key", desk.path("worker.jwk"), "--signer", desk.path("me.pub"))
    assert done.code == 65
    assert f"refused, {code}" in done.text


def test_inspect_checks_key_signer_and_audience(desk: Desk) -> None:
    """Another key, another signer, another audience: each is refused with its own code."""
    desk.seal("--claims", desk.claims(), "--out", desk.path("b"))
    desk.ok("keygen", "--out", desk.path("other.jwk"))
    desk.ok("keygen", "--kind", "es256", "--out", desk.path("x.jwk"), "--public", desk.path("x.pub"))
    key, signer = ("--key", desk.path("worker.jwk")), ("--signer", desk.path("me.pub"))
    assert "refused, recipient" in desk.run("inspect", desk.path("b"), "--key", desk.path("other.jwk"), *signer).text
    assert "refused, signer" in desk.run("inspect", desk.path("b"), *key, "--signer", desk.path("x.pub")).text
    assert "refused, audience" in desk.run("inspect", desk.path("b"), *key, *signer, "--audience", "urn:other").text
    assert desk.run("inspect", desk.path("b"), *key, "--signer", desk.path("x.pub"), *signer).code == 0
    assert desk.run("inspect", desk.path("b"), *key).code == 64


def test_inspect_of_a_wrong_key_file_blames_the_file(desk: Desk) -> None:
    """A public key where the private one belongs is a mistake with the file, not with the bundle."""
    desk.seal("--claims", desk.claims(), "--out", desk.path("b"))
    done = desk.run("inspect", desk.path("b"), "--key", desk.path("worker.pub"), "--signer", desk.path("me.pub"))
    assert done.code == 65
    assert str(desk.path("worker.pub")) in done.err


def test_help_works_for_each_command() -> None:
    """Help is there, and importing it needs no cloud SDK."""
    for command in ("keygen", "seal", "inspect"):
        result = CliRunner().invoke(cli, [command, "--help"])
        assert result.exit_code == 0, result.output
    code = "import sys, agent.cli.keygen, agent.cli.seal, agent.cli.inspect; sys.exit(any(m in sys.modules for m in ('boto3', 'botocore', 'google.auth', 'joserfc')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_inspect_says_once_where_json_breaks_off(desk: Desk) -> None:
    """The place of a mistake in JSON is told in one phrase."""
    desk.path("broken").write_text('{"a": "abc')
    assert "unterminated string starting at character 6" in desk.run("inspect", desk.path("broken")).text


@pytest.mark.parametrize("way", ["itself", "relative", "link", "hard link", "descriptor"])
@pytest.mark.parametrize("victim", ["me.jwk", "worker.pub", "claims.json", "policy.json", "credentials", "adc.json"])
def test_seal_writes_over_nothing_that_it_reads(desk: Desk, victim: str, way: str) -> None:
    """A file that the command reads is no place for its output, by whatever name; it stays as it was."""
    desk.claims()
    for name in ("policy.json", "credentials", "adc.json"):
        desk.path(name).write_text("{}")
    desk.patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(desk.path("credentials")))
    desk.patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(desk.path("adc.json")))
    desk.patch.chdir(desk.home)
    file, other = desk.path(victim), desk.path("other")
    before = file.read_bytes()
    argv: list[object] = ["seal", "--from-boto", "--role-arn", "arn:aws:iam::111122223333:role/r", "--policy"]
    argv += [desk.path("policy.json"), "--from-adc", "--claims", desk.path("claims.json")]
    argv += ["--signer", desk.path("me.jwk"), "--recipient", desk.path("worker.pub"), "--out"]
    with file.open("r+b") as opened:
        if way == "link":
            other.symlink_to(file)
        elif way == "hard link":
            other.hardlink_to(file)
        names = {"itself": file, "relative": Path(victim), "descriptor": Path(f"/dev/fd/{opened.fileno()}")}
        done = desk.run(*argv, names.get(way, other))
    assert (done.code, done.out) == (64, b"")
    assert "expected another file than" in done.err
    assert file.read_bytes() == before


def test_seal_writes_over_no_file_that_is_its_stdin_or_stdout(desk: Desk) -> None:
    """What a shell led to the command is read or written too; a terminal or a pipe may be both."""
    key, other = desk.path("me.jwk"), desk.path("worker.pub")
    argv = [sys.executable, "-m", "agent", "seal", "--env", "MYAPP_A=b", "--recipient", str(other), "--signer"]
    before = key.read_bytes()
    with key.open("rb") as stdin, key.open("ab") as stdout:
        for signer, out, streams in (("-", "/dev/stdin", (stdin, None)), (str(key), "-", (None, stdout))):
            done = subprocess.run(
                [*argv, signer, "--out", out],
                stdin=streams[0] or subprocess.DEVNULL, stdout=streams[1] or subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, check=False, timeout=60,
            )  # fmt: skip
            assert done.returncode == 64, done.stderr
            assert "expected another file than" in done.stderr
            assert key.read_bytes() == before
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(before)
        ours.shutdown(socket.SHUT_WR)
        end = theirs.fileno()
        done = subprocess.run(
            [*argv, "-"], stdin=end, stdout=end, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", ["jwk", "oct", "set", "pem"])
def test_what_is_public_never_replaces_a_private_key(desk: Desk, form: str) -> None:
    """A bundle or a public key is written over no private key, not even with --force; over anything else as before."""
    key = desk.path("key")
    made = desk.path("me.jwk").read_text()
    if form == "oct":
        desk.ok("keygen", "--kind", "oct", "--out", key)
    else:
        pem = "-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n"
        key.write_text({"jwk": made, "set": f'{{"keys": [{made}]}}', "pem": pem}[form])
    before = key.read_bytes()
    seal = ["seal", "--withdraw", "--signer", desk.path("me.jwk"), "--recipient", desk.path("worker.pub"), "--out", key]
    for argv in (seal, ["keygen", "--force", "--out", desk.path("new"), "--public", key]):
        done = desk.run(*argv)
        assert (done.code, done.out) == (71, b"")
        assert "key: holds a private key" in done.err
        assert key.read_bytes() == before
    key.write_bytes(desk.path("worker.pub").read_bytes())
    desk.ok(*seal)
    desk.ok(*seal)
