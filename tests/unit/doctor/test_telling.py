"""The diagnosis, as it is told."""

from __future__ import annotations

from datetime import UTC, datetime

from agent.doctor import document, lines
from agent.doctor.finding import fail, ok, skipped, warn

FOUND = (fail("key", "gone", "ls", about="/k"), warn("clock", "off", "date"), skipped("x", "no"), ok("y", "fine"))
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def test_a_person_sees_cause_and_command_and_the_sum() -> None:
    """Each finding is a line with its mark, the command on a line below it, and the last line counts them."""
    assert list(lines(FOUND)) == [
        "FAIL  key /k: gone",
        "      next: ls",
        "warn  clock: off",
        "      next: date",
        "skip  x: no",
        "ok    y: fine",
        "1 failed, 1 to look at, 1 skipped, 1 ok",
    ]


def test_nothing_that_others_wrote_reaches_the_terminal_as_a_command() -> None:
    """Causes quote servers and files: what a terminal would obey is replaced, and a line stays one line."""
    (line, *_) = lines((ok("x", "a\n\033[31mb\x07"),))
    assert line == "ok    x: a ?[31mb?"


def test_what_was_skipped_for_one_reason_is_one_line() -> None:
    """Ten checks that may not read the configuration are told in one line, not in ten."""
    found = (skipped("key", "denied", next="sudo x"), skipped("disk", "denied", next="sudo x"), skipped("z", "other"))
    assert list(lines(found))[:3] == ["skip  key, disk: denied", "      next: sudo x", "skip  z: other"]


def test_colour_is_the_callers_choice() -> None:
    """Marks alone are coloured, and only when asked."""
    assert [line for line in lines(FOUND) if "\033" in line] == []
    assert next(lines(FOUND, colour=True)).startswith("\033[31;1mFAIL\033[0m  key")


def test_the_document_names_its_schema_and_version() -> None:
    """A program finds the name of the schema, its version, the verdict, and each finding with all its members."""
    told = document(FOUND, version="1.2", now=NOW, redacted=True)
    assert {name: told[name] for name in ("schema", "schema_version", "version", "now", "redacted", "ok")} == {
        "schema": "credential-agent/doctor",
        "schema_version": 1,
        "version": "1.2",
        "now": "2030-01-01T00:00:00Z",
        "redacted": True,
        "ok": False,
    }
    assert told["findings"][0] == {"check": "key", "level": "fail", "said": "gone", "about": "/k", "next": "ls"}
