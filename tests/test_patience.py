"""Tests wait for events with deadlines: none says how fast the machine under it must be.

What a test measures by the wall clock is the load of that minute too, and a deadline of a second or two is a measurement.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import pytest_runtest_setup
from tests.test_house import parsed

pytestmark = pytest.mark.xdist_group("house")

ROOT = Path(__file__).resolve().parents[1]
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if "bench" not in path.parts)
"""Benchmarks measure, and assert nothing."""
WALL = {"monotonic", "perf_counter", "time", "now", "utcnow"}
WAITS = {"until", "wait_for", "wait_content"}
LEAST_PATIENCE_SECONDS = 10


def called(node: ast.AST) -> str:
    """The last name of what is called: ``monotonic`` of ``time.monotonic()``."""
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def elapsed(node: ast.AST, known: set[str]) -> bool:
    """Whether it is a difference of instants that a clock tells now, or a name of one."""
    if isinstance(node, ast.Name):
        return node.id in known
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and called(node.left) in WALL


def bounds(function: ast.AST) -> Iterator[int]:
    """The lines at which ``function`` asserts that something took less than so long."""
    known = {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and elapsed(node.value, set())
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for statement in ast.walk(function):
        if not isinstance(statement, ast.Assert):
            continue
        for node in ast.walk(statement.test):
            if not isinstance(node, ast.Compare):
                continue
            sides = [node.left, *node.comparators]
            for left, right, sign in zip(sides, sides[1:], node.ops, strict=False):
                less, more = isinstance(sign, ast.Lt | ast.LtE), isinstance(sign, ast.Gt | ast.GtE)
                if (less and elapsed(left, known)) or (more and elapsed(right, known)):
                    yield node.lineno


def impatient(tree: ast.AST) -> Iterator[int]:
    """The lines at which something is waited for during less than :data:`LEAST_PATIENCE_SECONDS`."""
    for node in ast.walk(tree):
        if called(node) in WAITS and isinstance(node, ast.Call):
            for keyword in node.keywords:
                given = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg == "seconds" and isinstance(given, int | float) and given < LEAST_PATIENCE_SECONDS:
                    yield node.lineno


def test_no_test_says_how_fast_the_machine_must_be() -> None:
    """No assertion that something took less than so long: wait for an event, bound the processor's time, or count."""
    found = [f"{path.relative_to(ROOT)}:{line}" for path in TESTS for line in sorted({*bounds(parsed(path))})]

    assert found == []


def test_no_test_waits_for_a_moment_only() -> None:
    """Whoever waits has patience: what fails is found by it all the same, only later."""
    found = [f"{path.relative_to(ROOT)}:{line}" for path in TESTS for line in impatient(parsed(path))]

    assert found == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("assert time.monotonic() - began < 2", [1]),
        ("assert 0.3 < time.perf_counter() - began < 0.45", [1]),
        ("assert 3 >= monotonic() - began", [1]),
        ("assert datetime.now(UTC) - asked < timedelta(seconds=15)", [1]),
        ("took = time.monotonic() - began\nassert got and took < 2", [2]),
        ("assert time.monotonic() - began > 0.9", []),
        ("assert time.monotonic() < deadline", []),
        ("assert time.process_time() - began < 2", []),
        ("assert ends - timedelta(hours=1) < now", []),
    ],
)
def test_a_bound_is_found(source: str, lines: list[int]) -> None:
    """Upper bounds on what went by are found however they are written; lower ones and deadlines of loops are none."""
    assert list(bounds(ast.parse(source))) == lines


def test_a_group_stays_together(tmp_path: Path) -> None:
    """Tests of one xdist group run on one worker, in the order of their file."""
    (tmp_path / "test_it.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.xdist_group('one')\n"
        "@pytest.mark.parametrize('number', range(12))\n"
        "def test_it(number):\n"
        "    with open(os.environ['WHERE'], 'a') as said:\n"
        "        said.write(os.environ['PYTEST_XDIST_WORKER'] + f' {number}\\n')\n"
    )
    where = tmp_path / "where"
    ours = ["-p", "tests.conftest", "-n", "2", "--dist", "loadgroup", "-q", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, *ours],
        cwd=ROOT, env={**os.environ, "WHERE": str(where), "PYTHONPATH": str(ROOT)}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    workers, numbers = zip(*(line.split() for line in where.read_text().splitlines()), strict=True)
    assert len(set(workers)) == 1
    assert [int(number) for number in numbers] == list(range(12))


def test_no_test_logs_where_another_did(tmp_path: Path) -> None:
    """A log that a test set up ends with it: a standard error of its own is closed then, and the next one cannot log."""
    (tmp_path / "test_it.py").write_text(
        "import structlog\n"
        "from agent import log\n"
        "def test_one(capsys):\n"
        "    log.set_up()\n"
        "    structlog.get_logger().error('first')\n"
        "    assert 'first' in capsys.readouterr().err\n"
        "def test_another():\n"
        "    structlog.get_logger().error('second')\n"
    )
    ours = ["-p", "tests.conftest", "-n", "0", "-q", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, *ours],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_what_is_roots_is_skipped_where_nobody_is_root(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its mark alone: no test fails for a condition that its author, who was root, did not think of."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    pytest_runtest_setup(request.node)
    request.node.add_marker("root")
    with pytest.raises(pytest.skip.Exception, match="needs root"):
        pytest_runtest_setup(request.node)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    pytest_runtest_setup(request.node)


def test_where_no_socket_has_room_is_said_before_any_test(tmp_path: Path) -> None:
    """A directory for temporary files with a long name ends a run at its begin, with what to do about it."""
    place = tmp_path / ("x" * 30)
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", __file__],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(place)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"got {place}" in done.stderr
    assert "TMPDIR=/tmp make test" in done.stderr
