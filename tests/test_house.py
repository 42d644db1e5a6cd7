"""The house rules that no linter of ours keeps."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("house")  # whoever reads a module for one rule has it for all

ROOT = Path(__file__).resolve().parents[1]
AGENT = sorted((ROOT / "agent").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parsed(path: Path) -> ast.Module:
    """The module, read once: many rules look at all of them."""
    return ast.parse(path.read_text())


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute chain; empty for anything else."""
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return node.id if isinstance(node, ast.Name) else ""


def uses(path: Path, *names: str) -> list[str]:
    """Where ``path`` uses any of the dotted names."""
    tree = parsed(path)
    return [
        f"{name_of(path)}:{node.lineno} {dotted(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Name) and dotted(node) in names
    ]


def outside(*places: str) -> Iterator[Path]:
    """The agent's files outside ``places``, given as paths below ``agent/``."""
    for path in AGENT:
        if not str(path.relative_to(ROOT / "agent")).startswith(places):
            yield path


def test_the_contracts_are_kept() -> None:
    """Every contract of import-linter is kept: which package imports which."""
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("import-linter is not installed beside this Python")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_only_the_command_line_prints_or_exits() -> None:
    """No package but ``cli``, and the program that answers workers, prints or ends the process."""
    found = [
        u
        for path in outside("cli/", "server/", "__main__.py")
        for u in uses(path, "print", "sys.exit", "os._exit", "exit")
    ]

    assert found == []


def test_only_the_command_line_reads_the_environment() -> None:
    """No package but those of a person's programs reads the environment: it is passed as an argument."""
    allowed = ("cli/", "forward/", "__main__.py", "server/__main__.py")
    assert [u for path in outside(*allowed) for u in uses(path, "os.environ", "os.getenv")] == []


def test_only_the_clock_reads_the_time() -> None:
    """Time is a parameter: only the two clocks read the wall clock, and the sender's programs, who have no other."""
    allowed = ("host/clock.py", "serve/clock.py", "cli/", "forward/", "sender/")
    clocks = ("datetime.now", "datetime.utcnow", "time.time", "time.time_ns", "datetime.datetime.now")
    assert [u for path in outside(*allowed) for u in uses(path, *clocks)] == []


def test_what_cannot_be_looked_at_is_not_taken_for_absent() -> None:
    """Who decides something asks for the error: `exists` and its like say no whatever is wrong (with a later Python, all)."""
    allowed = (
        "cli/",  # a person's programs, as the next three
        "doctor/",
        "forward/",
        "sender/",
        "host/",
        "daemon/late.py",  # what is taken for missing is written once more
        "daemon/prepare.py",  # asks whether a disk answers at all; and a check
    )
    asks = {"exists", "lexists", "is_dir", "is_file", "is_symlink", "isdir", "isfile", "islink"}
    found = [
        f"{name_of(path)}:{node.lineno} {node.attr}"
        for path in outside(*allowed)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr in asks
    ]
    assert found == []


