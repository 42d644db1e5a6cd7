"""Who is this machine? Its name, to which a memory belongs; its other audiences; its region and zone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.core.clock import Clock
from agent.core.errors import HostError
from agent.core.view import Facts
from agent.daemon import compose
from agent.host import machine
from agent.identity.whose import name_among
from agent.providers.machine import Machine, ec2_machine, gce_machine
from agent.upstream import UpstreamError

ASK_SECONDS: Final = 2.0
"""How long a metadata service may take to say who we are."""
ASK_AGAIN_SECONDS: Final = 15.0
LONGEST_PAUSE_SECONDS: Final = 60.0

_CONTRADICTED: Final = (
    "firmware or this very boot say that the metadata service errs: nothing that was decided is served, and nothing "
    "forgotten, until it says the former name; if it is right, set identity.instance_id to its name"
)
_COPIED: Final = (
    "its name is a file that is copied with the disk, and every network card is another one: nothing that was decided "
    "is served, and nothing forgotten, until a bundle is brought. If its cards are others at each boot, set "
    "identity.instance_id; if it is a copy, give it an /etc/machine-id of its own"
)


class Who:
    """See the module.

    Args:
        metadata: the machine's metadata services.
        clock: time.
        configured: its name in the configuration; ``auto``: the name that the services give.
        root: where ``/etc`` is.

    Attributes:
        audiences: the names that the machine itself answers to.
        boot_id: of the running kernel, once it is read.
        firmware: what the firmware says this machine is.
        silent: whether a metadata service did not answer when last asked.
        pause_seconds: for how long one of them asked then not to be asked again.
    """

    def __init__(self, metadata: compose.Metadata, clock: Clock, *, configured: str, root: Path) -> None:
        self.audiences: frozenset[str] = frozenset()
        self.boot_id = ""
        self.silent = False
        self._named = False  # whether a service has ever said a name
        self.pause_seconds = 0.0
        self.firmware = machine.firmware_names(root)
        self._metadata = metadata
        self._clock = clock
        self._configured = configured
        self._root = root

    @property
    def may_tell(self) -> bool:
        """Whether there is any service that could say."""
        return self._metadata.ec2 is not None or self._metadata.gce is not None

    @property
    def may_change(self) -> bool:
        """Whether a service's word may become another: not where the configuration names the machine."""
        return self.may_tell and self._configured == "auto"

    @property
    def unnamed(self) -> bool:
        """Whether a service may yet say a name that nobody knows here: it was silent, or none has said one yet.

        What answers in its place (a page, say, that is not there) names nobody, and is no word of the service's.
        """
        return self.silent or (self.may_tell and not self._named and not self.audiences)

    async def ask(self) -> list[Machine]:
        """Ask the metadata services; a service that does not answer in time is ``silent``."""
        asked: list[Coroutine[Any, Any, Machine | None]] = []
        if self._metadata.ec2 is not None:
            asked.append(ec2_machine(self._metadata.ec2))
        if self._metadata.gce is not None:
            asked.append(gce_machine(self._metadata.gce))
        answers = await asyncio.gather(*(_in_time(question, ASK_SECONDS) for question in asked))
        silent = [answer for answer in answers if isinstance(answer, Silent)]
        self.silent = bool(silent)
        self.pause_seconds = max((one.pause_seconds for one in silent), default=0.0)
        found = [answer for answer in answers if isinstance(answer, Machine)]
        self._named = self._named or bool(found)
        return found

    async def ask_until_known(self, remembered: str, *, at_once: bool) -> list[Machine]:
        """Keep asking until the machine has a name; ``remembered``: see :meth:`name`."""
        wait = 0.0 if at_once else ASK_AGAIN_SECONDS
        while True:
            await self._clock.sleep(wait)
            found = await self.ask()
            # A machine that is not known serves nothing that a bundle decided: no service can put that off for long.
            wait = max(ASK_AGAIN_SECONDS, min(self.pause_seconds, LONGEST_PAUSE_SECONDS))
            if self.name(found, remembered):
                return found

    def name(self, found: list[Machine], remembered: str) -> str:
        """The name of this machine; empty while it is not known. ``remembered``: the one in its memory."""
        if self._configured != "auto":
            return f"config:{self._configured}"
        name = name_among([one.instance_id for one in found], remembered, silent=self.silent)
        if name or found:
            return name
        if self.may_tell:
            return ""
        with contextlib.suppress(HostError):  # it cannot be read just now
            if own := machine.machine_id(self._root):
                return f"machine:{own}"
        return ""

    def learn(self, found: list[Machine], facts: Facts) -> Facts:
        """Take note of what was found; returns ``facts`` with what the services said of them."""
        for one in found:
            self.audiences |= one.audiences
            seen = {name: value for name, value in msgspec.structs.asdict(one.facts).items() if value is not None}
            facts = msgspec.structs.replace(facts, **seen)
        return facts


class Silent(msgspec.Struct, frozen=True):
    """A metadata service did not answer, or not sensibly: this differs from "there is none"."""

    pause_seconds: float = 0.0


async def _in_time(question: Coroutine[Any, Any, Machine | None], seconds: float) -> Machine | Silent | None:
    try:
        async with asyncio.timeout(seconds):
            return await question
    except UpstreamError as error:
        return Silent(error.pause_seconds)
    except TimeoutError:
        return Silent()


def hint(former: str, name: str) -> str:
    """What to do where firmware, boot or network cards say that the memory of ``former`` is not that of ``name``."""
    return _COPIED if former == name else _CONTRADICTED
