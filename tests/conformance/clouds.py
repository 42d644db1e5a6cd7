"""STS, Google's token endpoint and object stores of one world: what they hand out really ends.

The store refuses as the real ones do: S3 says 400 ``ExpiredToken``, 403 ``InvalidAccessKeyId`` or
``SignatureDoesNotMatch``; Google says 401. So a client that reads has a credential that is whole and alive, and a client
that was ever given a dead or a mixed one fails.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from agent.core.model import AwsAssumeRole, AwsKeys, Cloud, Expect, GcpAuthorizedUser
from agent.core.secret import Secret
from tests.conformance.warp import Warp
from tests.fakes.google_tokens import FakeGoogle
from tests.fakes.net import Asked, Fault, Handler, serve
from tests.fakes.sts import CLEAR, FakeSts, Weather, signature
from tests.matrix.store import ObjectStore, _Handler
from tests.system.harness import World, background

T = TypeVar("T")
ACCOUNT = "111122223333"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/Data"
EMPTY = hashlib.sha256(b"").hexdigest()


class Outage:
    """Weather: from the first call after :meth:`arm` on, every call fails, in turn in another way, for ``length``."""

    KINDS = (
        Weather(fault=Fault.DOWN),
        Weather(status=503, code="ServiceUnavailable"),
        Weather(status=500),
        Weather(status=429, code="Throttling"),
    )

    def __init__(self, now: Callable[[], datetime], length: timedelta) -> None:
        self.now = now
        self.length = length
        self.began: datetime | None = None
        self.refused = 0
        self._armed = False

    def arm(self) -> None:
        self._armed = True

    def end(self) -> None:
        """Before its time."""
        self._armed = False

    @property
    def over(self) -> bool:
        return self.began is not None and (not self._armed or self.now() - self.began >= self.length)

    def __call__(self, operation: str) -> Weather:
        if not self._armed or self.over:
            return CLEAR
        self.began = self.began or self.now()
        self.refused += 1
        return self.KINDS[self.refused % len(self.KINDS)]


class ShortSts(FakeSts):
    """STS whose role sessions may be shorter than the real one allows."""

    role_seconds = 43200

    def session(self, arn: str, kind: str, seconds: int) -> dict[str, str]:
        return super().session(arn, kind, min(seconds, self.role_seconds) if kind == "role-session" else seconds)


class ShortGoogle(FakeGoogle):
    """Google whose tokens may be shorter than the real one's."""

    token_seconds = 3599

    def access_token(self, principal: str, seconds: int = 3600, scopes: tuple[str, ...] = ()) -> str:
        return super().access_token(principal, min(seconds, self.token_seconds), scopes)


class Served:
    """A fake of :mod:`tests.fakes.net` for :func:`tests.system.harness.background`."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._serving: AbstractAsyncContextManager[str] | None = None
        self.url = ""

    async def start(self) -> None:
        self._serving = serve(self._handler)
        self.url = await self._serving.__aenter__()

    async def stop(self) -> None:
        if self._serving is not None:
            await self._serving.__aexit__(None, None, None)


@dataclass
class Clouds:
    """Both clouds' token services, and who is alive in them.

    Attributes:
        sts_outage, google_outage: their weather.
    """

    warp: Warp
    outage: timedelta = timedelta(0)
    sts: ShortSts = field(init=False)
    google: ShortGoogle = field(init=False)

    def __post_init__(self) -> None:
        self.sts_outage = Outage(self.warp.now, self.outage)
        self.google_outage = Outage(self.warp.now, self.outage)
        self.sts = ShortSts(self.warp.now, weather=self.sts_outage)
        self.google = ShortGoogle(self.warp.now, weather=self.google_outage)
        self.google.expires_in = lambda seconds: min(seconds, self.google.token_seconds)
        self.sts.role(ROLE)
        self._key, self._secret = self.sts.user()
        self._person = self.google.user()
        self._served = (Served(self.sts), Served(self.google))

    @contextmanager
    def running(self) -> Iterator[Callable[[Awaitable[T]], T]]:
        # A loop each, so that one may stand still in a handler while the other answers.
        with background(self._served[0]) as call, background(self._served[1]):
            yield call

    @property
    def config(self) -> dict[str, Any]:
        """What a worker's configuration says of them."""
        sts, google = (served.url for served in self._served)
        return {
            "mint": {"sts_endpoint": sts, "google_token_url": f"{google}/token"},
            "aws": {"region": "us-east-1"},
            "gcp": {"project_id": "p", "numeric_project_id": "1"},
        }

    def bundle(self, world: World, *, role_seconds: int = 3600, **more: Any) -> bytes:
        """The long-lived keys of a user, a role that stands on them, and a Google user's refresh token."""
        expect = Expect(account_id=ACCOUNT)
        grants = (
            AwsKeys(id="user", access_key_id=self._key, secret_access_key=Secret(self._secret)),
            AwsAssumeRole(id="role", role_arn=ROLE, base="user", duration_seconds=role_seconds, expect=expect),
            GcpAuthorizedUser(
                id="google",
                client_id=self._person["client_id"],
                client_secret=Secret(self._person["client_secret"]),
                refresh_token=Secret(self._person["refresh_token"]),
                email=self._person["email"],
                scopes=("https://www.googleapis.com/auth/devstorage.read_only",),
            ),
        )
        routes = {Cloud.AWS: "role", Cloud.GCP: "google"}
        return world.seal(*grants, routes=routes, now=self.warp.now(), **more)


