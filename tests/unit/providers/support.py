"""A small world for minting: two clouds, a broker, the machine underfoot, and one clock for all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime, timedelta
from functools import cache
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from agent.core.issued import Issued
from agent.core.model import AwsCredential, AwsKeys, GcpServiceAccount, GoogleToken, Grant
from agent.core.secret import Secret
from agent.providers import Mint, MintSettings
from agent.providers.sts import warm
from agent.upstream import Ec2Metadata, GceMetadata
from tests.fakes.broker import FakeBroker
from tests.fakes.clock import FakeClock
from tests.fakes.google_tokens import FakeGoogle
from tests.fakes.machine_metadata import FakeEc2Metadata, FakeGceMetadata
from tests.fakes.net import InProcess
from tests.fakes.sts import FakeSts, Weather

ACCOUNT = "111122223333"
READER = f"arn:aws:iam::{ACCOUNT}:role/jobs/reader"
WRITER = f"arn:aws:iam::{ACCOUNT}:role/writer"
MACHINE = f"arn:aws:sts::{ACCOUNT}:assumed-role/machine-role/i-0abc"
REGION = "eu-west-1"
BROKER = "https://broker.example"
ROBOT = "robot@project.iam.gserviceaccount.com"
AWS_POOL = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/aws"
OIDC_POOL = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/oidc"


class World:
    """Everything that a mint can talk to, in this process."""

    def __init__(self, *, on_ec2: bool = False, on_gce: bool = False, **settings: Any) -> None:
        self.clock = FakeClock()
        self.sts = FakeSts(lambda: self.cloud_time)
        self.google = FakeGoogle(lambda: self.cloud_time, sts=self.sts)
        self.broker = FakeBroker(lambda: self.cloud_time, lambda: self.sts.session(MACHINE, "role-session", 3600))
        self.ec2 = FakeEc2Metadata(lambda: self.cloud_time, lambda: self.sts.session(MACHINE, "role-session", 6 * 3600))
        self.gce = FakeGceMetadata(
            lambda: self.cloud_time,
            lambda: (self.google.access_token("worker@project.iam.gserviceaccount.com"), 3599),
            lambda audience: self.google._jwt({"aud": audience, "sub": "12345", "email": self.gce.email}),
        )
        self.cloud_time_off = timedelta()
        self.net = InProcess(
            {
                f"https://sts.{REGION}.amazonaws.com": self.sts,
                "https://oauth2.googleapis.com": self.google,
                "https://sts.googleapis.com": self.google,
                "https://iamcredentials.googleapis.com": self.google,
                BROKER: self.broker,
                "http://ec2.metadata": self.ec2,
                "http://gce.metadata": self.gce,
            }
        )
        self.go_out_by(self.net, on_ec2=on_ec2, on_gce=on_gce, **settings)
        self.sts.role(READER)
        warm()

    def go_out_by(self, out: Any, *, on_ec2: bool = True, on_gce: bool = True, **settings: Any) -> None:
        """Have every request of the mint go out by ``out``, also those to the metadata services."""
        settings.setdefault("region", REGION)
        self.mint = Mint(
            out,
            MintSettings(**settings),
            self.clock,
            ec2=Ec2Metadata(out, self.clock, "http://ec2.metadata") if on_ec2 else None,
            gce=GceMetadata(out, "http://gce.metadata") if on_gce else None,
        )

    @property
    def now(self) -> datetime:
        return self.clock.now()

    @property
    def cloud_time(self) -> datetime:
        """What time the clouds think it is; ours is ``now``."""
        return self.clock.now() + self.cloud_time_off

    def weather(self, weather: Weather, *operations: str) -> None:
        """From now on this is wrong with the operations named, or with all."""

        def forecast(operation: str) -> Weather:
            return weather if not operations or operation in operations else Weather()

        self.sts.weather = self.google.weather = forecast

    # -- grants and bases

    def keys(self, **more: Any) -> AwsKeys:
        key, secret = self.sts.user()
        return AwsKeys(id="keys", access_key_id=key, secret_access_key=Secret(secret), **more)

    def user_session(self) -> AwsCredential:
        arn = f"arn:aws:iam::{ACCOUNT}:user/laptop"
        return self._credential(self.sts.session(arn, "user-session", 43200), None)

    def role_session(self, *, known: bool = True) -> AwsCredential:
        """A role's session; whether its holder knows that it is one."""
        return self._credential(self.sts.session(MACHINE, "role-session", 43200), MACHINE if known else None)

    def _credential(self, made: dict[str, str], arn: str | None) -> AwsCredential:
        return AwsCredential(
            access_key_id=made["AccessKeyId"],
            secret_access_key=Secret(made["SecretAccessKey"]),
            session_token=Secret(made["SessionToken"]),
            issued_at=self.now,
            expires_at=self.now + timedelta(hours=12),
            role_arn=arn,
        )

    def google_token(self, principal: str = "ada@example.com") -> GoogleToken:
        return GoogleToken(
            access_token=Secret(self.google.access_token(principal)),
            issued_at=self.now,
            expires_at=self.now + timedelta(hours=1),
            email=principal,
        )

    def service_account(self, **more: Any) -> GcpServiceAccount:
        key = rsa_key()
        self.google.account(ROBOT, keys={"key-1": key.public_key()})
        return GcpServiceAccount(
            id="sa", client_email=ROBOT, private_key_id="key-1", private_key=Secret(pem(key)), **more
        )

    # -- acts

    def issue(self, grant: Grant, base: AwsCredential | GoogleToken | None = None) -> Issued[Any]:
        return run(self.mint.issue(grant, base, self.now))

    def aws(self, grant: Grant, base: AwsCredential | None = None) -> AwsCredential:
        credential = self.issue(grant, base).credential
        assert isinstance(credential, AwsCredential)
        return credential

    def gcp(self, grant: Grant, base: AwsCredential | GoogleToken | None = None) -> GoogleToken:
        credential = self.issue(grant, base).credential
        assert isinstance(credential, GoogleToken)
        return credential


T = TypeVar("T")


def run(scenario: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(scenario, 30))


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def pem(key: PrivateKeyTypes) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def told(error: BaseException) -> str:
    """All that an error could put into a log."""
    hint = getattr(error, "hint", None)
    return f"{error} {error!r} {hint} {error.__cause__} {msgspec.json.encode(getattr(error, 'code', ''))!r}"
