"""The diagnosis as text for a person, and as a document for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from agent.core.text import instant, printable
from agent.doctor.finding import Finding, Level

SCHEMA: Final = "credential-agent/doctor"
SCHEMA_VERSION: Final = 1

_MARKS: Final[Mapping[Level, str]] = {Level.FAIL: "FAIL", Level.WARN: "warn", Level.SKIPPED: "skip", Level.OK: "ok  "}
_COLOURS: Final[Mapping[Level, str]] = {Level.FAIL: "31;1", Level.WARN: "33", Level.SKIPPED: "2", Level.OK: "32"}


def document(findings: Sequence[Finding], *, version: str, now: datetime, redacted: bool) -> dict[str, Any]:
    """The diagnosis for programs (``agent/cli/COMMANDS.md``).

    Args:
        findings: in their order.
        version: of this program.
        now: when it was made.
        redacted: whether it was made without the rights of root.
    """
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "version": version,
        "now": instant(now),
        "redacted": redacted,
        "ok": not any(finding.level is Level.FAIL for finding in findings),
        "findings": [msgspec.to_builtins(finding) for finding in findings],
    }


def lines(findings: Sequence[Finding], *, colour: bool = False) -> Iterator[str]:
    """The diagnosis for a person: a line and a command for each finding, and a line that sums them up."""
    for finding in _together(findings):
        mark = _MARKS[finding.level]
        mark = f"\033[{_COLOURS[finding.level]}m{mark}\033[0m" if colour else mark
        about = f" {_line(finding.about)}" if finding.about else ""
        yield f"{mark}  {finding.check}{about}: {_line(finding.said)}"
        if finding.next is not None:
            yield f"      next: {_line(finding.next)}"
    counts = Counter(finding.level for finding in findings)
    yield ", ".join(
        f"{counts[level]} {word}"
        for level, word in (
            (Level.FAIL, "failed"),
            (Level.WARN, "to look at"),
            (Level.SKIPPED, "skipped"),
            (Level.OK, "ok"),
        )
        if counts[level]
    )


def _together(findings: Sequence[Finding]) -> Iterator[Finding]:
    """What was skipped for one reason is told once."""
    told: set[tuple[str, str | None]] = set()
    for finding in findings:
        if finding.level is not Level.SKIPPED or finding.about:
            yield finding
        elif (why := (finding.said, finding.next)) not in told:
            told.add(why)
            alike = [one.check for one in findings if one.level is Level.SKIPPED and (one.said, one.next) == why]
            yield msgspec.structs.replace(finding, check=", ".join(alike))


def _line(text: str) -> str:
    """On one line, and nothing in it that a terminal obeys: causes quote servers, files and other people's names."""
    return printable(" ".join(text.split()))
