"""Keys that contradict each other, and other mistakes that no single value shows."""

from __future__ import annotations

import ipaddress
import os
import posixpath
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from urllib.parse import urlsplit

from agent.config.faults import Fault
from agent.config.schema import (
    MAX_SOCKET_PATH_BYTES,
    Config,
    HttpsEntry,
    Listen,
    SourceEntry,
)
from agent.core.errors import ConfigError
from agent.core.source import OURS

_WRITTEN = ("file", "shell_file", "container_file", "token_file")


def courier_path(settings: Listen) -> Path | None:
    """The path of the couriers' socket, unless systemd passes it; ``None``: there is none."""
    if settings.courier == "auto":
        return Path(settings.control).with_name("courier.sock")
    return None if settings.courier == "off" else Path(settings.courier)


def host_port(value: str, *, origin: str = "listen.http") -> tuple[str, int]:
    """Split ``HOST:PORT``; an IPv6 host stands in brackets.

    Raises:
        ConfigError: it is not that.
    """
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5})", value)
    port = int(match["port"]) if match else -1
    if match is None or not 0 <= port <= 65535:
        raise ConfigError(f"{origin}: expected ADDRESS:PORT such as 127.0.0.1:16925 or [::1]:16925, got {value!r}")
    return match["v6"] or match["v4"], port


def contradictions(config: Config) -> Iterator[Fault]:
    """Every mistake that the types cannot show."""
    if not config.listen.http:
        yield Fault(
            "listen.http",
            "expected at least one address",
            "without a listener no worker can ask; sockets that systemd passes take the place of these",
        )
    for value in config.listen.http:
        try:
            host_port(value)
        except ConfigError as error:
            yield Fault(*error.message.split(": ", 1))
    yield from _names(config)
    yield from _twice_a_file(config)
    yield from _wrong_urls(config)
    if config.keys and not config.signers and not config.launch_signers:
        yield Fault(
            "signers",
            "expected at least one beside keys: without a pinned signer no bundle can be believed",
            'add [[signers]] with key = "/path/to/public.jwk"',
        )
    if config.sources and not config.keys:
        yield Fault(
            "keys",
            "expected at least one beside sources: a bundle could arrive and nothing could open it",
            'add [[keys]] with kind = "file" and path = "/path/to/worker.jwk"',
        )
    yield from _unclear_sources(config.sources)


def is_url(value: str, *, user: bool = False) -> bool:
    """Whether this is an absolute http or https URL to a host that can be; ``user``: it may have a user's name."""
    if not value.isascii() or not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
        port, host = parts.port, parts.hostname or ""
        if ":" in host:
            ipaddress.IPv6Address(host)
    except ValueError:
        return False
    # The part that names the host, whole: readers of URLs differ in what they leave out of it.
    place = parts.netloc.rpartition("@")[2] if user else parts.netloc
    rest = place.lower().removeprefix(f"[{host}]" if ":" in host else host)
    named = ":" in host or re.fullmatch(r"[A-Za-z0-9._-]{1,253}", host) is not None
    return parts.scheme in {"http", "https"} and named and rest in {"", f":{port}"}


def _wrong_urls(config: Config) -> Iterator[Fault]:
    """URLs that no request could be made with: found when one is made, or by a start after a reload that took them.

    What was got is not said: a pre-signed URL is a credential, and a user's name and password may stand in any.
    """
    for key, value in (("upstream.ec2", config.upstream.ec2), ("upstream.gce", config.upstream.gce)):
        if value not in ("auto", "off") and not (is_url(value) and re.fullmatch(r"https?://[^\s/?#]+", value)):
            yield Fault(key, 'expected "auto", "off" or a base URL such as "http://169.254.169.254"')
    for index, value in enumerate(config.mint.allowed_origins):
        url = value if "://" in value else f"https://{value}"
        if not is_url(url) or not re.fullmatch(r"[A-Za-z]+://[^/?#]+/?", url):
            said = 'expected scheme, host and port only, such as "https://broker.example"'
            yield Fault(f"mint.allowed_origins[{index}]", said)
    for key, value in urls(config):
        if not is_url(value, user=True):
            yield Fault(key, "expected http:// or https://, a host, and a port up to 65535 if any")


def urls(config: Config) -> Iterator[tuple[str, str]]:
    """Every URL that is not the address of a metadata service, with its key."""
    found: list[tuple[str, str | None]] = [("upstream.proxy", config.upstream.proxy)]
    found += [(f"keys[{i}].endpoint", getattr(key, "endpoint", None)) for i, key in enumerate(config.keys)]
    for i, source in enumerate(config.sources):
        if isinstance(source, HttpsEntry):
            found += [(f"sources[{i}].{name}", getattr(source, name)) for name in ("url", "ack_url", "proxy")]
    names = ("sts_endpoint", "google_token_url", "google_sts_url", "google_iamcredentials_url")
    found += [(f"mint.{name}", getattr(config.mint, name)) for name in names]
    return ((key, value) for key, value in found if value is not None)


def _unclear_sources(sources: tuple[SourceEntry, ...]) -> Iterator[Fault]:
    """Each says where it reads, once, and has a name of its own."""
    for index, entry in enumerate(sources):
        if isinstance(entry, HttpsEntry) and (entry.url is None) == (entry.url_file is None):
            yield Fault(
                f"sources[{index}]",
                f"expected one of url and url_file, got {'neither' if entry.url is None else 'both'}",
                "a pre-signed URL is a credential: url_file keeps it out of the configuration",
            )
    names = [entry.name for entry in sources if entry.name is not None]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield Fault("sources", f"expected distinct names, got {name!r} twice")


def _names(config: Config) -> Iterator[Fault]:
    """Paths of sockets that are too long, and a source with a reserved name."""
    for index, source in enumerate(config.sources):
        if source.name in OURS:
            said = f"expected another name: {', '.join(sorted(OURS))} are the agent's own ways in"
            yield Fault(f"sources[{index}].name", said)
    for key, path in (("listen.control", config.listen.control), ("listen.courier", config.listen.courier)):
        length = len(os.fsencode(path))
        if length > MAX_SOCKET_PATH_BYTES:
            yield Fault(
                key,
                f"expected a path of at most {MAX_SOCKET_PATH_BYTES} bytes, got {length}",
                "the address of a unix socket holds no more",
            )


def _twice_a_file(config: Config) -> Iterator[Fault]:
    """Each of the files that are written has its own path, or the last one written would be all of them."""
    taken: dict[str, str] = {}
    for key in (*(f"environment.{name}" for name in _WRITTEN), "metrics.textfile", "audit.file"):
        value = attrgetter(key)(config)
        if value is None:
            continue
        path = posixpath.normpath("/" + value.lstrip("/"))  # POSIX keeps two slashes apart
        if path in taken:
            yield Fault(key, f"expected another path than {taken[path]}, got {path} twice")
        taken[path] = key
