"""The shell of whoever calls: an SDK in it may have found an identity before it asks the agent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agent.doctor.facts import Shell
from agent.host import envfile
from agent.wire import names

_PROXIES: Final = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")  # metadata services speak no TLS
_SWITCHES: Final = frozenset({"AWS_EC2_METADATA_DISABLED", "NO_GCE_CHECK"})
"""These say something only when they are true."""
_FILES: Final = {
    "AWS_SHARED_CREDENTIALS_FILE": ".aws/credentials",
    "CLOUDSDK_CONFIG": ".config/gcloud/application_default_credentials.json",
}
"""Where SDKs look below the home, unless the variable names another place."""


def look_at_shell(environ: Mapping[str, str], home: Path) -> Shell:
    """What is set in ``environ``, and which files of the user's own are there; nothing of them is read."""
    return Shell(
        variables=tuple(sorted(name for name in envfile.MASKING if _says_something(name, environ.get(name, "")))),
        proxies=() if _spared(environ) else tuple(name for name in _PROXIES if environ.get(name)),
        files=tuple(
            str(path) for name, below in _FILES.items() if _is_there(path := _place(environ, name, home, below))
        ),
    )


def _says_something(name: str, value: str) -> bool:
    return value.lower() == "true" if name in _SWITCHES else bool(value)


def _spared(environ: Mapping[str, str]) -> bool:
    """Whether requests for the metadata address go to no proxy."""
    listed = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    return bool({"*", names.METADATA_ADDRESSES[0]} & {word.strip() for word in listed.split(",")})


def _place(environ: Mapping[str, str], name: str, home: Path, below: str) -> Path:
    chosen = environ.get(name, "")
    if not chosen:
        return home / below
    return Path(chosen) / Path(below).name if name == "CLOUDSDK_CONFIG" else Path(chosen)


def _is_there(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
