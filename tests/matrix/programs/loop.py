"""Clients that ask and ask: ``python loop.py KIND THREADS``, until standard input ends; then how it went, as JSON.

Each call is one that needs the agent: a new session of boto3 (``boto3-container``, ``boto3-imds``), or the three requests
of the EC2 dialect and no second try (``plain``).
"""

import collections
import http.client
import json
import os
import sys
import threading


def boto3_container():
    from botocore.credentials import ContainerProvider

    found = ContainerProvider().load().get_frozen_credentials()
    return found.access_key


def boto3_imds():
    from botocore.credentials import InstanceMetadataProvider
    from botocore.utils import InstanceMetadataFetcher

    fetcher = InstanceMetadataFetcher(
        timeout=float(os.environ.get("AWS_METADATA_SERVICE_TIMEOUT", "1")),
        num_attempts=int(os.environ.get("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")),
        base_url=os.environ["LOOP_URL"] + "/",
    )
    found = InstanceMetadataProvider(iam_role_fetcher=fetcher).load()
    if found is None:
        raise RuntimeError("no credential")
    return found.get_frozen_credentials().access_key


def plain():
    endpoint = os.environ["LOOP_URL"].removeprefix("http://")

    def ask(method, path, headers):
        connection = http.client.HTTPConnection(endpoint, timeout=30)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            body = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status}")
        return body

    token = ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "21600"})
    headers = {"X-aws-ec2-metadata-token": token}
    role = ask("GET", "/latest/meta-data/iam/security-credentials/", headers)
    return json.loads(ask("GET", f"/latest/meta-data/iam/security-credentials/{role}", headers))["AccessKeyId"]


def main():
    call = {"boto3-container": boto3_container, "boto3-imds": boto3_imds, "plain": plain}[sys.argv[1]]
    calls, keys, failed = collections.Counter(), collections.Counter(), collections.Counter()
    over = threading.Event()
    lock = threading.Lock()

    def loop():
        while not over.is_set():
            try:
                key, error = call(), None
            except Exception as problem:  # noqa: BLE001 - counted, whatever it is
                key, error = None, f"{type(problem).__name__}: {problem}"
            with lock:
                calls["all"] += 1
                if error is None:
                    keys[key] += 1
                else:
                    failed[error] += 1

    threads = [threading.Thread(target=loop) for _ in range(int(sys.argv[2]))]
    for thread in threads:
        thread.start()
    for _ in sys.stdin:  # any line: say how many calls there have been
        print(json.dumps(calls["all"]), flush=True)
    over.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"calls": calls["all"], "keys": dict(keys), "failed": dict(failed)}), flush=True)


if __name__ == "__main__":
    main()
