"""``config show``: the configuration as it takes effect, and where each value comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import click

from agent.cli.documents import json_option, tell
from agent.cli.exits import EX_CONFIG
from agent.cli.options import config_option

# Values that may be, or hold, a secret: URLs with a user or a query, and variables that an operator passes on.
_URLS: Final = re.compile(r"(?:^|[._])(?:url|proxy|endpoint|ec2|gce)$|_url$")
_ORIGINS: Final = "mint.allowed_origins"
_VALUES: Final = frozenset({"environment.variables"})
HIDDEN: Final = "..."


class Value(NamedTuple):
    """One key.

    Attributes:
        value: what takes effect, without a secret.
        line: of the file; ``None``: the file does not say it, so it is the default.
    """

    key: str
    value: Any
    line: int | None


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@config_option
@json_option
@click.argument("section", required=False)
def show(path: Path, as_json: bool, section: str | None) -> int:
    """Print the configuration as it takes effect.

    For each value, it says which line of the file gives it, or that it is the default. SECTION shows one section only,
    such as listen. Secrets in URLs and variables are not shown. Exits 78 if the file has a mistake, and shows the rest.
    """
    from agent import config as configuration
    from agent.cli import report

    settings, faults = configuration.survey(path)
    names = configuration.Config.__struct_fields__
    if section is not None and section not in names:
        raise click.UsageError(f"no section {section!r}; there are: {', '.join(names)}")
    values = [one for one in _values(settings, configuration.text(path)) if section in (None, _section(one.key))]
    if as_json:
        tell(
            "config",
            {
                "path": str(path),
                "faults": [fault._asdict() for fault in faults],
                "values": [_document(one) for one in values],
            },
        )
    else:
        for line in _lines(values, path):
            click.echo(line)
        if not values:
            click.echo(f"# no [[{section}]] entry in {path}")
        for fault in faults:
            report(fault.error(str(path)))
    return EX_CONFIG if faults else 0


def _document(one: Value) -> dict[str, Any]:
    return {**one._asdict(), "origin": "default" if one.line is None else "file"}


def _section(key: str) -> str:
    return re.split(r"[.\[]", key)[0]


def _values(settings: Any, text: str) -> Iterator[Value]:
    """Every value, in the order of the schema."""
    import msgspec

    from agent.config import origins

    lines = origins.lines(text)
    for name, value in msgspec.to_builtins(settings).items():
        entries = value if isinstance(value, list | tuple) else [value]
        for index, entry in enumerate(entries):
            where = f"{name}[{index}]" if isinstance(value, list | tuple) else name
            for key, one in entry.items():
                full = f"{where}.{key}"
                yield Value(full, shown(full, one), lines.get(full) or _inline(full, lines))


def _inline(key: str, lines: Mapping[str, int]) -> int | None:
    """The line of what contains the key, if that is no header: a table in one line, or a key with dots."""
    return next((line for name, line in lines.items() if name.startswith(f"{key}.")), None)


def shown(key: str, value: Any) -> Any:
    """The value without a secret."""
    if key in _VALUES and isinstance(value, dict):
        return dict.fromkeys(value, HIDDEN)
    if isinstance(value, list | tuple):
        return [_origin(one) if key == _ORIGINS else shown(key, one) for one in value]
    if isinstance(value, str) and (_URLS.search(key) or "://" in value):
        return _without_secret(value)
    return value


def _origin(value: str) -> str:
    """An origin as it is written, which may be a bare host; with anything else in it, as any URL."""
    safe = _without_secret(value if "://" in value else f"https://{value}")
    return safe if HIDDEN in safe else value


def _without_secret(url: str) -> str:
    """Scheme, host and port; what follows may be a credential (a pre-signed URL)."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return HIDDEN
    if not parts.scheme or not parts.hostname:
        return url if re.fullmatch(r"[a-z]{1,8}", url) else HIDDEN
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    others = (parts.path.strip("/"), parts.query, parts.fragment, parts.username, parts.password)
    more = f"/{HIDDEN}" if any(others) else ""
    return f"{parts.scheme}://{host}{port}{more}"


def _lines(values: list[Value], path: Path) -> Iterator[str]:
    section = ""
    for one in values:
        where, _, name = one.key.rpartition(".")
        if where != section:
            yield from [""] if section else []
            section = where
            header = where.partition("[")[0]
            yield f"[[{header}]]" if "[" in where else f"[{header}]"
        origin = "default" if one.line is None else f"{path}:{one.line}"
        yield f"{name} = {_toml(one.value)}  # {origin}"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }" if value else "{}"
    return '""' if value is None else json.dumps(value, ensure_ascii=False)
