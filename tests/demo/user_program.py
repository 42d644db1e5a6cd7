"""An ordinary program that reads an object again and again, as a long job does.

It knows nothing of any agent: no arguments to the SDKs, no keys, one client object for its whole life. On a laptop it
would run just so.

    python user_program.py s3://bucket/key
    python user_program.py gs://bucket/object

It prints what it read, every time; ``--once`` ends after the first, SIGINT or SIGTERM end it whenever they come.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit


def reader_of_s3(bucket: str, key: str) -> Callable[[], str]:
    import boto3

    client: Any = boto3.client("s3")
    return lambda: client.get_object(Bucket=bucket, Key=key)["Body"].read().decode()


def reader_of_gcs(bucket: str, name: str) -> Callable[[], str]:
    import google.auth
    import google.auth.transport.requests

    default: Any = google.auth.default
    credentials, _ = default(scopes=["https://www.googleapis.com/auth/devstorage.read_only"])
    make_session: Any = google.auth.transport.requests.AuthorizedSession
    session = make_session(credentials)
    # gcloud's name for "storage is elsewhere".
    endpoint = os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", "https://storage.googleapis.com").rstrip("/")
    url = f"{endpoint}/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media"

    def read() -> str:
        answer = session.get(url, timeout=10)
        answer.raise_for_status()
        text: str = answer.text
        return text

    return read


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url", help="s3://bucket/key or gs://bucket/object")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between reads")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))

    where = urlsplit(arguments.url)
    make = {"s3": reader_of_s3, "gs": reader_of_gcs}[where.scheme]
    read = make(where.netloc, where.path.lstrip("/"))
    while True:
        sys.stdout.write(read().rstrip("\n") + "\n")
        sys.stdout.flush()
        if arguments.once:
            return
        time.sleep(arguments.every)


if __name__ == "__main__":
    main()
