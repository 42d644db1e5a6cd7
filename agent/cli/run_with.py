"""``exec``: run a program with the worker's identity, once there is one."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from agent.cli.env import variables
from agent.cli.exits import EX_NOT_EXECUTABLE, EX_NOT_FOUND
from agent.cli.options import bundle_option, config_option, for_option, timeout_option
from agent.cli.stderr import say
from agent.cli.wait import Workers, await_identity
from agent.core.text import os_reason

_NOT_PASSED: Final = frozenset(
    {
        *(signal.SIGKILL, signal.SIGSTOP),  # nobody can wait for these
        *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),  # these stop us, as the shell expects
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS, signal.SIGABRT),
        *(signal.SIGPIPE, signal.SIGXFSZ),  # of our own writes
    }
)


@click.command(name="exec", context_settings={"allow_interspersed_args": False})
@config_option
@for_option
@timeout_option(120.0)
@bundle_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(path: Path, clouds: tuple[str, ...], timeout: float, bundle: bool, command: tuple[str, ...]) -> int:
    """Wait for an identity, then run COMMAND with it.

    COMMAND gets the variables that point to the agent. Variables that would make SDKs pass it by (AWS_ACCESS_KEY_ID,
    AWS_PROFILE and so on) are removed. Signals are passed on. The exit status is that of COMMAND; 128 plus the signal's
    number if a signal ended it.
    """
    from agent.host import envfile

    waited = await_identity(Workers(path, timeout), clouds, timeout, bundle=bundle)
    if waited:
        return waited
    return _supervise(command, envfile.overlay(os.environ, variables(path)))


def _supervise(command: tuple[str, ...], environ: Mapping[str, str]) -> int:
    """Run ``command`` as our child, pass on the signals that are sent to us, and return its status.

    A signal of the terminal (Ctrl-C) reaches the whole foreground group, the child included: only those that a process
    sent are passed on, or the child would get the first kind twice.
    """
    if not command[0]:
        say("credential-agent: expected the name of a command, got an empty one")
        return EX_NOT_FOUND
    awaited = signal.valid_signals() - _NOT_PASSED
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    # Python ignores these; a program that inherited that would not end when its pipe is closed.
    default = [signal.SIGPIPE, signal.SIGXFSZ]
    try:
        child = os.posix_spawnp(command[0], command, dict(environ), setsigmask=before, setsigdef=default)
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        say(f"credential-agent: {command[0]}: {os_reason(error, 'cannot be run')}")
        return EX_NOT_FOUND if isinstance(error, FileNotFoundError) else EX_NOT_EXECUTABLE
    while True:
        got = signal.sigwaitinfo(awaited)
        if got.si_signo != signal.SIGCHLD:
            if got.si_pid:
                with contextlib.suppress(PermissionError):  # it is another user by now, as sudo is
                    os.kill(child, got.si_signo)
            continue
        pid, status_ = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status_)
            return code if code >= 0 else 128 - code
