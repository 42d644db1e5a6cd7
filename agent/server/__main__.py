"""``python -m agent.server [DESCRIPTOR PARENT]``: for the daemon, which gives both; without them for its unit."""

import signal

from agent.host import signals

if __name__ == "__main__":
    # A server that was begun a moment ago does not heed what asks for its end yet: there it must wait, or is lost.
    signals.first(blocked={signal.SIGTERM})
    for _number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(_number, signal.SIG_IGN)

    import os
    import sys

    from agent.host.loading import load_msgspec

    load_msgspec()

    from agent.core.errors import HostError
    from agent.server.forked import write
    from agent.server.starting import main, serve

    if sys.argv[1:]:
        main(int(sys.argv[1]), int(sys.argv[2]))
    else:
        try:
            serve(os.environ)
        except HostError as error:
            write(f"{error.message}\n{error.hint or ''}\n".encode())
            sys.exit(1)