@pytest.mark.parametrize("path", AGENT, ids=name_of)
def test_what_is_public_says_what_it_is(path: Path) -> None:
    """Every module, public class and public function has a docstring."""

    def missing(node: ast.AST, inside: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if child.name.startswith("_") or "overload" in map(dotted, child.decorator_list):
                continue
            if ast.get_docstring(child) is None and "D102" not in lines[child.lineno - 1]:
                yield f"{inside}{child.name}:{child.lineno}"
            if isinstance(child, ast.ClassDef):
                yield from missing(child, f"{child.name}.")

    lines = path.read_text().splitlines()
    tree = parsed(path)
    if path.name != "__main__.py":
        assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"
    assert list(missing(tree, "")) == []


OUR_OWN_MISTAKES = {"AssertionError", "RuntimeError", "SystemExit", "TimeoutError"}
"""What no caller is to catch, or what does not get out."""


def _raised(node: ast.AST) -> Iterator[str]:
    """The names of the errors that a function raises itself."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.Raise) and child.exc is not None:
            error = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
            name = dotted(error).rpartition(".")[2]
            if name[:1].isupper():
                yield name
        yield from _raised(child)


def test_what_raises_says_so() -> None:
    """A public function names, by type, each error that it raises; or its class does, for all of its methods."""

    def untold(node: ast.AST, inside: str, above: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                yield from untold(child, f"{inside}{child.name}.", ast.get_docstring(child) or "")
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
                continue
            told = f"{above}\n{ast.get_docstring(child) or ''}"
            if "See :" in told or any("command" in ast.unparse(one) for one in child.decorator_list):
                continue  # the interface says it; a command ends with an exit status
            silent = {name for name in _raised(child) if name not in told} - OUR_OWN_MISTAKES
            yield from (f"{inside}{child.name}:{child.lineno} {name}" for name in sorted(silent))

    assert [f"{name_of(path)} {one}" for path in AGENT for one in untold(parsed(path), "", "")] == []


def _untold(node: ast.AST) -> Iterator[str]:
    """What differs between the arguments of a function or a class and the list of them in its docstring."""
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
        return
    function: ast.AST = node
    if isinstance(node, ast.ClassDef):
        function = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), node)
    listed = re.search(r"^Args:\n((?:    .*\n?|\n)*)", ast.get_docstring(node) or "", re.MULTILINE)
    if listed is None or not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    told = {
        one.strip(" *")
        for names in re.findall(r"^    (\*?\w[\w, *]*):", listed[1], re.MULTILINE)
        for one in names.split(",")
    }
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    there = {one.arg for one in every if one is not None and one.arg not in {"self", "cls"}}
    yield from (f"{node.name}:{node.lineno} {one}" for one in told ^ {one for one in there if not one.startswith("_")})


def test_who_lists_arguments_lists_all() -> None:
    """A docstring that has a list of arguments names each, and none that is not there."""
    assert [
        f"{name_of(path)} {one}" for path in AGENT for node in ast.walk(parsed(path)) for one in _untold(node)
    ] == []


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_every_test_states_its_rule(path: Path) -> None:
    """Each test's docstring says the rule that it pins, in a sentence that needs no other before it."""
    tree = parsed(path)
    silent = [
        f"{node.name}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and re.match(r"\Z|(?:And|But|Nor|Or|So) ", ast.get_docstring(node) or "")
    ]

    assert silent == []


# -- nothing is long --------------------------------------------------------------------------------------------------

LONGEST_FILE_LINES = 420
LONGEST_CLASS_LINES = 260
LONGEST_FUNCTION_LINES = 65
"""Of its body, without the docstring."""
REASON = re.compile(r"\bLong because\b")
"""Begins the sentence of a docstring that says why what it describes is longer."""


def lengths(path: Path) -> Iterator[tuple[str, int, int, bool]]:
    """What has a length of its own: its name, its lines, how many it may have, whether its docstring has a reason."""
    text = path.read_text()
    module = ast.parse(text)
    yield name_of(path), text.count("\n"), LONGEST_FILE_LINES, bool(REASON.search(ast.get_docstring(module) or ""))
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            begin, most = node.lineno, LONGEST_CLASS_LINES
            if not isinstance(node, ast.ClassDef):
                begin, most = body[0].lineno, LONGEST_FUNCTION_LINES
            lines = (node.end_lineno or begin) - begin + 1
            yield f"{name_of(path)} {node.name}", lines, most, bool(REASON.search(ast.get_docstring(node) or ""))


def test_nothing_is_long_without_a_reason() -> None:
    """A file, a class or a function that is long says why in its docstring, and nothing says so that is short."""
    found = [one for path in AGENT for one in lengths(path)]
    assert [f"{name}: {lines} lines" for name, lines, most, reason in found if lines > most and not reason] == []
    assert [f"{name}: {lines} lines" for name, lines, most, reason in found if reason and lines <= most] == []


def test_what_is_said_to_be_used_unseen_is_unused_otherwise() -> None:
    """Each name that vulture is told to pass over would be reported: the list hides nothing that went since."""
    tool = Path(sys.executable).with_name("vulture")
    if not tool.exists():
        pytest.skip("vulture is not installed beside this Python")
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["vulture"]
    options = [
        "--min-confidence",
        str(told["min_confidence"]),
        "--ignore-decorators",
        ",".join(told["ignore_decorators"]),
    ]
    command = [tool, *told["paths"], "--config", "/dev/null", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert set(re.findall(r"unused [a-z ]+ '(\w+)'", done.stdout)) == set(told["ignore_names"]), done.stderr


OLD_WORDS = re.compile(r"(?:doors?|ring|rung|offer(?:s|ed|ing)?|haste|hasten|personas?|judg(?:es?|ed|ing)|keepers?)\Z")
STILL = {
    # Where the word is an interface: a label, an event, and for one release the names of before.
    "agent/core/announced.py": {"doors"},
    "agent/daemon/reload.py": {"doors"},
    "agent/daemon/requests.py": {"door"},
    "agent/host/nft.py": {"doors"},
    "agent/report/metrics.py": {"door"},
    "tests/system/test_daemon.py": {"doors"},
    "tests/system/test_late.py": {"door"},
    "tests/unit/daemon/test_requests.py": {"door"},
    "tests/unit/host/test_nft.py": {"doors"},
    # Where it is no word of ours: HTTP's, plain English, the name of a vector.
    "agent/config/schema.py": {"offer"},
    "agent/serve/reading.py": {"offers"},
    "tests/fakes/served.py": {"offer"},
    "tests/unit/serve/test_reading.py": {"offers", "offered"},
    "tests/vectors/bundle/generate.py": {"judged", "ring"},
}
"""Where a word of before is still used, and which. The list only gets shorter."""


def test_the_words_of_before_do_not_come_back() -> None:
    """Code and tests say what agent/README.md's table says: no name, comment or text has a word of before."""
    found: dict[str, set[str]] = {}
    for path in (*AGENT, *sorted((ROOT / "tests").rglob("*.py"))):
        if path == Path(__file__):
            continue
        words = re.findall(r"[A-Z]?[a-z]+", path.read_text())
        if old := {word.lower() for word in words if OLD_WORDS.match(word.lower())}:
            found[name_of(path)] = old
    assert found == STILL


# -- small things that are written once -------------------------------------------------------------------------------


def constants(path: Path, *values: object) -> list[str]:
    """Where ``path`` writes one of ``values``, alone or within a longer text."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Constant):
            within = isinstance(node.value, str) and any(isinstance(v, str) and v in node.value for v in values)
            if within or (type(node.value) is int and node.value in values):
                found.append(f"{name_of(path)}:{node.lineno} {node.value!r}"[:100])
    return found


def test_strict_json_is_decoded_in_one_place() -> None:
    """Nobody else names the exceptions of msgspec's decoder: who forgets one of the three can be crashed."""
    allowed = (
        "core/strictjson.py",
        "daemon/codec.py",  # hides the secrets in what it reads; its own handover, from the system
        "host/state.py",  # tells root what is wrong with root's own file
        "sender/gcp.py",  # tells a person what is wrong with that person's own file
    )
    decoders = ("msgspec.json.decode", "msgspec.json.Decoder")
    assert [use for path in outside(*allowed) for use in uses(path, *decoders)] == []


def test_the_systems_reasons_are_said_in_one_place() -> None:
    """An OSError is put into words by ``os_reason`` alone."""
    said = [
        f"{name_of(path)}:{node.lineno}"
        for path in outside("core/text.py", "cli/ask.py")  # ask's errors may be of another kind
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr == "strerror" and dotted(node) != "os.strerror"
    ]
    assert said == []


def test_instants_and_limits_are_written_in_one_place() -> None:
    """The text of an instant and the size of a bundle are each spelled once."""
    assert [use for path in outside("core/text.py") for use in constants(path, "%Y-%m-%dT")] == []
    assert [use for path in outside("core/limits.py") for use in constants(path, 262_144)] == []


def test_addresses_and_shapes_are_written_in_one_place() -> None:
    """The URL of a service, and the pattern of a value, stands in one module: two would drift apart."""
    one_place = re.compile(r"https?://[a-z0-9-]+\.[a-z]|.*\\Z\Z", re.DOTALL)
    found: dict[str, set[str]] = {}
    for path in AGENT:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and one_place.match(node.value):
                found.setdefault(node.value, set()).add(name_of(path))
    assert {text: sorted(where) for text, where in found.items() if len(where) > 1} == {}
    assert [use for path in outside("core/partition.py", "enrol/sts.py") for use in constants(path, "aws-us-gov")] == []
    assert [use for path in outside("core/installed.py") for use in constants(path, "/etc/credential-agent/conf")] == []


def families() -> set[str]:
    """The children of ``AgentError``: the families of errors."""
    tree = ast.parse((ROOT / "agent/core/errors.py").read_text())
    return {n.name for n in tree.body if isinstance(n, ast.ClassDef) and "AgentError" in map(dotted, n.bases)}


def test_the_error_tree_is_in_one_file_and_told_whole() -> None:
    """Each family of errors stands in the table that says who raises and who catches it; there are no others."""
    table = re.findall(
        r"^``(\w+)`` ", ast.get_docstring(ast.parse((ROOT / "agent/core/errors.py").read_text())) or "", re.MULTILINE
    )
    elsewhere = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in outside("core/errors.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef) and "AgentError" in map(dotted, node.bases)
    ]

    assert set(table) == families()
    assert elsewhere == []


def test_every_error_is_raised_somewhere() -> None:
    """An error that nobody raises is a promise of the tree that nobody keeps."""
    tree = ast.parse((ROOT / "agent/core/errors.py").read_text())
    defined = {n.name: list(map(dotted, n.bases)) for n in tree.body if isinstance(n, ast.ClassDef)}
    used = {
        node.id for path in outside("core/errors.py") for node in ast.walk(parsed(path)) if isinstance(node, ast.Name)
    }
    parents = {base for bases in defined.values() for base in bases}

    assert set(defined) - used - parents == set()


# -- one owner of what changes ----------------------------------------------------------------------------------------

DURABLE = {"BundleAccepted", "BundleRevoked", "MemoryAdopted", "MemoryReset", "MemoryRecalled", "MemoryDoubted"}
"""The events that change what outlives the process: of agent/controller/durable.py alone."""

CHANGING = {"apply", "take", "due", "tick"}
"""The methods of the store that let events happen: of the controller's package alone."""


def test_the_shell_is_changed_by_events_alone() -> None:
    """The store replaces its state in one method, and every method that calls it is in the list."""
    tree = ast.parse((ROOT / "agent/identity/store.py").read_text())
    (store,) = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "Store"]
    methods = {n.name: n for n in store.body if isinstance(n, ast.FunctionDef)}
    assigning = {
        name
        for name, body in methods.items()
        for n in ast.walk(body)
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
    }
    calling = {
        name
        for name, body in methods.items()
        for n in ast.walk(body)
        if isinstance(n, ast.Call) and dotted(n.func).removeprefix("self.") in CHANGING
    }

    assert assigning == {"__init__", "apply"}
    assert calling | {"apply"} == CHANGING


def _calls(path: Path, methods: set[str]) -> list[str]:
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and node.attr in methods:
            owner = dotted(node.value).rpartition(".")[2]
            if owner.lstrip("_") == "store":
                found.append(f"{name_of(path)}:{node.lineno} {dotted(node)}")
    return found


def _names(path: Path, names: set[str]) -> list[str]:
    tree = parsed(path)
    return [f"{name_of(path)}:{n.lineno} {n.id}" for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in names]


def test_only_the_controller_changes_the_store() -> None:
    """No package but the controller's lets an event happen in the store: nobody else could lose an update."""
    assert [call for path in outside("controller/", "identity/") for call in _calls(path, CHANGING)] == []


def test_what_is_durable_has_one_owner() -> None:
    """One module changes what outlives the process, and it alone writes it down."""
    owner = ROOT / "agent/controller/durable.py"
    others = [path for path in AGENT if path != owner]
    outsiders = [path for path in outside("identity/") if path != owner]
    assert [name for path in outsiders for name in _names(path, DURABLE)] == []
    assert {name.rpartition(" ")[2] for name in _names(owner, DURABLE)} == DURABLE
    saves = [
        f"{name_of(path)}:{node.lineno}"
        for path in others
        for node in ast.walk(parsed(path))
        # state.py writes; disk.py stands before it while the disk has not been read, and is handed to the owner.
        if isinstance(node, ast.Attribute)
        and node.attr in ("save", "_save")
        and path.name not in {"state.py", "disk.py"}
    ]
    assert saves == []


# -- tasks that nobody waits for --------------------------------------------------------------------------------------

ASKED_AGAIN = {
    "controller/durable.py:_ask": "what broke off is written at the loop's next round",
    "controller/loop.py:_sleep": "the loop is woken by its end, however it ends",
    "controller/noting.py:note": "it is noted again with the next change",
    "controller/tasks.py:spawn": "a flight that ends without a word is begun anew by the state machine, or is awaited",
    "daemon/audit.py:_put_down": "the lines are kept, and written with the next",
    "daemon/grace.py:keep": "it is written again with the next change",
    "daemon/publish.py:changed": "what is behind is seen at the next look",
    "daemon/remembered.py:begin": "the restoring waits for it, and the history",
    "daemon/servers.py:_begin": "the server that asked hears that it failed, or waits for its own time",
    "forward/on_dask.py:register": "a scheduler's own task: the program hears of it from Dask",
    "serve/connection.py:_wait": "its end is the answer, a 500 if it broke off",
    "serve/listener.py:_press": "asked again while there are too many",
    "serve/mints.py:_wait": "its end is the answer for all who asked",
    "server/supervisor.py:_hear": "the other end of what it was to connect hears of its end",
}
"""What may end with an error, and why nobody is left without: by the file and the function that begin it."""


def names_in(node: ast.AST) -> set[str]:
    return {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)
    }


