"""Programs that start at the same instant and each ask for a credential for the first time, with boto3 as it is.

``python cold.py PORT COUNT`` makes COUNT processes, lets all of them go at once and prints one line of JSON, as the
generator does: ``sequences``, ``requests``, ``errors``, ``error``, ``seconds``, ``sequence_ms``. They are forked of one
that has imported boto3, so what is measured is the asking and not the reading of a library: each has its own session,
its own resolver and its own connections, and nothing in a cache.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError

_REQUESTS = 3  # token, role, document


def ask() -> str | None:
    """Resolve credentials as a program does; what went wrong, if anything did."""
    try:
        found = boto3.Session().get_credentials()
        if found is None:
            return "no credentials"
        return None if found.get_frozen_credentials().access_key.startswith("ASIA") else "a wrong credential"
    except (BotoCoreError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def child(gate: int, results: int) -> None:
    """Wait for the start, ask, tell, end."""
    os.read(gate, 1)  # which ends when the other side is closed
    began = time.perf_counter()
    wrong = ask()
    # One write, short enough to be whole (PIPE_BUF).
    os.write(results, f"{time.perf_counter() - began:.6f} {wrong or ''}\n"[:500].encode())


def main(port: int, count: int) -> None:
    """See the module."""
    print(json.dumps(together({"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{port}"}, count)))


def together(environ: Mapping[str, str], count: int) -> dict[str, Any]:
    """What came of so many that ask at once where these variables say."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, **environ}
    (gate, start), (told, results) = os.pipe(), os.pipe()
    for _ in range(count):
        if not os.fork():
            os.close(start)
            try:
                child(gate, results)
            finally:
                os._exit(0)
    os.close(results)
    time.sleep(0.5)  # all of them wait
    began = time.perf_counter()
    os.close(start)
    with os.fdopen(told) as lines:
        found = [line.rstrip("\n").partition(" ")[::2] for line in lines]
    seconds = time.perf_counter() - began
    took = sorted(1000 * float(one) for one, _ in found)
    wrong = [why for _, why in found if why]
    quantiles = {name: took[min(len(took) - 1, int(part * len(took)))] for name, part in _QUANTILES} if took else {}
    errors = len(wrong) + count - len(found)
    answered = count - errors
    return {
        "sequences": answered,
        "requests": _REQUESTS * answered,
        "errors": errors,
        "error": wrong[0] if wrong else "",
        "seconds": seconds,
        "sequence_ms": quantiles,
    }


_QUANTILES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))

if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
