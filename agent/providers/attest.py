"""How does this machine prove that a key is its own? By evidence, bound to the key and to a caller's nonce.

It is only ever about our own key, and only by the machine's *own* role or service account: what a bundle brought
proves nothing about a machine. ``agent/enrol/PROTOCOL.md`` says what evidence must be.

A kind of evidence that cannot be had is an answer, not an error.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any, Final

from agent.core.errors import AgentError, Denied, ProviderError, UpstreamError
from agent.core.model import AwsCredential, Cloud
from agent.enrol import (
    KEY_HEADER,
    NONCE_HEADER,
    STS_BODY,
    STS_CONTENT_TYPE,
    AwsSts,
    AwsWebIdentity,
    Evidence,
    GcpIdentity,
    Missing,
    audience,
)
from agent.providers.instance import Instance
from agent.providers.regions import sts_url
from agent.providers.sts import Sts, ready
from agent.providers.webtoken import ask_gce_identity
from agent.upstream import Ec2Metadata, GceMetadata
from agent.upstream.sigv4 import SigningKeys, signed_headers
from agent.wire.names import EC2_REGION_PATH

COLLECT_SECONDS: Final = 5.0
"""How long all of it may take: a courier waits."""
KEPT: Final = timedelta(minutes=1)
"""How long the role's keys are reused: a flood of questions asks the metadata service once a minute."""
_LEFT: Final = timedelta(minutes=2)
_REGION: Final = re.compile(r"[a-z]{2,8}(?:-[a-z]{2,16}){1,3}-[0-9]{1,2}\Z")
_TOKEN_SECONDS: Final = 300


class _NotHad(Exception):
    """There is no evidence of this kind."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code)
        self.code = code
        self.reason = reason


class Attestor:
    """Collects evidence.

    Args:
        ec2, gce: the machine's own metadata services, by a way out that renewal does not need.
        cloud: the cloud the hypervisor names, if known.
        region: the operator's word for it, instead of the metadata service's.
        sts: asks STS for a web identity token; ``None``: that kind is off.
    """

    def __init__(
        self,
        ec2: Ec2Metadata | None,
        gce: GceMetadata | None,
        *,
        cloud: Cloud | None,
        region: str | None,
        sts: Sts | None = None,
    ) -> None:
        self._ec2 = ec2
        self._gce = gce
        self._instance = Instance(ec2, gce, cloud)
        self._sts = sts
        # Mutable state: the answers of a moment ago, and where we are.
        self._region = region
        self._lock = asyncio.Lock()
        self._credential: AwsCredential | None = None
        self._asked: datetime | None = None

    async def collect(
        self, thumbprint: str, nonce: str, now: datetime
    ) -> tuple[tuple[Evidence, ...], tuple[Missing, ...]]:
        """Evidence of each kind that this machine can give, and why there is none of the others.

        Args:
            thumbprint: of *our* key.
            nonce: of the question.
            now: our time: AWS's evidence is dated by it.
        """
        found = await asyncio.gather(
            _in_time("aws-sts", self._aws(thumbprint, nonce, now)),
            _in_time("aws-web-identity", self._web_identity(thumbprint, nonce, now)),
            _in_time("gcp-identity", self._google(thumbprint, nonce)),
        )
        return (
            tuple(one for one in found if not isinstance(one, Missing)),
            tuple(one for one in found if isinstance(one, Missing)),
        )

    async def _aws(self, thumbprint: str, nonce: str, now: datetime) -> AwsSts:
        keys, region = await self._role(now)
        url = sts_url(region) + "/"
        given = {
            "host": url.removeprefix("https://").rstrip("/"),
            "content-type": STS_CONTENT_TYPE,
            KEY_HEADER: thumbprint,
            NONCE_HEADER: nonce,
        }
        headers = signed_headers(keys, "POST", url, given, STS_BODY.encode(), service="sts", region=region, now=now)
        return AwsSts(url=url, method="POST", headers=headers, body=STS_BODY)

    async def _web_identity(self, thumbprint: str, nonce: str, now: datetime) -> AwsWebIdentity:
        if self._sts is None:
            raise _NotHad("off", "enrol.aws_web_identity is off in the worker's configuration")
        keys, region = await self._role(now)
        asked = {
            "Audience": [audience(thumbprint, nonce)],
            "SigningAlgorithm": "RS256",
            "DurationSeconds": _TOKEN_SECONDS,
        }
        answer = await self._sts.call("GetWebIdentityToken", asked, region=region, keys=keys, now=now)
        token = answer.result.get("WebIdentityToken")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise _NotHad("unavailable", "sts gave no token")
        return AwsWebIdentity(token)

    async def _role(self, now: datetime) -> tuple[SigningKeys, str]:
        """The keys of the machine's own role, and where it is."""
        if self._ec2 is None:
            raise _NotHad("no-machine", "this machine has no ec2 metadata service")
        await ready()
        async with self._lock:
            if not self._usable(now):
                issued = await self._instance.read(Cloud.AWS, now)
                self._credential = (
                    issued.credential if issued is not None and isinstance(issued.credential, AwsCredential) else None
                )
                self._asked = now
            credential = self._credential
            if credential is None:
                raise _NotHad("no-role", "this instance has no instance profile")
            if self._region is None:
                said = (await self._ec2.get(EC2_REGION_PATH) or b"").decode("ascii", "replace").strip()
                if not _REGION.match(said):
                    raise _NotHad("unavailable", "the metadata service does not say in which region this machine is")
                self._region = said
        keys = SigningKeys(credential.access_key_id, credential.secret_access_key, credential.session_token)
        return keys, self._region

    def _usable(self, now: datetime) -> bool:
        if self._asked is None or not self._asked <= now <= self._asked + KEPT:
            return False
        return self._credential is None or self._credential.expires_at > now + _LEFT

    async def _google(self, thumbprint: str, nonce: str) -> GcpIdentity:
        if self._gce is None:
            raise _NotHad("no-machine", "this machine has no gce metadata server")
        token, _ = await ask_gce_identity(self._gce, audience(thumbprint, nonce))
        return GcpIdentity(token.reveal())


async def _in_time(kind: str, work: Coroutine[Any, Any, Evidence]) -> Evidence | Missing:
    try:
        async with asyncio.timeout(COLLECT_SECONDS):
            return await work
    except _NotHad as none:
        return Missing(kind, none.code, none.reason)
    except TimeoutError:
        return Missing(kind, "unavailable", f"no answer within {COLLECT_SECONDS:g} s")
    except Denied as error:
        return Missing(kind, "no-role" if error.code == "unsupported" else "denied", error.message)
    except (ProviderError, UpstreamError) as error:
        return Missing(kind, "unavailable", error.message)
    except AgentError as error:
        return Missing(kind, "denied", error.message)
