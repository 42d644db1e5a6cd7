"""The command line: the only package that prints, and the only one that exits.

Sub-commands are loaded when they are called, so that ``credential-agent run`` does not pay for what ``seal`` imports.
:mod:`agent.cli.exits` is the table of the statuses with which all of them end.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Final, NoReturn

import click

import agent
from agent.cli import documents
from agent.cli.exits import (
    EX_CONFIG,
    EX_DATAERR,
    EX_INTERRUPTED,
    EX_IOERR,
    EX_OSERR,
    EX_SOFTWARE,
    EX_UNAVAILABLE,
    EX_USAGE,
)
from agent.cli.stderr import give_up, say
from agent.core.errors import (
    AgentError,
    BundleError,
    ConfigError,
    CourierError,
    HostError,
    ProviderError,
    SourceError,
    UpstreamError,
    UsageError,
)
from agent.core.text import os_reason, printable
from agent.host import signals

# name -> module : attribute
_COMMANDS: Final = {
    "run": "agent.cli.run:run",
    "check": "agent.cli.check:check",
    "status": "agent.cli.status:status",
    "doctor": "agent.cli.doctor:doctor",
    "whoami": "agent.cli.whoami:whoami",
    "push": "agent.cli.push:push",
    "pubkey": "agent.cli.pubkey:pubkey",
    "config": "agent.cli.config:config",
    "refresh": "agent.cli.refresh:refresh",
    "reload": "agent.cli.reload:reload",
    "wait": "agent.cli.wait:wait",
    "env": "agent.cli.env:env",
    "exec": "agent.cli.run_with:exec_",
    "credential-process": "agent.cli.credential_process:credential_process",
    "keygen": "agent.cli.keygen:keygen",
    "forward": "agent.cli.forward:forward",
    "seal": "agent.cli.seal:seal",
    "inspect": "agent.cli.inspect:inspect",
    "redirect": "agent.cli.redirect:redirect",
}

# The errors of a full or broken stdout. click handles a closed pipe, in silence.
_OUTPUT: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})

_FRAMES: Final = 6


class _Lazy(click.Group):
    """A group whose members are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise AssertionError(f"internal error: {target} is not a command")  # noqa: TRY004 - ours, not the caller's
        return command


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(agent.__version__, prog_name="credential-agent")
def cli() -> None:
    """Serve a sealed, short-lived cloud identity to every program on this worker."""


def exit_code(error: AgentError) -> int:
    """The exit status that tells a calling script what kind of failure ``error`` is."""
    if isinstance(error, UsageError):
        return EX_USAGE
    if isinstance(error, ConfigError):
        return EX_CONFIG
    if isinstance(error, BundleError):
        return EX_DATAERR
    if isinstance(error, HostError):
        return EX_OSERR
    if isinstance(error, CourierError | ProviderError | SourceError | UpstreamError):
        return EX_UNAVAILABLE
    return EX_SOFTWARE


def report(error: AgentError) -> None:
    """Tell a person what went wrong, on stderr: the message, and the hint on a line of its own."""
    say(printable(f"credential-agent: {error.message}", keep="\n"))
    if error.hint:
        say(printable(f"  hint: {error.hint}", keep="\n"))


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit. Here every error becomes a line and an exit status of the table.

    Where a document was asked for (``--json``) and the error came before it, the document of the error is printed.
    """
    asked = documents.Asked(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    signals.hear_of_children()
    try:
        signals.interruptible()
        result = cli.main(args=argv, prog_name="credential-agent", standalone_mode=False, obj=asked)
    except AgentError as error:
        report(error)
        _fail(exit_code(error), error.message, error.hint, asked)
    except click.ClickException as error:
        try:
            if sys.stderr is not None:  # closed (``2>&-``): click would take stdout in its place
                error.show()
        except OSError:
            give_up(2)
        _fail(EX_USAGE, error.format_message(), None, asked)
    except (click.Abort, KeyboardInterrupt) as error:
        _interrupted(error, asked)
    except SystemExit as error:
        # click's own way out where whoever read our output has gone (| head -1), which is no status of the table.
        sys.exit(EX_IOERR if error.code == 1 else error.code)
    except OSError as error:
        _refused(error, asked)
    except ImportError as error:
        said = (
            f"a part of the program is missing ({error.name}): the installation is not whole, install the agent again"
        )
        report(HostError(said))
        _fail(EX_OSERR, said, None, asked)
    except Exception as error:  # noqa: BLE001 - the border of this program
        said = f"an internal error, please report it: {type(error).__name__} at {_place(error)}"
        say(f"credential-agent: {said}")
        _fail(EX_SOFTWARE, said, None, asked)
    sys.exit(result if isinstance(result, int) else 0)


def _prepare_streams() -> None:
    if sys.stdin is None:  # closed (``<&-``): empty, for whoever reads it
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 - as long as the process lives
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        # Names and reasons are others' words, in any script: a locale that cannot write them is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")


def _interrupted(error: BaseException, asked: documents.Asked) -> NoReturn:
    """Ctrl-C; or a question met the end of standard input, which click takes for the same."""
    if isinstance(error.__context__, EOFError):
        said, hint = "expected an answer, and there is nobody to give it", "run this on a terminal"
        report(HostError(said, hint=hint))
        _fail(EX_OSERR, said, hint, asked)
    say("credential-agent: interrupted")
    sys.exit(EX_INTERRUPTED)


def _refused(error: OSError, asked: documents.Asked) -> NoReturn:
    """The machine refused something that no command expected; or standard output takes nothing."""
    if error.errno in _OUTPUT and error.filename is None:
        say(f"credential-agent: stdout: cannot be written: {os_reason(error)}")
        give_up(1)
        sys.exit(EX_IOERR)
    name = "" if error.filename is None else f"{error.filename}: "
    hint = "credential-agent doctor"
    report(HostError(f"{name}{os_reason(error)}", hint=hint))
    _fail(EX_OSERR, f"{name}{os_reason(error)}", hint, asked)


def _fail(status: int, said: str, hint: str | None, asked: documents.Asked) -> NoReturn:
    """End with a status of the table, and with the document of an error if one is lacking."""
    if asked.lacking:
        try:
            documents.show(documents.error_document(status, said, hint))
        except OSError:
            give_up(1)
    sys.exit(status)


def _place(error: Exception) -> str:
    """Where it was raised, outermost first. Neither its words nor any value: either may be a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-_FRAMES:])
