"""The world of the story: two clouds with something private in each, a worker, and David with his laptop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.demo.accounts import (
    BUCKET,
    IMPOSTER_ACCOUNT,
    KEY,
    READER_ROLE,
    Accounts,
    google_user,
    open_bucket,
    reads,
    sessions,
    sign_on,
    sign_on_at_google,
)
from tests.demo.stage import Stage, call

SESSION_SECONDS = 15
"""How long a session of the reader role lives here. STS would give an hour; nobody watches for an hour."""
TOKEN_SECONDS = 16
"""How long a Google access token lives here."""


@dataclass(frozen=True)
class Clouds:
    """Where the parts of the embedded cloud answer."""

    aws: str
    ec2_metadata: str
    google: str
    imposter: dict[str, str] = field(default_factory=dict)
    """What the metadata service of a machine in somebody else's account hands out."""

    def sessions(self, role_arn: str) -> list[dict[str, Any]]:
        """Every STS session of a role, in the order in which they were given out."""
        return sessions(self.aws, role_arn)

    def s3_reads(self) -> list[dict[str, Any]]:
        """Every attempt to read the private object, as the cloud saw it."""
        return reads(self.aws, BUCKET, KEY)

    def gcs_reads(self) -> list[dict[str, Any]]:
        """The same at Google."""
        found: list[dict[str, Any]] = call(f"{self.google}/_admin/reads", {})
        return found

    def google_tokens(self) -> dict[str, dict[str, Any]]:
        """Every Google access token that was given out, with its end."""
        minted: dict[str, dict[str, Any]] = call(f"{self.google}/_admin/minted", {})
        return minted


@dataclass(frozen=True)
class Laptop:
    """David's computer: a home directory with the files that the AWS and Google tools keep there.

    Attributes:
        secrets: what must never show up anywhere, by what it is.
    """

    home: Path
    secrets: dict[str, str]


def build(stage: Stage) -> tuple[Clouds, Laptop]:
    """Start the clouds and put everything in its place."""
    aws, metadata, google_url = stage.services(
        ("aws", "tests.demo.aws_cloud"),
        ("ec2-metadata", "tests.fakes.ec2_metadata"),
        ("google", "tests.fakes.google_cloud"),
    )
    clouds = Clouds(aws, metadata, google_url)
    accounts = Accounts(aws)
    user = accounts.furnish()
    call(f"{metadata}/_admin/attach", accounts.machine("i-0123456789abcdef0"))
    clouds.imposter.update(accounts.machine("i-0fedcba9876543210", f"arn:aws:iam::{IMPOSTER_ACCOUNT}:role/worker-role"))
    call(f"{aws}/_demo/lifetime", {"role_arn": READER_ROLE, "seconds": SESSION_SECONDS})
    accounts.close()
    google = google_user()
    open_bucket(google_url, google)
    call(f"{google_url}/_admin/lifetime", {"seconds": TOKEN_SECONDS})

    home = stage.directory / "laptop"
    sign_on(home, user, aws)
    sign_on_at_google(home, google)
    secrets = {
        "David's secret access key": user["SecretAccessKey"],
        "David's Google refresh token": google["refresh_token"],
        "the secret of David's OAuth client": google["client_secret"],
    }
    return clouds, Laptop(home, secrets)