def left_alone(path: Path) -> Iterator[str]:
    """The functions that begin a task for which they do not wait, and which no supervisor has."""
    for function in ast.walk(parsed(path)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        nodes = list(ast.walk(function))
        awaited = {name for node in nodes if isinstance(node, ast.Await) for name in names_in(node)} - {"self"}
        supervised = {"unending"} | {
            name
            for node in nodes
            if isinstance(node, ast.Assign) and "unending" in names_in(node.value)
            for target in node.targets
            for name in names_in(target)
        }
        groups = {names.id for node in nodes if isinstance(node, ast.AsyncWith) for item in node.items
                  if "TaskGroup" in names_in(item.context_expr) and isinstance(names := item.optional_vars, ast.Name)}  # fmt: skip
        for node in nodes:
            if not isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr | ast.Return):
                continue
            kept = {name for one in ast.iter_child_nodes(node) if one is not node.value for name in names_in(one)}
            if isinstance(node.value, ast.Call) and dotted(node.value.func).endswith(".append"):
                kept = names_in(node.value.func)
            for call in ast.walk(node):
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Attribute)
                    and call.func.attr in ("create_task", "ensure_future")
                    and not names_in(call.args[0]) & supervised
                    and not names_in(call.func.value) & groups
                    and not kept & awaited
                ):
                    yield f"{path.relative_to(ROOT / 'agent')}:{function.name}"