@dataclass(frozen=True)
class Read:
    """One request for an object: when, as whom, and the refusal if it was one."""

    at: datetime
    who: str
    refusal: str | None


class EndingStore(ObjectStore):
    """An object store that asks ``clouds`` whether the credential it is shown is whole and alive."""

    def __init__(self, root: Path, clouds: Clouds) -> None:
        super().__init__(root)
        self.clouds = clouds
        self.reads: list[Read] = []
        self.lock = threading.Lock()
        self._server.RequestHandlerClass = type("EndingHandler", (_EndingHandler,), {"store": self})

    def identities(self, *, since: datetime | None = None) -> list[str]:
        """Everybody who was let in, in the order of their first time."""
        with self.lock:
            come = [r.who for r in self.reads if r.refusal is None and (since is None or r.at >= since)]
        return list(dict.fromkeys(come))

    def evaluate(self, asked: Asked, who: str) -> tuple[int, str, str] | None:
        """The refusal (status, code, message), or ``None``."""
        now = self.clouds.warp.now()
        if asked.headers.get("authorization", "").startswith("Bearer "):
            token = self.clouds.google.tokens.get(who)
            if token is None or token.ends <= now:
                return 401, "authError", "Invalid Credentials"
            return None
        principal = self.clouds.sts.principals.get(who)
        if principal is None:
            return 403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."
        if asked.headers.get("x-amz-security-token") != principal.token:
            return 400, "InvalidToken", "The provided token is malformed or otherwise invalid."
        # Other payload hashes would need another canonical request; downloads have an empty one.
        if asked.headers.get("x-amz-content-sha256") == EMPTY:
            _, expected = signature(asked, principal.secret)
            if not asked.headers["authorization"].endswith(f"Signature={expected}"):
                return 403, "SignatureDoesNotMatch", "The request signature we calculated does not match."
        if principal.ends is not None and principal.ends <= now:
            return 400, "ExpiredToken", "The provided token has expired."
        return None


class _EndingHandler(_Handler):
    store: ClassVar[EndingStore]

    def date_time_string(self, timestamp: float | None = None) -> str:
        # Some clients correct their clock by the store's.
        if timestamp is not None:
            return BaseHTTPRequestHandler.date_time_string(self, timestamp)
        return format_datetime(self.store.clouds.warp.now(), usegmt=True)

    def _answer(self, *, body: bool) -> None:
        who = self._identity()
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, b"", headers.get("host", ""))
        refusal = self.store.evaluate(asked, who)
        with self.store.lock:
            self.store.reads.append(Read(self.store.clouds.warp.now(), who, refusal[1] if refusal else None))
        if refusal is None:
            super()._answer(body=body)
            return
        status, code, message = refusal
        google = "/o/" in urlsplit(self.path).path
        text = (
            f'{{"error": {{"code": {status}, "message": "{message}", "errors": [{{"reason": "{code}"}}]}}}}'
            if google
            else f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        )
        self._send(status, text.encode(), "application/json" if google else "application/xml", body)
