"""The status document in a person's words. Pure: lines, each with how it looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from agent.core.text import printable, when

GOOD: Final = "32"
BAD: Final = "31;1"
DOUBTFUL: Final = "33"
QUIET: Final = "2"

HISTORY_LINES: Final = 8
SOON: Final = timedelta(hours=2)

#: What is bad news in a history, and what is hardly news.
_HISTORY: Final = {"refused": BAD, "revoked": BAD, "ended": BAD, "not-renewed": DOUBTFUL, "source-failed": DOUBTFUL}


class Line(NamedTuple):
    """One line, and its colour (SGR of ECMA-48); empty: as it is."""

    text: str
    colour: str = ""


def rendered(lines: Iterable[Line], *, colour: bool) -> Iterator[str]:
    """The lines as they are printed; what a terminal would obey is replaced: others wrote names and reasons."""
    for line in lines:
        text = printable(line.text)
        yield f"\033[{line.colour}m{text}\033[0m" if colour and line.colour else text


def told(document: Mapping[str, Any], now: datetime) -> Iterator[Line]:
    """Everything that a person wants to see, what matters most first."""
    for name, cloud in document["clouds"].items():
        yield from _cloud(name, cloud, now)
    bundle = document["bundle"]
    if bundle is None:
        yield Line("bundle: none")
    else:
        yield Line(
            f"bundle: seq {bundle['seq']} from {bundle['issuer']} for {bundle['subject']}, by {bundle['origin']}"
        )
    yield from _variables(bundle)
    for name in document.get("absent_keys", ()):  # of an agent that is older than this command
        yield Line(f"key {name}: this machine was not given it; no bundle can be opened with it", BAD)
    yield from _sources(document, now)
    yield from _renewals(document, now)
    yield from _refusal(document)
    yield from (Line(f"without {key}: {why}", BAD) for key, why in document.get("without", {}).items())
    yield from _files(document.get("files", ()))
    yield from _servers(document.get("servers"))
    yield from _redirect(document.get("redirect"))
    yield from _published(document)
    if document["memory_unwritten"]:
        yield Line("warning: the state directory cannot be written; a restart would forget what was accepted", BAD)
    yield from _history(document.get("history", ()), now)


def _cloud(name: str, cloud: Mapping[str, Any], now: datetime) -> Iterator[Line]:
    if cloud["state"] != "live":
        yield Line(f"{name}: none ({cloud['state']}): {cloud['why']}", QUIET if cloud["state"] == "absent" else BAD)
        return
    whose = {"bundle": "from the bundle", "fallback": "the machine's own"}.get(cloud["origin"], cloud["origin"])
    yield Line(f"{name}: {cloud.get('role_arn') or cloud['identity']} ({whose})", GOOD)
    yield Line(f"     this credential ends {at(cloud['expires_at'], now)}")
    if cloud["horizon"] is not None:
        reason = f": {cloud['horizon_reason']}" if cloud.get("horizon_reason") else ""
        near = datetime.fromisoformat(cloud["horizon"]) - now < SOON
        text = f"     served until {at(cloud['horizon'], now)}{reason}; then: {cloud['at_the_end']}"
        yield Line(text, DOUBTFUL if near else "")


def _sources(document: Mapping[str, Any], now: datetime) -> Iterator[Line]:
    read = document.get("source_read", {})
    for name, state in document["sources"].items():
        stamp = read.get(name)
        last = f", read {at(stamp, now)}" if stamp is not None else ""
        following = document.get("source_next", {}).get(name)
        last += f", next {at(following, now)}" if following is not None else ""
        if state != "ok":
            yield Line(f"source {name}: {state}{last}", DOUBTFUL)
        elif stamp is not None:
            yield Line(f"source {name}: ok{last}", QUIET)


def _renewals(document: Mapping[str, Any], now: datetime) -> Iterator[Line]:
    for one in document["credentials"]:
        failure, what = one["last_failure"], f"renewal of {one['cloud']} {one['grant']}"
        following = one.get("next_attempt_at")
        again = f"; next {at(following, now)}" if following is not None else ""
        if failure is not None:
            colour = BAD if failure.get("permanent") else DOUBTFUL
            yield Line(f"{what} fails ({failure['code']}): {failure['reason']}{again}", colour)
        elif again:
            yield Line(f"{what}{again}", QUIET)


def _refusal(document: Mapping[str, Any]) -> Iterator[Line]:
    refusal = document["last_refusal"]
    if refusal is None:
        return
    text = f"last refused bundle: {refusal['code']}: {refusal['reason']} (from {refusal['origin']}, {refusal['at']})"
    yield Line(text, BAD)
    if document["bundle"] is None:
        ours = [f"key {kid}" for kid in document["keys"]] + [str(name) for name in document["audiences"]]
        yield Line(f"this worker answers to: {', '.join(ours) or 'nothing: it has no key and no name'}")


def _variables(bundle: Mapping[str, Any] | None) -> Iterator[Line]:
    for name in (bundle or {}).get("refused_variables", ()):
        yield Line(f"variable {name}: not passed on; environment.allow in the configuration says which are", DOUBTFUL)


def _files(files: Iterable[Mapping[str, Any]]) -> Iterator[Line]:
    for file in files:
        count = f", {file['count']} certificates" if file["count"] is not None else ""
        digest = f", sha256 {file['sha256'][:16]}" if file["sha256"] is not None else ""
        yield Line(f"loaded {file['key']}: {file['path']} ({file['what']}{count}{digest})", QUIET)


def _servers(servers: Iterable[Mapping[str, Any]] | None) -> Iterator[Line]:
    """Who answers workers, where that is not as it should be; ``None``: of an agent that is older than this command."""
    if servers is None:
        return
    found = list(servers)
    if not any(one["newest"] and not one.get("stands_by") for one in found):
        yield Line("workers: no process answers them just now; they wait", BAD)
    elif not all(one["apart"] for one in found):
        yield Line("workers: answered by the agent's own process, not by one apart: restart the agent", DOUBTFUL)


def _redirect(redirect: Mapping[str, Any] | None) -> Iterator[Line]:
    from agent.host.arrival import hint

    if redirect is None:
        return
    if not redirect["arrives"]:
        yield Line(f"redirect: {redirect['state']}: {redirect['why']}", BAD)
        yield Line(f"     hint: {hint(redirect['state'])}")
    elif redirect["why"]:
        yield Line(f"redirect: led by the rules of before: {redirect['why']}", DOUBTFUL)
    else:
        yield Line("redirect: workers' requests arrive", QUIET)
    yield from (Line(f"redirect: {note}", DOUBTFUL) for note in redirect["notes"])


def _published(document: Mapping[str, Any]) -> Iterator[Line]:
    if document.get("key_overwritten"):
        text = (
            "warning: something else stood where this worker's public key is published; senders may have sealed to it"
        )
        yield Line(text, BAD)
    for place, state in document.get("published", {}).items():
        if state != "published":
            yield Line(f"public key at {place}: {state}", DOUBTFUL)


def _history(entries: Iterable[Mapping[str, Any]], now: datetime) -> Iterator[Line]:
    """The last things that happened, the latest first."""
    latest = list(entries)[-HISTORY_LINES:][::-1]
    if latest:
        yield Line("lately:", QUIET)
    for one in latest:
        times = f" ({one['times']} times)" if one["times"] > 1 else ""
        yield Line(
            f"     {at(one['at'], now)}: {one['kind']} {one['about']}: {one['said']}{times}",
            _HISTORY.get(one["kind"], QUIET),
        )


def at(stamp: str, now: datetime) -> str:
    """An instant, and how far off it is."""
    return f"{stamp} ({when(datetime.fromisoformat(stamp), now)})"