def test_a_task_is_waited_for_or_supervised_or_asked_for_again() -> None:
    """Whoever begins a task waits for its end, has it supervised, or is named here with the reason why its end costs nothing."""
    assert {one for path in AGENT for one in left_alone(path)} == set(ASKED_AGAIN)


# -- tests look at what others may look at ----------------------------------------------------------------------------

INSIDE: dict[str, set[str]] = {
    # The server's own memory of answers: what it finds, between two requests.
    "tests/unit/serve/test_remembered.py": {"_recalled"},
    # How much is remembered of what anybody may invent.
    "tests/unit/serve/test_plain.py": {"_known"},
    # One half of sealing at a time, so that another library does the other half.
    "tests/conformance/test_jose_peers.py": {"_encrypt", "_sign"},
    # Each reader by itself: what it must not do (recurse to the end) its callers hide.
    "tests/properties/test_deep_json.py": {
        *("_Answer", "_as_text", "_key_version", "_of", "_parse", "_plaintext", "_refusal", "_relisted_json", "_told"),
    },
    "tests/properties/test_durable.py": {"_writer"},  # to wait until nothing is being written
    # A table of the page beside the table of the code.
    "tests/unit/bundle/test_format.py": {"_ALLOWED_AWS", "_REFUSED_NAMES", "_REFUSED_PREFIXES"},
    "tests/unit/cli/test_check.py": {"_become_the_service"},  # for good: in a child
    # The way out of google-auth, led to loopback.
    "tests/unit/cli/test_sender.py": {"_transport"},
    "tests/unit/sender/test_deliver.py": {"_transport"},
    "tests/unit/sender/test_gcp.py": {"_transport"},
    "tests/unit/sender/test_gcp_transport.py": {"_transport"},
    "tests/unit/doctor/test_probes.py": {"_may_be_ours"},  # a socket of another user's: root alone could make one
    "tests/unit/keys/test_kms.py": {"_endpoint"},  # the true hosts, which nothing may reach from here
    "tests/unit/serve/test_room.py": {"_sweeper"},  # that nothing is watched any more
    "tests/unit/serve/test_fair_shares.py": {"_open"},  # what is known of connections, which no answer tells
    # Former sessions, and a look at a file of authorities: let go when done, of which no answer tells.
    "tests/unit/upstream/test_client.py": {"_former", "_looking"},
}
"""Where a test looks inside a product class, and why. The list only gets shorter: what a test needs, others may need."""


