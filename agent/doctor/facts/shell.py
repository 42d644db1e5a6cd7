"""Facts of the shell in which doctor was called: what leads its programs past the agent. Names, and never a value."""

from __future__ import annotations

import msgspec


class Shell(msgspec.Struct, frozen=True, kw_only=True):
    """What an SDK looks at before it asks the agent.

    Attributes:
        variables: names of those that are set, and that make SDKs look elsewhere.
        proxies: names of the variables that lead requests for the metadata address to a proxy.
        files: credentials of the user's own that SDKs prefer, which are there.
    """

    variables: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
