"""Real metadata services in memory: what stands behind the pass-through, as scripted by the test.

:class:`Scripted` answers what it was told; :class:`Gullible` reads paths in every way that some server somewhere does
(decoding twice, resolving dots, ignoring case and parameters) and gives away the machine's secrets wherever one of them
leads: what it says must never reach a worker while a bundle decides.
"""

from __future__ import annotations

import asyncio
import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

from multidict import CIMultiDict

from agent.core.errors import UpstreamError

CANARY = "THE-MACHINES-OWN-SECRET"


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)


def answer(body: str | bytes, status: int = 200, **headers: str) -> Answer:
    fields = CIMultiDict((name.replace("_", "-"), value) for name, value in headers.items())
    fields.setdefault("Content-Type", "text/plain")
    return Answer(status, body.encode() if isinstance(body, str) else body, fields)


@dataclass(frozen=True)
class Asked:
    method: str
    path_qs: str
    headers: Mapping[str, str]
    body: bytes | None
    timeout_seconds: float | None


class Scripted:
    """Answers by exact target. ``silent`` never answers; ``broken`` fails at once; ``gate`` holds until it is set."""

    def __init__(self, answers: Mapping[str, Answer] | None = None) -> None:
        self.answers = dict(answers or {})
        self.asked: list[Asked] = []
        self.silent = False
        self.broken = False
        self.gate: asyncio.Event | None = None
        self.always: Answer | None = None  # to all that is not in ``answers``
        self.under_way = 0
        self.most_under_way = 0

    async def request(
        self,
        method: str,
        path_qs: str,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        *,
        timeout_seconds: float | None = None,
        max_bytes: int | None = None,
    ) -> Answer:
        self.asked.append(Asked(method, path_qs, dict(headers), body, timeout_seconds))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.broken:
                raise UpstreamError("unreachable")
            if self.silent:
                await asyncio.Event().wait()
            if self.gate is not None:
                await self.gate.wait()
            return (
                self.answers.get(path_qs)
                or self.always
                or answer("<?xml?><html>404 - Not Found</html>", 404, Content_Type="text/html")
            )
        finally:
            self.under_way -= 1


#: Places of credentials, of what identifies the machine and of what is hidden, in lower case.
_SECRET_PLACES = re.compile(
    r"/[^/]+/(?:meta-data/(?:iam|identity-credentials|public-keys|managed-ssh-keys)|user-data"
    r"|dynamic/instance-identity/(?:pkcs7|rsa2048|signature))/"
    r"|/computemetadata/v1/(?:instance/(?:service-accounts|credentials|gce-workload-certificates"
    r"|attributes/(?:credential-bundle|kube-env|startup-script|ssh-keys|sshkeys|api-token))"
    r"|project/attributes/(?:credential-bundle|ssh-keys))/"
)


class Gullible(Scripted):
    """See the module."""

    async def request(self, method: str, path_qs: str, *args: Any, **kwargs: Any) -> Answer:
        self.asked.append(Asked(method, path_qs, {}, None, None))
        path, _, query = path_qs.partition("?")
        for reading in self._readings(path):
            if _SECRET_PLACES.match(reading):
                return answer(CANARY, Metadata_Flavor="Google")
        asked = {name.casefold(): values for name, values in parse_qs(query, keep_blank_values=True).items()}
        if any(value.casefold() not in {"", "false", "0"} for value in asked.get("recursive", [])):
            return self._tree(path, text=asked.get("alt") == ["text"])
        return answer("nothing of note", Metadata_Flavor="Google")

    @staticmethod
    def _readings(path: str) -> set[str]:
        found = {path}
        for decode in (str, unquote, lambda text: unquote(unquote(text))):
            decoded = decode(path).replace("\\", "/")
            for cut in (decoded, decoded.split(";")[0], decoded.split("\0")[0], decoded.split("#")[0]):
                found.add(cut)
                found.add(posixpath.normpath(cut))
        return {re.sub("/+", "/", f"/{reading.casefold()}/") for reading in found}

    @staticmethod
    def _tree(path: str, *, text: bool) -> Answer:
        instance = {
            "id": 1,
            "attributes": {
                "credential-bundle": CANARY,
                "user-data": CANARY,
                "kube-env": CANARY,
                "sshKeys": CANARY,
                "Startup-Script": CANARY,
                "api-token": CANARY,
                "fine": "x",
            },
            "serviceAccounts": {"default": {"email": CANARY}},
            "credentials": CANARY,
            "gceWorkloadCertificates": {"workloadIdentities": CANARY},
        }
        project = {"attributes": {"credential-bundle": CANARY, "ssh-keys": CANARY}, "projectId": "p"}
        segments = [segment.strip() for segment in unquote(path).split("/") if segment.strip()][2:]
        tree: Any = {"instance": instance, "project": project}
        names = {"service-accounts": "serviceAccounts"}
        for segment in segments:
            tree = tree.get(names.get(segment, segment), {}) if isinstance(tree, dict) else {}
        if text:
            return answer("".join(f"{line}\n" for line in json.dumps(tree, indent=1).split("\n")))
        return answer(json.dumps(tree), Content_Type="application/json", Metadata_Flavor="Google", ETag="abc")
