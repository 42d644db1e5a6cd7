"""Every way out that this process has, so that what is true of one is true of all.

Three kinds of clients ask others over HTTP: the agent's own (renewal, keys, the machine's metadata), the one for what
workers and couriers cause, and one for each HTTPS source, with its authorities and its proxy. None is made elsewhere.
After a suspend, a hypervisor's pause or a step of the clock each of them begins with new connections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent import config
from agent.daemon import compose
from agent.host.clock import uncounted
from agent.upstream import Upstream

SLEPT_SECONDS: Final = 5.0
"""A loop that did not see so much time pass slept, and its peers gave up what was under way."""


class WaysOut:
    """See the module.

    Args:
        settings: the configuration.
        uncounted: by how much other clocks are ahead of the loop's, in seconds.
    """

    def __init__(self, settings: config.Config, *, uncounted: Callable[[], float] = uncounted) -> None:
        self._settings = settings
        self._uncounted = uncounted
        self._before = uncounted()
        self._made: list[Upstream] = []

    def make(
        self,
        *,
        ca_file: str | None = None,
        proxy: str | None = None,
        connections: int = 128,
        hear: compose.Hear | None = None,
    ) -> Upstream:
        """Make a client: see :func:`agent.daemon.compose.upstream`."""
        made = compose.upstream(self._settings, ca_file=ca_file, proxy=proxy, connections=connections, hear=hear)
        self._made.append(made)
        return made

    def reconnect(self) -> None:
        """Begin with new connections: the machine resumed, or its clock was stepped.

        What was under way while the machine slept is given up. Nobody will answer a long poll of before, whose timeout
        begins to count only now.
        """
        before, self._before = self._before, self._uncounted()
        for one in self._made:
            one.reconnect(give_up=self._before - before >= SLEPT_SECONDS)

    async def close(self) -> None:
        """Close all of them."""
        for one in self._made:
            await one.close()
