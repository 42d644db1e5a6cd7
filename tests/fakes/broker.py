"""A credential broker: the container-credentials protocol as an upstream (ECS and EKS Pod Identity agents speak it)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from email.utils import format_datetime

from tests.fakes.net import Answer, Asked, Fault


class FakeBroker:
    """Hands out what ``mint`` makes to whoever presents ``authorization``.

    Args:
        now: its clock.
        mint: makes ``AccessKeyId``, ``SecretAccessKey``, ``SessionToken``, ``Expiration``.
        authorization: the exact header expected; ``None`` for none.
    """

    def __init__(
        self, now: Callable[[], datetime], mint: Callable[[], dict[str, str]], authorization: str | None = None
    ) -> None:
        self.now = now
        self.mint = mint
        self.authorization = authorization
        self.fault: Fault | None = None
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.extra: dict[str, str | None] = {}
        self.asked: list[Asked] = []

    def __call__(self, asked: Asked) -> Answer | Fault:
        self.asked.append(asked)
        if self.fault is not None:
            return self.fault
        if self.refusal is not None:
            return self._answer(*self.refusal)
        if asked.headers.get("authorization") != self.authorization:
            return self._answer(401, {"code": "Unauthorized", "message": "bad token"})
        made = self.mint()
        document = {
            "AccessKeyId": made["AccessKeyId"],
            "SecretAccessKey": made["SecretAccessKey"],
            "Token": made["SessionToken"],
            "Expiration": made["Expiration"],
            **self.extra,
        }
        return self._answer(200, {name: value for name, value in document.items() if value is not None})

    def _answer(self, status: int, body: dict[str, str]) -> Answer:
        headers = {"Content-Type": "application/json", "Date": format_datetime(self.now(), usegmt=True)}
        return Answer(status, json.dumps(body).encode(), headers)
