"""A job on the cluster that knows nothing of forwarding: each worker reads the object, once or again and again.

    python cluster_job.py SCHEDULER [--every SECONDS]

A line for each round: which workers read it, and what the first that could not read said.
"""

import argparse
import json
import signal
import sys
import time
from typing import Any


def read() -> str:
    import boto3

    client: Any = boto3.Session().client("s3")
    text: str = client.get_object(Bucket="davids-numbers", Key="numbers.txt")["Body"].read().decode()
    return text


def main() -> None:
    import cloudpickle
    from dask.distributed import Client

    parser = argparse.ArgumentParser()
    parser.add_argument("scheduler")
    parser.add_argument("--every", type=float)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    make: Any = Client
    client = make(arguments.scheduler, set_as_default=False)
    while True:
        said = client.run(read, on_error="return")
        good = [worker for worker, text in said.items() if isinstance(text, str)]
        failed = [str(text).splitlines()[0][:200] for text in said.values() if not isinstance(text, str)]
        sys.stdout.write(json.dumps({"read": len(good), "workers": len(said), "failed": failed}) + "\n")
        sys.stdout.flush()
        if arguments.every is None:
            return
        time.sleep(arguments.every)


if __name__ == "__main__":
    main()
