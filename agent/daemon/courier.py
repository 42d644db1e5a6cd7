"""The routes of the couriers' socket: enrol, hand in a bundle, a redacted status (``agent/enrol/PROTOCOL.md``)."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

import agent
from agent import enrol
from agent.core.clock import Clock
from agent.core.errors import EvidenceError
from agent.core.limits import MAX_BUNDLE_BYTES
from agent.core.model import Cloud, SealedBundle
from agent.core.source import COURIER, Ack
from agent.core.text import instant
from agent.daemon.control import verdict
from agent.daemon.launched import told
from agent.daemon.opening import Opening
from agent.identity.store import Store
from agent.providers.attest import Attestor
from agent.report.summary import summary
from agent.serve.control import ControlRequest, Route, problem
from agent.sources.push import unwrapped
from agent.wire import names
from agent.wire.http import JSON, Response

REFUSALS_KEPT: Final = 256
"""The last refusal is remembered for so many user ids."""


class Couriers:
    """The routes of the socket.

    Args:
        store: what is served.
        opening: our keys, whom we trust and our audiences.
        attestor: collects evidence.
        submit: evaluates sealed bytes.
        settled: waits until the environment files say what the store says.
        clock: time.
    """

    def __init__(
        self,
        store: Store,
        opening: Opening,
        attestor: Attestor,
        *,
        submit: Callable[[SealedBundle], Awaitable[Ack]],
        settled: Callable[[], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._store = store
        self._opening = opening
        self._attestor = attestor
        self._submit = submit
        self._settled = settled
        self._clock = clock
        self._refused: dict[int, Ack] = {}  # by user id, the latest last

    def routes(self) -> Mapping[tuple[str, str], Route]:
        """The routes of the couriers' socket, by method and path."""
        return {
            ("POST", names.ENROL_PATH): self._enrol,
            ("PUT", names.BUNDLE_PATH): self._bundle,
            ("GET", names.STATUS_PATH): self._status,
        }

    async def _enrol(self, request: ControlRequest) -> Response:
        try:
            nonce = enrol.read_question(request.body)
        except EvidenceError as error:
            return problem(400, error.message)
        public = self._key()
        if public is None:
            return problem(409, "this worker has no key of its own: none is configured, or its key is a shared one")
        thumbprint = enrol.thumbprint_of(public)
        evidence, missing = await self._attestor.collect(thumbprint, nonce, self._clock.now())
        opening = self._opening
        answer = enrol.Enrolment(
            nonce=nonce,
            key=public,
            thumbprint=thumbprint,
            audiences=tuple(sorted(opening.audiences | opening.keyring.audiences)),
            host=socket.gethostname(),
            evidence=evidence,
            missing=missing,
        )
        return Response(200, (JSON,), enrol.write_enrolment(answer))

    def _key(self) -> dict[str, str] | None:
        """The key to seal to: one that this machine made itself before one that was brought to it."""
        keys = sorted(self._opening.keyring.keys, key=lambda key: key.kind != "ephemeral")
        return next((public for key in keys if (public := key.public_jwk()) is not None), None)

    async def _bundle(self, request: ControlRequest) -> Response:
        data = request.body
        if not data:
            return problem(400, f"expected a bundle of 1 to {MAX_BUNDLE_BYTES} bytes, got none")
        ack = await self._submit(SealedBundle(data=await unwrapped(data), origin=COURIER))
        self._refused.pop(request.uid, None)
        if ack.outcome == "refused":
            self._refused[request.uid] = ack
            if len(self._refused) > REFUSALS_KEPT:
                del self._refused[next(iter(self._refused))]
        # Whoever is told "accepted" may start a program at once.
        if ack.confirmed:
            await self._settled()
        return verdict(ack)

    async def _status(self, request: ControlRequest) -> Response:
        now = self._clock.now()
        bundle, refused = self._store.bundle, self._refused.get(request.uid)
        document = {
            "ver": 1,
            "version": agent.__version__,
            "now": instant(now),
            "clouds": {str(cloud): msgspec.to_builtins(summary(self._store, cloud, now)) for cloud in Cloud},
            "bundle": None if bundle is None else {"issuer": bundle.issuer, "seq": bundle.seq, "origin": bundle.origin},
            "refused": None
            if refused is None
            else {
                "code": refused.code,
                "reason": refused.reason,
                "issuer": refused.issuer,
                "seq": refused.seq,
                "at": instant(refused.at),
            },
            "keys": list(self._opening.keyring.kids),
            "signers": told(self._opening.trust),
        }
        return Response(200, (JSON,), msgspec.json.encode(document) + b"\n")
