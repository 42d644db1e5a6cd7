"""What one check says: how bad, the cause in a line, and the one command to type next. Pure values, and their order."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec


class Level(enum.StrEnum):
    """How bad it is, the worst first."""

    FAIL = "fail"  # a worker lacks its identity, will lack it, or another's may reach it
    WARN = "warn"  # nothing is lacking yet, and somebody should look
    SKIPPED = "skipped"  # it was not looked at, and the finding says why
    OK = "ok"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the diagnosis.

    Attributes:
        check: a stable word for what was looked at: one of ``agent.doctor.checks.CHECKS``.
        about: which of several (the name of a source, a file); empty where there is one.
        level: how bad it is.
        said: the cause, in one line, without a secret.
        next: one command that can be typed as it stands; ``None`` where there is nothing to do.
    """

    check: str
    level: Level
    said: str
    about: str = ""
    next: str | None = None


def ok(check: str, said: str, *, about: str = "") -> Finding:
    """All is well."""
    return Finding(check=check, level=Level.OK, said=said, about=about)


def skipped(check: str, why: str, *, about: str = "", next: str | None = None) -> Finding:  # noqa: A002 - the field's name
    """It was not looked at."""
    return Finding(check=check, level=Level.SKIPPED, said=why, about=about, next=next)


def warn(check: str, said: str, next: str, *, about: str = "") -> Finding:  # noqa: A002 - the field's name
    """Somebody should look."""
    return Finding(check=check, level=Level.WARN, said=said, about=about, next=next)


def fail(check: str, said: str, next: str, *, about: str = "") -> Finding:  # noqa: A002 - the field's name
    """It is broken."""
    return Finding(check=check, level=Level.FAIL, said=said, about=about, next=next)


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first; within a level in the order given, which is from causes to consequences."""
    levels = list(Level)
    return tuple(sorted(findings, key=lambda finding: levels.index(finding.level)))


def failed(findings: Iterable[Finding]) -> bool:
    """Whether anything is broken: a warning is not."""
    return any(finding.level is Level.FAIL for finding in findings)
