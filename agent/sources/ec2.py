"""A bundle in EC2 user-data.

User-data can be changed only while the instance is stopped, and EC2 has no way to wait for a change: it is read at the
start, and then now and then in case it was not whole at first. Its other parts are none of our business: see
:mod:`agent.wire.userdata` for how a bundle is found beside cloud-init's own documents, and
:mod:`agent.wire.wrapped` for how it is found in what tools make of them.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final, NoReturn

import msgspec

from agent.core.clock import Clock
from agent.core.model import Cloud, SealedBundle
from agent.core.source import Ack, OnError, OnSuccess, Submit
from agent.sources.watching import broken_here, keep_watching, unusable
from agent.upstream import Ec2Metadata
from agent.wire.names import EC2_USER_DATA_PATH
from agent.wire.wrapped import find

MAX_BYTES: Final = 65_536
"""EC2 holds 16 KiB; services that speak its protocol (OpenStack, Eucalyptus) hold up to 64."""


class Ec2UserDataSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How user-data is read.

    Attributes:
        reread_seconds: between two looks. Each is one request to the link-local address.
    """

    name: str = "ec2-user-data"
    reread_seconds: float = 600.0


class Ec2UserDataSource:
    """Reads user-data from the real metadata service.

    Args:
        settings: how.
        metadata: the service, as its client.
        clock: sleeps.
        rng: the source of the spread.
    """

    awaited_in = (Cloud.AWS,)

    def __init__(
        self,
        settings: Ec2UserDataSettings,
        *,
        metadata: Ec2Metadata,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._metadata = metadata
        self._clock = clock
        self._rng = rng

    @property
    def name(self) -> str:
        """See :class:`agent.core.source.Source`."""
        return self._settings.name

    @property
    def every_seconds(self) -> float:
        """Between two looks, for a person who waits for the next."""
        return self._settings.reread_seconds

    async def watch(self, submit: Submit, *, on_error: OnError, on_success: OnSuccess) -> NoReturn:
        """See :class:`agent.core.source.Source`."""
        await keep_watching(
            self.fetch,
            lambda: self._settings.reread_seconds * self._rng.uniform(0.75, 1.25),
            submit=submit,
            on_error=on_error,
            on_success=on_success,
            clock=self._clock,
            rng=self._rng,
            local=True,
        )

    async def fetch(self) -> SealedBundle | None:
        """See :class:`agent.core.source.Source`. User-data without a bundle in it is ``None``, like none at all."""
        with broken_here(of_the_machine=True):
            answer = await self._metadata.request("GET", EC2_USER_DATA_PATH, max_bytes=MAX_BYTES)
            answer = self._metadata.own(answer, EC2_USER_DATA_PATH)
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise unusable(f"expected 200 or 404 for user-data, got {answer.status}", answer, of_the_machine=True)
            # In a thread: a document made to be hard to read must not hold up the loop that serves.
            bundle = await asyncio.to_thread(find, answer.body)
        return None if bundle is None else SealedBundle(data=bundle, origin=self.name)

    async def acknowledge(self, ack: Ack) -> None:
        """User-data has no way back."""
