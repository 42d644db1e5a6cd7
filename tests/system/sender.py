"""A person's program with the line, which says how it stands whenever that changes, until SIGTERM.

    python sender.py SCHEDULER OPTIONS

OPTIONS are those of ``forward.dask`` as JSON, and ``patience``: how long a newcomer waits, in seconds. A line on
standard output is a JSON object: each worker with its state and reason, and the content keys that were made so far,
which nobody else may ever see.
"""

from __future__ import annotations

import functools
import json
import secrets
import signal
import sys
import threading
from typing import Any

from distributed import Client

from agent import forward
from agent.forward import on_dask


def main() -> None:
    """Forward, and tell of it."""
    keys: list[str] = []
    make = secrets.token_bytes

    def noted(nbytes: int | None = None) -> bytes:
        made = make(nbytes)
        if sys._getframe(1).f_code.co_name == "generate_cek":  # joserfc's, whoever calls it
            keys.append(made.hex())
        return made

    secrets.token_bytes = noted
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    connect: Any = Client
    client = connect(sys.argv[1], set_as_default=False, timeout="60s")
    said = ""

    def say(status: forward.Status, *, over: bool = False) -> None:
        nonlocal said
        workers = {
            one.name: {"state": str(one.state), "host": one.host, "machine": one.machine, "reason": one.reason}
            for one in status.workers
        }
        text = json.dumps({"served": status.served, "workers": workers, "keys": keys, "over": over})
        if text != said:
            said = text
            sys.stdout.write(said + "\n")
            sys.stdout.flush()

    options = json.loads(sys.argv[2])
    if patience := options.pop("patience", None):
        on_dask.Dask = functools.partial(on_dask.Dask, patience=patience)  # type: ignore[assignment, misc]
    with forward.dask(client, **options) as running:
        while True:
            say(running.status())
            if ended.wait(0.2):
                break
    say(running.status(), over=True)


if __name__ == "__main__":
    main()
