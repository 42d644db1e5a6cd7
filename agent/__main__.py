"""``credential-agent``, and ``python -m agent``: from its first moment on."""

import signal
import sys

from agent.host import signals


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        argv: without the program's name; ``None``: as it was called.
    """
    given = sys.argv[1:] if argv is None else argv
    # A reload that is asked for too early must not end the daemon; it waits until that is heeded.
    signals.first(blocked={signal.SIGHUP} if given[:1] == ["run"] else None)
    from agent.cli import main as command_line  # noqa: PLC0415 - takes long, and signals come meanwhile

    command_line(argv)


if __name__ == "__main__":
    main()