def _private_names(paths: list[Path]) -> set[str]:
    """The names with one underscore that are defined there: functions, classes, attributes, variables."""
    found = set()
    for path in paths:
        for node in ast.walk(parsed(path)):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
                case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
                    found.add(name)
    return {name for name in found if re.match(r"_[A-Za-z]", name)}


def test_tests_look_at_what_others_may_look_at() -> None:
    """No test uses a private name of the product, but for those on the list, and each on the list is still used."""
    everything = sorted((ROOT / "tests").rglob("*.py"))
    # A fake's own, by the same name, is the tests'.
    helpers = [path for path in everything if path.parent.name == "fakes" or path.name in {"machine.py", "readme.py"}]
    private = _private_names(AGENT) - _private_names(helpers)
    used: dict[str, set[str]] = {}
    for path in everything:
        for node in ast.walk(parsed(path)):
            match node:
                case ast.Attribute(value=owner, attr=name) if name in private and ast.unparse(owner) not in (
                    *("self", "cls", "super()"),
                ):
                    used.setdefault(name_of(path), set()).add(name)
                case ast.Call(func=ast.Attribute(attr="setattr"), args=[_, ast.Constant(value=name), *_]) if (
                    name in private
                ):
                    used.setdefault(name_of(path), set()).add(name)
                case ast.Constant(value=str() as text) if re.fullmatch(r"agent(?:\.\w+)*\._[A-Za-z]\w*", text):
                    used.setdefault(name_of(path), set()).add(text.rpartition(".")[2])
                case ast.ImportFrom(module=str() as module, names=names) if module.split(".")[0] == "agent":
                    inside = {one.name for one in names if re.match(r"_[A-Za-z]", one.name)}
                    used.setdefault(name_of(path), set()).update(inside)
    assert {name: found for name, found in used.items() if found} == INSIDE


