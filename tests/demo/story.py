"""The main job, told in steps. Every line with a check mark was checked, and most of them at the cloud's side."""

from __future__ import annotations

import itertools
import json
import re
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.demo import accounts, cloud
from tests.demo.cluster import Cluster
from tests.demo.stage import PATH, ROOT, Agent, Failed, Program, Stage, call
from tests.demo.teller import Teller

STEPS = (
    ("0", "one line from a laptop to a cluster"),
    ("a", "no bundle: the machine's own identity"),
    ("b", "a bundle is sealed and dropped"),
    ("c", "the AWS session is renewed before its end"),
    ("d", "so is the Google token"),
    ("e", "a tampered bundle, an old one, a stranger's"),
    ("f", "the source disappears"),
    ("g", "no secret anywhere"),
)
S3_URL = f"s3://{accounts.BUCKET}/{accounts.KEY}"
GCS_URL = f"gs://{accounts.GCS_BUCKET}/{accounts.GCS_OBJECT}"
ISSUER = "laptop:david"
AUDIENCE = "urn:credbundle:cluster:demo"
USER_PROGRAM = Path(__file__).with_name("user_program.py")


@dataclass
class Story:
    """Everything that happens, in order.

    Attributes:
        stage: where it happens.
        teller: says so.
    """

    stage: Stage
    teller: Teller
    clouds: cloud.Clouds = field(init=False)
    laptop: cloud.Laptop = field(init=False)
    agent: Agent = field(init=False)
    endpoint: socket.socket = field(init=False)
    first_keys: set[str] = field(default_factory=set)

    @property
    def directory(self) -> Path:
        return self.stage.directory

    @property
    def drop(self) -> Path:
        """Where the worker looks for bundles."""
        return self.directory / "worker/inbox/bundle.jose"

    def tell(self, *, cluster: bool = True) -> None:
        """Tell all of it, or all but the first chapter."""
        self.teller.plan(*(STEPS if cluster else STEPS[1:]))
        self._set_up()
        if cluster:
            self._cluster()
        self._machine()
        self._bundle()
        self._renewal()
        self._refusals()
        self._source_gone()
        self._nothing_leaked()

    # -- before ------------------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        self.teller.line(self.teller.paint("1", "   the stage"))
        self.clouds, self.laptop = cloud.build(self.stage)
        self.teller.done(
            "an AWS (moto: IAM enforced, STS, S3), an EC2 metadata service (IMDSv2 only), a Google (OAuth, storage)"
        )
        worker = self.directory / "worker"
        for name in ("inbox", "state", "run", "home"):
            (worker / name).mkdir(parents=True)
        # The worker's key is made on the worker, David's on his laptop; only the public halves travel.
        self._cli(
            "keygen", "--kind", "p256", "--out", f"{worker}/key.jwk", "--public", f"{self.laptop.home}/worker.pub.jwk"
        )
        self._cli(
            "keygen",
            "--kind",
            "ed25519",
            "--out",
            f"{self.laptop.home}/david.jwk",
            "--public",
            f"{worker}/david.pub.jwk",
        )
        self.teller.done("a key pair for the worker, one for David: credential-agent keygen")
        # systemd holds the socket of the listeners, and so does this.
        self.endpoint = socket.create_server(("127.0.0.1", 0), backlog=1024)
        control = worker / "run/control.sock"
        config = worker / "config.toml"
        config.write_text(self._config(control))
        self.agent = Agent(self.stage, config, control, self.endpoint)

    def _config(self, control: Path) -> str:
        worker = self.directory / "worker"
        text = json.dumps  # TOML's basic strings are JSON's
        return f"""# The configuration of the demonstration: a worker on EC2 whose clouds answer on loopback.
[listen]
http = ["127.0.0.1:{self.endpoint.getsockname()[1]}"]  # the socket unit's address
control = {text(str(control))}

[identity]
audience = [{text(AUDIENCE)}]
grace_seconds = 0  # a real worker waits a little for its first bundle

[[keys]]
kind = "file"
path = {text(f"{worker}/key.jwk")}

[[signers]]
key = {text(f"{worker}/david.pub.jwk")}
issuers = ["laptop:*"]
audiences = [{text(AUDIENCE)}]

[[sources]]
kind = "file"
path = {text(str(self.drop))}

[upstream]
ec2 = {text(self.clouds.ec2_metadata)}
gce = "off"

[mint]
sts_endpoint = {text(self.clouds.aws)}
google_token_url = {text(f"{self.clouds.google}/token")}

[environment]
file = {text(f"{worker}/run/env")}
shell_file = {text(f"{worker}/run/env.sh")}
token_file = {text(f"{worker}/run/token")}
allow = ["DATASET"]  # beside the names that pass anyway

[environment.variables]  # where this little world keeps its storage
AWS_ENDPOINT_URL_S3 = {text(self.clouds.aws)}
CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE = {text(self.clouds.google)}

[state]
directory = {text(f"{worker}/state")}
"""

    # -- 0 -----------------------------------------------------------------------------------------------------------

    def _cluster(self) -> None:
        with self.teller.step("0") as step:
            step.result = Cluster(self.stage, self.teller, self.clouds, self.laptop).tell()

    # -- a -----------------------------------------------------------------------------------------------------------

    def _machine(self) -> None:
        with self.teller.step("a") as step:
            self.agent.start()
            self.teller.done("credential-agent run --config config.toml is ready (Type=notify, socket-activated)")
            self._until_identity("aws", origin="fallback")
            self._expect(self._aws()["identity"] == "worker-role", "the machine's role", self._aws()["identity"])
            own = self._run_user("reads-own-logs", f"s3://{accounts.LOGS}/boot.log")
            self._expect(own.process.returncode == 0, "the machine's role to read its own bucket", own.last_words())
            self.teller.done(
                f'boto3.client("s3"), no arguments: it is worker-role, and reads s3://{accounts.LOGS}/boot.log'
            )
            refused = self._run_user("reads-too-early", S3_URL)
            said = refused.last_words()
            self._expect(refused.process.returncode != 0 and "AccessDenied" in said, "AccessDenied", said)
            machine = {session["access_key_id"] for session in self.clouds.sessions(accounts.MACHINE_ROLE)}
            reads = self.clouds.s3_reads()
            self._expect(
                [read["status"] for read in reads] == [403] and reads[0]["access_key_id"] in machine,
                "one read, signed by the machine's role and refused by S3",
                [(read["status"], _tail(read["access_key_id"])) for read in reads],
            )
            self.teller.done(f"{S3_URL}: AccessDenied, as it should be")
            step.result = "served; the private object is denied"

    # -- b -----------------------------------------------------------------------------------------------------------

    def _bundle(self) -> None:
        with self.teller.step("b") as step:
            sealed = self._seal("first.jose")
            self._show_horizon(sealed)
            size = (self.laptop.home / "first.jose").stat().st_size
            self.teller.done(
                f"credential-agent seal --from-boto --from-adc: {size} bytes that only this worker can open"
            )
            before = time.monotonic()
            self._put("first.jose")
            self._until_identity("aws", origin="bundle")
            self._until_identity("gcp", origin="bundle")
            took = time.monotonic() - before
            aws, gcp = self._aws(), self._gcp()
            self._expect(
                aws["role_arn"] is not None and "david-reader" in aws["role_arn"],
                "the role david-reader",
                aws["role_arn"],
            )
            self._expect(gcp["identity"] == accounts.DAVID, accounts.DAVID, gcp["identity"])
            self.teller.done(
                f"renamed into place: opened, verified and served {took:.2f} s later ({aws['identity']}, {gcp['identity']})"
            )
            self._environment_follows()
            read = self._run_user("reads-s3", S3_URL)
            self._expect(read.said().strip() == accounts.TEXT, f"the text {accounts.TEXT!r}", read.last_words())
            self.teller.done(
                f'boto3.client("s3"), no arguments, {S3_URL}: {self.teller.paint("36", read.said().strip())}'
            )
            read = self._run_user("reads-gcs", GCS_URL)
            self._expect(read.said().strip() == accounts.GCS_TEXT, f"the text {accounts.GCS_TEXT!r}", read.last_words())
            self.teller.done(f"google.auth.default(), {GCS_URL}: {self.teller.paint('36', read.said().strip())}")
            step.result = f"David's identity in {took:.2f} s; both objects read"

    def _environment_follows(self) -> None:
        """The environment file now points to Google too, carries what David sent along, and holds no key."""
        found: dict[str, str] = self.stage.until(
            lambda: (names := self._environment()) and "GCE_METADATA_HOST" in names and names,
            "the environment file to follow",
            seconds=15,
        )
        self._expect(found.get("DATASET") == S3_URL, "DATASET from David's own environment", found.get("DATASET"))
        keys = sorted(name for name in found if re.match(r"AWS_(ACCESS_KEY|SECRET|SESSION|SECURITY)", name))
        self._expect(not keys, "pointers and no keys in the environment file", keys)
        self.teller.done(f"the environment file: {len(found)} variables, no cloud key among them; three of them")
        for name in ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "GCE_METADATA_HOST", "DATASET"):
            self.teller.note(f"{name}={found[name]}")

    def _show_horizon(self, sealed: Program) -> None:
        for line in sealed.complained().splitlines():
            if re.match(r"(aws|gcp): ", line.strip()):
                self.teller.note(line.strip())

    # -- c and d -----------------------------------------------------------------------------------------------------

    def _renewal(self) -> None:
        begun_s3, begun_gcs = len(self.clouds.s3_reads()), len(self.clouds.gcs_reads())
        s3 = self._start_user("long-job-s3", S3_URL)
        self._start_user("long-job-gcs", GCS_URL)
        with self.teller.step("c") as step:
            self.teller.note(
                f"sessions of this role live {cloud.SESSION_SECONDS} s here, and S3 refuses them after that; one client object reads on"
            )
            first = self._first_read(s3, begun_s3)
            self._watch_sessions(first)
            reads = self.clouds.s3_reads()[1:]
            used = _distinct(read["access_key_id"] for read in reads)
            self._expect(all(read["status"] == 200 for read in reads), "every read to succeed", _statuses(reads))
            self._expect(reads[-1]["at"] > first["expires_at"], "reads after the first session's end", "none")
            self._expect(reads[-1]["access_key_id"] != first["access_key_id"], "another key by now", "the same")
            self._expect_ended(first)
            self.teller.done(
                f"{len(reads)} reads with {len(used)} sessions, every one 200; with the first session S3 now answers ExpiredToken"
            )
            step.result = f"{len(used)} sessions, {len(reads)} reads, no error"
        with self.teller.step("d") as step:
            minted = self._watch_tokens(begun_gcs)
            reads = self.clouds.gcs_reads()
            serials = _distinct(read["serial"] for read in reads)
            self._expect(all(read["status"] == 200 for read in reads), "every read to succeed", _statuses(reads))
            token, first_token = min(minted.items(), key=lambda item: item[1]["serial"])
            self._expect(reads[-1]["at"] > first_token["expires_at"], "reads after the first token's end", "none")
            self._expect(len(serials) >= 2, "two tokens or more", len(serials))
            self._expect_token_ended(token)
            self.teller.done(
                f"{len(reads)} reads with {len(serials)} access tokens, every one 200; the first token is 401 by now"
            )
            step.result = f"{len(serials)} tokens, {len(reads)} reads, no error"

    def _start_user(self, name: str, url: str) -> Program:
        return self.stage.start(
            name, self._as_worker(url, "--every", "0.4"), env=self._worker_environment(), must_run=True
        )

    def _first_read(self, program: Program, before: int) -> dict[str, Any]:
        """The session that the job began with; ``before`` reads there were before it."""
        self.stage.until(program.said, f"{program.name} to read", seconds=15)
        key = self.clouds.s3_reads()[before]["access_key_id"]
        first = next((s for s in self.clouds.sessions(accounts.READER_ROLE) if s["access_key_id"] == key), None)
        if first is None:
            raise Failed("the job did not begin with a session of david-reader")
        return first

    def _watch_sessions(self, first: dict[str, Any]) -> None:
        """Tell of each new session as it is used, until the first has been over for a moment."""
        seen = [first["access_key_id"]]
        ends = {s["access_key_id"]: s["expires_at"] for s in self.clouds.sessions(accounts.READER_ROLE)}

        def over() -> bool:
            read = self.clouds.s3_reads()[-1]
            key = read["access_key_id"]
            if key not in seen:
                ends.update({s["access_key_id"]: s["expires_at"] for s in self.clouds.sessions(accounts.READER_ROLE)})
                left = ends[seen[-1]] - read["at"]
                self._expect(left > 0, "a new session before the old one's end", f"{-left:.1f} s after it")
                seen.append(key)
                self.teller.done(
                    f"session ..{_tail(key)} has taken over, {left:.1f} s before the end of ..{_tail(seen[-2])}"
                )
            return time.time() > float(first["expires_at"]) + 1.0

        self.stage.until(over, "the first session to end", seconds=cloud.SESSION_SECONDS + 10, every=0.2)
        self._expect(len(seen) >= 2, "a renewal", "none")

    def _watch_tokens(self, begun: int) -> dict[str, dict[str, Any]]:
        """Wait until the first token has been over for a moment, and tell of the renewals."""
        first_end = min(token["expires_at"] for token in self.clouds.google_tokens().values())
        self.stage.until(
            lambda: self.clouds.gcs_reads()[-1]["at"] > first_end + 0.5,
            "a read after the first token's end",
            seconds=30,
            every=0.2,
        )
        minted = self.clouds.google_tokens()
        by_serial = {token["serial"]: token["expires_at"] for token in minted.values()}
        reads = self.clouds.gcs_reads()[begun:]
        for before, after in itertools.pairwise(reads):
            if before["serial"] != after["serial"]:
                left = by_serial[before["serial"]] - after["at"]
                self._expect(left > 0, "a new token before the old one's end", f"{-left:.1f} s after it")
                self.teller.note(
                    f"access token {after['serial']} took over {left:.1f} s before the end of {before['serial']}"
                )
        return minted

    def _expect_ended(self, session: dict[str, Any]) -> None:
        """Whoever still holds the first session gets nothing: the cloud really enforces its end."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import ClientError

        s3 = boto3.client(
            "s3",
            endpoint_url=self.clouds.aws,
            region_name=accounts.REGION,
            aws_access_key_id=session["access_key_id"],
            aws_secret_access_key=session["secret_access_key"],
            aws_session_token=session["session_token"],
            config=Config(proxies={}, retries={"total_max_attempts": 1}),
        )
        try:
            s3.get_object(Bucket=accounts.BUCKET, Key=accounts.KEY)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            self._expect(code == "ExpiredToken", "ExpiredToken", code)
        else:
            raise Failed("S3 still took the first session after its end")

    def _expect_token_ended(self, token: str) -> None:
        import requests

        url = f"{self.clouds.google}/storage/v1/b/{accounts.GCS_BUCKET}/o/{accounts.GCS_OBJECT.replace('/', '%2F')}?alt=media"
        with requests.Session() as session:
            session.trust_env = False
            status = session.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=10).status_code
        self._expect(status == 401, "401", status)

    # -- e -----------------------------------------------------------------------------------------------------------

    def _refusals(self) -> None:
        with self.teller.step("e") as step:
            served = self.agent.status()["bundle"]["seq"]
            sealed = json.loads((self.laptop.home / "first.jose").read_text())
            text = sealed["ciphertext"]
            middle = len(text) // 2
            sealed["ciphertext"] = text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :]
            (self.laptop.home / "tampered.jose").write_text(json.dumps(sealed))
            self._refused("tampered.jose", "content", "one character changed on the way")

            self._seal("second.jose")
            self._put("second.jose")
            self.stage.until(
                lambda: self.agent.status()["bundle"]["seq"] > served, "the newer bundle to be in force", seconds=10
            )
            newer = self.agent.status()["bundle"]["seq"]
            self.teller.done("a newer bundle from David: in force, and the jobs read on")
            self._refused("first.jose", "rollback", "the first bundle, replayed")

            self._cli("keygen", "--kind", "ed25519", "--out", f"{self.laptop.home}/mallory.jwk")
            self._seal("mallorys.jose", signer="mallory.jwk")
            self._refused("mallorys.jose", "signer", "well made, signed by a stranger")

            status = self.agent.status()
            self._expect(status["bundle"]["seq"] == newer, f"bundle {newer} still in force", status["bundle"]["seq"])
            self._still_reading("after the refusals")
            self.teller.done("nothing that was served is lost: the newer bundle is in force, both jobs read on")
            step.result = "refused, with the reason; nothing lost"

    def _refused(self, name: str, code: str, what: str) -> None:
        before = sum(self.agent.status()["bundles"]["refused"].values())
        self._put(name)
        self.stage.until(
            lambda: sum(self.agent.status()["bundles"]["refused"].values()) > before,
            f"the refusal of {name}",
            seconds=10,
        )
        refusal = self.agent.status()["last_refusal"]
        self._expect(refusal["code"] == code, f"the refusal {code!r}", refusal["code"])
        self._expect(bool(refusal["reason"]), "a reason", "none")
        self.teller.done(f"{what}: refused")
        self.teller.note(f"{refusal['code']}: {refusal['reason']}")

    # -- f -----------------------------------------------------------------------------------------------------------

    def _source_gone(self) -> None:
        with self.teller.step("f") as step:
            before = self.agent.status()
            key = before["clouds"]["aws"]["access_key_id"]
            self.drop.unlink()
            self.drop.parent.rmdir()
            # Long enough for the watch to notice, and for the next session to be fetched without the file.
            gone = time.monotonic()
            self.stage.until(
                lambda: time.monotonic() > gone + 2 and self._aws()["access_key_id"] != key,
                "the next session", seconds=cloud.SESSION_SECONDS,
            )  # fmt: skip
            after = self.agent.status()
            self._expect(after["bundle"] == before["bundle"], "the same bundle in force", "another")
            self._expect(
                after["clouds"]["aws"]["origin"] == "bundle", "David's identity", after["clouds"]["aws"]["origin"]
            )
            self._still_reading("without the file")
            self.teller.done(
                "the file and its directory are gone: the bundle is in force, and renewal goes on without it"
            )
            for program in list(self.stage.must_run):
                if program.name.startswith("long-job"):
                    lines = len(program.said().splitlines())
                    self._expect(self.stage.stop(program) == 0, f"{program.name} to end well", program.last_words())
                    self._expect(not program.complained(), f"no complaint from {program.name}", program.last_words())
                    self.teller.note(f"{program.name} read {lines} times with one client object and never saw an error")
            reads = [*self.clouds.s3_reads()[1:], *self.clouds.gcs_reads()]
            refused = [read["status"] for read in reads if read["status"] != 200]
            # The two refusals are our own: the first session and the first token, tried after their end.
            self._expect(sorted(refused) == [400, 401], "no refusal but of what had ended", refused)
            step.result = "nothing changes; renewal goes on"

    def _still_reading(self, when: str) -> None:
        """Both jobs read at least twice more."""
        jobs = [program for program in self.stage.must_run if program.name.startswith("long-job")]
        self._expect(len(jobs) == 2, f"both jobs running {when}", len(jobs))
        lines = {job.name: len(job.said().splitlines()) for job in jobs}
        self.stage.until(
            lambda: all(len(job.said().splitlines()) >= lines[job.name] + 2 for job in jobs),
            f"both jobs to read {when}",
            seconds=10,
        )

    # -- after -------------------------------------------------------------------------------------------------------

    def _nothing_leaked(self) -> None:
        """No secret stands in anything that was written: outputs, logs, environment files, state, this very text."""
        with self.teller.step("g") as step:
            secrets = dict(self.laptop.secrets)
            private = {
                "worker/key.jwk": "the worker's key",
                "laptop/david.jwk": "David's signing key",
                "laptop/mallory.jwk": "Mallory's",
            }
            for name, what in private.items():
                secrets[what] = json.loads((self.directory / name).read_text())["d"]
            for session in call(f"{self.clouds.aws}/_demo/sessions"):
                secrets[f"the secret key of ..{_tail(session['access_key_id'])}"] = session["secret_access_key"]
                secrets[f"the session token of ..{_tail(session['access_key_id'])}"] = session["session_token"]
            for token, minted in self.clouds.google_tokens().items():
                secrets[f"Google access token {minted['serial']}"] = token
            checked = 0
            for path in sorted(self.directory.rglob("*")):
                name = str(path.relative_to(self.directory))
                # The tools' own files and the keys' own files are where those secrets belong.
                if not path.is_file() or name.startswith(("laptop/.aws", "laptop/.config")) or name in private:
                    continue
                found = _leak(path.read_bytes(), secrets)
                self._expect(found is None, f"no secret in {name}", found)
                checked += 1
            found = _leak("\n".join(self.teller.told).encode(), secrets)
            self._expect(found is None, "no secret in this text", found)
            self.teller.done(
                f"none of the {len(secrets)} secrets in play stands in any of {checked} files, logs and outputs, or here"
            )
            step.result = f"{len(secrets)} secrets, {checked} files searched"

    # -- tools -------------------------------------------------------------------------------------------------------

    def _expect(self, holds: bool, expected: str, got: object) -> None:
        self.stage.check()
        if not holds:
            raise Failed(f"expected {expected}, got {got}")

    def _aws(self) -> dict[str, Any]:
        found: dict[str, Any] = self.agent.status()["clouds"]["aws"]
        return found

    def _gcp(self) -> dict[str, Any]:
        found: dict[str, Any] = self.agent.status()["clouds"]["gcp"]
        return found

    def _until_identity(self, name: str, *, origin: str) -> None:
        def there() -> bool:
            found = self.agent.status()["clouds"][name]
            return (found["state"], found["origin"]) == ("live", origin)

        self.stage.until(there, f"{name} to be served ({origin})", seconds=15)

    def _environment(self) -> dict[str, str]:
        """The variables of the environment file, as systemd reads it."""
        text = (self.directory / "worker/run/env").read_text()
        found = re.findall(r'^([A-Za-z_][A-Za-z0-9_]*)="(.*)"$', text, re.MULTILINE)
        return {name: re.sub(r"\\(.)", r"\1", value) for name, value in found}

    def _worker_environment(self) -> dict[str, str]:
        # A worker has a home of its own. Without HOME, boto3 would find the files of whoever runs this.
        return {"PATH": PATH, "HOME": str(self.directory / "worker/home")}

    def _as_worker(self, url: str, *options: str) -> list[str]:
        """As a login shell does: source what the agent wrote, then run the program."""
        script = '. "$0" && exec "$@"'
        return [
            "/bin/sh",
            "-c",
            script,
            f"{self.directory}/worker/run/env.sh",
            sys.executable,
            str(USER_PROGRAM),
            url,
            *options,
        ]

    def _run_user(self, name: str, url: str) -> Program:
        return self.stage.run(name, self._as_worker(url, "--once"), env=self._worker_environment())

    def _cli(self, *arguments: str, env: dict[str, str] | None = None) -> Program:
        executable = str(Path(sys.executable).parent / "credential-agent")
        self.stage.count += 1
        name = f"{self.stage.count:02}-{arguments[0]}"
        program = self.stage.run(
            name, [executable, *arguments], env={"PATH": PATH, "HOME": str(self.laptop.home), **(env or {})}
        )
        self._expect(
            program.process.returncode == 0, f"credential-agent {arguments[0]} to succeed", program.last_words()
        )
        return program

    def _seal(self, name: str, *, signer: str = "david.jwk") -> Program:
        """What David types."""
        home = self.laptop.home
        return self._cli(
            "seal", "--from-boto", "--role-arn", accounts.READER_ROLE, "--renew-role", "local", "--from-adc", "--send-refresh-token",
            "--env", "DATASET", "--google-project", accounts.PROJECT, "--signer", f"{home}/{signer}", "--recipient", f"{home}/worker.pub.jwk",
            "--issuer", ISSUER, "--audience", AUDIENCE, "--out", f"{home}/{name}",
            env={"DATASET": S3_URL},
        )  # fmt: skip

    def _put(self, name: str) -> None:
        """Deliver: a rename into place."""
        arriving = self.drop.with_name(".arriving")
        arriving.write_bytes((self.laptop.home / name).read_bytes())
        arriving.replace(self.drop)

    def try_by_hand(self) -> None:
        """What to do with it while it runs."""
        say = self.teller.line
        worker, tools = _short(self.directory / "worker"), _short(Path(sys.executable).parent)
        say()
        say(self.teller.paint("1", "It keeps running. In another terminal, in this directory:"))
        say()
        say(f"  {tools}/credential-agent status --config {worker}/config.toml")
        for url in (S3_URL, GCS_URL):
            say(f"  HOME={worker}/home {tools}/credential-agent exec --config {worker}/config.toml -- \\")
            say(f"    {tools}/python tests/demo/user_program.py --once {url}")
        say(f"  cat {worker}/run/env")
        say(f"  tail -f {_short(self.directory)}/credential-agent.err")
        say()
        say("Ctrl-C ends it all.")


def _short(path: Path) -> Path:
    """As one would type it in the clone."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _tail(key: str) -> str:
    return key[-4:]


def _distinct(items: Any) -> list[Any]:
    return list(dict.fromkeys(items))


def _statuses(reads: list[dict[str, Any]]) -> dict[int, int]:
    counted: dict[int, int] = {}
    for read in reads:
        counted[read["status"]] = counted.get(read["status"], 0) + 1
    return counted


def _leak(data: bytes, secrets: dict[str, str]) -> str | None:
    """Which secret stands in ``data``, by what it is and never by its value."""
    return next((what for what, secret in secrets.items() if secret.encode() in data), None)
