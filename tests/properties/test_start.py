"""What the start of the daemon loads: each library is paid for by those who use it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.system.harness import MODULES

LATER = (
    "aiohttp",
    "boto3",
    "botocore",
    "google.auth",
    "email",
    "joserfc",
    "prometheus_client",
    "requests",
    "urllib3",
    "yarl",
)
"""13 MB for the first, 25 for botocore, and so on; on a machine of which each worker process wants its share."""


@pytest.mark.parametrize("module", ["agent.daemon", "agent.cli.run"])
def test_the_start_loads_what_it_needs(module: str) -> None:
    """The composition root loads no client library: those come with what needs one."""
    # rich is no dependency, but structlog would take it where it is (here, by moto), and email with it.
    code = f"import sys; import {module}; print(*sorted({{'rich', *{LATER!r}}} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": MODULES}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_the_names_are_right() -> None:
    """The list above names modules that exist: a misspelt one would guard nothing."""
    code = f"import importlib.util as u; print(*[n for n in {LATER!r} if u.find_spec(n) is None])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


SERVER_NEVER = (
    *LATER,
    "cryptography",
    "structlog",
    "click",
    "agent.config",
    "agent.identity",
    "agent.upstream",
)


def test_what_answers_workers_loads_nothing_else() -> None:
    """The server's program has no key, no TLS client, no log and no configuration within reach."""
    code = f"import sys; import agent.server.master; print(*sorted(set({SERVER_NEVER!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "begin",
    [
        "runpy.run_module('agent.server', run_name='__main__', alter_sys=True)",  # no socket was passed to it
        "from agent.cli import main; main(['run', '--config', '/nonexistent/config.toml'])",
    ],
    ids=["server", "agent"],
)
def test_no_process_holds_a_library_that_the_standard_one_replaces(begin: str) -> None:
    """Neither program has loaded ``typing_extensions`` when it is composed, nor is it hidden from who needs it later."""
    code = (
        "import os, runpy, subprocess, sys\n"
        "def refuse(*_, **__):\n"
        "    raise OSError\n"
        "subprocess.Popen = refuse\n"
        "sys.modules['rich'] = None\n"
        "os.environ.clear()\n"
        "try:\n"
        f"    {begin}\n"
        "except SystemExit:\n"
        "    print('msgspec' in sys.modules, 'typing_extensions' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "False"]


def test_what_is_loaded_is_noted_while_there_is_one_thread() -> None:
    """The start's pages of libraries can be given back only of those that nobody else may still be loading."""
    code = (
        "import subprocess, sys, threading\n"
        "from agent.host import memory\n"
        "def refuse(*_, **__):\n"
        "    raise OSError\n"
        "subprocess.Popen = refuse\n"
        "memory.note_loaded = lambda: print(threading.active_count(), 'agent.daemon' in sys.modules, flush=True)\n"
        "from agent.cli import main\n"
        "main(['run', '--config', '/nonexistent/config.toml'])\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1", "True"], done.stderr


def test_what_answers_workers_is_begun_first() -> None:
    """Before the agent loads what takes long it has begun the other process, which loads what that needs meanwhile."""
    code = (
        "import subprocess, sys\n"
        "def begin(argv, **_):\n"
        f"    print(*argv[1:4], *sorted({{'asyncio', 'structlog', 'agent.daemon', *{SERVER_NEVER!r}}} & set(sys.modules)))\n"
        "    raise SystemExit\n"
        "subprocess.Popen = begin\n"
        "from agent.cli import main\n"
        "main(['run'])\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["-I", "-m", "agent.server", "click"]
