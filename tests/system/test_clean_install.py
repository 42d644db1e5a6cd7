"""What is installed works: every command and every path of the sender, with the wheel and the locked packages alone."""

from __future__ import annotations

import ast
import asyncio
import base64
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from agent.cli import cli
from agent.keys import Keyring, load_key_file
from tests.fakes.clean import REPOSITORY, environment, install, locked
from tests.fakes.google_tokens import FakeGoogle
from tests.fakes.net import Answer, Asked, Fault
from tests.fakes.sts import FakeSts
from tests.system.harness import World, until
from tests.unit.sender.support import serving

pytestmark = pytest.mark.xdist_group("clean-install")

ROLE = "arn:aws:iam::111122223333:role/reader"
ROBOT = "robot@demo-project.iam.gserviceaccount.com"


POOL = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q"


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("clean"))


class User:
    """Somebody with the installation, a home and nothing else."""

    def __init__(self, programs: Path, home: Path) -> None:
        self.programs, self.home = programs, home
        self.environ: dict[str, str] = {}

    def run(self, *argv: object, status: int = 0, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [str(self.programs / "credential-agent"), *(str(part) for part in argv)],
            cwd=self.home, env=environment(self.home, **self.environ), input=stdin, capture_output=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert done.returncode == status, (argv, done.returncode, done.stderr.decode())
        return done

    def keys(self) -> None:
        (self.home / "sender.pub.jwk").write_bytes(
            self.run("keygen", "--kind", "ed25519", "--out", "sender.jwk").stdout
        )
        (self.home / "worker.pub.jwk").write_bytes(self.run("keygen", "--out", "worker.jwk").stdout)

    def seal(self, *argv: object, status: int = 0) -> str:
        """Seal; what was told on standard error."""
        how = ("--signer", "sender.jwk", "--recipient", "worker.pub.jwk", "--out", "b")
        return self.run("seal", *how, *argv, status=status).stderr.decode()

    def inside(self) -> dict[str, Any]:
        """What the sealed bundle carries, by the type of the grant."""
        said = self.run("inspect", "b", "--key", "worker.jwk", "--signer", "sender.pub.jwk").stdout.decode()
        document = json.loads(said[said.index("{") : said.rindex("\n}") + 2])
        return {grant["type"]: grant for grant in document["grants"]}


@pytest.fixture
def user(programs: Path, tmp_path: Path) -> User:
    made = User(programs, tmp_path)
    made.keys()
    return made


def test_nothing_else_can_be_imported(programs: Path) -> None:
    """The installation holds the locked packages and ours; the packages of the tests are out of its reach."""
    code = (
        "import importlib.metadata as m; print(*sorted({d.name.lower().replace('_', '-') for d in m.distributions()}))"
    )
    done = subprocess.run(
        [programs / "python", "-c", code], cwd="/", env={}, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {*locked(), "credential-agent"}


def test_every_module_imports(programs: Path) -> None:
    """No module of ours needs a package that is not installed."""
    code = (
        "import importlib, pkgutil, agent\n"
        "for module in pkgutil.walk_packages(agent.__path__, 'agent.'):\n"
        "    if module.name != 'agent.__main__': importlib.import_module(module.name)\n"
        "import google.auth.transport.urllib3, google.auth.compute_engine\n"
    )
    done = subprocess.run(
        [programs / "python", "-c", code], cwd="/", env={}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", sorted(cli.list_commands(click.Context(cli))))
def test_every_command_has_its_help(user: User, command: str) -> None:
    """`--help` of every command works."""
    assert b"Usage: credential-agent" in user.run(command, "--help").stdout


PLACES: dict[str, dict[str, str | None]] = {
    "no home": {"HOME": None},
    "a home that is not there": {"HOME": "/proc/nowhere"},
    "the C locale": {"LANG": "C", "LC_ALL": "C"},
    "a locale of ASCII": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("place", PLACES)
def test_the_place_does_not_matter(programs: Path, tmp_path: Path, place: str) -> None:
    """Without a home, in any locale and under a umask that hides everything, a variable arrives as it was sent."""
    wanted = "tükçe €"
    found: dict[str, str | None] = {**environment(tmp_path), "MYAPP_TOKEN": wanted, **PLACES[place]}
    environ = {key: value for key, value in found.items() if value is not None}

    def typed(line: str, status: int = 0) -> str:
        done = subprocess.run(
            ["sh", "-c", f"umask 077; {line}"], cwd=tmp_path, env={**environ, "PATH": f"{programs}:{os.defpath}"},
            capture_output=True, check=False, timeout=120,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert done.returncode == status, (line, done.returncode, done.stderr.decode())
        return done.stdout.decode()

    typed("credential-agent keygen --kind ed25519 --out s > s.pub; credential-agent keygen --out w > w.pub")
    typed("credential-agent seal --env MYAPP_TOKEN --signer s --recipient w.pub --out b")
    assert "MYAPP_TOKEN" in typed("credential-agent inspect b --key w --signer s.pub")
    keyring = Keyring(load_key_file(tmp_path / "w"))
    signed, _ = asyncio.run(keyring.unseal((tmp_path / "b").read_bytes(), now=now(), max_bytes=1 << 18))
    middle = signed.split(b".")[1]
    claims = json.loads(base64.urlsafe_b64decode(middle + b"=" * (-len(middle) % 4)))
    assert [g["variables"]["MYAPP_TOKEN"] for g in claims["grants"]] == [wanted]
    for command in ("check", "run", "status", "refresh", "wait", "env", "credential-process"):
        typed(f"credential-agent {command} --config {tmp_path}/no.toml", status=78)
    typed(f"credential-agent push --config {tmp_path}/no.toml b", status=78)
    typed(f"credential-agent exec --config {tmp_path}/no.toml -- true", status=78)
    typed("credential-agent --help | true")
    typed("credential-agent --help > /dev/full", status=74)


def test_every_kind_of_key_is_made(user: User) -> None:
    """`keygen` makes each kind that its help names, and what can open or sign does."""
    told = re.search(r"--kind \[([^]]*)\]", user.run("keygen", "--help").stdout.decode())
    assert told is not None
    kinds = re.findall(r"[a-z0-9]+", told[1])
    assert len(kinds) == 6
    for kind in kinds:
        public = user.run("keygen", "--kind", kind, "--out", f"{kind}.jwk").stdout
        (user.home / f"{kind}.pub").write_bytes(public)
        if kind in {"ed25519", "es256"}:
            user.run("seal", "--withdraw", "--signer", f"{kind}.jwk", "--recipient", "worker.pub.jwk", "--out", "b")
        else:
            recipient = f"{kind}.jwk" if kind == "oct" else f"{kind}.pub"
            user.run("seal", "--withdraw", "--signer", "sender.jwk", "--recipient", recipient, "--out", "b")
            user.run("inspect", "b", "--key", f"{kind}.jwk", "--signer", "sender.pub.jwk")


def test_every_way_from_boto(user: User) -> None:
    """`seal --from-boto` by each mode: a session for keys, a role, a session as it is, keys, and roles that renew."""
    sts = FakeSts(now)
    key, secret = sts.user()
    sts.role(ROLE)
    keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": "eu-west-1"}
    with serving(sts) as url:
        user.environ = {"AWS_ENDPOINT_URL_STS": url, "AWS_EC2_METADATA_DISABLED": "true", **keys}
        told = user.seal("--from-boto")
        assert list(user.inside()) == ["aws-session"]
        assert secret not in told
        user.seal("--from-boto", "--aws-mode", "keys")
        assert list(user.inside()) == ["aws-keys"]
        user.seal("--from-boto", "--role-arn", ROLE)
        assert ":assumed-role/" in user.inside()["aws-session"]["role_arn"]
        user.seal("--from-boto", "--role-arn", ROLE, "--renew-role", "local")
        assert set(user.inside()) == {"aws-session", "aws-assume-role"}
        user.seal("--from-boto", "--role-arn", ROLE, "--renew-role", "instance")
        assert list(user.inside()) == ["aws-assume-role"]
        session = sts.session("arn:aws:sts::111122223333:assumed-role/sso/me", "role-session", 3600)
        user.environ |= {
            "AWS_ACCESS_KEY_ID": session["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
            "AWS_SESSION_TOKEN": session["SessionToken"],
        }
        user.seal("--from-boto", "--assume-expiry", "30m")
        assert list(user.inside()) == ["aws-session"]


@contextmanager
def google(user: User) -> Iterator[FakeGoogle]:
    """Google, and the machine's metadata server, to which the installation is led."""
    fake = FakeGoogle(now)
    fake.account("reader@demo-project.iam.gserviceaccount.com")

    def handler(asked: Asked) -> Answer | Fault:
        if asked.path == "/v1/userinfo":
            return Answer(200, json.dumps({"email": "ada@example.com"}).encode())
        if asked.path.startswith("/computeMetadata") or asked.path == "/":
            flavor = {"Metadata-Flavor": "Google", "Content-Type": "application/json"}
            if asked.path.endswith("/token"):
                token = {"access_token": fake.access_token(ROBOT), "expires_in": 3000, "token_type": "Bearer"}
                return Answer(200, json.dumps(token).encode(), flavor)
            if asked.path.endswith("/project-id"):
                return Answer(200, b"demo-project", {**flavor, "Content-Type": "application/text"})
            if asked.path.endswith("/universe-domain"):
                return Answer(404, b"", flavor)
            return Answer(200, json.dumps({"email": ROBOT, "scopes": [], "aliases": ["default"]}).encode(), flavor)
        return fake(asked)

    with serving(handler) as url:
        user.environ = {"DETOUR": url, "NO_GCE_CHECK": "true"}
        yield fake


def adc(user: User, **content: Any) -> None:
    path = user.home / "adc.json"
    path.write_text(json.dumps(content))
    user.environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(path)


def signed_in(fake: FakeGoogle) -> dict[str, str]:
    known = fake.user()
    return {"type": "authorized_user", **{k: known[k] for k in ("client_id", "client_secret", "refresh_token")}}


def test_adc_of_a_user(user: User) -> None:
    """A user's sign-in seals a token; its refresh token when that is asked for by name; an impersonated token."""
    with google(user) as fake:
        adc(user, **signed_in(fake))
        assert "ada@example.com" in user.seal("--from-adc")
        assert list(user.inside()) == ["gcp-token"]
        user.seal("--from-adc", "--send-refresh-token")
        assert list(user.inside()) == ["gcp-authorized-user"]
        user.seal("--from-adc", "--impersonate", "reader@demo-project.iam.gserviceaccount.com")
        assert user.inside()["gcp-token"]["email"] == "reader@demo-project.iam.gserviceaccount.com"


def test_adc_of_a_service_account(user: User) -> None:
    """A service account's key seals a token, or itself when that is asked for by name."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    with google(user) as fake:
        fake.account(ROBOT, keys={"key-1": key.public_key()})
        adc(user, type="service_account", project_id="demo-project", private_key_id="key-1", private_key=pem,
            client_email=ROBOT, client_id="1", token_uri="https://oauth2.googleapis.com/token")  # fmt: skip
        assert ROBOT in user.seal("--from-adc")
        user.seal("--from-adc", "--send-service-account-key")
        assert list(user.inside()) == ["gcp-service-account"]


def test_adc_that_impersonates(user: User) -> None:
    """An impersonating sign-in seals the token of the service account it names."""
    reader = "reader@demo-project.iam.gserviceaccount.com"
    url = f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{reader}:generateAccessToken"
    with google(user) as fake:
        adc(user, type="impersonated_service_account", service_account_impersonation_url=url, delegates=[],
            source_credentials=signed_in(fake))  # fmt: skip
        assert reader in user.seal("--from-adc")


def test_adc_of_a_federated_workload(user: User) -> None:
    """A workload's own token, from a file, is exchanged."""
    with google(user) as fake:
        fake.pools[POOL] = "https://ci.example.com"
        claims = {"iss": "https://ci.example.com", "sub": "build-7", "exp": now().timestamp() + 600}
        middle = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        (user.home / "subject").write_text(f"e30.{middle}.c2ln")
        adc(user, type="external_account", audience=POOL, subject_token_type="urn:ietf:params:oauth:token-type:jwt",
            token_url="https://sts.googleapis.com/v1/token",
            credential_source={"file": str(user.home / "subject")})  # fmt: skip
        user.seal("--from-adc")
        assert list(user.inside()) == ["gcp-token"]
        assert "token-exchange" in fake.operations()


def test_adc_of_a_machine_on_google(user: User) -> None:
    """On a Google VM without any file the machine's own service account is what is sealed."""
    with google(user):
        host = user.environ["DETOUR"].removeprefix("http://")
        user.environ |= {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host, "CLOUDSDK_CONFIG": str(user.home)}
        del user.environ["NO_GCE_CHECK"]
        user.seal("--from-adc")
        assert list(user.inside()) == ["gcp-token"]


def test_no_adc_is_a_line(user: User) -> None:
    """Without an identity, and with one of a kind that cannot be used, `--from-adc` is one line and no traceback."""
    with google(user):
        user.environ["CLOUDSDK_CONFIG"] = str(user.home)
        assert "hint: " in user.seal("--from-adc", status=69)
        for kind in ("gdch_service_account", "something_new", "external_account_authorized_user"):
            adc(user, type=kind, format_version="1")
            assert user.seal("--from-adc", status=69).startswith("credential-agent: ")


def test_every_command_of_the_worker(user: User) -> None:
    """check, run, status, push, refresh, wait, env, exec and credential-process work beside one another."""
    root = user.home / "w"
    root.mkdir()
    world = World(root)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = world.write_config({"listen": {"http": [f"127.0.0.1:{port}"]}})
    assert user.run("check", "--config", config).stdout.decode().strip().endswith(": ok")
    process = subprocess.Popen(
        [str(user.programs / "credential-agent"), "run", "--config", str(config)],
        env=environment(user.home), cwd="/", stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        until((root / "run" / "control").exists, what="the control socket")
        sealed = world.seal(world.session("ASIACLEANINSTALL0001"))
        (user.home / "b").write_bytes(sealed)
        until(
            lambda: user.run("wait", "--config", config, "--for", "any", "--timeout", "0", status=75),
            what="no identity",
        )
        assert user.run("push", "--config", config, "b").stdout.startswith(b"accepted: seq 1")
        assert user.run("push", "--config", config, "-", stdin=sealed).stdout.startswith(b"same: seq 1")
        user.run("wait", "--config", config, "--for", "aws")
        assert b"from the bundle" in user.run("status", "--config", config).stdout
        assert json.loads(user.run("status", "--config", config, "--json").stdout)["bundle"]["seq"] == 1
        assert user.run("refresh", "--config", config).stdout == b"file: none\n"
        assert b"AWS_CONTAINER_CREDENTIALS_FULL_URI" in user.run("env", "--config", config).stdout
        told = user.run(
            "exec", "--config", config, "--for", "aws", "--", "sh", "-c", "echo $AWS_EC2_METADATA_SERVICE_ENDPOINT"
        )
        assert told.stdout.strip() == f"http://127.0.0.1:{port}".encode()
        assert json.loads(user.run("credential-process", "--config", config).stdout)["AccessKeyId"].startswith(
            "ASIACLEAN"
        )
        for command in ("apply", "check", "close", "remove", "show"):
            assert b"Usage" in user.run("redirect", command, "--help").stdout
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said.decode()
    assert b"Traceback" not in said


# What is declared is what is imported -----------------------------------------------------------------------------------

_MODULES = {"google": "google-auth", "prometheus_client": "prometheus-client"}
"""Top-level modules whose distribution has another name."""


def imported() -> dict[str, set[str]]:
    """Every package that the code imports, anywhere in it, by the name of its distribution, with the modules."""
    found: dict[str, set[str]] = {}
    for path in (REPOSITORY / "agent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                if top != "agent" and top not in sys.stdlib_module_names:
                    found.setdefault(_MODULES.get(top, top), set()).add(name)
    return found


def test_what_is_declared_is_what_is_imported() -> None:
    """Each package that the code imports is declared, as a dependency or as an extra, and each that is declared is imported."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    assert {re.split(r"[\[>=<; ]", line, maxsplit=1)[0] for line in declared} == set(imported())


def test_optional_parts_that_are_used_are_declared() -> None:
    """google-auth's transports are extras of it: those that the code imports are asked for by name."""
    transports = {name.rpartition(".")[2] for name in imported()["google-auth"] if ".transport." in name}
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    (line,) = [line for line in declared if line.startswith("google-auth")]
    asked = set(re.search(r"\[(.*)\]", line)[1].split(","))  # type: ignore[index]
    # `requests` is what google.auth.compute_engine imports, which is the identity of a machine on Google.
    assert asked == {*transports, "requests"}
    needed = importlib.metadata.requires("google-auth") or []
    extras = {re.split(r"[<>=!;]", line)[0] for line in needed for extra in asked if f'extra == "{extra}"' in line}
    assert extras <= set(locked())
