"""``run``: the daemon."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from agent.core.installed import CONFIG_PATH

_config = click.option(
    "--config",
    "path",
    type=Path,  # not click.Path, which looks at the file: on a mount that hangs for ever
    default=CONFIG_PATH,
    show_default=True,
    help="The agent's configuration file (TOML).",
)


@click.command()
@_config
def run(path: Path) -> None:
    """Run the agent in the foreground, until SIGTERM.

    SIGHUP makes it read the configuration again and look at every source. Most keys take effect at once; the log names
    those that need a restart. A file that the configuration names (a key, a signer) is read again within seconds of
    being replaced, without a signal.
    """
    from agent.host import signals
    from agent.server.spawn import spawn, unit_of

    # A reload that is asked for too early would end us; it waits until the daemon heeds it.
    signals.begin(blocked={signal.SIGHUP})
    # What answers workers is another process, and that is begun by yet another, as long as anything can be. Before what
    # takes long to load, so that it loads meanwhile.
    other = unit_of(os.environ) or spawn(os.environ)

    from agent.host.loading import load_msgspec

    load_msgspec()

    import asyncio

    from agent import log
    from agent.daemon import Configured, Daemon, ServerChild, ServerUnit
    from agent.host import memory, seccomp, systemd
    from agent.host.threads import KEPT_THREADS, Threads

    child = ServerUnit(other) if isinstance(other, str) else ServerChild(*other)
    # Before there is a second thread, which would keep the right to execute, and may load something.
    seccomp.give_up_execution()
    memory.note_loaded()
    KEPT_THREADS.begin()
    # Then logging: a journal that hangs, or a closed standard error, must not stop the start.
    log.take_over(os.environ)
    log.set_up()
    file = Configured(path)
    settings = file.first(os.environ)
    log.set_up(level=settings.log.level, style=settings.log.format)
    systemd.harden()

    async def serve() -> None:
        asyncio.get_running_loop().set_default_executor(Threads())
        await Daemon(settings, environ=dict(os.environ), file=file, child=child).run()

    from agent.host.loop import Loop

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(serve())
        signals.last()
