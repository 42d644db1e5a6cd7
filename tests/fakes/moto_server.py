"""moto's server in this process: an STS (and S3, IAM) that we did not write.

Needs ``moto[server,s3,sts,iam]``; see :func:`available`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator


def available() -> bool:
    """Whether moto and its server parts are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("moto", "flask", "flask_cors"))


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """Serve moto on a loopback port; gives the base URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moto's and flask's own deprecations are not ours to mend
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        try:
            yield f"http://{host}:{port}"
        finally:
            server.stop()
