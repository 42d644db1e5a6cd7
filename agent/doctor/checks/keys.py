"""Can the service use the worker's keys?"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Iterator, Mapping
from typing import Final

from agent.core.installed import OURS
from agent.doctor.checks.slow import hung
from agent.doctor.facts import Control, Facts, KeyFile, Unknown
from agent.doctor.finding import Finding, fail, ok, skipped

CHECK: Final = "key"
SHOW: Final = "credential-agent config show keys"
STORES: Final = "ls -l /etc/credstore /etc/credstore.encrypted"


def key(facts: Facts) -> Iterator[Finding]:
    """Each key by itself, with its thumbprint."""
    if isinstance(facts.keys, Unknown):
        if facts.keys.hung:
            yield hung(CHECK, facts.keys, "a key is on a mount that does not answer", "cat /proc/mounts", facts)
        else:
            yield skipped(CHECK, facts.keys.why, next=facts.more)
        return
    running = facts.control.document if isinstance(facts.control, Control) else {}
    for one in facts.keys.keys:
        yield _one(one, running)
    if not facts.keys.keys:
        yield skipped(CHECK, "none is configured: this worker takes no bundle")


def _one(one: KeyFile, running: Mapping[str, object]) -> Finding:
    path = shlex.quote(one.path)
    about = one.path or one.key
    match one.state:
        case "usable":
            return ok(CHECK, f"{one.key}: thumbprint {', '.join(one.kids)}", about=about)
        case "elsewhere" if one.name and one.name in _names(running.get("absent_keys")):
            said = f"{one.key}: systemd was not given the credential {one.name}: no bundle can be opened with it"
            return fail(CHECK, said, STORES, about=about)
        case "elsewhere":
            loaded = running.get("keys")
            kids = ", ".join(_names(loaded))
            return ok(CHECK, f"{one.key}: {one.why}" + (f"; the agent has {kids}" if kids else ""), about=about)
        case "absent" | "not-a-key":
            return _useless(one)
        case "denied" if one.blocked:
            said = f"{one.key}: the service may not enter {one.blocked}"
            return fail(CHECK, said, f"chmod o+x {shlex.quote(one.blocked)}", about=about)
        case "denied":
            return fail(CHECK, f"{one.key}: the service may not read it: {one.why}", OURS.format(path), about=about)
        case "shared":
            return fail(
                CHECK, f"{one.key}: others may read it, so it is not used: {one.why}", OURS.format(path), about=about
            )
        case "not-a-file":
            said = f"{one.key}: expected a file, got {one.why}"
            return fail(CHECK, said, f"ls -ld {path} {shlex.quote(posixpath.dirname(one.path))}", about=about)


def _useless(one: KeyFile) -> Finding:
    path, about = shlex.quote(one.path), one.path or one.key
    if one.public:
        # The private half is in the key service: to make another key would write a private one there, for nothing.
        said = f"{one.key}: the public key of the key service is not there" + (f": {one.why}" if one.why else "")
        return fail(CHECK, said, SHOW, about=about)
    if one.state == "absent":
        said = f"{one.key}: it is not there: no bundle can be opened (a new key is another one: senders must learn it)"
        return fail(CHECK, said, f"credential-agent keygen --out {path} && {OURS.format(path)}", about=about)
    if one.name:
        said = f"{one.key}: systemd credential {one.name}: {one.why}: not a key that opens bundles"
        return fail(CHECK, said, STORES, about=about)
    # Not --force: it may be a key that was only damaged or is of another format, and exists nowhere else.
    return fail(CHECK, f"{one.key}: {one.why}: not a key that opens bundles", f"ls -l {path}", about=about)


def _names(value: object) -> list[str]:
    return list(map(str, value)) if isinstance(value, list | tuple) else []
