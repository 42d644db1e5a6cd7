"""Putting a sealed bundle where the worker looks: a GCE metadata attribute. Files and documents are the command's.

Spec: Compute Engine API v1, instances.get, instances.setMetadata, zoneOperations.wait; projects.get,
projects.setCommonInstanceMetadata, globalOperations.wait. The ``fingerprint`` guards against losing somebody else's
change between reading and writing; a mismatch is 412 ``conditionNotMet``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, Self

import msgspec

from agent.core.errors import Denied, Transient
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.wire.names import BUNDLE_ATTRIBUTE

COMPUTE: Final = "https://compute.googleapis.com/compute/v1"
COMPUTE_SCOPE: Final = "https://www.googleapis.com/auth/compute"
ATTEMPTS: Final = 5
WAITS: Final = 4
"""``wait`` holds for two minutes at most, so four of them are eight: metadata updates take seconds."""
TIMEOUT_SECONDS: Final = 130

_NAME: Final = r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?"
_PROJECT: Final = r"(?:[a-z0-9.-]+:)?[a-z0-9][-a-z0-9]{0,62}"
_TARGET: Final = re.compile(rf"gce:({_PROJECT})(?:/({_NAME})/({_NAME}|[0-9]{{1,20}}))?(?:#([A-Za-z0-9_-]{{1,128}}))?\Z")


class GceTarget(msgspec.Struct, frozen=True):
    """A metadata attribute of one instance, or, without zone and instance, of a whole project.

    Attributes:
        key: the name of the attribute.
    """

    project: str
    zone: str | None
    instance: str | None
    key: str = BUNDLE_ATTRIBUTE

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read ``gce:PROJECT/ZONE/INSTANCE`` or ``gce:PROJECT``, either with ``#KEY``; ``None`` when it is neither."""
        match = _TARGET.match(text)
        if match is None:
            return None
        project, zone, instance, key = match.groups()
        return cls(project, zone, instance, key or BUNDLE_ATTRIBUTE)

    def __str__(self) -> str:
        place = f"instance {self.instance}" if self.instance else f"project {self.project}"
        return f"attribute {self.key} of {place}"


class GceAttribute:
    """Writes one attribute.

    Args:
        target: which one.
        credentials: google-auth credentials that may ``compute.instances.setMetadata`` (or its project counterpart).
        request: google-auth's transport.
        endpoint: the base URL of the API.
    """

    def __init__(
        self, target: GceTarget, *, credentials: Any, request: Callable[..., Any], endpoint: str = COMPUTE
    ) -> None:
        self._target = target
        self._credentials = credentials
        self._request = request
        self._base = f"{endpoint.rstrip('/')}/projects/{target.project}"

    def put(self, bundle: bytes) -> None:
        """Set the attribute to ``bundle`` and wait until the operation is done; every other attribute is left alone.

        Raises:
            Denied: it may not be written, or does not exist.
            Transient: the API failed, or others kept changing the metadata at the same time.
        """
        if len(bundle) > MAX_BUNDLE_BYTES:
            raise Denied(f"a metadata value holds {MAX_BUNDLE_BYTES} bytes, the bundle has {len(bundle)}", code="size")
        for _ in range(ATTEMPTS):
            metadata = self._read()
            status, answer = self._call("POST", self._write_url(), _with(metadata, self._target.key, bundle))
            # Somebody changed the metadata in between: read what they wrote and put ours beside it.
            if status == 412:
                continue
            self._check(status, answer)
            return self._wait(answer)
        raise Transient(f"{self._target}: others keep changing the metadata; tried {ATTEMPTS} times", code="412")

    def _resource_url(self) -> str:
        if self._target.instance is None:
            return self._base
        return f"{self._base}/zones/{self._target.zone}/instances/{self._target.instance}"

    def _write_url(self) -> str:
        if self._target.instance is None:
            return f"{self._base}/setCommonInstanceMetadata"
        return f"{self._resource_url()}/setMetadata"

    def _read(self) -> dict[str, Any]:
        status, answer = self._call("GET", self._resource_url())
        self._check(status, answer)
        metadata = answer.get("commonInstanceMetadata" if self._target.instance is None else "metadata")
        if not isinstance(metadata, dict):
            raise Transient(f"{self._target}: expected the API to tell its metadata, got none", code="protocol")
        return metadata

    def _wait(self, operation: dict[str, Any]) -> None:
        """Wait for the end of the operation, and for its result: 200 only says that it was begun."""
        place = f"zones/{self._target.zone}" if self._target.instance else "global"
        name = operation.get("name")
        for _ in range(WAITS):
            if operation.get("status") == "DONE":
                break
            status, operation = self._call("POST", f"{self._base}/{place}/operations/{name}/wait")
            self._check(status, operation)
        else:
            raise Transient(f"{self._target}: the operation is not done after minutes; look at {name}", code="timeout")
        errors = (operation.get("error") or {}).get("errors") or []
        if errors:
            code = str(errors[0].get("code", "unknown"))
            raise Denied(f"{self._target}: {code}: {errors[0].get('message', '')}", code=code)

    def _call(self, method: str, url: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        from google.auth import exceptions  # noqa: PLC0415 - only when it is needed

        headers = {"content-type": "application/json"}
        try:
            self._credentials.before_request(self._request, method, url, headers)
            answer = self._request(
                url,
                method=method,
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout=TIMEOUT_SECONDS,
            )
        except exceptions.RefreshError as error:
            raise Denied(
                "Google refused the local identity",
                hint="sign in again with `gcloud auth application-default login`",
                code="invalid_grant",
            ) from error
        except exceptions.GoogleAuthError as error:
            raise Transient("the Compute Engine API cannot be reached", code="network") from error
        try:
            content = json.loads(answer.data or b"{}")
        except (ValueError, RecursionError):
            content = {}
        return answer.status, content if isinstance(content, dict) else {}

    def _check(self, status: int, answer: dict[str, Any]) -> None:
        if 200 <= status < 300:
            return
        error = answer.get("error")
        said = str(error.get("message", "")) if isinstance(error, dict) else ""
        message = f"{self._target}: the Compute Engine API answered {status}: {said[:300].rstrip('.')}"
        if status in {408, 429} or status >= 500:
            raise Transient(message, code=str(status))
        hint = "it takes compute.instances.get and compute.instances.setMetadata" if status == 403 else None
        raise Denied(message, hint=hint, code=str(status))


def _with(metadata: dict[str, Any], key: str, bundle: bytes) -> dict[str, Any]:
    """The metadata with one item replaced or added, under the fingerprint it was read with."""
    items = [item for item in metadata.get("items") or [] if item.get("key") != key]
    items.append({"key": key, "value": bundle.decode("ascii")})
    return {"fingerprint": metadata.get("fingerprint"), "items": items}
