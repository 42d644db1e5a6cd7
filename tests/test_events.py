"""The page of log events and metrics says what the code does: none is missing, and none is there that nobody emits."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeGuard

import msgspec
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from agent import report
from agent.core.counters import Counters
from agent.core.verdict import Accepted, Event, Memory, Policy
from agent.host.arrival import STATES, Arrival
from agent.host.process import Usage
from agent.serve.handling import Access
from tests.unit.identity.driver import Store
from tests.unit.identity.worlds import bundle, session

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "agent" / "EVENTS.md"
TEXT = PAGE.read_text()
CODE = sorted((ROOT / "agent").rglob("*.py"))

LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
LOGGER = re.compile(r"(^|\.)_?log$|get_logger\(\)$")
"""How a logger is called in the code: ``self._log``, ``log``, ``structlog.get_logger()``."""

PROMISES = {"stable", "diagnostic"}


class Said(NamedTuple):
    """One place that logs."""

    place: str
    events: frozenset[str]
    levels: frozenset[str]
    fields: frozenset[str]


# -- what the code says ------------------------------------------------------------------------------------------------


def is_log_method(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return (
        isinstance(node, ast.Attribute)
        and node.attr in LEVELS | {"log"}
        and bool(LOGGER.search(ast.unparse(node.value)))
    )


def levels_in(node: ast.AST) -> frozenset[str]:
    return frozenset(n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and is_log_method(n))


def words_in(node: ast.AST, assigned: dict[str, ast.expr]) -> frozenset[str]:
    """The names of events that ``node`` may be: a word, one of two, a name for either, or the controller's notices."""
    match node:
        case ast.Constant(value=str() as word):
            return frozenset({word})
        case ast.IfExp():
            return words_in(node.body, assigned) | words_in(node.orelse, assigned)
        case ast.Name() if node.id in assigned:
            return words_in(assigned[node.id], assigned)
        case ast.Attribute(attr="event") if ast.unparse(node) == "notice.event":
            return frozenset(Event)
    raise AssertionError(f"cannot tell which event this is: {ast.unparse(node)}")