# -- what tests and lists name is there --------------------------------------------------------------------------------


def _is_there(dotted_name: str) -> bool:
    """Whether ``agent.a.b.C.d`` is a module, or an attribute of one."""
    parts = dotted_name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for name in parts[length:]:
            if name == "<locals>":
                return True  # inside a function
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def test_what_tests_name_in_text_is_there() -> None:
    """A program in a string that patches a name which moved would patch nothing, and test something else."""
    whole = re.compile(r"(?<![\w./-])agent(?:\.[A-Za-z_]\w*){2,}")  # of two parts are events of the log too
    imported = re.compile(r"\bfrom (agent(?:\.\w+)*) import (\w+(?:, \w+)*)")
    files = re.compile(r"(?<![\w./-])agent/[a-z_/]+\.py\b")
    missing = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "agent" in node.value:
                names = whole.findall(node.value) if path != Path(__file__) else []
                names += [
                    f"{module}.{one}" for module, ones in imported.findall(node.value) for one in ones.split(", ")
                ]
                gone = [one for one in names if not _is_there(one)]
                gone += [one for one in files.findall(node.value) if not (ROOT / one).exists()]
                missing += [f"{name_of(path)}:{node.lineno} {one}" for one in gone]
    assert missing == []


def test_accepted_survivors_name_functions_that_are_there() -> None:
    """What no test need notice is said of functions by name; a name that is gone hides whoever comes to bear it."""
    accepted = tomllib.loads((ROOT / "tests/mutants/accepted.toml").read_text())
    named = {entry["function"] for entries in accepted.values() for entry in entries if "function" in entry}
    assert named
    assert sorted(name for name in named if not _is_there(name)) == []


