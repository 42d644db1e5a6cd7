"""``wait``: until there is an identity, asked for as a program on this worker would ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from agent.cli import ask
from agent.cli.common import EX_TEMPFAIL
from agent.cli.options import CLOUDS, bundle_option, config_option, for_option, timeout_option, unreadable
from agent.core.errors import HostError
from agent.wire import names

POLL_SECONDS: Final = 0.25
_NOT_SAID: Final = "an identity of which the agent does not say whose it is"
_WHOSE: Final = {"bundle": "an identity from the bundle", "fallback": "the machine's own identity"}


@click.command()
@config_option
@for_option
@timeout_option(120.0)
@bundle_option
def wait(path: Path, clouds: tuple[str, ...], timeout: float, bundle: bool) -> int:
    """Wait until there is an identity: ask as a program on this worker would, until it is answered.

    Where metadata requests are redirected, one must also arrive. For scripts and for ExecStartPre= of units. Says whose
    identity it is, and exits 75 at the timeout, with the reason and, if a bundle came and was refused, with why.
    """
    return await_identity(Workers(path), clouds, timeout, bundle=bundle, tell=True)


class Workers:
    """The workers' endpoint, as an SDK would ask it."""

    def __init__(self, path: Path) -> None:
        from agent.cli import where

        # Each time anew: a worker may wait for an agent that has not told it yet.
        self._find: Callable[[], where.Where] = lambda: where.find(path)
        self._find()

    def aws(self) -> ask.Answer:
        """Ask for an AWS credential. Raises HostError where nobody answers."""
        found = self._find()
        try:
            token = found.token_file.read_text()
        except OSError as error:
            raise unreadable(found.token_file, error) from None
        return ask.worker(found.http, names.EKS_PATH, {"Authorization": token})

    def gcp(self) -> ask.Answer:
        """Ask for a Google token. Raises HostError where nobody answers."""
        return ask.worker(self._find().http, names.GCE_TOKEN_PATH, {names.GCE_FLAVOR_HEADER: names.GCE_FLAVOR})


class _Round:
    """The wanted clouds, asked once: why each has not what was wanted, and whose identity the others have."""

    def __init__(self, endpoint: Workers, wanted: tuple[str, ...], *, bundle: bool) -> None:
        self.reasons: dict[str, str] = {}
        self.whose: dict[str, str] = {}
        self.refused: str | None = None
        ask_for = {"aws": endpoint.aws, "gcp": endpoint.gcp}
        for cloud in wanted:
            try:
                answer = ask_for[cloud]()
            except HostError as error:
                self.reasons[cloud] = error.message  # it may be starting
                continue
            self.refused = answer.refused or self.refused
            if answer.status != 200:
                self.reasons[cloud] = answer.why()
            elif bundle and answer.origin != "bundle":
                self.reasons[cloud] = f"{_WHOSE.get(answer.origin, _NOT_SAID)}; a bundle's was asked for"
            else:
                self.whose[cloud] = answer.origin


def await_identity(
    endpoint: Workers, clouds: tuple[str, ...], timeout: float, *, bundle: bool = False, tell: bool = False
) -> int:
    """Poll until the wanted clouds answer, with the wanted identity; the status to exit with."""
    wanted = CLOUDS if "any" in clouds else clouds
    enough = any if "any" in clouds else all
    end = time.monotonic() + timeout
    while True:
        found = _Round(endpoint, wanted, bundle=bundle)
        if enough(cloud not in found.reasons for cloud in wanted):
            astray = _astray()
            if astray is None:
                for cloud, origin in found.whose.items():
                    if tell and origin in _WHOSE:
                        click.echo(f"{cloud}: {_WHOSE[origin]}")
                return 0
            found.reasons = {"redirect": astray}
        if time.monotonic() >= end:
            for cloud, reason in found.reasons.items():
                click.echo(f"credential-agent: {cloud}: {reason}", err=True)
            if found.refused is not None:
                click.echo(f"credential-agent: the last bundle was refused: {found.refused}", err=True)
            kind = "identity from a bundle" if bundle else "identity"
            click.echo(f"credential-agent: no {kind} within {timeout:g} s", err=True)
            return EX_TEMPFAIL
        time.sleep(min(POLL_SECONDS, max(end - time.monotonic(), 0)))


def _astray() -> str | None:
    """Why a program of this user that asks the metadata service does not reach the agent; ``None``: it does.

    Asked by ourselves: the agent's endpoint took us for a worker. Where nothing redirects there is nothing to ask.
    """
    from agent.host import arrival, nft

    known = arrival.read()
    if known is None:
        return None
    word = arrival.ask(nft.METADATA["ip"][0], 80)
    if word == "agent":
        return None
    why = "" if known.why is None else f" ({known.why})"
    return f"a request to the metadata service does not arrive: {arrival.said(word)}{why}\n  hint: {arrival.HINT}"
