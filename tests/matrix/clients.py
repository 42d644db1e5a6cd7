"""The clients, how each is started, and where one may differ from the rule."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = Path(__file__).with_name("programs")
ROOT = Path(__file__).resolve().parents[2]

AWS, GCP = "aws", "gcp"


EVERYWHERE = ("env", "imds", "imds6")


def _everywhere(why: str) -> dict[str, str]:
    return dict.fromkeys(EVERYWHERE, why)


def _imds(why: str) -> dict[str, str]:
    return dict.fromkeys(EVERYWHERE[1:], why)


# Why a client goes on with a credential that has five minutes left, though it could have a new one.
BOTOCORE = _imds(
    "botocore takes what IMDS gives as good for 17 to 25 minutes more, and asks again 15 minutes before that"
)
MISS = _imds("botocore asks IMDS when a client is made, and a client without an answer has none for life")
ANONYMOUS = _everywhere("it looks for an identity once, and goes on anonymously in that process")
JS = _everywhere("asks in the background, and uses the answer at the next call")
RUST = _everywhere("asks ten seconds before the end")
GO = _imds("asks at the end")
JAVA = {
    "env": "asks at a moment that it draws before the end",
    **_imds("asks after half of what is left, at the earliest after five minutes"),
}
CPP = _everywhere("asks every five minutes")
SHORTLY = _everywhere("asks shortly before the end")
GCLOUD_AIO = _everywhere("asks after half of what was left")
OAUTH2 = _everywhere("asks ten seconds before the end")


@dataclass(frozen=True)
class Client:
    """One client library.

    Attributes:
        name: as in the table.
        cloud: which identity it asks for.
        kind: what it is built on; the same engine tends to have the same quirks.
        argv: the program; ``None`` when something that it needs is not here.
        missing: what is not here.
        env: further variables, where a client has no other way to be told where the objects are.
        modes: ``env`` (with the environment file alone), ``imds`` (with 169.254.169.254 intercepted, and no
            environment at all), ``imds6`` (the same with fd00:ec2::254, where a client knows that address).
        unsigned: without a credential it asks anonymously rather than fail.
        own_clock: it asks the kernel for the time by itself, so its clocks cannot leap (:mod:`tests.matrix.leap`).
        remembers: by mode, why it may go on without an identity when there is one, having once found none.
        keeps: by mode, why it may go on with the credential it has, though one with five minutes left was replaced.
    """

    name: str
    cloud: str
    kind: str
    argv: tuple[str, ...] | None
    missing: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    modes: tuple[str, ...] = ("env", "imds")
    unsigned: bool = False
    keeps: Mapping[str, str] = field(default_factory=dict)
    own_clock: bool = False
    remembers: Mapping[str, str] = field(default_factory=dict)


def _python() -> str | None:
    named = os.environ.get("MATRIX_PYTHON") or str(ROOT / ".venv-clients" / "bin" / "python")
    return named if Path(named).exists() else None


def python(name: str, cloud: str, kind: str, **more: object) -> Client:
    interpreter = _python()
    argv = None if interpreter is None else (interpreter, str(PROGRAMS / "python_clients.py"), name)
    return Client(name, cloud, kind, argv, "" if argv else "the clients' venv (make matrix)", **more)  # type: ignore[arg-type]


def program(name: str, cloud: str, kind: str, built: Path, *argv: str, needs: str, **more: object) -> Client:
    """A program in another language, built beforehand by ``tests.matrix.build``."""
    here = built.exists()
    return Client(name, cloud, kind, argv if here else None, "" if here else needs, **more)  # type: ignore[arg-type]


def clients(build: Path) -> list[Client]:
    """Every client, those that are not here included."""
    gcloud = python("gcloud", GCP, "gcloud")
    if shutil.which("gcloud") is None:
        gcloud = Client("gcloud", GCP, "gcloud", None, "gcloud")
    jars = f"{build / 'java' / 'classes'}:{build / 'java' / 'lib'}/*"
    java = ("java", "-XX:TieredStopAtLevel=1", "-cp", jars)
    return [
        python("boto3", AWS, "botocore", keeps=BOTOCORE, remembers=MISS, modes=EVERYWHERE),
        python("aiobotocore", AWS, "botocore, async", keeps=BOTOCORE, remembers=MISS, modes=EVERYWHERE),
        python("s3fs", AWS, "aiobotocore", keeps=BOTOCORE, remembers=MISS),
        python("awscli", AWS, "botocore", modes=EVERYWHERE),
        python("pyarrow", AWS, "aws-sdk-cpp", unsigned=True, keeps=CPP),
        python("duckdb", AWS, "aws-sdk-cpp", unsigned=True),
        python("awscrt", AWS, "aws-c-auth"),
        python("s3torchconnector", AWS, "aws-c-auth"),
        python("obstore", AWS, "object_store"),
        python("deltalake", AWS, "object_store"),
        python("polars", AWS, "object_store"),
        python("opendal", AWS, "reqsign", keeps=SHORTLY),
        python("daft", AWS, "aws-sdk-rust", unsigned=True, keeps=RUST),
        python("minio", AWS, "minio-py", keeps=SHORTLY),
        python("rasterio", AWS, "GDAL", keeps=SHORTLY),
        program(
            "JS v3", AWS, "@aws-sdk", build / "node" / "node_modules",
            "node", str(build / "node" / "s3.mjs"), needs="node and npm", keeps=JS, modes=EVERYWHERE,
        ),
        program("Go v2", AWS, "aws-sdk-go-v2", build / "go" / "s3", str(build / "go" / "s3"), needs="go", keeps=GO, modes=EVERYWHERE, own_clock=True),
        program(
            "Java v2", AWS, "aws-sdk-java-v2", build / "java" / "classes" / "S3.class",
            *java, "S3", needs="java and maven", keeps=JAVA, modes=EVERYWHERE,
        ),
        program("Rust", AWS, "aws-sdk-rust", build / "rust" / "s3", str(build / "rust" / "s3"), needs="cargo", keeps=RUST, modes=EVERYWHERE),
        python("google-auth", GCP, "google-auth"),
        python("google-cloud-storage", GCP, "google-auth", env={"GOOGLE_CLOUD_PROJECT": "p"}),
        gcloud,
        # Or it would ask the store for a minute by gRPC what kind of bucket it has: ours speaks HTTP only.
        python("gcsfs", GCP, "google-auth", env={"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}),
        python("gcloud-aio", GCP, "gcloud-aio", keeps=GCLOUD_AIO),
        python("pyarrow-gcs", GCP, "google-cloud-cpp", unsigned=True),
        python("obstore-gcs", GCP, "object_store"),
        # Without a variable it asks only where the firmware says Google: no machine of ours has one that does.
        python("rasterio-gcs", GCP, "GDAL", keeps=SHORTLY, modes=("env",)),
        python("tensorstore", GCP, "tensorstore", unsigned=True, keeps=SHORTLY, remembers=ANONYMOUS),
        program(
            "Node (Google)", GCP, "google-auth-library", build / "node" / "node_modules",
            "node", str(build / "node" / "gcs.mjs"), needs="node and npm",
        ),
        program("Go (Google)", GCP, "x/oauth2", build / "go" / "gcs", str(build / "go" / "gcs"), needs="go", keeps=OAUTH2, own_clock=True),
        program(
            "Java (Google)", GCP, "google-auth-library-java", build / "java" / "classes" / "Gcs.class",
            *java, "Gcs", needs="java and maven",
        ),
    ]  # fmt: skip