def test_tests_that_are_chosen_by_name_are_there() -> None:
    """A name that is gone deselects nothing, and a choice of it runs nothing."""
    named = re.compile(r"\b(tests/[\w/]+\.py)((?:::\w+)*)")
    missing = []
    for path in (ROOT / "Makefile", *(one for one in (ROOT / ".ci").rglob("*") if one.is_file())):
        for file, names in named.findall(path.read_text(errors="replace")):
            found = (ROOT / file).read_text() if (ROOT / file).exists() else ""
            gone = [name for name in names.split("::")[1:] if not re.search(rf"\b(?:def|class) {name}\b", found)]
            missing += [f"{name_of(path)}: {file}{names}"] if gone or not found else []
    assert missing == []


def test_what_ci_begins_beside_itself_ends() -> None:
    """A registry that does not answer holds up nothing for ever, and what CI leaves behind at its end is ended with it."""
    begun = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.endswith(" &")]
    assert len(begun) == 4
    assert all(line.startswith("timeout ") for line in begun)


def test_what_tests_say_is_to_be_installed_ci_installs() -> None:
    """No test is skipped in CI, on a machine with nothing on it, for what its own reason says how to get."""
    ci = (ROOT / ".ci/run").read_text()
    installed = {
        name
        for listed in re.findall(r"^(?:packages|wanted)=\(([^)]*)\)", ci, re.MULTILINE)
        for line in listed.splitlines()
        for name in line.partition("#")[0].split()
    }
    asked = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for names in re.findall(r"\(apt-get install ([a-z0-9 +.-]+)\)", path.read_text())
        for name in names.split()
    }
    assert {"nftables", "gcc"} <= asked
    assert sorted(asked - installed) == []
