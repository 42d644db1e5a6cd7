"""Who there is at AWS and what they may: a private object, roles, David with his keys, and his laptop's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.demo.stage import call

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


class Accounts:
    """AWS before anybody came: everything here is made as its root. :meth:`close` ends that.

    Args:
        aws: where :mod:`tests.demo.aws_cloud` answers.
    """

    def __init__(self, aws: str) -> None:
        self._aws = aws

    def _client(self, service: str) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            service,
            endpoint_url=self._aws,
            region_name=REGION,
            aws_access_key_id="AKIAROOTROOTROOTROOT",
            aws_secret_access_key="root",
            config=Config(proxies={}),
        )

    def furnish(self) -> dict[str, str]:
        """Buckets, roles, David; returns his keys."""
        s3, iam = self._client("s3"), self._client("iam")
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
        return keys

    def machine(self, instance: str, role: str = MACHINE_ROLE) -> dict[str, str]:
        """EC2 assumes the role for an instance: the session that it hands to the metadata service."""
        found = self._client("sts").assume_role(RoleArn=role, RoleSessionName=instance, DurationSeconds=21600)
        session = found["Credentials"]
        return {
            "role": role.rpartition("/")[2],
            "access_key_id": session["AccessKeyId"],
            "secret_access_key": session["SecretAccessKey"],
            "session_token": session["SessionToken"],
            "expires_at": session["Expiration"].isoformat(),
        }

    def close(self) -> None:
        """From here on signatures and policies count."""
        call(f"{self._aws}/moto-api/reset-auth", b"0", content_type="text/plain")


def sign_on(home: Path, keys: Mapping[str, str], aws: str | None = None) -> None:
    """The files of a laptop after a sign-on: what boto3 finds is a session of the data-scientist role.

    Args:
        home: of its user.
        keys: David's.
        aws: where AWS answers; ``None``: by its own names.
    """
    here = f"region = {REGION}\n" + (f"endpoint_url = {aws}\n" if aws else "")
    (home / ".aws").mkdir(parents=True)
    (home / ".aws/credentials").write_text(
        f"[david]\naws_access_key_id = {keys['AccessKeyId']}\naws_secret_access_key = {keys['SecretAccessKey']}\n"
    )
    (home / ".aws/config").write_text(
        f"[default]\n{here}role_arn = {LAPTOP_ROLE}\nrole_session_name = david\nsource_profile = david\n\n"
        f"[profile david]\n{here}"
    )


def sign_on_at_google(home: Path, user: Mapping[str, str]) -> None:
    """As ``gcloud auth application-default login`` leaves it."""
    adc = home / ".config/gcloud/application_default_credentials.json"
    adc.parent.mkdir(parents=True)
    adc.write_text(json.dumps({"type": "authorized_user", "account": DAVID, "quota_project_id": PROJECT, **user}))


def google_user() -> dict[str, str]:
    """David's client and refresh token at Google."""
    return {
        "client_id": "764086051850-demo.apps.googleusercontent.com",
        "client_secret": "d-FL95Q19q7MQmFpd7hHD0Ty",
        "refresh_token": "1//0demo-refresh-token-of-david-Lq8wT3k",
    }


def open_bucket(google: str, user: Mapping[str, str]) -> None:
    """At Google: David, and an object that he alone may read."""
    call(f"{google}/_admin/user", {"email": DAVID, **user})
    call(f"{google}/_admin/object", {"bucket": GCS_BUCKET, "name": GCS_OBJECT, "text": GCS_TEXT})
    call(f"{google}/_admin/allow", {"bucket": GCS_BUCKET, "email": DAVID})


def sessions(aws: str, role_arn: str) -> list[dict[str, Any]]:
    """Every STS session of a role, in the order in which they were given out."""
    return [s for s in call(f"{aws}/_demo/sessions") if s["role_arn"] == role_arn]


def reads(aws: str, bucket: str, key: str) -> list[dict[str, Any]]:
    """Every attempt to read an object, as the cloud saw it."""
    return [c for c in call(f"{aws}/_demo/diary") if c["what"] == f"GET /{bucket}/{key}"]


def _policy(statement: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
