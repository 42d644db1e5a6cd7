"""``make demo``: the main job on an embedded cloud, in a minute. Exit status 0 only if every step went as said."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.demo.stage import ROOT, Failed, Stage
from tests.demo.story import Story
from tests.demo.teller import Teller

LONGEST_SOCKET_PATH = 100
"""The kernel's limit for a unix socket's path is 108 bytes (unix(7)); a clone may lie deeper than that allows."""


def _directory() -> Path:
    build = ROOT / "build"
    room = LONGEST_SOCKET_PATH - len("/demo-12345678/machine-imposter/run/courier.sock")
    if len(os.fsencode(build)) <= room:
        build.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="demo-", dir=build))
    return Path(tempfile.mkdtemp(prefix="demo-"))


def _forget_the_caller() -> None:
    """Whatever the caller's shell says about clouds and proxies is for other programs: none of it may be used here."""
    for name in list(os.environ):
        if name.upper().startswith(
            ("AWS_", "BOTO", "GOOGLE_", "GCE_", "CLOUDSDK_", "GCLOUD_")
        ) or name.upper().endswith("_PROXY"):
            del os.environ[name]
    # This process, too, speaks to the embedded clouds with boto3, which would read these.
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull


def _ended(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--keep", action="store_true", help="leave it running at the end, until Ctrl-C")
    parser.add_argument("--without-cluster", action="store_true", help="leave the first chapter out")
    arguments = parser.parse_args()
    _forget_the_caller()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)

    teller = Teller()
    stage = Stage(_directory())
    story = Story(stage, teller)
    begun = time.monotonic()
    status = 1
    teller.line("credential-agent: code that reads private data on a laptop, unchanged on a worker")
    teller.line()
    try:
        story.tell(cluster=not arguments.without_cluster)
        status = 0
        teller.summary(time.monotonic() - begun)
        if arguments.keep:
            story.try_by_hand()
            while True:
                stage.check()
                time.sleep(0.5)
    except Failed as failure:
        teller.failed(str(failure))
        if status:
            teller.summary(time.monotonic() - begun)
        status = 1
    except KeyboardInterrupt:
        teller.line("\ninterrupted: everything is being stopped" if status else "\nstopped")
        status = 130 if status else 0
    finally:
        stage.clear()
        if status == 1:
            teller.line(f" logs and files: {stage.directory}")
        else:
            shutil.rmtree(stage.directory, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
