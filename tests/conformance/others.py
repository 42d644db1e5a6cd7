"""Services that others wrote, as processes of their own: begun, frozen, ended and begun anew beside the agent."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

BUILT: Final = Path(__file__).parent / "metadata" / ".build"
REGION: Final = "eu-west-2"
ROLE_KEY: Final = "ASIAMACHINE000000001"


def free_port() -> int:
    """A port of loopback that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Other:
    """One service at a port of its own, which it keeps however often it is begun.

    Args:
        command: gives the command line for a port.
        environ: beside the bare minimum.
    """

    def __init__(
        self, command: Callable[[int], Sequence[str | Path]], environ: Mapping[str, str] | None = None
    ) -> None:
        self._port = free_port()
        self._command = command(self._port)
        self._environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def begin(self) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(
            self._command, env=self._environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, f"{self._command[0]} does not listen"
                assert self._process.poll() is None, f"{self._command[0]} has ended"

    def end(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens there."""
        self.end()
        try:
            yield
        finally:
            self.begin()


def aws_metadata(root: Path, ends: str) -> Other:
    """AWS's own mock of the EC2 metadata service, with a role whose session ends at ``ends``."""
    values = {
        "instance-id": "i-0123456789abcdef0",
        "placement-region": REGION,
        "placement-availability-zone": f"{REGION}a",
        "iam-security-credentials": {
            "Code": "Success", "LastUpdated": "2026-01-01T00:00:00Z", "Type": "AWS-HMAC",
            "AccessKeyId": ROLE_KEY, "SecretAccessKey": "secret", "Token": "token", "Expiration": ends,
        },
    }  # fmt: skip
    file = root / "aemm.json"
    file.write_text(json.dumps({"metadata": {"values": values}}))
    return Other(
        lambda port: [BUILT / "aemm", "--imdsv2", "--hostname", "127.0.0.1", "--port", str(port), "-c", file],
        {"HOME": str(root)},
    )


def moto_clouds(environ: Mapping[str, str] | None = None) -> Other:
    """moto: STS, S3, IAM, and an EC2 metadata service."""
    return Other(lambda port: [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], environ)


def kms(root: Path) -> Other:
    """A KMS with real keys (nsmithuk/local-kms), which it keeps in ``root``."""
    (root / "kms").mkdir()
    environ = {"KMS_REGION": REGION, "KMS_DATA_PATH": str(root / "kms"), "KMS_SEED_PATH": str(root / "none")}
    return Other(lambda port: ["env", f"PORT={port}", BUILT / "local-kms"], environ)


def client(service: str, url: str) -> Any:
    """A client by botocore of ``service`` at ``url``."""
    import botocore.session

    session = botocore.session.Session()
    session.set_credentials("AKIAOPERATOR00000000", "secret")
    return session.create_client(service, region_name=REGION, endpoint_url=url)


def rsa_key(url: str) -> tuple[str, str]:
    """Have a key pair made for a worker; the key's ARN, and the public half in PEM."""
    made = client("kms", url)
    arn = made.create_key(KeyUsage="ENCRYPT_DECRYPT", KeySpec="RSA_2048")["KeyMetadata"]["Arn"]
    der = base64.encodebytes(made.get_public_key(KeyId=arn)["PublicKey"]).decode()
    return arn, f"-----BEGIN PUBLIC KEY-----\n{der}-----END PUBLIC KEY-----\n"
