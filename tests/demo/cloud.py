"""The world of the story: two clouds with something private in each, a worker, and David with his laptop."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.demo.stage import Stage, call

REGION = "us-east-1"
ACCOUNT = "123456789012"
BUCKET, KEY = "david-auth-example", "hello.txt"
TEXT = "Hello from David's private bucket."
LOGS = "worker-logs"
NUMBERS_BUCKET, NUMBERS_KEY, NUMBERS = "davids-numbers", "numbers.txt", "42 private numbers"
IMPOSTER_ACCOUNT = "999900001111"
GCS_BUCKET, GCS_OBJECT, GCS_TEXT = "david-gcs-example", "greetings/hello.txt", "Hello from David's bucket at Google."
DAVID = "david@example.com"
PROJECT = "davids-project"

MACHINE_ROLE = f"arn:aws:iam::{ACCOUNT}:role/worker-role"
LAPTOP_ROLE = f"arn:aws:iam::{ACCOUNT}:role/data-scientist"
READER_ROLE = f"arn:aws:iam::{ACCOUNT}:role/david-reader"

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
        return [s for s in call(f"{self.aws}/_demo/sessions") if s["role_arn"] == role_arn]

    def s3_reads(self) -> list[dict[str, Any]]:
        """Every attempt to read the private object, as the cloud saw it."""
        return [c for c in call(f"{self.aws}/_demo/diary") if c["what"] == f"GET /{BUCKET}/{KEY}"]

    def gcs_reads(self) -> list[dict[str, Any]]:
        """The same at Google."""
        reads: list[dict[str, Any]] = call(f"{self.google}/_admin/reads", {})
        return reads

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
    user = _aws(clouds)
    google = {"client_id": "764086051850-demo.apps.googleusercontent.com", "client_secret": "d-FL95Q19q7MQmFpd7hHD0Ty"}
    google["refresh_token"] = "1//0demo-refresh-token-of-david-Lq8wT3k"
    call(f"{clouds.google}/_admin/user", {"email": DAVID, **google})
    call(f"{clouds.google}/_admin/object", {"bucket": GCS_BUCKET, "name": GCS_OBJECT, "text": GCS_TEXT})
    call(f"{clouds.google}/_admin/allow", {"bucket": GCS_BUCKET, "email": DAVID})
    call(f"{clouds.google}/_admin/lifetime", {"seconds": TOKEN_SECONDS})

    home = stage.directory / "laptop"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws/credentials").write_text(
        f"[david]\naws_access_key_id = {user['AccessKeyId']}\naws_secret_access_key = {user['SecretAccessKey']}\n"
    )
    # As after a sign-on: what boto3 finds is a session of the data-scientist role.
    (home / ".aws/config").write_text(
        f"[default]\nregion = {REGION}\nendpoint_url = {clouds.aws}\nrole_arn = {LAPTOP_ROLE}\n"
        f"role_session_name = david\nsource_profile = david\n\n[profile david]\nregion = {REGION}\n"
        f"endpoint_url = {clouds.aws}\n"
    )
    adc = home / ".config/gcloud/application_default_credentials.json"
    adc.parent.mkdir(parents=True)
    adc.write_text(json.dumps({"type": "authorized_user", "account": DAVID, "quota_project_id": PROJECT, **google}))
    secrets = {
        "David's secret access key": user["SecretAccessKey"],
        "David's Google refresh token": google["refresh_token"],
        "the secret of David's OAuth client": google["client_secret"],
    }
    return clouds, Laptop(home, secrets)


def _aws(clouds: Clouds) -> dict[str, str]:
    """Buckets, roles, David; then the machine's own credential; then IAM is enforced. Returns David's keys."""
    import boto3
    from botocore.config import Config

    def client(service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=clouds.aws,
            region_name=REGION,
            aws_access_key_id="AKIAROOTROOTROOTROOT",
            aws_secret_access_key="root",
            config=Config(proxies={}),
        )

    s3, iam, sts = client("s3"), client("iam"), client("sts")
    for bucket, key, text in (
        (BUCKET, KEY, TEXT),
        (LOGS, "boot.log", "booted"),
        (NUMBERS_BUCKET, NUMBERS_KEY, NUMBERS),
    ):
        s3.create_bucket(Bucket=bucket)
        s3.put_object(Bucket=bucket, Key=key, Body=text.encode())

    def role(arn: str, trusts: str, action: str, resource: str) -> None:
        name = arn.rpartition("/")[2]
        trust = {"Effect": "Allow", "Principal": {"AWS": trusts}, "Action": "sts:AssumeRole"}
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=_policy(trust))
        allow = {"Effect": "Allow", "Action": action, "Resource": resource}
        iam.put_role_policy(RoleName=name, PolicyName="may", PolicyDocument=_policy(allow))

    david = f"arn:aws:iam::{ACCOUNT}:user/david"
    signed_on = f"arn:aws:sts::{ACCOUNT}:assumed-role/data-scientist/david"
    role(MACHINE_ROLE, "*", "s3:GetObject", f"arn:aws:s3:::{LOGS}/*")
    role(LAPTOP_ROLE, david, "sts:AssumeRole", READER_ROLE)
    role(READER_ROLE, signed_on, "s3:GetObject", f"arn:aws:s3:::{BUCKET}/*")
    allow = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{NUMBERS_BUCKET}/*"}
    iam.put_role_policy(RoleName="data-scientist", PolicyName="numbers", PolicyDocument=_policy(allow))
    iam.create_user(UserName="david")
    allow = {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": LAPTOP_ROLE}
    iam.put_user_policy(UserName="david", PolicyName="may", PolicyDocument=_policy(allow))
    keys: dict[str, str] = iam.create_access_key(UserName="david")["AccessKey"]

    # EC2 assumes the role for the instance, and hands the session to the metadata service.
    call(f"{clouds.ec2_metadata}/_admin/attach", _machine(sts, MACHINE_ROLE, "i-0123456789abcdef0"))
    clouds.imposter.update(_machine(sts, f"arn:aws:iam::{IMPOSTER_ACCOUNT}:role/worker-role", "i-0fedcba9876543210"))
    call(f"{clouds.aws}/_demo/lifetime", {"role_arn": READER_ROLE, "seconds": SESSION_SECONDS})
    # From here on signatures and policies count.
    call(f"{clouds.aws}/moto-api/reset-auth", b"0", content_type="text/plain")
    return keys


def _machine(sts: Any, role: str, instance: str) -> dict[str, str]:
    found = sts.assume_role(RoleArn=role, RoleSessionName=instance, DurationSeconds=21600)["Credentials"]
    return {
        "role": role.rpartition("/")[2],
        "access_key_id": found["AccessKeyId"],
        "secret_access_key": found["SecretAccessKey"],
        "session_token": found["SessionToken"],
        "expires_at": found["Expiration"].isoformat(),
    }


def _policy(statement: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