def fields_of(call: ast.Call, module: ast.Module) -> Iterator[str]:
    for keyword in call.keywords:
        if keyword.arg is not None:
            if keyword.arg != "exc_info":  # a traceback, as `exception`
                yield keyword.arg
            continue
        assert isinstance(keyword.value, ast.Call), f"cannot tell which fields these are: {ast.unparse(keyword)}"
        called = ast.unparse(keyword.value.func)
        if called == "msgspec.structs.asdict":
            yield from (field.name for field in msgspec.structs.fields(Access))
        else:
            (function,) = [n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == called]
            (told,) = [n.value for n in ast.walk(function) if isinstance(n, ast.Return)]
            assert isinstance(told, ast.Dict)
            yield from (key.value for key in told.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
            assert all(isinstance(key, ast.Constant) for key in told.keys)


def paired(
    what: ast.expr, how: ast.expr, assigned: dict[str, ast.expr]
) -> Iterator[tuple[frozenset[str], frozenset[str]]]:
    """Which event has which level, where one condition or one table decides both."""
    if isinstance(what, ast.IfExp) and isinstance(how, ast.IfExp) and ast.unparse(what.test) == ast.unparse(how.test):
        yield words_in(what.body, assigned), levels_in(how.body)
        yield words_in(what.orelse, assigned), levels_in(how.orelse)
    elif isinstance(how, ast.Dict) and all(ast.unparse(key or how).startswith("Event.") for key in how.keys):
        for key, value in zip(how.keys, how.values, strict=True):
            assert isinstance(key, ast.Attribute)
            yield frozenset({Event[key.attr]}), levels_in(value)
    else:
        yield words_in(what, assigned), levels_in(how)


def line_of(call: ast.Call, assigned: dict[str, ast.expr], name: str) -> Said:
    """A line that the log writes of itself: its event and its level are fields like others."""
    told = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    event, level = told.pop("event"), told.pop("level")
    if isinstance(event, ast.Name):
        event = assigned[event.id]
    words = {n.value for n in ast.walk(event) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    levels = {level.value} if isinstance(level, ast.Constant) else {"log"}
    return Said(f"{name}:{call.lineno}", frozenset(words), frozenset(map(str, levels)), frozenset(told))


def said_by(text: str, name: str) -> Iterator[Said]:
    """Every place of a module that logs. A logger's method that is used in a way not known here is an error."""
    module = ast.parse(text)
    for function in ast.walk(module):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assigned = {
            target.id: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        aliases = {alias: levels_in(value) for alias, value in assigned.items() if levels_in(value)}
        for call in ast.walk(function):
            if not isinstance(call, ast.Call):
                continue
            if isinstance(call.func, ast.Name) and call.func.id == "_line":  # beside structlog, in agent/log alone
                yield line_of(call, assigned, name)
                continue
            spoken = call.func.value if isinstance(call.func, ast.Subscript) else call.func
            if isinstance(spoken, ast.Name) and spoken.id in aliases:
                how = assigned[spoken.id]
            elif is_log_method(call.func):
                how = call.func
            else:
                continue
            what, *rest = call.args if levels_in(how) != {"log"} else call.args[1:]
            assert not rest, f"{name}:{call.lineno}: a field without a name"
            fields = frozenset(fields_of(call, module))
            for words, levels in paired(what, how, assigned):
                yield Said(f"{name}:{call.lineno}", words, levels, fields)


def test_the_collector_sees_every_way_of_logging() -> None:
    """A word, a choice of words, a choice of levels and a table of levels are seen; what cannot be read is an error."""
    text = """
def one(self, x):
    self._log.info("a.b", f=1, **_more(x))
def two(self, x):
    say = self._log.error if x else self._log.warning
    say("c.d" if x else "c.e", g=2)
def three(self, notice):
    say = {Event.ENDED: self._log.info, Event.HORIZON: structlog.get_logger().error}
    say[notice](notice.event)
def four(self, x):
    say = self._log.error if x else self._log.warning
    say("c.d" if y else "c.e")
def _more(x):
    return {"h": 1, "i": 2}
"""
    found = [(set(said.events), set(said.levels), set(said.fields)) for said in said_by(text, "x")]
    assert found == [
        ({"a.b"}, {"info"}, {"f", "h", "i"}),
        ({"c.d"}, {"error"}, {"g"}),
        ({"c.e"}, {"warning"}, {"g"}),
        ({Event.ENDED}, {"info"}, set()),
        ({Event.HORIZON}, {"error"}, set()),
        ({"c.d", "c.e"}, {"error", "warning"}, set()),
    ]
    with pytest.raises(AssertionError, match="cannot tell which event"):
        list(said_by("def f(self, x):\n    self._log.info(x.upper())", "x"))


@functools.cache
def collected() -> dict[str, tuple[set[str], set[str]]]:
    """By event: its levels and its fields."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in CODE:
        text = path.read_text()
        if "_log" not in text and "structlog" not in text:
            continue
        for said in said_by(text, str(path.relative_to(ROOT))):
            for event in said.events:
                levels, fields = found.setdefault(event, (set(), set()))
                levels |= said.levels
                fields |= said.fields
    return found


def test_no_logger_is_used_behind_the_collectors_back() -> None:
    """Each mention of a logger's method belongs to a call that was collected: none is passed on to somebody else."""
    for path in CODE:
        text = path.read_text()
        if not any(f".{level}" in text for level in LEVELS | {"log"}):
            continue
        mentions = {(n.lineno, n.col_offset) for n in ast.walk(ast.parse(text)) if is_log_method(n)}
        seen = {
            (n.lineno, n.col_offset)
            for function in ast.walk(ast.parse(text))
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
            for inside in ((node.func,) if isinstance(node, ast.Call) else (node.value,) if isinstance(node, ast.Assign) else ())
            for n in ast.walk(inside)
            if is_log_method(n)
        }  # fmt: skip
        assert mentions <= seen, path


# -- what the page says ------------------------------------------------------------------------------------------------


def rows(heading: str) -> list[list[str]]:
    """The rows of the tables below a heading, as cells."""
    section = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    (body,) = [one for one in section if one.startswith(heading)]
    lines = [line for line in body.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def ticked(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def documented() -> dict[str, tuple[set[str], set[str]]]:
    table = {}
    for event, level, fields, _when, _promise in rows("Log events"):
        (name,) = ticked(event)
        assert name not in table, name
        table[name] = ({word.strip() for word in level.split(",")}, ticked(fields))
    return table


def test_every_event_is_on_the_page_and_no_other() -> None:
    """The table has each event of the code, and no event that nothing emits."""
    assert sorted(documented()) == sorted(collected())


def test_the_page_tells_levels_and_fields() -> None:
    """The row of an event has the levels and the fields that the code gives it."""
    emitted = {
        event: ({"its own" if one == "log" else one for one in levels}, fields)
        for event, (levels, fields) in collected().items()
    }
    assert documented() == emitted


@pytest.mark.parametrize("heading", ["Log events", "Metrics"])
def test_each_row_says_when_and_what_is_promised(heading: str) -> None:
    """No cell of meaning is empty, and the promise is one of those that the page explains."""
    for row in rows(heading):
        *_, meaning, promise = row
        assert meaning, row
        assert promise in PROMISES, row


def test_events_are_dotted_facts() -> None:
    """An event is ``subject.fact``: two words of small letters, with a dot between."""
    assert [event for event in collected() if not re.fullmatch(r"[a-z_]+\.[a-z_]+", event)] == []


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("systemd/*.md")), *sorted(ROOT.glob("packer/*.md"))]
"""What operators read."""


def test_the_pages_for_operators_name_only_events_that_there_are() -> None:
    """A list of events in a page is a choice of those in the table."""
    lists = [re.findall(r"Log events are dotted facts \(([^)]*)\)", page.read_text()) for page in PAGES]
    assert [event for found in lists for one in found for event in ticked(one) if event not in documented()] == []


# -- metrics -----------------------------------------------------------------------------------------------------------


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@functools.cache
def scrape() -> str:
    """A scrape of a worker of which everything is so that may be: each family has a row."""
    rng = Random(1)
    store = Store(Policy(grace=timedelta()), Memory(instance_id="i-1"), NOW, rng)
    verdict = store.evaluate(bundle(session(hours=1, now=NOW), now=NOW), NOW)
    assert isinstance(verdict, Accepted)
    store.accept(verdict, NOW)
    counters = Counters(
        refused={"code": 1}, source_troubles={"file": 1}, issued={"aws:g": 1}, failures={"aws:g:timeout": 1},
        last_issued={"aws:g": NOW},
    )  # fmt: skip
    vitals = report.Vitals(
        started=NOW,
        wall_error_seconds=0.0,
        clock=report.ClockVitals(),
        sources={"file": "ok"},
        refusal=None,
        memory_unwritten=False,
        keys=(),
        audiences=(),
        requests={("workers", 200): 1},
        redirect=Arrival(STATES[0]),
        without={"keys[0]": "gone"},
        processes={"agent": Usage(resident_bytes=1, cpu_seconds=1.0, descriptors=1)},
        servers=(report.ServerVitals(pid=1, since=NOW, version=1, newest=True, apart=True),),
    )
    return report.metrics(store, counters, vitals, NOW).decode()


def scraped() -> Iterator[Metric]:
    """What it says."""
    yield from text_string_to_metric_families(scrape())


def families() -> dict[str, tuple[str, set[str]]]:
    """By the name that a scrape has: type and labels."""
    return {sample.name: (family.type, set(sample.labels)) for family in scraped() for sample in family.samples}


def test_each_family_has_a_row_here() -> None:
    """No metric escapes the comparison because this worker has none of it."""
    assert [family.name for family in scraped() if not family.samples] == []


def test_every_metric_is_on_the_page_and_no_other() -> None:
    """The table has each metric with its type and labels, and no metric that nothing emits."""
    table = {}
    for name, kind, labels, _meaning, _promise in rows("Metrics"):
        (word,) = ticked(name)
        table[word] = (kind, ticked(labels))
    assert table == families()


def test_metrics_that_operators_are_told_of_are_stable() -> None:
    """What an operator is told to look at or to alert on is promised to stay."""
    stable = {name for row in rows("Metrics") for name in ticked(row[0]) if row[-1] == "stable"}
    named = {name for page in PAGES for name in re.findall(r"\bcredential_agent_[a-z_]+", page.read_text())}
    assert len(named) > 5
    assert sorted(named - stable - {"credential_agent_closed", "credential_agent_held"}) == []  # nftables' tables
