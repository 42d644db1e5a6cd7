"""Options that the commands of a worker share: the configuration, which clouds, how long."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from agent.cli.members import members_only, not_running
from agent.core.errors import HostError
from agent.core.installed import CONFIG_PATH
from agent.core.text import os_reason

F = TypeVar("F", bound=Callable[..., Any])


CLOUDS: Final = ("aws", "gcp")


def config_option(command: F) -> F:
    """Where the configuration is."""
    option = click.option(
        "--config",
        "path",
        # Not everybody may read it; agent.cli.where handles that.
        type=click.Path(path_type=Path, readable=False),
        default=CONFIG_PATH,
        show_default=True,
        help="The agent's configuration file. It says where the agent listens and where its files are.",
    )
    return option(command)


class _CloudList(click.ParamType[tuple[str, ...]]):
    name = "cloud[,cloud]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        named = tuple(part.strip() for part in str(value).split(",") if part.strip())
        if not named or any(part not in (*CLOUDS, "any") for part in named):
            self.fail(f"expected aws, gcp, aws,gcp or any, got {value!r}", param, ctx)
        return named


for_option = click.option(
    "--for",
    "clouds",
    type=_CloudList(),
    default="any",
    show_default=True,
    help="Clouds to wait for: aws, gcp, or aws,gcp for both. any: one of them is enough.",
)


bundle_option = click.option(
    "--bundle",
    is_flag=True,
    help="Wait for an identity from a bundle; the machine's own does not count.",
)


class Seconds(click.FloatRange):
    """A length of time in seconds. ``nan`` passes every bound, and the wait would never end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a finite number of seconds; click says what is wrong with it."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"expected a number of seconds, got {value!r}", param, ctx)
        return seconds


def timeout_option(seconds: float) -> Callable[[F], F]:
    """How long to wait; ``seconds`` by default."""
    return click.option(
        "--timeout",
        type=Seconds(min=0),
        default=seconds,
        show_default=True,
        help="How many seconds to wait; then the command exits 75.",
    )


def control_socket(path: Path) -> Path:
    """The control socket of the agent that is configured at ``path``."""
    from agent.cli import where

    return where.find(path).control


def unreadable(file: Path, error: OSError) -> HostError:
    """The error of a file that a worker cannot read, with what to do."""
    hint = members_only(file) if isinstance(error, PermissionError) else not_running()
    return HostError(f"{file}: cannot be read: {os_reason(error)}", hint=hint)
