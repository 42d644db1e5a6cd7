"""The Compute Engine API, as far as metadata goes.

Written from the v1 reference: ``instances.get``, ``instances.setMetadata``, ``projects.get``,
``projects.setCommonInstanceMetadata``, ``zoneOperations.wait``, ``globalOperations.wait``. The fingerprint is an
optimistic lock: a write under an old one is 412 ``conditionNotMet``.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.net import Answer, Asked, Fault

ROOT = "/compute/v1/projects/"


@dataclass
class Metadata:
    """The metadata of one instance or project."""

    items: dict[str, str] = field(default_factory=dict)
    serial: int = 0

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.serial}{sorted(self.items.items())}".encode()).hexdigest()[:12] + "="

    def document(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"kind": "compute#metadata", "fingerprint": self.fingerprint}
        if self.items:
            shown["items"] = [{"key": key, "value": value} for key, value in self.items.items()]
        return shown


@dataclass
class FakeCompute:
    """The service. Call it with what was asked.

    Attributes:
        metadata: by resource path below the project: ``""`` for the project itself, ``zones/Z/instances/I``.
        tokens: bearer tokens that may do everything; any other is 401.
        conflicts: so many writes find that somebody else was faster.
        waits: so many ``wait`` calls come back before the operation is done.
        operation_error: the error the operation ends in.
        status: answers this instead, once for each entry.
    """

    project: str = "demo-project"
    metadata: dict[str, Metadata] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    conflicts: int = 0
    waits: int = 0
    operation_error: dict[str, str] | None = None
    status: list[int] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def __call__(self, asked: Asked) -> Answer | Fault:
        self.asked.append(asked)
        if self.status:
            return self._error(self.status.pop(0), "injected")
        if asked.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return self._error(401, "Request had invalid authentication credentials.")
        match = re.fullmatch(rf"{ROOT}([^/]+)(?:/(.*))?", asked.path)
        if match is None or match[1] != self.project:
            return self._error(404, "The resource was not found")
        rest = match[2] or ""
        if re.fullmatch(r"(?:zones/[^/]+|global)/operations/op-1/wait", rest) and asked.method == "POST":
            return self._operation(rest)
        for verb, shown_as in (("setMetadata", "metadata"), ("setCommonInstanceMetadata", "commonInstanceMetadata")):
            if rest.endswith(verb) and asked.method == "POST":
                return self._write(rest.removesuffix(verb).rstrip("/"), asked)
            found = self.metadata.get(rest)
            if found is not None and asked.method == "GET" and (shown_as == "commonInstanceMetadata") == (rest == ""):
                return self._answer(200, {"name": rest, shown_as: found.document()})
        return self._error(404, f"The resource '{asked.path}' was not found")

    def _write(self, resource: str, asked: Asked) -> Answer:
        found = self.metadata.get(resource)
        if found is None:
            return self._error(404, "The resource was not found")
        said = json.loads(asked.body)
        if self.conflicts:
            self.conflicts -= 1
            found.items["somebody-else"] = str(self.conflicts)
            found.serial += 1
        if said.get("fingerprint") != found.fingerprint:
            return self._error(412, "Supplied fingerprint does not match current metadata fingerprint.")
        found.items = {item["key"]: item["value"] for item in said.get("items", [])}
        found.serial += 1
        return self._operation(resource)

    def _operation(self, rest: str) -> Answer:
        if self.waits:
            self.waits -= 1
            return self._answer(200, {"kind": "compute#operation", "name": "op-1", "status": "RUNNING"})
        done: dict[str, Any] = {"kind": "compute#operation", "name": "op-1", "status": "DONE"}
        if self.operation_error is not None:
            done["error"] = {"errors": [self.operation_error]}
        return self._answer(200, done)

    def _error(self, status: int, message: str) -> Answer:
        return self._answer(status, {"error": {"code": status, "message": message, "errors": [{"message": message}]}})

    def _answer(self, status: int, body: dict[str, Any]) -> Answer:
        return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json; charset=UTF-8"})
